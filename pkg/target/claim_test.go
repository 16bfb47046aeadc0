//go:build linux

package target

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
)

func TestClaim(t *testing.T) {
	path := filepath.Join(t.TempDir(), "vmcore-incomplete")
	if err := os.WriteFile(path, []byte("left by the dead"), 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := claim(path)
	if err != nil {
		t.Fatal(err)
	}
	if st, err := f.Stat(); err != nil || st.Size() != 0 {
		t.Errorf("a claimed file: %v, %v; want an empty one", st, err)
	}
	if _, err := claim(path); !errors.Is(err, errClaimed) {
		t.Errorf("claim of another one's: %v, want %v", err, errClaimed)
	}
	if _, err := discard(path); !errors.Is(err, errClaimed) {
		t.Errorf("discard of another one's: %v, want %v", err, errClaimed)
	}
	if _, err := f.WriteString("four"); err != nil {
		t.Fatal(err)
	}
	f.Close()
	if size, err := discard(path); size != 4 || err != nil {
		t.Errorf("discard = %d, %v; want 4 bytes", size, err)
	}
	if _, err := discard(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("discard of nothing: %v, want %v", err, fs.ErrNotExist)
	}
	if err := os.Symlink("elsewhere", path); err != nil {
		t.Fatal(err)
	}
	if _, err := claim(path); err == nil {
		t.Error("claim replaced a symbolic link")
	}
	if _, err := os.Lstat(path); err != nil {
		t.Errorf("the link is gone: %v", err)
	}
}

// However many claim and let go at the same time, one has it.
func TestClaimConcurrently(t *testing.T) {
	path := filepath.Join(t.TempDir(), "vmcore-incomplete")
	var holders, claims atomic.Int32
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 200 {
				f, err := claim(path)
				if err != nil {
					continue
				}
				claims.Add(1)
				if n := holders.Add(1); n != 1 {
					t.Errorf("%d have the file", n)
				}
				holders.Add(-1)
				f.Close()
			}
		})
	}
	wg.Wait()
	if claims.Load() == 0 {
		t.Error("nobody got the file")
	}
}

func TestPublish(t *testing.T) {
	dir := t.TempDir()
	from, to := filepath.Join(dir, "vmcore-incomplete"), filepath.Join(dir, "vmcore")
	f, err := claim(from)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := os.WriteFile(to, []byte("another dump"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := publish(f, from, to); !errors.Is(err, fs.ErrExist) {
		t.Errorf("publish over a file: %v, want %v", err, fs.ErrExist)
	}
	if got, err := os.ReadFile(to); err != nil || string(got) != "another dump" {
		t.Errorf("the file in the way is %q, %v", got, err)
	}
	if err := os.Remove(to); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(from, from+".moved"); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(from, []byte("not ours"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := publish(f, from, to); err == nil {
		t.Error("publish gave the name to another file")
	}
	if err := os.Rename(from+".moved", from); err != nil {
		t.Fatal(err)
	}
	if err := publish(f, from, to); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(to); err != nil {
		t.Error(err)
	}
}
