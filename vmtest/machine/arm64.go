package machine

import (
	"context"
	"errors"
	"os"
	"path/filepath"

	"github.com/warmcore/warmcore/pkg/phys"
	"github.com/warmcore/warmcore/vmtest/command"
	"github.com/warmcore/warmcore/vmtest/truth"
)

// ARM64 is a virt machine. Emulated, a Cortex-A57 boots Debian in half of the
// time that max takes, whose pointer authentication is computed in software.
var ARM64 = &Arch{
	Name:    "arm64",
	Console: "ttyAMA0",

	qemu:    "qemu-system-aarch64",
	cpu:     "cortex-a57",
	machine: "virt,gic-version=3",
	ram:     virtRAM,
}

// virtBase is where virt has its RAM, all in one piece (base_memmap in QEMU
// 7.2, hw/arm/virt.c).
const virtBase = phys.GiB

func virtRAM(memory uint64) truth.Layout {
	return truth.Layout{{Start: virtBase, End: virtBase + memory}}
}

// The second flash chip (extended in virt_flash_map, QEMU 7.2, hw/arm/virt.c).
const (
	FlashBase = 0x0400_0000
	FlashSize = 64 << 20
)

// DeviceTree returns the device tree of the machine: what firmware would find,
// in a blob that ends where the tree does.
func DeviceTree(ctx context.Context, o Options) (blob []byte, err error) {
	dir, err := os.MkdirTemp("", "warmcore-dtb")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	file := filepath.Join(dir, "dtb")
	argv := o.hardware()
	argv[len(argv)-1] += ",dumpdtb=" + file
	if _, err := command.Output(ctx, argv[0], argv[1:]...); err != nil {
		return nil, err
	}
	return os.ReadFile(file)
}
