package elfdump

import (
	"slices"

	"github.com/warmcore/warmcore/pkg/phys"
)

// Holds implements vmcore.Pager. Memory that the file should hold, but ends
// before, counts.
func (d *Dump) Holds(r phys.Range) bool {
	if p, ok := d.find(r.Start); ok && p.Start < r.End {
		return true
	}
	i, _ := slices.BinarySearchFunc(d.cut, r.Start, before)
	return i < len(d.cut) && d.cut[i].Start < r.End
}
