// Package dumpfilter decides which pages of a crashed kernel's memory a dump
// leaves out, from VMCOREINFO and the kernel's page structures. It needs no
// vmlinux. Levels mean the same as makedumpfile's, and a level leaves out the
// same pages as makedumpfile 1.7.8, with the exceptions that Drop's comment
// names.
//
// Invariants: the memory is that of a crashed or hostile system. Pages that
// aren't understood or can't be judged are kept, with a warning: a dump that
// is too large is better than one that lacks a page. Contents of that memory
// can't cause it to be read twice, every number from it is checked against a
// named bound before it is used, and no loop is longer than the requested
// range. No kernel version is compared: VMCOREINFO's keys say how a kernel
// encodes its pages (layout.go).
package dumpfilter

import (
	"fmt"
	"math/bits"
	"strings"
	"sync"

	"github.com/warmcore/warmcore/pkg/kernelmap"
	"github.com/warmcore/warmcore/pkg/phys"
	"github.com/warmcore/warmcore/pkg/vmcoreinfo"
)

// Memory reads the crashed kernel's memory by physical address. It fails if
// it can't read all of p. It may be called concurrently if Drop is.
type Memory interface {
	ReadPhys(p []byte, addr uint64) error
}

// Level says what to leave out: a sum of bits, 0 (nothing) to 31 (all), as in
// makedumpfile -d.
type Level uint8

// Bits of a Level.
const (
	Zero         Level = 1 << iota // pages of zeroes
	Cache                          // page cache without private data
	CachePrivate                   // page cache with private data, and without
	User                           // memory of processes: anonymous and hugetlbfs pages
	Free                           // pages that the page allocator holds

	maxLevel = Zero | Cache | CachePrivate | User | Free
)

// Counts says how many pages were left out, by reason, and how many were kept.
type Counts struct {
	Zero         uint64 // never counted here: only the reader of a page finds out that it is zero
	Cache        uint64
	CachePrivate uint64
	User         uint64
	Free         uint64
	HWPoison     uint64 // memory that the hardware gave up
	Offline      uint64 // ballooned or unplugged by a hypervisor, or not accepted from it yet
	Kept         uint64 // the rest
}

// Add adds o to c.
func (c *Counts) Add(o Counts) {
	c.Zero += o.Zero
	c.Cache += o.Cache
	c.CachePrivate += o.CachePrivate
	c.User += o.User
	c.Free += o.Free
	c.HWPoison += o.HWPoison
	c.Offline += o.Offline
	c.Kept += o.Kept
}

// Filter is a filter for one dump.
type Filter struct {
	mem      Memory
	info     *vmcoreinfo.Info
	memory   []pages
	pageBits uint
	level    Level
	layout   *layout // nil: not understood, everything is kept
	warnings warnings

	mu   sync.Mutex
	idle []*worker // no more than calls of Drop at a time
}

// pages are the page frames [start, end). The unit is PFNs: physical
// addresses divided by the kernel's page size.
type pages struct{ start, end uint64 }

// New returns the filter for the kernel that wrote info. memory is the memory
// that the dump describes; pages that are outside of it, even in part, are
// never left out. A kernel whose encoding is not fully understood is no error:
// pages that can't be judged are kept, and Warnings says so. The error is for
// a level above 31, no info, or an info without a sensible PAGESIZE, which
// makes PFNs meaningless.
func New(m Memory, info *vmcoreinfo.Info, memory phys.Set, level Level) (*Filter, error) {
	if level > maxLevel {
		return nil, fmt.Errorf("filter pages at level %d: want 0 to %d", level, maxLevel)
	}
	if info == nil {
		return nil, fmt.Errorf("filter pages at level %d: no VMCOREINFO", level)
	}
	size := info.PageSize
	if size < phys.PageSize || size > maxPageSize || size&(size-1) != 0 {
		return nil, fmt.Errorf("filter pages at level %d: PAGESIZE is %d, want 4 to 64 KiB", level, size)
	}
	if _, arm := info.Numbers["kimage_voffset"]; !arm && size != phys.PageSize {
		if _, x86 := info.Numbers["phys_base"]; x86 {
			return nil, fmt.Errorf("filter pages at level %d: PAGESIZE is %d, but x86-64 kernels have pages of %d", level, size, phys.PageSize)
		}
	}
	f := &Filter{mem: m, info: info, pageBits: uint(bits.TrailingZeros64(size)), level: level}
	for _, r := range memory.AlignIn(size) {
		f.memory = append(f.memory, pages{r.Start >> f.pageBits, r.End >> f.pageBits})
	}
	l, err := newLayout(info)
	if err != nil {
		f.warnings.add(unknownLayout, err.Error())
		return f, nil
	}
	tables, err := kernelmap.Tables(m, info)
	if err != nil {
		f.warnings.add(unknownLayout, err.Error())
		return f, nil
	}
	for _, w := range l.unknown {
		f.warnings.add(w, "VMCOREINFO of "+info.Release)
	}
	f.layout = l
	f.idle = []*worker{{f: f, tables: tables}}
	return f, nil
}

// PageSize returns the size in bytes of the pages that PFNs count: the
// kernel's, as VMCOREINFO says.
func (f *Filter) PageSize() uint64 { return 1 << f.pageBits }

// Block returns a number of pages, a power of two. Drop is fastest for ranges
// that begin and end at multiples of it. No free block crosses such a border;
// a few compound pages larger than a block do, and are looked up.
func (f *Filter) Block() uint64 {
	if f.layout == nil {
		return 1 << defaultOrders
	}
	return 1 << (f.layout.orders - 1)
}

// Drop sets the bits of pages to leave out of [first, first+n), and clears
// none: bit i%64 of dst[i/64] is the page first+i. It may run concurrently for
// ranges whose bits lie in different words. Page structures that can't be
// read are a warning, and their pages are kept; the error is about the
// arguments.
//
// Whatever the level, pages that the hardware poisoned or a hypervisor took
// back are left out, because reading one may stop the machine. makedumpfile
// does so too if the kernel can poison pages. Where it and Drop differ:
// Drop leaves out a poisoned page in the middle of a compound page that is
// kept; it keeps the pages of memory sections that are not online, whose page
// structures are not initialised; and it takes a compound page or free block
// as large as it says only if the page structures agree.
func (f *Filter) Drop(dst []uint64, first, n uint64) (Counts, error) {
	end, carry := bits.Add64(first, n, 0)
	if carry != 0 || end > 1<<(64-f.pageBits) {
		return Counts{}, fmt.Errorf("filter %d pages from %#x: beyond the address space", n, first)
	}
	if n > 0 && (n-1)/64 >= uint64(len(dst)) {
		return Counts{}, fmt.Errorf("filter %d pages from %#x: a bitmap of %d words is too short", n, first, len(dst))
	}
	s := scan{f: f, dst: dst, first: first}
	if f.layout == nil {
		for _, in := range f.within(first, end) {
			s.counts[keep] += in.end - in.start
		}
		return s.sum(), nil
	}
	w, err := f.worker()
	if err != nil {
		return Counts{}, err
	}
	defer f.release(w)
	s.w, s.layout, s.level = w, f.layout, f.level
	for _, in := range f.within(first, end) {
		s.run(in)
	}
	return s.sum(), nil
}

// within returns the memory in [first, end).
func (f *Filter) within(first, end uint64) []pages {
	var in []pages
	lo, hi := 0, len(f.memory)
	for lo < hi {
		if mid := (lo + hi) / 2; f.memory[mid].end <= first {
			lo = mid + 1
		} else {
			hi = mid
		}
	}
	for _, m := range f.memory[lo:] {
		if m.start >= end {
			break
		}
		in = append(in, pages{max(m.start, first), min(m.end, end)})
	}
	return in
}

// holds says whether the page is in memory.
func (f *Filter) holds(pfn uint64) bool { return len(f.within(pfn, pfn+1)) > 0 }

// worker is what one call of Drop has for itself. Page tables keep a cache
// and are not for two at a time.
type worker struct {
	f      *Filter
	tables *kernelmap.PageTables
	buf    []byte
}

func (f *Filter) worker() (*worker, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if n := len(f.idle); n > 0 {
		w := f.idle[n-1]
		f.idle = f.idle[:n-1]
		return w, nil
	}
	tables, err := kernelmap.Tables(f.mem, f.info)
	if err != nil {
		return nil, fmt.Errorf("filter pages: %w", err)
	}
	return &worker{f: f, tables: tables}, nil
}

func (f *Filter) release(w *worker) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.idle = append(f.idle, w)
}

// Warnings returns what was not understood or not readable so far, and what
// that means for the dump: at most a line for each kind. Ask again when
// all calls of Drop are over.
func (f *Filter) Warnings() []string { return f.warnings.list() }

// Kinds of warnings.
const (
	unknownLayout = "page structures are not understood, so no page is left out"
	noStructures  = "page structures can't be read, so their pages are kept"
	badOrder      = "free blocks of an impossible size are kept"
)

// warnings counts warnings by kind and keeps the first of each.
type warnings struct {
	mu    sync.Mutex
	kinds []*warning
}

type warning struct {
	kind, first string
	more        uint64
}

func (w *warnings) add(kind, detail string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, k := range w.kinds {
		if k.kind == kind {
			k.more++
			return
		}
	}
	w.kinds = append(w.kinds, &warning{kind: kind, first: detail})
}

func (w *warnings) list() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	var out []string
	for _, k := range w.kinds {
		var line strings.Builder
		fmt.Fprintf(&line, "%s: %s", k.kind, k.first)
		if k.more > 0 {
			fmt.Fprintf(&line, ", and %d more", k.more)
		}
		out = append(out, line.String())
	}
	return out
}
