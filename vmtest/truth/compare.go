package truth

import (
	"bytes"
	"context"
	"debug/elf"
	"fmt"
	"io"
	"slices"
	"sync"

	"github.com/warmcore/warmcore/pkg/phys"
	"github.com/warmcore/warmcore/pkg/vmcore"
	"github.com/warmcore/warmcore/pkg/vmcore/kdump"
	"github.com/warmcore/warmcore/vmtest/guest/wire"
	"github.com/warmcore/warmcore/vmtest/holes"
	"github.com/warmcore/warmcore/vmtest/parallel"
)

// maxWrong is how many addresses of wrong or missing pages are kept.
const maxWrong = 10

// Comparison is the result of comparing memory page by page. Counts are pages.
type Comparison struct {
	Compared uint64
	Wrong    uint64
	Missing  uint64 // expected, but not in the dump
	// FirstWrong and FirstMissing are up to ten physical addresses each,
	// the lowest.
	FirstWrong, FirstMissing []uint64
}

func (c Comparison) String() string {
	return fmt.Sprintf("%d pages compared, %d wrong %#x, %d missing %#x", c.Compared, c.Wrong, c.FirstWrong, c.Missing, c.FirstMissing)
}

// OK says whether anything was compared and all of it was right.
func (c Comparison) OK() bool { return c.Compared > 0 && c.Wrong == 0 && c.Missing == 0 }

func lowest(addrs []uint64) []uint64 {
	slices.Sort(addrs)
	return addrs[:min(len(addrs), maxWrong)]
}

// Dump is the memory in a dump, by physical address.
type Dump struct {
	r        io.ReaderAt
	segments []segment   // of an ELF vmcore
	kdump    vmcore.Dump // nil for an ELF vmcore
	held     phys.Set    // by the kdump file
}

// segment is a part of a dump's file and the memory that it holds.
type segment struct {
	mem phys.Range
	off uint64
}

// OpenDump opens a dump of size bytes. Of an ELF vmcore it reads the program
// headers, without any code that the product shares: its memory is what the
// PT_LOADs have in the file; a PT_LOAD that is longer in memory than in the
// file has only the part in the file. Of a kdump file its memory is the pages
// in its 2nd bitmap.
func OpenDump(r io.ReaderAt, size int64) (*Dump, error) {
	magic := make([]byte, len(kdump.Signature))
	if _, err := r.ReadAt(magic, 0); err == nil && string(magic) == kdump.Signature {
		return openKDump(r, size)
	}
	f, err := elf.NewFile(r)
	if err != nil {
		return nil, fmt.Errorf("read dump: %w", err)
	}
	if f.Type != elf.ET_CORE {
		return nil, fmt.Errorf("read dump: ELF type %v, want %v", f.Type, elf.ET_CORE)
	}
	d := &Dump{r: r}
	for i, p := range f.Progs {
		if p.Type != elf.PT_LOAD || p.Filesz == 0 {
			continue
		}
		mem, ok := phys.Sized(p.Paddr, p.Filesz)
		if !ok || p.Off > 1<<62 {
			return nil, fmt.Errorf("read dump: program header %d: %d bytes at %#x from offset %#x", i, p.Filesz, p.Paddr, p.Off)
		}
		d.segments = append(d.segments, segment{mem, p.Off})
	}
	return d, nil
}

func openKDump(r io.ReaderAt, size int64) (*Dump, error) {
	k, err := kdump.New(r, size)
	if err != nil {
		return nil, fmt.Errorf("read dump: %w", err)
	}
	d := &Dump{r: r, kdump: k}
	pageSize := k.Info().BlockSize
	for _, m := range k.Info().Memory {
		for at := m.Start; at < m.End; at += pageSize {
			if !k.Holds(phys.Range{Start: at, End: at + pageSize}) {
				continue
			}
			if n := len(d.held); n > 0 && d.held[n-1].End == at {
				d.held[n-1].End += pageSize
				continue
			}
			d.held = append(d.held, phys.Range{Start: at, End: at + pageSize})
		}
	}
	return d, nil
}

// Format returns "elf" or "kdump".
func (d *Dump) Format() string {
	if d.kdump != nil {
		return "kdump"
	}
	return "elf"
}

// Memory returns what the dump holds.
func (d *Dump) Memory() phys.Set {
	if d.kdump != nil {
		return d.held
	}
	var all []phys.Range
	for _, s := range d.segments {
		all = append(all, s.mem)
	}
	return phys.NewSet(all...)
}

// ReadAt reads physical memory at addr, which must be in one PT_LOAD of an ELF
// vmcore.
func (d *Dump) ReadAt(b []byte, addr int64) (int, error) {
	if d.kdump != nil {
		if err := d.kdump.ReadPhys(b, uint64(addr)); err != nil {
			return 0, err
		}
		return len(b), nil
	}
	r, ok := phys.Sized(uint64(addr), uint64(len(b)))
	for _, s := range d.segments {
		if ok && s.mem.Contains(r) {
			return d.r.ReadAt(b, int64(s.off+r.Start-s.mem.Start))
		}
	}
	return 0, fmt.Errorf("read %d bytes of the dump at %#x: %w", len(b), addr, ErrNotRAM)
}

// job is memory to compare; an ELF vmcore has it at off.
type job struct {
	mem   phys.Range
	off   uint64
	count bool // it was not compared before
}

// jobs returns what a dump has of the expected memory, and which memory that
// is.
func (d *Dump) jobs(expected phys.Set) (jobs []job, done phys.Set) {
	if d.kdump != nil {
		for _, e := range expected {
			for _, r := range d.held {
				if r = r.Intersect(e).AlignIn(phys.PageSize); r.Empty() {
					continue
				}
				done = append(done, r)
				for _, piece := range holes.Split(r, holes.Chunk) {
					jobs = append(jobs, job{piece, 0, true})
				}
			}
		}
		return jobs, done
	}
	for _, s := range d.segments {
		in := phys.NewSet(s.mem).AlignIn(phys.PageSize).Intersect(expected)
		for _, r := range in {
			for _, part := range []struct {
				set   phys.Set
				count bool
			}{{phys.NewSet(r).Minus(done), true}, {phys.NewSet(r).Intersect(done), false}} {
				for _, p := range part.set {
					for _, piece := range holes.Split(p, holes.Chunk) {
						jobs = append(jobs, job{piece, s.off + piece.Start - s.mem.Start, part.count})
					}
				}
			}
		}
		done = done.Union(in)
	}
	return jobs, done
}

// read reads the memory of a job.
func (d *Dump) read(b []byte, j job) error {
	if d.kdump != nil {
		return d.kdump.ReadPhys(b, j.mem.Start)
	}
	if n, err := d.r.ReadAt(b, int64(j.off)); n < len(b) {
		return fmt.Errorf("read the dump of %v at offset %#x: %w", j.mem, j.off, err)
	}
	return nil
}

// Compare compares every whole page of the dump with the truth, without the
// pages in excluded. Memory that the dump holds twice (the kernel's text has a
// PT_LOAD of its own) is compared twice and counted once. Missing is RAM that
// is neither in the dump nor excluded.
func (t *RAM) Compare(ctx context.Context, d *Dump, excluded phys.Set) (Comparison, error) {
	expected := t.Ranges().Minus(excluded)
	var c Comparison
	jobs, done := d.jobs(expected)
	for _, r := range expected.Minus(done) {
		c.Missing += (r.Size() + phys.PageSize - 1) / phys.PageSize
		for a := r.Start; a < r.End && len(c.FirstMissing) < maxWrong; a += phys.PageSize {
			c.FirstMissing = append(c.FirstMissing, a)
		}
	}
	var mu sync.Mutex
	err := parallel.Do(ctx, jobs, func() func(job) error {
		bufA, bufB := make([]byte, holes.Chunk), make([]byte, holes.Chunk)
		return func(j job) error {
			a, b := bufA[:j.mem.Size()], bufB[:j.mem.Size()]
			if _, err := t.ReadAt(a, int64(j.mem.Start)); err != nil {
				return err
			}
			if err := d.read(b, j); err != nil {
				return err
			}
			var wrong []uint64
			if !bytes.Equal(a, b) {
				for i := uint64(0); i < j.mem.Size(); i += phys.PageSize {
					if !bytes.Equal(a[i:i+phys.PageSize], b[i:i+phys.PageSize]) {
						wrong = append(wrong, j.mem.Start+i)
					}
				}
			}
			mu.Lock()
			defer mu.Unlock()
			if j.count {
				c.Compared += j.mem.Size() / phys.PageSize
			}
			c.Wrong += uint64(len(wrong))
			c.FirstWrong = lowest(append(c.FirstWrong, wrong...))
			return nil
		}
	})
	if err != nil {
		return Comparison{}, err
	}
	return c, nil
}

// CompareHeld compares what the dump holds with the truth, without the pages in
// excluded: nothing of a filtered dump is missing.
func (t *RAM) CompareHeld(ctx context.Context, d *Dump, excluded phys.Set) (Comparison, error) {
	c, err := t.Compare(ctx, d, excluded)
	c.Missing, c.FirstMissing = 0, nil
	return c, err
}

// Painting is where a guest's painted pages lie.
type Painting struct {
	Seed uint64
	Runs []wire.Run
}

// Memory returns the painted pages.
func (p Painting) Memory() (phys.Set, error) {
	var all []phys.Range
	for _, r := range p.Runs {
		mem, err := r.Range()
		if err != nil {
			return nil, err
		}
		all = append(all, mem)
	}
	return phys.NewSet(all...), nil
}

// Compare computes each painted page again and compares it with memory, a
// RAM or a Dump that holds has, without the pages in excluded. Painted pages
// outside has are missing.
func (p Painting) Compare(ctx context.Context, memory io.ReaderAt, has, excluded phys.Set) (Comparison, error) {
	var c Comparison
	var mu sync.Mutex
	err := parallel.Do(ctx, p.Runs, func() func(wire.Run) error {
		got, want := make([]byte, phys.PageSize), make([]byte, phys.PageSize)
		return func(run wire.Run) error {
			mem, err := run.Range()
			if err != nil {
				return err
			}
			var one Comparison
			for i := range run.Count {
				page, _ := phys.Sized(mem.Start+i*phys.PageSize, phys.PageSize)
				switch {
				case excluded.Overlaps(page):
					continue
				case !has.Contains(page):
					one.Missing++
					one.FirstMissing = append(one.FirstMissing, page.Start)
					continue
				}
				if err := wire.Fill(want, p.Seed, run.Index+i); err != nil {
					return err
				}
				if _, err := memory.ReadAt(got, int64(page.Start)); err != nil {
					return err
				}
				one.Compared++
				if !bytes.Equal(got, want) {
					one.Wrong++
					one.FirstWrong = append(one.FirstWrong, page.Start)
				}
			}
			mu.Lock()
			defer mu.Unlock()
			c.Compared += one.Compared
			c.Wrong += one.Wrong
			c.Missing += one.Missing
			c.FirstWrong = lowest(append(c.FirstWrong, one.FirstWrong...))
			c.FirstMissing = lowest(append(c.FirstMissing, one.FirstMissing...))
			return nil
		}
	})
	if err != nil {
		return Comparison{}, err
	}
	return c, nil
}
