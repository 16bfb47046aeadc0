// Package debian makes a guest's user space and disk from Debian's packages:
// kernels and programs, downloaded by apt and unpacked without installing
// them; initrds; whole root file systems; disk images laid out as Debian
// installs itself, and what a machine left on them. It starts no machine.
//
// Downloads and what is unpacked of them are kept in a cache, by package and
// version, each complete or not there.
package debian

import (
	"fmt"
	"runtime"
	"strings"
)

// Arch is what Debian calls the parts of an architecture. AMD64 and ARM64 are
// all there are.
type Arch struct {
	Name string // as Go and Debian call it: amd64, arm64

	kernel   string   // the package that stands for today's kernel
	modules  []string // see Modules
	triplet  string   // folder of its libraries
	loader   string   // path of the dynamic linker
	emulator string   // runs a program of it on a host of another architecture
}

// AMD64 is x86-64.
var AMD64 = &Arch{
	Name:     "amd64",
	kernel:   "linux-image-amd64",
	modules:  []string{"dax_hmem", "nd_e820", "msr"},
	triplet:  "x86_64-linux-gnu",
	loader:   "lib64/ld-linux-x86-64.so.2",
	emulator: "qemu-x86_64-static",
}

// ARM64 is arm64.
var ARM64 = &Arch{
	Name: "arm64",
	// linux-image-arm64 is 6.1 in Debian 12, which can't give memory back.
	kernel:   "linux-image-6.12-arm64",
	modules:  []string{"of_pmem"},
	triplet:  "aarch64-linux-gnu",
	loader:   "lib/ld-linux-aarch64.so.1",
	emulator: "qemu-aarch64-static",
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
