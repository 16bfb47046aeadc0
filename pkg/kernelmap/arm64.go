package kernelmap

import (
	"errors"
	"fmt"

	"github.com/warmcore/warmcore/pkg/elfcore"
	"github.com/warmcore/warmcore/pkg/phys"
	"github.com/warmcore/warmcore/pkg/vmcoreinfo"
)

// Translation table descriptors: Arm ARM (DDI 0487), section D8.3
// ("Translation table descriptor formats").
const (
	armValid = 1 << 0
	armTable = 1 << 1 // a table, or a page at the last level
)

// arm64 is arm64. arch/arm64/kernel/vmcore_info.c (v6.12) writes what is
// particular to its VMCOREINFO.
var arm64 = arch{
	name:    "arm64",
	machine: elfcore.MachineARM64,
	mark:    "kimage_voffset",
	// __kimg_to_phys in arch/arm64/include/asm/memory.h (v6.12).
	imageOffset: func(info *vmcoreinfo.Info) uint64 { return -uint64(info.Numbers["kimage_voffset"]) },
	image: func(info *vmcoreinfo.Info, text uint64) (base, size uint64, err error) {
		bits, err := arm64Bits(info)
		if err != nil {
			return 0, 0, err
		}
		// The image lies in the vmalloc area, above the linear map. KASLR may
		// put it anywhere there.
		if start := -(uint64(1) << bits); text < start || text >= ^uint64(0)-maxKernelImage {
			return 0, 0, fmt.Errorf("symbol at %#x is outside the kernel's half", text)
		}
		return text, maxKernelImage, nil
	},
	tables: func(r vmcoreinfo.Reader, info *vmcoreinfo.Info, root uint64) (*PageTables, error) {
		bits, err := arm64Bits(info)
		if err != nil {
			return nil, err
		}
		// A kernel for 52 bits runs with fewer where the processor has fewer,
		// but its addresses stay those of 52: only the top of its linear map
		// is used then, and PHYS_OFFSET is negative (arm64_memblock_init).
		actual := bits
		if t1sz, ok := info.Numbers["TCR_EL1_T1SZ"]; ok && info.PageSize != 64<<10 {
			if actual = 64 - t1sz; actual < 36 || actual > bits {
				return nil, fmt.Errorf("NUMBER(TCR_EL1_T1SZ) is %d, and NUMBER(VA_BITS) %d", t1sz, bits)
			}
		}
		return newARM64(r, root, info.PageSize, int(actual))
	},
	directBase: func(k *kernel) (uint64, error) { return arm64DirectBase(k.info) },
	textBase:   arm64DirectBase,
	physBase:   "PHYS_OFFSET",
	// The linear map of 48 address bits, also in a kernel for 52 bits on a
	// processor with 48 (arm64_memblock_init, v6.12).
	defaultBase:  0xffff000000000000,
	defaultAlign: phys.GiB,
}

// arm64Bits is the number of address bits that the kernel is made for.
func arm64Bits(info *vmcoreinfo.Info) (int64, error) {
	bits, haveBits := info.Numbers["VA_BITS"]
	if _, haveOffset := info.Numbers["PHYS_OFFSET"]; !haveBits || !haveOffset {
		return 0, errors.New("VMCOREINFO lacks NUMBER(VA_BITS) or NUMBER(PHYS_OFFSET)")
	}
	if bits < 36 || bits > 52 {
		return 0, fmt.Errorf("NUMBER(VA_BITS) is %d, want 36 to 52", bits)
	}
	return bits, nil
}

// arm64DirectBase computes the base from the text: the linear map begins at
// PAGE_OFFSET, the lowest address of the kernel's half, and its first physical
// address is PHYS_OFFSET (arch/arm64/include/asm/memory.h, v5.4 to v6.12).
func arm64DirectBase(info *vmcoreinfo.Info) (uint64, error) {
	bits, err := arm64Bits(info)
	if err != nil {
		return 0, err
	}
	return -(uint64(1) << bits) - uint64(info.Numbers["PHYS_OFFSET"]), nil
}

// arm64Format is the format of arm64 translation tables of stage 1.
type arm64Format struct {
	page uint // log2 of the granule
	lpa2 bool // 52 bit addresses with granules of 4 and 16 KiB (TCR_EL1.DS)
}

// newARM64 returns the arm64 translation tables of the kernel's half of the
// addresses (TTBR1_EL1) whose top level lies at the physical address root,
// aligned to its size.
//
// PageSize is the granule in bytes: 4, 16 or 64 KiB. vaBits is how many
// address bits the tables resolve, 64 - TCR_EL1.T1SZ; but with 64 KiB pages it
// is the kernel's VA_BITS, because a kernel for 52 bits then keeps its full
// top table on a processor with 48 bits and points TTBR1 into the middle of
// it. 52 bits with smaller pages mean the descriptors of FEAT_LPA2: Linux
// turns on one with the other (map_kernel.c in v6.12, "arm64: Enable LPA2 at
// boot if supported by the system").
func newARM64(r vmcoreinfo.Reader, root, pageSize uint64, vaBits int) (*PageTables, error) {
	t := &PageTables{r: r, root: root, bits: uint(vaBits), cache: map[uint64][]uint64{}}
	switch pageSize {
	case 4 << 10:
		t.page = 12
	case 16 << 10:
		t.page = 14
	case 64 << 10:
		t.page = 16
	default:
		return nil, fmt.Errorf("page tables at %#x: pages of %d bytes, want 4, 16 or 64 KiB", root, pageSize)
	}
	// 36 is the least that Linux can be configured for.
	if vaBits < 36 || vaBits > 52 {
		return nil, fmt.Errorf("page tables at %#x: %d address bits, want 36 to 52", root, vaBits)
	}
	f := arm64Format{page: t.page, lpa2: vaBits == 52 && t.page < 16}
	t.format = f
	t.levels = (vaBits - 4) / int(t.page-3) // ARM64_HW_PGTABLE_LEVELS
	if root%(8*t.entries(t.levels)) != 0 || root>>52 != 0 {
		return nil, fmt.Errorf("page tables at %#x: not the address of a table", root)
	}
	return t, nil
}

func (arm64Format) lower() bool { return false }

func (a arm64Format) decode(entry uint64, level int) (addr uint64, leaf, ok bool) {
	if entry&armValid == 0 {
		return 0, false, false
	}
	low := uint64(1) << a.page
	switch {
	case a.lpa2:
		addr = entry&(1<<50-low) | entry>>8&3<<50
	case a.page == 16:
		addr = entry&(1<<48-low) | entry>>12&15<<48
	default:
		addr = entry & (1<<48 - low)
	}
	if level == 1 {
		// An entry without the bit is reserved.
		return addr, true, entry&armTable != 0
	}
	if entry&armTable != 0 {
		return addr, false, true
	}
	// A block: 2 MiB or 1 GiB, 32 MiB, 512 MiB. No Linux maps its memory
	// with the larger blocks of LPA and LPA2 (pud_sect_supported in
	// v6.12).
	size := uint64(1) << (a.page + (a.page-3)*uint(level-1))
	if level > 3 || level == 3 && a.page != 12 || addr%size != 0 {
		return 0, false, false
	}
	return addr, true, true
}
