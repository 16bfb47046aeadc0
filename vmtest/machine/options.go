package machine

import (
	"fmt"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/warmcore/warmcore/pkg/phys"
	"github.com/warmcore/warmcore/vmtest/guest/wire"
	"github.com/warmcore/warmcore/vmtest/truth"
)

// Accel is what executes the guest's instructions.
type Accel string

// Accelerators of QEMU.
const (
	TCG Accel = "tcg" // emulation
	KVM Accel = "kvm" // the host's processor; see ProbeKVM
)

// hostCPU is the processor with KVM.
const hostCPU = "host"

// Options describes a machine. Only Memory, CPUs and one of Kernel, BIOS and
// Blobs are needed.
type Options struct {
	Arch   *Arch  // AMD64 if nil
	Memory uint64 // bytes of RAM, whole mebibytes
	CPUs   int
	Accel  Accel  // TCG if empty
	CPU    string // QEMU's -cpu; by default the architecture's, or host with KVM
	// QEMU is the program, if not the architecture's, and what comes first on
	// its command line.
	QEMU []string

	// Kernel is what QEMU starts at each reset: the payload as a PVH
	// vmlinux with its initramfs inside, or a bzImage with Initrd and
	// Append. QEMU puts Initrd at the top of low RAM at each reset, so a
	// payload must not use it.
	Kernel, Initrd, Append string
	// BIOS is a firmware image, on amd64 instead of QEMU's SeaBIOS.
	BIOS string
	// Flash is the file of arm64's second flash chip, FlashSize bytes at
	// FlashBase: where the firmware has its data.
	Flash string
	// Blobs are written to RAM at each reset, with no firmware. The first
	// CPU then begins at Entry, in the state in which a reset leaves it.
	Blobs []Blob
	Entry uint64
	// Hypervisor lets an arm64 machine have EL2 and begin there; firmware
	// calls are then smc, not hvc.
	Hypervisor bool
	// Disk is a raw image, the guest's /dev/vda; none if empty.
	Disk string
	// Args come after all others.
	Args []string

	// Reproduce is the command line that runs the story again, for
	// failures.
	Reproduce string
}

// Blob is a file and the physical address that it is loaded to.
type Blob struct {
	File string
	Addr uint64
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
	case o.Kernel == "" && o.BIOS == "" && len(o.Blobs) == 0:
		return fmt.Errorf("machine: neither kernel nor firmware")
	case len(o.Blobs) > 0 && (o.Kernel != "" || o.BIOS != ""):
		return fmt.Errorf("machine: blobs beside a kernel or firmware")
	case (o.Flash != "" || o.Hypervisor) && o.arch() != ARM64:
		return fmt.Errorf("machine: flash and hypervisor are arm64's")
	case o.Kernel == "" && (o.Initrd != "" || o.Append != ""):
		return fmt.Errorf("machine: initrd or append without a kernel")
	case o.Accel != "" && o.Accel != TCG && o.Accel != KVM:
		return fmt.Errorf("machine: accelerator %q is neither %s nor %s", o.Accel, TCG, KVM)
	}
	files := []string{o.Kernel, o.Initrd, o.BIOS, o.Disk, o.Flash}
	for _, b := range o.Blobs {
		if _, ok := o.arch().Layout(o.Memory).Offset(b.Addr); !ok {
			return fmt.Errorf("machine: %s at %#x: %w", b.File, b.Addr, truth.ErrNotRAM)
		}
		files = append(files, b.File)
	}
	for _, s := range files {
		// QEMU's option syntax splits at a comma; doubling it is not
		// understood everywhere.
		if strings.Contains(s, ",") {
			return fmt.Errorf("machine: file name %q has a comma", s)
		}
	}
	return nil
}

// arch returns the architecture.
func (o Options) arch() *Arch {
	if o.Arch == nil {
		return AMD64
	}
	return o.Arch
}

// hardware are the arguments that make the device tree of a machine what it is.
func (o Options) hardware() []string {
	machine := o.arch().machine
	if o.Hypervisor {
		machine += ",virtualization=on"
	}
	argv := slices.Clone(o.QEMU)
	if len(argv) == 0 {
		argv = []string{o.arch().qemu}
	}
	argv = append(argv, "-nodefaults", "-no-user-config", "-display", "none", "-nic", "none")
	if o.Accel == KVM {
		argv = append(argv, "-accel", "kvm", "-cpu", or(o.CPU, hostCPU))
	} else {
		argv = append(argv, "-accel", "tcg,thread=multi", "-cpu", or(o.CPU, o.arch().cpu))
	}
	if o.BIOS != "" { // virt has another power button for firmware
		argv = append(argv, "-bios", o.BIOS)
	}
	return append(argv,
		"-smp", strconv.Itoa(o.CPUs), "-m", strconv.FormatUint(o.Memory/phys.MiB, 10)+"M",
		"-machine", machine)
}

// argv returns QEMU's command line. It reads and writes nothing.
func (o Options) argv(p paths) ([]string, error) {
	if err := o.check(); err != nil {
		return nil, err
	}
	argv := o.hardware()
	argv[len(argv)-1] += ",memory-backend=ram"
	argv = append(argv,
		"-object", fmt.Sprintf("memory-backend-file,id=ram,share=on,size=%dM,mem-path=%s", o.Memory/phys.MiB, p.ram),
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
	for _, f := range []struct{ flag, value string }{{"-kernel", o.Kernel}, {"-initrd", o.Initrd}, {"-append", o.Append}} {
		if f.value != "" {
			argv = append(argv, f.flag, f.value)
		}
	}
	if o.Flash != "" {
		argv = append(argv, "-drive", "if=pflash,unit=1,format=raw,readonly=on,file="+o.Flash)
	}
	for _, b := range o.Blobs {
		argv = append(argv, "-device", fmt.Sprintf("loader,file=%s,addr=%#x,force-raw=on", b.File, b.Addr))
	}
	if len(o.Blobs) > 0 {
		argv = append(argv, "-device", fmt.Sprintf("loader,addr=%#x,cpu-num=0", o.Entry))
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
