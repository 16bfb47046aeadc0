package debian

import (
	"bytes"
	"cmp"
	"context"
	_ "embed"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"text/template"

	"github.com/warmcore/warmcore/pkg/image/gpt"
	"github.com/warmcore/warmcore/pkg/phys"
	"github.com/warmcore/warmcore/vmtest/command"
	"github.com/warmcore/warmcore/vmtest/holes"
)

// DefaultParams are the kernel parameters of a Disk: Debian's, and the serial
// console.
const DefaultParams = "quiet console=ttyS0"

// Disk describes a disk image laid out as Debian 12 installs itself: GPT, one
// ext4 partition, kernel and initrd in /boot, grub.cfg as grub-mkconfig
// writes it.
type Disk struct {
	Size    int64 // bytes, whole mebibytes; 0 for twice the files and 512 MiB
	Release string
	// Image and Initrd are files on the host; a file whose name is empty
	// is missing on the disk, though grub.cfg names it.
	Image, Initrd string
	Params        string // kernel parameters; DefaultParams if empty
	// Files are put in, path in the guest to contents, in place of
	// Debian's where both have one.
	Files map[string][]byte
	// HostFiles are put in, path in the guest to path on the host.
	HostFiles map[string]string
}

// Paths that a Disk has, for Files to replace.
const (
	GRUBConfigPath = "/boot/grub/grub.cfg"
	FstabPath      = "/etc/fstab"
	HostnamePath   = "/etc/hostname"
	OSReleasePath  = "/etc/os-release"
)

//go:embed grub.cfg.tmpl
var grubTemplate string

// GRUBConfig returns what grub-mkconfig of Debian 12 writes for one kernel.
func GRUBConfig(release, params string) ([]byte, error) {
	t, err := template.New("grub.cfg").Parse(grubTemplate)
	if err != nil {
		return nil, err
	}
	var b bytes.Buffer
	recovery := strings.TrimSpace(strings.TrimPrefix(params, "quiet")) // GRUB_CMDLINE_LINUX_DEFAULT isn't for recovery
	err = t.Execute(&b, map[string]string{"UUID": FilesystemUUID, "Release": release, "Params": params, "Recovery": recovery})
	if err != nil {
		return nil, err
	}
	return b.Bytes(), nil
}

// contents returns the small files of the disk.
func (d Disk) contents() (map[string][]byte, error) {
	grub, err := GRUBConfig(d.Release, cmp.Or(d.Params, DefaultParams))
	if err != nil {
		return nil, err
	}
	grubenv := "# GRUB Environment Block\n"
	files := map[string][]byte{
		GRUBConfigPath:       grub,
		"/boot/grub/grubenv": []byte(grubenv + strings.Repeat("#", 1024-len(grubenv))),
		FstabPath:            []byte("UUID=" + FilesystemUUID + " / ext4 errors=remount-ro 0 1\n"),
		HostnamePath:         []byte("debian\n"),
		OSReleasePath: []byte(`PRETTY_NAME="Debian GNU/Linux 12 (bookworm)"
NAME="Debian GNU/Linux"
VERSION_ID="12"
VERSION="12 (bookworm)"
VERSION_CODENAME=bookworm
ID=debian
`),
	}
	maps.Copy(files, d.Files)
	return files, nil
}

// Build writes the image to path, sparse. It needs mke2fs, and neither
// privilege nor a loop device.
func (d Disk) Build(ctx context.Context, path string) (err error) {
	stage, err := os.MkdirTemp(filepath.Dir(path), "stage")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(stage)) }()
	total, err := d.stage(ctx, stage)
	if err != nil {
		return fmt.Errorf("build disk %s: %w", path, err)
	}
	size := d.Size
	if size == 0 {
		size = int64(2*total + 512*phys.MiB)
	}
	return makeImage(ctx, path, size, stage)
}

// Layout of a disk image: the partition begins at partitionOffset and is whole
// mebibytes long; partitionEnd bytes follow it, which end with the second table.
const (
	partitionOffset = gpt.FirstByte
	partitionEnd    = 1 << 20 // to the end of the disk
)

// Identifiers are fixed so that a disk is the same each time.
const (
	diskUUID       = "f5e3bbf2-5d5b-4a0e-93b0-2c8a2f0a6a01"
	partitionUUID  = "f5e3bbf2-5d5b-4a0e-93b0-2c8a2f0a6a02"
	FilesystemUUID = "f5e3bbf2-5d5b-4a0e-93b0-2c8a2f0a6a03"
)

// writeTable writes the partition table of a disk. The type of the partition
// is that which Debian's installer sets; the UAPI Discoverable Partitions
// Specification has another for a root.
func writeTable(w io.WriterAt, size int64) error {
	if size < partitionOffset+partitionEnd+1<<20 {
		return fmt.Errorf("a disk of %d bytes has no room for a partition", size)
	}
	return gpt.Write(w, size, diskUUID, gpt.Partition{
		Type: gpt.LinuxType, UUID: partitionUUID, Name: "root",
		Bytes: phys.Range{Start: partitionOffset, End: uint64(size - partitionEnd)},
	})
}

// makeImage writes an image of size bytes, sparse, whose partition has the
// files in stage.
func makeImage(ctx context.Context, path string, size int64, stage string) error {
	size = size &^ (1<<20 - 1)
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	if err := errors.Join(f.Truncate(size), writeTable(f, size), f.Close()); err != nil {
		return fmt.Errorf("build disk %s: %w", path, err)
	}
	_, err = command.Output(ctx, "mke2fs", "-q", "-F", "-t", "ext4", "-m", "0", "-L", "root", "-U", FilesystemUUID,
		"-E", fmt.Sprintf("offset=%d,hash_seed=%s,root_owner=0:0,nodiscard", partitionOffset, FilesystemUUID),
		"-d", stage, path, strconv.FormatInt((size-partitionOffset-partitionEnd)/1024, 10)+"k")
	return err
}

// stage puts all files into dir and returns their size.
func (d Disk) stage(ctx context.Context, dir string) (total uint64, err error) {
	for _, sub := range []string{"boot/grub", "etc", "root", "tmp", "usr", "var/crash", "var/log"} {
		if err := os.MkdirAll(filepath.Join(dir, sub), 0o755); err != nil {
			return 0, err
		}
	}
	small, err := d.contents()
	if err != nil {
		return 0, err
	}
	large := maps.Clone(d.HostFiles)
	if large == nil {
		large = map[string]string{}
	}
	for name, from := range map[string]string{"/boot/vmlinuz-" + d.Release: d.Image, "/boot/initrd.img-" + d.Release: d.Initrd} {
		if from != "" {
			large[name] = from
		}
	}
	for _, name := range slices.Concat(slices.Collect(maps.Keys(small)), slices.Collect(maps.Keys(large))) {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o755); err != nil {
			return 0, err
		}
	}
	for name, data := range small {
		total += uint64(len(data))
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o644); err != nil {
			return 0, err
		}
	}
	for name, from := range large {
		n, err := holes.Copy(ctx, filepath.Join(dir, name), from)
		if err != nil {
			return 0, err
		}
		total += uint64(n)
	}
	return total, nil
}

// Image is an image made by Disk.Build, to look into while no machine runs
// on it.
type Image struct {
	Path string
}

// device is the partition as e2fsprogs' programs name it.
func (i Image) device() string { return fmt.Sprintf("%s?offset=%d", i.Path, partitionOffset) }

// Recover replays the journal of a file system whose machine was reset, as the
// next boot would. It works on a copy of the partition: e2fsck and debugfs
// 1.47 forget the offset in the middle of a recovery.
func (i Image) Recover(ctx context.Context) (err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("recover %s: %w", i.Path, err)
		}
	}()
	image, err := os.OpenFile(i.Path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, image.Close()) }()
	fi, err := image.Stat()
	if err != nil {
		return err
	}
	part, err := os.CreateTemp(filepath.Dir(i.Path), "partition")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, part.Close(), os.Remove(part.Name())) }()
	where := phys.Range{Start: partitionOffset, End: uint64(fi.Size() - partitionEnd)}
	if err := part.Truncate(int64(where.Size())); err != nil {
		return err
	}
	if _, err := holes.CopyRange(ctx, part, 0, image, where); err != nil {
		return err
	}
	out, err := exec.CommandContext(ctx, "e2fsck", "-p", part.Name()).CombinedOutput()
	if exit := (*exec.ExitError)(nil); err != nil && (!errors.As(err, &exit) || exit.ExitCode() != 1) { // 1: repaired
		return fmt.Errorf("e2fsck: %w: %s", err, bytes.TrimSpace(out))
	}
	_, err = holes.CopyRange(ctx, image, partitionOffset, part, phys.Range{End: where.Size()})
	return err
}

// FileInfo is an entry of a folder on a disk image.
type FileInfo struct {
	Name string
	Dir  bool
	Size int64 // bytes; 0 for folders
}

// List returns the entries of a folder without "." and "..".
func (i Image) List(ctx context.Context, dir string) ([]FileInfo, error) {
	var out bytes.Buffer
	if err := i.debugfs(ctx, "ls -p", dir, &out); err != nil {
		return nil, err
	}
	infos, err := parseList(out.String())
	if err != nil {
		return nil, fmt.Errorf("list %s of %s: %w", dir, i.Path, err)
	}
	return infos, nil
}

// parseList reads what debugfs's ls -p prints: lines
// /INODE/MODE/UID/GID/NAME/SIZE/ with the mode in octal, the size empty for
// folders.
func parseList(s string) ([]FileInfo, error) {
	var infos []FileInfo
	for line := range strings.Lines(s) {
		line = strings.TrimSpace(line)
		if line == "" {
			continue
		}
		f := strings.Split(line, "/")
		if len(f) != 8 {
			return nil, fmt.Errorf("debugfs line %q: want 6 fields", line)
		}
		if f[5] == "." || f[5] == ".." {
			continue
		}
		info := FileInfo{Name: f[5], Dir: strings.HasPrefix(f[2], "04")}
		if !info.Dir {
			n, err := strconv.ParseInt(f[6], 10, 64)
			if err != nil {
				return nil, fmt.Errorf("debugfs line %q: size: %w", line, err)
			}
			info.Size = n
		}
		infos = append(infos, info)
	}
	return infos, nil
}

// Extract copies a file of the image to the host, with holes where it has
// whole pages of zeros.
func (i Image) Extract(ctx context.Context, name, to string) (err error) {
	f, err := os.Create(to)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	w := holes.NewWriter(f)
	if err := i.debugfs(ctx, "cat", name, w); err != nil {
		return err
	}
	return w.Flush()
}

// debugfs runs a command of debugfs on one file and writes its output to w.
func (i Image) debugfs(ctx context.Context, command, name string, w io.Writer) error {
	op := fmt.Sprintf("debugfs %s %s on %s", command, name, i.Path)
	if strings.ContainsAny(name, "\"\n") {
		return fmt.Errorf("%s: name with a quote or a line break", op)
	}
	var stderr bytes.Buffer
	cmd := exec.CommandContext(ctx, "debugfs", "-R", command+` "`+name+`"`, i.device())
	cmd.Stdout, cmd.Stderr = w, &stderr
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("%s: %w: %s", op, err, bytes.TrimSpace(stderr.Bytes()))
	}
	// debugfs exits with 0 whatever happens. It greets on its standard
	// error; all else there is an error.
	_, message, _ := strings.Cut(stderr.String(), "\n")
	if message = strings.TrimSpace(message); message != "" {
		return fmt.Errorf("%s: %s", op, message)
	}
	return nil
}
