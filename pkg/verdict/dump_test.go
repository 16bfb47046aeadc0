package verdict

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/warmcore/warmcore/pkg/elfcore"
	"github.com/warmcore/warmcore/pkg/kernelmap"
	"github.com/warmcore/warmcore/pkg/memmap"
	"github.com/warmcore/warmcore/pkg/phys"
	"github.com/warmcore/warmcore/pkg/plan"
	"github.com/warmcore/warmcore/pkg/registration"
)

const mib = phys.MiB

// other is the plan of another payload for the same machine.
func other(t testing.TB, change func(in *plan.Input)) *plan.Plan {
	t.Helper()
	in := input()
	change(&in)
	return made(t, in)
}

func bootmem(n uint64) func(*plan.Input) {
	return func(in *plan.Input) { in.Policy.BootMemory = n }
}

func TestCompare(t *testing.T) {
	for _, tt := range []struct {
		name         string
		then, today  func(*plan.Input)
		lost, absent string // how much
	}{
		{"the same", bootmem(0), bootmem(0), "0 B", "0 B"},
		{"more boot memory", bootmem(512 * mib), bootmem(768 * mib), "384 MiB", "128 MiB"},
		{"less boot memory", bootmem(768 * mib), bootmem(512 * mib), "128 MiB", "384 MiB"},
		{"another window", bootmem(0), func(in *plan.Input) { in.Policy.Window = phys.Set{size(640*mib, 128*mib)} },
			"128 MiB", "128 MiB"},
		{"a larger window", bootmem(0), func(in *plan.Input) { in.Policy.Window = phys.Set{size(256*mib, 256*mib)} }, "128 MiB", ""},
		{"the loader overwrites more", bootmem(0), func(in *plan.Input) { in.Overwritten = phys.Set{size(900*mib, 3*mib)} }, "", ""},
		{"other memory blocks", bootmem(0), func(in *plan.Input) { in.Policy.BlockSize = 256 * mib }, "", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			then, today := other(t, tt.then), other(t, tt.today)
			d := Compare(Ranges(then), nil, nil, today)
			if err := check(Ranges(then), nil, today, d); err != nil {
				t.Fatalf("%v\nthen:\n%vtoday:\n%v%+v", err, then, today, d)
			}
			if tt.name == "the same" && (len(d.Lost) > 0 || len(d.Absent) > 0 || d.Shown.Size() != today.Dumped().Size()) {
				t.Errorf("lost %v, absent %v", d.Lost, d.Absent)
			}
			overwritten := today.Window.Union(today.Lost).Union(today.Destination).Union(phys.Set{today.Handoff})
			if x := d.Shown.Intersect(overwritten); len(x) > 0 {
				t.Errorf("%v is shown, and today's payload overwrites it", x)
			}
			if want := then.Dumped().Intersect(overwritten); want.String() != d.Lost.String() {
				t.Errorf("lost %v, want %v", d.Lost, want)
			}
			for _, x := range []struct {
				what, want string
				got        phys.Set
			}{{"lost", tt.lost, d.Lost}, {"absent", tt.absent, d.Absent.Intersect(today.Dumped())}} {
				if x.want != "" && phys.FormatSize(x.got.Size()) != x.want {
					t.Errorf("%s: %s (%v), want %s", x.what, phys.FormatSize(x.got.Size()), x.got, x.want)
				}
			}
		})
	}
}

// TestCheckFindsDump breaks a comparison in each way.
func TestCheckFindsDump(t *testing.T) {
	then, today := other(t, bootmem(512*mib)), other(t, bootmem(768*mib))
	page := func(s phys.Set) phys.Set { return phys.Set{size(s[0].Start, phys.PageSize)} }
	for _, tt := range []struct {
		name  string
		spoil func(d *Dump)
		want  string
	}{
		{"as it is", func(*Dump) {}, ""},
		{"window shown", func(d *Dump) { d.Shown = d.Shown.Union(page(today.Window)) }, "today's payload overwrites it"},
		{"destination shown", func(d *Dump) { d.Shown = d.Shown.Union(page(today.Destination)) }, "today's payload overwrites it"},
		{"handoff area shown", func(d *Dump) { d.Shown = d.Shown.Union(page(phys.Set{today.Handoff})) }, "today's payload overwrites it"},
		{"loss not named", func(d *Dump) { d.Lost = d.Lost.Minus(page(d.Lost)) }, "neither in the dump nor named as lost"},
		{"shown as lost", func(d *Dump) { d.Lost = d.Lost.Union(page(d.Shown)) }, "and named as lost"},
		{"left out", func(d *Dump) { d.Shown = d.Shown.Minus(page(d.Shown)) }, "neither in the dump nor named as lost"},
		{"absent and shown", func(d *Dump) { d.Absent = d.Absent.Union(page(d.Shown)) }, "shown true, absent true"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			d := Compare(Ranges(then), nil, nil, today)
			tt.spoil(&d)
			err := check(Ranges(then), nil, today, d)
			if (err == nil) != (tt.want == "") || err != nil && !strings.Contains(err.Error(), tt.want) {
				t.Errorf("Check: %v, want %q", err, tt.want)
			}
		})
	}
	// What was lent to user pages then is not shown, though nobody overwrites it.
	then, today = today, then
	d := Compare(Ranges(then), nil, nil, today)
	d.Shown = d.Shown.Union(page(d.Absent.Intersect(today.Dumped())))
	if err := check(Ranges(then), nil, today, d); err == nil || !strings.Contains(err.Error(), "was not dumped memory of the crashed kernel") {
		t.Errorf("Check: %v", err)
	}
}

// randomInput is a payload for one machine with parameters by chance.
func randomInput(r *rand.Rand) plan.Input {
	in := input()
	in.Policy.BootMemory = r.Uint64N(5) * 128 * mib * r.Uint64N(2)
	in.Policy.BlockSize = []uint64{0, 128 * mib, 256 * mib}[r.Uint64N(3)]
	in.Policy.Window = phys.Set{size([]uint64{256, 384, 640}[r.Uint64N(3)]*mib, 128*mib)}
	for range r.Uint64N(60) {
		in.Overwritten = in.Overwritten.Union(phys.Set{size(4096*mib+r.Uint64N(500_000)*phys.PageSize, r.Uint64N(9)*phys.PageSize+1)})
	}
	return in
}

// TestCompareChain updates the payload again and again before boot memory is
// copied. Each byte has a story: what any of the payloads may have overwritten
// is never shown, however coarse the registration is.
func TestCompareChain(t *testing.T) {
	r := rand.New(rand.NewPCG(5, 6))
	random := func() *plan.Plan {
		for {
			if p, err := plan.Make(randomInput(r)); err == nil {
				return p
			}
		}
	}
	for range 200 {
		first := random()
		registered, absent, lost := Ranges(first), phys.Set(nil), phys.Set(nil)
		intact := first.Dumped()
		for boot := range 4 {
			today := random()
			d := Compare(registered, absent, lost, today)
			if err := check(registered, absent, today, d); err != nil {
				t.Fatalf("boot %d: %v", boot, err)
			}
			intact = intact.Minus(today.Window).Minus(today.Lost).Minus(today.Destination).Minus(phys.Set{today.Handoff})
			if x := d.Shown.Minus(intact); len(x) > 0 {
				t.Fatalf("boot %d shows %v, which a payload has overwritten", boot, x)
			}
			if len(d.Absent) > registration.MaxAbsent {
				t.Fatalf("%d ranges are absent, the registration takes %d", len(d.Absent), registration.MaxAbsent)
			}
			b := Decision{Kind: plan.Capture, Dump: d}.Begin(&registration.Block{}, today, thisHash, thisNonce, now)
			data, err := b.AppendBinary(nil)
			if err != nil {
				t.Fatal(err)
			}
			if b, err = registration.Decode(data); err != nil {
				t.Fatal(err)
			}
			if x := first.Dumped().Minus(d.Shown).Minus(d.Lost); len(x) > 0 {
				t.Fatalf("boot %d: %v is neither in the dump nor named as lost", boot, x)
			}
			registered, absent, lost = b.Plan, b.Absent, b.Lost
		}
	}
}

func TestCoarse(t *testing.T) {
	s := phys.NewSet(size(0, 1), size(10, 1), size(12, 1), size(100, 5))
	for n, want := range map[int]string{
		5: s.String(), 4: s.String(),
		3: phys.NewSet(size(0, 1), size(10, 3), size(100, 5)).String(),
		2: phys.NewSet(size(0, 13), size(100, 5)).String(),
		1: phys.NewSet(size(0, 105)).String(),
	} {
		if got := coarse(s, n).String(); got != want {
			t.Errorf("in %d ranges: %v, want %v", n, got, want)
		}
	}
}

// header is the ELF core header of a dump that p's boot has copied.
func header(t testing.TB, p *plan.Plan) elfcore.Header {
	t.Helper()
	notes := []phys.Range{size(p.Boot[0].Start+0x5000, 424), size(p.Preserved[0].Start+0x6000, 424)}
	h, warnings := p.CoreHeader(p.Dumped(), notes, kernelmap.Mapping{DirectBase: 0xffff9a0000000000, TextVirt: 0xffffffff81000000, TextPhys: p.Boot[0].Start, TextSize: 32 * mib})
	if len(warnings) > 0 || len(h.Notes) != 2 {
		t.Fatalf("%d notes, warnings %q", len(h.Notes), warnings)
	}
	return h
}

func TestKeep(t *testing.T) {
	for _, tt := range []struct {
		name        string
		then, today func(*plan.Input)
		lost        bool
		notes       int
	}{
		{"the same", bootmem(0), bootmem(0), false, 2},
		{"more boot memory", bootmem(512 * mib), bootmem(768 * mib), true, -1},
		{"less boot memory", bootmem(768 * mib), bootmem(512 * mib), false, 2},
		{"another window", bootmem(0), func(in *plan.Input) { in.Policy.Window = phys.Set{size(640*mib, 128*mib)} }, true, -1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			then, today := other(t, tt.then), other(t, tt.today)
			h := header(t, then)
			kept, lost, err := Keep(h, today)
			if err != nil {
				t.Fatal(err)
			}
			if (len(lost) > 0) != tt.lost || tt.notes >= 0 && len(kept.Notes) != tt.notes {
				t.Errorf("lost %v with %d notes, want some: %v, %d notes", lost, len(kept.Notes), tt.lost, tt.notes)
			}
			if tt.name == "the same" {
				if diff := cmp.Diff(h, kept); diff != "" {
					t.Errorf("under the same plan (-before +after):\n%s", diff)
				}
			}
			wantKept(t, h, kept, lost, today)
		})
	}
}

// wantKept asks of each page of a dump whether it is read where it lies, and
// only if today's payload leaves it alone.
func wantKept(t *testing.T, h, kept elfcore.Header, lost phys.Set, today *plan.Plan) {
	t.Helper()
	const step = 64 * phys.KiB
	find := func(loads []elfcore.Load, at uint64) []string {
		var found []string
		for _, l := range loads {
			if l.Phys <= at && at < l.Phys+l.Size {
				found = append(found, fmt.Sprintf("%#x at %#x", l.Virt+at-l.Phys, l.Offset+at-l.Phys))
			}
		}
		return found
	}
	taken := today.Window.Union(today.Lost).Union(today.Boot).Union(phys.Set{today.Handoff})
	for _, l := range h.Loads {
		for at := l.Phys; at < l.Phys+l.Size; at += step {
			now := l.Offset + at - l.Phys
			gone := taken.Overlaps(size(now, step))
			if gone != lost.Overlaps(size(at, step)) {
				t.Fatalf("%#x lies at %#x, which today's payload takes: %v; lost: %v", at, now, gone, lost)
			}
			want := find(h.Loads, at)
			if gone {
				want = nil
			}
			if got := find(kept.Loads, at); !slices.Equal(got, want) {
				t.Fatalf("%#x is mapped as %q, want %q", at, got, want)
			}
		}
	}
}

func TestKeepRefuses(t *testing.T) {
	for _, tt := range []struct {
		name  string
		spoil func(h *elfcore.Header)
		want  string
	}{
		{"nothing is left", func(h *elfcore.Header) {
			h.Loads = []elfcore.Load{{Phys: h.Loads[0].Phys, Offset: thisPlan.Window[0].Start, Size: phys.PageSize}}
		}, "no load"},
		{"another machine", func(h *elfcore.Header) { h.Machine = elfcore.MachineARM64 }, "it is for machine 183, this one is 62"},
		{"a load that wraps", func(h *elfcore.Header) { h.Loads[0].Phys = ^uint64(0) - 5 }, "wraps"},
		{"two places for one byte", func(h *elfcore.Header) {
			h.Loads = append(h.Loads, elfcore.Load{Phys: h.Loads[0].Phys, Offset: thisPlan.Preserved[0].Start, Size: phys.PageSize})
		}, "check ELF core header"},
		{"not whole pages", func(h *elfcore.Header) { h.Loads[0].Phys++ }, "not whole pages"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			h := header(t, thisPlan)
			tt.spoil(&h)
			kept, lost, err := Keep(h, thisPlan)
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("Keep: %v, want %q", err, tt.want)
			}
			if len(kept.Loads) > 0 || lost != nil {
				t.Errorf("an error came with %+v, %v", kept, lost)
			}
		})
	}
}

// FuzzKeep: whatever the handoff area says, nothing is read but what is hidden
// from the capture kernel.
func FuzzKeep(f *testing.F) {
	good, err := header(f, thisPlan).AppendBinary(nil)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good, uint64(0))
	f.Add(good, 768*mib)
	f.Fuzz(func(t *testing.T, b []byte, boot uint64) {
		h, err := elfcore.Parse(b)
		if err != nil {
			return
		}
		in := input()
		in.Policy.BootMemory = boot
		today, err := plan.Make(in)
		if err != nil {
			return
		}
		kept, _, err := Keep(h, today)
		if err != nil {
			return
		}
		ram := today.NextMap(plan.Capture).Set(memmap.RAM).Union(today.Window).Union(phys.Set{today.Handoff})
		for _, l := range kept.Loads {
			if ram.Overlaps(size(l.Offset, l.Size)) {
				t.Fatalf("load %+v is read from memory in use", l)
			}
		}
	})
}
