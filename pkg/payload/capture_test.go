package payload

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/warmcore/warmcore/pkg/elfcore"
	"github.com/warmcore/warmcore/pkg/kernelmap"
	"github.com/warmcore/warmcore/pkg/memmap"
	"github.com/warmcore/warmcore/pkg/normalboot"
	"github.com/warmcore/warmcore/pkg/phys"
	"github.com/warmcore/warmcore/pkg/physmem/physmemtest"
	"github.com/warmcore/warmcore/pkg/plan"
	"github.com/warmcore/warmcore/pkg/registration"
	"github.com/warmcore/warmcore/pkg/segments/segmentstest"
	"github.com/warmcore/warmcore/pkg/vmcore"
)

// crash is a machine whose armed kernel has crashed.
type crash struct {
	*machine
	p *plan.Plan
	// memory is what the crashed kernel had, by page.
	memory map[uint64][]byte
	notes  [2]registration.Note // one in boot memory, one preserved
	info   registration.Note    // VMCOREINFO, in boot memory
}

const (
	vmcoreinfoText = "OSRELEASE=6.1.0-40-amd64\nPAGESIZE=4096\n"
	directBase     = 0xffff9a0000000000
)

// newCrash boots, arms, and fills memory.
func newCrash(t *testing.T) *crash {
	t.Helper()
	return crashOf(t, newMachine(t))
}

// newLargeCrash is that of a machine with 4 GiB, for plans that differ.
func newLargeCrash(t *testing.T) *crash {
	t.Helper()
	m := newMachine(t)
	m.firmware.Entries = []memmap.Entry{
		{Range: span(0, 0x9fc00), Kind: memmap.RAM},
		{Range: span(mib, 2*gib), Kind: memmap.RAM},
		{Range: span(4*gib, 6*gib), Kind: memmap.RAM},
	}
	m.mem = physmemtest.New(t, m.firmware.Set(memmap.RAM))
	return crashOf(t, m)
}

func crashOf(t *testing.T, m *machine) *crash {
	t.Helper()
	c := &crash{machine: m, p: m.plan(), memory: map[uint64][]byte{}}
	if r := m.run(); !r.started {
		t.Fatal(r)
	}
	for _, r := range c.p.Dumped() {
		for at := r.Start; at < r.End; at += 3 * mib {
			c.fill(at)
		}
		c.fill(r.End - phys.PageSize)
	}
	c.notes = [2]registration.Note{{Addr: c.p.Boot[0].Start + 0x5400}, {Addr: c.p.Preserved[0].Start + 0x7000}}
	for i := range c.notes {
		c.notes[i].Size = c.put(c.notes[i].Addr, elfcore.ELFNote{Name: "CORE", Type: 1, Desc: make([]byte, 336)})
	}
	c.info = registration.Note{Addr: c.p.Boot[1].Start + 0x9000}
	c.info.Size = c.put(c.info.Addr, elfcore.ELFNote{Name: "VMCOREINFO", Desc: []byte(vmcoreinfoText)})
	m.register(func(b *registration.Block) {
		arm(b)
		b.CPUNotes = []registration.Note{c.notes[0], {}, c.notes[1]}
		b.VMCoreInfo = c.info
		b.Mapping = kernelmap.Mapping{DirectBase: directBase}
	})
	m.mem.Writable = phys.NewSet(slices.Concat(c.p.Boot, c.p.Destination, phys.Set{c.p.Handoff})...)
	return c
}

func (c *crash) fill(at uint64) {
	b := bytes.Repeat(binary.LittleEndian.AppendUint64(nil, at^0x5aa5), int(phys.PageSize/8))
	c.mem.Set(at, b)
	c.memory[at] = b
}

func (c *crash) put(at uint64, n elfcore.ELFNote) uint64 {
	c.tb.Helper()
	b, err := elfcore.AppendNote(nil, n)
	if err != nil {
		c.tb.Fatal(err)
	}
	b = elfcore.AppendFinalNote(b)
	c.mem.Set(at, b)
	page := phys.AlignDown(at, phys.PageSize)
	c.memory[page] = c.mem.Get(span(page, page+phys.PageSize))
	return uint64(len(b))
}

// record leaves a crash record, as the stub does that knows 2 CPUs.
func (c *crash) record(nonce [16]byte) { c.recordOf(nonce, 2) }

// recordOf leaves that of a stub that knows some CPUs, and flushed them.
func (c *crash) recordOf(nonce [16]byte, cpus uint32) {
	c.tb.Helper()
	b, err := registration.Record{Nonce: nonce, Flags: registration.RecordPanic, CPU: 3, Expected: cpus, Flushed: cpus}.AppendBinary(nil)
	if err != nil {
		c.tb.Fatal(err)
	}
	c.mem.Set(c.p.Handoff.Start+registration.RecordOff, b)
}

// wantDump reads the dump as /proc/vmcore does, by the core header, and
// compares it with what the crashed kernel had.
func (c *crash) wantDump() elfcore.Header {
	c.tb.Helper()
	at := c.block().Capture.CoreHeader
	area := registration.CoreHeaderRange(c.p.Handoff)
	if at.Start != area.Start || !area.Contains(at) {
		c.tb.Fatalf("core header at %v, want it in %v", at, area)
	}
	h, err := elfcore.Parse(c.mem.Get(at))
	if err != nil {
		c.tb.Fatal(err)
	}
	seen := 0
	for _, l := range h.Loads {
		for off := uint64(0); off < l.Size; off += phys.PageSize {
			want, ok := c.memory[l.Phys+off]
			if !ok {
				continue
			}
			seen++
			if got := c.mem.Get(span(l.Offset+off, l.Offset+off+phys.PageSize)); !bytes.Equal(got, want) {
				c.tb.Fatalf("page %#x of the dump, at %#x: % x..., want % x...", l.Phys+off, l.Offset+off, got[:16], want[:16])
			}
		}
	}
	if seen != len(c.memory) {
		c.tb.Errorf("the dump shows %d of the %d pages that the crashed kernel filled", seen, len(c.memory))
	}
	return h
}

func TestCapture(t *testing.T) {
	c := newCrash(t)
	c.record([16]byte{0xaa})
	r := c.run()
	wantKernel(t, r, 1, planned+" elfcorehdr=")
	if want := c.p.Boot.Union(phys.NewSet(span(0, 0x9fc00))); !slices.Equal(r.ram, want) {
		t.Errorf("RAM of the capture boot: %v, want %v", r.ram, want)
	}
	if len(c.p.Preserved.Minus(r.soft)) > 0 {
		t.Errorf("Soft Reserved is %v, want %v in it", r.soft, c.p.Preserved)
	}
	h := c.wantDump()

	// Registers of both CPUs, VMCOREINFO, and our own note after the
	// header.
	var notes []string
	for _, n := range h.Notes {
		found, err := elfcore.ParseNotes(c.mem.Get(span(n.Offset, n.Offset+n.Size)))
		if err != nil || len(found) == 0 {
			t.Errorf("note at %#x: %v", n.Offset, err)
			continue
		}
		notes = append(notes, fmt.Sprintf("%s %d", found[0].Name, len(found[0].Desc)))
	}
	if want := []string{"CORE 336", "CORE 336", fmt.Sprintf("VMCOREINFO %d", len(vmcoreinfoText)), "WARMCORE 3"}; !slices.Equal(notes, want) {
		t.Errorf("notes %q, want %q", notes, want)
	}
	// Samples, of which none has changed since.
	own := h.Notes[len(h.Notes)-1]
	var info vmcore.Info
	info.AddNotes(c.mem.Get(span(own.Offset, own.Offset+own.Size)))
	changed, read := vmcore.Changed(crashedMemory{r.payload}, info.Samples)
	if len(changed) > 0 || read != vmcore.MaxSamples {
		t.Errorf("samples: %v changed of %d, want none of %d", changed, read, vmcore.MaxSamples)
	}
	if l := h.Loads[0]; l.Virt != directBase+l.Phys {
		t.Errorf("load of %#x has the virtual address %#x", l.Phys, l.Virt)
	}

	b := c.block()
	if b.State != registration.Capturing {
		t.Errorf("state %v, want capturing", b.State)
	}
	want := registration.Capture{
		Reason: registration.ReasonPanic, Copied: true,
		CPUsWithRegisters: 2, CPUsFlushed: 2, CPUsSeen: 2,
		CopyBytes: c.p.Boot.Size(), CopyNanos: b.Capture.CopyNanos,
		CoreHeader: b.Capture.CoreHeader, Time: c.now.Unix(),
	}
	if diff := cmp.Diff(want, b.Capture); diff != "" {
		t.Errorf("capture (-want +got):\n%s", diff)
	}
	wantCounters := registration.Counters{Boots: 2, Captures: 1, Attempts: 1, LastCaptures: [8]int64{c.now.Unix()}, CaptureBoots: [8]uint64{2}}
	if diff := cmp.Diff(wantCounters, b.Counters); diff != "" {
		t.Errorf("counters (-want +got):\n%s", diff)
	}
	// The attempt is counted before the copy, the state is capturing before
	// boot memory is overwritten, and the log is last.
	if got, want := order(c.p, r.writes), "handoff destination handoff boot handoff"; got != want {
		t.Errorf("written: %s, want %s", got, want)
	}
	wantLog(t, r.log, "capture boot, why: panic on the CPU with APIC ID 3, caches of 2 of 2 CPUs flushed", "boot memory copied, bytes: ", "dump, reason: panic", "registers_of_cpus: 2", "boot: capture")
	current, previous := c.logs()
	wantLog(t, string(current.Text), "capture boot")
	wantLog(t, string(previous.Text), "plain boot")
}

// order is what was written, one word where neighbours are the same.
func order(p *plan.Plan, writes []physmemtest.Access) string {
	var words []string
	for _, w := range writes {
		words = append(words, touched(p, []physmemtest.Access{w})...)
	}
	return strings.Join(slices.Compact(words), " ")
}

func TestReasons(t *testing.T) {
	tests := []struct {
		name  string
		spoil func(c *crash)
		want  registration.Reason
		why   string
	}{
		{"panic", func(c *crash) { c.record([16]byte{0xaa}) }, registration.ReasonPanic, "panic on the CPU"},
		{"no record", func(*crash) {}, registration.ReasonReset, "armed, and reset without a crash record"},
		{"record of another arming", func(c *crash) { c.record([16]byte{0xab}) }, registration.ReasonReset, "armed, and reset without a crash record"},
		{"damaged record", func(c *crash) {
			c.record([16]byte{0xaa})
			c.mem.Set(c.p.Handoff.Start+registration.RecordOff+40, []byte{9})
		}, registration.ReasonReset, "armed, and reset without a crash record"},
		{"before the agent", func(c *crash) { c.register(func(b *registration.Block) { b.State = registration.Prearmed }) },
			registration.ReasonEarly, "early crash or reset"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c := newCrash(t)
			tt.spoil(c)
			r := c.run()
			wantKernel(t, r, 1, "elfcorehdr=")
			c.wantDump()
			if b := c.block(); b.Capture.Reason != tt.want {
				t.Errorf("reason %v, want %v", b.Capture.Reason, tt.want)
			}
			wantLog(t, r.log, "capture boot, why: ", tt.why, "dump, reason: "+tt.want.String())
		})
	}
}

// TestOfferedAgain resets a machine whose dump is not saved: it is the same
// dump, until the payload gives it up.
func TestOfferedAgain(t *testing.T) {
	c := newCrash(t)
	c.record([16]byte{0xaa})
	c.run()
	for attempt := uint32(2); attempt <= 3; attempt++ {
		// The capture boot has used boot memory.
		for _, r := range c.p.Boot {
			c.mem.Set(r.Start, bytes.Repeat([]byte{0xcc}, 0x20000))
		}
		r := c.run()
		wantKernel(t, r, 1, "elfcorehdr=")
		c.wantDump()
		b := c.block()
		if b.State != registration.Capturing || b.Capture.Reason != registration.ReasonPanic || b.Counters.Attempts != attempt || b.Counters.Captures != 1 {
			t.Errorf("capture boot %d: state %v, reason %v, counters %+v", attempt, b.State, b.Capture.Reason, b.Counters)
		}
		if got := order(c.p, r.writes); got != "handoff boot handoff" {
			t.Errorf("capture boot %d writes %s: nothing is copied twice", attempt, got)
		}
		wantLog(t, r.log, fmt.Sprintf("capture boot, why: the dump was not saved in capture boot %d, it is offered again", attempt-1), "registers_of_cpus: 2")
	}
	r := c.run()
	wantKernel(t, r, 1, planned)
	wantLog(t, r.log, "plain boot, why: gave the dump up after 3 capture boots in which it was not saved")
	b := c.block()
	if b.State != registration.Prearmed || b.Counters.Attempts != 0 || b.Capture.Copied || b.Capture.Reason != registration.ReasonNone {
		t.Errorf("state %v, counters %+v, capture %+v after giving up", b.State, b.Counters, b.Capture)
	}
}

// wantTruth reads the dump as /proc/vmcore does: each page that the crashed
// kernel filled is in it as it was, or it is named as lost, or it is none that
// the kernel's own plan dumps. It returns how much is lost.
func (c *crash) wantTruth() (lost phys.Set) {
	c.tb.Helper()
	h, err := elfcore.Parse(c.mem.Get(c.block().Capture.CoreHeader))
	if err != nil {
		c.tb.Fatal(err)
	}
	var info vmcore.Info
	for _, n := range h.Notes {
		info.AddNotes(c.mem.Get(span(n.Offset, n.Offset+n.Size)))
	}
	shown := map[uint64]uint64{}
	for _, l := range h.Loads {
		for off := uint64(0); off < l.Size; off += phys.PageSize {
			shown[l.Phys+off] = l.Offset + off
		}
	}
	for at, want := range c.memory {
		now, ok := shown[at]
		named := info.Unreadable.Overlaps(span(at, at+phys.PageSize))
		switch got := c.mem.Get(span(now, now+phys.PageSize)); {
		case ok && named:
			c.tb.Errorf("page %#x is in the dump, and is named as lost", at)
		case ok && !bytes.Equal(got, want):
			c.tb.Errorf("page %#x of the dump, at %#x: % x..., want % x...", at, now, got[:16], want[:16])
		case !ok && !named && c.p.Dumped().Contains(span(at, at+phys.PageSize)):
			c.tb.Errorf("page %#x is neither in the dump nor named as lost", at)
		}
	}
	for at := range shown {
		if !c.p.Dumped().Contains(span(at, at+phys.PageSize)) {
			c.tb.Fatalf("page %#x is in the dump, and the crashed kernel's plan doesn't dump it", at)
		}
	}
	return info.Unreadable
}

// TestPlanChanged updates the payload between a kernel's start and its crash,
// and while the dump is offered again.
func TestPlanChanged(t *testing.T) {
	type update struct {
		cmdline string
		window  phys.Range // zero: the usual one
	}
	other := update{"warmcore.window=128M@640M", span(640*mib, 768*mib)}
	for _, tt := range []struct {
		name    string
		updates []update // at each reset
		lost    []bool   // whether the dump names memory as lost
	}{
		{"no change", []update{{}, {}, {}}, []bool{false, false, false}},
		{"more boot memory", []update{{cmdline: "warmcore.bootmem=1G"}}, []bool{true}},
		{"less boot memory", []update{{cmdline: "warmcore.bootmem=256M"}}, []bool{false}},
		{"another window", []update{other}, []bool{true}},
		{"the boot loader overwrites more", []update{{cmdline: "warmcore.lost=1M@900M,4K@600M"}}, []bool{true}},
		{"other memory blocks", []update{{cmdline: "warmcore.block=256M"}}, []bool{true}},
		{"back again while capturing", []update{other, {}, {}}, []bool{true, true, true}},
		{"changed while capturing", []update{{}, other, {}}, []bool{false, true, true}},
		{"each time another", []update{{cmdline: "warmcore.bootmem=1G"}, {cmdline: "warmcore.lost=1M@900M"}, other}, []bool{true, true, true}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := newLargeCrash(t)
			c.record([16]byte{0xaa})
			last := phys.Set(nil)
			for i, u := range tt.updates {
				c.cmdline, c.own = u.cmdline, newMachine(t).own
				if !u.window.Empty() {
					c.own = phys.NewSet(span(0x1000, 0x9f000), u.window)
				}
				for _, r := range c.own { // the payload has started
					for at := r.Start; at < r.End; at += mib {
						c.mem.Set(at, bytes.Repeat([]byte{0x99}, 0x1000))
					}
				}
				c.mem.Writable = c.firmware.Set(memmap.RAM)
				r := c.run()
				wantKernel(t, r, 1, "elfcorehdr=")
				for _, x := range r.ram { // the capture kernel has run
					c.mem.Set(x.Start, bytes.Repeat([]byte{0xcc}, 0x20000))
				}
				lost := c.wantTruth()
				if (len(lost) > 0) != tt.lost[i] || len(last.Minus(lost)) > 0 {
					t.Errorf("reset %d: lost %v, want some: %v; before it was %v\n%s", i, lost, tt.lost[i], last, r.log)
				}
				if len(lost.Minus(last)) > 0 {
					wantLog(t, r.log, "warn: the memory plan changed since the crashed boot, lost: ", "the dump is without that memory, and names it")
				}
				last = lost
			}
		})
	}
}

// TestPlanChangedTwice has the update die while it copies, and the old payload
// come back: what the update has overwritten is not shown.
func TestPlanChangedTwice(t *testing.T) {
	c := newLargeCrash(t)
	c.record([16]byte{0xaa})
	c.own = phys.NewSet(span(0x1000, 0x9f000), span(640*mib, 768*mib))
	c.mem.Writable = c.firmware.Set(memmap.RAM)
	c.mem.Set(700*mib, bytes.Repeat([]byte{0x99}, 0x10000))
	c.mem.BeforeWrite = func(a physmemtest.Access) error {
		if !DefaultHandoff.Contains(a.Range) {
			panic(waited{})
		}
		return nil
	}
	if r := c.run(); r.started {
		t.Fatal("the machine was not reset")
	}
	c.mem.BeforeWrite = nil
	c.own = newMachine(t).own
	r := c.run()
	wantKernel(t, r, 1, "elfcorehdr=")
	if lost := c.wantTruth(); !lost.Contains(span(700*mib, 700*mib+0x10000)) {
		t.Errorf("lost %v, want what the update has overwritten in it", lost)
	}
}

// TestOfferedHeaderDamaged gives up a dump of which nobody knows any more where
// it is.
func TestOfferedHeaderDamaged(t *testing.T) {
	c := newCrash(t)
	c.run()
	c.mem.Set(c.p.Handoff.Start+registration.CoreHeaderOff, []byte{0})
	r := c.run()
	wantKernel(t, r, 1, planned)
	wantLog(t, r.log, "error: capture, error: ELF core header of the boot that copied: parse ELF header: ", "plain boot, the dump is lost")
}

// TestPlainAfter has what is no reason to take a dump.
func TestPlainAfter(t *testing.T) {
	state := func(s registration.State) func(c *crash) {
		return func(c *crash) { c.register(func(b *registration.Block) { b.State = s }) }
	}
	tests := []struct {
		name  string
		spoil func(c *crash)
		why   string
	}{
		{"clean shutdown", state(registration.Disarmed), "clean shutdown: disarmed"},
		{"saved", state(registration.Saved), "reset while saved"},
		{"releasing", state(registration.Releasing), "reset while releasing"},
		{"memory was added", func(c *crash) { c.register(func(b *registration.Block) { b.MapHash[0]++ }) }, "the firmware's memory map changed since arming"},
		{"too many dumps", func(c *crash) {
			c.register(func(b *registration.Block) {
				for i := range b.Counters.LastCaptures {
					b.Counters.LastCaptures[i] = c.now.Unix() - 60
				}
			})
		}, "8 dumps within an hour"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c := newCrash(t)
			c.record([16]byte{0xaa})
			tt.spoil(c)
			r := c.run()
			wantKernel(t, r, 1, planned)
			wantLog(t, r.log, "plain boot, why: "+tt.why)
			b := c.block()
			if b.State != registration.Prearmed || b.Identity.Nonce != c.Nonce() || len(b.CPUNotes) != 0 {
				t.Errorf("state %v, nonce %x, %d notes", b.State, b.Identity.Nonce, len(b.CPUNotes))
			}
			record := c.mem.Get(span(c.p.Handoff.Start+registration.RecordOff, c.p.Handoff.Start+registration.RecordOff+registration.RecordSize))
			if !bytes.Equal(record, make([]byte, registration.RecordSize)) {
				t.Error("the crash record is still there")
			}
		})
	}
}

// TestCaptureFails loses the dump and nothing else.
func TestCaptureFails(t *testing.T) {
	tests := []struct {
		name  string
		spoil func(c *crash)
		log   []string
	}{
		{"boot memory is bad", func(c *crash) { c.mem.Bad = phys.Set{span(c.p.Boot[1].End-0x1000, c.p.Boot[1].End)} },
			[]string{"error: capture, error: copy boot memory: copy ", "memory fault -> plain boot, the dump is lost"}},
		{"the destination is bad", func(c *crash) {
			c.mem.Bad = phys.Set{span(c.p.Destination[0].Start, c.p.Destination[0].Start+0x1000)}
		}, []string{"error: capture, error: copy boot memory: copy ", "memory fault -> plain boot, the dump is lost"}},
		{"the core header is not written", func(c *crash) {
			c.mem.BeforeWrite = func(a physmemtest.Access) error {
				if a.Range.Start == c.p.Handoff.Start+registration.CoreHeaderOff {
					return errBroken
				}
				return nil
			}
		}, []string{"error: capture, error: ELF core header: ", "broken for this test -> plain boot, the dump is lost"}},
		{"the command line is a little too long", func(c *crash) {
			c.entries[0].Cmdline = entryCmdline + " " + strings.Repeat("x", 2047-len(planned)-1)
		}, []string{"error: capture boot, error: entry \"Debian\": command line of ", "the kernel takes 2047 -> plain boot, the dump is lost"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c := newCrash(t)
			tt.spoil(c)
			r := c.run()
			wantKernel(t, r, 1, planned[len(entryCmdline):])
			if strings.Contains(r.cmdline, "elfcorehdr") {
				t.Errorf("command line %q offers a dump", r.cmdline)
			}
			wantLog(t, r.log, append([]string{"capture boot"}, append(tt.log, "boot: plain")...)...)
			if b := c.block(); b.State != registration.Prearmed || b.Counters.Attempts != 0 || b.Counters.Captures != 1 {
				t.Errorf("state %v, counters %+v; want prearmed for the next crash", b.State, b.Counters)
			}
		})
	}
}

func TestCaptureEntries(t *testing.T) {
	broke := debian("broken", 1)
	broke.Kernel = normalboot.NewFile("/boot/vmlinuz", broken{})
	other := debian("other", 2)
	tests := []struct {
		name    string
		entries []normalboot.Entry
		cmdline string
		seed    byte
	}{
		{"the kernel that crashed comes first", []normalboot.Entry{other, debian("Debian", 1)}, "", 1},
		{"it is gone", []normalboot.Entry{other, debian("third", 3)}, "", 2},
		{"the administrator's choice counts more", []normalboot.Entry{debian("Debian", 1), other}, "warmcore.boot=other", 2},
		{"a broken entry", []normalboot.Entry{broke, other}, "", 2},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c := newCrash(t)
			c.entries, c.cmdline = tt.entries, tt.cmdline
			r := c.run()
			wantKernel(t, r, tt.seed, "elfcorehdr=")
			c.wantDump()
			if b := c.block(); b.State != registration.Capturing {
				t.Errorf("state %v, want capturing", b.State)
			}
		})
	}
}

// TestCaptureStaysInBootMemory has a kernel that would rather run elsewhere.
func TestCaptureStaysInBootMemory(t *testing.T) {
	c := newCrash(t)
	k := segmentstest.Debian(1)
	k.PrefAddress = c.p.Preserved[0].Start
	c.entries[0].Kernel = normalboot.NewFile("/boot/vmlinuz", bytes.NewReader(k.Image()))
	r := c.run()
	wantKernel(t, r, 1, "elfcorehdr=")
	c.wantDump()
	wantLog(t, r.log, "kernel placed, at: 20200000-231fffff")
}

// TestUnknownCPU: a CPU that came after the agent had armed counts as one whose
// caches should have been flushed.
func TestUnknownCPU(t *testing.T) {
	c := newCrash(t)
	c.recordOf([16]byte{0xaa}, 1)
	r := c.run()
	wantLog(t, r.log, "the stub didn't know all CPUs, had_registers: 2, known: 1")
	if got := c.block().Capture; got.CPUsSeen != 2 || got.CPUsFlushed != 1 {
		t.Errorf("caches of %d of %d CPUs flushed, want 1 of 2", got.CPUsFlushed, got.CPUsSeen)
	}
}

// TestNotesLeftOut dumps without what the registration has wrong.
func TestNotesLeftOut(t *testing.T) {
	tests := []struct {
		name      string
		change    func(c *crash, b *registration.Block)
		notes     int // with our own
		registers uint32
		log       string
	}{
		{"nothing is known", func(_ *crash, b *registration.Block) {
			b.CPUNotes, b.VMCoreInfo, b.Mapping = nil, registration.Note{}, kernelmap.Mapping{}
		}, 1, 0, "warn: VMCOREINFO, error: at 0x20209000: find mapping of kernel 6.1.0-40-amd64: "},
		{"note in the window", func(_ *crash, b *registration.Block) { b.CPUNotes[0].Addr = window.Start }, 3, 1, "warn: crash note, address: 0x18000000, error: memory 18000000-"},
		{"note outside memory", func(_ *crash, b *registration.Block) { b.CPUNotes[0].Addr = 1 << 45 }, 3, 1, "warn: crash note, address: 0x200000000000"},
		{"note in the handoff area", func(c *crash, b *registration.Block) { b.CPUNotes[2].Addr = c.p.Handoff.Start }, 3, 1, "warn: crash note"},
		{"note too large", func(_ *crash, b *registration.Block) { b.CPUNotes[0].Size = maxNote + 1 }, 3, 1, "note of 65537 bytes: want 1 to 65536"},
		{"note without registers", func(c *crash, b *registration.Block) { b.CPUNotes[0].Addr = c.p.Boot[0].Start + 0x200000 }, 4, 1, "registers_of_cpus: 1"},
		{"VMCOREINFO elsewhere", func(c *crash, b *registration.Block) { b.VMCoreInfo.Addr = c.notes[1].Addr }, 3, 2, "warn: VMCOREINFO, error: at "},
		{"a mapping that can't be", func(_ *crash, b *registration.Block) {
			b.Mapping = kernelmap.Mapping{DirectBase: ^uint64(0), TextVirt: 1 << 63, TextPhys: 0x100000, TextSize: ^uint64(0)}
		}, 4, 2, "warn: ELF core header, warning: the kernel mapping"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c := newCrash(t)
			c.register(func(b *registration.Block) { tt.change(c, b) })
			r := c.run()
			wantKernel(t, r, 1, "elfcorehdr=")
			h := c.wantDump()
			if b := c.block(); len(h.Notes) != tt.notes || b.Capture.CPUsWithRegisters != tt.registers {
				t.Errorf("%d notes, registers of %d CPUs, want %d and %d\n%s", len(h.Notes), b.Capture.CPUsWithRegisters, tt.notes, tt.registers, r.log)
			}
			wantLog(t, r.log, tt.log)
		})
	}
}

// TestResetAtEachWrite resets the machine again before each write of a capture
// boot: the next run offers the same dump, whole, or none.
func TestResetAtEachWrite(t *testing.T) {
	writes := func(c *crash) int { return len(c.run().writes) }(newCrash(t))
	if writes < 10 {
		t.Fatalf("a capture boot writes %d times, want some more", writes)
	}
	for n := range writes {
		t.Run(fmt.Sprintf("write %d", n), func(t *testing.T) {
			c := newCrash(t)
			c.record([16]byte{0xaa})
			left := n
			c.mem.BeforeWrite = func(physmemtest.Access) error {
				if left--; left < 0 {
					panic(waited{})
				}
				return nil
			}
			if r := c.run(); r.started {
				t.Fatal("the machine was not reset")
			}
			c.mem.BeforeWrite = nil
			r := c.run()
			wantKernel(t, r, 1, "elfcorehdr=")
			c.wantDump()
			b := c.block()
			if b.Capture.Reason != registration.ReasonPanic || b.Counters.Captures != 1 || b.Counters.Attempts > 2 {
				t.Errorf("reason %v, counters %+v; want one dump of a panic", b.Capture.Reason, b.Counters)
			}
		})
	}
}

// TestResetAtEachWriteOfPlainBoot must not leave an armed registration over
// boot memory that a kernel was placed in.
func TestResetAtEachWriteOfPlainBoot(t *testing.T) {
	prepare := func(t *testing.T) *crash {
		c := newCrash(t)
		c.register(func(b *registration.Block) { b.Counters.Attempts = 3 }) // given up
		return c
	}
	for n := range len(prepare(t).run().writes) {
		t.Run(fmt.Sprintf("write %d", n), func(t *testing.T) {
			c := prepare(t)
			left := n
			c.mem.BeforeWrite = func(physmemtest.Access) error {
				if left--; left < 0 {
					panic(waited{})
				}
				return nil
			}
			c.run()
			overwritten := bytes.Equal(c.mem.Get(span(0x1000000, 0x1001000)), segmentstest.Debian(1).Code)
			c.mem.BeforeWrite = nil
			r := c.run()
			if !r.started {
				t.Fatal(r)
			}
			b := c.block()
			if b.State == registration.Capturing && b.Capture.Reason != registration.ReasonEarly || b.State == registration.Capturing && !overwritten {
				t.Errorf("state %v, reason %v: the dump had been given up", b.State, b.Capture.Reason)
			}
		})
	}
}
