package phys

import (
	"math"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

const top = math.MaxUint64

func TestRange(t *testing.T) {
	r := Range{0x1000, 0x3000}
	tests := []struct {
		name               string
		o                  Range
		contains, overlaps bool
		intersect          Range
	}{
		{"itself", r, true, true, r},
		{"inside", Range{0x1800, 0x2800}, true, true, Range{0x1800, 0x2800}},
		{"around", Range{0, 0x4000}, false, true, r},
		{"below, touching", Range{0, 0x1000}, false, false, Range{}},
		{"above, touching", Range{0x3000, 0x4000}, false, false, Range{}},
		{"across the start", Range{0x800, 0x1001}, false, true, Range{0x1000, 0x1001}},
		{"across the end", Range{0x2fff, 0x5000}, false, true, Range{0x2fff, 0x3000}},
		{"empty inside", Range{0x2000, 0x2000}, true, false, Range{}},
		{"empty outside", Range{0x9000, 0x9000}, true, false, Range{}},
		{"inverted", Range{0x2800, 0x1800}, true, false, Range{}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := r.Contains(tt.o); got != tt.contains {
				t.Errorf("%v contains %v: %v, want %v", r, tt.o, got, tt.contains)
			}
			if got, back := r.Overlaps(tt.o), tt.o.Overlaps(r); got != tt.overlaps || back != tt.overlaps {
				t.Errorf("%v overlaps %v: %v and back %v, want %v", r, tt.o, got, back, tt.overlaps)
			}
			if got := r.Intersect(tt.o); got != tt.intersect {
				t.Errorf("%v intersect %v: %v, want %v", r, tt.o, got, tt.intersect)
			}
		})
	}
}

func TestSizes(t *testing.T) {
	tests := []struct {
		name    string
		r       Range
		size    uint64
		text    string
		aligned Range // to 4 KiB
	}{
		{"pages", Range{0x1000, 0x3000}, 0x2000, "00001000-00002fff", Range{0x1000, 0x3000}},
		{"parts of pages", Range{0x1001, 0x3fff}, 0x2ffe, "00001001-00003ffe", Range{0x2000, 0x3000}},
		{"inside a page", Range{0x1001, 0x1fff}, 0xffe, "00001001-00001ffe", Range{}},
		{"empty", Range{0x1000, 0x1000}, 0, "00001000-empty", Range{}},
		{"inverted", Range{0x3000, 0x1000}, 0, "00003000-empty", Range{}},
		{"above 4 GiB", Range{4 * GiB, 5 * GiB}, GiB, "100000000-13fffffff", Range{4 * GiB, 5 * GiB}},
		{"start can't be aligned", Range{top - 1, top}, 1, "fffffffffffffffe-fffffffffffffffe", Range{}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := tt.r.Size(); got != tt.size || tt.r.Empty() != (tt.size == 0) {
				t.Errorf("size %#x, empty %v; want %#x", got, tt.r.Empty(), tt.size)
			}
			if got := tt.r.String(); got != tt.text {
				t.Errorf("text %q, want %q", got, tt.text)
			}
			if got := tt.r.AlignIn(PageSize); got != tt.aligned {
				t.Errorf("aligned %v, want %v", got, tt.aligned)
			}
		})
	}
}

func TestSized(t *testing.T) {
	tests := []struct {
		start, size uint64
		want        Range
		ok          bool
	}{
		{0, 0, Range{}, true},
		{0x1000, 0x234, Range{0x1000, 0x1234}, true},
		{top - 1, 1, Range{top - 1, top}, true},
		{top, 1, Range{}, false},
		{1, top, Range{}, false},
		{top, top, Range{}, false},
	}
	for _, tt := range tests {
		if got, ok := Sized(tt.start, tt.size); got != tt.want || ok != tt.ok {
			t.Errorf("Sized(%#x, %#x): %v, %v; want %v, %v", tt.start, tt.size, got, ok, tt.want, tt.ok)
		}
	}
}

func TestAlign(t *testing.T) {
	tests := []struct {
		a, align, down, up uint64
		ok                 bool
	}{
		{0, 0x1000, 0, 0, true},
		{1, 0x1000, 0, 0x1000, true},
		{0xfff, 0x1000, 0, 0x1000, true},
		{0x1000, 0x1000, 0x1000, 0x1000, true},
		{5, 1, 5, 5, true},
		{top, 1, top, top, true},
		{top - 0xfff, 0x1000, top - 0xfff, top - 0xfff, true},
		{top - 0xffe, 0x1000, top - 0xfff, 0, false},
		{top, 1 << 63, 1 << 63, 0, false},
	}
	for _, tt := range tests {
		if got := AlignDown(tt.a, tt.align); got != tt.down {
			t.Errorf("AlignDown(%#x, %#x): %#x, want %#x", tt.a, tt.align, got, tt.down)
		}
		if got, ok := AlignUp(tt.a, tt.align); got != tt.up && tt.ok || ok != tt.ok {
			t.Errorf("AlignUp(%#x, %#x): %#x, %v; want %#x, %v", tt.a, tt.align, got, ok, tt.up, tt.ok)
		}
	}
}

func TestNewSet(t *testing.T) {
	tests := []struct {
		name string
		in   []Range
		want Set
	}{
		{"nothing", nil, nil},
		{"empty and inverted ones", []Range{{5, 5}, {9, 2}}, nil},
		{"any order", []Range{{30, 40}, {10, 20}}, Set{{10, 20}, {30, 40}}},
		{"neighbours join", []Range{{20, 30}, {10, 20}, {30, 31}}, Set{{10, 31}}},
		{"overlaps join", []Range{{10, 25}, {20, 30}}, Set{{10, 30}}},
		{"inside another", []Range{{10, 50}, {20, 30}, {45, 50}}, Set{{10, 50}}},
		{"twice", []Range{{10, 20}, {10, 20}}, Set{{10, 20}}},
		{"whole address space", []Range{{0, top}, {1, 2}}, Set{{0, top}}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			before := slices.Clone(tt.in)
			if diff := cmp.Diff(tt.want, NewSet(tt.in...)); diff != "" {
				t.Errorf("set (-want +got):\n%s", diff)
			}
			if !slices.Equal(before, tt.in) {
				t.Errorf("the argument was changed to %v", tt.in)
			}
		})
	}
}

func TestSetOperations(t *testing.T) {
	a := NewSet(Range{10, 20}, Range{30, 40}, Range{50, 60})
	tests := []struct {
		name                    string
		b                       Set
		union, minus, intersect Set
	}{
		{"empty", nil, a, a, nil},
		{"itself", a, a, nil, a},
		{"all of it", Set{{0, 100}}, Set{{0, 100}}, nil, a},
		{"the gaps", Set{{0, 10}, {20, 30}, {40, 50}}, Set{{0, 60}}, a, nil},
		{"across two", Set{{15, 35}}, Set{{10, 40}, {50, 60}}, Set{{10, 15}, {35, 40}, {50, 60}}, Set{{15, 20}, {30, 35}}},
		{"holes in one", Set{{11, 12}, {14, 15}}, a, Set{{10, 11}, {12, 14}, {15, 20}, {30, 40}, {50, 60}}, Set{{11, 12}, {14, 15}}},
		{"a whole one", Set{{30, 40}}, a, Set{{10, 20}, {50, 60}}, Set{{30, 40}}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if diff := cmp.Diff(tt.union, a.Union(tt.b)); diff != "" {
				t.Errorf("union (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(tt.minus, a.Minus(tt.b)); diff != "" {
				t.Errorf("minus (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(tt.intersect, a.Intersect(tt.b)); diff != "" {
				t.Errorf("intersect (-want +got):\n%s", diff)
			}
		})
	}
}

func TestSetQuestions(t *testing.T) {
	s := NewSet(Range{0x1000, 0x3000}, Range{0x8001, 0xbfff})
	if got := s.Size(); got != 0x2000+0x3ffe {
		t.Errorf("size %#x", got)
	}
	if got, want := s.String(), "00001000-00002fff 00008001-0000bffe"; got != want {
		t.Errorf("text %q, want %q", got, want)
	}
	if got := (Set)(nil).String(); got != "none" {
		t.Errorf("text of nothing %q, want none", got)
	}
	if diff := cmp.Diff(Set{{0x1000, 0x3000}, {0x9000, 0xb000}}, s.AlignIn(0x1000)); diff != "" {
		t.Errorf("aligned (-want +got):\n%s", diff)
	}
	for _, tt := range []struct {
		r                  Range
		contains, overlaps bool
	}{
		{Range{0x1000, 0x3000}, true, true},
		{Range{0x2fff, 0x8002}, false, true},
		{Range{0x3000, 0x8001}, false, false},
		{Range{0x5000, 0x5000}, true, false},
	} {
		if c, o := s.Contains(tt.r), s.Overlaps(tt.r); c != tt.contains || o != tt.overlaps {
			t.Errorf("%v: contained %v, overlaps %v; want %v, %v", tt.r, c, o, tt.contains, tt.overlaps)
		}
	}
}

// FuzzSet compares the set operations with one bit for each of 256 addresses.
func FuzzSet(f *testing.F) {
	f.Add([]byte{1, 5, 5, 9, 200, 255}, []byte{0, 3, 4, 8}, uint8(2))
	f.Add([]byte{0, 255}, []byte{255, 0, 7, 7}, uint8(0))
	f.Fuzz(func(t *testing.T, x, y []byte, shift uint8) {
		align := uint64(1) << (shift % 8)
		a, b := set(x), set(y)
		aligned := members(a.AlignIn(align))
		has, hasB := members(a), members(b)
		union, minus, intersect := members(a.Union(b)), members(a.Minus(b)), members(a.Intersect(b))
		for i := range has {
			if union[i] != (has[i] || hasB[i]) || minus[i] != (has[i] && !hasB[i]) || intersect[i] != (has[i] && hasB[i]) {
				t.Fatalf("at %d: %v and %v: union %v, minus %v, intersect %v", i, a, b, union[i], minus[i], intersect[i])
			}
			whole := true
			for j := uint64(i) &^ (align - 1); j < uint64(i)&^(align-1)+align; j++ {
				whole = whole && has[j]
			}
			if aligned[i] != whole {
				t.Fatalf("at %d: %v aligned to %d: %v, want %v", i, a, align, aligned[i], whole)
			}
		}
		for _, s := range []Set{a, a.Union(b), a.Minus(b), a.Intersect(b), a.AlignIn(align)} {
			for i, r := range s {
				if r.Empty() || i > 0 && r.Start < s[i-1].End {
					t.Fatalf("%v is not sorted, disjoint and without empty ranges", s)
				}
			}
		}
	})
}

func set(b []byte) Set {
	var ranges []Range
	for i := 0; i+1 < len(b); i += 2 {
		ranges = append(ranges, Range{uint64(b[i]), uint64(b[i+1])})
	}
	return NewSet(ranges...)
}

func members(s Set) (has [256]bool) {
	for _, r := range s {
		for i := r.Start; i < r.End; i++ {
			has[i] = true
		}
	}
	return has
}

func TestParseSize(t *testing.T) {
	tests := []struct {
		in   string
		want uint64
		err  string
	}{
		{"0", 0, ""}, {"1234", 1234, ""}, {"0x1F", 31, ""},
		{"2K", 2048, ""}, {"3m", 3 << 20, ""}, {"4G", 4 << 30, ""}, {"1t", 1 << 40, ""}, {"0x10M", 16 << 20, ""},
		{"16777215T", 16777215 << 40, ""},
		{"16777216T", 0, "larger than 64 bits"},
		{"18446744073709551615", top, ""},
		{"18446744073709551616", 0, "want a number"},
		{"", 0, "want a number"}, {"K", 0, "want a number"}, {"12X", 0, "want a number"}, {"-1", 0, "want a number"},
		{"1.5G", 0, "want a number"}, {"1KK", 0, "want a number"}, {" 1", 0, "want a number"},
	}
	for _, tt := range tests {
		got, err := ParseSize(tt.in)
		if got != tt.want || (err == nil) != (tt.err == "") || err != nil && !strings.Contains(err.Error(), tt.err) {
			t.Errorf("ParseSize(%q): %d, %v; want %d, %q", tt.in, got, err, tt.want, tt.err)
		}
	}
}

func TestParseRange(t *testing.T) {
	tests := []struct {
		in   string
		want Range
		err  string
	}{
		{"128M@384M", Range{384 * MiB, 512 * MiB}, ""},
		{"4096@0x1000", Range{0x1000, 0x2000}, ""},
		{"1@0", Range{0, 1}, ""},
		{"128M", Range{}, "want SIZE@START"},
		{"128M@", Range{}, `size ""`},
		{"@1M", Range{}, `size ""`},
		{"0@1M", Range{}, "empty"},
		{"2@18446744073709551615", Range{}, "beyond 64 bits"},
		{"1M@1M@1M", Range{}, `size "1M@1M"`},
	}
	for _, tt := range tests {
		got, err := ParseRange(tt.in)
		if got != tt.want || (err == nil) != (tt.err == "") || err != nil && !strings.Contains(err.Error(), tt.err) {
			t.Errorf("ParseRange(%q): %v, %v; want %v, %q", tt.in, got, err, tt.want, tt.err)
		}
	}
}

// FuzzParseRange checks that what parses holds what it says.
func FuzzParseRange(f *testing.F) {
	for _, s := range []string{"128M@384M", "1@0xffffffffffffffff", "16777216T@1", "@", "0x@K"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		r, err := ParseRange(s)
		if err != nil {
			if r != (Range{}) {
				t.Fatalf("an error came with %v", r)
			}
			return
		}
		size, start, _ := strings.Cut(s, "@")
		n, errSize := ParseSize(size)
		at, errStart := ParseSize(start)
		if errSize != nil || errStart != nil || r.Empty() || r.Size() != n || r.Start != at {
			t.Fatalf("%q gives %v", s, r)
		}
	})
}

func TestFormatSize(t *testing.T) {
	for _, tt := range []struct {
		n    uint64
		want string
	}{
		{0, "0 B"}, {1023, "1023 B"}, {1024, "1 KiB"}, {1536, "1.5 KiB"}, {126 * MiB, "126 MiB"},
		{GiB - 1, "1024 MiB"}, {GiB + GiB/2, "1.5 GiB"}, {TiB, "1 TiB"}, {top, "16777216 TiB"},
	} {
		if got := FormatSize(tt.n); got != tt.want {
			t.Errorf("FormatSize(%d): %q, want %q", tt.n, got, tt.want)
		}
	}
}

func TestCopyAndSegment(t *testing.T) {
	c := Copy{Src: 0x1000, Dst: 0x8000, Size: 0x2000}
	if c.SrcRange() != (Range{0x1000, 0x3000}) || c.DstRange() != (Range{0x8000, 0xa000}) {
		t.Errorf("%v to %v", c.SrcRange(), c.DstRange())
	}
	if got, want := c.String(), "00001000-00002fff to 00008000-00009fff"; got != want {
		t.Errorf("text %q, want %q", got, want)
	}
	s := Segment{Name: "kernel", Range: Range{0x1000, 0x2000}}
	if got, want := s.String(), "00001000-00001fff kernel"; got != want {
		t.Errorf("text %q, want %q", got, want)
	}
}

func TestBoundaries(t *testing.T) {
	in := []uint64{5, 1, 5, 9, 1}
	if got, want := Boundaries(in), []uint64{1, 5, 9}; !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	if in[0] != 5 || in[1] != 1 {
		t.Errorf("the argument was changed to %v", in)
	}
}
