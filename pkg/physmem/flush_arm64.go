package physmem

// allCached is off: /dev/mem maps memory that isn't the kernel's own RAM as
// Device-nGnRnE (phys_mem_access_prot in arch/arm64/mm/mmu.c, v6.12).
const allCached = false

// copyThrough copies src to dst, which has the same size, and writes it back
// to memory: the next kernel is entered with caches off and doesn't see their
// contents, and firmware writes nothing back at a reset.
func copyThrough(dst, src []byte, _ uint64) {
	copy(dst, src)
	flush(dst)
}

// flush writes b back from every CPU's caches to memory and drops it there (DC
// CIVAC and DSB, Arm DDI 0487; Linux lets user space do it, or does it on its
// behalf). It works by address, so b may itself be mapped uncached: flush is
// then for cache lines that another mapping, maybe firmware's, has left.
//
//go:noescape
func flush(b []byte)

// copyWords copies src to dst, both multiples of 8 bytes long, 8 bytes at a
// time. Whichever of them is in device memory must be aligned to 8.
//
//go:noescape
func copyWords(dst, src []byte)

// copyBytes copies src to dst byte by byte.
//
//go:noescape
func copyBytes(dst, src []byte)
