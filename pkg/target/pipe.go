//go:build linux

package target

import (
	"context"
	"errors"
	"io"

	"github.com/warmcore/warmcore/pkg/outcome"
)

// Pipe is a target whose other end is unknown: what is written may arrive
// there or not.
type Pipe struct {
	w io.Writer
}

// NewPipe returns the target that writes to w.
func NewPipe(w io.Writer) *Pipe { return &Pipe{w} }

func (p *Pipe) String() string { return Stdout }

// Create implements Target. A pipe takes one file.
func (p *Pipe) Create(_ context.Context, _ string, parts int) ([]File, error) {
	if parts != 1 {
		return nil, outcome.Refuse("write one file, or give a directory", "a dump in %d files can't go through a pipe", parts)
	}
	return []File{pipeFile{p.w}}, nil
}

// Commit implements Target. There is no name to give and no proof that the
// dump is durable.
func (p *Pipe) Commit(context.Context) (durable bool, err error) { return false, nil }

// Abort implements Target.
func (p *Pipe) Abort() error { return errors.ErrUnsupported }

// Close implements Target. Whoever opened the pipe closes it.
func (p *Pipe) Close() error { return nil }

// Free implements Target.
func (p *Pipe) Free() (uint64, error) { return 0, errors.ErrUnsupported }

type pipeFile struct{ io.Writer }

func (pipeFile) Name() string { return "" }
