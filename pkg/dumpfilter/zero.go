package dumpfilter

import "bytes"

var zeroes [4096]byte

// IsZero says whether all of b is zero. It stops at the first word or so that
// is not.
func IsZero(b []byte) bool {
	for ; len(b) > len(zeroes); b = b[len(zeroes):] {
		if !bytes.Equal(b[:len(zeroes)], zeroes[:]) {
			return false
		}
	}
	return bytes.Equal(b, zeroes[:len(b)])
}
