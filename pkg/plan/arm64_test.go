package plan

import (
	"errors"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/warmcore/warmcore/pkg/kernelmap"
	"github.com/warmcore/warmcore/pkg/memmap"
	"github.com/warmcore/warmcore/pkg/phys"
)

// virt is the map of QEMU's virt machine.
func virt(n uint64) memmap.Map { return ram(size(gib, n)) }

var onVirt = Policy{Window: phys.Set{size(0x70000000, 128*mib)}, Handoff: size(0x78000000, 2*mib)}

// qemuTree is where QEMU puts its device tree at each reset.
var qemuTree = size(gib, mib)

var arm64Machines = []machine{
	{"virt-2g", Input{Arch: ARM64, Firmware: virt(2 * gib), Policy: onVirt, Overwritten: phys.Set{qemuTree}}},
	{"virt-4g", Input{Arch: ARM64, Firmware: virt(4 * gib), Policy: onVirt}},
	{"virt-6g-64k", Input{Arch: ARM64, Firmware: virt(6 * gib), Policy: with(onVirt, func(p *Policy) { p.BlockSize = 512 * mib })}},
	// What U-Boot overwrites.
	{"virt-2g-uboot", Input{Arch: ARM64, Firmware: virt(2 * gib), Policy: onVirt,
		Overwritten: phys.Set{qemuTree, size(0x401fd000, 0x2000), size(3*gib-0x224e000, 0x4000), size(3*gib-0x124b000, 0x124b000)}}},
	{"virt-6g-numa", Input{Arch: ARM64, Firmware: virt(6 * gib), Policy: onVirt, Nodes: []memmap.Node{node(0, gib, 2*gib), node(1, 3*gib, 4*gib)}}},
	{"virt-64g", Input{Arch: ARM64, Firmware: virt(64 * gib), Policy: onVirt}},
	{"above-4g", Input{Arch: ARM64, Firmware: ram(size(128*gib, 4*gib)), Policy: Policy{Window: phys.Set{size(129*gib, 128*mib)}, Handoff: size(129*gib+128*mib, 2*mib)}}},
	{"two-banks", Input{Arch: ARM64, Firmware: ram(size(2*gib, 2*gib), size(8*gib, 6*gib)), Policy: Policy{Window: phys.Set{size(3*gib, 128*mib)}, Handoff: size(3*gib-2*mib, 2*mib)}}},
	{"window-at-the-bottom", Input{Arch: ARM64, Firmware: virt(4 * gib), Policy: Policy{Window: phys.Set{size(gib, 256*mib)}, Handoff: size(2*gib, 2*mib)}}},
	// Half of the info block before the next range lies in the window.
	{"window-of-odd-pages", Input{Arch: ARM64, Firmware: virt(4 * gib), Policy: Policy{Window: phys.Set{size(0x6fee0000, 128*mib)}, Handoff: size(0x6fce0000, 2*mib)}}},
	{"small-window", Input{Arch: ARM64, Firmware: virt(2 * gib), Policy: Policy{Window: phys.Set{size(0x70000000, 62*mib)}, Handoff: size(0x73e00000, 2*mib)}}},
}

// TestARM64 asks of each plan what the goldens only show.
func TestARM64(t *testing.T) {
	for _, m := range arm64Machines {
		t.Run(m.name, func(t *testing.T) {
			p, err := Make(m.in)
			if err != nil {
				t.Fatal(err)
			}
			// What comes back at release is all but the handoff area, what is
			// lost, and 2 MiB in front of each range; the window may be smaller
			// than a block.
			all := p.Firmware.Set(memmap.RAM).Size()
			back := p.Boot.Size()
			for _, r := range p.Hidden(Capture) {
				r.Start += ARM64.InfoBlock
				back += r.AlignIn(p.BlockSize).Size()
			}
			if small := p.Window.Minus(p.Lendable()).Size(); back+small+p.Lost.Size() < all/1000*985 {
				t.Errorf("%d of %d bytes come back, and %d can't be lent", back, all, small)
			}
			if bottom := phys.AlignDown(p.Boot[0].Start, 512*mib); bottom > p.Hidden(Capture)[0].Start {
				t.Errorf("boot memory begins at %#x: the kernel can't add %v below", p.Boot[0].Start, p.Hidden(Capture)[0])
			}
			for _, r := range p.Hidden(Capture) {
				if (r.Start+ARM64.InfoBlock)%p.BlockSize != 0 || r.End%p.BlockSize != 0 {
					t.Errorf("hidden range %v does not begin an info block below a memory block", r)
				}
			}
			h, warnings := p.CoreHeader(p.Dumped(), nil, kernelmap.Mapping{})
			if err := CheckHeader(p, p.Dumped(), h); err != nil || h.Machine != 183 {
				t.Errorf("core header of machine %d: %v, warnings %q", h.Machine, err, warnings)
			}
			if p.Dumped().Intersect(p.Margin) != nil {
				t.Error("the margin is dumped")
			}
		})
	}
}

// TestARM64Layouts makes plans for thousands of layouts of memory; in each, all
// that is hidden can be given back.
func TestARM64Layouts(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	below := func(n uint64) uint64 { return random.Uint64N(n) }
	plans := 0
	for range 3000 {
		var banks []phys.Range
		at := below(64) * 64 * mib
		for range 1 + below(4) {
			n := (1+below(64))*64*mib + below(3)*below(100)*64*phys.KiB
			banks = append(banks, size(at, n))
			at += n + below(3)*below(40)*32*mib
		}
		in := banks[below(uint64(len(banks)))]
		window := size(in.Start+below(in.Size()/(32*mib)+1)*16*mib, 128*mib)
		handoff := size(window.End, 2*mib)
		if below(2) == 0 {
			handoff = size(window.Start-2*mib, 2*mib)
		}
		p, err := Make(Input{Arch: ARM64, Firmware: ram(banks...), Policy: Policy{Window: phys.Set{window}, Handoff: handoff}})
		if err != nil {
			continue
		}
		plans++
		if err := Check(p); err != nil {
			t.Fatalf("%v\n%v", err, p)
		}
		for _, kind := range []Kind{Plain, Capture} {
			for _, r := range p.Hidden(kind) {
				if (r.Start+ARM64.InfoBlock)%p.BlockSize != 0 || r.End%p.BlockSize != 0 {
					t.Fatalf("%v boot: hidden range %v does not begin an info block below a memory block\n%v", kind, r, p)
				}
			}
		}
	}
	if plans < 2000 {
		t.Errorf("only %d of 3000 machines have a plan", plans)
	}
}

// TestARM64Release: a 2 GiB guest gets 96 % of its RAM back.
func TestARM64Release(t *testing.T) {
	p, err := Make(arm64Machines[0].in)
	if err != nil {
		t.Fatal(err)
	}
	back := p.Boot.Size()
	for _, r := range p.Hidden(Capture) {
		back += r.Size() - ARM64.InfoBlock
	}
	const installed = 2 * gib
	if back < installed/1000*993 {
		t.Errorf("%s of %s, want 99.3 %%: kernels' own data take 3 %% more", phys.FormatSize(back), phys.FormatSize(installed))
	}
}

func TestARM64Refuses(t *testing.T) {
	tests := []struct {
		name string
		in   Input
		want string
	}{
		{"no architecture", Input{Firmware: virt(2 * gib), Policy: onVirt}, "no architecture"},
		{"no RAM", Input{Arch: ARM64, Policy: onVirt}, "has no RAM; the payload must"},
		{"machine too small", Input{Arch: ARM64, Firmware: virt(512 * mib), Policy: Policy{Window: phys.Set{size(gib, 128*mib)}, Handoff: size(gib+128*mib, 2*mib)}}, "boot memory: want at least 256 MiB"},
		{"no room for the copy", Input{Arch: ARM64, Firmware: virt(gib), Policy: with(onVirt, func(p *Policy) { p.BlockSize = 512 * mib })}, "destination: "},
		{"all RAM is the window", Input{Arch: ARM64, Firmware: virt(gib), Policy: Policy{Window: phys.Set{size(gib, gib-2*mib)}, Handoff: size(2*gib-2*mib, 2*mib)}}, "there is no RAM outside"},
		{"handoff area of pages of 4 KiB", Input{Arch: ARM64, Firmware: virt(2 * gib), Policy: with(onVirt, func(p *Policy) { p.Handoff = size(0x78001000, 2*mib) })}, "does not begin and end at a page"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			p, err := Make(tt.in)
			var refusal *Refusal
			if !errors.As(err, &refusal) || !strings.Contains(err.Error(), tt.want) || p != nil {
				t.Errorf("Make: %v, %v; want a refusal with %q", p, err, tt.want)
			}
		})
	}
}

// TestCheckFindsARM64 breaks what only a plan with info blocks has.
func TestCheckFindsARM64(t *testing.T) {
	tests := []struct {
		name  string
		spoil func(*Plan)
		want  string
	}{
		{"margin is dumped", func(p *Plan) { p.Preserved = p.Preserved.Union(phys.Set{p.Margin[0]}) }, "is both"},
		{"margin is forgotten", func(p *Plan) { p.Margin = p.Margin[:1] }, "is RAM that the plan forgot"},
		{"margin is lost", func(p *Plan) { p.Margin, p.Lost = nil, p.Lost.Union(p.Margin) }, ""},
		{"destination without an info block", func(p *Plan) {
			p.Boot, p.Margin = p.Boot.Union(phys.Set{p.Margin[len(p.Margin)-1]}), p.Margin[:len(p.Margin)-1]
			p.Copies = pair(p.Boot, p.Destination)
		}, "has no info block in front"},
		{"preserved memory with more than an info block", func(p *Plan) {
			more := phys.Set{{Start: p.Preserved[0].Start - mib, End: p.Preserved[0].Start}}
			p.Preserved, p.Boot = p.Preserved.Union(more), p.Boot.Minus(more)
			p.Copies = pair(p.Boot, p.Destination)
		}, "behind an info block of 0x200000"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			p, err := Make(arm64Machines[0].in)
			if err != nil {
				t.Fatal(err)
			}
			tt.spoil(p)
			err = Check(p)
			if (err == nil) != (tt.want == "") || err != nil && !strings.Contains(err.Error(), tt.want) {
				t.Errorf("Check: %v, want %q", err, tt.want)
			}
		})
	}
}

func TestCmdlineARM64(t *testing.T) {
	p, err := Make(arm64Machines[0].in)
	if err != nil {
		t.Fatal(err)
	}
	const ours = "crashkernel=2M memhp_default_state=offline modprobe.blacklist=kmem,dax_hmem,dax_pmem,device_dax,nd_btt,nd_pmem,of_pmem warmcore.handoff=0x78000000,0x200000 panic=10"
	for _, kind := range []Kind{Plain, Capture} {
		got, dropped := p.Cmdline("ro elfcorehdr=1", kind, phys.Range{Start: 0x780c0000, End: 0x780c0400})
		if got != "ro "+ours || len(dropped) != 1 {
			t.Errorf("%v: got %q, dropped %q\nwant %q", kind, got, dropped, "ro "+ours)
		}
	}
}

// TestDirectBaseARM64: physical memory begins where the linear map does.
func TestDirectBaseARM64(t *testing.T) {
	p, err := Make(arm64Machines[0].in)
	if err != nil {
		t.Fatal(err)
	}
	h, warnings := p.CoreHeader(p.Dumped(), nil, kernelmap.Mapping{})
	if l := h.Loads[0]; l.Virt-l.Phys != 0xfffeffffc0000000 || len(warnings) != 1 {
		t.Errorf("physical %#x is at %#x, warnings %q; want it %#x above 0xffff000000000000", l.Phys, l.Virt, warnings, l.Phys-gib)
	}
}

func TestCheckKernel(t *testing.T) {
	tests := []struct {
		arch        Arch
		block, page uint64
		want        string
	}{
		{ARM64, 128 * mib, 4 << 10, ""},
		{ARM64, 128 * mib, 16 << 10, ""},
		{ARM64, 128 * mib, 64 << 10, "a kernel with pages of 64 KiB has memory blocks of 512 MiB, the plan has 128 MiB: start the payload with warmcore.block=512M"},
		{ARM64, 512 * mib, 64 << 10, ""},
		{ARM64, 512 * mib, 4 << 10, ""},
		{ARM64, 64 * mib, 4 << 10, "memory blocks of 128 MiB, the plan has 64 MiB"},
		{ARM64, 128 * mib, 0, "a kernel with pages of 0 B: the size of its memory blocks is not known"},
		{AMD64, 128 * mib, 0, ""},
	}
	for _, tt := range tests {
		p := &Plan{Arch: tt.arch, BlockSize: tt.block}
		err := p.CheckKernel(tt.page)
		if (err == nil) != (tt.want == "") || err != nil && !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s, blocks of %#x, pages of %#x: %v, want %q", tt.arch.Name, tt.block, tt.page, err, tt.want)
		}
	}
}
