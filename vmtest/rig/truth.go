package rig

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/warmcore/warmcore/pkg/phys"
)

// Truth is the RAM of a machine as QEMU saw it at one moment.
type Truth struct {
	Arch   *Arch
	Memory uint64 // bytes of RAM
	file   *os.File
}

// CopyRAM copies the RAM of a machine that stands still. The copy lies where
// the RAM lies, and ends with the machine or with Truth.Close.
func (m *Machine) CopyRAM(ctx context.Context) (*Truth, error) {
	m.copies++
	path := filepath.Join(filepath.Dir(m.ram), fmt.Sprintf("truth-%d", m.copies))
	n, err := copySparse(ctx, path, m.ram)
	if err != nil {
		return nil, m.fail("copy the RAM", err)
	}
	m.Timeline.Note("ram-copied", fmt.Sprintf("%s of data", phys.FormatSize(uint64(n))))
	t, err := OpenTruth(m.opts.arch(), path)
	return t, m.fail("copy the RAM", err)
}

// RAM returns where the machine has it.
func (t *Truth) RAM() phys.Set { return t.Arch.RAM(t.Memory) }

// OpenTruth opens a copy of a RAM file.
func OpenTruth(arch *Arch, path string) (*Truth, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	fi, err := f.Stat()
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return &Truth{Arch: arch, Memory: uint64(fi.Size()), file: f}, nil
}

// Close closes and removes the copy.
func (t *Truth) Close() error {
	return errors.Join(t.file.Close(), os.Remove(t.file.Name()))
}

// Keep copies the truth to path, holes kept.
func (t *Truth) Keep(ctx context.Context, path string) error {
	_, err := copySparse(ctx, path, t.file.Name())
	return err
}

// ErrNotRAM is the error for reading where the machine has no RAM.
var ErrNotRAM = errors.New("no RAM there")

// ReadAt reads physical memory at addr.
func (t *Truth) ReadAt(b []byte, addr int64) (int, error) {
	r, ok := phys.Sized(uint64(addr), uint64(len(b)))
	off, in := t.Arch.Offset(t.Memory, uint64(addr))
	if !ok || !in || !t.RAM().Contains(r) {
		return 0, fmt.Errorf("read %d bytes of truth at %#x: %w", len(b), addr, ErrNotRAM)
	}
	return t.file.ReadAt(b, int64(off))
}

// chunk is what is read at once, in bytes.
const chunk = 4 << 20

// copySparse copies the data of from, not its holes, with all CPUs. It returns
// the number of bytes copied.
func copySparse(ctx context.Context, to, from string) (n int64, err error) {
	src, err := os.Open(from)
	if err != nil {
		return 0, err
	}
	defer src.Close()
	fi, err := src.Stat()
	if err != nil {
		return 0, err
	}
	dst, err := os.Create(to)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, dst.Close()) }()
	if err := dst.Truncate(fi.Size()); err != nil {
		return 0, err
	}
	return copyData(ctx, dst, 0, src, phys.Range{End: uint64(fi.Size())})
}

// copyData copies the data of a part of src to dst at offset to, with all
// CPUs, and nothing where src has holes. It returns the number of bytes copied.
func copyData(ctx context.Context, dst *os.File, to uint64, src *os.File, from phys.Range) (n int64, err error) {
	extents, err := dataExtents(src, int64(from.End))
	if err != nil {
		return 0, err
	}
	var jobs []phys.Range
	for _, e := range extents {
		e = e.Intersect(from)
		n += int64(e.Size())
		jobs = append(jobs, split(e, chunk)...)
	}
	return n, parallel(ctx, jobs, func() func(phys.Range) error {
		buf := make([]byte, chunk)
		return func(r phys.Range) error {
			b := buf[:r.Size()]
			if _, err := src.ReadAt(b, int64(r.Start)); err != nil {
				return err
			}
			_, err := dst.WriteAt(b, int64(r.Start-from.Start+to))
			return err
		}
	})
}

// dataExtents returns the parts of f that aren't holes.
func dataExtents(f *os.File, size int64) ([]phys.Range, error) {
	var out []phys.Range
	for pos := int64(0); pos < size; {
		start, err := unix.Seek(int(f.Fd()), pos, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			break // only a hole is left
		}
		if err != nil {
			return nil, fmt.Errorf("find data in %s: %w", f.Name(), err)
		}
		end, err := unix.Seek(int(f.Fd()), start, unix.SEEK_HOLE)
		if err != nil {
			return nil, fmt.Errorf("find hole in %s: %w", f.Name(), err)
		}
		out = append(out, phys.Range{Start: uint64(start), End: uint64(end)})
		pos = end
	}
	return out, nil
}

// split cuts r at multiples of size from its start.
func split(r phys.Range, size uint64) []phys.Range {
	var out []phys.Range
	for ; !r.Empty(); r.Start += size {
		out = append(out, phys.Range{Start: r.Start, End: min(r.Start+size, r.End)})
	}
	return out
}

// parallel does jobs with all CPUs. worker makes the function of one of them.
// The first error ends all.
func parallel[Job any](ctx context.Context, jobs []Job, worker func() func(Job) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	queue := make(chan Job)
	var wg sync.WaitGroup
	for range min(runtime.NumCPU(), len(jobs)) {
		wg.Go(func() {
			do := worker()
			for j := range queue {
				if err := do(j); err != nil {
					cancel(err)
					return
				}
			}
		})
	}
	for _, j := range jobs {
		select {
		case queue <- j:
			continue
		case <-ctx.Done():
		}
		break
	}
	close(queue)
	wg.Wait()
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return nil
}

var _ io.ReaderAt = (*Truth)(nil)
