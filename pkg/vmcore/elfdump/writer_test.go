package elfdump_test

import (
	"bytes"
	"debug/elf"
	"errors"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/warmcore/warmcore/pkg/elfcore"
	"github.com/warmcore/warmcore/pkg/phys"
	"github.com/warmcore/warmcore/pkg/vmcore"
	"github.com/warmcore/warmcore/pkg/vmcore/elfdump"
)

type memoryFile []byte

func (f *memoryFile) WriteAt(p []byte, off int64) (int, error) {
	if n := int(off) + len(p) - len(*f); n > 0 {
		*f = append(*f, make([]byte, n)...)
	}
	return copy((*f)[off:], p), nil
}

func TestLayout(t *testing.T) {
	const direct, text = 0xffff888000000000, 0xffffffff81000000
	notes := make([]byte, 100)
	const start = 64 << 10 // of the memory: after the room for a note of unreadable memory
	for _, tc := range []struct {
		name  string
		loads []vmcore.Load
		data  []phys.Range
		want  []elf.ProgHeader // of the PT_LOADs, without type, flags and align
	}{
		{
			"all", []vmcore.Load{{Virt: direct, Phys: 0, Size: 0x3000}, {Virt: direct + 0x8000, Phys: 0x8000, Size: 0x1000}},
			[]phys.Range{{Start: 0, End: 0x3000}, {Start: 0x8000, End: 0x9000}},
			[]elf.ProgHeader{
				{Vaddr: direct, Paddr: 0, Off: start, Filesz: 0x3000, Memsz: 0x3000},
				{Vaddr: direct + 0x8000, Paddr: 0x8000, Off: start + 0x3000, Filesz: 0x1000, Memsz: 0x1000},
			},
		}, {
			"nothing", []vmcore.Load{{Virt: direct, Phys: 0, Size: 0x3000}}, nil,
			[]elf.ProgHeader{{Vaddr: direct, Paddr: 0, Off: start, Filesz: 0, Memsz: 0x3000}},
		}, {
			"left out at both ends and between", []vmcore.Load{{Virt: direct, Phys: 0, Size: 0x9000}},
			[]phys.Range{{Start: 0x1000, End: 0x2000}, {Start: 0x5000, End: 0x7000}},
			[]elf.ProgHeader{
				{Vaddr: direct, Paddr: 0, Off: start, Filesz: 0, Memsz: 0x1000},
				{Vaddr: direct + 0x1000, Paddr: 0x1000, Off: start, Filesz: 0x1000, Memsz: 0x4000},
				{Vaddr: direct + 0x5000, Paddr: 0x5000, Off: start + 0x1000, Filesz: 0x2000, Memsz: 0x4000},
			},
		}, {
			"mapped twice", []vmcore.Load{{Virt: text, Phys: 0x2000, Size: 0x2000}, {Virt: direct, Phys: 0, Size: 0x8000}},
			[]phys.Range{{Start: 0x1000, End: 0x3000}, {Start: 0x6000, End: 0x8000}},
			[]elf.ProgHeader{
				{Vaddr: text, Paddr: 0x2000, Off: start + 0x1000, Filesz: 0x1000, Memsz: 0x2000},
				{Vaddr: direct, Paddr: 0, Off: start, Filesz: 0, Memsz: 0x1000},
				{Vaddr: direct + 0x1000, Paddr: 0x1000, Off: start, Filesz: 0x2000, Memsz: 0x5000},
				{Vaddr: direct + 0x6000, Paddr: 0x6000, Off: start + 0x2000, Filesz: 0x2000, Memsz: 0x2000},
			},
		}, {
			"not page aligned, mapping unknown", []vmcore.Load{{Virt: 0, Phys: 0x400, Size: 0x2000}},
			[]phys.Range{{Start: 0, End: 0x3000}},
			[]elf.ProgHeader{{Vaddr: 0, Paddr: 0x400, Off: start + 0x400, Filesz: 0x2000, Memsz: 0x2000}},
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			l, err := elfdump.NewLayout(elfcore.MachineAMD64, notes, tc.loads, tc.data, 4096)
			if err != nil {
				t.Fatal(err)
			}
			b := make(memoryFile, l.Size())
			if err := l.WriteHeaders(&b, nil); err != nil {
				t.Fatal(err)
			}
			f, err := elf.NewFile(bytes.NewReader(b))
			if err != nil {
				t.Fatal(err)
			}
			if f.Type != elf.ET_CORE || f.Machine != elf.EM_X86_64 || f.Progs[0].Type != elf.PT_NOTE || f.Progs[0].Filesz != 100 {
				t.Errorf("header %+v, first program header %+v", f.FileHeader, f.Progs[0].ProgHeader)
			}
			var got []elf.ProgHeader
			for _, p := range f.Progs[1:] {
				p.Type, p.Flags, p.Align = 0, 0, 0
				got = append(got, p.ProgHeader)
			}
			if diff := cmp.Diff(tc.want, got); diff != "" {
				t.Errorf("program headers (-want +got):\n%s", diff)
			}
			if d, err := elfdump.New(bytes.NewReader(b), l.Size()); err != nil {
				t.Error(err)
			} else if got, want := d.Info().Memory.Size(), memorySize(tc.loads); got != want {
				t.Errorf("a reader finds %#x bytes of memory, want %#x", got, want)
			}
		})
	}
}

// What names unreadable memory has room after the notes, and no more than that.
func TestWriteUnreadable(t *testing.T) {
	loads := []vmcore.Load{{Phys: 0x1000, Size: 0x4000}}
	l, err := elfdump.NewLayout(elfcore.MachineAMD64, nil, loads, []phys.Range{{Start: 0x1000, End: 0x5000}}, 4096)
	if err != nil {
		t.Fatal(err)
	}
	b := make(memoryFile, l.Size())
	for i := range b[l.Offset(0x1000):] {
		b[l.Offset(0x1000):][i] = 0xaa
	}
	bad := phys.NewSet(phys.Range{Start: 0x2000, End: 0x3000})
	if err := l.WriteHeaders(&b, vmcore.UnreadableText(bad, 3, 4096)); err != nil {
		t.Fatal(err)
	}
	d, err := elfdump.New(bytes.NewReader(b), l.Size())
	if err != nil {
		t.Fatal(err)
	}
	if info := d.Info(); !cmp.Equal(info.Unreadable, bad) || info.MoreUnreadable != 3 || len(info.Notes) > 0 {
		t.Errorf("unreadable %v and %d pages, %d bytes of other notes", info.Unreadable, info.MoreUnreadable, len(info.Notes))
	}
	if err := l.WriteHeaders(&b, bytes.Repeat([]byte("unreadable\n"), vmcore.MaxUnreadable)); err == nil {
		t.Error("a text that has no room: no error")
	}
}

func memorySize(loads []vmcore.Load) uint64 {
	var all []phys.Range
	for _, l := range loads {
		all = append(all, phys.Range{Start: l.Phys, End: l.Phys + l.Size})
	}
	return phys.NewSet(all...).Size()
}

func TestLayoutErrors(t *testing.T) {
	load := []vmcore.Load{{Size: 1 << 40}}
	var many []phys.Range
	for i := range uint64(elfcore.MaxPhdrs) {
		many = append(many, phys.Range{Start: 2 * i * 4096, End: (2*i + 1) * 4096})
	}
	for _, tc := range []struct {
		name  string
		loads []vmcore.Load
		data  []phys.Range
		page  uint64
	}{
		{"page size", load, nil, 1000},
		{"empty memory", load, []phys.Range{{}}, 4096},
		{"not aligned", load, []phys.Range{{Start: 1, End: 4096}}, 4096},
		{"out of order", load, []phys.Range{{Start: 0x2000, End: 0x3000}, {Start: 0x1000, End: 0x2000}}, 4096},
		{"empty load", []vmcore.Load{{}}, nil, 4096},
		{"load wraps", []vmcore.Load{{Phys: ^uint64(0), Size: 2}}, nil, 4096},
		{"too large a file", []vmcore.Load{{Size: 1 << 63}}, []phys.Range{{Start: 0, End: 1<<63 - 4096}}, 4096},
		{"too many segments", load, many, 4096},
	} {
		l, err := elfdump.NewLayout(elfcore.MachineAMD64, nil, tc.loads, tc.data, tc.page)
		if err == nil || l != nil {
			t.Errorf("%s: %v, %v; want an error", tc.name, l, err)
		}
		var tooMany *elfdump.TooManyError
		if errors.As(err, &tooMany) != (tc.name == "too many segments") {
			t.Errorf("%s: %v", tc.name, err)
		}
	}
}

func TestHolds(t *testing.T) {
	data := []phys.Range{{Start: 0x1000, End: 0x2000}, {Start: 0x5000, End: 0x6000}}
	l, err := elfdump.NewLayout(elfcore.MachineAMD64, nil, []vmcore.Load{{Phys: 0, Size: 0x7000}}, data, 4096)
	if err != nil {
		t.Fatal(err)
	}
	b := make(memoryFile, l.Size())
	if err := l.WriteHeaders(&b, nil); err != nil {
		t.Fatal(err)
	}
	// The second page is cut off: it should be there.
	d, err := elfdump.New(bytes.NewReader(b), l.Size()-4096)
	if err != nil {
		t.Fatal(err)
	}
	pager, ok := d.(vmcore.Pager)
	if !ok {
		t.Fatal("an ELF dump is no Pager")
	}
	for pfn, want := range []bool{false, true, false, false, false, true, false, false} {
		if got := pager.Holds(phys.Range{Start: uint64(pfn) * 4096, End: uint64(pfn+1) * 4096}); got != want {
			t.Errorf("Holds(%d) = %v, want %v", pfn, got, want)
		}
	}
	if pager.Holds(phys.Range{Start: ^uint64(4095), End: ^uint64(0)}) {
		t.Error("holds the last page of the address space")
	}
}
