//go:build linux

// Package normalboot finds the normal kernel on local disks, with u-root's
// parsers for BootLoaderSpec, GRUB and systemd-boot.
//
// It never writes to a disk: file systems are mounted read-only and without
// journal replay, because a machine that crashed left its journal for the
// normal kernel to replay.
package normalboot

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"sort"
	"strings"

	"github.com/u-root/u-root/pkg/boot"
	"github.com/u-root/u-root/pkg/boot/bls"
	"github.com/u-root/u-root/pkg/boot/grub"
	"github.com/u-root/u-root/pkg/curl"
	"github.com/u-root/u-root/pkg/mount"
	"github.com/u-root/u-root/pkg/mount/block"
	"github.com/u-root/u-root/pkg/ulog"
)

// Entry is a Linux boot entry.
type Entry struct {
	Title   string
	Kernel  File
	Initrd  File // zero for none
	Cmdline string
}

// File is a file of a boot entry.
type File struct {
	Path string // inside its file system, for messages
	at   io.ReaderAt
}

// NewFile returns a file that is read from at; path is its name in messages.
func NewFile(path string, at io.ReaderAt) File { return File{Path: path, at: at} }

// Exists says whether the entry names such a file at all.
func (f File) Exists() bool { return f.at != nil }

// ReadAt reads the file.
func (f File) ReadAt(p []byte, off int64) (int, error) { return f.at.ReadAt(p, off) }

// Size finds the size in bytes by asking for the last byte that can be read:
// what the boot parsers return has no other way to tell. It is capped.
func (f File) Size(most int64) (int64, error) {
	var unreadable error // a bad sector is not the end
	n := sort.Search(int(most)+1, func(off int) bool {
		var b [1]byte
		n, err := f.at.ReadAt(b[:], int64(off))
		if n == 0 && !errors.Is(err, io.EOF) {
			unreadable = cmp.Or(err, io.ErrNoProgress)
		}
		return n == 0
	})
	if unreadable != nil {
		return 0, fmt.Errorf("read %s: %w", f.Path, unreadable)
	}
	if int64(n) > most {
		return 0, fmt.Errorf("read %s: larger than %d bytes", f.Path, most)
	}
	return int64(n), nil
}

// Disks is what was found on the machine's disks.
type Disks struct {
	Entries []Entry // the default one first
	// Looked lists every place that was looked at and what was found there.
	Looked []string
	pool   mount.Pool
}

// fileSystems are tried in this order, each with the options that keep its
// driver from writing to the disk.
var fileSystems = []struct{ name, options string }{
	{"ext4", "noload"}, // ext2 and ext3 too
	{"xfs", "norecovery"},
	{"btrfs", "rescue=nologreplay"},
	{"vfat", ""},
}

// Scan mounts every file system on every disk below dir and reads its boot
// entries.
func Scan(dir string, log *slog.Logger) (*Disks, error) {
	devices, err := block.GetBlockDevices()
	if err != nil {
		return nil, fmt.Errorf("list disks: %w", err)
	}
	devices = devices.FilterZeroSize()
	var d Disks
	for _, dev := range devices {
		at := filepath.Join(dir, dev.Name)
		point, why := mountReadOnly(dev, at)
		if point == nil {
			d.Looked = append(d.Looked, fmt.Sprintf("%s: %s", dev.Name, why))
			continue
		}
		d.pool.Add(point)
	}
	for _, point := range slices.Clone(d.pool.MountPoints) {
		images, why := parse(point, devices, &d.pool, log)
		d.Looked = append(d.Looked, fmt.Sprintf("%s (%s): %s", filepath.Base(point.Device), point.FSType, why))
		for _, image := range images {
			if e, ok := entry(image, point.Path); ok {
				d.Entries = append(d.Entries, e)
			}
		}
	}
	return &d, nil
}

// Close unmounts. Files of entries that are still open stay readable.
func (d *Disks) Close() { _ = d.pool.UnmountAll(mount.MNT_DETACH) }

func mountReadOnly(dev *block.BlockDev, at string) (*mount.MountPoint, string) {
	if err := os.MkdirAll(at, 0o700); err != nil {
		return nil, err.Error()
	}
	for _, fs := range fileSystems {
		point, err := mount.Mount(dev.DevicePath(), at, fs.name, fs.options, mount.ReadOnly)
		if err == nil {
			return point, ""
		}
	}
	return nil, "no file system that this payload knows"
}

func parse(point *mount.MountPoint, devices block.BlockDevices, pool *mount.Pool, log *slog.Logger) ([]boot.OSImage, string) {
	var found []string
	images, err := bls.ScanBLSEntries(ulog.Null, point.Path, nil, "")
	if err == nil {
		found = append(found, fmt.Sprintf("%d BootLoaderSpec entries", len(images)))
	}
	more, name, err := parseGRUB(point.Path, devices, pool)
	switch {
	case err != nil:
		log.Warn("boot configuration", "file", filepath.Join(filepath.Base(point.Device), name), "error", err)
		found = append(found, fmt.Sprintf("%s does not parse: %v", name, err))
	case name != "":
		found = append(found, fmt.Sprintf("%s with %d entries", name, len(more)))
		images = append(images, more...)
	}
	if len(found) == 0 {
		return nil, "no boot configuration"
	}
	return images, strings.Join(found, ", ")
}

// parseGRUB reads the first GRUB configuration of a file system; name is
// empty if there is none.
func parseGRUB(root string, devices block.BlockDevices, pool *mount.Pool) (images []boot.OSImage, name string, err error) {
	names := []string{"boot/grub/grub.cfg", "grub/grub.cfg", "grub2/grub.cfg", "boot/grub2/grub.cfg"}
	if efi, err := filepath.Glob(filepath.Join(root, "EFI", "*", "grub.cfg")); err == nil {
		for _, e := range efi {
			names = append(names, strings.TrimPrefix(e, root+"/"))
		}
	}
	for _, name := range names {
		if _, err := os.Stat(filepath.Join(root, name)); err != nil {
			continue
		}
		schemes := curl.Schemes{"file": localFiles{}}
		images, err := grub.ParseConfigFile(context.Background(), schemes, name, &url.URL{Scheme: "file", Path: root}, devices, pool)
		return images, name, err
	}
	return nil, "", nil
}

// localFiles is a curl.FileScheme of files only. u-root's own list has network
// schemes in it, which would add their clients to the payload.
type localFiles struct{}

func (localFiles) Fetch(_ context.Context, u *url.URL) (io.ReaderAt, error) { return os.Open(u.Path) }

func (localFiles) FetchWithoutCache(_ context.Context, u *url.URL) (io.Reader, error) {
	return os.Open(u.Path)
}

func entry(image boot.OSImage, root string) (Entry, bool) {
	linux, ok := image.(*boot.LinuxImage)
	if !ok || linux.Kernel == nil {
		return Entry{}, false
	}
	e := Entry{Title: linux.Label(), Cmdline: linux.Cmdline, Kernel: file(linux.Kernel, root)}
	if linux.Initrd != nil {
		e.Initrd = file(linux.Initrd, root)
	}
	return e, true
}

func file(at io.ReaderAt, root string) File {
	name := "file"
	switch f := at.(type) {
	case fmt.Stringer: // of GRUB's parser: a URL
		name = strings.TrimPrefix(f.String(), "file://")
	case interface{ Name() string }: // of BootLoaderSpec's: an open file
		name = f.Name()
	}
	return File{Path: cmp.Or(strings.TrimPrefix(name, root), name), at: at}
}
