// Package sparse makes ELF dumps of machines with terabytes of memory that
// take megabytes: what a dump tool reads is computed when it is read. The
// kernel in them is an x86-64 one of the 6.1 line, with page tables, sections
// and page structures that are as a real kernel's, so far as a page filter can
// see, with a mix of anonymous memory, huge pages, page cache, free blocks and
// a few pages of the kernel's own.
package sparse

import (
	"encoding/binary"
	"fmt"
	"io"
	"math/rand/v2"

	"github.com/warmcore/warmcore/pkg/elfcore"
	"github.com/warmcore/warmcore/pkg/phys"
)

// The kernel's places, physical. All but the tiles are mapped at textBase.
const (
	topTable    = 0x100000
	imageUpper  = 0x101000 // its third level table for the image
	imageLower  = 0x102000 // second level: 1 GiB in large pages
	structUpper = 0x103000 // of the page structures: 512 times structLower
	structLower = 0x104000 // 512 large pages: the tiles, again and again
	utsName     = 0x105000
	sectionRoot = 0x110000  // mem_section: 4096 pointers
	sectionList = 0x1000000 // 512 Ki mem_sections of 32 bytes
	tilesAt     = 0x4000000

	textBase = 0xffffffff80000000
	vmemmap  = 0xffffea0000000000

	sections    = 1 << 19 // 46 bits of addresses in sections of 27 bits
	sectionSize = 32      // sizeof(struct mem_section)
	perRoot     = phys.PageSize / sectionSize

	present = 1
	large   = 0x80
)

// A tile is the page structures of a section, which fill a large page.
const (
	structSize  = 64
	tilePages   = 32 << 10
	tileSize    = tilePages * structSize
	tiles       = 4
	kernelPages = 32 // of a tile that belong to the kernel
)

// headerSize is where the memory begins in the file.
const headerSize = 4096

// Max is the largest Size of a dump in bytes.
const Max = 64 << 40

const vmcoreinfo = `OSRELEASE=6.1.0-sparse
PAGESIZE=4096
SYMBOL(init_uts_ns)=ffffffff80105000
OFFSET(uts_namespace.name)=0
SYMBOL(swapper_pg_dir)=ffffffff80100000
SYMBOL(_stext)=ffffffff80100000
SYMBOL(mem_section)=ffffffff80110000
LENGTH(mem_section)=4096
SIZE(mem_section)=32
OFFSET(mem_section.section_mem_map)=0
NUMBER(SECTION_SIZE_BITS)=27
NUMBER(MAX_PHYSMEM_BITS)=46
SIZE(page)=64
OFFSET(page.flags)=0
OFFSET(page._refcount)=52
OFFSET(page.mapping)=24
OFFSET(page.lru)=8
OFFSET(page._mapcount)=48
OFFSET(page.private)=40
OFFSET(page.compound_dtor)=16
OFFSET(page.compound_order)=17
OFFSET(page.compound_head)=8
LENGTH(zone.free_area)=11
NUMBER(PG_lru)=4
NUMBER(PG_private)=13
NUMBER(PG_swapcache)=10
NUMBER(PG_swapbacked)=19
NUMBER(PG_slab)=9
NUMBER(PG_hwpoison)=23
NUMBER(PG_head_mask)=65536
NUMBER(PAGE_BUDDY_MAPCOUNT_VALUE)=-129
NUMBER(HUGETLB_PAGE_DTOR)=2
NUMBER(PAGE_OFFLINE_MAPCOUNT_VALUE)=-257
NUMBER(phys_base)=0
NUMBER(pgtable_l5_enabled)=0
NUMBER(KERNEL_IMAGE_SIZE)=1073741824
`

var le = binary.LittleEndian

// Dump is an ELF dump. It may be read concurrently.
type Dump struct {
	size    uint64 // of memory
	header  []byte // one page: ELF header, program headers, notes
	tiles   [tiles][]byte
	content []byte // of the kernel's own pages, some of them
}

// contentPages is how many different pages of content there are.
const contentPages = 64

// New returns a dump of size bytes of memory, a multiple of 128 MiB.
func New(size uint64) (*Dump, error) {
	if size == 0 || size > Max || size%(tilePages*phys.PageSize) != 0 {
		return nil, fmt.Errorf("sparse dump of %#x bytes: want a multiple of 128 MiB up to 64 TiB", size)
	}
	d := &Dump{size: size}
	notes, err := elfcore.AppendNote(nil, elfcore.ELFNote{Name: elfcore.NameVMCoreInfo, Type: elfcore.TypeVMCoreInfo, Desc: []byte(vmcoreinfo)})
	if err != nil {
		return nil, err
	}
	h := elfcore.Header{
		Machine: elfcore.MachineAMD64,
		Notes:   []elfcore.Note{{Offset: 1024, Size: uint64(len(notes))}},
		Loads:   []elfcore.Load{{Virt: 0xffff888000000000, Offset: headerSize, Size: size}},
	}
	if d.header, err = h.AppendBinary(nil); err != nil {
		return nil, err
	}
	d.header = append(d.header, make([]byte, headerSize-len(d.header))...)
	copy(d.header[1024:], notes)
	for i := range d.tiles {
		d.tiles[i] = tile(i)
	}
	rng := rand.New(rand.NewPCG(1, 2))
	d.content = make([]byte, contentPages*phys.PageSize)
	for i := 0; i < len(d.content); i += 8 {
		switch rng.IntN(4) {
		case 0: // a pointer
			le.PutUint64(d.content[i:], 0xffff888000000000+rng.Uint64N(1<<36)&^63)
		case 1: // a small number
			le.PutUint64(d.content[i:], rng.Uint64N(256))
		}
	}
	return d, nil
}

// Size returns the size of the file in bytes.
func (d *Dump) Size() int64 { return int64(d.size) + headerSize }

// Kept is how many pages of the dump a filter of level 31 keeps.
func (d *Dump) Kept() uint64 { return d.size / phys.PageSize / tilePages * kernelPages }

// Fields of struct page.
const (
	flagsAt, headAt, orderAt, mappingAt, privateAt, mapcountAt = 0, 8, 17, 24, 40, 48

	pgLRU, pgSlab, pgHead, pgSwapBacked = 1 << 4, 1 << 9, 1 << 16, 1 << 19

	inode, anonymous = 0xffff888001234568, 0xffff888001234569
	buddy            = ^uint32(0x80)
)

// tile returns the page structures of a section: 8 Ki pages of anonymous huge
// pages, 12 Ki free ones in the largest blocks, 8 Ki of page cache, and
// anonymous pages, with the kernel's among them.
func tile(number int) []byte {
	b := make([]byte, tileSize)
	at := func(page, field int) []byte { return b[page*structSize+field:] }
	for i := range tilePages {
		le.PutUint32(at(i, mapcountAt), ^uint32(0))
	}
	page := 0
	for ; page < 8<<10; page += 512 {
		le.PutUint64(at(page, flagsAt), pgHead|pgLRU|pgSwapBacked)
		le.PutUint64(at(page, mappingAt), anonymous)
		for i := page + 1; i < page+512; i++ {
			le.PutUint64(at(i, headAt), vmemmap+uint64(page)*structSize|1)
		}
		at(page+1, orderAt)[0] = 9
	}
	for ; page < 20<<10; page += 1024 {
		le.PutUint32(at(page, mapcountAt), buddy)
		le.PutUint64(at(page, privateAt), 10)
	}
	for ; page < 28<<10; page++ {
		le.PutUint64(at(page, flagsAt), pgLRU)
		le.PutUint64(at(page, mappingAt), inode)
	}
	for ; page < tilePages; page++ {
		if i := page - 28<<10 - number*64; i >= 0 && i%64 == 0 && i < 64*kernelPages {
			le.PutUint64(at(page, flagsAt), pgSlab)
			continue
		}
		le.PutUint64(at(page, flagsAt), pgLRU|pgSwapBacked)
		le.PutUint64(at(page, mappingAt), anonymous)
	}
	return b
}

// ReadAt implements io.ReaderAt.
func (d *Dump) ReadAt(p []byte, off int64) (n int, err error) {
	if off < 0 || off > d.Size() {
		return 0, fmt.Errorf("read offset %#x: outside of the dump", off)
	}
	for n < len(p) && off < d.Size() {
		var c int
		switch addr := uint64(off) - headerSize; {
		case off < headerSize:
			c = copy(p[n:], d.header[off:])
		case addr >= tilesAt && addr < tilesAt+tiles*tileSize:
			addr -= tilesAt
			c = copy(p[n:], d.tiles[addr/tileSize][addr%tileSize:])
		default:
			c = d.page(p[n:], addr)
		}
		n += c
		off += int64(c)
	}
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

// page fills p up to the end of a page at most.
func (d *Dump) page(p []byte, addr uint64) int {
	page, in := addr&^(phys.PageSize-1), addr%phys.PageSize
	p = p[:min(uint64(len(p)), phys.PageSize-in)]
	var word func(i uint64) uint64
	switch {
	case page == topTable:
		word = func(i uint64) uint64 {
			switch {
			case i == 511:
				return imageUpper | present
			case i == 468 || i == 469: // vmemmap
				return structUpper | present
			}
			return 0
		}
	case page == imageUpper:
		word = func(i uint64) uint64 { return imageLower*b2u(i == 510) | present*b2u(i == 510) }
	case page == imageLower:
		word = func(i uint64) uint64 { return i<<21 | present | large }
	case page == structUpper:
		word = func(uint64) uint64 { return structLower | present }
	case page == structLower:
		word = func(i uint64) uint64 { return tilesAt + i%tiles*tileSize | present | large }
	case page == utsName:
		var uts [phys.PageSize]byte
		for i, name := range []string{"Linux", "sparse", "6.1.0-sparse", "#1 SMP", "x86_64", "(none)"} {
			copy(uts[i*65:], name)
		}
		return copy(p, uts[in:])
	case page >= sectionRoot && page < sectionRoot+sections/perRoot*8:
		word = func(i uint64) uint64 { return textBase + sectionList + ((page-sectionRoot)/8+i)*phys.PageSize }
	case page >= sectionList && page < sectionList+sections*sectionSize:
		first := (page - sectionList) / sectionSize
		word = func(i uint64) uint64 {
			// As many sections as there is memory, present, with a map, online.
			if i%4 == 0 && (first+i/4)*tilePages*phys.PageSize < d.size {
				return vmemmap | 7
			}
			return 0
		}
	default:
		pfn := page / phys.PageSize
		n := copy(p, d.content[pfn*2654435761>>8%contentPages*phys.PageSize+in:])
		if in == 0 && n >= 8 {
			le.PutUint64(p, pfn) // no two are the same
		}
		return n
	}
	var b [phys.PageSize]byte
	for i := range uint64(phys.PageSize / 8) {
		le.PutUint64(b[8*i:], word(i))
	}
	return copy(p, b[in:])
}

func b2u(b bool) uint64 {
	if b {
		return 1
	}
	return 0
}
