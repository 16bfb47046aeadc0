package agent

import (
	"errors"
	"fmt"
	"io"

	"github.com/warmcore/warmcore/pkg/elfcore"
	"github.com/warmcore/warmcore/pkg/oldmem"
	"github.com/warmcore/warmcore/pkg/printk"
	corefile "github.com/warmcore/warmcore/pkg/vmcore" // tests here have a function vmcore
	"github.com/warmcore/warmcore/pkg/vmcore/dumpfile"
	"github.com/warmcore/warmcore/pkg/vmcoreinfo"
)

// dump is an ELF dump whose headers and notes have been read.
type dump struct {
	header elfcore.Header
	cpus   []elfcore.PRStatus // one for each CPU with registers
	info   *vmcoreinfo.Info   // nil where infoErr says why
	err    error
	bad    []error // notes that can't be read
}

func readDump(r io.ReaderAt) (d dump, err error) {
	if d.header, err = elfcore.Read(r); err != nil {
		return dump{}, err
	}
	d.err = errors.New("the dump has no VMCOREINFO")
	for _, seg := range d.header.Notes {
		b := make([]byte, min(seg.Size, elfcore.MaxNotes))
		if n, err := r.ReadAt(b, int64(seg.Offset)); n < len(b) {
			return dump{}, fmt.Errorf("read notes at offset %#x: %w", seg.Offset, err)
		}
		// They are of the crashed kernel's memory. Without them there is still
		// the memory, so a bad one ends nothing.
		notes, err := elfcore.ParseNotes(b)
		if err != nil {
			d.bad = append(d.bad, fmt.Errorf("notes at offset %#x: %w", seg.Offset, err))
			continue
		}
		cpus, err := elfcore.PRStatuses(d.header.Machine, notes)
		if err != nil {
			d.bad = append(d.bad, fmt.Errorf("registers in the notes at offset %#x: %w", seg.Offset, err))
		}
		d.cpus = append(d.cpus, cpus...)
		for _, n := range notes {
			if n.Name == elfcore.NameVMCoreInfo && d.info == nil {
				d.info, d.err = vmcoreinfo.Parse(n.Desc)
			}
		}
	}
	return d, nil
}

// kernelLog returns the crashed kernel's log as text.
func kernelLog(d corefile.Dump) (text []byte, lost int, err error) {
	info, err := kernelOf(d)
	if err != nil {
		return nil, 0, err
	}
	l, err := printk.Read(info, corefile.NewVirtual(d, info))
	if err != nil {
		return nil, 0, err
	}
	return l.AppendText(nil), l.Lost, nil
}

// Dmesg returns the crashed kernel's log from a dump at path, of any format
// that dumpfile.Open knows, or, for "", from the dump that this boot offers.
// lost is how many messages could not be read.
func (s *System) Dmesg(path string) (text []byte, lost int, err error) {
	offered := path == ""
	if offered {
		if err := s.root(); err != nil {
			return nil, 0, err
		}
		path = s.path(vmcoreFile)
	} else if err := checkDumpFile(path); err != nil {
		return nil, 0, err
	}
	src, err := oldmem.Open(path)
	if offered && errors.Is(err, oldmem.ErrNone) {
		return nil, 0, &Nothing{"there is no dump in this boot"}
	}
	if err != nil {
		return nil, 0, err
	}
	defer src.Close()
	d, err := dumpfile.Open(src, int64(src.Size()))
	if err != nil {
		return nil, 0, fmt.Errorf("read %s: %w", path, err)
	}
	s.FindVMCOREINFO(d)
	text, lost, err = kernelLog(d)
	if err != nil {
		return nil, 0, fmt.Errorf("read %s: %w", path, err)
	}
	return text, lost, nil
}
