package machine

import (
	"github.com/warmcore/warmcore/pkg/phys"
	"github.com/warmcore/warmcore/vmtest/truth"
)

// Arch is an architecture, as the machine that QEMU makes of it. AMD64 and
// ARM64 are all there are.
type Arch struct {
	Name    string // as Go and Debian call it: amd64, arm64
	Console string // the kernel's name of the machine's serial port

	qemu    string                           // program
	cpu     string                           // -cpu under emulation
	machine string                           // -machine
	ram     func(memory uint64) truth.Layout // where RAM is
}

// arches are all of them.
var arches = []*Arch{AMD64, ARM64}

// Layout returns where a machine with memory bytes of RAM has that RAM.
func (a *Arch) Layout(memory uint64) truth.Layout { return a.ram(memory) }

// RAM returns a Layout's memory as a set.
func (a *Arch) RAM(memory uint64) phys.Set { return a.ram(memory).RAM() }
