package machine

import (
	"github.com/warmcore/warmcore/pkg/phys"
	"github.com/warmcore/warmcore/vmtest/truth"
)

// AMD64 is a q35 machine. Page tables have four levels because a fifth makes
// emulation slower and shows nothing else.
var AMD64 = &Arch{
	Name:    "amd64",
	Console: "ttyS0",

	qemu:    "qemu-system-x86_64",
	cpu:     "max,la57=off",
	machine: "q35",
	ram:     q35RAM,
}

// q35 splits RAM that is larger than lowIfSplit into 2 GiB at 0 and the rest
// at 4 GiB (pc_q35_init in QEMU 7.2, hw/i386/pc_q35.c).
const (
	lowIfSplit = 0xb0000000
	lowSplit   = 2 * phys.GiB
	highStart  = 4 * phys.GiB
)

// q35RAM includes the part from 640 KiB to 1 MiB, which the guest can't see:
// video memory and firmware are there.
func q35RAM(memory uint64) truth.Layout {
	if memory < lowIfSplit {
		return truth.Layout{{End: memory}}
	}
	return truth.Layout{{End: lowSplit}, {Start: highStart, End: highStart + memory - lowSplit}}
}
