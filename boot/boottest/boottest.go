// Package boottest runs a few hundred bytes of bare-metal x86-64 code in QEMU
// and reads the guest's memory after the guest has reset itself. It is for
// tests only.
//
// The machine stops at the reset, before anything of it is cleared. Nothing
// is judged by a console: what counts is memory, and the events of QEMU's
// machine protocol.
package boottest

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// Timeout bounds a run, from QEMU's start to the guest's reset. A run takes
// less than half a second on an idle machine.
const Timeout = 30 * time.Second

// paramsAddr is where testboot.S expects its parameters.
const paramsAddr = 0x500000

// Flags for testboot.S.
const (
	FlagLA57 = 1 << 0 // enter the image with 5-level paging
)

// Machine is what to run.
type Machine struct {
	CPUs   int
	Crash  uint32 // APIC ID of the CPU that enters the image
	Flags  uint32
	Entry  uint64 // where it enters, below 1 GiB
	Memory string // as QEMU's -m; empty is 1G

	// Load is bytes to put into guest memory before it starts, by address.
	Load map[uint64][]byte
}

// Result is a machine that has reset itself and is stopped.
type Result struct {
	t   testing.TB
	dir string
	out *json.Decoder
	in  io.Writer
	log string
}

// Assemble runs make for target in dir with the objects in a temporary
// folder, and returns what it made.
func Assemble(t testing.TB, dir, target string) []byte {
	t.Helper()
	tmp := t.TempDir()
	cmd := exec.Command("make", "-s", "-C", dir, "O="+tmp, filepath.Join(tmp, target))
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %v\n%s", cmd, err, out)
	}
	b, err := os.ReadFile(filepath.Join(tmp, target))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// Run starts m from the boot image, made from testboot.S, and returns when
// the guest has reset itself. It fails the test if the guest doesn't.
func (m Machine) Run(t testing.TB, boot []byte) *Result {
	t.Helper()
	dir := t.TempDir()
	file := func(name string, b []byte) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	memory := m.Memory
	if memory == "" {
		memory = "1G"
	}
	r := &Result{t: t, dir: dir, log: filepath.Join(dir, "qemu.log")}
	args := []string{
		"-nodefaults", "-no-user-config", "-display", "none", "-vga", "none",
		"-machine", "q35,memory-backend=ram", "-accel", "tcg,thread=multi", "-cpu", "max",
		"-object", "memory-backend-ram,id=ram,reserve=off,size=" + memory, "-m", memory,
		"-smp", fmt.Sprint(m.CPUs), "-net", "none",
		"-action", "reboot=shutdown,shutdown=pause", "-S", "-qmp", "stdio",
		"-d", "cpu_reset", "-D", r.log,
		"-kernel", file("testboot.bin", boot),
	}
	load := func(addr uint64, path string) {
		args = append(args, "-device", fmt.Sprintf("loader,file=%s,addr=%#x,force-raw=on", path, addr))
	}
	var params []byte
	for _, v := range []uint32{m.Crash, uint32(m.CPUs), m.Flags, uint32(m.Entry)} {
		params = binary.LittleEndian.AppendUint32(params, v)
	}
	load(paramsAddr, file("params", params))
	for addr, b := range m.Load {
		load(addr, file(fmt.Sprintf("load-%x", addr), b))
	}

	cmd := exec.Command("qemu-system-x86_64", args...)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	// A guest that hangs: QEMU's end closes the pipe, and the read fails.
	timer := time.AfterFunc(Timeout, func() { cmd.Process.Kill() })
	t.Cleanup(func() {
		timer.Stop()
		cmd.Process.Kill()
		cmd.Wait()
		if t.Failed() {
			t.Logf("qemu: %s", stderr.String())
		}
	})
	r.in, r.out = in, json.NewDecoder(out)
	if _, err := r.read(); err != nil {
		t.Fatalf("start qemu: %v: %s", err, stderr.String())
	}
	r.command("qmp_capabilities", nil)
	r.command("cont", nil)
	for {
		msg, err := r.read()
		if err != nil {
			t.Fatalf("wait for the guest's reset: %v", err)
		}
		if msg.Event == "SHUTDOWN" {
			if got, want := msg.Data.Reason, "guest-reset"; got != want {
				t.Fatalf("shutdown: reason %q, want %q", got, want)
			}
			return r
		}
	}
}

type message struct {
	Event  string
	Data   struct{ Reason string }
	Return json.RawMessage
	Error  *struct{ Desc string }
}

func (r *Result) read() (message, error) {
	var m message
	err := r.out.Decode(&m)
	return m, err
}

func (r *Result) command(name string, arguments map[string]any) json.RawMessage {
	r.t.Helper()
	req := map[string]any{"execute": name}
	if arguments != nil {
		req["arguments"] = arguments
	}
	if err := json.NewEncoder(r.in).Encode(req); err != nil {
		r.t.Fatalf("%s: %v", name, err)
	}
	for {
		m, err := r.read()
		switch {
		case err != nil:
			r.t.Fatalf("%s: %v", name, err)
		case m.Error != nil:
			r.t.Fatalf("%s: %s", name, m.Error.Desc)
		case m.Return != nil:
			return m.Return
		}
	}
}

// Memory returns size bytes of guest memory at the physical address addr.
func (r *Result) Memory(addr, size uint64) []byte {
	r.t.Helper()
	path := filepath.Join(r.dir, "memory")
	r.command("pmemsave", map[string]any{"val": addr, "size": size, "filename": path})
	b, err := os.ReadFile(path)
	if err != nil {
		r.t.Fatal(err)
	}
	return b
}

// Monitor returns what QEMU's human monitor says to command.
func (r *Result) Monitor(command string) string {
	r.t.Helper()
	var s string
	b := r.command("human-monitor-command", map[string]any{"command-line": command})
	if err := json.Unmarshal(b, &s); err != nil {
		r.t.Fatal(err)
	}
	return s
}

// TripleFault says whether the reset was one.
func (r *Result) TripleFault() bool {
	r.t.Helper()
	b, err := os.ReadFile(r.log)
	if err != nil {
		r.t.Fatal(err)
	}
	return strings.Contains(string(b), "Triple fault")
}
