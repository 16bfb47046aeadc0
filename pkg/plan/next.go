package plan

import (
	"cmp"
	"fmt"
	"slices"

	"github.com/warmcore/warmcore/pkg/elfcore"
	"github.com/warmcore/warmcore/pkg/kernelmap"
	"github.com/warmcore/warmcore/pkg/memmap"
	"github.com/warmcore/warmcore/pkg/phys"
)

// Kind is how the payload starts the normal kernel.
type Kind int

const (
	// Plain is a boot with no dump to save.
	Plain Kind = iota
	// Capture is a boot with a dump to save.
	Capture
)

func (k Kind) String() string {
	if k == Capture {
		return "capture"
	}
	return "plain"
}

// NextMap returns the memory map for the normal kernel. Entries that are not
// RAM stay as firmware gave them. Hidden memory is Soft Reserved: the kernel
// does not touch it by itself, and makes a device of each range that the agent
// can turn into memory. On x86 the kernel reads this from the map
// (e820_type_to_iores_desc in arch/x86/kernel/e820.c and drivers/dax/hmem,
// v6.1) and never joins two of the ranges (e820_nomerge, v6.12), so that each
// can be in one NUMA node. On arm64 pkg/segments writes a pmem-region node for
// each range and joins neighbours; boot memory separates the nodes. The rest
// of RAM is Reserved.
func (p *Plan) NextMap(kind Kind) memmap.Map {
	kinds := []struct {
		set  phys.Set
		kind memmap.Kind
	}{
		{p.Firmware.Set(memmap.RAM).Intersect(phys.Set{p.Arch.Low}), memmap.RAM},
		{p.Boot, memmap.RAM},
		{p.Preserved, memmap.RAM},
		{p.Hidden(kind).Minus(p.Preserved), memmap.SoftReserved},
		{phys.Set{p.Handoff}.Union(p.Lost).Union(p.Window).Minus(p.Hidden(kind)), memmap.Reserved},
	}
	if kind == Capture {
		kinds[2].kind = memmap.SoftReserved
	}
	var m memmap.Map
	for _, k := range kinds {
		ranges := []phys.Range(k.set)
		if k.kind == memmap.SoftReserved {
			ranges = p.cut(k.set)
		}
		for _, r := range ranges {
			m.Entries = append(m.Entries, memmap.Entry{Range: r, Kind: k.kind})
		}
	}
	return p.withFirmware(m)
}

// withFirmware completes a map of RAM by what firmware's map has beside RAM.
func (p *Plan) withFirmware(m memmap.Map) memmap.Map {
	for _, e := range p.Firmware.Normalize().Entries {
		if e.Kind != memmap.RAM {
			m.Entries = append(m.Entries, e)
		}
	}
	slices.SortFunc(m.Entries, func(a, b memmap.Entry) int { return cmp.Compare(a.Range.Start, b.Range.Start) })
	return m.Normalize()
}

// WholeMap returns the memory map for a normal kernel that is left to kdump: all
// of the firmware's map except the handoff area.
func (p *Plan) WholeMap() memmap.Map {
	m := memmap.Map{Entries: []memmap.Entry{{Range: p.Handoff, Kind: memmap.Reserved}}}
	for _, r := range p.Firmware.Set(memmap.RAM).Minus(phys.Set{p.Handoff}) {
		m.Entries = append(m.Entries, memmap.Entry{Range: r, Kind: memmap.RAM})
	}
	return p.withFirmware(m)
}

// CoreHeader returns the ELF core header of a dump of shown, a part of the
// plan's dumped memory: it says where each byte that the crashed kernel had
// there is now. A copied piece has its old address in p_paddr and its present
// one in p_offset. Notes outside the dumped memory, or across two pieces of
// it, are left out and returned as warnings; so is a mapping that can't be
// true.
func (p *Plan) CoreHeader(shown phys.Set, notes []phys.Range, mapping kernelmap.Mapping) (elfcore.Header, []string) {
	h, warnings := p.coreHeader(shown, notes, mapping)
	if mapping != (kernelmap.Mapping{}) && elfcore.Check(h, p.Destination.Union(p.Preserved)) != nil {
		var more []string
		h, more = p.coreHeader(shown, notes, kernelmap.Mapping{})
		warnings = append(more, fmt.Sprintf("the kernel mapping %#x contradicts itself, left out", mapping))
	}
	return h, warnings
}

// minNote is the size of a note's header, in bytes.
const minNote = 12

func (p *Plan) coreHeader(shown phys.Set, notes []phys.Range, mapping kernelmap.Mapping) (elfcore.Header, []string) {
	h := elfcore.Header{Machine: p.Arch.Machine}
	var warnings []string
	var taken phys.Set
	pieces := p.pieces(shown)
	for _, n := range notes {
		now := locate(pieces, n)
		switch {
		case n.Size() < minNote || n.Size() > elfcore.MaxNoteSize:
			warnings = append(warnings, fmt.Sprintf("note at %#x: %d bytes can't be one", n.Start, n.Size()))
			continue
		case len(now) != 1 || now[0].Size != n.Size():
			warnings = append(warnings, fmt.Sprintf("note at %#x, %d bytes: not in one piece of dumped memory", n.Start, n.Size()))
			continue
		case taken.Overlaps(n):
			warnings = append(warnings, fmt.Sprintf("note at %#x: overlaps another", n.Start))
			continue
		}
		taken = taken.Union(phys.Set{n})
		h.Notes = append(h.Notes, elfcore.Note{Phys: n.Start, Offset: now[0].Dst, Size: n.Size()})
	}
	// Whole pages only, of any size: fs/proc/vmcore.c rounds loads outwards.
	if text, ok := phys.Sized(mapping.TextPhys, phys.AlignDown(mapping.TextSize, p.Arch.Granule)); ok && mapping.TextVirt != 0 && mapping.TextPhys%p.Arch.Granule == 0 {
		for _, c := range locate(pieces, text) {
			h.Loads = append(h.Loads, elfcore.Load{Virt: mapping.TextVirt + (c.Src - mapping.TextPhys), Phys: c.Src, Offset: c.Dst, Size: c.Size})
		}
	}
	base := mapping.DirectBase
	if base == 0 {
		var err error
		if base, err = kernelmap.DefaultDirectBase(p.Arch.Machine, p.Firmware.Set(memmap.RAM)[0].Start); err != nil {
			warnings = append(warnings, err.Error())
		}
		warnings = append(warnings, fmt.Sprintf("the base of the direct map is not known, taking %#x", base))
	}
	for _, c := range pieces {
		h.Loads = append(h.Loads, elfcore.Load{Virt: base + c.Src, Phys: c.Src, Offset: c.Dst, Size: c.Size})
	}
	return h, warnings
}

// pieces returns the dumped memory in shown, cut where a copy begins or ends:
// Src is the address in the crashed kernel, Dst the address where the bytes
// are now.
func (p *Plan) pieces(shown phys.Set) (out []phys.Copy) {
	for _, c := range p.Copies {
		for _, r := range shown.Intersect(phys.Set{c.SrcRange()}) {
			out = append(out, phys.Copy{Src: r.Start, Dst: c.Dst + (r.Start - c.Src), Size: r.Size()})
		}
	}
	for _, r := range shown.Intersect(p.Preserved) {
		out = append(out, phys.Copy{Src: r.Start, Dst: r.Start, Size: r.Size()})
	}
	slices.SortFunc(out, func(a, b phys.Copy) int { return cmp.Compare(a.Src, b.Src) })
	return out
}

// locate returns the parts of r that are in pieces, each with its present
// address.
func locate(pieces []phys.Copy, r phys.Range) (now []phys.Copy) {
	for _, c := range pieces {
		if x := c.SrcRange().Intersect(r); !x.Empty() {
			now = append(now, phys.Copy{Src: x.Start, Dst: c.Dst + (x.Start - c.Src), Size: x.Size()})
		}
	}
	return now
}

// Now returns where the bytes of r, an address range of the crashed kernel,
// are after the copy, cut where a copy begins or ends. Memory that is not
// dumped is left out.
func (p *Plan) Now(r phys.Range) []phys.Copy { return locate(p.pieces(phys.Set{r}), r) }
