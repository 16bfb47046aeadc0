package agent

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/warmcore/warmcore/pkg/convert"
	"github.com/warmcore/warmcore/pkg/dumpwriter"
	"github.com/warmcore/warmcore/pkg/manifest"
	"github.com/warmcore/warmcore/pkg/oldmem/oldmemtest"
	"github.com/warmcore/warmcore/pkg/outcome"
	"github.com/warmcore/warmcore/pkg/registration"
	"github.com/warmcore/warmcore/pkg/target"
	"github.com/warmcore/warmcore/pkg/vmcore"
	"github.com/warmcore/warmcore/pkg/vmcore/checksum"
	"github.com/warmcore/warmcore/pkg/vmcore/dumpfile"
	"github.com/warmcore/warmcore/pkg/vmcore/kdump"
)

// incomplete is what a dump is called until it is whole.
var incomplete = target.IncompleteName(manifest.DumpName, 0, 1)

const testLog = "[    0.000000] Linux version\n[    1.500000] Kernel panic - not syncing\n"

func sum(b []byte) string {
	s := sha256.Sum256(b)
	return hex.EncodeToString(s[:])
}

// samePages fails unless the dump in the files has the pages of vmcore.
func samePages(t *testing.T, files ...string) *vmcore.Info {
	t.Helper()
	var parts []dumpfile.File
	for _, name := range files {
		b, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		parts = append(parts, dumpfile.File{ReaderAt: bytes.NewReader(b), Size: int64(len(b))})
	}
	got, err := dumpfile.Join(parts...)
	if err != nil {
		t.Fatal(err)
	}
	b := oldMemory(t)
	want, err := dumpfile.New(bytes.NewReader(b), int64(len(b)))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want.Info().Memory, got.Info().Memory); diff != "" {
		t.Errorf("memory (-want +got):\n%s", diff)
	}
	for _, r := range want.Info().Memory {
		a, b := make([]byte, r.Size()), make([]byte, r.Size())
		if err := want.ReadPhys(a, r.Start); err != nil {
			t.Fatal(err)
		}
		if err := got.ReadPhys(b, r.Start); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(a, b) {
			t.Errorf("memory %v differs", r)
		}
	}
	return got.Info()
}

func TestSave(t *testing.T) {
	m := captureBoot(t)
	zstd, err := kdump.ParseCodec("zstd")
	if err != nil {
		t.Fatal(err)
	}
	got, _, err := m.Save(t.Context(), SaveOptions{Options: dumpwriter.Options{Codec: zstd, DumpLevel: 31, SHA256: true}})
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(m.Root, "var/crash/db_1-2026-11-22-12-00-01")
	files := map[string]string{}
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		b, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if err != nil {
			t.Fatal(err)
		}
		files[e.Name()] = string(b)
		if info, err := e.Info(); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: mode %v, %v; want 0600", e.Name(), info.Mode(), err)
		}
	}
	if st, err := os.Stat(dir); err != nil || st.Mode().Perm() != 0o700 {
		t.Errorf("directory: mode %v, %v; want 0700", st.Mode(), err)
	}
	if len(files) != 3 || files[manifest.LogName] != testLog {
		t.Errorf("%d files, log %q", len(files), files[manifest.LogName])
	}
	// This kernel says nothing about its pages, so that all are kept.
	if len(got.Warnings) != 1 || !strings.Contains(got.Warnings[0], "no page is left out") {
		t.Errorf("warnings %q, want that no page is left out", got.Warnings)
	}
	size := uint64(len(files[manifest.DumpName]))
	crashed, captured := time.Unix(1795348799, 0).UTC(), time.Unix(1795348800, 0).UTC()
	cpu := manifest.CPU{PC: "0x0", SP: "0x0"}
	wantManifest := &manifest.Manifest{
		Schema: 1, Directory: dir, Started: got.Started, Finished: got.Finished, Seconds: got.Seconds,
		Reason: "panic", Crashed: &crashed, Capture: &captured, Release: "6.12.0-test",
		Nonce: "01000000000000000000000000000000", Payload: "1.0",
		CPUs: []manifest.CPU{cpu, cpu}, CPUsSeen: 2, CPUsFlushed: 2,
		Dump: manifest.Dump{
			Format: "kdump", Compression: "zstd", PageSize: 4096, Pages: 1024, Kept: 1024,
			Zero: got.Dump.Zero, Memory: 4 << 20, Data: got.Dump.Data,
		},
		Files: []manifest.File{
			{Name: manifest.LogName, Bytes: uint64(len(testLog)), Written: uint64(len(testLog)), SHA256: sum([]byte(testLog))},
			{Name: manifest.DumpName, Bytes: size, Written: size, SHA256: sum([]byte(files[manifest.DumpName])), CRC32C: got.Files[1].CRC32C},
		},
		Unreadable: []manifest.Extent{}, NotDumped: []manifest.Extent{}, Warnings: got.Warnings,
	}
	if diff := cmp.Diff(wantManifest, got); diff != "" {
		t.Errorf("manifest (-want +got):\n%s", diff)
	}
	if z := got.Dump.Zero; z < 1000 || z > 1023 {
		t.Errorf("%d pages of zeroes, want most of 1024", z)
	}
	if err := checksum.Verify(strings.NewReader(files[manifest.DumpName]), int64(size), *got.Files[1].CRC32C, func(b checksum.Bad) { t.Error(b) }, nil); err != nil {
		t.Error(err)
	}
	if info := samePages(t, filepath.Join(dir, manifest.DumpName)); info.CPUs != 2 || info.Uname.Release != "6.12.0-test" || info.Level != 0 {
		t.Errorf("the dump has %d CPUs, release %q, level %d", info.CPUs, info.Uname.Release, info.Level)
	}
	var fromFile manifest.Manifest
	if err := json.Unmarshal([]byte(files[manifest.FileName]), &fromFile); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(got, &fromFile); diff != "" {
		t.Errorf("manifest.json (-returned +file):\n%s", diff)
	}
	if diff := cmp.Diff([]string{"state saved"}, m.done); diff != "" {
		t.Errorf("steps (-want +got):\n%s", diff)
	}

	_, _, err = m.Save(t.Context(), SaveOptions{})
	wantNothing(t, err)
	elsewhere := filepath.Join(m.Root, "elsewhere")
	if _, _, err := m.Save(t.Context(), SaveOptions{Target: elsewhere}); err != nil {
		t.Errorf("save again, elsewhere: %v", err)
	}
	_, _, err = m.Save(t.Context(), SaveOptions{Target: elsewhere})
	wantRefusal(t, err, "has a dump already")
	if _, err := m.Release(false); err != nil {
		t.Fatal(err)
	}
	_, _, err = m.Save(t.Context(), SaveOptions{Target: filepath.Join(m.Root, "third")})
	wantNothing(t, err)
}

func TestSaveForms(t *testing.T) {
	for _, tc := range []struct {
		name   string
		o      dumpwriter.Options
		files  []string
		format string
	}{
		{"ELF", dumpwriter.Options{Format: convert.ELF}, []string{"vmcore"}, "elf"},
		{"ELF, flattened", dumpwriter.Options{Format: convert.ELF, Flattened: true}, []string{"vmcore"}, "elf flattened"},
		{"kdump", dumpwriter.Options{}, []string{"vmcore"}, "kdump"},
		{"kdump, flattened", dumpwriter.Options{Flattened: true}, []string{"vmcore"}, "kdump flattened"},
		{"kdump, split", dumpwriter.Options{Split: 3}, []string{"vmcore.1", "vmcore.2", "vmcore.3"}, "kdump"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			m := captureBoot(t)
			dir := filepath.Join(m.Root, "dump")
			got, _, err := m.Save(t.Context(), SaveOptions{Target: dir, Options: tc.o})
			if err != nil {
				t.Fatal(err)
			}
			var files []string
			for _, name := range tc.files {
				files = append(files, filepath.Join(dir, name))
			}
			if info := samePages(t, files...); info.Format != tc.format || got.Dump.Format != tc.format {
				t.Errorf("format %q, %q in the manifest; want %q", info.Format, got.Dump.Format, tc.format)
			}
			for i, f := range got.Files[1:] {
				b, err := os.ReadFile(files[i])
				if err != nil {
					t.Fatal(err)
				}
				if err := checksum.Verify(bytes.NewReader(b), int64(len(b)), *f.CRC32C, func(b checksum.Bad) { t.Error(f.Name, b) }, nil); err != nil {
					t.Error(err)
				}
			}
			_, _, err = m.Save(t.Context(), SaveOptions{Target: dir, Options: tc.o})
			wantRefusal(t, err, "already")
		})
	}
	m := captureBoot(t)
	var pipe bytes.Buffer
	if _, _, err := m.Save(t.Context(), SaveOptions{Target: target.Stdout, Stdout: &pipe}); err != nil {
		t.Fatal(err)
	}
	name := filepath.Join(m.Root, "from-pipe")
	if err := os.WriteFile(name, pipe.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	samePages(t, name)
	if len(m.done) > 0 {
		t.Errorf("did %v, but nobody knows what became of the pipe", m.done)
	}
	// A kill at any time leaves no more than an incomplete file, which the next
	// try replaces.
	m = captureBoot(t)
	dir := filepath.Join(m.Root, "dump")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	left := filepath.Join(dir, incomplete)
	if err := os.WriteFile(left, bytes.Repeat([]byte("what an earlier try left"), 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, _, err := m.Save(t.Context(), SaveOptions{Target: dir}); err != nil {
		t.Fatal(err)
	}
	samePages(t, filepath.Join(dir, manifest.DumpName))
	if _, err := os.Lstat(left); err == nil {
		t.Errorf("%s is still there", left)
	}
	for _, o := range []dumpwriter.Options{{Split: 2, Format: convert.ELF}, {Split: 1000}, {DumpLevel: 32}} {
		_, _, err := m.Save(t.Context(), SaveOptions{Target: filepath.Join(m.Root, "bad"), Options: o})
		var r *outcome.Refusal
		if !errors.As(err, &r) {
			t.Errorf("Save with %+v: %v, want a refusal", o, err)
		}
	}
}

func TestSaveNothing(t *testing.T) {
	m := plainBoot(t)
	_, _, err := m.Save(t.Context(), SaveOptions{})
	wantNothing(t, err)
	m = captureBoot(t)
	m.file("proc/vmcore", "") // as Release hides it
	m.setBlock(registration.Releasing, nil)
	_, _, err = m.Save(t.Context(), SaveOptions{})
	wantNothing(t, err)
	m = captureBoot(t)
	m.remove("proc/vmcore") // the kernel didn't take the ELF core header
	_, _, err = m.Save(t.Context(), SaveOptions{})
	wantRefusal(t, err, "this kernel offers no /proc/vmcore")
	m = captureBoot(t)
	m.setBlock(registration.Releasing, nil)
	_, _, err = m.Save(t.Context(), SaveOptions{})
	wantNothing(t, err)
	m = captureBoot(t)
	m.EUID = func() int { return 1 }
	_, _, err = m.Save(t.Context(), SaveOptions{})
	wantRefusal(t, err, "needs root")
}

// Whatever is wrong with the handoff area, a dump that is there is saved.
func TestSaveWithoutHandoff(t *testing.T) {
	for _, tc := range []struct {
		name   string
		change func(m *testMachine)
	}{
		{"another boot loader", func(m *testMachine) { m.file("proc/cmdline", "elfcorehdr=1K@1M") }},
		{"no registration", func(m *testMachine) { clear(m.memory.bytes) }},
		{"bad memory", func(m *testMachine) { m.memory.err = unix.EIO }},
	} {
		t.Run(tc.name, func(t *testing.T) {
			m := captureBoot(t)
			tc.change(m)
			got, _, err := m.Save(t.Context(), SaveOptions{})
			if err != nil {
				t.Fatal(err)
			}
			if len(got.Warnings) == 0 || got.Release != "6.12.0-test" {
				t.Errorf("manifest %+v: want a warning, and the release from the dump", got)
			}
			if len(m.done) > 0 {
				t.Errorf("did %v", m.done)
			}
		})
	}
}

func TestSaveDiskFull(t *testing.T) {
	if !oldmemtest.Namespace(t) {
		return
	}
	m := captureBoot(t)
	disk := t.TempDir()
	// Room for the log, not for the dump's three written granules.
	if err := unix.Mount("none", disk, "tmpfs", 0, "size=32k"); err != nil {
		t.Fatalf("mount a small tmpfs %v", err)
	}
	t.Cleanup(func() { unix.Unmount(disk, 0) })
	dir := filepath.Join(disk, "dump")
	_, _, err := m.Save(t.Context(), SaveOptions{Target: dir})
	if err == nil || !strings.Contains(err.Error(), "more are needed") || !strings.Contains(err.Error(), "still offered") {
		t.Errorf("Save error = %v, want how much is missing", err)
	}
	if _, err := os.Stat(filepath.Join(dir, manifest.LogName)); err != nil {
		t.Errorf("the log was not kept: %v", err)
	}
	for _, name := range []string{manifest.DumpName, incomplete} {
		if _, err := os.Lstat(filepath.Join(dir, name)); err == nil {
			t.Errorf("%s is left on a full disk", name)
		}
	}
	if got := m.block().State; got != registration.Capturing {
		t.Errorf("state is %v, want capturing", got)
	}
	// With room, the same directory will do.
	if err := unix.Mount("none", disk, "tmpfs", unix.MS_REMOUNT, "size=8m"); err != nil {
		t.Fatal(err)
	}
	if _, _, err := m.Save(t.Context(), SaveOptions{Target: dir}); err != nil {
		t.Errorf("Save with room: %v", err)
	}
}

// Wherever the disk is full, the log may be there, but no dump under its name,
// and the same directory will do when there is room.
func TestSaveDiskFullAnywhere(t *testing.T) {
	if !oldmemtest.Namespace(t) {
		return
	}
	failed := 0
	for size := 4; ; size += 4 {
		m := captureBoot(t)
		disk := t.TempDir()
		if err := unix.Mount("none", disk, "tmpfs", 0, fmt.Sprintf("size=%dk", size)); err != nil {
			t.Fatalf("mount a small tmpfs: %v", err)
		}
		t.Cleanup(func() { unix.Unmount(disk, 0) })
		dir := filepath.Join(disk, "dump")
		if _, _, err := m.Save(t.Context(), SaveOptions{Target: dir}); err == nil {
			break
		}
		failed++
		left, err := os.ReadDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range left {
			if f.Name() != manifest.LogName {
				t.Errorf("%d KiB: %s is left", size, f.Name())
			}
		}
		if err := unix.Mount("none", disk, "tmpfs", unix.MS_REMOUNT, "size=8m"); err != nil {
			t.Fatal(err)
		}
		if _, _, err := m.Save(t.Context(), SaveOptions{Target: dir}); err != nil {
			t.Errorf("%d KiB, and then room: %v", size, err)
		}
	}
	if failed < 5 {
		t.Errorf("%d sizes were too small, want the log's, the dump's and the manifest's", failed)
	}
}

// The directory that a save makes by itself is new, on a machine without a clock
// too, and what earlier ones left incomplete makes room for it.
func TestSaveAnew(t *testing.T) {
	m := captureBoot(t)
	const left, other = "var/crash/db_1-2026-11-20-00-00-00/", "var/crash/db_1-by-hand/"
	stays := []string{
		"var/crash/db_1-2026-11-22-12-00-01/vmcore", // the clock has been there before
		left + manifest.LogName, other + incomplete, "var/crash/db_2-2026-11-20-00-00-00/" + incomplete,
	}
	goes := []string{left + incomplete, left + incomplete + ".1"}
	for _, name := range append(goes, stays...) {
		m.file(name, "earlier")
	}
	got, _, err := m.Save(t.Context(), SaveOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if want := m.path("var/crash/db_1-2026-11-22-12-00-02"); got.Directory != want {
		t.Errorf("saved to %s, want %s", got.Directory, want)
	}
	for _, name := range stays {
		if b, err := os.ReadFile(m.path(name)); err != nil || string(b) != "earlier" {
			t.Errorf("%s is %q, %v; want it left alone", name, b, err)
		}
	}
	for _, name := range goes {
		if _, err := os.Lstat(m.path(name)); err == nil {
			t.Errorf("%s is still there", name)
		}
	}
}

func TestSaveIntoLink(t *testing.T) {
	m := captureBoot(t)
	dir := filepath.Join(m.Root, "dump")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	victim := filepath.Join(m.Root, "victim")
	if err := os.Symlink(victim, filepath.Join(dir, incomplete)); err != nil {
		t.Fatal(err)
	}
	if _, _, err := m.Save(t.Context(), SaveOptions{Target: dir}); err == nil {
		t.Error("Save followed a symbolic link")
	}
	if _, err := os.Stat(victim); err == nil {
		t.Error("Save wrote where a symbolic link pointed")
	}
}

func TestSaveBrokenDump(t *testing.T) {
	m := captureBoot(t)
	b := oldMemory(t)
	b[0] = 'X'
	m.file("proc/vmcore", string(b))
	if _, _, err := m.Save(t.Context(), SaveOptions{}); err == nil || !strings.Contains(err.Error(), "read the dump's headers") {
		t.Errorf("Save of a broken dump: %v", err)
	}
	// Without a log, the dump is saved all the same.
	m = captureBoot(t)
	b = bytes.Replace(oldMemory(t), []byte("SYMBOL(prb)"), []byte("SYMBOL(prx)"), 1)
	m.file("proc/vmcore", string(b))
	got, _, err := m.Save(t.Context(), SaveOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if len(got.Files) != 1 || len(got.Warnings) != 2 || !strings.Contains(got.Warnings[0], "log can't be read") {
		t.Errorf("files %v, warnings %q; want the dump and a warning", got.Files, got.Warnings)
	}
	// So are those of a CPU whose registers, or whose note, can't be read.
	for _, tc := range []struct {
		name  string
		size  uint32 // of the second CPU's note
		files int
		want  string
	}{
		{"registers", 100, 2, "registers in the notes: "},
		{"notes", 1 << 30, 1, "notes at offset 0x1000: "},
	} {
		t.Run(tc.name, func(t *testing.T) {
			m := captureBoot(t)
			b := oldMemory(t)
			const second = 4096 + 20 + 336 // header with name, registers
			binary.LittleEndian.PutUint32(b[second+4:], tc.size)
			if tc.size < 336 { // the next one begins there
				copy(b[second+20+int(tc.size):], b[second+20+336:3*4096])
			}
			m.file("proc/vmcore", string(b))
			got, _, err := m.Save(t.Context(), SaveOptions{})
			if err != nil {
				t.Fatal(err)
			}
			if len(got.Files) != tc.files || len(got.Warnings) == 0 || !strings.HasPrefix(got.Warnings[0], tc.want) {
				t.Errorf("files %v, warnings %q; want %d files and %q", got.Files, got.Warnings, tc.files, tc.want)
			}
		})
	}
}

func TestDmesg(t *testing.T) {
	m := captureBoot(t)
	text, lost, err := m.Dmesg()
	if string(text) != testLog || lost != 0 || err != nil {
		t.Errorf("Dmesg = %q, %d lost, %v", text, lost, err)
	}
	m = plainBoot(t)
	_, _, err = m.Dmesg()
	wantNothing(t, err)
	m.EUID = func() int { return 1 }
	_, _, err = m.Dmesg()
	wantRefusal(t, err, "needs root")
}
