//go:build linux

// Package target has the places to which a dump can go. A Target takes the
// files of one dump, and small files beside it. Code that writes a dump knows
// only the interfaces. A place doesn't implement what it can't do, and the
// writer works without it: a pipe can't be written in any order, for example,
// so it gets the flattened form.
//
// Invariants: an incomplete file has no name that could be taken for that of a
// dump; files that somebody else made are never replaced; Commit says that a
// dump is durable only if the target has proof of it.
//
// Only this package, and those below it, may talk to the network.
package target

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"
)

// Target is a place for one dump. The calls are Create, writing, Commit or
// Abort, Close, from one goroutine.
type Target interface {
	// String says where it is, for people: a directory, or Stdout.
	String() string
	// Create begins the files of the dump, each with the name that PartName
	// gives it; they get that name in Commit. The error is an outcome.Refusal
	// if there is such a file already, or if another process is writing it.
	// The end of ctx also ends writes to the files that are waiting.
	Create(ctx context.Context, name string, parts int) ([]File, error)
	// Commit gives the files their names, when all of them are written.
	// The first file gets its name last, so that where it exists all
	// others do, too. After an error either none has its name or all have,
	// and are whole. durable says that the target has proof that the dump
	// survives a loss of power.
	Commit(ctx context.Context) (durable bool, err error)
	// Abort removes what was created and not committed. The error wraps
	// errors.ErrUnsupported if nothing can be taken back, as from a pipe.
	Abort() error
	// Close ends the use of the target. What was neither committed nor aborted
	// may stay, with a name that says so.
	Close() error
	// Free returns how many bytes there is room for. The error wraps
	// errors.ErrUnsupported if that can't be known.
	Free() (uint64, error)
}

// Putter is implemented by targets that have room for more than the dump.
type Putter interface {
	// Put stores a small file, whole or not at all. It is durable when the
	// dump is. A file of the same name that an earlier try left is
	// replaced.
	Put(ctx context.Context, name string, content []byte) error
}

// File is a file of a dump while it is written, from its start to its end. It
// may be a RandomAccess.
type File interface {
	io.Writer
	// Name is the name that Commit gives it, without a directory; "" if it
	// gets none, as a pipe.
	Name() string
}

// RandomAccess is a File that is written in any order, by several goroutines,
// and can be read back. Bytes that are never written are zero.
type RandomAccess interface {
	File
	io.WriterAt
	io.ReaderAt
	Size() (int64, error) // bytes
	// Sync returns once the content would survive a loss of power.
	Sync() error
}

// Stdout names standard output as a target.
const Stdout = "-"

// Open returns the target that where names: Stdout, or a directory for a dump,
// which is made.
func Open(where string, stdout io.Writer) (Target, error) {
	if where == Stdout {
		return NewPipe(stdout), nil
	}
	return MakeDir(where)
}

// OpenFile returns the target for a dump called path, and the dump's name in
// it: Stdout, or a directory that exists. Files in keep are not replaced even
// if they look like leftovers of a dead process: they are still to be read.
func OpenFile(path string, stdout io.Writer, keep ...fs.FileInfo) (t Target, name string) {
	if path == Stdout {
		return NewPipe(stdout), ""
	}
	dir, name := filepath.Split(path)
	return &Dir{prefix: dir, keep: keep}, name
}

// PartName returns the name of part i, from 0 on, of a dump called name.
func PartName(name string, i, parts int) string {
	if parts > 1 {
		return name + "." + strconv.Itoa(i+1)
	}
	return name
}

// Full says whether err means that a file system or a quota is full.
func Full(err error) bool {
	return errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT)
}
