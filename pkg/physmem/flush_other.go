//go:build !amd64

package physmem

// flush has nothing to do: /dev/mem maps memory that is not the kernel's own
// without a cache on arm64 (phys_mem_access_prot in arch/arm64/mm/mmu.c, v6.12).
func flush([]byte) {}
