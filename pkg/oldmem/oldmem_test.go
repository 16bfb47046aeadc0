package oldmem

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/warmcore/warmcore/pkg/oldmem/oldmemtest"
	"github.com/warmcore/warmcore/pkg/phys"
)

// dump is two windows and a bit, with data, zeroes and a short end.
func dump() []byte {
	b := make([]byte, 2*Window+3*Granule+123)
	rng := rand.New(rand.NewPCG(1, 2))
	for i := 0; i < 3*Granule; i++ {
		b[i] = byte(rng.Uint32())
	}
	b[Window-1] = 1
	b[Window+5*Granule] = 2
	b[len(b)-1] = 3
	return b
}

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

// tree is Result.Tree, computed in the simplest way.
func tree(b []byte) [sha256.Size]byte {
	var sums []byte
	for len(b) > 0 {
		n := min(Granule, len(b))
		sum := sha256.Sum256(b[:n])
		sums = append(sums, sum[:]...)
		b = b[n:]
	}
	return sha256.Sum256(sums)
}

func TestCopy(t *testing.T) {
	want := dump()
	s, _ := source(t, want)
	dst, err := Create(filepath.Join(t.TempDir(), "out"))
	if err != nil {
		t.Fatal(err)
	}
	defer dst.Close()
	var progress []uint64
	r, err := s.Copy(dst, Options{SHA256: true, Progress: func(done uint64) { progress = append(progress, done) }})
	if err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(dst.Name())
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Error("copy differs from the dump")
	}
	wantResult := Result{
		Size: uint64(len(want)),
		// Three granules, the one at the end of the first window, one in the
		// second, and the short one.
		Written: 5*Granule + 123,
		Tree:    tree(want),
		SHA256:  sha256.Sum256(want),
	}
	if diff := cmp.Diff(wantResult, r); diff != "" {
		t.Errorf("result (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]uint64{Window, 2 * Window, uint64(len(want))}, progress); diff != "" {
		t.Errorf("progress (-want +got):\n%s", diff)
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(dst.Fd()), &st); err != nil {
		t.Fatal(err)
	}
	if used := st.Blocks * 512; used > 16*Granule {
		t.Errorf("the file takes %d bytes on disk, want holes for zeroes", used)
	}
}

// A file that shrinks while it is mapped gives the SIGBUS that a page of bad
// memory gives.
func TestCopyUnreadable(t *testing.T) {
	content := bytes.Repeat([]byte{0x5a}, 4*Granule)
	s, path := source(t, content)
	if err := os.Truncate(path, Granule); err != nil {
		t.Fatal(err)
	}
	dst, err := Create(filepath.Join(t.TempDir(), "out"))
	if err != nil {
		t.Fatal(err)
	}
	defer dst.Close()
	r, err := s.Copy(dst, Options{})
	if err != nil {
		t.Fatal(err)
	}
	want := []phys.Range{{Start: Granule, End: 4 * Granule}}
	if diff := cmp.Diff(want, r.Unreadable); diff != "" {
		t.Errorf("unreadable (-want +got):\n%s", diff)
	}
	got, err := os.ReadFile(dst.Name())
	if err != nil {
		t.Fatal(err)
	}
	clear(content[Granule:])
	if !bytes.Equal(got, content) {
		t.Error("what could not be read is not zero, or something else is wrong")
	}
	if r.Tree != tree(content) || r.SHA256 != [sha256.Size]byte{} {
		t.Error("checksum is not that of the file, or one that nobody asked for")
	}
}

func TestCopyDiskFull(t *testing.T) {
	if !oldmemtest.Namespace(t) {
		return
	}
	s, _ := source(t, bytes.Repeat([]byte{1}, Granule))
	// A file system of one page.
	dir := t.TempDir()
	if err := unix.Mount("none", dir, "tmpfs", 0, "size=4k"); err != nil {
		t.Fatalf("mount a small tmpfs %v", err)
	}
	defer unix.Unmount(dir, 0)
	dst, err := Create(filepath.Join(dir, "out"))
	if err != nil {
		t.Fatal(err)
	}
	defer dst.Close()
	r, err := s.Copy(dst, Options{})
	if !Full(err) {
		t.Errorf("Copy error = %v, want a full disk", err)
	}
	if diff := cmp.Diff(Result{}, r); diff != "" {
		t.Errorf("result of a failed copy (-want +got):\n%s", diff)
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
