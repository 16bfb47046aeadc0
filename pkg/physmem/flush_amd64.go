package physmem

// flush writes b back from every CPU's caches to memory (CLFLUSH and MFENCE,
// Intel SDM volume 2), because a reset drops what is only there.
//
//go:noescape
func flush(b []byte)
