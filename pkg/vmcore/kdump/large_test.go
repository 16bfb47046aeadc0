package kdump_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"runtime"
	"testing"

	"github.com/warmcore/warmcore/pkg/phys"
	"github.com/warmcore/warmcore/pkg/vmcore"
	"github.com/warmcore/warmcore/pkg/vmcore/kdump"
)

// large is the file of a machine with much memory, made up as it is read: of
// every 512 pages the first and the eighth are held. The page with descriptor
// i has bytes that are i%16.
type large struct {
	pages uint64
	head  kdump.Header
	start []byte // header and sub header
	read  uint64 // bytes
}

// Pieces of the bitmaps.
var (
	ones = bytes.Repeat([]byte{0xff}, 1<<16)
	few  = bytes.Repeat(append([]byte{0x81}, make([]byte, 63)...), 1<<10)
)

func newLarge(memory uint64) *large {
	l := &large{pages: memory / 4096}
	l.head = kdump.Header{Version: 6, BlockSize: 4096, SubBlocks: 1, BitmapBlocks: uint32(2 * ((l.pages/8 + 4095) / 4096))}
	l.start = l.head.AppendBinary(nil)
	l.start = append(l.start, make([]byte, 4096-len(l.start))...)
	l.start = kdump.SubHeader{MaxMapNr: l.pages}.AppendBinary(l.start)
	l.start = append(l.start, make([]byte, 8192-len(l.start))...)
	return l
}

func (l *large) held() uint64 { return l.pages / 512 * 2 }

func (l *large) data() int64 { return l.head.DescOffset() + int64(l.held()*kdump.DescSize) }

func (l *large) size() int64 { return l.data() + 16*4096 }

// ReadAt makes up what is at off.
func (l *large) ReadAt(p []byte, off int64) (int, error) {
	l.read += uint64(len(p))
	if off+int64(len(p)) > l.size() {
		return 0, io.ErrUnexpectedEOF
	}
	for done := 0; done < len(p); {
		at, rest := off+int64(done), p[done:]
		bitmap1, bitmap2 := l.head.BitmapOffset(), l.head.BitmapOffset()+l.head.BitmapSize()
		var n int
		switch {
		case at < bitmap1:
			n = copy(rest, l.start[at:])
		case at < bitmap2:
			n = copy(rest[:min(int64(len(rest)), bitmap2-at)], ones)
		case at < l.head.DescOffset():
			n = copy(rest[:min(int64(len(rest)), l.head.DescOffset()-at)], few[(at-bitmap2)%64:])
		case at < l.data():
			i := (at - l.head.DescOffset()) / kdump.DescSize
			in := (at - l.head.DescOffset()) % kdump.DescSize
			d := kdump.Desc{Offset: uint64(l.data() + i%16*4096), Size: 4096}.AppendBinary(nil)
			n = copy(rest, d[in:])
		default:
			n = len(rest)
			for i := range rest {
				rest[i] = byte((at - l.data() + int64(i)) / 4096)
			}
		}
		done += n
	}
	return len(p), nil
}

// TestLarge reads pages here and there in the dump of a machine with 1 TiB:
// in right order, and in memory that doesn't depend on it.
func TestLarge(t *testing.T) {
	l := newLarge(phys.TiB)
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	d, err := kdump.New(l, l.size())
	if err != nil {
		t.Fatal(err)
	}
	if got := d.Info().Memory.String(); got != "00000000-ffffffffff" {
		t.Errorf("memory %s", got)
	}
	if n, err := d.HeldSize(); err != nil || n != l.held()*4096 {
		t.Errorf("%#x bytes held, error %v, want %#x", n, err, l.held()*4096)
	}
	l.read = 0
	b := make([]byte, 4096)
	for _, group := range []uint64{0, 1, 63, 64, 127, 1 << 15, 1<<17 + 7, l.pages/512 - 1, 1 << 18, 3} {
		for i, pfn := range []uint64{group * 512, group*512 + 7} {
			err := d.ReadPhys(b, pfn*4096)
			if want := byte((2*group + uint64(i)) % 16); err != nil || b[0] != want || b[4095] != want {
				t.Errorf("page %#x: %d, error %v, want %d", pfn, b[0], err, want)
			}
		}
		var m *vmcore.MissingError
		if err := d.ReadPhys(b, group*512*4096+4096); !errors.As(err, &m) || m.Reason != vmcore.Excluded {
			t.Errorf("page beside it: %v, want excluded", err)
		}
	}
	if l.read > 10*4*(64<<10)+20*4096 {
		t.Errorf("%d bytes were read for 20 pages", l.read)
	}
	// More places than the caches hold, there and back, in parts of pages.
	groups := l.pages / 512
	for i := range uint64(400) {
		group := min(i, 400-i) * (groups / 201)
		err := d.ReadPhys(b[:8], (group*512+7)*4096+100)
		if want := byte((2*group + 1) % 16); err != nil || b[0] != want || b[7] != want {
			t.Errorf("part of page %#x: %d, error %v, want %d", group*512+7, b[0], err, want)
		}
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	if used := int64(after.HeapAlloc) - int64(before.HeapAlloc); used > 16<<20 {
		t.Errorf("%d bytes of memory are used, want at most 16 MiB", used)
	}
	runtime.KeepAlive(d)
}

// A 1st bitmap with a hole after every page would be more ranges than memory.
type holes struct{ *large }

func (h holes) ReadAt(p []byte, off int64) (int, error) {
	n, err := h.large.ReadAt(p, off)
	if at := h.head.BitmapOffset(); off >= at && off+int64(len(p)) <= at+h.head.BitmapSize() {
		for i := range p {
			p[i] = 0x55
		}
	}
	return n, err
}

func TestManyRanges(t *testing.T) {
	h := holes{newLarge(phys.GiB)}
	d, err := kdump.New(h, h.size())
	if err != nil {
		t.Fatal(err)
	}
	info := d.Info()
	if n := len(info.Memory); n != 1<<16 || len(info.Warnings) != 1 || info.Memory[n-1].End != phys.GiB-4096 {
		t.Errorf("%d ranges to %#x, warnings %q", n, info.Memory[n-1].End, info.Warnings)
	}
}

// A few bytes that claim a large machine cost nothing.
func TestSmallFileClaimsMuch(t *testing.T) {
	l := newLarge(1 << 50)
	file := append(l.start, make([]byte, 4096)...)
	var b [8]byte
	binary.LittleEndian.PutUint64(b[:], kdump.MaxPages)
	copy(file[4096+96:], b[:])
	allocated := testing.AllocsPerRun(1, func() {
		d, err := kdump.New(bytes.NewReader(file), int64(len(file)))
		if d != nil || err == nil {
			t.Errorf("New: %v, want an error", err)
		}
	})
	if allocated > 100 {
		t.Errorf("%v allocations", allocated)
	}
}
