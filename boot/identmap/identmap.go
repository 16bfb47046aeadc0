// Package identmap builds x86-64 page tables that map physical memory to the
// same virtual addresses, in 2 MiB pages.
//
// Every entry is present, writable and executable, and has its accessed and
// dirty bits set, so that the processor never writes to the tables. The tables
// hold physical addresses and work only at the address that they were built
// for.
package identmap

import (
	"encoding/binary"
	"fmt"
)

// Layout, in bytes from the start of the tables. The level-5 table is used
// only where CR4.LA57 is set; otherwise CR3 is the level-4 table.
const (
	PML5      = 0x0000
	PML4      = 0x1000
	PDPT      = 0x2000
	PD        = 0x3000 // one page for each GiB
	tableSize = 0x1000
	entries   = 512
)

// Shifts from a count of pages to bytes, and the largest map: one level-3
// table.
const (
	largePageShift = 21
	gibShift       = 30
	MaxTop         = uint64(entries) << gibShift
)

// Bits of an entry (Intel SDM vol. 3, "4-Level Paging and 5-Level Paging").
const (
	present  = 1 << 0
	writable = 1 << 1
	through  = 1 << 3 // PWT
	disabled = 1 << 4 // PCD
	accessed = 1 << 5
	dirty    = 1 << 6
	large    = 1 << 7

	table = present | writable | accessed
	page  = table | dirty | large

	// Uncached selects entry 3 of the page attribute table, UC at reset and
	// in Linux.
	Uncached = through | disabled
)

// Size returns the size of the tables for [0, top), in bytes, and the real end
// of the map: top rounded up to a GiB. It fails if top is 0 or above MaxTop.
func Size(top uint64) (size, end uint64, err error) {
	if top == 0 || top > MaxTop {
		return 0, 0, fmt.Errorf("map memory up to %#x: not in (0, %#x]", top, MaxTop)
	}
	gib := (top-1)>>gibShift + 1
	return PD + gib*tableSize, gib << gibShift, nil
}

// Put writes tables that map [0, top) to the start of b. They will lie at the
// physical address base, a multiple of 4096. The pages that hold an address in
// uncached are mapped uncached.
func Put(b []byte, base, top uint64, uncached ...uint64) error {
	size, end, err := Size(top)
	if err != nil {
		return err
	}
	if base%tableSize != 0 || base+size < base {
		return fmt.Errorf("page tables at %#x: not a page's address", base)
	}
	if uint64(len(b)) < size {
		return fmt.Errorf("page tables for %#x bytes: %d bytes given, want %d", end, len(b), size)
	}
	clear(b[:size])
	put := func(off, v uint64) { binary.LittleEndian.PutUint64(b[off:], v) }
	put(PML5, base+PML4|table)
	put(PML4, base+PDPT|table)
	for i := range end >> gibShift {
		put(PDPT+i*8, base+PD+i*tableSize|table)
	}
	for i := range end >> largePageShift {
		put(PD+i*8, i<<largePageShift|page)
	}
	for _, a := range uncached {
		if a >= end {
			return fmt.Errorf("map %#x uncached: beyond %#x", a, end)
		}
		i := a >> largePageShift
		put(PD+i*8, i<<largePageShift|page|Uncached)
	}
	return nil
}
