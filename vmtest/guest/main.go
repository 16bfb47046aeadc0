// Guest is process 1 of the normal kernel in the crash stories. It mounts the
// root disk, says over a virtio-serial port that it is there, and carries out
// what the rig asks for on the same port (package wire). As any other process
// it is a service of a real user space: it leaves disks alone, and lets
// systemd shut the system down.
//
// It decides nothing about a story. What it prints goes to the console and is
// for people only; nothing reads it.
package main

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/warmcore/warmcore/vmtest/guest/wire"
)

// process1 says whether the guest program is all of the user space.
var process1 = os.Getpid() == 1

func main() {
	start := uptime()
	if err := run(start); err != nil {
		fmt.Fprintln(os.Stderr, "guest:", err)
		if !process1 {
			os.Exit(1)
		}
		// Process 1 must not end by itself: that is a trigger, and a
		// panic here would look like a crash of the story's making.
		unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
		os.Exit(1)
	}
}

// run sets up the system and serves requests until the port ends.
func run(start float64) error {
	if process1 {
		if err := mountKernelFilesystems(); err != nil {
			return err
		}
	}
	os.Setenv("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
	os.Setenv("HOME", "/root")
	unix.Umask(0o022)

	devices, err := listenDevices()
	if err != nil {
		return err
	}
	defer devices.Close()
	var notes []string
	for _, m := range []string{"virtio_pci", "virtio_console", "virtio_blk", "ext4"} {
		if err := modprobe(m); err != nil {
			notes = append(notes, err.Error())
		}
	}
	port, err := openPort(devices, wire.Port)
	if err != nil {
		return err
	}
	defer port.Close()
	s := &server{port: port}
	disk := ""
	if process1 {
		if disk, err = mountDisk(devices); err != nil {
			notes = append(notes, err.Error())
		}
	}
	boot, err := describeBoot()
	if err != nil {
		notes = append(notes, err.Error())
	}
	boot.InitSeconds, boot.Disk = start, disk
	for _, n := range notes {
		if err := s.send(wire.Message{Event: wire.EventNote, Text: n}); err != nil {
			return err
		}
	}
	if err := s.send(wire.Message{Event: wire.EventBoot, Boot: &boot}); err != nil {
		return err
	}
	return s.serve()
}
