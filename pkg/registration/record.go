package registration

// RecordLen is the length of a crash record, in bytes.
const RecordLen = 128

// Record is the crash record, which the stub writes at RecordOff when the
// crashed kernel jumps to it.
type Record struct {
	Nonce      [16]byte // Identity.Nonce of the registration it belongs to
	Flags      uint32   // RecordPanic
	CPU        uint32   // number of the CPU that crashed; what numbers are is the architecture's, see FORMAT.md
	Expected   uint32   // CPUs that should flush their caches, the crashing one included
	Flushed    uint32   // CPUs that did
	FlushedMap [32]byte // bitmap of those CPUs, by number, below 256
	Ticks      uint64   // the crashing CPU's time stamp counter, or the generic timer's count, when it crashed
}

// RecordPanic in Record.Flags says that the kernel panicked.
const RecordPanic uint32 = 1 << 0

const (
	recordMagic   = "WCRECORD"
	recordVersion = 1

	recMagic    = 0
	recVersion  = 8
	recFlags    = 12
	recNonce    = 16
	recCPU      = 32
	recExpected = 36
	recFlushed  = 40
	recZero1    = 44 // 4 bytes
	recTicks    = 48
	recZero2    = 56 // 8 bytes
	recMap      = 64
	recZero3    = 96 // 24 bytes
	recSum      = 120

	// recordSeed is added to the sum so that it isn't 0 for zeroes.
	recordSeed = 0x57415243_4f524531
)

// recordSum adds the little-endian words before the checksum. It is a sum and
// no CRC because the stub computes it, in a few instructions of assembly.
func recordSum(b []byte) uint64 {
	sum := uint64(recordSeed)
	for off := 0; off < recSum; off += 8 {
		sum += le.Uint64(b[off:])
	}
	return sum
}

// DecodeRecord reads a crash record from the start of b. The error is a
// *FormatError; it wraps ErrMagic if there is no record: none was written, or
// the machine was reset while it was being written.
func DecodeRecord(b []byte) (Record, error) {
	if len(b) < RecordLen {
		return Record{}, &FormatError{len(b), "crash record", ErrTooShort}
	}
	b = b[:RecordLen]
	if string(b[recMagic:recVersion]) != recordMagic {
		return Record{}, &FormatError{recMagic, "crash record magic", ErrMagic}
	}
	if le.Uint32(b[recVersion:]) != recordVersion {
		return Record{}, &FormatError{recVersion, "crash record version", ErrVersion}
	}
	if recordSum(b) != le.Uint64(b[recSum:]) {
		return Record{}, &FormatError{recSum, "crash record checksum", ErrChecksum}
	}
	for _, zero := range [][2]int{{recZero1, recTicks}, {recZero2, recMap}, {recZero3, recSum}} {
		for off := zero[0]; off < zero[1]; off++ {
			if b[off] != 0 {
				return Record{}, &FormatError{off, "crash record zero bytes", ErrValue}
			}
		}
	}
	r := Record{
		Flags:    le.Uint32(b[recFlags:]),
		CPU:      le.Uint32(b[recCPU:]),
		Expected: le.Uint32(b[recExpected:]),
		Flushed:  le.Uint32(b[recFlushed:]),
		Ticks:    le.Uint64(b[recTicks:]),
	}
	copy(r.Nonce[:], b[recNonce:])
	copy(r.FlushedMap[:], b[recMap:])
	return r, nil
}

// AppendBinary appends the RecordLen bytes of r. It never fails.
func (r Record) AppendBinary(dst []byte) ([]byte, error) {
	var b [RecordLen]byte
	copy(b[recMagic:], recordMagic)
	le.PutUint32(b[recVersion:], recordVersion)
	le.PutUint32(b[recFlags:], r.Flags)
	copy(b[recNonce:], r.Nonce[:])
	le.PutUint32(b[recCPU:], r.CPU)
	le.PutUint32(b[recExpected:], r.Expected)
	le.PutUint32(b[recFlushed:], r.Flushed)
	le.PutUint64(b[recTicks:], r.Ticks)
	copy(b[recMap:], r.FlushedMap[:])
	le.PutUint64(b[recSum:], recordSum(b[:]))
	return append(dst, b[:]...), nil
}
