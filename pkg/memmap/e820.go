package memmap

import (
	"encoding/binary"
	"fmt"

	"github.com/warmcore/warmcore/pkg/phys"
	"github.com/warmcore/warmcore/pkg/zeropage"
)

// E820 reads a table of entries as in boot_params.e820_table. Types are kept
// as they are. An entry of size 0 is left out with a warning; the kernel
// ignores it.
func E820(b []byte) (Map, error) {
	if len(b)%zeropage.EntrySize != 0 {
		return Map{}, fmt.Errorf("read e820 table: %d bytes are not a whole number of %d-byte entries", len(b), zeropage.EntrySize)
	}
	if len(b)/zeropage.EntrySize > MaxEntries {
		return Map{}, fmt.Errorf("read e820 table: %w", ErrTooMany)
	}
	var m Map
	for off := 0; off < len(b); off += zeropage.EntrySize {
		start := binary.LittleEndian.Uint64(b[off:])
		size := binary.LittleEndian.Uint64(b[off+8:])
		kind := Kind(binary.LittleEndian.Uint32(b[off+16:]))
		r, ok := phys.Sized(start, size)
		if !ok {
			return Map{}, fmt.Errorf("read e820 table: offset %#x: %#x bytes at %#x: beyond 64 bits", off, size, start)
		}
		if size == 0 {
			m.warnf("e820 entry %d at %#x has no size", off/zeropage.EntrySize, start)
			continue
		}
		m.Entries = append(m.Entries, Entry{Range: r, Kind: kind})
	}
	m, err := m.checked()
	if err != nil {
		return Map{}, fmt.Errorf("read e820 table: %w", err)
	}
	return m, nil
}

// AppendE820 appends entries to dst as a table that E820 reads. Empty and
// nested entries are an error: call Normalize first for a map that has some.
func AppendE820(dst []byte, entries []Entry) ([]byte, error) {
	if len(entries) > MaxEntries {
		return nil, fmt.Errorf("write e820 table: %w", ErrTooMany)
	}
	for i, e := range entries {
		if e.Range.Empty() || e.Depth != 0 {
			return nil, fmt.Errorf("write e820 table: entry %d (%v): empty or nested", i, e)
		}
		dst = binary.LittleEndian.AppendUint64(dst, e.Range.Start)
		dst = binary.LittleEndian.AppendUint64(dst, e.Range.Size())
		dst = binary.LittleEndian.AppendUint32(dst, uint32(e.Kind))
	}
	return dst, nil
}
