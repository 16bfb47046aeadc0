package agent

import (
	"errors"
	"fmt"

	"github.com/warmcore/warmcore/pkg/dumpwriter"
	"github.com/warmcore/warmcore/pkg/oldmem"
	"github.com/warmcore/warmcore/pkg/vmcore/dumpfile"
)

// writer returns what writes and reads dumps, on any machine.
func (s *System) writer() dumpwriter.Writer {
	return dumpwriter.Writer{Log: s.Log, Progress: s.Progress, Now: s.Now}
}

// Dmesg returns the crashed kernel's log from the dump that this boot offers.
// lost is how many messages could not be read.
func (s *System) Dmesg() (text []byte, lost int, err error) {
	if err := s.root(); err != nil {
		return nil, 0, err
	}
	path := s.path(vmcoreFile)
	src, err := oldmem.Open(path)
	if errors.Is(err, oldmem.ErrNone) {
		return nil, 0, s.noDump("")
	}
	if err != nil {
		return nil, 0, err
	}
	defer src.Close()
	d, err := dumpfile.New(src, int64(src.Size()))
	if err != nil {
		return nil, 0, fmt.Errorf("read %s: %w", path, err)
	}
	s.writer().FindVMCOREINFO(d)
	text, lost, err = dumpwriter.KernelLog(d)
	if err != nil {
		return nil, 0, fmt.Errorf("read %s: %w", path, err)
	}
	return text, lost, nil
}
