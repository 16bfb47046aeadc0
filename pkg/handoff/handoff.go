// Package handoff finds the handoff area and moves bytes to and from it. What
// the bytes mean is pkg/registration's business; nothing here decodes them.
//
// Invariants: nothing outside the area is read or written, whatever offset a
// caller gives; ReadAll returns a private copy, because the area may change
// while it is being read.
package handoff

import (
	"errors"
	"fmt"
	"math/bits"
	"strings"

	"github.com/warmcore/warmcore/pkg/binding"
	"github.com/warmcore/warmcore/pkg/cmdline"
	"github.com/warmcore/warmcore/pkg/phys"
)

// Bounds of an area's size, in bytes. They catch garbage on a command line;
// pkg/registration knows what it needs.
const (
	MinSize = 64 * phys.KiB
	MaxSize = 64 * phys.MiB
)

// ErrNone says that nothing names a handoff area, a device tree neither: the
// payload didn't start this kernel.
var ErrNone = errors.New("no " + binding.ParamHandoff + "= on the kernel command line")

// Parse finds the handoff area in a kernel command line. Of several
// parameters the last counts, as for the kernel's own.
func Parse(line string) (phys.Range, error) {
	param, found := cmdline.Parse(line).Last(binding.ParamHandoff)
	if !found {
		return phys.Range{}, ErrNone
	}
	value := param.Value
	addr, size, ok := strings.Cut(value, ",")
	if !ok {
		return phys.Range{}, fmt.Errorf("%s=%q: want ADDR,SIZE", binding.ParamHandoff, value)
	}
	start, err := phys.ParseSize(addr)
	if err != nil {
		return phys.Range{}, fmt.Errorf("%s=%q: address: %w", binding.ParamHandoff, value, err)
	}
	n, err := phys.ParseSize(size)
	if err != nil {
		return phys.Range{}, fmt.Errorf("%s=%q: size: %w", binding.ParamHandoff, value, err)
	}
	r, ok := phys.Sized(start, n)
	if !ok {
		return phys.Range{}, fmt.Errorf("%s=%q: beyond 64 bits", binding.ParamHandoff, value)
	}
	if err := check(r); err != nil {
		return phys.Range{}, fmt.Errorf("%s=%q: %w", binding.ParamHandoff, value, err)
	}
	return r, nil
}

// check refuses what can't be a handoff area.
func check(r phys.Range) error {
	switch {
	case r.Size() < MinSize || r.Size() > MaxSize:
		return fmt.Errorf("size is %s, want %s to %s", phys.FormatSize(r.Size()), phys.FormatSize(MinSize), phys.FormatSize(MaxSize))
	case r.Start < phys.MiB:
		return errors.New("below 1 MiB, which firmware overwrites")
	case r.Start%phys.PageSize != 0 || r.End%phys.PageSize != 0:
		return errors.New("not whole pages")
	}
	return nil
}

// Memory is physical memory, as pkg/physmem gives it.
type Memory interface {
	ReadPhys(p []byte, addr uint64) error
	WritePhys(p []byte, addr uint64) error
}

// Area is the handoff area in memory.
type Area struct {
	where phys.Range
	mem   Memory
}

// New returns the area at where, a range that Find or Parse returned.
func New(where phys.Range, mem Memory) *Area { return &Area{where, mem} }

// Range returns where the area is.
func (a *Area) Range() phys.Range { return a.where }

// ReadAll returns a private copy of the area.
func (a *Area) ReadAll() ([]byte, error) {
	b := make([]byte, a.where.Size())
	if err := a.mem.ReadPhys(b, a.where.Start); err != nil {
		return nil, fmt.Errorf("read handoff area %v: %w", a.where, err)
	}
	return b, nil
}

// WriteAt writes p at off bytes into the area. The bytes become valid in no
// particular order: whoever encodes them arranges for a torn write.
func (a *Area) WriteAt(p []byte, off uint64) error {
	end, carry := bits.Add64(off, uint64(len(p)), 0)
	if carry != 0 || end > a.where.Size() {
		return fmt.Errorf("write %d bytes at %#x of handoff area %v: beyond its end", len(p), off, a.where)
	}
	if err := a.mem.WritePhys(p, a.where.Start+off); err != nil {
		return fmt.Errorf("write %d bytes at %#x of handoff area %v: %w", len(p), off, a.where, err)
	}
	return nil
}
