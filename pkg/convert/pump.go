package convert

import (
	"bytes"
	"context"
	"errors"
	"io"
	"sync"

	"github.com/warmcore/warmcore/pkg/phys"
	"github.com/warmcore/warmcore/pkg/vmcore"
	"github.com/warmcore/warmcore/pkg/vmcore/kdump"
)

// Sizes of memory, in bytes.
const (
	// batchSize is how much a worker takes at a time. Taking it costs a
	// lock or two, compressing it takes some milliseconds.
	batchSize = 512 << 10
	// readSize is how much is read at once: so little that it stays in a
	// cache until it is compressed.
	readSize = 64 << 10
)

// output is a format that is being written.
type output interface {
	// encoder returns the function that a worker calls for each page of a
	// batch; it appends the page to b.data and b.pages.
	encoder() (func(b *batch, pfn uint64, page []byte), error)
	// place gives a batch its place in the file; it is called in the order of
	// the batches, under a lock.
	place(b *batch) error
	// write writes a batch that has a place.
	write(b *batch) error
	// finish ends the file after all batches are written.
	finish() error
	// end returns the PFN at which a batch that begins at a PFN must end
	// at the latest.
	end(pfn uint64) uint64
}

// run is a number of adjacent pages.
type run struct{ first, n uint64 }

// batch is a number of pages on their way from source to output.
type batch struct {
	runs  []run
	size  uint64 // pages
	pages []kdump.Page
	data  []byte
	count Result // Zero, Filled, Raw, Unreadable
	ready bool   // to be placed
	dst   io.WriterAt
	off   int64
	times int // how often it was used before
}

func (b *batch) reset() {
	*b = batch{runs: b.runs[:0], pages: b.pages[:0], data: b.data[:0], times: b.times + 1, count: Result{Unreadable: b.count.Unreadable[:0]}}
}

// pump is the state that the workers share.
type pump struct {
	*job
	mu     sync.Mutex
	wake   sync.Cond
	cursor *cursor
	ended  bool     // the cursor is at its end
	free   []*batch // not in use
	order  []*batch // taken and not yet placed, in the order of their pages
	placed []*batch // to be written
	idle   []*loader
	done   uint64 // pages that are placed
}

// pump carries all kept pages from the source to the output.
func (j *job) pump() error {
	p := &pump{job: j, cursor: newCursor(&j.keep)}
	p.wake.L = &p.mu
	// One to work on, one that waits for an older batch or for the disk.
	for range 2*j.Workers + 2 {
		p.free = append(p.free, &batch{})
	}
	return j.parallel(func() error {
		stop := context.AfterFunc(j.ctx, func() {
			p.mu.Lock()
			defer p.mu.Unlock()
			p.wake.Broadcast()
		})
		defer stop()
		err := p.work()
		if err != nil {
			p.wakeAll()
		}
		return err
	})
}

func (p *pump) wakeAll() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.wake.Broadcast()
}

// work is one worker.
func (p *pump) work() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	for {
		switch {
		case p.ctx.Err() != nil:
			return p.ctx.Err()
		case len(p.placed) > 0:
			b := p.placed[0]
			p.placed = append(p.placed[:0], p.placed[1:]...)
			if err := p.unlocked(func() error { return p.out.write(b) }); err != nil {
				return err
			}
			b.reset()
			p.free = append(p.free, b)
			p.wake.Signal()
		case !p.ended && len(p.free) > 0:
			b := p.free[len(p.free)-1]
			if err := p.fill(b); err != nil {
				return err
			}
			if b.size == 0 {
				p.ended = true
				p.wake.Broadcast()
				continue
			}
			p.free = p.free[:len(p.free)-1]
			p.order = append(p.order, b)
			if err := p.load(b); err != nil {
				return err
			}
			b.ready = true
			if err := p.place(); err != nil {
				return err
			}
		case p.ended && len(p.order) == 0:
			p.wake.Broadcast()
			return nil
		default:
			p.wake.Wait()
		}
	}
}

// load lets a loader read and encode a batch. There are as many loaders as
// workers were ever loading at the same time: if there are more workers than
// CPUs, they take turns and need few loaders.
func (p *pump) load(b *batch) error {
	var l *loader
	if n := len(p.idle); n > 0 {
		l, p.idle = p.idle[n-1], p.idle[:n-1]
	}
	err := p.unlocked(func() (err error) {
		if l == nil {
			if l, err = newLoader(p.job); err != nil {
				return err
			}
		}
		l.load(b)
		return nil
	})
	if err == nil {
		p.idle = append(p.idle, l)
	}
	return err
}

func (p *pump) unlocked(f func() error) error {
	p.mu.Unlock()
	defer p.mu.Lock()
	return f()
}

// fill gives a batch the next pages.
func (p *pump) fill(b *batch) error {
	limit := max(batchSize/p.info.BlockSize, 1)
	end := ^uint64(0)
	for b.size < limit {
		first, n, err := p.cursor.next(limit-b.size, end)
		if err != nil {
			return err
		}
		if n == 0 {
			return nil
		}
		if b.size == 0 {
			end = p.out.end(first)
			if first+n > end {
				p.cursor.at -= first + n - end
				n = end - first
			}
		}
		b.runs = append(b.runs, run{first, n})
		b.size += n
	}
	return nil
}

// place gives a place to all batches that are ready and whose predecessors have
// one.
func (p *pump) place() error {
	for len(p.order) > 0 && p.order[0].ready {
		b := p.order[0]
		p.order = append(p.order[:0], p.order[1:]...)
		if err := p.out.place(b); err != nil {
			return err
		}
		p.placed = append(p.placed, b)
		p.wake.Signal()
		r := &p.result
		r.Kept += uint64(len(b.pages))
		r.Zero += b.count.Zero
		r.Filled += b.count.Filled
		r.Raw += b.count.Raw
		r.Data += uint64(len(b.data))
		for _, u := range b.count.Unreadable {
			r.unreadable(u)
		}
		p.done += b.size
		if p.Progress != nil {
			p.Progress(Progress{Phase: Writing, Done: p.done * p.info.BlockSize, Total: p.keep.pages * p.info.BlockSize})
		}
	}
	return nil
}

// loader is the state that one goroutine needs while it loads a batch.
type loader struct {
	*job
	viewer vmcore.Viewer // nil if the source is none
	encode func(b *batch, pfn uint64, page []byte)
	buf    []byte
	bad    []bool // pages of buf
}

func newLoader(j *job) (*loader, error) {
	encode, err := j.out.encoder()
	if err != nil {
		return nil, err
	}
	size := max(readSize, j.info.BlockSize)
	l := &loader{job: j, encode: encode, buf: make([]byte, size), bad: make([]bool, size/j.info.BlockSize)}
	l.viewer, _ = j.src.(vmcore.Viewer)
	return l, nil
}

// load reads a batch's pages and encodes them.
func (l *loader) load(b *batch) {
	size := l.info.BlockSize
	for _, r := range b.runs {
		for r.n > 0 {
			n := min(r.n, uint64(len(l.bad)))
			l.read(l.buf[:n*size], r.first)
			for i := range n {
				pfn := r.first + i
				page := l.buf[i*size:][:size]
				if l.bad[i] {
					b.count.unreadable(phys.Range{Start: pfn * size, End: (pfn + 1) * size})
					if l.Format == KDump {
						continue
					}
					clear(page) // an ELF file has its place
				} else if l.Written != nil {
					l.Written(pfn*size, page)
				}
				l.encode(b, pfn, page)
			}
			r.first += n
			r.n -= n
		}
	}
}

// read reads the pages from first on into buf, and notes in l.bad which ones
// can't be read.
func (l *loader) read(buf []byte, first uint64) {
	size := l.info.BlockSize
	clear(l.bad)
	all := phys.Range{Start: first * size, End: first*size + uint64(len(buf))}
	var err error
	if l.viewer != nil {
		n := 0
		err = l.viewer.View(all, func(part []byte) { n += copy(buf[n:], part) })
		if err == nil && n < len(buf) {
			err = io.ErrUnexpectedEOF
		}
	} else {
		err = l.src.ReadPhys(buf, all.Start)
	}
	if err == nil {
		return
	}
	for i := range l.bad[:uint64(len(buf))/size] {
		at := all.Start + uint64(i)*size
		l.bad[i] = l.readPage(buf[uint64(i)*size:][:size], phys.Range{Start: at, End: at + size}) != nil
	}
}

// readPage reads one page. Parts of it that the source left out, or that are
// not memory, are zero: a segment of an ELF file may begin and end anywhere,
// and hold less than it describes. It returns an error if nothing of the page
// is there, or if a part can't be read.
func (l *loader) readPage(page []byte, r phys.Range) error {
	var first error
	some := false
	for at := r.Start; at < r.End; {
		rest := page[at-r.Start:]
		err := l.src.ReadPhys(rest, at)
		if err == nil {
			return nil
		}
		var missing *vmcore.MissingError
		if !errors.As(err, &missing) || missing.Reason == vmcore.Unreadable || missing.Range.Start < at || missing.Range.End <= at {
			return err
		}
		if first == nil {
			first = err
		}
		some = some || missing.Range.Start > at
		next := min(missing.Range.End, r.End)
		clear(page[missing.Range.Start-r.Start : next-r.Start])
		at = next
	}
	if !some {
		return first
	}
	return nil
}

// fill is the last page of equal words in a batch.
type fill struct {
	batch *batch
	times int
	word  uint64
	page  kdump.Page
}

// same returns the 64-bit word that all of the page consists of.
func same(page []byte) (word uint64, ok bool) {
	word = le.Uint64(page)
	// The middle first: in most pages a word differs early, and the call
	// costs more than this test.
	if le.Uint64(page[len(page)/2:]) != word || le.Uint64(page[8:]) != word {
		return 0, false
	}
	return word, bytes.Equal(page[8:], page[:len(page)-8])
}
