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
	// What another mount shows: no permissions, not that root needs any here.
	if st, err := os.Stat(path); err != nil || st.Mode() != 0 {
		t.Errorf("below the cover: mode %v, %v; want none", st.Mode(), err)
	}
	if b, err := os.ReadFile(path); err != nil || string(b) != "dump" {
		t.Errorf("below the cover: %q, %v", b, err)
	}
}
