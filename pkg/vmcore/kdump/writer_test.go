package kdump_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/warmcore/warmcore/pkg/phys"
	"github.com/warmcore/warmcore/pkg/vmcore"
	"github.com/warmcore/warmcore/pkg/vmcore/kdump"
)

// file is a file in memory; what is written twice is remembered.
type file struct {
	b      []byte
	seen   []bool
	twice  int
	broken error
}

func (f *file) WriteAt(p []byte, off int64) (int, error) {
	if f.broken != nil {
		return 0, f.broken
	}
	if n := int(off) + len(p) - len(f.b); n > 0 {
		f.b = append(f.b, make([]byte, n)...)
		f.seen = append(f.seen, make([]bool, n)...)
	}
	for i := range p {
		if f.seen[int(off)+i] {
			f.twice++
		}
		f.seen[int(off)+i] = true
	}
	return copy(f.b[off:], p), nil
}

func codec(t testing.TB, name string) kdump.Codec {
	t.Helper()
	c, err := kdump.ParseCodec(name)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func meta(t testing.TB) kdump.Meta {
	return kdump.Meta{
		Info: &vmcore.Info{
			BlockSize: 4096, Memory: phys.Set{{Start: 0x1000, End: 0x9000}, {Start: 0x100000, End: 0x104000}},
			Uname: vmcore.Uname{Sysname: "Linux", Nodename: "db", Release: "6.12.0", Version: "#1", Machine: "x86_64", Domain: "(none)"},
			CPUs:  3, Created: 1795348799, VMCOREINFO: []byte("OSRELEASE=6.12.0\n"),
		},
		PhysBase: 0xffffffffff000000, Level: 31, Codec: codec(t, "zlib"),
	}
}

// write writes pages, all of one part, with their data.
func writePages(t *testing.T, w *kdump.Writer, e *kdump.Encoder, pages map[uint64][]byte, pfns ...uint64) {
	t.Helper()
	var list []kdump.Page
	var data []byte
	for _, pfn := range pfns {
		if pages[pfn] == nil {
			list = append(list, kdump.Page{PFN: pfn, Off: kdump.Zero})
			continue
		}
		off := len(data)
		out, raw := e.Append(data, pages[pfn])
		data = out
		list = append(list, kdump.Page{PFN: pfn, Off: int64(off), Size: uint32(len(out) - off), Raw: raw})
	}
	dst, off, err := w.Append(list, int64(len(data)))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := dst.WriteAt(data, off); err != nil {
		t.Fatal(err)
	}
}

func TestWriter(t *testing.T) {
	noise := make([]byte, 4096)
	rng := rand.New(rand.NewPCG(1, 2))
	for i := range noise {
		noise[i] = byte(rng.Uint32())
	}
	pages := map[uint64][]byte{
		1: noise, 2: bytes.Repeat([]byte("text"), 1024), 8: bytes.Repeat([]byte{7}, 4096), 0x100: noise, 0x103: bytes.Repeat([]byte("end."), 1024),
	}
	for _, ends := range [][]uint64{{0}, {8, 0}, {0, 0}, {3, 0x100, 0}} {
		t.Run(fmt.Sprintf("parts %#x", ends), func(t *testing.T) {
			e, err := kdump.NewEncoder(codec(t, "zlib"), 0, 4096)
			if err != nil {
				t.Fatal(err)
			}
			files := make([]*file, len(ends))
			var parts []kdump.Part
			for i, end := range ends {
				files[i] = &file{}
				parts = append(parts, kdump.Part{Dst: files[i], End: end, Pages: 6})
			}
			w, err := kdump.NewWriter(meta(t), parts...)
			if err != nil {
				t.Fatal(err)
			}
			for _, pfn := range []uint64{1, 2, 5, 8, 0x100, 0x103} {
				if _, err := kdump.New(bytes.NewReader(files[0].b), int64(len(files[0].b))); err == nil {
					t.Error("opens as a dump before it is closed")
				}
				writePages(t, w, e, pages, pfn)
			}
			if err := w.Close(); err != nil {
				t.Fatal(err)
			}
			var dumps []*kdump.Dump
			for _, f := range files {
				if f.twice > 0 {
					t.Errorf("%d bytes were written twice", f.twice)
				}
				dumps = append(dumps, open(t, f.b))
			}
			var d vmcore.Dump = dumps[0]
			if len(dumps) > 1 {
				if d, err = kdump.Join(dumps...); err != nil {
					t.Fatal(err)
				}
			}
			want, got := meta(t).Info, d.Info()
			if diff := cmp.Diff(want.Uname, got.Uname); diff != "" || got.CPUs != 3 || got.Created != want.Created || got.Level != 31 || string(got.VMCOREINFO) != string(want.VMCOREINFO) {
				t.Errorf("%d CPUs, created %d, level %d, VMCOREINFO %q, uname (-want +got):\n%s", got.CPUs, got.Created, got.Level, got.VMCOREINFO, diff)
			}
			if got, want := got.Memory.String(), want.Memory.String(); got != want {
				t.Errorf("memory %s, want %s", got, want)
			}
			for pfn := range uint64(0x110) {
				b := make([]byte, 4096)
				err := d.ReadPhys(b, pfn*4096)
				switch page, ok := pages[pfn]; {
				case ok && (err != nil || !bytes.Equal(b, page)):
					t.Errorf("page %#x: %v, or another content", pfn, err)
				case pfn == 5 && (err != nil || !bytes.Equal(b, make([]byte, 4096))):
					t.Errorf("page of zeroes: %v, or another content", err)
				case !ok && pfn != 5 && err == nil:
					t.Errorf("page %#x, which was not written, can be read", pfn)
				}
			}
		})
	}
}

func TestWriterErrors(t *testing.T) {
	broken := errors.New("disk on fire")
	for _, tc := range []struct {
		name   string
		change func(m *kdump.Meta, p *kdump.Part)
		want   string
	}{
		{"page size", func(m *kdump.Meta, _ *kdump.Part) { m.Info.BlockSize = 3000 }, "block size 3000"},
		{"no memory", func(m *kdump.Meta, _ *kdump.Part) { m.Info.Memory = nil }, "no memory"},
		{"too much memory", func(m *kdump.Meta, _ *kdump.Part) { m.Info.Memory = phys.Set{{Start: 0, End: 1 << 62}} }, "pages, want at most"},
		{"too many notes", func(m *kdump.Meta, _ *kdump.Part) { m.Info.Notes = make([]byte, vmcore.MaxNotes+1) }, "bytes of notes"},
		{"too many pages", func(_ *kdump.Meta, p *kdump.Part) { p.Pages = kdump.MaxPages + 1 }, "out of order or too much"},
		{"disk", func(_ *kdump.Meta, p *kdump.Part) { p.Dst = &file{broken: broken} }, "disk on fire"},
	} {
		m, p := meta(t), kdump.Part{Dst: &file{}, Pages: 3}
		tc.change(&m, &p)
		if w, err := kdump.NewWriter(m, p); err == nil || !strings.Contains(err.Error(), tc.want) || w != nil {
			t.Errorf("%s: %v, want %q", tc.name, err, tc.want)
		}
	}
	if _, err := kdump.NewWriter(meta(t)); err == nil {
		t.Error("no part: no error")
	}
	page := func(pfns ...uint64) (list []kdump.Page) {
		for _, pfn := range pfns {
			list = append(list, kdump.Page{PFN: pfn, Off: kdump.Zero})
		}
		return list
	}
	for _, tc := range []struct {
		name string
		list [][]kdump.Page
		want string
	}{
		{"none", [][]kdump.Page{nil}, "none, or out of order"},
		{"twice", [][]kdump.Page{page(1), page(1)}, "none, or out of order"},
		{"out of order", [][]kdump.Page{page(2, 1)}, "out of order"},
		{"of two parts", [][]kdump.Page{page(2, 8)}, "of several parts"},
		{"more than promised", [][]kdump.Page{page(1, 2, 3, 4)}, "more than were promised"},
		{"behind the end", [][]kdump.Page{page(0x104)}, "of several parts"},
	} {
		w, err := kdump.NewWriter(meta(t), kdump.Part{Dst: &file{}, End: 8, Pages: 3}, kdump.Part{Dst: &file{}, Pages: 3})
		if err != nil {
			t.Fatal(err)
		}
		for _, list := range tc.list {
			var dst io.WriterAt
			if dst, _, err = w.Append(list, 0); err != nil && dst != nil {
				t.Errorf("%s: error and a file", tc.name)
			}
		}
		if err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: %v, want %q", tc.name, err, tc.want)
		}
		if w.Close() == nil {
			t.Errorf("%s: Close after an error: no error", tc.name)
		}
	}
	f := &file{}
	w, err := kdump.NewWriter(meta(t), kdump.Part{Dst: f, Pages: 1})
	if err != nil {
		t.Fatal(err)
	}
	f.broken = broken
	if err := w.Close(); !errors.Is(err, broken) {
		t.Errorf("Close on a broken disk: %v", err)
	}
	if err := w.Close(); err == nil {
		t.Error("Close for the second time: no error")
	}
}

// pages of many kinds, from which an encoder must make what a reader expands.
func FuzzEncoder(f *testing.F) {
	f.Add([]byte("text and text and text"), uint16(0), uint8(0))
	f.Add([]byte{0}, uint16(1), uint8(1))
	f.Add([]byte("\x00\x01\x02\x03\x04\x05\x06\x07\x08\x09"), uint16(77), uint8(2))
	names := []string{"zstd", "zlib", "snappy", "none"}
	f.Fuzz(func(t *testing.T, seed []byte, mix uint16, kind uint8) {
		if len(seed) == 0 {
			return
		}
		page := make([]byte, 4096)
		rng := rand.New(rand.NewPCG(uint64(mix), 1))
		for i := 0; i < len(page); {
			n := copy(page[i:], seed)
			if mix > 0 && rng.IntN(int(mix)) < 8 {
				page[i] = byte(rng.Uint32())
			}
			i += n
		}
		c := codec(t, names[int(kind)%len(names)])
		e, err := kdump.NewEncoder(c, int(kind/4)%4, len(page))
		if err != nil {
			t.Fatal(err)
		}
		out, raw := e.Append([]byte("before"), page)
		if string(out[:6]) != "before" || len(out)-6 > len(page) || raw && !bytes.Equal(out[6:], page) {
			t.Fatalf("%v: %d bytes, raw %v", c, len(out)-6, raw)
		}
		var got []byte
		file := &file{}
		w, err := kdump.NewWriter(kdump.Meta{Info: &vmcore.Info{BlockSize: 4096, Memory: phys.Set{{Start: 0, End: 4096}}}, Codec: c}, kdump.Part{Dst: file, Pages: 1})
		if err != nil {
			t.Fatal(err)
		}
		_, off, err := w.Append([]kdump.Page{{Size: uint32(len(out) - 6), Raw: raw}}, int64(len(out)-6))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := file.WriteAt(out[6:], off); err != nil {
			t.Fatal(err)
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		d, err := kdump.New(bytes.NewReader(file.b), int64(len(file.b)))
		if err != nil {
			t.Fatal(err)
		}
		got = make([]byte, 4096)
		if err := d.ReadPhys(got, 0); err != nil || !bytes.Equal(got, page) {
			t.Fatalf("%v: %v, or another content", c, err)
		}
	})
}

// BenchmarkEncoder compresses pages of text and of pointers.
func BenchmarkEncoder(b *testing.B) {
	pages := make([]byte, 256*4096)
	rng := rand.New(rand.NewPCG(1, 2))
	for i := 0; i < len(pages); i += 8 {
		if i/4096%2 == 0 && rng.IntN(3) > 0 {
			copy(pages[i:], "some txt"[rng.IntN(4):])
			continue
		}
		for j, x := range []byte{byte(rng.Uint32()), byte(rng.Uint32()), byte(rng.IntN(8)), 0x3b, 0x8d, 0xff, 0xff} {
			pages[i+j] = x
		}
	}
	for _, name := range []string{"zstd", "zlib", "snappy"} {
		b.Run(name, func(b *testing.B) {
			e, err := kdump.NewEncoder(codec(b, name), 0, 4096)
			if err != nil {
				b.Fatal(err)
			}
			b.SetBytes(int64(len(pages)))
			b.ReportAllocs()
			var out []byte
			for b.Loop() {
				out = out[:0]
				for at := 0; at < len(pages); at += 4096 {
					out, _ = e.Append(out, pages[at:at+4096])
				}
			}
			b.ReportMetric(float64(len(pages))/float64(len(out)), "ratio")
		})
	}
}
