package vmcoreinfo

import (
	"encoding/binary"
	"fmt"

	"github.com/warmcore/warmcore/pkg/phys"
)

// Page table entries: Intel SDM volume 3, section 4.5 ("4-level paging and
// 5-level paging").
const (
	entryPresent = 1 << 0
	entryLarge   = 1 << 7 // PS, in the tables of 1 GiB and 2 MiB pages
	entryAddr    = 1<<52 - 1<<12
	entries      = 512
)

// maxTables caps how many tables one walk over a range of addresses reads. A
// table that contains itself would otherwise be walked 512^4 times. A direct
// map of 4 KiB pages has 512 tables per GiB, and no walk here covers more
// than a few GiB.
const maxTables = 1 << 14

// maxCached caps the tables that are kept, 4 KiB each.
const maxCached = 256

// PageTables are x86-64 page tables in the memory that a Reader reads.
type PageTables struct {
	r      Reader
	root   uint64
	levels int
	mask   uint64 // the bits of an entry that are an address
	cache  map[uint64]*[entries]uint64
}

// NewX86 returns the page tables whose top level lies at the physical address
// root, page aligned. Levels is 4 or 5.
func NewX86(r Reader, root uint64, levels int) (*PageTables, error) {
	if levels != 4 && levels != 5 {
		return nil, fmt.Errorf("page tables at %#x: %d levels, want 4 or 5", root, levels)
	}
	if root%phys.PageSize != 0 || root&^uint64(entryAddr) != 0 {
		return nil, fmt.Errorf("page tables at %#x: not the address of a page", root)
	}
	return &PageTables{r: r, root: root, levels: levels, mask: entryAddr, cache: map[uint64]*[entries]uint64{}}, nil
}

// shift returns the number of address bits below the index into a table of
// the level, 1 to 5.
func shift(level int) uint { return uint(12 + 9*(level-1)) }

// canonical says whether virt is an address that the tables can map.
func (t *PageTables) canonical(virt uint64) bool {
	unused := 64 - shift(t.levels+1)
	return uint64(int64(virt<<unused)>>unused) == virt
}

// Translate returns the physical address of virt. ok is false where virt is
// not mapped or not canonical. It reads at most five tables; err is the
// Reader's.
func (t *PageTables) Translate(virt uint64) (addr uint64, ok bool, err error) {
	if !t.canonical(virt) {
		return 0, false, nil
	}
	at := t.root
	for level := t.levels; ; level-- {
		table, err := t.table(at)
		if err != nil {
			return 0, false, fmt.Errorf("translate %#x: %w", virt, err)
		}
		next, leaf, ok := t.decode(table[virt>>shift(level)%entries], level)
		if !ok {
			return 0, false, nil
		}
		if leaf {
			return next + virt&(1<<shift(level)-1), true, nil
		}
		at = next
	}
}

// decode reads one entry of a table of the level: the address of a page if
// leaf, else of the next table. ok is false for an entry that maps nothing,
// or that no processor would take.
func (t *PageTables) decode(entry uint64, level int) (addr uint64, leaf, ok bool) {
	if entry&entryPresent == 0 {
		return 0, false, false
	}
	addr = entry & t.mask
	if level == 1 {
		return addr, true, true
	}
	if entry&entryLarge == 0 {
		return addr, false, true
	}
	// Bit 12 is PAT in a large page, the bits above it must be 0.
	addr &^= 1 << 12
	if level > 3 || addr%(1<<shift(level)) != 0 {
		return 0, false, false
	}
	return addr, true, true
}

// table returns the table at addr, from the cache if it is there.
func (t *PageTables) table(addr uint64) (*[entries]uint64, error) {
	if table := t.cache[addr]; table != nil {
		return table, nil
	}
	var b [entries * 8]byte
	if err := t.r.ReadPhys(b[:], addr); err != nil {
		return nil, fmt.Errorf("read page table at %#x: %w", addr, err)
	}
	table := new([entries]uint64)
	for i := range table {
		table[i] = binary.LittleEndian.Uint64(b[i*8:])
	}
	if len(t.cache) >= maxCached {
		clear(t.cache)
	}
	t.cache[addr] = table
	return table, nil
}

// leaf is a page of any size that the tables map.
type leaf struct {
	virt, phys, size uint64
}

// walk calls yield for the pages that begin at or behind start, and the one
// that holds start, up to end inclusive, in the order of virtual addresses,
// until yield returns false. Tables that can't be read are skipped. It fails
// after maxTables tables.
func (t *PageTables) walk(start, last uint64, yield func(leaf) bool) error {
	w := walker{t: t, start: start, last: last, yield: yield}
	w.table(t.root, t.levels, ^uint64(0)<<shift(t.levels+1))
	return w.err
}

type walker struct {
	t           *PageTables
	start, last uint64
	yield       func(leaf) bool
	tables      int
	err         error
}

// table walks the table at addr, which maps from base upwards; it returns
// false when the walk is over.
func (w *walker) table(addr uint64, level int, base uint64) bool {
	if w.tables++; w.tables > maxTables {
		w.err = fmt.Errorf("walk page tables from %#x to %#x: more than %d tables", w.start, w.last, maxTables)
		return false
	}
	table, err := w.t.table(addr)
	if err != nil {
		return true
	}
	size := uint64(1) << shift(level)
	for i, entry := range table {
		virt := base + uint64(i)*size
		if level == w.t.levels {
			// The top table maps both halves; the upper one is
			// sign-extended.
			if i < entries/2 {
				continue
			}
		}
		if virt+(size-1) < w.start || virt > w.last {
			continue
		}
		next, isLeaf, ok := w.t.decode(entry, level)
		switch {
		case !ok:
		case isLeaf:
			if !w.yield(leaf{virt, next, size}) {
				return false
			}
		case !w.table(next, level-1, virt):
			return false
		}
	}
	return true
}
