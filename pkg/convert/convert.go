// Package convert writes dumps: it reads the memory of a source, leaves out
// the pages that a filter names, compresses the rest with several workers, and
// writes a kdump-compressed or an ELF file.
//
// It goes over the source twice. The first pass asks the filter about all
// pages, because the format puts the descriptors of all pages before their
// data; only a compressed map of the kept pages stays in memory. The second
// pass reads, compresses and writes the kept pages. There is no thread for
// reading or writing: a worker takes the next batch of pages, reads and
// compresses it. The worker that completes the oldest batch gives offsets to
// all batches that are ready, and any free worker writes a batch that has an
// offset. A worker without anything to do sleeps, so that more workers than
// CPUs cost nothing.
//
// Invariants: pages are in the file in the order of their addresses, whatever
// the number of workers, so that the same source gives the same file; each
// page is read once and copied before it is looked at, because memory may
// change if a device was not stopped; a page that can't be read, or that the
// source says could not be read, is left out and named in the result and in
// the files, and the conversion goes on; memory is used only for the batches,
// a few for each worker, and for the page map; the headers are written last,
// so that after an error or a kill the file is not taken for a dump.
package convert

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"runtime"
	"sync"

	"github.com/warmcore/warmcore/pkg/dumpfilter"
	"github.com/warmcore/warmcore/pkg/phys"
	"github.com/warmcore/warmcore/pkg/vmcore"
	"github.com/warmcore/warmcore/pkg/vmcore/kdump"
)

var le = binary.LittleEndian

// DefaultWorkers caps the workers that nobody asked for. Each needs about 1.5
// MiB: one for each of 256 CPUs would fill a capture boot's boot memory, and no
// disk is as fast.
const DefaultWorkers = 32

// Filter says which pages to leave out; a *dumpfilter.Filter is one.
type Filter interface {
	// PageSize is the size of the pages that Drop counts, in bytes: the
	// crashed kernel's page size.
	PageSize() uint64
	// Drop sets bit i%64 of dst[i/64] if page first+i is to be left out, for
	// all i below n. It is called by several goroutines at once.
	Drop(dst []uint64, first, n uint64) (dumpfilter.Counts, error)
}

// Format is the format of the dump to write.
type Format int

// Formats.
const (
	KDump Format = iota // kdump-compressed, in one file or several
	ELF                 // ELF core file
)

func (f Format) String() string {
	if f == ELF {
		return "elf"
	}
	return "kdump"
}

// ParseFormat returns the format that String prints as name.
func ParseFormat(name string) (Format, error) {
	for _, f := range []Format{KDump, ELF} {
		if f.String() == name {
			return f, nil
		}
	}
	return 0, fmt.Errorf("format %q, want kdump or elf", name)
}

// Options of Convert.
type Options struct {
	Format Format
	// Codec and Effort say how pages of a kdump file are compressed; see
	// kdump.NewEncoder.
	Codec  kdump.Codec
	Effort int
	// DumpLevel is the dump level in the header of a kdump file. At every
	// level pages of zeroes are in the file: they cost a page descriptor,
	// or a hole.
	DumpLevel int
	// Workers is how many goroutines work; 0 for one per CPU, at most
	// DefaultWorkers.
	Workers int
	// NoHoles writes zeroes where the file could have holes, which the
	// flattened form doesn't have.
	NoHoles bool
	// Planned is called between the passes with what is known by then:
	// Pages, Dropped, Counts, and Kept; some of the kept pages may turn
	// out to be unreadable. If it returns an error, the conversion ends
	// before anything is written.
	Planned func(Result) error
	// Written is called with each page that is written and its address, as it
	// was read, by several goroutines at once. It must not keep or change it.
	Written func(addr uint64, page []byte)
	// Progress is called now and then, by any goroutine, but one at a time.
	Progress func(Progress)
}

// Phase is a pass over the source.
type Phase int

// Phases.
const (
	Scanning Phase = iota // asking the filter
	Writing
)

// Progress says how far a phase is, in bytes of memory.
type Progress struct {
	Phase       Phase
	Done, Total uint64
}

// maxUnreadable is how many ranges of unreadable memory are listed.
const maxUnreadable = 4096

// Result says what Convert did. Counts are in pages of PageSize.
type Result struct {
	PageSize uint64 // size of the pages that are counted here, in bytes: the files' blocks
	Pages    uint64 // of memory
	Dropped  uint64 // by the filter
	Counts   dumpfilter.Counts
	Absent   uint64 // described by the source, but not in it
	Kept     uint64 // in the file, those of zeroes included
	Blank    uint64 // left out, but zero in an ELF file instead
	Zero     uint64 // of Kept, that are all zeroes
	Filled   uint64 // of Kept, whose 64-bit words are all the same but not zero
	Raw      uint64 // of Kept, that compression did not make smaller
	// Unreadable is memory that could not be read, either now or, as the
	// source says, when the source was written. It is missing in a kdump
	// file and zero in an ELF file. MoreUnreadable counts further pages
	// that are not listed. The files name the same memory, in the form of
	// vmcore.UnreadableText.
	Unreadable     phys.Set
	MoreUnreadable uint64
	// Data is the bytes of the pages in the files, Size is the files' sizes.
	Data     uint64
	Size     uint64
	Warnings []string
}

// job is one call of Convert.
type job struct {
	Options
	ctx    context.Context
	src    vmcore.Dump
	info   *vmcore.Info // the source's, but for BlockSize, which is that of the pages here
	pager  vmcore.Pager // nil if src is none
	filter Filter
	keep   keepMap
	out    output

	mu     sync.Mutex // of what follows
	result Result
}

// Convert writes the memory of src, without the pages that filter names (nil:
// none), to dst, whose files must be empty. Several files make a split kdump
// file. The result is valid only if the error is nil; after an error, the
// contents of dst are not a dump.
func Convert(ctx context.Context, src vmcore.Dump, filter Filter, dst []io.WriterAt, o Options) (Result, error) {
	r, err := convert(ctx, src, filter, dst, o)
	if err != nil {
		return Result{}, fmt.Errorf("write %v dump: %w", o.Format, err)
	}
	return r, nil
}

func convert(ctx context.Context, src vmcore.Dump, filter Filter, dst []io.WriterAt, o Options) (Result, error) {
	if o.Workers <= 0 {
		o.Workers = min(runtime.GOMAXPROCS(0), DefaultWorkers)
	}
	info := *src.Info()
	info.BlockSize = blockSize(&info, filter)
	switch {
	case len(dst) == 0 || len(dst) > 1 && o.Format != KDump:
		return Result{}, fmt.Errorf("%d files, want one, or several in kdump format", len(dst))
	case !vmcore.ValidPageSize(info.BlockSize):
		return Result{}, fmt.Errorf("pages of %d bytes, want a power of two from %d to %d", info.BlockSize, vmcore.MinPageSize, vmcore.MaxPageSize)
	case len(info.Memory) == 0:
		return Result{}, errors.New("the source describes no memory")
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	j := &job{Options: o, ctx: ctx, src: src, info: &info, filter: filter}
	j.pager, _ = src.(vmcore.Pager)
	j.result.PageSize = info.BlockSize
	if err := j.scan(); err != nil {
		return Result{}, err
	}
	if o.Planned != nil {
		planned := j.result
		planned.Kept = j.keep.pages
		if err := o.Planned(planned); err != nil {
			return Result{}, err
		}
	}
	open := j.openKDump
	if o.Format == ELF {
		open = j.openELF
	}
	if err := open(dst); err != nil {
		return Result{}, err
	}
	if err := j.pump(); err != nil {
		return Result{}, err
	}
	j.result.inherit(&info)
	if err := j.out.finish(); err != nil {
		return Result{}, err
	}
	return j.result, nil
}

// blockSize returns the unit in which memory is kept or left out, and the
// block size of the files: the kernel's page size, or the source's block size
// if that is smaller, because the source may have only some blocks of a page.
// A block of the source that is larger than a page counts as several pages.
func blockSize(info *vmcore.Info, filter Filter) uint64 {
	size := info.PageSize
	if info.BlockSize != 0 {
		size = min(size, info.BlockSize)
	}
	if filter != nil {
		size = min(size, filter.PageSize())
	}
	return size
}

// parallel runs worker in all goroutines and returns the first error, which
// ends the others when they next check the context.
func (j *job) parallel(worker func() error) error {
	ctx, cancel := context.WithCancelCause(j.ctx)
	defer cancel(nil)
	outer := j.ctx
	j.ctx = ctx
	var wg sync.WaitGroup
	for range j.Workers {
		wg.Go(func() {
			if err := worker(); err != nil {
				cancel(err)
			}
		})
	}
	wg.Wait()
	j.ctx = outer
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return nil
}

func (j *job) progress(p Progress) {
	if j.Progress == nil {
		return
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	p.Done = min(p.Done, p.Total)
	j.Progress(p)
}

// inherit adds the memory that the source names as unreadable.
func (r *Result) inherit(info *vmcore.Info) {
	r.MoreUnreadable += info.MoreUnreadable
	if len(info.Unreadable) == 0 {
		return
	}
	r.Unreadable = r.Unreadable.Union(info.Unreadable)
	for len(r.Unreadable) > maxUnreadable {
		last := len(r.Unreadable) - 1
		r.MoreUnreadable += (r.Unreadable[last].Size()-1)/r.PageSize + 1
		r.Unreadable = r.Unreadable[:last]
	}
}

func (j *job) unreadableText() []byte {
	return vmcore.UnreadableText(j.result.Unreadable, j.result.MoreUnreadable, j.info.BlockSize)
}

// unreadable notes a page that could not be read.
func (r *Result) unreadable(page phys.Range) {
	n := len(r.Unreadable)
	switch {
	case n > 0 && r.Unreadable[n-1].End == page.Start:
		r.Unreadable[n-1].End = page.End
	case n == maxUnreadable:
		r.MoreUnreadable++
	default:
		r.Unreadable = append(r.Unreadable, page)
	}
}
