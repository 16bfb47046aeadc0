package kdump

import (
	"fmt"
	"math/bits"
	"sync"

	"github.com/warmcore/warmcore/pkg/phys"
)

const (
	// chunk is the piece of a bitmap for which the bits before it are known,
	// in bytes: 8 bytes for every 128 MiB of memory with 4 KiB pages.
	chunk = 4 << 10
	// scanSize is how much of a bitmap is read at once from start to end.
	scanSize = 1 << 20
	// maxRanges caps the ranges that the 1st bitmap is turned into. The last
	// range then reaches to the end of memory, over all holes.
	maxRanges = 1 << 16
)

// bitmap is one of the two, in the file.
type bitmap struct {
	cache *fileCache
	off   int64  // in the file
	n     uint64 // bits

	mu   sync.RWMutex
	sums []uint64 // [i]: how many bits are set before chunk i
}

// has says whether bit i is set.
func (m *bitmap) has(i uint64) (bool, error) {
	if i >= m.n {
		return false, nil
	}
	b, err := m.cache.at(m.off + int64(i/8))
	if err != nil {
		return false, fmt.Errorf("bitmap: %w", err)
	}
	return b[0]>>(i%8)&1 != 0, nil
}

// before returns how many of the bits before i are set.
func (m *bitmap) before(i uint64) (uint64, error) {
	i = min(i, m.n)
	c := i / (chunk * 8)
	sum, err := m.sum(c)
	if err != nil {
		return 0, fmt.Errorf("bitmap: %w", err)
	}
	rest := i - c*chunk*8
	for off := m.off + int64(c*chunk); rest > 0; {
		b, err := m.cache.at(off)
		if err != nil {
			return 0, fmt.Errorf("bitmap: %w", err)
		}
		if full := rest / 8; full > 0 {
			b = b[:min(uint64(len(b)), full)]
			sum += count(b)
			off += int64(len(b))
			rest -= 8 * uint64(len(b))
			continue
		}
		sum += uint64(bits.OnesCount8(b[0] & (1<<rest - 1)))
		rest = 0
	}
	return sum, nil
}

// sum returns how many bits are set before chunk c. The first call for the
// last chunk reads the whole bitmap, all others little or nothing.
func (m *bitmap) sum(c uint64) (uint64, error) {
	m.mu.RLock()
	if c < uint64(len(m.sums)) {
		defer m.mu.RUnlock()
		return m.sums[c], nil
	}
	m.mu.RUnlock()
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.sums == nil {
		m.sums = []uint64{0}
	}
	for uint64(len(m.sums)) <= c {
		err := m.scan(uint64(len(m.sums)-1)*chunk, scanSize, func(b []byte) bool {
			for ; len(b) >= chunk; b = b[chunk:] {
				m.sums = append(m.sums, m.sums[len(m.sums)-1]+count(b[:chunk]))
			}
			return false
		})
		if err != nil {
			return 0, err
		}
	}
	return m.sums[c], nil
}

// scan calls f with the bitmap from byte at on, in pieces of size bytes or
// less, which both are multiples of chunk, until f returns false. The last
// piece is filled up to a whole chunk with zeroes.
func (m *bitmap) scan(at, size uint64, f func(b []byte) bool) error {
	all := (m.n + 7) / 8
	b := make([]byte, min(size, (all-min(at, all)+chunk-1)&^(chunk-1)))
	for ; at < all; at += uint64(len(b)) {
		there := min(all-at, uint64(len(b)))
		if n, err := m.cache.r.ReadAt(b[:there], m.off+int64(at)); uint64(n) < there {
			return fmt.Errorf("read bitmap at offset %#x: %w", m.off+int64(at), err)
		}
		if there < uint64(len(b)) {
			clear(b[there:])
			b = b[:(there+chunk-1)&^(chunk-1)]
		}
		if last := at + there; last == all && m.n%8 != 0 {
			b[there-1] &= 1<<(m.n%8) - 1
		}
		if !f(b) {
			return nil
		}
	}
	return nil
}

// count returns how many bits of b are set.
func count(b []byte) uint64 {
	var n int
	for ; len(b) >= 8; b = b[8:] {
		n += bits.OnesCount64(le.Uint64(b))
	}
	for _, x := range b {
		n += bits.OnesCount8(x)
	}
	return uint64(n)
}

// memory returns the set bits as memory in pages of the given size; whole is
// false if there were too many ranges.
func (m *bitmap) memory(pageSize uint64) (s phys.Set, whole bool, err error) {
	whole = true
	run := func(start, end uint64) {
		r := phys.Range{Start: start * pageSize, End: end * pageSize}
		switch n := len(s); {
		case n > 0 && s[n-1].End == r.Start:
			s[n-1].End = r.End
		case n == maxRanges:
			s[n-1].End = r.End
			whole = false
		default:
			s = append(s, r)
		}
	}
	var at uint64 // bits before the piece
	err = m.scan(0, scanSize, func(b []byte) bool {
		for i := 0; i < len(b); i += 8 {
			word, base := le.Uint64(b[i:]), at+uint64(i)*8
			for from := uint(0); word>>from != 0; {
				from += uint(bits.TrailingZeros64(word >> from))
				length := uint(bits.TrailingZeros64(^(word >> from)))
				run(base+uint64(from), base+uint64(from+length))
				if from += length; from >= 64 {
					break
				}
			}
		}
		at += uint64(len(b)) * 8
		return true
	})
	if err != nil {
		return nil, false, err
	}
	return s, whole, nil
}
