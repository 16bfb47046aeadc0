package agent

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/warmcore/warmcore/pkg/oldmem/oldmemtest"
	"github.com/warmcore/warmcore/pkg/registration"
)

const testLog = "[    0.000000] Linux version\n[    1.500000] Kernel panic - not syncing\n"

func sum(b []byte) string {
	s := sha256.Sum256(b)
	return hex.EncodeToString(s[:])
}

func tree(b []byte) string {
	var sums []byte
	for piece := range slices.Chunk(b, 64<<10) {
		s := sha256.Sum256(piece)
		sums = append(sums, s[:]...)
	}
	return sum(sums)
}

func TestSave(t *testing.T) {
	m := captureBoot(t)
	got, err := m.Save(SaveOptions{SHA256: true})
	if err != nil {
		t.Fatal(err)
	}
	want := vmcore(t)
	dir := filepath.Join(m.Root, "var/crash/db_1-2026-11-22-12-00-01")
	crashed, captured := time.Unix(1795348799, 0).UTC(), time.Unix(1795348800, 0).UTC()
	cpu := CPU{PC: "0x0", SP: "0x0"}
	wantManifest := &Manifest{
		Schema: 1, Directory: dir, Started: got.Started, Finished: got.Finished, Seconds: got.Seconds,
		Reason: "panic", Crashed: &crashed, Capture: &captured, Release: "6.12.0-test",
		Nonce: "01000000000000000000000000000000", Payload: "1.0",
		CPUs: []CPU{cpu, cpu}, CPUsSeen: 2, CPUsFlushed: 2,
		Files: []File{
			{Name: LogName, Bytes: uint64(len(testLog)), Written: uint64(len(testLog)), SHA256: sum([]byte(testLog))},
			// The first granule, and the two that the last page is in.
			{Name: DumpName, Bytes: uint64(len(want)), Written: 64<<10 + 12<<10, SHA256: sum(want), Tree: tree(want)},
		},
		Unreadable: []Extent{},
	}
	if diff := cmp.Diff(wantManifest, got); diff != "" {
		t.Errorf("manifest (-want +got):\n%s", diff)
	}
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
	if len(files) != 3 || files[LogName] != testLog || files[DumpName] != string(want) {
		t.Errorf("files are wrong: %d of them, log %q", len(files), files[LogName])
	}
	var fromFile Manifest
	if err := json.Unmarshal([]byte(files[ManifestName]), &fromFile); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(got, &fromFile); diff != "" {
		t.Errorf("manifest.json (-returned +file):\n%s", diff)
	}
	if diff := cmp.Diff([]string{"state saved"}, m.done); diff != "" {
		t.Errorf("steps (-want +got):\n%s", diff)
	}

	_, err = m.Save(SaveOptions{})
	wantNothing(t, err)
	elsewhere := filepath.Join(m.Root, "elsewhere")
	if again, err := m.Save(SaveOptions{Target: elsewhere}); err != nil {
		t.Errorf("save again, elsewhere: %v", err)
	} else if f := again.Dump(); f.SHA256 != "" || f.Tree != tree(want) {
		t.Errorf("saved again: %+v, want the checksum of the tree only", f)
	}
	_, err = m.Save(SaveOptions{Target: elsewhere})
	wantRefusal(t, err, "has a dump already")
	if _, err := m.Release(false); err != nil {
		t.Fatal(err)
	}
	_, err = m.Save(SaveOptions{Target: filepath.Join(m.Root, "third")})
	wantNothing(t, err)
}

func TestSaveNothing(t *testing.T) {
	m := plainBoot(t)
	_, err := m.Save(SaveOptions{})
	wantNothing(t, err)
	m = captureBoot(t)
	m.file("proc/vmcore", "") // as Release hides it
	m.setBlock(registration.Releasing, nil)
	_, err = m.Save(SaveOptions{})
	wantNothing(t, err)
	m = captureBoot(t)
	m.remove("proc/vmcore") // the kernel didn't take the ELF core header
	_, err = m.Save(SaveOptions{})
	wantRefusal(t, err, "this kernel offers no /proc/vmcore")
	m = captureBoot(t)
	m.setBlock(registration.Releasing, nil)
	_, err = m.Save(SaveOptions{})
	wantNothing(t, err)
	m = captureBoot(t)
	m.EUID = func() int { return 1 }
	_, err = m.Save(SaveOptions{})
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
			got, err := m.Save(SaveOptions{})
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
	_, err := m.Save(SaveOptions{Target: dir})
	if err == nil || !strings.Contains(err.Error(), "more are needed") || !strings.Contains(err.Error(), "still offered") {
		t.Errorf("Save error = %v, want how much is missing", err)
	}
	if _, err := os.Stat(filepath.Join(dir, LogName)); err != nil {
		t.Errorf("the log was not kept: %v", err)
	}
	for _, name := range []string{DumpName, IncompleteName} {
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
	if _, err := m.Save(SaveOptions{Target: dir}); err != nil {
		t.Errorf("Save with room: %v", err)
	}
}

func TestSaveIntoLink(t *testing.T) {
	m := captureBoot(t)
	dir := filepath.Join(m.Root, "dump")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	victim := filepath.Join(m.Root, "victim")
	if err := os.Symlink(victim, filepath.Join(dir, IncompleteName)); err != nil {
		t.Fatal(err)
	}
	if _, err := m.Save(SaveOptions{Target: dir}); err == nil {
		t.Error("Save followed a symbolic link")
	}
	if _, err := os.Stat(victim); err == nil {
		t.Error("Save wrote where a symbolic link pointed")
	}
}

func TestSaveBrokenDump(t *testing.T) {
	m := captureBoot(t)
	b := vmcore(t)
	b[0] = 'X'
	m.file("proc/vmcore", string(b))
	if _, err := m.Save(SaveOptions{}); err == nil || !strings.Contains(err.Error(), "read the dump's headers") {
		t.Errorf("Save of a broken dump: %v", err)
	}
	// Without a log, the dump is saved all the same.
	m = captureBoot(t)
	b = bytes.Replace(vmcore(t), []byte("SYMBOL(prb)"), []byte("SYMBOL(prx)"), 1)
	m.file("proc/vmcore", string(b))
	got, err := m.Save(SaveOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if len(got.Files) != 1 || len(got.Warnings) != 1 || !strings.Contains(got.Warnings[0], "log can't be read") {
		t.Errorf("files %v, warnings %q; want the dump and a warning", got.Files, got.Warnings)
	}
}

func TestDmesg(t *testing.T) {
	m := captureBoot(t)
	for _, path := range []string{"", m.path(vmcoreFile)} {
		text, lost, err := m.Dmesg(path)
		if string(text) != testLog || lost != 0 || err != nil {
			t.Errorf("Dmesg(%q) = %q, %d lost, %v", path, text, lost, err)
		}
	}
	m = plainBoot(t)
	_, _, err := m.Dmesg("")
	wantNothing(t, err)
	m.EUID = func() int { return 1 }
	_, _, err = m.Dmesg("")
	wantRefusal(t, err, "needs root")
}
