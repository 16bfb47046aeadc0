package convert

import (
	"errors"
	"fmt"
	"math/bits"
	"sort"
	"sync/atomic"

	"github.com/klauspost/compress/snappy"

	"github.com/warmcore/warmcore/pkg/dumpfilter"
	"github.com/warmcore/warmcore/pkg/phys"
	"github.com/warmcore/warmcore/pkg/vmcore"
	"github.com/warmcore/warmcore/pkg/vmcore/kdump"
)

// chunkPages is the number of pages that are filtered at once: 128 MiB of 4 KiB
// pages, whose bitmap is 4 KiB.
const (
	chunkPages = 32 << 10
	chunkWords = chunkPages / 64
)

// words is the bitmap of a chunk: bit i%64 of word i/64 stands for its page i.
type words [chunkWords]uint64

// keepMap says which pages to keep. Bitmaps of real memory consist of long
// runs, so that their compressed form takes a small part of the 32 MiB that a
// bitmap takes for each TiB.
type keepMap struct {
	chunks []chunk
	pages  uint64 // kept
}

type chunk struct {
	first uint64 // PFN
	pages uint32 // kept
	bits  []byte // compressed words; nil if no page is kept
}

// words decompresses a chunk's bitmap.
func (c *chunk) words(w *words, scratch []byte) error {
	clear(w[:])
	if c.bits == nil {
		return nil
	}
	b, err := snappy.Decode(scratch, c.bits)
	if err != nil || len(b) != chunkPages/8 {
		return fmt.Errorf("bitmap of pages from %#x: %d bytes, %w", c.first, len(b), err)
	}
	for i := range w {
		w[i] = le.Uint64(b[8*i:])
	}
	return nil
}

// chunksOf returns the chunks in which there is memory.
func chunksOf(info *vmcore.Info) ([]chunk, error) {
	var out []chunk
	next := uint64(0) // lowest chunk that is not listed yet
	for _, r := range info.Memory {
		first, end := r.Start/info.BlockSize/chunkPages, (r.End-1)/info.BlockSize/chunkPages+1
		if end > kdump.MaxPages/chunkPages {
			return nil, fmt.Errorf("memory %v: more than %d pages", r, uint64(kdump.MaxPages))
		}
		for c := max(first, next); c < end; c++ {
			out = append(out, chunk{first: c * chunkPages})
		}
		next = max(next, end)
	}
	return out, nil
}

// scan asks the filter about all pages, with several workers.
func (j *job) scan() error {
	chunks, err := chunksOf(j.info)
	if err != nil {
		return err
	}
	j.keep.chunks = chunks
	var next, done atomic.Uint64
	return j.parallel(func() error {
		s := &scanner{job: j}
		for {
			i := next.Add(1) - 1
			if i >= uint64(len(chunks)) || j.ctx.Err() != nil {
				j.addScan(s)
				return j.ctx.Err()
			}
			if err := s.scan(&chunks[i]); err != nil {
				return err
			}
			j.progress(Progress{Phase: Scanning, Done: done.Add(chunkPages * j.info.BlockSize), Total: uint64(len(chunks)) * chunkPages * j.info.BlockSize})
		}
	})
}

// scanner is a worker of scan.
type scanner struct {
	*job
	keep, drop words
	counts     dumpfilter.Counts
	memory     uint64 // pages
	kept       uint64
	holes      uint64 // pages that the source doesn't have
}

func (s *scanner) scan(c *chunk) error {
	info := s.info
	memoryOf(&s.keep, info, c.first)
	pages := count(&s.keep)
	s.memory += pages
	if s.filter != nil && pages > 0 {
		if err := s.ask(c.first); err != nil {
			return fmt.Errorf("filter pages from %#x: %w", c.first, err)
		}
		for i := range s.keep {
			s.keep[i] &^= s.drop[i]
		}
	}
	if s.pager != nil {
		for i := range s.keep {
			for w := s.keep[i]; w != 0; w &= w - 1 {
				bit := uint64(bits.TrailingZeros64(w))
				at := (c.first + uint64(i)*64 + bit) * info.BlockSize
				if !s.pager.Holds(phys.Range{Start: at, End: at + info.BlockSize}) {
					s.keep[i] &^= 1 << bit
					s.holes++
				}
			}
		}
	}
	c.pack(&s.keep)
	s.kept += uint64(c.pages)
	return nil
}

// ask sets the bits of s.drop of the pages that the filter leaves out, in the
// chunk from page first on. The filter's pages are the kernel's; one of them
// may be several pages here.
func (s *scanner) ask(first uint64) error {
	clear(s.drop[:])
	blocks := s.filter.PageSize() / s.info.BlockSize // a power of two, at most 64
	if blocks == 1 {
		counts, err := s.filter.Drop(s.drop[:], first, chunkPages)
		s.counts.Add(counts)
		return err
	}
	var large [chunkWords / 2]uint64
	counts, err := s.filter.Drop(large[:chunkWords/blocks], first/blocks, chunkPages/blocks)
	if err != nil {
		return err
	}
	for range blocks {
		s.counts.Add(counts)
	}
	for i, w := range large {
		for ; w != 0; w &= w - 1 {
			page := uint64(i)*64 + uint64(bits.TrailingZeros64(w))
			set(&s.drop, page*blocks, (page+1)*blocks)
		}
	}
	return nil
}

// memoryOf sets the bits of those pages of the chunk that are memory at least
// in part.
func memoryOf(w *words, info *vmcore.Info, first uint64) {
	all := phys.Range{Start: first * info.BlockSize, End: (first + chunkPages) * info.BlockSize}
	clear(w[:])
	for _, r := range overlapping(info.Memory, all) {
		r = r.Intersect(all)
		set(w, r.Start/info.BlockSize-first, (r.End-1)/info.BlockSize+1-first)
	}
}

// pack compresses a chunk's bitmap.
func (c *chunk) pack(w *words) {
	c.bits, c.pages = nil, uint32(count(w))
	if c.pages == 0 {
		return
	}
	var plain [chunkPages / 8]byte
	for i, x := range w {
		le.PutUint64(plain[8*i:], x)
	}
	var packed [chunkPages/8 + chunkPages/8/6 + 32]byte // snappy.MaxEncodedLen
	c.bits = append([]byte(nil), snappy.Encode(packed[:], plain[:])...)
}

// addScan adds a worker's counts.
func (j *job) addScan(s *scanner) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.keep.pages += s.kept
	j.result.Counts.Add(s.counts)
	j.result.Pages += s.memory
	j.result.Dropped += s.memory - s.kept - s.holes
	j.result.Absent += s.holes
}

// overlapping returns the ranges of a set that overlap r.
func overlapping(s phys.Set, r phys.Range) phys.Set {
	lo, hi := 0, len(s)
	for lo < hi {
		if m := (lo + hi) / 2; s[m].End <= r.Start {
			lo = m + 1
		} else {
			hi = m
		}
	}
	end := lo
	for end < len(s) && s[end].Start < r.End {
		end++
	}
	return s[lo:end]
}

// set sets the bits from start to end.
func set(w *words, start, end uint64) {
	for ; start < end && start%64 != 0; start++ {
		w[start/64] |= 1 << (start % 64)
	}
	for ; start+64 <= end; start += 64 {
		w[start/64] = ^uint64(0)
	}
	for ; start < end; start++ {
		w[start/64] |= 1 << (start % 64)
	}
}

func count(w *words) (n uint64) {
	for _, x := range w {
		n += uint64(bits.OnesCount64(x))
	}
	return n
}

// cursor walks over the kept pages in the order of their PFNs.
type cursor struct {
	keep    *keepMap
	chunk   int // index of the one that words are of; -1 at the start
	words   words
	at      uint64 // page in the chunk
	scratch [chunkPages / 8]byte
}

func newCursor(k *keepMap) *cursor { return &cursor{keep: k, chunk: -1, at: chunkPages} }

// next returns the next run of kept pages, of at most limit pages, all below
// end; none at the end.
func (c *cursor) next(limit, end uint64) (first, n uint64, err error) {
	for {
		if c.at == chunkPages {
			if c.chunk+1 >= len(c.keep.chunks) {
				return 0, 0, nil
			}
			if first := c.keep.chunks[c.chunk+1].first; first >= end {
				return 0, 0, nil
			}
			c.chunk++
			c.at = 0
			if c.keep.chunks[c.chunk].pages == 0 {
				c.at = chunkPages
				continue
			}
			if err := c.keep.chunks[c.chunk].words(&c.words, c.scratch[:]); err != nil {
				return 0, 0, err
			}
		}
		if !c.skip(true) {
			continue
		}
		base := c.keep.chunks[c.chunk].first
		start := c.at
		if base+start >= end {
			return 0, 0, nil
		}
		c.skip(false)
		c.at = min(c.at, start+limit, end-base)
		return base + start, c.at - start, nil
	}
}

// skip goes on to the next page that is kept, or isn't; false if the chunk has
// no more of that kind.
func (c *cursor) skip(kept bool) bool {
	for c.at < chunkPages {
		w := c.words[c.at/64]
		if !kept {
			w = ^w
		}
		if w >>= c.at % 64; w != 0 {
			c.at += uint64(bits.TrailingZeros64(w))
			return true
		}
		c.at = (c.at/64 + 1) * 64
	}
	return false
}

// Where parts of a split dump may end: crash(8) counts the pages of a part in
// sections of that many (BITMAP_SECT_LEN), and looks for the page after a
// part's last one in that part, as if the end were inclusive.
const (
	partAlign = 4096
	partTries = 1024 // sections that are searched for an end that is not a kept page
)

// divide returns where each of n parts ends, as PFNs, so that all have about as
// many kept pages, and how many each has.
func (k *keepMap) divide(n int) (ends, pages []uint64, err error) {
	c := newCursor(k)
	var all, last uint64
	for i := range uint64(n) {
		var got uint64
		take := func(limit, end uint64) (uint64, error) {
			first, run, err := c.next(limit, end)
			if run > 0 {
				got, last = got+run, max(last, first+run)
			}
			return run, err
		}
		// The cursor gives no more than a chunk at once.
		rest := uint64(n) - i
		for target := (k.pages - all + rest - 1) / rest; got < target; {
			if run, err := take(target-got, ^uint64(0)); err != nil || run == 0 {
				return nil, nil, errors.Join(err, errors.New("fewer pages are kept than were counted"))
			}
		}
		// Parts without pages are at the end.
		if rest == 1 || all+got == k.pages {
			last = ^uint64(0)
		} else if last, err = k.partEnd(last); err != nil {
			return nil, nil, err
		}
		for {
			run, err := take(kdump.MaxPages, last)
			if err != nil {
				return nil, nil, err
			}
			if run == 0 {
				break
			}
		}
		all += got
		ends, pages = append(ends, last), append(pages, got)
	}
	return ends, pages, nil
}

// partEnd returns the end of a part: pfn, or a PFN shortly after it.
func (k *keepMap) partEnd(pfn uint64) (uint64, error) {
	end, ok := phys.AlignUp(pfn, partAlign)
	if !ok {
		return 0, fmt.Errorf("part ends at PFN %#x", pfn)
	}
	for at := end; at < end+partTries*partAlign; at += partAlign {
		kept, err := k.has(at)
		if err != nil {
			return 0, err
		}
		if !kept {
			return at, nil
		}
	}
	return end, nil
}

// has says whether a page is kept.
func (k *keepMap) has(pfn uint64) (bool, error) {
	i := sort.Search(len(k.chunks), func(i int) bool { return k.chunks[i].first+chunkPages > pfn })
	if i == len(k.chunks) || k.chunks[i].first > pfn {
		return false, nil
	}
	var w words
	var scratch [chunkPages / 8]byte
	if err := k.chunks[i].words(&w, scratch[:]); err != nil {
		return false, err
	}
	bit := pfn - k.chunks[i].first
	return w[bit/64]>>(bit%64)&1 != 0, nil
}
