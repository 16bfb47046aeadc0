package kernelmap_test

import (
	"encoding/binary"
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/warmcore/warmcore/pkg/kernelmap"
	"github.com/warmcore/warmcore/pkg/phys"
	"github.com/warmcore/warmcore/pkg/vmcoreinfo"
	"github.com/warmcore/warmcore/pkg/vmcoreinfo/vmcoreinfotest"
)

func mapping(t testing.TB, r vmcoreinfo.Reader, text string) (kernelmap.Mapping, error) {
	t.Helper()
	info, err := vmcoreinfo.Parse([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	m, err := kernelmap.Read(r, info)
	if err != nil && m != (kernelmap.Mapping{}) {
		t.Errorf("error %v with mapping %+v", err, m)
	}
	return m, err
}

func TestRead(t *testing.T) {
	for _, c := range []struct {
		name   string
		change func(*guest) // before the tables are built
		after  func(*guest)
	}{
		{name: "standard"},
		{name: "noKASLR", change: func(g *guest) {
			g.directBase, g.kaslr, g.imagePhys = 0xffff888000000000, 0, 0x1000000
		}},
		{name: "belowLinkAddress", change: func(g *guest) { g.imagePhys = 0x200000 }}, // phys_base is negative
		{name: "smallPages", change: func(g *guest) { g.leafLevel = 1 }},
		{name: "largePages", change: func(g *guest) { g.leafLevel = 3 }},
		{name: "fiveLevels", change: func(g *guest) {
			g.levels, g.directBase = 5, 0xff1d5a3fc0000000
		}},
		{name: "fiveLevelsLowest", change: func(g *guest) {
			g.levels, g.directBase = 5, 0xff11000000000000
		}},
		{name: "memoryEncryption", change: func(g *guest) { g.encrypt = 1 << 47 }},
		{name: "firstPagesNotMapped", after: func(g *guest) {
			g.mapPage(g.directBase, 0, 2)
			pml4 := int(g.directBase >> 39 % 512)
			pud := g.Entry(g.root, pml4) &^ 0xfff
			pmd := g.Entry(pud, int(g.directBase>>30%512)) &^ 0xfff
			g.SetEntry(pmd, 0, 0)
		}},
		{name: "ldtRemapAndHypervisor", after: func(g *guest) {
			g.mapPage(0xffff880000000000, 0x7000, 1)
			g.mapPage(0xffff800000000000, 0x8000, 1)
		}},
		{name: "userHalf", after: func(g *guest) { g.mapPage(0x400000, 0x9000, 1) }},
		{name: "freedInitSections", after: func(g *guest) {
			pmd := g.Entry(g.Entry(g.root, 511)&^0xfff, 510) &^ 0xfff
			g.SetEntry(pmd, int(g.text()>>21%512)+1, 0)
		}},
		{name: "otherMappingBehindImage", after: func(g *guest) {
			g.mapPage(g.text()+0x10000000, 0x200000, 2)
		}},
		{name: "noUTS", after: func(g *guest) {}},
	} {
		t.Run(c.name, func(t *testing.T) {
			g := standard()
			if c.change != nil {
				c.change(g)
			}
			g.build()
			if c.after != nil {
				c.after(g)
			}
			text := g.infoText()
			if c.name == "noUTS" {
				text = strings.Replace(text, "SYMBOL(init_uts_ns)", "SYMBOL(other)", 1)
			}
			got, err := mapping(t, g, text)
			if err != nil {
				t.Fatal(err)
			}
			want := kernelmap.Mapping{DirectBase: g.directBase, TextVirt: g.text(), TextPhys: g.imagePhys, TextSize: g.imageSize}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("mapping (-want +got):\n%s", diff)
			}
		})
	}
}

func TestReadRefuses(t *testing.T) {
	pmd := func(g *guest, virt uint64) uint64 {
		return g.Entry(g.Entry(g.root, int(virt>>39%512))&^0xfff, int(virt>>30%512)) &^ 0xfff
	}
	for _, c := range []struct {
		name  string
		after func(*guest)
		text  func(string) string
		want  string
		stale bool
	}{
		{name: "rootOverwritten", after: func(g *guest) {
			g.Write(g.root, make([]byte, phys.PageSize))
		}, want: "is not mapped", stale: true},
		{name: "textElsewhere", after: func(g *guest) {
			g.SetEntry(pmd(g, g.text()), int(g.text()>>21%512), 0x200000|0x1e3)
		}, want: "is not mapped", stale: true},
		{name: "otherRelease", after: func(g *guest) {
			g.Write(g.imagePhys+utsAt+2*65, []byte("6.12"))
		}, want: `init_uts_ns is of release "6.120-test\x00"`, stale: true},
		{name: "noDirectMap", after: func(g *guest) {
			g.SetEntry(g.root, int(g.directBase>>39%512), 0)
			g.SetEntry(g.root, int((g.directBase+0x400000000000)>>39%512), 0)
		}, want: "no direct map", stale: true},
		{name: "vmallocFirst", after: func(g *guest) {
			g.SetEntry(g.root, int(g.directBase>>39%512), 0)
		}, want: "direct map would begin at"},
		{name: "directMapNotLinear", after: func(g *guest) {
			g.SetEntry(pmd(g, g.directBase), 1, 0x600000|0x1e3)
		}, want: "not linear"},
		{name: "directMapWithoutRoot", after: func(g *guest) {
			g.SetEntry(pmd(g, g.directBase), int(g.root>>21%512), 0)
		}, want: "doesn't map"},
		{name: "tableInHole", after: func(g *guest) {
			g.Holes = phys.Set{{Start: 0x3000000, End: 0x3001000}, {Start: 0x3003000, End: 0x3004000}}
		}, want: "no RAM here"},
		{name: "utsInHole", after: func(g *guest) {
			g.Holes = phys.Set{{Start: g.imagePhys + utsAt, End: g.imagePhys + utsAt + 4096}}
		}, want: "read init_uts_ns"},
		{name: "noPhysBase", text: func(s string) string {
			return strings.Replace(s, "phys_base", "other", 1)
		}, want: "lacks"},
		{name: "symbolOutsideImage", text: func(s string) string {
			return strings.Replace(s, "SYMBOL(_stext)=ffffffff", "SYMBOL(_stext)=ffff8880", 1)
		}, want: "outside the kernel's image"},
		{name: "rootNotAligned", text: func(s string) string {
			return strings.Replace(s, "000\nSYMBOL(_stext)", "008\nSYMBOL(_stext)", 1)
		}, want: "not the address of a page"},
	} {
		t.Run(c.name, func(t *testing.T) {
			g := standard().build()
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

func TestTranslate(t *testing.T) {
	g := standard().build()
	g.mapPage(0x7fff00000000, 0x123000, 1)
	g.mapPage(0xffffffffff5ff000, 0xfee00000, 1)
	g.SetEntry(g.root, 300, 0x5000|0x80|1)                    // a large page where there is none
	g.SetEntry(g.Entry(g.root, 511)&^0xfff, 1, 0x2000|0x80|1) // a large page that isn't aligned
	tables, err := kernelmap.NewAMD64(g, g.root, 4, 0)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name       string
		virt, want uint64
		ok         bool
	}{
		{"user", 0x7fff00000abc, 0x123abc, true},
		{"fixmap", 0xffffffffff5ff008, 0xfee00008, true},
		{"direct", g.directBase + 0x2345678, 0x2345678, true},
		{"text", g.text() + 0x3ffff8, g.imagePhys + 0x3ffff8, true},
		{"notMapped", g.text() - 8, 0, false},
		{"notCanonical", 0x800000000000, 0, false},
		{"fiveLevelAddress", 0xff11000000000000, 0, false},
		{"largeAtTop", 300<<39 | 0xffff000000000000, 0, false},
		{"largeNotAligned", 0xffffff8040000000, 0, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, ok, err := tables.Translate(c.virt)
			if err != nil || got != c.want || ok != c.ok {
				t.Errorf("Translate(%#x): got %#x, %v, %v, want %#x, %v", c.virt, got, ok, err, c.want, c.ok)
			}
		})
	}
	for _, levels := range []int{0, 3, 6} {
		if tables, err := kernelmap.NewAMD64(g, g.root, levels, 0); err == nil || tables != nil {
			t.Errorf("NewAMD64 with %d levels: no error", levels)
		}
	}
	for _, root := range []uint64{0x1008, 1 << 52} {
		if tables, err := kernelmap.NewAMD64(g, root, 4, 0); err == nil || tables != nil {
			t.Errorf("NewAMD64 at %#x: no error", root)
		}
	}
}

// maxReads bounds the pages that Read reads of hostile memory: three
// walks, each of maxTables tables, and some single addresses.
const maxReads = 3*(1<<14) + 100

// TestCyclicTables: tables that contain themselves, in every entry, must end
// the walk, and so must a tree that is full but maps nothing.
func TestCyclicTables(t *testing.T) {
	for _, levels := range []int{4, 5} {
		g := standard()
		g.levels = levels
		if levels == 5 {
			g.directBase = 0xff1d5a3fc0000000
		}
		g.build()
		for i := range 511 { // entry 511 has the kernel's image
			g.SetEntry(g.root, i, g.root|0x63)
		}
		if m, err := mapping(t, g, g.infoText()); err == nil {
			t.Errorf("%d levels, root in itself: got %+v, want an error", levels, m)
		}

		// A table for each level, all of whose entries name the next one.
		at := uint64(0x2800000)
		for level := levels - 1; level > 1; level-- {
			for i := range 512 {
				g.SetEntry(at, i, (at+phys.PageSize)|0x63)
			}
			at += phys.PageSize
		}
		for i := range 511 {
			g.SetEntry(g.root, i, 0x2800000|0x63)
		}
		g.Reads = 0
		_, err := mapping(t, g, g.infoText())
		if err == nil || !strings.Contains(err.Error(), "more than 16384 tables") {
			t.Errorf("%d levels, full tree without leaves: got error %v, want one about the number of tables", levels, err)
		}
		if g.Reads > maxReads {
			t.Errorf("%d levels: %d reads, want at most %d", levels, g.Reads, maxReads)
		}
	}
}

// noise is memory whose every page is made from a few bytes and its address.
type noise struct {
	page  []byte
	seed  uint64
	reads int
}

func (n *noise) ReadPhys(p []byte, addr uint64) error {
	n.reads++
	if n.seed%7 == 1 && addr>>12%5 == 0 {
		return vmcoreinfotest.ErrHole
	}
	for i := 0; i+8 <= len(p); i += 8 {
		x := (addr + uint64(i) + n.seed) * 0x9e3779b97f4a7c15
		x ^= x >> 29
		if len(n.page) >= 8 {
			at := x % uint64(len(n.page)-7)
			x = binary.LittleEndian.Uint64(n.page[at:]) + x<<12&0x3fffff000*(n.seed&1)
		}
		binary.LittleEndian.PutUint64(p[i:], x)
	}
	return nil
}

// FuzzRead: whatever lies in memory, the walk ends, and a mapping
// that is returned is one that a kernel can have.
func FuzzRead(f *testing.F) {
	text := []byte(standard().build().infoText())
	noUTS := []byte(strings.Replace(string(text), "SYMBOL(init_uts_ns)", "SYMBOL(other)", 1))
	f.Add(noUTS, []byte("\x63\x00\x00\x00\x00\x00\x00\x00"), uint64(0))
	f.Add(noUTS, []byte("\xe3\x00\x00\x00\x00\x00\x00\x00\x63\x10\x00\x00\x00\x00\x00\x00"), uint64(1))
	f.Add(text, []byte{}, uint64(3))
	for _, c := range armKernels {
		arm := []byte(newARM(c.page, c.vaBits, c.actual, c.ram).infoText())
		f.Add(arm, []byte("\x03\x10\x00\x00\x00\x00\x00\x00\x01\x00\x20\x00\x00\x00\x00\x00"), uint64(1))
	}
	f.Fuzz(func(t *testing.T, text, page []byte, seed uint64) {
		info, err := vmcoreinfo.Parse(text)
		if err != nil {
			return
		}
		n := &noise{page: page, seed: seed}
		m, err := kernelmap.Read(n, info)
		if n.reads > maxReads {
			t.Errorf("%d reads, want at most %d", n.reads, maxReads)
		}
		if err != nil {
			if m != (kernelmap.Mapping{}) {
				t.Errorf("error %v with mapping %+v", err, m)
			}
			return
		}
		if _, ok := info.Numbers["kimage_voffset"]; ok {
			if (m.TextVirt|m.TextPhys|m.TextSize)%phys.PageSize != 0 || m.TextSize == 0 || m.TextSize > phys.GiB || m.TextVirt>>52 != 0xfff {
				t.Errorf("text at %#x, %#x, %#x bytes", m.TextVirt, m.TextPhys, m.TextSize)
			}
			return
		}
		if m.DirectBase%phys.GiB != 0 || m.DirectBase < 0xff11000000000000 || m.DirectBase >= 0xfffffe0000000000 {
			t.Errorf("direct map at %#x", m.DirectBase)
		}
		if (m.TextVirt|m.TextPhys|m.TextSize)%phys.PageSize != 0 || m.TextSize == 0 ||
			m.TextVirt < 0xffffffff80000000 || m.TextVirt-0xffffffff80000000+m.TextSize > phys.GiB {
			t.Errorf("text at %#x, %#x, %#x bytes", m.TextVirt, m.TextPhys, m.TextSize)
		}
	})
}
