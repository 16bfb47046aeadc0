//go:build linux

package oldmem

import (
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
	// mapWindow is how much is mapped at a time for a Mapped: the system
	// calls cost a hundredth of touching it, and a few of them fit into what
	// a save may use.
	mapWindow = 4 << 20
	// idleWindows is how many windows that nobody looks at stay mapped.
	idleWindows = 4
)

// Mapped reads a dump through windows of memory that is mapped from it. It is
// a vmcore.FileViewer; its methods may run concurrently. Where the kernel or
// the file system doesn't map, it reads.
type Mapped struct {
	file *os.File
	size int64

	mu      sync.Mutex
	windows map[int64]*window // by offset divided by mapWindow
	idle    []int64           // keys of those without users, the longest idle first
	refused bool              // to map; reading works
}

type window struct {
	load  sync.Once
	mem   []byte
	err   error
	users int // under Mapped.mu
}

// Mapped returns a view of the dump, to be closed before the dump is.
func (s *Source) Mapped() *Mapped {
	return &Mapped{file: s.file, size: int64(s.size), windows: map[int64]*window{}}
}

// Close unmaps what nobody looks at. A view that is still going on unmaps its
// window when it is done.
func (m *Mapped) Close() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.refused = true
	return m.trim(0)
}

// trim unmaps idle windows but for keep of them.
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

// acquire returns the window that key is of, nil if it can't be mapped.
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
		w.mem, w.err = unix.Mmap(int(m.file.Fd()), off, int(min(mapWindow, m.size-off)), unix.PROT_READ, unix.MAP_PRIVATE)
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
// machine reported as bad, or that is not behind its file any more.
var ErrUnreadable = errors.New("memory can't be read")

// ViewAt calls f with the n bytes at off, in parts of up to 4 MiB that are
// mapped from the dump. f must neither keep nor change a part, nor let another
// goroutine read it: where memory is unreadable, f is abandoned at the read
// that found it, as if it had panicked, and ViewAt returns an error that wraps
// ErrUnreadable.
func (m *Mapped) ViewAt(off, n int64, f func(b []byte)) error {
	if off < 0 || n < 0 || off > m.size || n > m.size-off {
		return fmt.Errorf("view %#x bytes at offset %#x of a dump of %#x: %w", n, off, m.size, io.ErrUnexpectedEOF)
	}
	for n > 0 {
		key, in := off/mapWindow, off%mapWindow
		part := min(n, mapWindow-in)
		if err := m.viewPart(key, in, part, f); err != nil {
			return err
		}
		off, n = off+part, n-part
	}
	return nil
}

func (m *Mapped) viewPart(key, in, n int64, f func(b []byte)) error {
	w := m.acquire(key)
	if w == nil {
		b := make([]byte, n)
		if got, err := m.file.ReadAt(b, key*mapWindow+in); int64(got) < n {
			return fmt.Errorf("read %#x bytes at offset %#x: %w", n, key*mapWindow+in, err)
		}
		f(b)
		return nil
	}
	defer m.release(key, w)
	if at, ok := look(w.mem, func() { f(w.mem[in:][:n:n]) }); !ok {
		return fmt.Errorf("offset %#x: %w", key*mapWindow+int64(at), ErrUnreadable)
	}
	return nil
}

// look calls f, which reads mem. Where that faults, ok is false, and at is the
// place in mem. Other panics, and other faults, are f's own.
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

// ReadAt implements io.ReaderAt. Behind an unreadable page it goes no further,
// and what it returns counts whole pages before that one.
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
	// The window of n is the one that has a bad page.
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
