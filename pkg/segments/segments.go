// Package segments places a kernel and what it needs in memory and writes
// the tables that the kernel's boot protocol asks for.
//
// It only decides: the result is a list of places and bytes. All of them are
// inside the memory that the caller allows (boot memory), and none overlap.
// Each architecture has a file, without build constraints, so that both are
// tested everywhere.
package segments

import (
	"fmt"

	"github.com/warmcore/warmcore/pkg/devicetree"
	"github.com/warmcore/warmcore/pkg/memmap"
	"github.com/warmcore/warmcore/pkg/phys"
)

// Kernel is a kernel image: a *BzImage or an *ARM64Image.
type Kernel interface {
	fmt.Stringer      // its version
	PageSize() uint64 // of its pages, in bytes; 0 if the image doesn't say
	place(l Linux) (*Image, error)
}

// Parse reads a kernel image for an architecture, "amd64" or "arm64".
func Parse(arch string, b []byte) (k Kernel, err error) {
	switch arch {
	case "amd64":
		k, err = ParseBzImage(b)
	case "arm64":
		k, err = ParseARM64(b)
	default:
		err = fmt.Errorf("kernel image for %q: no such architecture", arch)
	}
	if err != nil {
		return nil, err
	}
	return k, nil
}

// Linux is a kernel to be placed.
type Linux struct {
	Kernel     Kernel
	InitrdSize uint64 // bytes; 0 for none. The caller writes them to Image.Initrd
	Cmdline    string
	// Map is the memory map for the kernel. On arm64 it may be empty, for
	// a Tree that can't be read: the tree's description of memory then
	// stays unchanged, EFI's tables included, and Allowed must be memory
	// that is free in the running kernel.
	Map     memmap.Map
	Allowed phys.Set // where anything may be placed

	// For x86-64:

	RSDP uint64 // address of ACPI's root pointer; 0 lets the kernel search
	// BootParams is the running kernel's zero page, or nil. The screen's
	// description is copied from it, so that the next kernel's console
	// works.
	BootParams []byte

	// For arm64:

	Tree *devicetree.Tree // the running kernel's, as the boot loader passed it
	// Own is the running kernel's own memory; the trampoline takes a page
	// of it.
	Own     phys.Set
	Handoff phys.Range // the handoff area; empty for none
	// CoreHeader is the ELF core header in a capture boot, or nil. It is
	// placed in the RAM of the new kernel, which reads it through its
	// linear map. The memory that its program headers point at stays where
	// it is.
	CoreHeader []byte
	Seed       uint64 // fresh and random, for KASLR; 0 for none
}

// Image is a placed kernel.
type Image struct {
	Segments   []phys.Segment // to be written to their places; the kernel is the first
	Initrd     phys.Range     // where the initrd goes
	Trampoline phys.Segment   // to be given to kexec_load, entered at its start
	Entry      uint64         // the kernel's 64-bit entry point
}

// Place places a kernel: AMD64 or ARM64, as its image says.
func Place(l Linux) (*Image, error) {
	if l.Kernel == nil {
		return nil, fmt.Errorf("no kernel to be placed")
	}
	return l.Kernel.place(l)
}

func (*BzImage) place(l Linux) (*Image, error)    { return AMD64(l) }
func (*ARM64Image) place(l Linux) (*Image, error) { return ARM64(l) }
