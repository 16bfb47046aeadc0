package dumpfilter

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/warmcore/warmcore/pkg/phys"
)

// Caps of Added: half a PiB in sections of 128 MiB, with 256 TiB of addresses
// between them.
const (
	maxRoots    = 1 << 20 // entries of the table with SPARSEMEM_EXTREME
	maxSections = 1 << 22
)

// Added returns the memory that the kernel had online and had not had at its
// boot, in whole sections. It was hot-added; so are window and destination when
// they are lent. Kernels before 5.4 don't mark such sections, and Added returns
// none. The error says why the kernel's tables can't be read, or that there are
// more than limit ranges.
func (f *Filter) Added(limit int) (phys.Set, error) {
	if f.layout == nil {
		return nil, errors.New("this kernel's page structures are not understood")
	}
	w, err := f.worker()
	if err != nil {
		return nil, err
	}
	defer f.release(w)
	a := added{w: w, limit: limit}
	s := &f.layout.sections
	if s.perRoot == 0 {
		err = a.sections(s.root, 0, s.count)
	} else {
		err = a.roots()
	}
	if !a.early {
		return nil, err
	}
	return a.found, err
}

// added looks for memory sections that were added.
type added struct {
	w     *worker
	limit int
	seen  uint64 // sections
	early bool   // one was there at boot: this kernel knows the flag
	found phys.Set
}

// roots looks at the pages of mem_sections that the kernel has.
func (a *added) roots() error {
	s := &a.w.f.layout.sections
	roots := (s.count + s.perRoot - 1) / s.perRoot
	if roots > maxRoots {
		return fmt.Errorf("a table of %d memory sections, want at most %d", s.count, maxRoots*s.perRoot)
	}
	buf := make([]byte, 8*min(roots, 512))
	for first := uint64(0); first < roots; first += 512 {
		p := buf[:8*min(512, roots-first)]
		if err := a.w.readVirtual(p, s.root+8*first); err != nil {
			return fmt.Errorf("table of memory sections: %w", err)
		}
		for i := uint64(0); i < uint64(len(p))/8; i++ {
			at := binary.LittleEndian.Uint64(p[8*i:])
			if at == 0 {
				continue
			}
			section := (first + i) * s.perRoot
			if err := a.sections(at, section, min(s.perRoot, s.count-section)); err != nil {
				return err
			}
		}
	}
	return nil
}

// sections looks at n mem_sections from virt on, the first of which is the
// section called first.
func (a *added) sections(virt, first, n uint64) error {
	s := &a.w.f.layout.sections
	if a.seen += n; a.seen > maxSections {
		return fmt.Errorf("more than %d memory sections", maxSections)
	}
	size := uint64(1) << (s.bits + a.w.f.pageBits)
	chunk := max(1, a.w.f.info.PageSize/s.size)
	buf := make([]byte, chunk*s.size)
	for at := uint64(0); at < n; at += chunk {
		p := buf[:min(chunk, n-at)*s.size]
		if err := a.w.readVirtual(p, virt+at*s.size); err != nil {
			return fmt.Errorf("memory sections from %d on: %w", first+at, err)
		}
		for i := uint64(0); i < uint64(len(p))/s.size; i++ {
			coded := binary.LittleEndian.Uint64(p[i*s.size+s.mapAt:])
			a.early = a.early || coded&sectionEarly != 0
			if coded&(sectionInUse|sectionEarly) != sectionInUse {
				continue
			}
			start := (first + at + i) * size
			if last := len(a.found) - 1; last >= 0 && a.found[last].End == start {
				a.found[last].End = start + size
				continue
			}
			if len(a.found) == a.limit {
				return fmt.Errorf("more than %d ranges of memory were added", a.limit)
			}
			a.found = append(a.found, phys.Range{Start: start, End: start + size})
		}
	}
	return nil
}
