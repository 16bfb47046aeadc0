//go:build !arm64

package physmem

import "encoding/binary"

// On architectures other than arm64 only tests use these.

// copyWords copies src to dst, both multiples of 8 bytes long, 8 bytes at a
// time.
func copyWords(dst, src []byte) {
	for i := 0; i < len(src); i += 8 {
		binary.NativeEndian.PutUint64(dst[i:], binary.NativeEndian.Uint64(src[i:]))
	}
}

// copyBytes copies src to dst.
func copyBytes(dst, src []byte) { copy(dst, src) }
