package rig

import (
	"fmt"
	"runtime"
	"strings"

	"github.com/warmcore/warmcore/pkg/phys"
)

// Arch is an architecture: the machine that QEMU makes of it, and what Debian
// calls its parts. AMD64 and ARM64 are all there are.
type Arch struct {
	Name    string // as Go and Debian call it: amd64, arm64
	Console string // the kernel's name of the machine's serial port

	qemu     string                           // program
	cpu      string                           // -cpu under emulation
	machine  string                           // -machine
	ram      func(memory uint64) []phys.Range // where RAM is, in the order of the RAM file
	kernel   string                           // Debian's package that stands for today's kernel
	modules  []string                         // see Modules
	triplet  string                           // folder of its libraries
	loader   string                           // path of the dynamic linker
	emulator string                           // runs a program of it on a host of another architecture
}

// arches are all of them.
var arches = []*Arch{AMD64, ARM64}

// ArchNamed returns the architecture called name.
func ArchNamed(name string) (*Arch, error) {
	var names []string
	for _, a := range arches {
		if a.Name == name {
			return a, nil
		}
		names = append(names, a.Name)
	}
	return nil, fmt.Errorf("no architecture %q; there are %s", name, strings.Join(names, ", "))
}

// Native is this host's architecture; nil if it is none of them.
var Native = func() *Arch {
	for _, a := range arches {
		if a.Name == runtime.GOARCH {
			return a
		}
	}
	return nil
}()

// RAM returns where a machine with memory bytes of RAM has it.
func (a *Arch) RAM(memory uint64) phys.Set { return phys.NewSet(a.ram(memory)...) }

// Offset returns where the byte at physical address addr is in the RAM file of
// a machine with memory bytes of RAM; ok is false where there is no RAM. The
// file has no holes where the address space has some.
func (a *Arch) Offset(memory, addr uint64) (off uint64, ok bool) {
	for _, r := range a.ram(memory) {
		if addr >= r.Start && addr < r.End {
			return off + addr - r.Start, true
		}
		off += r.Size()
	}
	return 0, false
}
