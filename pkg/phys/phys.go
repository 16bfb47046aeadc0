// Package phys has the types for physical memory: ranges, sets of ranges, and
// copies between them.
//
// Addresses are uint64, in bytes. A Range is half-open, [Start, End). The
// last byte of the address space can't be in a range; no machine has RAM
// there. Arithmetic that could wrap reports it instead.
package phys

import (
	"cmp"
	"fmt"
	"math/bits"
	"slices"
	"sort"
	"strconv"
	"strings"
)

// Sizes in bytes.
const (
	KiB uint64 = 1 << 10
	MiB uint64 = 1 << 20
	GiB uint64 = 1 << 30
	TiB uint64 = 1 << 40
)

// PageSize is the unit in which memory is dumped, in bytes.
const PageSize = 4 * KiB

// Range is the bytes [Start, End).
type Range struct {
	Start, End uint64
}

// Sized returns the range of size bytes at start; ok is false if the end would
// wrap.
func Sized(start, size uint64) (r Range, ok bool) {
	end, carry := bits.Add64(start, size, 0)
	if carry != 0 {
		return Range{}, false
	}
	return Range{start, end}, true
}

// Size returns the number of bytes, 0 for an empty or inverted range.
func (r Range) Size() uint64 {
	if r.End <= r.Start {
		return 0
	}
	return r.End - r.Start
}

// Empty says whether r holds no byte.
func (r Range) Empty() bool { return r.End <= r.Start }

// Contains says whether every byte of o is in r. An empty o is in every range.
func (r Range) Contains(o Range) bool {
	return o.Empty() || r.Start <= o.Start && o.End <= r.End
}

// Overlaps says whether r and o share a byte.
func (r Range) Overlaps(o Range) bool {
	return !r.Intersect(o).Empty()
}

// Intersect returns the bytes in both; the zero Range if there are none.
func (r Range) Intersect(o Range) Range {
	x := Range{max(r.Start, o.Start), min(r.End, o.End)}
	if x.Empty() {
		return Range{}
	}
	return x
}

// AlignIn returns the largest range inside r whose ends are multiples of
// align, a power of two; the zero Range if there is none.
func (r Range) AlignIn(align uint64) Range {
	start, ok := AlignUp(r.Start, align)
	end := AlignDown(r.End, align)
	if !ok || end <= start {
		return Range{}
	}
	return Range{start, end}
}

// String prints r as "start-end" in hexadecimal, with an inclusive end, as
// /proc/iomem and the kernel's log do.
func (r Range) String() string {
	if r.Empty() {
		return fmt.Sprintf("%08x-empty", r.Start)
	}
	return fmt.Sprintf("%08x-%08x", r.Start, r.End-1)
}

// AlignDown rounds a down to a multiple of align, a power of two.
func AlignDown(a, align uint64) uint64 { return a &^ (align - 1) }

// AlignUp rounds a up to a multiple of align, a power of two; ok is false if
// that would wrap.
func AlignUp(a, align uint64) (aligned uint64, ok bool) {
	sum, carry := bits.Add64(a, align-1, 0)
	return sum &^ (align - 1), carry == 0
}

// Set is a list of ranges that are sorted, disjoint, not empty and not
// adjacent. NewSet makes one from any ranges; the nil Set is empty.
type Set []Range

// NewSet returns the union of ranges.
func NewSet(ranges ...Range) Set {
	in := slices.Clone(ranges)
	slices.SortFunc(in, func(a, b Range) int { return cmp.Compare(a.Start, b.Start) })
	var s Set
	for _, r := range in {
		switch {
		case r.Empty():
		case len(s) > 0 && r.Start <= s[len(s)-1].End:
			s[len(s)-1].End = max(s[len(s)-1].End, r.End)
		default:
			s = append(s, r)
		}
	}
	return s
}

// Size returns the number of bytes in s.
func (s Set) Size() uint64 {
	var n uint64
	for _, r := range s {
		n += r.Size()
	}
	return n
}

// Union returns the bytes in s or o.
func (s Set) Union(o Set) Set {
	out := make(Set, 0, len(s)+len(o))
	for len(s) > 0 || len(o) > 0 {
		if len(s) == 0 || len(o) > 0 && o[0].Start < s[0].Start {
			s, o = o, s
		}
		r := s[0]
		s = s[1:]
		switch last := len(out) - 1; {
		case r.Empty():
		case last >= 0 && r.Start <= out[last].End:
			out[last].End = max(out[last].End, r.End)
		default:
			out = append(out, r)
		}
	}
	if len(out) == 0 {
		return nil
	}
	return out
}

// from returns the ranges of s that end after a.
func (s Set) from(a uint64) Set {
	return s[sort.Search(len(s), func(i int) bool { return s[i].End > a }):]
}

// Minus returns the bytes in s that are not in o.
func (s Set) Minus(o Set) Set {
	var out Set
	for _, r := range s {
		o = o.from(r.Start)
		for _, cut := range o {
			if cut.Start >= r.End {
				break
			}
			if cut.Empty() {
				continue
			}
			if cut.Start > r.Start {
				out = append(out, Range{r.Start, cut.Start})
			}
			r.Start = min(cut.End, r.End)
		}
		if !r.Empty() {
			out = append(out, r)
		}
	}
	return out
}

// Intersect returns the bytes in both s and o.
func (s Set) Intersect(o Set) Set {
	if len(s) > len(o) {
		s, o = o, s
	}
	var out Set
	for _, a := range s {
		o = o.from(a.Start)
		for _, b := range o {
			if b.Start >= a.End {
				break
			}
			if x := a.Intersect(b); !x.Empty() {
				out = append(out, x)
			}
		}
	}
	return out
}

// Contains says whether every byte of r is in s.
func (s Set) Contains(r Range) bool {
	if r.Empty() {
		return true
	}
	s = s.from(r.Start)
	return len(s) > 0 && s[0].Contains(r)
}

// Overlaps says whether s and r share a byte.
func (s Set) Overlaps(r Range) bool {
	s = s.from(r.Start)
	return len(s) > 0 && s[0].Overlaps(r)
}

// AlignIn rounds each range of s inwards to multiples of align, a power of
// two.
func (s Set) AlignIn(align uint64) Set {
	var out Set
	for _, r := range s {
		if x := r.AlignIn(align); !x.Empty() {
			out = append(out, x)
		}
	}
	return out
}

// String prints the ranges separated by a space, "none" for an empty set.
func (s Set) String() string {
	if len(s) == 0 {
		return "none"
	}
	words := make([]string, len(s))
	for i, r := range s {
		words[i] = r.String()
	}
	return strings.Join(words, " ")
}

// Copy is memory to be copied: Size bytes from Src to Dst.
type Copy struct {
	Src, Dst, Size uint64
}

// SrcRange returns the bytes that the copy reads.
func (c Copy) SrcRange() Range { return Range{c.Src, c.Src + c.Size} }

// DstRange returns the bytes that the copy writes.
func (c Copy) DstRange() Range { return Range{c.Dst, c.Dst + c.Size} }

func (c Copy) String() string {
	return fmt.Sprintf("%v to %v", c.SrcRange(), c.DstRange())
}

// Segment is data to be placed at Range.Start. The rest of Range belongs to
// the segment too; its contents don't matter.
type Segment struct {
	Name  string // what it is, for messages
	Range Range
	Data  []byte
}

func (s Segment) String() string { return fmt.Sprintf("%v %s", s.Range, s.Name) }

// ParseSize reads a number of bytes as the kernel's memparse does: decimal,
// 0x hexadecimal, with an optional suffix K, M, G or T.
func ParseSize(s string) (uint64, error) {
	digits, shift := s, 0
	if s != "" {
		if i := strings.IndexByte("KMGT", s[len(s)-1]&^0x20); i >= 0 {
			digits, shift = s[:len(s)-1], 10*(i+1)
		}
	}
	n, err := strconv.ParseUint(digits, 0, 64)
	if err != nil {
		return 0, fmt.Errorf("size %q: want a number with an optional K, M, G or T", s)
	}
	if shift > bits.LeadingZeros64(n) {
		return 0, fmt.Errorf("size %q: larger than 64 bits hold", s)
	}
	return n << shift, nil
}

// ParseRange reads SIZE@START, the form of the kernel's memmap= parameter.
func ParseRange(s string) (Range, error) {
	size, start, found := strings.Cut(s, "@")
	if !found {
		return Range{}, fmt.Errorf("range %q: want SIZE@START, such as 128M@384M", s)
	}
	n, err := ParseSize(size)
	if err != nil {
		return Range{}, fmt.Errorf("range %q: %w", s, err)
	}
	a, err := ParseSize(start)
	if err != nil {
		return Range{}, fmt.Errorf("range %q: %w", s, err)
	}
	r, ok := Sized(a, n)
	if !ok || n == 0 {
		return Range{}, fmt.Errorf("range %q: empty, or beyond 64 bits", s)
	}
	return r, nil
}

// FormatSize prints n bytes in the largest binary unit that loses less than
// a tenth: "126 MiB", "1.5 GiB".
func FormatSize(n uint64) string {
	for _, u := range []struct {
		size uint64
		name string
	}{{TiB, "TiB"}, {GiB, "GiB"}, {MiB, "MiB"}, {KiB, "KiB"}} {
		if n >= u.size {
			whole := strconv.FormatFloat(float64(n)/float64(u.size), 'f', 1, 64)
			return strings.TrimSuffix(whole, ".0") + " " + u.name
		}
	}
	return strconv.FormatUint(n, 10) + " B"
}

// Boundaries sorts addresses and drops repeated ones.
func Boundaries(addrs []uint64) []uint64 {
	out := slices.Clone(addrs)
	slices.Sort(out)
	return slices.Compact(out)
}
