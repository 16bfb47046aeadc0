package oldmem

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// device is a file that stands for a device.
func device(t *testing.T, content []byte) (*Device, string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "dax0.0")
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	d, err := NewDevice(f, uint64(len(content)), page)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return d, path
}

// spliced is a dump of 3 windows and 5 pages, the two pieces that devices have
// of it, and what must be read: the devices differ from the file in each page
// that Splice doesn't compare.
func spliced(t *testing.T) (s *Source, want []byte, paths [2]string) {
	t.Helper()
	want = pattern(3*mapWindow + 5*page)
	s, _ = source(t, want)
	want = bytes.Clone(want)
	pieces := []Piece{
		{Offset: mapWindow - 7*page, Size: mapWindow + 20*page, At: 3 * page},
		{Offset: page, Size: 9 * page, At: 0},
	}
	for i, p := range pieces {
		content := bytes.Repeat([]byte{0xee}, int(p.At+p.Size)+int(2*page))
		for at := uint64(0); at < p.Size; at += page {
			from := want[p.Offset+at:][:page]
			if at != 0 && at != p.Size/2/page*page && at != p.Size-page {
				from[page/2] ^= 0xff
			}
			copy(content[p.At+at:], from)
		}
		p.Device, paths[i] = device(t, content)
		if err := s.Splice(p); err != nil {
			t.Fatal(err)
		}
	}
	return s, want, paths
}

func TestSplice(t *testing.T) {
	s, want, _ := spliced(t)
	m := s.Mapped()
	for _, tt := range []struct{ off, n int }{
		{0, len(want)}, {0, page}, {page, 9 * page}, {page - 1, 2}, {10*page - 1, 2}, {5 * page, mapWindow},
		{mapWindow - 8*page, 2 * page}, {2*mapWindow + 12*page, 2 * page}, {len(want) - 1, 1}, {mapWindow, 0},
	} {
		var got []byte
		if err := m.ViewAt(int64(tt.off), int64(tt.n), func(b []byte) { got = append(got, b...) }); err != nil {
			t.Fatal(err)
		}
		p := make([]byte, tt.n)
		if n, err := m.ReadAt(p, int64(tt.off)); n != tt.n || err != nil || !bytes.Equal(p, got) {
			t.Errorf("ReadAt(%#x bytes, %#x): %d, %v", tt.n, tt.off, n, err)
		}
		if !bytes.Equal(got, want[tt.off:][:tt.n]) {
			t.Errorf("view of %#x bytes at %#x: wrong content", tt.n, tt.off)
		}
	}
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			for off := i * page; off < len(want)-page; off += mapWindow/8 + i*page {
				var got [page]byte
				if _, err := m.ReadAt(got[:], int64(off)); err != nil || !bytes.Equal(got[:], want[off:][:page]) {
					t.Errorf("page at %#x: %v, or wrong content", off, err)
				}
			}
		})
	}
	wg.Wait()
	if err := m.Close(); err != nil {
		t.Error(err)
	}
	// Closed, it reads, and the file only.
	var got [page]byte
	if n, err := m.ReadAt(got[:], mapWindow); n != page || err != nil {
		t.Errorf("ReadAt after Close: %d, %v", n, err)
	}
}

// A page of a device that can't be read is one of the dump that can't.
func TestSpliceUnreadable(t *testing.T) {
	s, want, paths := spliced(t)
	m := s.Mapped()
	defer m.Close()
	const good = 3 * page // of the second device, which begins at a page of the dump
	if err := os.Truncate(paths[1], good); err != nil {
		t.Fatal(err)
	}
	p := make([]byte, 20*page)
	n, err := m.ReadAt(p, 0)
	if n != page+good || !errors.Is(err, ErrUnreadable) || !bytes.Equal(p[:n], want[:n]) {
		t.Errorf("ReadAt: %#x bytes, error %v, want %#x", n, err, page+good)
	}
	if err := m.ViewAt(0, 20*page, func(b []byte) { _ = bytes.Clone(b) }); !errors.Is(err, ErrUnreadable) {
		t.Errorf("view: error %v", err)
	}
	if n, err := m.ReadAt(p, 10*page); n != len(p) || err != nil || !bytes.Equal(p, want[10*page:][:len(p)]) {
		t.Errorf("ReadAt behind the piece: %#x bytes, %v", n, err)
	}
}

// What a device doesn't map is the file's.
func TestSpliceUnmapped(t *testing.T) {
	s, _, _ := spliced(t)
	content := make([]byte, len(pattern(3*mapWindow+5*page)))
	if _, err := s.ReadAt(content, 0); err != nil {
		t.Fatal(err)
	}
	m := s.Mapped()
	defer m.Close()
	for _, p := range s.pieces {
		p.Device.Close()
	}
	got := make([]byte, len(content))
	if n, err := m.ReadAt(got, 0); n != len(got) || err != nil || !bytes.Equal(got, content) {
		t.Errorf("ReadAt: %#x bytes, %v, or wrong content", n, err)
	}
}

func TestSpliceRefuses(t *testing.T) {
	content := pattern(64 * page)
	for _, tt := range []struct {
		name  string
		piece Piece
		want  string
	}{
		{"empty", Piece{Offset: page}, "no whole pages"},
		{"half a page", Piece{Offset: page, Size: page / 2}, "no whole pages"},
		{"offset in a page", Piece{Offset: page + 8, Size: page}, "no whole pages"},
		{"place in a page", Piece{Offset: page, Size: page, At: 8}, "no whole pages"},
		{"short device", Piece{Size: 16 * page, At: page}, "the device has 0x10000 bytes"},
		{"behind the device", Piece{Size: page, At: 17 * page}, "the device has"},
		{"size that wraps", Piece{Offset: page, Size: 1<<64 - page}, "the device has"},
		{"short dump", Piece{Offset: 63 * page, Size: 2 * page}, "the dump has"},
		{"behind the dump", Piece{Offset: 1<<64 - page, Size: page}, "the dump has"},
		{"overlap in front", Piece{Offset: 29 * page, Size: 2 * page}, "another device"},
		{"overlap inside", Piece{Offset: 31 * page, Size: page}, "another device"},
		{"overlap behind", Piece{Offset: 33 * page, Size: page}, "another device"},
		{"overlap around", Piece{Offset: 28 * page, Size: 8 * page}, "another device"},
		{"other first page", Piece{Size: 3 * page, At: page}, "is not the dump's"},
		{"other middle page", Piece{Size: 3 * page, At: 0}, "page at 0x1000 is not the dump's"},
		{"other last page", Piece{Size: 5 * page, At: 6 * page}, "page at 0xa000 is not the dump's"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s, _ := source(t, content)
			first, _ := device(t, content[30*page:34*page])
			if err := s.Splice(Piece{Offset: 30 * page, Size: 4 * page, Device: first}); err != nil {
				t.Fatal(err)
			}
			// Pages 0 and 2 are the dump's, and 6 to 9 are its first four.
			shown := bytes.Clone(content[:16*page])
			shown[page] ^= 1
			copy(shown[6*page:], content[:4*page])
			tt.piece.Device, _ = device(t, shown)
			if err := s.Splice(tt.piece); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("Splice = %v, want an error with %q", err, tt.want)
			}
			if len(s.pieces) != 1 {
				t.Errorf("%d pieces, want the first", len(s.pieces))
			}
		})
	}
}

// A page that the device can't read proves nothing, unless it can read none.
func TestSpliceUnreadableProof(t *testing.T) {
	content := pattern(16 * page)
	s, _ := source(t, content)
	d, path := device(t, content)
	if err := os.Truncate(path, 15*page); err != nil {
		t.Fatal(err)
	}
	if err := s.Splice(Piece{Size: 16 * page, Device: d}); err != nil {
		t.Error(err)
	}
	s, _ = source(t, content)
	if err := os.Truncate(path, 0); err != nil {
		t.Fatal(err)
	}
	if err := s.Splice(Piece{Size: 16 * page, Device: d}); !errors.Is(err, ErrUnreadable) || len(s.pieces) > 0 {
		t.Errorf("Splice of a device that can't be read: %v, %d pieces", err, len(s.pieces))
	}
}

func TestNewDevice(t *testing.T) {
	for _, tt := range []struct{ size, align uint64 }{
		{0, page}, {page, 0}, {page, 512}, {3 * page, 3 * page}, {3 * page, 2 * page}, {2 * mapWindow, 2 * mapWindow}, {1 << 63, page},
	} {
		f, err := os.Open(os.DevNull)
		if err != nil {
			t.Fatal(err)
		}
		if d, err := NewDevice(f, tt.size, tt.align); d != nil || err == nil {
			t.Errorf("NewDevice(%#x, %#x) = %v, %v; want an error", tt.size, tt.align, d, err)
		}
		if err := f.Close(); !errors.Is(err, os.ErrClosed) {
			t.Errorf("NewDevice(%#x, %#x) left the file open", tt.size, tt.align)
		}
	}
}

func TestOpenDevice(t *testing.T) {
	f, err := OpenDevice(os.DevNull, "1:3")
	if err != nil {
		t.Fatal(err)
	}
	f.Close()
	dir := t.TempDir()
	file, link := filepath.Join(dir, "dax0.0"), filepath.Join(dir, "dax1.0")
	if err := os.WriteFile(file, []byte("not a device"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(os.DevNull, link); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		path, number string
		want         string
	}{
		{os.DevNull, "1:5", "not character device 1:5"},
		{os.DevNull, "", "not character device"},
		{file, "0:0", "not character device"},
		{link, "1:3", fmt.Sprint(unix.ELOOP)},
		{filepath.Join(dir, "missing"), "1:3", "no such file"},
	} {
		if f, err := OpenDevice(tt.path, tt.number); f != nil || err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("OpenDevice(%s, %q) = %v, %v; want an error with %q", tt.path, tt.number, f, err, tt.want)
		}
	}
}
