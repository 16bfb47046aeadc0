package debian

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

func TestGRUBConfig(t *testing.T) {
	cfg, err := GRUBConfig("6.1.0-1-amd64", "quiet console=ttyS0 panic=-1")
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for line := range strings.Lines(string(cfg)) {
		line = strings.TrimSpace(line)
		for _, word := range []string{"menuentry '", "submenu", "linux\t", "initrd\t", "search"} {
			if strings.HasPrefix(line, word) {
				got = append(got, line)
			}
		}
	}
	const class = ` --class debian --class gnu-linux --class gnu --class os $menuentry_id_option '`
	const load = "linux\t/boot/vmlinuz-6.1.0-1-amd64 root=UUID=" + FilesystemUUID + " ro "
	const initrd = "initrd\t/boot/initrd.img-6.1.0-1-amd64"
	const search = "search --no-floppy --fs-uuid --set=root " + FilesystemUUID
	want := []string{
		"menuentry 'Debian GNU/Linux'" + class + "gnulinux-simple-" + FilesystemUUID + "' {",
		search, load + "quiet console=ttyS0 panic=-1", initrd,
		"submenu 'Advanced options for Debian GNU/Linux' $menuentry_id_option 'gnulinux-advanced-" + FilesystemUUID + "' {",
		"menuentry 'Debian GNU/Linux, with Linux 6.1.0-1-amd64'" + class + "gnulinux-6.1.0-1-amd64-advanced-" + FilesystemUUID + "' {",
		search, load + "quiet console=ttyS0 panic=-1", initrd,
		"menuentry 'Debian GNU/Linux, with Linux 6.1.0-1-amd64 (recovery mode)'" + class + "gnulinux-6.1.0-1-amd64-recovery-" + FilesystemUUID + "' {",
		search, load + "single console=ttyS0 panic=-1", initrd,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("grub.cfg: -want +got\n%s", diff)
	}
}

func TestParseList(t *testing.T) {
	got, err := parseList("/2/040755/0/0/.//\n/2/040755/0/0/..//\n/11/040700/0/0/lost+found//\n/12/100644/0/0/a b/4096/\n\n")
	want := []FileInfo{{"lost+found", true, 0}, {"a b", false, 4096}}
	if diff := cmp.Diff(want, got); err != nil || diff != "" {
		t.Errorf("parseList: %v, -want +got\n%s", err, diff)
	}
	for _, bad := range []string{"ls: not found", "/12/100644/0/0/a/x/"} {
		if got, err := parseList(bad); err == nil || got != nil {
			t.Errorf("parseList(%q) = %v, %v; want an error", bad, got, err)
		}
	}
}

// TestDisk builds a disk and takes files out of it again.
func TestDisk(t *testing.T) {
	ctx, dir := t.Context(), t.TempDir()
	kernel, initrd := filepath.Join(dir, "kernel"), filepath.Join(dir, "initrd")
	writeFile(t, kernel, []byte("kernel"))
	// 1 MiB and 5 bytes, of which only the first and the last page have data.
	sparse := make([]byte, 1<<20+5)
	copy(sparse, "start")
	copy(sparse[1<<20:], "end")
	writeFile(t, initrd, sparse)
	image := Image{filepath.Join(dir, "disk")}
	d := Disk{
		Size: 64 << 20, Release: "6.1", Image: kernel, Initrd: initrd,
		Files:     map[string][]byte{HostnamePath: []byte("other\n"), "/opt/a/b": []byte("b")},
		HostFiles: map[string]string{"/opt/kernel": kernel},
	}
	if err := d.Build(ctx, image.Path); err != nil {
		t.Fatal(err)
	}
	if err := image.Recover(ctx); err != nil {
		t.Error(err)
	}
	for _, tt := range []struct {
		name string
		want []byte
	}{
		{"/boot/vmlinuz-6.1", []byte("kernel")},
		{"/boot/initrd.img-6.1", sparse},
		{"/opt/kernel", []byte("kernel")},
		{"/opt/a/b", []byte("b")},
		{HostnamePath, []byte("other\n")},
		{FstabPath, []byte("UUID=" + FilesystemUUID + " / ext4 errors=remount-ro 0 1\n")},
	} {
		out := filepath.Join(dir, "out")
		if err := image.Extract(ctx, tt.name, out); err != nil {
			t.Error(err)
			continue
		}
		if got := readFile(t, out); !bytes.Equal(got, tt.want) {
			t.Errorf("%s: %d bytes, want %d; or they differ", tt.name, len(got), len(tt.want))
		}
		var st unix.Stat_t
		if err := unix.Stat(out, &st); err != nil {
			t.Fatal(err)
		}
		if max := int64(len(tt.want)); st.Blocks*512 > max/2+8192 {
			t.Errorf("%s: takes %d bytes on the host, want holes", tt.name, st.Blocks*512)
		}
	}
	if err := image.Extract(ctx, "/no/such/file", filepath.Join(dir, "out")); err == nil {
		t.Error("extract of a file that isn't there: no error")
	}
	if _, err := image.List(ctx, "/no/such/folder"); err == nil {
		t.Error("list of a folder that isn't there: no error")
	}

	d.Image = ""
	if err := d.Build(ctx, image.Path); err != nil {
		t.Fatal(err)
	}
	files, err := image.List(ctx, "/boot")
	want := []FileInfo{{"grub", true, 0}, {"initrd.img-6.1", false, int64(len(sparse))}}
	if diff := cmp.Diff(want, files); err != nil || diff != "" {
		t.Errorf("/boot without a kernel: %v, -want +got\n%s", err, diff)
	}
}

func writeFile(t *testing.T, name string, data []byte) {
	t.Helper()
	if err := os.WriteFile(name, data, 0o644); err != nil {
		t.Fatal(err)
	}
}

func readFile(t *testing.T, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return b
}
