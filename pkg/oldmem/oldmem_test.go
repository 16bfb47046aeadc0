package oldmem

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/warmcore/warmcore/pkg/oldmem/oldmemtest"
)

func source(t *testing.T, content []byte) (*Source, string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "vmcore")
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
	s, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s, path
}

func TestFull(t *testing.T) {
	if !oldmemtest.Namespace(t) {
		return
	}
	// A file system of one page.
	dir := t.TempDir()
	if err := unix.Mount("none", dir, "tmpfs", 0, "size=4k"); err != nil {
		t.Fatalf("mount a small tmpfs %v", err)
	}
	defer unix.Unmount(dir, 0)
	if free, err := Free(dir); free != page || err != nil {
		t.Errorf("Free = %d, %v; want a page", free, err)
	}
	f, err := Create(filepath.Join(dir, "out"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.Write(make([]byte, 2*page)); !Full(err) {
		t.Errorf("write error = %v, want a full disk", err)
	}
	if free, err := Free(dir); free != 0 || err != nil {
		t.Errorf("Free = %d, %v; want nothing", free, err)
	}
	if Full(os.ErrNotExist) {
		t.Error("Full of another error")
	}
}

func TestOpen(t *testing.T) {
	dir := t.TempDir()
	empty := filepath.Join(dir, "empty")
	if err := os.WriteFile(empty, nil, 0o400); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{empty, filepath.Join(dir, "missing")} {
		if _, err := Open(path); !errors.Is(err, ErrNone) {
			t.Errorf("Open(%s) error = %v, want ErrNone", path, err)
		}
	}
	if _, err := Open(dir); err == nil || errors.Is(err, ErrNone) {
		t.Errorf("Open(directory) error = %v, want that it is no regular file", err)
	}
}

func TestCreateRefusesLinksAndFiles(t *testing.T) {
	dir := t.TempDir()
	link := filepath.Join(dir, "link")
	if err := os.Symlink(filepath.Join(dir, "elsewhere"), link); err != nil {
		t.Fatal(err)
	}
	if f, err := Create(link); err == nil {
		f.Close()
		t.Error("Create followed a symbolic link")
	}
	f, err := Create(filepath.Join(dir, "new"))
	if err != nil {
		t.Fatal(err)
	}
	f.Close()
	if f, err := Create(filepath.Join(dir, "new")); err == nil {
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

func TestHide(t *testing.T) {
	if !oldmemtest.Namespace(t) {
		return
	}
	dir := t.TempDir()
	path, cover := filepath.Join(dir, "vmcore"), filepath.Join(dir, "run", "cover")
	if err := Hide(path, cover); err != nil {
		t.Errorf("hide a missing file: %v", err)
	}
	if err := os.WriteFile(path, []byte("dump"), 0o400); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := Hide(path, cover); err != nil {
			t.Fatal(err)
		}
	}
	defer unix.Unmount(path, 0)
	if _, err := Open(path); !errors.Is(err, ErrNone) {
		t.Errorf("Open after Hide: %v, want ErrNone", err)
	}
	if err := unix.Unmount(path, 0); err != nil {
		t.Errorf("second Hide mounted again, or the first didn't: %v", err)
	}
	if b, err := os.ReadFile(path); err != nil || string(b) != "dump" {
		t.Errorf("below the cover: %q, %v", b, err)
	}
}
