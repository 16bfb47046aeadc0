// Package elfcore builds and reads the ELF core header that tells a capture
// kernel what the crashed kernel's memory holds and where each byte lies now.
//
// The layout is the one that both readers insist on: a 64-byte ELF64 header,
// little-endian, and program headers of 56 bytes directly after it, at offset
// 64. parse_crash_elf64_headers() in fs/proc/vmcore.c (v6.1 to v6.12) never
// looks at e_phoff and takes e_phnum literally; makedumpfile takes offset 64
// for granted too. There is no section header and no extended numbering
// (PN_XNUM).
//
//	offset  size  what
//	0       64    Elf64_Ehdr: ET_CORE, e_phoff 64, e_phnum n
//	64      56    Elf64_Phdr of note 0 (PT_NOTE), then of the other notes
//	...     56    Elf64_Phdr of load 0 (PT_LOAD), then of the other loads
//
// Invariants: p_paddr is the address that the crashed kernel knew, p_offset is
// the address where the capture kernel finds the bytes. They differ for boot
// memory that was copied to the destination. Parse and AppendBinary check the
// form only; Check says whether a header fits the memory that it describes.
package elfcore

import (
	"encoding/binary"
	"fmt"
	"io"
	"math/bits"
	"slices"
)

// Sizes in bytes, and caps.
const (
	EhdrSize = 64 // sizeof(Elf64_Ehdr)
	PhdrSize = 56 // sizeof(Elf64_Phdr)

	// MaxPhdrs is the most program headers, notes and loads together. 0xffff
	// is PN_XNUM, which fs/proc/vmcore.c would take for a count.
	MaxPhdrs = 0xfffe
	// MaxNoteSize caps one note segment that is written. The kernel copies
	// each with kmalloc(p_memsz) (update_note_header_size_elf64), which fails
	// for more than a few MiB and takes /proc/vmcore with it. The largest real
	// one is VMCOREINFO with 64 KiB pages.
	MaxNoteSize = 1 << 20
	// MaxNotes caps one note segment that is read: /proc/vmcore has the
	// notes of all CPUs in one segment, some 400 bytes for each CPU.
	MaxNotes = 64 << 20
)

// Fixed values in the ELF header and the program headers (ELF gABI).
const (
	magic     = "\x7fELF"
	class64   = 2
	dataLSB   = 1
	evCurrent = 1
	typeCore  = 4
	ptLoad    = 1
	ptNote    = 4
	flagsRWX  = 7
	alignNote = 4 // as merge_note_headers_elf64 writes it
	pnXNum    = 0xffff
)

// Load is one piece of the crashed kernel's memory (PT_LOAD). Unit: bytes.
type Load struct {
	Virt   uint64 // p_vaddr: where the crashed kernel mapped it; 0 if not known
	Phys   uint64 // p_paddr: its physical address in the crashed kernel
	Offset uint64 // p_offset: physical address where it lies now
	Size   uint64 // p_filesz and p_memsz
}

// Note is one buffer of ELF notes (PT_NOTE): a CPU's registers, or
// VMCOREINFO. Unit: bytes.
type Note struct {
	Phys   uint64 // p_paddr: its physical address in the crashed kernel
	Offset uint64 // p_offset: physical address where it lies now
	Size   uint64 // p_filesz and p_memsz: the buffer, used or not
}

// Header is an ELF core header.
type Header struct {
	Machine uint16 // e_machine: MachineAMD64 or MachineARM64
	Notes   []Note
	Loads   []Load
}

// FormatError says where the input doesn't follow the format.
type FormatError struct {
	Off     int64  // offset of the field in the input, in bytes
	Field   string // the field's name in the ELF specification
	Problem string // what it holds and what it should hold
}

func (e *FormatError) Error() string {
	return fmt.Sprintf("offset %d: %s: %s", e.Off, e.Field, e.Problem)
}

// BinarySize returns the number of bytes that AppendBinary appends.
func (h Header) BinarySize() int {
	return EhdrSize + PhdrSize*(len(h.Notes)+len(h.Loads))
}

// AppendBinary appends h in the layout of the package comment. It refuses what
// no reader accepts: no program header, more than MaxPhdrs, an empty or
// wrapping segment, a note above MaxNoteSize. On error it returns nil. See
// AppendWithNotes for a header that may have no notes.
func (h Header) AppendBinary(b []byte) ([]byte, error) {
	n := len(h.Notes) + len(h.Loads)
	if n == 0 || n > MaxPhdrs {
		return nil, fmt.Errorf("encode ELF core header: %d program headers, want 1 to %d", n, MaxPhdrs)
	}
	for i, s := range h.Notes {
		if s.Size == 0 || s.Size > MaxNoteSize {
			return nil, fmt.Errorf("encode ELF core header: note %d: size %#x, want 1 to %#x", i, s.Size, MaxNoteSize)
		}
		if wraps(s.Phys, s.Size) || wraps(s.Offset, s.Size) {
			return nil, fmt.Errorf("encode ELF core header: note %d: %+v wraps", i, s)
		}
	}
	for i, s := range h.Loads {
		if s.Size == 0 || wraps(s.Offset, s.Size) {
			return nil, fmt.Errorf("encode ELF core header: load %d: %+v is empty or wraps", i, s)
		}
	}
	le := binary.LittleEndian
	b = append(b, magic...)
	b = append(b, class64, dataLSB, evCurrent)
	b = append(b, make([]byte, 9)...) // ELFOSABI_NONE, padding
	b = le.AppendUint16(b, typeCore)
	b = le.AppendUint16(b, h.Machine)
	b = le.AppendUint32(b, evCurrent)
	b = le.AppendUint64(b, 0)        // e_entry
	b = le.AppendUint64(b, EhdrSize) // e_phoff
	b = le.AppendUint64(b, 0)        // e_shoff
	b = le.AppendUint32(b, 0)        // e_flags
	b = le.AppendUint16(b, EhdrSize)
	b = le.AppendUint16(b, PhdrSize)
	b = le.AppendUint16(b, uint16(n))
	b = append(b, make([]byte, 6)...) // e_shentsize, e_shnum, e_shstrndx
	for _, s := range h.Notes {
		b = appendPhdr(b, ptNote, alignNote, Load{Phys: s.Phys, Offset: s.Offset, Size: s.Size})
	}
	for _, s := range h.Loads {
		// p_align 0, "no constraint", as in the headers that
		// kexec_file_load builds (crash_prepare_elf64_headers in v6.12).
		b = appendPhdr(b, ptLoad, 0, s)
	}
	return b, nil
}

// AppendWithNotes appends h with one more PT_NOTE, whose notes, at least one,
// follow the program headers. at is the physical address that the first
// appended byte will have, a multiple of 4. Errors are those of AppendBinary
// and AppendNote.
//
// A header should always have a note that is known not to be empty: without a
// PT_NOTE, or with none but empty ones, the kernel allocates 0 bytes for
// the merged notes (merge_note_headers_elf64 in v6.12), fails, and there is no
// /proc/vmcore: Debian 6.1 says "Kdump: vmcore not initialized" and boots on. A
// kernel that died before it wrote VMCOREINFO leaves no other note.
func (h Header) AppendWithNotes(b []byte, at uint64, notes ...ELFNote) ([]byte, error) {
	var own []byte
	for _, n := range notes {
		var err error
		if own, err = AppendNote(own, n); err != nil {
			return nil, err
		}
	}
	own = AppendFinalNote(own)
	size := uint64(h.BinarySize() + PhdrSize)
	if at%4 != 0 || wraps(at, size+uint64(len(own))) {
		return nil, fmt.Errorf("encode ELF core header: address %#x is not aligned to 4, or its end wraps", at)
	}
	at += size
	h.Notes = append(slices.Clip(h.Notes), Note{Phys: at, Offset: at, Size: uint64(len(own))})
	b, err := h.AppendBinary(b)
	if err != nil {
		return nil, err
	}
	return append(b, own...), nil
}

func appendPhdr(b []byte, typ uint32, align uint64, s Load) []byte {
	le := binary.LittleEndian
	b = le.AppendUint32(b, typ)
	b = le.AppendUint32(b, flagsRWX)
	for _, v := range [...]uint64{s.Offset, s.Virt, s.Phys, s.Size, s.Size, align} {
		b = le.AppendUint64(b, v)
	}
	return b
}

// wraps says whether size bytes at addr go past 64 bits.
func wraps(addr, size uint64) bool {
	_, carry := bits.Add64(addr, size, 0)
	return carry != 0
}

// Read reads a header from the start of r: an ELF core header in memory,
// /proc/vmcore, an ELF dump, or /proc/kcore (whose loads that aren't RAM have
// Phys all ones). Errors are those of Parse, and those of r.
func Read(r io.ReaderAt) (Header, error) {
	b := make([]byte, EhdrSize)
	if n, err := r.ReadAt(b, 0); n < len(b) {
		return Header{}, fmt.Errorf("read ELF header: %w", err)
	}
	n, err := parseEhdr(b)
	if err != nil {
		return Header{}, fmt.Errorf("parse ELF header: %w", err)
	}
	b = append(b, make([]byte, n*PhdrSize)...)
	if got, err := r.ReadAt(b[EhdrSize:], EhdrSize); got < n*PhdrSize {
		return Header{}, fmt.Errorf("read %d program headers: %w", n, err)
	}
	return Parse(b)
}

// Parse reads a header from the start of b; what follows the program headers
// is ignored. A *FormatError says which field is wrong.
func Parse(b []byte) (Header, error) {
	n, err := parseEhdr(b)
	if err != nil {
		return Header{}, fmt.Errorf("parse ELF header: %w", err)
	}
	if have := (len(b) - EhdrSize) / PhdrSize; have < n {
		return Header{}, fmt.Errorf("parse ELF header: %w",
			&FormatError{56, "e_phnum", fmt.Sprintf("%d program headers, but bytes for %d only", n, have)})
	}
	le := binary.LittleEndian
	h := Header{Machine: le.Uint16(b[18:])}
	for i := range n {
		off := EhdrSize + i*PhdrSize
		p := b[off:][:PhdrSize]
		s := Load{Offset: le.Uint64(p[8:]), Virt: le.Uint64(p[16:]), Phys: le.Uint64(p[24:]), Size: le.Uint64(p[32:])}
		if err := h.add(le.Uint32(p), s, le.Uint64(p[40:]), int64(off)); err != nil {
			return Header{}, fmt.Errorf("parse program header %d: %w", i, err)
		}
	}
	return h, nil
}

// add appends one program header, read at off, to h.
func (h *Header) add(typ uint32, s Load, memSize uint64, off int64) error {
	if s.Size == 0 || wraps(s.Offset, s.Size) {
		return &FormatError{off + 32, "p_filesz", fmt.Sprintf("%#x bytes at %#x are none, or wrap", s.Size, s.Offset)}
	}
	switch typ {
	case ptNote:
		if s.Size > MaxNotes {
			return &FormatError{off + 32, "p_filesz", fmt.Sprintf("notes of %#x bytes, want at most %#x", s.Size, MaxNotes)}
		}
		// /proc/kcore leaves p_memsz of its note at 0 (fs/proc/kcore.c).
		if memSize != s.Size && memSize != 0 {
			return &FormatError{off + 40, "p_memsz", fmt.Sprintf("%#x, want p_filesz, %#x", memSize, s.Size)}
		}
		if wraps(s.Phys, s.Size) {
			return &FormatError{off + 24, "p_paddr", fmt.Sprintf("%#x bytes at %#x wrap", s.Size, s.Phys)}
		}
		h.Notes = append(h.Notes, Note{Phys: s.Phys, Offset: s.Offset, Size: s.Size})
	case ptLoad:
		if memSize != s.Size {
			return &FormatError{off + 40, "p_memsz", fmt.Sprintf("%#x, want p_filesz, %#x", memSize, s.Size)}
		}
		h.Loads = append(h.Loads, s)
	default:
		return &FormatError{off, "p_type", fmt.Sprintf("%#x, want PT_NOTE or PT_LOAD", typ)}
	}
	return nil
}

// parseEhdr checks the ELF header and returns the number of program headers.
func parseEhdr(b []byte) (phnum int, err error) {
	if len(b) < EhdrSize {
		return 0, &FormatError{0, "e_ident", fmt.Sprintf("%d bytes, want %d", len(b), EhdrSize)}
	}
	if string(b[:4]) != magic {
		return 0, &FormatError{0, "e_ident", fmt.Sprintf("magic % x, want % x", b[:4], magic)}
	}
	le := binary.LittleEndian
	for _, f := range []struct {
		off       int64
		name      string
		got, want uint64
	}{
		{4, "EI_CLASS", uint64(b[4]), class64},
		{5, "EI_DATA", uint64(b[5]), dataLSB},
		{6, "EI_VERSION", uint64(b[6]), evCurrent},
		{16, "e_type", uint64(le.Uint16(b[16:])), typeCore},
		{20, "e_version", uint64(le.Uint32(b[20:])), evCurrent},
		{32, "e_phoff", le.Uint64(b[32:]), EhdrSize},
		{52, "e_ehsize", uint64(le.Uint16(b[52:])), EhdrSize},
		{54, "e_phentsize", uint64(le.Uint16(b[54:])), PhdrSize},
	} {
		if f.got != f.want {
			return 0, &FormatError{f.off, f.name, fmt.Sprintf("%d, want %d", f.got, f.want)}
		}
	}
	switch n := le.Uint16(b[56:]); n {
	case 0:
		return 0, &FormatError{56, "e_phnum", "no program header"}
	case pnXNum:
		return 0, &FormatError{56, "e_phnum", "extended numbering, which the kernel doesn't read either"}
	default:
		return int(n), nil
	}
}
