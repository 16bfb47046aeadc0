package dumpfilter_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/warmcore/warmcore/pkg/dumpfilter"
	"github.com/warmcore/warmcore/pkg/phys"
	"github.com/warmcore/warmcore/pkg/vmcoreinfo"
)

var errHole = errors.New("no RAM here")

// memory is sparse: pages that nobody wrote are zero. It counts reads.
type memory struct {
	ram   phys.Set
	holes phys.Set
	pages map[uint64]*[phys.PageSize]byte
	reads int
}

func (m *memory) ReadPhys(p []byte, addr uint64) error {
	m.reads++
	r, ok := phys.Sized(addr, uint64(len(p)))
	if !ok || !m.ram.Contains(r) || m.holes.Overlaps(r) {
		// What p holds then is anything: say, anonymous pages.
		for i := range p {
			p[i] = 0
			if (addr+uint64(i))%structSize == mappingAt {
				p[i] = 1
			}
		}
		return errHole
	}
	m.each(p, addr, func(in []byte, page *[phys.PageSize]byte, at uint64) {
		if page == nil {
			clear(in)
			return
		}
		copy(in, page[at:])
	})
	return nil
}

func (m *memory) write(addr uint64, p []byte) {
	for a := phys.AlignDown(addr, phys.PageSize); a < addr+uint64(len(p)); a += phys.PageSize {
		if m.pages[a] == nil {
			m.pages[a] = new([phys.PageSize]byte)
		}
	}
	m.each(p, addr, func(in []byte, page *[phys.PageSize]byte, at uint64) { copy(page[at:], in) })
}

func (m *memory) each(p []byte, addr uint64, f func(in []byte, page *[phys.PageSize]byte, at uint64)) {
	for len(p) > 0 {
		at := addr % phys.PageSize
		n := min(uint64(len(p)), phys.PageSize-at)
		f(p[:n], m.pages[addr-at], at)
		p, addr = p[n:], addr+n
	}
}

func (m *memory) put64(addr, v uint64) {
	m.write(addr, binary.LittleEndian.AppendUint64(nil, v))
}

func (m *memory) get64(addr uint64) uint64 {
	var b [8]byte
	m.each(b[:], addr, func(in []byte, page *[phys.PageSize]byte, at uint64) {
		if page != nil {
			copy(in, page[at:])
		}
	})
	return binary.LittleEndian.Uint64(b[:])
}

// machine is where a kernel keeps its tables.
type machine struct {
	name         string
	page         uint // log2 of the page size
	bits         uint // address bits that the tables resolve
	level        int  // of the leaves that map the page structures: 1 or 2
	sectionBits  uint
	physBits     uint
	static       bool // a table of mem_sections, not of pages of them
	arm          bool
	text, direct uint64 // virtual addresses of physical 0 in the image's mapping and the direct map
	vmemmap      uint64
	numbers      string
}

const (
	rootAt    = 0x100000 // physical: swapper_pg_dir
	sectionAt = 0x200000 // the mem_section table, and after it its pages
	tablesAt  = 0x400000 // page tables
	structsAt = 0x2000000
)

var machines = []machine{
	{name: "x86 4 levels", page: 12, bits: 48, level: 2, sectionBits: 27, physBits: 46, text: 0xffffffff80000000, direct: 0xffff888000000000, vmemmap: 0xffffea0000000000, numbers: "NUMBER(phys_base)=0\nNUMBER(pgtable_l5_enabled)=0\n"},
	{name: "x86 5 levels", page: 12, bits: 57, level: 2, sectionBits: 27, physBits: 52, text: 0xffffffff80000000, direct: 0xff11000000000000, vmemmap: 0xffd4000000000000, numbers: "NUMBER(phys_base)=0\nNUMBER(pgtable_l5_enabled)=1\n"},
	{name: "x86 small pages, static table", page: 12, bits: 48, level: 1, sectionBits: 27, physBits: 36, static: true, text: 0xffffffff80000000, direct: 0xffff888000000000, vmemmap: 0xffffea0000000000, numbers: "NUMBER(phys_base)=0\nNUMBER(pgtable_l5_enabled)=0\n"},
	{name: "arm64 4K 39 bits", arm: true, page: 12, bits: 39, level: 2, sectionBits: 27, physBits: 48, text: 0xffffffc008000000, direct: 0xffffff8000000000, vmemmap: 0xfffffffe00000000, numbers: "NUMBER(VA_BITS)=39\nNUMBER(TCR_EL1_T1SZ)=0x19\n"},
	{name: "arm64 4K 48 bits", arm: true, page: 12, bits: 48, level: 2, sectionBits: 27, physBits: 48, text: 0xffff800080000000, direct: 0xffff000000000000, vmemmap: 0xfffffdffc0000000, numbers: "NUMBER(VA_BITS)=48\nNUMBER(TCR_EL1_T1SZ)=0x10\n"},
	{name: "arm64 4K 52 bits", arm: true, page: 12, bits: 52, level: 2, sectionBits: 27, physBits: 52, text: 0xffff800080000000, direct: 0xfff0000000000000, vmemmap: 0xffffffffc0000000, numbers: "NUMBER(VA_BITS)=52\nNUMBER(TCR_EL1_T1SZ)=0xc\n"},
	{name: "arm64 16K 47 bits", arm: true, page: 14, bits: 47, level: 1, sectionBits: 27, physBits: 48, text: 0xffffc00080000000, direct: 0xffff800000000000, vmemmap: 0xfffffdffc0000000, numbers: "NUMBER(VA_BITS)=47\nNUMBER(TCR_EL1_T1SZ)=0x11\n"},
	{name: "arm64 64K 52 bits", arm: true, page: 16, bits: 52, level: 1, sectionBits: 29, physBits: 52, text: 0xffff800080000000, direct: 0xfff0000000000000, vmemmap: 0xffffffffc0000000, numbers: "NUMBER(VA_BITS)=52\nNUMBER(TCR_EL1_T1SZ)=0xc\n"},
}

// encoding is how a kernel writes its page structures.
type encoding struct {
	name string
	keys string
	// tail is where the first tail keeps the order and the mark of hugetlb.
	order, dtor int    // offsets from the first tail's structure
	orderFlags  bool   // the order is the low byte of the flags
	hugetlbFlag uint64 // in the first tail's flags
	slabFlag    uint64
	types       map[string]uint32
}

const flags61 = "NUMBER(PG_lru)=4\nNUMBER(PG_private)=13\nNUMBER(PG_swapcache)=10\nNUMBER(PG_swapbacked)=19\nNUMBER(PG_hwpoison)=23\nNUMBER(PG_head_mask)=65536\n"

var encodings = []encoding{
	{
		name:  "5.10 to 6.2",
		keys:  "NUMBER(PG_slab)=9\nOFFSET(page.compound_dtor)=16\nOFFSET(page.compound_order)=17\nNUMBER(HUGETLB_PAGE_DTOR)=2\n",
		order: 17, dtor: 16, slabFlag: 1 << 9,
		types: map[string]uint32{"BUDDY": ^uint32(0x80), "OFFLINE": ^uint32(0x100)},
	},
	{
		name:  "6.3 to 6.5",
		keys:  "NUMBER(PG_slab)=9\nOFFSET(folio._folio_dtor)=80\nOFFSET(folio._folio_order)=81\nNUMBER(HUGETLB_PAGE_DTOR)=1\n",
		order: 17, dtor: 16, slabFlag: 1 << 9,
		types: map[string]uint32{"BUDDY": ^uint32(0x80), "OFFLINE": ^uint32(0x100)},
	},
	{
		name:       "6.6 to 6.8",
		keys:       "NUMBER(PG_slab)=9\nNUMBER(PG_hugetlb)=8\n",
		orderFlags: true, hugetlbFlag: 1 << 8, slabFlag: 1 << 9,
		types: map[string]uint32{"BUDDY": ^uint32(0x80), "OFFLINE": ^uint32(0x100)},
	},
	{
		name:       "6.9",
		keys:       "NUMBER(PG_slab)=9\n",
		orderFlags: true, slabFlag: 1 << 9,
		types: map[string]uint32{"BUDDY": ^uint32(0x80), "OFFLINE": ^uint32(0x100), "HUGETLB": ^uint32(0x800)},
	},
	{
		name:       "6.10",
		orderFlags: true,
		types:      map[string]uint32{"BUDDY": ^uint32(0x80), "OFFLINE": ^uint32(0x100), "HUGETLB": ^uint32(0x800), "SLAB": ^uint32(0x1000)},
	},
	{
		name:       "6.11",
		orderFlags: true,
		types:      map[string]uint32{"BUDDY": ^uint32(0x40000000), "OFFLINE": ^uint32(0x20000000), "HUGETLB": ^uint32(0x04000000), "SLAB": ^uint32(0x02000000)},
	},
	{
		name:       "6.12",
		orderFlags: true,
		types:      map[string]uint32{"BUDDY": 0xf0 << 24, "OFFLINE": 0xf1 << 24, "HUGETLB": 0xf4 << 24, "SLAB": 0xf5 << 24, "UNACCEPTED": 0xf7 << 24},
	},
}

const (
	lru        = 1 << 4
	private    = 1 << 13
	swapCache  = 1 << 10
	swapBacked = 1 << 19
	poisoned   = 1 << 23
	head       = 1 << 16

	structSize                                        = 64
	flagsAt, headAt, mappingAt, privateAt, mapcountAt = 0, 8, 24, 40, 48
	inode, anonymous                                  = 0xffff888001234568, 0xffff888001234569
)

// kernel is a crashed kernel whose memory has nothing but what the filter
// reads.
type kernel struct {
	*memory
	machine
	encoding
	text string
	next uint64 // free page for tables
}

// count returns how many pages the RAM of a test has: four sections.
func (m machine) count() uint64 { return 4 << (m.sectionBits - m.page) }

// pieces returns how many pieces of physical memory hold the page structures:
// two leaves of the page tables each.
func (m machine) pieces() int {
	leaf := m.page + (m.page-3)*uint(m.level-1)
	return int(m.count() * structSize >> leaf / 2)
}

func newKernel(m machine, e encoding) *kernel {
	k := &kernel{
		memory:   &memory{pages: map[uint64]*[phys.PageSize]byte{}, ram: phys.Set{{Start: 0, End: m.count() << m.page}}},
		machine:  m,
		encoding: e,
		next:     tablesAt,
	}
	pageSize := uint64(1) << m.page
	sections := uint64(1) << (m.physBits - m.sectionBits)
	perRoot := pageSize / 32
	length := (sections + perRoot - 1) / perRoot
	entries := uint64(sectionAt) // mem_sections of the first page of them
	if m.static {
		length = sections
	} else {
		entries = sectionAt + 0x100000
		k.put64(sectionAt, m.direct+entries)
	}
	leaf := uint64(1) << (m.page + (m.page-3)*uint(m.level-1))
	perSection := structSize << (m.sectionBits - m.page)
	for s := range uint64(4) {
		k.put64(entries+32*s+8, m.vmemmap|sectionPresent|sectionHasMap|sectionOnline|8)
		for at := uint64(0); at < uint64(perSection); at += leaf {
			// Sections lie apart, and so do every two leaves of one.
			to := structsAt + s*3*max(leaf, uint64(perSection)) + (at/leaf*3/2)*leaf
			k.mapLeaf(m.vmemmap+s*uint64(perSection)+at, to, m.level)
		}
	}
	for at := uint64(0); at < 0x400000; at += pageSize {
		k.mapLeaf(m.direct+at, at, 1)
	}
	k.text = fmt.Sprintf("OSRELEASE=%s\nPAGESIZE=%d\n"+
		"SYMBOL(swapper_pg_dir)=%x\nSYMBOL(_stext)=%x\nSYMBOL(mem_section)=%x\nLENGTH(mem_section)=%d\nSIZE(mem_section)=32\n"+
		"OFFSET(mem_section.section_mem_map)=8\nNUMBER(SECTION_SIZE_BITS)=%d\nNUMBER(MAX_PHYSMEM_BITS)=%d\nSIZE(page)=%d\n"+
		"OFFSET(page.flags)=0\nOFFSET(page.compound_head)=8\nOFFSET(page.mapping)=24\nOFFSET(page.private)=40\nOFFSET(page._mapcount)=48\nLENGTH(zone.free_area)=11\n",
		e.name, pageSize, m.text+rootAt, m.text+rootAt, m.direct+sectionAt, length, m.sectionBits, m.physBits, structSize) + flags61 + e.keys + m.numbers
	if m.arm {
		k.text += fmt.Sprintf("NUMBER(PHYS_OFFSET)=0x0\nNUMBER(kimage_voffset)=0x%x\n", m.text)
	}
	for _, name := range slices.Sorted(maps.Keys(e.types)) {
		k.text += fmt.Sprintf("NUMBER(PAGE_%s_MAPCOUNT_VALUE)=%d\n", name, int32(e.types[name]))
	}
	return k
}

// Bits of section_mem_map (include/linux/mmzone.h, v6.12).
const (
	sectionPresent = 1 << iota
	sectionHasMap
	sectionOnline
)

// mapLeaf maps one page, of the level, in tables of the machine's form.
func (k *kernel) mapLeaf(virt, to uint64, level int) {
	table, leaf, page := uint64(0x63), uint64(0x1e3), uint64(0x163)
	if k.arm {
		table, leaf, page = 3, 0x405, 0x407 // no shareability: with LPA2 that is two address bits
	}
	perTable := k.page - 3
	levels := int((k.bits - k.page + perTable - 1) / perTable)
	at := uint64(rootAt)
	for l := levels; ; l-- {
		shift := k.page + perTable*uint(l-1)
		index := virt >> shift & (1<<perTable - 1)
		if l == levels {
			index = virt >> shift & (1<<min(perTable, k.bits-shift) - 1)
		}
		entry := at + index*8
		if l == level {
			if l > 1 {
				page = leaf
			}
			k.put64(entry, to|page)
			return
		}
		if k.get64(entry) == 0 {
			k.put64(entry, k.next|table)
			k.next += 1 << k.page
		}
		at = k.get64(entry) &^ (1<<k.page - 1)
	}
}

// at returns where the structure of a page lies.
func (k *kernel) at(pfn uint64) uint64 {
	leaf := uint64(1) << (k.page + (k.page-3)*uint(k.level-1))
	perSection := uint64(structSize) << (k.sectionBits - k.page)
	off := pfn * structSize % perSection
	section := pfn * structSize / perSection
	return structsAt + section*3*max(leaf, perSection) + (off/leaf*3/2)*leaf + off%leaf
}

func (k *kernel) set(pfn, field, v uint64) { k.put64(k.at(pfn)+field, v) }

func (k *kernel) setType(pfn uint64, t uint32) {
	k.set(pfn, mapcountAt, uint64(t)|1<<32) // _refcount is after it
}

// setTypeData is setType with bits that belong to whoever owns the page, if
// the type leaves any.
func (k *kernel) setTypeData(pfn uint64, t uint32) {
	switch {
	case t&0xffffff == 0:
		t |= 0xffffff
	case t&0xffff == 0xffff:
		t ^= 0x1234
	}
	k.setType(pfn, t)
}

// single makes a page of order 0 that is mapped or cached.
func (k *kernel) single(pfn, flags, mapping uint64) {
	k.set(pfn, flagsAt, flags)
	k.set(pfn, mappingAt, mapping)
	k.setType(pfn, ^uint32(0))
}

func (k *kernel) free(pfn, order uint64) {
	k.setType(pfn, k.types["BUDDY"])
	k.set(pfn, privateAt, order)
}

func (k *kernel) compound(pfn uint64, order uint, flags, mapping uint64) {
	// What lies in a tail is somebody else's, and must not be taken for a page
	// of its own.
	var tail [structSize]byte
	binary.LittleEndian.PutUint64(tail[headAt:], k.vmemmap+pfn*structSize+1)
	binary.LittleEndian.PutUint64(tail[mappingAt:], 0xdead000000000401)
	binary.LittleEndian.PutUint32(tail[mapcountAt:], ^uint32(0))
	page := bytes.Repeat(tail[:], int(phys.PageSize/structSize))
	for i := uint64(0); i < 1<<order; {
		n := min(1<<order-i, uint64(len(page))/structSize-(pfn+i)%(uint64(len(page))/structSize))
		k.write(k.at(pfn+i), page[:n*structSize])
		i += n
	}
	k.set(pfn, headAt, 0)
	k.single(pfn, flags|head, mapping)
	if k.orderFlags {
		k.set(pfn+1, flagsAt, uint64(order))
		return
	}
	b := k.get64(k.at(pfn+1) + 16)
	k.set(pfn+1, 16, b&^0xff00|uint64(order)<<8)
}

func (k *kernel) hugetlb(pfn uint64, order uint) {
	k.compound(pfn, order, 0, inode)
	switch {
	case k.types["HUGETLB"] != 0:
		k.setTypeData(pfn, k.types["HUGETLB"])
	case k.hugetlbFlag != 0:
		k.set(pfn+1, flagsAt, k.get64(k.at(pfn+1))|k.hugetlbFlag)
	default:
		dtor := uint64(2)
		if strings.Contains(k.keys, "DTOR)=1") {
			dtor = 1
		}
		k.set(pfn+1, 16, k.get64(k.at(pfn+1)+16)&^0xff|dtor)
	}
}

// slab makes a slab, whose mapping field looks like an anonymous page's and
// whose _mapcount, if its kind of page has no type, like another type.
func (k *kernel) slab(pfn uint64, order uint, other string) {
	k.compound(pfn, order, k.slabFlag, anonymous)
	if t := k.types["SLAB"]; t != 0 {
		k.setTypeData(pfn, t)
	} else {
		k.setType(pfn, k.types[other])
	}
}

func (k *kernel) info(t testing.TB) *vmcoreinfo.Info {
	t.Helper()
	info, err := vmcoreinfo.Parse([]byte(k.text))
	if err != nil {
		t.Fatal(err)
	}
	return info
}

func (k *kernel) filter(t testing.TB, level dumpfilter.Level) *dumpfilter.Filter {
	t.Helper()
	f, err := dumpfilter.New(k, k.info(t), k.ram, level)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// shareTails maps all page structures of a hugetlb page, but the first page
// of them, to that one, as the kernel does with hugetlb_free_vmemmap=on. Its
// first structure then looks like a head again and again.
func (k *kernel) shareTails(pfn uint64, order uint) {
	perPage := uint64(1) << k.page / structSize
	first := k.at(pfn)
	for i := perPage; i < 1<<order; i += perPage {
		k.mapLeaf(k.vmemmap+(pfn+i)*structSize, first, 1)
	}
}
