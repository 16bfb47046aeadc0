package elfcore

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
)

// Names and types of the notes in a dump.
const (
	NameCore       = "CORE"
	NameVMCoreInfo = "VMCOREINFO"

	TypePRStatus   uint32 = 1 // NT_PRSTATUS, with NameCore
	TypeVMCoreInfo uint32 = 0 // with NameVMCoreInfo (update_vmcoreinfo_note)
)

// noteHeaderSize is sizeof(Elf64_Nhdr): n_namesz, n_descsz, n_type.
const noteHeaderSize = 12

// ELFNote is one note inside a note buffer.
type ELFNote struct {
	Name string // without the NUL that ends it
	Type uint32
	Desc []byte // aliases the parsed bytes
}

// Size returns the number of bytes that AppendNote appends for n.
func (n ELFNote) Size() int {
	return noteHeaderSize + pad4(len(n.Name)+1) + pad4(len(n.Desc))
}

func pad4(n int) int { return (n + 3) &^ 3 }

// AppendNote appends n as the kernel's append_elf_note does
// (kernel/vmcore_info.c in v6.12): three 32-bit words, the name with its NUL
// and the descriptor, both padded with zeros to 4 bytes. It refuses a note
// larger than MaxNoteSize; on error it returns nil.
func AppendNote(b []byte, n ELFNote) ([]byte, error) {
	if len(n.Name) > MaxNoteSize || len(n.Desc) > MaxNoteSize || n.Size() > MaxNoteSize {
		return nil, fmt.Errorf("encode note %.32q: larger than %d bytes", n.Name, MaxNoteSize)
	}
	le := binary.LittleEndian
	b = slices.Grow(b, n.Size())
	b = le.AppendUint32(b, uint32(len(n.Name)+1))
	b = le.AppendUint32(b, uint32(len(n.Desc)))
	b = le.AppendUint32(b, n.Type)
	b = append(b, n.Name...)
	b = append(b, make([]byte, pad4(len(n.Name)+1)-len(n.Name))...)
	b = append(b, n.Desc...)
	return append(b, make([]byte, pad4(len(n.Desc))-len(n.Desc))...), nil
}

// AppendFinalNote appends the empty note that ends a note buffer (final_note
// in kernel/vmcore_info.c). A buffer needs it unless it ends with its last
// note; the kernel's reader looks for it even then.
func AppendFinalNote(b []byte) []byte {
	return append(b, make([]byte, noteHeaderSize)...)
}

// ParseNotes reads a buffer of notes. Like the kernel's
// update_note_header_size_elf64, it stops without complaint at a name size of
// 0: a CPU that saved no registers has a buffer of zeros and so no notes.
// A note that doesn't fit into b is a *FormatError; the kernel drops it.
func ParseNotes(b []byte) ([]ELFNote, error) {
	if len(b) > MaxNotes {
		return nil, fmt.Errorf("parse notes: %d bytes, want at most %d", len(b), MaxNotes)
	}
	le := binary.LittleEndian
	var notes []ELFNote
	for off := 0; off < len(b); {
		rest := b[off:]
		if len(rest) < noteHeaderSize {
			if len(bytes.Trim(rest, "\x00")) == 0 {
				break // padding
			}
			return nil, fmt.Errorf("parse note %d: %w", len(notes),
				&FormatError{int64(off), "n_namesz", fmt.Sprintf("header of %d bytes, want %d", len(rest), noteHeaderSize)})
		}
		nameSize, descSize := uint64(le.Uint32(rest)), uint64(le.Uint32(rest[4:]))
		if nameSize == 0 {
			break
		}
		// 64-bit sums of 32-bit values can't wrap.
		descAt := noteHeaderSize + (nameSize+3)&^3
		end := descAt + (descSize+3)&^3
		switch size := uint64(len(rest)); {
		case descAt > size:
			return nil, fmt.Errorf("parse note %d: %w", len(notes),
				&FormatError{int64(off), "n_namesz", fmt.Sprintf("%#x bytes, but %#x are left", nameSize, size)})
		case end > size:
			return nil, fmt.Errorf("parse note %d: %w", len(notes),
				&FormatError{int64(off) + 4, "n_descsz", fmt.Sprintf("%#x bytes, but %#x are left", descSize, size-descAt)})
		}
		name := rest[noteHeaderSize:][:nameSize]
		notes = append(notes, ELFNote{
			Name: string(bytes.TrimSuffix(name, []byte{0})),
			Type: le.Uint32(rest[8:]),
			Desc: rest[descAt:][:descSize:descSize],
		})
		off += int(end)
	}
	return notes, nil
}

// ErrMachine says that this package doesn't know the registers of a machine.
var ErrMachine = errors.New("machine is neither x86-64 nor arm64")

// PRStatus has the fields of a CPU's NT_PRSTATUS note that are shown to
// people; crash(8) reads the others from the dump.
type PRStatus struct {
	PID uint32 // of the task that ran on the CPU, 0 for an idle CPU
	PC  uint64 // rip, pc
	SP  uint64 // rsp, sp
}

// prstatusLayout is struct elf_prstatus (include/linux/elfcore.h in v6.12):
// 112 bytes of elf_prstatus_common, the registers, an int and padding.
type prstatusLayout struct {
	size, pid, pc, sp int
}

// prstatusLayouts has the layouts of all known machines, by e_machine.
var prstatusLayouts = map[uint16]prstatusLayout{
	MachineAMD64: prstatusAMD64,
	MachineARM64: prstatusARM64,
}

// ParsePRStatus reads the descriptor of an NT_PRSTATUS note. Errors:
// ErrMachine, and a *FormatError for a descriptor of the wrong size.
func ParsePRStatus(machine uint16, desc []byte) (PRStatus, error) {
	l, ok := prstatusLayouts[machine]
	if !ok {
		return PRStatus{}, fmt.Errorf("parse prstatus: machine %d: %w", machine, ErrMachine)
	}
	if len(desc) != l.size {
		return PRStatus{}, fmt.Errorf("parse prstatus: %w",
			&FormatError{0, "n_descsz", fmt.Sprintf("%d, want %d for machine %d", len(desc), l.size, machine)})
	}
	le := binary.LittleEndian
	return PRStatus{
		PID: le.Uint32(desc[l.pid:]),
		PC:  le.Uint64(desc[l.pc:]),
		SP:  le.Uint64(desc[l.sp:]),
	}, nil
}

// PRStatuses returns the registers in notes, one element for each
// NT_PRSTATUS note: a CPU's note buffer holds one, or none if the CPU was not
// stopped. Errors are those of ParsePRStatus.
func PRStatuses(machine uint16, notes []ELFNote) ([]PRStatus, error) {
	var all []PRStatus
	for _, n := range notes {
		if n.Name != NameCore || n.Type != TypePRStatus {
			continue
		}
		s, err := ParsePRStatus(machine, n.Desc)
		if err != nil {
			return nil, err
		}
		all = append(all, s)
	}
	return all, nil
}
