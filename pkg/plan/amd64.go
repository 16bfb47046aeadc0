package plan

import (
	"github.com/warmcore/warmcore/pkg/elfcore"
	"github.com/warmcore/warmcore/pkg/phys"
)

// AMD64 is x86-64.
//
//   - Firmware overwrites the first MiB and kernels keep out of it: commit
//     a799c2bd29d1 ("x86/setup: Consolidate early memory reservations") (in
//     v5.13).
//   - Memory blocks may be up to 2 GiB from 64 GiB on
//     (probe_memory_block_size in arch/x86/mm/init_64.c, v6.12).
//   - Without an SRAT, a kernel knows the NUMA node of an address only up to
//     the end of the RAM that it boots with, and kmem refuses memory without a
//     node (dev_dax_kmem_probe in drivers/dax/kmem.c, v6.12): hence KeepTop.
var AMD64 = Arch{
	Name:         "amd64",
	Machine:      elfcore.MachineAMD64,
	Low:          phys.Range{Start: 0, End: phys.MiB},
	Granule:      phys.PageSize,
	BlockSize:    128 * phys.MiB,
	LargeBlock:   2 * phys.GiB,
	LargeMachine: 64 * phys.GiB,
	KeepTop:      true,
	CPUNumber:    "APIC ID",
	crashkernel:  "crashkernel=1M",
	blacklist:    "kmem,dax_hmem,device_dax",
	elfcorehdr:   true,
}
