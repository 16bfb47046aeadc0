package printktest

// LogBufferInfo is what a kernel before v5.10 says about its log.
const LogBufferInfo = `OSRELEASE=5.4.0-test
SYMBOL(log_buf)=ffffffff81000000
SYMBOL(log_buf_len)=ffffffff81000008
SYMBOL(log_first_idx)=ffffffff81000010
SYMBOL(clear_idx)=ffffffff81000014
SYMBOL(log_next_idx)=ffffffff81000018
SIZE(printk_log)=16
OFFSET(printk_log.ts_nsec)=0
OFFSET(printk_log.len)=8
OFFSET(printk_log.text_len)=10
OFFSET(printk_log.dict_len)=12
`

// Where things of a LogBuffer are in memory.
const (
	AtLogBuf   = 0x000 // the pointer
	AtLogLen   = 0x008
	AtFirst    = 0x010
	AtNext     = 0x018
	AtRecords  = 0x100
	LogBufSize = 256

	logHeader = 16
)

// LogBuffer writes into memory what the writer of a kernel before v5.10 would.
type LogBuffer struct {
	Memory
	first, next uint32
}

// NewLogBuffer returns an empty log.
func NewLogBuffer() *LogBuffer {
	b := &LogBuffer{Memory: make(Memory, AtRecords+LogBufSize)}
	le.PutUint64(b.Memory[AtLogBuf:], Base+AtRecords)
	le.PutUint32(b.Memory[AtLogLen:], LogBufSize)
	return b
}

// Record returns the memory from an offset in the log on.
func (b *LogBuffer) Record(at uint32) []byte { return b.Memory[AtRecords+at:] }

// Print adds a message of level 6, with a dictionary, at second seq*1.5. It
// returns its offset in the log.
func (b *LogBuffer) Print(seq uint64, text, dict string) (at uint32) {
	size := (uint32(logHeader+len(text)+len(dict)) + 3) &^ 3
	for !b.fits(size) {
		b.drop()
	}
	if b.next+size+logHeader > LogBufSize {
		clear(b.Record(b.next)[:logHeader])
		b.next = 0
	}
	at = b.next
	r := b.Record(at)
	clear(r[:size])
	le.PutUint64(r[0:], seq*1_500_000_000)
	le.PutUint16(r[8:], uint16(size))
	le.PutUint16(r[10:], uint16(len(text)))
	le.PutUint16(r[12:], uint16(len(dict)))
	r[14] = 3        // facility
	r[15] = 6<<5 | 2 // level and flags
	copy(r[logHeader:], text)
	copy(r[logHeader+len(text):], dict)
	b.next += size
	b.Ends(b.first, b.next)
	return at
}

// Ends sets the offsets of the oldest record and of what comes after the
// newest.
func (b *LogBuffer) Ends(first, next uint32) {
	b.first, b.next = first, next
	le.PutUint32(b.Memory[AtFirst:], first)
	le.PutUint32(b.Memory[AtNext:], next)
}

// fits says whether size bytes and an empty header are free in one piece.
func (b *LogBuffer) fits(size uint32) bool {
	free := b.first - b.next
	if b.next >= b.first { // equal: empty, as the writer never fills all of it
		free = max(LogBufSize-b.next, b.first)
	}
	return free >= size+logHeader
}

// drop forgets the oldest record.
func (b *LogBuffer) drop() {
	if le.Uint16(b.Record(b.first)[8:]) == 0 {
		b.first = 0
	}
	b.first += uint32(le.Uint16(b.Record(b.first)[8:]))
}
