package kernelmap_test

import (
	"errors"
	"fmt"
	"slices"
	"testing"

	"github.com/warmcore/warmcore/pkg/kernelmap"
	"github.com/warmcore/warmcore/pkg/phys"
	"github.com/warmcore/warmcore/pkg/vmcoreinfo"
	"github.com/warmcore/warmcore/pkg/vmcoreinfo/vmcoreinfotest"
)

// guest is a synthetic x86-64 kernel in memory.
type guest struct {
	*vmcoreinfotest.Memory
	levels     int
	leafLevel  int    // 1: 4 KiB, 2: 2 MiB, 3: 1 GiB pages in the direct map
	directBase uint64 // virtual address of physical 0
	kaslr      uint64 // KERNELOFFSET
	imagePhys  uint64 // where _stext lies
	imageSize  uint64
	root       uint64 // physical address of swapper_pg_dir
	nextTable  uint64 // where the next page table goes
	encrypt    uint64 // sme_mask
}

const (
	release = "6.1.0-test"
	rootAt  = 0x400000 // swapper_pg_dir, from _stext
	utsAt   = 0x401000 // init_uts_ns, from _stext
)

// standard is a guest of 64 MiB with 4 levels, 2 MiB pages and KASLR.
func standard() *guest {
	return &guest{
		Memory:     vmcoreinfotest.New(64 * phys.MiB),
		levels:     4,
		leafLevel:  2,
		directBase: 0xffff9e4000000000,
		kaslr:      0x12400000,
		imagePhys:  0x1600000,
		imageSize:  0x800000,
		nextTable:  0x3000000,
	}
}

func (g *guest) text() uint64 { return 0xffffffff81000000 + g.kaslr }

// build writes page tables and init_uts_ns.
func (g *guest) build() *guest {
	g.root = g.imagePhys + rootAt
	for a := uint64(0); a < min(g.Size, 64*phys.MiB); a += 1 << g.shift(g.leafLevel) {
		g.mapPage(g.directBase+a, a, g.leafLevel)
	}
	for off := uint64(0); off < g.imageSize; off += 2 * phys.MiB {
		g.mapPage(g.text()+off, g.imagePhys+off, 2)
	}
	g.mapPage(g.directBase+0x400000000000, 0x5000, 1) // vmalloc
	g.mapPage(0xffffffffc0000000, 0x6000, 1)          // modules
	g.Write(g.imagePhys+utsAt+2*65, []byte(release+"\x00"))
	return g
}

func (g *guest) shift(level int) int { return 12 + 9*(level-1) }

// mapPage enters one page of the level's size.
func (g *guest) mapPage(virt, to uint64, leafLevel int) {
	table := g.root
	for level := g.levels; level > leafLevel; level-- {
		i := int(virt >> g.shift(level) % 512)
		e := g.Entry(table, i)
		if e == 0 {
			e = g.nextTable | g.encrypt | 0x63
			g.SetEntry(table, i, e)
			g.nextTable += phys.PageSize
		}
		table = e &^ g.encrypt &^ 0xfff
	}
	flags := uint64(1)<<63 | 0x163 // no execute, global, dirty, accessed, writable, present
	if leafLevel > 1 {
		flags |= 1 << 7
	}
	g.SetEntry(table, int(virt>>g.shift(leafLevel)%512), to|g.encrypt|flags)
}

// infoText is the kernel's VMCOREINFO.
func (g *guest) infoText() string {
	l5 := 0
	if g.levels == 5 {
		l5 = 1
	}
	physBase := g.imagePhys - (g.text() - 0xffffffff80000000)
	return fmt.Sprintf("OSRELEASE=%s\nPAGESIZE=4096\nSYMBOL(init_uts_ns)=%x\nOFFSET(uts_namespace.name)=0\n"+
		"SYMBOL(swapper_pg_dir)=%x\nSYMBOL(_stext)=%x\nNUMBER(phys_base)=%d\nNUMBER(pgtable_l5_enabled)=%d\n"+
		"KERNELOFFSET=%x\nNUMBER(KERNEL_IMAGE_SIZE)=1073741824\nNUMBER(sme_mask)=%d\n",
		release, g.text()+utsAt, g.text()+rootAt, g.text(), int64(physBase), l5, g.kaslr, g.encrypt)
}

// TestFindStale: two boots' notes, of which the older one's kernel has been
// overwritten where its page tables lay.
func TestFindStale(t *testing.T) {
	g := standard().build()
	old := *g
	old.kaslr, old.imagePhys, old.nextTable = 0x5000000, 0x2000000, 0x3800000
	old.build()
	g.Memory.WriteNote(t, 0x5000, old.infoText())
	g.Memory.WriteNote(t, 0x7000, g.infoText())
	live := func(info *vmcoreinfo.Info) bool {
		_, err := kernelmap.Read(g.Memory, info)
		if err != nil && !errors.Is(err, kernelmap.ErrStale) {
			t.Errorf("got error %v, want %v", err, kernelmap.ErrStale)
		}
		return err == nil
	}
	find := func() []uint64 {
		var at []uint64
		for _, c := range vmcoreinfo.Find(g.Memory, phys.Set{{Start: 0, End: g.Size}}, live).Candidates {
			at = append(at, c.Addr)
		}
		return at
	}
	if got, want := find(), []uint64{0x5000, 0x7000}; !slices.Equal(got, want) {
		t.Errorf("two whole kernels: got %#x, want %#x", got, want)
	}
	g.Write(old.root, make([]byte, phys.PageSize))
	if got, want := find(), []uint64{0x7000}; !slices.Equal(got, want) {
		t.Errorf("one whole kernel: got %#x, want %#x", got, want)
	}
}
