// Package physmem reads, writes and copies physical memory through /dev/mem.
//
// It doesn't check addresses: which ones may be written is the plan's decision
// (pkg/plan). /dev/mem maps memory outside the running kernel's own RAM even
// with STRICT_DEVMEM: through the caches on x86, and as device memory on
// arm64, which is slow and faults on unaligned access. All methods do what
// each kind of memory needs, also for a range that contains both kinds. Only
// Map, which returns the memory itself, refuses device memory.
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

// ErrFault is the error of reading or writing memory that doesn't answer:
// nothing is there, or it has failed.
var ErrFault = errors.New("fault: nothing answers there")

// Memory is opened physical memory. Its methods may run concurrently.
type Memory struct {
	file   *os.File
	prot   int
	cached phys.Set // whole pages; the rest is device memory

	mu       sync.Mutex
	kept     []*Mapping // mappings that Copy left
	keptSize uint64     // of them, in bytes
}

// Open opens path, /dev/mem in production; write allows WritePhys and Copy. On
// arm64 it treats all memory as device memory, which is always safe and fast
// enough for the handoff area; OpenCached is for larger amounts.
func Open(path string, write bool) (*Memory, error) {
	return OpenCached(path, write, nil)
}

// OpenCached is Open for a caller who knows which memory the kernel maps
// through the caches. On arm64 that is all System RAM at the top level of
// /proc/iomem, reservations in it included (pfn_is_map_memory in
// arch/arm64/mm/init.c, v6.12); on x86 it is all memory, whatever cached says.
func OpenCached(path string, write bool, cached phys.Set) (*Memory, error) {
	flags, prot := os.O_RDONLY, unix.PROT_READ
	if write {
		flags, prot = os.O_RDWR, unix.PROT_READ|unix.PROT_WRITE
	}
	f, err := os.OpenFile(path, flags, 0)
	if err != nil {
		return nil, fmt.Errorf("open physical memory: %w", err)
	}
	if allCached {
		cached = phys.Set{{End: addressTop}}
	}
	return &Memory{file: f, prot: prot, cached: cached.AlignIn(pageSize)}, nil
}

// addressTop is the end of the addresses that a CPU can have.
const addressTop = 4096 * phys.TiB

// pageSize is the running kernel's page size, in bytes.
var pageSize = uint64(os.Getpagesize())

// Uncached returns the part of s that is device memory, which is many times
// slower than other memory.
func (m *Memory) Uncached(s phys.Set) phys.Set { return s.Minus(m.cached) }

// run returns the first bytes of r, at most limit, that are all of one kind,
// and which kind.
func (m *Memory) run(r phys.Range, limit uint64) (first phys.Range, cached bool) {
	first = phys.Range{Start: r.Start, End: r.Start + min(limit, r.Size())}
	for _, c := range m.cached {
		switch {
		case c.End <= first.Start:
		case c.Start <= first.Start:
			return phys.Range{Start: first.Start, End: min(first.End, c.End)}, true
		default:
			return phys.Range{Start: first.Start, End: min(first.End, c.Start)}, false
		}
	}
	return first, false
}

// Close closes the device; mappings that Map returned stay valid.
func (m *Memory) Close() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	var errs []error
	for _, k := range m.kept {
		errs = append(errs, k.Close())
	}
	m.kept, m.keptSize = nil, 0
	return errors.Join(append(errs, m.file.Close())...)
}

// Mapping is a mapped range of physical memory.
type Mapping struct {
	pages []byte // page aligned
	bytes []byte
}

// Map maps r, of any alignment. It refuses device memory, because Go code
// makes unaligned accesses to slices.
func (m *Memory) Map(r phys.Range) (*Mapping, error) {
	if len(m.Uncached(phys.NewSet(r))) > 0 {
		return nil, fmt.Errorf("map physical memory %v: device memory, in whole or in part", r)
	}
	return m.mmap(r)
}

// mmap maps r, which must be of one kind, because a whole mapping gets the
// kind of its first page.
func (m *Memory) mmap(r phys.Range) (*Mapping, error) {
	start := phys.AlignDown(r.Start, pageSize)
	end, ok := phys.AlignUp(r.End, pageSize)
	if !ok || r.Empty() || end > addressTop {
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

// Bytes returns the mapped memory itself, valid until Close.
func (m *Mapping) Bytes() []byte { return m.bytes }

// Close unmaps.
func (m *Mapping) Close() error { return unix.Munmap(m.pages) }

// MapWindow is how much is mapped at a time, in bytes: large enough that the
// cost of a mapping (one page table entry for each page) is small beside that
// of the copy, and small enough that its page tables (1/512) fit into a
// payload of 64 MiB.
const MapWindow = 64 * phys.MiB

// ReadPhys copies memory at addr into p.
func (m *Memory) ReadPhys(p []byte, addr uint64) error {
	return m.each(p, addr, func(part []byte, mem area) { mem.load(part) })
}

// WritePhys copies p to memory at addr and writes it back from the caches: it
// survives a reset, and a kernel that runs with caches off sees it.
func (m *Memory) WritePhys(p []byte, addr uint64) error {
	return m.each(p, addr, func(part []byte, mem area) {
		mem.store(part)
		mem.flush()
	})
}

// Zero clears r.
func (m *Memory) Zero(r phys.Range) error {
	for r.Size() > 0 {
		part, _ := m.run(r, MapWindow)
		if err := m.touch(part, func(mem area) { mem.clear(); mem.flush() }); err != nil {
			return fmt.Errorf("clear %v: %w", part, err)
		}
		r.Start = part.End
	}
	return nil
}

func (m *Memory) each(p []byte, addr uint64, move func(part []byte, mem area)) error {
	all, ok := phys.Sized(addr, uint64(len(p)))
	if !ok {
		return fmt.Errorf("physical memory at %#x: beyond 64 bits", addr)
	}
	for len(p) > 0 {
		r, _ := m.run(all, MapWindow)
		part := p[:r.Size()]
		if err := m.touch(r, func(mem area) { move(part, mem) }); err != nil {
			return err
		}
		p, all.Start = p[r.Size():], r.End
	}
	return nil
}

// View calls f with the memory in r, which must not be larger than MapWindow:
// with the memory itself, or with a copy if it is device memory. f must only
// read.
func (m *Memory) View(r phys.Range, f func(b []byte)) error {
	if r.Size() > MapWindow {
		return fmt.Errorf("view physical memory %v: larger than %d bytes", r, MapWindow)
	}
	if len(m.Uncached(phys.NewSet(r))) > 0 {
		b := make([]byte, r.Size())
		if err := m.ReadPhys(b, r.Start); err != nil {
			return err
		}
		f(b)
		return nil
	}
	return m.touch(r, func(mem area) { f(mem.bytes) })
}

// touch calls f with r, which must be of one kind. Memory that doesn't answer
// (SIGBUS) leads to ErrFault instead of ending the program.
func (m *Memory) touch(r phys.Range, f func(mem area)) (err error) {
	mapping, err := m.mmap(r)
	if err != nil {
		return err
	}
	defer mapping.Close()
	defer recoverFault(&err, r)()
	f(m.area(mapping, r.Start))
	return nil
}

func (m *Memory) area(mapping *Mapping, at uint64) area {
	_, cached := m.run(phys.Range{Start: at, End: at + 1}, 1)
	return area{mapping.bytes, at, cached}
}

// recoverFault turns a fault in the caller into *err: defer recoverFault(&err, r)().
func recoverFault(err *error, r phys.Range) func() {
	old := debug.SetPanicOnFault(true)
	return func() {
		debug.SetPanicOnFault(old)
		if x := recover(); x != nil {
			if _, ok := x.(interface{ Addr() uintptr }); !ok {
				panic(x)
			}
			// The fault's address is not reported: it is in the
			// mapping, which is gone.
			*err = fmt.Errorf("physical memory %v: %w", r, ErrFault)
		}
	}
}

// Copy carries out copies with the given number of workers. When it returns,
// what was copied survives a reset. It stops at the first error; what has been
// copied by then is not known. progress, if not nil, is called with the bytes
// done so far, from one worker at a time.
//
// Up to maxKept bytes stay mapped until Close: unmapping costs as much as
// mapping, makes every CPU flush its TLB, and a payload that has copied starts
// another kernel next.
func (m *Memory) Copy(copies []phys.Copy, workers int, progress func(done uint64)) error {
	var (
		wg    sync.WaitGroup
		mu    sync.Mutex
		todo  = m.windows(copies, share(copies, workers))
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

// maxKept bounds the mappings that Copy leaves, in bytes, and with them the
// page tables, which are 4 MiB.
const maxKept = 2 * phys.GiB

// share returns how much a worker copies at a time, in bytes, a multiple of
// the page size: its part of all copies, up to MapWindow. Smaller parts cost
// more system calls.
func share(copies []phys.Copy, workers int) uint64 {
	total := uint64(0)
	for _, c := range copies {
		total += min(c.Size, MapWindow*uint64(max(workers, 1)))
	}
	part, _ := phys.AlignUp(total/uint64(max(workers, 1)), 2*phys.MiB)
	return max(2*phys.MiB, min(part, MapWindow))
}

// windows cuts copies into parts of at most size bytes, each with a source of
// one kind of memory and a destination of one kind.
func (m *Memory) windows(copies []phys.Copy, size uint64) (parts []phys.Copy) {
	for _, c := range copies {
		if c.SrcRange().Size() != c.Size || c.DstRange().Size() != c.Size {
			parts = append(parts, c) // it wraps: mmap says so
			continue
		}
		for c.Size > 0 {
			src, _ := m.run(c.SrcRange(), size)
			dst, _ := m.run(c.DstRange(), size)
			n := min(src.Size(), dst.Size())
			parts = append(parts, phys.Copy{Src: c.Src, Dst: c.Dst, Size: n})
			c = phys.Copy{Src: c.Src + n, Dst: c.Dst + n, Size: c.Size - n}
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
	src, err := m.mmap(c.SrcRange())
	if err != nil {
		return err
	}
	defer m.keep(src)
	dst, err := m.mmap(c.DstRange())
	if err != nil {
		return err
	}
	defer m.keep(dst)
	defer recoverFault(&err, c.SrcRange())()
	copyArea(m.area(dst, c.Dst), m.area(src, c.Src))
	return nil
}

// keep leaves a mapping until Close, unless there are too many.
func (m *Memory) keep(mapping *Mapping) {
	m.mu.Lock()
	if size := uint64(len(mapping.pages)); m.keptSize+size <= maxKept {
		m.kept, m.keptSize = append(m.kept, mapping), m.keptSize+size
		mapping = nil
	}
	m.mu.Unlock()
	if mapping != nil {
		_ = mapping.Close() // memory that Map mapped can be unmapped
	}
}
