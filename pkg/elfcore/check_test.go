package elfcore_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/warmcore/warmcore/pkg/elfcore"
	"github.com/warmcore/warmcore/pkg/phys"
)

func TestCheck(t *testing.T) {
	const mib = phys.MiB
	memory := phys.NewSet(phys.Range{Start: 0x30000000, End: 0x80000000})
	clone := func() elfcore.Header {
		return elfcore.Header{Machine: small.Machine, Notes: slices.Clone(small.Notes), Loads: slices.Clone(small.Loads)}
	}
	direct := func(start, size uint64) elfcore.Load {
		return elfcore.Load{Virt: 0xffff888000000000 + start, Phys: start, Offset: start, Size: size}
	}
	for _, c := range []struct {
		name   string
		change func(*elfcore.Header)
		want   string // part of the error; "" for none
	}{
		{"good", func(*elfcore.Header) {}, ""},
		{"textBesideDirectMap", func(h *elfcore.Header) {
			h.Loads = append(h.Loads, direct(0x30000000, 0x10000000))
		}, ""},
		{"adjacentLoads", func(h *elfcore.Header) {
			h.Loads = append(h.Loads, direct(0x40000000, mib), direct(0x40000000+mib, mib))
		}, ""},
		{"noVirtualAddresses", func(h *elfcore.Header) {
			h.Loads[0].Virt, h.Loads[1].Virt = 0, 0
		}, ""},
		{"noLoads", func(h *elfcore.Header) { h.Loads = nil }, "no load"},
		{"halfPage", func(h *elfcore.Header) { h.Loads[1].Size += 2048 }, "load 1 of ELF core header: {Virt"},
		{"emptyLoad", func(h *elfcore.Header) { h.Loads[0].Size = 0 }, "empty"},
		{"virtWraps", func(h *elfcore.Header) { h.Loads[1].Size = 0x80000000 }, "wraps"},
		{"loadNotRedirected", func(h *elfcore.Header) { h.Loads[0].Offset = h.Loads[0].Phys }, "20000000-27ffffff is not all in memory"},
		{"loadEndsOutside", func(h *elfcore.Header) { h.Loads[0].Size = 0x21000000 }, "60000000-80ffffff is not all in memory"},
		{"loadTwice", func(h *elfcore.Header) { h.Loads = append(h.Loads, h.Loads[0]) }, "share virtual addresses"},
		{"physTwiceNoVirt", func(h *elfcore.Header) {
			h.Loads[0].Virt = 0
			h.Loads = append(h.Loads, h.Loads[0])
		}, "share physical addresses"},
		{"samePhysOtherPlace", func(h *elfcore.Header) {
			l := direct(0x30000000, mib)
			l.Offset += mib
			h.Loads = append(h.Loads, l)
		}, "load 1 and load 2 share physical addresses 30000000-300fffff, but not what lies there"},
		{"samePlaceOtherPhys", func(h *elfcore.Header) {
			l := direct(0x31000000, mib)
			l.Phys += 0x10000000
			l.Virt += 0x10000000
			h.Loads = append(h.Loads, l)
		}, "load 1 and load 2 share present addresses 31000000-310fffff, but not what lies there"},
		{"overlapBehindShortLoad", func(h *elfcore.Header) {
			wrong := direct(0x31800000, mib)
			wrong.Offset += 0x20000000
			h.Loads = append(h.Loads, direct(0x31000000, mib), wrong)
		}, "load 1 and load 3 share physical addresses"},
		{"virtTwice", func(h *elfcore.Header) {
			l := direct(0x40000000, mib)
			l.Virt = h.Loads[1].Virt
			h.Loads[0].Virt = 0 // or it would be a third mapping
			h.Loads = append(h.Loads, l)
		}, "load 1 and load 2 share virtual addresses ffffffff81000000"},
		{"thirdMapping", func(h *elfcore.Header) {
			l := direct(0x40000000, mib)
			l.Virt += 0x100000000000
			h.Loads = append(h.Loads, l)
		}, "3 distances"},
		{"noteNotRedirected", func(h *elfcore.Header) {
			h.Notes[0].Offset = 0x40001400
		}, "load 0 and note 0 share physical addresses 20001400-2000156f, but not what lies there"},
		{"noteOutside", func(h *elfcore.Header) { h.Notes[0].Offset = 0x20001400 }, "is not all in memory"},
		{"noteOfOtherMemory", func(h *elfcore.Header) {
			h.Notes[0].Phys = 0x10000000
		}, "share present addresses 60001400-6000156f, but not what lies there"},
		{"noteTiny", func(h *elfcore.Header) { h.Notes[0].Size = 8 }, "size 0x8"},
		{"noteHuge", func(h *elfcore.Header) { h.Notes[0].Size = elfcore.MaxNoteSize + 4 }, "size 0x100004"},
		{"noteUnaligned", func(h *elfcore.Header) { h.Notes[0].Offset++ }, "not aligned"},
		{"noteTwice", func(h *elfcore.Header) { h.Notes = append(h.Notes, h.Notes[0]) }, "note 0 and note 1 share present addresses"},
		{"tooMany", func(h *elfcore.Header) {
			h.Loads = slices.Repeat(h.Loads, elfcore.MaxPhdrs)
		}, "program headers, want at most"},
	} {
		t.Run(c.name, func(t *testing.T) {
			h := clone()
			c.change(&h)
			err := elfcore.Check(h, memory)
			switch {
			case c.want == "" && err != nil:
				t.Errorf("got error %v, want none", err)
			case c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)):
				t.Errorf("got error %v, want one with %q", err, c.want)
			}
		})
	}
}

// TestCheckUnsortedMemory: a set built by hand may be neither sorted nor
// merged.
func TestCheckUnsortedMemory(t *testing.T) {
	memory := phys.Set{{Start: 0x64000000, End: 0x70000000}, {Start: 0x30000000, End: 0x64000000}}
	if err := elfcore.Check(small, memory); err != nil {
		t.Errorf("got error %v, want none", err)
	}
}

// TestCheckMany: a planner's fuzz test may hand over the largest header.
func TestCheckMany(t *testing.T) {
	var h elfcore.Header
	for i := range uint64(elfcore.MaxPhdrs) {
		a := (i + 1) * 2 * phys.PageSize
		h.Loads = append(h.Loads, elfcore.Load{Virt: 0xffff888000000000 + a, Phys: a, Offset: a, Size: phys.PageSize})
	}
	slices.Reverse(h.Loads)
	var memory phys.Set
	for _, l := range h.Loads {
		memory = append(memory, phys.Range{Start: l.Offset, End: l.Offset + l.Size})
	}
	if err := elfcore.Check(h, memory); err != nil {
		t.Errorf("got error %v, want none", err)
	}
}
