package vmcoreinfo

import (
	"encoding/binary"
	"fmt"

	"github.com/warmcore/warmcore/pkg/phys"
)

// The note's form: kernel/vmcore_info.c in v6.12 writes namesz 11, descsz,
// type 0, "VMCOREINFO" padded to 12 bytes, the text, and the empty note that
// ends the buffer (final_note).
const (
	noteName   = "VMCOREINFO\x00"
	noteHeader = 12 + 12
	noteEnd    = 12
)

// Bounds of the search.
const (
	// MaxCandidates is how many accepted notes Find returns.
	MaxCandidates = 256

	chunkSize = 1 << 20
	// maxFailedReads is how many failed reads Find follows up page by page;
	// after that a hole is skipped a chunk at a time.
	maxFailedReads = 4096
)

// Candidate is a VMCOREINFO note found in memory.
type Candidate struct {
	Addr uint64 // physical address of the note's header, page aligned
	Size uint64 // in bytes, with the empty note that follows: what a PT_NOTE must cover
	Info *Info
}

// Hole is memory that could not be read.
type Hole struct {
	Range phys.Range
	Err   error
}

// Result is what Find found.
type Result struct {
	Candidates []Candidate // in the order of their addresses
	Dropped    int         // accepted notes beyond MaxCandidates
	Holes      []Hole      // memory in the ranges that was not searched
}

// Find looks for VMCOREINFO notes in ranges and returns those for which accept
// returns true. The kernel allocates the note with alloc_pages_exact
// (crash_save_vmcoreinfo_init in v6.12), so only page starts are looked at;
// memory is read a MiB at a time. There may be several: each boot leaves one,
// and until something else is written there it stays. A nil accept accepts
// all. An accept that calls kernelmap.Read accepts only notes of kernels whose
// page tables are intact.
//
// A kernel that dies before subsys_initcall has written no note, and then the
// note, tables and text of the boot before may still be intact: Debian 6.1,
// stopped 0.3 s into its second boot, was found with the first boot's note,
// and kernelmap.Read agreed with it. Before a kernel is started, the headers
// of the notes that Find returns must therefore be overwritten, unless a dump
// still needs them.
//
// A kernel's own note is text only, so a note that Parse accepts only in part
// is not counted. Memory that can't be read is skipped and named in Holes. A
// page that only begins like a note is not counted either. So there is no
// error to return.
func Find(r Reader, ranges phys.Set, accept func(*Info) bool) Result {
	f := finder{r: r, ranges: ranges, accept: accept, buf: make([]byte, chunkSize)}
	for _, in := range ranges {
		in = in.AlignIn(phys.PageSize)
		for addr := in.Start; addr < in.End; {
			size := min(in.End-addr, chunkSize-addr%chunkSize)
			f.chunk(phys.Range{Start: addr, End: addr + size})
			addr += size
		}
	}
	return f.result
}

type finder struct {
	r      Reader
	ranges phys.Set
	accept func(*Info) bool
	buf    []byte
	failed int
	result Result
}

// chunk looks at the page starts in in, at most chunkSize bytes, whole pages.
// Where memory can't be read it halves the chunk, down to a page.
func (f *finder) chunk(in phys.Range) {
	if err := f.look(in); err != nil {
		f.failed++
		if in.Size() <= phys.PageSize || f.failed > maxFailedReads {
			f.hole(in, err)
			return
		}
		middle := in.Start + phys.AlignDown(in.Size()/2, phys.PageSize)
		f.chunk(phys.Range{Start: in.Start, End: middle})
		f.chunk(phys.Range{Start: middle, End: in.End})
		return
	}
}

// Viewer is a Reader that can show memory without copying it. Find looks only
// at the first bytes of each page, so copying would be most of the work. f
// gets the bytes of r, which may change during the call.
type Viewer interface {
	ViewPhys(r phys.Range, f func(b []byte)) error
}

// look tries the page starts in in; an error means that in can't be read.
func (f *finder) look(in phys.Range) error {
	var at []uint64
	pages := func(b []byte) {
		for off := uint64(0); off < uint64(len(b)); off += phys.PageSize {
			if _, ok := parseNoteHeader(b[off:]); ok {
				at = append(at, in.Start+off)
			}
		}
	}
	if v, ok := f.r.(Viewer); ok {
		if err := v.ViewPhys(in, pages); err != nil {
			return err
		}
	} else {
		b := f.buf[:in.Size()]
		if err := f.r.ReadPhys(b, in.Start); err != nil {
			return err
		}
		pages(b)
	}
	for _, addr := range at {
		f.note(addr)
	}
	return nil
}

// hole records memory that wasn't searched; neighbouring holes become one.
func (f *finder) hole(in phys.Range, err error) {
	if n := len(f.result.Holes); n > 0 && f.result.Holes[n-1].Range.End == in.Start {
		f.result.Holes[n-1].Range.End = in.End
		return
	}
	f.result.Holes = append(f.result.Holes, Hole{in, err})
}

// note reads the note at addr again, whole, and judges it. The text may run
// into the next chunk, or into a page that is not in the ranges.
func (f *finder) note(addr uint64) {
	var header [noteHeader]byte
	if err := f.r.ReadPhys(header[:], addr); err != nil {
		return
	}
	descSize, ok := parseNoteHeader(header[:])
	if !ok {
		return
	}
	size := noteHeader + (descSize+3)&^3 + noteEnd
	where := phys.Range{Start: addr, End: addr + size}
	if !f.ranges.Contains(where) {
		return
	}
	b := make([]byte, size)
	if err := f.r.ReadPhys(b, addr); err != nil {
		f.hole(where, err)
		return
	}
	again, ok := parseNoteHeader(b)
	if !ok || again != descSize {
		return
	}
	if binary.LittleEndian.Uint32(b[size-noteEnd:]) != 0 {
		return // the empty note that the kernel writes last isn't there
	}
	text := b[noteHeader:][:descSize]
	info, err := Parse(text)
	if err != nil || len(info.Text) != len(text) || f.accept != nil && !f.accept(info) {
		return
	}
	if len(f.result.Candidates) == MaxCandidates {
		f.result.Dropped++
		return
	}
	f.result.Candidates = append(f.result.Candidates, Candidate{Addr: addr, Size: size, Info: info})
}

// parseNoteHeader says whether b starts with a VMCOREINFO note, and how long
// its text is.
func parseNoteHeader(b []byte) (descSize uint64, ok bool) {
	if len(b) < noteHeader {
		return 0, false
	}
	le := binary.LittleEndian
	descSize = uint64(le.Uint32(b[4:]))
	ok = le.Uint32(b) == uint32(len(noteName)) &&
		descSize > 0 && descSize <= MaxText &&
		le.Uint32(b[8:]) == 0 &&
		string(b[12:][:len(noteName)]) == noteName
	return descSize, ok
}

// ParseNote reads a note from the start of b, as found at a Candidate's Addr
// or at the address in /sys/kernel/vmcoreinfo. Errors: those of Parse, and a
// *FormatError if b is not a VMCOREINFO note.
func ParseNote(b []byte) (*Info, error) {
	descSize, ok := parseNoteHeader(b)
	if !ok {
		return nil, fmt.Errorf("parse VMCOREINFO note: %w", &FormatError{0, "n_namesz", "not the header of a VMCOREINFO note"})
	}
	if uint64(len(b)-noteHeader) < descSize {
		return nil, fmt.Errorf("parse VMCOREINFO note: %w", &FormatError{4, "n_descsz", fmt.Sprintf("%d, but %d bytes are left", descSize, len(b)-noteHeader)})
	}
	return Parse(b[noteHeader:][:descSize])
}
