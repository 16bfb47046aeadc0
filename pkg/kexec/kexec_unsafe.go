//go:build linux

// Package kexec hands images to the running kernel's kexec_load(2) and
// starts them.
//
// It doesn't look into segments; pkg/segments and boot/stub make them. The
// kernel copies the data at load time, so segments may be freed after Load.
package kexec

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/warmcore/warmcore/pkg/phys"
)

// OnCrash loads the image for panic() instead of for the next reboot
// (KEXEC_ON_CRASH, include/uapi/linux/kexec.h).
const OnCrash uint64 = 0x1

// MaxSegments is the kernel's limit (KEXEC_SEGMENT_MAX, v6.12).
const MaxSegments = 16

// ErrRefused says that the kernel does not allow kexec_load: no privilege,
// lockdown, or kernel.kexec_load_disabled.
var ErrRefused = errors.New("the kernel refuses kexec_load (root needed; lockdown and kernel.kexec_load_disabled forbid it)")

// segment is struct kexec_segment of include/linux/kexec.h.
type segment struct {
	buf   unsafe.Pointer
	bufsz uintptr
	mem   uintptr
	memsz uintptr
}

// Load gives the kernel an image that starts at the physical address entry.
// Segment ranges are page aligned; the kernel zeroes the bytes after a
// segment's data.
func Load(entry uint64, segments []phys.Segment, flags uint64) error {
	if len(segments) == 0 || len(segments) > MaxSegments {
		return fmt.Errorf("kexec_load of %d segments: want 1 to %d", len(segments), MaxSegments)
	}
	var pin runtime.Pinner
	defer pin.Unpin()
	list := make([]segment, len(segments))
	for i, s := range segments {
		if s.Range.Empty() || uint64(len(s.Data)) > s.Range.Size() || s.Range.Start%phys.PageSize != 0 || s.Range.End%phys.PageSize != 0 {
			return fmt.Errorf("kexec_load segment %v: empty, not page aligned, or smaller than its %d bytes of data", s, len(s.Data))
		}
		list[i] = segment{mem: uintptr(s.Range.Start), memsz: uintptr(s.Range.Size()), bufsz: uintptr(len(s.Data))}
		if len(s.Data) > 0 {
			pin.Pin(&s.Data[0])
			list[i].buf = unsafe.Pointer(&s.Data[0])
		}
	}
	return load(uintptr(entry), uintptr(len(list)), unsafe.Pointer(&list[0]), uintptr(flags))
}

// Unload drops the image loaded with the same flags.
func Unload(flags uint64) error {
	return load(0, 0, nil, uintptr(flags))
}

func load(entry, n uintptr, list unsafe.Pointer, flags uintptr) error {
	_, _, errno := unix.Syscall6(unix.SYS_KEXEC_LOAD, entry, n, uintptr(list), flags, 0, 0)
	switch errno {
	case 0:
		return nil
	case unix.EPERM:
		return fmt.Errorf("kexec_load: %w", ErrRefused)
	case unix.ENOSYS:
		return errors.New("kexec_load: this kernel is built without it (CONFIG_KEXEC)")
	default:
		return fmt.Errorf("kexec_load: %w", errno)
	}
}

// Reboot starts the loaded image. It returns only if that failed. File
// systems must be unmounted, or synced, by the caller.
func Reboot() error {
	if err := unix.Reboot(unix.LINUX_REBOOT_CMD_KEXEC); err != nil {
		return fmt.Errorf("reboot into the loaded kernel: %w", err)
	}
	return errors.New("reboot into the loaded kernel: returned")
}

// Restart resets the machine, in the way and mode of /sys/kernel/reboot, after
// the running kernel's drivers have shut their devices down. It returns only if
// that failed.
func Restart() error {
	if err := unix.Reboot(unix.LINUX_REBOOT_CMD_RESTART); err != nil {
		return fmt.Errorf("reset: %w", err)
	}
	return errors.New("reset: returned")
}

// drainTries bounds Drain: a console whose receiver stopped it must not keep
// the machine from booting.
const drainTries = 100

// Drain waits until the terminal has sent all that was written to it. The last
// output matters most, and the jump would cut it off. The kernel's own wait
// ends early, without an error, at any signal (tty_wait_until_sent in
// drivers/tty/tty_ioctl.c, v6.12), and Go's scheduler sends itself many, so
// Drain checks the output queue.
func Drain(terminal *os.File) {
	fd := int(terminal.Fd())
	for range drainTries {
		if err := unix.IoctlSetInt(fd, unix.TCSBRK, 1); err != nil && err != unix.EINTR {
			return // not a terminal
		}
		if n, err := unix.IoctlGetInt(fd, unix.TIOCOUTQ); err != nil || n == 0 {
			return
		}
	}
}
