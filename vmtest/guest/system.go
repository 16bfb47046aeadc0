package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/warmcore/warmcore/vmtest/guest/wire"
)

// deviceTimeout bounds the wait for a device. Under emulation on a loaded
// machine a probe takes seconds.
const deviceTimeout = 60 * time.Second

// sysroot is where the root disk is mounted. Its /var is mounted on /var.
const sysroot = "/sysroot"

// uptime returns the seconds since the kernel started, 0 if unknown.
func uptime() float64 {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		return 0
	}
	return float64(ts.Nano()) / 1e9
}

func mountKernelFilesystems() error {
	for _, m := range []struct{ source, target, fstype string }{
		{"proc", "/proc", "proc"},
		{"sysfs", "/sys", "sysfs"},
		{"devtmpfs", "/dev", "devtmpfs"},
		{"tmpfs", "/run", "tmpfs"},
		{"tmpfs", "/tmp", "tmpfs"},
	} {
		if err := os.MkdirAll(m.target, 0o755); err != nil {
			return err
		}
		if err := unix.Mount(m.source, m.target, m.fstype, 0, ""); err != nil && !errors.Is(err, unix.EBUSY) {
			return fmt.Errorf("mount %s on %s: %w", m.fstype, m.target, err)
		}
	}
	return nil
}

func modprobe(module string, params ...string) error {
	out, err := exec.Command("modprobe", append([]string{module}, params...)...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("modprobe %s: %w: %s", module, err, strings.TrimSpace(string(out)))
	}
	return nil
}

// deviceEvents is the kernel's stream of uevents.
type deviceEvents struct{ fd int }

func listenDevices() (*deviceEvents, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, unix.NETLINK_KOBJECT_UEVENT)
	if err != nil {
		return nil, fmt.Errorf("open uevent socket: %w", err)
	}
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: 1}); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("bind uevent socket: %w", err)
	}
	return &deviceEvents{fd}, nil
}

func (d *deviceEvents) Close() error { return unix.Close(d.fd) }

// wait calls found now and after every uevent until it returns true.
func (d *deviceEvents) wait(what string, found func() bool) error {
	deadline := time.Now().Add(deviceTimeout)
	buf := make([]byte, 16<<10)
	for !found() {
		left := time.Until(deadline)
		if left <= 0 {
			return fmt.Errorf("wait for %s: not there after %v", what, deviceTimeout)
		}
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(d.fd), Events: unix.POLLIN}}, int(left.Milliseconds())+1)
		if n > 0 {
			// ENOBUFS means that events were lost; found looks
			// at the state, so that doesn't matter.
			_, err = unix.Read(d.fd, buf)
		}
		if err != nil && !errors.Is(err, unix.EINTR) && !errors.Is(err, unix.ENOBUFS) {
			return fmt.Errorf("wait for %s: %w", what, err)
		}
	}
	return nil
}

// openPort waits for the virtio-serial port called name and opens it.
func openPort(d *deviceEvents, name string) (*os.File, error) {
	var dev string
	err := d.wait("virtio-serial port "+name, func() bool {
		files, _ := filepath.Glob("/sys/class/virtio-ports/*/name")
		for _, f := range files {
			b, err := os.ReadFile(f)
			if err == nil && strings.TrimSpace(string(b)) == name {
				dev = "/dev/" + filepath.Base(filepath.Dir(f))
				return true
			}
		}
		return false
	})
	if err != nil {
		return nil, err
	}
	// A blocking descriptor keeps Go's poller out: the port reports a
	// hang-up until the host has connected.
	fd, err := unix.Open(dev, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", dev, err)
	}
	return os.NewFile(uintptr(fd), dev), nil
}

// mountDisk mounts the first partition of the first virtio disk and returns
// its device; "" and no error if the machine has no disk.
func mountDisk(d *deviceEvents) (string, error) {
	const disk, part = "/dev/vda", "/dev/vda1"
	// virtio_blk probes while modprobe runs, so the disk is known by now.
	if _, err := os.Stat(disk); errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	err := d.wait(part, func() bool { _, err := os.Stat(part); return err == nil })
	if err != nil {
		return "", err
	}
	if err := os.MkdirAll(sysroot, 0o755); err != nil {
		return "", err
	}
	if err := unix.Mount(part, sysroot, "ext4", unix.MS_NOATIME, ""); err != nil {
		return "", fmt.Errorf("mount %s on %s: %w", part, sysroot, err)
	}
	for _, dir := range []string{sysroot + "/var/crash", "/var"} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return "", err
		}
	}
	if err := unix.Mount(sysroot+"/var", "/var", "", unix.MS_BIND, ""); err != nil {
		return "", fmt.Errorf("bind %s/var to /var: %w", sysroot, err)
	}
	if name, err := os.ReadFile(sysroot + "/etc/hostname"); err == nil {
		if err := unix.Sethostname([]byte(strings.TrimSpace(string(name)))); err != nil {
			return "", fmt.Errorf("set host name: %w", err)
		}
	}
	return part, nil
}

// unmountDisk writes the root disk out and leaves it clean.
func unmountDisk() error {
	unix.Sync()
	var errs []error
	for _, dir := range []string{"/var", sysroot} {
		if err := unix.Unmount(dir, 0); err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
			errs = append(errs, fmt.Errorf("unmount %s: %w", dir, err))
		}
	}
	return errors.Join(errs...)
}

// describeBoot gathers what the boot event says. What can't be read is left
// out and in the error.
func describeBoot() (wire.Boot, error) {
	var errs []error
	text := func(path string) string {
		b, err := os.ReadFile(path)
		if err != nil {
			errs = append(errs, err)
		}
		return strings.TrimSpace(string(b))
	}
	b := wire.Boot{
		Kind:    wire.Plain,
		Release: text("/proc/sys/kernel/osrelease"),
		Cmdline: text("/proc/cmdline"),
		IOMem:   text("/proc/iomem"),
		BootID:  text("/proc/sys/kernel/random/boot_id"),
		CPUs:    runtime.NumCPU(),
	}
	for line := range strings.Lines(text("/proc/meminfo")) {
		if f := strings.Fields(line); len(f) >= 2 && f[0] == "MemTotal:" {
			n, err := strconv.ParseUint(f[1], 10, 64)
			if err != nil {
				errs = append(errs, fmt.Errorf("/proc/meminfo: %w", err))
			}
			b.MemTotalKiB = n
		}
	}
	if _, err := os.Stat("/proc/vmcore"); err == nil {
		b.Vmcore = true
	}
	if b.Vmcore || strings.Contains(b.Cmdline, "elfcorehdr=") {
		b.Kind = wire.Capture
	}
	return b, errors.Join(errs...)
}
