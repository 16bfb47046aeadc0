// Package vmcore has the types that all readers of dump files share. Each
// format has a package below this one; dumpfile opens a file of any format by
// its first bytes. NameUnreadable says how a dump names memory that could not
// be read when it was written.
//
// Invariants: a dump file may be hostile. A reader allocates no more than named
// constants and the size of the file allow, and returns an error or a warning
// for what it doesn't understand. The caller opens the file: a reader gets an
// io.ReaderAt.
package vmcore

import (
	"errors"
	"fmt"
	"io"

	"github.com/warmcore/warmcore/pkg/phys"
	"github.com/warmcore/warmcore/pkg/vmcoreinfo"
)

// Dump is an opened dump of a crashed kernel. Its methods may run
// concurrently.
type Dump interface {
	// Info returns what the file says about itself. The caller must not
	// change it.
	Info() *Info
	// ReadPhys fills p from physical address addr, which needs no
	// alignment. It fails with a *MissingError if the file doesn't hold
	// all of p; p is then filled up to the start of the error's Range.
	ReadPhys(p []byte, addr uint64) error
}

// Pager is implemented by dumps that know which pages they hold without
// reading them.
type Pager interface {
	// Holds says whether the file has some of r's memory. It is false where
	// the file is too damaged to know; reading the memory then tells why.
	Holds(r phys.Range) bool
}

// Counter is implemented by dumps that can tell how much they hold.
type Counter interface {
	// HeldSize returns the number of bytes of memory in the file. It may
	// have to read all of a bitmap.
	HeldSize() (uint64, error)
}

// Viewer is implemented by dumps that can show memory without a copy of it.
type Viewer interface {
	// View calls f with r's memory, in one or several parts in the order
	// of their addresses. f must not keep or change a part, nor hand it to
	// another goroutine, and it must be safe to abandon f at any read of
	// the part: if memory turns out to be unreadable, f ends there, and
	// View fails with a *MissingError for the part that f was called with
	// last.
	View(r phys.Range, f func(b []byte)) error
}

// FileViewer is an io.ReaderAt of a file that is mapped into memory. Dumps in
// such files are Viewers.
type FileViewer interface {
	io.ReaderAt
	// ViewAt calls f with the n bytes at off, in one or several parts, under
	// the conditions of Viewer. The error is about the part that f was
	// called with last.
	ViewAt(off, n int64, f func(b []byte)) error
}

// Load is memory that the crashed kernel had mapped, as in a PT_LOAD of an ELF
// core file. Unit: bytes. Loads may overlap: the kernel's text is in the
// direct map, too.
type Load struct {
	Virt uint64 // p_vaddr; 0 if not known
	Phys uint64 // p_paddr
	Size uint64 // p_memsz
}

// Uname is what uname(2) returned in the crashed kernel, as far as it is
// known.
type Uname struct {
	Sysname, Nodename, Release, Version, Machine, Domain string
}

// LevelUnknown is Info.Level of files that don't say their level.
const LevelUnknown = -1

// Info is what a dump file says about itself.
type Info struct {
	Format  string // "elf" or "kdump", followed by " flattened" if the file is
	Machine uint16 // e_machine; 0 if not known
	// PageSize is the size of the crashed kernel's pages in bytes.
	// VMCOREINFO decides; without VMCOREINFO, each block of the file
	// counts as one page.
	PageSize uint64
	// BlockSize is the size in bytes of the pieces of memory that the file
	// holds or leaves out, one by one; 0 for an ELF file, which has none. It
	// need not be PageSize: QEMU writes blocks of 64 KiB for arm64 kernels
	// with pages of 4 KiB.
	BlockSize uint64
	Loads     []Load   // in the order of the file; none if the file doesn't say
	Memory    phys.Set // memory that the dump describes, whether the file holds it or not
	// Notes are ELF notes, raw as in the source: the contents of all PT_NOTEs
	// one after the other, each padded to 4 bytes.
	Notes      []byte
	VMCOREINFO []byte // text; nil if there is none
	Uname      Uname
	CPUs       int   // number of CPUs that the file states; 0 if it doesn't
	Created    int64 // seconds since 1970; 0 if not known
	// Level is makedumpfile's dump level, the sum of the kinds of pages
	// that were left out: 1 pages of zeroes, 2 page cache without private
	// data, 4 all page cache, 8 memory of processes, 16 free pages.
	Level       int
	Compression string // the most used one for pages: "none", "zlib", "lzo", "snappy", "zstd"; "" if not known
	// Part is the memory that this file of a split dump is for. It is the zero
	// Range if the dump isn't split, or all parts were opened together.
	Part phys.Range
	// Unreadable is memory that, as the file says, could not be read when it
	// was written: whole pages of 4 KiB or more. MoreUnreadable counts pages
	// for which the list had no room. Reading such memory fails, even where an
	// ELF file has zeroes instead. Each file of a split dump has the whole list.
	Unreadable     phys.Set
	MoreUnreadable uint64
	Samples        []Sample // that the payload took; see TypeSamples
	Incomplete     bool     // the file's writer marked it as not finished
	Warnings       []string

	kernel *vmcoreinfo.Info // see Kernel
}

// Reason is why memory is not in a dump.
type Reason int

// Reasons.
const (
	// Excluded memory was left out on purpose: the dump level says so, or
	// the zeroes of an ELF file that ends a segment early.
	Excluded Reason = 1 + iota
	// Hole is an address that the dump doesn't describe: there is no RAM.
	Hole
	// Unreadable memory should be in the file, but the file ends before it,
	// contradicts itself, can't be read there, or names it in Info.Unreadable.
	Unreadable
)

func (r Reason) String() string {
	switch r {
	case Excluded:
		return "excluded"
	case Hole:
		return "hole"
	case Unreadable:
		return "unreadable"
	}
	return fmt.Sprintf("reason %d", int(r))
}

// MissingError says that memory is not in the dump.
type MissingError struct {
	// Range is the first part of the requested memory that is missing for
	// Reason. More may be missing after it.
	Range  phys.Range
	Reason Reason
	Err    error // the cause, if there is one
}

func (e *MissingError) Error() string {
	if e.Err != nil {
		return fmt.Sprintf("memory %v is %v: %v", e.Range, e.Reason, e.Err)
	}
	return fmt.Sprintf("memory %v is %v", e.Range, e.Reason)
}

func (e *MissingError) Unwrap() error { return e.Err }

// ErrNamed is the cause of a MissingError about memory in Info.Unreadable.
var ErrNamed = errors.New("it could not be read when the dump was written")

// FormatError says where a file violates its format.
type FormatError struct {
	Off     int64  // offset of the field in the file, in bytes
	Field   string // its name in the format's definition
	Problem string // what it holds and what it should hold
}

func (e *FormatError) Error() string {
	return fmt.Sprintf("offset %#x: %s: %s", e.Off, e.Field, e.Problem)
}
