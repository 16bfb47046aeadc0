// Package vmcoreinfotest imitates physical memory of a crashed kernel for
// tests: pages, page tables, notes, and holes.
package vmcoreinfotest

import (
	"encoding/binary"
	"errors"
	"fmt"
	"testing"

	"github.com/warmcore/warmcore/pkg/elfcore"
	"github.com/warmcore/warmcore/pkg/phys"
)

// ErrHole is the error of reading memory in a hole.
var ErrHole = errors.New("no RAM here")

// Memory is physical memory. Pages that were never written are zero, and reads
// that touch a hole fail.
type Memory struct {
	Size  uint64
	Holes phys.Set
	pages map[uint64]*[phys.PageSize]byte
	Reads int
}

// New returns memory without holes.
func New(size uint64) *Memory {
	return &Memory{Size: size, pages: map[uint64]*[phys.PageSize]byte{}}
}

// ReadPhys fills p from addr.
func (m *Memory) ReadPhys(p []byte, addr uint64) error {
	m.Reads++
	r, ok := phys.Sized(addr, uint64(len(p)))
	if !ok || r.End > m.Size || m.Holes.Overlaps(r) {
		return fmt.Errorf("read %v: %w", r, ErrHole)
	}
	for i := 0; i < len(p); {
		at := addr + uint64(i)
		rest := p[i:min(len(p), i+int(phys.PageSize-at%phys.PageSize))]
		if page := m.pages[at/phys.PageSize]; page != nil {
			copy(rest, page[at%phys.PageSize:])
		} else {
			clear(rest)
		}
		i += len(rest)
	}
	return nil
}

// Write puts b at addr.
func (m *Memory) Write(addr uint64, b []byte) {
	for i, c := range b {
		at := addr + uint64(i)
		page := m.pages[at/phys.PageSize]
		if page == nil {
			page = new([phys.PageSize]byte)
			m.pages[at/phys.PageSize] = page
		}
		page[at%phys.PageSize] = c
	}
}

// Entry returns entry i of the table at an address; 0 if it can't be read.
func (m *Memory) Entry(table uint64, i int) uint64 {
	var b [8]byte
	if err := m.ReadPhys(b[:], table+uint64(i)*8); err != nil {
		return 0
	}
	return binary.LittleEndian.Uint64(b[:])
}

// SetEntry sets entry i of the table at an address.
func (m *Memory) SetEntry(table uint64, i int, e uint64) {
	m.Write(table+uint64(i)*8, binary.LittleEndian.AppendUint64(nil, e))
}

// WriteNote puts a VMCOREINFO note at addr and returns its size.
func (m *Memory) WriteNote(t testing.TB, addr uint64, text string) uint64 {
	t.Helper()
	b, err := elfcore.AppendNote(nil, elfcore.ELFNote{Name: "VMCOREINFO", Desc: []byte(text)})
	if err != nil {
		t.Fatal(err)
	}
	b = elfcore.AppendFinalNote(b)
	m.Write(addr, b)
	return uint64(len(b))
}
