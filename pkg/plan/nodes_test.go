package plan

import (
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/warmcore/warmcore/pkg/memmap"
	"github.com/warmcore/warmcore/pkg/phys"
)

func node(id uint32, start, n uint64) memmap.Node { return memmap.Node{ID: id, Range: size(start, n)} }

func TestBorders(t *testing.T) {
	for _, tt := range []struct {
		name  string
		nodes []memmap.Node
		want  []uint64
	}{
		{"none", nil, nil},
		{"one", []memmap.Node{node(0, gib, gib)}, []uint64{gib, 2 * gib}},
		{"neighbours of one node", []memmap.Node{node(3, 2*gib, gib), node(3, gib, gib)}, []uint64{gib, 3 * gib}},
		{"two nodes", []memmap.Node{node(0, 0, gib), node(1, gib, gib)}, []uint64{0, gib, 2 * gib}},
		{"in turns", []memmap.Node{node(0, 0, gib), node(1, gib, gib), node(0, 2*gib, gib)}, []uint64{0, gib, 2 * gib, 3 * gib}},
		{"a hole", []memmap.Node{node(0, 0, gib), node(0, 4*gib, gib)}, []uint64{0, gib, 4 * gib, 5 * gib}},
		{"one in another", []memmap.Node{node(0, 0, 4*gib), node(1, gib, gib)}, []uint64{0, gib, 2 * gib, 4 * gib}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := borders(tt.nodes); !slices.Equal(got, tt.want) {
				t.Errorf("got %#x, want %#x", got, tt.want)
			}
		})
	}
}

// TestNodes makes plans for machines whose nodes meet anywhere: what is handed
// over is of one node, and all RAM is somewhere.
func TestNodes(t *testing.T) {
	r := rand.New(rand.NewPCG(7, 8))
	for range 100 {
		ram := (3 + r.Uint64N(30)) * gib
		var nodes []memmap.Node
		at := uint64(0)
		for id := range uint32(1 + r.Uint64N(4)) {
			n := size(at, (1+r.Uint64N(8))*gib+r.Uint64N(2)*r.Uint64N(2048)*mib)
			nodes, at = append(nodes, memmap.Node{ID: id, Range: n}), n.End
		}
		for _, in := range []Input{
			{Arch: AMD64, Firmware: q35(ram), Policy: usual, Nodes: nodes},
			{Arch: ARM64, Firmware: virt(ram), Policy: onVirt, Nodes: nodes},
		} {
			p, err := Make(in)
			if err != nil {
				t.Fatalf("%s, %v: %v", in.Arch.Name, nodes, err)
			}
			if err := Check(p); err != nil {
				t.Fatalf("%v\n%v", err, p)
			}
			for _, kind := range []Kind{Plain, Capture} {
				for _, e := range p.NextMap(kind).Entries {
					if e.Kind != memmap.SoftReserved {
						continue
					}
					// The info block in front may be of the node before.
					usable := phys.Range{Start: e.Range.Start + p.Arch.InfoBlock, End: e.Range.End}
					for _, b := range p.Borders {
						if usable.Start < b && b < usable.End {
							t.Fatalf("%s: %v lies across the border at %#x of %v\n%v", p.Arch.Name, e.Range, b, nodes, p)
						}
						if r := (phys.Range{Start: b - p.Arch.InfoBlock, End: b}); p.Arch.InfoBlock > 0 && usable.Overlaps(r) && p.Hidden(kind).Contains(phys.Range{Start: r.Start, End: b + 1}) {
							t.Fatalf("%s: no room for an info block in front of the border at %#x\n%v", p.Arch.Name, b, p)
						}
					}
				}
			}
		}
	}
}

// TestCheckFindsBorder: a border in a range that is handed over.
func TestCheckFindsBorder(t *testing.T) {
	p := mustMake(t, 6*gib)
	next := p.NextMap(Capture)
	for _, e := range next.Entries {
		if e.Kind == memmap.SoftReserved {
			p.Borders = []uint64{e.Range.Start + p.BlockSize}
		}
	}
	if err := Check(p); err != nil {
		t.Errorf("the plan itself cuts there, but: %v", err)
	}
	// A plan that doesn't cut is one whose map is made before the border is
	// known; the check must say so of any map.
	if err := checkBorders(p, next); err == nil || !strings.Contains(err.Error(), "another NUMA node begins in it at") {
		t.Errorf("checkBorders: %v", err)
	}
}
