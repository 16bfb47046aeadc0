// Package physmemtest is physical memory for tests: RAM with holes and faults
// that remembers what was written to it.
//
// Memory holds only the pages that aren't zero, so a machine of many GiB
// costs what its test writes. Everything outside RAM is a hole: an error to
// read or write, as mapping it would be. A write outside Writable fails the
// test itself, because no caller has an excuse for it.
package physmemtest

import (
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"

	"github.com/warmcore/warmcore/pkg/phys"
)

// ErrHole is what access outside RAM gives, and ErrFault access to Bad memory.
var (
	ErrHole  = errors.New("no memory there")
	ErrFault = errors.New("memory fault")
)

// Op is what wrote.
type Op string

// The operations.
const (
	Write Op = "write"
	Zero  Op = "zero"
	Copy  Op = "copy"
)

// Access is one operation that changed memory, in the order of the calls.
type Access struct {
	Op    Op
	Range phys.Range // what was written
}

func (a Access) String() string { return fmt.Sprintf("%s %v", a.Op, a.Range) }

type page [phys.PageSize]byte

// Memory is the memory of one machine. Set its fields between calls.
type Memory struct {
	RAM phys.Set
	// Bad memory faults when it is read or written, as after an uncorrectable
	// error.
	Bad phys.Set
	// Device memory is what Uncached tells of. Reads and writes there are as
	// good as elsewhere.
	Device phys.Set
	// Writable is where writes are expected; nil for all of RAM.
	Writable phys.Set
	// BeforeWrite, if not nil, may refuse a write.
	BeforeWrite func(Access) error

	tb     testing.TB
	mu     sync.Mutex
	pages  map[uint64]*page // by address; a missing one is zero
	writes []Access
}

// New returns memory of zeros.
func New(tb testing.TB, ram phys.Set) *Memory {
	return &Memory{RAM: ram, tb: tb, pages: map[uint64]*page{}}
}

// Writes returns what was written since the last call.
func (m *Memory) Writes() []Access {
	m.mu.Lock()
	defer m.mu.Unlock()
	out := m.writes
	m.writes = nil
	return out
}

// ReadPhys copies memory at addr into p.
func (m *Memory) ReadPhys(p []byte, addr uint64) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	r, err := m.reach(addr, uint64(len(p)))
	if err != nil {
		return fmt.Errorf("read %v: %w", r, err)
	}
	m.get(p, addr)
	return nil
}

// WritePhys copies p to memory at addr.
func (m *Memory) WritePhys(p []byte, addr uint64) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.write(Write, addr, uint64(len(p))); err != nil {
		return err
	}
	m.put(p, addr)
	return nil
}

// Zero clears r.
func (m *Memory) Zero(r phys.Range) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.write(Zero, r.Start, r.Size()); err != nil {
		return err
	}
	m.clear(r)
	return nil
}

// Copy carries out copies of whole pages, one after the other; another order
// than workers would take, but they are disjoint.
func (m *Memory) Copy(copies []phys.Copy, _ int, progress func(done uint64)) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	done := uint64(0)
	for _, c := range copies {
		if (c.Src|c.Dst|c.Size)%phys.PageSize != 0 {
			return fmt.Errorf("copy %v: not whole pages", c)
		}
		if r, err := m.reach(c.Src, c.Size); err != nil {
			return fmt.Errorf("copy %v: read %v: %w", c, r, err)
		}
		if err := m.write(Copy, c.Dst, c.Size); err != nil {
			return fmt.Errorf("copy %v: %w", c, err)
		}
		m.clear(c.DstRange())
		for at, from := range m.pages {
			if off := at - c.Src; at >= c.Src && off < c.Size {
				to := *from
				m.pages[c.Dst+off] = &to
			}
		}
		done += c.Size
		if progress != nil {
			progress(done)
		}
	}
	return nil
}

// Uncached returns the part of s that is device memory.
func (m *Memory) Uncached(s phys.Set) phys.Set { return s.Intersect(m.Device) }

// Set puts b at addr without recording it: what firmware, or a running
// kernel, left there.
func (m *Memory) Set(addr uint64, b []byte) {
	m.tb.Helper()
	m.mu.Lock()
	defer m.mu.Unlock()
	m.must(addr, uint64(len(b)))
	m.put(b, addr)
}

// Get returns what is in r, whatever the faults.
func (m *Memory) Get(r phys.Range) []byte {
	m.tb.Helper()
	m.mu.Lock()
	defer m.mu.Unlock()
	m.must(r.Start, r.Size())
	b := make([]byte, r.Size())
	m.get(b, r.Start)
	return b
}

// must ends the test where the test itself reaches outside RAM.
func (m *Memory) must(addr, size uint64) {
	m.tb.Helper()
	if r, ok := phys.Sized(addr, size); !ok || !m.RAM.Contains(r) {
		m.tb.Fatalf("physmemtest: %#x bytes at %#x: not RAM (%v)", size, addr, m.RAM)
	}
}

func (m *Memory) reach(addr, size uint64) (phys.Range, error) {
	r, ok := phys.Sized(addr, size)
	switch {
	case !ok || !m.RAM.Contains(r):
		return r, ErrHole
	case m.Bad.Overlaps(r):
		return r, ErrFault
	}
	return r, nil
}

func (m *Memory) write(op Op, addr, size uint64) error {
	r, err := m.reach(addr, size)
	if err != nil {
		return fmt.Errorf("%s %v: %w", op, r, err)
	}
	a := Access{op, r}
	if m.Writable != nil && !m.Writable.Contains(r) {
		m.tb.Errorf("%v: outside what may be written: %v", a, m.Writable)
	}
	if m.BeforeWrite != nil {
		if err := m.BeforeWrite(a); err != nil {
			return fmt.Errorf("%v: %w", a, err)
		}
	}
	m.writes = append(m.writes, a)
	return nil
}

// each calls f with each page that r touches, the page's address, and the
// part of the page that is in r.
func each(r phys.Range, f func(at uint64, part phys.Range)) {
	for at := phys.AlignDown(r.Start, phys.PageSize); at < r.End; at += phys.PageSize {
		f(at, r.Intersect(phys.Range{Start: at, End: at + phys.PageSize}))
	}
}

func (m *Memory) get(p []byte, addr uint64) {
	each(phys.Range{Start: addr, End: addr + uint64(len(p))}, func(at uint64, part phys.Range) {
		to := p[part.Start-addr:][:part.Size()]
		if from := m.pages[at]; from != nil {
			copy(to, from[part.Start-at:])
		} else {
			clear(to)
		}
	})
}

func (m *Memory) put(p []byte, addr uint64) {
	each(phys.Range{Start: addr, End: addr + uint64(len(p))}, func(at uint64, part phys.Range) {
		to := m.pages[at]
		if to == nil {
			to = new(page)
			m.pages[at] = to
		}
		copy(to[part.Start-at:], p[part.Start-addr:][:part.Size()])
	})
}

func (m *Memory) clear(r phys.Range) {
	inside := r.AlignIn(phys.PageSize)
	for at := range m.pages {
		if at >= inside.Start && at < inside.End {
			delete(m.pages, at)
		}
	}
	for _, edge := range (phys.Set{r}).Minus(phys.Set{inside}) {
		each(edge, func(at uint64, part phys.Range) {
			if p := m.pages[at]; p != nil {
				clear(p[part.Start-at:][:part.Size()])
			}
		})
	}
}

// Pages returns the addresses of the pages of r that are not known to be
// zero, in order.
func (m *Memory) Pages(r phys.Range) []uint64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	var out []uint64
	for at := range m.pages {
		if at >= r.Start && at < r.End {
			out = append(out, at)
		}
	}
	slices.Sort(out)
	return out
}
