package vmcoreinfo

import (
	"bytes"
	"errors"
	"fmt"

	"github.com/warmcore/warmcore/pkg/phys"
)

// Fixed points of the x86-64 kernel's address space
// (Documentation/arch/x86/x86_64/mm.rst and
// arch/x86/include/asm/page_64_types.h in v6.12).
const (
	startKernelMap = 0xffffffff80000000 // __START_KERNEL_map
	// __PAGE_OFFSET_BASE_L4 and _L5: the lowest address at which the direct
	// map can begin. The slot below is the LDT remap of page table isolation,
	// 16 slots more are a hypervisor's.
	directBase4 = 0xffff888000000000
	directBase5 = 0xff11000000000000
	// directEnd is where the direct map, vmalloc and vmemmap must end
	// (CPU_ENTRY_AREA_BASE, vaddr_end in arch/x86/mm/kaslr.c).
	directEnd = 0xfffffe0000000000
	// directAlign is PUD_SIZE, the step in which KASLR moves the direct map.
	directAlign = phys.GiB
	// maxKernelImage is the largest KERNEL_IMAGE_SIZE; behind it are modules.
	maxKernelImage = phys.GiB
)

// Mapping is where a kernel mapped its memory, for p_vaddr of a dump. Unit:
// bytes.
type Mapping struct {
	DirectBase uint64 // virtual address of physical 0 in the direct map
	TextVirt   uint64 // virtual address of the kernel's image
	TextPhys   uint64 // physical address of the same
	TextSize   uint64 // whole pages, from _stext to the last one mapped
}

// ErrStale: the page tables that VMCOREINFO names are not those of the kernel
// that wrote it. It is what an earlier boot left and a later one overwrote in
// part, or a forgery. What an earlier boot left whole can't be told from the
// crashed kernel's own; see Find.
var ErrStale = errors.New("page tables don't belong to this VMCOREINFO")

// KernelMapping derives the mapping of an x86-64 kernel from its VMCOREINFO
// and its page tables. Three things must agree, or the error is ErrStale: the
// top table maps its own address to itself, it maps the text where the text
// says, and the release in init_uts_ns is the one in the text. The direct
// map's base is nowhere in the text (v6.1 doesn't even print VMALLOC_START):
// it is the first mapping in the kernel's half, because KASLR keeps the
// order direct map, vmalloc, vmemmap (kaslr_regions in arch/x86/mm/kaslr.c),
// and it must map the top table and the text too.
func KernelMapping(r Reader, info *Info) (Mapping, error) {
	m, err := kernelMapping(r, info)
	if err != nil {
		return Mapping{}, fmt.Errorf("find mapping of kernel %s: %w", info.Release, err)
	}
	return m, nil
}

func kernelMapping(r Reader, info *Info) (Mapping, error) {
	k, err := newKernel(r, info)
	if err != nil {
		return Mapping{}, err
	}
	if err := k.checkLive(info); err != nil {
		return Mapping{}, err
	}
	base, err := k.directBase()
	if err != nil {
		return Mapping{}, err
	}
	size, err := k.textSize()
	if err != nil {
		return Mapping{}, err
	}
	return Mapping{DirectBase: base, TextVirt: k.text, TextPhys: k.symbolPhys(k.text), TextSize: size}, nil
}

// kernel is what the text says about addresses.
type kernel struct {
	r         Reader
	tables    *PageTables
	levels    int
	physBase  uint64 // wraps: phys_base is negative if the kernel runs below its link address
	root      uint64 // virtual address of swapper_pg_dir
	text      uint64 // virtual address of the page of _stext
	imageSize uint64
}

// symbolPhys is __phys_addr_symbol (arch/x86/mm/physaddr.c).
func (k *kernel) symbolPhys(virt uint64) uint64 { return virt - startKernelMap + k.physBase }

func newKernel(r Reader, info *Info) (*kernel, error) {
	k := &kernel{r: r, levels: 4, imageSize: maxKernelImage}
	root, haveRoot := info.Symbols["swapper_pg_dir"]
	stext, haveText := info.Symbols["_stext"]
	base, haveBase := info.Numbers["phys_base"]
	if !haveRoot || !haveText || !haveBase {
		return nil, fmt.Errorf("VMCOREINFO lacks SYMBOL(swapper_pg_dir), SYMBOL(_stext) or NUMBER(phys_base)")
	}
	if info.Numbers["pgtable_l5_enabled"] != 0 {
		k.levels = 5
	}
	k.root, k.text, k.physBase = root, phys.AlignDown(stext, phys.PageSize), uint64(base)
	if size := uint64(info.Numbers["KERNEL_IMAGE_SIZE"]); size > 0 && size <= maxKernelImage && size%phys.PageSize == 0 {
		k.imageSize = size
	}
	for _, virt := range []uint64{k.root, k.text} {
		if virt < startKernelMap || virt-startKernelMap >= k.imageSize {
			return nil, fmt.Errorf("symbol at %#x is outside the kernel's image", virt)
		}
	}
	var err error
	if k.tables, err = NewX86(r, k.symbolPhys(k.root), k.levels); err != nil {
		return nil, err
	}
	// With memory encryption the C-bit of an entry is no address bit
	// (arch/x86/kernel/vmcore_info_64.c exports sme_me_mask for this).
	k.tables.mask &^= uint64(info.Numbers["sme_mask"])
	return k, nil
}

// maps says whether virt is mapped to want.
func (k *kernel) maps(virt, want uint64) (bool, error) {
	got, ok, err := k.tables.Translate(virt)
	return ok && got == want, err
}

// utsRelease is the offset of release in struct new_utsname: behind sysname
// and nodename, 65 bytes each (include/uapi/linux/utsname.h).
const utsRelease = 2 * 65

// checkLive says ErrStale unless memory still agrees with the text.
func (k *kernel) checkLive(info *Info) error {
	for _, virt := range []uint64{k.root, k.text} {
		ok, err := k.maps(virt, k.symbolPhys(virt))
		if err != nil {
			return err
		}
		if !ok {
			return fmt.Errorf("%#x is not mapped to %#x: %w", virt, k.symbolPhys(virt), ErrStale)
		}
	}
	uts, have := info.Symbols["init_uts_ns"]
	if !have {
		return nil
	}
	want := append([]byte(info.Release), 0)
	got := make([]byte, min(len(want), 65))
	if err := k.r.ReadPhys(got, k.symbolPhys(uts+info.Offsets["uts_namespace.name"]+utsRelease)); err != nil {
		return fmt.Errorf("read init_uts_ns: %w", err)
	}
	if !bytes.Equal(got, want) {
		return fmt.Errorf("init_uts_ns is of release %q: %w", got, ErrStale)
	}
	return nil
}

// directBase returns the virtual address of physical 0 in the direct map.
func (k *kernel) directBase() (uint64, error) {
	start := uint64(directBase4)
	if k.levels == 5 {
		start = directBase5
	}
	var first leaf
	err := k.tables.walk(start, directEnd-1, func(l leaf) bool {
		first = l
		return false
	})
	if err != nil {
		return 0, err
	}
	if first.size == 0 {
		return 0, fmt.Errorf("no direct map in the page tables: %w", ErrStale)
	}
	base := first.virt - first.phys
	if base%directAlign != 0 || base < start {
		return 0, fmt.Errorf("direct map would begin at %#x, as %#x is mapped to %#x", base, first.virt, first.phys)
	}
	// The pages next to the first one, and two known ones elsewhere.
	err = k.tables.walk(first.virt, first.virt|(directAlign-1), func(l leaf) bool {
		if l.virt-l.phys != base {
			first = l
			return false
		}
		return true
	})
	if err != nil {
		return 0, err
	}
	if first.virt-first.phys != base {
		return 0, fmt.Errorf("direct map at %#x is not linear: %#x is mapped to %#x", base, first.virt, first.phys)
	}
	for _, virt := range []uint64{k.root, k.text} {
		want := k.symbolPhys(virt)
		ok, err := k.maps(base+want, want)
		if err != nil {
			return 0, err
		}
		if !ok {
			return 0, fmt.Errorf("direct map at %#x doesn't map %#x", base, want)
		}
	}
	return base, nil
}

// textSize returns the number of bytes from _stext to the end of the image:
// the last page before the modules that is mapped where the image is. Holes
// are skipped: with page table isolation, init sections are unmapped once
// they are freed (free_kernel_image_pages in arch/x86/mm/init.c), and .bss
// lies behind them.
func (k *kernel) textSize() (uint64, error) {
	end, limit := k.text, startKernelMap+k.imageSize
	err := k.tables.walk(k.text, limit-1, func(l leaf) bool {
		if l.phys != k.symbolPhys(l.virt) {
			return false
		}
		end = min(l.virt+l.size, limit)
		return true
	})
	return end - k.text, err
}
