// Package kdump reads and writes kdump-compressed dump files, the format of
// makedumpfile, crash(8) and QEMU. It is described in "The kdump-compressed
// format" of makedumpfile's IMPLEMENTATION. All words are little-endian; only
// files of 64-bit machines are understood.
//
// Of the erase information, which can be anywhere, only the lines that name
// unreadable memory count, see vmcore.NameUnreadable.
//
//	block               what
//	0                   Header, 464 bytes
//	1                   SubHeader, 104 bytes; after it, anywhere before the
//	                    bitmaps, VMCOREINFO and notes
//	1+SubBlocks         1st bitmap: a bit for each page that is memory
//	  +BitmapBlocks/2   2nd bitmap: a bit for each page that is in the file
//	1+SubBlocks+BitmapBlocks
//	                    page descriptors of 24 bytes, one for each bit of the
//	                    2nd bitmap, in the order of the bits
//	after these         the pages, anywhere, in any order, also several
//	                    descriptors on the same bytes
//
// A page is memory of the size of a block, which need not be the size of the
// crashed kernel's pages. Bit n of a bitmap is bit n%8 of byte n/8 and stands
// for the page of PFN n, a physical address divided by the block size. Each file of a split dump has the bitmaps
// of the whole dump, and the descriptors of its pages only.
//
// Invariants: a file is hostile. New keeps no bitmap in memory, reads them
// and the descriptors in pieces when they are needed, and takes memory that
// depends on constants of this package and a little on the size of the
// bitmaps that the file really has. A page that can't be had is a
// *vmcore.MissingError, and says nothing about other pages.
package kdump

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/bits"
	"strings"

	"github.com/warmcore/warmcore/pkg/vmcore"
)

// Signature begins the file.
const Signature = "KDUMP   "

// MaxVersion is the newest header version that is known: it moved the number
// of pages from a 32-bit to a 64-bit field.
const MaxVersion = 6

// Sizes of structures on 64-bit machines, in bytes.
const (
	HeaderSize    = 464 // struct disk_dump_header
	SubHeaderSize = 104 // struct kdump_sub_header
	DescSize      = 24  // struct page_desc
)

// Caps.
const (
	MinBlockSize = 4 << 10
	MaxBlockSize = 256 << 10
	// MaxPages is one more than the largest PFN: 1 PiB of 4 KiB pages.
	MaxPages = 1 << 38
	// MaxNotes caps the notes, in bytes.
	MaxNotes = vmcore.MaxNotes
	// MaxVMCOREINFO caps VMCOREINFO, in bytes: one page.
	MaxVMCOREINFO = 64 << 10
	// maxErase caps erase information, in bytes: a line for each symbol that
	// makedumpfile erased.
	maxErase = 1 << 20
)

// Flags of Header.Status and, those of compression, of Desc.Flags
// (DUMP_DH_COMPRESSED_* and others in makedumpfile's diskdump_mod.h).
const (
	FlagZlib            uint32 = 1 << 0
	FlagLZO             uint32 = 1 << 1
	FlagSnappy          uint32 = 1 << 2
	FlagIncomplete      uint32 = 1 << 3 // of the file: writing it was not finished
	FlagExcludedVmemmap uint32 = 1 << 4 // of the file: page structures were left out
	FlagZstd            uint32 = 1 << 5

	codecFlags = FlagZlib | FlagLZO | FlagSnappy | FlagZstd
)

// Codec is how a page is compressed: a FlagZlib, FlagLZO, FlagSnappy,
// FlagZstd, or 0 for a page as it is.
type Codec uint32

// CodecOf returns the codec among flags; ok is false if there are several.
func CodecOf(flags uint32) (c Codec, ok bool) {
	return Codec(flags & codecFlags), bits.OnesCount32(flags&codecFlags) <= 1
}

func (c Codec) String() string {
	switch uint32(c) {
	case 0:
		return "none"
	case FlagZlib:
		return "zlib"
	case FlagLZO:
		return "lzo"
	case FlagSnappy:
		return "snappy"
	case FlagZstd:
		return "zstd"
	}
	return fmt.Sprintf("codec %#x", uint32(c))
}

// Header is struct disk_dump_header. Blocks are of BlockSize bytes.
//
//	offset  size  field
//	0       8     signature
//	8       4     header_version
//	12      6*65  struct new_utsname: sysname, nodename, release, version,
//	              machine, domainname, each ended by NUL
//	402     6     padding
//	408     16    timestamp: seconds and microseconds since 1970
//	424     4     status: flags
//	428     4     block_size: that of a page in this file
//	432     4     sub_hdr_size: in blocks
//	436     4     bitmap_blocks: of both bitmaps
//	440     4     max_mapnr: obsolete since version 6
//	444     4     total_ram_blocks
//	448     4     device_blocks
//	452     4     written_blocks
//	456     4     current_cpu
//	460     4     nr_cpus
type Header struct {
	Version       int32
	Uname         vmcore.Uname
	Seconds       int64
	Micros        int64
	Status        uint32
	BlockSize     uint32
	SubBlocks     uint32
	BitmapBlocks  uint32
	MaxMapNr32    uint32 // pages that a bitmap stands for; the low 32 bits of SubHeader.MaxMapNr
	TotalRAM      uint32
	DeviceBlocks  uint32
	WrittenBlocks uint32
	CurrentCPU    uint32
	CPUs          int32
}

const unameField = 65 // __NEW_UTS_LEN + 1 (include/uapi/linux/utsname.h)

var le = binary.LittleEndian

func (h *Header) names() []*string {
	u := &h.Uname
	return []*string{&u.Sysname, &u.Nodename, &u.Release, &u.Version, &u.Machine, &u.Domain}
}

func (h *Header) words() []*uint32 {
	return []*uint32{&h.Status, &h.BlockSize, &h.SubBlocks, &h.BitmapBlocks, &h.MaxMapNr32,
		&h.TotalRAM, &h.DeviceBlocks, &h.WrittenBlocks, &h.CurrentCPU}
}

// AppendBinary appends the HeaderSize bytes of h. Names longer than 64 bytes
// are cut.
func (h Header) AppendBinary(b []byte) []byte {
	b = append(b, Signature...)
	b = le.AppendUint32(b, uint32(h.Version))
	for _, name := range h.names() {
		var field [unameField]byte
		copy(field[:unameField-1], *name)
		b = append(b, field[:]...)
	}
	b = append(b, make([]byte, 6)...)
	b = le.AppendUint64(b, uint64(h.Seconds))
	b = le.AppendUint64(b, uint64(h.Micros))
	for _, w := range h.words() {
		b = le.AppendUint32(b, *w)
	}
	return le.AppendUint32(b, uint32(h.CPUs))
}

// ParseHeader reads a header from the start of b. Errors are
// *vmcore.FormatError; only fields whose value would make a reader fail or
// take too much memory are checked.
func ParseHeader(b []byte) (Header, error) {
	if len(b) < HeaderSize {
		return Header{}, fmt.Errorf("parse header: %w", &vmcore.FormatError{Field: "signature", Problem: fmt.Sprintf("%d bytes, want at least %d", len(b), HeaderSize)})
	}
	if string(b[:8]) != Signature {
		return Header{}, fmt.Errorf("parse header: %w", &vmcore.FormatError{Field: "signature", Problem: fmt.Sprintf("%.8q, want %q", b, Signature)})
	}
	h := Header{
		Version: int32(le.Uint32(b[8:])),
		Seconds: int64(le.Uint64(b[408:])),
		Micros:  int64(le.Uint64(b[416:])),
		CPUs:    int32(le.Uint32(b[460:])),
	}
	for i, name := range h.names() {
		field := b[12+i*unameField:][:unameField]
		text, _, _ := bytes.Cut(field, []byte{0})
		*name = strings.ToValidUTF8(string(text), "?")
	}
	for i, w := range h.words() {
		*w = le.Uint32(b[424+4*i:])
	}
	if err := h.check32(b); err != nil {
		return Header{}, fmt.Errorf("parse header: %w", err)
	}
	if err := h.check(); err != nil {
		return Header{}, fmt.Errorf("parse header: %w", err)
	}
	return h, nil
}

// check32 finds out the file of a 32-bit machine, b: its header has a shorter
// padding and timestamp, so that block_size is at 416. At 428 it has the number
// of pages, which may be a valid block_size, too.
func (h Header) check32(b []byte) error {
	// At 420 is sub_hdr_size there, and here half of the microseconds, which is 0.
	if !validBlockSize(le.Uint32(b[416:])) || le.Uint32(b[420:]) == 0 || validBlockSize(h.BlockSize) && vmcore.MachineOf(h.Uname.Machine) != 0 {
		return nil
	}
	return &vmcore.FormatError{Off: 416, Field: "block_size", Problem: fmt.Sprintf("the file of a 32-bit machine, %q: only files of 64-bit machines are understood", h.Uname.Machine)}
}

func validBlockSize(n uint32) bool {
	return n >= MinBlockSize && n <= MaxBlockSize && bits.OnesCount32(n) == 1
}

func (h Header) check() error {
	bad := func(off int64, field, format string, args ...any) error {
		return &vmcore.FormatError{Off: off, Field: field, Problem: fmt.Sprintf(format, args...)}
	}
	if swapped := bits.ReverseBytes32(uint32(h.Version)); h.Version > MaxVersion && swapped <= MaxVersion {
		return bad(8, "header_version", "%d in big-endian byte order, the file of machine %q: want little-endian", swapped, h.Uname.Machine)
	}
	if h.Version < 1 || h.Version > MaxVersion {
		return bad(8, "header_version", "%d, want 1 to %d", h.Version, MaxVersion)
	}
	if !validBlockSize(h.BlockSize) {
		return bad(428, "block_size", "%d, want a power of two from %d to %d", h.BlockSize, MinBlockSize, MaxBlockSize)
	}
	if h.SubBlocks == 0 {
		return bad(432, "sub_hdr_size", "0 blocks, want at least 1")
	}
	if h.BitmapBlocks == 0 || h.BitmapBlocks%2 != 0 {
		return bad(436, "bitmap_blocks", "%d, want an even number, for two bitmaps", h.BitmapBlocks)
	}
	return nil
}

// BitmapOffset returns the offset of the 1st bitmap in bytes.
func (h Header) BitmapOffset() int64 {
	return (1 + int64(h.SubBlocks)) * int64(h.BlockSize)
}

// BitmapSize returns the size of one bitmap in bytes.
func (h Header) BitmapSize() int64 {
	return int64(h.BitmapBlocks/2) * int64(h.BlockSize)
}

// DescOffset returns the offset of the first page descriptor in bytes.
func (h Header) DescOffset() int64 {
	return h.BitmapOffset() + 2*h.BitmapSize()
}

// SubHeader is struct kdump_sub_header. PFNs are in pages, all else in bytes.
// Fields that a file's header version doesn't have yet are zero.
//
//	offset  size  field                 since version
//	0       8     phys_base
//	8       4     dump_level            1
//	12      4     split                 2
//	16      8     start_pfn             2, obsolete since 6
//	24      8     end_pfn               2, obsolete since 6
//	32      8     offset_vmcoreinfo     3
//	40      8     size_vmcoreinfo       3
//	48      8     offset_note           4
//	56      8     size_note             4
//	64      8     offset_eraseinfo      5
//	72      8     size_eraseinfo        5
//	80      8     start_pfn_64          6
//	88      8     end_pfn_64            6
//	96      8     max_mapnr_64          6
type SubHeader struct {
	PhysBase             uint64 // x86-64: physical address of the kernel's text mapping
	Level                int32
	Split                int32  // 1 in the files of a split dump
	StartPFN, EndPFN     uint64 // of the pages in this file, if Split
	VMCOREINFOOffset     uint64
	VMCOREINFOSize       uint64
	NoteOffset, NoteSize uint64 // all notes, VMCOREINFO's too
	EraseOffset          uint64
	EraseSize            uint64
	MaxMapNr             uint64 // pages that a bitmap stands for
}

// AppendBinary appends the SubHeaderSize bytes of s in version 6, with the
// obsolete fields as makedumpfile fills them.
func (s SubHeader) AppendBinary(b []byte) []byte {
	b = le.AppendUint64(b, s.PhysBase)
	b = le.AppendUint32(b, uint32(s.Level))
	b = le.AppendUint32(b, uint32(s.Split))
	for _, w := range []uint64{s.StartPFN, s.EndPFN, s.VMCOREINFOOffset, s.VMCOREINFOSize,
		s.NoteOffset, s.NoteSize, s.EraseOffset, s.EraseSize, s.StartPFN, s.EndPFN, s.MaxMapNr} {
		b = le.AppendUint64(b, w)
	}
	return b
}

// ParseSubHeader reads the sub header of a file with header h from the start
// of b. Offsets and sizes in it are as the file has them, unchecked.
func ParseSubHeader(b []byte, h Header) (SubHeader, error) {
	if len(b) < SubHeaderSize {
		return SubHeader{}, fmt.Errorf("parse sub header: %w",
			&vmcore.FormatError{Off: int64(h.BlockSize), Field: "phys_base", Problem: fmt.Sprintf("%d bytes, want %d", len(b), SubHeaderSize)})
	}
	word := func(off int, since int32) uint64 {
		if h.Version < since {
			return 0
		}
		return le.Uint64(b[off:])
	}
	s := SubHeader{
		PhysBase:         word(0, 1),
		Level:            int32(le.Uint32(b[8:])),
		StartPFN:         word(16, 2),
		EndPFN:           word(24, 2),
		VMCOREINFOOffset: word(32, 3),
		VMCOREINFOSize:   word(40, 3),
		NoteOffset:       word(48, 4),
		NoteSize:         word(56, 4),
		EraseOffset:      word(64, 5),
		EraseSize:        word(72, 5),
		MaxMapNr:         uint64(h.MaxMapNr32),
	}
	if h.Version >= 2 {
		s.Split = int32(le.Uint32(b[12:]))
	}
	if h.Version >= 6 {
		s.StartPFN, s.EndPFN, s.MaxMapNr = le.Uint64(b[80:]), le.Uint64(b[88:]), le.Uint64(b[96:])
	}
	return s, nil
}

// Desc is struct page_desc: where a page lies.
//
//	offset  size  field
//	0       8     offset: in the file
//	8       4     size: in the file
//	12      4     flags: how it is compressed
//	16      8     page_flags: 0
type Desc struct {
	Offset    uint64
	Size      uint32
	Flags     uint32
	PageFlags uint64
}

// AppendBinary appends the DescSize bytes of d.
func (d Desc) AppendBinary(b []byte) []byte {
	b = le.AppendUint64(b, d.Offset)
	b = le.AppendUint32(b, d.Size)
	b = le.AppendUint32(b, d.Flags)
	return le.AppendUint64(b, d.PageFlags)
}

// ParseDesc reads a descriptor from the first DescSize bytes of b, which must
// be there.
func ParseDesc(b []byte) Desc {
	return Desc{le.Uint64(b), le.Uint32(b[8:]), le.Uint32(b[12:]), le.Uint64(b[16:])}
}
