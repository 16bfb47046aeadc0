package kdump

import (
	"cmp"
	"fmt"
	"math"
	"slices"

	"github.com/warmcore/warmcore/pkg/phys"
	"github.com/warmcore/warmcore/pkg/vmcore"
)

// MaxParts caps the files of a split dump.
const MaxParts = 256

// Joined is a split dump whose files are read as one.
type Joined struct {
	parts []*Dump // in the order of their memory
	info  vmcore.Info
}

// Join makes one dump of the files of a split dump, in any order. It refuses
// files that don't belong together. A file that is not among parts is a
// warning; its pages are Unreadable.
func Join(parts ...*Dump) (*Joined, error) {
	if len(parts) == 0 || len(parts) > MaxParts {
		return nil, fmt.Errorf("join split dump: %d files, want 1 to %d", len(parts), MaxParts)
	}
	j := &Joined{parts: slices.Clone(parts)}
	// Of two that start together, one must be empty; that goes last, or is
	// the only one that is left.
	slices.SortFunc(j.parts, func(a, b *Dump) int {
		return cmp.Or(cmp.Compare(a.first, b.first), cmp.Compare(b.end, a.end))
	})
	first := j.parts[0]
	j.info = first.info
	j.info.Part = phys.Range{}
	j.info.Warnings = nil
	var at uint64
	for _, d := range j.parts {
		if err := first.sameDump(d); err != nil {
			return nil, fmt.Errorf("join split dump: %w", err)
		}
		if d.first < at && d.first < d.end {
			return nil, fmt.Errorf("join split dump: two files hold %v", phys.Range{Start: d.info.Part.Start, End: min(at, d.end) * d.info.BlockSize})
		}
		j.gap(at, d.first)
		at = max(at, d.end)
		for _, w := range d.info.Warnings {
			j.info.Warn(fmt.Sprintf("part %v: %s", d.info.Part, w))
		}
		j.info.Unreadable = j.info.Unreadable.Union(d.info.Unreadable)
		// The same in each, if each names that of all.
		j.info.MoreUnreadable = max(j.info.MoreUnreadable, d.info.MoreUnreadable)
		j.info.Incomplete = j.info.Incomplete || d.info.Incomplete
	}
	j.gap(at, first.held.n)
	j.parts = slices.DeleteFunc(j.parts, func(d *Dump) bool { return d.first == d.end && d != first })
	return j, nil
}

// gap warns of pages that no file holds.
func (j *Joined) gap(from, to uint64) {
	if from < to {
		j.info.Warn(fmt.Sprintf("the file of the split dump that holds %v is not here",
			phys.Range{Start: from * j.info.BlockSize, End: to * j.info.BlockSize}))
	}
}

// sameDump says why d and o can't be parts of one dump.
func (d *Dump) sameDump(o *Dump) error {
	for _, f := range []struct {
		field     string
		got, want any
	}{
		{"split", o.sub.Split != 0, true},
		{"block_size", o.head.BlockSize, d.head.BlockSize},
		{"max_mapnr", o.sub.MaxMapNr, d.sub.MaxMapNr},
		{"utsname", o.head.Uname, d.head.Uname},
	} {
		if f.got != f.want {
			return fmt.Errorf("%s of one file is %v, of another %v", f.field, f.got, f.want)
		}
	}
	return nil
}

// Info implements vmcore.Dump.
func (j *Joined) Info() *vmcore.Info { return &j.info }

// part returns the file for page pfn. For one that no file has, it is a file
// that says so.
func (j *Joined) part(pfn uint64) *Dump {
	i, found := slices.BinarySearchFunc(j.parts, pfn, func(d *Dump, pfn uint64) int { return cmp.Compare(d.first, pfn) })
	if !found && i > 0 {
		i--
	}
	return j.parts[i]
}

// Holds implements vmcore.Pager.
func (j *Joined) Holds(r phys.Range) bool {
	return slices.ContainsFunc(j.parts, func(d *Dump) bool { return d.Holds(r) })
}

// HeldSize implements vmcore.Counter.
func (j *Joined) HeldSize() (uint64, error) {
	var sum uint64
	for _, d := range j.parts {
		n, err := d.HeldSize()
		if err != nil {
			return 0, fmt.Errorf("part %v: %w", d.info.Part, err)
		}
		sum += n
	}
	return sum, nil
}

// ReadPhys implements vmcore.Dump.
func (j *Joined) ReadPhys(p []byte, addr uint64) error {
	if _, ok := phys.Sized(addr, uint64(len(p))); !ok {
		return &vmcore.MissingError{Range: phys.Range{Start: addr, End: math.MaxUint64}, Reason: vmcore.Hole}
	}
	for len(p) > 0 {
		d := j.part(addr / j.info.BlockSize)
		n := uint64(len(p))
		// Up to where the next file begins, or, past the end of one, to
		// there.
		if end := d.info.Part.End; addr < end {
			n = min(n, end-addr)
		} else if i := slices.Index(j.parts, d); i+1 < len(j.parts) {
			n = min(n, j.parts[i+1].info.Part.Start-addr)
		}
		if err := d.ReadPhys(p[:n], addr); err != nil {
			return err
		}
		p, addr = p[n:], addr+n
	}
	return nil
}
