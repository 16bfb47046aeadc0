package main

import (
	"fmt"
	"os"
	"os/exec"
	"runtime"

	"golang.org/x/sys/unix"

	"github.com/warmcore/warmcore/vmtest/guest/wire"
)

var triggers = map[string]func(wire.Trigger) error{
	wire.SysrqC:   func(wire.Trigger) error { return sysrq("c") },
	wire.SysrqB:   func(wire.Trigger) error { return sysrq("b") },
	wire.Reboot:   func(wire.Trigger) error { return shutDown(unix.LINUX_REBOOT_CMD_RESTART) },
	wire.PowerOff: func(wire.Trigger) error { return shutDown(unix.LINUX_REBOOT_CMD_POWER_OFF) },
	wire.ExitInit: func(wire.Trigger) error { os.Exit(1); return nil },
	wire.Watchdog: startWatchdog,
}

// pull carries out t on its CPU. It returns only for an error, or where the
// end comes later.
func pull(t wire.Trigger) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var all, one unix.CPUSet
	if err := unix.SchedGetaffinity(0, &all); err != nil {
		return fmt.Errorf("read CPU affinity: %w", err)
	}
	one.Set(t.CPU)
	if err := unix.SchedSetaffinity(0, &one); err != nil {
		return fmt.Errorf("move to CPU %d: %w", t.CPU, err)
	}
	defer unix.SchedSetaffinity(0, &all)
	return triggers[t.Kind](t)
}

func sysrq(key string) error {
	// Writing to the trigger file works whatever kernel.sysrq says.
	return os.WriteFile("/proc/sysrq-trigger", []byte(key), 0)
}

func shutDown(how int) error {
	if !process1 {
		verb := map[int]string{unix.LINUX_REBOOT_CMD_RESTART: "reboot", unix.LINUX_REBOOT_CMD_POWER_OFF: "poweroff"}[how]
		if out, err := exec.Command("systemctl", "--no-block", verb).CombinedOutput(); err != nil {
			return fmt.Errorf("systemctl %s: %w: %s", verb, err, out)
		}
		return nil
	}
	if err := unmountDisk(); err != nil {
		return err
	}
	if err := unix.Reboot(how); err != nil {
		return fmt.Errorf("reboot: %w", err)
	}
	return nil
}

func startWatchdog(t wire.Trigger) error {
	if err := modprobe("i6300esb"); err != nil {
		return err
	}
	seconds := t.Timeout
	if seconds == 0 {
		seconds = 2
	}
	// Never closed, and so no *os.File that could be collected: closing it
	// would be a sign of life.
	fd, err := unix.Open("/dev/watchdog", unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open /dev/watchdog: %w", err)
	}
	if err := unix.IoctlSetPointerInt(fd, unix.WDIOC_SETTIMEOUT, seconds); err != nil {
		return fmt.Errorf("set the watchdog to %d s: %w", seconds, err)
	}
	return nil
}
