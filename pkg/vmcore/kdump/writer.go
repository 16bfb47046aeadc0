package kdump

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math"

	"github.com/warmcore/warmcore/pkg/vmcore"
)

// How much a Writer writes at once, in bytes.
const (
	bitmapPiece = 64 << 10                       // of a bitmap: 2 GiB of 4 KiB pages
	descPiece   = 64 << 10 / DescSize * DescSize // of descriptors
)

// Meta is what a Writer writes into the headers.
type Meta struct {
	// Info of the source: BlockSize, Memory, Notes, VMCOREINFO, Uname, CPUs and
	// Created are used.
	Info     *vmcore.Info
	PhysBase uint64 // kernelmap.PhysBase
	Level    int    // dump level
	Codec    Codec  // of the pages that are compressed
}

// Part is a file that a Writer writes. PFNs of all parts are in ascending
// order, without a gap.
type Part struct {
	Dst io.WriterAt
	End uint64 // one more than the last PFN; the last part's is not used
	// Pages is how many pages Append will be called with at most: the data
	// begins after that many descriptors.
	Pages uint64
}

// Page is a page in a part's data.
type Page struct {
	PFN  uint64
	Off  int64  // from the offset that Append returns; Zero for a page of zeroes
	Size uint32 // in bytes
	Raw  bool   // not compressed
}

// Zero as a page's offset stands for the page of zeroes that all parts have;
// Size and Raw don't count then.
const Zero = -1

// Writer writes a dump, split in parts or not. The headers come last: until
// Close, no reader takes a file for a dump. Nothing is read back, so the
// destination may be a pipe, in the flattened form. It keeps no more than a
// piece of a bitmap and, for each part, a piece of its descriptors in memory.
// Its methods may not run concurrently.
type Writer struct {
	meta   Meta
	header Header
	sub    SubHeader
	extra  []byte // after the sub header
	parts  []*part

	bits    []byte // piece of the 2nd bitmap
	bitsAt  int64  // its offset in the bitmap
	bitsEnd int64  // of the bitmap
	next    uint64 // lowest PFN that may come
	erase   []byte // after the pages
	err     error  // the first; the writer is dead
}

type part struct {
	Part
	descs  []byte
	descAt int64 // where descs will be written
	dataAt int64 // where the next data will be
	zeroAt int64 // the page of zeroes
	added  uint64
}

// NewWriter lays out the parts and writes what is known now: the 1st bitmap and
// a page of zeroes. There must be at least one part.
func NewWriter(meta Meta, parts ...Part) (*Writer, error) {
	w, err := newWriter(meta, parts)
	if err != nil {
		return nil, fmt.Errorf("begin kdump file: %w", err)
	}
	return w, nil
}

func newWriter(meta Meta, parts []Part) (*Writer, error) {
	info := meta.Info
	size := info.BlockSize
	if size < MinBlockSize || size > MaxBlockSize || size&(size-1) != 0 {
		return nil, fmt.Errorf("block size %d, want a power of two from %d to %d", size, MinBlockSize, MaxBlockSize)
	}
	if len(info.Notes) > vmcore.MaxNotes || len(info.VMCOREINFO) > MaxVMCOREINFO {
		return nil, fmt.Errorf("%d bytes of notes and %d of VMCOREINFO, want at most %d and %d", len(info.Notes), len(info.VMCOREINFO), vmcore.MaxNotes, MaxVMCOREINFO)
	}
	if len(info.Memory) == 0 || len(parts) == 0 {
		return nil, errors.New("no memory, or no file")
	}
	last := info.Memory[len(info.Memory)-1].End
	pages := (last-1)/size + 1
	if pages > MaxPages {
		return nil, fmt.Errorf("memory up to %#x: %d pages, want at most %d", last, pages, uint64(MaxPages))
	}
	w := &Writer{meta: meta, bits: make([]byte, bitmapPiece)}
	w.layout(pages)
	for i, p := range parts {
		at := w.header.DescOffset()
		q := &part{Part: p, descs: make([]byte, 0, descPiece), descAt: at, dataAt: at + int64(p.Pages)*DescSize}
		if i == len(parts)-1 {
			q.End = pages
		}
		if p.Pages > MaxPages || q.End > pages || i > 0 && q.End < w.parts[i-1].End {
			return nil, fmt.Errorf("part %d ends at PFN %#x with %d pages, which is out of order or too much", i, q.End, p.Pages)
		}
		q.zeroAt = q.dataAt
		q.dataAt += int64(size)
		w.parts = append(w.parts, q)
	}
	return w, w.begin()
}

// layout fills in the headers, except for the fields that differ between
// parts.
func (w *Writer) layout(pages uint64) {
	info := w.meta.Info
	size := info.BlockSize
	h := Header{
		Version: MaxVersion, Uname: info.Uname, Seconds: info.Created, Status: uint32(w.meta.Codec),
		BlockSize: uint32(size), MaxMapNr32: uint32(min(pages, math.MaxUint32)), CPUs: int32(info.CPUs),
	}
	s := SubHeader{PhysBase: w.meta.PhysBase, Level: int32(w.meta.Level), MaxMapNr: pages}
	behind := size + SubHeaderSize
	w.extra = bytes.Clone(info.Notes)
	s.NoteOffset, s.NoteSize = behind, uint64(len(info.Notes))
	if len(info.VMCOREINFO) > 0 {
		at := bytes.Index(info.Notes, info.VMCOREINFO)
		if at < 0 {
			at = len(w.extra)
			w.extra = append(w.extra, info.VMCOREINFO...)
		}
		s.VMCOREINFOOffset, s.VMCOREINFOSize = behind+uint64(at), uint64(len(info.VMCOREINFO))
	}
	h.SubBlocks = uint32(blocks(SubHeaderSize+uint64(len(w.extra)), size))
	h.BitmapBlocks = uint32(2 * blocks((pages+7)/8, size))
	w.header, w.sub = h, s
	w.bitsEnd = h.BitmapSize()
}

func blocks(n, size uint64) uint64 { return (n + size - 1) / size }

func (w *Writer) begin() error {
	zeroes := make([]byte, w.meta.Info.BlockSize)
	for _, p := range w.parts {
		if _, err := p.Dst.WriteAt(zeroes, p.zeroAt); err != nil {
			return err
		}
	}
	for at := int64(0); at < w.bitsEnd; at += bitmapPiece {
		b := w.bits[:min(bitmapPiece, w.bitsEnd-at)]
		fillBitmap(b, uint64(at)*8, w.meta.Info)
		if err := w.all(b, w.header.BitmapOffset()+at); err != nil {
			return err
		}
	}
	clear(w.bits)
	return nil
}

// fillBitmap sets the bits, in b, which begins at PFN first, of all pages that
// are memory at least in part.
func fillBitmap(b []byte, first uint64, info *vmcore.Info) {
	clear(b)
	size := info.BlockSize
	for _, r := range info.Memory {
		start, end := max(r.Start/size, first), min((r.End-1)/size+1, first+uint64(len(b))*8)
		for start < end && start%8 != 0 {
			b[(start-first)/8] |= 1 << (start % 8)
			start++
		}
		for ; start+8 <= end; start += 8 {
			b[(start-first)/8] = 0xff
		}
		for ; start < end; start++ {
			b[(start-first)/8] |= 1 << (start % 8)
		}
	}
}

// all writes b to each part.
func (w *Writer) all(b []byte, at int64) error {
	for _, p := range w.parts {
		if _, err := p.Dst.WriteAt(b, at); err != nil {
			return err
		}
	}
	return nil
}

// Append takes the next pages, in ascending order of their PFNs, that have
// size bytes of data together, and returns the file and the offset where the
// caller must write that data. The pages must be of one part. It writes
// descriptors and bitmaps too, but not at each call.
func (w *Writer) Append(pages []Page, size int64) (dst io.WriterAt, off int64, err error) {
	if w.err != nil {
		return nil, 0, w.err
	}
	if dst, off, err = w.append(pages, size); err != nil {
		w.err = fmt.Errorf("write kdump file: %w", err)
		return nil, 0, w.err
	}
	return dst, off, nil
}

func (w *Writer) append(pages []Page, size int64) (io.WriterAt, int64, error) {
	if len(pages) == 0 || pages[0].PFN < w.next {
		return nil, 0, errors.New("pages are none, or out of order")
	}
	p := w.part(pages[0].PFN)
	last := pages[len(pages)-1].PFN
	if p == nil || last >= p.End || p.added+uint64(len(pages)) > p.Pages {
		return nil, 0, fmt.Errorf("pages %#x to %#x are of several parts, or more than were promised", pages[0].PFN, last)
	}
	for _, q := range pages {
		if q.PFN < w.next {
			return nil, 0, fmt.Errorf("page %#x is out of order", q.PFN)
		}
		w.next = q.PFN + 1
		d := Desc{Offset: uint64(p.dataAt + q.Off), Size: q.Size, Flags: uint32(w.meta.Codec)}
		switch {
		case q.Off == Zero:
			d = Desc{Offset: uint64(p.zeroAt), Size: w.header.BlockSize}
		case q.Raw:
			d.Flags = 0
		}
		p.descs = d.AppendBinary(p.descs)
		if len(p.descs) == descPiece {
			if err := p.flush(); err != nil {
				return nil, 0, err
			}
		}
		if err := w.bitmapTo(int64(q.PFN / 8)); err != nil {
			return nil, 0, err
		}
		w.bits[int64(q.PFN/8)-w.bitsAt] |= 1 << (q.PFN % 8)
	}
	off := p.dataAt
	p.dataAt += size
	p.added += uint64(len(pages))
	return p.Dst, off, nil
}

// part returns the part that a page belongs to.
func (w *Writer) part(pfn uint64) *part {
	for _, p := range w.parts {
		if pfn < p.End {
			return p
		}
	}
	return nil
}

func (p *part) flush() error {
	if _, err := p.Dst.WriteAt(p.descs, p.descAt); err != nil {
		return err
	}
	p.descAt += int64(len(p.descs))
	p.descs = p.descs[:0]
	return nil
}

// bitmapTo writes the 2nd bitmap up to the piece that contains at. Pieces
// without a page are written, too: the flattened form has no holes.
func (w *Writer) bitmapTo(at int64) error {
	for ; w.bitsAt < w.bitsEnd && at >= w.bitsAt+bitmapPiece; w.bitsAt += bitmapPiece {
		b := w.bits[:min(bitmapPiece, w.bitsEnd-w.bitsAt)]
		if err := w.all(b, w.header.BitmapOffset()+w.bitsEnd+w.bitsAt); err != nil {
			return err
		}
		clear(w.bits)
	}
	return nil
}

// Unreadable takes the vmcore.UnreadableText, which Close writes into the erase
// information of each part.
func (w *Writer) Unreadable(text []byte) { w.erase = text }

// Close writes the rest of descriptors and bitmaps, and then the headers. The
// data must have been written before. It doesn't close the destinations.
func (w *Writer) Close() error {
	if w.err != nil {
		return w.err
	}
	w.err = errors.New("kdump file is closed")
	if err := w.close(); err != nil {
		return fmt.Errorf("end kdump file: %w", err)
	}
	return nil
}

func (w *Writer) close() error {
	if err := w.bitmapTo(w.bitsEnd + bitmapPiece); err != nil {
		return err
	}
	size := int64(w.header.BlockSize)
	start := uint64(0)
	for _, p := range w.parts {
		if err := p.flush(); err != nil {
			return err
		}
		if len(w.parts) > 1 {
			w.sub.Split, w.sub.StartPFN, w.sub.EndPFN = 1, start, p.End
		}
		start = p.End
		if len(w.erase) > 0 {
			w.sub.EraseOffset, w.sub.EraseSize = uint64(p.dataAt), uint64(len(w.erase))
			if _, err := p.Dst.WriteAt(w.erase, p.dataAt); err != nil {
				return err
			}
		}
		sub := append(w.sub.AppendBinary(nil), w.extra...)
		sub = append(sub, make([]byte, int64(w.header.SubBlocks)*size-int64(len(sub)))...)
		if _, err := p.Dst.WriteAt(sub, size); err != nil {
			return err
		}
		header := w.header.AppendBinary(make([]byte, 0, size))
		if _, err := p.Dst.WriteAt(header[:size], 0); err != nil {
			return err
		}
	}
	return nil
}

// Size returns the size of all files so far, in bytes.
func (w *Writer) Size() (size uint64) {
	for _, p := range w.parts {
		size += uint64(p.dataAt) + uint64(len(w.erase))
	}
	return size
}
