package kdump

import (
	"bytes"
	"fmt"

	"github.com/klauspost/compress/snappy"
	"github.com/klauspost/compress/zlib"
	"github.com/klauspost/compress/zstd"
)

// ParseCodec returns the codec that String prints as name, out of those that
// can be written.
func ParseCodec(name string) (Codec, error) {
	for _, flag := range []uint32{0, FlagZlib, FlagSnappy, FlagZstd} {
		if c := Codec(flag); c.String() == name {
			return c, nil
		}
	}
	return 0, fmt.Errorf("compression %q, want zstd, zlib, snappy or none", name)
}

// Encoder compresses pages, one at a time. It keeps its memory from page to
// page: each worker has its own.
type Encoder struct {
	codec Codec
	zstd  *zstd.Encoder
	zlib  *zlib.Writer
	buf   bytes.Buffer // zlib's output
}

// Effort of compression, from the fastest on. The numbers are zstd's levels;
// with zlib they are zlib's, up to 9. Snappy has none.
const (
	MinEffort = 1
	MaxEffort = 22
)

// NewEncoder returns an encoder of pages of size bytes. Effort 0 is MinEffort.
func NewEncoder(c Codec, effort, size int) (*Encoder, error) {
	if effort == 0 {
		effort = MinEffort
	}
	if effort < MinEffort || effort > MaxEffort {
		return nil, fmt.Errorf("compression level %d, want %d to %d", effort, MinEffort, MaxEffort)
	}
	e := &Encoder{codec: c}
	var err error
	switch uint32(c) {
	case FlagZstd:
		// A window of the page's size keeps the encoder's memory small. No
		// checksum: readers of kdump files don't look at it.
		e.zstd, err = zstd.NewWriter(nil,
			zstd.WithEncoderConcurrency(1), zstd.WithEncoderCRC(false), zstd.WithLowerEncoderMem(true), zstd.WithAllLitEntropyCompression(true),
			zstd.WithWindowSize(max(size, zstd.MinWindowSize)), zstd.WithSingleSegment(true),
			zstd.WithEncoderLevel(zstd.EncoderLevelFromZstd(effort)))
	case FlagZlib:
		e.zlib, err = zlib.NewWriterLevel(&e.buf, min(effort, zlib.BestCompression))
	case FlagSnappy, 0:
	default:
		err = fmt.Errorf("compression %v can't be written", c)
	}
	if err != nil {
		return nil, err
	}
	return e, nil
}

// Append appends the compressed page to dst, or the page as it is, raw, if that
// is not larger.
func (e *Encoder) Append(dst, page []byte) (out []byte, raw bool) {
	n := len(dst)
	switch {
	case e.zstd != nil:
		out = e.zstd.EncodeAll(page, dst)
	case e.zlib != nil:
		e.buf.Reset()
		e.zlib.Reset(&e.buf)
		_, err := e.zlib.Write(page)
		if err == nil {
			err = e.zlib.Close()
		}
		if err != nil { // a bytes.Buffer's never
			return append(dst, page...), true
		}
		out = append(dst, e.buf.Bytes()...)
	case uint32(e.codec) == FlagSnappy:
		out = e.appendSnappy(dst, page)
	default:
		return append(dst, page...), true
	}
	if len(out)-n >= len(page) {
		return append(out[:n], page...), true
	}
	return out, false
}

func (e *Encoder) appendSnappy(dst, page []byte) []byte {
	need := snappy.MaxEncodedLen(len(page))
	if cap(dst)-len(dst) < need {
		dst = append(make([]byte, 0, len(dst)+need), dst...)
	}
	b := snappy.Encode(dst[len(dst):len(dst)+need], page)
	return dst[:len(dst)+len(b)]
}
