package story

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

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

// fitSource is the payload as a board's boot loader gets it.
const fitSource = `/dts-v1/;
/ {
	description = "warmcore payload";
	#address-cells = <1>;
	images {
		kernel {
			data = /incbin/("%s");
			type = "kernel"; arch = "arm64"; os = "linux"; compression = "none";
			load = <%#x>; entry = <%#x>;
			hash { algo = "crc32"; };
		};
		ramdisk {
			data = /incbin/("%s");
			type = "ramdisk"; arch = "arm64"; os = "linux"; compression = "none";
			load = <%#x>;
			hash { algo = "crc32"; };
		};
		fdt {
			data = /incbin/("%s");
			type = "flat_dt"; arch = "arm64"; compression = "none";
			load = <%#x>;
			hash { algo = "crc32"; };
		};
	};
	configurations {
		default = "payload";
		payload { kernel = "kernel"; ramdisk = "ramdisk"; fdt = "fdt"; };
	};
};
`

// ubootFlash writes the flash that U-Boot starts the payload from: a FIT image
// with kernel, initramfs and device tree.
func (l *Lab) ubootFlash(p loaded, o *machine.Options) error {
	at := func(name string) string { return filepath.Join(l.Out, name) }
	for _, name := range []*string{&p.image, &p.initramfs, &p.tree} {
		abs, err := filepath.Abs(*name) // dtc looks from where the source is
		if err != nil {
			return err
		}
		*name = abs
	}
	source := fmt.Sprintf(fitSource, p.image, armKernel, armKernel, p.initramfs, armInitramfs, p.tree, armTree)
	for name, text := range map[string]string{"payload.its": source, "uboot.env": strings.Join(ubootEnv, "\n") + "\n"} {
		if err := os.WriteFile(at(name), []byte(text), 0o644); err != nil {
			return err
		}
	}
	if out, err := output(l.ctx, "", "mkimage", "-f", at("payload.its"), at("payload.itb")); err != nil {
		return fmt.Errorf("mkimage: %w\n%s", err, out)
	}
	if out, err := output(l.ctx, "", "mkenvimage", "-s", fmt.Sprint(ubootEnvSize), "-o", at("env.bin"), at("uboot.env")); err != nil {
		return fmt.Errorf("mkenvimage: %w\n%s", err, out)
	}
	env, err := os.ReadFile(at("env.bin"))
	if err != nil {
		return err
	}
	fit, err := os.ReadFile(at("payload.itb"))
	if err != nil {
		return err
	}
	flash := append(env, fit...)
	if len(flash) > machine.FlashSize {
		return fmt.Errorf("the payload takes %s of flash, which has %s", phys.FormatSize(uint64(len(flash))), phys.FormatSize(machine.FlashSize))
	}
	flash = append(flash, make([]byte, machine.FlashSize-len(flash))...)
	o.Flash = at("flash.img")
	return os.WriteFile(o.Flash, flash, 0o644)
}
