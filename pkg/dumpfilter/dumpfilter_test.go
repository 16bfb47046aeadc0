package dumpfilter_test

import (
	"math/bits"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/warmcore/warmcore/pkg/dumpfilter"
	"github.com/warmcore/warmcore/pkg/phys"
	"github.com/warmcore/warmcore/pkg/vmcoreinfo"
)

// kind is what a page should be taken for.
type kind uint8

const (
	kept kind = iota
	cached
	cachedPrivate
	users
	free
	poison
	poisonedUsers
	offline
)

// left says whether a level leaves out a page.
func (k kind) left(level dumpfilter.Level) bool {
	switch k {
	case cached:
		return level&(dumpfilter.Cache|dumpfilter.CachePrivate) != 0
	case cachedPrivate:
		return level&dumpfilter.CachePrivate != 0
	case users:
		return level&dumpfilter.User != 0
	case free:
		return level&dumpfilter.Free != 0
	case poison, poisonedUsers, offline:
		return true
	}
	return false
}

// populate fills the memory with one of each kind that there is, and says
// what each page is.
func populate(k *kernel) []kind {
	want := make([]kind, k.count())
	is := func(pfn uint64, order uint, as kind) {
		for i := range uint64(1) << order {
			want[pfn+i] = as
		}
	}
	single := func(pfn, flags, mapping uint64, as kind) {
		k.single(pfn, flags, mapping)
		is(pfn, 0, as)
	}
	compound := func(pfn uint64, order uint, flags, mapping uint64, as kind) {
		k.compound(pfn, order, flags, mapping)
		is(pfn, order, as)
	}
	single(0x101, lru, inode, cached)
	single(0x102, lru|private, inode, cachedPrivate)
	single(0x103, lru|swapBacked, inode, cached) // tmpfs
	single(0x104, lru|swapBacked, anonymous, users)
	single(0x105, lru|swapBacked|swapCache, anonymous, users)
	single(0x106, swapBacked|swapCache, 0, cached)
	single(0x107, swapCache, 0, kept) // then the bit is another flag
	single(0x108, 0, anonymous, users)
	single(0x109, 0, anonymous+2, users) // KSM
	single(0x10a, private, inode, kept)
	single(0x10b, poisoned, 0, poison)
	single(0x10c, poisoned|swapBacked, anonymous, poisonedUsers)
	single(0x10d, 0, 0, kept)
	k.setType(0x10e, k.types["OFFLINE"])
	is(0x10e, 0, offline)

	compound(0x110, 2, lru|private, inode, cachedPrivate)
	compound(0x114, 2, lru, inode, cached)
	compound(0x118, 3, 0, 0, kept) // a driver's
	compound(0x120, 3, 0, 0, kept)
	k.set(0x123, flagsAt, poisoned) // one page of it
	is(0x123, 0, poison)
	k.slab(0x128, 3, "BUDDY")
	k.slab(0x160, 1, "OFFLINE")
	for at := uint64(0); at < 4*structSize; at += 8 { // never initialised
		k.set(0x150, at, ^uint64(0))
	}
	compound(0x130, 4, poisoned, inode, poison)
	compound(0x200, 9, lru|swapBacked, anonymous, users)
	compound(0x400, 9, lru|swapBacked, inode, cached)
	k.hugetlb(0x600, 9)
	is(0x600, 9, users)

	for _, f := range []struct{ pfn, order uint64 }{{0x141, 0}, {0x142, 1}, {0x148, 3}, {0x180, 7}, {0x800, 10}, {0xc00, 10}} {
		k.free(f.pfn, f.order)
		is(f.pfn, uint(f.order), free)
	}
	k.free(0x1000, 11)        // larger than any
	k.free(0x1001, 3)         // not aligned
	k.free(0x1004, 1<<40)     // absurd
	k.single(0x1005, head, 0) // without tails
	// A head that says more than its tails do is a page of its own.
	k.compound(0x1008, 1, lru, inode)
	k.single(0x1009, 0, 0)
	k.set(0x1009, headAt, 0)
	is(0x1008, 0, cached)
	if k.types["UNACCEPTED"] != 0 {
		k.setType(0x1400, k.types["UNACCEPTED"])
		is(0x1400, 10, offline)
	}
	// As large as two sections.
	order := k.sectionBits - k.page + 1
	k.hugetlb(1<<order, order)
	is(1<<order, order, users)
	return want
}

func dropAll(t testing.TB, f *dumpfilter.Filter, pages uint64) ([]uint64, dumpfilter.Counts) {
	t.Helper()
	dst := make([]uint64, (pages+63)/64)
	counts, err := f.Drop(dst, 0, pages)
	if err != nil {
		t.Fatal(err)
	}
	return dst, counts
}

func bit(dst []uint64, i uint64) bool { return dst[i/64]>>(i%64)&1 != 0 }

// check compares a bitmap with the kinds.
func check(t *testing.T, dst []uint64, want []kind, level dumpfilter.Level) {
	t.Helper()
	wrong := 0
	for pfn, k := range want {
		if got := bit(dst, uint64(pfn)); got != k.left(level) {
			if wrong++; wrong <= 5 {
				t.Errorf("level %d: page %#x, of kind %d: left out is %v, want %v", level, pfn, k, got, !got)
			}
		}
	}
	if wrong > 5 {
		t.Errorf("level %d: %d pages are wrong", level, wrong)
	}
}

func TestLevels(t *testing.T) {
	for _, e := range encodings {
		for _, m := range machines {
			if e.name != "6.12" && m.name != machines[0].name && m.name != "arm64 64K 52 bits" {
				continue
			}
			t.Run(e.name+" "+m.name, func(t *testing.T) {
				k := newKernel(m, e)
				want := populate(k)
				for level := range dumpfilter.Level(32) {
					// All levels once, then those of one bit, none and all.
					if e.name+m.name != "6.12"+machines[0].name && bits.OnesCount8(uint8(level)) > 1 && level != 31 {
						continue
					}
					k.reads = 0
					f := k.filter(t, level)
					dst, counts := dropAll(t, f, k.count())
					check(t, dst, want, level)
					if sum := countOf(want, level); sum != counts {
						t.Errorf("level %d: counts (-want +got):\n%s", level, cmp.Diff(sum, counts))
					}
					// Every other leaf is contiguous with the next.
					if limit := 400 + m.pieces(); k.reads > limit {
						t.Errorf("level %d: %d reads of %d page structures, want at most %d", level, k.reads, k.count(), limit)
					}
				}
			})
		}
	}
}

// TestRenamed: kernels that keep a mask in the field that was compound_head.
func TestRenamed(t *testing.T) {
	k := newKernel(machines[0], encodings[len(encodings)-1])
	want := populate(k)
	for pfn := range k.count() {
		if k.get64(k.at(pfn)+headAt)&1 != 0 {
			k.set(pfn, headAt, 0xfffffffffffffe01)
		}
	}
	k.text = strings.Replace(k.text, "page.compound_head", "page.compound_info", 1)
	dst, _ := dropAll(t, k.filter(t, 31), k.count())
	check(t, dst, want, 31)
}

// countOf is what Drop should count.
func countOf(want []kind, level dumpfilter.Level) (c dumpfilter.Counts) {
	for _, k := range want {
		switch {
		case !k.left(level):
			c.Kept++
		case k == cached:
			c.Cache++
		case k == cachedPrivate:
			c.CachePrivate++
		case k == users, k == poisonedUsers && level&dumpfilter.User != 0:
			c.User++
		case k == free:
			c.Free++
		case k == offline:
			c.Offline++
		default:
			c.HWPoison++
		}
	}
	return c
}

// TestRanges: whatever the ranges, the result is the same.
func TestRanges(t *testing.T) {
	for _, m := range []int{0, 2, 7} {
		m := machines[m]
		t.Run(m.name, func(t *testing.T) {
			k := newKernel(m, encodings[len(encodings)-1])
			want := populate(k)
			if m.level == 1 && m.page == 12 {
				k.shareTails(0x600, 9)
				k.shareTails(k.count()/2, m.sectionBits-m.page+1)
			}
			for _, level := range []dumpfilter.Level{0, 8, 31} {
				f := k.filter(t, level)
				for _, size := range []uint64{1, 7, 777, f.Block(), 3 * f.Block()} {
					end := k.count()
					if size < 100 {
						end = 0x1500
					}
					got := make([]uint64, (k.count()+63)/64)
					var counts dumpfilter.Counts
					for first := uint64(0); first < end; first += size {
						n := min(size, end-first)
						part := make([]uint64, (n+63)/64)
						c, err := f.Drop(part, first, n)
						if err != nil {
							t.Fatal(err)
						}
						counts.Add(c)
						for i := range n {
							if bit(part, i) {
								got[(first+i)/64] |= 1 << ((first + i) % 64)
							}
						}
					}
					check(t, got, want[:end], level)
					if sum := countOf(want[:end], level); sum != counts {
						t.Errorf("level %d, ranges of %d pages: counts (-want +got):\n%s", level, size, cmp.Diff(sum, counts))
					}
				}
			}
		})
	}
}

// TestMemory: pages that the dump doesn't have are not touched, and neither
// are those that it has in part.
func TestMemory(t *testing.T) {
	k := newKernel(machines[0], encodings[0])
	want := populate(k)
	memory := phys.NewSet(
		phys.Range{Start: 0x104000, End: 0x105000},
		phys.Range{Start: 0x148800, End: 0x14c800},
		phys.Range{Start: 0x210000, End: 0x390000}, // the middle of a compound page
		phys.Range{Start: 0x500000, End: 0x700000},
		phys.Range{Start: 0xa00000, End: 0xd00000},
	)
	f, err := dumpfilter.New(k, k.info(t), memory, 31)
	if err != nil {
		t.Fatal(err)
	}
	dst, counts := dropAll(t, f, k.count())
	var pages, dropped uint64
	for pfn := range k.count() {
		in := memory.Contains(phys.Range{Start: pfn << 12, End: (pfn + 1) << 12})
		if in {
			pages++
		}
		if !bit(dst, pfn) {
			continue
		}
		dropped++
		if !in || !want[pfn].left(31) {
			t.Errorf("page %#x is left out, in memory: %v", pfn, in)
		}
	}
	if got := counts.Kept; got != pages-dropped {
		t.Errorf("%d pages kept, want %d", got, pages-dropped)
	}
	// Also where the range begins inside a block.
	for _, first := range []uint64{0x149, 0x212, 0xa40} {
		part := make([]uint64, 1)
		if _, err := f.Drop(part, first, 2); err != nil {
			t.Fatal(err)
		}
		if part[0] != 0 {
			t.Errorf("page %#x is left out though its block begins outside memory", first)
		}
	}
	// Their heads are outside, so what they are can't be told.
	for _, pfn := range []uint64{0x149, 0x210, 0x38f, 0x500, 0xa00} {
		if bit(dst, pfn) {
			t.Errorf("page %#x is left out though its block begins outside memory", pfn)
		}
	}
	for _, pfn := range []uint64{0x104, 0x600, 0x6ff, 0xc00, 0xcff} {
		if !bit(dst, pfn) {
			t.Errorf("page %#x is kept", pfn)
		}
	}
}

func TestConcurrent(t *testing.T) {
	k := newKernel(machines[0], encodings[len(encodings)-1])
	want := populate(k)
	f, err := dumpfilter.New(readOnly{k.memory}, k.info(t), k.ram, 31)
	if err != nil {
		t.Fatal(err)
	}
	dst := make([]uint64, k.count()/64)
	step := k.count() / 16
	done := make(chan dumpfilter.Counts)
	for first := uint64(0); first < k.count(); first += step {
		go func() {
			c, err := f.Drop(dst[first/64:], first, step)
			if err != nil {
				t.Error(err)
			}
			done <- c
		}()
	}
	var counts dumpfilter.Counts
	for range 16 {
		counts.Add(<-done)
	}
	check(t, dst, want, 31)
	if diff := cmp.Diff(countOf(want, 31), counts); diff != "" {
		t.Errorf("counts (-want +got):\n%s", diff)
	}
}

// readOnly reads memory without counting.
type readOnly struct{ m *memory }

func (r readOnly) ReadPhys(p []byte, addr uint64) error {
	m := *r.m
	return m.ReadPhys(p, addr)
}

// TestArguments: what is no dump's fault.
func TestArguments(t *testing.T) {
	k := newKernel(machines[0], encodings[0])
	info := k.info(t)
	bad := *info
	for _, c := range []struct {
		name  string
		info  *vmcoreinfo.Info
		level dumpfilter.Level
		page  uint64
		want  string
	}{
		{"level", info, 32, 4096, "want 0 to 31"},
		{"noInfo", nil, 31, 4096, "no VMCOREINFO"},
		{"noPageSize", &bad, 31, 0, "PAGESIZE is 0"},
		{"oddPageSize", &bad, 31, 5000, "PAGESIZE is 5000"},
		{"hugePageSize", &bad, 31, 1 << 20, "PAGESIZE is 1048576"},
		{"x86PageSize", &bad, 31, 64 << 10, "PAGESIZE is 65536, but x86-64 kernels have pages of 4096"},
	} {
		bad.PageSize = c.page
		f, err := dumpfilter.New(k, c.info, k.ram, c.level)
		if err == nil || !strings.Contains(err.Error(), c.want) || f != nil {
			t.Errorf("%s: got %v, %v, want an error with %q", c.name, f, err, c.want)
		}
	}
	f := k.filter(t, 31)
	for _, c := range []struct{ words, first, n uint64 }{
		{0, 0, 1}, {1, 0, 65}, {1, 1 << 63, 64}, {1, ^uint64(0), 64},
	} {
		counts, err := f.Drop(make([]uint64, c.words), c.first, c.n)
		if err == nil || counts != (dumpfilter.Counts{}) {
			t.Errorf("%d words for %d pages from %#x: got %+v, %v, want an error", c.words, c.n, c.first, counts, err)
		}
	}
	if counts, err := f.Drop(nil, 5, 0); err != nil || counts != (dumpfilter.Counts{}) {
		t.Errorf("no page: got %+v, %v", counts, err)
	}
}

func ones(dst []uint64) (n uint64) {
	for _, w := range dst {
		n += uint64(bits.OnesCount64(w))
	}
	return n
}
