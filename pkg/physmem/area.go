package physmem

import "github.com/warmcore/warmcore/pkg/phys"

// area is mapped memory of one kind.
type area struct {
	bytes  []byte
	at     uint64 // physical address; the mapping's address has the same last bits
	cached bool
}

// split cuts n bytes at addr into head, the bytes before the first multiple of
// unit (a power of 2), then units, the bytes of whole units, and the rest.
func split(addr, n, unit uint64) (head, units uint64) {
	head = min(-addr%unit, n)
	return head, (n - head) &^ (unit - 1)
}

// wordSize is the width of accesses to device memory, in bytes. An unaligned
// access faults there, and Go's copy and clear don't promise aligned ones.
const wordSize = 8

// load copies the area to p, which has its size.
func (a area) load(p []byte) {
	if a.cached {
		copy(p, a.bytes)
		return
	}
	flush(a.bytes)
	move(p, a.bytes, a.at)
}

// store copies p, which has the area's size, to the area. Until flush, the
// bytes may be in the caches only.
func (a area) store(p []byte) {
	if a.cached {
		copy(a.bytes, p)
		return
	}
	// A dirty cache line must not be written back later, over p.
	flush(a.bytes)
	move(a.bytes, p, a.at)
}

// flush writes what was stored back from the caches to memory.
func (a area) flush() { flush(a.bytes) }

// clear stores zeroes; see store.
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

// bounce is the size of the buffer for a copy from device memory to device
// memory.
const bounce = 64 << 10 // bytes

// copyArea copies src to dst, which has the same size, and writes it back to
// memory, so that it survives a reset.
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
