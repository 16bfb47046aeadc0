// Package checksum sums up a file in blocks while it is written, in any order,
// by any number of goroutines, and checks it later.
//
// The sum of a block is its CRC32C (Castagnoli, RFC 3720), which processors
// compute at many GB/s: it finds what disks, cables and copies break, in the
// block that is broken. It does not protect against somebody who changes both
// the file and the sums; a signature of the manifest that holds the sums does.
//
// Invariants: bytes that are never written are a hole of the file and read as
// zero; bytes that are written once are not written again.
package checksum

import (
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"sync"
)

// BlockSize is the size of a block in bytes; the last one may be shorter.
const BlockSize = 1 << 20

// maxBlocks caps the number of sums, in a Writer and in what is decoded: 128
// TiB of dump.
const maxBlocks = 128 << 20

// Algorithm names the sums in JSON.
const Algorithm = "crc32c"

var table = crc32.MakeTable(crc32.Castagnoli)

// Sums are the sums of a file.
type Sums struct {
	Size   int64    // of the file in bytes
	Blocks []uint32 // the CRC32C of each block
}

// sumsJSON is Sums in JSON: the sums, 4 bytes each, big-endian, are one base64
// string.
type sumsJSON struct {
	Algorithm string `json:"algorithm"`
	Block     int64  `json:"block"`
	Size      int64  `json:"size"`
	Sums      string `json:"sums"`
}

// MarshalJSON implements json.Marshaler.
func (s Sums) MarshalJSON() ([]byte, error) {
	b := make([]byte, 0, 4*len(s.Blocks))
	for _, c := range s.Blocks {
		b = binary.BigEndian.AppendUint32(b, c)
	}
	return json.Marshal(sumsJSON{Algorithm, BlockSize, s.Size, base64.StdEncoding.EncodeToString(b)})
}

// UnmarshalJSON implements json.Unmarshaler.
func (s *Sums) UnmarshalJSON(text []byte) error {
	var j sumsJSON
	if err := json.Unmarshal(text, &j); err != nil {
		return fmt.Errorf("decode checksums: %w", err)
	}
	b, err := base64.StdEncoding.DecodeString(j.Sums)
	switch {
	case err != nil:
		return fmt.Errorf("decode checksums: %w", err)
	case j.Algorithm != Algorithm || j.Block != BlockSize:
		return fmt.Errorf("decode checksums: %s of blocks of %d bytes, want %s of %d", j.Algorithm, j.Block, Algorithm, BlockSize)
	case j.Size < 0 || j.Size > maxBlocks*BlockSize || int64(len(b)) != 4*blocks(j.Size):
		return fmt.Errorf("decode checksums: %d bytes of sums for a file of %d", len(b), j.Size)
	}
	*s = Sums{Size: j.Size}
	for ; len(b) > 0; b = b[4:] {
		s.Blocks = append(s.Blocks, binary.BigEndian.Uint32(b))
	}
	return nil
}

func blocks(size int64) int64 { return (size + BlockSize - 1) / BlockSize }

// Writer passes writes on and sums up their bytes.
type Writer struct {
	dst  io.WriterAt
	mu   sync.Mutex
	done []uint32          // sums of whole blocks, hole if nothing was written
	part map[int64][]piece // of blocks that are not whole, ascending, by block
	end  int64
	sent int64 // bytes written
	err  error
}

// piece is a part of a block.
type piece struct {
	start, end uint32 // in the block
	crc        uint32
}

// NewWriter returns a writer that passes everything on to dst.
func NewWriter(dst io.WriterAt) *Writer {
	return &Writer{dst: dst, part: map[int64][]piece{}}
}

// WriteAt implements io.WriterAt. It may be called concurrently if dst's may.
func (w *Writer) WriteAt(p []byte, off int64) (int, error) {
	if off < 0 || off > maxBlocks*BlockSize-int64(len(p)) {
		return 0, fmt.Errorf("write %d bytes at %#x: more than %d blocks", len(p), off, maxBlocks)
	}
	n, err := w.dst.WriteAt(p, off)
	w.sum(p[:n], off)
	return n, err
}

// Written returns how many bytes were written; the rest of the file is holes.
func (w *Writer) Written() int64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.sent
}

func (w *Writer) sum(p []byte, off int64) {
	for len(p) > 0 {
		in := off % BlockSize
		part := p[:min(int64(len(p)), BlockSize-in)]
		c := piece{uint32(in), uint32(in) + uint32(len(part)), crc32.Checksum(part, table)}
		w.add(off/BlockSize, c)
		off += int64(len(part))
		p = p[len(part):]
	}
}

// hole returns the sum of a block of zeroes.
var hole = zeroes(BlockSize)

var errTwice = errors.New("a byte was written twice")

func (w *Writer) add(block int64, p piece) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.end = max(w.end, block*BlockSize+int64(p.end))
	w.sent += int64(p.end - p.start)
	for int64(len(w.done)) <= block {
		w.done = append(w.done, hole)
	}
	have, started := w.part[block]
	if !started && p.end-p.start == BlockSize {
		w.done[block] = p.crc
		return
	}
	i := len(have)
	for i > 0 && have[i-1].start > p.start {
		i--
	}
	if i > 0 && have[i-1].end > p.start || i < len(have) && have[i].start < p.end {
		w.err = fmt.Errorf("%w: block %d, %#x to %#x", errTwice, block, p.start, p.end)
		return
	}
	if i < len(have) && have[i].start == p.end {
		p = piece{p.start, have[i].end, combine(p.crc, have[i].crc, have[i].end-have[i].start)}
		have = append(have[:i], have[i+1:]...)
	}
	if i > 0 && have[i-1].end == p.start {
		have[i-1] = piece{have[i-1].start, p.end, combine(have[i-1].crc, p.crc, p.end-p.start)}
	} else {
		have = append(have[:i], append([]piece{p}, have[i:]...)...)
	}
	if have[0].end-have[0].start == BlockSize {
		w.done[block] = have[0].crc
		delete(w.part, block)
		return
	}
	w.part[block] = have
}

// Sums returns the sums of a file of size bytes, or, for -1, of one that ends
// where the last write did.
func (w *Writer) Sums(size int64) (Sums, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if size < 0 {
		size = w.end
	}
	switch {
	case w.err != nil:
		return Sums{}, w.err
	case size < w.end || size > maxBlocks*BlockSize:
		return Sums{}, fmt.Errorf("sum up a file of %d bytes: %d were written", size, w.end)
	}
	s := Sums{Size: size, Blocks: make([]uint32, blocks(size))}
	for i := range s.Blocks {
		n := uint32(min(BlockSize, size-int64(i)*BlockSize))
		have, started := w.part[int64(i)]
		switch {
		case started:
			s.Blocks[i] = fill(have, n)
		case n < BlockSize:
			s.Blocks[i] = zeroes(n)
		case i < len(w.done):
			s.Blocks[i] = w.done[i]
		default:
			s.Blocks[i] = hole
		}
	}
	return s, nil
}

// fill returns the sum of a block of n bytes that is zero where no piece is.
func fill(have []piece, n uint32) (crc uint32) {
	at := uint32(0)
	for _, p := range append(have, piece{n, n, 0}) {
		crc = combine(crc, zeroes(p.start-at), p.start-at)
		crc = combine(crc, p.crc, p.end-p.start)
		at = p.end
	}
	return crc
}

// Bad is a block whose content doesn't match its sum.
type Bad struct {
	Offset, Size int64
	Got, Want    uint32
}

func (b Bad) String() string {
	return fmt.Sprintf("%d bytes at offset %#x: checksum %08x, want %08x", b.Size, b.Offset, b.Got, b.Want)
}

// ErrSize says that a file doesn't have the size for which its sums were made.
var ErrSize = errors.New("size differs")

// Verify reads a file of size bytes and calls bad for each block that differs;
// progress, if it isn't nil, with the bytes done after each block. The error is
// about reading, or wraps ErrSize.
func Verify(r io.ReaderAt, size int64, want Sums, bad func(Bad), progress func(done int64)) error {
	if size != want.Size || int64(len(want.Blocks)) != blocks(want.Size) {
		return fmt.Errorf("verify: %w: %d bytes with %d sums, the file has %d", ErrSize, want.Size, len(want.Blocks), size)
	}
	buf := make([]byte, BlockSize)
	for i, sum := range want.Blocks {
		off := int64(i) * BlockSize
		b := buf[:min(BlockSize, size-off)]
		if n, err := r.ReadAt(b, off); n < len(b) {
			return fmt.Errorf("verify: read %d bytes at offset %#x: %w", len(b), off, err)
		}
		if got := crc32.Checksum(b, table); got != sum {
			bad(Bad{off, int64(len(b)), got, sum})
		}
		if progress != nil {
			progress(off + int64(len(b)))
		}
	}
	return nil
}
