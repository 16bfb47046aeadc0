package agent

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/warmcore/warmcore/pkg/acpi/acpitest"
	"github.com/warmcore/warmcore/pkg/elfcore"
	"github.com/warmcore/warmcore/pkg/hotplug/hotplugtest"
	"github.com/warmcore/warmcore/pkg/outcome"
	"github.com/warmcore/warmcore/pkg/phys"
	"github.com/warmcore/warmcore/pkg/printk/printktest"
	"github.com/warmcore/warmcore/pkg/registration"
)

const testBlock = 128 * phys.MiB

func blocks(from, to uint64) phys.Range {
	return phys.Range{Start: from * testBlock, End: to * testBlock}
}

// The plan of the test machine, 2 GiB: the first blocks and the last are boot
// memory, the window is block 3, the handoff area is at the start of block 4.
var (
	testHandoff = phys.Range{Start: 512 * phys.MiB, End: 514 * phys.MiB}
	testPlan    = []registration.PlanRange{
		{Role: registration.RoleWindow, Range: blocks(3, 4)},
		{Role: registration.RoleHandoff, Range: testHandoff},
		{Role: registration.RoleBoot, Range: phys.Range{Start: phys.MiB, End: 384 * phys.MiB}},
		{Role: registration.RoleBoot, Range: phys.Range{Start: 514 * phys.MiB, End: 640 * phys.MiB}},
		{Role: registration.RoleBoot, Range: blocks(15, 16)},
		{Role: registration.RoleDestination, Range: blocks(10, 15)},
		{Role: registration.RolePreserved, Range: blocks(5, 10)},
	}
)

// machine is a fake machine: files below a directory, the handoff area, a
// kernel that reacts to what is written, and a list of what was done.
type testMachine struct {
	System
	t      *testing.T
	kernel *hotplugtest.Kernel
	memory handoffMemory
	done   []string // in order: "load", "unload", "state armed", "hide", ...
	stub   phys.Segment
	now    time.Time
}

// handoffMemory is physical memory with nothing but the handoff area.
type handoffMemory struct {
	bytes  []byte
	onSave func()
	err    error
}

func (m *handoffMemory) at(n int, addr uint64) ([]byte, error) {
	if addr < testHandoff.Start || addr+uint64(n) > testHandoff.End {
		return nil, fmt.Errorf("%d bytes at %#x are outside the handoff area", n, addr)
	}
	return m.bytes[addr-testHandoff.Start:][:n], m.err
}

func (m *handoffMemory) ReadPhys(p []byte, addr uint64) error {
	b, err := m.at(len(p), addr)
	copy(p, b)
	return err
}

func (m *handoffMemory) WritePhys(p []byte, addr uint64) error {
	b, err := m.at(len(p), addr)
	copy(b, p)
	if m.onSave != nil {
		m.onSave()
	}
	return err
}

const plainCmdline = "root=/dev/vda1 ro crashkernel=1M memhp_default_state=offline warmcore.handoff=0x20000000,0x200000"

// plainBoot is a machine in a plain boot that nobody armed.
func plainBoot(t *testing.T) *testMachine {
	t.Helper()
	m := &testMachine{t: t, now: time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)}
	root := t.TempDir()
	m.memory.bytes = make([]byte, testHandoff.Size())
	m.kernel = hotplugtest.New(t, root, testBlock, phys.NewSet(blocks(0, 3), blocks(5, 10), blocks(15, 16)))
	m.kernel.Soft = []phys.Range{blocks(3, 4), blocks(10, 15)}
	m.System = System{
		Arch:   "amd64",
		Root:   root,
		Memory: &m.memory,
		Load: func(entry uint64, segments []phys.Segment) error {
			m.did("load")
			m.stub = segments[0]
			return nil
		},
		Unload:   func() error { m.did("unload"); return nil },
		Modprobe: m.kernel.Modprobe,
		Write: func(path, data string) error {
			if filepath.Base(path) == "state" && !contains(m.done, "online") {
				m.did("online")
			}
			return m.kernel.Write(path, data)
		},
		Hide: func(path, cover string) error { m.did("hide"); return os.Truncate(path, 0) },
		Now:  func() time.Time { m.now = m.now.Add(time.Second); return m.now },
		EUID: func() int { return 0 },
	}
	m.file("proc/cmdline", plainCmdline+"\n")
	m.file("proc/iomem", "00001000-0009fbff : System RAM\n"+
		"00100000-17ffffff : System RAM\n"+
		"  10000000-100fffff : Crash kernel\n"+
		"20000000-201fffff : Reserved\n")
	m.file("proc/cpuinfo", "processor\t: 0\napicid\t\t: 0\nflags\t\t: fpu sme\n\nprocessor\t: 1\napicid\t\t: 2\nflags\t\t: fpu sme\n")
	m.file("proc/meminfo", "MemTotal:        1000 kB\nMemFree: 1 kB\n")
	m.file("proc/sys/kernel/osrelease", "6.12.0-test\n")
	m.file("proc/sys/kernel/hostname", "db/1\n")
	m.file("proc/sys/kernel/kexec_load_disabled", "0\n")
	m.file("proc/sys/kernel/random/boot_id", "00112233-4455-6677-8899-aabbccddeeff\n")
	m.file("sys/kernel/kexec_crash_size", "1048576\n")
	m.file("sys/kernel/kexec_crash_loaded", "0\n")
	m.file("sys/kernel/vmcoreinfo", "0x0000000001234000 1024\n")
	m.file("sys/kernel/security/lockdown", "[none] integrity confidentiality\n")
	note, err := elfcore.AppendNote(nil, elfcore.ELFNote{Name: "GNU", Type: 3, Desc: []byte{0xb1, 0xd}})
	if err != nil {
		t.Fatal(err)
	}
	m.file("sys/kernel/notes", string(note))
	for i, addr := range []string{"7f000000", "7f000200"} {
		m.file(fmt.Sprintf("sys/devices/system/cpu/cpu%d/crash_notes", i), addr+"\n")
		m.file(fmt.Sprintf("sys/devices/system/cpu/cpu%d/crash_notes_size", i), "368\n")
	}
	m.file("sys/devices/system/cpu/cpufreq/crash_notes", "not a CPU\n")
	m.file("sys/firmware/memmap/0/start", "0x0\n")
	m.file("sys/firmware/memmap/0/end", "0x9fbff\n")
	m.file("sys/firmware/memmap/0/type", "System RAM\n")
	facp := make([]byte, 244)
	binary.LittleEndian.PutUint32(facp[112:], 1<<10)
	facp[116] = 1 // I/O
	binary.LittleEndian.PutUint64(facp[120:], 0xcf9)
	facp[128] = 0xf
	m.file("sys/firmware/acpi/tables/FACP", string(acpitest.Table("FACP", 5, facp[36:])))
	m.file("proc/kcore", string(kcore(t)))
	m.setBlock(registration.Prearmed, nil)
	m.memory.onSave = func() { m.did("state " + m.block().State.String()) }
	return m
}

// captureBoot is a machine in a boot with a dump that is not saved.
func captureBoot(t *testing.T) *testMachine {
	t.Helper()
	m := plainBoot(t)
	m.kernel = hotplugtest.New(t, t.TempDir(), testBlock, phys.NewSet(blocks(0, 3), blocks(15, 16)))
	// One dax device for neighbours of both kinds.
	m.kernel.Soft = []phys.Range{blocks(3, 4), blocks(5, 15)}
	old := m.Root
	m.Root = m.kernel.Root
	if err := os.CopyFS(filepath.Join(m.Root, "proc"), os.DirFS(filepath.Join(old, "proc"))); err != nil {
		t.Fatal(err)
	}
	m.Modprobe = m.kernel.Modprobe
	for _, dir := range []string{"sys/kernel", "sys/firmware", "sys/devices/system/cpu"} {
		if err := os.CopyFS(filepath.Join(m.Root, dir), os.DirFS(filepath.Join(old, dir))); err != nil {
			t.Fatal(err)
		}
	}
	m.file("proc/cmdline", plainCmdline+" elfcorehdr=1K@0x200c0000\n")
	m.file("proc/vmcore", string(oldMemory(t)))
	save := m.memory.onSave
	m.memory.onSave = nil
	m.setBlock(registration.Capturing, func(b *registration.Block) {
		b.Capture = registration.Capture{Reason: registration.ReasonPanic, Copied: true, CPUsSeen: 2, CPUsFlushed: 2, Time: 1795348800}
		b.Identity = registration.Identity{Nonce: [16]byte{1}, Release: "6.12.0-test"}
		b.Counters.Attempts = 1
	})
	m.memory.onSave = save
	return m
}

func (m *testMachine) did(what string) { m.done = append(m.done, what) }

func contains(list []string, s string) bool {
	for _, x := range list {
		if x == s {
			return true
		}
	}
	return false
}

func (m *testMachine) file(name, content string) {
	m.t.Helper()
	path := filepath.Join(m.Root, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		m.t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		m.t.Fatal(err)
	}
}

func (m *testMachine) block() *registration.Block {
	m.t.Helper()
	b, err := registration.Load(m.memory.bytes)
	if err != nil {
		m.t.Fatal(err)
	}
	return b
}

// setBlock stores a block as the payload would.
func (m *testMachine) setBlock(state registration.State, change func(*registration.Block)) {
	m.t.Helper()
	b := &registration.Block{
		State: state, MapHash: [32]byte{0xab}, Plan: testPlan, PayloadVersion: "1.0",
		Policy:   registration.Policy{BlockSize: testBlock},
		Counters: registration.Counters{Boots: 7, PrearmStrikes: 1},
	}
	if change != nil {
		change(b)
	}
	off, data, err := registration.Store(b, m.memory.bytes)
	if err != nil {
		m.t.Fatal(err)
	}
	copy(m.memory.bytes[off:], data)
}

// kcore is the start of a /proc/kcore.
func kcore(t *testing.T) []byte {
	t.Helper()
	const notRAM = 1<<64 - 1
	b, err := elfcore.Header{Machine: elfcore.MachineAMD64, Loads: []elfcore.Load{
		{Virt: 0xffffffff9a000000, Phys: 0x12000000, Offset: 0x7fff9a003000, Size: 0x3400000},
		{Virt: 0xffffb12340000000, Phys: notRAM, Offset: 0x312340003000, Size: 0x1fffffffffff},
		{Virt: 0xffff8ab040001000, Phys: 0x1000, Offset: 0xab040004000, Size: 0x9e000},
		{Virt: 0xffff8ab040100000, Phys: 0x100000, Offset: 0xab040103000, Size: 0x7ff00000},
		{Virt: 0xffffffffc0000000, Phys: notRAM, Offset: 0x7fffc0003000, Size: 0x3f000000},
	}}.AppendBinary(nil)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// oldMemory is a small dump: VMCOREINFO, registers of two CPUs, a page of memory
// with a log in it, zeroes, and a page of data.
func oldMemory(t *testing.T) []byte {
	t.Helper()
	k := printktest.New()
	k.Print(0, "Linux version", printktest.Finalized)
	k.Print(1, "Kernel panic - not syncing", printktest.Finalized)
	var notes []byte
	for _, n := range []elfcore.ELFNote{
		{Name: elfcore.NameCore, Type: elfcore.TypePRStatus, Desc: make([]byte, 336)},
		{Name: elfcore.NameCore, Type: elfcore.TypePRStatus, Desc: make([]byte, 336)},
		{Name: elfcore.NameVMCoreInfo, Type: elfcore.TypeVMCoreInfo, Desc: []byte(printktest.VMCoreInfo + "CRASHTIME=1795348799\n")},
	} {
		var err error
		if notes, err = elfcore.AppendNote(notes, n); err != nil {
			t.Fatal(err)
		}
	}
	const memory = 4 << 20
	h := elfcore.Header{
		Machine: elfcore.MachineAMD64,
		Notes:   []elfcore.Note{{Offset: 4096, Size: uint64(len(notes))}},
		Loads:   []elfcore.Load{{Virt: printktest.Base, Offset: 3 * 4096, Size: memory}},
	}
	b, err := h.AppendBinary(nil)
	if err != nil {
		t.Fatal(err)
	}
	b = append(b, make([]byte, 3*4096+memory-len(b))...)
	copy(b[4096:], notes)
	copy(b[3*4096:], k.Memory)
	copy(b[len(b)-4096:], bytes.Repeat([]byte{0x5a}, 4096))
	return b
}

// wantRefusal fails unless err is a Refusal that says want.
func wantRefusal(t *testing.T, err error, want string) {
	t.Helper()
	var r *outcome.Refusal
	if !errors.As(err, &r) {
		t.Errorf("error = %v, want a refusal", err)
		return
	}
	if !bytes.Contains([]byte(r.What), []byte(want)) || r.Todo == "" {
		t.Errorf("refusal = %q, do %q; want one with %q", r.What, r.Todo, want)
	}
}

func wantNothing(t *testing.T, err error) {
	t.Helper()
	var n *outcome.Nothing
	if !errors.As(err, &n) {
		t.Errorf("error = %v, want that there is nothing to do", err)
	}
}
