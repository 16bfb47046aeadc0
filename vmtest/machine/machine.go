package machine

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/warmcore/warmcore/pkg/phys"
	"github.com/warmcore/warmcore/vmtest/command"
	"github.com/warmcore/warmcore/vmtest/holes"
	"github.com/warmcore/warmcore/vmtest/truth"
)

// Machine is a QEMU machine. Its methods are for one goroutine; the Timeline
// may be read from any.
type Machine struct {
	Timeline *Timeline

	opts    Options
	dir     string // logs
	sockets string
	ram     string // file of the RAM
	proc    *process
	booted  int // mark in the timeline: the CPUs run since
	copies  int // truths taken
	lastID  uint64
}

// Start makes a machine and runs it. Logs are put into dir, which must exist.
// RAM is a file in a tmpfs if that has room for it and for one copy, else in
// dir.
func Start(ctx context.Context, o Options, dir string) (*Machine, error) {
	if err := o.check(); err != nil {
		return nil, err
	}
	sockets, err := os.MkdirTemp("", "warmcore-rig") // short: a socket's path has at most 107 bytes
	if err != nil {
		return nil, err
	}
	m := &Machine{Timeline: newTimeline(), opts: o, dir: dir, sockets: sockets}
	ramDir, err := ramFolder(2*o.Memory, dir)
	if err == nil {
		ramDir, err = os.MkdirTemp(ramDir, "warmcore-ram")
		m.ram = filepath.Join(ramDir, "ram")
	}
	if err == nil {
		err = m.powerOn(ctx)
	}
	if err != nil {
		return nil, errors.Join(m.fail("start the machine", err), m.Close())
	}
	return m, nil
}

// tmpfs is where RAM files go if they fit.
const tmpfs = "/dev/shm"

// ramFolder returns tmpfs if it, and the host's memory, have need bytes and
// something to spare; else otherwise.
func ramFolder(need uint64, otherwise string) (string, error) {
	var fs unix.Statfs_t
	if err := unix.Statfs(tmpfs, &fs); err != nil {
		return otherwise, nil // no such file system: not an error
	}
	b, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return "", err
	}
	var available uint64
	for line := range strings.Lines(string(b)) {
		if _, err := fmt.Sscanf(line, "MemAvailable: %d kB", &available); err == nil {
			break
		}
	}
	const spare = phys.GiB
	if fs.Type == unix.TMPFS_MAGIC && min(fs.Bavail*uint64(fs.Bsize), available*phys.KiB) >= need+spare {
		return tmpfs, nil
	}
	return otherwise, nil
}

// powerOn starts QEMU with fresh RAM and lets the CPUs run.
func (m *Machine) powerOn(ctx context.Context) error {
	f, err := os.Create(m.ram)
	if err != nil {
		return err
	}
	if err := errors.Join(f.Truncate(int64(m.opts.Memory)), f.Close()); err != nil {
		return err
	}
	m.Timeline.Note("power-on", "")
	return m.launch(ctx)
}

// launch starts QEMU with the RAM that is there and lets the CPUs run.
func (m *Machine) launch(ctx context.Context) error {
	argv, err := m.opts.argv(paths{sockets: m.sockets, ram: m.ram, console: m.path("console.log")})
	if err != nil {
		return err
	}
	if err := os.WriteFile(m.path("qemu.argv"), []byte(command.Line(argv)+"\n"), 0o644); err != nil {
		return err
	}
	if m.proc, err = launch(ctx, argv, m.sockets, m.path("qemu.log"), m.Timeline); err != nil {
		return err
	}
	return m.cont(ctx)
}

func (m *Machine) path(name string) string { return filepath.Join(m.dir, name) }

// cont lets the CPUs run.
func (m *Machine) cont(ctx context.Context) error {
	m.booted = m.Timeline.Mark()
	return m.proc.qmp.do(ctx, "cont", nil, nil)
}

// fail makes a Failure of err; nil of nil.
func (m *Machine) fail(op string, err error) error {
	if err == nil {
		return nil
	}
	if f := (*Failure)(nil); errors.As(err, &f) {
		return err
	}
	if errors.Is(err, errLost) && m.proc != nil {
		err = m.proc.lost()
	}
	var cpus []string
	if errors.Is(err, ErrHung) {
		cpus = m.writeRegisters()
	}
	return &Failure{
		CPUs: cpus,
		Op:   op, Err: err, Dir: m.dir, Console: m.Timeline.Console(consoleLines),
		Reproduce: or(m.opts.Reproduce, "see "+m.path("qemu.argv")),
	}
}

// writeRegisters writes registers.txt with the state of a hanging machine's
// CPUs, twice, to see whether they move. It ignores errors, and returns the
// lines with the program counters.
func (m *Machine) writeRegisters() (cpus []string) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	var text strings.Builder
	for range 2 {
		var out string
		err := m.proc.qmp.do(ctx, "human-monitor-command", map[string]any{"command-line": "info registers -a"}, &out)
		if err != nil {
			out = err.Error()
		}
		text.WriteString(out + "\n")
		for line := range strings.Lines(out) {
			if strings.Contains(line, "IP=") || strings.Contains(line, "PC=") {
				cpus = append(cpus, strings.TrimSpace(line))
			}
		}
	}
	_ = os.WriteFile(m.path("registers.txt"), []byte(text.String()), 0o644) // the failure itself matters more
	return cpus
}

// Fail makes a Failure of a story's own error about this machine, so that it
// says the same as the rig's.
func (m *Machine) Fail(op string, err error) error { return m.fail(op, err) }

// Close ends QEMU and removes the RAM. Truths that were kept elsewhere stay.
func (m *Machine) Close() error {
	if m.proc != nil {
		m.proc.kill()
		m.proc = nil
	}
	var err error
	if m.ram != "" {
		err = os.RemoveAll(filepath.Dir(m.ram))
	}
	return errors.Join(err, os.RemoveAll(m.sockets))
}

// Wait returns the first event since the CPUs were last started by Start,
// Reset or PowerCycle that match accepts.
func (m *Machine) Wait(ctx context.Context, what string, match func(Event) bool) (Event, error) {
	e, _, err := m.Timeline.wait(ctx, m.proc.ended, m.booted, match)
	return e, m.fail("wait for "+what, err)
}

// qmpEvent returns a match for QEMU's event called name.
func qmpEvent(name string) func(Event) bool {
	return func(e Event) bool { return e.Source == FromQMP && e.Name == name }
}

// shutdownReason returns why QEMU shut the guest down (ShutdownCause in QEMU
// 7.2, qapi/run-state.json), "" if e isn't about that.
func shutdownReason(e Event) string {
	if !qmpEvent("SHUTDOWN")(e) {
		return ""
	}
	var d struct {
		Reason string `json:"reason"`
	}
	if err := json.Unmarshal(e.Data, &d); err != nil {
		return "unknown"
	}
	return d.Reason
}

// ShutdownReason is why the machine stands still.
type ShutdownReason string

// Reasons, in QEMU's words. A watchdog's reset is a guest's reset for QEMU;
// the event WATCHDOG comes before it.
const (
	GuestReset    ShutdownReason = "guest-reset"
	GuestShutdown ShutdownReason = "guest-shutdown"
)

// WaitReset waits until the guest has reset itself. The machine then stands
// still, before the first instruction of the firmware.
func (m *Machine) WaitReset(ctx context.Context) error { return m.waitStopped(ctx, GuestReset) }

// WaitPowerOff waits until the guest has switched itself off.
func (m *Machine) WaitPowerOff(ctx context.Context) error { return m.waitStopped(ctx, GuestShutdown) }

func (m *Machine) waitStopped(ctx context.Context, want ShutdownReason) error {
	op := fmt.Sprintf("wait for %s", want)
	e, next, err := m.Timeline.wait(ctx, m.proc.ended, m.booted, func(e Event) bool { return shutdownReason(e) != "" })
	if err == nil {
		_, _, err = m.Timeline.wait(ctx, m.proc.ended, next, qmpEvent("STOP"))
	}
	if err != nil {
		return m.fail(op, err)
	}
	if got := shutdownReason(e); got != string(want) {
		return m.fail(op, fmt.Errorf("the machine stopped for another reason: %s", got))
	}
	return nil
}

// Pause stops the CPUs from outside.
func (m *Machine) Pause(ctx context.Context) error {
	from := m.Timeline.Mark()
	err := m.proc.qmp.do(ctx, "stop", nil, nil)
	if err == nil {
		_, _, err = m.Timeline.wait(ctx, m.proc.ended, from, qmpEvent("STOP"))
	}
	return m.fail("pause", err)
}

// Resume lets the CPUs run again after Pause.
func (m *Machine) Resume(ctx context.Context) error {
	return m.fail("resume", m.proc.qmp.do(ctx, "cont", nil, nil))
}

// Reset resets the machine warm, with its RAM kept, and lets it run. It is for
// a machine that stands still after WaitReset or Pause, so that a copy of the
// RAM could be taken before.
//
// It returns at the first sign of life. One reset before that is the
// firmware's own and is followed: QEMU's q35 leaves its PAM registers as they
// were, so SeaBIOS finds its own used copy at the reset vector, replaces it
// with the original and resets once more (qemu_reboot in SeaBIOS 1.16,
// src/fw/shadow.c).
func (m *Machine) Reset(ctx context.Context) error {
	const op = "reset"
	if err := m.reset(ctx); err != nil {
		return m.fail(op, err)
	}
	e, _, err := m.Timeline.wait(ctx, m.proc.ended, m.booted, func(e Event) bool {
		return e.Source == FromConsole || e.Source == FromGuest || e.Source == FromPayload || shutdownReason(e) != ""
	})
	if err == nil && shutdownReason(e) == string(GuestReset) {
		m.Timeline.Note("firmware-reset", "")
		err = m.reset(ctx)
	}
	return m.fail(op, err)
}

func (m *Machine) reset(ctx context.Context) error {
	q, from := m.proc.qmp, m.Timeline.Mark()
	// system_reset obeys -action reboot= too (qemu_system_reset_request
	// in QEMU 7.2, softmmu/runstate.c).
	if err := q.do(ctx, "set-action", map[string]any{"reboot": "reset"}, nil); err != nil {
		return err
	}
	if err := q.do(ctx, "system_reset", nil, nil); err != nil {
		return err
	}
	if _, _, err := m.Timeline.wait(ctx, m.proc.ended, from, qmpEvent("RESET")); err != nil {
		return err
	}
	if err := q.do(ctx, "set-action", map[string]any{"reboot": "shutdown"}, nil); err != nil {
		return err
	}
	return m.cont(ctx)
}

// ResetInto resets the machine warm, with its RAM kept, into other firmware, as
// if the flash had been written while the machine ran. change changes the
// options that choose the firmware. The machine must stand still after
// WaitReset.
func (m *Machine) ResetInto(ctx context.Context, change func(o *Options)) error {
	m.proc.kill()
	change(&m.opts)
	m.Timeline.Note("reset", "into other firmware")
	return m.fail("reset into other firmware", m.launch(ctx))
}

// PowerCycle ends QEMU and starts it again with fresh RAM.
func (m *Machine) PowerCycle(ctx context.Context) error {
	m.proc.kill()
	// Not truncated: a new file has no pages that QEMU's old mapping holds.
	if err := os.Remove(m.ram); err != nil {
		return m.fail("cut the power", err)
	}
	return m.fail("power on", m.powerOn(ctx))
}

// InjectNMI sends a non-maskable interrupt to the CPUs, as the button on a
// server does.
func (m *Machine) InjectNMI(ctx context.Context) error {
	return m.fail("inject NMI", m.proc.qmp.do(ctx, "inject-nmi", nil, nil))
}

// Poke writes data to physical memory at addr. The machine should stand still.
func (m *Machine) Poke(addr uint64, data []byte) error {
	op := fmt.Sprintf("poke %d bytes at %#x", len(data), addr)
	r, ok := phys.Sized(addr, uint64(len(data)))
	layout := m.opts.arch().Layout(m.opts.Memory)
	off, in := layout.Offset(addr)
	if !ok || !in || !layout.RAM().Contains(r) {
		return m.fail(op, errors.New("not in RAM"))
	}
	f, err := os.OpenFile(m.ram, os.O_WRONLY, 0)
	if err != nil {
		return m.fail(op, err)
	}
	_, err = f.WriteAt(data, int64(off))
	return m.fail(op, errors.Join(err, f.Close()))
}

// Peek reads physical memory at addr into data.
func (m *Machine) Peek(addr uint64, data []byte) error {
	f, err := os.Open(m.ram)
	if err != nil {
		return m.fail("peek", err)
	}
	defer f.Close()
	_, err = truth.New(f, m.opts.arch().Layout(m.opts.Memory)).ReadAt(data, int64(addr))
	return m.fail(fmt.Sprintf("peek %d bytes at %#x", len(data), addr), err)
}

// CopyRAM copies the RAM of a machine that stands still. The copy lies where
// the RAM lies, and ends with the machine or with its Close.
func (m *Machine) CopyRAM(ctx context.Context) (*truth.RAM, error) {
	m.copies++
	path := filepath.Join(filepath.Dir(m.ram), fmt.Sprintf("truth-%d", m.copies))
	n, err := holes.Copy(ctx, path, m.ram)
	if err != nil {
		return nil, m.fail("copy the RAM", err)
	}
	m.Timeline.Note("ram-copied", fmt.Sprintf("%s of data", phys.FormatSize(uint64(n))))
	t, err := truth.Open(path, m.opts.arch().Layout(m.opts.Memory))
	return t, m.fail("copy the RAM", err)
}
