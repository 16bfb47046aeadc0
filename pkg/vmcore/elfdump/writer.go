package elfdump

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"sort"

	"github.com/warmcore/warmcore/pkg/elfcore"
	"github.com/warmcore/warmcore/pkg/phys"
	"github.com/warmcore/warmcore/pkg/vmcore"
)

// Fixed values that elfcore doesn't need, because its headers are for the
// kernel.
const (
	typePTLoad = 1
	typePTNote = 4
	flagsRWX   = 7
)

// Layout says where in an ELF dump everything is. A load of which only some
// memory is in the file is cut into segments, each with memory that the file
// has, followed by memory that it doesn't have: p_filesz below p_memsz, as
// makedumpfile -E does it. Memory that several loads map is in the file once.
type Layout struct {
	machine  uint16
	notes    []byte
	segments []segment
	data     []phys.Range // that the file has, ascending
	offsets  []int64      // of data
	start    int64        // of the memory in the file
	size     int64
}

// segment is a PT_LOAD.
type segment struct {
	virt, phys, offset uint64
	fileSize, memSize  uint64
}

// NewLayout lays out a dump of loads with the memory in data, which is
// ascending, doesn't overlap, and begins and ends at multiples of pageSize; a
// reader finds only memory that is in loads, too. Notes are as in vmcore.Info;
// after them is room for a note of unreadable memory, which is known when all
// is read. TooManyError says that data has too many gaps.
func NewLayout(machine uint16, notes []byte, loads []vmcore.Load, data []phys.Range, pageSize uint64) (*Layout, error) {
	l, err := newLayout(machine, notes, loads, data, pageSize)
	if err != nil {
		return nil, fmt.Errorf("lay out ELF dump: %w", err)
	}
	return l, nil
}

// TooManyError says that there are more segments than an ELF header can count
// without extended numbering, which not every reader understands.
type TooManyError struct {
	Segments int
}

func (e *TooManyError) Error() string {
	return fmt.Sprintf("%d segments, want at most %d", e.Segments, elfcore.MaxPhdrs-1)
}

func newLayout(machine uint16, notes []byte, loads []vmcore.Load, data []phys.Range, pageSize uint64) (*Layout, error) {
	if pageSize == 0 || pageSize&(pageSize-1) != 0 {
		return nil, fmt.Errorf("page size %d is no power of two", pageSize)
	}
	l := &Layout{machine: machine, notes: notes, data: data}
	for i, r := range data {
		if r.Empty() || r.Start%pageSize != 0 || r.End%pageSize != 0 || i > 0 && r.Start < data[i-1].End {
			return nil, fmt.Errorf("memory %v is empty, not aligned or out of order", r)
		}
	}
	for _, load := range loads {
		r, ok := phys.Sized(load.Phys, load.Size)
		if !ok || r.Empty() {
			return nil, fmt.Errorf("load of %#x bytes at %#x is empty or wraps", load.Size, load.Phys)
		}
		l.cut(load, r)
	}
	if n := len(l.segments); n+1 > elfcore.MaxPhdrs {
		return nil, &TooManyError{n}
	}
	end := int64(elfcore.EhdrSize) + int64(elfcore.PhdrSize)*int64(len(l.segments)+1) + int64(len(notes)+vmcore.UnreadableNoteSize)
	start, ok := phys.AlignUp(uint64(end), pageSize)
	if !ok {
		return nil, errors.New("notes are too large")
	}
	l.start, l.size = int64(start), int64(start)
	for _, r := range data {
		l.offsets = append(l.offsets, l.size)
		if l.size += int64(r.Size()); l.size < 0 {
			return nil, errors.New("more memory than a file can hold")
		}
	}
	for i := range l.segments {
		s := &l.segments[i]
		s.offset = start
		if s.fileSize > 0 {
			s.offset = uint64(l.Offset(s.phys))
		}
	}
	return l, nil
}

// cut appends the segments of a load.
func (l *Layout) cut(load vmcore.Load, r phys.Range) {
	add := func(has, all phys.Range) {
		l.segments = append(l.segments, segment{virt: virt(load, all.Start), phys: all.Start, fileSize: has.Size(), memSize: all.Size()})
	}
	i := sort.Search(len(l.data), func(i int) bool { return l.data[i].End > r.Start })
	at := r.Start
	for ; i < len(l.data) && l.data[i].Start < r.End; i++ {
		has := l.data[i].Intersect(r)
		if has.Start > at {
			add(phys.Range{}, phys.Range{Start: at, End: has.Start}) // before the first
		}
		end := r.End
		if i+1 < len(l.data) {
			end = min(end, l.data[i+1].Start)
		}
		add(has, phys.Range{Start: has.Start, End: end})
		at = end
	}
	if at < r.End {
		add(phys.Range{}, phys.Range{Start: at, End: r.End})
	}
}

// virt returns where load maps addr; 0 if that isn't known.
func virt(load vmcore.Load, addr uint64) uint64 {
	if load.Virt == 0 {
		return 0
	}
	return load.Virt + addr - load.Phys
}

// Size returns the size of the file in bytes.
func (l *Layout) Size() int64 { return l.size }

// Offset returns where in the file the memory at addr is; -1 if it isn't.
func (l *Layout) Offset(addr uint64) int64 {
	i := sort.Search(len(l.data), func(i int) bool { return l.data[i].End > addr })
	if i == len(l.data) || addr < l.data[i].Start {
		return -1
	}
	return l.offsets[i] + int64(addr-l.data[i].Start)
}

// WriteHeaders writes the ELF header, the program headers and the notes. Before
// they are written no reader takes the file for a dump; the memory must have
// been written before, each byte at its Offset. Unreadable is a
// vmcore.UnreadableText about memory that has zeroes instead, or nil.
func (l *Layout) WriteHeaders(dst io.WriterAt, unreadable []byte) error {
	notes, err := vmcore.AppendUnreadableNote(l.notes[:len(l.notes):len(l.notes)], unreadable)
	if err != nil {
		return err
	}
	if len(notes)-len(l.notes) > vmcore.UnreadableNoteSize {
		return fmt.Errorf("write ELF header: %d bytes name unreadable memory, want at most %d", len(unreadable), vmcore.MaxUnreadable)
	}
	le := binary.LittleEndian
	b := append([]byte("\x7fELF"), 2, 1, 1) // ELFCLASS64, ELFDATA2LSB, EV_CURRENT
	b = append(b, make([]byte, 9)...)
	b = le.AppendUint16(b, 4) // ET_CORE
	b = le.AppendUint16(b, l.machine)
	b = le.AppendUint32(b, 1)
	b = le.AppendUint64(b, 0)
	b = le.AppendUint64(b, elfcore.EhdrSize) // e_phoff
	b = le.AppendUint64(b, 0)
	b = le.AppendUint32(b, 0)
	b = le.AppendUint16(b, elfcore.EhdrSize)
	b = le.AppendUint16(b, elfcore.PhdrSize)
	b = le.AppendUint16(b, uint16(len(l.segments)+1))
	b = append(b, make([]byte, 6)...)
	at := uint64(elfcore.EhdrSize + elfcore.PhdrSize*(len(l.segments)+1))
	n := uint64(len(notes))
	b = appendPhdr(b, typePTNote, 0, segment{offset: at, fileSize: n, memSize: n})
	for _, s := range l.segments {
		b = appendPhdr(b, typePTLoad, flagsRWX, s)
	}
	b = append(b, notes...)
	// Fill the rest of the room with zeroes, in the flattened form, too:
	// crash(8) takes that for cut off if it is smaller than the file.
	b = append(b, make([]byte, l.start-int64(len(b)))...)
	if _, err := dst.WriteAt(b[elfcore.EhdrSize:], elfcore.EhdrSize); err != nil {
		return fmt.Errorf("write program headers: %w", err)
	}
	if _, err := dst.WriteAt(b[:elfcore.EhdrSize], 0); err != nil {
		return fmt.Errorf("write ELF header: %w", err)
	}
	return nil
}

func appendPhdr(b []byte, typ, flags uint32, s segment) []byte {
	le := binary.LittleEndian
	b = le.AppendUint32(b, typ)
	b = le.AppendUint32(b, flags)
	for _, v := range [...]uint64{s.offset, s.virt, s.phys, s.fileSize, s.memSize, 0} {
		b = le.AppendUint64(b, v)
	}
	return b
}
