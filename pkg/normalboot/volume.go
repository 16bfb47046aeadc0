//go:build linux

package normalboot

import (
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"

	"github.com/u-root/u-root/pkg/mount"
	"github.com/warmcore/warmcore/pkg/bootconfig/grub"
	"github.com/warmcore/warmcore/pkg/superblock"
)

// device is a disk or partition.
type device struct {
	name      string // vda1
	disk      string // vda
	partition int    // 0 for a whole disk
	superblock.Info
}

func (d device) path() string { return filepath.Join("/dev", d.name) }

// listDevices lists the disks and partitions below /sys/class/block that aren't empty.
func listDevices() ([]device, error) {
	const class = "/sys/class/block"
	names, err := os.ReadDir(class)
	if err != nil {
		return nil, err
	}
	var devices []device
	for _, n := range names {
		dir := filepath.Join(class, n.Name())
		if size, err := os.ReadFile(filepath.Join(dir, "size")); err != nil || strings.TrimSpace(string(size)) == "0" {
			continue
		}
		d := device{name: n.Name(), disk: n.Name()}
		if number, err := os.ReadFile(filepath.Join(dir, "partition")); err == nil {
			d.partition, _ = strconv.Atoi(strings.TrimSpace(string(number)))
			if real, err := filepath.EvalSymlinks(dir); err == nil {
				d.disk = filepath.Base(filepath.Dir(real))
			}
		}
		devices = append(devices, d)
	}
	return devices, nil
}

// volume is a mounted file system.
type volume struct {
	device
	point *mount.MountPoint
	// chosen is where the default subvolume of a btrfs is mounted; "" if that
	// is the top of the file system.
	chosen string
}

// defaultSuffix is appended to a mount point's path for the file system's
// default subvolume.
const defaultSuffix = ".default"

// volumes returns the mounted file systems, each with its device.
func volumes(points []*mount.MountPoint, devices []device) (all []*volume) {
	for _, p := range points {
		if base, ok := strings.CutSuffix(p.Path, defaultSuffix); ok {
			for _, v := range all {
				if v.point.Path == base {
					v.chosen = p.Path
				}
			}
			continue
		}
		v := &volume{point: p, device: device{name: filepath.Base(p.Device)}}
		for _, d := range devices {
			if d.name == v.name {
				v.device = d
			}
		}
		all = append(all, v)
	}
	return all
}

// top returns the whole file system, and after it the default subvolume of a btrfs.
func (v *volume) top() fs.FS {
	if v.chosen == "" {
		return folder(v.point.Path)
	}
	return layers{folder(v.point.Path), folder(v.chosen)}
}

// root is a folder that may be the root, or /boot, of a system.
type root struct {
	files fs.FS
	// prefix is the folder's path in the file system; "" is its top.
	prefix string
}

// maxSubvolumes caps the subvolumes that are looked at. All are of the first
// level; snapshots lie deeper.
const maxSubvolumes = 64

// roots returns the folders that may have boot configurations: in a btrfs its
// default subvolume, then the file system's top, then the subvolumes in the first
// level.
func (v *volume) roots() []root {
	all := []root{{folder(v.point.Path), ""}}
	if v.point.FSType != "btrfs" {
		return all
	}
	if v.chosen != "" {
		all = slices.Insert(all, 0, root{folder(v.chosen), ""})
	}
	names, err := fs.ReadDir(folder(v.point.Path), ".")
	if err != nil {
		return all
	}
	for _, n := range names { // "@" sorts before letters
		if n.IsDir() && n.Name() != "boot" && len(all) < maxSubvolumes {
			all = append(all, root{folder(filepath.Join(v.point.Path, n.Name())), "/" + n.Name()})
		}
	}
	return all
}

// snapshots returns the roots of openSUSE's snapshots, the newest first. One of
// them is the default subvolume, but which one may not be known.
func (v *volume) snapshots() (all []root) {
	if v.point.FSType != "btrfs" {
		return nil
	}
	for _, pattern := range []string{"*/.snapshots/*/snapshot", ".snapshots/*/snapshot"} {
		names, err := fs.Glob(folder(v.point.Path), pattern)
		if err != nil {
			continue
		}
		number := func(name string) int {
			n, _ := strconv.Atoi(filepath.Base(filepath.Dir(name)))
			return n
		}
		slices.SortFunc(names, func(a, b string) int { return number(b) - number(a) })
		for _, name := range names[:min(len(names), maxSubvolumes)] {
			all = append(all, root{folder(filepath.Join(v.point.Path, name)), "/" + name})
		}
	}
	return all
}

// grubMachine is the machine as a GRUB configuration on one of its volumes
// sees it.
type grubMachine struct {
	own *volume
	sub root
	all []*volume
}

// files returns the tree in which the configuration's own paths are looked up. On
// btrfs GRUB's begin at the top, but openSUSE's at the default subvolume.
func (m grubMachine) files() fs.FS {
	if m.sub.prefix == "" && m.sub.files != nil {
		return layers{m.sub.files, m.own.top()}
	}
	if m.sub.prefix != "" {
		return layers{m.own.top(), m.sub.files}
	}
	return m.own.top()
}

// FS returns a device's file system. GRUB's numbers of disks say nothing here, so
// of a name such as hd1,gpt2 only the partition counts. It may be on several
// disks: a file is looked for on each, on the configuration's own disk first.
func (m grubMachine) FS(name string) fs.FS {
	if name == "" || name == m.own.name {
		return m.files()
	}
	for _, v := range m.all {
		if v.name == name {
			return v.top()
		}
	}
	_, part, _ := strings.Cut(name, ",")
	number, _ := strconv.Atoi(strings.TrimLeft(part, "abcdefghijklmnopqrstuvwxyz"))
	var own, same, others layers
	for _, v := range m.all {
		switch {
		case v.name == m.own.name || v.partition != number:
		case v.disk == m.own.disk:
			same = append(same, v.top())
		default:
			others = append(others, v.top())
		}
	}
	own = layers{m.files()}
	if m.own.partition == number {
		return append(append(own, same...), others...)
	}
	return append(append(same, others...), own...)
}

// Search finds a volume. The configuration's own volume is tried first.
func (m grubMachine) Search(by grub.By, value string, hints []string) (string, bool) {
	order := []*volume{m.own}
	for _, v := range m.all {
		switch {
		case v == m.own:
		case slices.Contains(hints, v.name):
			order = slices.Insert(order, 0, v)
		default:
			order = append(order, v)
		}
	}
	for _, v := range order {
		found := false
		switch by {
		case grub.UUID:
			found = v.UUID != "" && strings.EqualFold(v.UUID, value)
		case grub.Label:
			found = v.Label != "" && v.Label == value
		case grub.File:
			files := v.top()
			if v == m.own {
				files = m.files()
			}
			f, err := files.Open(strings.Trim(filepath.Clean("/"+value), "/"))
			if found = err == nil; found {
				f.Close()
			}
		}
		if found {
			return v.name, true
		}
	}
	return "", false
}

// Probe returns a property of a volume, such as its UUID.
func (m grubMachine) Probe(name string, what grub.By) string {
	for _, v := range append([]*volume{m.own}, m.all...) {
		if name != "" && name != v.name {
			continue
		}
		switch what {
		case grub.UUID:
			return v.UUID
		case grub.Label:
			return v.Label
		case grub.Type:
			return v.Type
		}
	}
	return ""
}

// Platform is efi on machines with an EFI system partition.
func (m grubMachine) Platform() string {
	if m.Arch() != "amd64" {
		return "efi"
	}
	for _, v := range append([]*volume{m.own}, m.all...) {
		if info, err := fs.Stat(v.top(), "EFI"); err == nil && info.IsDir() {
			return "efi"
		}
	}
	return "pc"
}

// Arch is the machine's architecture.
func (grubMachine) Arch() string { return runtime.GOARCH }
