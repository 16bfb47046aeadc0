package debian

import (
	"context"
	"debug/elf"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/warmcore/warmcore/vmtest/command"
)

// Kernel is an unpacked Debian kernel.
type Kernel struct {
	Arch    *Arch
	Release string // uname -r
	Image   string // bzImage or Image
	Modules string // lib/modules/RELEASE, with modules.dep
	Deb     string // the first of the packages that it came from
}

// OpenKernel unpacks the packages of a kernel into cache, once, and makes
// modules.dep, which they leave to their installation. The first of debs is
// named after the kernel's version.
func OpenKernel(ctx context.Context, cache string, k Programs, debs ...string) (Kernel, error) {
	root, err := cached(cache, "kernel-deb", debKey(debs[0]), func(dir string) error {
		if err := unpack(ctx, dir, debs...); err != nil {
			return err
		}
		// Newer packages have all in usr, and leave /lib to the system.
		if _, err := os.Stat(filepath.Join(dir, "lib")); err != nil {
			if err := os.Symlink("usr/lib", filepath.Join(dir, "lib")); err != nil {
				return err
			}
		}
		release, _, err := findKernel(dir)
		if err != nil {
			return err
		}
		return k.depmod(ctx, dir, release)
	})
	if err != nil {
		return Kernel{}, err
	}
	release, image, err := findKernel(root)
	if err != nil {
		return Kernel{}, err
	}
	return Kernel{Arch: k.Arch, Release: release, Image: image, Modules: filepath.Join(root, "lib/modules", release), Deb: debs[0]}, nil
}

// TakesMemory says whether the kernel can take memory that it was told to leave
// alone. On arm64 that needs CONFIG_ZONE_DEVICE, which Debian 12's kernels lack.
// A kernel whose configuration isn't beside it counts as one that can.
func (k Kernel) TakesMemory() (bool, error) {
	for _, name := range []string{filepath.Join(filepath.Dir(k.Image), "config-"+k.Release), filepath.Join(filepath.Dir(k.Image), "config")} {
		b, err := os.ReadFile(name)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		return slices.Contains(strings.Split(string(b), "\n"), "CONFIG_ZONE_DEVICE=y"), err
	}
	return true, nil
}

// findKernel returns the release and the file of the one kernel below root:
// boot/vmlinuz-RELEASE, or lib/modules/RELEASE/vmlinuz since Linux 7.2.
func findKernel(root string) (release, image string, err error) {
	images, err := filepath.Glob(filepath.Join(root, "boot/vmlinuz-*"))
	if err != nil {
		return "", "", err
	}
	beside, err := filepath.Glob(filepath.Join(root, "lib/modules/*/vmlinuz"))
	if err != nil {
		return "", "", err
	}
	switch {
	case len(images) == 1:
		return strings.TrimPrefix(filepath.Base(images[0]), "vmlinuz-"), images[0], nil
	case len(images) == 0 && len(beside) == 1:
		return filepath.Base(filepath.Dir(beside[0])), beside[0], nil
	}
	return "", "", fmt.Errorf("kernel packages in %s: %d files boot/vmlinuz-* and %d lib/modules/*/vmlinuz, want 1", root, len(images), len(beside))
}

// Programs are Debian's programs of one architecture with the libraries that
// they need, unpacked in a folder.
type Programs struct {
	Arch *Arch
	Root string
}

// kmodPackages is kmod and what it depends on, directly or not.
var kmodPackages = []string{"kmod", "libkmod2", "libc6", "liblzma5", "libzstd1", "libssl3"}

// kmodProgram is a path in kmod's root and in an initrd.
const kmodProgram = "bin/kmod"

// libraryDirs are where the loader looks on Debian.
func (a *Arch) libraryDirs() []string { return []string{"lib/" + a.triplet, "usr/lib/" + a.triplet} }

// OpenKmod downloads and unpacks kmod into cache, if it isn't there.
func (a *Arch) OpenKmod(ctx context.Context, cache string) (Programs, error) {
	return a.OpenPrograms(ctx, cache, "", kmodPackages)
}

// OpenPrograms downloads and unpacks packages into cache, if they aren't there:
// the package of a program and all that it depends on. They are of a release of
// Debian or, if suite is empty, the host's.
func (a *Arch) OpenPrograms(ctx context.Context, cache, suite string, packages []string) (Programs, error) {
	debs, err := a.DownloadAll(ctx, cache, suite, packages...)
	if err != nil {
		return Programs{}, err
	}
	var key []string
	for _, deb := range debs {
		key = append(key, debKey(deb))
	}
	root, err := cached(cache, "programs", shortHash(strings.Join(key, "\n")), func(dir string) error { return unpack(ctx, dir, debs...) })
	return Programs{a, root}, err
}

// linker is the dynamic linker. Its usual link in the package is absolute, and
// newer releases have no lib beside usr/lib.
func (p Programs) linker() string {
	var file string
	for _, dir := range p.Arch.libraryDirs() {
		file = filepath.Join(p.Root, dir, filepath.Base(p.Arch.loader))
		if _, err := os.Stat(file); err == nil {
			break
		}
	}
	return file
}

// Argv returns the command line that runs a program, such as bin/kmod, on
// this host with its own libraries: emulated, if it is of another architecture.
func (p Programs) Argv(program string, args ...string) []string {
	var dirs []string
	for _, d := range p.Arch.libraryDirs() {
		dirs = append(dirs, filepath.Join(p.Root, d))
	}
	var argv []string
	if p.Arch != Native {
		argv = []string{p.Arch.emulator}
	}
	argv = append(argv, p.linker(), "--library-path", strings.Join(dirs, ":"), "--argv0", filepath.Base(program), filepath.Join(p.Root, program))
	return append(argv, args...)
}

// depmod writes modules.dep and its like for the modules in root.
func (p Programs) depmod(ctx context.Context, root, release string) error {
	argv := p.Argv(kmodProgram, "-b", root, release)
	argv[slices.Index(argv, "--argv0")+1] = "depmod" // kmod goes by its name
	_, err := command.Output(ctx, argv[0], argv[1:]...)
	return err
}

// files returns what an initrd needs for a program to work: paths in the
// initrd, and in the root.
func (p Programs) files(program string) (map[string]string, error) {
	libraryDirs := p.Arch.libraryDirs()
	files := map[string]string{p.Arch.loader: p.linker()}
	todo := []string{program}
	for len(todo) > 0 {
		name := todo[0]
		todo = todo[1:]
		if files[name] != "" {
			continue
		}
		path := filepath.Join(p.Root, name)
		files[name] = path
		f, err := elf.Open(path)
		if err != nil {
			return nil, err
		}
		libs, err := f.ImportedLibraries()
		if err := errors.Join(err, f.Close()); err != nil {
			return nil, fmt.Errorf("libraries of %s: %w", path, err)
		}
		for _, lib := range libs {
			if lib == filepath.Base(p.Arch.loader) {
				continue
			}
			i := slices.IndexFunc(libraryDirs, func(dir string) bool {
				_, err := os.Stat(filepath.Join(p.Root, dir, lib))
				return err == nil
			})
			if i < 0 {
				return nil, fmt.Errorf("library %s of %s: not in %s", lib, path, p.Root)
			}
			todo = append(todo, filepath.Join(libraryDirs[i], lib))
		}
	}
	return files, nil
}
