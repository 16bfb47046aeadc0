package physmem

import "golang.org/x/sys/cpu"

// allCached says that /dev/mem maps all RAM through the caches, whether or not
// the kernel uses it: the range has the type of its MTRR and no other mapping
// (pat_x_mtrr_type in arch/x86/mm/pat/memtype.c, v6.12).
const allCached = true

// lineSize is the size of a cache line, and the unit of stream, in bytes.
const lineSize = 64

// Features of the CPU that not every x86-64 CPU has.
var (
	flushOpt = hasFlushOpt()  // CLFLUSHOPT, several of which run at once
	useAVX   = cpu.X86.HasAVX // and the kernel saves its registers: stores of 32 bytes
)

func hasFlushOpt() bool

// flush writes b back from every CPU's caches to memory (CLFLUSHOPT, or
// CLFLUSH on CPUs before 2015, and MFENCE; Intel SDM volume 2), because a
// reset drops what is only in the caches.
//
//go:noescape
func flush(b []byte)

// stream fills dst, a number of whole lines, from the start of src, past the
// caches (MOVNTDQ and SFENCE). With AVX that is faster than copy, without it
// 0.9 times as fast. A line of dst that is in a cache is dropped there (AMD
// APM volume 2, "Write-Combining"; Intel SDM volume 1, section 10.4.6.2).
//
//go:noescape
func stream(dst, src []byte)

// copyThrough copies src to dst, which has the same size and the address at,
// and writes it back to memory, so that it survives a reset.
func copyThrough(dst, src []byte, at uint64) {
	head, lines := split(at, uint64(len(dst)), lineSize)
	copy(dst[:head], src)
	flush(dst[:head])
	stream(dst[head:head+lines], src[head:])
	copy(dst[head+lines:], src[head+lines:])
	flush(dst[head+lines:])
}
