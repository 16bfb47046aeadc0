package main

import (
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/warmcore/warmcore/pkg/manifest"
	"github.com/warmcore/warmcore/pkg/registration"
	"github.com/warmcore/warmcore/pkg/target"
)

// A kill at any number of bytes leaves what is no dump, under a name that says
// so, and the next run does not mind it. A kill between the renames of a split
// dump leaves parts without the first one; those the next run doesn't touch, but
// says what they are.
func TestConvertKilled(t *testing.T) {
	b := newBench(t)
	if b == nil {
		return
	}
	killed := 0
	for i, f := range outForms() {
		f.written(b)
		points := int64(2)
		if i == 0 {
			points = 6
		}
		for at := range points + 1 {
			p := b.command(f.convert(b)...).pause(slow).start()
			if p.wait(f.bytes * at / points) {
				p.cmd.Process.Kill()
				killed++
			}
			<-p.done
			if slices.Contains(b.files(""), "out"+f.suffix[0]) {
				b.whole(f.files("out")...) // the kill was too late
				b.run(exitRefused, "exists already", f.convert(b)...)
				b.clear()
				continue
			}
			if left := b.files(""); slices.ContainsFunc(left, func(name string) bool { return !strings.Contains(name, "-incomplete") }) {
				b.run(exitRefused, "exists already, without "+b.path("out"+f.suffix[0]), f.convert(b)...)
				if diff := cmp.Diff(left, b.files("")); diff != "" {
					t.Errorf("%s: files that were left (-before +after the second run):\n%s", f.name, diff)
				}
				b.clear()
				continue
			}
			// In the last moments it is a dump that lacks nothing but its name.
			if d, err := b.open(f.files("out-incomplete")...); err == nil && !d.Info().Incomplete {
				b.whole(f.files("out-incomplete")...)
			}
			b.untouched()
			b.run(exitDone, "", f.convert(b)...)
			b.whole(f.files("out")...)
			if diff := cmp.Diff(f.files("out"), b.files("")); diff != "" {
				t.Errorf("%s: files after the second run (-want +got):\n%s", f.name, diff)
			}
			b.clear()
		}
	}
	if killed < 8 {
		t.Errorf("%d of 16 processes were killed", killed)
	}
	b.untouched()
}

func TestSaveKilled(t *testing.T) {
	b := newBench(t)
	if b == nil {
		return
	}
	for _, size := range []int64{0, 1, 1 << 20} {
		p := b.command("save").pause(slow).start()
		if !p.wait(size) {
			t.Fatalf("save was over before %d bytes: %s", size, p.stderr.String())
		}
		p.cmd.Process.Kill()
		<-p.done
		dirs := b.files("")
		dir := dirs[len(dirs)-1]
		if files := b.files(dir); slices.Contains(files, manifest.DumpName) || !slices.Contains(files, target.IncompleteName(manifest.DumpName, 0, 1)) {
			t.Fatalf("killed at %d bytes: %v", size, files)
		}
		if got := b.state(); got != registration.Capturing {
			t.Fatalf("state is %v after a kill", got)
		}
		b.untouched()
	}
	// The log stays, what was incomplete has made room, each time for the next.
	dirs := b.files("")
	last := dirs[len(dirs)-1]
	for _, dir := range dirs[:len(dirs)-1] {
		if slices.Contains(b.files(dir), target.IncompleteName(manifest.DumpName, 0, 1)) {
			t.Errorf("%s still has what was incomplete", dir)
		}
	}
	b.run(exitDone, "", "save", b.path(last))
	b.whole(filepath.Join(last, manifest.DumpName))
	if diff := cmp.Diff([]string{manifest.FileName, manifest.DumpName}, b.files(last)); diff != "" {
		t.Errorf("files (-want +got):\n%s", diff)
	}
	if got := b.state(); got != registration.Saved {
		t.Errorf("state is %v, want saved", got)
	}
	b.run(exitNothing, "saved already", "save")
}

func TestStopped(t *testing.T) {
	b := newBench(t)
	if b == nil {
		return
	}
	// What this test ignores, as a shell's background jobs do, its processes do.
	caught := make(chan os.Signal, 1)
	signal.Notify(caught, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	defer signal.Stop(caught)
	forms := outForms()
	for i, s := range []syscall.Signal{syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP} {
		p := b.command(forms[i].convert(b)...).startAndStop()
		p.signal(s)
		p.signal(syscall.SIGCONT)
		p.exit(exitFailed, s.String()+" signal received; what was written is removed")
		if got := b.files(""); len(got) > 0 {
			t.Errorf("%v left %v", s, got)
		}
	}
	b.run(exitDone, "", forms[0].convert(b)...)
	b.whole("out")
	b.clear()

	p := b.command("save", "--json", b.path("dump")).startAndStop()
	p.signal(syscall.SIGTERM)
	p.signal(syscall.SIGCONT)
	p.exit(exitFailed, "the dump is still offered")
	if !strings.Contains(p.stdout.String(), `"exit": 1`) {
		t.Errorf("save --json printed %s", p.stdout.String())
	}
	for _, name := range b.files("dump") {
		if name != manifest.LogName {
			t.Errorf("save left %s", name)
		}
	}
	if got := b.state(); got != registration.Capturing {
		t.Errorf("state is %v, want capturing", got)
	}
	b.untouched()
	// nohup, and shells for what is in the background, ignore signals.
	p = b.command()
	p.cmd.Args = []string{"sh", "-c", `trap "" HUP; exec "$0" "$@"`, os.Args[0], "save", b.path("dump")}
	p.cmd.Path = "/bin/sh"
	p.startAndStop()
	p.signal(syscall.SIGHUP)
	p.signal(syscall.SIGCONT)
	p.exit(exitDone, "")
	b.whole("dump/vmcore")
}

// Of two that want to write the same file one does.
func TestTwoAtOnce(t *testing.T) {
	b := newBench(t)
	if b == nil {
		return
	}
	for _, f := range outForms() {
		p := b.command(f.convert(b)...).startAndStop()
		b.run(exitRefused, "another process is writing", f.convert(b)...)
		p.signal(syscall.SIGCONT)
		p.exit(exitDone, "")
		b.whole(f.files("out")...)
		b.clear()
	}
	// With nobody stopped, whoever comes first wins.
	f := outForms()[0]
	a, c := b.command(f.convert(b)...).start(), b.command(f.convert(b)...).start()
	<-a.done
	<-c.done
	codes := []int{a.cmd.ProcessState.ExitCode(), c.cmd.ProcessState.ExitCode()}
	slices.Sort(codes)
	if diff := cmp.Diff([]int{exitDone, exitRefused}, codes); diff != "" {
		t.Errorf("exit codes (-want +got):\n%s%s%s", diff, a.stderr.String(), c.stderr.String())
	}
	b.whole("out")
	b.clear()

	p := b.command("save").startAndStop()
	b.run(exitRefused, "another warmcore is at work", "save")
	p.signal(syscall.SIGCONT)
	p.exit(exitDone, "")
	b.whole(b.files("")[0] + "/vmcore")
	b.clear()
	// Without the handoff area there is no lock but the file.
	if err := os.WriteFile(filepath.Join(b.root, "proc/cmdline"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	p = b.command("save", b.path("dump")).startAndStop()
	b.run(exitRefused, "another process is writing", "save", b.path("dump"))
	p.signal(syscall.SIGCONT)
	p.exit(exitDone, "")
	b.whole("dump/vmcore")
	b.clear()
	p = b.command("save").startAndStop()
	b.run(exitDone, "", "save") // into a directory of its own
	p.signal(syscall.SIGCONT)
	p.exit(exitDone, "")
	dirs := b.files("")
	if len(dirs) != 2 {
		t.Fatalf("two saves made %v", dirs)
	}
	b.whole(dirs[0] + "/vmcore")
	b.whole(dirs[1] + "/vmcore")
}

func TestTargetGone(t *testing.T) {
	b := newBench(t)
	if b == nil {
		return
	}
	const gone = "somebody has removed or replaced it"
	convert := []string{"convert", b.source(), b.path("dir/out")}
	save := []string{"save", b.path("dir")}
	for _, tc := range []struct {
		name string
		args []string
		do   func() error
		text string
		left []string // in dir
	}{
		{"directory removed", convert, func() error { return os.RemoveAll(b.path("dir")) }, gone, nil},
		{"directory removed, save", save, func() error { return os.RemoveAll(b.path("dir")) }, "the dump is still offered", nil},
		{"directory renamed", convert, func() error { return os.Rename(b.path("dir"), b.path("other")) }, gone, nil},
		{"file replaced", convert, func() error {
			name := b.path("dir/out-incomplete")
			if err := os.Remove(name); err != nil {
				return err
			}
			return os.WriteFile(name, []byte("another one's"), 0o600)
		}, gone, []string{"out-incomplete"}},
		{"unmounted", convert, func() error { return syscall.Unmount(b.out, syscall.MNT_DETACH) }, gone, nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if err := os.Mkdir(b.path("dir"), 0o700); err != nil {
				t.Fatal(err)
			}
			p := b.command(tc.args...).startAndStop()
			if err := tc.do(); err != nil {
				t.Fatal(err)
			}
			p.signal(syscall.SIGCONT)
			p.exit(exitFailed, tc.text)
			left, err := filepath.Glob(b.path("dir/*"))
			if err != nil {
				t.Fatal(err)
			}
			for i := range left {
				left[i] = filepath.Base(left[i])
			}
			if diff := cmp.Diff(tc.left, left); diff != "" {
				t.Errorf("files (-want +got):\n%s", diff)
			}
			b.untouched()
			b.clear()
		})
	}
	b.run(exitFailed, "no such file or directory", "convert", b.source(), b.path("missing/out"))
}

func TestPipeClosed(t *testing.T) {
	b := newBench(t)
	if b == nil {
		return
	}
	for _, args := range [][]string{{"convert", b.source(), "-"}, {"save", "-"}} {
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		p := b.command(args...)
		p.cmd.Stdout = w
		p.start()
		w.Close()
		if _, err := io.ReadFull(r, make([]byte, 64<<10)); err != nil {
			t.Fatal(err)
		}
		r.Close()
		p.exit(exitFailed, "broken pipe")
	}
	full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer full.Close()
	p := b.command("convert", b.source(), "-")
	p.cmd.Stdout = full
	p.start().exit(exitFailed, "no space left")
	if got := b.state(); got != registration.Capturing {
		t.Errorf("state is %v, want capturing", got)
	}
	// Whoever read the messages has gone: the dump is saved all the same.
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	r.Close()
	p = b.command("save", "-v", b.path("dump"))
	p.cmd.Stderr = w
	p.start()
	w.Close()
	p.exit(exitDone, "")
	b.whole("dump/vmcore")
	b.untouched()
}
