// Package physmem reads, writes and copies physical memory through /dev/mem.
//
// It goes where it is told: which addresses may be written is the plan's
// decision (pkg/plan). /dev/mem maps memory outside the running kernel's own
// RAM even with STRICT_DEVMEM, and as write-back on x86, because the range
// has the type of its MTRR and no other mapping (pat_x_mtrr_type in
// arch/x86/mm/pat/memtype.c, v6.12).
package physmem

import (
	"errors"
	"fmt"
	"os"
	"runtime/debug"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/warmcore/warmcore/pkg/phys"
)

// Memory is physical memory, opened. Its methods may run concurrently.
type Memory struct {
	file *os.File
	prot int

	mu   sync.Mutex
	kept []*Mapping // what Copy left
}

// Open opens path, /dev/mem in production; write allows WritePhys and Copy.
func Open(path string, write bool) (*Memory, error) {
	flags, prot := os.O_RDONLY, unix.PROT_READ
	if write {
		flags, prot = os.O_RDWR, unix.PROT_READ|unix.PROT_WRITE
	}
	f, err := os.OpenFile(path, flags, 0)
	if err != nil {
		return nil, fmt.Errorf("open physical memory: %w", err)
	}
	return &Memory{file: f, prot: prot}, nil
}

// Close gives the device back; mappings that Map returned stay valid.
func (m *Memory) Close() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	var errs []error
	for _, k := range m.kept {
		errs = append(errs, k.Close())
	}
	m.kept = nil
	return errors.Join(append(errs, m.file.Close())...)
}

// Mapping is a mapped range of physical memory.
type Mapping struct {
	pages []byte // page aligned
	bytes []byte
}

// Map maps r, of any alignment.
func (m *Memory) Map(r phys.Range) (*Mapping, error) {
	start := phys.AlignDown(r.Start, phys.PageSize)
	end, ok := phys.AlignUp(r.End, phys.PageSize)
	if !ok || r.Empty() || end > 1<<52 {
		return nil, fmt.Errorf("map physical memory %v: empty, or beyond what a CPU addresses", r)
	}
	pages, err := unix.Mmap(int(m.file.Fd()), int64(start), int(end-start), m.prot, unix.MAP_SHARED|unix.MAP_POPULATE)
	if err != nil {
		if errors.Is(err, unix.EPERM) {
			err = fmt.Errorf("%w (the running kernel keeps it as its own RAM, or lockdown or STRICT_DEVMEM forbids it)", err)
		}
		return nil, fmt.Errorf("map physical memory %v: %w", r, err)
	}
	return &Mapping{pages, pages[r.Start-start:][:r.Size():r.Size()]}, nil
}

// Bytes is the mapped memory itself, until Close.
func (m *Mapping) Bytes() []byte { return m.bytes }

// Close unmaps.
func (m *Mapping) Close() error { return unix.Munmap(m.pages) }

// MapWindow is how much is mapped at a time, in bytes: large enough that the
// cost of a mapping (one page table entry a page) is lost beside the copy, and
// small enough that its page tables (1/512) fit a payload of 64 MiB.
const MapWindow = 64 * phys.MiB

// ReadPhys copies memory at addr into p.
func (m *Memory) ReadPhys(p []byte, addr uint64) error {
	return m.each(p, addr, func(part, mem []byte) { copy(part, mem) })
}

// WritePhys copies p to memory at addr, through the caches: it is still there
// after a reset. Copy is faster and does not promise that.
func (m *Memory) WritePhys(p []byte, addr uint64) error {
	return m.each(p, addr, func(part, mem []byte) {
		copy(mem, part)
		flush(mem)
	})
}

// Zero clears r.
func (m *Memory) Zero(r phys.Range) error {
	for r.Size() > 0 {
		part := phys.Range{Start: r.Start, End: min(r.End, r.Start+MapWindow)}
		if err := m.touch(part, func(mem []byte) { clear(mem); flush(mem) }); err != nil {
			return fmt.Errorf("clear %v: %w", part, err)
		}
		r.Start = part.End
	}
	return nil
}

func (m *Memory) each(p []byte, addr uint64, move func(part, mem []byte)) error {
	for len(p) > 0 {
		n := min(uint64(len(p)), MapWindow)
		r, ok := phys.Sized(addr, n)
		if !ok {
			return fmt.Errorf("physical memory at %#x: beyond 64 bits", addr)
		}
		part := p[:n]
		if err := m.touch(r, func(mem []byte) { move(part, mem) }); err != nil {
			return err
		}
		p, addr = p[n:], r.End
	}
	return nil
}

// View runs f over the memory in r itself, which must not be larger than
// MapWindow.
func (m *Memory) View(r phys.Range, f func(b []byte)) error {
	if r.Size() > MapWindow {
		return fmt.Errorf("view physical memory %v: larger than %d bytes", r, MapWindow)
	}
	return m.touch(r, f)
}

// touch runs f over r. Memory that can't be reached (SIGBUS) is an error,
// not the end of the program.
func (m *Memory) touch(r phys.Range, f func(mem []byte)) (err error) {
	mapping, err := m.Map(r)
	if err != nil {
		return err
	}
	defer mapping.Close()
	defer recoverFault(&err, r)()
	f(mapping.Bytes())
	return nil
}

// recoverFault turns a fault in the caller into *err: defer recoverFault(&err, r)().
func recoverFault(err *error, r phys.Range) func() {
	old := debug.SetPanicOnFault(true)
	return func() {
		debug.SetPanicOnFault(old)
		if x := recover(); x != nil {
			fault, ok := x.(interface{ Addr() uintptr })
			if !ok {
				panic(x)
			}
			*err = fmt.Errorf("physical memory %v: fault at mapped address %#x", r, fault.Addr())
		}
	}
}

// Copy carries out copies with the given number of workers. It stops at the
// first error and then says nothing about what has been copied. progress, if
// not nil, is called with the bytes done so far, from one worker at a time.
//
// Up to maxKept windows stay mapped until Close: unmapping costs as much as
// mapping, makes every CPU flush its TLB, and a payload that has copied starts
// another kernel next.
func (m *Memory) Copy(copies []phys.Copy, workers int, progress func(done uint64)) error {
	var (
		wg    sync.WaitGroup
		mu    sync.Mutex
		todo  = windows(copies)
		bytes uint64
		first error
	)
	next := func() (part phys.Copy, ok bool) {
		mu.Lock()
		defer mu.Unlock()
		if len(todo) == 0 || first != nil {
			return phys.Copy{}, false
		}
		part, todo = todo[0], todo[1:]
		return part, true
	}
	done := func(part phys.Copy, err error) {
		mu.Lock()
		defer mu.Unlock()
		if first != nil {
			return
		}
		if first = err; err != nil {
			return
		}
		bytes += part.Size
		if progress != nil {
			progress(bytes)
		}
	}
	for range max(workers, 1) {
		wg.Go(func() {
			for part, ok := next(); ok; part, ok = next() {
				done(part, m.copy(part))
			}
		})
	}
	wg.Wait()
	return first
}

const (
	// copyWindow is small enough that every worker gets parts of a 128 MiB
	// copy.
	copyWindow = 16 * phys.MiB
	// maxKept bounds the mappings that Copy leaves, and with them the page
	// tables: 128 windows are 2 GiB, with 4 MiB of tables.
	maxKept = 128
)

// windows cuts copies into parts of at most copyWindow.
func windows(copies []phys.Copy) (parts []phys.Copy) {
	for _, c := range copies {
		for off := uint64(0); off < c.Size; off += copyWindow {
			parts = append(parts, phys.Copy{Src: c.Src + off, Dst: c.Dst + off, Size: min(copyWindow, c.Size-off)})
		}
	}
	return parts
}

// copy copies one window.
func (m *Memory) copy(c phys.Copy) (err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("copy %v: %w", c, err)
		}
	}()
	src, err := m.Map(c.SrcRange())
	if err != nil {
		return err
	}
	defer m.keep(src)
	dst, err := m.Map(c.DstRange())
	if err != nil {
		return err
	}
	defer m.keep(dst)
	defer recoverFault(&err, c.SrcRange())()
	copy(dst.Bytes(), src.Bytes())
	return nil
}

// keep leaves a mapping to Close, unless there are too many.
func (m *Memory) keep(mapping *Mapping) {
	m.mu.Lock()
	if len(m.kept) < maxKept {
		m.kept = append(m.kept, mapping)
		mapping = nil
	}
	m.mu.Unlock()
	if mapping != nil {
		_ = mapping.Close() // memory that Map mapped can be unmapped
	}
}
