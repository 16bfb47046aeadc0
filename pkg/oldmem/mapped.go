//go:build linux

package oldmem

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"os"
	"reflect"
	"runtime/debug"
	"slices"
	"sync"

	"golang.org/x/sys/unix"
)

const (
	// mapWindow is how many bytes a Mapped maps at a time: so many that
	// the system calls take a hundredth of the time, and so few that
	// several windows fit into the memory that a save may use. Device-dax
	// needs multiples of 2 MiB.
	mapWindow = 4 << 20
	// idleWindows is how many windows stay mapped when nobody uses them.
	idleWindows = 4
)

// Mapped reads a dump through windows of memory that is mapped from it, or
// from the devices that were spliced into it. It is a vmcore.FileViewer; its
// methods may run concurrently. If a device can't be mapped it maps the dump's
// file, and if that can't be mapped either it reads the file.
type Mapped struct {
	file   *os.File
	size   int64
	flags  int // of mmap
	pieces []mappedPiece

	mu      sync.Mutex
	windows map[int64]*window // by offset divided by mapWindow
	idle    []int64           // keys of windows without users, the longest idle first
	refused bool              // mapping is refused; reading works
}

// mappedPiece is a Piece with the view of its device.
type mappedPiece struct {
	Piece
	device *Mapped
}

type window struct {
	load  sync.Once
	mem   []byte
	err   error
	users int // under Mapped.mu
}

// Mapped returns a view of the dump, to be closed before the dump is.
func (s *Source) Mapped() *Mapped {
	m := newMapped(s.file, int64(s.size), unix.MAP_PRIVATE)
	devices := map[*Device]*Mapped{}
	for _, p := range s.pieces {
		if devices[p.Device] == nil {
			devices[p.Device] = p.Device.mapped()
		}
		m.pieces = append(m.pieces, mappedPiece{p, devices[p.Device]})
	}
	return m
}

func newMapped(f *os.File, size int64, flags int) *Mapped {
	return &Mapped{file: f, size: size, flags: flags, windows: map[int64]*window{}}
}

// Close unmaps the windows that nobody uses. A ViewAt that is still running unmaps
// its window at its end.
func (m *Mapped) Close() error {
	var errs []error
	for _, p := range m.pieces {
		errs = append(errs, p.device.Close())
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.refused = true
	return errors.Join(append(errs, m.trim(0))...)
}

// trim unmaps idle windows until keep of them are left.
func (m *Mapped) trim(keep int) error {
	var errs []error
	for len(m.idle) > keep {
		w := m.windows[m.idle[0]]
		delete(m.windows, m.idle[0])
		m.idle = m.idle[1:]
		errs = append(errs, unix.Munmap(w.mem))
	}
	return errors.Join(errs...)
}

// acquire returns the window number key, nil if it can't be mapped.
func (m *Mapped) acquire(key int64) *window {
	m.mu.Lock()
	w := m.windows[key]
	switch {
	case w != nil && w.users == 0:
		m.idle = slices.DeleteFunc(m.idle, func(k int64) bool { return k == key })
	case w == nil && m.refused:
		m.mu.Unlock()
		return nil
	case w == nil:
		w = &window{}
		m.windows[key] = w
	}
	w.users++
	m.mu.Unlock()
	w.load.Do(func() {
		off := key * mapWindow
		w.mem, w.err = unix.Mmap(int(m.file.Fd()), off, int(min(mapWindow, m.size-off)), unix.PROT_READ, m.flags)
	})
	if w.err != nil {
		m.release(key, w)
		return nil
	}
	return w
}

func (m *Mapped) release(key int64, w *window) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if w.users--; w.users > 0 {
		return
	}
	if w.err != nil {
		delete(m.windows, key)
		return
	}
	m.idle = append(m.idle, key)
	keep := idleWindows
	if m.refused {
		keep = 0
	}
	m.trim(keep)
}

// ErrUnreadable says that memory is mapped but can't be read: a page that the
// machine reported as bad, or one beyond the end of a file that has shrunk.
var ErrUnreadable = errors.New("memory can't be read")

// ViewAt calls f with the n bytes at off, in parts of up to 4 MiB that are
// mapped from the dump. f must not keep a part, change it, or let another
// goroutine read it. If f reads memory that is unreadable, f ends there as if
// it had panicked, and ViewAt returns an error that wraps ErrUnreadable.
func (m *Mapped) ViewAt(off, n int64, f func(b []byte)) error {
	if off < 0 || n < 0 || off > m.size || n > m.size-off {
		return fmt.Errorf("view %#x bytes at offset %#x of a dump of %#x: %w", n, off, m.size, io.ErrUnexpectedEOF)
	}
	for n > 0 {
		part, err := m.viewPart(off, n, f)
		if err != nil {
			return err
		}
		off, n = off+part, n-part
	}
	return nil
}

// viewPart calls f with the first of n bytes at off, and returns how many.
func (m *Mapped) viewPart(off, n int64, f func(b []byte)) (int64, error) {
	i, _ := slices.BinarySearchFunc(m.pieces, off, func(p mappedPiece, off int64) int { return cmp.Compare(p.end(), off+1) })
	if i < len(m.pieces) {
		p := m.pieces[i]
		start := int64(p.Offset)
		if start > off {
			n = min(n, start-off)
		} else {
			n = min(n, p.end()-off)
			if part, err := p.device.viewWindow(int64(p.At)+off-start, n, f); part > 0 || err != nil {
				return part, err
			}
		}
	}
	part, err := m.viewWindow(off, n, f)
	if part > 0 || err != nil {
		return part, err
	}
	n = min(n, mapWindow-off%mapWindow)
	b := make([]byte, n)
	if got, err := m.file.ReadAt(b, off); int64(got) < n {
		return 0, fmt.Errorf("read %#x bytes at offset %#x: %w", n, off, err)
	}
	f(b)
	return n, nil
}

// viewWindow calls f with the part of n bytes at off that lies in one window,
// and returns its length: 0 and no error if that can't be mapped.
func (m *Mapped) viewWindow(off, n int64, f func(b []byte)) (int64, error) {
	key, in := off/mapWindow, off%mapWindow
	n = min(n, mapWindow-in)
	w := m.acquire(key)
	if w == nil {
		return 0, nil
	}
	defer m.release(key, w)
	if at, ok := look(w.mem, func() { f(w.mem[in:][:n:n]) }); !ok {
		return 0, fmt.Errorf("offset %#x of %s: %w", key*mapWindow+int64(at), m.file.Name(), ErrUnreadable)
	}
	return n, nil
}

// look calls f, which reads mem. If a read faults, ok is false and at is its
// offset in mem. Other panics and faults of f are passed on.
func look(mem []byte, f func()) (at uintptr, ok bool) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		x := recover()
		if x == nil {
			return
		}
		fault, is := x.(interface{ Addr() uintptr })
		base := reflect.ValueOf(mem).Pointer()
		if !is || fault.Addr() < base || fault.Addr()-base >= uintptr(len(mem)) {
			panic(x)
		}
		at, ok = fault.Addr()-base, false
	}()
	f()
	return 0, true
}

// ReadAt implements io.ReaderAt. It stops at an unreadable page; n then ends where
// that page begins.
func (m *Mapped) ReadAt(p []byte, off int64) (n int, err error) {
	if off < 0 {
		return 0, fmt.Errorf("read offset %d: %w", off, os.ErrInvalid)
	}
	want := p[:min(int64(len(p)), max(0, m.size-off))]
	if n, err = m.read(want, off); err == nil && len(want) < len(p) {
		err = io.EOF
	}
	return n, err
}

func (m *Mapped) read(p []byte, off int64) (n int, err error) {
	err = m.ViewAt(off, int64(len(p)), func(b []byte) {
		copy(p[n:], b) // may be abandoned here
		n += len(b)
	})
	if err == nil {
		return n, nil
	}
	// The window that contains p[n] has a bad page.
	for n < len(p) {
		at := off + int64(n)
		size := int(min(int64(len(p)-n), page-at%page))
		err := m.ViewAt(at, int64(size), func(b []byte) { copy(p[n:], b) })
		if err != nil {
			return n, err
		}
		n += size
	}
	return n, nil
}
