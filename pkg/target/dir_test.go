//go:build linux

package target

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/warmcore/warmcore/pkg/oldmem/oldmemtest"
	"github.com/warmcore/warmcore/pkg/outcome"
)

const pageSize = 4096 // bytes

func TestFull(t *testing.T) {
	if !oldmemtest.Namespace(t) {
		return
	}
	// A file system of one page.
	dir := t.TempDir()
	d := &Dir{prefix: dir + "/"}
	if err := unix.Mount("none", dir, "tmpfs", 0, "size=4k"); err != nil {
		t.Fatalf("mount a small tmpfs %v", err)
	}
	defer unix.Unmount(dir, 0)
	if free, err := d.Free(); free != pageSize || err != nil {
		t.Errorf("Free = %d, %v; want a page", free, err)
	}
	f, err := create(filepath.Join(dir, "out"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.Write(make([]byte, 2*pageSize)); !Full(err) {
		t.Errorf("write error = %v, want a full disk", err)
	}
	if free, err := d.Free(); free != 0 || err != nil {
		t.Errorf("Free = %d, %v; want nothing", free, err)
	}
	if Full(os.ErrNotExist) {
		t.Error("Full of another error")
	}
}

func TestCreateRefusesLinksAndFiles(t *testing.T) {
	dir := t.TempDir()
	link := filepath.Join(dir, "link")
	if err := os.Symlink(filepath.Join(dir, "elsewhere"), link); err != nil {
		t.Fatal(err)
	}
	if f, err := create(link); err == nil {
		f.Close()
		t.Error("Create followed a symbolic link")
	}
	f, err := create(filepath.Join(dir, "new"))
	if err != nil {
		t.Fatal(err)
	}
	f.Close()
	if f, err := create(filepath.Join(dir, "new")); err == nil {
		f.Close()
		t.Error("Create took a file that was there")
	}
	st, err := os.Stat(filepath.Join(dir, "new"))
	if err != nil {
		t.Fatal(err)
	}
	if got := st.Mode().Perm(); got != 0o600 {
		t.Errorf("mode is %v, want 0600", got)
	}
}

// list returns the names in a directory.
func list(t *testing.T, dir string) (names []string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

// created returns a target with the files of a dump in three parts.
func created(t *testing.T, dir string) *Dir {
	t.Helper()
	to, name := OpenFile(filepath.Join(dir, "out"), nil)
	t.Cleanup(func() { to.Close() })
	files, err := to.Create(t.Context(), name, 3)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		if _, err := f.Write([]byte(f.Name())); err != nil {
			t.Fatal(err)
		}
	}
	return to.(*Dir)
}

// At no moment of a commit has part 1 its name and another part not, and the
// names of the others are on disk before.
func TestCommitOrder(t *testing.T) {
	dir := t.TempDir()
	d := created(t, dir)
	var steps []string
	look := func(what string) {
		if _, err := os.Lstat(filepath.Join(dir, "out.1")); err == nil {
			for _, other := range []string{"out.2", "out.3"} {
				if _, err := os.Lstat(filepath.Join(dir, other)); err != nil {
					t.Errorf("at %q, out.1 is there and %s is not", what, other)
				}
			}
		}
		steps = append(steps, what)
	}
	d.publish = func(f *os.File, from, to string) error {
		err := publish(f, from, to)
		look(filepath.Base(to))
		return err
	}
	d.sync = func(dir string) error { look("sync"); return syncDir(dir) }
	if durable, err := d.Commit(t.Context()); !durable || err != nil {
		t.Fatalf("Commit = %v, %v", durable, err)
	}
	if diff := cmp.Diff([]string{"out.3", "out.2", "sync", "out.1", "sync"}, steps); diff != "" {
		t.Errorf("steps (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]string{"out.1", "out.2", "out.3"}, list(t, dir)); diff != "" {
		t.Errorf("files (-want +got):\n%s", diff)
	}
}

// A commit that fails at any step leaves no part with its name.
func TestCommitFails(t *testing.T) {
	errDisk := errors.New("bad disk")
	for fail := range 4 {
		dir := t.TempDir()
		d := created(t, dir)
		step := 0
		next := func() error {
			step++
			if step-1 == fail {
				return errDisk
			}
			return nil
		}
		d.publish = func(f *os.File, from, to string) error {
			if err := next(); err != nil {
				return err
			}
			return publish(f, from, to)
		}
		d.sync = func(string) error { return next() }
		if durable, err := d.Commit(t.Context()); durable || !errors.Is(err, errDisk) {
			t.Fatalf("Commit that fails at step %d = %v, %v", fail, durable, err)
		}
		if diff := cmp.Diff([]string{"out-incomplete.1", "out-incomplete.2", "out-incomplete.3"}, list(t, dir)); diff != "" {
			t.Errorf("files after step %d failed (-want +got):\n%s", fail, diff)
		}
		if err := d.Abort(); err != nil {
			t.Error(err)
		}
		if left := list(t, dir); len(left) > 0 {
			t.Errorf("Abort left %v", left)
		}
	}
}

// A name that somebody takes while the dump is written stays theirs, and the
// other parts don't get theirs.
func TestCommitTaken(t *testing.T) {
	for _, name := range []string{"out.1", "out.2", "out.3"} {
		dir := t.TempDir()
		d := created(t, dir)
		if err := os.WriteFile(filepath.Join(dir, name), []byte("another"), 0o600); err != nil {
			t.Fatal(err)
		}
		durable, err := d.Commit(t.Context())
		var refusal *outcome.Refusal
		if durable || !errors.As(err, &refusal) || !strings.Contains(refusal.What, name+" exists already") {
			t.Errorf("Commit with %s taken = %v, %v", name, durable, err)
		}
		if diff := cmp.Diff([]string{name}, list(t, dir)); diff != "" {
			t.Errorf("files (-want +got):\n%s", diff)
		}
		if b, err := os.ReadFile(filepath.Join(dir, name)); err != nil || string(b) != "another" {
			t.Errorf("%s is %q, %v", name, b, err)
		}
	}
}

// A process that was killed while it gave the names leaves parts without the
// first one: they are no dump, and nobody's to remove but a person's.
func TestCreateAfterKill(t *testing.T) {
	dir := t.TempDir()
	left := []string{"out-incomplete.1", "out.2", "out.3"} // TestCommitOrder says why no other
	for _, name := range left {
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	to, name := OpenFile(filepath.Join(dir, "out"), nil)
	defer to.Close()
	_, err := to.Create(t.Context(), name, 3)
	var refusal *outcome.Refusal
	if !errors.As(err, &refusal) || !strings.Contains(refusal.What, "out.2 exists already, without") || !strings.Contains(refusal.Todo, "remove it") {
		t.Errorf("Create: %v, want what is left, and what to do", err)
	}
	if diff := cmp.Diff(left, list(t, dir)); diff != "" {
		t.Errorf("files (-before +after):\n%s", diff)
	}
	for _, name := range []string{"out.2", "out.3"} {
		if err := os.Remove(filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := to.Create(t.Context(), name, 3); err != nil {
		t.Errorf("Create when they are gone: %v", err)
	}
}

func TestPut(t *testing.T) {
	dir := t.TempDir()
	d, err := MakeDir(filepath.Join(dir, "new"))
	if err != nil {
		t.Fatal(err)
	}
	for _, content := range []string{"the first try", "the second"} {
		// What a killed try left goes, too.
		if err := os.WriteFile(filepath.Join(dir, "new/log-incomplete"), bytes.Repeat([]byte("x"), 100), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := d.Put(t.Context(), "log", []byte(content)); err != nil {
			t.Fatal(err)
		}
		if b, err := os.ReadFile(filepath.Join(dir, "new/log")); err != nil || string(b) != content {
			t.Errorf("log is %q, %v; want %q", b, err, content)
		}
		if diff := cmp.Diff([]string{"log"}, list(t, filepath.Join(dir, "new"))); diff != "" {
			t.Errorf("files (-want +got):\n%s", diff)
		}
	}
	if err := os.Remove(filepath.Join(dir, "new/log")); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("elsewhere", filepath.Join(dir, "new/log")); err != nil {
		t.Fatal(err)
	}
	if err := d.Put(t.Context(), "log", nil); err == nil {
		t.Error("Put replaced a symbolic link")
	}
}

func TestMakeDir(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a/b")
	for i, want := range []string{"", "has a dump already"} {
		d, err := MakeDir(dir)
		if err != nil || d.String() != dir {
			t.Fatalf("MakeDir = %v, %v", d, err)
		}
		_, err = d.Create(t.Context(), "vmcore", 1)
		if got := fmt.Sprint(err); (err == nil) != (want == "") || !strings.Contains(got, want) {
			t.Fatalf("Create %d: %v, want %q", i, err, want)
		}
		if err == nil {
			if durable, err := d.Commit(t.Context()); !durable || err != nil {
				t.Errorf("Commit = %v, %v", durable, err)
			}
		}
		d.Close()
	}
	if st, err := os.Stat(dir); err != nil || st.Mode().Perm() != 0o700 {
		t.Errorf("directory: mode %v, %v; want 0700", st.Mode(), err)
	}
}

func TestPipe(t *testing.T) {
	var b bytes.Buffer
	to, err := Open(Stdout, &b)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := to.Create(context.Background(), "vmcore", 2); err == nil {
		t.Error("a pipe takes two files")
	}
	files, err := to.Create(context.Background(), "vmcore", 1)
	if err != nil {
		t.Fatal(err)
	}
	if _, ok := files[0].(RandomAccess); ok || files[0].Name() != "" {
		t.Errorf("a pipe's file is called %q, random access: %v", files[0].Name(), ok)
	}
	fmt.Fprint(files[0], "dump")
	if durable, err := to.Commit(context.Background()); durable || err != nil || b.String() != "dump" {
		t.Errorf("Commit = %v, %v with %q; want no proof", durable, err, b.String())
	}
	if err := to.Abort(); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("Abort: %v, want %v", err, errors.ErrUnsupported)
	}
}
