package flattened

import (
	"cmp"
	"container/heap"
	"fmt"
	"io"
	"slices"

	"github.com/warmcore/warmcore/pkg/vmcore"
)

// Reader reads the original file from a flattened form in a file, without
// copying it. It is an io.ReaderAt.
type Reader struct {
	r        io.ReaderAt
	runs     []run
	pieces   []piece // of the file, sorted and disjoint
	size     int64
	complete bool
}

// run is a number of records of one size that are adjacent both in the form
// and in the file.
type run struct {
	off   int64 // of the first record's bytes in the file
	at    int64 // of the same in the form
	size  int64 // of each record
	count int64
}

func (r run) end() int64 { return r.off + r.size*r.count }

// piece is a part of the file, all of it in one run.
type piece struct {
	off, end int64
	run      int
}

// NewReader reads all records of the form in r, of size bytes. A form that is cut
// off, or broken after its first record, is read as far as it goes;
// Complete tells.
func NewReader(r io.ReaderAt, size int64) (*Reader, error) {
	f := &Reader{r: r}
	if err := f.index(size); err != nil {
		return nil, fmt.Errorf("open flattened form: %w", err)
	}
	f.arrange()
	holes := f.size
	for _, p := range f.pieces {
		holes -= p.end - p.off
	}
	if holes > MaxHoles {
		return nil, fmt.Errorf("open flattened form: a file of %#x bytes, of which %#x are in no record: want at most %#x", f.size, holes, int64(MaxHoles))
	}
	return f, nil
}

// Size returns the size of the file in bytes, as far as its form goes.
func (f *Reader) Size() int64 { return f.size }

// Complete says whether the form is complete, with its last record.
func (f *Reader) Complete() bool { return f.complete }

// readAhead is how much is read of the form where a record is, in bytes: many
// small records cost one read.
const readAhead = 4096

func (f *Reader) index(size int64) error {
	window := make([]byte, readAhead)
	if n, err := f.r.ReadAt(window[:min(headerSize, size)], 0); n < headerSize {
		return fmt.Errorf("read header: %w", cmp.Or(err, io.ErrUnexpectedEOF))
	}
	if err := checkHeader(window); err != nil {
		return err
	}
	var from int64
	window = window[:0]
	for at := int64(headerSize); size-at >= recordSize; {
		if at-from > int64(len(window))-recordSize {
			window, from = window[:min(readAhead, size-at)], at
			if n, err := f.r.ReadAt(window, at); n < recordSize {
				return fmt.Errorf("read record at offset %#x: %w", at, err)
			} else if n < len(window) {
				window = window[:n]
			}
		}
		off, n, last, err := parseRecord(window[at-from:], at)
		if err != nil && len(f.runs) == 0 {
			return err
		}
		if err != nil {
			return nil
		}
		if last {
			f.complete = true
			return nil
		}
		at += recordSize
		if err := f.add(off, at, min(n, size-at)); err != nil {
			return err
		}
		if n > size-at {
			return nil
		}
		at += n
	}
	if len(f.runs) == 0 {
		return &vmcore.FormatError{Off: headerSize, Field: "offset", Problem: "no record: the form ends after its header"}
	}
	return nil
}

// add appends a record to the last run, or begins one.
func (f *Reader) add(off, at, size int64) error {
	if size == 0 {
		return nil
	}
	f.size = max(f.size, off+size)
	if n := len(f.runs); n > 0 {
		last := &f.runs[n-1]
		if last.size == size && last.end() == off && last.at+(size+recordSize)*last.count == at {
			last.count++
			return nil
		}
	}
	if len(f.runs) == MaxRuns {
		return fmt.Errorf("offset %#x: more than %d runs of records: rebuild the file from its flattened form first", at, MaxRuns)
	}
	f.runs = append(f.runs, run{off, at, size, 1})
	return nil
}

// newest is a heap of the runs that hold the same place; the one that is last
// in the form is on top.
type newest []int

func (h newest) Len() int           { return len(h) }
func (h newest) Less(i, j int) bool { return h[i] > h[j] }
func (h newest) Swap(i, j int)      { h[i], h[j] = h[j], h[i] }
func (h *newest) Push(x any)        { *h = append(*h, x.(int)) }
func (h *newest) Pop() any {
	old := *h
	x := old[len(old)-1]
	*h = old[:len(old)-1]
	return x
}

// arrange sorts the runs into pieces. Where runs overlap, the later counts.
func (f *Reader) arrange() {
	order := make([]int, len(f.runs))
	for i := range order {
		order[i] = i
	}
	slices.SortFunc(order, func(a, b int) int { return cmp.Compare(f.runs[a].off, f.runs[b].off) })
	var here newest
	for off := int64(0); len(order) > 0 || len(here) > 0; {
		if len(here) > 0 && f.runs[here[0]].end() <= off {
			heap.Pop(&here)
			continue
		}
		if len(here) == 0 && len(order) > 0 {
			off = max(off, f.runs[order[0]].off)
		}
		for len(order) > 0 && f.runs[order[0]].off <= off {
			heap.Push(&here, order[0])
			order = order[1:]
		}
		top := here[0]
		end := f.runs[top].end()
		if end <= off {
			continue
		}
		if len(order) > 0 {
			end = min(end, f.runs[order[0]].off)
		}
		if n := len(f.pieces); n > 0 && f.pieces[n-1].run == top && f.pieces[n-1].end == off {
			f.pieces[n-1].end = end
		} else {
			f.pieces = append(f.pieces, piece{off, end, top})
		}
		off = end
	}
}

// ReadAt implements io.ReaderAt.
func (f *Reader) ReadAt(p []byte, off int64) (n int, err error) {
	if off < 0 {
		return 0, fmt.Errorf("read flattened form at %d: %w", off, io.ErrUnexpectedEOF)
	}
	i, _ := slices.BinarySearchFunc(f.pieces, off, func(x piece, off int64) int {
		if x.end <= off {
			return -1
		}
		return 1
	})
	for n < len(p) {
		if off >= f.size {
			return n, io.EOF
		}
		x := f.pieces[i]
		if off >= x.end {
			i++
			continue
		}
		if off < x.off {
			gap := int(min(x.off-off, int64(len(p)-n)))
			clear(p[n:][:gap])
			n, off = n+gap, off+int64(gap)
			continue
		}
		r := f.runs[x.run]
		record, in := (off-r.off)/r.size, (off-r.off)%r.size
		part := p[n:][:min(int64(len(p)-n), r.size-in, x.end-off)]
		got, err := f.r.ReadAt(part, r.at+record*(r.size+recordSize)+in)
		n, off = n+got, off+int64(got)
		if got < len(part) {
			return n, err
		}
	}
	return n, nil
}
