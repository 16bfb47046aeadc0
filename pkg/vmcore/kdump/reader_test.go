package kdump_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"math"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/warmcore/warmcore/pkg/elfcore"
	"github.com/warmcore/warmcore/pkg/phys"
	"github.com/warmcore/warmcore/pkg/vmcore"
	"github.com/warmcore/warmcore/pkg/vmcore/kdump"
	"github.com/warmcore/warmcore/pkg/vmcore/vmcoretest"
)

// small has a page of every kind in few pages.
const small = `
vmcoreinfo OSRELEASE=6.1.0-test
vmcoreinfo PAGESIZE=4096
cpu 42
cpu 0
level 31
status zlib
end 0x20000
0x1000 zlib text the quick brown fox
0x2000 raw random 1
0x3000 excluded
0x4000 zlib fill 00
0x5000 zlib same
0x6000 unwritten
0x9000-0xc000 lzo text over the lazy dog
0xc000 snappy text a page of snappy
0xd000 zstd text a page of zstd
0xe000 lzo fill aa
0xf000 excluded
`

func open(t *testing.T, file []byte) *kdump.Dump {
	t.Helper()
	d, err := kdump.New(bytes.NewReader(file), int64(len(file)))
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func TestRead(t *testing.T) {
	tests := []struct {
		name, text string
	}{
		{"small", small},
		{"raw", "0x0-0x9000 raw random 3"},
		{"zlib", "0x0-0x9000 zlib text zlib"},
		{"lzo", "0x0-0x9000 lzo text lzo\n0x9000 lzo fill 1\n0xa000 lzo random 2"},
		{"snappy", "0x0-0x9000 snappy text snappy"},
		{"zstd", "0x0-0x9000 zstd text zstd"},
		{"version1", "version 1\n" + small},
		{"version2", "version 2\n" + small},
		{"version3", "version 3\n" + small},
		{"version4", "version 4\n" + small},
		{"version5", "version 5\n" + small},
		{"pages16K", "pagesize 0x4000\nmachine aarch64\n0x4000 zlib text a\n0x8000-0x20000 zstd text b"},
		{"pages64K", "pagesize 0x10000\nmachine aarch64\n0x40000000 zstd text a\n0x40010000 lzo fill 7\n0x40030000 raw random 2"},
		{"nothingHeld", "0x1000-0x9000 excluded"},
		{"farApart", "0x1000 raw random 1\n0x40000000 raw random 2\n0x7fffff000 zlib text end"},
		{"manyPages", "0x0-0x100000 raw random 1\n0x100000 excluded\n0x101000-0x180000 zlib text many"},
		{"endInsideByte", "end 0x3000\n0x0-0x3000 raw random 1"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := vmcoretest.Parse(t, tt.text)
			s.Check(t, open(t, s.Kdump(t)))
		})
	}
}

func TestInfo(t *testing.T) {
	s := vmcoretest.Parse(t, small)
	got := open(t, s.Kdump(t)).Info()
	want := &vmcore.Info{
		Format:      "kdump",
		Machine:     elfcore.MachineAMD64,
		PageSize:    4096,
		BlockSize:   4096,
		Memory:      phys.NewSet(phys.Range{Start: 0x1000, End: 0x7000}, phys.Range{Start: 0x9000, End: 0x10000}),
		Notes:       s.Notes(t),
		VMCOREINFO:  []byte("OSRELEASE=6.1.0-test\nPAGESIZE=4096\n"),
		Uname:       vmcore.Uname{Sysname: "Linux", Nodename: "test", Release: "6.1.0-test", Version: "#1", Machine: "x86_64", Domain: "(none)"},
		CPUs:        2,
		Created:     vmcoretest.Time,
		Level:       31,
		Compression: "zlib",
	}
	if diff := cmp.Diff(want, got, cmpopts.IgnoreUnexported(vmcore.Info{})); diff != "" {
		t.Errorf("info (-want +got):\n%s", diff)
	}
}

// The text alone is all that version 3 has, before it had notes.
func TestInfoVersion3(t *testing.T) {
	s := vmcoretest.Parse(t, "version 3\nvmcoreinfo OSRELEASE=2.6.32\n0x0 raw")
	got := open(t, s.Kdump(t)).Info()
	if string(got.VMCOREINFO) != "OSRELEASE=2.6.32\n" || got.Notes != nil {
		t.Errorf("VMCOREINFO %q, notes % x", got.VMCOREINFO, got.Notes)
	}
}

func TestIncomplete(t *testing.T) {
	s := vmcoretest.Parse(t, "status incomplete vmemmap\n0x0 raw\n0x1000 unwritten")
	d := open(t, s.Kdump(t))
	info := d.Info()
	if !info.Incomplete || len(info.Warnings) != 2 {
		t.Errorf("incomplete %v, warnings %q", info.Incomplete, info.Warnings)
	}
	if n, err := d.HeldSize(); n != 4096 || err != nil {
		t.Errorf("%d bytes are held, %v; want the one page that was written", n, err)
	}
}

// Places in the file that vmcoretest makes of small.
const (
	blockSize = 0x1000
	sub       = 0x1000
	bitmap1   = 0x2000
	bitmap2   = 0x3000
	descs     = 0x4000
	desc0     = descs      // of page 0x1000, zlib
	desc1     = descs + 24 // of page 0x2000, raw
)

// TestOpenRefuses has a fixture for each thing that makes a file unreadable as
// a whole.
func TestOpenRefuses(t *testing.T) {
	file := vmcoretest.Parse(t, small).Kdump(t)
	patch := func(off, size int, value uint64) []byte { return vmcoretest.Patch(t, file, off, size, value) }
	tests := []struct {
		name string
		file []byte
		want string
	}{
		{"empty", nil, "read header"},
		{"headerCutOff", file[:463], "read header"},
		{"signature", patch(0, 8, 0x2020504d55444b4c), `offset 0x0: signature: "LKDUMP  "`},
		{"version0", patch(8, 4, 0), "offset 0x8: header_version: 0, want 1 to 6"},
		{"version7", patch(8, 4, 7), "offset 0x8: header_version: 7"},
		{"bigEndian", patch(8, 4, 6<<24), "6 in big-endian byte order"},
		{"blockSize0", patch(428, 4, 0), "offset 0x1ac: block_size: 0"},
		{"blockSizeSmall", patch(428, 4, 2048), "block_size: 2048"},
		{"blockSizeOdd", patch(428, 4, 5000), "block_size: 5000"},
		{"blockSizeHuge", patch(428, 4, 1<<31), "block_size: 2147483648"},
		{"noSubHeader", patch(432, 4, 0), "sub_hdr_size: 0"},
		{"subHeaderHuge", patch(432, 4, math.MaxUint32), "bitmap_blocks: the bitmaps end at"},
		{"subHeaderCutOff", file[:sub+50], "read sub header"},
		{"noBitmaps", patch(436, 4, 0), "offset 0x1b4: bitmap_blocks: 0"},
		{"bitmapsOdd", patch(436, 4, 3), "bitmap_blocks: 3, want an even"},
		{"bitmapsBehindEnd", patch(436, 4, math.MaxUint32-1), "bitmap_blocks: the bitmaps end at"},
		{"bitmapsCutOff", file[:bitmap2+blockSize-1], "bitmap_blocks: the bitmaps end at"},
		{"noPages", patch(sub+96, 8, 0), "offset 0x1060: max_mapnr: 0x0 pages"},
		{"pagesHuge", patch(sub+96, 8, math.MaxUint64), "max_mapnr: 0xffffffffffffffff pages"},
		{"pagesWithoutBits", patch(sub+96, 8, 4096*8+1), "but bitmaps of 0x1000 bytes have bits for 0x8000"},
		{"partInverted", vmcoretest.Patch(t, vmcoretest.Patch(t, patch(sub+12, 4, 1), sub+80, 8, 5), sub+88, 8, 4), "start_pfn: part from page 0x5 to 0x4"},
		{"partBehindEnd", vmcoretest.Patch(t, vmcoretest.Patch(t, patch(sub+12, 4, 1), sub+80, 8, 0x21), sub+88, 8, 0x22), "start_pfn: part from page 0x21"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			d, err := kdump.New(bytes.NewReader(tt.file), int64(len(tt.file)))
			if d != nil || err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("New: %v, error %v, want one with %q", d, err, tt.want)
			}
		})
	}
}

// TestWarns has a fixture for each thing that costs a part of Info only.
func TestWarns(t *testing.T) {
	file := vmcoretest.Parse(t, small).Kdump(t)
	patch := func(off, size int, value uint64) []byte { return vmcoretest.Patch(t, file, off, size, value) }
	tests := []struct {
		name string
		file []byte
		want string
	}{
		{"level", patch(sub+8, 4, 99), "dump_level: 99"},
		{"levelNegative", patch(sub+8, 4, 0xffffffff), "dump_level: -1"},
		{"twoCodecs", patch(424, 4, 3), "status: 0x3 names several"},
		{"notesBehindEnd", patch(sub+48, 8, 1<<40), "offset_note"},
		{"notesWrap", patch(sub+48, 8, math.MaxUint64-8), "offset_note"},
		{"notesHuge", patch(sub+56, 8, 1<<30), "offset_note"},
		{"notesCutOff", patch(sub+56, 8, 100), "note: name of 0x5 and descriptor of 0x150 bytes, but 0x64"},
		{"noteSizes", patch(sub+kdump.SubHeaderSize+4, 4, math.MaxUint32), "descriptor of 0xffffffff bytes"},
		{"cutInPages", file[:len(file)-1], "the file ends at 0x" + strconv.FormatInt(int64(len(file)-1), 16) + ", before its page at 0x"},
		{"cutInDescriptors", file[:desc1], "the file ends at 0x4018 and its page descriptors at 0x"},
		{"vmcoreinfoGarbage", bytes.Replace(file, []byte("OSRELEASE"), []byte("\xff\xffRELEASE"), 1), "parse VMCOREINFO"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			info := open(t, tt.file).Info()
			if !strings.Contains(strings.Join(info.Warnings, "\n"), tt.want) {
				t.Errorf("warnings %q, want one with %q", info.Warnings, tt.want)
			}
		})
	}
}

// TestBrokenPage has a fixture for each way in which one page is lost, and
// nothing else.
func TestBrokenPage(t *testing.T) {
	s := vmcoretest.Parse(t, small)
	file := s.Kdump(t)
	patch := func(off, size int, value uint64) []byte { return vmcoretest.Patch(t, file, off, size, value) }
	tests := []struct {
		name string
		file []byte
		addr uint64
		want string
	}{
		{"offsetBehindEnd", patch(desc0, 8, uint64(len(file))), 0x1000, "but the file ends at"},
		{"offsetWraps", patch(desc0, 8, math.MaxUint64), 0x1000, "but the file ends at"},
		{"offsetNegative", patch(desc0, 8, 1<<63), 0x1000, "but the file ends at"},
		{"offset0", patch(desc0, 8, 0), 0x1000, "never written"},
		{"sizeHuge", patch(desc0+8, 4, math.MaxUint32), 0x1000, "size 0xffffffff, want 1 to 0x1000"},
		{"size0", patch(desc0+8, 4, 0), 0x1000, "size 0x0"},
		{"sizeSmall", patch(desc0+8, 4, 9), 0x1000, "expand zlib"},
		{"sizeOfRawPage", patch(desc1+8, 4, 4095), 0x2000, "4095 bytes that are not compressed"},
		{"twoCodecs", patch(desc0+12, 4, 3), 0x1000, "flags 0x3 name several"},
		{"otherCodec", patch(desc0+12, 4, uint64(kdump.FlagZstd)), 0x1000, "expand zstd"},
		{"notCompressed", patch(desc0+12, 4, 0), 0x1000, "not compressed"},
		{"cutOff", file[:len(file)-3], 0xe000, "but the file ends at"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			d := open(t, tt.file)
			b := make([]byte, 4096)
			err := d.ReadPhys(b, tt.addr)
			if vmcoretest.Missing(err) != vmcore.Unreadable || !strings.Contains(err.Error(), tt.want) {
				t.Fatalf("read page %#x: error %v, want unreadable with %q", tt.addr, err, tt.want)
			}
			var m *vmcore.MissingError
			if want := (phys.Range{Start: tt.addr, End: tt.addr + 4096}); !errors.As(err, &m) || m.Range != want {
				t.Errorf("missing %v, want %v", m.Range, want)
			}
			for _, p := range s.Pages {
				if p.Addr == tt.addr || !p.Held() {
					continue
				}
				if err := d.ReadPhys(b, p.Addr); err != nil || !bytes.Equal(b, p.Data) {
					t.Errorf("page %#x beside it: error %v", p.Addr, err)
				}
			}
		})
	}
}

// The last byte of a zlib stream is the checksum's.
func TestZlibChecksum(t *testing.T) {
	file := vmcoretest.Parse(t, "0x0 zlib text one page").Kdump(t)
	file[len(file)-1] ^= 1
	err := open(t, file).ReadPhys(make([]byte, 4096), 0)
	if vmcoretest.Missing(err) != vmcore.Unreadable || !strings.Contains(err.Error(), "checksum") {
		t.Errorf("error %v, want a wrong checksum", err)
	}
}

// A stream that makes more than a page must not touch what is after it.
func TestExpandTooMuch(t *testing.T) {
	for _, codec := range []string{"zlib", "lzo", "snappy", "zstd"} {
		t.Run(codec, func(t *testing.T) {
			// The page of 8 KiB becomes one of 4 KiB.
			big := vmcoretest.Parse(t, "pagesize 8192\n0x0 "+codec+" fill 55").Kdump(t)
			stream := big[4*8192+kdump.DescSize:]
			s := vmcoretest.Parse(t, "0x0 "+codec+" fill 55\n0x1000 raw fill 66")
			file := s.Kdump(t)
			file = vmcoretest.Patch(t, file, descs, 8, uint64(len(file)))
			file = vmcoretest.Patch(t, file, descs+8, 4, uint64(len(stream)))
			d := open(t, append(file, stream...))
			p := bytes.Repeat([]byte{0xee}, 3*4096)
			if err := d.ReadPhys(p[:4096], 0); vmcoretest.Missing(err) != vmcore.Unreadable {
				t.Errorf("error %v, want an unreadable page", err)
			}
			if !bytes.Equal(p[4096:], bytes.Repeat([]byte{0xee}, 2*4096)) {
				t.Error("bytes behind the page have changed")
			}
		})
	}
}

func TestReadWraps(t *testing.T) {
	d := open(t, vmcoretest.Parse(t, small).Kdump(t))
	for _, addr := range []uint64{math.MaxUint64, math.MaxUint64 - 100, 1 << 63, 0x20000} {
		if err := d.ReadPhys(make([]byte, 100), addr); vmcoretest.Missing(err) != vmcore.Hole {
			t.Errorf("read at %#x: error %v, want a hole", addr, err)
		}
	}
	if d.Holds(phys.Range{Start: math.MaxUint64 - 1, End: math.MaxUint64}) {
		t.Error("the last page of all is held")
	}
}

func TestConcurrently(t *testing.T) {
	s := vmcoretest.Parse(t, small)
	d := open(t, s.Kdump(t))
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 20 {
				s.Check(t, d)
			}
		})
	}
	wg.Wait()
}

func TestJoin(t *testing.T) {
	s := vmcoretest.Parse(t, small)
	join := func(t *testing.T, files ...[]byte) (*kdump.Joined, error) {
		var parts []*kdump.Dump
		for _, f := range files {
			parts = append(parts, open(t, f))
		}
		return kdump.Join(parts...)
	}
	p := s.Parts(t, 0, 5, 10, 0x20, 0x20)
	t.Run("all", func(t *testing.T) {
		j, err := join(t, p[3], p[1], p[2], p[0])
		if err != nil {
			t.Fatal(err)
		}
		s.Check(t, j)
		if info := j.Info(); info.Warnings != nil || !info.Part.Empty() {
			t.Errorf("warnings %q, part %v", info.Warnings, info.Part)
		}
	})
	t.Run("oneMissing", func(t *testing.T) {
		j, err := join(t, p[2], p[0])
		if err != nil {
			t.Fatal(err)
		}
		if w := j.Info().Warnings; len(w) != 1 || !strings.Contains(w[0], "holds 00005000-00009fff is not here") {
			t.Errorf("warnings %q", w)
		}
		b := make([]byte, 0x1000)
		for _, tt := range []struct {
			addr uint64
			want vmcore.Reason
		}{{0x4000, 0}, {0x5000, vmcore.Unreadable}, {0x8000, vmcore.Hole}, {0x9000, vmcore.Unreadable}, {0xa000, 0}, {0xf000, vmcore.Excluded}} {
			if err := j.ReadPhys(b, tt.addr); vmcoretest.Missing(err) != tt.want || tt.want == 0 && err != nil {
				t.Errorf("page %#x: error %v, want %v", tt.addr, err, tt.want)
			}
			if got := j.Holds(phys.Range{Start: tt.addr, End: tt.addr + 1}); got != (tt.want == 0) {
				t.Errorf("Holds(%#x) is %v", tt.addr, got)
			}
		}
	})
	whole := s.Kdump(t)
	other := vmcoretest.Parse(t, strings.Replace(small, "end 0x20000", "end 0x30000", 1)).Parts(t, 5, 0x20)
	for _, tt := range []struct {
		name  string
		files [][]byte
		want  string
	}{
		{"none", nil, "0 files"},
		{"twice", [][]byte{p[0], p[1], p[1]}, "two files hold 00005000-00009fff"},
		{"notSplit", [][]byte{p[0], whole}, "split of one file is"},
		{"otherDump", [][]byte{p[0], other[0]}, "max_mapnr of one file is"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := join(t, tt.files...)
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error %v, want %q", err, tt.want)
			}
		})
	}
}

// flaky fails where it is told to.
type flaky struct {
	*bytes.Reader
	start, end int64
}

var errFlaky = errors.New("bad sector")

func (f *flaky) ReadAt(p []byte, off int64) (int, error) {
	if off < f.end && off+int64(len(p)) > f.start {
		n, _ := f.Reader.ReadAt(p[:min(int64(len(p)), max(0, f.start-off))], off)
		return n, errFlaky
	}
	return f.Reader.ReadAt(p, off)
}

// A disk that fails costs what lies there, and only as long as it fails.
func TestReadErrors(t *testing.T) {
	s := vmcoretest.Parse(t, "0x0-0x40000 raw random 1\n0x3fff000 raw random 2")
	file := s.Kdump(t)
	data := int64(len(file) - 65*4096)
	f := &flaky{Reader: bytes.NewReader(file)}
	d, err := kdump.New(f, int64(len(file)))
	if err != nil {
		t.Fatal(err)
	}
	// Inside the tenth page.
	f.start, f.end = data+9*4096+100, data+9*4096+200
	b := make([]byte, 0x40000)
	var m *vmcore.MissingError
	err = d.ReadPhys(b, 0)
	if want := (phys.Range{Start: 0x9000, End: 0xa000}); !errors.As(err, &m) || m.Range != want || !errors.Is(err, errFlaky) {
		t.Fatalf("error %v, want a bad sector in %v", err, want)
	}
	if err := d.ReadPhys(b[0xa000:], 0xa000); err != nil {
		t.Fatal(err)
	}
	for _, p := range s.Pages[:64] {
		if p.Addr != 0x9000 && !bytes.Equal(b[p.Addr:][:4096], p.Data) {
			t.Errorf("page %#x has wrong content", p.Addr)
		}
	}
	f.start, f.end = 0, 0
	s.Check(t, d)

	// In the bitmaps, from the beginning.
	f = &flaky{Reader: bytes.NewReader(file), start: bitmap2, end: bitmap2 + 1}
	if d, err = kdump.New(f, int64(len(file))); err != nil {
		t.Fatal(err)
	}
	if d.Holds(phys.Range{Start: 0, End: 4096}) {
		t.Error("a page is held although the bitmap can't be read")
	}
	if _, err := d.HeldSize(); !errors.Is(err, errFlaky) {
		t.Errorf("HeldSize: %v, want a bad sector", err)
	}
	if err := d.ReadPhys(b[:10], 0x100); vmcoretest.Missing(err) != vmcore.Unreadable || !errors.Is(err, errFlaky) {
		t.Errorf("error %v, want a bad sector", err)
	}
	f.start, f.end = 0, 0
	s.Check(t, d)
}

// TestParseHeader32: the header of a 32-bit machine, whose number of pages may
// look like a block size of 64 bits.
func TestParseHeader32(t *testing.T) {
	for _, pages := range []uint32{0x4000, 0x12345} {
		h := kdump.Header{Version: 6, Uname: vmcore.Uname{Machine: "i686"}, BlockSize: pages, SubBlocks: 1, BitmapBlocks: 2}
		b := h.AppendBinary(nil)
		for i, w := range []uint32{0, 4096, 1, 2, pages} {
			binary.LittleEndian.PutUint32(b[412+4*i:], w)
		}
		_, err := kdump.ParseHeader(b)
		if err == nil || !strings.Contains(err.Error(), `offset 0x1a0: block_size: the file of a 32-bit machine, "i686"`) {
			t.Errorf("%#x pages: error %v", pages, err)
		}
	}
	// Microseconds that look like a block size of 32 bits.
	h := kdump.Header{Version: 6, Uname: vmcore.Uname{Machine: "Unknown"}, Micros: 65536, BlockSize: 65536, SubBlocks: 1, BitmapBlocks: 2}
	if _, err := kdump.ParseHeader(h.AppendBinary(nil)); err != nil {
		t.Error(err)
	}
}
