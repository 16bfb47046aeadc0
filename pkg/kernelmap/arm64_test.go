package kernelmap_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/warmcore/warmcore/pkg/kernelmap"
	"github.com/warmcore/warmcore/pkg/phys"
	"github.com/warmcore/warmcore/pkg/vmcoreinfo"
	"github.com/warmcore/warmcore/pkg/vmcoreinfo/vmcoreinfotest"
)

// armGuest is a synthetic arm64 kernel in memory: 64 MiB of RAM, the image in
// the vmalloc area.
type armGuest struct {
	*vmcoreinfotest.Memory
	page      int    // log2 of the page size
	vaBits    int    // of the configuration
	t1sz      int    // what the processor runs with
	ram       uint64 // where RAM begins
	linear    uint64 // virtual address of that
	text      uint64
	imagePhys uint64
	imageSize uint64
	block     bool // the linear map has blocks
	nextTable uint64
}

const armImageAt = 16 * phys.MiB // the image in RAM

// newARM returns a guest whose addresses are those that Linux would choose,
// without KASLR unless linear is changed.
func newARM(page, vaBits, actual int, ram uint64) *armGuest {
	g := &armGuest{
		Memory: vmcoreinfotest.New(ram + 64*phys.MiB),
		page:   page, vaBits: vaBits, t1sz: 64 - actual,
		ram: ram,
		// _PAGE_OFFSET(actual): a kernel for 52 bits keeps to the upper part.
		linear:    -(uint64(1) << actual),
		text:      -(uint64(1) << (min(actual, 48) - 1)) + 0x8010_0000,
		imagePhys: ram + armImageAt,
		imageSize: 8 * phys.MiB,
		block:     page == 12,
		nextTable: ram + 48*phys.MiB,
	}
	return g
}

func (g *armGuest) root() uint64 { return g.imagePhys + rootAt }

// bits is how many address bits the tables in memory resolve.
func (g *armGuest) bits() int {
	if g.page == 16 {
		return g.vaBits
	}
	return 64 - g.t1sz
}

func (g *armGuest) lpa2() bool { return g.page < 16 && g.bits() == 52 }

func (g *armGuest) shift(level int) int { return g.page + (g.page-3)*(level-1) }

// encode returns a descriptor for an address, with attributes that the
// kernel's have: inner shareable where LPA2 has no address bits there.
func (g *armGuest) encode(addr, flags uint64) uint64 {
	switch {
	case g.lpa2():
		return addr&(1<<50-1) | addr>>50<<8 | flags
	case g.page == 16:
		return addr&(1<<48-1) | addr>>48<<12 | flags | 3<<8
	}
	return addr | flags | 3<<8
}

func (g *armGuest) address(entry uint64) uint64 {
	low := uint64(1)<<g.page - 1
	switch {
	case g.lpa2():
		return entry&(1<<50-1)&^low | entry>>8&3<<50
	case g.page == 16:
		return entry&(1<<48-1)&^low | entry>>12&15<<48
	}
	return entry & (1<<48 - 1) &^ low
}

// mapPage enters a page of the level's size.
func (g *armGuest) mapPage(virt, to uint64, leafLevel int) {
	table := g.root()
	levels := (g.bits() - 4) / (g.page - 3)
	for level := levels; ; level-- {
		entries := uint64(1) << min(g.page-3, g.bits()-g.shift(level))
		i := int(virt >> g.shift(level) % entries)
		if level == leafLevel {
			const attributes = 1<<54 | 1<<53 | 1<<10 // UXN, PXN, AF
			kind := uint64(3)
			if level > 1 {
				kind = 1
			}
			g.SetEntry(table, i, g.encode(to, attributes|kind))
			return
		}
		e := g.Entry(table, i)
		if e == 0 {
			e = g.encode(g.nextTable, 3)
			g.SetEntry(table, i, e)
			g.nextTable += 1 << g.page
		}
		table = g.address(e)
	}
}

func (g *armGuest) build() *armGuest {
	size := uint64(1) << g.page
	for a := uint64(0); a < 32*phys.MiB; {
		if block := uint64(1) << g.shift(2); g.block && (g.ram+a)%block == 0 && block <= 32*phys.MiB {
			g.mapPage(g.linear+a, g.ram+a, 2)
			a += block
			continue
		}
		g.mapPage(g.linear+a, g.ram+a, 1)
		a += size
	}
	for off := uint64(0); off < g.imageSize; off += size {
		g.mapPage(g.text+off, g.imagePhys+off, 1)
	}
	g.mapPage(g.text+64*phys.MiB, g.ram, 1) // vmalloc, after the image
	g.Write(g.imagePhys+utsAt+0x8+2*65, []byte(release+"\x00"))
	return g
}

func (g *armGuest) infoText() string {
	physOffset := g.ram - (g.linear + 1<<g.vaBits) // memstart_addr: where PAGE_OFFSET would be
	return fmt.Sprintf("OSRELEASE=%s\nPAGESIZE=%d\nSYMBOL(init_uts_ns)=%x\nOFFSET(uts_namespace.name)=8\n"+
		"SYMBOL(swapper_pg_dir)=%x\nSYMBOL(_stext)=%x\nNUMBER(VA_BITS)=%d\nNUMBER(kimage_voffset)=0x%x\n"+
		"NUMBER(PHYS_OFFSET)=0x%x\nNUMBER(TCR_EL1_T1SZ)=0x%x\nKERNELOFFSET=100000\nNUMBER(KERNELPACMASK)=0x0\n",
		release, 1<<g.page, g.text+utsAt, g.text+rootAt, g.text, g.vaBits, g.text-g.imagePhys, physOffset, g.t1sz)
}

// armKernels are configurations that Linux has, on processors that run them.
var armKernels = []struct {
	name                 string
	page, vaBits, actual int
	ram                  uint64
}{
	{"4K, 39 bits", 12, 39, 39, 0},
	{"4K, 48 bits", 12, 48, 48, 0x4000_0000},
	{"4K, 48 bits, RAM at 512 GiB", 12, 48, 48, 0x80_0000_0000},
	{"4K, 52 bits on 48", 12, 52, 48, 0x4000_0000}, // Debian's 6.12 on most processors
	{"4K, 52 bits, LPA2", 12, 52, 52, 0xd_0000_4000_0000},
	{"16K, 36 bits", 14, 36, 36, 0x4000_0000},
	{"16K, 47 bits", 14, 47, 47, 0x4000_0000},
	{"16K, 48 bits", 14, 48, 48, 0x4000_0000},
	{"16K, 52 bits on 47", 14, 52, 47, 0x4000_0000},
	{"16K, 52 bits, LPA2", 14, 52, 52, 0xe_0000_4000_0000},
	{"64K, 42 bits", 16, 42, 42, 0x4000_0000},
	{"64K, 48 bits", 16, 48, 48, 0x4000_0000},
	{"64K, 52 bits on 48", 16, 52, 48, 0x4000_0000},
	{"64K, 52 bits, LPA", 16, 52, 52, 0xf_0000_4000_0000},
}

func TestReadARM64(t *testing.T) {
	for _, c := range armKernels {
		t.Run(c.name, func(t *testing.T) {
			g := newARM(c.page, c.vaBits, c.actual, c.ram).build()
			got, err := mapping(t, g, g.infoText())
			if err != nil {
				t.Fatal(err)
			}
			want := kernelmap.Mapping{DirectBase: g.linear - g.ram, TextVirt: g.text, TextPhys: g.imagePhys, TextSize: g.imageSize}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("mapping (-want +got):\n%s", diff)
			}
		})
	}
	for _, c := range []struct {
		name   string
		change func(*armGuest)
		text   func(string) string
	}{
		{name: "KASLR moves the linear map", change: func(g *armGuest) { g.linear += 0x1bb_4000_0000 }},
		{name: "linear map of pages", change: func(g *armGuest) { g.block = false }},
		{name: "before TCR_EL1_T1SZ", text: func(s string) string {
			return strings.Replace(s, "NUMBER(TCR_EL1_T1SZ)", "NUMBER(other)", 1)
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			g := newARM(12, 48, 48, 0x4000_0000)
			if c.change != nil {
				c.change(g)
			}
			text := g.build().infoText()
			if c.text != nil {
				text = c.text(text)
			}
			got, err := mapping(t, g, text)
			if err != nil {
				t.Fatal(err)
			}
			if want := g.linear - g.ram; got.DirectBase != want {
				t.Errorf("direct map at %#x, want %#x", got.DirectBase, want)
			}
		})
	}
}

// Debian's 6.12.117 in QEMU, as its text and /proc/kcore say: the numbers of
// a kernel for 52 bits that runs with 48 and KASLR.
func TestARM64DebianNumbers(t *testing.T) {
	g := newARM(12, 52, 48, 0x4000_0000)
	g.linear, g.text, g.imagePhys = 0xffff01bb80000000, 0xffffd15e4ec10000, 0x40210000
	g.build()
	text := g.infoText()
	for _, line := range []string{
		"NUMBER(PHYS_OFFSET)=0xfff0fe44c0000000\n", "NUMBER(kimage_voffset)=0xffffd15e0ea00000\n", "NUMBER(TCR_EL1_T1SZ)=0x10\n",
	} {
		if !strings.Contains(text, line) {
			t.Errorf("text is without %q:\n%s", line, text)
		}
	}
	got, err := mapping(t, g, text)
	if err != nil || got.DirectBase != 0xffff01bb40000000 {
		t.Errorf("mapping %+v, %v; want the direct map at 0xffff01bb40000000", got, err)
	}
}

func TestReadARM64Refuses(t *testing.T) {
	replace := func(from, to string) func(string) string {
		return func(s string) string { return strings.Replace(s, from, to, 1) }
	}
	for _, c := range []struct {
		name  string
		after func(*armGuest)
		text  func(string) string
		want  string
		stale bool
	}{
		{name: "root overwritten", after: func(g *armGuest) {
			g.Write(g.root(), make([]byte, phys.PageSize))
		}, want: "is not mapped", stale: true},
		{name: "text elsewhere", after: func(g *armGuest) { g.mapPage(g.text, g.ram, 1) }, want: "is not mapped", stale: true},
		{name: "other release", after: func(g *armGuest) {
			g.Write(g.imagePhys+utsAt+8+2*65, []byte("6.12"))
		}, want: `init_uts_ns is of release "6.120-test\x00"`, stale: true},
		{name: "no linear map", after: func(g *armGuest) {
			g.SetEntry(g.root(), int(g.linear>>39%512), 0)
		}, want: "direct map at 0xfffeffffc0000000 doesn't map"},
		{name: "another PHYS_OFFSET", text: replace("PHYS_OFFSET)=0x4", "PHYS_OFFSET)=0x8"), want: "doesn't map"},
		{name: "uts in hole", after: func(g *armGuest) {
			g.Holes = phys.Set{{Start: g.imagePhys + utsAt, End: g.imagePhys + utsAt + 4096}}
		}, want: "read init_uts_ns"},
		{name: "no VA_BITS", text: replace("VA_BITS", "other"), want: "lacks NUMBER(VA_BITS)"},
		{name: "no PHYS_OFFSET", text: replace("PHYS_OFFSET", "other"), want: "lacks NUMBER(VA_BITS) or NUMBER(PHYS_OFFSET)"},
		{name: "no kimage_voffset", text: replace("kimage_voffset", "other"), want: "VMCOREINFO is of no known architecture: it lacks NUMBER(phys_base) of amd64 and NUMBER(kimage_voffset) of arm64"},
		{name: "of both architectures", text: replace("NUMBER(KERNELPACMASK)", "NUMBER(phys_base)"), want: "VMCOREINFO is of two architectures, amd64 and arm64"},
		{name: "VA_BITS of no kernel", text: replace("VA_BITS)=48", "VA_BITS)=64"), want: "VA_BITS) is 64"},
		{name: "negative VA_BITS", text: replace("VA_BITS)=48", "VA_BITS)=-1"), want: "VA_BITS) is -1"},
		{name: "more bits than configured", text: replace("T1SZ)=0x10", "T1SZ)=0xc"), want: "TCR_EL1_T1SZ) is 12"},
		{name: "negative T1SZ", text: replace("T1SZ)=0x10", "T1SZ)=-9223372036854775808"), want: "TCR_EL1_T1SZ) is -"},
		{name: "page size of no processor", text: replace("PAGESIZE=4096", "PAGESIZE=8192"), want: "pages of 8192 bytes"},
		{name: "text in the lower half", text: replace("_stext)=ffff", "_stext)=0fff"), want: "outside the kernel's half"},
		{name: "root far from the text", text: replace("swapper_pg_dir)=ffff8", "swapper_pg_dir)=ffff9"), want: "outside the kernel's image"},
		{name: "root not aligned", text: replace("000\nSYMBOL(_stext)", "008\nSYMBOL(_stext)"), want: "not the address of a table"},
	} {
		t.Run(c.name, func(t *testing.T) {
			g := newARM(12, 48, 48, 0x4000_0000).build()
			if c.after != nil {
				c.after(g)
			}
			text := g.infoText()
			if c.text != nil {
				text = c.text(text)
			}
			_, err := mapping(t, g, text)
			if err == nil || !strings.Contains(err.Error(), c.want) || errors.Is(err, kernelmap.ErrStale) != c.stale {
				t.Errorf("got error %v, want one with %q, stale: %v", err, c.want, c.stale)
			}
		})
	}
}

func TestTranslateARM64(t *testing.T) {
	g := newARM(12, 48, 48, 0x4000_0000).build()
	gib := g.linear + 4*phys.GiB
	g.mapPage(gib, 0x80_0000_0000, 3)
	g.mapPage(gib+phys.GiB, 0x2000, 3)                        // a block that isn't aligned
	g.SetEntry(g.root(), 300, 0x5000|1)                       // a block where there is none
	g.mapPage(g.text+128*phys.MiB, 0x123000, 1)               // a page ...
	g.mapPage(g.text+128*phys.MiB+phys.PageSize, 0x124000, 1) // ... and one that is reserved
	l3 := g.root()
	for level := 4; level > 1; level-- {
		l3 = g.address(g.Entry(l3, int((g.text+128*phys.MiB)>>g.shift(level)%512)))
	}
	at := int((g.text+128*phys.MiB)>>12%512) + 1
	g.SetEntry(l3, at, g.Entry(l3, at)&^2)
	tables, err := kernelmap.NewARM64(g, g.root(), 4096, 48)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name       string
		virt, want uint64
		ok         bool
	}{
		{"block of 2 MiB", g.linear + 0x123456, g.ram + 0x123456, true},
		{"block of 1 GiB", gib + 0x12345678, 0x80_1234_5678, true},
		{"page", g.text + 0x3ffff8, g.imagePhys + 0x3ffff8, true},
		{"not mapped", g.text - 8, 0, false},
		{"lower half", 0x400000, 0, false},
		{"below the top table", 0xfffe_ffff_ffff_f000, 0, false},
		{"block in the top table", 300<<39 | 0xffff_0000_0000_0000, 0, false},
		{"block not aligned", gib + phys.GiB, 0, false},
		{"page", g.text + 128*phys.MiB + 1, 0x123001, true},
		{"page without its bit", g.text + 128*phys.MiB + phys.PageSize, 0, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, ok, err := tables.Translate(c.virt)
			if err != nil || got != c.want || ok != c.ok {
				t.Errorf("Translate(%#x): got %#x, %v, %v, want %#x, %v", c.virt, got, ok, err, c.want, c.ok)
			}
		})
	}
	for _, c := range []struct {
		root, page uint64
		bits       int
	}{
		{g.root(), 8192, 48}, {g.root(), 0, 48}, {g.root(), 4096, 35}, {g.root(), 4096, 53}, {g.root() + 8, 4096, 48}, {1 << 52, 4096, 48},
	} {
		if tables, err := kernelmap.NewARM64(g, c.root, c.page, c.bits); err == nil || tables != nil {
			t.Errorf("NewARM64(%#x, %d, %d): no error", c.root, c.page, c.bits)
		}
	}
}

func TestTables(t *testing.T) {
	arm := newARM(14, 52, 47, 0x4000_0000).build()
	x86 := standard().build()
	for _, c := range []struct {
		name       string
		r          vmcoreinfo.Reader
		text       string
		virt, want uint64
	}{
		{"arm64", arm, arm.infoText(), arm.text, arm.imagePhys},
		{"x86-64", x86, x86.infoText(), x86.text(), x86.imagePhys},
	} {
		info, err := vmcoreinfo.Parse([]byte(c.text))
		if err != nil {
			t.Fatal(err)
		}
		tables, err := kernelmap.Tables(c.r, info)
		if err != nil {
			t.Fatal(err)
		}
		if got, ok, err := tables.Translate(c.virt); got != c.want || !ok || err != nil {
			t.Errorf("%s: Translate(%#x) = %#x, %v, %v; want %#x", c.name, c.virt, got, ok, err, c.want)
		}
	}
	if tables, err := kernelmap.Tables(arm, &vmcoreinfo.Info{}); err == nil || tables != nil {
		t.Error("Tables of nothing: no error")
	}
}

// TestCyclicTablesARM64: tables that contain themselves end the walk.
func TestCyclicTablesARM64(t *testing.T) {
	for _, c := range armKernels {
		g := newARM(c.page, c.vaBits, c.actual, c.ram).build()
		entries := 1 << min(g.page-3, g.bits()-g.shift((g.bits()-4)/(g.page-3)))
		keep := g.text >> g.shift((g.bits()-4)/(g.page-3)) % uint64(entries)
		for i := range entries {
			if uint64(i) != keep {
				g.SetEntry(g.root(), i, g.encode(g.root(), 3))
			}
		}
		g.Reads = 0
		mapping(t, g, g.infoText())
		if g.Reads > maxReads {
			t.Errorf("%s: %d reads, want at most %d", c.name, g.Reads, maxReads)
		}
	}
}
