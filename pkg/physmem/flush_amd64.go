package physmem

// allCached says that /dev/mem maps RAM through the caches, whoever owns it:
// the range has the type of its MTRR and no other mapping (pat_x_mtrr_type in
// arch/x86/mm/pat/memtype.c, v6.12).
const allCached = true

// flushCopies is off: what Copy leaves in the caches no reset drops that comes
// by way of the stub, and the next kernel runs with its caches on.
const flushCopies = false

// flush writes b back from every CPU's caches to memory (CLFLUSH and MFENCE,
// Intel SDM volume 2), because a reset drops what is only there.
//
//go:noescape
func flush(b []byte)
