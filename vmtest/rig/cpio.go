package rig

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"strings"
)

// File modes of cpio entries.
const (
	modeDir  = 0o040755
	modeLink = 0o120777
	modeExec = 0o100755
)

// cpioWriter writes an archive in the format newc, which the kernel unpacks as
// an initramfs (Documentation/driver-api/early-userspace/buffer-format.rst in
// v6.1). An entry is a header of 110 bytes, the name with a NUL, and the data,
// each padded to a multiple of 4:
//
//	"070701" and 13 numbers of 8 hexadecimal digits: inode, mode, uid, gid,
//	links, mtime, size, device major and minor, rdev major and minor, length
//	of the name with its NUL, check (0)
//
// The same calls write the same bytes: owners and times are 0.
type cpioWriter struct {
	w     io.Writer
	off   int64
	inode int
	seen  map[string]bool
	err   error // the first; later calls do nothing
}

func newCPIO(w io.Writer) *cpioWriter { return &cpioWriter{w: w, seen: map[string]bool{}} }

// entry writes one entry and, before it, the folders that it lies in.
func (c *cpioWriter) entry(name string, mode uint32, size int64, data io.Reader) {
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

func (c *cpioWriter) raw(name string, mode uint32, size int64, data io.Reader) {
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

func (c *cpioWriter) write(b []byte) {
	if c.err != nil {
		return
	}
	n, err := c.w.Write(b)
	c.off += int64(n)
	c.err = err
}

func (c *cpioWriter) pad() { c.write(make([]byte, -c.off&3)) }

// bytes writes an executable file.
func (c *cpioWriter) bytes(name string, data []byte) {
	c.entry(name, modeExec, int64(len(data)), bytes.NewReader(data))
}

// link writes a symbolic link.
func (c *cpioWriter) link(name, target string) {
	c.entry(name, modeLink, int64(len(target)), strings.NewReader(target))
}

// file writes an executable file with the contents of the host's file at from.
func (c *cpioWriter) file(name, from string) {
	f, err := os.Open(from)
	if err != nil {
		c.err = errors.Join(c.err, err)
		return
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		c.err = errors.Join(c.err, err)
		return
	}
	c.entry(name, modeExec, fi.Size(), f)
}

// close writes the end of the archive.
func (c *cpioWriter) close() error {
	c.raw("TRAILER!!!", 0, 0, nil)
	return c.err
}
