package memmap

import (
	"cmp"
	"slices"

	"github.com/warmcore/warmcore/pkg/phys"
)

// Normalize returns m sorted, at depth 0, without overlaps and without names.
//
// Overlaps are resolved and neighbours joined as e820__update_table in
// arch/x86/kernel/e820.c (v6.12) does it: the highest kind wins, a range of
// kind 0 is dropped, and neighbours of one kind become one entry, except for
// PRAM and SoftReserved, which are split wherever any entry begins or ends.
// One rule is not the kernel's, whose maps have no nesting: a nested entry
// replaces the one that contains it there, whatever the kinds, because it says
// more.
func (m Map) Normalize() Map {
	points := changePoints(m.Entries)
	var out []Entry
	active := map[layer]int{} // how many entries of each layer cover the present address
	for i := 0; i < len(points); {
		at := points[i].addr
		for ; i < len(points) && points[i].addr == at; i++ {
			p := points[i]
			active[p.layer] += p.step
			if active[p.layer] == 0 {
				delete(active, p.layer)
			}
		}
		kind := strongest(active)
		if kind == 0 {
			continue
		}
		next := phys.Range{Start: at, End: points[i].addr}
		if n := len(out) - 1; n >= 0 && out[n].Kind == kind && out[n].Range.End == at && mergeable(kind) {
			out[n].Range.End = next.End
			continue
		}
		out = append(out, Entry{Range: next, Kind: kind})
	}
	return Map{Entries: out, Warnings: slices.Clone(m.Warnings)}
}

// layer has the two properties that decide between entries that overlap.
type layer struct {
	depth int
	kind  Kind
}

// changePoint is an address at which an entry begins (step 1) or ends (-1).
type changePoint struct {
	addr  uint64
	layer layer
	step  int
}

func changePoints(entries []Entry) []changePoint {
	points := make([]changePoint, 0, 2*len(entries))
	for _, e := range entries {
		if e.Range.Empty() {
			continue
		}
		l := layer{e.Depth, e.Kind}
		points = append(points, changePoint{e.Range.Start, l, 1}, changePoint{e.Range.End, l, -1})
	}
	slices.SortFunc(points, func(a, b changePoint) int { return cmp.Compare(a.addr, b.addr) })
	return points
}

// strongest returns the kind that wins where layers overlap, 0 if there is
// none.
func strongest(active map[layer]int) Kind {
	var s layer
	for l := range active {
		if l.depth > s.depth || l.depth == s.depth && l.kind > s.kind {
			s = l
		}
	}
	return s.kind
}

// mergeable is false for kinds whose entries may each be a separate device, with
// a NUMA node of its own (e820_nomerge).
func mergeable(k Kind) bool { return k != PRAM && k != SoftReserved }
