// Package systemd_test lets systemd itself read the units in this folder.
//
// Invariant: systemd-analyze has nothing to say about them in a system where
// all of them are enabled, with kdump-tools beside them. It must be there: a
// missing tool fails the test. The story "debian" in vmtest runs them.
package systemd_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/warmcore/warmcore/pkg/settings"
)

var units = []string{"warmcore-sysctl.service", "warmcore-save.service", "warmcore-failed.service", "warmcore-arm.service", "warmcore-lend.service", "warmcore-keep.service", "warmcore-keep.timer"}

// kdumpTools is ordered as that of Debian 12's kdump-tools 1.8.1.
const kdumpTools = `[Unit]
Description=Kernel crash dump capture service
DefaultDependencies=no
After=local-fs.target
After=networking.service
Before=basic.target

[Service]
Type=oneshot
ExecStart=/usr/sbin/warmcore
RemainAfterExit=yes

[Install]
WantedBy=basic.target
`

func TestVerify(t *testing.T) {
	for _, c := range []struct {
		name     string
		old, new string // in each unit
		want     string // of what systemd-analyze says; "" for nothing at all
	}{
		{name: "as they are"},
		{name: "ordering cycle", old: "After=local-fs.target", new: "After=basic.target", want: "ordering cycle"},
		{name: "unknown key", old: "ExecStart=/usr/sbin/warmcore arm", new: "ExecArm=/usr/sbin/warmcore arm", want: "Unknown key 'ExecArm'"},
		{name: "missing program", old: "/usr/sbin/warmcore save", new: "/usr/sbin/elsewhere save", want: "not executable"},
	} {
		t.Run(c.name, func(t *testing.T) {
			root := t.TempDir()
			install(t, root, func(unit string) string { return strings.ReplaceAll(unit, c.old, c.new) })
			args := append([]string{"--root", root, "--man=no", "verify", "basic.target", "multi-user.target", "kdump-tools.service"}, units...)
			out, err := exec.Command("systemd-analyze", args...).CombinedOutput()
			if c.want == "" && (err != nil || len(out) > 0) {
				t.Errorf("systemd-analyze verify: %v, want no complaint\n%s", err, out)
			}
			if !strings.Contains(string(out), c.want) {
				t.Errorf("systemd-analyze verify: %v, want %q\n%s", err, c.want, out)
			}
		})
	}
}

// install makes a system in root with this host's own units and ours.
func install(t *testing.T, root string, change func(string) string) {
	t.Helper()
	system := filepath.Join(root, "usr/lib/systemd/system")
	presets := filepath.Join(root, "usr/lib/systemd/system-preset")
	dropIn := filepath.Join(root, "etc/systemd/system/kdump-tools.service.d")
	for _, dir := range []string{filepath.Dir(system), presets, dropIn, filepath.Join(root, "usr/sbin"), filepath.Join(root, "bin")} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	run(t, "cp", "-a", "/usr/lib/systemd/system", system)
	for _, program := range []string{"usr/sbin/warmcore", "bin/sh"} {
		write(t, filepath.Join(root, program), "#!/bin/sh\n", 0o755)
	}
	write(t, filepath.Join(system, "kdump-tools.service"), kdumpTools, 0o644)
	for _, name := range units {
		write(t, filepath.Join(system, name), change(read(t, name)), 0o644)
	}
	write(t, filepath.Join(presets, "90-warmcore.preset"), read(t, "90-warmcore.preset"), 0o644)
	write(t, filepath.Join(dropIn, "10-warmcore.conf"), read(t, "kdump-tools.service.d/10-warmcore.conf"), 0o644)
	run(t, "systemctl", append([]string{"--root", root, "preset"}, units...)...)
	run(t, "systemctl", "--root", root, "enable", "kdump-tools.service")
	for _, link := range []string{"sysinit.target.wants/warmcore-sysctl.service", "basic.target.wants/warmcore-save.service", "basic.target.wants/warmcore-arm.service", "multi-user.target.wants/warmcore-lend.service", "timers.target.wants/warmcore-keep.timer"} {
		if _, err := os.Lstat(filepath.Join(root, "etc/systemd/system", link)); err != nil {
			t.Errorf("preset left out %v", err)
		}
	}
}

func run(t *testing.T, name string, args ...string) {
	t.Helper()
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s %v: %v\n%s", name, args, err, out)
	}
}

func read(t *testing.T, name string) string {
	t.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func write(t *testing.T, name, text string, mode os.FileMode) {
	t.Helper()
	if err := os.WriteFile(name, []byte(text), mode); err != nil {
		t.Fatal(err)
	}
}

// TestSysctl runs what the units give to the shell, with another /run. What is
// read is this machine's: files of /proc/sys are read in a way that no other
// file is.
func TestSysctl(t *testing.T) {
	root := t.TempDir()
	pages, oom := strings.TrimSpace(read(t, "/proc/sys/vm/nr_hugepages")), read(t, "/proc/sys/vm/panic_on_oom")
	sysctl := filepath.Join(root, "systemd-sysctl")
	write(t, sysctl, "#!/bin/sh\necho \"$@\" >"+root+"/set\n", 0o755)
	if err := os.MkdirAll(filepath.Join(root, "run"), 0o755); err != nil {
		t.Fatal(err)
	}
	shell := func(key string) {
		t.Helper()
		_, command, ok := strings.Cut(read(t, "warmcore-sysctl.service"), key+"=/bin/sh -c '")
		command, _, closed := strings.Cut(command, "'\n")
		if !ok || !closed {
			t.Fatalf("%s is no shell command", key)
		}
		run(t, "sh", "-c", strings.NewReplacer("$$", "$", " /run/", " "+root+"/run/", ">/run/", ">"+root+"/run/",
			">/proc/sys/vm/panic_on_oom", ">"+root+"/oom", "/usr/lib/systemd/systemd-sysctl", sysctl).Replace(command))
	}
	setting := filepath.Join(root, "run/sysctl.d/zzzz-warmcore.conf")
	shell("ExecStart")
	if got := read(t, setting); got != "vm.nr_hugepages="+pages+"\n-vm.nr_hugepages_mempolicy="+pages+"\nvm.panic_on_oom=0\n" {
		t.Errorf("%q, want %s pages, and no panic", got, pages)
	}
	shell("ExecStop")
	if _, err := os.Stat(setting); !os.IsNotExist(err) {
		t.Errorf("the setting stays: %v", err)
	}
	if got := read(t, filepath.Join(root, "oom")); got != oom {
		t.Errorf("panic_on_oom is %q again, want %q", got, oom)
	}
	if got := read(t, filepath.Join(root, "set")); got != "--prefix=/vm/nr_hugepages --prefix=/vm/nr_hugepages_mempolicy --prefix=/vm/panic_on_oom\n" {
		t.Errorf("systemd-sysctl was called with %q", got)
	}
}

// TestShutdown runs the hook of systemd-shutdown.
func TestShutdown(t *testing.T) {
	root := t.TempDir()
	hook := filepath.Join("system-shutdown", "warmcore")
	if st, err := os.Stat(hook); err != nil || st.Mode()&0o111 == 0 {
		t.Fatalf("systemd-shutdown doesn't run it: %v, %v", st.Mode(), err)
	}
	for _, c := range []struct{ name, cmdline, want string }{
		{"started by the payload", "quiet warmcore.handoff=0x20000000,0x200000 ro\n", "disarm\n"},
		{"not so", "quiet nowarmcore.handoff=1 ro\n", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			done := filepath.Join(root, "done")
			write(t, done, "", 0o644)
			write(t, filepath.Join(root, "cmdline"), c.cmdline, 0o644)
			write(t, filepath.Join(root, "warmcore"), "#!/bin/sh\necho \"$@\" >"+done+"\n", 0o755)
			script := strings.NewReplacer("/proc/cmdline", root+"/cmdline", "/usr/sbin/warmcore", root+"/warmcore").Replace(read(t, hook))
			run(t, "sh", "-c", script, "warmcore", "reboot")
			if got := read(t, done); got != c.want {
				t.Errorf("warmcore %q, want %q", got, c.want)
			}
		})
	}
}

// TestSaveIsBounded: basic.target waits for the save, so that has an end, after
// the one that the settings give it.
func TestSaveIsBounded(t *testing.T) {
	unit := read(t, "warmcore-save.service")
	_, text, _ := strings.Cut(unit, "\nTimeoutStartSec=")
	text, _, _ = strings.Cut(text, "\n")
	d, err := time.ParseDuration(strings.TrimSuffix(text, "in")) // systemd says min
	if err != nil || d <= settings.Default.SaveTimeout {
		t.Errorf("TimeoutStartSec=%s, %v; want more than %v", text, err, settings.Default.SaveTimeout)
	}
	if !strings.Contains(unit, "\nOnFailure=warmcore-failed.service\n") {
		t.Error("nothing happens after a failure")
	}
	if strings.Contains(unit, "OOMScoreAdjust=-") {
		t.Error("the kernel can't kill the save, and panics")
	}
}
