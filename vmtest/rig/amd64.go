package rig

import "github.com/warmcore/warmcore/pkg/phys"

// AMD64 is a q35 machine. Page tables have four levels because a fifth makes
// emulation slower and shows nothing else.
var AMD64 = &Arch{
	Name:    "amd64",
	Console: "ttyS0",

	qemu:     "qemu-system-x86_64",
	cpu:      "max,la57=off",
	machine:  "q35",
	ram:      q35RAM,
	kernel:   "linux-image-amd64",
	modules:  []string{"crc32c_intel", "dax_hmem", "nd_e820", "msr"},
	triplet:  "x86_64-linux-gnu",
	loader:   "lib64/ld-linux-x86-64.so.2",
	emulator: "qemu-x86_64-static",
}

// q35 splits RAM that is larger than lowIfSplit into 2 GiB at 0 and the rest
// at 4 GiB (pc_q35_init in QEMU 7.2, hw/i386/pc_q35.c).
const (
	lowIfSplit = 0xb0000000
	lowSplit   = 2 * phys.GiB
	highStart  = 4 * phys.GiB
)

// q35RAM includes the part at 640 KiB to 1 MiB that is hidden behind video
// memory and firmware.
func q35RAM(memory uint64) []phys.Range {
	if memory < lowIfSplit {
		return []phys.Range{{End: memory}}
	}
	return []phys.Range{{End: lowSplit}, {Start: highStart, End: highStart + memory - lowSplit}}
}
