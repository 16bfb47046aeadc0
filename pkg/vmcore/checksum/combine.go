package checksum

import "hash/crc32"

// Sums of concatenated bytes are computed from the sums of the parts: a CRC is
// a remainder of polynomials over GF(2), and appending n zero bits to a message
// multiplies it by x^n. Polynomials are in the bit order of the CRC: bit 31 is
// x^0 (as in zlib's crc32_combine).
const one = 1 << 31

// multiply returns a*b modulo the CRC's polynomial.
func multiply(a, b uint32) (product uint32) {
	for m := uint32(one); a != 0; m >>= 1 {
		if a&m != 0 {
			product ^= b
			a ^= m
		}
		if b&1 != 0 {
			b = b>>1 ^ crc32.Castagnoli
		} else {
			b >>= 1
		}
	}
	return product
}

// powers are x^(8*2^k), which make any number of bytes.
var powers = func() (p [32]uint32) {
	p[0] = one >> 8
	for k := 1; k < len(p); k++ {
		p[k] = multiply(p[k-1], p[k-1])
	}
	return p
}()

// shift multiplies by x^(8n).
func shift(crc, n uint32) uint32 {
	for k := 0; n != 0; k, n = k+1, n>>1 {
		if n&1 != 0 {
			crc = multiply(powers[k], crc)
		}
	}
	return crc
}

// combine returns the sum of two parts, the second one of n bytes.
func combine(first, second, n uint32) uint32 { return shift(first, n) ^ second }

// zeroes returns the sum of n zero bytes. The register of a CRC starts with all
// ones and is inverted at the end.
func zeroes(n uint32) uint32 { return ^shift(^uint32(0), n) }
