package elfcore_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/warmcore/warmcore/pkg/elfcore"
)

// prstatus returns struct elf_prstatus with a known pid, sp and pc.
func prstatus(machine uint16) []byte {
	size, pc, sp := 336, 240, 264
	if machine == elfcore.MachineARM64 {
		size, pc, sp = 392, 368, 360
	}
	b := make([]byte, size)
	binary.LittleEndian.PutUint32(b[32:], 4711)
	binary.LittleEndian.PutUint64(b[pc:], 0xffffffff81234567)
	binary.LittleEndian.PutUint64(b[sp:], 0xffffc90000123450)
	return b
}

// cpuNotes returns a crash_notes buffer as crash_save_cpu leaves it.
func cpuNotes(t *testing.T, machine uint16) []byte {
	t.Helper()
	b, err := elfcore.AppendNote(nil, elfcore.ELFNote{Name: "CORE", Type: 1, Desc: prstatus(machine)})
	if err != nil {
		t.Fatal(err)
	}
	return elfcore.AppendFinalNote(b)
}

var noteBytes = []byte{
	5, 0, 0, 0, // n_namesz
	3, 0, 0, 0, // n_descsz
	1, 0, 0, 0, // n_type: NT_PRSTATUS
	'C', 'O', 'R', 'E', // name
	0, 0, 0, 0, // NUL, padding
	0xaa, 0xbb, 0xcc, // desc
	0, // padding

	1, 0, 0, 0, // n_namesz: the empty name, which has a NUL
	0, 0, 0, 0, // n_descsz
	9, 0, 0, 0, // n_type
	0, 0, 0, 0, // NUL, padding

	0, 0, 0, 0, // n_namesz: the end
	0, 0, 0, 0, // n_descsz
	0, 0, 0, 0, // n_type
}

func TestNoteBytes(t *testing.T) {
	notes := []elfcore.ELFNote{
		{Name: "CORE", Type: 1, Desc: []byte{0xaa, 0xbb, 0xcc}},
		{Type: 9, Desc: []byte{}},
	}
	var got []byte
	for _, n := range notes {
		before := len(got)
		var err error
		if got, err = elfcore.AppendNote(got, n); err != nil {
			t.Fatal(err)
		}
		if got, want := n.Size(), len(got)-before; got != want {
			t.Errorf("Size: got %d, want %d", got, want)
		}
	}
	if diff := cmp.Diff(noteBytes, elfcore.AppendFinalNote(got)); diff != "" {
		t.Errorf("AppendNote (-want +got):\n%s", diff)
	}
	parsed, err := elfcore.ParseNotes(append(slices.Clone(noteBytes), "rubbish behind the end"...))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(notes, parsed); diff != "" {
		t.Errorf("ParseNotes (-want +got):\n%s", diff)
	}
}

func TestParseNotesEnds(t *testing.T) {
	for _, c := range []struct {
		name string
		b    []byte
		want int
	}{
		{"empty", nil, 0},
		{"neverWritten", make([]byte, 0x170), 0},
		{"noFinalNote", noteBytes[:24], 1},
		{"padding", append(noteBytes[:24:24], 0, 0, 0, 0), 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := elfcore.ParseNotes(c.b)
			if err != nil || len(got) != c.want {
				t.Errorf("got %d notes and error %v, want %d", len(got), err, c.want)
			}
		})
	}
}

func TestParseNotesDamaged(t *testing.T) {
	for _, c := range []struct {
		name  string
		at    int
		bytes string
		off   int64
		field string
	}{
		{"nameBeyondEnd", 0, "\x40", 0, "n_namesz"},
		{"nameLargest", 0, "\xff\xff\xff\xff", 0, "n_namesz"},
		{"descBeyondEnd", 4, "\x40", 4, "n_descsz"},
		{"descLargest", 4, "\xff\xff\xff\xff", 4, "n_descsz"},
		{"secondDesc", 28, "\x40", 28, "n_descsz"},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := slices.Clone(noteBytes)
			copy(b[c.at:], c.bytes)
			notes, err := elfcore.ParseNotes(b)
			wantFormatError(t, err, c.off, c.field)
			if notes != nil {
				t.Errorf("%d notes with an error", len(notes))
			}
		})
	}
	t.Run("shortHeader", func(t *testing.T) {
		_, err := elfcore.ParseNotes(append(noteBytes[:24:24], 1, 0, 0, 0))
		wantFormatError(t, err, 24, "n_namesz")
	})
	t.Run("tooLong", func(t *testing.T) {
		if _, err := elfcore.ParseNotes(make([]byte, elfcore.MaxNotes+1)); err == nil {
			t.Error("no error")
		}
	})
	t.Run("appendTooLong", func(t *testing.T) {
		n := elfcore.ELFNote{Name: strings.Repeat("x", 100), Desc: make([]byte, elfcore.MaxNoteSize)}
		if b, err := elfcore.AppendNote([]byte("x"), n); err == nil || b != nil {
			t.Errorf("got %d bytes and error %v, want an error only", len(b), err)
		}
	})
}

func TestPRStatuses(t *testing.T) {
	want := []elfcore.PRStatus{{PID: 4711, PC: 0xffffffff81234567, SP: 0xffffc90000123450}}
	for _, machine := range []uint16{elfcore.MachineAMD64, elfcore.MachineARM64} {
		notes, err := elfcore.ParseNotes(cpuNotes(t, machine))
		if err != nil {
			t.Fatal(err)
		}
		notes = append(notes,
			elfcore.ELFNote{Name: "VMCOREINFO", Desc: prstatus(machine)},
			elfcore.ELFNote{Name: "CORE", Type: 2, Desc: prstatus(machine)},
		)
		got, err := elfcore.PRStatuses(machine, notes)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("machine %d (-want +got):\n%s", machine, diff)
		}
	}
	notes := []elfcore.ELFNote{{Name: "CORE", Type: 1, Desc: prstatus(elfcore.MachineARM64)}}
	_, err := elfcore.PRStatuses(elfcore.MachineAMD64, notes)
	wantFormatError(t, err, 0, "n_descsz")
	if _, err := elfcore.PRStatuses(2, notes); !errors.Is(err, elfcore.ErrMachine) {
		t.Errorf("registers of a SPARC: got error %v, want %v", err, elfcore.ErrMachine)
	}
}

func FuzzParseNotes(f *testing.F) {
	f.Add(noteBytes)
	f.Add(noteBytes[:24])
	f.Fuzz(func(t *testing.T, b []byte) {
		notes, err := elfcore.ParseNotes(b)
		if err != nil {
			if notes != nil {
				t.Fatalf("error %v with %d notes", err, len(notes))
			}
			return
		}
		var again []byte
		for _, n := range notes {
			if again, err = elfcore.AppendNote(again, n); err != nil {
				// The NUL that a name lacked can make a full buffer overflow.
				if len(b) < elfcore.MaxNoteSize/2 {
					t.Fatalf("can't encode what was parsed: %v", err)
				}
				return
			}
		}
		got, err := elfcore.ParseNotes(again)
		if err != nil || !cmp.Equal(notes, got) {
			t.Fatalf("round trip: got %+v, %v, want %+v", got, err, notes)
		}
	})
}

// TestNotesOfLargeMachine: /proc/vmcore has the notes of all CPUs in one
// segment, which is larger than any that is written.
func TestNotesOfLargeMachine(t *testing.T) {
	const cpus = 8192
	one, err := elfcore.AppendNote(nil, elfcore.ELFNote{Name: elfcore.NameCore, Type: elfcore.TypePRStatus, Desc: make([]byte, 392)})
	if err != nil {
		t.Fatal(err)
	}
	notes := bytes.Repeat(one, cpus)
	h := elfcore.Header{
		Machine: elfcore.MachineARM64,
		Notes:   []elfcore.Note{{Offset: 4096, Size: 4096}},
		Loads:   []elfcore.Load{{Offset: 8 << 20, Size: 4096}},
	}
	b, err := h.AppendBinary(nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, field := range []int{32, 40} { // p_filesz, p_memsz
		binary.LittleEndian.PutUint64(b[elfcore.EhdrSize+field:], uint64(len(notes)))
	}
	got, err := elfcore.Read(bytes.NewReader(b))
	if err != nil {
		t.Fatal(err)
	}
	if n := got.Notes[0].Size; n != uint64(len(notes)) {
		t.Errorf("notes of %d bytes, want %d", n, len(notes))
	}
	all, err := elfcore.ParseNotes(notes)
	if err != nil || len(all) != cpus {
		t.Errorf("%d notes, %v; want %d", len(all), err, cpus)
	}
}
