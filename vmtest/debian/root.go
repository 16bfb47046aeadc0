package debian

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/warmcore/warmcore/vmtest/command"
)

// hostSuite is the release whose kernel and user space the stories use.
const hostSuite = "bookworm"

// rootPackages are installed beside debootstrap's minimum: what boots, and
// what may get in warmcore's way. The kernel comes last, from its own file.
var rootPackages = []string{
	"systemd-sysv", "udev", "kmod", "initramfs-tools", "zstd", "e2fsprogs", "grub-common",
	"kdump-tools", "kexec-tools", "makedumpfile",
}

// rootScript builds a root file system in $1, from the archive $2, with the
// kernel package $3 and the kernel parameters $4. It runs in a mount
// namespace, so that nothing stays mounted below $1 however it ends.
//
// kdump-tools' hook is held back: it looks for the modules of the running
// machine (MODULES=dep), which this is not. And grub-mkconfig is told about a
// disk that there isn't yet, by other answers of grub-probe.
const rootScript = `
root=$1 hook=$1/etc/kernel/postinst.d/kdump-tools
debootstrap --variant=minbase --include="$5" ` + hostSuite + ` "$root" "$2"
chmod a-x "$hook"
cp "$3" "$root/kernel.deb"
mount -t proc proc "$root/proc"
chroot "$root" dpkg --force-unsafe-io --install /kernel.deb
chmod a+x "$hook"
rm "$root/kernel.deb" "$root"/var/cache/apt/archives/*.deb
: >"$root/etc/machine-id"
echo debian >"$root/etc/hostname"
echo "UUID=` + FilesystemUUID + ` / ext4 errors=remount-ro 0 1" >"$root/etc/fstab"
cat >"$root/etc/default/grub" <<EOF
GRUB_DEFAULT=0
GRUB_TIMEOUT=5
GRUB_DISTRIBUTOR=Debian
GRUB_CMDLINE_LINUX_DEFAULT="$4"
GRUB_CMDLINE_LINUX=""
EOF
mount -t tmpfs tmpfs "$root/tmp"
cat >"$root/tmp/grub-probe" <<'EOF'
#!/bin/sh
case "$*" in
*--target=device*) echo /dev/vda1 ;;
*--target=fs_uuid*) echo ` + FilesystemUUID + ` ;;
*--target=partuuid*) echo ` + partitionUUID + ` ;;
*--target=fs*) echo ext2 ;;
*--target=partmap*) echo gpt ;;
*--target=drive*) echo "(hd0,gpt1)" ;;
*--target=abstraction*|*--target=hints_string*) ;;
*--target=compatibility_hint*) echo hd0,gpt1 ;;
*) exit 1 ;;
esac
EOF
chmod a+x "$root/tmp/grub-probe"
mount --bind "$root/tmp/grub-probe" "$root/usr/sbin/grub-probe"
mount -t tmpfs tmpfs "$root/dev"
mknod -m 666 "$root/dev/null" c 1 3
mkdir -p "$root/dev/disk/by-uuid" "$root/boot/grub"
: >"$root/dev/disk/by-uuid/` + FilesystemUUID + `"
chroot "$root" grub-mkconfig -o ` + GRUBConfigPath + `
`

// Root is a root file system of Debian 12 with systemd, kdump-tools and a
// kernel whose initrd Debian's own initramfs-tools has made.
type Root struct {
	Dir     string // not to be changed: Build links its files
	Release string // of the kernel
}

// OpenRoot builds the root file system with debootstrap into cache, once
// for each point release of Debian, kernel package and params, the kernel
// parameters that its grub.cfg gets. It needs root.
func OpenRoot(ctx context.Context, cache string, k Kernel, params string) (Root, error) {
	// The version of base-files is that of the point release.
	out, err := command.Output(ctx, "apt-get", "-qq", "--print-uris", "download", "base-files")
	if err != nil {
		return Root{}, fmt.Errorf("find packages (has apt-get update run?): %w", err)
	}
	base, err := parseURIs(out)
	if err != nil {
		return Root{}, err
	}
	if len(base) != 1 {
		return Root{}, fmt.Errorf("apt-get offers %d packages base-files, want 1", len(base))
	}
	site, err := archiveSite(ctx)
	if err != nil {
		return Root{}, err
	}
	packages := strings.Join(rootPackages, ",")
	key := shortHash(strings.Join([]string{rootScript, packages, params, base[0].name, debKey(k.Deb)}, "\n"))
	root, err := cached(cache, "debian", key, func(dir string) error {
		_, err := command.Output(ctx, "unshare", "--mount", "env", "DEBIAN_FRONTEND=noninteractive", "LC_ALL=C",
			"sh", "-ec", rootScript, "sh", dir, site, k.Deb, params, packages)
		return err
	})
	if err != nil {
		return Root{}, fmt.Errorf("build Debian's root file system: %w", err)
	}
	return Root{Dir: root, Release: k.Release}, nil
}

// archiveSite returns the archive that apt on this host gets the suite from.
func archiveSite(ctx context.Context) (string, error) {
	out, err := command.Output(ctx, "apt-get", "indextargets", "--format", "$(SITE)", "Created-By: Packages", "Codename: "+hostSuite, "Component: main")
	if err != nil {
		return "", err
	}
	site, _, _ := strings.Cut(out, "\n")
	if site == "" {
		return "", fmt.Errorf("apt on this host has no archive with %s", hostSuite)
	}
	return site, nil
}

// Build writes a disk image of size bytes to path, as Disk.Build does, with
// the whole of Debian on it. install may put more into the root file system
// that it is given; it must replace files, as Put does, and never write into
// one, since they are hard links.
func (d Root) Build(ctx context.Context, path string, size int64, install func(root string) error) (err error) {
	stage, err := os.MkdirTemp(filepath.Dir(d.Dir), ".stage") // on the same file system, for links
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(stage)) }()
	if _, err := command.Output(ctx, "cp", "-a", "--link", d.Dir+"/.", stage); err != nil {
		return err
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
