//go:build linux

// Package oldmem reads the memory of a crashed kernel from where the running
// kernel shows it: /proc/vmcore and device-dax.
//
// Invariants: a page that can't be read (a bad DIMM, a hole that the ELF core
// header should not have) makes that read fail and never ends the program; the
// source is never written to.
package oldmem

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
)

const page = 4 << 10 // bytes

// ErrNone says that there is no dump to read: no such file, or an empty one
// that hides it.
var ErrNone = errors.New("no memory of a crashed kernel")

// Source is an open dump.
type Source struct {
	file   *os.File
	size   uint64
	pieces []Piece // by offset, disjoint
}

// Open opens /proc/vmcore, or a dump file, at path. The error wraps ErrNone if
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
	return &Source{file: f, size: uint64(st.Size())}, nil
}

// Size returns the size of the dump in bytes.
func (s *Source) Size() uint64 { return s.size }

// ReadAt implements io.ReaderAt.
func (s *Source) ReadAt(p []byte, off int64) (int, error) { return s.file.ReadAt(p, off) }

// Close closes the file.
func (s *Source) Close() error { return s.file.Close() }
