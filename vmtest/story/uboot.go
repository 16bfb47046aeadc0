package story

import (
	"fmt"
	"os"
	"path/filepath"

	"github.com/warmcore/warmcore/pkg/image/uboot"
	"github.com/warmcore/warmcore/pkg/phys"
	"github.com/warmcore/warmcore/vmtest/machine"
)

// ubootBinary is of Debian's package u-boot-qemu.
const ubootBinary = "/usr/lib/u-boot/qemu_arm64/u-boot.bin"

// U-Boot's flash: its environment (CONFIG_ENV_ADDR and CONFIG_ENV_SIZE of
// qemu_arm64_defconfig in 2023.01), and the payload after it.
const (
	ubootEnvSize = 256 * phys.KiB
	ubootFIT     = machine.FlashBase + ubootEnvSize
)

// ubootEnv starts the payload from where it lies in flash. A device tree or an
// initramfs is not to be moved: nobody would know what that overwrites.
var ubootEnv = []string{
	fmt.Sprintf("bootcmd=bootm %#x", ubootFIT),
	"bootdelay=0",
	"fdt_high=ffffffffffffffff",
	"initrd_high=ffffffffffffffff",
}

// ubootLost is what U-Boot overwrites at each reset on a machine whose RAM
// ends at top, beside the device tree at its start: its first stack, and
// itself with heap and stack at the top.
func ubootLost(top uint64) phys.Set {
	return phys.NewSet(
		phys.Range{Start: 0x401f_0000, End: 0x4020_0000},
		phys.Range{Start: top - 36*phys.MiB, End: top},
	)
}

// ubootFlash writes the flash that U-Boot starts the payload from: its
// environment, and a FIT image with kernel, initramfs and device tree.
func (l *Lab) ubootFlash(p loaded, o *machine.Options) error {
	fit := uboot.FIT{
		Description: "warmcore payload",
		Kernel:      uboot.Part{Load: armKernel},
		Ramdisk:     uboot.Part{Load: armInitramfs},
		DeviceTree:  uboot.Part{Load: armTree},
	}
	for _, part := range []struct {
		name string
		data *[]byte
	}{{p.image, &fit.Kernel.Data}, {p.initramfs, &fit.Ramdisk.Data}, {p.tree, &fit.DeviceTree.Data}} {
		if part.name == "" { // the initramfs is in the kernel
			continue
		}
		b, err := os.ReadFile(part.name)
		if err != nil {
			return err
		}
		*part.data = b
	}
	flash, err := uboot.Environment(int(ubootEnvSize), ubootEnv...)
	if err != nil {
		return err
	}
	if flash, err = fit.Append(flash); err != nil {
		return err
	}
	if len(flash) > machine.FlashSize {
		return fmt.Errorf("the payload takes %s of flash, which has %s", phys.FormatSize(uint64(len(flash))), phys.FormatSize(machine.FlashSize))
	}
	flash = append(flash, make([]byte, machine.FlashSize-len(flash))...)
	o.Flash = filepath.Join(l.Out, "flash.img")
	return os.WriteFile(o.Flash, flash, 0o644)
}
