package main

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/warmcore/warmcore/pkg/agent"
	"github.com/warmcore/warmcore/pkg/oldmem/oldmemtest"
	"github.com/warmcore/warmcore/pkg/phys"
	"github.com/warmcore/warmcore/pkg/registration"
	"github.com/warmcore/warmcore/pkg/vmcore"
	"github.com/warmcore/warmcore/pkg/vmcore/dumpfile"
	"github.com/warmcore/warmcore/pkg/vmcore/vmcoretest"
)

// processRoot makes the test program warmcore itself, on the machine whose files
// are below the variable's value.
const processRoot = "WARMCORE_TEST_ROOT"

// processPause is what looking at the clock takes, which is done for each batch
// of pages: a test must be fast enough to see how far a process is.
const (
	processPause = "WARMCORE_TEST_PAUSE"
	// At the third look, when the files are there, the process stops itself.
	processStop = "WARMCORE_TEST_STOP"
	stopLook    = 3
	quick       = 3 * time.Millisecond
	slow        = 60 * time.Millisecond // where it must not be too late
)

func TestMain(m *testing.M) {
	if root := os.Getenv(processRoot); root != "" {
		pause, err := time.ParseDuration(os.Getenv(processPause))
		if err != nil {
			panic(err)
		}
		var looks atomic.Int32
		now := func() time.Time {
			time.Sleep(pause)
			if looks.Add(1) == stopLook && os.Getenv(processStop) != "" {
				syscall.Kill(syscall.Getpid(), syscall.SIGSTOP)
			}
			return time.Now()
		}
		os.Exit(run(os.Args[1:], environment{stdout: os.Stdout, stderr: os.Stderr, system: agent.System{Root: root, Now: now}}))
	}
	os.Exit(m.Run())
}

// The dump that processes work on: what grows, what shrinks and what vanishes
// when it is compressed.
const (
	processText = `
vmcoreinfo OSRELEASE=6.1.0-test
cpu 42
0x0-0x180000 raw random 1
0x180000-0x200000 raw text the quick brown fox
0x200000-0x280000 raw
0x280000-0x300000 raw random 2
`
	handoffStart = 4 << 20
	handoffSize  = 2 << 20
)

// bench is a small machine in a capture boot, on a file system of its own in
// memory, where processes are started and stopped.
type bench struct {
	*testing.T
	root string
	out  string // directory, on a file system whose size disk sets
	core vmcore.Dump
	sum  [sha256.Size]byte // of the source
}

// newBench returns nil where the test has run in a namespace, beside others.
func newBench(t *testing.T) *bench {
	t.Helper()
	t.Parallel()
	if !oldmemtest.Namespace(t) {
		return nil
	}
	b := &bench{T: t, root: t.TempDir()}
	b.out = filepath.Join(b.root, "var/crash")
	b.mount(b.root, "size=256m", 0)
	content := vmcoretest.Parse(t, processText).ELF(t)
	b.sum = sha256.Sum256(content)
	var err error
	if b.core, err = dumpfile.New(bytes.NewReader(content), int64(len(content))); err != nil {
		t.Fatal(err)
	}
	area := make([]byte, handoffSize)
	off, block, err := registration.Store(&registration.Block{State: registration.Capturing, Plan: []registration.PlanRange{
		{Role: registration.RoleHandoff, Range: phys.Range{Start: handoffStart, End: handoffStart + handoffSize}},
	}}, area)
	if err != nil {
		t.Fatal(err)
	}
	copy(area[off:], block)
	for name, content := range map[string][]byte{
		"proc/vmcore":              content,
		"proc/cmdline":             fmt.Appendf(nil, "warmcore.handoff=%#x,%#x elfcorehdr=1K@1M", handoffStart, handoffSize),
		"proc/sys/kernel/hostname": []byte("host"),
		"dev/mem":                  append(make([]byte, handoffStart), area...),
		"var/crash/.keep":          nil,
	} {
		path := filepath.Join(b.root, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, content, 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	b.mount(b.out, "size=128m", 0)
	t.Cleanup(func() {
		syscall.Unmount(b.out, 0)
		syscall.Unmount(b.root, 0)
	})
	return b
}

func (b *bench) mount(dir, options string, flags uintptr) {
	b.Helper()
	if err := syscall.Mount("none", dir, "tmpfs", flags, options); err != nil {
		b.Fatalf("mount tmpfs at %s: %v", dir, err)
	}
}

// disk sets the size of the file system for dumps.
func (b *bench) disk(kib int64) {
	b.Helper()
	b.mount(b.out, fmt.Sprintf("size=%dk", kib), syscall.MS_REMOUNT)
}

func (b *bench) source() string          { return filepath.Join(b.root, "proc/vmcore") }
func (b *bench) path(name string) string { return filepath.Join(b.out, name) }

// clear removes what is in the directory for dumps.
func (b *bench) clear() {
	b.Helper()
	for _, name := range b.files("") {
		if err := os.RemoveAll(b.path(name)); err != nil {
			b.Fatal(err)
		}
	}
}

// files returns the names in a directory below that for dumps.
func (b *bench) files(dir string) (names []string) {
	b.Helper()
	entries, err := os.ReadDir(b.path(dir))
	if err != nil {
		b.Fatal(err)
	}
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

// untouched fails unless the source is what it was.
func (b *bench) untouched() {
	b.Helper()
	content, err := os.ReadFile(b.source())
	if err != nil || sha256.Sum256(content) != b.sum {
		b.Fatalf("the source has changed (%v)", err)
	}
}

func (b *bench) state() registration.State {
	b.Helper()
	mem, err := os.ReadFile(filepath.Join(b.root, "dev/mem"))
	if err != nil {
		b.Fatal(err)
	}
	block, err := registration.Load(mem[handoffStart:])
	if err != nil {
		b.Fatal(err)
	}
	return block.State
}

// open opens a dump of one file or several.
func (b *bench) open(names ...string) (vmcore.Dump, error) {
	b.Helper()
	var files []dumpfile.File
	for _, name := range names {
		content, err := os.ReadFile(b.path(name))
		if err != nil {
			return nil, err
		}
		files = append(files, dumpfile.File{ReaderAt: bytes.NewReader(content), Size: int64(len(content))})
	}
	return dumpfile.Join(files...)
}

// whole fails unless the files are the dump.
func (b *bench) whole(names ...string) {
	b.Helper()
	got, err := b.open(names...)
	if err != nil {
		b.Fatalf("open %v: %v", names, err)
	}
	if got.Info().Incomplete {
		b.Fatalf("%v is incomplete", names)
	}
	for _, r := range b.core.Info().Memory {
		x, y := make([]byte, r.Size()), make([]byte, r.Size())
		if err := errors.Join(b.core.ReadPhys(x, r.Start), got.ReadPhys(y, r.Start)); err != nil || !bytes.Equal(x, y) {
			b.Fatalf("memory %v of %v is not the source's (%v)", r, names, err)
		}
	}
}

// process is a warmcore.
type process struct {
	b      *bench
	cmd    *exec.Cmd
	stdout bytes.Buffer
	stderr bytes.Buffer
	done   chan struct{}
}

// command returns a process to start.
func (b *bench) command(args ...string) *process {
	b.Helper()
	p := &process{b: b, cmd: exec.Command(os.Args[0], args...), done: make(chan struct{})}
	// The race detector otherwise sleeps for a second at the end.
	p.cmd.Env = append(os.Environ(), processRoot+"="+b.root, "GORACE=atexit_sleep_ms=0")
	p.cmd.Stdout, p.cmd.Stderr = &p.stdout, &p.stderr
	return p.pause(quick)
}

func (p *process) pause(d time.Duration) *process {
	p.cmd.Env = append(p.cmd.Env, processPause+"="+d.String())
	return p
}

func (p *process) start() *process {
	p.b.Helper()
	if err := p.cmd.Start(); err != nil {
		p.b.Fatal(err)
	}
	go func() {
		defer close(p.done)
		p.cmd.Wait() // exit checks the exit code
	}()
	p.b.Cleanup(func() { p.cmd.Process.Kill(); <-p.done })
	return p
}

// exit waits for the end, and fails unless the exit code is want and the
// messages have text.
func (p *process) exit(want int, text string) {
	p.b.Helper()
	<-p.done
	if got := p.cmd.ProcessState.ExitCode(); got != want || !strings.Contains(p.stderr.String(), text) {
		p.b.Fatalf("%v: %v, %q; want exit code %d and %q", p.cmd.Args[1:], p.cmd.ProcessState, p.stderr.String(), want, text)
	}
}

func (b *bench) run(want int, text string, args ...string) {
	b.Helper()
	b.command(args...).start().exit(want, text)
}

// wait waits until files whose names have "-incomplete", in the directory for
// dumps or one below it, are there and have size bytes in all, and says whether
// that was before the process ended.
func (p *process) wait(size int64) bool {
	p.b.Helper()
	for {
		var have int64
		found := false
		for _, pattern := range []string{"*-incomplete*", "*/*-incomplete*"} {
			names, err := filepath.Glob(p.b.path(pattern))
			if err != nil {
				p.b.Fatal(err)
			}
			for _, name := range names {
				if st, err := os.Stat(name); err == nil {
					found = true
					have += st.Size()
				}
			}
		}
		if found && have >= size {
			return true
		}
		select {
		case <-p.done:
			return false
		case <-time.After(50 * time.Microsecond):
		}
	}
}

func (p *process) signal(s syscall.Signal) {
	p.b.Helper()
	if err := p.cmd.Process.Signal(s); err != nil {
		p.b.Fatalf("send %v: %v; %s", s, err, p.stderr.String())
	}
}

// startAndStop starts the process and waits until it has stopped itself.
func (p *process) startAndStop() *process {
	p.b.Helper()
	p.cmd.Env = append(p.cmd.Env, processStop+"=1")
	p.pause(slow).start()
	stat := fmt.Sprintf("/proc/%d/stat", p.cmd.Process.Pid)
	for {
		if b, err := os.ReadFile(stat); err == nil && bytes.Contains(b, []byte(") T ")) {
			return p
		}
		select {
		case <-p.done:
			p.b.Fatalf("%v was over at once: %s", p.cmd.Args[1:], p.stderr.String())
		case <-time.After(time.Millisecond):
		}
	}
}

// outForm is a form of a dump, and the files that it has.
type outForm struct {
	name   string
	args   []string
	suffix []string
	bytes  int64 // of all files; found out by written
}

func outForms() []outForm {
	return []outForm{
		{name: "kdump", suffix: []string{""}},
		{name: "ELF", args: []string{"--format", "elf"}, suffix: []string{""}},
		{name: "split", args: []string{"--split", "3"}, suffix: []string{".1", ".2", ".3"}},
		{name: "flattened", args: []string{"--flattened"}, suffix: []string{""}},
	}
}

func (f outForm) convert(b *bench) []string {
	return append([]string{"convert", b.source(), b.path("out")}, f.args...)
}

func (f outForm) files(base string) (names []string) {
	for _, s := range f.suffix {
		names = append(names, base+s)
	}
	return names
}

// written makes the dump once and notes its size.
func (f *outForm) written(b *bench) {
	b.Helper()
	b.run(exitDone, "", f.convert(b)...)
	b.whole(f.files("out")...)
	for _, name := range f.files("out") {
		st, err := os.Stat(b.path(name))
		if err != nil {
			b.Fatal(err)
		}
		f.bytes += st.Size()
	}
	b.clear()
}
