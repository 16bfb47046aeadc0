//go:build !amd64 && !arm64

package physmem

// Other architectures build this and use none of it.
const allCached = false

func flush([]byte) {}

func copyThrough(dst, src []byte, _ uint64) { copy(dst, src) }
