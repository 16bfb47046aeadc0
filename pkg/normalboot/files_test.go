//go:build linux

package normalboot

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/u-root/u-root/pkg/mount"
	"github.com/warmcore/warmcore/pkg/bootconfig/uki/ukitest"
)

// TestJoined: several initrds are read as one, each from a multiple of 4 on,
// by readers that ask for any piece.
func TestJoined(t *testing.T) {
	dir := t.TempDir()
	for name, content := range map[string]string{
		"grub/grub.cfg": "menuentry x {\n linux /k\n initrd /a /empty /b /c\n}\nmenuentry y {\n linux /k\n initrd /a /gone\n}\n",
		"k":             "kernel", "a": "12345", "empty": "", "b": "abcd", "c": "xyz",
	} {
		write(t, filepath.Join(dir, "vda1", name), content)
	}
	m := &machine{}
	m.add(t, dir, "vda1", "ext4", "", "")
	entries, _ := m.entries(t)
	want := "12345\x00\x00\x00abcdxyz"
	initrd := entries[0].Initrd
	if n, err := initrd.Size(1 << 20); n != int64(len(want)) || err != nil {
		t.Errorf("size %d, %v; want %d", n, err, len(want))
	}
	if initrd.Path != "/a /empty /b /c" {
		t.Errorf("path %q", initrd.Path)
	}
	for off := range len(want) + 2 {
		for n := range len(want) + 2 {
			b := make([]byte, n)
			got, err := initrd.ReadAt(b, int64(off))
			expect := want[min(off, len(want)):min(off+n, len(want))]
			if string(b[:got]) != expect || (err != nil) != (got < n) || err != nil && !errors.Is(err, io.EOF) {
				t.Fatalf("%d bytes at %d: %q, %v; want %q", n, off, b[:got], err, expect)
			}
		}
	}
	if _, err := entries[1].Initrd.Size(1 << 20); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("an initrd is missing: %v", err)
	}
	if _, err := entries[1].Initrd.ReadAt(make([]byte, 10), 0); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("an initrd is missing: %v", err)
	}
}

// TestFolder: links stay on their file system, and what isn't a file isn't
// opened.
func TestFolder(t *testing.T) {
	dir := t.TempDir()
	write(t, filepath.Join(dir, "secret"), "outside")
	root := filepath.Join(dir, "root")
	write(t, filepath.Join(root, "boot", "vmlinuz-6"), "kernel")
	for link, target := range map[string]string{
		"vmlinuz": "boot/vmlinuz-6", "absolute": "/boot/vmlinuz-6", "kernels": "/boot", "up": "../secret", "far": "../../../../../../../../../../../../etc/passwd",
		"loop": "loop", "boot/again": "../vmlinuz", "out": filepath.Join(dir, "secret"), "dangling": "nothing",
	} {
		if err := os.Symlink(target, filepath.Join(root, link)); err != nil {
			t.Fatal(err)
		}
	}
	if err := syscall.Mkfifo(filepath.Join(root, "pipe"), 0o644); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{
		"vmlinuz": "kernel", "absolute": "kernel", "kernels/vmlinuz-6": "kernel", "boot/again": "kernel", "boot/../vmlinuz": "kernel",
		"up": "no such file", "far": "no such file", "loop": "too many symbolic links", "out": "no such file", "dangling": "no such file", "pipe": "neither a file nor a folder",
	} {
		b, err := fs.ReadFile(folder(root), name)
		got := string(b)
		if err != nil {
			got = err.Error()
		}
		if !strings.Contains(got, want) {
			t.Errorf("%s: %s, want %s", name, got, want)
		}
	}
}

// bzImage is the beginning of an x86 kernel with a version.
func bzImage(version string) string {
	b := make([]byte, 0x400)
	copy(b[0x202:], "HdrS")
	binary.LittleEndian.PutUint16(b[0x20e:], 0x100)
	return string(append(b[:0x300], version+"\x00"...)) + strings.Repeat("x", 1000)
}

// TestLeaveOutPayload: the payload knows itself by its parameters, and by its
// kernel's release, in each format.
func TestLeaveOutPayload(t *testing.T) {
	const normal, own = "6.12.57+deb13-amd64 (x@y) #1", "6.12.63-warmcore (warmcore@warmcore) #1"
	image := func(version, cmdline string) string {
		return string(ukitest.Image(ukitest.Sections{".linux": bzImage(version), ".initrd": "i", ".cmdline": cmdline, ".osrel": "ID=" + version}))
	}
	for _, tt := range []struct {
		name  string
		files map[string]string
		want  []string // kernels
		left  string
	}{
		{"GRUB, by release", map[string]string{"grub/grub.cfg": "menuentry p { linux /own }\nmenuentry n { linux /normal }\n"}, []string{"/normal"}, "1 entries"},
		{"GRUB, by parameters", map[string]string{"grub/grub.cfg": "menuentry p { linux /normal quiet warmcore.off }\nmenuentry q { linux /normal 'memmap=exactmap' memmap=1M@0 }\nmenuentry n { linux /normal nowarmcore.x memmap=1M!4G }\n"}, []string{"/normal"}, "2 entries"},
		{"GRUB, nothing else", map[string]string{"grub/grub.cfg": "menuentry p { linux /own }\n"}, nil, "1 entries"},
		{"GRUB's default in a submenu", map[string]string{"grub/grub.cfg": "set default='1>0'\nmenuentry n { linux /normal }\nsubmenu s { menuentry p { linux /own } }\n"}, []string{"/normal"}, "1 entries"},
		{"BootLoaderSpec", map[string]string{"loader/entries/b.conf": "linux /own\n", "loader/entries/a.conf": "linux /normal\n"}, []string{"/normal"}, "1 entries"},
		{"BootLoaderSpec in GRUB", map[string]string{"grub2/grub.cfg": "blscfg\n", "loader/entries/b.conf": "linux /own\n", "loader/entries/a.conf": "linux /normal\n"}, []string{"/normal"}, "1 entries"},
		{"EFI program", map[string]string{"loader/entries/b.conf": "efi /own\n", "loader/entries/a.conf": "efi /normal\n"}, []string{"/normal"}, "1 entries"},
		{"extlinux", map[string]string{"extlinux/extlinux.conf": "default p\nlabel n\nkernel /normal\nlabel p\nkernel /own\n"}, []string{"/normal"}, "1 entries"},
		{"unified images", map[string]string{"EFI/Linux/c.efi": image(own, ""), "EFI/Linux/b.efi": image(normal, "warmcore.handoff=2M@512M"), "EFI/Linux/a.efi": image(normal, "root=UUID=1")}, []string{"/EFI/Linux/a.efi"}, "2 entries"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			tt.files["own"], tt.files["normal"] = bzImage(own), bzImage(normal)
			for name, content := range tt.files {
				write(t, filepath.Join(dir, "vda1", name), content)
			}
			m := &machine{}
			m.add(t, dir, "vda1", "ext4", "", "")
			entries, looked := m.entries(t)
			var got []string
			for _, e := range entries {
				got = append(got, e.Kernel.Path)
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("kernels (-want +got):\n%s", diff)
			}
			if !strings.Contains(strings.Join(looked, ""), tt.left+" of this payload left out") {
				t.Errorf("looked at %q, want %s left out", looked, tt.left)
			}
			if !strings.Contains(m.log.String(), "boot entry left out: it is this payload") {
				t.Errorf("log %q", m.log.String())
			}
		})
	}
	for version, want := range map[string]bool{
		own: true, "Linux version " + own: true, normal: false, "6.12.57 (root@ci-warmcore) #1": false, "": false, "Linux version 6.12.57 (x@y-warmcore)": false,
	} {
		if IsPayload(version) != want {
			t.Errorf("%q: %t", version, !want)
		}
	}
}

// TestUnifiedImage is booted from its sections.
func TestUnifiedImage(t *testing.T) {
	dir := t.TempDir()
	write(t, filepath.Join(dir, "vda1", "EFI/Linux/debian.efi"), string(ukitest.Image(ukitest.Sections{
		".linux": "the kernel", ".initrd": "the initrd", ".ucode": "microcode", ".cmdline": "root=UUID=1 ro\n", ".osrel": "PRETTY_NAME=Debian\nID=debian\n"})))
	m := &machine{}
	m.add(t, dir, "vda1", "vfat", "", "")
	entries, _ := m.entries(t)
	want := []row{{"Debian", "/EFI/Linux/debian.efi", "the kernel", "/EFI/Linux/debian.efi", "microcode\x00\x00\x00the initrd", "root=UUID=1 ro"}}
	if diff := cmp.Diff(want, rows(t, entries)); diff != "" {
		t.Errorf("entries (-want +got):\n%s", diff)
	}
}

// TestPartitionNames: GRUB's names of disks say which partition, not which
// disk.
func TestPartitionNames(t *testing.T) {
	dir := t.TempDir()
	for name, content := range map[string]string{
		"vda1/boot/grub/grub.cfg": "menuentry a { linux (hd0,gpt2)/two }\nmenuentry b { linux (hd1,msdos3)/three }\nmenuentry c { linux (hd0,1)/one }\nmenuentry d { search --set=root -l data; linux /four }\nmenuentry e { search -f /vmlinuz-five --set=x; linux ($x)/vmlinuz-five }",
		"vda1/one":                "1", "vda2/two": "2", "vdb3/three": "3", "vdb4/four": "4", "vdb3/vmlinuz-five": "5",
	} {
		write(t, filepath.Join(dir, name), content)
	}
	m := &machine{}
	for _, name := range []string{"vda1", "vda2", "vdb3", "vdb4"} {
		m.add(t, dir, name, "ext4", "", "")
	}
	m.devices[3].Label = "data"
	entries, _ := m.entries(t)
	var got string
	for _, e := range entries {
		got += contents(t, e.Kernel)
	}
	if got != "23145" {
		t.Errorf("kernels %s, want 23145", got)
	}
}

// TestManyEntries are read without opening all of their files at once.
func TestManyEntries(t *testing.T) {
	var script bytes.Buffer
	for range 3000 {
		script.WriteString("menuentry x {\n linux /k\n initrd /i\n}\n")
	}
	dir := t.TempDir()
	write(t, filepath.Join(dir, "grub/grub.cfg"), script.String())
	write(t, filepath.Join(dir, "k"), "kernel")
	before, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	point := &mount.MountPoint{Path: dir, Device: "/dev/vda1", FSType: "ext4"}
	images, _ := parse(point, nil, &mount.Pool{MountPoints: []*mount.MountPoint{point}}, slog.New(slog.DiscardHandler))
	for _, i := range images {
		entry(i, dir)
	}
	after, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	if len(images) != 3000 || len(after) > len(before)+10 {
		t.Errorf("%d entries, %d files open, before %d", len(images), len(after), len(before))
	}
}

// TestScan: a disk that doesn't answer is left out, one that is not to be
// touched isn't, and the rest is read.
func TestScan(t *testing.T) {
	dir := t.TempDir()
	write(t, filepath.Join(dir, "sdc", "grub/grub.cfg"), "menuentry x { linux /k }\n")
	var calls []string
	note := func(what string) func(string) {
		return func(device string) { calls = append(calls, what+" "+device) }
	}
	hang := make(chan struct{})
	defer close(hang)
	d := scan([]device{{name: "sda"}, {name: "sdb"}, {name: "sdc"}, {name: "sdd"}}, Options{
		Used: func(string) bool { return false }, LeaveOut: func(device string) bool { return device == "sdb" },
		Before: note("before"), After: note("after"), Silent: note("silent"),
	}, slog.New(slog.DiscardHandler), func(dev *device) access {
		switch dev.name {
		case "sda":
			<-hang
		case "sdb":
			t.Error("sdb is touched")
		case "sdc":
			return access{points: []*mount.MountPoint{{Path: filepath.Join(dir, "sdc"), Device: "/dev/sdc", FSType: "ext4"}}}
		}
		return access{why: "nothing"}
	}, 50*time.Millisecond)
	want := []string{"before sda", "silent sda", "before sdc", "after sdc", "before sdd", "after sdd"}
	if diff := cmp.Diff(want, calls); diff != "" {
		t.Errorf("calls (-want +got):\n%s", diff)
	}
	looked := []string{"sda: no answer in 50ms", "sdb: left out", "sdd: nothing", "sdc (ext4): grub/grub.cfg with 1 entries"}
	if diff := cmp.Diff(looked, d.Looked); diff != "" || len(d.Entries) != 1 {
		t.Errorf("%d entries, looked at (-want +got):\n%s", len(d.Entries), diff)
	}
}
