package payload

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"runtime"
	"time"

	"github.com/warmcore/warmcore/pkg/binding"
	"github.com/warmcore/warmcore/pkg/busmaster"
	"github.com/warmcore/warmcore/pkg/devicetree"
	"github.com/warmcore/warmcore/pkg/kexec"
	"github.com/warmcore/warmcore/pkg/memmap"
	"github.com/warmcore/warmcore/pkg/normalboot"
	"github.com/warmcore/warmcore/pkg/phys"
	"github.com/warmcore/warmcore/pkg/physmem"
	"github.com/warmcore/warmcore/pkg/plan"
	"github.com/warmcore/warmcore/pkg/watchdog"
)

// Linux is the running payload kernel as a System. NewLinux makes it.
type Linux struct {
	log     *slog.Logger
	console *os.File // where log is printed
	arch    linuxArch

	watchdog *watchdog.Watchdog
}

// linuxArch reads what differs by architecture from the payload's kernel.
type linuxArch interface {
	arch() plan.Arch
	firmwareMap(*Linux) (memmap.Map, error)
	deviceTree() *devicetree.Tree
	rsdp(*Linux, Memory) uint64
}

// NewLinux returns the machine that this program runs on. It refuses a GOARCH for
// which no memory plan can be made.
func NewLinux(goarch string, log *slog.Logger, console *os.File) (*Linux, error) {
	for _, a := range []linuxArch{linuxAMD64{}, linuxARM64{}} {
		if a.arch().Name == goarch {
			return &Linux{log: log, console: console, arch: a}, nil
		}
	}
	return nil, fmt.Errorf("architecture %s: the payload is for %s and %s only", goarch, plan.AMD64.Name, plan.ARM64.Name)
}

// mountDir is where disks are mounted, in the payload's own memory.
const mountDir = "/run/warmcore"

// Arch is the architecture that this program was built for.
func (l *Linux) Arch() plan.Arch { return l.arch.arch() }

// FirmwareMap reads the memory map that firmware gave.
func (l *Linux) FirmwareMap() (memmap.Map, error) { return l.arch.firmwareMap(l) }

// DeviceTree reads the tree that the kernel was started with; nil where none
// describes memory or it can't be read. FirmwareMap returns that error.
func (l *Linux) DeviceTree() *devicetree.Tree { return l.arch.deviceTree() }

// RSDP is the address of ACPI's root pointer, 0 for none.
func (l *Linux) RSDP(mem Memory) uint64 { return l.arch.rsdp(l, mem) }

// OwnRAM is the RAM in /proc/iomem, less the ranges that are in it only so that
// this kernel maps them (binding.PayloadReserved).
func (l *Linux) OwnRAM() (phys.Set, error) {
	ram, err := systemRAM()
	if tree := l.DeviceTree(); tree != nil {
		ram = ram.Minus(binding.PayloadReserved(tree))
	}
	return ram, err
}

// FreeRAM is OwnRAM without the parts that /proc/iomem calls reserved.
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

// unreserved returns own without what iomem lists as "reserved". arm64 kernels
// list there what firmware, EFI or an interrupt controller goes on using, and
// what kexec must leave alone (reserve_memblock_reserved_regions in arch/arm64/kernel/setup.c and
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

// maxSRAT caps the size of ACPI's table, which has 40 bytes for each range.
const maxSRAT = 1 << 20

// SRAT reads ACPI's table from sysfs; a machine with one NUMA node has
// none.
func (l *Linux) SRAT() []byte {
	f, err := os.Open("/sys/firmware/acpi/tables/SRAT")
	if err != nil {
		return nil
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxSRAT))
	if err != nil {
		l.log.Warn("ACPI's SRAT", "error", err, "so", "memory may come back to another NUMA node")
		return nil
	}
	return b
}

// OpenMemory opens /dev/mem.
func (l *Linux) OpenMemory() (Memory, error) {
	cached, err := systemRAM()
	if err != nil {
		l.log.Warn("memory that is mapped with caches", "error", err, "so", "arm64: taking all for slow memory")
	}
	m, err := physmem.OpenCached("/dev/mem", true, cached)
	if err != nil {
		return nil, err
	}
	return m, nil
}

// Scan mounts the file systems on the disks, read-only.
func (l *Linux) Scan(o normalboot.Options) (*normalboot.Disks, error) {
	return normalboot.Scan(mountDir, l.log, o)
}

// Load gives an image to the kernel.
func (*Linux) Load(entry uint64, s []phys.Segment) error { return kexec.Load(entry, s, 0) }

// Reboot starts the image that Load gave to the kernel.
func (l *Linux) Reboot() error {
	kexec.Drain(l.console)
	return kexec.Reboot()
}

// pciDevices is the kernel's list of PCI devices.
const pciDevices = "/sys/bus/pci/devices"

// QuietDevices clears Bus Master Enable of PCI devices that no driver has bound.
func (*Linux) QuietDevices() (stopped []string, err error) {
	devices, readErr := busmaster.Devices(pciDevices)
	quiet, err := busmaster.Apply(pciDevices, busmaster.Quiet(devices))
	for _, d := range quiet {
		stopped = append(stopped, d.String())
	}
	return stopped, errors.Join(readErr, err)
}

// Guard opens the first watchdog that the kernel has a driver for.
func (l *Linux) Guard(phase string, limit time.Duration, missed func(phase string, limit time.Duration)) {
	hardware, err := watchdog.Open("/dev/watchdog")
	switch {
	case errors.Is(err, watchdog.ErrNone):
		l.log.Info("watchdog", "hardware", "none that this kernel has a driver for")
	case err != nil:
		l.log.Warn("watchdog", "error", err, "so", "a kernel that hangs is not reset")
	default:
		l.log.Info("watchdog", "hardware", hardware.Name, "timeout", hardware.Timeout, "did_the_last_reset", hardware.Fired)
	}
	// Resets that this kernel makes, also after a panic, must keep memory
	// (kernel/reboot.c, v6.12: the default is a cold reset).
	if err := os.WriteFile("/sys/kernel/reboot/mode", []byte("warm"), 0); err != nil {
		l.log.Warn("reboot mode", "error", err, "so", "a reset of the payload's own may be a cold one")
	}
	l.watchdog = watchdog.Start(hardware, phase, limit, missed)
}

// Within begins a phase.
func (l *Linux) Within(phase string, limit time.Duration) { l.watchdog.Within(phase, limit) }

// Release stops the watchdog.
func (l *Linux) Release() error { return l.watchdog.Stop() }

// Reset resets the machine.
func (l *Linux) Reset() error {
	kexec.Drain(l.console)
	return kexec.Restart()
}

// Wait sleeps.
func (*Linux) Wait(d time.Duration) { time.Sleep(d) }

// Now is the system's clock, which the kernel sets from the RTC.
func (*Linux) Now() time.Time { return time.Now() }

// CPUs is the number of workers that copy.
func (*Linux) CPUs() int { return runtime.NumCPU() }

// Nonce differs from boot to boot but need not be secret. getrandom(2) could
// wait many seconds for entropy just after a reset. The kernel's uuid doesn't
// wait, and the clock makes up for its missing entropy.
func (l *Linux) Nonce() (n [16]byte) {
	h := sha256.New()
	uuid, err := os.ReadFile("/proc/sys/kernel/random/uuid")
	if err != nil {
		l.log.Warn("random numbers", "error", err, "so", "taking the clock")
	}
	h.Write(uuid)
	fmt.Fprint(h, time.Now().UnixNano())
	copy(n[:], h.Sum(nil))
	return n
}
