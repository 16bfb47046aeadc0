package dumpfilter

import (
	"fmt"
	"math/bits"

	"github.com/warmcore/warmcore/pkg/vmcoreinfo"
)

// Bounds on what VMCOREINFO may say.
const (
	maxPageSize      = 64 << 10
	maxStructPage    = 512 // bytes; 64 on most kernels, 96 with every debug option
	maxStructSection = 256 // bytes of struct mem_section; 16 or 32
	maxSectionBits   = 40  // log2 of a section's bytes; 27 to 30
	// maxOrders bounds LENGTH(zone.free_area), the orders of free blocks:
	// 11, 14 with 64 KiB pages (ARCH_FORCE_MAX_ORDER in v6.12).
	maxOrders     = 20
	defaultOrders = 11
	// maxCompoundOrder bounds compound pages, which start with 1 GiB hugetlb
	// pages, order 18, 16 GiB with 64 KiB pages, order 18 again.
	maxCompoundOrder = 20
)

// layout is how a kernel encodes its page structures. Masks are 0 for what
// the kernel doesn't have, or doesn't tell.
type layout struct {
	size                                    uint64 // of struct page
	flags, mapping, mapcount, private, head uint64 // offsets in it; head is compound_head

	lru, priv, swapCache, swapBacked, hwpoison, pgHead, pgSlab uint64 // masks of page.flags

	buddy, offline, slab, unaccepted, hugetlb pageType

	// The order of a compound page is a byte at offset order in the first
	// tail's structure. A kernel whose hugetlb pages have no page type says
	// so by the byte at dtor or by a flag, in that structure too.
	order       uint64
	dtor        uint64
	dtorHugetlb uint64 // the byte's value; noDtor if the kernel has no such byte
	pgHugetlb   uint64 // mask of the flags

	orders uint // of free blocks

	sections sections

	unknown []string // warnings
}

const noDtor = 1 << 8 // no byte has it

// pageType matches the 32 bits that are page_type or _mapcount.
type pageType struct{ mask, value uint32 }

func (t pageType) matches(v uint32) bool { return v&t.mask == t.value && t.mask != 0 }

// newPageType reads a ..._MAPCOUNT_VALUE. Kernels since v6.12 (commit
// 4ffca5a96678 "mm: support only one page_type per page") keep the type in
// the top byte and leave the rest to whoever owns the page; v6.11 uses the
// upper half, inverted (commit 8db00ad56461 "mm: allow reuse of the lower 16
// bit of the page type with an actual type"); before, a type is one value.
// The value itself says which of them it is.
func newPageType(n int64) (t pageType, ok bool) {
	v := uint32(n)
	switch {
	case n < -1<<31 || n >= 1<<32 || v == 0 || v == ^uint32(0):
		return pageType{}, false // 0 and -1 are pages without a type
	case v&0xffffff == 0:
		return pageType{0xff << 24, v}, true
	case v&0xffff == 0xffff:
		return pageType{0xffff << 16, v &^ 0xffff}, true
	}
	return pageType{^uint32(0), v}, true
}

// reader takes values out of VMCOREINFO. The first thing that is missing or
// absurd is the error.
type reader struct {
	info *vmcoreinfo.Info
	err  error
}

func (r *reader) fail(format string, args ...any) {
	if r.err == nil {
		r.err = fmt.Errorf(format, args...)
	}
}

func (r *reader) size(name string, limit uint64) uint64 {
	n, ok := r.info.Sizes[name]
	if !ok || n == 0 || n > limit {
		r.fail("SIZE(%s) is %d, want 1 to %d", name, n, limit)
	}
	return n
}

// offset returns where a field of the width lies in a structure of the size.
func (r *reader) offset(name string, width, size uint64) uint64 {
	n, ok := r.info.Offsets[name]
	if !ok || n >= size || width > size-n || n%width != 0 {
		r.fail("OFFSET(%s) is %d, want a multiple of %d in a structure of %d bytes", name, n, width, size)
	}
	return n
}

// bit returns the mask of a flag, 0 if VMCOREINFO doesn't name it.
func (r *reader) bit(name string) uint64 {
	n, ok := r.info.Numbers[name]
	if !ok {
		return 0
	}
	if n < 0 || n > 63 {
		r.fail("NUMBER(%s) is %d, want a bit's number", name, n)
		return 0
	}
	return 1 << n
}

// pageType returns a page type, none if VMCOREINFO doesn't name it.
func (r *reader) pageType(name string) pageType {
	n, ok := r.info.Numbers[name]
	if !ok {
		return pageType{}
	}
	t, ok := newPageType(n)
	if !ok {
		r.fail("NUMBER(%s) is %d, no type of a page", name, n)
	}
	return t
}

// newLayout reads the layout from VMCOREINFO (kernel/vmcore_info.c in v6.12,
// kernel/crash_core.c before v6.9). The error is for what makes all page
// structures unreadable; what only one kind of pages needs is in unknown.
func newLayout(info *vmcoreinfo.Info) (*layout, error) {
	r := &reader{info: info}
	l := &layout{size: r.size("page", maxStructPage), orders: defaultOrders, dtorHugetlb: noDtor}
	if r.err != nil {
		return nil, r.err
	}
	if l.size%8 != 0 {
		r.fail("SIZE(page) is %d, want a multiple of 8", l.size)
	}
	l.flags = r.offset("page.flags", 8, l.size)
	l.mapping = r.offset("page.mapping", 8, l.size)
	l.mapcount = r.offset("page._mapcount", 4, l.size)
	l.private = r.offset("page.private", 8, l.size)
	// Renamed when it began to hold a mask instead of an address. What counts
	// here is its lowest bit, which is set in tails under either name.
	if _, ok := info.Offsets["page.compound_info"]; ok {
		l.head = r.offset("page.compound_info", 8, l.size)
	} else {
		l.head = r.offset("page.compound_head", 8, l.size)
	}
	l.readFlags(r)
	l.readCompound(r)
	l.sections = newSections(r, l.size)
	if r.err != nil {
		return nil, r.err
	}
	return l, nil
}

// readFlags reads the bits of page.flags and the types.
func (l *layout) readFlags(r *reader) {
	l.lru = r.bit("PG_lru")
	l.priv = r.bit("PG_private")
	l.swapCache = r.bit("PG_swapcache")
	l.swapBacked = r.bit("PG_swapbacked")
	l.hwpoison = r.bit("PG_hwpoison")
	l.pgSlab = r.bit("PG_slab") // until v6.9, then a type
	l.pgHead = uint64(r.info.Numbers["PG_head_mask"])
	l.buddy = r.pageType("PAGE_BUDDY_MAPCOUNT_VALUE")
	l.offline = r.pageType("PAGE_OFFLINE_MAPCOUNT_VALUE")
	l.slab = r.pageType("PAGE_SLAB_MAPCOUNT_VALUE")
	l.unaccepted = r.pageType("PAGE_UNACCEPTED_MAPCOUNT_VALUE")
	l.hugetlb = r.pageType("PAGE_HUGETLB_MAPCOUNT_VALUE")
	if n, ok := r.info.Lengths["zone.free_area"]; ok {
		if n == 0 || n > maxOrders {
			r.fail("LENGTH(zone.free_area) is %d, want 1 to %d", n, maxOrders)
		} else {
			l.orders = uint(n)
		}
	}
	switch {
	case l.lru == 0 || l.priv == 0:
		l.lru, l.swapCache = 0, 0
		l.unknown = append(l.unknown, "no PG_lru or PG_private, so the page cache is kept")
	case l.swapBacked == 0 || l.swapCache == 0:
		// Since v4.10 PG_swapcache is another flag where PG_swapbacked isn't
		// set (commit 6326fec1122c "mm: Use owner_priv bit for PageSwapCache,
		// valid when PageSwapBacked").
		l.swapCache, l.swapBacked = 0, 0
	}
	if l.buddy.mask == 0 {
		l.unknown = append(l.unknown, "no PAGE_BUDDY_MAPCOUNT_VALUE, so free pages are kept")
	}
	if l.pgSlab == 0 && l.slab.mask == 0 {
		// A slab's structure has other fields where a page has _mapcount and
		// mapping.
		r.fail("NUMBER(PG_slab) and NUMBER(PAGE_SLAB_MAPCOUNT_VALUE) are missing")
	}
	if bits.OnesCount64(l.pgHead) != 1 {
		l.pgHead = 0
		l.unknown = append(l.unknown, "no PG_head_mask, so all but the first page of a compound page are kept")
	}
}

// readCompound finds out how a compound page says its order, and that it is
// hugetlbfs's.
func (l *layout) readCompound(r *reader) {
	_, before := r.info.Offsets["page.compound_order"]
	_, folio := r.info.Offsets["folio._folio_order"]
	switch {
	case before: // until v6.2
		l.order = r.offset("page.compound_order", 1, l.size)
		l.dtor = r.offset("page.compound_dtor", 1, l.size)
	case folio:
		// v6.3 (commit 1c5509be58f6 "mm: remove 'First tail page' members from
		// struct page"): a folio is its head's structure and those after it.
		l.order = r.offset("folio._folio_order", 1, 2*l.size)
		l.dtor = r.offset("folio._folio_dtor", 1, 2*l.size)
		if l.order < l.size || l.dtor < l.size {
			r.fail("OFFSET(folio._folio_order) is %d, want it after the first page", l.order)
		}
		l.order, l.dtor = l.order-l.size, l.dtor-l.size
	default:
		// v6.6: the low byte of the flags (commit ebc1baf5c9b4 "mm: free up a
		// word in the first tail page").
		l.order = l.flags
		l.pgHugetlb = r.bit("PG_hugetlb") // until v6.8, then a type
		return
	}
	if n, ok := r.info.Numbers["HUGETLB_PAGE_DTOR"]; ok {
		if n < 0 || n > 255 {
			r.fail("NUMBER(HUGETLB_PAGE_DTOR) is %d, want a byte", n)
			return
		}
		l.dtorHugetlb = uint64(n)
	}
}
