// Package zeropage reads and fills in struct boot_params, the page with which
// an x86 boot loader tells a Linux kernel where everything is: "zero page"
// (Documentation/arch/x86/zero-page.rst, and
// arch/x86/include/uapi/asm/bootparam.h, v6.12).
package zeropage

import (
	"encoding/binary"
	"fmt"

	"github.com/warmcore/warmcore/pkg/phys"
)

const (
	// Size is the size of a zero page, in bytes.
	Size = 4096
	// EntrySize is the size of an entry of the e820 table, in bytes: 64-bit
	// address and size and 32-bit type, packed (struct boot_e820_entry in
	// arch/x86/include/uapi/asm/setup_data.h, v6.12).
	EntrySize = 20
	// MaxE820 is how many entries the page holds. More go into setup_data.
	MaxE820 = 128
	// MaxHeader is the longest setup header, in bytes: the e820 table follows.
	MaxHeader = offE820 - offHeader
)

// Offsets.
const (
	offScreenInfo      = 0x000 // screenInfoSize bytes
	offRSDP            = 0x070 // u64
	offExtRamdiskImage = 0x0c0 // u32, upper half
	offExtRamdiskSize  = 0x0c4 // u32, upper half
	offExtCmdLinePtr   = 0x0c8 // u32, upper half
	offEDID            = 0x140 // edidSize bytes
	offE820Entries     = 0x1e8 // u8
	offHeader          = 0x1f1
	offTypeOfLoader    = 0x210 // u8, in the header like the four below
	offRamdiskImage    = 0x218 // u32
	offRamdiskSize     = 0x21c // u32
	offCmdLinePtr      = 0x228 // u32
	offSetupData       = 0x250 // u64
	offE820            = 0x2d0

	screenInfoSize = 0x40
	edidSize       = 0x80

	typeUndefined = 0xff // a boot loader without a number
)

var le = binary.LittleEndian

// Page is a zero page, of Size bytes. Parse and New make one.
type Page []byte

// Parse returns the zero page in b, which it keeps.
func Parse(b []byte) (Page, error) {
	if len(b) < Size {
		return nil, fmt.Errorf("zero page of %d bytes: want %d", len(b), Size)
	}
	return Page(b[:Size:Size]), nil
}

// New returns a page for a kernel. header is the kernel's setup header: its
// image from offset 0x1f1 on, at most MaxHeader bytes. It names no boot
// loader, no initrd and no setup_data.
func New(header []byte) (Page, error) {
	if len(header) > MaxHeader {
		return nil, fmt.Errorf("zero page: setup header of %d bytes: want at most %d", len(header), MaxHeader)
	}
	p := make(Page, Size)
	copy(p[offHeader:], header)
	p[offTypeOfLoader] = typeUndefined
	le.PutUint64(p[offSetupData:], 0)
	p.SetInitrd(phys.Range{})
	return p, nil
}

// RSDP returns the address of ACPI's root pointer, 0 if the boot loader didn't
// set it and the kernel must search.
func (p Page) RSDP() uint64 { return le.Uint64(p[offRSDP:]) }

// Initrd returns where the boot loader put the initrd; ok is false if there is
// none.
func (p Page) Initrd() (r phys.Range, ok bool) {
	start := uint64(le.Uint32(p[offExtRamdiskImage:]))<<32 | uint64(le.Uint32(p[offRamdiskImage:]))
	size := uint64(le.Uint32(p[offExtRamdiskSize:]))<<32 | uint64(le.Uint32(p[offRamdiskSize:]))
	r, ok = phys.Sized(start, size)
	return r, ok && !r.Empty()
}

// E820 returns the memory map, in the form that memmap.E820 reads: entries of
// EntrySize bytes. A page without entries is an error.
func (p Page) E820() ([]byte, error) {
	n := int(p[offE820Entries])
	if n == 0 || n > MaxE820 {
		return nil, fmt.Errorf("zero page: %d e820 entries at offset %#x: want 1 to %d", n, offE820Entries, MaxE820)
	}
	return p[offE820:][:n*EntrySize], nil
}

// CopyScreen copies the description of the screen from another page, so that
// the next kernel's console works.
func (p Page) CopyScreen(from Page) {
	copy(p[offScreenInfo:][:screenInfoSize], from[offScreenInfo:])
	copy(p[offEDID:][:edidSize], from[offEDID:])
}

// SetRSDP sets the address of ACPI's root pointer.
func (p Page) SetRSDP(at uint64) { le.PutUint64(p[offRSDP:], at) }

// SetInitrd sets where the initrd is; an empty range means none.
func (p Page) SetInitrd(r phys.Range) {
	le.PutUint32(p[offRamdiskImage:], uint32(r.Start))
	le.PutUint32(p[offExtRamdiskImage:], uint32(r.Start>>32))
	le.PutUint32(p[offRamdiskSize:], uint32(r.Size()))
	le.PutUint32(p[offExtRamdiskSize:], uint32(r.Size()>>32))
}

// SetCmdline sets the address of the command line, which ends with a NUL.
func (p Page) SetCmdline(at uint64) {
	le.PutUint32(p[offCmdLinePtr:], uint32(at))
	le.PutUint32(p[offExtCmdLinePtr:], uint32(at>>32))
}

// SetSetupData sets the address of the first setup_data.
func (p Page) SetSetupData(at uint64) { le.PutUint64(p[offSetupData:], at) }

// SetE820 sets the memory map from a table of whole entries, and returns the
// entries that don't fit into the page.
func (p Page) SetE820(table []byte) (rest []byte) {
	n := min(len(table)/EntrySize, MaxE820)
	p[offE820Entries] = byte(n)
	copy(p[offE820:], table[:n*EntrySize])
	return table[n*EntrySize:]
}
