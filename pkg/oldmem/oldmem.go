//go:build linux

// Package oldmem moves the memory of a crashed kernel from where the running
// kernel offers it, /proc/vmcore, to a file.
//
// Invariants: a page that can't be read (a bad DIMM, a hole that the ELF core
// header should not have) becomes zeroes in the file and an entry in the
// result, never the end of the dump or of the program; the source is only
// read; the file that Copy leaves behind has the size of the source.
package oldmem

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"runtime"
	"runtime/debug"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/warmcore/warmcore/pkg/phys"
)

// Sizes in bytes.
const (
	// Window is how much is mapped and copied at a time: enough to make the
	// cost of the system calls vanish, and little enough for boot memory.
	Window = 16 << 20
	// Granule is the unit in which zeroes become holes in the file, and of
	// Result.Tree.
	Granule = 64 << 10

	page = 4 << 10
	// maxUnreadable is how many unreadable ranges are listed; further ones
	// are counted in Result.MoreUnreadable.
	maxUnreadable = 4096
)

// ErrNone says that there is no dump to read: no such file, or an empty one
// that hides it.
var ErrNone = errors.New("no memory of a crashed kernel")

// Source is an open dump.
type Source struct {
	file *os.File
	size uint64
}

// Open opens /proc/vmcore or an ELF dump at path. The error wraps ErrNone if
// there is none.
func Open(path string) (*Source, error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("open %s: %w", path, ErrNone)
	}
	if err != nil {
		return nil, fmt.Errorf("open dump: %w", err)
	}
	st, err := f.Stat()
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("open dump: %w", err)
	}
	if st.Size() == 0 {
		f.Close()
		return nil, fmt.Errorf("open %s: empty: %w", path, ErrNone)
	}
	if !st.Mode().IsRegular() {
		f.Close()
		return nil, fmt.Errorf("open %s: not a regular file", path)
	}
	return &Source{f, uint64(st.Size())}, nil
}

// Size returns the size of the dump in bytes.
func (s *Source) Size() uint64 { return s.size }

// ReadAt implements io.ReaderAt.
func (s *Source) ReadAt(p []byte, off int64) (int, error) { return s.file.ReadAt(p, off) }

// Close closes the file.
func (s *Source) Close() error { return s.file.Close() }

// Result is what Copy did. Units are bytes, offsets are in the dump.
type Result struct {
	Size    uint64 // of the file
	Written uint64 // of it, written: the rest is holes
	// Tree is the SHA-256 of the SHA-256s of all granules, the last of which
	// may be short. Unlike that of the whole file it is computed on all CPUs,
	// and zeroes cost nothing.
	Tree [sha256.Size]byte
	// SHA256 is that of the whole file; zero unless Options asked for it.
	SHA256 [sha256.Size]byte
	// Unreadable lists what could not be read and is zero in the file;
	// MoreUnreadable is how much more there was.
	Unreadable     []phys.Range
	MoreUnreadable uint64
}

// Options of Copy.
type Options struct {
	SHA256   bool              // of the whole file, too: one CPU's work
	Progress func(done uint64) // called after each window with the bytes done
}

// buffer is a piece of the dump on its way.
type buffer struct {
	data       []byte
	off        uint64
	unreadable []phys.Range
}

// Copy copies the dump to dst, an empty file, with zeroes as holes. The file
// is not synced.
func (s *Source) Copy(dst *os.File, o Options) (Result, error) {
	// Says early if the file system can't hold a file of this size.
	if err := dst.Truncate(int64(s.size)); err != nil {
		return Result{}, fmt.Errorf("make %s %d bytes long: %w", dst.Name(), s.size, err)
	}
	full, free := make(chan *buffer), make(chan *buffer, 2)
	free <- &buffer{data: make([]byte, Window)}
	free <- &buffer{data: make([]byte, Window)}
	stop := make(chan struct{})
	go func() {
		defer close(full)
		for off := uint64(0); off < s.size; off += Window {
			select {
			case b := <-free:
				b.off = off
				b.data = b.data[:min(Window, s.size-off)]
				b.unreadable = s.fill(b.data, off)
				full <- b
			case <-stop:
				return
			}
		}
	}()
	// Reading a window overlaps with hashing and writing the one before.
	result := Result{Size: s.size}
	tree, whole := sha256.New(), sha256.New()
	var failed error
	for b := range full {
		if failed != nil {
			continue // the reader is about to see stop
		}
		for _, r := range b.unreadable {
			result.unreadable(r)
		}
		var hashing sync.WaitGroup
		hashing.Go(func() { tree.Write(leaves(b.data)) })
		if o.SHA256 {
			hashing.Go(func() { whole.Write(b.data) })
		}
		n, err := writeSparse(dst, b.data, b.off)
		hashing.Wait()
		result.Written += n
		if err != nil {
			failed = fmt.Errorf("write dump at offset %#x: %w", b.off, err)
			close(stop)
			continue
		}
		if o.Progress != nil {
			o.Progress(b.off + uint64(len(b.data)))
		}
		free <- b
	}
	if failed != nil {
		return Result{}, failed
	}
	tree.Sum(result.Tree[:0])
	if o.SHA256 {
		whole.Sum(result.SHA256[:0])
	}
	return result, nil
}

// leaves returns the SHA-256s of p's granules, one behind the other.
func leaves(p []byte) []byte {
	n := (len(p) + Granule - 1) / Granule
	sums := make([]byte, n*sha256.Size)
	workers := min(runtime.GOMAXPROCS(0), n)
	var wg sync.WaitGroup
	for w := range workers {
		wg.Go(func() {
			for i := w; i < n; i += workers {
				g := p[i*Granule : min((i+1)*Granule, len(p))]
				sum := zeroSum
				if len(g) < Granule || !zero(g) {
					sum = sha256.Sum256(g)
				}
				copy(sums[i*sha256.Size:], sum[:])
			}
		})
	}
	wg.Wait()
	return sums
}

// zeroSum is the SHA-256 of a granule of zeroes.
var zeroSum = sha256.Sum256(zeroes[:])

func (r *Result) unreadable(x phys.Range) {
	if n := len(r.Unreadable); n > 0 && r.Unreadable[n-1].End == x.Start {
		r.Unreadable[n-1].End = x.End
		return
	}
	if len(r.Unreadable) == maxUnreadable {
		r.MoreUnreadable += x.Size()
		return
	}
	r.Unreadable = append(r.Unreadable, x)
}

// fill reads len(p) bytes at off, page aligned, and returns what it couldn't.
func (s *Source) fill(p []byte, off uint64) (unreadable []phys.Range) {
	mem, err := unix.Mmap(int(s.file.Fd()), int64(off), len(p), unix.PROT_READ, unix.MAP_PRIVATE)
	if err != nil {
		// Not every kernel, nor every file system, maps; reading always works.
		return each(p, off, func(part []byte, at uint64) bool {
			n, err := s.file.ReadAt(part, int64(at))
			return n == len(part) && (err == nil || errors.Is(err, io.EOF))
		})
	}
	defer unix.Munmap(mem)
	return each(p, off, func(part []byte, at uint64) bool {
		return copyFaulty(part, mem[at-off:])
	})
}

// each reads p with read, at once if that works, and else page by page.
func each(p []byte, off uint64, read func(part []byte, at uint64) bool) (unreadable []phys.Range) {
	if read(p, off) {
		return nil
	}
	for i := 0; i < len(p); i += page {
		part := p[i:min(i+page, len(p))]
		at := off + uint64(i)
		if !read(part, at) {
			clear(part)
			unreadable = append(unreadable, phys.Range{Start: at, End: at + uint64(len(part))})
		}
	}
	return unreadable
}

// copyFaulty copies from memory that may not be there; ok is false if it
// wasn't. The kernel says so with SIGBUS, which ends a program that doesn't ask
// for more.
func copyFaulty(dst, src []byte) (ok bool) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if x := recover(); x != nil {
			if _, fault := x.(interface{ Addr() uintptr }); !fault {
				panic(x)
			}
			ok = false
		}
	}()
	copy(dst, src)
	return true
}

var zeroes [Granule]byte

// writeSparse writes those granules of p that aren't all zero.
func writeSparse(dst *os.File, p []byte, off uint64) (written uint64, err error) {
	for start := 0; start < len(p); {
		end := start
		for end < len(p) && !zero(p[end:min(end+Granule, len(p))]) {
			end = min(end+Granule, len(p))
		}
		if end == start {
			start += Granule
			continue
		}
		n, err := dst.WriteAt(p[start:end], int64(off)+int64(start))
		written += uint64(n)
		if err != nil {
			return written, err
		}
		start = end
	}
	return written, nil
}

func zero(p []byte) bool { return bytes.Equal(p, zeroes[:len(p)]) }
