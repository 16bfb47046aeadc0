// Package cpio writes an archive in the format newc, which the kernel unpacks
// as an initramfs (Documentation/driver-api/early-userspace/buffer-format.rst
// in v6.1). An entry is a header of 110 bytes, the name with a NUL, and the
// data, each padded to a multiple of 4:
//
//	"070701" and 13 numbers of 8 hexadecimal digits: inode, mode, uid, gid,
//	links, mtime, size, device major and minor, rdev major and minor, length
//	of the name with its NUL, check (0)
//
// The same calls write the same bytes: owners and times are 0.
package cpio

import (
	"fmt"
	"io"
	"path"
	"strings"
)

// Modes of entries.
const (
	modeDir  = 0o040755
	modeLink = 0o120777
	modeFile = 0o100755
)

// Writer writes an archive. Its first error ends it: later calls do nothing,
// and Close returns that error.
type Writer struct {
	w     io.Writer
	off   int64
	inode int
	seen  map[string]bool
	err   error // the first; later calls do nothing
}

// NewWriter returns a Writer to w.
func NewWriter(w io.Writer) *Writer { return &Writer{w: w, seen: map[string]bool{}} }

// File writes an executable file of size bytes, the length of data, and before
// it the folders that it is in.
func (c *Writer) File(name string, size int64, data io.Reader) {
	c.entry(name, modeFile, size, data)
}

func (c *Writer) entry(name string, mode uint32, size int64, data io.Reader) {
	name = strings.Trim(path.Clean(name), "/")
	if c.err != nil || c.seen[name] && mode == modeDir {
		return
	}
	if c.seen[name] {
		c.err = fmt.Errorf("cpio: %s is there twice", name)
		return
	}
	if size < 0 || size >= 1<<32 {
		c.err = fmt.Errorf("cpio: %s has %d bytes, the format holds less than 4 GiB", name, size)
		return
	}
	if dir := path.Dir(name); dir != "." {
		c.entry(dir, modeDir, 0, nil)
	}
	c.seen[name] = true
	c.raw(name, mode, size, data)
}

func (c *Writer) raw(name string, mode uint32, size int64, data io.Reader) {
	c.inode++
	c.write(fmt.Appendf(nil, "070701%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%s\x00",
		c.inode, mode, 0, 0, 1, 0, size, 0, 0, 0, 0, len(name)+1, 0, name))
	c.pad()
	if data != nil && c.err == nil {
		n, err := io.CopyN(c.w, data, size)
		c.off += n
		if err != nil {
			c.err = fmt.Errorf("cpio: write %s: %w", name, err)
		}
	}
	c.pad()
}

func (c *Writer) write(b []byte) {
	if c.err != nil {
		return
	}
	n, err := c.w.Write(b)
	c.off += int64(n)
	c.err = err
}

func (c *Writer) pad() { c.write(make([]byte, -c.off&3)) }

// Link writes a symbolic link.
func (c *Writer) Link(name, target string) {
	c.entry(name, modeLink, int64(len(target)), strings.NewReader(target))
}

// Close writes the end of the archive. It doesn't close what is below.
func (c *Writer) Close() error {
	c.raw("TRAILER!!!", 0, 0, nil)
	return c.err
}
