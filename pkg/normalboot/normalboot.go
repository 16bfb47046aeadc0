//go:build linux

// Package normalboot finds the normal kernel on local disks. It returns the
// entries of the machine's own boot loader; the first is the one that the loader
// would start.
//
// pkg/bootconfig has the parsers, and says which loaders are understood and why
// the parsers are our own. Of u-root only the mount calls are used. Where a file system
// has configurations of two loaders, this one comes first:
//
//  1. GRUB's, if its script shows BootLoaderSpec entries itself (blscfg);
//  2. BootLoaderSpec's, if systemd-boot is there: loader/loader.conf or
//     EFI/systemd;
//  3. on arm64 extlinux.conf, because U-Boot looks for it first;
//  4. GRUB's;
//  5. BootLoaderSpec's and extlinux.conf.
//
// The entries of the others follow, as fall-backs. File systems are taken in the
// order of their devices' names.
//
// Entries that would start this payload again are left out: where GRUB starts
// the payload, it is the default entry.
//
// It never writes to a disk: file systems are mounted read-only and without
// journal replay, because a machine that crashed left its journal for the
// normal kernel to replay.
package normalboot

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/u-root/u-root/pkg/mount"
	"github.com/warmcore/warmcore/pkg/bootconfig"
	"github.com/warmcore/warmcore/pkg/bootconfig/bls"
	"github.com/warmcore/warmcore/pkg/bootconfig/extlinux"
	"github.com/warmcore/warmcore/pkg/bootconfig/grub"
	"github.com/warmcore/warmcore/pkg/bootconfig/uki"
	"github.com/warmcore/warmcore/pkg/cmdline"
	"github.com/warmcore/warmcore/pkg/superblock"
)

// Entry is a Linux boot entry.
type Entry struct {
	Title   string
	Kernel  File
	Initrd  File // zero for none; several are one file, joined as the kernel wants them
	Cmdline string
	// DeviceTree is the path of the device tree that the entry names; "" for
	// none.
	DeviceTree string
	// FileSystem and Label are UUID and label of the file system that has the
	// kernel; "" if not known.
	FileSystem, Label string
	// Once is not empty if the loader would start the entry in one boot only;
	// it names that request (see bootconfig.Entry).
	Once string
}

// Disks is what a scan found on the machine's disks.
type Disks struct {
	Entries []Entry // the default one first
	// Looked lists every place that was looked at and what was found there.
	Looked []string
	pool   mount.Pool
}

// fileSystems are tried in this order, each with the options that keep its
// driver from writing to the disk. btrfs is mounted at its top, not at the
// default subvolume: GRUB's paths begin there.
var fileSystems = []struct{ name, options string }{
	{"ext4", "noload"}, // ext2 and ext3 too
	{"xfs", "norecovery"},
	{"btrfs", "rescue=nologreplay,subvolid=5"},
	{"vfat", ""},
}

// Options is how to look at the disks.
type Options struct {
	// Used says whether an entry that is for one boot only has had that boot.
	Used func(once string) bool
	// First is the UUID of a file system to search before all others; if it
	// has entries, nothing else is mounted.
	First string
	// LeaveOut says which disks not to touch.
	LeaveOut func(device string) bool
	// Before is called before a disk is touched, then After when it has
	// answered, or Silent if it hasn't answered for long.
	Before, After, Silent func(device string)
}

// patience is how long a disk may take to answer. A disk with a bad sector
// takes 30 seconds for one read (the block layer's default time-out).
const patience = 40 * time.Second

// Scan mounts the file systems on the disks below dir and reads their boot
// entries.
func Scan(dir string, log *slog.Logger, o Options) (*Disks, error) {
	devices, err := listDevices()
	if err != nil {
		return nil, fmt.Errorf("list disks: %w", err)
	}
	return scan(devices, o, log, func(dev *device) access {
		if f, err := os.Open(dev.path()); err == nil {
			dev.Info, _ = superblock.Read(f)
			f.Close()
		}
		if o.First != "" && !strings.EqualFold(dev.UUID, o.First) {
			return access{info: dev.Info, why: "not the file system that booted last"}
		}
		points, why := mountReadOnly(dev.path(), filepath.Join(dir, dev.name))
		return access{dev.Info, points, why}
	}, patience), nil
}

// access is the result of looking at a disk.
type access struct {
	info   superblock.Info
	points []*mount.MountPoint
	why    string // why nothing is mounted
}

// scan looks at each disk and waits for it no longer than patience.
func scan(devices []device, o Options, log *slog.Logger, look func(*device) access, patience time.Duration) *Disks {
	var d Disks
	for i := range devices {
		dev := &devices[i]
		if o.LeaveOut(dev.name) {
			d.Looked = append(d.Looked, dev.name+": left out")
			continue
		}
		o.Before(dev.name)
		answer := make(chan access, 1)
		go func(dev device) { answer <- look(&dev) }(*dev)
		select {
		case a := <-answer:
			o.After(dev.name)
			dev.Info = a.info
			if len(a.points) == 0 {
				d.Looked = append(d.Looked, fmt.Sprintf("%s: %s", dev.name, a.why))
			}
			d.pool.Add(a.points...)
		case <-time.After(patience):
			o.Silent(dev.name)
			log.Warn("disk", "name", dev.name, "error", fmt.Sprintf("no answer in %v", patience), "so", "left out")
			d.Looked = append(d.Looked, fmt.Sprintf("%s: no answer in %v", dev.name, patience))
		}
	}
	entries, looked := collect(&d.pool, devices, log, o.Used)
	d.Entries, d.Looked = entries, append(d.Looked, looked...)
	return &d
}

// collect reads the configurations of everything that is mounted.
func collect(pool *mount.Pool, devices []device, log *slog.Logger, used func(once string) bool) (entries []Entry, looked []string) {
	seen := map[string]bool{}
	for _, v := range volumes(pool.MountPoints, devices) {
		images, why := parseUnused(v.point, devices, pool, log, used)
		looked = append(looked, fmt.Sprintf("%s (%s): %s", v.name, v.point.FSType, why))
		for _, image := range images {
			// Two configurations may lead to the same entry.
			if key := image.key(); !seen[key] {
				seen[key] = true
				if e, ok := entry(image, v.point.Path); ok {
					entries = append(entries, e)
				}
			}
		}
	}
	return entries, looked
}

// Close unmounts. Files of entries that are open stay readable, others can't
// be opened any more.
func (d *Disks) Close() { _ = d.pool.UnmountAll(mount.MNT_DETACH) }

func mountReadOnly(dev, at string) (points []*mount.MountPoint, why string) {
	if err := os.MkdirAll(at, 0o700); err != nil {
		return nil, err.Error()
	}
	for _, fs := range fileSystems {
		point, err := mount.Mount(dev, at, fs.name, fs.options, mount.ReadOnly)
		if err != nil {
			continue
		}
		points = append(points, point)
		if fs.name == "btrfs" {
			points = append(points, mountDefault(dev, at)...)
		}
		return points, ""
	}
	return nil, "no file system that this payload knows"
}

// mountDefault mounts the default subvolume of the btrfs that is mounted at top,
// unless the top itself is the default.
func mountDefault(dev, top string) []*mount.MountPoint {
	at := top + defaultSuffix
	if err := os.MkdirAll(at, 0o700); err != nil {
		return nil
	}
	point, err := mount.Mount(dev, at, "btrfs", "rescue=nologreplay", mount.ReadOnly)
	if err != nil {
		return nil
	}
	a, errA := os.Stat(top)
	b, errB := os.Stat(at)
	if errA != nil || errB != nil || os.SameFile(a, b) {
		_ = point.Unmount(mount.MNT_DETACH)
		return nil
	}
	return []*mount.MountPoint{point}
}

// image is an entry with the file system in which its paths are looked up.
type image struct {
	bootconfig.Entry
	files func(device string) fs.FS
	// where names that file system: equal names mean the same one.
	where func(device string) string
	all   []*volume
}

func (i image) key() string {
	return strings.Join([]string{i.where(i.Kernel.Device), i.Kernel.Name, i.Title, i.Cmdline}, "\x00")
}

// parse reads the boot configurations of one file system; the entry that its
// loader would start comes first. why says what was found.
func parse(point *mount.MountPoint, devices []device, pool *mount.Pool, log *slog.Logger) (images []image, why string) {
	return parseUnused(point, devices, pool, log, func(string) bool { return false })
}

// parseUnused is parse without the entries for one boot that were used.
func parseUnused(point *mount.MountPoint, devices []device, pool *mount.Pool, log *slog.Logger, used func(once string) bool) (images []image, why string) {
	all := volumes(pool.MountPoints, devices)
	i := slices.IndexFunc(all, func(v *volume) bool { return v.point == point })
	if i < 0 {
		return nil, "not mounted"
	}
	own := all[i]
	warn := func(file string, err any) {
		log.Warn("boot configuration", "file", own.name+file, "error", err)
	}
	var found []string
	for _, r := range own.roots() {
		at, what := parseRoot(own, r, all, used, warn)
		images = append(images, at...)
		found = append(found, what...)
	}
	if len(found) == 0 {
		for _, r := range own.snapshots() {
			if images, found = parseRoot(own, r, all, used, warn); len(found) > 0 {
				break
			}
		}
	}
	images, left := leaveOutPayload(images, own, log)
	if left > 0 {
		found = append(found, fmt.Sprintf("%d entries of this payload left out", left))
	}
	if len(found) == 0 {
		return nil, "no boot configuration"
	}
	return images, strings.Join(found, ", ")
}

// parseRoot reads the configurations below one root.
func parseRoot(own *volume, r root, all []*volume, used func(once string) bool, warn func(file string, err any)) (images []image, found []string) {
	machine := grubMachine{own: own, sub: r, all: all}
	here := func(device string) string { return cmp.Or(device, own.name) }
	wrap := func(entries []bootconfig.Entry, files func(device string) fs.FS) (out []image) {
		for _, e := range entries {
			out = append(out, image{e, files, here, all})
		}
		return out
	}
	mine := func(string) fs.FS { return r.files }

	variables := loaderVariables()
	config := bls.Read(r.files, runtime.GOARCH, variables)
	if len(config.Entries) > 0 && config.Entries[0].Once != "" && used(config.Entries[0].Once) {
		variables.OneShot = ""
		config = bls.Read(r.files, runtime.GOARCH, variables)
	}
	for _, w := range config.Warnings {
		warn(r.prefix+"/loader", w)
	}
	var spec []image
	vars := environment(r.files)
	for _, e := range config.Entries {
		if vars != nil && strings.Contains(e.Cmdline, "$") {
			e.Cmdline = grub.Substitute(e.Cmdline, vars)
		}
		e.Kernel.Name = inBoot(r.files, e.Kernel.Name)
		for j := range e.Initrds {
			e.Initrds[j].Name = inBoot(r.files, e.Initrds[j].Name)
		}
		if !strings.Contains(e.Title, e.Version) {
			e.Title += " " + e.Version
		}
		if !e.EFI || isLinux(r.files, &e) {
			spec = append(spec, wrap([]bootconfig.Entry{e}, mine)...)
		}
	}
	if len(config.Entries) > 0 {
		found = append(found, fmt.Sprintf("%d BootLoaderSpec entries", len(spec)))
	}

	var scripted []image
	showsSpec := false
	for n, name := range grubNames(r.files) {
		c, err := grub.Read(machine, r.prefix+"/"+name)
		if err == nil && len(c.Entries) > 0 && c.Entries[0].Once != "" && used(c.Entries[0].Once) {
			c, err = grub.ReadAgain(machine, r.prefix+"/"+name)
		}
		if err != nil {
			warn(r.prefix+"/"+name, err)
			found = append(found, fmt.Sprintf("%s does not parse: %v", strings.TrimPrefix(r.prefix+"/"+name, "/"), err))
			continue
		}
		for _, w := range c.Warnings {
			warn(r.prefix+"/"+name, w)
		}
		if c.Default != "" {
			warn(r.prefix+"/"+name, fmt.Sprintf("the default entry %q is not Linux; taking the next", c.Default))
		}
		found = append(found, fmt.Sprintf("%s with %d entries", strings.TrimPrefix(r.prefix+"/"+name, "/"), len(c.Entries)))
		if len(c.Entries) > 0 || n == 0 {
			scripted, showsSpec = wrap(c.Entries, machine.FS), c.BLS
		}
		if len(c.Entries) > 0 {
			break
		}
	}

	var labels []image
	for _, name := range []string{"extlinux/extlinux.conf", "boot/extlinux/extlinux.conf", "syslinux/syslinux.cfg", "boot/syslinux/syslinux.cfg"} {
		b, err := bootconfig.ReadFile(r.files, name)
		if err != nil {
			continue
		}
		labels = wrap(extlinux.Parse(b, "/"+path.Dir(name)), mine)
		found = append(found, fmt.Sprintf("%s with %d entries", name, len(labels)))
		break
	}

	switch {
	case showsSpec:
		return slices.Concat(scripted, withoutShown(spec, scripted), labels), found
	case exists(r.files, "loader/loader.conf") || exists(r.files, "EFI/systemd"):
		return slices.Concat(spec, scripted, labels), found
	case runtime.GOARCH == "arm64":
		return slices.Concat(labels, scripted, spec), found
	}
	return slices.Concat(scripted, spec, labels), found
}

// withoutShown removes the BootLoaderSpec entries that GRUB's menu has.
func withoutShown(spec, shown []image) []image {
	kernels := map[string]bool{}
	for _, i := range shown {
		kernels[bootconfig.Clean(i.Kernel.Name)] = true
	}
	return slices.DeleteFunc(spec, func(s image) bool { return kernels[bootconfig.Clean(s.Kernel.Name)] })
}

// environment is GRUB's environment block, nil if there is none. Fedora's
// entries use its variables even when GRUB doesn't read them.
func environment(files fs.FS) map[string]string {
	for _, name := range []string{"grub2/grubenv", "boot/grub2/grubenv", "grub/grubenv", "boot/grub/grubenv"} {
		if b, err := bootconfig.ReadFile(files, name); err == nil {
			return grub.ParseEnv(b)
		}
	}
	return nil
}

// grubNames returns the paths of the GRUB configurations that exist, in the order
// in which to try them.
func grubNames(files fs.FS) (names []string) {
	all := []string{"boot/grub/grub.cfg", "grub/grub.cfg", "grub2/grub.cfg", "boot/grub2/grub.cfg"}
	if efi, err := fs.Glob(files, "EFI/*/grub.cfg"); err == nil {
		all = append(all, efi...)
	}
	for _, name := range all {
		if exists(files, name) {
			names = append(names, name)
		}
	}
	return names
}

func exists(files fs.FS, name string) bool {
	_, err := fs.Stat(files, name)
	return err == nil
}

// inBoot returns a BootLoaderSpec entry's path as it is on this file system: if
// /boot is a folder of it and not a file system of its own, the entry's path may
// begin with /boot or not.
func inBoot(files fs.FS, name string) string {
	if !exists(files, bootconfig.Clean(name)) && exists(files, bootconfig.Clean("/boot"+name)) {
		return "/boot" + name
	}
	return name
}

// part returns a section of a file, or all of it.
func (i image) part(p bootconfig.Path, s *uki.Section) *lazy {
	return &lazy{open: func() (io.ReaderAt, int64, error) {
		f, at, err := openAt(i.files(p.Device), p.Name)
		if err != nil {
			return nil, 0, err
		}
		info, err := f.Stat()
		if err != nil {
			f.Close()
			return nil, 0, err
		}
		if s == nil {
			return at, info.Size(), nil
		}
		if s.Offset+s.Size > info.Size() {
			f.Close()
			return nil, 0, fmt.Errorf("section at %#x, %d bytes long, is not all in the file", s.Offset, s.Size)
		}
		return io.NewSectionReader(at, s.Offset, s.Size), s.Size, nil
	}}
}

// isLinux says whether an EFI program is a Linux kernel or a unified image with
// one. It sets the entry's command line to that in a unified image.
func isLinux(files fs.FS, e *bootconfig.Entry) bool {
	f, at, err := openAt(files, e.Kernel.Name)
	if err != nil {
		return false
	}
	defer f.Close()
	if img, err := uki.Parse(at); err == nil {
		e.Image = true
		if e.Cmdline == "" && img.Cmdline.Size > 0 {
			e.Cmdline, err = uki.Text(at, img.Cmdline)
		}
		return err == nil
	}
	var head [0x206]byte
	if _, err := at.ReadAt(head[:], 0); err != nil {
		return false
	}
	return string(head[0x202:]) == "HdrS" || // Documentation/arch/x86/boot.rst
		string(head[56:60]) == "ARM\x64" || // Documentation/arch/arm64/booting.rst
		string(head[4:8]) == "zimg" // drivers/firmware/efi/libstub/zboot-header.S
}

func openAt(files fs.FS, name string) (fs.File, io.ReaderAt, error) {
	if files == nil {
		return nil, nil, fs.ErrNotExist
	}
	f, err := files.Open(bootconfig.Clean(name))
	if err != nil {
		return nil, nil, err
	}
	at, ok := f.(io.ReaderAt)
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() || !ok {
		f.Close()
		return nil, nil, errors.New("no regular file")
	}
	return f, at, nil
}

// leaveOutPayload removes the entries that would start this payload again.
func leaveOutPayload(images []image, own *volume, log *slog.Logger) (normal []image, left int) {
	for _, i := range images {
		why := payloadParameter(i.Cmdline)
		if why == "" {
			why = i.payloadKernel()
		}
		if why == "" {
			normal = append(normal, i)
			continue
		}
		left++
		log.Info("boot entry left out: it is this payload", "on", own.name, "title", i.Title, "kernel", i.Kernel.Name, "because_of", why)
	}
	return normal, left
}

// payloadParameter finds a parameter that only a payload's command line has: one
// of its own, or memory confined to a window. A kernel with memmap=exactmap
// could not be booted with the plan's memory map either.
func payloadParameter(line string) string {
	for _, p := range cmdline.Parse(line).Params {
		if strings.HasPrefix(p.Name, "warmcore.") || p.Is("memmap") && p.Value == "exactmap" {
			return p.String()
		}
	}
	return ""
}

// payloadRelease is part of the release of every payload kernel
// (boot/kernel/common.config).
const payloadRelease = "-warmcore"

// payloadKernel returns the kernel's release if it is a payload's. Only x86 kernels
// have it where it is quick to find; payload.Payload refuses the others when it
// has read them.
func (i image) payloadKernel() string {
	f, at, err := openAt(i.files(i.Kernel.Device), i.Kernel.Name)
	if err != nil {
		return ""
	}
	defer f.Close()
	if i.Image {
		if img, err := uki.Parse(at); err == nil {
			at = io.NewSectionReader(at, img.Linux.Offset, img.Linux.Size)
		}
	}
	var head [0x210]byte
	if _, err := at.ReadAt(head[:], 0); err != nil || string(head[0x202:0x206]) != "HdrS" {
		return ""
	}
	// kernel_version: where the text is, without the first sector.
	var text [256]byte
	n, _ := at.ReadAt(text[:], 0x200+int64(binary.LittleEndian.Uint16(head[0x20e:])))
	version, _, _ := strings.Cut(string(text[:n]), "\x00")
	if IsPayload(version) {
		return version
	}
	return ""
}

// IsPayload says whether a kernel is a payload's, by its release or its
// whole version ("Linux version 6.12.57-warmcore (...").
func IsPayload(version string) bool {
	release, _, _ := strings.Cut(strings.TrimPrefix(version, "Linux version "), " ")
	return strings.Contains(release, payloadRelease)
}

// entry makes an Entry of an image that parse found. Its files are opened when they
// are first read.
func entry(i image, _ string) (Entry, bool) {
	if i.Kernel.Name == "" {
		return Entry{}, false
	}
	e := Entry{Title: i.Title, Cmdline: i.Cmdline, DeviceTree: i.DeviceTree.Name, Once: i.Once}
	e.Kernel = NewFile(i.Kernel.Name, i.part(i.Kernel, nil))
	var initrds joined
	var names []string
	if i.Image {
		f, at, err := openAt(i.files(i.Kernel.Device), i.Kernel.Name)
		if err != nil {
			return Entry{}, false
		}
		img, err := uki.Parse(at)
		f.Close()
		if err != nil {
			return Entry{}, false
		}
		e.Kernel.at = i.part(i.Kernel, &img.Linux)
		for _, s := range []uki.Section{img.Microcode, img.Initrd} {
			if s.Size > 0 {
				initrds, names = append(initrds, i.part(i.Kernel, &s)), []string{i.Kernel.Name}
			}
		}
	}
	for _, p := range i.Initrds {
		initrds, names = append(initrds, i.part(p, nil)), append(names, p.Name)
	}
	for _, v := range i.all {
		if v.name == i.where(i.Kernel.Device) {
			e.FileSystem, e.Label = v.UUID, v.Label
		}
	}
	if len(initrds) > 0 {
		e.Initrd = NewFile(strings.Join(names, " "), initrds)
	}
	return e, true
}

// loaderVariables reads systemd-boot's variables from the running kernel's EFI
// variables.
func loaderVariables() (v bls.Variables) {
	for name, to := range map[string]*string{
		"LoaderEntryOneShot": &v.OneShot, "LoaderEntryDefault": &v.Default, "LoaderEntryLastBooted": &v.LastBooted,
	} {
		b, err := os.ReadFile("/sys/firmware/efi/efivars/" + name + "-4a67b082-0a4c-41cf-b6c7-440b29bb8c4f")
		if err == nil {
			*to = bls.DecodeVariable(b)
		}
	}
	return v
}
