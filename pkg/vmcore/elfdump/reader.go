// Package elfdump reads and writes dumps that are ELF core files:
// /proc/vmcore, and the dumps of makedumpfile -E and QEMU.
//
// Only 64-bit little-endian files are understood. The program headers may lie
// anywhere and be more than 65534 (extended numbering: e_phnum is PN_XNUM and
// sh_info of section header 0 has the number). Segments may overlap in
// physical memory: the kernel's text is part of the direct map, too, and both
// show the same bytes.
//
// Invariants: a file is hostile; the memory for reading one is bounded by
// MaxSegments and by the size of its headers. A segment that makes no sense,
// or lies past the end of the file, costs that segment and a warning, not the
// dump. Memory between p_filesz and p_memsz is Excluded: makedumpfile -E
// leaves pages out in this way, and they need not have been zero. Memory that
// the file names as Unreadable is not read, though the file has zeroes in its
// place.
package elfdump

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"

	"github.com/warmcore/warmcore/pkg/elfcore"
	"github.com/warmcore/warmcore/pkg/phys"
	"github.com/warmcore/warmcore/pkg/vmcore"
)

// Magic begins the file.
const Magic = "\x7fELF"

// MaxSegments is the most program headers: 4 Ti pages in pieces of 4 Mi.
const MaxSegments = 1 << 20

const (
	phnumExtended = 0xffff // PN_XNUM: the number is in sh_info of section header 0
	ptLoad        = 1
	ptNote        = 4
	shdrSize      = 64 // sizeof(Elf64_Shdr)
	batch         = 1024
)

var le = binary.LittleEndian

// Dump is an opened ELF core file.
type Dump struct {
	r    io.ReaderAt
	size int64
	info vmcore.Info
	// held is the memory that the file holds, sorted and disjoint.
	held []piece
	// cut is the memory that the file would hold if it were as long as its
	// headers say, described is all memory that they describe. Both
	// overlap held.
	cut, described phys.Set
}

// piece is memory that is contiguous in the file.
type piece struct {
	phys.Range
	off int64
}

// mapped is a Dump in a file that is mapped, which makes it a vmcore.Viewer.
type mapped struct {
	Dump
	file vmcore.FileViewer
}

// New reads the headers of the file in r, of size bytes. The result is a
// vmcore.Viewer if r is a vmcore.FileViewer. The error is a
// *vmcore.FormatError if the headers can't be understood.
func New(r io.ReaderAt, size int64) (vmcore.Dump, error) {
	d := Dump{r: r, size: size, info: vmcore.Info{Format: "elf", Level: vmcore.LevelUnknown, Compression: "none"}}
	if err := d.open(); err != nil {
		return nil, fmt.Errorf("open ELF dump: %w", err)
	}
	if f, ok := r.(vmcore.FileViewer); ok {
		return &mapped{d, f}, nil
	}
	return &d, nil
}

// Info implements vmcore.Dump.
func (d *Dump) Info() *vmcore.Info { return &d.info }

func (d *Dump) open() error {
	b := make([]byte, elfcore.EhdrSize)
	if n, err := d.r.ReadAt(b, 0); n < len(b) {
		return fmt.Errorf("read ELF header: %w", err)
	}
	phoff, phnum, err := d.parseEhdr(b)
	if err != nil {
		return err
	}
	var loads []load
	headers := make([]byte, min(phnum, batch)*elfcore.PhdrSize)
	for i := 0; i < phnum; i += batch {
		part := headers[:min(phnum-i, batch)*elfcore.PhdrSize]
		off := phoff + int64(i)*elfcore.PhdrSize
		if n, err := d.r.ReadAt(part, off); n < len(part) {
			return fmt.Errorf("read program headers %d to %d at offset %#x: %w", i, i+len(part)/elfcore.PhdrSize-1, off, err)
		}
		for ; len(part) > 0; part = part[elfcore.PhdrSize:] {
			if l, ok := d.segment(part, off); ok {
				loads = append(loads, l)
			}
			off += elfcore.PhdrSize
		}
	}
	if len(loads) == 0 {
		return &vmcore.FormatError{Off: phoff, Field: "p_type", Problem: "no PT_LOAD that can be used: no memory is described"}
	}
	d.info.ReadNotes(nil)
	d.lay(loads)
	d.info.Uname.Machine = vmcore.MachineName(d.info.Machine)
	return nil
}

// parseEhdr reads the ELF header and returns where the program headers are.
func (d *Dump) parseEhdr(b []byte) (phoff int64, phnum int, err error) {
	bad := func(off int64, field, format string, args ...any) error {
		return &vmcore.FormatError{Off: off, Field: field, Problem: fmt.Sprintf(format, args...)}
	}
	switch {
	case string(b[:4]) != Magic:
		return 0, 0, bad(0, "e_ident", "magic % x, want % x", b[:4], Magic)
	case b[4] != 2 && b[4] != 1:
		return 0, 0, bad(4, "EI_CLASS", "%d, want 2: only 64-bit files are understood", b[4])
	case b[5] == 2:
		return 0, 0, bad(5, "EI_DATA", "big-endian, from %s; want little-endian", named(binary.BigEndian.Uint16(b[18:])))
	case b[4] == 1:
		return 0, 0, bad(4, "EI_CLASS", "1, the file of a 32-bit machine, %s: only 64-bit files are understood", named(le.Uint16(b[18:])))
	case b[5] != 1:
		return 0, 0, bad(5, "EI_DATA", "%d, want 1, little-endian", b[5])
	case le.Uint16(b[16:]) != 4:
		return 0, 0, bad(16, "e_type", "%d, want 4, a core file", le.Uint16(b[16:]))
	}
	d.info.Machine = le.Uint16(b[18:])
	off, n := le.Uint64(b[32:]), uint64(le.Uint16(b[56:]))
	if n == phnumExtended {
		if n, err = d.extendedCount(le.Uint64(b[40:])); err != nil {
			return 0, 0, err
		}
	}
	if n == 0 || n > MaxSegments {
		return 0, 0, bad(56, "e_phnum", "%d program headers, want 1 to %d", n, MaxSegments)
	}
	if size := le.Uint16(b[54:]); size != elfcore.PhdrSize {
		return 0, 0, bad(54, "e_phentsize", "%d, want %d", size, elfcore.PhdrSize)
	}
	if end := n * elfcore.PhdrSize; off > uint64(d.size) || end > uint64(d.size)-off {
		return 0, 0, bad(32, "e_phoff", "%d program headers at %#x, but the file ends at %#x", n, off, d.size)
	}
	return int64(off), int(n), nil
}

// named returns, for messages, a machine whose files are not understood.
func named(machine uint16) string {
	names := map[uint16]string{
		2: "SPARC", 3: "i386", 4: "m68k", 8: "MIPS", 15: "PA-RISC", 20: "PowerPC", 21: "PowerPC", 22: "s390x", 40: "ARM", 42: "SuperH", 43: "SPARC", 243: "RISC-V",
	}
	if name, ok := names[machine]; ok {
		return name
	}
	return fmt.Sprintf("e_machine %d", machine)
}

// extendedCount reads the number of program headers from section header 0.
func (d *Dump) extendedCount(shoff uint64) (uint64, error) {
	if shoff == 0 || shoff > math.MaxInt64-shdrSize {
		return 0, &vmcore.FormatError{Off: 40, Field: "e_shoff", Problem: fmt.Sprintf("%#x, want a section header that has the number of program headers", shoff)}
	}
	b := make([]byte, shdrSize)
	if n, err := d.r.ReadAt(b, int64(shoff)); n < len(b) {
		return 0, fmt.Errorf("read section header at offset %#x: %w", shoff, err)
	}
	return uint64(le.Uint32(b[44:])), nil
}

// load is a PT_LOAD that makes sense.
type load struct {
	phys.Range
	off    int64
	inFile uint64 // bytes
}

// segment reads the program header p, which is at off. It keeps notes and
// loads; ok is true for a load.
func (d *Dump) segment(p []byte, off int64) (l load, ok bool) {
	typ, at, virt, addr := le.Uint32(p), le.Uint64(p[8:]), le.Uint64(p[16:]), le.Uint64(p[24:])
	inFile, size := le.Uint64(p[32:]), le.Uint64(p[40:])
	if typ != ptLoad && typ != ptNote || max(inFile, size) == 0 {
		return load{}, false
	}
	warn := func(field, format string, args ...any) {
		d.info.Warn((&vmcore.FormatError{Off: off, Field: field, Problem: fmt.Sprintf(format, args...)}).Error())
	}
	switch end := at + inFile; {
	case end < at || end > math.MaxInt64:
		warn("p_filesz", "%#x bytes at %#x are no place in a file: segment left out", inFile, at)
		return load{}, false
	case end > uint64(d.size):
		warn("p_filesz", "%#x bytes at %#x reach past the end of the file at %#x: it was cut off", inFile, at, d.size)
	}
	if typ == ptNote {
		d.notes(int64(at), inFile)
		return load{}, false
	}
	if inFile > size {
		warn("p_memsz", "%#x, less than p_filesz, %#x", size, inFile)
		size = inFile
	}
	r, fits := phys.Sized(addr, size)
	if !fits {
		warn("p_paddr", "%#x bytes at %#x wrap: segment left out", size, addr)
		return load{}, false
	}
	d.info.Loads = append(d.info.Loads, vmcore.Load{Virt: virt, Phys: addr, Size: size})
	return load{r, int64(at), inFile}, true
}

// notes reads a PT_NOTE.
func (d *Dump) notes(at int64, size uint64) {
	size = min(size, uint64(max(0, d.size-at)))
	if size > vmcore.MaxNotes {
		d.info.Warn(fmt.Sprintf("notes of %d bytes at offset %#x are left out: more than %d", size, at, vmcore.MaxNotes))
		return
	}
	b := make([]byte, size)
	if n, err := d.r.ReadAt(b, at); n < len(b) {
		d.info.Warn(fmt.Sprintf("read notes at offset %#x: %v", at, err))
		return
	}
	before := len(d.info.Warnings)
	d.info.AddNotes(b)
	for i := before; i < len(d.info.Warnings); i++ { // its offsets are in b
		d.info.Warnings[i] = fmt.Sprintf("notes at offset %#x: %s", at, d.info.Warnings[i])
	}
}

// lay makes disjoint pieces of loads. If several loads hold the same memory,
// the one that starts first is used; they show the same bytes.
func (d *Dump) lay(loads []load) {
	var described, cut []phys.Range
	for i := range loads {
		l := &loads[i]
		described = append(described, l.Range)
		if there := uint64(max(0, d.size-l.off)); l.inFile > there {
			cut = append(cut, phys.Range{Start: l.Start + there, End: l.Start + l.inFile})
			l.inFile = there
		}
	}
	d.described, d.cut = phys.NewSet(described...), phys.NewSet(cut...)
	d.info.Memory = d.described
	slices.SortStableFunc(loads, func(a, b load) int { return cmp.Compare(a.Start, b.Start) })
	var end uint64
	for _, l := range loads {
		p := piece{phys.Range{Start: max(l.Start, end), End: l.Start + l.inFile}, l.off}
		if p.Empty() {
			continue
		}
		p.off += int64(p.Start - l.Start)
		end = p.End
		if n := len(d.held); n > 0 && d.held[n-1].End == p.Start && d.held[n-1].off+int64(d.held[n-1].Size()) == p.off {
			d.held[n-1].End = p.End
			continue
		}
		d.held = append(d.held, p)
	}
	d.leaveOutUnreadable()
}

// leaveOutUnreadable takes memory that the file names as unreadable out of
// d.held.
func (d *Dump) leaveOutUnreadable() {
	if len(d.info.Unreadable) == 0 {
		return
	}
	all := d.held
	d.held = nil
	for _, p := range all {
		for rest := p.Range; !rest.Empty(); {
			part, named := d.info.NamedUnreadable(rest)
			if !named {
				d.held = append(d.held, piece{part, p.off + int64(part.Start-p.Start)})
			}
			rest.Start = part.End
		}
	}
}

// find returns the piece that holds addr, or else the next one; ok is false
// after the last.
func (d *Dump) find(addr uint64) (p piece, ok bool) {
	i, _ := slices.BinarySearchFunc(d.held, addr, func(p piece, addr uint64) int { return before(p.Range, addr) })
	if i == len(d.held) {
		return piece{}, false
	}
	return d.held[i], true
}

// before is negative if all of r is before addr, else positive.
func before(r phys.Range, addr uint64) int {
	if r.End <= addr {
		return -1
	}
	return 1
}

// starts says whether s holds the first byte of r. The result is the part of
// r up to where the answer changes.
func starts(s phys.Set, r phys.Range) (part phys.Range, in bool) {
	i, _ := slices.BinarySearchFunc(s, r.Start, before)
	switch {
	case i == len(s):
		return r, false
	case s[i].Start > r.Start:
		return phys.Range{Start: r.Start, End: min(r.End, s[i].Start)}, false
	}
	return phys.Range{Start: r.Start, End: min(r.End, s[i].End)}, true
}

var errCutOff = errors.New("the file ends before it")

// missing returns why the first byte of r is not in the file, and how far
// that reason goes.
func (d *Dump) missing(r phys.Range) error {
	if p, ok := d.find(r.Start); ok {
		r.End = min(r.End, p.Start)
	}
	r, named := d.info.NamedUnreadable(r)
	if named {
		return &vmcore.MissingError{Range: r, Reason: vmcore.Unreadable, Err: vmcore.ErrNamed}
	}
	r, cut := starts(d.cut, r)
	if cut {
		return &vmcore.MissingError{Range: r, Reason: vmcore.Unreadable, Err: errCutOff}
	}
	r, described := starts(d.described, r)
	if !described {
		return &vmcore.MissingError{Range: r, Reason: vmcore.Hole}
	}
	return &vmcore.MissingError{Range: r, Reason: vmcore.Excluded}
}

// walk calls read for each part of r that is contiguous in the file. If read
// fails, it also returns the range that its error is about.
func (d *Dump) walk(r phys.Range, read func(part phys.Range, off int64) (bad phys.Range, err error)) error {
	for !r.Empty() {
		p, ok := d.find(r.Start)
		if !ok || p.Start > r.Start {
			return d.missing(r)
		}
		part := r.Intersect(p.Range)
		if bad, err := read(part, p.off+int64(part.Start-p.Start)); err != nil {
			return &vmcore.MissingError{Range: bad, Reason: vmcore.Unreadable, Err: err}
		}
		r.Start = part.End
	}
	return nil
}

func wraps(p []byte, addr uint64) error {
	if _, ok := phys.Sized(addr, uint64(len(p))); !ok {
		return &vmcore.MissingError{Range: phys.Range{Start: addr, End: math.MaxUint64}, Reason: vmcore.Hole}
	}
	return nil
}

// ReadPhys implements vmcore.Dump.
func (d *Dump) ReadPhys(p []byte, addr uint64) error {
	if err := wraps(p, addr); err != nil {
		return err
	}
	return d.walk(phys.Range{Start: addr, End: addr + uint64(len(p))}, func(part phys.Range, off int64) (phys.Range, error) {
		b := p[part.Start-addr:][:part.Size()]
		// ReadAt may have stopped long before the page that can't be
		// read.
		for n, _ := d.r.ReadAt(b, off); n < len(b); {
			at := part.Start + uint64(n)
			page := phys.Range{Start: at, End: min(part.End, phys.AlignDown(at, d.info.PageSize)+d.info.PageSize)}
			got, err := d.r.ReadAt(b[n:][:page.Size()], off+int64(n))
			if uint64(got) < page.Size() {
				return page, cmp.Or(err, io.ErrUnexpectedEOF)
			}
			n += got
		}
		return phys.Range{}, nil
	})
}

// View implements vmcore.Viewer.
func (d *mapped) View(r phys.Range, f func(b []byte)) error {
	return d.walk(r, func(part phys.Range, off int64) (phys.Range, error) {
		bad := phys.Range{Start: part.Start, End: part.Start}
		err := d.file.ViewAt(off, int64(part.Size()), func(b []byte) {
			bad = phys.Range{Start: bad.End, End: bad.End + uint64(len(b))}
			f(b)
		})
		if bad.Empty() {
			bad = part // f has not been called
		}
		return bad, err
	})
}

// HeldSize implements vmcore.Counter.
func (d *Dump) HeldSize() (uint64, error) {
	var n uint64
	for _, p := range d.held {
		n += p.Size()
	}
	return n, nil
}
