package kdump

import "errors"

var errLZO = errors.New("broken LZO stream")

// lzo is a LZO1X stream being expanded, as Documentation/staging/lzo.rst of
// the kernel (v6.12) describes it. The stream is instructions that copy
// literals out of the stream, or bytes from further back in the output. What
// the smallest instructions mean depends on state: how many literals the
// instruction before copied, up to 3, or afterLiterals.
type lzo struct {
	src []byte // what is left of it
	dst []byte // all of it
	n   int    // bytes in dst so far
}

const afterLiterals = 4 // the instruction before was a run of literals

// expandLZO fills dst from src, which must make exactly as many bytes.
func expandLZO(dst, src []byte) error {
	z := lzo{src: src, dst: dst}
	state := 0
	// Only the first byte of all can be a short run of literals on its own.
	if len(src) > 0 && src[0] > 17 {
		n := int(src[0]) - 17
		z.src = src[1:]
		if !z.literals(n) {
			return errLZO
		}
		state = min(n, afterLiterals)
	}
	for {
		op, ok := z.byte()
		if !ok {
			return errLZO
		}
		var distance, length int
		next := op // its lowest 2 bits: literals after a match
		switch {
		case op < 16 && state == 0:
			length, ok = z.length(op, 15, 3)
			if !ok || !z.literals(length) {
				return errLZO
			}
			state = afterLiterals
			continue
		case op < 16:
			h, found := z.byte()
			ok = found
			distance, length = h<<2+op>>2+1, 2
			if state == afterLiterals {
				distance, length = distance+2048, 3
			}
		case op < 32:
			length, ok = z.length(op&7, 7, 2)
			d, found := z.word()
			ok = ok && found
			distance, next = 16384+op&8<<11+d>>2, d
			if ok && distance == 16384 {
				if len(z.src) > 0 || z.n < len(z.dst) {
					return errLZO
				}
				return nil
			}
		case op < 64:
			length, ok = z.length(op&31, 31, 2)
			d, found := z.word()
			ok = ok && found
			distance, next = d>>2+1, d
		default:
			h, found := z.byte()
			ok = found
			distance, length = h<<3+op>>2&7+1, 3+op>>5&1
			if op >= 128 {
				length = 5 + op>>5&3
			}
		}
		state = next & 3
		if !ok || !z.match(distance, length) || !z.literals(state) {
			return errLZO
		}
	}
}

func (z *lzo) byte() (int, bool) {
	if len(z.src) == 0 {
		return 0, false
	}
	b := z.src[0]
	z.src = z.src[1:]
	return int(b), true
}

func (z *lzo) word() (int, bool) {
	if len(z.src) < 2 {
		return 0, false
	}
	w := le.Uint16(z.src)
	z.src = z.src[2:]
	return int(w), true
}

// length returns base plus bits, or, if they are 0, plus what all of them
// would be and the bytes that follow: 255 for each zero, and the first other.
func (z *lzo) length(bits, all, base int) (int, bool) {
	if bits != 0 {
		return base + bits, true
	}
	n := base + all
	for n <= len(z.dst) {
		b, ok := z.byte()
		if !ok {
			return 0, false
		}
		if b != 0 {
			return n + b, true
		}
		n += 255
	}
	return 0, false
}

func (z *lzo) literals(n int) bool {
	if n > len(z.src) || n > len(z.dst)-z.n {
		return false
	}
	copy(z.dst[z.n:], z.src[:n])
	z.src, z.n = z.src[n:], z.n+n
	return true
}

// match copies n bytes from distance bytes back; they may overlap, which
// repeats them.
func (z *lzo) match(distance, n int) bool {
	if distance > z.n || n > len(z.dst)-z.n {
		return false
	}
	for end := z.n + n; z.n < end; {
		z.n += copy(z.dst[z.n:end], z.dst[z.n-distance:z.n])
	}
	return true
}
