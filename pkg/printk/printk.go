// Package printk reads the log of a crashed kernel out of its memory: the
// ring buffer of kernel/printk/printk_ringbuffer.c, which kernels have had
// since v5.10 (commit 896fbe20b4e2 "printk: use the lockless ringbuffer"), or
// the records in log_buf that kernels had before, from v3.5 on.
//
// VMCOREINFO says which of them it is, where it is and how its structures are
// laid out; nothing about a kernel version is assumed.
//
// Invariants: the memory is that of a crashed or hostile system. The counts
// in it are capped by named constants, each step through the log moves on by
// a record's header at least, and never goes round twice. A record that
// contradicts itself is counted as lost and left out. The kernel may have died
// while it was writing: a record need not be finalized or committed to be
// read, if its text is there.
package printk

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/warmcore/warmcore/pkg/vmcoreinfo"
)

// Caps of what is read.
const (
	// MaxRecords is how many records are read; the newest are kept. The
	// ring of a log_buf_len of 64 MiB has as many descriptors.
	MaxRecords = 1 << 21
	// maxCountBits bounds the descriptors of a ring: one for 32 bytes of the
	// largest text ring (PRB_AVGBITS in kernel/printk/printk.c, v6.12).
	maxCountBits = MaxRingBits - 5
	// MaxRingBits bounds the text ring, and the older log: log_buf_len is at
	// most 2 GiB (LOG_BUF_LEN_MAX in kernel/printk/printk.c, v6.12).
	MaxRingBits = 31
	// MaxText is how much text is kept, in bytes; the newest is kept.
	MaxText = 64 << 20

	maxStruct = 4096     // bytes in any of the structures
	readAhead = 16 << 10 // bytes read at once
)

// Memory reads the crashed kernel's memory by the virtual addresses that it
// used. It fails if it can't read all of p.
type Memory interface {
	ReadVirtual(p []byte, addr uint64) error
}

// ErrNoLog says that VMCOREINFO describes neither a ring buffer nor the log
// before it: the kernel is older than v3.5, or has no printk.
var ErrNoLog = errors.New("VMCOREINFO describes no log (kernels before v3.5, or without printk)")

// Record is one message.
type Record struct {
	Sequence uint64 // before v5.10 counted from the oldest record
	Nanos    uint64 // since boot, by the crashed kernel's clock
	Caller   uint32 // thread id, or processor number with bit 31 set; 0 if not known, as before v5.10
	Facility uint8
	Level    uint8 // 0 (emergency) to 7 (debug)
	Text     []byte
}

// Log is the part of the log that could be read.
type Log struct {
	Records []Record // oldest first
	// Lost counts the records that were in the log and could not be read:
	// without a text yet, overwritten, contradictory, or in unreadable memory.
	// Before v5.10, a record that can't be read may hide some that follow it;
	// they count as one with it.
	Lost int
}

// Read reads the log of the kernel that info describes. An error says that
// the log as a whole can't be read.
func Read(info *vmcoreinfo.Info, mem Memory) (Log, error) {
	switch {
	case info.Symbols["prb"] != 0:
		l, err := newLayout(info)
		if err != nil {
			return Log{}, fmt.Errorf("read printk ring buffer: %w", err)
		}
		r, err := l.open(mem)
		if err != nil {
			return Log{}, fmt.Errorf("read printk ring buffer: %w", err)
		}
		return r.records(), nil
	case info.Symbols["log_first_idx"] != 0:
		b, err := openLogBuffer(info, mem)
		if err != nil {
			return Log{}, fmt.Errorf("read log_buf: %w", err)
		}
		return b.records(), nil
	}
	return Log{}, fmt.Errorf("read printk log: %w", ErrNoLog)
}

// keeper collects records. If there are too many, or too much text, it keeps
// the newest.
type keeper struct {
	records []Record
	first   int // index of the oldest record that is kept
	text    int // bytes in them
	lost    int
}

func (k *keeper) add(r Record) {
	if k.first >= MaxRecords { // rarely, and the array stays as large as it is
		n := copy(k.records, k.records[k.first:])
		clear(k.records[n:])
		k.records, k.first = k.records[:n], 0
	}
	k.records = append(k.records, r)
	k.text += len(r.Text)
	for k.text > MaxText || len(k.records)-k.first > MaxRecords {
		k.text -= len(k.records[k.first].Text)
		k.records[k.first] = Record{} // nothing else holds the text
		k.first++
		k.lost++
	}
}

func (k *keeper) log() Log { return Log{k.records[k.first:], k.lost} }

// layout has the offsets and sizes of the structures, from VMCOREINFO.
type layout struct {
	prb                                     uint64 // address of the pointer to the ring
	ring, desc, info                        uint64 // sizes
	descRing, textRing                      uint64 // offsets in the ring
	countBits, descs, infos, headID, tailID uint64 // in the descriptor ring
	stateVar, begin, next                   uint64 // in a descriptor
	sequence, nanos, textLen, caller        uint64 // in an info
	sizeBits, data                          uint64 // in the text ring
}

func newLayout(v *vmcoreinfo.Info) (layout, error) {
	l := layout{prb: v.Symbols["prb"]}
	for _, s := range []struct {
		to   *uint64
		name string
	}{
		{&l.ring, "printk_ringbuffer"}, {&l.desc, "prb_desc"}, {&l.info, "printk_info"},
	} {
		n := v.Sizes[s.name]
		if n == 0 || n > maxStruct {
			return layout{}, fmt.Errorf("SIZE(%s) is %d, want 1 to %d", s.name, n, maxStruct)
		}
		*s.to = n
	}
	var counter, lpos, begin, next uint64
	for _, o := range []struct {
		to    *uint64
		name  string
		width uint64 // of the field
		size  uint64 // of the structure that holds it
	}{
		{&l.descRing, "printk_ringbuffer.desc_ring", 8, l.ring},
		{&l.textRing, "printk_ringbuffer.text_data_ring", 8, l.ring},
		{&l.countBits, "prb_desc_ring.count_bits", 4, l.ring},
		{&l.descs, "prb_desc_ring.descs", 8, l.ring},
		{&l.infos, "prb_desc_ring.infos", 8, l.ring},
		{&l.headID, "prb_desc_ring.head_id", 8, l.ring},
		{&l.tailID, "prb_desc_ring.tail_id", 8, l.ring},
		{&l.sizeBits, "prb_data_ring.size_bits", 4, l.ring},
		{&l.data, "prb_data_ring.data", 8, l.ring},
		{&l.stateVar, "prb_desc.state_var", 8, l.desc},
		{&lpos, "prb_desc.text_blk_lpos", 8, l.desc},
		{&begin, "prb_data_blk_lpos.begin", 8, l.desc},
		{&next, "prb_data_blk_lpos.next", 8, l.desc},
		{&l.sequence, "printk_info.seq", 8, l.info},
		{&l.nanos, "printk_info.ts_nsec", 8, l.info},
		// facility and level follow; they have no offset of their own.
		{&l.textLen, "printk_info.text_len", 4, l.info},
		{&l.caller, "printk_info.caller_id", 4, l.info},
		{&counter, "atomic_long_t.counter", 8, l.ring},
	} {
		n, ok := v.Offsets[o.name]
		if !ok {
			return layout{}, fmt.Errorf("OFFSET(%s) is missing", o.name)
		}
		if n > o.size || n+o.width > o.size {
			return layout{}, fmt.Errorf("OFFSET(%s) is %d, beyond the %d bytes of its structure", o.name, n, o.size)
		}
		*o.to = n
	}
	l.begin, l.next = lpos+begin, lpos+next
	for _, f := range []*uint64{&l.countBits, &l.descs, &l.infos, &l.headID, &l.tailID} {
		*f += l.descRing
	}
	l.sizeBits += l.textRing
	l.data += l.textRing
	l.headID += counter
	l.tailID += counter
	l.stateVar += counter
	for _, f := range []struct{ end, size uint64 }{
		{max(l.countBits+4, l.descs+8, l.infos+8, l.headID+8, l.tailID+8, l.sizeBits+4, l.data+8), l.ring},
		{max(l.stateVar+8, l.begin+8, l.next+8), l.desc},
	} {
		if f.end > f.size {
			return layout{}, fmt.Errorf("fields reach to byte %d of a structure of %d", f.end, f.size)
		}
	}
	return l, nil
}

var le = binary.LittleEndian

// ring is an opened ring buffer.
type ring struct {
	layout
	count        uint64 // of descriptors, a power of two
	size         uint64 // of the text ring, a power of two
	head, tail   uint64 // ids
	descriptors  window
	informations window
	text         window
}

func (l layout) open(mem Memory) (*ring, error) {
	var p [8]byte
	if err := mem.ReadVirtual(p[:], l.prb); err != nil {
		return nil, fmt.Errorf("prb at %#x: %w", l.prb, err)
	}
	b := make([]byte, l.ring)
	at := le.Uint64(p[:])
	if err := mem.ReadVirtual(b, at); err != nil {
		return nil, fmt.Errorf("struct printk_ringbuffer at %#x: %w", at, err)
	}
	countBits, sizeBits := le.Uint32(b[l.countBits:]), le.Uint32(b[l.sizeBits:])
	if countBits == 0 || countBits > maxCountBits {
		return nil, fmt.Errorf("struct printk_ringbuffer at %#x: count_bits is %d, want 1 to %d", at, countBits, maxCountBits)
	}
	if sizeBits < 3 || sizeBits > MaxRingBits {
		return nil, fmt.Errorf("struct printk_ringbuffer at %#x: size_bits is %d, want 3 to %d", at, sizeBits, MaxRingBits)
	}
	r := &ring{
		layout: l,
		count:  1 << countBits,
		size:   1 << sizeBits,
		head:   le.Uint64(b[l.headID:]) & idMask,
		tail:   le.Uint64(b[l.tailID:]) & idMask,
	}
	r.descriptors = window{mem: mem, base: le.Uint64(b[l.descs:]), size: r.count * l.desc}
	r.informations = window{mem: mem, base: le.Uint64(b[l.infos:]), size: r.count * l.info}
	r.text = window{mem: mem, base: le.Uint64(b[l.data:]), size: r.size}
	return r, nil
}

// A descriptor's state_var holds its id and, in the top two bits, its state.
const (
	idMask     = 1<<62 - 1
	stateShift = 62

	stateReserved  = 0
	stateCommitted = 1
	stateFinalized = 2
	stateReusable  = 3
)

// Positions that stand for no text at all.
const (
	failedPosition    = 1 // FAILED_LPOS
	emptyLinePosition = 3 // EMPTY_LINE_LPOS
)

func (r *ring) records() Log {
	var k keeper
	n := (r.head-r.tail)&idMask + 1
	id := r.tail
	if n > r.count {
		// head and tail contradict each other: what the ring can hold is
		// what comes before head.
		n, id = r.count, (r.head-r.count+1)&idMask
	}
	if n > MaxRecords {
		k.lost += int(n - MaxRecords)
		n, id = MaxRecords, (r.head-MaxRecords+1)&idMask
	}
	for ; n > 0; n, id = n-1, (id+1)&idMask {
		rec, ok := r.record(id)
		switch {
		case !ok:
			k.lost++
		case rec != nil:
			k.add(*rec)
		}
	}
	return k.log()
}

// record returns the record of an id; nil if there is none, which is no loss.
func (r *ring) record(id uint64) (rec *Record, ok bool) {
	index := id & (r.count - 1)
	d, err := r.descriptors.read(index*r.desc, r.desc)
	if err != nil {
		return nil, false
	}
	state := le.Uint64(d[r.stateVar:])
	if state>>stateShift == stateReusable {
		return nil, true
	}
	if state&idMask != id {
		return nil, false
	}
	begin, next := le.Uint64(d[r.begin:]), le.Uint64(d[r.next:])
	i, err := r.informations.read(index*r.layout.info, r.layout.info)
	if err != nil {
		return nil, false
	}
	rec = &Record{
		Sequence: le.Uint64(i[r.sequence:]),
		Nanos:    le.Uint64(i[r.nanos:]),
		Caller:   le.Uint32(i[r.caller:]),
		Facility: i[r.textLen+2],
		Level:    i[r.textLen+3] >> 5, // u8 flags:5, level:3
	}
	length := uint64(le.Uint16(i[r.textLen:]))
	if state>>stateShift == stateReserved && (length == 0 || !r.owns(begin, next, id)) {
		return nil, false // the kernel died before the text was there
	}
	text, err := r.block(begin, next, length)
	if err != nil {
		return nil, false
	}
	rec.Text = append(rec.Text, text...)
	return rec, true
}

var errBlock = errors.New("contradictory text block")

// idSize is the size of the id that struct prb_data_block starts with.
const idSize = 8

// place returns where in the ring a block between two logical positions lies,
// and how large it is, as get_data in printk_ringbuffer.c does it. A block that
// didn't fit at the end of the ring lies at its beginning. Until v6.17 one that
// would have ended exactly at the end lay there, too; since v6.18 it just ends
// there (commit 67e1b0052f6b "printk_ringbuffer: don't needlessly wrap data
// blocks around"). Older kernels never have such positions, so that both are
// told by them. Positions begin one lap before 0 and wrap to it.
func (r *ring) place(begin, next uint64) (at, size uint64, err error) {
	mask := r.size - 1
	last := next - 1
	switch {
	case begin&^mask == last&^mask:
		at, size = begin&mask, next-begin
	case (begin+r.size)&^mask == last&^mask:
		at, size = 0, last&mask+1
	default:
		return 0, 0, errBlock
	}
	if begin%idSize != 0 || next%idSize != 0 || size < idSize || size > r.size {
		return 0, 0, errBlock
	}
	return at, size, nil
}

// block returns the text between two logical positions.
func (r *ring) block(begin, next, length uint64) ([]byte, error) {
	if begin&1 != 0 && next&1 != 0 {
		if begin == emptyLinePosition && next == emptyLinePosition {
			return nil, nil
		}
		return nil, errBlock // FAILED_LPOS: the text was dropped
	}
	at, size, err := r.place(begin, next)
	if err != nil {
		return nil, err
	}
	if length > size-idSize {
		return nil, errBlock
	}
	return r.text.read(at+idSize, length)
}

// owns says whether the block between two logical positions is that of the
// record with the id.
func (r *ring) owns(begin, next, id uint64) bool {
	at, _, err := r.place(begin, next)
	if err != nil {
		return false
	}
	b, err := r.text.read(at, idSize)
	return err == nil && le.Uint64(b) == id
}

// window reads an array, some of it ahead.
type window struct {
	mem        Memory
	base, size uint64 // of the array
	at         uint64 // offset of buf
	buf        []byte
}

// read returns n bytes at off, valid until the next read.
func (w *window) read(off, n uint64) ([]byte, error) {
	if off > w.size || n > w.size-off {
		return nil, errBlock
	}
	if off >= w.at && off+n <= w.at+uint64(len(w.buf)) {
		return w.buf[off-w.at:][:n], nil
	}
	if w.base+off < w.base {
		return nil, errBlock
	}
	for _, ahead := range []uint64{min(max(n, readAhead), w.size-off), n} {
		if uint64(cap(w.buf)) < ahead {
			w.buf = make([]byte, ahead)
		}
		w.buf, w.at = w.buf[:ahead], off
		if err := w.mem.ReadVirtual(w.buf, w.base+off); err == nil {
			return w.buf[:n], nil
		} else if ahead == n {
			w.buf = w.buf[:0]
			return nil, err
		}
	}
	w.buf = w.buf[:0]
	return nil, errBlock
}
