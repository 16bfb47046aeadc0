// Package binding reads and writes what payload and normal kernel tell each
// other, and what a board tells the payload: parameters on the kernel command
// line, nodes of our own in a device tree, and properties of /chosen.
// docs/bindings describes the nodes.
//
// All code that looks for the handoff area uses this package, so there is one
// rule: the command line, the device tree, or both name the same place. Two
// different places are an error; none of them is chosen.
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
	// ParamHugePages, used in a capture boot, holds the huge pages that
	// the boot entry asks for, in the form of pkg/hugetlb.
	ParamHugePages = "warmcore.hugepages"
	// ParamDropped, used in a capture boot, holds the names, separated by
	// commas, of those parameters of the boot entry that were left out and
	// that a running kernel can't apply later.
	ParamDropped = "warmcore.dropped"
	// ParamKdump, without a value, says that this boot is left to kdump: it
	// has all of memory, and can't be armed.
	ParamKdump = "warmcore.kdump"
)

// The compatible property of our own nodes in a device tree. The first two
// kinds are children of /reserved-memory.
const (
	// CompatibleHandoff is the handoff area.
	CompatibleHandoff = "warmcore,handoff"
	// CompatiblePayload is memory that is reserved in the payload's kernel
	// only, which maps it, so that copies are fast, and never allocates
	// it.
	CompatiblePayload = "warmcore,payload"
	// compatibleRegion is hidden memory. Its node is a child of the root;
	// the name is Linux's.
	compatibleRegion = "pmem-region"
)

// Bounds of the handoff area's size, in bytes.
const (
	// MinHandoff is the size that the registration needs. pkg/verdict
	// doesn't compile if the registration needs more.
	MinHandoff = 2 * phys.MiB
	// MaxHandoff bounds how much the payload reads into its own memory.
	// The ELF core header of a machine with thousands of CPUs takes 1 MiB.
	MaxHandoff = 16 * phys.MiB
)

// CheckHandoff returns an error for a range that can't be a handoff area on
// any machine.
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
