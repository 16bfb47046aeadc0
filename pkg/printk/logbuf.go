package printk

import (
	"errors"
	"fmt"

	"github.com/warmcore/warmcore/pkg/vmcoreinfo"
)

// logBuffer is the log of kernels v3.5 to v5.9 (log_store and log_next in
// kernel/printk/printk.c, v5.9): records in log_buf, one after the other
// from log_first_idx up to log_next_idx, each a struct printk_log, its text
// and its dictionary. Where the next one doesn't fit at the end, a header
// whose len is 0 says that it is at the beginning.
type logBuffer struct {
	header                          uint64 // sizeof(struct printk_log)
	nanos, length, textLen, dictLen uint64 // offsets in it
	first, next                     uint64 // offsets in the buffer
	text                            window // of the buffer
}

// headerNames are what VMCOREINFO calls the header: since v3.11, and before.
var headerNames = []string{"printk_log", "log"}

func openLogBuffer(v *vmcoreinfo.Info, mem Memory) (*logBuffer, error) {
	b := &logBuffer{}
	if err := b.layout(v); err != nil {
		return nil, err
	}
	var base, size uint64
	for _, s := range []struct {
		to    *uint64
		name  string
		width int
	}{
		{&base, "log_buf", 8},
		{&size, "log_buf_len", 4},
		{&b.first, "log_first_idx", 4},
		{&b.next, "log_next_idx", 4},
	} {
		at := v.Symbols[s.name]
		if at == 0 {
			return nil, fmt.Errorf("SYMBOL(%s) is missing", s.name)
		}
		var p [8]byte
		if err := mem.ReadVirtual(p[:s.width], at); err != nil {
			return nil, fmt.Errorf("%s at %#x: %w", s.name, at, err)
		}
		*s.to = le.Uint64(p[:])
	}
	switch {
	case size < b.header || size > 1<<MaxRingBits:
		return nil, fmt.Errorf("log_buf_len is %d, want %d to %d", size, b.header, uint64(1)<<MaxRingBits)
	case b.first >= size:
		return nil, fmt.Errorf("log_first_idx is %d, beyond the %d bytes of the log", b.first, size)
	case b.next > size:
		return nil, fmt.Errorf("log_next_idx is %d, beyond the %d bytes of the log", b.next, size)
	}
	b.text = window{mem: mem, base: base, size: size}
	return b, nil
}

func (b *logBuffer) layout(v *vmcoreinfo.Info) error {
	name := headerNames[0]
	for _, n := range headerNames {
		if v.Sizes[n] != 0 {
			name, b.header = n, v.Sizes[n]
			break
		}
	}
	if b.header == 0 || b.header > maxStruct {
		return fmt.Errorf("SIZE(%s) is %d, want 1 to %d", name, b.header, maxStruct)
	}
	for _, o := range []struct {
		to    *uint64
		name  string
		width uint64
	}{
		{&b.nanos, "ts_nsec", 8},
		{&b.length, "len", 2},
		{&b.textLen, "text_len", 2},
		// facility, flags and level follow; they have no offset of their own.
		{&b.dictLen, "dict_len", 4},
	} {
		n, ok := v.Offsets[name+"."+o.name]
		if !ok {
			return fmt.Errorf("OFFSET(%s.%s) is missing", name, o.name)
		}
		if n > b.header || o.width > b.header-n {
			return fmt.Errorf("OFFSET(%s.%s) is %d, beyond the %d bytes of its structure", name, o.name, n, b.header)
		}
		*o.to = n
	}
	return nil
}

// span is a part of the buffer, half-open, in which records lie one after
// the other.
type span struct{ start, end uint64 }

// records reads the parts of the log in the order of time. Only a record says
// where the next one is, so after a corrupt one the next is searched for. If
// the log has wrapped, its newest records begin at the start of the buffer and
// are found again there in any case.
func (b *logBuffer) records() Log {
	var k keeper
	parts := []span{{b.first, b.next}}
	if b.first > b.next {
		parts = []span{{b.first, b.text.size}, {0, b.next}}
	}
	var sequence uint64
	searches := 0
	for i, part := range parts {
		for at := part.start; at < part.end; sequence++ {
			n, err := b.record(&k, sequence, at, part.end)
			if errors.Is(err, errWrap) && i < len(parts)-1 {
				break
			}
			if err != nil {
				k.lost++
				if !errors.Is(err, errRecord) && !errors.Is(err, errWrap) || searches == maxSearches {
					break
				}
				searches++
				n = b.search(at, part.end, i < len(parts)-1) - at
			}
			at += n
		}
	}
	return k.log()
}

// Caps of the search after a corrupt record.
const (
	maxSearches = 16      // in a log
	maxLength   = 1 << 16 // of a record, whose length has 16 bits
	maxChain    = 16      // records that must be well-formed
	lengthUnit  = 4       // LOG_ALIGN; 8 on some machines
)

// search returns where the next record after the corrupt one at an offset is:
// the first place from which well-formed records lead to the end of the part,
// or on for a while. It returns end if there is none. wraps says that the part's
// last record may be followed by an empty header.
func (b *logBuffer) search(at, end uint64, wraps bool) uint64 {
	for next := at + lengthUnit; next < end && next-at <= maxLength; next += lengthUnit {
		if b.chain(next, end, wraps) {
			return next
		}
	}
	return end
}

// chain says whether well-formed records begin at an offset.
func (b *logBuffer) chain(at, end uint64, wraps bool) bool {
	for i := range maxChain {
		if b.header > end-at {
			return false
		}
		h, err := b.text.read(at, b.header)
		if err != nil {
			return false
		}
		n := uint64(le.Uint16(h[b.length:]))
		if n == 0 {
			return wraps && i > 0
		}
		used := b.header + uint64(le.Uint16(h[b.textLen:])) + uint64(le.Uint16(h[b.dictLen:]))
		if n < used || n-used >= 8 || n%lengthUnit != 0 || n > end-at {
			return false
		}
		if at += n; at == end {
			return true
		}
	}
	return true
}

var (
	errWrap   = errors.New("the next record is at the beginning")
	errRecord = errors.New("contradictory record")
)

// record takes the record at an offset in a part that ends at end, and
// returns its length, which is at least that of a header.
func (b *logBuffer) record(k *keeper, sequence, at, end uint64) (n uint64, err error) {
	if b.header > end-at {
		return 0, errRecord
	}
	h, err := b.text.read(at, b.header)
	if err != nil {
		return 0, err
	}
	n = uint64(le.Uint16(h[b.length:]))
	if n == 0 {
		return 0, errWrap
	}
	if n < b.header || n > end-at {
		return 0, errRecord
	}
	rec := Record{
		Sequence: sequence,
		Nanos:    le.Uint64(h[b.nanos:]),
		Facility: h[b.dictLen+2],
		Level:    h[b.dictLen+3] >> 5, // u8 flags:5, level:3
	}
	textLen, dictLen := uint64(le.Uint16(h[b.textLen:])), uint64(le.Uint16(h[b.dictLen:]))
	if textLen+dictLen > n-b.header {
		k.lost++
		return n, nil
	}
	text, err := b.text.read(at+b.header, textLen)
	if err != nil {
		k.lost++ // the next one may be in memory that can be read
		return n, nil
	}
	rec.Text = append(rec.Text, text...)
	k.add(rec)
	return n, nil
}
