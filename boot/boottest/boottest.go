// Package boottest runs a few hundred bytes of bare-metal x86-64 or arm64 code
// in QEMU and reads the guest's memory after the guest has reset itself. It is
// for tests only.
//
// The machine stops at the reset, before any of its state is cleared. Tests
// don't look at a console: they check memory and the events of QEMU's machine
// protocol.
package boottest

import (
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
// less than half a second on an idle machine; the bound is for a busy one.
const Timeout = 2 * time.Minute

// Result is a machine that has reset itself and is stopped.
type Result struct {
	t   testing.TB
	dir string
	out *json.Decoder
	in  io.Writer
	log string
}

// Assemble runs make for target in dir, with objects in a temporary folder,
// and returns the contents of the target.
func Assemble(t testing.TB, dir, target string) []byte {
	t.Helper()
	// go test doesn't know which files make reads, and would use a cached
	// result after they change.
	sources, err := filepath.Glob(filepath.Join(dir, "*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range sources {
		if _, err := os.Stat(path); err != nil {
			t.Fatal(err)
		}
	}
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

// files has the files of a machine's images and the arguments with which QEMU
// loads them.
type files struct {
	t    testing.TB
	dir  string
	args []string
}

// put writes b to a file and returns its path.
func (f *files) put(name string, b []byte) string {
	f.t.Helper()
	path := filepath.Join(f.dir, name)
	if err := os.WriteFile(path, b, 0o600); err != nil {
		f.t.Fatal(err)
	}
	return path
}

// load puts b into guest memory before it starts.
func (f *files) load(addr uint64, b []byte) {
	f.t.Helper()
	f.loader(f.put(fmt.Sprintf("load-%x", addr), b), addr, "")
}

// loader adds the QEMU device that loads path. A comma in its options is
// doubled.
func (f *files) loader(path string, addr uint64, more string) {
	path = strings.ReplaceAll(path, ",", ",,")
	f.args = append(f.args, "-device", fmt.Sprintf("loader,file=%s,addr=%#x,force-raw=on%s", path, addr, more))
}

// start runs qemu with f's arguments and those that all machines have, and
// returns when the guest has reset itself. It fails the test if the guest
// doesn't.
func (f *files) start(qemu, memory string) *Result {
	t := f.t
	t.Helper()
	r := &Result{t: t, dir: f.dir, log: filepath.Join(f.dir, "qemu.log")}
	cmd := exec.Command(qemu, append([]string{
		"-nodefaults", "-no-user-config", "-display", "none", "-vga", "none", "-net", "none",
		"-accel", "tcg,thread=multi",
		"-object", "memory-backend-ram,id=ram,reserve=off,size=" + memory, "-m", memory,
		"-action", "reboot=shutdown,shutdown=pause", "-S", "-qmp", "stdio",
		"-d", "cpu_reset", "-D", r.log,
	}, f.args...)...)
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
	// If the guest hangs, the end of QEMU closes the pipe and the read
	// fails.
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
		t.Fatalf("start %s: %v: %s", qemu, err, stderr.String())
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

// Monitor returns the answer of QEMU's human monitor to command.
func (r *Result) Monitor(command string) string {
	r.t.Helper()
	var s string
	b := r.command("human-monitor-command", map[string]any{"command-line": command})
	if err := json.Unmarshal(b, &s); err != nil {
		r.t.Fatal(err)
	}
	return s
}
