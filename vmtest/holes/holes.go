// Package holes copies files with holes, and makes them: the RAM of a machine,
// disk images and dumps are mostly holes.
package holes

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/warmcore/warmcore/pkg/phys"
	"github.com/warmcore/warmcore/vmtest/parallel"
)

// Chunk is what is read at once, in bytes.
const Chunk = 4 << 20

// Copy copies the data of from, not its holes, with all CPUs. It returns
// the number of bytes copied.
func Copy(ctx context.Context, to, from string) (n int64, err error) {
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
	return CopyRange(ctx, dst, 0, src, phys.Range{End: uint64(fi.Size())})
}

// CopyRange copies the data of a part of src to dst at offset to, with all
// CPUs, and nothing where src has holes. It returns the number of bytes copied.
func CopyRange(ctx context.Context, dst *os.File, to uint64, src *os.File, from phys.Range) (n int64, err error) {
	extents, err := dataExtents(src, int64(from.End))
	if err != nil {
		return 0, err
	}
	var jobs []phys.Range
	for _, e := range extents {
		e = e.Intersect(from)
		n += int64(e.Size())
		jobs = append(jobs, Split(e, Chunk)...)
	}
	return n, parallel.Do(ctx, jobs, func() func(phys.Range) error {
		buf := make([]byte, Chunk)
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

// Split cuts r at multiples of size from its start.
func Split(r phys.Range, size uint64) []phys.Range {
	var out []phys.Range
	for ; !r.Empty(); r.Start += size {
		out = append(out, phys.Range{Start: r.Start, End: min(r.Start+size, r.End)})
	}
	return out
}

// Writer writes a file front to back and leaves holes for pages of zeros. Flush
// must come last.
type Writer struct {
	f    *os.File
	off  int64  // of buf in the file
	buf  []byte // less than a page
	zero [phys.PageSize]byte
}

// NewWriter returns a Writer of f, which is empty.
func NewWriter(f *os.File) *Writer { return &Writer{f: f} }

func (s *Writer) Write(b []byte) (int, error) {
	const page = int(phys.PageSize)
	s.buf = append(s.buf, b...)
	whole := len(s.buf) &^ (page - 1)
	for start := 0; start < whole; {
		// A run of pages of one sort is one write.
		isZero := func(i int) bool { return bytes.Equal(s.buf[i:i+page], s.zero[:]) }
		end, zero := start+page, isZero(start)
		for end < whole && isZero(end) == zero {
			end += page
		}
		if !zero {
			if _, err := s.f.WriteAt(s.buf[start:end], s.off+int64(start)); err != nil {
				return 0, err
			}
		}
		start = end
	}
	s.off += int64(whole)
	s.buf = append(s.buf[:0], s.buf[whole:]...)
	return len(b), nil
}

// Flush writes the rest and sets the size.
func (s *Writer) Flush() error {
	if _, err := s.f.WriteAt(s.buf, s.off); err != nil {
		return err
	}
	return s.f.Truncate(s.off + int64(len(s.buf)))
}
