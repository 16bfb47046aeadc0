package kdump

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/klauspost/compress/snappy"
	"github.com/klauspost/compress/zlib"
	"github.com/klauspost/compress/zstd"
)

// codecs expands pages. It may be used concurrently.
type codecs struct {
	inflaters sync.Pool // of *inflater
	buffers   sync.Pool // of *[]byte
	zstd      func() (*zstd.Decoder, error)
}

// inflater is a zlib reader and what it reads.
type inflater struct {
	src bytes.Reader
	z   io.ReadCloser // nil at first: a zlib reader wants a header to start with
}

func newCodecs() *codecs {
	return &codecs{
		// One decoder serves as many goroutines as there are CPUs. The
		// largest output that it may make bounds its memory.
		zstd: sync.OnceValues(func() (*zstd.Decoder, error) {
			return zstd.NewReader(nil, zstd.WithDecoderConcurrency(0), zstd.WithDecoderLowmem(true),
				zstd.WithDecoderMaxMemory(MaxBlockSize))
		}),
	}
}

// buffer returns size bytes, to be given back with release.
func (c *codecs) buffer(size uint64) []byte {
	if b, ok := c.buffers.Get().(*[]byte); ok && uint64(cap(*b)) >= size {
		return (*b)[:size]
	}
	return make([]byte, size, max(size, maxRead))
}

func (c *codecs) release(b []byte) { c.buffers.Put(&b) }

// expand decompresses src into page; the result must have exactly the size of
// page.
func (c *codecs) expand(page, src []byte, flags uint32) error {
	codec, ok := CodecOf(flags)
	if !ok {
		return fmt.Errorf("flags %#x name several ways of compression", flags)
	}
	var err error
	switch uint32(codec) {
	case 0:
		if len(src) != len(page) {
			return fmt.Errorf("%d bytes that are not compressed, want %d", len(src), len(page))
		}
		copy(page, src)
	case FlagZlib:
		err = c.inflate(page, src)
	case FlagLZO:
		err = expandLZO(page, src)
	case FlagSnappy:
		err = expandSnappy(page, src)
	case FlagZstd:
		err = c.expandZstd(page, src)
	}
	if err != nil {
		return fmt.Errorf("expand %v: %w", codec, err)
	}
	return nil
}

var errSize = errors.New("does not make a page")

func (c *codecs) inflate(page, src []byte) error {
	f, ok := c.inflaters.Get().(*inflater)
	if !ok {
		f = &inflater{}
	}
	defer c.inflaters.Put(f)
	f.src.Reset(src)
	var err error
	if f.z == nil {
		f.z, err = zlib.NewReader(&f.src)
	} else if r, ok := f.z.(zlib.Resetter); ok {
		err = r.Reset(&f.src, nil)
	}
	if err != nil {
		return err
	}
	if _, err := io.ReadFull(f.z, page); err != nil {
		return err
	}
	// The checksum is compared only when the end is read.
	var more [1]byte
	if n, err := f.z.Read(more[:]); n != 0 {
		return errSize
	} else if !errors.Is(err, io.EOF) {
		return err
	}
	return nil
}

func expandSnappy(page, src []byte) error {
	if n, err := snappy.DecodedLen(src); err != nil {
		return err
	} else if n != len(page) {
		return errSize
	}
	_, err := snappy.Decode(page, src)
	return err
}

func (c *codecs) expandZstd(page, src []byte) error {
	z, err := c.zstd()
	if err != nil {
		return err
	}
	out, err := z.DecodeAll(src, page[:0:len(page)])
	switch {
	case err != nil:
		return err
	case len(out) != len(page):
		return errSize
	case &out[0] != &page[0]:
		copy(page, out)
	}
	return nil
}

// recentPages is how many expanded pages are kept for callers that read parts
// of them: page tables, structures of the kernel, its log.
const recentPages = 64

// recent is a cache of pages in the order of their arrival.
type recent struct {
	mu    sync.Mutex
	pages map[uint64][]byte
	order []uint64
	next  int
}

// page returns a cached page, which must not be changed; nil if it isn't in
// the cache.
func (c *recent) page(pfn uint64) []byte {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.pages[pfn]
}

func (c *recent) add(pfn uint64, page []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.pages == nil {
		c.pages = map[uint64][]byte{}
	}
	if c.pages[pfn] != nil {
		return
	}
	if len(c.order) < recentPages {
		c.order = append(c.order, pfn)
	} else {
		delete(c.pages, c.order[c.next])
		c.order[c.next] = pfn
		c.next = (c.next + 1) % recentPages
	}
	c.pages[pfn] = page
}
