package payload

import (
	"fmt"
	"time"

	"github.com/warmcore/warmcore/pkg/elfcore"
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
		if status, err := elfcore.PRStatuses(elfcore.MachineAMD64, found); err == nil && len(status) > 0 {
			registers++
		}
	}
	b.Capture.CPUsWithRegisters = registers

	info := b.VMCoreInfo
	if text, err := old.read(info); err != nil || !hasVMCoreInfo(text) {
		found, err := p.findVMCoreInfo()
		if err != nil {
			p.log.Warn("VMCOREINFO", "error", err, "so", "the dump has none: tools need the kernel's debug information")
			info = registration.Note{}
		} else {
			info = registration.Note{Addr: found.Addr, Size: found.Size}
			p.log.Info("VMCOREINFO found by scanning", "address", fmt.Sprintf("%#x", found.Addr), "kernel", found.Info.Release)
			if b.Mapping == (registration.Mapping{}) {
				m, err := vmcoreinfo.KernelMapping(old, found.Info)
				if err != nil {
					p.log.Warn("direct map", "error", err)
				} else {
					b.Mapping = registration.Mapping{DirectBase: m.DirectBase, TextVirt: m.TextVirt, TextPhys: m.TextPhys, TextSize: m.TextSize}
				}
			}
			b.VMCoreInfo = info
			b.Identity.Release = clip(found.Info.Release, registration.MaxRelease)
		}
	}
	if info.Size > 0 {
		notes = append(notes, info)
	}
	h, warnings := p.plan.CoreHeader(elfcore.MachineAMD64, notes, b.Mapping)
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

func hasVMCoreInfo(text []byte) bool {
	_, err := vmcoreinfo.ParseNote(text)
	return err == nil
}

// findVMCoreInfo scans the dumped memory. The machine may hold stale ones, of
// boots before: it takes the one whose page tables are alive.
func (p *Payload) findVMCoreInfo() (vmcoreinfo.Candidate, error) {
	old := crashedMemory{p}
	start := time.Now()
	found := vmcoreinfo.Find(old, p.plan.Dumped(), func(i *vmcoreinfo.Info) bool {
		_, err := vmcoreinfo.KernelMapping(old, i)
		return err == nil
	})
	p.log.Info("memory scanned for VMCOREINFO", "seconds", fmt.Sprintf("%.3f", time.Since(start).Seconds()),
		"found", len(found.Candidates), "unreadable", len(found.Holes))
	if len(found.Candidates) == 0 {
		return vmcoreinfo.Candidate{}, fmt.Errorf("not found in %s of memory", phys.FormatSize(p.plan.Dumped().Size()))
	}
	return found.Candidates[0], nil
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

// maxNote bounds what is read of one note: a page holds the kernel's largest.
const maxNote = 64 * phys.KiB

func (m crashedMemory) read(n registration.Note) ([]byte, error) {
	if n.Size == 0 || n.Size > maxNote {
		return nil, fmt.Errorf("note of %d bytes: want 1 to %d", n.Size, maxNote)
	}
	b := make([]byte, n.Size)
	return b, m.ReadPhys(b, n.Addr)
}
