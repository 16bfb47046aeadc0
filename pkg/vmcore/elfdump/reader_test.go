package elfdump_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/warmcore/warmcore/pkg/elfcore"
	"github.com/warmcore/warmcore/pkg/phys"
	"github.com/warmcore/warmcore/pkg/vmcore"
	"github.com/warmcore/warmcore/pkg/vmcore/elfdump"
	"github.com/warmcore/warmcore/pkg/vmcore/vmcoretest"
)

// small has an alias of the kernel's text, as /proc/vmcore does: 0x3000 to
// 0x5000 is in two segments.
const small = `
vmcoreinfo OSRELEASE=6.1.0-test
vmcoreinfo PAGESIZE=4096
cpu 42
load 0xffffffff81000000 0x3000 0x2000
load 0xffff888000001000 0x1000 0x6000
load 0xffff888000009000 0x9000 0x3000
0x1000-0x7000 raw random 1
0x9000 raw random 2
0xa000 excluded
0xb000 raw random 3
`

func open(t *testing.T, file []byte) vmcore.Dump {
	t.Helper()
	d, err := elfdump.New(bytes.NewReader(file), int64(len(file)))
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func TestRead(t *testing.T) {
	tests := []struct{ name, text string }{
		{"small", small},
		{"plain", "0x0-0x10000 raw random 1"},
		{"oneSegmentInside", "load 0 0x1000 0x5000\nload 0 0x2000 0x1000\n0x1000-0x6000 raw random 1"},
		{"overlapping", "load 0 0x1000 0x3000\nload 0 0x2000 0x3000\nload 0 0x3000 0x3000\n0x1000-0x6000 raw random 1"},
		{"excludedAtEnd", "0x1000 raw random 1\n0x2000-0x4000 excluded"},
		{"excludedAtStart", "0x1000 excluded\n0x2000-0x4000 raw random 1"},
		{"onlyExcluded", "0x1000-0x8000 excluded"},
		{"unordered", "load 0 0x8000 0x1000\nload 0 0x1000 0x1000\n0x1000 raw random 1\n0x8000 raw random 2"},
		{"pages64K", "pagesize 0x10000\nmachine aarch64\nvmcoreinfo OSRELEASE=6\nvmcoreinfo PAGESIZE=65536\n0x40000000-0x40040000 raw random 1"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := vmcoretest.Parse(t, tt.text)
			s.Check(t, open(t, s.ELF(t)))
		})
	}
}

func TestInfo(t *testing.T) {
	s := vmcoretest.Parse(t, small)
	got := open(t, s.ELF(t)).Info()
	want := &vmcore.Info{
		Format:   "elf",
		Machine:  elfcore.MachineAMD64,
		PageSize: 4096,
		Loads: []vmcore.Load{
			{Virt: 0xffffffff81000000, Phys: 0x3000, Size: 0x2000},
			{Virt: 0xffff888000001000, Phys: 0x1000, Size: 0x6000},
			{Virt: 0xffff888000009000, Phys: 0x9000, Size: 0x2000},
			{Virt: 0xffff88800000b000, Phys: 0xb000, Size: 0x1000},
		},
		Memory:      phys.NewSet(phys.Range{Start: 0x1000, End: 0x7000}, phys.Range{Start: 0x9000, End: 0xc000}),
		Notes:       s.Notes(t),
		VMCOREINFO:  []byte("OSRELEASE=6.1.0-test\nPAGESIZE=4096\n"),
		Uname:       vmcore.Uname{Release: "6.1.0-test", Machine: "x86_64"},
		Level:       vmcore.LevelUnknown,
		Compression: "none",
	}
	if diff := cmp.Diff(want, got, cmpopts.IgnoreUnexported(vmcore.Info{})); diff != "" {
		t.Errorf("info (-want +got):\n%s", diff)
	}
}

// Places in the file that vmcoretest makes of small.
const (
	phdr     = elfcore.EhdrSize
	note     = phdr                      // PT_NOTE
	direct   = phdr + 2*elfcore.PhdrSize // PT_LOAD around it
	segments = 5
	content  = phdr + segments*elfcore.PhdrSize
)

func TestOpenRefuses(t *testing.T) {
	file := vmcoretest.Parse(t, small).ELF(t)
	patch := func(off, size int, value uint64) []byte { return vmcoretest.Patch(t, file, off, size, value) }
	tests := []struct {
		name string
		file []byte
		want string
	}{
		{"empty", nil, "read ELF header"},
		{"headerCutOff", file[:63], "read ELF header"},
		{"magic", patch(0, 4, 0), "offset 0x0: e_ident"},
		{"class", patch(4, 1, 3), "offset 0x4: EI_CLASS: 3, want 2"},
		{"class32", patch(4, 1, 1), "offset 0x4: EI_CLASS: 1, the file of a 32-bit machine, e_machine 62: only 64-bit files"},
		{"i386", vmcoretest.Patch(t, patch(4, 1, 1), 18, 2, 3), "the file of a 32-bit machine, i386"},
		{"s390x", vmcoretest.Patch(t, patch(5, 1, 2), 18, 2, 22<<8), "offset 0x5: EI_DATA: big-endian, from s390x; want little-endian"},
		{"bigEndian", patch(5, 1, 2), "offset 0x5: EI_DATA: big-endian"},
		{"byteOrder", patch(5, 1, 0), "offset 0x5: EI_DATA: 0"},
		{"executable", patch(16, 2, 2), "offset 0x10: e_type: 2"},
		{"noHeaders", patch(56, 2, 0), "offset 0x38: e_phnum: 0 program headers"},
		{"headerSize", patch(54, 2, 57), "offset 0x36: e_phentsize: 57"},
		{"headersBehindEnd", patch(32, 8, uint64(len(file))), "offset 0x20: e_phoff"},
		{"headersWrap", patch(32, 8, math.MaxUint64), "offset 0x20: e_phoff"},
		{"headersCutOff", file[:content-1], "e_phoff: 5 program headers at 0x40"},
		{"extendedWithoutSection", patch(56, 2, 0xffff), "offset 0x28: e_shoff"},
		{"extendedBehindEnd", vmcoretest.Patch(t, patch(56, 2, 0xffff), 40, 8, uint64(len(file))), "read section header"},
		{"extendedWraps", vmcoretest.Patch(t, patch(56, 2, 0xffff), 40, 8, math.MaxUint64), "offset 0x28: e_shoff"},
		{"noLoads", patch(56, 2, 1), "no PT_LOAD"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			d, err := elfdump.New(bytes.NewReader(tt.file), int64(len(tt.file)))
			if d != nil || err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("New: %v, error %v, want one with %q", d, err, tt.want)
			}
		})
	}
}

func TestWarns(t *testing.T) {
	file := vmcoretest.Parse(t, small).ELF(t)
	patch := func(off, size int, value uint64) []byte { return vmcoretest.Patch(t, file, off, size, value) }
	tests := []struct {
		name   string
		file   []byte
		want   string
		memory string
	}{
		{"offsetWraps", patch(direct+8, 8, math.MaxUint64-0x100), "no place in a file", "00003000-00004fff 00009000-0000bfff"},
		{"sizeWraps", patch(direct+32, 8, math.MaxUint64), "no place in a file", "00003000-00004fff 00009000-0000bfff"},
		{"offsetBehindEnd", patch(direct+8, 8, 1<<40), "past the end of the file", "00001000-00006fff 00009000-0000bfff"},
		{"moreInFileThanInMemory", patch(direct+40, 8, 0x1000), "p_memsz: 0x1000, less than p_filesz", "00001000-00006fff 00009000-0000bfff"},
		{"physWraps", patch(direct+24, 8, math.MaxUint64-0xfff), "p_paddr", "00003000-00004fff 00009000-0000bfff"},
		{"noteHuge", patch(note+32, 8, 1<<35), "past the end of the file", "00001000-00006fff 00009000-0000bfff"},
		{"noteGarbage", patch(content+4, 4, math.MaxUint32), "descriptor of 0xffffffff", "00001000-00006fff 00009000-0000bfff"},
		{"cutOff", file[:len(file)-1], "it was cut off", "00001000-00006fff 00009000-0000bfff"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			info := open(t, tt.file).Info()
			if !strings.Contains(strings.Join(info.Warnings, "\n"), tt.want) {
				t.Errorf("warnings %q, want one with %q", info.Warnings, tt.want)
			}
			if got := info.Memory.String(); got != tt.memory {
				t.Errorf("memory %s, want %s", got, tt.memory)
			}
		})
	}
}

// A file that was cut off holds the text, whose segment is the first.
func TestCutOff(t *testing.T) {
	s := vmcoretest.Parse(t, small)
	file := s.ELF(t)
	notes := len(s.Notes(t))
	d := open(t, file[:content+notes+0x2000+0x1800])
	b := make([]byte, 0x1000)
	for _, tt := range []struct {
		addr uint64
		want vmcore.Reason
	}{{0x1000, 0}, {0x2000, vmcore.Unreadable}, {0x3000, 0}, {0x4000, 0}, {0x5000, vmcore.Unreadable}, {0x9000, vmcore.Unreadable}, {0xa000, vmcore.Excluded}, {0xc000, vmcore.Hole}} {
		err := d.ReadPhys(b, tt.addr)
		if vmcoretest.Missing(err) != tt.want {
			t.Errorf("page %#x: error %v, want %v", tt.addr, err, tt.want)
		}
		if p, _ := s.Page(tt.addr); tt.want == 0 && !bytes.Equal(b, p.Data) {
			t.Errorf("page %#x: wrong content", tt.addr)
		}
	}
	var m *vmcore.MissingError
	if err := d.ReadPhys(make([]byte, 0x2000), 0x1000); !errors.As(err, &m) || m.Range != (phys.Range{Start: 0x2800, End: 0x3000}) {
		t.Errorf("read over the end: %v, want 2800-2fff", err)
	}
}

// More program headers than e_phnum can count.
func TestExtendedNumbering(t *testing.T) {
	const n = 70000
	le := binary.LittleEndian
	ehdr := vmcoretest.Parse(t, "0x0 raw").ELF(t)[:elfcore.EhdrSize]
	const shoff = elfcore.EhdrSize
	le.PutUint64(ehdr[32:], shoff+64)
	le.PutUint64(ehdr[40:], shoff)
	le.PutUint16(ehdr[56:], 0xffff)
	file := append(ehdr, make([]byte, 64)...)
	le.PutUint32(file[shoff+44:], n)
	const data = shoff + 64 + n*elfcore.PhdrSize
	for i := uint64(0); i < n; i++ {
		file = le.AppendUint32(file, 1)
		file = le.AppendUint32(file, 0)
		for _, w := range []uint64{data + i*8, 0, i * 0x10000, 8, 8, 0} {
			file = le.AppendUint64(file, w)
		}
	}
	for i := uint64(0); i < n; i++ {
		file = le.AppendUint64(file, i)
	}
	d := open(t, file)
	if got := len(d.Info().Loads); got != n {
		t.Fatalf("%d loads, want %d", got, n)
	}
	b := make([]byte, 8)
	for _, i := range []uint64{0, 1, 65535, n - 1} {
		if err := d.ReadPhys(b, i*0x10000); err != nil || le.Uint64(b) != i {
			t.Errorf("read segment %d: % x, error %v", i, b, err)
		}
	}
	file = vmcoretest.Patch(t, file, shoff+44, 4, math.MaxUint32)
	if _, err := elfdump.New(bytes.NewReader(file), int64(len(file))); err == nil || !strings.Contains(err.Error(), "4294967295 program headers") {
		t.Errorf("error %v, want too many program headers", err)
	}
}

// faulty is a file whose bytes from bad to bad+0x1000 can't be read. It stops
// 0x800 bytes early if a read reaches there.
type faulty struct {
	*bytes.Reader
	bad int64
}

var errFault = errors.New("fault")

func (f faulty) ReadAt(p []byte, off int64) (int, error) {
	if off < f.bad+0x1000 && off+int64(len(p)) > f.bad {
		n, _ := f.Reader.ReadAt(p[:max(0, min(int64(len(p)), f.bad-0x800-off))], off)
		return n, errFault
	}
	return f.Reader.ReadAt(p, off)
}

func TestUnreadable(t *testing.T) {
	s := vmcoretest.Parse(t, "0x0-0x8000 raw random 1")
	file := s.ELF(t)
	start := int64(len(file) - 0x8000)
	f := faulty{bytes.NewReader(file), start + 0x4000}
	d, err := elfdump.New(f, int64(len(file)))
	if err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 0x8000)
	err = d.ReadPhys(b, 0)
	var m *vmcore.MissingError
	if !errors.As(err, &m) || m.Range != (phys.Range{Start: 0x4000, End: 0x5000}) || !errors.Is(err, errFault) {
		t.Fatalf("error %v, want fault at 4000-4fff", err)
	}
	if err := d.ReadPhys(b[0x5000:], 0x5000); err != nil {
		t.Error(err)
	}
	for _, p := range s.Pages {
		if p.Addr != 0x4000 && !bytes.Equal(b[p.Addr:][:0x1000], p.Data) {
			t.Errorf("page %#x: wrong content", p.Addr)
		}
	}
}

// viewer shows a file in parts of 0x1000 bytes; the one at bad ends f.
type viewer struct {
	*bytes.Reader
	file []byte
	bad  int64
}

func (v viewer) ViewAt(off, n int64, f func([]byte)) error {
	for ; n > 0; off, n = off+0x1000, n-0x1000 {
		f(v.file[off:][:min(n, 0x1000)])
		if off == v.bad {
			return errFault
		}
	}
	return nil
}

func TestView(t *testing.T) {
	s := vmcoretest.Parse(t, small)
	file := s.ELF(t)
	base := int64(content + len(s.Notes(t)) + 0x2000) // of 0x1000
	d, err := elfdump.New(viewer{bytes.NewReader(file), file, base + 0x1000}, int64(len(file)))
	if err != nil {
		t.Fatal(err)
	}
	v, ok := d.(vmcore.Viewer)
	if !ok {
		t.Fatal("an ELF file over a FileViewer is no Viewer")
	}
	tests := []struct {
		r        phys.Range
		want     string // the error
		complete uint64 // bytes shown
	}{
		{phys.Range{Start: 0x1000, End: 0x2000}, "", 0x1000},
		{phys.Range{Start: 0x1234, End: 0x1235}, "", 1},
		{phys.Range{Start: 0x3000, End: 0x7000}, "", 0x4000},
		{phys.Range{Start: 0x3000, End: 0x3000}, "", 0},
		{phys.Range{Start: 0x1000, End: 0x4000}, "memory 00002000-00002fff is unreadable: fault", 0x2000},
		{phys.Range{Start: 0x6000, End: 0xa000}, "memory 00007000-00008fff is hole", 0x1000},
		{phys.Range{Start: 0x9000, End: 0xb000}, "memory 0000a000-0000afff is excluded", 0x1000},
	}
	for _, tt := range tests {
		t.Run(fmt.Sprint(tt.r), func(t *testing.T) {
			var got []byte
			err := v.View(tt.r, func(b []byte) { got = append(got, b...) })
			if err == nil && tt.want != "" || err != nil && err.Error() != tt.want {
				t.Errorf("error %v, want %q", err, tt.want)
			}
			if uint64(len(got)) != tt.complete {
				t.Fatalf("%#x bytes, want %#x", len(got), tt.complete)
			}
			for i := range got {
				at := tt.r.Start + uint64(i)
				if p, _ := s.Page(at &^ 0xfff); p.Data[at&0xfff] != got[i] {
					t.Fatalf("byte at %#x is %#x, want %#x", at, got[i], p.Data[at&0xfff])
				}
			}
		})
	}
	if _, ok := open(t, file).(vmcore.Viewer); ok {
		t.Error("an ELF file that is not mapped is a Viewer")
	}
}

func TestReadWraps(t *testing.T) {
	d := open(t, vmcoretest.Parse(t, small).ELF(t))
	for _, addr := range []uint64{math.MaxUint64, math.MaxUint64 - 100, 1 << 63} {
		if err := d.ReadPhys(make([]byte, 100), addr); vmcoretest.Missing(err) != vmcore.Hole {
			t.Errorf("read at %#x: error %v, want a hole", addr, err)
		}
	}
}

// A note buffer of a CPU that saved nothing is zeroes, and hides none of the
// others.
func TestNotesOfSilentCPU(t *testing.T) {
	var registers []byte
	registers, err := elfcore.AppendNote(nil, elfcore.ELFNote{Name: elfcore.NameCore, Type: elfcore.TypePRStatus, Desc: make([]byte, 336)})
	if err != nil {
		t.Fatal(err)
	}
	notes := [][]byte{append(registers, make([]byte, 100)...), make([]byte, 400), registers}
	le := binary.LittleEndian
	file := vmcoretest.Parse(t, "0x0 raw").ELF(t)[:elfcore.EhdrSize]
	le.PutUint16(file[56:], 4)
	off := uint64(elfcore.EhdrSize + 4*elfcore.PhdrSize)
	add := func(typ uint32, size int) {
		file = le.AppendUint32(file, typ)
		file = le.AppendUint32(file, 0)
		for _, w := range []uint64{off, 0, 0, uint64(size), uint64(size), 0} {
			file = le.AppendUint64(file, w)
		}
		off += uint64(size)
	}
	for _, n := range notes {
		add(4, len(n))
	}
	add(1, 0x1000)
	file = append(file, bytes.Join(notes, nil)...)
	info := open(t, append(file, make([]byte, 0x1000)...)).Info()
	if want := append(bytes.Clone(registers), registers...); !bytes.Equal(info.Notes, want) || info.Warnings != nil {
		t.Errorf("notes of %d bytes, warnings %q, want two notes of %d", len(info.Notes), info.Warnings, len(want))
	}
}
