package dumpfilter_test

import (
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/warmcore/warmcore/pkg/dumpfilter"
	"github.com/warmcore/warmcore/pkg/phys"
	"github.com/warmcore/warmcore/pkg/vmcoreinfo"
)

// encodingOf returns the encoding of the name.
func encodingOf(t testing.TB, name string) encoding {
	t.Helper()
	for _, e := range encodings {
		if e.name == name {
			return e
		}
	}
	t.Fatalf("no encoding %s", name)
	return encoding{}
}

// TestNotUnderstood: VMCOREINFO that makes all page structures unreadable
// keeps every page, and says why.
func TestNotUnderstood(t *testing.T) {
	for _, c := range []struct{ name, old, new, want string }{
		{"noSections", "SYMBOL(mem_section)", "SYMBOL(other)", "SYMBOL(mem_section)"},
		{"oddSections", "SYMBOL(mem_section)=ffff888000200000", "SYMBOL(mem_section)=ffff888000200001", "SYMBOL(mem_section)"},
		{"noLength", "LENGTH(mem_section)", "LENGTH(other)", "LENGTH(mem_section) is 0, want 524288, or 4096"},
		{"wrongLength", "LENGTH(mem_section)=", "LENGTH(mem_section)=1", "LENGTH(mem_section)"},
		{"hugeSection", "SIZE(mem_section)=32", "SIZE(mem_section)=4096", "SIZE(mem_section)"},
		{"mapOutsideSection", "section_mem_map)=8", "section_mem_map)=32", "OFFSET(mem_section.section_mem_map)"},
		{"sectionBitsSmall", "SECTION_SIZE_BITS)=27", "SECTION_SIZE_BITS)=12", "SECTION_SIZE_BITS"},
		{"sectionBitsHuge", "SECTION_SIZE_BITS)=27", "SECTION_SIZE_BITS)=63", "SECTION_SIZE_BITS"},
		{"sectionBitsNegative", "SECTION_SIZE_BITS)=27", "SECTION_SIZE_BITS)=-1", "SECTION_SIZE_BITS"},
		{"physBitsHuge", "MAX_PHYSMEM_BITS)=46", "MAX_PHYSMEM_BITS)=64", "MAX_PHYSMEM_BITS"},
		{"physBitsSmall", "MAX_PHYSMEM_BITS)=46", "MAX_PHYSMEM_BITS)=20", "MAX_PHYSMEM_BITS"},
		{"noPage", "SIZE(page)", "SIZE(other)", "SIZE(page) is 0"},
		{"hugePage", "SIZE(page)=64", "SIZE(page)=18446744073709551615", "SIZE(page)"},
		{"oddPage", "SIZE(page)=64", "SIZE(page)=60", "multiple of 8"},
		{"flagsOutside", "OFFSET(page.flags)=0", "OFFSET(page.flags)=64", "OFFSET(page.flags)"},
		{"headCrosses", "OFFSET(page.compound_head)=8", "OFFSET(page.compound_head)=60", "OFFSET(page.compound_head)"},
		{"mappingWraps", "OFFSET(page.mapping)=24", "OFFSET(page.mapping)=18446744073709551608", "OFFSET(page.mapping)"},
		{"mapcountOdd", "OFFSET(page._mapcount)=48", "OFFSET(page._mapcount)=49", "OFFSET(page._mapcount)"},
		{"noPrivate", "OFFSET(page.private)", "OFFSET(other)", "OFFSET(page.private)"},
		{"flagNumber", "PG_lru)=4", "PG_lru)=64", "NUMBER(PG_lru) is 64"},
		{"flagNegative", "PG_hwpoison)=23", "PG_hwpoison)=-1", "NUMBER(PG_hwpoison) is -1"},
		{"noSlab", "NUMBER(PAGE_SLAB_MAPCOUNT_VALUE)", "NUMBER(other)", "NUMBER(PG_slab)"},
		{"typeZero", "PAGE_BUDDY_MAPCOUNT_VALUE)=-268435456", "PAGE_BUDDY_MAPCOUNT_VALUE)=0", "no type of a page"},
		{"typeOnes", "PAGE_OFFLINE_MAPCOUNT_VALUE)=-251658240", "PAGE_OFFLINE_MAPCOUNT_VALUE)=-1", "no type of a page"},
		{"typeLong", "PAGE_SLAB_MAPCOUNT_VALUE)=-184549376", "PAGE_SLAB_MAPCOUNT_VALUE)=-9223372036854775808", "no type of a page"},
		{"noOrders", "LENGTH(zone.free_area)=11", "LENGTH(zone.free_area)=0", "LENGTH(zone.free_area)"},
		{"manyOrders", "LENGTH(zone.free_area)=11", "LENGTH(zone.free_area)=65", "LENGTH(zone.free_area)"},
		{"noTables", "SYMBOL(swapper_pg_dir)", "SYMBOL(other)", "swapper_pg_dir"},
		{"tablesElsewhere", "SYMBOL(swapper_pg_dir)=ffffffff80100000", "SYMBOL(swapper_pg_dir)=1000", "outside the kernel's image"},
	} {
		t.Run(c.name, func(t *testing.T) {
			k := newKernel(machines[0], encodingOf(t, "6.12"))
			populate(k)
			if !strings.Contains(k.text, c.old) {
				t.Fatalf("the text has no %q", c.old)
			}
			k.text = strings.Replace(k.text, c.old, c.new, 1)
			wantAllKept(t, k, c.want)
		})
	}
	for _, c := range []struct{ name, old, new, want string }{
		{"orderOutside", "compound_order)=17", "compound_order)=64", "OFFSET(page.compound_order)"},
		{"noDtor", "compound_dtor)=16", "other)=16", "OFFSET(page.compound_dtor)"},
		{"dtorNoByte", "HUGETLB_PAGE_DTOR)=2", "HUGETLB_PAGE_DTOR)=256", "NUMBER(HUGETLB_PAGE_DTOR)"},
	} {
		t.Run(c.name, func(t *testing.T) {
			k := newKernel(machines[0], encodings[0])
			populate(k)
			k.text = strings.Replace(k.text, c.old, c.new, 1)
			wantAllKept(t, k, c.want)
		})
	}
	t.Run("folioOrderInHead", func(t *testing.T) {
		k := newKernel(machines[0], encodingOf(t, "6.3 to 6.5"))
		populate(k)
		k.text = strings.Replace(k.text, "_folio_order)=81", "_folio_order)=17", 1)
		wantAllKept(t, k, "after the first page")
	})
}

// wantAllKept filters at level 31 and wants nothing left out, and a warning.
func wantAllKept(t *testing.T, k *kernel, warning string) {
	t.Helper()
	f := k.filter(t, 31)
	dst, counts := dropAll(t, f, k.count())
	if n := ones(dst); n != 0 || counts != (dumpfilter.Counts{Kept: k.count()}) {
		t.Errorf("%d pages are left out, and the counts are %+v", n, counts)
	}
	wantWarning(t, f, warning)
}

func wantWarning(t *testing.T, f *dumpfilter.Filter, want string) {
	t.Helper()
	got := f.Warnings()
	if !slices.ContainsFunc(got, func(w string) bool { return strings.Contains(w, want) }) {
		t.Errorf("got warnings %q, want one with %q", got, want)
	}
	if len(got) > 5 {
		t.Errorf("%d warnings, want one for each kind", len(got))
	}
}

// TestUnderstoodInPart: what a missing key doesn't concern is filtered all
// the same.
func TestUnderstoodInPart(t *testing.T) {
	for _, c := range []struct {
		name, old string
		kinds     []kind // that are kept
		want      string
	}{
		{"noBuddy", "NUMBER(PAGE_BUDDY_MAPCOUNT_VALUE)", []kind{free}, "free pages are kept"},
		{"noLRU", "NUMBER(PG_lru)", []kind{cached, cachedPrivate}, "page cache is kept"},
		{"noPrivateFlag", "NUMBER(PG_private)", []kind{cached, cachedPrivate}, "page cache is kept"},
		{"noPoison", "NUMBER(PG_hwpoison)", []kind{poison}, ""},
		{"noOffline", "NUMBER(PAGE_OFFLINE_MAPCOUNT_VALUE)", nil, ""},
		{"noHead", "NUMBER(PG_head_mask)", nil, "first page of a compound page"},
	} {
		t.Run(c.name, func(t *testing.T) {
			k := newKernel(machines[0], encodingOf(t, "6.12"))
			want := populate(k)
			k.text = strings.Replace(k.text, c.old, "NUMBER(other)", 1)
			f := k.filter(t, 31)
			dst, _ := dropAll(t, f, k.count())
			left := map[kind]int{}
			for pfn, kind := range want {
				switch {
				case !bit(dst, uint64(pfn)):
				case kind == kept:
					t.Errorf("page %#x is left out", pfn)
				default:
					left[kind]++
				}
			}
			for kind := cached; kind <= offline; kind++ {
				if got, want := left[kind] == 0, slices.Contains(c.kinds, kind); got != want {
					t.Errorf("kind %d: %d pages are left out, all kept should be %v", kind, left[kind], want)
				}
			}
			if c.want != "" {
				wantWarning(t, f, c.want)
			}
		})
	}
}

// TestBrokenMemory: what can't be read is kept.
func TestBrokenMemory(t *testing.T) {
	const second = 1 << 15 // the second section's first page
	entry := uint64(sectionAt + 0x100000 + 8)
	for _, c := range []struct {
		name   string
		change func(k *kernel)
		keeps  phys.Range // of PFNs; what lies outside is filtered as ever
		want   string
	}{
		{"noTable", func(k *kernel) { k.holes = phys.Set{{Start: sectionAt, End: sectionAt + 1}} },
			phys.Range{End: 4 * second}, "no RAM here"},
		{"noRoot", func(k *kernel) { k.put64(sectionAt, 0) }, phys.Range{End: 4 * second}, ""},
		{"rootNowhere", func(k *kernel) { k.put64(sectionAt, 0x123456789000) }, phys.Range{End: 4 * second}, "is not mapped"},
		{"rootNotCanonical", func(k *kernel) { k.put64(sectionAt, 1<<60) }, phys.Range{End: 4 * second}, "is not mapped"},
		{"rootWraps", func(k *kernel) { k.put64(sectionAt, ^uint64(0)-15) }, phys.Range{End: 4 * second}, "is not mapped"},
		{"cyclicRoot", func(k *kernel) { k.put64(sectionAt, k.direct+sectionAt) }, phys.Range{End: 4 * second}, ""},
		{"notPresent", func(k *kernel) { k.put64(entry, k.get64(entry)&^sectionPresent) }, phys.Range{End: second}, ""},
		{"offlineSection", func(k *kernel) { k.put64(entry, k.get64(entry)&^sectionOnline) }, phys.Range{End: second}, ""},
		{"mapNowhere", func(k *kernel) { k.put64(entry, 0x5000|7) }, phys.Range{End: second}, "is not mapped"},
		{"mapOfZeroes", func(k *kernel) { k.put64(entry, k.direct+0x300000|7) }, phys.Range{End: second}, "is not mapped"},
		{"structuresInHole", func(k *kernel) {
			k.holes = phys.Set{{Start: k.at(0x200), End: k.at(0x240)}}
		}, phys.Range{Start: 0x200, End: 0x240}, "no RAM here"},
		{"hugetlbStructuresInHole", func(k *kernel) {
			at := k.count() / 2
			k.holes = phys.Set{{Start: k.at(at), End: k.at(at + 0x40)}}
		}, phys.Range{Start: 2 * second, End: 4 * second}, "no RAM here"},
		{"noPageTables", func(k *kernel) { k.write(rootAt, make([]byte, 4096)) }, phys.Range{End: 4 * second}, "is not mapped"},
		{"pageTablesInHole", func(k *kernel) { k.holes = phys.Set{{Start: rootAt, End: rootAt + 4096}} }, phys.Range{End: 4 * second}, "no RAM here"},
	} {
		t.Run(c.name, func(t *testing.T) {
			k := newKernel(machines[0], encodingOf(t, "6.12"))
			want := populate(k)
			c.change(k)
			for pfn := c.keeps.Start; pfn < c.keeps.End; pfn++ {
				want[pfn] = kept
			}
			if c.name == "structuresInHole" {
				// The head of a huge page is gone, so its tails are nobody's.
				for pfn := 0x200; pfn < 0x400; pfn++ {
					want[pfn] = kept
				}
			}
			k.reads = 0
			f := k.filter(t, 31)
			dst, counts := dropAll(t, f, k.count())
			check(t, dst, want, 31)
			if got := counts.Kept + ones(dst); got != k.count() {
				t.Errorf("%d pages are counted, want %d", got, k.count())
			}
			if k.reads > 10000 {
				t.Errorf("%d reads", k.reads)
			}
			if c.want != "" {
				wantWarning(t, f, c.want)
			} else if got := f.Warnings(); len(got) > 1 { // impossible sizes are among the pages
				t.Errorf("got warnings %q", got)
			}
		})
	}
}

// TestOverflowingPages: page structures that all claim to be the head of the
// largest page, or free blocks, at the end of memory.
func TestOverflowingPages(t *testing.T) {
	k := newKernel(machines[0], encodingOf(t, "6.12"))
	for _, pfn := range []uint64{0, 1 << 15, 3 << 15} {
		k.compound(pfn, 1, lru, inode)
		k.set(pfn+1, flagsAt, 20)
	}
	f := k.filter(t, 31)
	dst, counts := dropAll(t, f, k.count())
	if n := ones(dst); n != k.count() || counts.Cache != n {
		t.Errorf("%d pages are left out, %+v, want all: 4 GiB fit the first", n, counts)
	}
	// The next larger is none that a kernel makes.
	k.set(1, flagsAt, 21)
	dst, counts = dropAll(t, f, 1<<15)
	if n := ones(dst); n != 1 || counts.Cache != 1 {
		t.Errorf("%d pages are left out, %+v, want one", n, counts)
	}
	// Neither is one at a place that isn't aligned.
	f, err := dumpfilter.New(k, k.info(t), phys.Set{{Start: 1 << 27, End: 2 << 27}}, 31)
	if err != nil {
		t.Fatal(err)
	}
	dst, counts = dropAll(t, f, k.count())
	if n := ones(dst); n != 1 || counts.Cache != 1 || counts.Kept != 1<<15-1 {
		t.Errorf("%d pages are left out, %+v, want one", n, counts)
	}
}

// TestFewSections: memory beyond what the kernel says it can have.
func TestFewSections(t *testing.T) {
	m := machines[2]
	m.physBits = 28
	k := newKernel(m, encodingOf(t, "6.12"))
	want := populate(k)
	clear(want[k.count()/2:])
	dst, _ := dropAll(t, k.filter(t, 31), k.count())
	check(t, dst, want, 31)
}

// TestDebian: the texts of real kernels are understood without a warning.
func TestDebian(t *testing.T) {
	for _, name := range []string{"debian-6.1-amd64", "debian-6.12-amd64"} {
		text, err := os.ReadFile("testdata/" + name + ".txt")
		if err != nil {
			t.Fatal(err)
		}
		info, err := vmcoreinfo.Parse(text)
		if err != nil {
			t.Fatal(err)
		}
		f, err := dumpfilter.New(&memory{}, info, nil, 31)
		if err != nil {
			t.Fatal(err)
		}
		if w := f.Warnings(); len(w) != 0 {
			t.Errorf("%s: got warnings %q", name, w)
		}
		if got := f.Block(); got != 1024 {
			t.Errorf("%s: blocks of %d pages, want 1024", name, got)
		}
	}
}
