package rig

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// debianSuite is the release whose kernel and user space the stories use.
const debianSuite = "bookworm"

// debianPackages are installed beside debootstrap's minimum: what boots, and
// what may get in warmcore's way. The kernel comes last, from its own file.
var debianPackages = []string{
	"systemd-sysv", "udev", "kmod", "initramfs-tools", "zstd", "e2fsprogs", "grub-common",
	"kdump-tools", "kexec-tools", "makedumpfile",
}

// debianScript builds a root file system in $1, from the archive $2 and the
// kernel package $3. It runs in a mount namespace, so that nothing stays
// mounted below $1 however it ends. kdump-tools' hook is held back: it looks
// for the modules of the running machine (MODULES=dep), which this is not.
const debianScript = `
root=$1 hook=$1/etc/kernel/postinst.d/kdump-tools
debootstrap --variant=minbase --include=` + "%s" + ` ` + debianSuite + ` "$root" "$2"
chmod a-x "$hook"
cp "$3" "$root/kernel.deb"
mount -t proc proc "$root/proc"
chroot "$root" dpkg --force-unsafe-io --install /kernel.deb
chmod a+x "$hook"
rm "$root/kernel.deb" "$root"/var/cache/apt/archives/*.deb
: >"$root/etc/machine-id"
echo debian >"$root/etc/hostname"
echo "UUID=` + FilesystemUUID + ` / ext4 errors=remount-ro 0 1" >"$root/etc/fstab"
`

// Debian is a root file system of Debian 12 with systemd, kdump-tools and a
// kernel whose initrd Debian's own initramfs-tools has made.
type Debian struct {
	Root    string // not to be changed: Build links its files
	Release string // of the kernel
}

// OpenDebian builds the root file system with debootstrap into cache, once
// for each point release of Debian and each kernel package. It needs root.
func OpenDebian(ctx context.Context, cache string, k NormalKernel) (Debian, error) {
	// The version of base-files is that of the point release.
	out, err := output(ctx, "apt-get", "-qq", "--print-uris", "download", "base-files")
	if err != nil {
		return Debian{}, fmt.Errorf("find packages (has apt-get update run?): %w", err)
	}
	base, err := parseURIs(out)
	if err != nil {
		return Debian{}, err
	}
	if len(base) != 1 {
		return Debian{}, fmt.Errorf("apt-get offers %d packages base-files, want 1", len(base))
	}
	site, err := archiveSite(ctx)
	if err != nil {
		return Debian{}, err
	}
	script := fmt.Sprintf(debianScript, strings.Join(debianPackages, ","))
	key := shortHash(strings.Join([]string{script, base[0].name, debKey(k.Deb)}, "\n"))
	root, err := cached(cache, "debian", key, func(dir string) error {
		_, err := output(ctx, "unshare", "--mount", "env", "DEBIAN_FRONTEND=noninteractive", "LC_ALL=C",
			"sh", "-ec", script, "sh", dir, site, k.Deb)
		return err
	})
	if err != nil {
		return Debian{}, fmt.Errorf("build Debian's root file system: %w", err)
	}
	return Debian{Root: root, Release: k.Release}, nil
}

// archiveSite returns the archive that apt on this host gets the suite from.
func archiveSite(ctx context.Context) (string, error) {
	out, err := output(ctx, "apt-get", "indextargets", "--format", "$(SITE)", "Created-By: Packages", "Codename: "+debianSuite, "Component: main")
	if err != nil {
		return "", err
	}
	site, _, _ := strings.Cut(out, "\n")
	if site == "" {
		return "", fmt.Errorf("apt on this host has no archive with %s", debianSuite)
	}
	return site, nil
}

// Build writes a disk image of size bytes to path, as Disk.Build does, with
// the whole of Debian on it. params are kernel parameters for grub.cfg, and
// for the next one that grub-mkconfig writes. install may put more into the
// root file system that it is given; it must replace files and never write
// into one, since they are hard links.
func (d Debian) Build(ctx context.Context, path string, size int64, params string, install func(root string) error) (err error) {
	stage, err := os.MkdirTemp(filepath.Dir(d.Root), ".stage") // on the same file system, for links
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(stage)) }()
	if _, err := output(ctx, "cp", "-a", "--link", d.Root+"/.", stage); err != nil {
		return err
	}
	grub, err := GRUBConfig(d.Release, params)
	if err != nil {
		return err
	}
	for name, data := range map[string]string{
		GRUBConfigPath:      string(grub),
		"/etc/default/grub": fmt.Sprintf("GRUB_DEFAULT=0\nGRUB_TIMEOUT=5\nGRUB_DISTRIBUTOR=Debian\nGRUB_CMDLINE_LINUX_DEFAULT=%q\nGRUB_CMDLINE_LINUX=\"\"\n", params),
	} {
		if err := Put(stage, name, []byte(data), 0o644); err != nil {
			return err
		}
	}
	if err := install(stage); err != nil {
		return fmt.Errorf("build disk %s: %w", path, err)
	}
	return makeImage(ctx, path, size, stage)
}

// Put gives the file name below root new contents in a file of its own: what
// was linked to the old one stays.
func Put(root, name string, contents []byte, mode os.FileMode) error {
	file := filepath.Join(root, name)
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		return err
	}
	if err := os.RemoveAll(file); err != nil {
		return err
	}
	if err := os.WriteFile(file, contents, mode); err != nil {
		return err
	}
	return os.Chmod(file, mode) // whatever the umask is
}
