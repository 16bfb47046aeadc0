package story

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/warmcore/warmcore/boot/trampoline"
	"github.com/warmcore/warmcore/pkg/binding"
	"github.com/warmcore/warmcore/pkg/devicetree"
	"github.com/warmcore/warmcore/pkg/memmap"
	"github.com/warmcore/warmcore/pkg/phys"
	"github.com/warmcore/warmcore/pkg/plan"
	"github.com/warmcore/warmcore/vmtest/debian"
	"github.com/warmcore/warmcore/vmtest/machine"
)

var arm64 = &board{
	Arch:         machine.ARM64,
	debian:       debian.ARM64,
	handoff:      phys.Range{Start: 0x6000_0000, End: 0x6020_0000},
	firmwares:    []string{"direct", "uboot"},
	payload:      virtPayload,
	entry:        "el0t_64_sync",
	unplanned:    "holds no registration", // the device tree says where the payload's log is
	stockPercent: 86,
	tools:        (*Lab).drgn,
	undumped:     func(uint64) phys.Set { return nil },
	// The other CPUs are off when the stub cleans the caches of the last one.
	flushed: func(cpus, _ int) int { return cpus },
}

// Where the boot loader puts the payload on a virt machine, whose RAM begins
// at 1 GiB; all of it in the window.
const (
	armKernel    = 0x5800_0000
	armInitramfs = armKernel + 64*phys.MiB
	armTree      = armKernel + 124*phys.MiB
	armStart     = armKernel + 126*phys.MiB
	armEnd       = armKernel + 128*phys.MiB
)

// virtWindow is W. Debian's kernel takes 43 MiB of it, and as much again to
// read the next one.
func (l *Lab) virtWindow() phys.Range {
	if l.Payload == "stock" {
		return phys.Range{Start: armEnd - 256*phys.MiB, End: armEnd}
	}
	return phys.Range{Start: armKernel, End: armEnd}
}

// virtLost is what is overwritten at each reset outside the window: QEMU's own
// device tree at the start of RAM, which it puts there for firmware, and what
// U-Boot uses.
func (l *Lab) virtLost() phys.Set {
	lost := phys.NewSet(phys.Range{Start: phys.GiB, End: phys.GiB + phys.MiB})
	if l.Firmware == "uboot" {
		lost = lost.Union(ubootLost(phys.GiB + l.Memory))
	}
	return lost
}

// loaded is the payload as a boot loader has it.
type loaded struct {
	image     string // file of the kernel's Image
	initramfs string // file, empty if it is in the kernel
	tree      string // file of the device tree
}

// virtPayload lets QEMU's generic loader start the payload at each reset, with
// no firmware, or U-Boot from flash.
func virtPayload(l *Lab, o *machine.Options) error {
	p := loaded{image: filepath.Join(l.PayloadDir, "Image"), tree: filepath.Join(l.Out, "payload.dtb")}
	switch {
	case l.Payload == "stock":
		p.image, p.initramfs = l.files.kernel.Image, filepath.Join(l.Out, "initramfs")
		if err := l.stockInitramfs(p.initramfs); err != nil {
			return err
		}
	case l.Firmware == "uboot":
		// A board's image has them apart.
		p.image = filepath.Join(l.PayloadDir, "../kernel/Image")
		p.initramfs = filepath.Join(l.PayloadDir, "../initramfs.cpio.xz")
	}
	return l.startLoaded(p, o)
}

// startLoaded lets l.Firmware start p.
func (l *Lab) startLoaded(p loaded, o *machine.Options) error {
	if l.Firmware == "uboot" {
		o.BIOS = ubootBinary
	}
	if err := l.writeTree(p, *o); err != nil {
		return err
	}
	if l.Firmware == "uboot" {
		return l.ubootFlash(p, o)
	}
	start, err := trampoline.BuildARM64(trampoline.ARM64Params{Entry: armKernel, DeviceTree: armTree})
	if err != nil {
		return err
	}
	stub := filepath.Join(l.Out, "start.bin")
	if err := os.WriteFile(stub, start, 0o644); err != nil {
		return err
	}
	o.Blobs = []machine.Blob{{File: p.image, Addr: armKernel}, {File: p.tree, Addr: armTree}, {File: stub, Addr: armStart}}
	if p.initramfs != "" {
		o.Blobs = append(o.Blobs, machine.Blob{File: p.initramfs, Addr: armInitramfs})
	}
	o.Entry = armStart
	return nil
}

// writeTree writes the payload's device tree: the machine's, with what
// confines the payload.
func (l *Lab) writeTree(p loaded, o machine.Options) error {
	blob, err := machine.DeviceTree(l.ctx, o)
	if err != nil {
		return err
	}
	tree, err := devicetree.Parse(blob)
	if err != nil {
		return err
	}
	chosen := tree.Find("/chosen")
	if chosen == nil {
		return errors.New("QEMU's device tree has no /chosen")
	}
	lost := l.virtLost()
	// Without gicv3_nolpi, which is for kernels that start others, the normal
	// kernel takes over the interrupt tables that this one has allocated: in the
	// window, which is lent (allocate_lpi_tables in
	// drivers/irqchip/irq-gic-v3-its.c, v6.12).
	args := []string{"console=" + l.board.Console, "quiet", "irqchip.gicv3_nolpi=1", "warmcore.window=" + sizeAt(l.virtWindow()),
		"warmcore.handoff=" + sizeAt(l.board.handoff), lostParameter(lost)}
	if l.Payload == "stock" {
		args = append(args, "panic=1")
	}
	chosen.SetString("bootargs", strings.Join(args, " "))
	if p.initramfs != "" {
		fi, err := os.Stat(p.initramfs)
		if err != nil {
			return err
		}
		chosen.SetUint64("linux,initrd-start", armInitramfs)
		chosen.SetUint64("linux,initrd-end", armInitramfs+uint64(fi.Size()))
	}
	if err := l.confine(tree, lost); err != nil {
		return err
	}
	if l.spoilTree != nil {
		l.spoilTree(tree)
	}
	out, err := tree.Append(nil)
	if err != nil {
		return err
	}
	return os.WriteFile(p.tree, out, 0o644)
}

// confine keeps the payload's kernel to its window. Our own may also map the
// rest of what it copies, and never allocates it: that is RAM that is
// reserved. A stock one maps nothing else, because it would map it as device
// memory through /dev/mem if it were no RAM, and not at all if it were.
func (l *Lab) confine(tree *devicetree.Tree, lost phys.Set) error {
	handoff, window := l.board.handoff, phys.Set{l.virtWindow()}
	cells, err := tree.Root.Cells()
	if err != nil {
		return err
	}
	usable := window
	if l.Payload != "stock" {
		firmware, err := memmap.DeviceTree(tree)
		if err != nil {
			return err
		}
		p, err := plan.Make(plan.Input{Arch: plan.ARM64, Firmware: firmware, Overwritten: lost, Policy: plan.Policy{Window: window, Handoff: handoff}})
		switch refusal := (*plan.Refusal)(nil); {
		case err == nil:
			usable = twoRanges(usable.Union(p.Boot).Union(p.Destination).Union(phys.Set{handoff}))
		case errors.As(err, &refusal): // nothing to copy
		default:
			return err
		}
	}
	reserved := tree.Root.Add("reserved-memory")
	reserved.SetUint32("#address-cells", uint32(cells.Address))
	reserved.SetUint32("#size-cells", uint32(cells.Size))
	reserved.Set("ranges", nil)
	for _, r := range usable.Minus(window) {
		n := reserved.Add(fmt.Sprintf("warmcore@%x", r.Start))
		n.SetString("compatible", binding.CompatiblePayload)
		value, err := cells.Value(r)
		if err != nil {
			return err
		}
		n.Set("reg", value)
	}
	// The kernel forgets what it has reserved outside of the first range, which
	// is its device tree if that lies in the second (memblock_cap_memory_range
	// in mm/memblock.c, v6.12).
	if len(usable) == 2 && usable[1].Contains(window[0]) {
		slices.Reverse(usable)
	}
	value, err := cells.Value(usable...)
	if err != nil {
		return err
	}
	tree.Find("/chosen").Set("linux,usable-memory-range", value)
	return nil
}

// twoRanges returns the smallest two ranges that s lies in: kernels take no
// more in linux,usable-memory-range (MAX_USABLE_RANGES in drivers/of/fdt.c,
// v6.12).
func twoRanges(s phys.Set) phys.Set {
	s = slices.Clone(s)
	for len(s) > 2 {
		at, gap := 0, ^uint64(0)
		for i := range len(s) - 1 {
			if g := s[i+1].Start - s[i].End; g < gap {
				at, gap = i, g
			}
		}
		s[at].End = s[at+1].End
		s = slices.Delete(s, at+1, at+2)
	}
	return s
}
