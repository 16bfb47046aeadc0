package vmcoreinfo_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/warmcore/warmcore/pkg/elfcore"
	"github.com/warmcore/warmcore/pkg/phys"
	"github.com/warmcore/warmcore/pkg/vmcoreinfo"
	"github.com/warmcore/warmcore/pkg/vmcoreinfo/vmcoreinfotest"
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
	m := vmcoreinfotest.New(16 * phys.MiB)
	long := "OSRELEASE=long\n" + strings.Repeat("SIZE(x)=1\n", 408) // 4095 bytes
	short := m.WriteNote(t, 0x5000, "OSRELEASE=first\n")
	size := m.WriteNote(t, 2*phys.MiB-phys.PageSize, long) // its end is in another chunk
	m.WriteNote(t, 0x300800, "OSRELEASE=notAtPageStart\n")
	m.WriteNote(t, 0x400000, "OSRELEASE=outsideRanges\n")
	m.WriteNote(t, 0x500000, "PAGESIZE=4096\n") // no release
	m.WriteNote(t, 0x600000, "OSRELEASE=noEnd\n")
	m.Write(0x600000+24+16, []byte{1})
	m.WriteNote(t, 0x700000, "OSRELEASE=otherName\n")
	m.Write(0x700000+12, []byte("VMCOREINFx"))
	m.WriteNote(t, 0x800000, "OSRELEASE=otherType\n")
	m.Write(0x800000+8, []byte{1})
	m.WriteNote(t, 0x900000, "OSRELEASE=tooLong\n")
	m.Write(0x900000+4, []byte{1, 0, 1, 0})
	m.WriteNote(t, 0x980000, "OSRELEASE=ended\x00by a NUL\n")
	m.WriteNote(t, 0x981000, "OSRELEASE=binary\n\x80\n")
	m.WriteNote(t, 0xa00000-phys.PageSize, long) // cut by the end of a range
	last := m.WriteNote(t, 0xfff000, "OSRELEASE=last\n")

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
	m := vmcoreinfotest.New(phys.MiB)
	m.WriteNote(t, 0x5000, "OSRELEASE=6.1\n")
	c := vmcoreinfo.Find(m, phys.Set{{Start: 0, End: m.Size}}, nil).Candidates[0]
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
	m := vmcoreinfotest.New(8 * phys.MiB)
	m.Holes = phys.NewSet(
		phys.Range{Start: 0x203000, End: 0x205000}, // two pages, a note on either side
		phys.Range{Start: 0x400000, End: 0x500000}, // a whole chunk
		phys.Range{Start: 0x601000, End: 0x602000}, // the second half of a note
	)
	size := m.WriteNote(t, 0x202000, "OSRELEASE=below\n")
	m.WriteNote(t, 0x205000, "OSRELEASE=above\n")
	m.WriteNote(t, 0x600000, "OSRELEASE=torn\n"+strings.Repeat("SIZE(x)=1\n", 408))
	result := vmcoreinfo.Find(m, phys.Set{{Start: 0, End: m.Size}}, nil)
	want := []found{{0x202000, size, "below"}, {0x205000, size, "above"}}
	if diff := cmp.Diff(want, findAll(result)); diff != "" {
		t.Errorf("candidates (-want +got):\n%s", diff)
	}
	var holes phys.Set
	for _, h := range result.Holes {
		holes = append(holes, h.Range)
		if !errors.Is(h.Err, vmcoreinfotest.ErrHole) {
			t.Errorf("hole %v: got error %v, want %v", h.Range, h.Err, vmcoreinfotest.ErrHole)
		}
	}
	if diff := cmp.Diff(m.Holes, phys.NewSet(holes...).Intersect(m.Holes)); diff != "" {
		t.Errorf("holes (-want +got):\n%s", diff)
	}
	if len(result.Holes) != 4 { // the torn note is one, and its page another
		t.Errorf("got holes %v, want 4", result.Holes)
	}
}

// TestFindMostlyHoles: the number of failed reads is bounded, not only
// proportional to the number of pages.
func TestFindMostlyHoles(t *testing.T) {
	m := vmcoreinfotest.New(0)
	result := vmcoreinfo.Find(m, phys.Set{{Start: 0, End: 64 * phys.GiB}}, nil)
	if len(result.Holes) != 1 || result.Holes[0].Range.Size() != 64*phys.GiB {
		t.Errorf("got holes %v, want all 64 GiB as one", result.Holes)
	}
	if limit := 80000; m.Reads > limit {
		t.Errorf("%d reads of 64 GiB of hole, want at most %d", m.Reads, limit)
	}
}

// TestFindEnds: the last MiB of the address space is no reason to begin again.
func TestFindEnds(t *testing.T) {
	m := vmcoreinfotest.New(0)
	result := vmcoreinfo.Find(m, phys.Set{{Start: ^uint64(0) - 3*phys.MiB, End: ^uint64(0)}}, nil)
	if len(result.Holes) != 1 {
		t.Errorf("got holes %v, want one", result.Holes)
	}
}

func TestFindTooMany(t *testing.T) {
	m := vmcoreinfotest.New((vmcoreinfo.MaxCandidates + 10) * phys.PageSize)
	for a := uint64(0); a < m.Size; a += phys.PageSize {
		m.WriteNote(t, a, fmt.Sprintf("OSRELEASE=%d\n", a))
	}
	result := vmcoreinfo.Find(m, phys.Set{{Start: 0, End: m.Size}}, nil)
	if len(result.Candidates) != vmcoreinfo.MaxCandidates || result.Dropped != 10 {
		t.Errorf("got %d candidates and %d dropped, want %d and 10", len(result.Candidates), result.Dropped, vmcoreinfo.MaxCandidates)
	}
}

func FuzzParseNote(f *testing.F) {
	m := vmcoreinfotest.New(phys.MiB)
	size := m.WriteNote(f, 0, "OSRELEASE=6.1\n")
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
		m := vmcoreinfotest.New(phys.MiB)
		m.Write(0, b)
		for _, c := range vmcoreinfo.Find(m, phys.Set{{Start: 0, End: m.Size}}, nil).Candidates {
			if c.Addr == 0 && (err != nil || !cmp.Equal(c.Info, info)) {
				t.Fatalf("Find gives %+v, ParseNote %+v, %v", c.Info, info, err)
			}
		}
	})
}
