package flattened

import (
	"errors"
	"fmt"
	"io"
)

// rebuildBuffer is how much Rebuild moves at once, in bytes.
const rebuildBuffer = 1 << 20

// Rebuild writes the file whose form comes from r to w, as makedumpfile -R
// does, and returns its size. A form that is cut off is an error that wraps
// io.ErrUnexpectedEOF; what came before it has been written.
func Rebuild(w io.WriterAt, r io.Reader) (size int64, err error) {
	size, err = rebuild(w, r)
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	if err != nil {
		return size, fmt.Errorf("rebuild from flattened form: %w", err)
	}
	return size, nil
}

func rebuild(w io.WriterAt, r io.Reader) (size int64, err error) {
	buf := make([]byte, rebuildBuffer)
	if _, err := io.ReadFull(r, buf[:headerSize]); err != nil {
		return 0, err
	}
	if err := checkHeader(buf); err != nil {
		return 0, err
	}
	for at := int64(headerSize); ; {
		if _, err := io.ReadFull(r, buf[:recordSize]); err != nil {
			return size, err
		}
		off, n, last, err := parseRecord(buf, at)
		if last || err != nil {
			return size, err
		}
		at += recordSize + n
		for n > 0 {
			part := buf[:min(n, rebuildBuffer)]
			if _, err := io.ReadFull(r, part); err != nil {
				return size, err
			}
			if _, err := w.WriteAt(part, off); err != nil {
				return size, err
			}
			off, n = off+int64(len(part)), n-int64(len(part))
			size = max(size, off)
		}
	}
}
