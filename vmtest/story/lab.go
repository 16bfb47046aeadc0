// Package story has the crash stories: each takes a machine that really
// resets through a crash and compares the dump with QEMU's own view of its
// memory. README.md lists them.
//
// A story is a function of a Lab, which has built what it needs. The tests in
// this package run all of them; warmlab runs one and shows it.
package story

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/warmcore/warmcore/pkg/devicetree"
	"github.com/warmcore/warmcore/pkg/phys"
	"github.com/warmcore/warmcore/pkg/registration"
	"github.com/warmcore/warmcore/vmtest/debian"
	"github.com/warmcore/warmcore/vmtest/guest/build"
	"github.com/warmcore/warmcore/vmtest/guest/wire"
	"github.com/warmcore/warmcore/vmtest/machine"
	"github.com/warmcore/warmcore/vmtest/truth"
)

// Options say how to run a story; a zero value leaves the choice to the
// story.
type Options struct {
	Arch   string // amd64 or arm64
	Memory uint64 // bytes of RAM
	CPUs   int
	Cycles int // crashes in a row
	// Hypervisor lets an arm64 machine begin at EL2, where kernels then stay.
	Hypervisor bool
	// Kernel and Modules are a normal kernel and its lib/modules/RELEASE with
	// modules.dep, instead of what Debian has today.
	Kernel, Modules string
	// Release is the Debian release whose kernel is the normal one, such as
	// trixie-backports; empty means this host's release.
	Release  string
	Payload  string // "own" or "stock": our payload kernel or Debian's
	Trigger  string // sysrq-c, watchdog, ...
	Firmware string // what starts the payload: direct or uboot
	// PayloadDir has the payload kernel with the initramfs in it, of `make
	// images`: vmlinux or Image. By default it is that in build/.
	PayloadDir string
	Out        string // folder for report.json, the dump and logs
	Keep       bool   // keep the guest's RAM image at the reset
	// Say is called with each step, for a person who waits.
	Say func(format string, args ...any)
}

// Lab is what a running story works with.
type Lab struct {
	Options
	Report  *Report
	Machine *machine.Machine
	Guest   *machine.Guest
	// Programs are put into the guest beside warmcore: path there to path on
	// the host.
	Programs map[string]string

	ctx       context.Context
	story     Story
	board     *board
	files     built
	disk      debian.Image
	params    string            // kernel parameters beside the usual ones
	pad       int64             // of the initrd, in bytes
	size      int64             // of the disk, in bytes
	diskFiles map[string][]byte // put on the disk, or replaced there
	makeDisk  func() error      // in place of the usual disk
	qemuArgs  []string          // of the machine, beside the usual ones
	// changeRoot changes a whole Debian before it is put on the disk.
	changeRoot func(root string) error
	spoilTree  func(*devicetree.Tree) // changes the payload's device tree at the end
	booted     time.Duration
}

// built is shared by all stories.
type built struct {
	kernel debian.Kernel
	kmod   debian.Programs
	qemu   []string // for machine.Options
	// takesMemory says whether memory can come back to the kernel without a
	// reboot.
	takesMemory bool
	dir         string
	guest       string
	warmcore    string
	cache       string
}

// openGuest builds the guest's programs and unpacks Debian's kernel.
func openGuest(ctx context.Context, arch *debian.Arch, o Options) (b built, err error) {
	b.dir = o.Out
	if b.cache, err = debian.CacheDir(); err != nil {
		return b, err
	}
	if b.kmod, err = arch.OpenKmod(ctx, b.cache); err != nil {
		return b, err
	}
	if o.Kernel != "" {
		b.kernel = debian.Kernel{Arch: arch, Release: filepath.Base(o.Modules), Image: o.Kernel, Modules: o.Modules, Deb: o.Kernel}
	} else if b.kernel, err = debianKernel(ctx, b.cache, o.Release, b.kmod); err != nil {
		return b, err
	}
	if b.takesMemory, err = b.kernel.TakesMemory(); err != nil {
		return b, err
	}
	if o.Release != "" {
		if b.qemu, err = arch.NewQEMU(ctx, b.cache); err != nil {
			return b, err
		}
	}
	b.guest, b.warmcore = filepath.Join(b.dir, "guest"), filepath.Join(b.dir, "warmcore")
	return b, errors.Join(build.Guest(ctx, arch.Name, b.guest), build.Program(ctx, arch.Name, "./cmds/warmcore", b.warmcore))
}

// debianKernel returns the kernel that a Debian release has today.
func debianKernel(ctx context.Context, cache, release string, kmod debian.Programs) (debian.Kernel, error) {
	packages, err := kmod.Arch.KernelPackages(ctx, cache, release)
	if err != nil {
		return debian.Kernel{}, err
	}
	debs, err := kmod.Arch.DownloadAll(ctx, cache, release, packages...)
	if err != nil {
		return debian.Kernel{}, err
	}
	return debian.OpenKernel(ctx, cache, kmod, debs...)
}

// Step says what was done, to a person who waits and in the report.
func (l *Lab) Step(format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	if l.Machine != nil {
		l.Machine.Timeline.Note("step", text)
		events := l.Machine.Timeline.Events()
		l.Report.Timeline = append(l.Report.Timeline, TimelineEvent{T: round(events[len(events)-1].T.Seconds()), Event: text})
	}
	if l.Say != nil {
		l.Say("%s", text)
	}
}

func round(seconds float64) float64 { return float64(int64(seconds*1000)) / 1000 }

// Start builds the disk, switches the machine on and waits for user space.
func (l *Lab) Start() error {
	if err := l.powerOn(); err != nil {
		return err
	}
	return l.waitGuest()
}

// powerOn builds the disk and switches the machine on.
func (l *Lab) powerOn() error {
	if l.size == 0 {
		l.size = int64(l.Memory)*int64(max(l.Cycles, 1)) + 1<<30
	}
	l.disk.Path = filepath.Join(l.Out, "disk.img")
	makeDisk := l.smallDisk
	if l.makeDisk != nil {
		makeDisk = l.makeDisk
	}
	if err := makeDisk(); err != nil {
		return err
	}
	o := machine.Options{
		Arch: l.board.Arch, Memory: l.Memory, CPUs: l.CPUs, Disk: l.disk.Path, Hypervisor: l.Hypervisor, QEMU: l.files.qemu, Accel: l.accel(),
		Args: l.qemuArgs, Reproduce: l.reproduce(),
	}
	if l.Payload == "stock" {
		l.Report.PayloadKernel = "Debian " + l.files.kernel.Release
	} else {
		version, err := os.ReadFile(filepath.Join(l.PayloadDir, "version"))
		if err != nil {
			return fmt.Errorf("payload kernel: %w (make images ARCH=%s builds it)", err, l.board.Name)
		}
		l.Report.PayloadKernel = strings.SplitN(strings.TrimSpace(string(version)), "\n", 2)[0]
	}
	if err := l.board.payload(l, &o); err != nil {
		return err
	}
	var err error
	if l.Machine, err = machine.Start(l.ctx, o, l.Out); err != nil {
		return err
	}
	l.Step("power on: payload %s", l.Report.PayloadKernel)
	return nil
}

// reproduce is the command line that runs the story again.
func (l *Lab) reproduce() string {
	line := fmt.Sprintf("go run ./vmtest/warmlab run --arch %s --story %s", l.board.Name, l.story.Name)
	if l.Release != "" {
		line += " --release " + l.Release
	}
	return line
}

// smallDisk has Debian's kernel with an initrd of ours, whose process 1 is
// the guest program.
func (l *Lab) smallDisk() error {
	initrd := filepath.Join(l.Out, "initrd")
	contents := l.Initrd(l.files.guest)
	contents.Padding = l.pad
	contents.Files = map[string]string{"/bin/warmcore": l.files.warmcore}
	maps.Copy(contents.Files, l.Programs)
	if err := contents.Write(initrd); err != nil {
		return err
	}
	disk := debian.Disk{
		Size: l.size, Release: l.files.kernel.Release, Image: l.files.kernel.Image, Initrd: initrd,
		Params: l.cmdline(), Files: l.diskFiles,
	}
	return disk.Build(l.ctx, l.disk.Path)
}

// Initrd is that of the normal kernel, with its modules and the program init.
func (l *Lab) Initrd(init string) debian.Initrd {
	return debian.Initrd{Kernel: l.files.kernel, Kmod: l.files.kmod, Init: init}
}

// Extract takes a file from the disk of a machine that is off.
func (l *Lab) Extract(name, to string) error { return l.disk.Extract(l.ctx, name, to) }

// stockInitramfs builds the initramfs with Debian's modules in it.
func (l *Lab) stockInitramfs(file string) error {
	l.Step("building the payload's initramfs, with modules of Debian's kernel")
	root := filepath.Join(l.files.kernel.Modules, "../../..")
	out, err := output(l.ctx, "", "initramfs/build.sh", l.board.Name, file, "xz", root)
	if err != nil {
		return fmt.Errorf("initramfs/build.sh: %w\n%s", err, out)
	}
	return nil
}

// rewriteGRUB replaces a parameter in grub.cfg on the disk of a machine that
// stands still and has nothing of it mounted for writing.
func (l *Lab) rewriteGRUB(old, new string) error {
	cfg, err := debian.GRUBConfig(l.files.kernel.Release, strings.Replace(l.cmdline(), old, new, 1))
	if err != nil {
		return err
	}
	return l.disk.Replace(l.ctx, debian.GRUBConfigPath, cfg)
}

// cmdline returns the boot entry's parameters after root= and ro, as Debian's
// installer leaves them: quiet, and the console where a serial one was chosen.
// A story adds l.params.
func (l *Lab) cmdline() string {
	return strings.TrimSpace(l.emulated("quiet console="+l.board.Console) + " " + l.params)
}

// emulated adds to a command line what kernels need on an emulated machine.
func (l *Lab) emulated(cmdline string) string {
	if l.accel() == machine.KVM || l.board.emulated == "" {
		return cmdline
	}
	return cmdline + " " + l.board.emulated
}

// accel is what executes the guest's instructions.
func (l *Lab) accel() machine.Accel { return machine.Accel(l.Report.Accel) }

// waitGuest waits for the normal kernel's user space and books the boot.
func (l *Lab) waitGuest() error {
	g, err := l.Machine.WaitGuest(l.ctx)
	if err != nil {
		return err
	}
	l.Guest = g
	if len(g.Notes) > 0 {
		return l.Machine.Fail("boot", fmt.Errorf("the guest complains: %s", g.Notes[0].Message.Text))
	}
	l.Report.Boots = append(l.Report.Boots, Boot{Kind: g.Kind, Seconds: l.seconds(g.Event.T)})
	if b, err := l.Registration(); err == nil { // without a plan there is none
		if err := l.writePlan(b); err != nil {
			return err
		}
	}
	l.Step("%s boot of %s: user space is up, MemTotal %s", g.Kind, g.Release, phys.FormatSize(g.MemTotalKiB*phys.KiB))
	return nil
}

// handedOver matches the payload's last line, which it prints when everything
// is in H.
func handedOver(e machine.Event) bool {
	return e.Source == machine.FromConsole && strings.HasSuffix(strings.TrimSpace(e.Text), "warmcore: start")
}

// seconds divides the time between the reset and user space at up. The
// payload's own clock tells how long it ran; the kernel's part includes
// its decompression, which is before its clock starts.
func (l *Lab) seconds(up time.Duration) (s Seconds) {
	for _, e := range l.Machine.Timeline.Events() {
		if e.T >= l.booted && handedOver(e) {
			var clock float64
			if _, err := fmt.Sscanf(e.Text, "[%f]", &clock); err != nil {
				continue
			}
			s.Payload = round(clock)
			s.Firmware = round(max(0, (e.T-l.booted).Seconds()-clock))
			s.Kernel = round((up - e.T).Seconds())
		}
	}
	return s
}

// readHandoff returns a copy of H from the machine's memory.
func (l *Lab) readHandoff() ([]byte, error) {
	b := make([]byte, l.board.handoff.Size())
	return b, l.Machine.Peek(l.board.handoff.Start, b)
}

// Registration returns the registration that is in H now.
func (l *Lab) Registration() (*registration.Block, error) {
	h, err := l.readHandoff()
	if err != nil {
		return nil, err
	}
	return registration.Load(h)
}

// PayloadLog is the payload's log of this boot.
func (l *Lab) PayloadLog() (string, error) {
	h, err := l.readHandoff()
	if err != nil {
		return "", err
	}
	current, _, err := registration.DecodeLogs(h)
	return string(current.Text), err
}

// reset waits for the guest's reset, takes the truth, and resets.
func (l *Lab) reset() (*truth.RAM, error) {
	if err := l.Machine.WaitReset(l.ctx); err != nil {
		return nil, err
	}
	l.Step("reset: memory kept")
	return l.resetPaused()
}

func (l *Lab) resetPaused() (*truth.RAM, error) {
	ram, err := l.Machine.CopyRAM(l.ctx)
	if err != nil {
		return nil, err
	}
	events := l.Machine.Timeline.Events()
	l.booted = events[len(events)-1].T
	return ram, l.Machine.Reset(l.ctx)
}

// triggerOn ends the guest in the manner of t.
func (l *Lab) triggerOn(t wire.Trigger) error {
	l.Step("trigger: %s on CPU %d", t.Kind, t.CPU)
	return l.Guest.Trigger(l.ctx, t)
}

// Warmcore runs verbs of the agent, one after the other.
func (l *Lab) Warmcore(verbs ...string) error {
	for _, verb := range verbs {
		if _, err := l.Command("warmcore", verb); err != nil {
			return err
		}
	}
	return nil
}

// Command runs a command in the guest and says what it printed.
func (l *Lab) Command(argv ...string) (string, error) {
	out, err := l.Guest.MustRun(l.ctx, argv...)
	if err != nil {
		return "", l.Machine.Fail(strings.Join(argv, " "), err)
	}
	lines := strings.Split(strings.TrimSpace(out), "\n")
	l.Step("%s: %s", strings.Join(argv, " "), lines[len(lines)-1])
	return out, nil
}

// refused runs a command that must end with the exit code and say want.
func (l *Lab) refused(code int, want string, argv ...string) error {
	r, err := l.Guest.Run(l.ctx, argv...)
	if err != nil {
		return err
	}
	if r.Exit != code || !strings.Contains(r.Stderr, want) {
		return l.Machine.Fail(strings.Join(argv, " "), fmt.Errorf("exit %d, %q; want exit %d and %q", r.Exit, r.Stderr, code, want))
	}
	l.Step("%s: exit %d: %s", strings.Join(argv, " "), r.Exit, strings.TrimSpace(r.Stderr))
	return nil
}

func (l *Lab) memTotal() (uint64, error) {
	info, err := l.Guest.MemInfo(l.ctx)
	return info["MemTotal"], err
}

// want fails the story unless the boot is of this kind.
func (l *Lab) want(kind string) error {
	if l.Guest.Kind != kind {
		log, _ := l.PayloadLog()
		return l.Machine.Fail("boot", fmt.Errorf("%s boot, want a %s boot; the payload said:\n%s", l.Guest.Kind, kind, log))
	}
	return nil
}

// wantLog fails the story unless the payload logged text.
func (l *Lab) wantLog(text string) error {
	log, err := l.PayloadLog()
	if err != nil {
		return l.Machine.Fail("payload's log", err)
	}
	if !strings.Contains(log, text) {
		return l.Machine.Fail("payload's log", fmt.Errorf("no %q in:\n%s", text, log))
	}
	return nil
}

// PowerOff ends the machine, so that its disk can be looked into.
func (l *Lab) PowerOff() error {
	if err := l.Guest.Trigger(l.ctx, wire.Trigger{Kind: wire.PowerOff}); err != nil {
		return err
	}
	return l.Machine.WaitPowerOff(l.ctx)
}
