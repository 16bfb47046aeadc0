package vmcore

import (
	"encoding/binary"
	"fmt"
	"iter"

	"github.com/warmcore/warmcore/pkg/elfcore"
	"github.com/warmcore/warmcore/pkg/vmcoreinfo"
)

// MaxNotes caps the notes that a reader keeps, in bytes: those of 64 Ki CPUs,
// and VMCOREINFO.
const MaxNotes = 64 << 20

const noteHeaderSize = 12 // sizeof(Elf64_Nhdr)

// Notes returns the notes in b one by one, without a copy, and how far b was
// understood. It stops at a name size of 0, as elfcore.ParseNotes does, but
// takes the notes of any number of CPUs. A note that doesn't fit into b is
// the last, with a *FormatError; Off is in b.
func Notes(b []byte) iter.Seq2[elfcore.ELFNote, error] {
	return func(yield func(elfcore.ELFNote, error) bool) {
		for off := 0; len(b)-off >= noteHeaderSize; {
			size, err := noteSize(b[off:])
			if err != nil {
				yield(elfcore.ELFNote{}, &FormatError{int64(off), "note", err.Error()})
				return
			}
			if size == 0 {
				return
			}
			notes, err := elfcore.ParseNotes(b[off:][:size])
			if err != nil || len(notes) != 1 {
				yield(elfcore.ELFNote{}, &FormatError{int64(off), "note", fmt.Sprintf("%d notes in %d bytes: %v", len(notes), size, err)})
				return
			}
			if !yield(notes[0], nil) {
				return
			}
			off += size
		}
	}
}

// noteSize returns the size of the note at the start of b, 0 at the end.
func noteSize(b []byte) (int, error) {
	nameSize, descSize := uint64(binary.LittleEndian.Uint32(b)), uint64(binary.LittleEndian.Uint32(b[4:]))
	if nameSize == 0 {
		return 0, nil
	}
	// 64-bit sums of 32-bit values can't wrap.
	size := noteHeaderSize + (nameSize+3)&^3 + (descSize+3)&^3
	if size > uint64(len(b)) {
		return 0, fmt.Errorf("name of %#x and descriptor of %#x bytes, but %#x bytes are left", nameSize, descSize, len(b))
	}
	return int(size), nil
}

// AddNotes appends the notes in b, the content of one PT_NOTE, to i.Notes,
// without what pads them; that of unreadable memory to i.Unreadable instead. A
// note that doesn't fit becomes a Warning.
func (i *Info) AddNotes(b []byte) {
	if len(i.Notes)+len(b) > MaxNotes {
		i.Warn(fmt.Sprintf("notes of %d bytes are left out: more than %d in all", len(b), MaxNotes))
		return
	}
	for n, err := range Notes(b) {
		if err != nil {
			i.Warn(err.Error())
			return
		}
		if n.Name == NameUnreadable && n.Type == TypeUnreadable {
			i.AddUnreadable(n.Desc)
			continue
		}
		i.Notes, err = elfcore.AppendNote(i.Notes, n)
		if err != nil {
			i.Warn(err.Error())
		}
	}
}

// ReadNotes fills in what i.Notes tell and i doesn't have yet: VMCOREINFO, and
// out of that PageSize and the kernel's release. What can't be read becomes a
// Warning. PageSize is 4 KiB if nothing tells it.
func (i *Info) ReadNotes() {
	for n, err := range Notes(i.Notes) {
		if i.VMCOREINFO != nil || err != nil {
			break
		}
		if n.Name == elfcore.NameVMCoreInfo {
			i.VMCOREINFO = n.Desc
		}
	}
	if i.VMCOREINFO != nil {
		v, err := vmcoreinfo.Parse(i.VMCOREINFO)
		if err != nil {
			i.Warn(err.Error())
		} else {
			if i.Uname.Release == "" {
				i.Uname.Release = v.Release
			}
			if i.PageSize == 0 && ValidPageSize(v.PageSize) {
				i.PageSize = v.PageSize
			}
		}
	}
	if i.PageSize == 0 {
		i.PageSize = MinPageSize
	}
}

// Sizes of pages, in bytes.
const (
	MinPageSize = 4 << 10
	MaxPageSize = 256 << 10
)

// ValidPageSize says whether a kernel can have pages of n bytes.
func ValidPageSize(n uint64) bool {
	return n >= MinPageSize && n <= MaxPageSize && n&(n-1) == 0
}

// maxWarnings bounds Info.Warnings: a hostile file earns one at each header.
const maxWarnings = 32

// Warn appends to i.Warnings; the last one that fits says that there are more.
func (i *Info) Warn(text string) {
	switch n := len(i.Warnings); {
	case n < maxWarnings:
		i.Warnings = append(i.Warnings, text)
	case n == maxWarnings:
		i.Warnings = append(i.Warnings, "there are more warnings")
	}
}

// Machines by the name that uname(2) gives them.
var machines = map[string]uint16{
	"x86_64":  elfcore.MachineAMD64,
	"aarch64": elfcore.MachineARM64,
}

// MachineOf returns the e_machine of a machine that uname(2) names so, 0 if
// it is not known.
func MachineOf(name string) uint16 { return machines[name] }

// MachineName returns the name that uname(2) gives to a machine, "" if it is
// not known.
func MachineName(machine uint16) string {
	for name, m := range machines {
		if m == machine {
			return name
		}
	}
	return ""
}
