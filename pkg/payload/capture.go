package payload

import (
	"bytes"
	"errors"
	"fmt"
	"time"

	"github.com/warmcore/warmcore/pkg/elfcore"
	"github.com/warmcore/warmcore/pkg/kernelmap"
	"github.com/warmcore/warmcore/pkg/phys"
	"github.com/warmcore/warmcore/pkg/plan"
	"github.com/warmcore/warmcore/pkg/registration"
	"github.com/warmcore/warmcore/pkg/verdict"
	"github.com/warmcore/warmcore/pkg/vmcore"
	"github.com/warmcore/warmcore/pkg/vmcoreinfo"
)

// prepareCapture saves boot memory and leaves the ELF core header in H. When
// it returns without an error the state is capturing: from then on L may be
// overwritten, and a reset offers the same dump again.
func (p *Payload) prepareCapture() error {
	if err := verdict.Check(p.block, p.plan, p.decision); err != nil {
		return fmt.Errorf("what the dump is to show contradicts the memory plan, this is a defect of warmcore: %w", err)
	}
	b := p.decision.Begin(p.block, p.plan, p.firmware.Hash(), p.sys.Nonce(), p.sys.Now().Unix())
	if err := p.store(b); err != nil {
		return err
	}
	area := registration.CoreHeaderRange(p.plan.Handoff)
	describe := p.keptHeader
	if !p.decision.Copied {
		describe = p.coreHeader
		if err := p.copyBootMemory(b); err != nil {
			return err
		}
	}
	p.enter(registration.PhaseDump, phaseLimit+transfer(p.plan.Dumped().Size(), scanRate))
	header, err := describe(b, area)
	if err != nil {
		return err
	}
	if uint64(len(header)) > area.Size() {
		return fmt.Errorf("ELF core header of %d bytes: the handoff area has room for %d", len(header), area.Size())
	}
	// A reset in the middle of this write would leave an offered dump
	// without a header. So a header that is right already isn't written.
	if old := p.handoff[registration.CoreHeaderOff:][:len(header)]; !p.decision.Copied || !bytes.Equal(old, header) {
		if err := p.mem.WritePhys(header, area.Start); err != nil {
			return fmt.Errorf("ELF core header: %w", err)
		}
	}
	b.Capture.CoreHeader = phys.Range{Start: area.Start, End: area.Start + uint64(len(header))}
	b.Capture.Copied = true
	b.Absent, b.Lost = nil, nil // the header says what is in the dump
	b.State = registration.Capturing
	return p.store(b)
}

func (p *Payload) copyBootMemory(b *registration.Block) error {
	p.quietDevices() // also those that appeared since the last call
	p.enter(registration.PhaseCopy, phaseLimit+transfer(p.plan.Boot.Size(), copyRate))
	start := time.Now()
	if err := p.mem.Copy(p.plan.Copies, p.sys.CPUs(), nil); err != nil {
		return fmt.Errorf("copy boot memory: %w", err)
	}
	b.Capture.CopyBytes = p.plan.Boot.Size()
	b.Capture.CopyNanos = uint64(time.Since(start))
	seconds := time.Since(start).Seconds()
	p.log.Info("boot memory copied", "bytes", phys.FormatSize(b.Capture.CopyBytes), "seconds", fmt.Sprintf("%.3f", seconds),
		"rate", phys.FormatSize(uint64(float64(b.Capture.CopyBytes)/seconds))+"/s")
	return nil
}

// keptHeader returns the header for a dump whose boot memory an earlier boot
// has copied. It starts from the header that that boot left in area.
func (p *Payload) keptHeader(b *registration.Block, area phys.Range) ([]byte, error) {
	at := b.Capture.CoreHeader
	if at.Empty() || !area.Contains(at) {
		return nil, fmt.Errorf("ELF core header %v of the boot that copied: not in the handoff area", at)
	}
	inHandoff := func(r phys.Range) []byte { return p.handoff[r.Start-p.plan.Handoff.Start:][:r.Size()] }
	old, err := elfcore.Parse(inHandoff(at))
	if err != nil {
		return nil, fmt.Errorf("ELF core header of the boot that copied: %w", err)
	}
	h, lost, err := verdict.Keep(old, p.plan)
	if err != nil {
		return nil, fmt.Errorf("ELF core header of the boot that copied: %w", err)
	}
	p.logLost(lost)
	var own vmcore.Info // our own notes, after the header
	for _, n := range old.Notes {
		if r, ok := phys.Sized(n.Offset, n.Size); ok && at.Contains(r) {
			own.AddNotes(inHandoff(r))
		}
	}
	p.log.Info("dump", "reason", b.Capture.Reason, "kernel", b.Identity.Release, "registers_of_cpus", b.Capture.CPUsWithRegisters)
	return p.encodeHeader(h, area.Start, own.Unreadable.Union(lost), own.Samples)
}

// logLost logs the dump's memory that today's payload has overwritten or
// needs.
func (p *Payload) logLost(lost phys.Set) {
	if len(lost) > 0 {
		p.log.Warn("the memory plan changed since the crashed boot", "lost", phys.FormatSize(lost.Size()), "ranges", lost,
			"so", "the dump is without that memory, and names it")
	}
}

// encodeHeader appends our own notes to a header: that this is a dump, which
// memory is lost, and samples of the memory.
func (p *Payload) encodeHeader(h elfcore.Header, at uint64, lost phys.Set, samples []vmcore.Sample) ([]byte, error) {
	// The kernel makes no /proc/vmcore of a dump without notes
	// (merge_note_headers_elf64 in fs/proc/vmcore.c, v6.12), and there may be
	// neither registers nor VMCOREINFO.
	notes := []elfcore.ELFNote{{Name: "WARMCORE", Desc: []byte(p.version + "\x00")}}
	if text := vmcore.UnreadableText(lost, 0, phys.PageSize); len(text) > 0 {
		notes = append(notes, elfcore.ELFNote{Name: vmcore.NameUnreadable, Type: vmcore.TypeUnreadable, Desc: text})
	}
	if len(samples) > 0 {
		notes = append(notes, vmcore.SamplesNote(samples))
	}
	return h.AppendWithNotes(nil, at, notes...)
}

// coreHeader describes the dump. What the registration lacks, it looks for in
// the crashed kernel's memory. The header will be written to area.
func (p *Payload) coreHeader(b *registration.Block, area phys.Range) ([]byte, error) {
	shown := p.decision.Dump.Shown
	old := crashedMemory{p}
	var notes []registration.Note
	registers := uint32(0)
	for _, n := range b.CPUNotes {
		text, err := old.read(n)
		if err != nil {
			p.log.Warn("crash note", "address", fmt.Sprintf("%#x", n.Addr), "error", err, "so", "left out")
			continue
		}
		notes = append(notes, n)
		found, _ := elfcore.ParseNotes(text)
		if status, err := elfcore.PRStatuses(p.plan.Arch.Machine, found); err == nil && len(status) > 0 {
			registers++
		}
	}
	b.Capture.CPUsWithRegisters = registers
	// CPUs that came online after arming left registers, but the stub
	// didn't know them, so nobody flushed their caches.
	if c := &b.Capture; c.Reason == registration.ReasonPanic && registers > c.CPUsSeen {
		p.log.Warn("the stub didn't know all CPUs", "had_registers", registers, "known", c.CPUsSeen,
			"so", "what the others had only in their caches is missing")
		c.CPUsSeen = registers
	}

	info := b.VMCoreInfo
	if text, err := old.read(info); err != nil || !hasVMCoreInfo(text) {
		var before kernelmap.Mapping
		if b.Capture.Reason == registration.ReasonEarly {
			// The crashed kernel didn't register, so this mapping is that of the
			// boot before.
			before, b.Mapping = b.Mapping, kernelmap.Mapping{}
		}
		found, mapping, err := p.findVMCoreInfo(before)
		if err != nil {
			p.log.Warn("VMCOREINFO", "error", err, "so", "the dump has none: tools need the kernel's debug information")
			info = registration.Note{}
		} else {
			p.log.Info("VMCOREINFO found by scanning", "address", fmt.Sprintf("%#x", found.Addr), "kernel", found.Info.Release)
			info = registration.Note{Addr: found.Addr, Size: found.Size}
			b.VMCoreInfo = info
			b.Identity.Release = clip(found.Info.Release, registration.MaxRelease)
			if b.Mapping == (kernelmap.Mapping{}) {
				b.Mapping = mapping
			}
		}
	}
	if info.Size > 0 {
		notes = append(notes, info)
	}
	h, warnings := p.plan.CoreHeader(shown, places(notes), b.Mapping)
	for _, w := range warnings {
		p.log.Warn("ELF core header", "warning", w)
	}
	if err := plan.CheckHeader(p.plan, shown, h); err != nil {
		return nil, fmt.Errorf("ELF core header: %w", err)
	}
	p.log.Info("dump", "reason", b.Capture.Reason, "kernel", b.Identity.Release, "memory", phys.FormatSize(shown.Size()),
		"registers_of_cpus", registers)
	lost := p.decision.Dump.Lost
	p.logLost(lost)
	return p.encodeHeader(h, area.Start, lost, vmcore.TakeSamples(old, shown))
}

// places returns the ranges of notes, without the empty ones of CPUs that were
// never there. No address wraps: the notes have been read.
func places(notes []registration.Note) (at []phys.Range) {
	for _, n := range notes {
		if r, ok := phys.Sized(n.Addr, n.Size); ok && !r.Empty() {
			at = append(at, r)
		}
	}
	return at
}

func hasVMCoreInfo(text []byte) bool {
	_, err := vmcoreinfo.ParseNote(text)
	return err == nil
}

// findVMCoreInfo scans the dumped memory. It may hold notes of earlier boots
// too, so a note must agree with page tables that are intact. Those of the boot
// right before may be intact, if the kernel died before it reused their pages.
// They are recognised by their mapping, which KASLR changes at each boot.
func (p *Payload) findVMCoreInfo(before kernelmap.Mapping) (vmcoreinfo.Candidate, kernelmap.Mapping, error) {
	old := crashedMemory{p}
	start := time.Now()
	found := vmcoreinfo.Find(old, p.decision.Dump.Shown, nil)
	p.log.Info("memory scanned for VMCOREINFO", "seconds", fmt.Sprintf("%.3f", time.Since(start).Seconds()),
		"found", len(found.Candidates), "unreadable", len(found.Holes))
	var errs []error
	for _, c := range found.Candidates {
		mapping, err := kernelmap.Read(old, c.Info)
		switch {
		case err != nil:
			errs = append(errs, fmt.Errorf("at %#x: %w", c.Addr, err))
		case c.Info.KernelOffset != 0 && sameMapping(mapping, before):
			errs = append(errs, fmt.Errorf("at %#x: of the boot before", c.Addr))
		default:
			return c, mapping, nil
		}
	}
	return vmcoreinfo.Candidate{}, kernelmap.Mapping{}, errors.Join(append(errs,
		fmt.Errorf("not found in %s of memory", phys.FormatSize(p.decision.Dump.Shown.Size())))...)
}

// sameMapping compares the addresses that KASLR changes. It ignores the size of
// the text: the agent knows it to the byte, page tables to 2 MiB.
func sameMapping(a, b kernelmap.Mapping) bool {
	return a.DirectBase == b.DirectBase && a.TextVirt == b.TextVirt && a.TextPhys == b.TextPhys
}

// crashedMemory reads memory by the crashed kernel's addresses; what was copied
// is read from the destination.
type crashedMemory struct{ p *Payload }

// ReadPhys reads len(b) bytes at addr; all of them must be dumped memory.
func (m crashedMemory) ReadPhys(b []byte, addr uint64) error {
	r, ok := phys.Sized(addr, uint64(len(b)))
	if !ok {
		return fmt.Errorf("address %#x: beyond 64 bits", addr)
	}
	if !m.p.decision.Dump.Shown.Contains(r) {
		return fmt.Errorf("memory %v: not in the dump", r)
	}
	done := uint64(0)
	for _, c := range m.p.plan.Now(r) {
		if c.Src != addr+done {
			break
		}
		if err := m.p.mem.ReadPhys(b[done:done+c.Size], c.Dst); err != nil {
			return err
		}
		done += c.Size
	}
	if done != uint64(len(b)) {
		return fmt.Errorf("memory %v: not in the dump", r)
	}
	return nil
}

// viewer is a Memory that can be read in place, without copying.
type viewer interface {
	View(r phys.Range, f func(b []byte)) error
}

// ViewPhys calls f with the memory r, in place if possible. The search for
// VMCOREINFO looks at 24 bytes of each page, and copying would be most of its work.
func (m crashedMemory) ViewPhys(r phys.Range, f func(b []byte)) error {
	now := m.p.plan.Now(r)
	if v, ok := m.p.mem.(viewer); ok && m.p.decision.Dump.Shown.Contains(r) && len(now) == 1 && now[0].Size == r.Size() {
		return v.View(now[0].DstRange(), f)
	}
	b := make([]byte, r.Size())
	if err := m.ReadPhys(b, r.Start); err != nil {
		return err
	}
	f(b)
	return nil
}

// maxNote caps the size of a note; the kernel's largest fit in a page.
const maxNote = 64 * phys.KiB

func (m crashedMemory) read(n registration.Note) ([]byte, error) {
	if n.Size == 0 || n.Size > maxNote {
		return nil, fmt.Errorf("note of %d bytes: want 1 to %d", n.Size, maxNote)
	}
	b := make([]byte, n.Size)
	return b, m.ReadPhys(b, n.Addr)
}
