package convert_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/warmcore/warmcore/pkg/convert"
	"github.com/warmcore/warmcore/pkg/dumpfilter"
	"github.com/warmcore/warmcore/pkg/elfcore"
	"github.com/warmcore/warmcore/pkg/phys"
	"github.com/warmcore/warmcore/pkg/vmcore"
	"github.com/warmcore/warmcore/pkg/vmcore/dumpfile"
	"github.com/warmcore/warmcore/pkg/vmcore/flattened"
	"github.com/warmcore/warmcore/pkg/vmcore/kdump"
	"github.com/warmcore/warmcore/pkg/vmcore/vmcoretest"
)

// file is a file in memory. It is full at limit bytes, if that isn't 0.
type file struct {
	mu    sync.Mutex
	b     []byte
	limit int
}

var errFull = errors.New("no space left")

func (f *file) WriteAt(p []byte, off int64) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	end := int(off) + len(p)
	if f.limit > 0 && end > f.limit {
		return 0, errFull
	}
	if end > len(f.b) {
		f.b = append(f.b, make([]byte, end-len(f.b))...)
	}
	return copy(f.b[off:], p), nil
}

func open(t testing.TB, files ...*file) vmcore.Dump {
	t.Helper()
	var in []dumpfile.File
	for _, f := range files {
		in = append(in, dumpfile.File{ReaderAt: bytes.NewReader(f.b), Size: int64(len(f.b))})
	}
	d, err := dumpfile.Join(in...)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func openBytes(t testing.TB, b []byte) vmcore.Dump {
	t.Helper()
	return open(t, &file{b: b})
}

// texts are dumps; what is left out is long enough to be left out of ELF files,
// too.
var texts = map[string]string{
	"small": `
vmcoreinfo OSRELEASE=6.1.0-test
vmcoreinfo PAGESIZE=4096
vmcoreinfo CRASHTIME=1795348799
cpu 42
cpu 0
load 0xffff888000001000 0x1000 0x5000
load 0xffff888000009000 0x9000 0x7000
0x1000 raw random 1
0x2000 zlib fill aa
0x3000-0x6000 zlib fill 00
0x9000-0xd000 zlib text over the lazy dog
0xd000 zlib fill aa
0xe000-0x10000 zlib fill bb
`,
	"left out": `
vmcoreinfo OSRELEASE=6.1.0-test
vmcoreinfo PAGESIZE=4096
load 0xffff888000000000 0x0 0x500000
load 0xffffffff81000000 0x220000 0x100000
0x0-0x100000 excluded
0x100000-0x140000 raw text kernel
0x140000-0x240000 excluded
0x240000-0x280000 zlib random 3
0x280000-0x380000 excluded
0x380000 zlib text one page
0x381000-0x481000 excluded
0x481000-0x4ff000 zlib text the end
0x4ff000-0x500000 zlib fill 00
`,
	"64K pages": `
machine aarch64
pagesize 0x10000
vmcoreinfo OSRELEASE=6.12.0-test
vmcoreinfo PAGESIZE=65536
load 0xffff000000000000 0x40000000 0x200000
0x40000000-0x40100000 zstd text a page of 64K
0x40100000-0x401f0000 zstd random 5
0x401f0000 zstd fill 00
`,
	"far apart": `
load 0xffff888000001000 0x1000 0x1000
load 0xffff888040000000 0x40000000 0x1000
load 0xffff8887fffff000 0x7fffff000 0x1000
0x1000 raw random 1
0x40000000 raw random 2
0x7fffff000 zlib text end
`,
	"all zero": "load 0xffff888000000000 0x0 0x100000\n0x0-0x100000 raw zero\n",
}

// form is a way of writing.
type form struct {
	name  string
	o     convert.Options
	parts int
	flat  bool
}

func codec(t testing.TB, name string) kdump.Codec {
	t.Helper()
	c, err := kdump.ParseCodec(name)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func forms(t testing.TB) []form {
	t.Helper()
	return []form{
		{"zstd", convert.Options{Codec: codec(t, "zstd"), DumpLevel: 31}, 1, false},
		{"zstd 3", convert.Options{Codec: codec(t, "zstd"), Effort: 3, Workers: 1}, 1, false},
		{"zlib", convert.Options{Codec: codec(t, "zlib"), Workers: 3}, 1, false},
		{"snappy", convert.Options{Codec: codec(t, "snappy"), Workers: 9}, 1, false},
		{"none", convert.Options{Codec: codec(t, "none")}, 1, false},
		{"split", convert.Options{Codec: codec(t, "zstd")}, 3, false},
		{"flattened", convert.Options{Codec: codec(t, "zstd"), NoHoles: true}, 1, true},
		{"ELF", convert.Options{Format: convert.ELF}, 1, false},
		{"ELF flattened", convert.Options{Format: convert.ELF, NoHoles: true}, 1, true},
	}
}

func formOf(t testing.TB, name string) form {
	t.Helper()
	all := forms(t)
	i := slices.IndexFunc(all, func(f form) bool { return f.name == name })
	if i < 0 {
		t.Fatalf("no form %q", name)
	}
	return all[i]
}

// write converts src and opens the result.
func write(t testing.TB, src vmcore.Dump, filter convert.Filter, f form) (vmcore.Dump, convert.Result, []*file) {
	t.Helper()
	files := make([]*file, f.parts)
	dst := make([]io.WriterAt, f.parts)
	for i := range files {
		files[i] = &file{}
		dst[i] = files[i]
	}
	var flat *flattened.Writer
	if f.flat {
		var err error
		if flat, err = flattened.NewWriter(io.NewOffsetWriter(files[0], 0)); err != nil {
			t.Fatal(err)
		}
		dst[0] = &serial{w: flat}
	}
	r, err := convert.Convert(t.Context(), src, filter, dst, f.o)
	if err != nil {
		t.Fatal(err)
	}
	if f.flat {
		if err := flat.Close(); err != nil {
			t.Fatal(err)
		}
	} else if f.parts == 1 && r.Size != uint64(len(files[0].b)) {
		t.Errorf("Result.Size is %d, the file has %d", r.Size, len(files[0].b))
	}
	return open(t, files...), r, files
}

type serial struct {
	mu sync.Mutex
	w  io.WriterAt
}

func (s *serial) WriteAt(p []byte, off int64) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.w.WriteAt(p, off)
}

func TestConvert(t *testing.T) {
	for name, text := range texts {
		s := vmcoretest.Parse(t, text)
		for source, b := range map[string][]byte{"ELF": s.ELF(t), "kdump": s.Kdump(t)} {
			for _, f := range forms(t) {
				t.Run(name+"/"+source+"/"+f.name, func(t *testing.T) {
					src := openBytes(t, b)
					got, r, _ := write(t, src, nil, f)
					s.Check(t, got)
					info := got.Info()
					if want := f.o.Format.String(); !strings.HasPrefix(info.Format, want) {
						t.Errorf("format is %s, want %s", info.Format, want)
					}
					if !bytes.Equal(info.Notes, src.Info().Notes) || !bytes.Equal(info.VMCOREINFO, src.Info().VMCOREINFO) {
						t.Errorf("%d bytes of notes and %d of VMCOREINFO, want those of the source", len(info.Notes), len(info.VMCOREINFO))
					}
					if r.Pages != uint64(len(s.Pages)) || r.Kept+r.Absent != r.Pages || r.Dropped != 0 || len(r.Unreadable) != 0 {
						t.Errorf("%d pages of the text; result %+v", len(s.Pages), r)
					}
					if f.o.Format == convert.KDump && info.Level != f.o.DumpLevel {
						t.Errorf("level is %d, want %d", info.Level, f.o.DumpLevel)
					}
					if source == "ELF" && f.o.Format == convert.ELF {
						for _, l := range src.Info().Loads {
							if !mapped(info.Loads, l) {
								t.Errorf("load %+v of the source is not in %+v", l, info.Loads)
							}
						}
					}
				})
			}
		}
	}
}

// mapped says whether loads map all of l as l does.
func mapped(loads []vmcore.Load, l vmcore.Load) bool {
	var have []phys.Range
	for _, x := range loads {
		if x.Virt-x.Phys == l.Virt-l.Phys {
			have = append(have, phys.Range{Start: x.Virt, End: x.Virt + x.Size})
		}
	}
	return phys.NewSet(have...).Contains(phys.Range{Start: l.Virt, End: l.Virt + l.Size})
}

func TestConvertCounts(t *testing.T) {
	s := vmcoretest.Parse(t, texts["small"])
	_, r, _ := write(t, openBytes(t, s.ELF(t)), nil, forms(t)[0])
	r.Data, r.Size = 0, 0
	want := convert.Result{PageSize: 4096, Pages: 12, Kept: 12, Zero: 3, Filled: 4, Raw: 1}
	if diff := cmp.Diff(want, r); diff != "" {
		t.Errorf("result (-want +got):\n%s", diff)
	}
}

// The file is the same whatever the number of workers.
func TestConvertSame(t *testing.T) {
	src := openBytes(t, vmcoretest.Parse(t, texts["left out"]).ELF(t))
	var want []byte
	for _, workers := range []int{1, 2, 3, 16} {
		f := forms(t)[0]
		f.o.Workers = workers
		_, _, files := write(t, src, nil, f)
		if want == nil {
			want = files[0].b
		}
		if !bytes.Equal(files[0].b, want) {
			t.Errorf("with %d workers the file is another one", workers)
		}
	}
}

// evens leaves out every second page, and says that all were cache.
type evens struct{}

func (evens) PageSize() uint64 { return 4096 }

func (evens) Drop(dst []uint64, first, n uint64) (c dumpfilter.Counts, err error) {
	for i := range n {
		if (first+i)%2 == 0 {
			dst[i/64] |= 1 << (i % 64)
		}
	}
	c.Cache = 7
	return c, nil
}

// broken can't decide.
type broken struct{}

func (broken) PageSize() uint64 { return 4096 }

func (broken) Drop([]uint64, uint64, uint64) (dumpfilter.Counts, error) {
	return dumpfilter.Counts{}, errors.New("no idea")
}

func TestConvertFilter(t *testing.T) {
	s := vmcoretest.Parse(t, "0x0-0x20000 raw random 1")
	got, r, _ := write(t, openBytes(t, s.Kdump(t)), evens{}, forms(t)[0])
	for i := range s.Pages {
		p := &s.Pages[i]
		if p.Addr/4096%2 == 0 {
			p.Stored = vmcoretest.Excluded
		}
	}
	s.Check(t, got)
	if r.Dropped != 16 || r.Kept != 16 || r.Counts.Cache != 7 {
		t.Errorf("result %+v, want 16 dropped, 16 kept", r)
	}
	if _, err := convert.Convert(t.Context(), openBytes(t, s.Kdump(t)), broken{}, []io.WriterAt{&file{}}, convert.Options{}); err == nil {
		t.Error("a filter that fails: no error")
	}
}

// Pages that can't be read are named, and cost nothing else.
func TestConvertUnreadable(t *testing.T) {
	s := vmcoretest.Parse(t, `
cpu 42
0x0-0x20000 raw text good
0x20000-0x22000 unwritten
0x22000 unreadable
0x23000-0x30000 raw text good
0x30000 unwritten
0x31000-0x40000 raw random 2
0x40000 unreadable
`)
	src := openBytes(t, s.Kdump(t))
	for i := range s.Pages {
		if !s.Pages[i].Held() {
			s.Pages[i].Stored = vmcoretest.Unreadable
		}
	}
	want := s.Unreadable()
	for _, f := range forms(t) {
		t.Run(f.name, func(t *testing.T) {
			got, r, files := write(t, src, nil, f)
			if diff := cmp.Diff(want, r.Unreadable); diff != "" {
				t.Errorf("unreadable (-want +got):\n%s", diff)
			}
			s.Check(t, got)
			if len(files) > 1 {
				for i, f := range files {
					if diff := cmp.Diff(want, openBytes(t, f.b).Info().Unreadable); diff != "" {
						t.Errorf("unreadable in file %d of a split dump (-want +got):\n%s", i, diff)
					}
				}
			}
			// Once named, always named.
			for _, name := range []string{"snappy", "split", "ELF"} {
				g := formOf(t, name)
				again, r, _ := write(t, got, nil, g)
				if diff := cmp.Diff(want, r.Unreadable); diff != "" {
					t.Errorf("to %s: unreadable (-want +got):\n%s", g.name, diff)
				}
				s.Check(t, again)
				if !bytes.Equal(again.Info().Notes, src.Info().Notes) {
					t.Errorf("to %s: notes of %d bytes, want %d", g.name, len(again.Info().Notes), len(src.Info().Notes))
				}
			}
		})
	}
}

// More unreadable ranges than a dump can name are counted.
func TestConvertMuchUnreadable(t *testing.T) {
	s := vmcoretest.Parse(t, "0x0-0x4000000 raw text good")
	for i := range s.Pages {
		if i%2 == 1 {
			s.Pages[i].Stored, s.Pages[i].Data = vmcoretest.Unwritten, nil
		}
	}
	src := openBytes(t, s.Kdump(t))
	for _, name := range []string{"snappy", "ELF"} {
		t.Run(name, func(t *testing.T) {
			f := formOf(t, name)
			got, r, _ := write(t, src, nil, f)
			info := got.Info()
			named := uint64(len(info.Unreadable))
			if total := uint64(len(s.Pages) / 2); uint64(len(r.Unreadable))+r.MoreUnreadable != total || named < 1000 || named+info.MoreUnreadable != total {
				t.Errorf("listed %d and %d more, named %d and %d more, want %d in all", len(r.Unreadable), r.MoreUnreadable, named, info.MoreUnreadable, total)
			}
			again, _, _ := write(t, got, nil, f)
			if again.Info().MoreUnreadable != info.MoreUnreadable {
				t.Errorf("%d more pages when converted, want %d", again.Info().MoreUnreadable, info.MoreUnreadable)
			}
		})
	}
}

// viewer is a dump in memory that is mapped. Viewing some of it fails, after a
// part was shown.
type viewer struct {
	vmcore.Dump
	bad phys.Range
}

func (v viewer) View(r phys.Range, f func([]byte)) error {
	b := make([]byte, r.Size())
	if v.bad.Overlaps(r) {
		f(b[:len(b)/2])
		return &vmcore.MissingError{Range: v.bad, Reason: vmcore.Unreadable}
	}
	if err := v.Dump.ReadPhys(b, r.Start); err != nil {
		return err
	}
	f(b[:len(b)/3])
	f(b[len(b)/3:])
	return nil
}

func (v viewer) ReadPhys(p []byte, addr uint64) error {
	if r := (phys.Range{Start: addr, End: addr + uint64(len(p))}); v.bad.Overlaps(r) {
		return &vmcore.MissingError{Range: v.bad, Reason: vmcore.Unreadable}
	}
	return v.Dump.ReadPhys(p, addr)
}

func TestConvertViewer(t *testing.T) {
	s := vmcoretest.Parse(t, "0x0-0x80000 raw random 9")
	bad := phys.Range{Start: 0x15000, End: 0x16000}
	got, r, _ := write(t, viewer{openBytes(t, s.ELF(t)), bad}, nil, forms(t)[0])
	if diff := cmp.Diff(phys.Set{bad}, r.Unreadable); diff != "" {
		t.Errorf("unreadable (-want +got):\n%s", diff)
	}
	s.Pages[0x15].Stored = vmcoretest.Unreadable
	s.Check(t, got)
}

// Memory that begins or ends inside a page is in the dump with its page.
func TestConvertPartOfPage(t *testing.T) {
	s := vmcoretest.Parse(t, "0x0-0x3000 raw random 4")
	b := s.ELF(t)
	const load = elfcore.EhdrSize + elfcore.PhdrSize
	b = vmcoretest.Patch(t, b, load+32, 8, 0x2c00) // p_filesz
	b = vmcoretest.Patch(t, b, load+40, 8, 0x2c00) // p_memsz
	src := openBytes(t, b)
	if got := src.Info().Memory.String(); got != "00000000-00002bff" {
		t.Fatalf("memory of the source is %s", got)
	}
	for _, f := range forms(t) {
		got, r, _ := write(t, src, nil, f)
		b := make([]byte, 0x2c00)
		if err := got.ReadPhys(b, 0); err != nil || !bytes.Equal(b[:0x2000], append(slices.Clone(s.Pages[0].Data), s.Pages[1].Data...)) ||
			!bytes.Equal(b[0x2000:], s.Pages[2].Data[:0xc00]) || r.Kept != 3 {
			t.Errorf("%s: %v, or another content; %+v", f.name, err, r)
		}
	}
}

// Wherever the disk is full, there is an error, and what is on it is no dump.
func TestConvertDiskFull(t *testing.T) {
	src := openBytes(t, vmcoretest.Parse(t, texts["left out"]).ELF(t))
	for _, f := range []form{forms(t)[0], forms(t)[4], {name: "ELF", o: convert.Options{Format: convert.ELF}}} {
		t.Run(f.name, func(t *testing.T) {
			whole := &file{}
			if _, err := convert.Convert(t.Context(), src, nil, []io.WriterAt{whole}, f.o); err != nil {
				t.Fatal(err)
			}
			for limit := 1; limit < len(whole.b); limit += max(len(whole.b)/20, 1) {
				out := &file{limit: limit}
				r, err := convert.Convert(t.Context(), src, nil, []io.WriterAt{out}, f.o)
				if !errors.Is(err, errFull) || !cmp.Equal(r, convert.Result{}) {
					t.Fatalf("with %d of %d bytes: %+v, %v; want no space left", limit, len(whole.b), r, err)
				}
				if _, err := dumpfile.New(bytes.NewReader(out.b), int64(len(out.b))); err == nil {
					t.Errorf("with %d of %d bytes the file opens as a dump", limit, len(whole.b))
				}
			}
		})
	}
}

func TestConvertCancel(t *testing.T) {
	src := openBytes(t, vmcoretest.Parse(t, texts["left out"]).ELF(t))
	for _, phase := range []convert.Phase{convert.Scanning, convert.Writing} {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		out := &file{}
		_, err := convert.Convert(ctx, src, nil, []io.WriterAt{out}, convert.Options{Progress: func(p convert.Progress) {
			if p.Phase == phase {
				cancel()
			}
		}})
		if !errors.Is(err, context.Canceled) {
			t.Errorf("cancelled in phase %d: %v", phase, err)
		}
	}
}

func TestConvertProgress(t *testing.T) {
	src := openBytes(t, vmcoretest.Parse(t, texts["left out"]).ELF(t))
	last := map[convert.Phase]convert.Progress{}
	planned := convert.Result{}
	r, err := convert.Convert(t.Context(), src, nil, []io.WriterAt{&file{}}, convert.Options{
		Planned: func(r convert.Result) error { planned = r; return nil },
		Progress: func(p convert.Progress) {
			if p.Done < last[p.Phase].Done || p.Done > p.Total {
				t.Errorf("progress %+v after %+v", p, last[p.Phase])
			}
			last[p.Phase] = p
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	if w := last[convert.Writing]; w.Done != w.Total || w.Total != r.Kept*4096 || planned.Kept != r.Kept {
		t.Errorf("last progress %+v, planned %+v, result %+v", w, planned, r)
	}
	stop := errors.New("too large")
	out := &file{}
	if _, err := convert.Convert(t.Context(), src, nil, []io.WriterAt{out}, convert.Options{Planned: func(convert.Result) error { return stop }}); !errors.Is(err, stop) || len(out.b) > 0 {
		t.Errorf("stopped by Planned: %v, %d bytes written", err, len(out.b))
	}
}

func TestConvertRefuses(t *testing.T) {
	src := openBytes(t, vmcoretest.Parse(t, texts["small"]).ELF(t))
	for name, tc := range map[string]struct {
		dst []io.WriterAt
		o   convert.Options
	}{
		"no file":         {nil, convert.Options{}},
		"split ELF":       {[]io.WriterAt{&file{}, &file{}}, convert.Options{Format: convert.ELF}},
		"unknown codec":   {[]io.WriterAt{&file{}}, convert.Options{Codec: 0x100}},
		"LZO":             {[]io.WriterAt{&file{}}, convert.Options{Codec: kdump.Codec(kdump.FlagLZO)}},
		"effort too high": {[]io.WriterAt{&file{}}, convert.Options{Codec: codec(t, "zstd"), Effort: 99}},
		"effort too low":  {[]io.WriterAt{&file{}}, convert.Options{Codec: codec(t, "zstd"), Effort: -1}},
	} {
		if _, err := convert.Convert(t.Context(), src, nil, tc.dst, tc.o); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	// More parts than pages: the last ones are empty.
	s := vmcoretest.Parse(t, "0x0-0x2000 raw random 1")
	f := form{o: convert.Options{}, parts: 5}
	got, _, _ := write(t, openBytes(t, s.Kdump(t)), nil, f)
	s.Check(t, got)
}

func TestFormat(t *testing.T) {
	for _, f := range []convert.Format{convert.KDump, convert.ELF} {
		if got, err := convert.ParseFormat(f.String()); got != f || err != nil {
			t.Errorf("ParseFormat(%v) = %v, %v", f, got, err)
		}
	}
	if _, err := convert.ParseFormat("tar"); err == nil {
		t.Error("ParseFormat(tar): no error")
	}
}

// poisoned leaves out a page that must not be read.
type poisoned struct{ pfn uint64 }

func (poisoned) PageSize() uint64 { return 4096 }

func (p poisoned) Drop(dst []uint64, first, n uint64) (c dumpfilter.Counts, err error) {
	if p.pfn >= first && p.pfn < first+n {
		dst[(p.pfn-first)/64] |= 1 << ((p.pfn - first) % 64)
		c.HWPoison = 1
	}
	return c, nil
}

// In ELF files a few pages that could be left out are kept, and never shown as
// zeroes; a page that must not be read is left out alone.
func TestConvertGaps(t *testing.T) {
	s := vmcoretest.Parse(t, "0x0-0x20000 raw random 1")
	elf := form{o: convert.Options{Format: convert.ELF}, parts: 1}
	got, r, _ := write(t, openBytes(t, s.ELF(t)), evens{}, elf)
	if r.Dropped != 1 || r.Kept != 31 || r.Blank != 0 { // all but the first page, which no segment begins with
		t.Errorf("result %+v, want 1 dropped, 31 kept", r)
	}
	s.Pages[0].Stored = vmcoretest.Excluded
	s.Check(t, got)

	s = vmcoretest.Parse(t, "0x0-0x20000 raw random 1")
	bad := phys.Range{Start: 0x7000, End: 0x8000}
	got, r, _ = write(t, viewer{openBytes(t, s.ELF(t)), bad}, poisoned{7}, elf)
	if r.Dropped != 1 || r.Kept != 31 || len(r.Unreadable) > 0 {
		t.Errorf("result %+v, want 1 dropped, 31 kept, nothing else read", r)
	}
	s.Pages[7].Stored = vmcoretest.Excluded
	s.Check(t, got)
}

// Parts of a split dump end where crash(8) can count, and all pages are in one.
func TestConvertParts(t *testing.T) {
	s := vmcoretest.Parse(t, "0x0-0x1000000 raw random 1\n0x1000000-0x3000000 excluded\n0x3000000-0x3800000 raw random 2")
	for _, n := range []int{2, 3, 7} {
		got, _, files := write(t, openBytes(t, s.Kdump(t)), nil, form{o: convert.Options{}, parts: n})
		s.Check(t, got)
		last := uint64(0)
		for i, f := range files {
			part := open(t, f).Info().Part
			if part.Start != last || i < n-1 && part.End%(4096*4096) != 0 && part.End != 0x3800000 {
				t.Errorf("part %d of %d is %v, behind %#x", i, n, part, last)
			}
			last = part.End
		}
	}
}

func TestConvertUname(t *testing.T) {
	s := vmcoretest.Parse(t, `
vmcoreinfo OSRELEASE=6.12.0-test
vmcoreinfo PAGESIZE=4096
vmcoreinfo SYMBOL(init_uts_ns)=ffffffff81002010
vmcoreinfo OFFSET(uts_namespace.name)=16
vmcoreinfo NUMBER(phys_base)=-16777216
0x0-0x8000 raw zero`)
	for i, name := range []string{"Linux", "db", "6.12.0-test", "#1", "x86_64", "(none)"} {
		copy(s.Pages[2].Data[0x20+65*i:], name)
	}
	want := vmcore.Uname{Sysname: "Linux", Nodename: "db", Release: "6.12.0-test", Version: "#1", Machine: "x86_64", Domain: "(none)"}
	got, _, _ := write(t, openBytes(t, s.ELF(t)), nil, forms(t)[0])
	if diff := cmp.Diff(want, got.Info().Uname); diff != "" {
		t.Errorf("uname (-want +got):\n%s", diff)
	}
	// Another release there is another kernel's, or nonsense.
	s.Pages[2].Data[0x20+65*2] = '5'
	got, _, _ = write(t, openBytes(t, s.ELF(t)), nil, forms(t)[0])
	if diff := cmp.Diff(vmcore.Uname{Release: "6.12.0-test", Machine: "x86_64"}, got.Info().Uname); diff != "" {
		t.Errorf("uname (-want +got):\n%s", diff)
	}
}
