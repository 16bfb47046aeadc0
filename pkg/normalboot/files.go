//go:build linux

package normalboot

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"sort"
	"strings"
)

// File is a file of a boot entry.
type File struct {
	Path string // inside its file system, for messages
	at   io.ReaderAt
}

// NewFile returns a file that is read from at; path is its name in messages.
func NewFile(path string, at io.ReaderAt) File { return File{Path: path, at: at} }

// Exists says whether the entry names this file.
func (f File) Exists() bool { return f.at != nil }

// ReadAt reads the file.
func (f File) ReadAt(p []byte, off int64) (int, error) { return f.at.ReadAt(p, off) }

// sized is a reader that knows its size.
type sized interface{ size() (int64, error) }

// Size returns the size in bytes. If the reader doesn't know it, Size searches for
// the last byte that can be read. It is capped.
func (f File) Size(most int64) (int64, error) {
	var n int64
	if s, ok := f.at.(sized); ok {
		var err error
		if n, err = s.size(); err != nil {
			return 0, fmt.Errorf("read %s: %w", f.Path, err)
		}
	} else {
		var unreadable error // a bad sector is not the end
		n = int64(sort.Search(int(most)+1, func(off int) bool {
			var b [1]byte
			n, err := f.at.ReadAt(b[:], int64(off))
			if n == 0 && !errors.Is(err, io.EOF) {
				unreadable = cmp.Or(err, io.ErrNoProgress)
			}
			return n == 0
		}))
		if unreadable != nil {
			return 0, fmt.Errorf("read %s: %w", f.Path, unreadable)
		}
	}
	if n > most {
		return 0, fmt.Errorf("read %s: larger than %d bytes", f.Path, most)
	}
	return n, nil
}

// lazy opens a file when it is first read: a configuration may have a thousand
// entries, of which one is booted.
type lazy struct {
	open   func() (io.ReaderAt, int64, error)
	opened bool
	at     io.ReaderAt
	length int64
	err    error
}

func (l *lazy) ready() error {
	if !l.opened {
		l.opened = true
		l.at, l.length, l.err = l.open()
	}
	return l.err
}

func (l *lazy) size() (int64, error) { return l.length, l.ready() }

func (l *lazy) ReadAt(p []byte, off int64) (int, error) {
	if err := l.ready(); err != nil {
		return 0, err
	}
	return l.at.ReadAt(p, off)
}

// A joined file is several initrds one after the other. Each begins at a
// multiple of 4 bytes, with zeros before: that is where the kernel looks for
// the next archive (unpack_to_rootfs in init/initramfs.c, v6.12).
type joined []*lazy

const initrdAlign = 4

func (j joined) size() (n int64, err error) {
	for i, part := range j {
		length, err := part.size()
		if err != nil {
			return 0, err
		}
		if n += length; i < len(j)-1 {
			n = (n + initrdAlign - 1) &^ (initrdAlign - 1)
		}
	}
	return n, nil
}

func (j joined) ReadAt(p []byte, off int64) (n int, err error) {
	start := int64(0) // of the part
	for i, part := range j {
		length, err := part.size()
		if err != nil {
			return n, err
		}
		end := start + length
		if n < len(p) && off < end {
			want := min(int64(len(p)-n), end-off)
			got, err := part.ReadAt(p[n:][:want], off-start)
			n, off = n+got, off+int64(got)
			if int64(got) < want {
				return n, cmp.Or(err, io.ErrUnexpectedEOF)
			}
		}
		if i < len(j)-1 {
			end = (end + initrdAlign - 1) &^ (initrdAlign - 1)
		}
		for n < len(p) && off < end {
			p[n] = 0
			n, off = n+1, off+1
		}
		start = end
	}
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

// A folder is a file system below a directory. No link leads out of it, absolute
// ones begin at its top, and only directories and regular files can be opened: a
// named pipe on a disk would make the payload wait for ever.
type folder string

const maxLinks = 40 // MAXSYMLINKS of the kernel

// Open opens a file; name is as package fs wants it.
func (t folder) Open(name string) (fs.File, error) {
	real, err := t.resolve(name)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: "/" + name, Err: err}
	}
	full := filepath.Join(string(t), real)
	info, err := os.Lstat(full)
	if err == nil && !info.Mode().IsRegular() && !info.IsDir() {
		err = errors.New("neither a file nor a folder")
	}
	var f *os.File
	if err == nil {
		f, err = os.Open(full)
	}
	if err != nil {
		var of *fs.PathError
		if errors.As(err, &of) {
			err = of.Err
		}
		return nil, &fs.PathError{Op: "open", Path: "/" + name, Err: err}
	}
	return f, nil
}

// resolve follows links and returns a path without any.
func (t folder) resolve(name string) (string, error) {
	pending, at := strings.Split(name, "/"), ""
	for links := 0; len(pending) > 0; {
		part := pending[0]
		pending = pending[1:]
		switch part {
		case "", ".":
			continue
		case "..":
			if at = path.Dir(at); at == "." {
				at = ""
			}
			continue
		}
		next := path.Join(at, part)
		target, err := os.Readlink(filepath.Join(string(t), next))
		if err != nil { // no link, or nothing there: opening it will tell
			at = next
			continue
		}
		if links++; links > maxLinks {
			return "", errors.New("too many symbolic links")
		}
		if path.IsAbs(target) {
			at = ""
		}
		pending = append(strings.Split(target, "/"), pending...)
	}
	return at, nil
}

// layers looks for a name in several file systems, one after the other.
type layers []fs.FS

// Open opens the first file of that name.
func (l layers) Open(name string) (fs.File, error) {
	var first error
	for _, one := range l {
		f, err := one.Open(name)
		if err == nil {
			return f, nil
		}
		if first == nil {
			first = err
		}
	}
	return nil, cmp.Or[error](first, &fs.PathError{Op: "open", Path: name, Err: fs.ErrNotExist})
}
