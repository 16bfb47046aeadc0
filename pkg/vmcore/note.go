package vmcore

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"iter"
	"strconv"

	"github.com/warmcore/warmcore/pkg/elfcore"
	"github.com/warmcore/warmcore/pkg/vmcoreinfo"
)

// MaxNotes caps the notes that a reader keeps, in bytes: those of 64 Ki CPUs,
// and VMCOREINFO.
const MaxNotes = elfcore.MaxNotes

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
// without padding at the end. A note about unreadable memory goes to
// i.Unreadable instead, one with samples of memory to i.Samples. A note that
// doesn't fit becomes a Warning.
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
		if n.Name == NameUnreadable && n.Type == TypeSamples {
			i.addSamples(n.Desc)
			continue
		}
		i.Notes, err = elfcore.AppendNote(i.Notes, n)
		if err != nil {
			i.Warn(err.Error())
		}
	}
}

// ReadNotes fills in what VMCOREINFO says about the kernel: VMCOREINFO itself,
// PageSize, Uname.Release and Machine. The first readable text counts of those
// in i.Notes and of outside, a text from elsewhere in the file, which may be
// empty. If the file's headers contradict VMCOREINFO, which the kernel itself
// wrote, VMCOREINFO counts, and there is a Warning; a text that can't be read
// is a Warning, too. Without VMCOREINFO, PageSize is BlockSize, or 4 KiB.
func (i *Info) ReadNotes(outside []byte) {
	i.PageSize = cmp.Or(i.BlockSize, MinPageSize)
	defer i.machineOfRegisters()
	var failed error
	try := func(text []byte) bool {
		if len(text) == 0 {
			return false
		}
		v, err := vmcoreinfo.Parse(text)
		if err != nil {
			if failed == nil {
				failed, i.VMCOREINFO = err, text
			}
			return false
		}
		i.VMCOREINFO = text
		for _, w := range v.Warnings {
			i.Warn("VMCOREINFO: " + w)
		}
		i.believe(v)
		return true
	}
	for n, err := range Notes(i.Notes) {
		if err == nil && n.Name == elfcore.NameVMCoreInfo && try(n.Desc) {
			return
		}
	}
	if !try(outside) && failed != nil {
		i.Warn(failed.Error())
	}
}

// believe takes the facts from VMCOREINFO for which it is more reliable than
// the headers.
func (i *Info) believe(v *vmcoreinfo.Info) {
	i.kernel = v
	m := machineIn(v)
	switch {
	case m == elfcore.MachineAMD64 && v.PageSize != MinPageSize && v.PageSize != 0:
		i.PageSize = MinPageSize
		i.Warn(fmt.Sprintf("VMCOREINFO: PAGESIZE is %d, but x86-64 kernels have pages of %d: taken for that, and no page can be left out", v.PageSize, MinPageSize))
	case ValidPageSize(v.PageSize):
		i.PageSize = v.PageSize
	case v.PageSize != 0:
		i.Warn(fmt.Sprintf("VMCOREINFO: PAGESIZE is %d, want a power of two from %d to %d: taken for %d, and no page can be left out",
			v.PageSize, MinPageSize, MaxPageSize, i.PageSize))
	}
	if i.Uname.Release != "" && i.Uname.Release != v.Release {
		i.Warn(fmt.Sprintf("the header says release %q, VMCOREINFO %q, which is taken", i.Uname.Release, v.Release))
	}
	i.Uname.Release = v.Release
	if m != 0 && m != i.Machine {
		if name := i.machine(); name != "" {
			i.Warn(fmt.Sprintf("the header says machine %s, VMCOREINFO %s, which is taken", name, MachineName(m)))
		}
		i.Machine, i.Uname.Machine = m, MachineName(m)
	}
}

// machineOfRegisters fills in a machine that is not known from the size of a
// CPU's registers. QEMU's kdump files of arm64 guests say "Unknown".
func (i *Info) machineOfRegisters() {
	if i.Machine != 0 || i.Uname.Machine != "" && i.Uname.Machine != "Unknown" {
		return
	}
	i.Uname.Machine = ""
	for n, err := range Notes(i.Notes) {
		if err != nil || n.Name != elfcore.NameCore || n.Type != elfcore.TypePRStatus {
			continue
		}
		for _, m := range []uint16{elfcore.MachineAMD64, elfcore.MachineARM64} {
			if _, err := elfcore.ParsePRStatus(m, n.Desc); err == nil {
				i.Machine, i.Uname.Machine = m, MachineName(m)
			}
		}
		return
	}
}

// machine is the machine for a message, "" if the header doesn't tell.
func (i *Info) machine() string {
	switch {
	case i.Uname.Machine != "" && i.Uname.Machine != "Unknown":
		return strconv.Quote(i.Uname.Machine)
	case i.Machine != 0:
		return fmt.Sprintf("e_machine %d", i.Machine)
	}
	return ""
}

// machineIn returns the machine of a VMCOREINFO text, 0 if it isn't clear:
// each architecture writes numbers of its own (arch/*/kernel/vmcore_info.c in
// v6.12).
func machineIn(v *vmcoreinfo.Info) uint16 {
	has := func(names ...string) bool {
		for _, name := range names {
			if _, ok := v.Numbers[name]; !ok {
				return false
			}
		}
		return true
	}
	switch {
	case has("kimage_voffset", "PHYS_OFFSET"):
		return elfcore.MachineARM64
	case has("phys_base", "KERNEL_IMAGE_SIZE") || has("phys_base", "pgtable_l5_enabled"):
		return elfcore.MachineAMD64
	}
	return 0
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

// maxWarnings bounds Info.Warnings: a hostile file could cause one at each
// header.
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

// machines are the 64-bit little-endian machines that Linux runs on, by the
// name that uname(2) gives them (include/uapi/linux/elf-em.h in v6.12). Dumps
// of all of them are read; for all but the first two, only the place of their
// memory is understood.
var machines = map[string]uint16{
	"x86_64":      elfcore.MachineAMD64,
	"aarch64":     elfcore.MachineARM64,
	"alpha":       0x9026,
	"ia64":        50,
	"loongarch64": 258,
	"mips64":      8,
	"ppc64le":     21,
	"riscv64":     243,
}

// MachineOf returns the e_machine of a machine by its name in uname(2), 0 if
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
