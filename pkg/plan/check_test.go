package plan

import (
	"slices"
	"strings"
	"testing"

	"github.com/warmcore/warmcore/pkg/elfcore"
	"github.com/warmcore/warmcore/pkg/kernelmap"
	"github.com/warmcore/warmcore/pkg/memmap"
	"github.com/warmcore/warmcore/pkg/phys"
)

func mustMake(t *testing.T, ram uint64) *Plan {
	t.Helper()
	p, err := Make(Input{Arch: AMD64, Firmware: q35(ram), Policy: usual})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// TestCheckFindsMore has the rules that TestCheckFinds, in plan_test.go, has
// no case for: each is broken alone where that is possible.
func TestCheckFindsMore(t *testing.T) {
	tests := []struct {
		name  string
		spoil func(*Plan)
		want  string
	}{
		{"in the first MiB", func(p *Plan) { p.Lost = phys.Set{size(0x1000, 0x1000)} }, "00001000-00001fff is lost but below 1 MiB"},
		{"two copies to one place", func(p *Plan) { p.Copies[1].Dst = p.Copies[0].Dst }, "is written 2 times"},
		{"copy of preserved memory", func(p *Plan) { p.Copies[0].Src = p.Preserved[0].Start }, "is copied but is no boot memory"},
		{"copy to boot memory", func(p *Plan) { p.Copies[0].Dst = p.Boot[0].Start }, "is written but is no destination"},
		{"copy from the end of the address space", func(p *Plan) { p.Copies[0].Src = -p.Copies[0].Size + 1 }, "from 0xfffffffff8100001 wraps"},
		{"copy to the end of the address space", func(p *Plan) { p.Copies[0].Dst = -p.Copies[0].Size + 1 }, "to 0xfffffffff8100001 wraps"},
		{"destination of half a block", func(p *Plan) { p.Destination[0].End -= mib }, "is not made of whole memory blocks"},
		{"RAM of a capture boot outside boot memory", func(p *Plan) { p.Firmware.Entries[4].Kind = memmap.RAM }, "is RAM that the plan forgot"},
		{"window that firmware keeps for itself", func(p *Plan) {
			p.Firmware.Entries = append(slices.Clone(p.Firmware.Entries), memmap.Entry{Range: p.Window[0], Kind: memmap.NVS})
		}, "18000000-1fffffff is window but not RAM"},
		{"handoff area twice", func(p *Plan) { p.Window = p.Window.Union(phys.Set{p.Handoff}) }, "20000000-201fffff is both [window handoff]"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			p := mustMake(t, 2*gib)
			tt.spoil(p)
			if err := Check(p); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("Check: %v, want %q", err, tt.want)
			}
		})
	}
}

// unused is the last page of the destination, to which nothing is copied.
func unused(p *Plan) uint64 { return p.Destination[len(p.Destination)-1].End - 0x1000 }

// TestCheckHeaderFinds breaks a good header in each way.
func TestCheckHeaderFinds(t *testing.T) {
	tests := []struct {
		name  string
		spoil func(p *Plan, h *elfcore.Header)
		want  string
	}{
		{"as it is", func(*Plan, *elfcore.Header) {}, ""},
		{"load is missing", func(_ *Plan, h *elfcore.Header) { h.Loads = h.Loads[1:] }, "dumped memory 00100000-07ffffff is in no load"},
		{"load is too short", func(_ *Plan, h *elfcore.Header) { h.Loads[0].Size -= 0x1000 }, "dumped memory 07fff000-07ffffff is in no load"},
		{"load of the window", func(p *Plan, h *elfcore.Header) {
			extra := elfcore.Load{Phys: p.Window[0].Start, Offset: unused(p), Size: 0x1000}
			extra.Virt = h.Loads[0].Virt - h.Loads[0].Phys + extra.Phys
			h.Loads = append(h.Loads, extra)
		}, "loads show 18000000-18000fff, which is not dumped memory"},
		{"copied memory is read elsewhere in the destination", func(p *Plan, h *elfcore.Header) {
			h.Loads[0].Offset, h.Loads[0].Size = h.Loads[0].Offset+0x1000, 0x1000
		}, "its copy is elsewhere"},
		{"copied memory is read in place", func(_ *Plan, h *elfcore.Header) { h.Loads[0].Offset = h.Loads[0].Phys }, "00100000-07ffffff is not all in memory"},
		{"preserved memory is read in the destination", func(p *Plan, h *elfcore.Header) {
			i := slices.IndexFunc(h.Loads, func(l elfcore.Load) bool { return l.Phys == p.Preserved[0].Start })
			h.Loads[i].Offset, h.Loads[i].Size = unused(p), 0x1000
		}, "which is preserved in place, is read at"},
		{"note in the handoff area", func(p *Plan, h *elfcore.Header) { h.Notes[0].Offset = p.Handoff.Start }, "20000000-200001a7 is not all in memory"},
		{"note in boot memory", func(p *Plan, h *elfcore.Header) { h.Notes[0].Offset = h.Notes[0].Phys }, "00102000-001021a7 is not all in memory"},
		{"note that wraps", func(_ *Plan, h *elfcore.Header) { h.Notes[0].Offset = ^uint64(0) - 3 }, "not aligned to 4, or wraps"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			p := mustMake(t, 2*gib)
			note := size(p.Boot[0].Start+0x2000, 424)
			h, warnings := p.CoreHeader(p.Dumped(), []phys.Range{note}, kernelmap.Mapping{DirectBase: 0xffff888000000000})
			if len(warnings) > 0 || len(h.Notes) != 1 {
				t.Fatalf("header with %d notes, warnings %q", len(h.Notes), warnings)
			}
			tt.spoil(p, &h)
			err := CheckHeader(p, p.Dumped(), h)
			if (err == nil) != (tt.want == "") || err != nil && !strings.Contains(err.Error(), tt.want) {
				t.Errorf("CheckHeader: %v, want %q", err, tt.want)
			}
		})
	}
}
