package vmcore

import (
	"cmp"
	"errors"
	"fmt"

	"github.com/warmcore/warmcore/pkg/elfcore"
	"github.com/warmcore/warmcore/pkg/kernelmap"
	"github.com/warmcore/warmcore/pkg/phys"
	"github.com/warmcore/warmcore/pkg/vmcoreinfo"
)

// FindVMCOREINFO looks for VMCOREINFO in the memory of d, if d's file has none
// that can be read, as those of hypervisors often haven't. What it finds is
// added to d.Info(), as if the file had a note with it; that, or why there is
// none, is a Warning. It must not run concurrently with anything else that
// uses d.
//
// The text must agree with page tables in the dump, for there may be texts of
// earlier boots, too. Of several that do, the one of the latest crash is taken.
//
// It reads all memory that the file holds. After each MiB it calls more with
// how many bytes it has looked at, of how many; false ends the search.
func FindVMCOREINFO(d Dump, more func(done, total uint64) bool) {
	info := d.Info()
	if _, err := info.Kernel(); err == nil {
		return
	}
	s := &searched{dump: d, total: info.Memory.Size(), more: more}
	s.pager, _ = d.(Pager)
	found, err := s.find(info.Memory)
	what := fmt.Sprintf("all %s of memory", phys.FormatSize(s.total))
	if s.stopped {
		what = fmt.Sprintf("%s of %s of memory", phys.FormatSize(s.done), phys.FormatSize(s.total))
	}
	if err != nil {
		info.Warn(fmt.Sprintf("the file has no VMCOREINFO, nor was it found in %s: %v", what, err))
		return
	}
	text := []byte(found.Info.Text)
	notes, err := elfcore.AppendNote(info.Notes[:len(info.Notes):len(info.Notes)], elfcore.ELFNote{Name: elfcore.NameVMCoreInfo, Type: elfcore.TypeVMCoreInfo, Desc: text})
	if err != nil {
		info.Warn(err.Error())
		return
	}
	info.Notes, info.VMCOREINFO = notes, text
	info.Warn(fmt.Sprintf("the file has no VMCOREINFO: it was found at %#x, in %s", found.Addr, what))
	info.PageSize = cmp.Or(info.BlockSize, MinPageSize)
	info.believe(found.Info)
}

var errNoVMCOREINFO = errors.New("there is no note of it")

// searched is a dump's memory while it is searched. What the file doesn't hold,
// and what can't be read, is zero.
type searched struct {
	dump    Dump
	pager   Pager // nil if dump is none
	buf     []byte
	done    uint64
	total   uint64
	more    func(done, total uint64) bool
	stopped bool
}

func (s *searched) find(memory phys.Set) (best vmcoreinfo.Candidate, err error) {
	err = errNoVMCOREINFO
	for _, c := range vmcoreinfo.Find(s, memory, nil).Candidates {
		if _, failed := kernelmap.Read(s.dump, c.Info); failed != nil {
			if best.Info == nil {
				err = fmt.Errorf("what is at %#x is of another boot, or can't be checked: %w", c.Addr, failed)
			}
			continue
		}
		if best.Info == nil || c.Info.CrashTime >= best.Info.CrashTime {
			best, err = c, nil
		}
	}
	return best, err
}

// ReadPhys implements vmcoreinfo.Reader.
func (s *searched) ReadPhys(p []byte, addr uint64) error { return s.dump.ReadPhys(p, addr) }

// ViewPhys implements vmcoreinfo.Viewer.
func (s *searched) ViewPhys(r phys.Range, f func(b []byte)) error {
	if s.stopped || !s.more(s.done, s.total) {
		s.stopped = true
		return nil
	}
	s.done += r.Size()
	if uint64(cap(s.buf)) < r.Size() {
		s.buf = make([]byte, r.Size())
	}
	b := s.buf[:r.Size()]
	for at := r.Start; at < r.End; {
		end := at
		for end < r.End && s.holds(end) {
			end += phys.PageSize
		}
		if end == at {
			clear(b[at-r.Start:][:phys.PageSize])
			at += phys.PageSize
			continue
		}
		at = s.read(b[at-r.Start:end-r.Start], at)
	}
	f(b)
	return nil
}

func (s *searched) holds(page uint64) bool {
	return s.pager == nil || s.pager.Holds(phys.Range{Start: page, End: page + phys.PageSize})
}

// read reads the memory at addr, of whole pages, and returns where to go on: at
// the end, or after a page that can't be read.
func (s *searched) read(p []byte, addr uint64) (next uint64) {
	err := s.dump.ReadPhys(p, addr)
	if err == nil {
		return addr + uint64(len(p))
	}
	bad := addr
	var missing *MissingError
	if errors.As(err, &missing) && missing.Range.Start > addr {
		bad = phys.AlignDown(missing.Range.Start, phys.PageSize)
	}
	clear(p[bad-addr:][:phys.PageSize])
	return bad + phys.PageSize
}
