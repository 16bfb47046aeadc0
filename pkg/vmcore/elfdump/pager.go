package elfdump

import (
	"slices"

	"github.com/warmcore/warmcore/pkg/phys"
)

// Holds implements vmcore.Pager. A page of which the file holds a part, or
// should, counts.
func (d *Dump) Holds(pfn uint64) bool {
	size := d.info.PageSize
	if pfn > ^uint64(0)/size-1 {
		return false
	}
	page := phys.Range{Start: pfn * size, End: (pfn + 1) * size}
	if p, ok := d.find(page.Start); ok && p.Start < page.End {
		return true
	}
	i, _ := slices.BinarySearchFunc(d.cut, page.Start, before)
	return i < len(d.cut) && d.cut[i].Start < page.End
}
