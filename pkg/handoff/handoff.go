// Package handoff moves bytes to and from the handoff area. Package binding
// finds the area, and package registration decodes the bytes.
//
// Invariants: nothing outside the area is read or written, whatever offset the
// caller passes; ReadAll returns a private copy, because the area may change
// while it is being read.
package handoff

import (
	"fmt"
	"math/bits"

	"github.com/warmcore/warmcore/pkg/phys"
)

// Memory is physical memory, as pkg/physmem gives it.
type Memory interface {
	ReadPhys(p []byte, addr uint64) error
	WritePhys(p []byte, addr uint64) error
}

// Area is the handoff area in memory.
type Area struct {
	where phys.Range
	mem   Memory
}

// New returns the area at where, a range that binding.CheckHandoff accepts.
func New(where phys.Range, mem Memory) *Area { return &Area{where, mem} }

// Range returns where the area is.
func (a *Area) Range() phys.Range { return a.where }

// ReadAll returns a private copy of the area.
func (a *Area) ReadAll() ([]byte, error) {
	b := make([]byte, a.where.Size())
	if err := a.mem.ReadPhys(b, a.where.Start); err != nil {
		return nil, fmt.Errorf("read handoff area %v: %w", a.where, err)
	}
	return b, nil
}

// WriteAt writes p at off bytes into the area. The bytes reach memory in no
// particular order, so their encoding must allow for a torn write.
func (a *Area) WriteAt(p []byte, off uint64) error {
	end, carry := bits.Add64(off, uint64(len(p)), 0)
	if carry != 0 || end > a.where.Size() {
		return fmt.Errorf("write %d bytes at %#x of handoff area %v: beyond its end", len(p), off, a.where)
	}
	if err := a.mem.WritePhys(p, a.where.Start+off); err != nil {
		return fmt.Errorf("write %d bytes at %#x of handoff area %v: %w", len(p), off, a.where, err)
	}
	return nil
}
