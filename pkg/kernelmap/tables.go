package kernelmap

import (
	"encoding/binary"
	"fmt"

	"github.com/warmcore/warmcore/pkg/vmcoreinfo"
)

// Bounds of a walk over a range of addresses.
const (
	// maxWalked caps the tables that one walk reads, in bytes: 16384 of 4
	// KiB. A table that contains itself would otherwise be walked 512^4
	// times. A direct map of 4 KiB pages has 512 tables per GiB, and no walk
	// here covers more than a few GiB.
	maxWalked = 1 << 26

	// maxCached caps the tables that are kept, in bytes.
	maxCached = 1 << 20
)

// PageTables are a kernel's page tables in the memory that a Reader reads.
// What differs between processors is in format.
type PageTables struct {
	r      vmcoreinfo.Reader
	root   uint64
	format format
	levels int
	bits   uint // address bits that the tables resolve, with the offset in a page
	page   uint // log2 of the page size, which is the size of a table too
	cache  map[uint64][]uint64
}

// format is the format of a processor's tables.
type format interface {
	// decode reads one entry of a table of the level; 1 is the last level.
	// addr is the address of a page if leaf, else of the next table. ok is
	// false for an entry that maps nothing or is not valid.
	decode(entry uint64, level int) (addr uint64, leaf, ok bool)
	// lower says whether the tables map the lower half of the addresses too.
	lower() bool
}

// shift returns the number of address bits below the index into a table of
// the level, 1 to levels.
func (t *PageTables) shift(level int) uint { return t.page + (t.page-3)*uint(level-1) }

// entries returns how many entries a table of the level has. The top one may
// be smaller than a page.
func (t *PageTables) entries(level int) uint64 {
	return 1 << min(t.page-3, t.bits-t.shift(level))
}

// base returns the address that the first entry of the top table would map if
// all of it were the upper half.
func (t *PageTables) base() uint64 { return ^uint64(0) << t.bits }

// canonical says whether virt is an address that the tables can map.
func (t *PageTables) canonical(virt uint64) bool {
	if t.format.lower() {
		unused := 64 - t.bits
		return uint64(int64(virt<<unused)>>unused) == virt
	}
	return virt >= t.base()
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
		table, err := t.table(at, level)
		if err != nil {
			return 0, false, fmt.Errorf("translate %#x: %w", virt, err)
		}
		next, leaf, ok := t.format.decode(table[virt>>t.shift(level)%uint64(len(table))], level)
		if !ok {
			return 0, false, nil
		}
		if leaf {
			return next + virt&(1<<t.shift(level)-1), true, nil
		}
		at = next
	}
}

// table returns the table at addr, from the cache if it is there.
func (t *PageTables) table(addr uint64, level int) ([]uint64, error) {
	n := t.entries(level)
	if table := t.cache[addr]; uint64(len(table)) == n {
		return table, nil
	}
	b := make([]byte, 8*n)
	if err := t.r.ReadPhys(b, addr); err != nil {
		return nil, fmt.Errorf("read page table at %#x: %w", addr, err)
	}
	table := make([]uint64, n)
	for i := range table {
		table[i] = binary.LittleEndian.Uint64(b[i*8:])
	}
	if len(t.cache) >= maxCached>>t.page {
		clear(t.cache)
	}
	t.cache[addr] = table
	return table, nil
}

// leaf is a page of any size that the tables map.
type leaf struct {
	virt, phys, size uint64
}

// walk calls yield for the pages of the upper half from the one that holds
// start up to the one that holds last, in the order of virtual addresses,
// until yield returns false. Tables that can't be read are skipped. It fails
// after maxWalked bytes of them.
func (t *PageTables) walk(start, last uint64, yield func(leaf) bool) error {
	w := walker{t: t, start: start, last: last, yield: yield}
	w.table(t.root, t.levels, t.base())
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
	if w.tables++; w.tables > maxWalked>>w.t.page {
		w.err = fmt.Errorf("walk page tables from %#x to %#x: more than %d tables", w.start, w.last, maxWalked>>w.t.page)
		return false
	}
	table, err := w.t.table(addr, level)
	if err != nil {
		return true
	}
	size := uint64(1) << w.t.shift(level)
	for i, entry := range table {
		virt := base + uint64(i)*size
		// In a top table that maps both halves, the second half of the
		// entries maps the upper half, whose addresses are
		// sign-extended.
		if level == w.t.levels && w.t.format.lower() && i < len(table)/2 {
			continue
		}
		if virt+(size-1) < w.start || virt > w.last {
			continue
		}
		next, isLeaf, ok := w.t.format.decode(entry, level)
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
