package dumpfilter

import (
	"encoding/binary"
	"fmt"
)

// Bits of mem_section.section_mem_map, whose other bits are the address of
// the page structures, less what the section's first PFN takes of them
// (sparse_encode_mem_map in mm/sparse.c and include/linux/mmzone.h, v6.12).
// The bits above these have changed with the versions, but that address is
// always one of a page.
const (
	sectionPresent = 1 << 0 // SECTION_MARKED_PRESENT
	sectionHasMap  = 1 << 1 // SECTION_HAS_MEM_MAP
	sectionOnline  = 1 << 2 // SECTION_IS_ONLINE
	sectionEarly   = 1 << 3 // SECTION_IS_EARLY: there at boot, not hot-added
	sectionInUse   = sectionPresent | sectionHasMap | sectionOnline
	sectionFlags   = 1<<12 - 1
)

// sections is where a kernel with SPARSEMEM, which x86-64 and arm64 kernels
// are, keeps its page structures: a section of physical memory, 128 MiB say,
// has an array of them, which a mem_section points to.
type sections struct {
	bits    uint   // log2 of a section's pages
	count   uint64 // of all the sections that can be
	size    uint64 // of struct mem_section
	mapAt   uint64 // offset of section_mem_map in it
	root    uint64 // virtual address of the table
	perRoot uint64 // sections that an entry of the table points to; 0 if the table holds the mem_sections themselves
}

// newSections reads them from VMCOREINFO. With SPARSEMEM_EXTREME the table's
// entries point to pages of mem_sections, otherwise there is one table of
// them: its length says which.
func newSections(r *reader, structPage uint64) sections {
	root, ok := r.info.Symbols["mem_section"]
	if !ok || root%8 != 0 {
		r.fail("SYMBOL(mem_section) is %#x, want the address of a table: memory without sections is not supported", root)
		return sections{}
	}
	pageBits := uint(0)
	for r.info.PageSize>>pageBits > 1 {
		pageBits++
	}
	sectionBits, physBits := r.info.Numbers["SECTION_SIZE_BITS"], r.info.Numbers["MAX_PHYSMEM_BITS"]
	if sectionBits <= int64(pageBits) || sectionBits > maxSectionBits || physBits < sectionBits || physBits > 52 {
		r.fail("NUMBER(SECTION_SIZE_BITS) is %d and NUMBER(MAX_PHYSMEM_BITS) %d", sectionBits, physBits)
		return sections{}
	}
	s := sections{
		bits:  uint(sectionBits) - pageBits,
		count: 1 << (physBits - sectionBits),
		size:  r.size("mem_section", maxStructSection),
		root:  root,
	}
	if r.err != nil {
		return sections{}
	}
	s.mapAt = r.offset("mem_section.section_mem_map", 8, s.size)
	perRoot := r.info.PageSize / s.size
	switch n := r.info.Lengths["mem_section"]; n {
	case s.count:
	case (s.count + perRoot - 1) / perRoot:
		s.perRoot = perRoot
	default:
		r.fail("LENGTH(mem_section) is %d, want %d, or %d with SPARSEMEM_EXTREME", n, s.count, (s.count+perRoot-1)/perRoot)
	}
	return s
}

// structures returns the virtual address of the page structures of a section;
// ok is false if it has none that are initialised. The error says why the
// kernel's tables can't be read.
func (w *worker) structures(section uint64) (virt uint64, ok bool, err error) {
	s := &w.f.layout.sections
	if section >= s.count {
		return 0, false, nil
	}
	at := s.root + section*s.size
	if s.perRoot > 0 {
		var entry [8]byte
		if err := w.readVirtual(entry[:], s.root+section/s.perRoot*8); err != nil {
			return 0, false, fmt.Errorf("section %d: %w", section, err)
		}
		root := binary.LittleEndian.Uint64(entry[:])
		if root == 0 {
			return 0, false, nil
		}
		at = root + section%s.perRoot*s.size
	}
	var field [8]byte
	if err := w.readVirtual(field[:], at+s.mapAt); err != nil {
		return 0, false, fmt.Errorf("section %d: %w", section, err)
	}
	coded := binary.LittleEndian.Uint64(field[:])
	if coded&sectionInUse != sectionInUse {
		return 0, false, nil
	}
	return coded&^sectionFlags + section<<s.bits*w.f.layout.size, true, nil
}

// readVirtual reads memory of the kernel by virtual address, as much at once
// as is contiguous. It fails if it can't read all of p.
func (w *worker) readVirtual(p []byte, virt uint64) error {
	for len(p) > 0 {
		addr, n, err := w.contiguous(virt, uint64(len(p)))
		if err != nil {
			return err
		}
		if err := w.f.mem.ReadPhys(p[:n], addr); err != nil {
			return fmt.Errorf("read %d bytes at virtual address %#x: %w", n, virt, err)
		}
		p, virt = p[n:], virt+n
	}
	return nil
}

// contiguous translates virt and says how many of the bytes from there, at
// most limit, are one piece of physical memory.
func (w *worker) contiguous(virt, limit uint64) (addr, n uint64, err error) {
	page := w.f.info.PageSize
	for n < limit {
		next, ok, err := w.tables.Translate(virt + n)
		if err == nil && !ok {
			err = fmt.Errorf("virtual address %#x is not mapped", virt+n)
		}
		if n == 0 {
			if err != nil {
				return 0, 0, err
			}
			addr = next
		} else if err != nil || next != addr+n {
			break
		}
		n += page - (virt+n)%page
	}
	return addr, min(n, limit), nil
}

// readStructures reads page structures at virt into p, whole ones. Where they
// can't be read they are zero, which is a page that is kept.
func (w *worker) readStructures(p []byte, virt uint64) {
	if w.readVirtual(p, virt) == nil {
		return
	}
	// Again by pages: what is missing is often a page of many.
	page, size := w.f.info.PageSize, w.f.layout.size
	clean := uint64(0) // structures before are read or cleared
	for at := uint64(0); at < uint64(len(p)); {
		n := min(page-(virt+at)%page, uint64(len(p))-at)
		if err := w.readVirtual(p[at:at+n], virt+at); err != nil {
			w.f.warnings.add(noStructures, err.Error())
			from, to := max(at/size*size, clean), min((at+n+size-1)/size*size, uint64(len(p)))
			clear(p[from:to])
			clean = to
		}
		at += n
		if at < clean {
			at = clean
		}
	}
}

// section returns the number of the section that holds the page, and the
// first page after it.
func (s *sections) section(pfn uint64) (number, end uint64) {
	number = pfn >> s.bits
	return number, (number + 1) << s.bits
}
