package vmcoreinfo_test

import (
	"encoding/binary"
	"errors"
	"fmt"
	"testing"

	"github.com/warmcore/warmcore/pkg/elfcore"
	"github.com/warmcore/warmcore/pkg/phys"
)

var errHole = errors.New("no RAM here")

// memory is physical memory of size bytes: pages that nobody wrote are zero,
// and reads that touch a hole fail.
type memory struct {
	size  uint64
	holes phys.Set
	pages map[uint64]*[phys.PageSize]byte
	reads int
}

func newMemory(size uint64) *memory {
	return &memory{size: size, pages: map[uint64]*[phys.PageSize]byte{}}
}

func (m *memory) ReadPhys(p []byte, addr uint64) error {
	m.reads++
	r, ok := phys.Sized(addr, uint64(len(p)))
	if !ok || r.End > m.size || m.holes.Overlaps(r) {
		return fmt.Errorf("read %v: %w", r, errHole)
	}
	for i := 0; i < len(p); {
		at := addr + uint64(i)
		rest := p[i:min(len(p), i+int(phys.PageSize-at%phys.PageSize))]
		if page := m.pages[at/phys.PageSize]; page != nil {
			copy(rest, page[at%phys.PageSize:])
		} else {
			clear(rest)
		}
		i += len(rest)
	}
	return nil
}

func (m *memory) write(addr uint64, b []byte) {
	for i, c := range b {
		at := addr + uint64(i)
		page := m.pages[at/phys.PageSize]
		if page == nil {
			page = new([phys.PageSize]byte)
			m.pages[at/phys.PageSize] = page
		}
		page[at%phys.PageSize] = c
	}
}

func (m *memory) entry(table uint64, i int) uint64 {
	var b [8]byte
	if err := m.ReadPhys(b[:], table+uint64(i)*8); err != nil {
		return 0
	}
	return binary.LittleEndian.Uint64(b[:])
}

func (m *memory) setEntry(table uint64, i int, e uint64) {
	m.write(table+uint64(i)*8, binary.LittleEndian.AppendUint64(nil, e))
}

// guest is a synthetic x86-64 kernel in memory.
type guest struct {
	*memory
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
		memory:     newMemory(64 * phys.MiB),
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
	for a := uint64(0); a < min(g.size, 64*phys.MiB); a += 1 << g.shift(g.leafLevel) {
		g.mapPage(g.directBase+a, a, g.leafLevel)
	}
	for off := uint64(0); off < g.imageSize; off += 2 * phys.MiB {
		g.mapPage(g.text()+off, g.imagePhys+off, 2)
	}
	g.mapPage(g.directBase+0x400000000000, 0x5000, 1) // vmalloc
	g.mapPage(0xffffffffc0000000, 0x6000, 1)          // modules
	g.write(g.imagePhys+utsAt+2*65, []byte(release+"\x00"))
	return g
}

func (g *guest) shift(level int) int { return 12 + 9*(level-1) }

// mapPage enters one page of the level's size.
func (g *guest) mapPage(virt, to uint64, leafLevel int) {
	table := g.root
	for level := g.levels; level > leafLevel; level-- {
		i := int(virt >> g.shift(level) % 512)
		e := g.entry(table, i)
		if e == 0 {
			e = g.nextTable | g.encrypt | 0x63
			g.setEntry(table, i, e)
			g.nextTable += phys.PageSize
		}
		table = e &^ g.encrypt &^ 0xfff
	}
	flags := uint64(1)<<63 | 0x163 // no execute, global, dirty, accessed, writable, present
	if leafLevel > 1 {
		flags |= 1 << 7
	}
	g.setEntry(table, int(virt>>g.shift(leafLevel)%512), to|g.encrypt|flags)
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

// writeNote puts a VMCOREINFO note at addr and returns its size.
func writeNote(t testing.TB, m *memory, addr uint64, text string) uint64 {
	t.Helper()
	b, err := elfcore.AppendNote(nil, elfcore.ELFNote{Name: "VMCOREINFO", Desc: []byte(text)})
	if err != nil {
		t.Fatal(err)
	}
	b = elfcore.AppendFinalNote(b)
	m.write(addr, b)
	return uint64(len(b))
}
