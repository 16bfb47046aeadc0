package plan

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/warmcore/warmcore/pkg/kernelmap"
	"github.com/warmcore/warmcore/pkg/memmap"
	"github.com/warmcore/warmcore/pkg/phys"
)

var update = flag.Bool("update", false, "rewrite the golden plans")

const (
	mib = phys.MiB
	gib = phys.GiB
)

// q35 is the map that SeaBIOS gives on QEMU's q35 machine.
func q35(ram uint64) memmap.Map {
	low, high := ram, uint64(0)
	if ram >= 0xb0000000 {
		low, high = 2*gib, ram-2*gib
	}
	m := memmap.Map{Entries: []memmap.Entry{
		{Range: phys.Range{Start: 0, End: 0x9fc00}, Kind: memmap.RAM},
		{Range: phys.Range{Start: 0x9fc00, End: 0xa0000}, Kind: memmap.Reserved},
		{Range: phys.Range{Start: 0xf0000, End: mib}, Kind: memmap.Reserved},
		{Range: phys.Range{Start: mib, End: low - 0x21000}, Kind: memmap.RAM},
		{Range: phys.Range{Start: low - 0x21000, End: low}, Kind: memmap.Reserved},
		{Range: phys.Range{Start: 0xb0000000, End: 0xc0000000}, Kind: memmap.Reserved},
		{Range: phys.Range{Start: 0xfed1c000, End: 0xfed20000}, Kind: memmap.Reserved},
		{Range: phys.Range{Start: 0xfeffc000, End: 0xff000000}, Kind: memmap.Reserved},
		{Range: phys.Range{Start: 0xfffc0000, End: 4 * gib}, Kind: memmap.Reserved},
	}}
	if high > 0 {
		m.Entries = append(m.Entries, memmap.Entry{Range: phys.Range{Start: 4 * gib, End: 4*gib + high}, Kind: memmap.RAM})
	}
	return m
}

func size(start, n uint64) phys.Range { return phys.Range{Start: start, End: start + n} }

var usual = Policy{Window: phys.Set{size(384*mib, 128*mib)}, Handoff: size(512*mib, 2*mib)}

// ram returns a map of nothing but RAM.
func ram(ranges ...phys.Range) (m memmap.Map) {
	for _, r := range ranges {
		m.Entries = append(m.Entries, memmap.Entry{Range: r, Kind: memmap.RAM})
	}
	return m
}

func with(p Policy, change func(*Policy)) Policy {
	p.Window = slices.Clone(p.Window)
	change(&p)
	return p
}

// machine has its plan in testdata/NAME.plan.
type machine struct {
	name string
	in   Input
}

var machines = []machine{
	{"q35-1g", Input{Arch: AMD64, Firmware: q35(1 * gib), Policy: usual}},
	{"q35-2g", Input{Arch: AMD64, Firmware: q35(2 * gib), Policy: usual}},
	{"q35-6g", Input{Arch: AMD64, Firmware: q35(6 * gib), Policy: usual}},
	{"q35-2g-stock-payload", Input{
		Arch:        AMD64,
		Firmware:    q35(2 * gib),
		Overwritten: phys.Set{size(2*gib-0x900123, 0x800123)},
		Policy:      Policy{Window: phys.Set{size(mib, 127*mib)}, Handoff: size(512*mib, 2*mib)},
	}},
	{"64g", Input{Arch: AMD64, Firmware: q35(64 * gib), Policy: usual}},
	{"1t-two-nodes", Input{
		Arch:     AMD64,
		Firmware: ram(size(0, 640*phys.KiB), size(mib, 2*gib-mib), size(4*gib, 510*gib), size(1024*gib, 512*gib)),
		Policy:   usual,
	}},
	{"numa-8g", Input{
		Arch:     AMD64,
		Firmware: q35(8 * gib),
		Nodes:    []memmap.Node{node(0, 0, 2*gib), node(0, 4*gib, 2*gib), node(1, 6*gib, 4*gib)},
		Policy:   usual,
	}},
	{"holes", Input{
		Arch:     AMD64,
		Firmware: ram(size(0, 640*phys.KiB), size(mib, 900*mib), size(1000*mib, 333*mib), size(5*gib+3*mib, 1111*mib), size(8*gib, 12345*phys.KiB)),
		Policy:   usual,
	}},
	{"two-windows", Input{
		Arch:     AMD64,
		Firmware: q35(4 * gib),
		Policy:   with(usual, func(p *Policy) { p.Window = append(p.Window, size(768*mib, 64*mib)) }),
	}},
	{"bootmem-1g", Input{Arch: AMD64, Firmware: q35(8 * gib), Policy: with(usual, func(p *Policy) { p.BootMemory = gib })}},
}

// islands returns 2 GiB of RAM, and n further blocks of RAM, each followed by
// a hole.
func islands(n int) memmap.Map {
	ranges := []phys.Range{size(0, 640*phys.KiB), size(mib, 2*gib-mib)}
	for i := range uint64(n) {
		ranges = append(ranges, size(4*gib+i*512*mib, 256*mib))
	}
	return ram(ranges...)
}

// BenchmarkMake plans for RAM in pieces: the payload must do so at each reset.
func BenchmarkMake(b *testing.B) {
	for _, arch := range []Arch{AMD64, ARM64} {
		for _, n := range []int{1, 100, 300} {
			in := Input{Arch: arch, Firmware: islands(n), Policy: with(usual, func(p *Policy) { p.BlockSize = 128 * mib })}
			b.Run(fmt.Sprintf("%s/%d", arch.Name, n), func(b *testing.B) {
				for b.Loop() {
					if _, err := Make(in); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}

// TestMake compares each plan with testdata/NAME.plan and proves it.
func TestMake(t *testing.T) {
	for _, m := range slices.Concat(machines, arm64Machines) {
		t.Run(m.name, func(t *testing.T) {
			p, err := Make(m.in)
			if err != nil {
				t.Fatal(err)
			}
			if err := Check(p); err != nil {
				t.Errorf("Check: %v", err)
			}
			got := p.String() + "\nplain boot:\n" + p.NextMap(Plain).String() + "\ncapture boot:\n" + p.NextMap(Capture).String()
			file := filepath.Join("testdata", m.name+".plan")
			if *update {
				if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(string(want), got); diff != "" {
				t.Errorf("plan (-want +got):\n%s", diff)
			}
			again, err := Make(m.in)
			if err != nil || again.String() != p.String() {
				t.Errorf("the same input gave another plan: %v", err)
			}
		})
	}
}

func TestMakeRefuses(t *testing.T) {
	tests := []struct {
		name string
		in   Input
		want string
	}{
		{"no RAM", Input{Arch: AMD64, Policy: usual}, "no RAM above 1 MiB"},
		{"RAM below 1 MiB only", Input{Arch: AMD64, Firmware: ram(size(0, 640*phys.KiB)), Policy: usual}, "no RAM above 1 MiB"},
		{"machine too small", Input{Arch: AMD64, Firmware: q35(640 * mib), Policy: usual}, "outside window and handoff area, half of which is needed for the copy: 00100000-27fdefff; smaller warmcore.bootmem="},
		{"no room for the copy", Input{Arch: AMD64, Firmware: ram(size(mib, 700*mib)), Policy: with(usual, func(p *Policy) { p.BlockSize = 256 * mib })}, "destination: "},
		{"window outside RAM", Input{Arch: AMD64, Firmware: q35(2 * gib), Policy: with(usual, func(p *Policy) { p.Window[0] = size(3*gib, 128*mib) })}, "window is not RAM in the firmware's map: c0000000-c7ffffff; correct warmcore.window="},
		{"window over handoff area", Input{Arch: AMD64, Firmware: q35(2 * gib), Policy: with(usual, func(p *Policy) { p.Handoff = size(400*mib, 2*mib) })}, "window overlaps the handoff area: 19000000-191fffff"},
		{"window in the first MiB", Input{Arch: AMD64, Firmware: q35(2 * gib), Policy: with(usual, func(p *Policy) { p.Window = phys.Set{size(0, 64*mib)} })}, "first MiB"},
		{"no window", Input{Arch: AMD64, Firmware: q35(2 * gib), Policy: with(usual, func(p *Policy) { p.Window = nil })}, "window is empty; correct warmcore.window="},
		{"window of half pages", Input{Arch: AMD64, Firmware: q35(2 * gib), Policy: with(usual, func(p *Policy) { p.Window = phys.Set{size(384*mib, 1234)} })}, "begin and end at a page"},
		{"handoff area outside RAM", Input{Arch: AMD64, Firmware: q35(2 * gib), Policy: with(usual, func(p *Policy) { p.Handoff = size(3*gib, 2*mib) })}, "handoff area is not RAM in the firmware's map: c0000000-c01fffff; correct warmcore.handoff="},
		{"handoff area too small", Input{Arch: AMD64, Firmware: q35(2 * gib), Policy: with(usual, func(p *Policy) { p.Handoff = size(512*mib, mib) })}, "handoff area is smaller than 2 MiB"},
		{"handoff area too large", Input{Arch: AMD64, Firmware: q35(2 * gib), Policy: with(usual, func(p *Policy) { p.Handoff = size(512*mib, 512*mib) })}, "handoff area is larger than 16 MiB"},
		{"handoff area overwritten", Input{Arch: AMD64, Firmware: q35(2 * gib), Overwritten: phys.Set{size(513*mib, 1)}, Policy: usual}, "overwrites the handoff area: 20100000-20100fff"},
		{"block size", Input{Arch: AMD64, Firmware: q35(2 * gib), Policy: with(usual, func(p *Policy) { p.BlockSize = 100 * mib })}, "not a power of two of at least 2 MiB; correct warmcore.block="},
		{"too many parts", Input{Arch: AMD64, Firmware: islands(1500), Policy: with(usual, func(p *Policy) { p.BlockSize = 128 * mib })}, "more than the 1024 that the registration takes: "},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			p, err := Make(tt.in)
			var refusal *Refusal
			if !errors.As(err, &refusal) || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("Make: %v, %v; want a refusal with %q", p, err, tt.want)
			}
			if p != nil {
				t.Errorf("a refusal came with a plan:\n%v", p)
			}
		})
	}
}

// TestCheckFinds breaks a good plan in each way that Check is there for.
func TestCheckFinds(t *testing.T) {
	tests := []struct {
		name  string
		spoil func(*Plan)
		want  string
	}{
		{"overlap", func(p *Plan) {
			p.Preserved = p.Preserved.Union(phys.Set{{Start: p.Boot[0].Start, End: p.Boot[0].Start + p.BlockSize}})
		}, "is both"},
		{"forgotten RAM", func(p *Plan) { p.Preserved = p.Preserved[1:] }, "the plan forgot"},
		{"not RAM", func(p *Plan) { p.Lost = phys.Set{size(3*gib, mib)} }, "not RAM"},
		{"copy to elsewhere", func(p *Plan) { p.Copies[0].Dst = p.Preserved[0].Start }, "is written but is no destination"},
		{"copy to the handoff area", func(p *Plan) { p.Copies[0].Dst = p.Handoff.Start; p.Copies[0].Size = 4096 }, "is written but is no destination"},
		{"missing copy", func(p *Plan) { p.Copies = p.Copies[1:] }, "is copied 0 times"},
		{"copied twice", func(p *Plan) { p.Copies = append(p.Copies, p.Copies[0]) }, "is copied 2 times"},
		{"wrapping copy", func(p *Plan) { p.Copies[0].Size = ^uint64(0) }, "wraps"},
		{"half a block", func(p *Plan) {
			p.Preserved[0].Start += mib
			p.Lost = phys.Set{{Start: p.Preserved[0].Start - mib, End: p.Preserved[0].Start}}
		}, "whole memory blocks"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			p, err := Make(Input{Arch: AMD64, Firmware: q35(2 * gib), Policy: usual})
			if err != nil {
				t.Fatal(err)
			}
			p.Boot, p.Preserved = slices.Clone(p.Boot), slices.Clone(p.Preserved)
			tt.spoil(p)
			if err := Check(p); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("Check: %v, want %q", err, tt.want)
			}
		})
	}
}

func TestCmdline(t *testing.T) {
	p, err := Make(Input{Arch: AMD64, Firmware: q35(2 * gib), Policy: usual})
	if err != nil {
		t.Fatal(err)
	}
	const rest = "crashkernel=1M memhp_default_state=offline modprobe.blacklist=kmem,dax_hmem,device_dax warmcore.handoff=0x20000000,0x200000"
	const ours = rest + " panic=10"
	const elfcorehdr = " elfcorehdr=2K@0x200c0000"
	const production = "ro default_hugepagesz=1G hugepagesz=1G hugepages=200 hugepagesz=2M hugepages=0:100 hugetlb_cma=32G cma=8G quiet movable-node log_buf_len=64M swiotlb=force isolcpus=2-5 sysctl/kernel.kexec_load_disabled=1"
	header := phys.Range{Start: 0x200c0000, End: 0x200c0000 + 1300}
	tests := []struct {
		name, entry string
		kind        Kind
		want        string
		dropped     []string
	}{
		{"empty", "", Plain, ours, nil},
		{"plain", "root=/dev/vda1 ro quiet", Plain, "root=/dev/vda1 ro quiet " + ours, nil},
		{"capture", "root=/dev/vda1 ro", Capture, "root=/dev/vda1 ro " + ours + elfcorehdr, nil},
		{"kdump configured", "ro crashkernel=384M-:192M elfcorehdr=1 quiet", Plain, "ro quiet " + ours, []string{"crashkernel=384M-:192M: the payload sets it, for the stub", "elfcorehdr=1: the payload says whether there is a dump"}},
		{"other spelling", "crash-kernel=1 crashkernel=1", Plain, "crash-kernel=1 " + ours, []string{"crashkernel=1: the payload"}},
		{"the last memhp_default_state counts, and the agent finds the first", "memhp-default-state=online", Plain, "memhp-default-state=online " + ours, nil},
		{"parameters of init", "ro -- single elfcorehdr=x", Plain, "ro " + ours + " -- single elfcorehdr=x", nil},
		{"crashkernel of init", "ro -- single crashkernel=x", Plain, "ro " + ours + " -- single", []string{"crashkernel=x: the kernel would"}},
		{"dashes in quotes", `systemd.run="a  -- b" ro`, Plain, `systemd.run="a  -- b" ro ` + ours, nil},
		{"quote never closed", `ro x="y crashkernel=1`, Plain, "ro " + ours + ` x="y crashkernel=1`, nil},
		{"panic is set", "panic=30", Plain, "panic=30 " + rest, nil},
		{"panic is 0", "panic=0", Plain, "panic=0 " + rest, nil},
		{"panic is at once", "panic=-1", Capture, "panic=-1 " + rest + elfcorehdr, nil},
		{"panic is no number", "panic panic=never", Plain, "panic panic=never " + ours, nil},
		{"panic is 0 in a capture boot", "panic=30 panic=0x0 sysctl.kernel.panic=0 sysctl/kernel.panic=5", Capture, "panic=30 sysctl/kernel.panic=5 " + rest + elfcorehdr,
			[]string{"panic=0x0: the machine must come back after a panic", "sysctl.kernel.panic=0: the machine"}},
		{"production", production, Plain, production + " " + ours, nil},
		{"production in a capture boot", production, Capture,
			"ro default_hugepagesz=1G quiet swiotlb=force warmcore.hugepages=200*1G,100*2M@0 warmcore.dropped=hugetlb_cma,cma,movable-node,log_buf_len,isolcpus,sysctl/kernel.kexec_load_disabled " + ours + elfcorehdr,
			[]string{"hugepagesz=1G: huge pages", "hugepages=200:", "hugepagesz=2M:", "hugepages=0:100:", "hugetlb_cma=32G: it would take boot memory", "cma=8G:",
				"movable-node: the kernel needs", "log_buf_len=64M:", "isolcpus=2-5: all CPUs", "sysctl/kernel.kexec_load_disabled=1: the stub"}},
		{"swiotlb", "swiotlb=65536,force", Capture, "warmcore.dropped=swiotlb " + ours + elfcorehdr, []string{"swiotlb=65536,force:"}},
		{"the payload's own", "warmcore.hugepages=5*2M warmcore.dropped=x", Plain, ours, []string{"warmcore.hugepages=5*2M: the payload", "warmcore.dropped=x:"}},
		{"another map", "mem=1G memmap=exactmap memmap=1G@0 memmap=512M memmap=1M$1G,1G@1G", Plain, ours,
			[]string{"mem=1G: the plan says", "memmap=exactmap:", "memmap=1G@0:", "memmap=512M:", "memmap=1M$1G,1G@1G:"}},
		{"a part of the map reserved", "memmap=1M$1024M memmap=1M!0x7fe00000", Plain, "memmap=1M$1024M memmap=1M!0x7fe00000 " + ours, nil},
		{"a part of boot memory reserved", "memmap=1M$1024M memmap=1M!0x7fd00000,1M$1024M", Capture, "memmap=1M!0x7fd00000,1M$1024M " + ours + elfcorehdr,
			[]string{"memmap=1M$1024M: it reserves memory"}},
		{"all of boot memory reserved", "memmap=2G!0", Plain, ours, []string{"memmap=2G!0: the plan"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, dropped := p.Cmdline(tt.entry, tt.kind, header)
			if got != tt.want || !slices.EqualFunc(dropped, tt.dropped, strings.HasPrefix) {
				t.Errorf("got  %q, dropped %q\nwant %q, dropped %q", got, dropped, tt.want, tt.dropped)
			}
		})
	}
}

func TestCoreHeader(t *testing.T) {
	p, err := Make(Input{Arch: AMD64, Firmware: q35(6 * gib), Policy: usual})
	if err != nil {
		t.Fatal(err)
	}
	inBoot, kept := p.Boot[0].Start+0x1234000, p.Preserved[0].Start+0x5000
	notes := []phys.Range{
		size(inBoot, 0x200),
		size(kept, 0x200),
		size(p.Handoff.Start, 0x200),          // not dumped
		size(p.Preserved[0].End-0x100, 0x200), // across the end
		{},                                    // empty
		size(p.Window[0].Start+0x1000, 1<<12), // in the window
	}
	mapping := kernelmap.Mapping{DirectBase: 0xffff9a0000000000, TextVirt: 0xffffffffa1000000, TextPhys: p.Boot[0].End - 16*mib, TextSize: 32*mib + 123}
	h, warnings := p.CoreHeader(p.Dumped(), notes, mapping)
	if err := CheckHeader(p, p.Dumped(), h); err != nil {
		t.Errorf("CheckHeader: %v", err)
	}
	if len(h.Notes) != 2 || len(warnings) != 4 {
		t.Errorf("%d notes and warnings %q, want 2 notes and 4 warnings", len(h.Notes), warnings)
	}
	if h.Notes[0].Phys != inBoot || !p.Destination.Contains(size(h.Notes[0].Offset, h.Notes[0].Size)) {
		t.Errorf("note in boot memory %#x is read at %#x, want a place in the destination", inBoot, h.Notes[0].Offset)
	}
	if h.Notes[1].Offset != kept {
		t.Errorf("note in preserved memory %#x is read at %#x", kept, h.Notes[1].Offset)
	}
	last := h.Loads[len(h.Loads)-1]
	if last.Virt != mapping.DirectBase+last.Phys {
		t.Errorf("load of %#x has the virtual address %#x", last.Phys, last.Virt)
	}
	// A header that shows what is not preserved must not pass.
	for i := range h.Loads {
		if h.Loads[i].Offset != h.Loads[i].Phys {
			h.Loads[i].Offset = h.Loads[i].Phys
			break
		}
	}
	if err := CheckHeader(p, p.Dumped(), h); err == nil {
		t.Error("CheckHeader takes a header that reads boot memory in place")
	}
}

// FuzzMake makes maps and policies out of bytes; whatever is not refused must
// pass the checker, and so must a core header for it.
func FuzzMake(f *testing.F) {
	f.Add([]byte{0, 8, 1, 32, 2, 1}, uint16(3), uint16(1), uint16(4), uint8(0))
	f.Add([]byte{0, 255, 3, 200, 1, 1, 50, 90}, uint16(24), uint16(8), uint16(32), uint8(2))
	f.Fuzz(func(t *testing.T, b []byte, window, windowSize, handoff uint16, block uint8) {
		const unit = 16 * mib
		var m memmap.Map
		at := uint64(0)
		for i := 0; i+1 < len(b) && i < 64; i += 2 {
			kind := memmap.RAM
			if b[i]&0x80 != 0 {
				kind = memmap.Reserved
			}
			at += uint64(b[i]&0x1f) * unit / 8
			n := uint64(b[i+1])*unit + uint64(b[i]&0x60)*1111
			if n == 0 {
				continue
			}
			m.Entries = append(m.Entries, memmap.Entry{Range: size(at, n), Kind: kind})
			if b[i]&0x60 != 0x60 { // sometimes let entries overlap
				at += n
			}
		}
		in := Input{Firmware: m, Overwritten: phys.Set{size(uint64(window)*unit/4, uint64(block))}, Policy: Policy{
			Window:  phys.Set{size(uint64(window)*unit, uint64(windowSize)*unit)},
			Handoff: size(uint64(handoff)*unit, 2*mib),
		}}
		if block&0xf != 0 {
			in.Policy.BlockSize = 1 << (20 + block&0xf)
		}
		for _, in.Arch = range []Arch{AMD64, ARM64} {
			fuzzMake(t, in, uint64(window), uint64(windowSize), uint64(handoff))
		}
	})
}

func fuzzMake(t *testing.T, in Input, window, windowSize, handoff uint64) {
	p, err := Make(in)
	if err != nil {
		if p != nil {
			t.Fatal("a plan came with an error")
		}
		return
	}
	if err := Check(p); err != nil {
		t.Fatalf("%s: %v\n%v", in.Arch.Name, err, p)
	}
	note := size(window*4096*77, handoff)
	h, _ := p.CoreHeader(p.Dumped(), []phys.Range{note}, kernelmap.Mapping{DirectBase: 1 << 63, TextVirt: 0xffffffff81000000, TextPhys: note.Start, TextSize: windowSize * 4096 * 100})
	if err := CheckHeader(p, p.Dumped(), h); err != nil {
		t.Fatalf("%s: %v\n%v\n%v", in.Arch.Name, err, h, p)
	}
}

func TestResets(t *testing.T) {
	long := strings.Repeat("x", maxCmdline-len("panic=10")) // one byte too long with it
	for _, tt := range []struct{ entry, want string }{
		{"", "panic=10"},
		{"ro -- single", "ro panic=10 -- single"},
		{"panic=0", "panic=0"},
		{long, long},
	} {
		if got := Resets(tt.entry); got != tt.want {
			t.Errorf("%q becomes %q, want %q", tt.entry, got, tt.want)
		}
	}
}

func TestCmdlineOwner(t *testing.T) {
	policy := usual
	policy.Owner = Owner{
		Remove: []string{"slub_debug", "nosuch", "warmcore.handoff"},
		Append: `hugepages=16 isolcpus=1 crashkernel=1G systemd.run="a b" -- x`,
	}
	p, err := Make(Input{Arch: AMD64, Firmware: q35(2 * gib), Policy: policy})
	if err != nil {
		t.Fatal(err)
	}
	const entry, ours = "ro slub-debug=P isolcpus=2 -- single", "crashkernel=1M memhp_default_state=offline modprobe.blacklist=kmem,dax_hmem,device_dax warmcore.handoff=0x20000000,0x200000 panic=10"
	got, dropped := p.Cmdline(entry, Capture, phys.Range{Start: 0x200c0000, End: 0x200c0400})
	want := `ro hugepages=16 isolcpus=1 systemd.run="a b" warmcore.dropped=slub-debug ` + ours + " elfcorehdr=1K@0x200c0000 -- single"
	if got != want || len(dropped) != 3 || dropped[1] != "slub-debug=P: warmcore.remove= says so" || dropped[2] != "crashkernel=1G: the payload sets it, for the stub" {
		t.Errorf("got  %q\nwant %q\ndropped %q", got, want, dropped)
	}
	if got, _ := p.Cmdline(entry, Plain, phys.Range{}); got != "ro slub-debug=P isolcpus=2 "+ours+" -- single" {
		t.Errorf("plain boot: %q", got)
	}
}

// TestCmdlineTooLong: what only helps must not cost the plan or the dump.
func TestCmdlineTooLong(t *testing.T) {
	p, err := Make(Input{Arch: AMD64, Firmware: q35(2 * gib), Policy: usual})
	if err != nil {
		t.Fatal(err)
	}
	header := phys.Range{Start: 0x200c0000, End: 0x200c0400}
	const entry = "cma=1G hugepages=5 "
	all, _ := p.Cmdline(entry+"x", Capture, header)
	for _, tt := range []struct {
		spare int
		gone  []string
	}{
		{0, nil},
		{-1, []string{"warmcore.dropped"}},
		{-1 - len(" warmcore.dropped=cma"), []string{"warmcore.dropped", "warmcore.hugepages"}},
		{-1 - len(" warmcore.dropped=cma warmcore.hugepages=5*default"), []string{"warmcore.dropped", "warmcore.hugepages", "panic="}},
	} {
		got, _ := p.Cmdline(entry+strings.Repeat("x", 1+maxCmdline-len(all)-tt.spare), Capture, header)
		if len(got) > maxCmdline {
			t.Errorf("%d bytes", len(got))
		}
		for _, word := range []string{"warmcore.dropped", "warmcore.hugepages", "panic=", "warmcore.handoff", "elfcorehdr"} {
			if strings.Contains(got, word) == slices.Contains(tt.gone, word) {
				t.Errorf("%d bytes to spare: %s is there: %v", tt.spare, word, strings.Contains(got, word))
			}
		}
	}
	own, _ := p.Cmdline("panic=10 "+strings.Repeat("x", maxCmdline), Plain, phys.Range{})
	if !strings.Contains(own, "panic=10") {
		t.Error("the entry's own panic= is gone")
	}
}
