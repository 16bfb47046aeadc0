package dumpfilter

import (
	"encoding/binary"
	"fmt"
	"math/bits"
)

// chunkBytes is how much of the page structures is read at once: those of 16
// MiB of memory, which stay in a processor's second cache.
const chunkBytes = 256 << 10

// class says what kind of page a page is.
type class uint8

const (
	keep class = iota
	free
	cache
	cachePrivate
	user
	hwpoison
	offline
	classes
)

// scan is one call of Drop.
type scan struct {
	f      *Filter
	w      *worker
	layout *layout
	level  Level
	dst    []uint64
	first  uint64 // PFN of dst's first bit
	counts [classes]uint64

	// A compound page or free block that is left out covers all pages
	// before until; class is its class.
	until uint64
	class class
}

func (s *scan) sum() Counts {
	return Counts{
		Cache:        s.counts[cache],
		CachePrivate: s.counts[cachePrivate],
		User:         s.counts[user],
		Free:         s.counts[free],
		HWPoison:     s.counts[hwpoison],
		Offline:      s.counts[offline],
		Kept:         s.counts[keep],
	}
}

// mark counts the pages [from, to) as of the class, and leaves them out
// unless that is keep.
func (s *scan) mark(from, to uint64, c class) {
	s.counts[c] += to - from
	if c == keep {
		return
	}
	from, to = from-s.first, to-s.first
	if from == to {
		return
	}
	low, high := ^uint64(0)<<(from%64), ^uint64(0)>>(63-(to-1)%64)
	i, last := from/64, (to-1)/64
	if i == last {
		s.dst[i] |= low & high
		return
	}
	s.dst[i] |= low
	for i++; i < last; i++ {
		s.dst[i] = ^uint64(0)
	}
	s.dst[last] |= high
}

// run looks at in, which is memory.
func (s *scan) run(in pages) {
	if in.start == s.first {
		s.lookBack(in.start)
	}
	sections := &s.layout.sections
	size := s.layout.size
	for pfn := in.start; pfn < in.end; {
		if pfn < s.until {
			to := min(s.until, in.end)
			s.mark(pfn, to, s.class)
			pfn = to
			continue
		}
		number, end := sections.section(pfn)
		end = min(end, in.end)
		virt, ok, err := s.w.structures(number)
		if err != nil {
			s.f.warnings.add(noStructures, err.Error())
		}
		if !ok {
			s.mark(pfn, end, keep)
			pfn = end
			continue
		}
		virt += (pfn - number<<sections.bits) * size
		for pfn < end && pfn >= s.until {
			// To an even one, so that a compound page's first and second
			// structures are read together.
			n := min(end, (pfn+chunkBytes/size)&^1) - pfn
			b := s.w.buffer(n * size)
			s.w.readStructures(b, virt)
			s.chunk(b, pfn)
			pfn, virt = pfn+n, virt+n*size
		}
	}
}

func (w *worker) buffer(n uint64) []byte {
	if w.buf == nil {
		w.buf = make([]byte, chunkBytes)
	}
	return w.buf[:n]
}

// chunk judges the pages from pfn whose structures are in b. Where a compound
// page or free block reaches past them, s.until says how far.
func (s *scan) chunk(b []byte, pfn uint64) {
	l, le := s.layout, binary.LittleEndian
	size := l.size
	n := uint64(len(b)) / size
	for i := uint64(0); i < n; {
		p := b[i*size:][:size]
		flags := le.Uint64(p[l.flags:])
		if le.Uint64(p[l.head:])&1 != 0 {
			// The tail of a compound page that is kept, or a structure that
			// was never initialised, which is all ones (PAGE_POISON_PATTERN).
			c := keep
			if flags&l.hwpoison != 0 && flags != ^uint64(0) {
				c = hwpoison
			}
			s.mark(pfn+i, pfn+i+1, c)
			i++
			continue
		}
		c, order := s.judge(b[i*size:], pfn+i, flags)
		if c == keep {
			s.counts[keep]++
			i++
			continue
		}
		to := pfn + i + 1<<order
		s.mark(pfn+i, min(to, pfn+n), c)
		s.until, s.class = to, c
		i += 1 << order
	}
}

// judge returns the class of a page that is not a tail, and its order:
// 1<<order pages are of that class. b starts with the page's structure; the
// next page's structure is used if it is in b, too.
//
// The order of the questions is makedumpfile's (__exclude_unnecessary_pages).
func (s *scan) judge(b []byte, pfn, flags uint64) (c class, order uint) {
	l, le := s.layout, binary.LittleEndian
	mapcount := le.Uint32(b[l.mapcount:])
	slab := flags&l.pgSlab != 0 || l.slab.matches(mapcount)
	if !slab && s.level&Free != 0 && l.buddy.matches(mapcount) {
		private := le.Uint64(b[l.private:])
		if private >= uint64(l.orders) || pfn&(1<<private-1) != 0 {
			s.f.warnings.add(badOrder, fmt.Sprintf("page %#x of order %d", pfn, private))
			return keep, 0
		}
		return free, uint(private)
	}
	hugetlb := false
	if flags&l.pgHead != 0 {
		order, hugetlb = l.compound(b, pfn, mapcount)
	}
	anonymous := !slab && le.Uint64(b[l.mapping:])&1 != 0 // PAGE_MAPPING_ANON
	if !anonymous && s.level&(Cache|CachePrivate) != 0 &&
		(flags&l.lru != 0 || flags&l.swapCache != 0 && flags&l.swapBacked != 0) {
		switch {
		case flags&l.priv == 0:
			return cache, order
		case s.level&CachePrivate != 0:
			return cachePrivate, order
		}
	}
	switch {
	case s.level&User != 0 && (anonymous || hugetlb):
		return user, order
	case flags&l.hwpoison != 0:
		return hwpoison, order
	case !slab && l.offline.matches(mapcount):
		return offline, order
	case !slab && l.unaccepted.matches(mapcount) && pfn&(1<<(l.orders-1)-1) == 0:
		// Always the largest blocks (__free_unaccepted in mm/page_alloc.c).
		return offline, l.orders - 1
	}
	return keep, 0
}

// compound returns the order of a compound page whose head b starts with, and
// whether it is hugetlbfs's. The order is 0 if the structures contradict each
// other.
func (l *layout) compound(b []byte, pfn uint64, mapcount uint32) (order uint, hugetlb bool) {
	if uint64(len(b)) < 2*l.size {
		return 0, l.hugetlb.matches(mapcount)
	}
	le, tail := binary.LittleEndian, b[l.size:][:l.size]
	hugetlb = l.hugetlb.matches(mapcount) ||
		le.Uint64(tail[l.flags:])&l.pgHugetlb != 0 ||
		l.dtorHugetlb != noDtor && uint64(tail[l.dtor]) == l.dtorHugetlb
	order = uint(tail[l.order])
	if order > maxCompoundOrder || pfn&(1<<order-1) != 0 || le.Uint64(tail[l.head:])&1 == 0 {
		return 0, hugetlb
	}
	return order, hugetlb
}

// lookBack finds out whether the first page lies inside a compound page or
// free block that begins before it.
func (s *scan) lookBack(first uint64) {
	l := s.layout
	shortest := uint(bits.TrailingZeros64(first)) + 1 // a block of smaller order that holds it begins with it
	longest := l.orders - 1
	b, ok := s.one(first)
	if !ok {
		return
	}
	if l.inside(b, first) {
		longest = max(longest, maxCompoundOrder)
	}
	before := first
	for order := longest; order >= shortest; order-- {
		start := first &^ (1<<order - 1)
		if start == before {
			continue
		}
		before = start
		b, ok := s.one(start)
		if !ok || binary.LittleEndian.Uint64(b[l.head:])&1 != 0 {
			continue
		}
		c, order := s.judge(b, start, binary.LittleEndian.Uint64(b[l.flags:]))
		if end := start + 1<<order; c != keep && end > first {
			s.until, s.class = end, c
			return
		}
	}
}

// inside says whether the page may be part of a compound page that begins
// before it: it is a tail, or it looks like a head that isn't aligned to its
// own order. That is how the page structures of hugetlb pages read where the
// kernel mapped one page of them again and again
// (Documentation/mm/vmemmap_dedup.rst in v6.12).
func (l *layout) inside(b []byte, pfn uint64) bool {
	le := binary.LittleEndian
	if le.Uint64(b[l.head:])&1 != 0 {
		return true
	}
	if le.Uint64(b[l.flags:])&l.pgHead == 0 || uint64(len(b)) < 2*l.size {
		return false
	}
	order := uint(b[l.size:][l.order])
	return order <= maxCompoundOrder && pfn&(1<<order-1) != 0
}

// one reads the structure of a page in memory, and that of the next page if it
// is in the same section.
func (s *scan) one(pfn uint64) (b []byte, ok bool) {
	if !s.f.holds(pfn) {
		return nil, false
	}
	sections, size := &s.layout.sections, s.layout.size
	number, end := sections.section(pfn)
	virt, ok, err := s.w.structures(number)
	if !ok || err != nil {
		return nil, false
	}
	b = s.w.buffer(min(2, end-pfn) * size)
	s.w.readStructures(b, virt+(pfn-number<<sections.bits)*size)
	return b, true
}
