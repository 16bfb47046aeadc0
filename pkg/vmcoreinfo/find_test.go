package vmcoreinfo_test

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/warmcore/warmcore/pkg/elfcore"
	"github.com/warmcore/warmcore/pkg/phys"
	"github.com/warmcore/warmcore/pkg/vmcoreinfo"
)

// found is a candidate without its text.
type found struct {
	Addr, Size uint64
	Release    string
}

func findAll(result vmcoreinfo.Result) []found {
	var all []found
	for _, c := range result.Candidates {
		all = append(all, found{c.Addr, c.Size, c.Info.Release})
	}
	return all
}

func TestFind(t *testing.T) {
	m := newMemory(16 * phys.MiB)
	long := "OSRELEASE=long\n" + strings.Repeat("SIZE(x)=1\n", 408) // 4095 bytes
	short := writeNote(t, m, 0x5000, "OSRELEASE=first\n")
	size := writeNote(t, m, 2*phys.MiB-phys.PageSize, long) // its end is in another chunk
	writeNote(t, m, 0x300800, "OSRELEASE=notAtPageStart\n")
	writeNote(t, m, 0x400000, "OSRELEASE=outsideRanges\n")
	writeNote(t, m, 0x500000, "PAGESIZE=4096\n") // no release
	writeNote(t, m, 0x600000, "OSRELEASE=noEnd\n")
	m.write(0x600000+24+16, []byte{1})
	writeNote(t, m, 0x700000, "OSRELEASE=otherName\n")
	m.write(0x700000+12, []byte("VMCOREINFx"))
	writeNote(t, m, 0x800000, "OSRELEASE=otherType\n")
	m.write(0x800000+8, []byte{1})
	writeNote(t, m, 0x900000, "OSRELEASE=tooLong\n")
	m.write(0x900000+4, []byte{1, 0, 1, 0})
	writeNote(t, m, 0x980000, "OSRELEASE=ended\x00by a NUL\n")
	writeNote(t, m, 0x981000, "OSRELEASE=binary\n\x80\n")
	writeNote(t, m, 0xa00000-phys.PageSize, long) // cut by the end of a range
	last := writeNote(t, m, 0xfff000, "OSRELEASE=last\n")

	ranges := phys.NewSet(
		phys.Range{Start: 0x4800, End: 0x400000},
		phys.Range{Start: 0x401000, End: 0xa00000},
		phys.Range{Start: 0xb00000, End: 0x1000000},
	)
	result := vmcoreinfo.Find(m, ranges, nil)
	want := []found{
		{0x5000, short, "first"},
		{2*phys.MiB - phys.PageSize, size, "long"},
		{0xfff000, last, "last"},
	}
	if diff := cmp.Diff(want, findAll(result)); diff != "" {
		t.Errorf("candidates (-want +got):\n%s", diff)
	}
	if len(result.Holes) != 0 || result.Dropped != 0 {
		t.Errorf("got holes %v and %d dropped, want none", result.Holes, result.Dropped)
	}

	result = vmcoreinfo.Find(m, ranges, func(i *vmcoreinfo.Info) bool { return i.Release == "last" })
	if diff := cmp.Diff(want[2:], findAll(result)); diff != "" {
		t.Errorf("accepted candidates (-want +got):\n%s", diff)
	}
}

// TestFindSegment: Addr and Size are what a PT_NOTE must say, with the empty
// note that ends the kernel's loop inside the segment.
func TestFindSegment(t *testing.T) {
	m := newMemory(phys.MiB)
	writeNote(t, m, 0x5000, "OSRELEASE=6.1\n")
	c := vmcoreinfo.Find(m, phys.Set{{Start: 0, End: m.size}}, nil).Candidates[0]
	b := make([]byte, c.Size)
	if err := m.ReadPhys(b, c.Addr); err != nil {
		t.Fatal(err)
	}
	notes, err := elfcore.ParseNotes(b)
	if err != nil || len(notes) != 1 || notes[0].Name != elfcore.NameVMCoreInfo || string(notes[0].Desc) != c.Info.Text {
		t.Errorf("got notes %+v and error %v, want the one that was written", notes, err)
	}
	info, err := vmcoreinfo.ParseNote(b)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(c.Info, info); diff != "" {
		t.Errorf("ParseNote (-want +got):\n%s", diff)
	}
	for _, n := range []int{0, 11, 23, 24, 37} {
		if info, err := vmcoreinfo.ParseNote(b[:n]); err == nil || info != nil {
			t.Errorf("ParseNote of %d bytes: got %+v, %v, want an error", n, info, err)
		}
	}
}

func TestFindHoles(t *testing.T) {
	m := newMemory(8 * phys.MiB)
	m.holes = phys.NewSet(
		phys.Range{Start: 0x203000, End: 0x205000}, // two pages, a note on either side
		phys.Range{Start: 0x400000, End: 0x500000}, // a whole chunk
		phys.Range{Start: 0x601000, End: 0x602000}, // the second half of a note
	)
	size := writeNote(t, m, 0x202000, "OSRELEASE=below\n")
	writeNote(t, m, 0x205000, "OSRELEASE=above\n")
	writeNote(t, m, 0x600000, "OSRELEASE=torn\n"+strings.Repeat("SIZE(x)=1\n", 408))
	result := vmcoreinfo.Find(m, phys.Set{{Start: 0, End: m.size}}, nil)
	want := []found{{0x202000, size, "below"}, {0x205000, size, "above"}}
	if diff := cmp.Diff(want, findAll(result)); diff != "" {
		t.Errorf("candidates (-want +got):\n%s", diff)
	}
	var holes phys.Set
	for _, h := range result.Holes {
		holes = append(holes, h.Range)
		if !errors.Is(h.Err, errHole) {
			t.Errorf("hole %v: got error %v, want %v", h.Range, h.Err, errHole)
		}
	}
	if diff := cmp.Diff(m.holes, phys.NewSet(holes...).Intersect(m.holes)); diff != "" {
		t.Errorf("holes (-want +got):\n%s", diff)
	}
	if len(result.Holes) != 4 { // the torn note is one, and its page another
		t.Errorf("got holes %v, want 4", result.Holes)
	}
}

// TestFindMostlyHoles: the number of failed reads is bounded, not only
// proportional to the number of pages.
func TestFindMostlyHoles(t *testing.T) {
	m := newMemory(0)
	result := vmcoreinfo.Find(m, phys.Set{{Start: 0, End: 64 * phys.GiB}}, nil)
	if len(result.Holes) != 1 || result.Holes[0].Range.Size() != 64*phys.GiB {
		t.Errorf("got holes %v, want all 64 GiB as one", result.Holes)
	}
	if limit := 80000; m.reads > limit {
		t.Errorf("%d reads of 64 GiB of hole, want at most %d", m.reads, limit)
	}
}

// TestFindEnds: the last MiB of the address space is no reason to begin again.
func TestFindEnds(t *testing.T) {
	m := newMemory(0)
	result := vmcoreinfo.Find(m, phys.Set{{Start: ^uint64(0) - 3*phys.MiB, End: ^uint64(0)}}, nil)
	if len(result.Holes) != 1 {
		t.Errorf("got holes %v, want one", result.Holes)
	}
}

func TestFindTooMany(t *testing.T) {
	m := newMemory((vmcoreinfo.MaxCandidates + 10) * phys.PageSize)
	for a := uint64(0); a < m.size; a += phys.PageSize {
		writeNote(t, m, a, fmt.Sprintf("OSRELEASE=%d\n", a))
	}
	result := vmcoreinfo.Find(m, phys.Set{{Start: 0, End: m.size}}, nil)
	if len(result.Candidates) != vmcoreinfo.MaxCandidates || result.Dropped != 10 {
		t.Errorf("got %d candidates and %d dropped, want %d and 10", len(result.Candidates), result.Dropped, vmcoreinfo.MaxCandidates)
	}
}

// TestFindStale: two boots' notes, of which the older one's kernel has been
// overwritten where its page tables lay.
func TestFindStale(t *testing.T) {
	g := standard().build()
	old := *g
	old.kaslr, old.imagePhys, old.nextTable = 0x5000000, 0x2000000, 0x3800000
	old.build()
	writeNote(t, g.memory, 0x5000, old.infoText())
	writeNote(t, g.memory, 0x7000, g.infoText())
	live := func(info *vmcoreinfo.Info) bool {
		_, err := vmcoreinfo.KernelMapping(g.memory, info)
		if err != nil && !errors.Is(err, vmcoreinfo.ErrStale) {
			t.Errorf("got error %v, want %v", err, vmcoreinfo.ErrStale)
		}
		return err == nil
	}
	find := func() []uint64 {
		var at []uint64
		for _, c := range vmcoreinfo.Find(g.memory, phys.Set{{Start: 0, End: g.size}}, live).Candidates {
			at = append(at, c.Addr)
		}
		return at
	}
	if got, want := find(), []uint64{0x5000, 0x7000}; !slices.Equal(got, want) {
		t.Errorf("two whole kernels: got %#x, want %#x", got, want)
	}
	g.write(old.root, make([]byte, phys.PageSize))
	if got, want := find(), []uint64{0x7000}; !slices.Equal(got, want) {
		t.Errorf("one whole kernel: got %#x, want %#x", got, want)
	}
}

func FuzzParseNote(f *testing.F) {
	m := newMemory(phys.MiB)
	size := writeNote(f, m, 0, "OSRELEASE=6.1\n")
	b := make([]byte, size)
	if err := m.ReadPhys(b, 0); err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Fuzz(func(t *testing.T, b []byte) {
		info, err := vmcoreinfo.ParseNote(b)
		if (info == nil) != (err != nil) {
			t.Fatalf("got %+v and error %v", info, err)
		}
		if len(b) > int(phys.MiB) {
			return
		}
		// Find takes what ParseNote takes, if the empty note follows.
		m := newMemory(phys.MiB)
		m.write(0, b)
		for _, c := range vmcoreinfo.Find(m, phys.Set{{Start: 0, End: m.size}}, nil).Candidates {
			if c.Addr == 0 && (err != nil || !cmp.Equal(c.Info, info)) {
				t.Fatalf("Find gives %+v, ParseNote %+v, %v", c.Info, info, err)
			}
		}
	})
}
