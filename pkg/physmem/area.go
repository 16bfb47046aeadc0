package physmem

import "github.com/warmcore/warmcore/pkg/phys"

// area is mapped memory of one kind.
type area struct {
	bytes  []byte
	at     uint64 // physical address; the mapping has its last bits
	cached bool
}

// split cuts n bytes at addr into those before the first multiple of unit, a
// power of 2, whole units, and what is left.
func split(addr, n, unit uint64) (head, units uint64) {
	head = min(-addr%unit, n)
	return head, (n - head) &^ (unit - 1)
}

// wordSize is how device memory is accessed, in bytes: an access that isn't
// aligned faults there, and what copy and clear make of a slice is theirs to
// choose.
const wordSize = 8

// load copies the area to p, of its size.
func (a area) load(p []byte) {
	if a.cached {
		copy(p, a.bytes)
		return
	}
	flush(a.bytes)
	move(p, a.bytes, a.at)
}

// store copies p, of its size, to the area; until flush maybe to the caches
// only.
func (a area) store(p []byte) {
	if a.cached {
		copy(a.bytes, p)
		return
	}
	// A dirty line must not be written back later, over p.
	flush(a.bytes)
	move(a.bytes, p, a.at)
}

// flush has what was stored written back.
func (a area) flush() { flush(a.bytes) }

// clear stores zeroes, as store does.
func (a area) clear() {
	if a.cached {
		clear(a.bytes)
		return
	}
	for b, at := a.bytes, a.at; len(b) > 0; {
		n := min(uint64(len(b)), uint64(len(zeroes)))
		area{bytes: b[:n], at: at}.store(zeroes[:n])
		b, at = b[n:], at+n
	}
}

var zeroes [64 * phys.KiB]byte

// move copies between device memory at addr, which is dst or src, and memory.
func move(dst, src []byte, addr uint64) {
	head, words := split(addr, uint64(len(src)), wordSize)
	copyBytes(dst[:head], src[:head])
	copyWords(dst[head:head+words], src[head:head+words])
	copyBytes(dst[head+words:], src[head+words:])
}

// bounce is how much of a copy from device memory to device memory is in
// between at a time.
const bounce = 64 << 10 // bytes

// copyArea copies src to dst, of its size, and to memory: no reset drops it.
func copyArea(dst, src area) {
	switch {
	case src.cached && dst.cached:
		copyThrough(dst.bytes, src.bytes, dst.at)
		return
	case src.cached:
		dst.store(src.bytes)
	case dst.cached:
		src.load(dst.bytes)
	default:
		b := make([]byte, min(bounce, len(src.bytes)))
		for off := 0; off < len(src.bytes); off += len(b) {
			b = b[:min(len(b), len(src.bytes)-off)]
			src.part(off, len(b)).load(b)
			dst.part(off, len(b)).store(b)
		}
	}
	dst.flush()
}

func (a area) part(off, n int) area {
	return area{a.bytes[off : off+n], a.at + uint64(off), a.cached}
}
