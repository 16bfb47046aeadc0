package main

import (
	"bytes"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/warmcore/warmcore/pkg/agent"
	"github.com/warmcore/warmcore/pkg/manifest"
	"github.com/warmcore/warmcore/pkg/registration"
	"github.com/warmcore/warmcore/pkg/vmcore/dumpfile"
	"github.com/warmcore/warmcore/pkg/vmcore/vmcoretest"
)

const fullStep = 512 // KiB

// The disk is full at each half of a MiB: nothing is left on it, and with room it goes.
func TestDiskFull(t *testing.T) {
	b := newBench(t)
	if b == nil {
		return
	}
	for _, f := range outForms() {
		refused := 0
		for size := int64(fullStep); ; size += fullStep {
			b.disk(size)
			exit, _, stderr := warmcore(f.convert(b)...)
			if exit == exitDone {
				break
			}
			refused++
			if exit != exitFailed || !strings.Contains(stderr, "no space left on device") || !strings.Contains(stderr, "were written") {
				t.Fatalf("%s on %d KiB: exit code %d, %s", f.name, size, exit, stderr)
			}
			if left := b.files(""); len(left) > 0 {
				t.Fatalf("%s on %d KiB left %v", f.name, size, left)
			}
			if size > 64<<10 {
				t.Fatalf("%s does not fit on %d KiB", f.name, size)
			}
		}
		if refused < 3 {
			t.Errorf("%s fits on %d KiB", f.name, (refused+1)*fullStep)
		}
		b.whole(f.files("out")...)
		b.clear()
		b.untouched()
	}
	system := agent.System{Root: b.root}
	for size := int64(fullStep); ; size += fullStep {
		b.disk(size)
		var stdout, stderr bytes.Buffer
		exit := run([]string{"save", b.path("dump")}, environment{stdout: &stdout, stderr: &stderr, system: system})
		if exit == exitDone {
			break
		}
		if exit != exitFailed || !strings.Contains(stderr.String(), "more are needed") || b.state() != registration.Capturing {
			t.Fatalf("save on %d KiB: exit code %d, state %v, %s", size, exit, b.state(), stderr.String())
		}
		for _, name := range b.files("dump") {
			if name != manifest.LogName {
				t.Fatalf("save on %d KiB left %s", size, name)
			}
		}
	}
	b.whole("dump/vmcore")
	if got := b.state(); got != registration.Saved {
		t.Errorf("state is %v, want saved", got)
	}
	b.clear()
	// A limit of the process, or of a file system that has small files only.
	b.disk(128 << 10)
	p := b.command()
	p.cmd.Path = "/bin/sh"
	p.cmd.Args = append([]string{"sh", "-c", `ulimit -f 2048; exec "$0" "$@"`, os.Args[0]}, outForms()[0].convert(b)...)
	p.start().exit(exitFailed, "file too large")
	if left := b.files(""); slices.Contains(left, "out") {
		t.Errorf("a dump that was cut off has a name: %v", left)
	}
	b.run(exitDone, "", outForms()[0].convert(b)...)
	b.whole("out")
}

// What is to be read is never what is replaced.
func TestConvertSpares(t *testing.T) {
	content := vmcoretest.Parse(t, "vmcoreinfo OSRELEASE=6\n0x0-0x3000 raw random 1").Kdump(t)
	files := map[string][]byte{"vmcore-incomplete": content, "vmcore": content}
	dumpFiles(t, files)
	for _, args := range [][]string{
		{"vmcore-incomplete", "vmcore"},
		{"vmcore", "vmcore"},
		{"--split", "2", "vmcore-incomplete", "vmcore"},
	} {
		exit, _, stderr := warmcore(append([]string{"convert"}, args...)...)
		if exit != exitRefused && exit != exitDone || exit == exitDone && args[0] != "--split" {
			t.Errorf("convert %v: exit code %d, %s", args, exit, stderr)
		}
		for name, want := range files {
			if got, err := os.ReadFile(name); err != nil || !bytes.Equal(got, want) {
				t.Errorf("convert %v changed %s (%v)", args, name, err)
			}
		}
	}
	if err := os.Remove("vmcore"); err != nil {
		t.Fatal(err)
	}
	exit, _, stderr := warmcore("convert", "vmcore-incomplete", "vmcore")
	if exit != exitRefused || !strings.Contains(stderr, "is to be read") {
		t.Errorf("exit code %d, %s; want a refusal", exit, stderr)
	}
	if got, err := os.ReadFile("vmcore-incomplete"); err != nil || !bytes.Equal(got, content) {
		t.Errorf("the source is gone: %v", err)
	}
}

// Sources that are cut off or lie give an error, or a dump that can be read; no
// crash, and nothing that has a name and is no dump.
func TestConvertBadSource(t *testing.T) {
	b := newBench(t)
	if b == nil {
		return
	}
	source, out := b.path("source"), b.path("out")
	s := vmcoretest.Parse(t, "vmcoreinfo OSRELEASE=6.1.0-test\ncpu 42\n0x0-0x8000 raw random 1\n0x10000-0x14000 zlib text lazy dog")
	good, bad := 0, 0
	for name, content := range map[string][]byte{"elf": s.ELF(t), "kdump": s.Kdump(t), "flat": vmcoretest.Flatten(t, s.Kdump(t), 5000)} {
		var sources [][]byte
		for n := 0; n < len(content); n += len(content)/20 + 1 {
			sources = append(sources, content[:n])
		}
		cutOff := len(sources)
		for i := range 48 {
			off := i * 4
			if i >= 24 {
				off = (i - 24) * len(content) / 24
			}
			lie := bytes.Clone(content)
			copy(lie[off:], "\xff\xff\xff\xff\xff\xff\xff\x7f")
			sources = append(sources, lie)
		}
		for i, src := range sources {
			if err := os.WriteFile(source, src, 0o600); err != nil {
				t.Fatal(err)
			}
			exit, _, stderr := warmcore("convert", source, out)
			written, err := os.ReadFile(out)
			switch {
			case exit == exitDone && err == nil:
				good++
				d, err := dumpfile.New(bytes.NewReader(written), int64(len(written)))
				if err != nil || d.Info().Incomplete {
					t.Fatalf("%s %d: what was made is no dump: %v", name, i, err)
				}
				for _, p := range s.Pages {
					page := make([]byte, s.PageSize)
					err := d.ReadPhys(page, p.Addr)
					if i < cutOff && err == nil && !bytes.Equal(page, p.Data) {
						t.Errorf("%s %d: page %#x has wrong content", name, i, p.Addr)
					}
				}
			case exit == exitFailed && os.IsNotExist(err) && stderr != "":
				bad++
			default:
				t.Errorf("%s %d: exit code %d, file: %v, %s", name, i, exit, err, stderr)
			}
			if got, err := os.ReadFile(source); err != nil || !bytes.Equal(got, src) {
				t.Errorf("%s %d: the source has changed (%v)", name, i, err)
			}
			b.clear()
		}
	}
	if good < 20 || bad < 20 {
		t.Errorf("%d sources were converted, %d were not: want both kinds", good, bad)
	}
}
