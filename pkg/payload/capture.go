package payload

import (
	"errors"
	"fmt"
	"time"

	"github.com/warmcore/warmcore/pkg/elfcore"
	"github.com/warmcore/warmcore/pkg/kernelmap"
	"github.com/warmcore/warmcore/pkg/phys"
	"github.com/warmcore/warmcore/pkg/plan"
	"github.com/warmcore/warmcore/pkg/registration"
	"github.com/warmcore/warmcore/pkg/vmcoreinfo"
)

// prepareCapture saves boot memory and leaves the ELF core header in H. When
// it returns without an error the state is capturing: from then on L may be
// overwritten, and a reset offers the same dump again.
func (p *Payload) prepareCapture() error {
	b := p.decision.Begin(p.block, p.plan, p.firmware.Hash(), p.sys.Nonce(), p.sys.Now().Unix())
	if err := p.store(b); err != nil {
		return err
	}
	if !p.decision.Copied {
		p.quietDevices() // also those that came since
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
	}
	p.enter(registration.PhaseDump, phaseLimit+transfer(p.plan.Dumped().Size(), scanRate))
	at := registration.CoreHeaderRange(p.plan.Handoff)
	header, err := p.coreHeader(b, at.Start)
	if err != nil {
		return err
	}
	if uint64(len(header)) > at.Size() {
		return fmt.Errorf("ELF core header of %d bytes: the handoff area has room for %d", len(header), at.Size())
	}
	at.End = at.Start + uint64(len(header))
	if err := p.mem.WritePhys(header, at.Start); err != nil {
		return fmt.Errorf("ELF core header: %w", err)
	}
	b.Capture.CoreHeader = at
	b.Capture.Copied = true
	b.State = registration.Capturing
	return p.store(b)
}

// coreHeader describes the dump. What the registration does not say, it finds
// in the crashed kernel's memory itself. at is where the header will lie.
func (p *Payload) coreHeader(b *registration.Block, at uint64) ([]byte, error) {
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

	info := b.VMCoreInfo
	if text, err := old.read(info); err != nil || !hasVMCoreInfo(text) {
		var before kernelmap.Mapping
		if b.Capture.Reason == registration.ReasonEarly {
			// Nobody has registered since: it is the mapping of the boot before.
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
	h, warnings := p.plan.CoreHeader(places(notes), b.Mapping)
	for _, w := range warnings {
		p.log.Warn("ELF core header", "warning", w)
	}
	if err := plan.CheckHeader(p.plan, h); err != nil {
		return nil, fmt.Errorf("ELF core header: %w", err)
	}
	p.log.Info("dump", "reason", b.Capture.Reason, "kernel", b.Identity.Release, "memory", phys.FormatSize(p.plan.Dumped().Size()),
		"registers_of_cpus", registers)
	// The kernel makes no /proc/vmcore of a dump without any note
	// (merge_note_headers_elf64 in fs/proc/vmcore.c, v6.12), and there may be
	// neither registers nor VMCOREINFO.
	return h.AppendWithNote(nil, at, elfcore.ELFNote{Name: "WARMCORE", Desc: []byte(p.version + "\x00")})
}

// places is where notes are that are anywhere: a CPU that never was there has
// none. Their addresses don't wrap, or they could not have been read.
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
// too, so a note must agree with page tables that are alive; those of the boot
// right before, whose pages a kernel that died at once has not yet reused, are
// known by their mapping, which KASLR makes another at each boot.
func (p *Payload) findVMCoreInfo(before kernelmap.Mapping) (vmcoreinfo.Candidate, kernelmap.Mapping, error) {
	old := crashedMemory{p}
	start := time.Now()
	found := vmcoreinfo.Find(old, p.plan.Dumped(), nil)
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
		fmt.Errorf("not found in %s of memory", phys.FormatSize(p.plan.Dumped().Size())))...)
}

// sameMapping compares what KASLR moves. The size of the text is left out: the
// agent knows it to the byte, page tables to 2 MiB.
func sameMapping(a, b kernelmap.Mapping) bool {
	return a.DirectBase == b.DirectBase && a.TextVirt == b.TextVirt && a.TextPhys == b.TextPhys
}

// crashedMemory reads memory by the crashed kernel's addresses, from where it
// is after the copy.
type crashedMemory struct{ p *Payload }

// ReadPhys reads len(b) bytes at addr; all of them must be dumped memory.
func (m crashedMemory) ReadPhys(b []byte, addr uint64) error {
	r, ok := phys.Sized(addr, uint64(len(b)))
	if !ok {
		return fmt.Errorf("address %#x: beyond 64 bits", addr)
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

// viewer is a Memory that shows itself without a copy.
type viewer interface {
	View(r phys.Range, f func(b []byte)) error
}

// ViewPhys makes the search for VMCOREINFO, which looks at 24 bytes a page,
// as fast as that sounds.
func (m crashedMemory) ViewPhys(r phys.Range, f func(b []byte)) error {
	now := m.p.plan.Now(r)
	if v, ok := m.p.mem.(viewer); ok && len(now) == 1 && now[0].Size == r.Size() {
		return v.View(now[0].DstRange(), f)
	}
	b := make([]byte, r.Size())
	if err := m.ReadPhys(b, r.Start); err != nil {
		return err
	}
	f(b)
	return nil
}

// maxNote bounds what is read of one note: a page holds the kernel's largest.
const maxNote = 64 * phys.KiB

func (m crashedMemory) read(n registration.Note) ([]byte, error) {
	if n.Size == 0 || n.Size > maxNote {
		return nil, fmt.Errorf("note of %d bytes: want 1 to %d", n.Size, maxNote)
	}
	b := make([]byte, n.Size)
	return b, m.ReadPhys(b, n.Addr)
}
