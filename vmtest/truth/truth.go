// Package truth judges dumps by what was in a machine's memory: it compares the
// RAM, as QEMU saw it at one moment, with a dump page by page, and computes
// again the pages that a guest painted. It starts nothing, and of the machine
// it knows only the layout of its RAM.
package truth

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/warmcore/warmcore/pkg/phys"
	"github.com/warmcore/warmcore/vmtest/holes"
)

// Layout is where a machine has its RAM, in the order of the RAM file. The
// file has no holes where the address space has some.
type Layout []phys.Range

// RAM returns a Layout's memory as a set.
func (l Layout) RAM() phys.Set { return phys.NewSet(l...) }

// Offset returns where the byte at physical address addr is in the RAM file;
// ok is false where there is no RAM.
func (l Layout) Offset(addr uint64) (off uint64, ok bool) {
	for _, r := range l {
		if addr >= r.Start && addr < r.End {
			return off + addr - r.Start, true
		}
		off += r.Size()
	}
	return 0, false
}

// RAM is a machine's RAM at one moment, read by physical address.
type RAM struct {
	layout Layout
	file   *os.File
}

// New reads RAM from a RAM file, which the caller closes.
func New(file *os.File, layout Layout) *RAM { return &RAM{layout, file} }

// Open opens a copy of a RAM file, which Close removes.
func Open(path string, layout Layout) (*RAM, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	fi, err := f.Stat()
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	if size := layout.RAM().Size(); uint64(fi.Size()) != size {
		return nil, errors.Join(fmt.Errorf("open truth %s: %d bytes, want the %d of the machine's RAM", path, fi.Size(), size), f.Close())
	}
	return &RAM{layout, f}, nil
}

// Ranges returns the physical addresses at which the machine has RAM.
func (t *RAM) Ranges() phys.Set { return t.layout.RAM() }

// Close closes and removes the copy.
func (t *RAM) Close() error {
	return errors.Join(t.file.Close(), os.Remove(t.file.Name()))
}

// Keep copies the RAM file to path, holes kept.
func (t *RAM) Keep(ctx context.Context, path string) error {
	_, err := holes.Copy(ctx, path, t.file.Name())
	return err
}

// ErrNotRAM is the error for reading where the machine has no RAM.
var ErrNotRAM = errors.New("no RAM there")

// ReadAt reads physical memory at addr.
func (t *RAM) ReadAt(b []byte, addr int64) (int, error) {
	r, ok := phys.Sized(uint64(addr), uint64(len(b)))
	off, in := t.layout.Offset(uint64(addr))
	if !ok || !in || !t.Ranges().Contains(r) {
		return 0, fmt.Errorf("read %d bytes of truth at %#x: %w", len(b), addr, ErrNotRAM)
	}
	return t.file.ReadAt(b, int64(off))
}

var _ io.ReaderAt = (*RAM)(nil)
