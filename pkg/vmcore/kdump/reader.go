package kdump

import (
	"errors"
	"fmt"
	"io"
	"math"
	"math/bits"

	"github.com/warmcore/warmcore/pkg/phys"
	"github.com/warmcore/warmcore/pkg/vmcore"
)

// Dump is an opened file.
type Dump struct {
	r     io.ReaderAt
	size  int64
	head  Header
	sub   SubHeader
	info  vmcore.Info
	cache *fileCache
	held  bitmap // the 2nd
	// first and end are the PFNs of the pages that this file can hold, all
	// or those of a part. skip is how many pages are held before first, by
	// other files.
	first, end, skip uint64
	codecs           *codecs
	recent           recent
}

// New reads the headers of the file in r, of size bytes, the bitmaps, and the
// descriptors of the last pages. The error is a *vmcore.FormatError if the
// headers can't be understood.
func New(r io.ReaderAt, size int64) (*Dump, error) {
	d := &Dump{r: r, size: size, cache: newFileCache(r, size), codecs: newCodecs()}
	if err := d.open(); err != nil {
		return nil, fmt.Errorf("open kdump file: %w", err)
	}
	return d, nil
}

// Info implements vmcore.Dump.
func (d *Dump) Info() *vmcore.Info { return &d.info }

// SubHeader returns the sub header as it is in the file.
func (d *Dump) SubHeader() SubHeader { return d.sub }

func (d *Dump) open() error {
	b := make([]byte, HeaderSize)
	if n, err := d.r.ReadAt(b, 0); n < len(b) {
		return fmt.Errorf("read header: %w", err)
	}
	var err error
	if d.head, err = ParseHeader(b); err != nil {
		return err
	}
	b = b[:SubHeaderSize]
	if n, err := d.r.ReadAt(b, int64(d.head.BlockSize)); n < len(b) {
		return fmt.Errorf("read sub header: %w", err)
	}
	if d.sub, err = ParseSubHeader(b, d.head); err != nil {
		return err
	}
	if err := d.geometry(); err != nil {
		return err
	}
	d.describe()
	d.notes()
	described := bitmap{cache: d.cache, off: d.head.BitmapOffset(), n: d.sub.MaxMapNr}
	memory, whole, err := described.memory(d.info.BlockSize)
	if err != nil {
		return err
	}
	if d.info.Memory = memory; !whole {
		d.info.Warn(fmt.Sprintf("the 1st bitmap has more than %d ranges: the end of memory is described too large", maxRanges))
	}
	d.cut()
	return nil
}

// lastDescs is how many pages at the end of the file are examined to find out
// whether it was cut off: 96 KiB of descriptors.
const lastDescs = 4096

// cut warns about a file that was cut off. Pages are in the file in the order
// of their addresses, except for pages of zeroes, which share one place, so
// the last pages show it.
func (d *Dump) cut() {
	held, err := d.held.before(d.end)
	if err != nil || held <= d.skip {
		return
	}
	n := min(held-d.skip, lastDescs)
	at := d.head.DescOffset() + int64(held-d.skip-n)*DescSize
	b := make([]byte, n*DescSize)
	if end := at + int64(len(b)); end > d.size {
		d.info.Warn(fmt.Sprintf("the file ends at %#x and its page descriptors at %#x: it was cut off", d.size, end))
		return
	}
	if d.cache.read(b, at) != nil {
		return
	}
	for ; len(b) > 0; b = b[DescSize:] {
		p := ParseDesc(b)
		if uint64(p.Size) > d.info.BlockSize && p.Size <= MaxBlockSize && d.info.PageSize > d.info.BlockSize && uint64(p.Size) <= d.info.PageSize {
			d.info.Warn(fmt.Sprintf("offset 0x1ac: block_size: %d, but there are pages of %d bytes in the file, and the kernel's are of %d: the header is wrong", d.info.BlockSize, p.Size, d.info.PageSize))
			return
		}
		if p.Offset <= math.MaxInt64 && uint64(p.Size) <= d.info.BlockSize && p.Offset+uint64(p.Size) > uint64(d.size) {
			d.info.Warn(fmt.Sprintf("the file ends at %#x, before its page at %#x: it was cut off", d.size, p.Offset))
			return
		}
	}
}

// geometry checks the header fields that say where things are in the file.
func (d *Dump) geometry() error {
	off := int64(d.head.BlockSize) + 96 // max_mapnr_64
	if d.head.Version < 6 {
		off = 440 // max_mapnr
	}
	bad := func(field, format string, args ...any) error {
		return &vmcore.FormatError{Off: off, Field: field, Problem: fmt.Sprintf(format, args...)}
	}
	n := d.sub.MaxMapNr
	if n == 0 || n > MaxPages {
		return bad("max_mapnr", "%#x pages, want 1 to %#x", n, uint64(MaxPages))
	}
	if have := uint64(d.head.BitmapSize()) * 8; n > have {
		return bad("max_mapnr", "%#x pages, but bitmaps of %#x bytes have bits for %#x", n, d.head.BitmapSize(), have)
	}
	if end := d.head.DescOffset(); end > d.size {
		off = 436
		return bad("bitmap_blocks", "the bitmaps end at %#x, but the file ends at %#x", end, d.size)
	}
	d.held = bitmap{cache: d.cache, off: d.head.BitmapOffset() + d.head.BitmapSize(), n: n}
	d.end = n
	if d.sub.Split != 0 {
		// makedumpfile leaves the last parts empty if there are too many.
		if d.sub.StartPFN > d.sub.EndPFN || d.sub.StartPFN > n {
			off = int64(d.head.BlockSize) + 16
			return bad("start_pfn", "part from page %#x to %#x of %#x", d.sub.StartPFN, d.sub.EndPFN, n)
		}
		d.first, d.end = d.sub.StartPFN, min(d.sub.EndPFN, n)
		skip, err := d.held.before(d.first)
		if err != nil {
			return err
		}
		d.skip = skip
	}
	return nil
}

// describe fills in Info from the headers.
func (d *Dump) describe() {
	codec, one := CodecOf(d.head.Status)
	d.info = vmcore.Info{
		Format:      "kdump",
		Machine:     vmcore.MachineOf(d.head.Uname.Machine),
		BlockSize:   uint64(d.head.BlockSize),
		Uname:       d.head.Uname,
		CPUs:        int(max(0, d.head.CPUs)),
		Created:     d.head.Seconds,
		Level:       int(d.sub.Level),
		Compression: codec.String(),
		Incomplete:  d.head.Status&FlagIncomplete != 0,
	}
	if d.sub.Split != 0 {
		d.info.Part = phys.Range{Start: d.first * d.info.BlockSize, End: d.end * d.info.BlockSize}
	}
	if !one {
		d.info.Compression = ""
		d.info.Warn(fmt.Sprintf("offset 0x1a8: status: %#x names several ways of compression", d.head.Status))
	}
	if d.sub.Level < 0 || d.sub.Level > 31 {
		d.info.Level = vmcore.LevelUnknown
		d.info.Warn(fmt.Sprintf("offset %#x: dump_level: %d, want 0 to 31", d.head.BlockSize+8, d.sub.Level))
	}
	if d.info.Incomplete {
		d.info.Warn("writing the file was not finished: its pages are incomplete")
	}
	if d.head.Status&FlagExcludedVmemmap != 0 {
		d.info.Warn("page structures of left out pages were left out, too")
	}
}

// notes reads the ELF notes, VMCOREINFO and the erase information.
func (d *Dump) notes() {
	if b := d.area("note", d.sub.NoteOffset, d.sub.NoteSize, vmcore.MaxNotes); b != nil {
		d.info.AddNotes(b)
	}
	d.info.ReadNotes(d.area("vmcoreinfo", d.sub.VMCOREINFOOffset, d.sub.VMCOREINFOSize, MaxVMCOREINFO))
	d.checkPhysBase()
	d.info.AddUnreadable(d.area("eraseinfo", d.sub.EraseOffset, d.sub.EraseSize, maxErase))
}

// checkPhysBase warns about a header that contradicts VMCOREINFO. This project
// uses only VMCOREINFO to translate virtual addresses; other readers may use
// the header.
func (d *Dump) checkPhysBase() {
	if d.info.VMCOREINFO == nil || d.sub.PhysBase == 0 {
		return
	}
	v, err := d.info.Kernel()
	if err != nil {
		return
	}
	if base, ok := v.Numbers["phys_base"]; ok && uint64(base) != d.sub.PhysBase {
		d.info.Warn(fmt.Sprintf("offset %#x: phys_base: %#x, but VMCOREINFO says %#x, which is taken", d.head.BlockSize, d.sub.PhysBase, uint64(base)))
	}
}

// area reads bytes at a place that the sub header gives; nil if there are
// none, or they can't be read.
func (d *Dump) area(name string, off, size, limit uint64) []byte {
	if size == 0 {
		return nil
	}
	if size > limit || off > math.MaxInt64 || size > uint64(d.size) || off > uint64(d.size)-size {
		d.info.Warn(fmt.Sprintf("offset %#x: offset_%s: %#x bytes at %#x are more than %#x, or not in the file of %#x",
			d.head.BlockSize, name, size, off, limit, d.size))
		return nil
	}
	b := make([]byte, size)
	if n, err := d.r.ReadAt(b, int64(off)); n < len(b) {
		d.info.Warn(fmt.Sprintf("read %s at offset %#x: %v", name, off, err))
		return nil
	}
	return b
}

// Holds implements vmcore.Pager. Blocks of other files of a split dump are not
// held.
func (d *Dump) Holds(r phys.Range) bool {
	if r.Empty() {
		return false
	}
	last := (r.End - 1) / d.info.BlockSize
	for pfn := r.Start / d.info.BlockSize; pfn <= last && pfn < d.end; pfn++ {
		if d.holds(pfn) {
			return true
		}
	}
	return false
}

// holds says whether block pfn is in the file.
func (d *Dump) holds(pfn uint64) bool {
	if pfn < d.first || pfn >= d.end || d.unreadable(pfn) {
		return false
	}
	held, err := d.held.has(pfn)
	return held && err == nil
}

// HeldSize implements vmcore.Counter.
func (d *Dump) HeldSize() (uint64, error) {
	n, err := d.held.before(d.end)
	if err != nil {
		return 0, err
	}
	n -= d.skip
	for _, r := range d.info.Unreadable {
		first, end := max(r.Start/d.info.BlockSize, d.first), min((r.End-1)/d.info.BlockSize+1, d.end)
		if first >= end {
			continue
		}
		from, err := d.held.before(first)
		if err != nil {
			return 0, err
		}
		to, err := d.held.before(end)
		if err != nil {
			return 0, err
		}
		n -= min(n, to-from)
	}
	if d.info.Incomplete {
		unwritten, err := d.unwritten()
		if err != nil {
			return 0, err
		}
		n -= min(n, unwritten)
	}
	return n * d.info.BlockSize, nil
}

// unwritten counts the pages of an incomplete file that the 2nd bitmap has, but
// that were never written: their descriptors are zero, or the file ends before
// them.
func (d *Dump) unwritten() (n uint64, err error) {
	all, err := d.held.before(d.end)
	if err != nil {
		return 0, err
	}
	all -= d.skip
	b := make([]byte, lastDescs*DescSize)
	for at := uint64(0); at < all; at += lastDescs {
		part := b[:min(lastDescs, all-at)*DescSize]
		off := d.head.DescOffset() + int64(at)*DescSize
		if off >= d.size {
			return n + all - at, nil
		}
		there := part[:min(int64(len(part)), d.size-off)/DescSize*DescSize]
		if err := d.cache.read(there, off); err != nil {
			return 0, fmt.Errorf("page descriptors: %w", err)
		}
		n += uint64(len(part)-len(there)) / DescSize
		for ; len(there) > 0; there = there[DescSize:] {
			if p := ParseDesc(there); p.Offset == 0 || p.Offset >= uint64(d.size) {
				n++
			}
		}
	}
	return n, nil
}

// unreadable says whether a part of page pfn, which is below MaxPages, is
// named as unreadable.
func (d *Dump) unreadable(pfn uint64) bool {
	size := d.info.BlockSize
	page := phys.Range{Start: pfn * size, End: (pfn + 1) * size}
	part, named := d.info.NamedUnreadable(page)
	return named || part != page
}

// ReadPhys implements vmcore.Dump.
func (d *Dump) ReadPhys(p []byte, addr uint64) error {
	want, ok := phys.Sized(addr, uint64(len(p)))
	if !ok {
		return &vmcore.MissingError{Range: phys.Range{Start: addr, End: math.MaxUint64}, Reason: vmcore.Hole}
	}
	shift := bits.TrailingZeros64(d.info.BlockSize)
	for !want.Empty() {
		pfn, in := want.Start>>shift, want.Start&(d.info.BlockSize-1)
		var n uint64
		var err error
		if whole := want.Size() >> shift; in == 0 && whole > 0 {
			n, err = d.readPages(p, pfn, min(whole, maxRun))
		} else {
			n, err = d.readPart(p, pfn, in)
		}
		if err != nil {
			return d.missing(err, want, pfn+n>>shift)
		}
		p, want.Start = p[n:], want.Start+n
	}
	return nil
}

// absent says why a page is not in the file.
type absent struct {
	reason vmcore.Reason
	err    error
}

func (a *absent) Error() string { return a.reason.String() }

var (
	errOtherPart = errors.New("in another file of the split dump")
	errUnwritten = errors.New("never written: the dump is incomplete")
)

// missing returns the error for page pfn of the requested memory.
func (d *Dump) missing(err error, want phys.Range, pfn uint64) error {
	page := phys.Range{Start: pfn * d.info.BlockSize, End: (pfn + 1) * d.info.BlockSize}
	if page.End == 0 {
		page.End = math.MaxUint64
	}
	var a *absent
	if !errors.As(err, &a) {
		a = &absent{vmcore.Unreadable, err}
	}
	return &vmcore.MissingError{Range: want.Intersect(page), Reason: a.reason, Err: a.err}
}

// locate says whether page pfn is in the file; the error is an *absent if it
// is not.
func (d *Dump) locate(pfn uint64) error {
	held, err := d.held.has(pfn)
	switch {
	case pfn < d.held.n && d.unreadable(pfn):
		return &absent{vmcore.Unreadable, vmcore.ErrNamed}
	case err != nil:
		return err
	case held && (pfn < d.first || pfn >= d.end):
		return &absent{vmcore.Unreadable, errOtherPart}
	case held:
		return nil
	}
	described := bitmap{cache: d.cache, off: d.head.BitmapOffset(), n: d.held.n}
	if in, err := described.has(pfn); err != nil {
		return err
	} else if in {
		return &absent{vmcore.Excluded, nil}
	}
	return &absent{vmcore.Hole, nil}
}

// maxRun is how many pages are looked up at once.
const maxRun = 64

// maxRead is how much of the file is read at once, unless a page is larger.
const maxRead = 64 << 10

// readPages reads up to n whole pages into p and returns how many bytes of p
// it filled. With an error that is less than all; without one it may be, too.
func (d *Dump) readPages(p []byte, pfn, n uint64) (done uint64, err error) {
	run := uint64(1)
	if err := d.locate(pfn); err != nil {
		return 0, err
	}
	for run < n && d.holds(pfn+run) {
		run++
	}
	descs, err := d.descs(pfn, run)
	if err != nil {
		return 0, err
	}
	for len(descs) > 0 {
		group, size := contiguous(descs)
		raw := d.codecs.buffer(size)
		pages, err := d.readGroup(p[done:], group, raw)
		d.codecs.release(raw)
		done += uint64(pages) * d.info.BlockSize
		if err != nil {
			return done, err
		}
		descs = descs[len(group):]
	}
	return done, nil
}

// readGroup reads pages that lie one after the other in the file into p, and
// returns how many it read; raw has room for what they take in the file.
func (d *Dump) readGroup(p []byte, group []Desc, raw []byte) (pages int, err error) {
	var there []byte
	if off := group[0].Offset; off < uint64(d.size) {
		there = raw[:min(uint64(len(raw)), uint64(d.size)-off)]
		n, _ := d.r.ReadAt(there, int64(off))
		there = there[:n]
	}
	for i, desc := range group {
		if err := d.check(desc); err != nil {
			return i, err
		}
		if uint64(desc.Size) > uint64(len(there)) {
			// If the read of a group fails, its first pages are
			// still returned, and so are its last ones to a caller
			// that goes on after the bad page.
			there = raw[:desc.Size]
			if n, err := d.r.ReadAt(there, int64(desc.Offset)); n < len(there) {
				return i, fmt.Errorf("read page at offset %#x: %w", desc.Offset, err)
			}
		}
		page := p[uint64(i)*d.info.BlockSize:][:d.info.BlockSize]
		if err := d.codecs.expand(page, there[:desc.Size], desc.Flags); err != nil {
			return i, fmt.Errorf("page at offset %#x: %w", desc.Offset, err)
		}
		there = there[desc.Size:]
	}
	return len(group), nil
}

// check says whether a page can be where desc says.
func (d *Dump) check(desc Desc) error {
	end := desc.Offset + uint64(desc.Size)
	switch {
	case desc.Offset == 0:
		return &absent{vmcore.Unreadable, errUnwritten}
	case desc.Size == 0 || uint64(desc.Size) > d.info.BlockSize:
		return fmt.Errorf("page at offset %#x: size %#x, want 1 to %#x", desc.Offset, desc.Size, d.info.BlockSize)
	case end < desc.Offset || end > uint64(d.size):
		return fmt.Errorf("page at offset %#x: %#x bytes, but the file ends at %#x", desc.Offset, desc.Size, d.size)
	}
	return nil
}

// contiguous returns the descriptors at the start of descs whose pages lie
// one after the other in the file, and how many bytes these take there.
func contiguous(descs []Desc) (group []Desc, size uint64) {
	for i, d := range descs {
		if i > 0 && (d.Offset != descs[0].Offset+size || size+uint64(d.Size) > maxRead) {
			return descs[:i], size
		}
		// check finds sizes that make no sense.
		size += min(uint64(d.Size), MaxBlockSize)
	}
	return descs, size
}

// descs reads the descriptors of n pages from pfn on, all of them held.
func (d *Dump) descs(pfn, n uint64) ([]Desc, error) {
	before, err := d.held.before(pfn)
	if err != nil {
		return nil, err
	}
	b := make([]byte, n*DescSize)
	// The index is below MaxPages, so this can't wrap.
	if err := d.cache.read(b, d.head.DescOffset()+int64(before-d.skip)*DescSize); err != nil {
		return nil, fmt.Errorf("page descriptor: %w", err)
	}
	descs := make([]Desc, n)
	for i := range descs {
		descs[i] = ParseDesc(b[i*DescSize:])
	}
	return descs, nil
}

// readPart fills p from byte in of page pfn on, up to the end of the page.
func (d *Dump) readPart(p []byte, pfn, in uint64) (uint64, error) {
	if page := d.recent.page(pfn); page != nil {
		return uint64(copy(p, page[in:])), nil
	}
	page := make([]byte, d.info.BlockSize)
	if _, err := d.readPages(page, pfn, 1); err != nil {
		return 0, err
	}
	d.recent.add(pfn, page)
	return uint64(copy(p, page[in:])), nil
}
