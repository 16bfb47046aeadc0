// Package flattened reads and writes makedumpfile's flattened form, in which a
// file that is written out of order can go through a pipe: every write is a
// record that says where in the file its bytes belong (makedumpfile -F, and -R
// to undo it).
//
//	offset  size  what                                big-endian
//	0       16    "makedumpfile", filled with zeroes
//	16      8     type: 1
//	24      8     version: 1
//	32      4064  zeroes
//	4096    8     record: offset in the file
//	4104    8     record: size n
//	4112    n     record: bytes
//	...           more records
//	...     16    the last record: offset -1, size -1, no bytes
//
// Where records overlap, the later one counts; bytes that are in no record are
// zero.
//
// Invariants: reading needs memory for at most MaxRuns runs, each of them
// records that are adjacent both in the file and in the flattened form; a form
// that is cut off is read as far as it goes; the file is no larger than the
// form and MaxHoles, so that a few bytes can't keep a reader busy with zeroes.
package flattened

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"

	"github.com/warmcore/warmcore/pkg/vmcore"
)

// Signature begins the form.
const Signature = "makedumpfile\x00\x00\x00\x00"

const (
	headerSize = 4096 // MAX_SIZE_MDF_HEADER
	recordSize = 16   // struct makedumpfile_data_header
	formType   = 1    // TYPE_FLAT_HEADER
	version    = 1    // VERSION_FLAT_HEADER
	end        = -1   // END_FLAG_FLAT_HEADER
)

// MaxRuns caps the index of a form. makedumpfile makes one run for each
// megabyte or so at the worst.
const MaxRuns = 4 << 20

// MaxHoles caps how many bytes of the file are in no record. makedumpfile
// leaves none, unless it was stopped before it wrote its bitmaps.
const MaxHoles = 4 << 30

var be = binary.BigEndian

// header returns the start of a form.
func header() []byte {
	b := make([]byte, headerSize)
	copy(b, Signature)
	be.PutUint64(b[16:], formType)
	be.PutUint64(b[24:], version)
	return b
}

// checkHeader returns an error unless b, at least 32 bytes, is the start of a
// known form.
func checkHeader(b []byte) error {
	if string(b[:16]) != Signature {
		return &vmcore.FormatError{Field: "signature", Problem: fmt.Sprintf("%q, want %q", b[:16], Signature)}
	}
	if t := be.Uint64(b[16:]); t != formType {
		return &vmcore.FormatError{Off: 16, Field: "type", Problem: fmt.Sprintf("%d, want %d", t, formType)}
	}
	if v := be.Uint64(b[24:]); v != version {
		return &vmcore.FormatError{Off: 24, Field: "version", Problem: fmt.Sprintf("%d, want %d", v, version)}
	}
	return nil
}

// parseRecord reads the record b that lies at at; last is true for the end.
func parseRecord(b []byte, at int64) (off, size int64, last bool, err error) {
	off, size = int64(be.Uint64(b)), int64(be.Uint64(b[8:]))
	switch {
	case off == end && size == end:
		return 0, 0, true, nil
	case off < 0:
		return 0, 0, false, &vmcore.FormatError{Off: at, Field: "offset", Problem: fmt.Sprintf("%d is negative", off)}
	case size <= 0 || size > math.MaxInt64-off:
		return 0, 0, false, &vmcore.FormatError{Off: at + 8, Field: "buf_size", Problem: fmt.Sprintf("%#x bytes at %#x are none, or no place in a file", size, off)}
	}
	return off, size, false, nil
}

// Writer writes a form. It is an io.WriterAt, so that code that writes a file
// can write a form.
type Writer struct {
	w   io.Writer
	err error // the first one; nothing is written after it
}

var errClosed = errors.New("the form is closed")

// NewWriter begins a form on w.
func NewWriter(w io.Writer) (*Writer, error) {
	if _, err := w.Write(header()); err != nil {
		return nil, fmt.Errorf("write flattened form: %w", err)
	}
	return &Writer{w: w}, nil
}

// WriteAt writes p as a record for offset off of the file. It must not be
// called concurrently. After an error nothing more is written.
func (w *Writer) WriteAt(p []byte, off int64) (int, error) {
	if len(p) == 0 {
		return 0, w.err
	}
	if w.err != nil {
		return 0, w.err
	}
	if off < 0 || int64(len(p)) > math.MaxInt64-off {
		return 0, fmt.Errorf("write flattened form: %d bytes at %d are no place in a file", len(p), off)
	}
	if err := w.record(off, int64(len(p))); err != nil {
		return 0, err
	}
	n, err := w.w.Write(p)
	if err != nil {
		w.err = fmt.Errorf("write flattened form: %w", err)
	}
	return n, w.err
}

func (w *Writer) record(off, size int64) error {
	b := be.AppendUint64(nil, uint64(off))
	b = be.AppendUint64(b, uint64(size))
	if _, err := w.w.Write(b); err != nil {
		w.err = fmt.Errorf("write flattened form: %w", err)
	}
	return w.err
}

// Close writes the record that ends the form. It does not close the underlying
// writer.
func (w *Writer) Close() error {
	if w.err != nil {
		return w.err
	}
	if err := w.record(end, end); err != nil {
		return err
	}
	w.err = errClosed
	return nil
}
