package physmem

// allCached is off: /dev/mem maps as Device-nGnRnE what isn't the kernel's own
// RAM (phys_mem_access_prot in arch/arm64/mm/mmu.c, v6.12).
const allCached = false

// copyThrough copies src to dst, of the same size, and to memory: a kernel is
// entered with its caches off and looks past them, and firmware writes back
// nothing at a reset.
func copyThrough(dst, src []byte, _ uint64) {
	copy(dst, src)
	flush(dst)
}

// flush writes b back from every CPU's caches to memory and drops it there (DC
// CIVAC and DSB, Arm DDI 0487; Linux lets user space do it, or does it in its
// place). It works on the address, so b may itself be mapped uncached: then
// it is for lines that another mapping, maybe of firmware, has left behind.
//
//go:noescape
func flush(b []byte)

// copyWords copies src to dst, both multiples of 8 bytes long, 8 bytes at a
// time. Of the two the one in device memory must be aligned to 8.
//
//go:noescape
func copyWords(dst, src []byte)

// copyBytes copies src to dst byte by byte.
//
//go:noescape
func copyBytes(dst, src []byte)
