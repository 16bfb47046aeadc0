package story

import (
	"path/filepath"

	"github.com/warmcore/warmcore/pkg/phys"
	"github.com/warmcore/warmcore/vmtest/debian"
	"github.com/warmcore/warmcore/vmtest/machine"
)

var amd64 = &board{
	Arch:      machine.AMD64,
	debian:    debian.AMD64,
	dax:       true,
	handoff:   phys.Range{Start: 512 * phys.MiB, End: 514 * phys.MiB}, // without a parameter
	firmwares: []string{"direct"},
	payload:   seabiosPayload,
	entry:     "entry_SYSCALL_64",
	// "..MP-BIOS bug: 8254 timer not connected to IO-APIC", and a kernel that
	// stops there: it counts ticks of the timer for a moment, in which a busy
	// host may not run the emulated CPU at all (timer_irq_works in
	// arch/x86/kernel/apic/io_apic.c, v6.12). Under KVM kernels leave the check
	// out by themselves. It is the trouble of an emulator, not of a board:
	// docs/payload.md doesn't have it.
	emulated:     "no_timer_check",
	unplanned:    "not started by the warmcore payload",
	stockPercent: 86,
	tools:        (*Lab).tools,

	// The first MiB, which is in no plan, and what SeaBIOS keeps for ACPI tables.
	undumped: func(memory uint64) phys.Set {
		return phys.NewSet(phys.Range{End: phys.MiB}, phys.Range{Start: lowTop(memory) - 256*phys.KiB, End: lowTop(memory)})
	},
	// The stub wakes the other CPUs from CPU 0; elsewhere it leaves CPU 0 alone.
	flushed: func(cpus, cpu int) int {
		if cpu != 0 {
			return cpus - 1
		}
		return cpus
	},
}

// PayloadParameters is the command line that confines our payload kernel to the window.
const PayloadParameters = "console=ttyS0 quiet memmap=exactmap memmap=640K@0 memmap=128M@384M"

// seabiosPayload lets QEMU's -kernel start the payload. Its loader puts
// Debian's kernel at 16 MiB, from where nokaslr keeps it from moving, and the
// initramfs at the top of low RAM.
func seabiosPayload(l *Lab, o *machine.Options) error {
	if l.Payload == "stock" {
		o.Kernel, o.Initrd = l.files.kernel.Image, filepath.Join(l.Out, "initramfs")
		o.Append = "console=ttyS0 quiet panic=1 nokaslr memmap=exactmap memmap=640K@0 memmap=127M@1M"
		if err := l.stockInitramfs(o.Initrd); err != nil {
			return err
		}
	} else {
		o.Kernel, o.Append = filepath.Join(l.PayloadDir, "vmlinux"), PayloadParameters
	}
	o.Append = l.emulated(o.Append) + " " + lostParameter(phys.Set{seabiosHeap(l.Memory)})
	return nil
}

// lowTop is the end of RAM below 4 GiB on a q35 machine.
func lowTop(memory uint64) uint64 { return machine.AMD64.RAM(memory)[0].End }

// seabiosHeap is what SeaBIOS overwrites at each reset although its map says
// RAM: 136 KiB below 16 MiB from the top were measured, as the only pages of
// a dump that differed from the truth.
func seabiosHeap(memory uint64) phys.Range {
	end := lowTop(memory) - 16*phys.MiB
	return phys.Range{Start: end - 256*phys.KiB, End: end}
}
