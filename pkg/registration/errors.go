package registration

import (
	"errors"
	"fmt"
)

// The reasons why something is not a valid copy, record or log.
var (
	ErrMagic     = errors.New("wrong magic")
	ErrByteOrder = errors.New("wrong byte order")
	ErrVersion   = errors.New("unknown version")
	ErrChecksum  = errors.New("wrong checksum")
	ErrTooLarge  = errors.New("larger than allowed")
	ErrTooShort  = errors.New("too short")
	ErrDuplicate = errors.New("given twice")
	ErrValue     = errors.New("value not allowed")
)

var (
	// ErrEmpty says that nothing has been written yet: no magic anywhere.
	ErrEmpty = errors.New("empty")
	// ErrNone says that something has been written and none of it is valid.
	ErrNone = errors.New("no valid copy")
)

// FormatError says which field at which offset is wrong. Off counts bytes
// from the start of what was decoded, or of what would have been encoded.
type FormatError struct {
	Off   int
	Field string
	Err   error
}

func (e *FormatError) Error() string {
	return fmt.Sprintf("offset %#x: %s: %v", e.Off, e.Field, e.Err)
}

func (e *FormatError) Unwrap() error { return e.Err }
