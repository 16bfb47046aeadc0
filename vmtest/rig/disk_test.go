package rig

import (
	"bytes"
	"encoding/binary"
	"hash/crc32"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

func TestGUID(t *testing.T) {
	got, err := guid(linuxTypeUUID)
	want := [16]byte{
		0xaf, 0x3d, 0xc6, 0x0f, // 0fc63daf
		0x83, 0x84, // 8483
		0x72, 0x47, // 4772
		0x8e, 0x79,
		0x3d, 0x69, 0xd8, 0x47, 0x7d, 0xe4,
	}
	if err != nil || got != want {
		t.Errorf("guid(%s) = % x, %v; want % x", linuxTypeUUID, got, err, want)
	}
	for _, s := range []string{"", "0fc63daf", linuxTypeUUID + "00", "zfc63daf-8483-4772-8e79-3d69d8477de4"} {
		if got, err := guid(s); err == nil || got != [16]byte{} {
			t.Errorf("guid(%q) = % x, %v; want an error", s, got, err)
		}
	}
}

// memoryFile is an io.WriterAt.
type memoryFile []byte

func (m memoryFile) WriteAt(b []byte, off int64) (int, error) { return copy(m[off:], b), nil }

func TestGPT(t *testing.T) {
	const size = 8 << 20
	disk := make(memoryFile, size)
	if err := writeGPT(disk, size); err != nil {
		t.Fatal(err)
	}
	le64 := func(off int) uint64 { return binary.LittleEndian.Uint64(disk[off:]) }
	if disk[510] != 0x55 || disk[511] != 0xaa || disk[450] != 0xee {
		t.Errorf("protective MBR: signature % x, type %#x", disk[510:512], disk[450])
	}
	const lastSector = size/sectorSize - 1
	for _, h := range []struct {
		name                   string
		sector, other, entries uint64
	}{{"primary", 1, lastSector, 2}, {"backup", lastSector, 1, lastSector - 32}} {
		at := int(h.sector) * sectorSize
		header := bytes.Clone(disk[at : at+92])
		sum := binary.LittleEndian.Uint32(header[16:])
		clear(header[16:20])
		if string(header[:8]) != "EFI PART" || sum != crc32.ChecksumIEEE(header) {
			t.Errorf("%s header: signature %q, CRC %#x, want %#x", h.name, header[:8], sum, crc32.ChecksumIEEE(header))
		}
		if le64(at+24) != h.sector || le64(at+32) != h.other || le64(at+72) != h.entries {
			t.Errorf("%s header: at %d, other %d, entries %d; want %+v", h.name, le64(at+24), le64(at+32), le64(at+72), h)
		}
		table := int(h.entries) * sectorSize
		if got, want := binary.LittleEndian.Uint32(disk[at+88:]), crc32.ChecksumIEEE(disk[table:table+gptEntries*gptEntrySize]); got != want {
			t.Errorf("%s header: CRC of the entries %#x, want %#x", h.name, got, want)
		}
		if first, last := le64(table+32), le64(table+40); first != 2048 || last != 7*2048-1 {
			t.Errorf("%s table: partition %d to %d, want 2048 to %d", h.name, first, last, 7*2048-1)
		}
	}
	for _, bad := range []int64{0, 1 << 20, 2 << 20, 8<<20 + 1} {
		if err := writeGPT(disk, bad); err == nil {
			t.Errorf("a disk of %d bytes: no error", bad)
		}
	}
}

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
	image := DiskImage{filepath.Join(dir, "disk")}
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

func TestSparseWriter(t *testing.T) {
	// Pages: data, zero, zero, data, and a part; written in odd pieces.
	want := make([]byte, 4*4096+100)
	copy(want, bytes.Repeat([]byte{1}, 4096))
	copy(want[3*4096:], bytes.Repeat([]byte{2}, 4096))
	for _, piece := range []int{1, 100, 4095, 4096, 10000, 100000} {
		f, err := os.Create(filepath.Join(t.TempDir(), "f"))
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		w := &sparseWriter{f: f}
		for rest := want; len(rest) > 0; {
			n, err := w.Write(rest[:min(piece, len(rest))])
			if err != nil {
				t.Fatal(err)
			}
			rest = rest[n:]
		}
		if err := w.flush(); err != nil {
			t.Fatal(err)
		}
		if got := readFile(t, f.Name()); !bytes.Equal(got, want) {
			t.Errorf("pieces of %d: the file has %d bytes, want %d; or they differ", piece, len(got), len(want))
		}
	}
}
