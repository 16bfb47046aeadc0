package payload

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/warmcore/warmcore/pkg/memmap"
	"github.com/warmcore/warmcore/pkg/normalboot"
	"github.com/warmcore/warmcore/pkg/phys"
	"github.com/warmcore/warmcore/pkg/plan"
	"github.com/warmcore/warmcore/pkg/registration"
	"github.com/warmcore/warmcore/pkg/segments"
)

const (
	// maxKernel caps a kernel image, which is read into the payload's own memory.
	maxKernel = 64 << 20
	// maxInitrd caps the initrd, which is copied to its place piece by
	// piece.
	maxInitrd = 4 << 30
	// initrdPiece is one of those pieces.
	initrdPiece = 4 << 20
)

// boot starts an entry. It returns only if that fails, with the reason.
func (p *Payload) boot(e normalboot.Entry) error {
	p.enter(registration.PhasePlace, placeLimit)
	kernel, sum, err := p.readKernel(e.Kernel)
	if err != nil {
		return err
	}
	if version := fmt.Sprint(kernel); normalboot.IsPayload(version) {
		return fmt.Errorf("%s is a payload itself: %s", e.Kernel.Path, version)
	}
	if e.DeviceTree != "" {
		p.log.Warn("boot entry's device tree", "file", e.DeviceTree, "so", "not used: the kernel gets the machine's")
	}
	own, err := p.sys.OwnRAM()
	if err != nil {
		p.log.Error("the payload's own memory", "error", err, "so", "all of the kernel to kexec_load")
	}
	nonce := p.sys.Nonce()
	l := segments.Linux{
		Kernel: kernel, BootParams: p.sys.BootParams(),
		Tree: p.sys.DeviceTree(), Own: own, Handoff: p.opts.Handoff, Seed: binary.LittleEndian.Uint64(nonce[:]),
	}
	if e.Initrd.Exists() {
		n, err := e.Initrd.Size(maxInitrd)
		if err != nil {
			return err
		}
		l.InitrdSize = uint64(n)
		p.enter(registration.PhasePlace, placeLimit+transfer(l.InitrdSize, diskRate))
	}
	if p.mem != nil {
		l.RSDP = p.sys.RSDP(p.mem)
	}
	if p.plan == nil {
		return p.bootUnplanned(e, l)
	}
	kind := p.decision.Kind
	if why := p.leaveToKdump(e, sum); why != "" {
		err := p.bootKdump(e, l, sum, why)
		p.log.Error("boot that is left to kdump", "title", e.Title, "error", err, "so", "boot with the memory plan")
	}
	err = p.bootPlanned(e, l, registration.Booted{FileSystem: clip(e.FileSystem, registration.MaxUUID), KernelSum: sum, Once: clip(e.Once, registration.MaxOnce)})
	if kind == plan.Capture {
		// The dump is in D and stays offered, at the next reset.
		return err
	}
	p.log.Error("boot with the memory plan", "title", e.Title, "error", err, "so", "boot with the firmware's map, no dumps")
	return errors.Join(err, p.bootUnplanned(e, l))
}

func (p *Payload) readKernel(f normalboot.File) (kernel segments.Kernel, sum [32]byte, err error) {
	n, err := f.Size(maxKernel)
	if err != nil {
		return nil, sum, err
	}
	b := make([]byte, n)
	if n, err := f.ReadAt(b, 0); n < len(b) {
		return nil, sum, fmt.Errorf("read %s: %w", f.Path, err)
	}
	kernel, err = segments.Parse(p.sys.Arch().Name, b)
	if err != nil {
		return nil, sum, fmt.Errorf("%s: %w", f.Path, err)
	}
	return kernel, sha256.Sum256(b), nil
}

func (p *Payload) bootPlanned(e normalboot.Entry, l segments.Linux, booted registration.Booted) error {
	kind := p.decision.Kind
	b := p.block
	if kind == plan.Plain {
		b = p.decision.Begin(p.block, p.plan, p.firmware.Hash(), p.sys.Nonce(), p.sys.Now().Unix())
	}
	var dropped []string
	l.Cmdline, dropped = p.plan.Cmdline(e.Cmdline, kind, b.Capture.CoreHeader)
	for _, d := range dropped {
		p.log.Warn("boot entry's parameter left out", "parameter", d)
	}
	if err := p.plan.CheckKernel(l.Kernel.PageSize()); err != nil {
		return err
	}
	if kind == plan.Capture {
		header := b.Capture.CoreHeader
		if !p.plan.Handoff.Contains(header) {
			return fmt.Errorf("ELF core header %v: not in the handoff area", header)
		}
		l.CoreHeader = make([]byte, header.Size())
		if err := p.mem.ReadPhys(l.CoreHeader, header.Start); err != nil {
			return fmt.Errorf("ELF core header: %w", err)
		}
	}
	l.Map = p.plan.NextMap(kind)
	l.Allowed = p.plan.Boot
	img, err := segments.Place(l)
	if err != nil {
		return err
	}
	if kind == plan.Plain {
		// L is about to be overwritten: an older registration must not be
		// believed after a reset in the middle of that.
		empty := *b
		empty.State = registration.Empty
		if err := p.store(&empty); err != nil {
			return err
		}
	}
	initrdSum, err := p.place(img, e.Initrd)
	if err != nil {
		return err
	}
	if l.InitrdSize > 0 {
		booted.InitrdSum = initrdSum
	}
	if kind == plan.Capture {
		if err := p.sameBytes(b.Booted, booted); err != nil {
			return err
		}
	}
	if booted.Once == "" {
		booted.Once = b.Booted.Once
	}
	p.log.Info("kernel placed", "at", img.Segments[0].Range, "initrd", img.Initrd)
	if err := p.sys.Load(img.Trampoline.Range.Start, []phys.Segment{img.Trampoline}); err != nil {
		return err
	}
	b.Kernel = kernelOf(e, l.Cmdline)
	b.Booted, b.Mounting = booted, ""
	if kind == plan.Plain {
		// The crash record of the previous boot is no longer needed.
		if err := p.mem.Zero(phys.Range{Start: p.plan.Handoff.Start + registration.RecordOff, End: p.plan.Handoff.Start + registration.RecordOff + registration.RecordSize}); err != nil {
			return err
		}
	}
	if err := p.store(b); err != nil {
		// If the format can't hold the title or command line, the dump is
		// still worth having.
		b.Kernel, b.Booted = registration.Kernel{}, registration.Booted{}
		if err := p.store(b); err != nil {
			return err
		}
		p.log.Warn("boot entry not recorded", "error", err)
	}
	p.log.Info("normal kernel", "boot", kind, "title", e.Title, "kernel", l.Kernel, "cmdline", l.Cmdline)
	p.storeLog()
	p.log.Info("start") // on the console only: all of the above is in H
	return p.start()
}

// kernelOf describes an entry that is started with a command line, as far as the
// format has room.
func kernelOf(e normalboot.Entry, cmdline string) registration.Kernel {
	return registration.Kernel{
		Title:   clip(e.Title, registration.MaxTitle),
		Path:    clip(e.Kernel.Path, registration.MaxPath),
		Initrd:  clip(e.Initrd.Path, registration.MaxPath),
		Cmdline: clip(cmdline, registration.MaxCmdline),
	}
}

// bootUnplanned starts an entry as any boot loader would: all memory, nothing
// preserved.
func (p *Payload) bootUnplanned(e normalboot.Entry, l segments.Linux) error {
	l.Cmdline = plan.Resets(e.Cmdline)
	l.Map = p.firmware.Normalize()
	return p.bootWhole(e, l, "without dumps", p.forget)
}

// bootWhole starts an entry with all of memory. It calls before, with the
// payload's own memory, before it writes to any other memory. kind is for the log.
func (p *Payload) bootWhole(e normalboot.Entry, l segments.Linux, kind string, before func(own phys.Set) error) error {
	l.Allowed = l.Map.Set(memmap.RAM).Minus(phys.NewSet(p.sys.Arch().Low, p.opts.Handoff))
	entry, load, err := p.placeUnplanned(e, l, before)
	if err != nil {
		p.log.Warn("place the kernel", "error", err, "so", "all of it to kexec_load")
		if entry, load, err = p.loadWhole(e, l); err != nil {
			return err
		}
	}
	if err := p.sys.Load(entry, load); err != nil {
		return err
	}
	p.log.Info("normal kernel", "boot", kind, "title", e.Title, "kernel", l.Kernel, "cmdline", l.Cmdline)
	p.storeLog()
	return p.start()
}

// placeUnplanned writes the kernel to its place, outside the payload's memory.
func (p *Payload) placeUnplanned(e normalboot.Entry, l segments.Linux, before func(own phys.Set) error) (entry uint64, load []phys.Segment, err error) {
	if p.mem == nil {
		return 0, nil, errors.New("physical memory is not open")
	}
	if len(l.Own) == 0 {
		return 0, nil, errors.New("the payload's own memory is not known")
	}
	own := l.Own
	l.Own = own.Intersect(l.Allowed) // not what is reserved in it
	l.Allowed = l.Allowed.Minus(own)
	img, err := segments.Place(l)
	if err != nil {
		return 0, nil, err
	}
	if err := before(own); err != nil {
		return 0, nil, err
	}
	if _, err := p.place(img, e.Initrd); err != nil {
		return 0, nil, err
	}
	return img.Trampoline.Range.Start, []phys.Segment{img.Trampoline}, nil
}

// forget removes the registration. After a boot without a plan memory is not
// preserved, and a later reset must not take it for a dump.
func (p *Payload) forget(own phys.Set) error {
	h := p.opts.Handoff
	if !p.firmware.Set(memmap.RAM).Minus(own).Contains(h) || h.Size() < registration.CopiesSize {
		return nil
	}
	return p.mem.Zero(phys.Range{Start: h.Start, End: h.Start + registration.CopiesSize})
}

// loadWhole gives everything to kexec_load, which takes no more than half of
// the payload's memory: enough for most kernels.
func (p *Payload) loadWhole(e normalboot.Entry, l segments.Linux) (entry uint64, load []phys.Segment, err error) {
	if p.sys.Arch().KexecOwn {
		l.Allowed = l.Allowed.Intersect(l.Own)
		l.Own = l.Allowed
	}
	img, err := segments.Place(l)
	if err != nil && l.Tree != nil {
		p.log.Error("place the kernel", "error", err, "so", "the machine's device tree goes to it as it is")
		img, err = p.placeUnread(l)
	}
	if err != nil {
		return 0, nil, err
	}
	load = []phys.Segment{img.Trampoline}
	for _, s := range img.Segments {
		s.Range.End = s.Range.Start + (uint64(len(s.Data))+phys.PageSize-1)&^(phys.PageSize-1)
		load = append(load, s)
	}
	if l.InitrdSize > 0 {
		data := make([]byte, l.InitrdSize)
		if n, err := e.Initrd.ReadAt(data, 0); n < len(data) {
			return 0, nil, fmt.Errorf("read %s: %w", e.Initrd.Path, err)
		}
		end, _ := phys.AlignUp(img.Initrd.End, phys.PageSize)
		load = append(load, phys.Segment{Name: "initrd", Range: phys.Range{Start: img.Initrd.Start, End: end}, Data: data})
	}
	return img.Trampoline.Range.Start, load, nil
}

// placeUnread places a kernel where the device tree's memory nodes could not be
// read. What the tree reserves isn't known either, but the running kernel keeps
// clear of it, so the kernel goes to memory that is free in this one.
func (p *Payload) placeUnread(l segments.Linux) (*segments.Image, error) {
	free, err := p.sys.FreeRAM()
	if err != nil {
		return nil, err
	}
	l.Map, l.Handoff = memmap.Map{}, phys.Range{}
	l.Own, l.Allowed = free, free
	return segments.Place(l)
}

// place writes the kernel, its tables and the initrd to their places. That
// works for any size; kexec_load would need a copy of all of it in the
// payload's small memory (sanity_check_segment_list in kernel/kexec_core.c,
// v6.12, refuses more than half of RAM).
func (p *Payload) place(img *segments.Image, initrd normalboot.File) (initrdSum [32]byte, err error) {
	for _, s := range img.Segments {
		if err := p.mem.WritePhys(s.Data, s.Range.Start); err != nil {
			return initrdSum, fmt.Errorf("place %v: %w", s, err)
		}
	}
	sum := sha256.New()
	piece := make([]byte, initrdPiece)
	for done := uint64(0); done < img.Initrd.Size(); {
		want := min(uint64(len(piece)), img.Initrd.Size()-done)
		n, err := initrd.ReadAt(piece[:want], int64(done))
		if n == 0 {
			return initrdSum, fmt.Errorf("read %s at %d of %d bytes: %w", initrd.Path, done, img.Initrd.Size(), err)
		}
		if err := p.mem.WritePhys(piece[:n], img.Initrd.Start+done); err != nil {
			return initrdSum, fmt.Errorf("place initrd %v: %w", img.Initrd, err)
		}
		sum.Write(piece[:n])
		done += uint64(n)
	}
	sum.Sum(initrdSum[:0])
	return initrdSum, nil
}
