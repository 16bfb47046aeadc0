package payload

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"runtime"
	"strconv"
	"strings"
	"time"

	"github.com/warmcore/warmcore/pkg/acpi"
	"github.com/warmcore/warmcore/pkg/devicetree"
	"github.com/warmcore/warmcore/pkg/kexec"
	"github.com/warmcore/warmcore/pkg/memmap"
	"github.com/warmcore/warmcore/pkg/normalboot"
	"github.com/warmcore/warmcore/pkg/phys"
	"github.com/warmcore/warmcore/pkg/physmem"
	"github.com/warmcore/warmcore/pkg/plan"
	"github.com/warmcore/warmcore/pkg/segments"
)

// Linux is the running payload kernel as a System.
type Linux struct {
	Log     *slog.Logger
	Console *os.File // where Log is printed
}

// mountDir is where disks are mounted, in the payload's own memory.
const mountDir = "/run/warmcore"

// Arch is what this program was built for.
func (*Linux) Arch() plan.Arch {
	if runtime.GOARCH == plan.ARM64.Name {
		return plan.ARM64
	}
	return plan.AMD64
}

// FirmwareMap reads the device tree; without one, /sys/firmware/memmap, which
// memmap= does not change; a payload kernel without that
// (CONFIG_FIRMWARE_MEMMAP) still has the e820 table of its zero page.
func (l *Linux) FirmwareMap() (memmap.Map, error) {
	if l.Arch() == plan.ARM64 {
		tree, warning, err := readTree(os.DirFS("/sys/firmware"))
		if err != nil {
			return memmap.Map{}, err
		}
		m, err := memmap.DeviceTree(tree)
		if warning != "" {
			m.Warnings = append(m.Warnings, warning)
		}
		return m, err
	}
	m, err := memmap.Sysfs(os.DirFS("/sys/firmware/memmap"))
	if err == nil {
		return m, nil
	}
	table, tableErr := segments.E820Table(l.BootParams())
	if tableErr != nil {
		return memmap.Map{}, errors.Join(err, tableErr)
	}
	if m, tableErr = memmap.E820(table); tableErr != nil {
		return memmap.Map{}, errors.Join(err, tableErr)
	}
	l.Log.Warn("/sys/firmware/memmap", "error", err, "so", "using the zero page's memory map")
	return m, nil
}

// DeviceTree reads the tree that the kernel was started with; on x86 there is
// none that describes memory.
func (l *Linux) DeviceTree() *devicetree.Tree {
	if l.Arch() != plan.ARM64 {
		return nil
	}
	tree, _, err := readTree(os.DirFS("/sys/firmware"))
	if err != nil {
		return nil // FirmwareMap has said why
	}
	return tree
}

// readTree reads the kernel's copy of the tree, in /sys/firmware. It is
// missing where the kernel finds it changed (of_fdt_raw_init in
// drivers/of/fdt.c, v6.12); then the warning says what is not in the tree that
// the kernel has made of it.
func readTree(firmware fs.FS) (tree *devicetree.Tree, warning string, err error) {
	b, err := fs.ReadFile(firmware, "fdt")
	if err != nil {
		err = fmt.Errorf("device tree: /sys/firmware: %w", err)
	} else if tree, err = devicetree.Parse(b); err != nil {
		err = fmt.Errorf("/sys/firmware/fdt: %w", err)
	} else {
		return tree, "", nil
	}
	base, baseErr := fs.Sub(firmware, "devicetree/base")
	if baseErr == nil {
		tree, baseErr = devicetree.ReadFS(base)
	}
	if baseErr != nil {
		return nil, "", errors.Join(err, fmt.Errorf("/sys/firmware/devicetree/base: %w", baseErr))
	}
	return tree, fmt.Sprintf("%v: taking /sys/firmware/devicetree/base, which lacks the reservation block", err), nil
}

// OwnRAM is what /proc/iomem lists, less what is RAM of this kernel only so
// that it maps it.
func (l *Linux) OwnRAM() (phys.Set, error) {
	ram, err := systemRAM()
	if tree := l.DeviceTree(); tree != nil {
		ram = ram.Minus(memmap.PayloadReserved(tree))
	}
	return ram, err
}

// FreeRAM is OwnRAM less what /proc/iomem calls reserved in it.
func (l *Linux) FreeRAM() (phys.Set, error) {
	own, err := l.OwnRAM()
	if err != nil {
		return nil, err
	}
	m, err := ioMem()
	if err != nil {
		return nil, err
	}
	return unreserved(own, m), nil
}

// unreserved is what arm64's kernels leave to kexec: in iomem they list as
// "reserved" what firmware, EFI or an interrupt controller goes on using
// (reserve_memblock_reserved_regions in arch/arm64/kernel/setup.c and
// efi_mem_reserve_iomem in drivers/firmware/efi/efi.c, v6.12).
func unreserved(own phys.Set, iomem memmap.Map) phys.Set {
	return own.Minus(iomem.Named("reserved"))
}

func systemRAM() (phys.Set, error) {
	m, err := ioMem()
	return m.Top().Set(memmap.RAM), err
}

func ioMem() (memmap.Map, error) {
	f, err := os.Open("/proc/iomem")
	if err != nil {
		return memmap.Map{}, fmt.Errorf("the payload kernel's RAM: %w", err)
	}
	defer f.Close()
	m, err := memmap.IOMem(f)
	if err != nil {
		return memmap.Map{}, fmt.Errorf("the payload kernel's RAM: /proc/iomem: %w", err)
	}
	return m, nil
}

// BootParams reads the zero page that the running kernel keeps.
func (*Linux) BootParams() []byte {
	b, err := os.ReadFile("/sys/kernel/boot_params/data")
	if err != nil {
		return nil
	}
	return b
}

// RSDP asks the zero page, then EFI's table, then searches where the ACPI
// specification (6.5, section 5.2.5.1) lets a BIOS put it.
func (l *Linux) RSDP(mem Memory) uint64 {
	if l.Arch() == plan.ARM64 {
		return 0 // the device tree tells all
	}
	if at := segments.RSDP(l.BootParams()); at != 0 {
		return at
	}
	if b, err := os.ReadFile("/sys/firmware/efi/systab"); err == nil {
		for line := range strings.Lines(string(b)) {
			if hex, ok := strings.CutPrefix(strings.TrimSpace(line), "ACPI20="); ok {
				if at, err := strconv.ParseUint(hex, 0, 64); err == nil {
					return at
				}
			}
		}
	}
	search := phys.NewSet(phys.Range{Start: 0xe0000, End: 0x100000})
	var segment [2]byte // of the extended BIOS data area
	if mem.ReadPhys(segment[:], 0x40e) == nil {
		if ebda := uint64(binary.LittleEndian.Uint16(segment[:])) << 4; ebda >= 0x400 && ebda < 0xa0000 {
			search = search.Union(phys.Set{{Start: ebda, End: ebda + phys.KiB}})
		}
	}
	for _, r := range search {
		b := make([]byte, r.Size())
		if mem.ReadPhys(b, r.Start) != nil {
			continue
		}
		if off, ok := acpi.FindRSDP(b); ok {
			return r.Start + uint64(off)
		}
	}
	return 0
}

// OpenMemory opens /dev/mem.
func (l *Linux) OpenMemory() (Memory, error) {
	cached, err := systemRAM()
	if err != nil {
		l.Log.Warn("memory that is mapped with caches", "error", err, "so", "arm64: taking all for slow memory")
	}
	m, err := physmem.OpenCached("/dev/mem", true, cached)
	if err != nil {
		return nil, err
	}
	return m, nil
}

// Scan mounts what is on the disks, read-only.
func (l *Linux) Scan() (*normalboot.Disks, error) { return normalboot.Scan(mountDir, l.Log) }

// Load gives an image to the kernel.
func (*Linux) Load(entry uint64, s []phys.Segment) error { return kexec.Load(entry, s, 0) }

// Reboot starts it.
func (l *Linux) Reboot() error {
	kexec.Drain(l.Console)
	return kexec.Reboot()
}

// Wait sleeps.
func (*Linux) Wait(d time.Duration) { time.Sleep(d) }

// Now is the system's clock, which the kernel sets from the RTC.
func (*Linux) Now() time.Time { return time.Now() }

// CPUs is how many workers copy.
func (*Linux) CPUs() int { return runtime.NumCPU() }

// Nonce must differ from boot to boot, it is no secret. So it is not read from
// getrandom(2), which on a machine that has just been reset may wait many
// seconds for entropy; the kernel's uuid does not wait, and the clock makes up
// for what it lacks.
func (l *Linux) Nonce() (n [16]byte) {
	h := sha256.New()
	uuid, err := os.ReadFile("/proc/sys/kernel/random/uuid")
	if err != nil {
		l.Log.Warn("random numbers", "error", err, "so", "taking the clock")
	}
	h.Write(uuid)
	fmt.Fprint(h, time.Now().UnixNano())
	copy(n[:], h.Sum(nil))
	return n
}
