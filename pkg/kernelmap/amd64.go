package kernelmap

import (
	"fmt"

	"github.com/warmcore/warmcore/pkg/elfcore"
	"github.com/warmcore/warmcore/pkg/phys"
	"github.com/warmcore/warmcore/pkg/vmcoreinfo"
)

// Page table entries: Intel SDM volume 3, section 4.5 ("4-level paging and
// 5-level paging").
const (
	amd64Present = 1 << 0
	amd64Large   = 1 << 7 // PS, in the tables of 1 GiB and 2 MiB pages
	amd64Addr    = 1<<52 - 1<<12
)

// Fixed points of the x86-64 kernel's address space
// (Documentation/arch/x86/x86_64/mm.rst and
// arch/x86/include/asm/page_64_types.h in v6.12).
const (
	startKernelMap = 0xffffffff80000000 // __START_KERNEL_map
	// __PAGE_OFFSET_BASE_L4 and _L5: the lowest address at which the
	// direct map can begin. The slot below it is the LDT remap of page
	// table isolation, and the 16 slots below that are reserved for a
	// hypervisor.
	directBase4 = 0xffff888000000000
	directBase5 = 0xff11000000000000
	// directEnd is where the direct map, vmalloc and vmemmap must end
	// (CPU_ENTRY_AREA_BASE, vaddr_end in arch/x86/mm/kaslr.c).
	directEnd = 0xfffffe0000000000
	// directAlign is PUD_SIZE, the step in which KASLR moves the direct map.
	directAlign = phys.GiB
)

// amd64 is x86-64.
var amd64 = arch{
	name:    "amd64",
	machine: elfcore.MachineAMD64,
	mark:    "phys_base",
	// phys_base is negative if the kernel runs below its link address
	// (__phys_addr_symbol in arch/x86/mm/physaddr.c, v6.12).
	imageOffset: func(info *vmcoreinfo.Info) uint64 {
		return uint64(info.Numbers["phys_base"]) - startKernelMap
	},
	image: func(info *vmcoreinfo.Info, _ uint64) (base, size uint64, err error) {
		size = maxKernelImage
		if n := uint64(info.Numbers["KERNEL_IMAGE_SIZE"]); n > 0 && n <= maxKernelImage && n%phys.PageSize == 0 {
			size = n
		}
		return startKernelMap, size, nil
	},
	tables: func(r vmcoreinfo.Reader, info *vmcoreinfo.Info, root uint64) (*PageTables, error) {
		levels := 4
		if info.Numbers["pgtable_l5_enabled"] != 0 {
			levels = 5
		}
		// With memory encryption the C-bit of an entry is not an
		// address bit (arch/x86/kernel/vmcore_info_64.c exports
		// sme_me_mask for this).
		return newAMD64(r, root, levels, uint64(info.Numbers["sme_mask"]))
	},
	directBase:   amd64DirectBase,
	physBase:     "phys_base",
	defaultBase:  directBase4,
	defaultAlign: 1 << 63, // rounds every start of RAM down to 0
}

// amd64Format is the format of x86-64 page tables.
type amd64Format struct {
	mask uint64 // the bits of an entry that hold an address
}

// newAMD64 returns the x86-64 page tables whose top level is at the physical
// address root, page aligned. levels is 4 or 5. encrypt is the bit of an entry
// that marks encrypted memory and is not part of the address; 0 without memory
// encryption.
func newAMD64(r vmcoreinfo.Reader, root uint64, levels int, encrypt uint64) (*PageTables, error) {
	if levels != 4 && levels != 5 {
		return nil, fmt.Errorf("page tables at %#x: %d levels, want 4 or 5", root, levels)
	}
	if root%phys.PageSize != 0 || root&^uint64(amd64Addr) != 0 {
		return nil, fmt.Errorf("page tables at %#x: not the address of a page", root)
	}
	return &PageTables{
		r: r, root: root, levels: levels,
		format: amd64Format{amd64Addr &^ encrypt},
		bits:   uint(12 + 9*levels),
		page:   12,
		cache:  map[uint64][]uint64{},
	}, nil
}

func (amd64Format) lower() bool { return true }

func (x amd64Format) decode(entry uint64, level int) (addr uint64, leaf, ok bool) {
	if entry&amd64Present == 0 {
		return 0, false, false
	}
	addr = entry & x.mask
	if level == 1 {
		return addr, true, true
	}
	if entry&amd64Large == 0 {
		return addr, false, true
	}
	// Bit 12 is PAT in a large page, the bits above it must be 0.
	addr &^= 1 << 12
	if level > 3 || addr%(1<<(12+9*(level-1))) != 0 {
		return 0, false, false
	}
	return addr, true, true
}

// amd64DirectBase finds the direct map. The text doesn't say where it is (v6.1
// doesn't even print VMALLOC_START), but it is the first mapping in the
// kernel's half of the addresses, because KASLR keeps the order direct map,
// vmalloc, vmemmap (kaslr_regions in arch/x86/mm/kaslr.c).
func amd64DirectBase(k *kernel) (uint64, error) {
	start := uint64(directBase4)
	if k.tables.levels == 5 {
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
	// The pages next to the first one.
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
	return base, nil
}
