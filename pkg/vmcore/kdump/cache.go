package kdump

import (
	"fmt"
	"io"
	"sync"
)

// Sizes of the cache of bitmaps and descriptors: 4 MiB, enough for the places
// in which a few dozen readers are at work.
const (
	cacheBlock  = 64 << 10 // bytes
	cacheBlocks = 64
	sector      = 4 << 10 // what is lost where a disk can't read
)

// fileCache caches pieces of a file.
type fileCache struct {
	r    io.ReaderAt
	size int64

	mu     sync.Mutex
	blocks map[int64]*block // by offset divided by cacheBlock
	hand   []int64          // keys of blocks in the order of a clock
	next   int              // where the clock's hand is
}

type block struct {
	load sync.Once
	data []byte // as far as the block can be read
	used bool   // since the hand passed
}

func newFileCache(r io.ReaderAt, size int64) *fileCache {
	return &fileCache{r: r, size: size, blocks: map[int64]*block{}}
}

// at returns bytes of the file from off on, at least one and up to the end of
// the block. They are not to be changed.
func (c *fileCache) at(off int64) ([]byte, error) {
	key := off / cacheBlock
	b := c.block(key)
	b.load.Do(func() {
		b.data = make([]byte, min(cacheBlock, max(0, c.size-key*cacheBlock)))
		n, _ := c.r.ReadAt(b.data, key*cacheBlock)
		b.data = b.data[:n]
	})
	if in := off - key*cacheBlock; in < int64(len(b.data)) {
		return b.data[in:], nil
	}
	// Something in the block can't be read, which need not be this. Nor is
	// it kept: the next try may have more luck.
	p := make([]byte, min(sector-off%sector, max(0, c.size-off)))
	if n, err := c.r.ReadAt(p, off); n < len(p) {
		return nil, fmt.Errorf("read offset %#x: %w", off, err)
	}
	if len(p) == 0 {
		return nil, fmt.Errorf("read offset %#x: %w", off, io.ErrUnexpectedEOF)
	}
	return p, nil
}

// block returns the block of key, which may have to be loaded.
func (c *fileCache) block(key int64) *block {
	c.mu.Lock()
	defer c.mu.Unlock()
	if b := c.blocks[key]; b != nil {
		b.used = true
		return b
	}
	b := &block{}
	c.blocks[key] = b
	if len(c.hand) < cacheBlocks {
		c.hand = append(c.hand, key)
		return b
	}
	for {
		old := c.blocks[c.hand[c.next]]
		if !old.used {
			break
		}
		old.used = false
		c.next = (c.next + 1) % cacheBlocks
	}
	delete(c.blocks, c.hand[c.next])
	c.hand[c.next] = key
	c.next = (c.next + 1) % cacheBlocks
	return b
}

// read fills p from off on.
func (c *fileCache) read(p []byte, off int64) error {
	for len(p) > 0 {
		b, err := c.at(off)
		if err != nil {
			return err
		}
		n := copy(p, b)
		p, off = p[n:], off+int64(n)
	}
	return nil
}
