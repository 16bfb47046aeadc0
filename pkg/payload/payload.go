// Package payload is what warminit does at every reset: read the handoff
// area, plan, copy boot memory if there is a dump, and start the normal
// kernel.
//
// It is a ladder. Each rung that fails is logged, with what follows from it,
// and the next one down still boots the machine:
//
//  1. a capture boot, where a registration asks for it;
//  2. a plain boot with the plan, so that a crash is dumped;
//  3. a boot with the firmware's own memory map, and no dumps;
//  4. the same with every segment given to kexec_load, where physical memory
//     can't be opened;
//  5. the same with the machine's own device tree, where it can't be read;
//  6. the next boot entry, and a new look at the disks.
//
// Afterwards the log is in the handoff area, for `warmcore log`.
package payload

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"strings"
	"time"

	"github.com/warmcore/warmcore/pkg/acpi"
	"github.com/warmcore/warmcore/pkg/binding"
	"github.com/warmcore/warmcore/pkg/cmdline"
	"github.com/warmcore/warmcore/pkg/devicetree"
	"github.com/warmcore/warmcore/pkg/memmap"
	"github.com/warmcore/warmcore/pkg/normalboot"
	"github.com/warmcore/warmcore/pkg/phys"
	"github.com/warmcore/warmcore/pkg/plan"
	"github.com/warmcore/warmcore/pkg/registration"
	"github.com/warmcore/warmcore/pkg/verdict"
	"github.com/warmcore/warmcore/pkg/zeropage"
)

// Memory is the machine's physical memory.
type Memory interface {
	ReadPhys(p []byte, addr uint64) error
	WritePhys(p []byte, addr uint64) error
	Zero(r phys.Range) error
	// Uncached returns the part of s to which access is slow.
	Uncached(s phys.Set) phys.Set
	Copy(copies []phys.Copy, workers int, progress func(done uint64)) error
}

// System is the machine that the payload runs on.
type System interface {
	Arch() plan.Arch
	// FirmwareMap is the memory map that firmware gave.
	FirmwareMap() (memmap.Map, error)
	// OwnRAM is the RAM that the running payload kernel uses for itself.
	OwnRAM() (phys.Set, error)
	// FreeRAM is the part of it that nobody has reserved, for any kernel.
	FreeRAM() (phys.Set, error)
	// BootParams is the running kernel's zero page, DeviceTree its device
	// tree as the boot loader passed it; nil without one.
	BootParams() []byte
	DeviceTree() *devicetree.Tree
	// SRAT is ACPI's table of NUMA nodes; nil without one.
	SRAT() []byte
	// RSDP is the address of ACPI's root pointer; 0 if it isn't found.
	RSDP(Memory) uint64
	// OpenMemory opens physical memory for writing.
	OpenMemory() (Memory, error)
	// Scan looks for boot entries on the disks.
	Scan(normalboot.Options) (*normalboot.Disks, error)
	// QuietDevices keeps PCI devices that no driver has bound from writing to
	// memory, and returns those that could.
	QuietDevices() (quiet []string, err error)
	// Guard begins to hold the payload to deadlines: Within sets the next.
	// missed is called when one is over. Release ends that, before another
	// kernel is started.
	Guard(phase string, limit time.Duration, missed func(phase string, limit time.Duration))
	Within(phase string, limit time.Duration)
	Release() error
	// Reset resets the machine warm; it returns only if that failed.
	Reset() error
	// Load gives an image to kexec_load, Reboot starts it.
	Load(entry uint64, segments []phys.Segment) error
	Reboot() error
	// Wait waits between two scans of the disks.
	Wait(time.Duration)
	Now() time.Time
	Nonce() [16]byte
	CPUs() int
}

// Payload is one run. Make it with New.
type Payload struct {
	sys     System
	log     *slog.Logger
	logText func() []byte // what was logged so far
	opts    Options
	version string

	mem      Memory // nil if it can't be opened
	firmware memmap.Map
	plan     *plan.Plan // nil if there is none
	handoff  []byte     // private copy of H
	block    *registration.Block
	decision verdict.Decision
	guarded  bool // deadlines are set: this is no dry run
	progress registration.Progress
	hung     []string // disks that the previous boot was waiting for when it was reset
}

// New returns a run on sys that logs to log; logText returns the log's text
// for the handoff area.
func New(sys System, log *slog.Logger, logText func() []byte, opts Options, version string) *Payload {
	return &Payload{sys: sys, log: log, logText: logText, opts: opts, version: version}
}

// Plan makes the plan and the decision, and changes nothing. `warminit -n` does
// no more than that.
func (p *Payload) Plan() {
	placeErr := p.placeHandoff()
	var err error
	if p.firmware, err = p.sys.FirmwareMap(); err != nil {
		p.log.Error("firmware's memory map", "error", err, "so", "boot with the payload's own memory, no dumps")
		p.firmware = p.ownMap()
		return
	}
	for _, w := range p.firmware.Warnings {
		p.log.Warn("firmware's memory map", "warning", w)
	}
	if p.mem, err = p.sys.OpenMemory(); err != nil {
		p.mem = nil
		p.log.Error("physical memory", "error", err, "so", "no dumps in this boot")
		return
	}
	if p.opts.Off {
		p.log.Info("warmcore.off", "so", "no dumps in this boot")
		return
	}
	if placeErr != nil {
		p.log.Error("handoff area", "error", placeErr, "so", "boot with the firmware's map, no dumps")
		return
	}
	if p.plan, err = p.makePlan(); err != nil {
		p.plan = nil
		p.log.Error("memory plan", "error", err, "so", "boot with the firmware's map, no dumps")
		return
	}
	if t := p.sys.DeviceTree(); t != nil && lentInterruptTables(t) {
		p.log.Warn("interrupt tables of this kernel stay in the window, which is lent", "so", "start the payload with irqchip.gicv3_nolpi=1")
	}
	if slow := p.mem.Uncached(p.plan.Boot.Union(p.plan.Destination)); len(slow) > 0 {
		p.log.Warn("slow: this kernel maps boot memory and its destination without caches", "memory", phys.FormatSize(slow.Size()),
			"so", "reserve it as warmcore,payload in the payload's device tree")
	}
	p.decide()
}

// lentInterruptTables says whether the payload's kernel has given a GICv3
// tables in its own memory. No later kernel can move them
// (allocate_lpi_tables in drivers/irqchip/irq-gic-v3-its.c, v6.12).
func lentInterruptTables(t *devicetree.Tree) bool {
	if chosen := t.Find("/chosen"); chosen != nil {
		for _, args := range chosen.Strings("bootargs") {
			if p, ok := cmdline.Parse(args).Last("irqchip.gicv3_nolpi"); ok && p.Value == "1" {
				return false
			}
		}
	}
	var its func(n *devicetree.Node) bool
	its = func(n *devicetree.Node) bool {
		return n.Compatible("arm,gic-v3-its") && n.Available() || slices.ContainsFunc(n.Children, its)
	}
	return its(t.Root)
}

// placeHandoff finds a place for H if the command line names none. After an error
// there is no H.
func (p *Payload) placeHandoff() (err error) {
	if !p.opts.Handoff.Empty() {
		return nil
	}
	if t := p.sys.DeviceTree(); t != nil && t.Root != nil {
		p.opts.Handoff, err = binding.HandoffNode(t)
		if !errors.Is(err, binding.ErrNone) {
			return err
		}
	}
	p.opts.Handoff = DefaultHandoff
	return nil
}

// ownMap makes a map of the payload's own memory. It is used to boot if firmware's
// map can't be read.
func (p *Payload) ownMap() (m memmap.Map) {
	own, err := p.sys.OwnRAM()
	if err != nil {
		p.log.Error("the payload's own memory", "error", err, "so", "nothing can be booted")
	}
	for _, r := range own {
		m.Entries = append(m.Entries, memmap.Entry{Range: r, Kind: memmap.RAM})
	}
	return m
}

func (p *Payload) makePlan() (*plan.Plan, error) {
	own, err := p.sys.OwnRAM()
	if err != nil {
		return nil, err
	}
	own = own.Minus(phys.Set{p.sys.Arch().Low})
	window := p.opts.Window
	if len(window) == 0 {
		window = own
	}
	if out := own.Minus(window); len(out) > 0 {
		return nil, fmt.Errorf("no plan: the payload kernel's own memory %v is outside the window %v; confine it (x86: memmap=, device tree: linux,usable-memory-range)", out, window)
	}
	in := plan.Input{
		Arch:        p.sys.Arch(),
		Firmware:    p.firmware,
		Overwritten: p.opts.Lost.Union(p.loaderRanges()),
		Nodes:       p.nodes(),
		Policy: plan.Policy{
			Window:     window,
			Handoff:    p.opts.Handoff,
			BlockSize:  p.opts.BlockSize,
			BootMemory: p.opts.BootMemory,
			Owner:      p.opts.Owner,
		},
	}
	made, err := plan.Make(in)
	if err != nil {
		return nil, err
	}
	if err := plan.Check(made); err != nil {
		return nil, fmt.Errorf("the plan contradicts itself, this is a defect of warmcore: %w", err)
	}
	return made, nil
}

// nodes returns the memory of each NUMA node, none if that isn't known. Then
// released memory may come back to another node than it was on.
func (p *Payload) nodes() []memmap.Node {
	var nodes []memmap.Node
	var err error
	if t := p.sys.DeviceTree(); t != nil {
		nodes, err = memmap.Nodes(t)
	} else if table := p.sys.SRAT(); table != nil {
		var t acpi.SRAT
		t, err = acpi.ParseSRAT(table)
		for _, m := range t.Memory {
			nodes = append(nodes, memmap.Node{ID: m.Domain, Range: m.Range})
		}
	}
	if err != nil {
		p.log.Warn("NUMA nodes", "error", err, "so", "memory may come back to another node")
	}
	return nodes
}

// loaderRanges returns the memory where the boot loader put the payload's initramfs.
func (p *Payload) loaderRanges() phys.Set {
	var r phys.Range
	var ok bool
	if t := p.sys.DeviceTree(); t != nil {
		r, ok = binding.Initrd(t)
	} else if page, err := zeropage.Parse(p.sys.BootParams()); err == nil {
		r, ok = page.Initrd()
	}
	if !ok {
		return nil
	}
	return phys.NewSet(r)
}

func (p *Payload) decide() {
	s := verdict.Situation{
		MapHash: p.firmware.Hash(),
		Plan:    p.plan,
		Now:     p.sys.Now().Unix(),
		Limits:  p.opts.Limits,
	}
	p.handoff = make([]byte, p.plan.Handoff.Size())
	if err := p.mem.ReadPhys(p.handoff, p.plan.Handoff.Start); err != nil {
		s.BlockErr = err
		p.handoff = make([]byte, len(p.handoff))
	} else {
		s.Block, s.BlockErr = registration.Load(p.handoff)
	}
	if record, err := registration.DecodeRecord(p.handoff[registration.RecordOff:][:registration.RecordSize]); err == nil {
		s.Record = &record
	}
	p.block = s.Block
	p.decision = verdict.Decide(s)
	if p.decision.Kind == plan.Capture && s.Record != nil && p.decision.Reason == registration.ReasonPanic {
		p.block.Capture.CPUsFlushed, p.block.Capture.CPUsSeen = s.Record.Flushed, s.Record.Expected
	}
	level := slog.LevelInfo
	if s.BlockErr != nil && !errors.Is(s.BlockErr, registration.ErrEmpty) {
		level = slog.LevelWarn
	}
	p.log.Log(context.Background(), level, p.decision.Kind.String()+" boot", "why", p.decision.Why)
}

// Describe prints the plan and the decision.
func (p *Payload) Describe(w io.Writer) {
	if p.plan == nil {
		fmt.Fprintln(w, "no plan: the normal kernel gets the firmware's memory map, no dumps")
		return
	}
	fmt.Fprint(w, p.plan)
	fmt.Fprintf(w, "%v boot: %s\n", p.decision.Kind, p.decision.Why)
	if lost := p.decision.Dump.Lost; len(lost) > 0 {
		fmt.Fprintf(w, "the memory plan changed since the crashed boot: the dump is without %s of its memory, %v\n", phys.FormatSize(lost.Size()), lost)
	}
}

// Scan intervals: a disk that is slow to appear is found soon, and a machine
// without disks does not fill its console.
const (
	scanInterval = time.Second
	scanPatience = 30
)

// Run does everything that the payload is for. On a machine it does not
// return: while no normal kernel starts, it scans the disks again.
func (p *Payload) Run() error {
	p.guard()
	p.quietDevices()
	p.Plan()
	p.resume()
	if p.plan != nil && p.decision.Kind == plan.Capture {
		if err := p.prepareCapture(); err != nil {
			p.log.Error("capture", "error", err, "so", "plain boot, the dump is lost")
			p.decision = verdict.Decision{Kind: plan.Plain, Prearm: true, Why: err.Error()}
		}
	}
	seen := ""
	for try := 0; ; try++ {
		p.enter(registration.PhaseDisks, disksLimit)
		disks, err := p.scan(try)
		if err != nil {
			disks = &normalboot.Disks{Looked: []string{"look for disks: " + err.Error()}}
		}
		// Entries that failed are tried again when a disk has appeared, and from
		// time to time.
		looked := strings.Join(disks.Looked, "; ")
		if now := fmt.Sprint(len(disks.Entries), looked); now != seen || try%scanPatience == 0 {
			seen = now
			p.log.Info("disks", "entries", len(disks.Entries), "looked_at", looked)
			err := p.bootAny(disks)
			if errors.Is(err, errOtherSystem) && try < scanPatience {
				p.log.Warn("capture boot", "error", err, "so", "waiting for its disk")
			} else if len(disks.Entries) > 0 && p.decision.Kind == plan.Capture {
				p.log.Error("capture boot", "error", err, "so", "plain boot, the dump is lost")
				p.decision = verdict.Decision{Kind: plan.Plain, Prearm: true, Why: "no entry could be started for the capture"}
				err = p.bootAny(disks)
			}
			p.log.Error("no normal kernel was started", "error", err, "so", "looking again every second")
			p.storeLog()
		}
		disks.Close()
		p.enter(registration.PhaseDisks, disksLimit)
		p.sys.Wait(scanInterval)
	}
}

// bootAny starts the first entry that can be started; it returns only if
// none can.
func (p *Payload) bootAny(disks *normalboot.Disks) error {
	entries, err := p.candidates(disks.Entries)
	if err != nil {
		return err
	}
	if len(entries) == 0 {
		return fmt.Errorf("no boot entry: repair the boot configuration on a disk; looked at: %s", strings.Join(disks.Looked, "; "))
	}
	var errs []error
	for _, e := range entries {
		err := p.boot(e)
		p.log.Error("boot entry", "title", e.Title, "error", err)
		errs = append(errs, fmt.Errorf("entry %q: %w", e.Title, err))
	}
	return errors.Join(errs...)
}

func clip(s string, most int) string { return s[:min(len(s), most)] }

// store writes the block over the older of its two copies in H. If the write is
// torn by a reset, the other copy is still whole.
func (p *Payload) store(b *registration.Block) error {
	b.PayloadVersion = p.version
	off, data, err := registration.Store(b, p.handoff)
	if err != nil {
		return fmt.Errorf("registration: %w", err)
	}
	if err := p.mem.WritePhys(data, p.plan.Handoff.Start+uint64(off)); err != nil {
		return fmt.Errorf("registration: %w", err)
	}
	copy(p.handoff[off:], data)
	p.block = b
	return nil
}

func (p *Payload) storeLog() {
	if p.plan == nil || p.mem == nil {
		return // H's place is not known to be ours
	}
	// The slot is chosen from H as it was at the start, so that storing twice
	// in one boot keeps the previous boot's log.
	off, boot := registration.NextLogSlot(p.handoff)
	slot := registration.EncodeLog(registration.Log{Boot: boot, Text: p.logText()})
	if err := p.mem.WritePhys(slot, p.plan.Handoff.Start+uint64(off)); err != nil {
		p.log.Warn("log", "error", err)
	}
}
