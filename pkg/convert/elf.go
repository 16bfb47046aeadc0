package convert

import (
	"errors"
	"fmt"
	"io"

	"github.com/warmcore/warmcore/pkg/phys"
	"github.com/warmcore/warmcore/pkg/vmcore"
	"github.com/warmcore/warmcore/pkg/vmcore/elfdump"
	"github.com/warmcore/warmcore/pkg/vmcore/kdump"
)

// smallestGap is the least number of adjacent left-out pages that end a
// segment, as in makedumpfile (PFN_EXCLUDED). A smaller gap is kept.
const smallestGap = 256

// elfOutput writes an ELF dump. Where each page goes is known beforehand. Pages
// of zeroes stay holes of the file, whatever the dump level: their place must be
// known before they are read.
type elfOutput struct {
	*job
	dst    io.WriterAt
	layout *elfdump.Layout
	last   uint64 // PFN of the page at the end of the file
}

func (j *job) openELF(dst []io.WriterAt) error {
	info, _, err := j.describe()
	if err != nil {
		return err
	}
	loads, err := j.loads()
	if err != nil {
		return err
	}
	// A page that must not be read, or that the source doesn't have, can't
	// be kept. If there is one, every gap ends a segment.
	r := &j.result
	fill := r.Counts.HWPoison+r.Counts.Offline+r.Absent == 0
	gap := uint64(1)
	if fill {
		gap = smallestGap
	}
	for ; ; gap *= 2 {
		data, err := j.keep.ranges(gap, j.info.BlockSize)
		if err != nil {
			return err
		}
		layout, err := elfdump.NewLayout(info.Machine, info.Notes, loads, data, info.BlockSize)
		var many *elfdump.TooManyError
		if errors.As(err, &many) && gap < kdump.MaxPages {
			continue
		}
		if err != nil {
			return err
		}
		o := &elfOutput{job: j, dst: dst[0], layout: layout}
		if n := len(data); n > 0 {
			o.last = data[n-1].End/info.BlockSize - 1
		}
		j.out = o
		switch {
		case fill:
			more := j.keep.fill(data, j.info)
			r.Dropped -= more
		case gap > 1:
			r.Blank = overlap(data, j.info)/info.BlockSize - j.keep.pages
			j.result.Warnings = append(j.result.Warnings, fmt.Sprintf("%d pages that are left out are zero in the file: it would have too many segments without them", r.Blank))
		}
		if j.NoHoles {
			return o.writeGaps(data)
		}
		return nil
	}
}

// overlap returns how much of data is in pages that are memory, in bytes.
func overlap(data []phys.Range, info *vmcore.Info) (size uint64) {
	for _, r := range data {
		at := r.Start
		for _, m := range overlapping(info.Memory, r) {
			start, end := max(at, phys.AlignDown(m.Start, info.BlockSize)), min(r.End, (m.End-1)|(info.BlockSize-1)+1)
			if start < end {
				size += end - start
				at = end
			}
		}
	}
	return size
}

// fill marks all pages of memory in data as kept, and returns how many of them
// were not kept before.
func (k *keepMap) fill(data []phys.Range, info *vmcore.Info) (more uint64) {
	var w, memory words
	for i := range k.chunks {
		c := &k.chunks[i]
		all := phys.Range{Start: c.first * info.BlockSize, End: (c.first + chunkPages) * info.BlockSize}
		clear(w[:])
		for _, r := range overlapping(data, all) {
			r = r.Intersect(all)
			set(&w, r.Start/info.BlockSize-c.first, r.End/info.BlockSize-c.first)
		}
		memoryOf(&memory, info, c.first)
		for i := range w {
			w[i] &= memory[i]
		}
		before := uint64(c.pages)
		c.pack(&w)
		more += uint64(c.pages) - before
	}
	k.pages += more
	return more
}

// ranges returns the kept pages as ranges of memory, with the pages of gaps
// that are smaller than gap.
func (k *keepMap) ranges(gap, pageSize uint64) ([]phys.Range, error) {
	var out []phys.Range
	c := newCursor(k)
	for {
		first, n, err := c.next(kdump.MaxPages, ^uint64(0))
		if err != nil {
			return nil, err
		}
		if n == 0 {
			return out, nil
		}
		r := phys.Range{Start: first * pageSize, End: (first + n) * pageSize}
		if i := len(out) - 1; i >= 0 && r.Start-out[i].End < gap*pageSize {
			out[i].End = r.End
			continue
		}
		out = append(out, r)
	}
}

// writeGaps writes the zeroes in data that stand for pages that are left out.
func (o *elfOutput) writeGaps(data []phys.Range) error {
	size := o.info.BlockSize
	zeroes := make([]byte, smallestGap*size)
	c := newCursor(&o.keep)
	for _, r := range data {
		for at := r.Start / size; at < r.End/size; {
			first, n, err := c.next(kdump.MaxPages, r.End/size)
			if err != nil {
				return err
			}
			if n == 0 {
				first = r.End / size
			}
			for at < first {
				part := min((first-at)*size, uint64(len(zeroes)))
				if _, err := o.dst.WriteAt(zeroes[:part], o.layout.Offset(at*size)); err != nil {
					return err
				}
				at += part / size
			}
			at = first + n
		}
	}
	return nil
}

func (o *elfOutput) end(uint64) uint64 { return ^uint64(0) }

func (o *elfOutput) encoder() (func(*batch, uint64, []byte), error) {
	return func(b *batch, pfn uint64, page []byte) {
		p := kdump.Page{PFN: pfn, Off: int64(len(b.data)), Size: uint32(len(page))}
		if word, ok := same(page); ok && word == 0 {
			b.count.Zero++
			if !o.NoHoles && pfn != o.last {
				p.Off = kdump.Zero
			}
		} else if ok {
			b.count.Filled++
		}
		if p.Off != kdump.Zero {
			b.data = append(b.data, page...)
		}
		b.pages = append(b.pages, p)
	}, nil
}

func (o *elfOutput) place(*batch) error { return nil }

// write writes pages that follow each other in the file at once.
func (o *elfOutput) write(b *batch) error {
	size := int64(o.info.BlockSize)
	var from, to, at int64 // b.data[from:to] goes to at
	flush := func() error {
		if from == to {
			return nil
		}
		_, err := o.dst.WriteAt(b.data[from:to], at)
		return err
	}
	for _, p := range b.pages {
		if p.Off == kdump.Zero {
			continue
		}
		off := o.layout.Offset(p.PFN * uint64(size))
		if off != at+to-from || from == to {
			if err := flush(); err != nil {
				return err
			}
			from, to, at = p.Off, p.Off, off
		}
		to = p.Off + size
	}
	return flush()
}

func (o *elfOutput) finish() error {
	o.result.Size = uint64(o.layout.Size())
	return o.layout.WriteHeaders(o.dst, o.unreadableText())
}
