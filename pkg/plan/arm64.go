package plan

import (
	"github.com/warmcore/warmcore/pkg/elfcore"
	"github.com/warmcore/warmcore/pkg/phys"
)

// ARM64 is arm64 with a device tree.
//
//   - Memory that is handed over is a pmem-region node. nvdimm takes its first
//     2 MiB for the info block: the rest is aligned to memremap_compat_align
//     (nd_pfn_init in drivers/nvdimm/pfn_devs.c, v6.12), unless the agent asks
//     for a larger alignment.
//   - A kernel can add no memory below the start of the RAM that it boots
//     with, rounded down to 512 MiB or 1 GiB (arch_get_mappable_range in
//     arch/arm64/mm/mmu.c, arm64_memblock_init, v6.12): hence KeepBottom.
//   - The reservation of crashkernel= is a multiple of 2 MiB (CRASH_ALIGN in
//     arch/arm64/include/asm/crash_reserve.h, v6.12).
//   - kexec writes through the running kernel's linear map, which has only its
//     own memory (arch/arm64/kernel/relocate_kernel.S, v6.12): hence KexecOwn.
//   - The size of a kernel's memory block depends on its page size
//     (SECTION_SIZE_BITS in arch/arm64/include/asm/sparsemem.h, v5.12 to
//     v6.12).
//   - /chosen linux,elfcorehdr says where the ELF core header is.
var ARM64 = Arch{
	Name:       "arm64",
	Machine:    elfcore.MachineARM64,
	Granule:    64 * phys.KiB,
	InfoBlock:  2 * phys.MiB,
	BlockSize:  128 * phys.MiB,
	KeepBottom: true,
	KexecOwn:   true,
	CPUNumber:  "number",
	kernelBlocks: [3]kernelBlock{
		{4 * phys.KiB, 128 * phys.MiB},
		{16 * phys.KiB, 128 * phys.MiB},
		{64 * phys.KiB, 512 * phys.MiB},
	},
	crashkernel: "crashkernel=2M",
	blacklist:   "kmem,dax_hmem,dax_pmem,device_dax,nd_btt,nd_pmem,of_pmem",
}
