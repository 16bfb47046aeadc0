package rig

import (
	"fmt"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/warmcore/warmcore/pkg/phys"
	"github.com/warmcore/warmcore/vmtest/guest/wire"
)

// Accel is what executes the guest's instructions.
type Accel string

// Accelerators of QEMU.
const (
	TCG Accel = "tcg" // emulation
	KVM Accel = "kvm" // the host's processor; see ProbeKVM
)

// DefaultQEMU is the program that Options.QEMU names if it is empty.
const DefaultQEMU = "qemu-system-x86_64"

// DefaultCPU is the processor under TCG. Page tables have four levels because
// a fifth makes emulation slower and shows nothing else.
const DefaultCPU = "max,la57=off"

// hostCPU is the processor with KVM.
const hostCPU = "host"

// Options describes a machine. Only Memory, CPUs and one of Kernel and BIOS
// are needed.
type Options struct {
	Memory uint64 // bytes of RAM, whole mebibytes
	CPUs   int
	Accel  Accel  // TCG if empty
	CPU    string // QEMU's -cpu; by default DefaultCPU, or host with KVM
	QEMU   string // the program; DefaultQEMU if empty

	// Kernel is what QEMU starts at each reset: the payload as a PVH
	// vmlinux with its initramfs inside, or a bzImage with Initrd and
	// Append. QEMU puts Initrd at the top of low RAM at each reset, so a
	// payload must not use it.
	Kernel, Initrd, Append string
	// BIOS is a firmware image instead of QEMU's SeaBIOS.
	BIOS string
	// Disk is a raw image, the guest's /dev/vda; none if empty.
	Disk string
	// Args are put behind all others.
	Args []string

	// Reproduce is the command line that runs the story again, for
	// failures.
	Reproduce string
}

// paths are the files through which the rig and one QEMU process talk.
type paths struct {
	sockets string // folder of the sockets, on which the rig listens
	ram     string // the guest's RAM
	console string // copy of the console's output
}

// Names of sockets in paths.sockets.
const (
	socketQMP     = "qmp"
	socketConsole = "console"
	socketEvents  = "events"
	socketPayload = "payload"
)

// sockets are all of them, in the order in which QEMU connects.
var sockets = []string{socketQMP, socketConsole, socketEvents, socketPayload}

// check returns an error for options that make no machine.
func (o Options) check() error {
	switch {
	case o.Memory == 0 || o.Memory%phys.MiB != 0:
		return fmt.Errorf("machine: memory of %d bytes isn't a multiple of 1 MiB", o.Memory)
	case o.CPUs < 1:
		return fmt.Errorf("machine: %d CPUs", o.CPUs)
	case o.Kernel == "" && o.BIOS == "":
		return fmt.Errorf("machine: neither kernel nor firmware")
	case o.Kernel == "" && (o.Initrd != "" || o.Append != ""):
		return fmt.Errorf("machine: initrd or append without a kernel")
	case o.Accel != "" && o.Accel != TCG && o.Accel != KVM:
		return fmt.Errorf("machine: accelerator %q is neither %s nor %s", o.Accel, TCG, KVM)
	}
	for _, s := range []string{o.Kernel, o.Initrd, o.BIOS, o.Disk} {
		// QEMU's option syntax splits at a comma; doubling it is not
		// understood everywhere.
		if strings.Contains(s, ",") {
			return fmt.Errorf("machine: file name %q has a comma", s)
		}
	}
	return nil
}

// argv returns QEMU's command line. It reads and writes nothing.
func (o Options) argv(p paths) ([]string, error) {
	if err := o.check(); err != nil {
		return nil, err
	}
	argv := []string{or(o.QEMU, DefaultQEMU),
		"-nodefaults", "-no-user-config", "-display", "none", "-nic", "none",
		"-machine", "q35,memory-backend=ram"}
	if o.Accel == KVM {
		argv = append(argv, "-accel", "kvm", "-cpu", or(o.CPU, hostCPU))
	} else {
		argv = append(argv, "-accel", "tcg,thread=multi", "-cpu", or(o.CPU, DefaultCPU))
	}
	mem := strconv.FormatUint(o.Memory/phys.MiB, 10) + "M"
	argv = append(argv,
		"-smp", strconv.Itoa(o.CPUs), "-m", mem,
		"-object", "memory-backend-file,id=ram,share=on,size="+mem+",mem-path="+p.ram,
		// The rig starts the CPUs when it listens, and decides what
		// follows a reset.
		"-S", "-action", "reboot=shutdown,shutdown=pause,panic=pause,watchdog=reset",
		"-chardev", socketDev(p, socketQMP), "-mon", "chardev=qmp,mode=control",
		"-chardev", socketDev(p, socketConsole)+",logappend=on,logfile="+p.console, "-serial", "chardev:console",
		"-device", "virtio-serial-pci",
		"-chardev", socketDev(p, socketEvents), "-device", "virtserialport,chardev=events,name="+wire.Port,
		"-chardev", socketDev(p, socketPayload), "-device", "virtserialport,chardev=payload,name="+wire.PayloadPort,
		"-device", "i6300esb",
	)
	if o.BIOS != "" {
		argv = append(argv, "-bios", o.BIOS)
	}
	for _, f := range []struct{ flag, value string }{{"-kernel", o.Kernel}, {"-initrd", o.Initrd}, {"-append", o.Append}} {
		if f.value != "" {
			argv = append(argv, f.flag, f.value)
		}
	}
	if o.Disk != "" {
		// A machine that is lost may lose its disk too: unsafe is
		// faster and loses nothing when only the guest crashes.
		argv = append(argv, "-drive", "if=none,id=disk,format=raw,cache=unsafe,discard=unmap,file="+o.Disk,
			"-device", "virtio-blk-pci,drive=disk")
	}
	return append(argv, o.Args...), nil
}

// socketDev makes QEMU the client, so that the rig accepts instead of polling
// for a socket to appear.
func socketDev(p paths, name string) string {
	return "socket,id=" + name + ",server=off,path=" + filepath.Join(p.sockets, name)
}

func or(s, otherwise string) string {
	if s == "" {
		return otherwise
	}
	return s
}

// q35 splits RAM that is larger than lowIfSplit into 2 GiB at 0 and the rest
// at 4 GiB (pc_q35_init in QEMU 7.2, hw/i386/pc_q35.c). The RAM file has no
// hole.
const (
	lowIfSplit = 0xb0000000
	lowSplit   = 2 * phys.GiB
	highStart  = 4 * phys.GiB
)

// RAM returns where a q35 machine with memory bytes of RAM has it. The part
// of it at 640 KiB to 1 MiB is hidden behind video memory and firmware.
func RAM(memory uint64) phys.Set {
	if memory < lowIfSplit {
		return phys.NewSet(phys.Range{End: memory})
	}
	return phys.NewSet(phys.Range{End: lowSplit}, phys.Range{Start: highStart, End: highStart + memory - lowSplit})
}

// Offset returns where the byte at physical address addr is in the RAM file of
// a q35 machine with memory bytes of RAM; ok is false where there is no RAM.
func Offset(memory, addr uint64) (off uint64, ok bool) {
	for _, r := range RAM(memory) {
		if addr >= r.Start && addr < r.End {
			return off + addr - r.Start, true
		}
		off += r.Size()
	}
	return 0, false
}
