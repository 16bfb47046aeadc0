package vmcore_test

import (
	"errors"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/warmcore/warmcore/pkg/elfcore"
	"github.com/warmcore/warmcore/pkg/phys"
	"github.com/warmcore/warmcore/pkg/vmcore"
)

// pattern is memory in which each page is filled with its number, but for
// those that somebody wrote or that can't be read.
type pattern struct {
	written map[uint64]byte
	bad     uint64
}

func (m pattern) ReadPhys(p []byte, addr uint64) error {
	if addr == m.bad {
		return errors.New("bad page")
	}
	for i := range p {
		p[i] = byte(addr>>12) + m.written[addr]
	}
	return nil
}

// TestSamples: samples are spread over all ranges, survive the note, and tell
// which of their pages changed.
func TestSamples(t *testing.T) {
	memory := phys.NewSet(phys.Range{Start: 0x1800, End: 0x9000}, phys.Range{Start: 0x100000, End: 0x100000 + 2*vmcore.MaxSamples*vmcore.SampleSize})
	m := pattern{bad: 0x4000}
	samples := vmcore.TakeSamples(m, memory)
	if len(samples) != vmcore.MaxSamples-1 || samples[0].Addr != 0x2000 || samples[1].Addr != 0x6000 {
		t.Errorf("%d samples from %#x, %#x on", len(samples), samples[0].Addr, samples[1].Addr)
	}
	var notes []byte
	notes, err := elfcore.AppendNote(notes, vmcore.SamplesNote(samples))
	if err != nil {
		t.Fatal(err)
	}
	var info vmcore.Info
	info.AddNotes(notes)
	if diff := cmp.Diff(samples, info.Samples); diff != "" || len(info.Notes) > 0 || len(info.Warnings) > 0 {
		t.Fatalf("warnings %q, %d bytes of other notes, -want +got:\n%s", info.Warnings, len(info.Notes), diff)
	}
	if changed, read := vmcore.Changed(m, info.Samples); len(changed) > 0 || read != len(samples) {
		t.Errorf("%v changed of %d, want none of %d", changed, read, len(samples))
	}
	last := samples[len(samples)-1].Addr
	m.written = map[uint64]byte{0x6000: 1, last: 1, last + vmcore.SampleSize: 1}
	m.bad = samples[5].Addr
	want := phys.NewSet(phys.Range{Start: 0x6000, End: 0x7000}, phys.Range{Start: last, End: last + vmcore.SampleSize})
	if changed, read := vmcore.Changed(m, info.Samples); !cmp.Equal(changed, want) || read != len(samples)-1 {
		t.Errorf("%v changed of %d, want %v of %d", changed, read, want, len(samples)-1)
	}
}

func TestSamplesOfLittleMemory(t *testing.T) {
	if got := vmcore.TakeSamples(pattern{}, phys.Set{{Start: 0x1000, End: 0x3000}}); len(got) != 2 || got[1].Addr != 0x2000 {
		t.Errorf("%v, want both pages", got)
	}
	if got := vmcore.TakeSamples(pattern{}, nil); got != nil {
		t.Errorf("%v, want none", got)
	}
}

// TestSamplesDamaged: a note of another length, or of too many samples, is a
// warning.
func TestSamplesDamaged(t *testing.T) {
	for _, n := range []int{11, 12 * (vmcore.MaxSamples + 1)} {
		notes, err := elfcore.AppendNote(nil, elfcore.ELFNote{Name: vmcore.NameUnreadable, Type: vmcore.TypeSamples, Desc: make([]byte, n)})
		if err != nil {
			t.Fatal(err)
		}
		var info vmcore.Info
		info.AddNotes(notes)
		if len(info.Samples) > 0 || len(info.Warnings) != 1 {
			t.Errorf("%d bytes: %d samples, warnings %q", n, len(info.Samples), info.Warnings)
		}
	}
}
