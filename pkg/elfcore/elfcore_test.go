package elfcore_test

import (
	"bytes"
	"debug/elf"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/warmcore/warmcore/pkg/elfcore"
)

// small is a header with one of each: a note and a load of boot memory, both
// redirected, and the kernel's text, which lies in preserved memory.
var small = elfcore.Header{
	Machine: elfcore.MachineAMD64,
	Notes: []elfcore.Note{
		{Phys: 0x20001400, Offset: 0x60001400, Size: 0x170},
	},
	Loads: []elfcore.Load{
		{Virt: 0xffff888020000000, Phys: 0x20000000, Offset: 0x60000000, Size: 0x8000000},
		{Virt: 0xffffffff81000000, Phys: 0x30000000, Offset: 0x30000000, Size: 0x2000000},
	},
}

var smallBytes = []byte{
	0x7f, 'E', 'L', 'F', // magic
	2,                         // EI_CLASS: 64 bits
	1,                         // EI_DATA: little-endian
	1,                         // EI_VERSION
	0, 0, 0, 0, 0, 0, 0, 0, 0, // EI_OSABI, padding
	4, 0, // e_type: ET_CORE
	62, 0, // e_machine: EM_X86_64
	1, 0, 0, 0, // e_version
	0, 0, 0, 0, 0, 0, 0, 0, // e_entry
	64, 0, 0, 0, 0, 0, 0, 0, // e_phoff
	0, 0, 0, 0, 0, 0, 0, 0, // e_shoff
	0, 0, 0, 0, // e_flags
	64, 0, // e_ehsize
	56, 0, // e_phentsize
	3, 0, // e_phnum
	0, 0, // e_shentsize
	0, 0, // e_shnum
	0, 0, // e_shstrndx

	4, 0, 0, 0, // p_type: PT_NOTE
	7, 0, 0, 0, // p_flags: RWX
	0x00, 0x14, 0x00, 0x60, 0, 0, 0, 0, // p_offset
	0, 0, 0, 0, 0, 0, 0, 0, // p_vaddr
	0x00, 0x14, 0x00, 0x20, 0, 0, 0, 0, // p_paddr
	0x70, 0x01, 0, 0, 0, 0, 0, 0, // p_filesz
	0x70, 0x01, 0, 0, 0, 0, 0, 0, // p_memsz
	4, 0, 0, 0, 0, 0, 0, 0, // p_align

	1, 0, 0, 0, // p_type: PT_LOAD
	7, 0, 0, 0, // p_flags: RWX
	0x00, 0x00, 0x00, 0x60, 0, 0, 0, 0, // p_offset
	0x00, 0x00, 0x00, 0x20, 0x80, 0x88, 0xff, 0xff, // p_vaddr
	0x00, 0x00, 0x00, 0x20, 0, 0, 0, 0, // p_paddr
	0x00, 0x00, 0x00, 0x08, 0, 0, 0, 0, // p_filesz
	0x00, 0x00, 0x00, 0x08, 0, 0, 0, 0, // p_memsz
	0, 0, 0, 0, 0, 0, 0, 0, // p_align

	1, 0, 0, 0, // p_type: PT_LOAD
	7, 0, 0, 0, // p_flags: RWX
	0x00, 0x00, 0x00, 0x30, 0, 0, 0, 0, // p_offset
	0x00, 0x00, 0x00, 0x81, 0xff, 0xff, 0xff, 0xff, // p_vaddr
	0x00, 0x00, 0x00, 0x30, 0, 0, 0, 0, // p_paddr
	0x00, 0x00, 0x00, 0x02, 0, 0, 0, 0, // p_filesz
	0x00, 0x00, 0x00, 0x02, 0, 0, 0, 0, // p_memsz
	0, 0, 0, 0, 0, 0, 0, 0, // p_align
}

func TestHeaderBytes(t *testing.T) {
	got, err := small.AppendBinary([]byte("before"))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(append([]byte("before"), smallBytes...), got); diff != "" {
		t.Errorf("AppendBinary (-want +got):\n%s", diff)
	}
	if got, want := small.BinarySize(), len(smallBytes); got != want {
		t.Errorf("BinarySize: got %d, want %d", got, want)
	}
	parsed, err := elfcore.Parse(append(slices.Clone(smallBytes), "what lies behind"...))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(small, parsed); diff != "" {
		t.Errorf("Parse (-want +got):\n%s", diff)
	}
	read, err := elfcore.Read(bytes.NewReader(smallBytes))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(small, read); diff != "" {
		t.Errorf("Read (-want +got):\n%s", diff)
	}
}

// TestStandardLibraryReads has Go's reader of ELF files judge ours.
func TestStandardLibraryReads(t *testing.T) {
	b, err := small.AppendBinary(nil)
	if err != nil {
		t.Fatal(err)
	}
	f, err := elf.NewFile(bytes.NewReader(b))
	if err != nil {
		t.Fatal(err)
	}
	if f.Type != elf.ET_CORE || f.Machine != elf.EM_X86_64 || f.Class != elf.ELFCLASS64 {
		t.Errorf("got %v %v %v, want a 64-bit x86-64 core", f.Type, f.Machine, f.Class)
	}
	rwx := elf.PF_R | elf.PF_W | elf.PF_X
	want := []elf.ProgHeader{
		{Type: elf.PT_NOTE, Flags: rwx, Off: 0x60001400, Paddr: 0x20001400, Filesz: 0x170, Memsz: 0x170, Align: 4},
		{Type: elf.PT_LOAD, Flags: rwx, Off: 0x60000000, Vaddr: 0xffff888020000000, Paddr: 0x20000000, Filesz: 0x8000000, Memsz: 0x8000000},
		{Type: elf.PT_LOAD, Flags: rwx, Off: 0x30000000, Vaddr: 0xffffffff81000000, Paddr: 0x30000000, Filesz: 0x2000000, Memsz: 0x2000000},
	}
	var got []elf.ProgHeader
	for _, p := range f.Progs {
		got = append(got, p.ProgHeader)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("program headers (-want +got):\n%s", diff)
	}
}

// TestReadelf has binutils judge a whole file: header, notes and memory.
func TestReadelf(t *testing.T) {
	const at = 4096
	notes := cpuNotes(t, elfcore.MachineAMD64)
	vmcoreinfo, err := elfcore.AppendNote(nil, elfcore.ELFNote{Name: elfcore.NameVMCoreInfo, Desc: []byte("OSRELEASE=6.1\n")})
	if err != nil {
		t.Fatal(err)
	}
	h := elfcore.Header{
		Machine: elfcore.MachineAMD64,
		Notes: []elfcore.Note{
			{Phys: 0x100000, Offset: at, Size: uint64(len(notes))},
			{Phys: 0x200000, Offset: at + uint64(len(notes)), Size: uint64(len(vmcoreinfo))},
		},
		Loads: []elfcore.Load{{Virt: 0xffff888000100000, Phys: 0x100000, Offset: 2 * at, Size: at}},
	}
	b, err := h.AppendBinary(nil)
	if err != nil {
		t.Fatal(err)
	}
	file := make([]byte, 3*at)
	copy(file, b)
	copy(file[at:], slices.Concat(notes, vmcoreinfo))
	name := filepath.Join(t.TempDir(), "vmcore")
	if err := os.WriteFile(name, file, 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("readelf", "--wide", "--program-headers", "--notes", name)
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("readelf: %v\n%s", err, out)
	}
	text := strings.Join(strings.Fields(string(out)), " ")
	for _, want := range []string{
		"Elf file type is CORE (Core file)",
		"There are 3 program headers, starting at offset 64",
		"NOTE 0x001000 0x0000000000000000 0x0000000000100000 0x000170 0x000170 RWE 0x4",
		"LOAD 0x002000 0xffff888000100000 0x0000000000100000 0x001000 0x001000 RWE 0",
		"CORE 0x00000150 NT_PRSTATUS (prstatus structure)",
		"VMCOREINFO 0x0000000e",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("readelf doesn't print %q, but:\n%s", want, out)
		}
	}
	if strings.Contains(string(out), "Warning") || strings.Contains(string(out), "Error") {
		t.Errorf("readelf complains:\n%s", out)
	}
}

func TestParseDamaged(t *testing.T) {
	const note, load = 64, 64 + 56
	for _, c := range []struct {
		name  string
		at    int
		bytes string
		off   int64
		field string
	}{
		{"magic", 0, "\x7eELF", 0, "e_ident"},
		{"class32", 4, "\x01", 4, "EI_CLASS"},
		{"bigEndian", 5, "\x02", 5, "EI_DATA"},
		{"identVersion", 6, "\x00", 6, "EI_VERSION"},
		{"executable", 16, "\x02\x00", 16, "e_type"},
		{"version", 20, "\x02", 20, "e_version"},
		{"headersElsewhere", 32, "\x80", 32, "e_phoff"},
		{"headersBeyond32Bits", 36, "\x01", 32, "e_phoff"},
		{"ehsize", 52, "\x34", 52, "e_ehsize"},
		{"phentsize", 54, "\x20", 54, "e_phentsize"},
		{"noHeaders", 56, "\x00\x00", 56, "e_phnum"},
		{"extendedNumbering", 56, "\xff\xff", 56, "e_phnum"},
		{"moreHeadersThanBytes", 56, "\x04\x00", 56, "e_phnum"},
		{"otherType", load, "\x06", load, "p_type"},
		{"emptyNote", note + 32, "\x00\x00", note + 32, "p_filesz"},
		{"hugeNote", note + 32, "\x01\x00\x00\x04", note + 32, "p_filesz"},
		{"noteMemorySize", note + 40, "\x65", note + 40, "p_memsz"},
		{"noteWraps", note + 24, "\xff\xff\xff\xff\xff\xff\xff\xff", note + 24, "p_paddr"},
		{"loadWraps", load + 8, "\x00\x00\x00\xff\xff\xff\xff\xff", load + 32, "p_filesz"},
		{"loadMemorySize", load + 40, "\x01", load + 40, "p_memsz"},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := slices.Clone(smallBytes)
			copy(b[c.at:], c.bytes)
			h, err := elfcore.Parse(b)
			wantFormatError(t, err, c.off, c.field)
			if diff := cmp.Diff(elfcore.Header{}, h); diff != "" {
				t.Errorf("header with an error (-want +got):\n%s", diff)
			}
		})
	}
	t.Run("everyTruncation", func(t *testing.T) {
		for n := range smallBytes {
			if _, err := elfcore.Parse(smallBytes[:n]); err == nil {
				t.Errorf("Parse of the first %d bytes: no error", n)
			}
			if _, err := elfcore.Read(bytes.NewReader(smallBytes[:n])); err == nil {
				t.Errorf("Read of the first %d bytes: no error", n)
			}
		}
	})
}

// TestParseKcore: /proc/kcore leaves p_memsz of its note at 0 and gives what
// isn't RAM an address of all ones.
func TestParseKcore(t *testing.T) {
	b := slices.Clone(smallBytes)
	copy(b[64+40:], make([]byte, 8))
	copy(b[64+56+24:], "\xff\xff\xff\xff\xff\xff\xff\xff")
	h, err := elfcore.Parse(b)
	if err != nil {
		t.Fatal(err)
	}
	if got, want := h.Loads[0].Phys, ^uint64(0); got != want {
		t.Errorf("p_paddr: got %#x, want %#x", got, want)
	}
}

func TestAppendBinaryRefuses(t *testing.T) {
	good := small.Loads[0]
	for _, c := range []struct {
		name string
		h    elfcore.Header
	}{
		{"nothing", elfcore.Header{}},
		{"tooMany", elfcore.Header{Loads: slices.Repeat([]elfcore.Load{good}, elfcore.MaxPhdrs+1)}},
		{"emptyLoad", elfcore.Header{Loads: []elfcore.Load{{Phys: 1, Offset: 1}}}},
		{"wrappingLoad", elfcore.Header{Loads: []elfcore.Load{{Offset: ^uint64(0), Size: 2}}}},
		{"emptyNote", elfcore.Header{Notes: []elfcore.Note{{}}, Loads: []elfcore.Load{good}}},
		{"hugeNote", elfcore.Header{Notes: []elfcore.Note{{Size: elfcore.MaxNoteSize + 1}}}},
		{"wrappingNote", elfcore.Header{Notes: []elfcore.Note{{Phys: ^uint64(0), Size: 2}}}},
	} {
		t.Run(c.name, func(t *testing.T) {
			if b, err := c.h.AppendBinary([]byte("x")); err == nil || b != nil {
				t.Errorf("AppendBinary: got %d bytes and error %v, want an error only", len(b), err)
			}
		})
	}
	most := elfcore.Header{Loads: slices.Repeat([]elfcore.Load{good}, elfcore.MaxPhdrs)}
	b, err := most.AppendBinary(nil)
	if err != nil {
		t.Fatal(err)
	}
	if h, err := elfcore.Parse(b); err != nil || len(h.Loads) != elfcore.MaxPhdrs {
		t.Errorf("Parse of %d loads: got %d and error %v", elfcore.MaxPhdrs, len(h.Loads), err)
	}
}

func TestAppendWithNotes(t *testing.T) {
	const at = 0x200c0000
	added := elfcore.ELFNote{Name: "WARMCORE", Type: 7, Desc: []byte("early")}
	for _, c := range []struct {
		name string
		h    elfcore.Header
	}{
		{"onlyLoads", elfcore.Header{Machine: elfcore.MachineAMD64, Loads: small.Loads}},
		{"besideOthers", small},
	} {
		t.Run(c.name, func(t *testing.T) {
			b, err := c.h.AppendWithNotes(nil, at, added)
			if err != nil {
				t.Fatal(err)
			}
			got, err := elfcore.Parse(b)
			if err != nil {
				t.Fatal(err)
			}
			place := uint64(c.h.BinarySize() + elfcore.PhdrSize)
			size := uint64(added.Size() + 12)
			want := c.h
			want.Notes = append(slices.Clone(want.Notes), elfcore.Note{Phys: at + place, Offset: at + place, Size: size})
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("header (-want +got):\n%s", diff)
			}
			if len(b) != int(place+size) {
				t.Fatalf("got %d bytes, want %d", len(b), place+size)
			}
			notes, err := elfcore.ParseNotes(b[place:])
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff([]elfcore.ELFNote{added}, notes); diff != "" {
				t.Errorf("note (-want +got):\n%s", diff)
			}
		})
	}
	if len(small.Notes) != 1 {
		t.Errorf("the header that was given has %d notes now", len(small.Notes))
	}
	for _, at := range []uint64{at + 2, ^uint64(0) - 299, ^uint64(0) - 3} {
		if b, err := small.AppendWithNotes(nil, at, added); err == nil || b != nil {
			t.Errorf("at %#x: got %d bytes and error %v, want an error", at, len(b), err)
		}
	}
	added.Desc = make([]byte, elfcore.MaxNoteSize)
	if b, err := small.AppendWithNotes(nil, at, added); err == nil || b != nil {
		t.Errorf("huge note: got %d bytes and error %v, want an error", len(b), err)
	}
}

func FuzzParse(f *testing.F) {
	f.Add(smallBytes)
	f.Add(smallBytes[:64])
	f.Fuzz(func(t *testing.T, b []byte) {
		h, err := elfcore.Parse(b)
		read, readErr := elfcore.Read(bytes.NewReader(b))
		if (err == nil) != (readErr == nil) || !cmp.Equal(h, read) {
			t.Fatalf("Parse gives %+v, %v; Read gives %+v, %v", h, err, read, readErr)
		}
		if err != nil {
			if !cmp.Equal(h, elfcore.Header{}) {
				t.Fatalf("error %v with header %+v", err, h)
			}
			return
		}
		again, err := h.AppendBinary(nil)
		if err != nil {
			t.Fatalf("can't encode what was parsed: %v", err)
		}
		if got, err := elfcore.Parse(again); err != nil || !cmp.Equal(h, got) {
			t.Fatalf("round trip: got %+v, %v, want %+v", got, err, h)
		}
	})
}

func wantFormatError(t *testing.T, err error, off int64, field string) {
	t.Helper()
	var f *elfcore.FormatError
	if !errors.As(err, &f) {
		t.Fatalf("got error %v, want a FormatError", err)
	}
	if f.Off != off || f.Field != field {
		t.Errorf("got %v, want offset %d, field %s", err, off, field)
	}
}
