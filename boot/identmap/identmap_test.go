package identmap

import (
	"encoding/binary"
	"strings"
	"testing"
)

const gib = 1 << 30

// walk translates a virtual address as the processor does, from the table at
// cr3, and returns the physical address and the last entry's low 12 bits.
func walk(t *testing.T, tables []byte, base, cr3 uint64, levels int, addr uint64) (phys, flags uint64, ok bool) {
	t.Helper()
	at := cr3
	for level := levels; level >= 2; level-- {
		if at < base || at-base+tableSize > uint64(len(tables)) {
			t.Fatalf("level %d: table at %#x, outside of the tables", level, at)
		}
		index := addr >> (12 + 9*(level-1)) & 0x1ff
		e := binary.LittleEndian.Uint64(tables[at-base+index*8:])
		switch {
		case e&present == 0:
			return 0, 0, false
		case level == 2:
			if e&large == 0 || e&0x1fe000 != 0 {
				t.Fatalf("entry of %#x: %#x is no 2 MiB page", addr, e)
			}
			return e&0x000fffffffe00000 | addr&0x1fffff, e & 0xfff, true
		case e&0xfff != table:
			t.Fatalf("level %d entry of %#x: flags %#x, want %#x", level, addr, e&0xfff, table)
		}
		at = e & 0x000ffffffffff000
	}
	return 0, 0, false
}

func TestPut(t *testing.T) {
	const base = 0x1234_5000
	for _, c := range []struct {
		name     string
		top, end uint64
	}{
		{"one page", 0x1000, gib},
		{"4 GiB", 4 * gib, 4 * gib},
		{"not whole", 5*gib + 1, 6 * gib},
		{"largest", MaxTop, MaxTop},
	} {
		t.Run(c.name, func(t *testing.T) {
			size, end, err := Size(c.top)
			if err != nil || end != c.end {
				t.Fatalf("size of %#x: got end %#x, error %v; want %#x", c.top, end, err, c.end)
			}
			tables := make([]byte, size+1)
			for i := range tables {
				tables[i] = 0xa5 // Put must not leave what was there
			}
			if err := Put(tables, base, c.top, 0x20_0000); err != nil {
				t.Fatal(err)
			}
			if tables[size] != 0xa5 {
				t.Error("the byte behind the tables: written")
			}
			for _, entry := range []struct {
				cr3    uint64
				levels int
			}{{base + PML4, 4}, {base + PML5, 5}} {
				for addr := uint64(0); addr < c.end; addr += 1<<21 | 0x18 {
					want := uint64(page)
					if addr>>21 == 1 {
						want |= Uncached
					}
					phys, flags, ok := walk(t, tables[:size], base, entry.cr3, entry.levels, addr)
					if !ok || phys != addr || flags != want {
						t.Fatalf("%d levels, %#x: got %#x flags %#x mapped %v, want itself, flags %#x", entry.levels, addr, phys, flags, ok, want)
					}
				}
				for _, addr := range []uint64{c.end, 1 << 39, 1 << 47} {
					if phys, _, ok := walk(t, tables[:size], base, entry.cr3, entry.levels, addr); ok {
						t.Errorf("%d levels, %#x: mapped to %#x, want not at all", entry.levels, addr, phys)
					}
				}
			}
		})
	}
}

func TestPutErrors(t *testing.T) {
	for _, c := range []struct {
		name      string
		size      int
		base, top uint64
		uncached  uint64
		want      string
	}{
		{"nothing", 0x4000, 0, 0, 0, "map memory up to 0x0"},
		{"too much", 0x4000, 0, MaxTop + 1, 0, "map memory up to 0x8000000001"},
		{"base not aligned", 0x4000, 8, gib, 0, "page tables at 0x8"},
		{"base wraps", 0x4000, 1<<64 - 0x1000, gib, 0, "page tables at 0xfffffffffffff000"},
		{"no room", 0x3fff, 0x1000, gib, 0, "16383 bytes given, want 16384"},
		{"uncached beyond", 0x4000, 0x1000, gib, gib, "map 0x40000000 uncached: beyond"},
	} {
		t.Run(c.name, func(t *testing.T) {
			err := Put(make([]byte, c.size), c.base, c.top, c.uncached)
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got error %v, want one with %q", err, c.want)
			}
		})
	}
}
