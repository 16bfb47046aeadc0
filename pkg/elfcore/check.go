package elfcore

import (
	"cmp"
	"fmt"
	"slices"

	"github.com/warmcore/warmcore/pkg/phys"
)

// maxMappings is the most distinct mappings (values of Virt-Phys) in a
// header: the direct map and the kernel's text.
const maxMappings = 2

// Check returns an error unless h describes a dump that can be read from
// memory, the ranges that hold the crashed kernel's bytes now. It does not
// depend on how h was planned, so it can check any planner:
//
//   - all loads are whole pages: fs/proc/vmcore.c rounds outwards and would
//     show bytes that are not meant to be in the dump;
//   - every byte that h makes a reader read lies in memory;
//   - a physical address has one place: loads whose Phys overlap read the same
//     bytes, and no byte appears under two physical addresses;
//   - physical memory appears twice only under two virtual addresses: the
//     kernel's text, which is in the direct map too;
//   - a virtual address occurs once;
//   - a note is moved as the load that holds its physical address, so that a
//     note in boot memory is read from the destination;
//   - notes are disjoint: no CPU's registers are counted twice.
//
// The error names the first fault found.
func Check(h Header, memory phys.Set) error {
	if n := len(h.Notes) + len(h.Loads); n > MaxPhdrs {
		return fmt.Errorf("check ELF core header: %d program headers, want at most %d", n, MaxPhdrs)
	}
	if len(h.Loads) == 0 {
		return fmt.Errorf("check ELF core header: no load")
	}
	where := newIndex(memory)
	mappings := map[uint64]bool{}
	for i, l := range h.Loads {
		if err := checkLoad(l, where); err != nil {
			return fmt.Errorf("check load %d of ELF core header: %w", i, err)
		}
		if l.Virt != 0 {
			mappings[l.Virt-l.Phys] = true
		}
	}
	if len(mappings) > maxMappings {
		return fmt.Errorf("check ELF core header: %d distances from virtual to physical, want at most %d", len(mappings), maxMappings)
	}
	for i, n := range h.Notes {
		if err := checkNote(n, where); err != nil {
			return fmt.Errorf("check note %d of ELF core header: %w", i, err)
		}
	}
	if err := checkPairs(h); err != nil {
		return fmt.Errorf("check ELF core header: %w", err)
	}
	return nil
}

func checkLoad(l Load, where index) error {
	if (l.Virt|l.Phys|l.Offset|l.Size)%phys.PageSize != 0 {
		return fmt.Errorf("%+v: not whole pages", l)
	}
	if l.Size == 0 || wraps(l.Virt, l.Size) || wraps(l.Phys, l.Size) || wraps(l.Offset, l.Size) {
		return fmt.Errorf("%+v: empty, or wraps", l)
	}
	if r := (phys.Range{Start: l.Offset, End: l.Offset + l.Size}); !where.contains(r) {
		return fmt.Errorf("%v is not all in memory", r)
	}
	return nil
}

func checkNote(n Note, where index) error {
	if n.Size < noteHeaderSize || n.Size > MaxNoteSize {
		return fmt.Errorf("size %#x, want %#x to %#x", n.Size, noteHeaderSize, MaxNoteSize)
	}
	if n.Offset%4 != 0 || wraps(n.Phys, n.Size) || wraps(n.Offset, n.Size) {
		return fmt.Errorf("%+v: not aligned to 4, or wraps", n)
	}
	if r := (phys.Range{Start: n.Offset, End: n.Offset + n.Size}); !where.contains(r) {
		return fmt.Errorf("%v is not all in memory", r)
	}
	return nil
}

// index is a phys.Set that is searched by bisection: a planner's fuzz test
// calls Check very often, and headers have up to MaxPhdrs entries.
type index phys.Set

func newIndex(s phys.Set) index { return index(phys.NewSet(s...)) }

func (x index) contains(r phys.Range) bool {
	i, found := slices.BinarySearchFunc(x, r.Start, func(m phys.Range, start uint64) int { return cmp.Compare(m.Start, start) })
	if !found {
		i--
	}
	return i >= 0 && x[i].Contains(r)
}

// span is the range of one segment on one axis (Virt, Phys or Offset).
type span struct {
	phys.Range
	shift uint64 // Offset-Phys: spans that share an address must agree on it
	group uint64 // only spans of one group must be disjoint
	name  string
}

// checkPairs applies the rules about two segments at a time: along each axis
// the spans are sorted, and those that overlap are compared.
func checkPairs(h Header) error {
	var virts, physes, offsets, noteOffsets []span
	for i, l := range h.Loads {
		s := span{shift: l.Offset - l.Phys, name: fmt.Sprintf("load %d", i)}
		if l.Virt != 0 {
			virts = append(virts, span{Range: sized(l.Virt, l.Size), name: s.name})
			s.group = l.Virt - l.Phys
		}
		s.Range = sized(l.Phys, l.Size)
		physes = append(physes, s)
		s.Range = sized(l.Offset, l.Size)
		offsets = append(offsets, s)
	}
	loadPhyses := slices.Clone(physes)
	for i, n := range h.Notes {
		s := span{shift: n.Offset - n.Phys, name: fmt.Sprintf("note %d", i)}
		s.Range = sized(n.Phys, n.Size)
		physes = append(physes, s)
		s.Range = sized(n.Offset, n.Size)
		offsets = append(offsets, s)
		noteOffsets = append(noteOffsets, s)
	}
	return cmp.Or(
		checkShifts("physical", physes),
		checkShifts("present", offsets),
		checkDisjoint("virtual", virts),
		checkDisjoint("physical", loadPhyses),
		checkDisjoint("present", noteOffsets),
	)
}

func sized(start, size uint64) phys.Range { return phys.Range{Start: start, End: start + size} }

func sortSpans(spans []span) {
	slices.SortFunc(spans, func(a, b span) int {
		return cmp.Or(cmp.Compare(a.group, b.group), cmp.Compare(a.Start, b.Start))
	})
}

// checkDisjoint reports the first two spans of one group that share an
// address.
func checkDisjoint(axis string, spans []span) error {
	sortSpans(spans)
	for i := 1; i < len(spans); i++ {
		a, b := spans[i-1], spans[i]
		if a.group == b.group && b.Start < a.End {
			return fmt.Errorf("%s and %s share %s addresses %v", a.name, b.name, axis, a.Intersect(b.Range))
		}
	}
	return nil
}

// checkShifts reports the first two spans that share an address but don't
// agree on the distance from physical address to present place. It is enough
// to remember the span that reaches furthest: a span that overlaps an earlier
// one overlaps that one too.
func checkShifts(axis string, spans []span) error {
	spans = slices.Clone(spans)
	slices.SortFunc(spans, func(a, b span) int { return cmp.Compare(a.Start, b.Start) })
	var reach span
	for _, s := range spans {
		if s.Start < reach.End && s.shift != reach.shift {
			return fmt.Errorf("%s and %s share %s addresses %v, but not what lies there", reach.name, s.name, axis, s.Intersect(reach.Range))
		}
		if s.End > reach.End {
			reach = s
		}
	}
	return nil
}
