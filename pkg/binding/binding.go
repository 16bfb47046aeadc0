// Package binding is what payload and normal kernel tell each other, and what
// a board tells the payload: parameters on the kernel command line, nodes of
// our own in a device tree, properties of /chosen. docs/bindings describes
// the nodes.
//
// Whoever looks for the handoff area looks here, and finds it by one rule: one
// place, said by the command line, the device tree, or both alike. Two places
// are an error, never a choice.
package binding

import (
	"errors"
	"fmt"

	"github.com/warmcore/warmcore/pkg/phys"
)

// Parameters that the payload puts on the normal kernel's command line.
const (
	// ParamHandoff says where the handoff area is: ADDR,SIZE.
	ParamHandoff = "warmcore.handoff"
	// ParamHugePages, in a capture boot, has the huge pages that its boot
	// entry asks for, as pkg/hugetlb writes them.
	ParamHugePages = "warmcore.hugepages"
	// ParamDropped, in a capture boot, has the names, with commas between
	// them, of its boot entry's parameters that are left out and can't be
	// given back to a running kernel.
	ParamDropped = "warmcore.dropped"
)

// Nodes of our own in a device tree, by their compatible property. The first
// two are in /reserved-memory.
const (
	// CompatibleHandoff is the handoff area.
	CompatibleHandoff = "warmcore,handoff"
	// CompatiblePayload is memory that is reserved in the payload's kernel
	// only: it maps it, to copy fast, and never allocates it.
	CompatiblePayload = "warmcore,payload"
	// compatibleRegion is hidden memory, a child of the root. The name is
	// Linux's.
	compatibleRegion = "pmem-region"
)

// Bounds of the handoff area's size, in bytes.
const (
	// MinHandoff is what the registration needs; pkg/verdict holds it to that.
	MinHandoff = 2 * phys.MiB
	// MaxHandoff bounds what the payload reads into its own memory. The ELF
	// core header of a machine with thousands of CPUs takes 1 MiB.
	MaxHandoff = 16 * phys.MiB
)

// CheckHandoff refuses what can't be a handoff area on any machine.
func CheckHandoff(r phys.Range) error {
	switch {
	case r.Size() < MinHandoff:
		return fmt.Errorf("size is %s, want at least %s", phys.FormatSize(r.Size()), phys.FormatSize(MinHandoff))
	case r.Size() > MaxHandoff:
		return fmt.Errorf("size is %s, want at most %s", phys.FormatSize(r.Size()), phys.FormatSize(MaxHandoff))
	case r.Start < phys.MiB:
		return errors.New("below 1 MiB, which firmware overwrites")
	case r.Start%phys.PageSize != 0 || r.End%phys.PageSize != 0:
		return errors.New("not whole pages")
	}
	return nil
}
