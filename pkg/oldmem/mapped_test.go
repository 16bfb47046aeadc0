package oldmem

import (
	"bytes"
	"errors"
	"io"
	"os"
	"sync"
	"testing"

	"github.com/warmcore/warmcore/pkg/vmcore"
	"github.com/warmcore/warmcore/pkg/vmcore/elfdump"
	"github.com/warmcore/warmcore/pkg/vmcore/vmcoretest"
)

// pattern is n bytes of which no two pages are alike.
func pattern(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i>>12 ^ i>>20 ^ i)
	}
	return b
}

func TestMapped(t *testing.T) {
	content := pattern(2*mapWindow + 3*page + 123)
	s, _ := source(t, content)
	m := s.Mapped()
	defer m.Close()
	for _, tt := range []struct{ off, n int }{
		{0, 1}, {0, len(content)}, {mapWindow - 5, 10}, {mapWindow, mapWindow}, {2*mapWindow + 3*page, 123},
		{len(content) - 1, 1}, {len(content), 0}, {17, 3 * page},
	} {
		var got []byte
		if err := m.ViewAt(int64(tt.off), int64(tt.n), func(b []byte) { got = append(got, b...) }); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, content[tt.off:][:tt.n]) {
			t.Errorf("view of %d bytes at %#x: wrong content", tt.n, tt.off)
		}
		p := make([]byte, tt.n)
		if n, err := m.ReadAt(p, int64(tt.off)); n != tt.n || err != nil || !bytes.Equal(p, got) {
			t.Errorf("ReadAt(%d bytes, %#x): %d, %v", tt.n, tt.off, n, err)
		}
	}
	if got, err := io.ReadAll(io.NewSectionReader(m, 0, 1<<40)); err != nil || !bytes.Equal(got, content) {
		t.Errorf("read all: %d bytes, %v, want %d", len(got), err, len(content))
	}
	if n, err := m.ReadAt(make([]byte, 10), int64(len(content))-3); n != 3 || !errors.Is(err, io.EOF) {
		t.Errorf("read over the end: %d, %v", n, err)
	}
	for _, tt := range []struct{ off, n int64 }{{-1, 1}, {0, -1}, {0, int64(len(content)) + 1}, {1 << 62, 1 << 62}} {
		if err := m.ViewAt(tt.off, tt.n, func([]byte) { t.Error("f was called") }); !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("view of %d bytes at %d: %v", tt.n, tt.off, err)
		}
	}
}

func TestMappedUnmaps(t *testing.T) {
	s, _ := source(t, pattern(8*mapWindow))
	m := s.Mapped()
	for off := int64(0); off < 8*mapWindow; off += mapWindow {
		if _, err := m.ReadAt(make([]byte, 1), off); err != nil {
			t.Fatal(err)
		}
	}
	if len(m.windows) != idleWindows {
		t.Errorf("%d windows are mapped, want %d", len(m.windows), idleWindows)
	}
	err := m.ViewAt(0, 1, func([]byte) {
		if err := m.Close(); err != nil {
			t.Error(err)
		}
		if len(m.windows) != 1 {
			t.Errorf("%d windows are mapped after Close, want the one in use", len(m.windows))
		}
	})
	if err != nil || len(m.windows) != 0 {
		t.Errorf("%d windows are mapped in the end, error %v", len(m.windows), err)
	}
	// Closed, it reads.
	if n, err := m.ReadAt(make([]byte, 100), mapWindow-50); n != 100 || err != nil {
		t.Errorf("ReadAt after Close: %d, %v", n, err)
	}
}

// A file that shrinks while it is mapped gives the SIGBUS that a page of bad
// memory gives.
func TestMappedUnreadable(t *testing.T) {
	content := pattern(mapWindow + 8*page)
	s, path := source(t, content)
	m := s.Mapped()
	defer m.Close()
	const good = mapWindow + 3*page
	if err := os.Truncate(path, good); err != nil {
		t.Fatal(err)
	}
	p := make([]byte, len(content))
	n, err := m.ReadAt(p, 0)
	if n != good || !errors.Is(err, ErrUnreadable) || !bytes.Equal(p[:n], content[:good]) {
		t.Errorf("ReadAt: %#x bytes, error %v, want %#x", n, err, good)
	}
	var seen []int
	err = m.ViewAt(0, int64(len(content)), func(b []byte) {
		seen = append(seen, len(b))
		sum := 0
		for _, x := range b {
			sum += int(x)
		}
		seen = append(seen, sum)
	})
	if !errors.Is(err, ErrUnreadable) || len(seen) != 3 {
		t.Errorf("view: error %v, f got to %v, want that it is abandoned in the second part", err, seen)
	}
}

// What f does wrong by itself is not taken for bad memory.
func TestMappedPanic(t *testing.T) {
	s, _ := source(t, pattern(page))
	m := s.Mapped()
	defer m.Close()
	for _, f := range []func([]byte){
		func([]byte) { panic("f") },
		func(b []byte) { b[len(b)-1+len(b)]++ },
		func([]byte) { *(*int)(nil) = 1 },
	} {
		func() {
			defer func() {
				if recover() == nil {
					t.Error("the panic of f is gone")
				}
			}()
			m.ViewAt(0, page, f)
		}()
	}
	if err := m.ViewAt(0, page, func([]byte) {}); err != nil {
		t.Errorf("view after panics: %v", err)
	}
}

func TestMappedConcurrently(t *testing.T) {
	content := pattern(6*mapWindow + 5)
	s, _ := source(t, content)
	m := s.Mapped()
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			for off := int64(i) * 1000; off < int64(len(content))-page; off += mapWindow/3 + int64(i) {
				err := m.ViewAt(off, page, func(b []byte) {
					if !bytes.Equal(b, content[off:][:len(b)]) && len(b) == page {
						t.Errorf("wrong content at %#x", off)
					}
				})
				if err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if err := m.Close(); err != nil {
		t.Error(err)
	}
}

func TestMappedDump(t *testing.T) {
	spec := vmcoretest.Parse(t, "0x1000-0x100000 raw random 1\n0x100000 excluded")
	s, path := source(t, spec.ELF(t))
	m := s.Mapped()
	defer m.Close()
	d, err := elfdump.New(m, int64(s.Size()))
	if err != nil {
		t.Fatal(err)
	}
	spec.Check(t, d)
	view, ok := d.(vmcore.Viewer)
	if !ok {
		t.Fatal("a mapped ELF dump is no Viewer")
	}
	sum := 0
	if err := os.Truncate(path, 0x20000); err != nil {
		t.Fatal(err)
	}
	err = view.View(spec.Memory()[0], func(b []byte) {
		for _, x := range b {
			sum += int(x)
		}
	})
	if vmcoretest.Missing(err) != vmcore.Unreadable || !errors.Is(err, ErrUnreadable) {
		t.Errorf("view: error %v, want unreadable memory", err)
	}
}
