package registration

import (
	"errors"
	"fmt"
)

// Load returns the newest valid copy in handoff, a private copy of at least
// the first CopiesSize bytes of the handoff area. The error wraps ErrEmpty if
// neither copy was ever written; otherwise it wraps ErrNone and what is wrong
// with each copy.
func Load(handoff []byte) (*Block, error) {
	b, _, err := newest(handoff)
	return b, err
}

// Store encodes b as the successor of the newest copy in handoff, which is a
// private copy as for Load, sets b.Sequence, and returns the bytes to write
// and where in the handoff area. The bytes replace the copy that is older or
// not valid. The other copy is not touched, so if the write is torn anywhere,
// Load finds either b or what it found before.
func Store(b *Block, handoff []byte) (off int, data []byte, err error) {
	last, at, err := newest(handoff)
	next := *b
	next.Sequence = 1
	switch {
	case err == nil:
		// This may wrap to 0; later compares across the wrap.
		next.Sequence = last.Sequence + 1
		if at == CopyAOff {
			off = CopyBOff
		}
	case !errors.Is(err, ErrEmpty) && !errors.Is(err, ErrNone):
		return 0, nil, fmt.Errorf("store registration: %w", err)
	}
	data, err = next.AppendBinary(nil)
	if err != nil {
		return 0, nil, fmt.Errorf("store registration: %w", err)
	}
	b.Sequence = next.Sequence
	return off, data, nil
}

// newest returns the newest valid copy and its offset.
func newest(handoff []byte) (*Block, int, error) {
	if len(handoff) < CopiesSize {
		return nil, 0, fmt.Errorf("load registration: %w", &FormatError{len(handoff), "handoff area", ErrTooShort})
	}
	a, errA := Decode(handoff[CopyAOff:][:CopySize])
	b, errB := Decode(handoff[CopyBOff:][:CopySize])
	switch {
	case errA == nil && (errB != nil || !later(b.Sequence, a.Sequence)):
		return a, CopyAOff, nil
	case errB == nil:
		return b, CopyBOff, nil
	case errors.Is(errA, ErrMagic) && errors.Is(errB, ErrMagic):
		return nil, 0, fmt.Errorf("load registration: %w", ErrEmpty)
	}
	return nil, 0, fmt.Errorf("load registration: %w: copy A: %w; copy B: %w", ErrNone, errA, errB)
}

// later says whether sequence number a comes after b. It works across the
// wrap, because the two are never more than half of the number range apart.
func later(a, b uint64) bool { return int64(a-b) > 0 }
