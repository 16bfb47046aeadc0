package agent

import (
	"fmt"
	"runtime"

	"github.com/warmcore/warmcore/pkg/phys"
)

// machine is the part of arming that depends on the architecture.
type machine interface {
	// elf returns the machine number in ELF headers.
	elf() uint16
	// area says what memory the stub can be loaded into.
	area() stubArea
	// stub returns the image to load into area.
	stub(area, handoff phys.Range, nonce [16]byte) (image phys.Segment, entry uint64, err error)
	// check returns an error if the machine can't keep Arm's promise, for a
	// reason of this architecture.
	check(x *session) error
}

// stubArea is the memory that a stub can be loaded into, in bytes.
type stubArea struct {
	size, align uint64
	top         uint64 // it must end at or below
	kernel      string // the kernel parameter that reserves it
}

// machines has, for each GOARCH, the function that examines the machine.
var machines = map[string]func(*System) (machine, error){
	"amd64": func(s *System) (machine, error) { return s.amd64() },
	"arm64": func(s *System) (machine, error) { return s.arm64() },
}

// machine examines the machine, of the architecture that this program was
// built for.
func (s *System) machine() (machine, error) {
	arch := s.Arch
	if arch == "" {
		arch = runtime.GOARCH
	}
	find, ok := machines[arch]
	if !ok {
		return nil, refuse("use kdump", "there is no stub for %s", arch)
	}
	return find(s)
}

// segment returns the segment that puts a stub's image at the start of
// area.
func segment(image []byte, area phys.Range) (phys.Segment, error) {
	where, ok := phys.Sized(area.Start, uint64(len(image)))
	if !ok || !area.Contains(where) {
		return phys.Segment{}, fmt.Errorf("build stub: %d bytes, and the area for it is %v", len(image), area)
	}
	return phys.Segment{Name: "stub", Range: where, Data: image}, nil
}
