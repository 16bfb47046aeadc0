package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/warmcore/warmcore/pkg/agent"
	"github.com/warmcore/warmcore/pkg/outcome"
	"github.com/warmcore/warmcore/pkg/phys"
)

// machine is one that no payload started.
func machine(t *testing.T) agent.System {
	t.Helper()
	root := t.TempDir()
	for name, content := range map[string]string{
		"proc/cmdline":              "root=/dev/vda1\n",
		"proc/meminfo":              "MemTotal: 2048 kB\n",
		"proc/sys/kernel/osrelease": "6.12.0-test\n",
		"garbage":                   "this is no dump",
		"empty":                     "",
	} {
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := syscall.Mkfifo(filepath.Join(root, "pipe"), 0o600); err != nil {
		t.Fatal(err)
	}
	return agent.System{Root: root, EUID: func() int { return 0 }}
}

func TestRun(t *testing.T) {
	for _, tc := range []struct {
		name           string
		args           []string
		want           int
		stdout, stderr string // part of it
	}{
		{"nothing", nil, exitUsage, "", "usage: warmcore VERB"},
		{"help", []string{"help"}, exitDone, "exit codes:", ""},
		{"help flag", []string{"--help"}, exitDone, "examples:", ""},
		{"help of a verb", []string{"release", "--help"}, exitDone, "-discard", ""},
		{"help with a verb", []string{"help", "release"}, exitDone, "usage: warmcore release [FLAGS]\n", ""},
		{"help with no verb's name", []string{"help", "dump"}, exitUsage, "", `warmcore: "dump" is no verb`},
		{"version", []string{"version"}, exitDone, "warmcore ", ""},
		{"version flag", []string{"--version"}, exitDone, "warmcore ", ""},
		{"unknown verb", []string{"dump"}, exitUsage, "", `warmcore: "dump" is no verb`},
		{"unknown flag", []string{"arm", "--force"}, exitUsage, "", "warmcore: arm: flag provided but not defined: -force"},
		{"flag before the verb", []string{"-json", "status"}, exitUsage, "", "warmcore: -json: options follow the verb"},
		{"flag of another verb", []string{"save", "--discard"}, exitUsage, "", "warmcore: save: flag provided"},
		{"too many arguments", []string{"arm", "now"}, exitUsage, "", "warmcore: arm: too many arguments: 1, want at most 0: `warmcore arm --help`"},
		{"save to an empty name", []string{"save", ""}, exitUsage, "", "warmcore: save: an argument is empty"},
		{"dmesg of an empty name", []string{"dmesg", ""}, exitUsage, "", "warmcore: dmesg: an argument is empty"},
		{"status", []string{"status"}, exitRefused, "not armed: this kernel was not started by the warmcore payload", ""},
		{"status as JSON", []string{"status", "--json"}, exitRefused, `"armed": false`, ""},
		{"arm", []string{"arm"}, exitRefused, "", "warmcore: arm: this kernel was not started by the warmcore payload: no warmcore.handoff= on the kernel command line\nto do: install the payload"},
		{"disarm", []string{"disarm"}, exitRefused, "", "warmcore: disarm: this kernel"},
		{"save", []string{"save"}, exitRefused, "", "warmcore: save: this kernel"},
		{"save in an unknown format", []string{"save", "--format", "tar"}, exitUsage, "", `format "tar", want kdump or elf`},
		{"save with an unknown compression", []string{"save", "--compress", "lzo"}, exitUsage, "", `compression "lzo", want zstd`},
		{"save by an unknown way", []string{"save", "--read", "mem"}, exitUsage, "", `read from "mem": want vmcore or dax`},
		{"save at an unknown level", []string{"save", "-d", "99"}, exitUsage, "", "dump level 99"},
		{"save into too many files", []string{"save", "--split", "1000000"}, exitUsage, "", "1000000 files"},
		{"save by dax without a dump", []string{"save", "--read", "dax"}, exitRefused, "", "warmcore: save: this kernel"},
		{"convert nothing", []string{"convert", "garbage"}, exitUsage, "", "warmcore: convert: want the dump"},
		{"convert garbage", []string{"convert", "garbage", "new"}, exitFailed, "", "warmcore: convert: garbage: open dump:"},
		{"convert a missing file", []string{"convert", "missing", "new"}, exitFailed, "", "missing: no such file"},
		{"convert a directory", []string{"convert", "proc", "new"}, exitFailed, "", "open dump: proc is a directory: name the file in it"},
		{"convert an empty file", []string{"convert", "empty", "new"}, exitFailed, "", "open dump: empty: the file is empty"},
		{"convert a pipe", []string{"convert", "pipe", "new"}, exitFailed, "", "open dump: pipe is not a regular file"},
		{"convert to split ELF", []string{"convert", "--format", "elf", "--split", "2", "garbage", "new"}, exitUsage, "", "only kdump files that are not flattened can be split"},
		{"convert to split flattened", []string{"convert", "--flattened", "--split", "2", "garbage", "new"}, exitUsage, "", "only kdump files that are not flattened can be split"},
		{"convert to no files", []string{"convert", "--split", "0", "garbage", "new"}, exitUsage, "", "0 files, want 1 to 256"},
		{"convert with fewer than no workers", []string{"convert", "--workers", "-1", "garbage", "new"}, exitUsage, "", "-1 workers, want"},
		{"convert with too many workers", []string{"convert", "--workers", "1025", "garbage", "new"}, exitUsage, "", "1025 workers, want 1 to 1024"},
		{"convert with a level too many", []string{"convert", "--level", "23", "garbage", "new"}, exitUsage, "", "compression level 23, want 1 to 22"},
		{"convert at an unknown level", []string{"convert", "-d", "32", "garbage", "new"}, exitUsage, "", "dump level 32"},
		{"release", []string{"release"}, exitRefused, "", "warmcore: release: this kernel"},
		{"lend", []string{"lend"}, exitRefused, "", "warmcore: lend: this kernel"},
		{"reclaim", []string{"reclaim"}, exitRefused, "", "warmcore: reclaim: this kernel"},
		{"log", []string{"log"}, exitRefused, "", "warmcore: log: this kernel"},
		{"dmesg", []string{"dmesg"}, exitRefused, "", "warmcore: dmesg: this kernel"},
		{"dmesg of a missing file", []string{"dmesg", "missing"}, exitFailed, "", "missing: no such file"},
		{"dmesg of a directory", []string{"dmesg", "proc"}, exitFailed, "", "open dump: proc is a directory"},
		{"dmesg of an empty file", []string{"dmesg", "empty"}, exitFailed, "", "open dump: empty: the file is empty"},
		{"dmesg of a pipe", []string{"dmesg", "pipe"}, exitFailed, "", "open dump: pipe is not a regular file"},
		{"inspect a pipe", []string{"inspect", "pipe"}, exitFailed, "", "open dump: pipe is not a regular file"},
		{"dmesg of garbage", []string{"dmesg", "garbage"}, exitFailed, "", "warmcore: dmesg: read "},
		{"flag behind the argument", []string{"dmesg", "garbage", "--json"}, exitFailed, `"exit": 1`, "warmcore: dmesg: read "},
		{"wrong usage as JSON", []string{"convert", "--json"}, exitUsage, "", "warmcore: convert: want the dump"},
		{"refusal as JSON", []string{"arm", "--json"}, exitRefused, `"todo": "install the payload`, "warmcore: arm:"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			system := machine(t)
			t.Chdir(system.Root)
			var stdout, stderr bytes.Buffer
			got := run(tc.args, environment{stdout: &stdout, stderr: &stderr, system: system})
			if got != tc.want {
				t.Errorf("exit code %d, want %d", got, tc.want)
			}
			if !strings.Contains(stdout.String(), tc.stdout) || tc.stdout == "" && stdout.Len() > 0 {
				t.Errorf("stdout = %q, want %q", stdout.String(), tc.stdout)
			}
			if !strings.Contains(stderr.String(), tc.stderr) || tc.stderr == "" && stderr.Len() > 0 {
				t.Errorf("stderr = %q, want %q", stderr.String(), tc.stderr)
			}
			// Wrong usage is the one failure that prints no JSON.
			if tc.want == exitUsage && stdout.Len() > 0 {
				t.Errorf("stdout of wrong usage: %s", stdout.String())
			}
			if tc.want != exitUsage && strings.Contains(strings.Join(tc.args, " "), "--json") && !json.Valid(stdout.Bytes()) {
				t.Errorf("stdout is no JSON: %s", stdout.String())
			}
		})
	}
}

// Other users can't see whether the machine is armed, so the output must not say
// that it isn't.
func TestStatusWithoutRoot(t *testing.T) {
	system := machine(t)
	system.EUID = func() int { return 1000 }
	var stdout, stderr bytes.Buffer
	if got := run([]string{"status", "--json"}, environment{stdout: &stdout, stderr: &stderr, system: system}); got != exitRefused {
		t.Errorf("exit code %d, want %d", got, exitRefused)
	}
	want := "{\n  \"schema\": 1,\n  \"verb\": \"status\",\n  \"exit\": 3,\n" +
		"  \"error\": \"this needs root, and the user id is 1000\",\n  \"todo\": \"run it as root\"\n}\n"
	if diff := cmp.Diff(want, stdout.String()); diff != "" {
		t.Errorf("stdout (-want +got):\n%s", diff)
	}
}

// Memory blocks that could not be switched are printed with what was done.
func TestMovedInPart(t *testing.T) {
	var stdout, stderr bytes.Buffer
	c := &call{environment: environment{stdout: &stdout, stderr: &stderr}, options: options{json: true}}
	left := agent.LeftOver{Range: agent.MemoryRange{Start: "0x30000000", Bytes: 128 * phys.MiB}, Why: "busy"}
	err := c.moved(agent.Moved{Bytes: 1, Blocks: 1, Left: []agent.LeftOver{left}}, errors.New("reclaim: one is left"), "reclaimed")
	if got := c.finish("reclaim", err); got != exitFailed {
		t.Errorf("exit code %d, want %d", got, exitFailed)
	}
	var got agent.Moved
	if err := json.Unmarshal(stdout.Bytes(), &got); err != nil {
		t.Fatalf("%v: %s", err, stdout.String())
	}
	if diff := cmp.Diff([]agent.LeftOver{left}, got.Left); diff != "" {
		t.Errorf("left (-want +got):\n%s", diff)
	}
}

// The verbs' names are fixed, and each is in the usage text.
func TestVerbs(t *testing.T) {
	var text bytes.Buffer
	usage(&text)
	var names []string
	for _, v := range verbs {
		names = append(names, v.name)
		if !strings.Contains(text.String(), "\n  "+v.name) {
			t.Errorf("%s is not in the usage text", v.name)
		}
	}
	want := []string{"status", "arm", "disarm", "save", "release", "lend", "reclaim", "dmesg", "convert", "inspect", "log", "version"}
	if diff := cmp.Diff(want, names); diff != "" {
		t.Errorf("verbs (-want +got):\n%s", diff)
	}
}

func TestProgress(t *testing.T) {
	steps := func(l *progressLine) {
		for s := range time.Duration(13) {
			l.show(outcome.Progress{What: "save", Done: uint64(s) * 100 * phys.MiB, Total: 1200 * phys.MiB, Elapsed: s * time.Second})
		}
		l.end()
	}
	var console bytes.Buffer
	steps(newProgressLine(&console, false))
	want := "save: 500 MiB of 1.2 GiB (41%), 100 MiB/s, 7s left\n" +
		"save: 1000 MiB of 1.2 GiB (83%), 100 MiB/s, 2s left\n" +
		"save: 1.2 GiB of 1.2 GiB (100%), 100 MiB/s\n"
	if diff := cmp.Diff(want, console.String()); diff != "" {
		t.Errorf("on a console (-want +got):\n%s", diff)
	}
	console.Reset()
	phases := newProgressLine(&console, false)
	phases.show(outcome.Progress{What: "save (looking at pages)", Done: 1, Total: 2, Elapsed: time.Hour})
	phases.show(outcome.Progress{What: "save", Done: 100 * phys.MiB, Total: 200 * phys.MiB, Elapsed: 5 * time.Second})
	if want := "save: 100 MiB of 200 MiB (50%), 20 MiB/s, 5s left\n"; !strings.HasSuffix(console.String(), want) {
		t.Errorf("in the second phase: %q, want %q", console.String(), want)
	}
	var terminal bytes.Buffer
	steps(newProgressLine(&terminal, true))
	if got := terminal.String(); strings.Count(got, "\r") != 12 || strings.Count(got, "\n") != 1 || !strings.HasSuffix(got, "\n") {
		t.Errorf("on a terminal: %q, want 12 updates of one line", got)
	}
	var short bytes.Buffer
	l := newProgressLine(&short, false)
	l.show(outcome.Progress{What: "lend", Done: 1, Total: 1, Elapsed: time.Second})
	l.end()
	if short.Len() > 0 {
		t.Errorf("something short showed progress: %q", short.String())
	}
}

// Monitoring asks by the exit code.
func TestStatusCheck(t *testing.T) {
	var stdout, stderr bytes.Buffer
	if got := run([]string{"status", "--check"}, environment{stdout: &stdout, stderr: &stderr, system: machine(t)}); got != exitRefused {
		t.Errorf("exit code %d, want %d", got, exitRefused)
	}
	if !strings.HasPrefix(stdout.String(), "not armed: ") || stderr.Len() > 0 {
		t.Errorf("stdout %q, stderr %q; want the status and nothing else", stdout.String(), stderr.String())
	}
}
