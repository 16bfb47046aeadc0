package registration

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
)

// Log is what the payload logged in one boot.
type Log struct {
	Boot uint64 // number of the boot; wraps
	Text []byte // as it was logged, not checked to be printable
}

// MaxLogText is the most text that a slot holds, in bytes.
const MaxLogText = LogSlotSize - logHeaderLen

const (
	logMagic   = "WCLOG\x00\x00\x00"
	logVersion = 1

	logOffMagic   = 0
	logOffVersion = 8
	logOffLength  = 12 // bytes of text
	logOffBoot    = 16
	logOffTextCRC = 24
	logOffCRC     = 28 // over the header before it
	logHeaderLen  = 32
)

// cutLine is the first line of a text whose beginning was cut.
const cutLine = "[%d bytes cut]\n"

// EncodeLog returns the bytes to write at the slot that NextLogSlot gave. A
// text longer than MaxLogText loses its beginning, which a line replaces that
// says how much was cut: errors are at the end.
func EncodeLog(l Log) []byte {
	text := l.Text
	if len(text) > MaxLogText {
		// The longest such line any text can need.
		room := MaxLogText - len(fmt.Sprintf(cutLine, len(text)))
		cut := len(text) - room
		text = append(fmt.Appendf(nil, cutLine, cut), text[cut:]...)
	}
	b := make([]byte, logHeaderLen, logHeaderLen+len(text))
	copy(b[logOffMagic:], logMagic)
	le.PutUint32(b[logOffVersion:], logVersion)
	le.PutUint32(b[logOffLength:], uint32(len(text)))
	le.PutUint64(b[logOffBoot:], l.Boot)
	le.PutUint32(b[logOffTextCRC:], checksum(text))
	le.PutUint32(b[logOffCRC:], checksum(b[:logOffCRC]))
	return append(b, text...)
}

// DecodeLogs returns the newest valid log in handoff, a private copy of the
// handoff area up to the end of the log slots, and the one before it. If only
// one slot is valid, previous is zero, and current.Boot says which boot the
// log is of. The error wraps ErrEmpty if no log was ever written, else
// ErrNone.
func DecodeLogs(handoff []byte) (current, previous Log, err error) {
	a, b, errA, errB := decodeSlots(handoff)
	switch {
	case errA != nil && errB != nil:
		if errors.Is(errA, ErrMagic) && errors.Is(errB, ErrMagic) {
			return Log{}, Log{}, fmt.Errorf("load logs: %w", ErrEmpty)
		}
		return Log{}, Log{}, fmt.Errorf("load logs: %w: slot 0: %w; slot 1: %w", ErrNone, errA, errB)
	case errB != nil:
		return a, Log{}, nil
	case errA != nil:
		return b, Log{}, nil
	case later(b.Boot, a.Boot):
		return b, a, nil
	}
	return a, b, nil
}

// NextLogSlot returns where in the handoff area this boot's log goes, and the
// number of this boot. It is called once a boot; the slot is then rewritten
// as the log grows. The log of the boot before stays.
func NextLogSlot(handoff []byte) (off int, boot uint64) {
	const slot0, slot1 = LogOff, LogOff + LogSlotSize
	a, b, errA, errB := decodeSlots(handoff)
	switch {
	case errA != nil && errB != nil:
		return slot0, 1
	case errA != nil:
		return slot0, b.Boot + 1
	case errB != nil:
		return slot1, a.Boot + 1
	case later(b.Boot, a.Boot):
		return slot0, b.Boot + 1
	}
	return slot1, a.Boot + 1
}

func decodeSlots(handoff []byte) (a, b Log, errA, errB error) {
	a, errA = decodeLog(handoff, LogOff)
	b, errB = decodeLog(handoff, LogOff+LogSlotSize)
	return a, b, errA, errB
}

// decodeLog reads the slot at off in handoff; offsets in errors are the
// handoff area's.
func decodeLog(handoff []byte, off int) (Log, error) {
	if len(handoff) < off+LogSlotSize {
		return Log{}, &FormatError{len(handoff), "log slot", ErrTooShort}
	}
	slot := handoff[off:][:LogSlotSize]
	h := slot[:logHeaderLen]
	if !bytes.Equal(h[logOffMagic:logOffVersion], []byte(logMagic)) {
		return Log{}, &FormatError{off + logOffMagic, "log magic", ErrMagic}
	}
	if le.Uint32(h[logOffVersion:]) != logVersion {
		return Log{}, &FormatError{off + logOffVersion, "log version", ErrVersion}
	}
	if checksum(h[:logOffCRC]) != le.Uint32(h[logOffCRC:]) {
		return Log{}, &FormatError{off + logOffCRC, "log header checksum", ErrChecksum}
	}
	n := le.Uint32(h[logOffLength:])
	if n > MaxLogText {
		return Log{}, &FormatError{off + logOffLength, "log length", ErrTooLarge}
	}
	text := slot[logHeaderLen:][:n]
	if checksum(text) != le.Uint32(h[logOffTextCRC:]) {
		return Log{}, &FormatError{off + logOffTextCRC, "log checksum", ErrChecksum}
	}
	l := Log{Boot: le.Uint64(h[logOffBoot:])}
	if n > 0 {
		l.Text = slices.Clone(text)
	}
	return l, nil
}
