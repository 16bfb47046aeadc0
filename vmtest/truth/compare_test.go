package truth

import (
	"bufio"
	"bytes"
	"debug/elf"
	"encoding/binary"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/warmcore/warmcore/pkg/phys"
	"github.com/warmcore/warmcore/pkg/vmcore/vmcoretest"
	"github.com/warmcore/warmcore/vmtest/guest/wire"
	"github.com/warmcore/warmcore/vmtest/holes"
)

// dumpHead returns the ELF header and program headers of a vmcore with loads.
func dumpHead(t *testing.T, loads ...elf.Prog64) []byte {
	t.Helper()
	var b bytes.Buffer
	h := elf.Header64{
		Ident: [16]byte{0x7f, 'E', 'L', 'F', byte(elf.ELFCLASS64), byte(elf.ELFDATA2LSB), byte(elf.EV_CURRENT)},
		Type:  uint16(elf.ET_CORE), Machine: uint16(elf.EM_X86_64), Version: 1,
		Phoff: 64, Ehsize: 64, Phentsize: 56, Phnum: uint16(len(loads)),
	}
	for i := range loads {
		loads[i].Type = uint32(elf.PT_LOAD)
	}
	if err := binary.Write(&b, binary.LittleEndian, h); err != nil {
		t.Fatal(err)
	}
	if err := binary.Write(&b, binary.LittleEndian, loads); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

const page = phys.PageSize

// truthOf returns the truth of a machine whose RAM, from 0, is mem.
func truthOf(t *testing.T, mem []byte) *RAM {
	t.Helper()
	name := filepath.Join(t.TempDir(), "truth")
	if err := os.WriteFile(name, mem, 0o644); err != nil {
		t.Fatal(err)
	}
	truth, err := Open(name, Layout{{End: uint64(len(mem))}})
	if err != nil {
		t.Fatal(err)
	}
	return truth
}

func TestCompare(t *testing.T) {
	mem := make([]byte, 64*page)
	for i := range uint64(64) {
		if err := wire.Fill(mem[i*page:(i+1)*page], 1, i); err != nil {
			t.Fatal(err)
		}
	}
	truth := truthOf(t, mem)
	defer truth.Close()
	// The dump has pages 0 to 31 at page 1 of the file, 40 to 63 after
	// them, and 8 to 15, the kernel's text, once more.
	loads := []elf.Prog64{
		{Off: page, Paddr: 0, Filesz: 32 * page, Memsz: 32 * page},
		{Off: 33 * page, Paddr: 40 * page, Filesz: 24 * page, Memsz: 24 * page},
		{Off: 9 * page, Paddr: 8 * page, Filesz: 8 * page, Memsz: 8 * page},
	}
	good := make([]byte, 57*page)
	copy(good, dumpHead(t, loads...))
	copy(good[page:], mem[:32*page])
	copy(good[33*page:], mem[40*page:])
	for _, tt := range []struct {
		name     string
		spoil    uint64 // offset in the dump, 0 for none
		excluded phys.Set
		want     Comparison
	}{
		{"hole", 0, nil, Comparison{Compared: 56, Missing: 8, FirstMissing: []uint64{32 * page, 33 * page, 34 * page, 35 * page, 36 * page, 37 * page, 38 * page, 39 * page}}},
		{"hole excluded", 0, phys.NewSet(phys.Range{Start: 32 * page, End: 40 * page}), Comparison{Compared: 56}},
		{"wrong byte", 3*page + 5, phys.NewSet(phys.Range{Start: 32 * page, End: 40 * page}), Comparison{Compared: 56, Wrong: 1, FirstWrong: []uint64{2 * page}}},
		{"wrong byte excluded", 3*page + 5, phys.NewSet(phys.Range{Start: 2 * page, End: 3 * page}, phys.Range{Start: 32 * page, End: 40 * page}), Comparison{Compared: 55}},
		{"wrong byte in text", 10 * page, phys.NewSet(phys.Range{Start: 32 * page, End: 40 * page}), Comparison{Compared: 56, Wrong: 2, FirstWrong: []uint64{9 * page, 9 * page}}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			bad := bytes.Clone(good)
			if tt.spoil != 0 {
				bad[tt.spoil] ^= 1
			}
			d, err := OpenDump(bytes.NewReader(bad), int64(len(bad)))
			if err != nil {
				t.Fatal(err)
			}
			got, err := truth.Compare(t.Context(), d, tt.excluded)
			if diff := cmp.Diff(tt.want, got, cmp.Transformer("nil", func(s []uint64) []uint64 { return append([]uint64(nil), s...) })); err != nil || diff != "" {
				t.Errorf("Compare: %v, -want +got\n%s", err, diff)
			}
			if got.OK() != (tt.want.Wrong == 0 && tt.want.Missing == 0) {
				t.Errorf("OK() = %v for %v", got.OK(), got)
			}
		})
	}
	short, err := OpenDump(bytes.NewReader(good[:40*page]), int64(40*page))
	if err != nil {
		t.Fatal(err)
	}
	if got, err := truth.Compare(t.Context(), short, nil); err == nil {
		t.Errorf("a dump that is cut off: %v, no error", got)
	}
	if (Comparison{}).OK() {
		t.Error("comparing nothing is OK; want a verdict only on something")
	}
}

// A filtered dump, whose pages are compressed.
func TestCompareKDump(t *testing.T) {
	s := vmcoretest.Parse(t, "0x0-0x8000 zlib random 1\n0x8000-0x10000 excluded\n0x10000-0x18000 zlib text kernel\n0x18000-0x20000 zlib fill 00")
	mem := make([]byte, 32*page)
	for _, p := range s.Pages {
		copy(mem[p.Addr:], p.Data)
	}
	truth := truthOf(t, mem)
	defer truth.Close()
	for _, tt := range []struct {
		name  string
		spoil int // page of the truth, -1 for none
		want  Comparison
	}{
		{"good", -1, Comparison{Compared: 24}},
		{"wrong page", 0x11, Comparison{Compared: 24, Wrong: 1, FirstWrong: []uint64{0x11000}}},
		{"wrong page that was left out", 9, Comparison{Compared: 24}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if tt.spoil >= 0 {
				if err := os.WriteFile(truth.file.Name(), spoiled(mem, tt.spoil), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			b := s.Kdump(t)
			d, err := OpenDump(bytes.NewReader(b), int64(len(b)))
			if err != nil {
				t.Fatal(err)
			}
			got, err := truth.CompareHeld(t.Context(), d, nil)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.want, got, cmp.Transformer("nil", func(s []uint64) []uint64 { return append([]uint64(nil), s...) })); diff != "" {
				t.Errorf("-want +got\n%s", diff)
			}
			if whole, err := truth.Compare(t.Context(), d, nil); err != nil || whole.Missing != 8 || whole.FirstMissing[0] != 0x8000 {
				t.Errorf("compared as a whole dump: %v, %v; want 8 pages missing", whole, err)
			}
			if d.Format() != "kdump" || d.Memory().Size() != 24*page {
				t.Errorf("format %s with %v", d.Format(), d.Memory())
			}
		})
	}
}

// spoiled returns mem with another byte in page n.
func spoiled(mem []byte, n int) []byte {
	b := bytes.Clone(mem)
	b[uint64(n)*page+100] ^= 1
	return b
}

// A RAM file of another size is of another machine.
func TestOpenErrors(t *testing.T) {
	name := filepath.Join(t.TempDir(), "truth")
	if err := os.WriteFile(name, make([]byte, page), 0o644); err != nil {
		t.Fatal(err)
	}
	if ram, err := Open(name, Layout{{End: 2 * page}}); err == nil || ram != nil {
		t.Errorf("Open of a page for a machine of two = %v, %v; want an error", ram, err)
	}
}

func TestPaintingCompare(t *testing.T) {
	mem := make([]byte, 16*page)
	p := Painting{Seed: 9, Runs: []wire.Run{{PFN: 4, Index: 0, Count: 3}, {PFN: 10, Index: 3, Count: 1}}}
	for _, r := range p.Runs {
		for i := range r.Count {
			if err := wire.Fill(mem[(r.PFN+i)*page:(r.PFN+i+1)*page], p.Seed, r.Index+i); err != nil {
				t.Fatal(err)
			}
		}
	}
	truth := truthOf(t, mem)
	defer truth.Close()
	has := truth.Ranges()
	if c, err := p.Compare(t.Context(), truth, has, nil); err != nil || !c.OK() || c.Compared != 4 {
		t.Errorf("right pages: %v, %v", c, err)
	}
	c, err := p.Compare(t.Context(), truth, has.Minus(phys.NewSet(phys.Range{Start: 4 * page, End: 5 * page})), phys.NewSet(phys.Range{Start: 10 * page, End: 11 * page}))
	if err != nil || c.Compared != 2 || c.Missing != 1 || c.FirstMissing[0] != 4*page {
		t.Errorf("a page missing and one excluded: %v, %v", c, err)
	}
	p.Seed++
	if c, err := p.Compare(t.Context(), truth, has, nil); err != nil || c.Wrong != 4 {
		t.Errorf("another seed: %v, %v; want all wrong", c, err)
	}
}

func TestOpenDumpErrors(t *testing.T) {
	exec := dumpHead(t)
	exec[16] = byte(elf.ET_EXEC)
	for _, tt := range []struct {
		name string
		data []byte
	}{
		{"empty", nil},
		{"program", exec},
		{"wraps", dumpHead(t, elf.Prog64{Off: page, Paddr: ^uint64(0) - page + 1, Filesz: 2 * page})},
	} {
		if d, err := OpenDump(bytes.NewReader(tt.data), int64(len(tt.data))); err == nil || d != nil {
			t.Errorf("%s: %v, %v; want an error", tt.name, d, err)
		}
	}
}

// BenchmarkCompare compares 6 GiB in tmpfs, as a large story does.
func BenchmarkCompare(b *testing.B) {
	const memory = 6 * phys.GiB
	dir, err := os.MkdirTemp("/dev/shm", "warmcore-bench")
	if err != nil {
		b.Fatal(err)
	}
	defer os.RemoveAll(dir)
	f, err := os.Create(filepath.Join(dir, "ram"))
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	w := bufio.NewWriterSize(f, holes.Chunk)
	one := make([]byte, page)
	for i := range uint64(memory / page) {
		if err := wire.Fill(one, 1, i); err != nil {
			b.Fatal(err)
		}
		if _, err := w.Write(one); err != nil {
			b.Fatal(err)
		}
	}
	if err := w.Flush(); err != nil {
		b.Fatal(err)
	}
	layout := Layout{{End: 2 * phys.GiB}, {Start: 4 * phys.GiB, End: 8 * phys.GiB}}
	truth := New(f, layout)
	d := &Dump{r: f}
	off := uint64(0)
	for _, r := range layout {
		d.segments = append(d.segments, segment{r, off})
		off += r.Size()
	}
	b.SetBytes(int64(memory))
	for b.Loop() {
		if c, err := truth.Compare(b.Context(), d, nil); err != nil || !c.OK() {
			b.Fatalf("%v, %v", c, err)
		}
	}
}
