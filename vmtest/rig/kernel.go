package rig

import (
	"context"
	"debug/elf"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// NormalKernel is an unpacked Debian kernel package.
type NormalKernel struct {
	Release string // uname -r
	Image   string // bzImage
	Modules string // lib/modules/RELEASE, with modules.dep
	Deb     string // the package that it came from
}

// OpenKernel unpacks a linux-image package into cache, once, and makes
// modules.dep, which the package leaves to its installation.
func OpenKernel(ctx context.Context, cache, deb string, k Kmod) (NormalKernel, error) {
	root, err := cached(cache, "kernel-deb", debKey(deb), func(dir string) error {
		if err := unpack(ctx, dir, deb); err != nil {
			return err
		}
		release, err := releaseIn(dir)
		if err != nil {
			return err
		}
		return k.depmod(ctx, dir, release)
	})
	if err != nil {
		return NormalKernel{}, err
	}
	release, err := releaseIn(root)
	if err != nil {
		return NormalKernel{}, err
	}
	return NormalKernel{
		Release: release,
		Image:   filepath.Join(root, "boot", "vmlinuz-"+release),
		Modules: filepath.Join(root, "lib", "modules", release),
		Deb:     deb,
	}, nil
}

func releaseIn(root string) (string, error) {
	images, err := filepath.Glob(filepath.Join(root, "boot", "vmlinuz-*"))
	if err != nil {
		return "", err
	}
	if len(images) != 1 {
		return "", fmt.Errorf("kernel package in %s: %d files boot/vmlinuz-*, want 1", root, len(images))
	}
	return strings.TrimPrefix(filepath.Base(images[0]), "vmlinuz-"), nil
}

// Kmod is Debian's modprobe and depmod with the libraries that they need,
// unpacked in a folder.
type Kmod struct {
	Root string
}

// kmodPackages is kmod and what it depends on, directly or not.
var kmodPackages = []string{"kmod", "libkmod2", "libc6", "liblzma5", "libzstd1", "libssl3"}

// Paths in a Kmod's root and in an initrd.
const (
	kmodProgram = "bin/kmod"
	loader      = "lib64/ld-linux-x86-64.so.2"
)

// libraryDirs are where the loader looks on Debian.
var libraryDirs = []string{"lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu"}

// OpenKmod downloads and unpacks kmod into cache, if it isn't there.
func OpenKmod(ctx context.Context, cache string) (Kmod, error) {
	debs, err := DownloadAll(ctx, cache, kmodPackages...)
	if err != nil {
		return Kmod{}, err
	}
	var key []string
	for _, deb := range debs {
		key = append(key, debKey(deb))
	}
	root, err := cached(cache, "kmod", shortHash(strings.Join(key, "\n")), func(dir string) error { return unpack(ctx, dir, debs...) })
	return Kmod{root}, err
}

// depmod writes modules.dep and its like for the modules in root.
func (k Kmod) depmod(ctx context.Context, root, release string) error {
	var dirs []string
	for _, d := range libraryDirs {
		dirs = append(dirs, filepath.Join(k.Root, d))
	}
	// The loader's link in the package is absolute.
	ld := filepath.Join(k.Root, libraryDirs[0], filepath.Base(loader))
	_, err := output(ctx, ld, "--library-path", strings.Join(dirs, ":"), "--argv0", "depmod",
		filepath.Join(k.Root, kmodProgram), "-b", root, release)
	return err
}

// files returns what an initrd needs for modprobe to work: paths in the
// initrd, and in the Kmod's root.
func (k Kmod) files() (map[string]string, error) {
	files := map[string]string{loader: filepath.Join(k.Root, libraryDirs[0], filepath.Base(loader))}
	todo := []string{kmodProgram}
	for len(todo) > 0 {
		name := todo[0]
		todo = todo[1:]
		if files[name] != "" {
			continue
		}
		path := filepath.Join(k.Root, name)
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
			if lib == filepath.Base(loader) {
				continue
			}
			i := slices.IndexFunc(libraryDirs, func(dir string) bool {
				_, err := os.Stat(filepath.Join(k.Root, dir, lib))
				return err == nil
			})
			if i < 0 {
				return nil, fmt.Errorf("library %s of %s: not in %v", lib, path, kmodPackages)
			}
			todo = append(todo, filepath.Join(libraryDirs[i], lib))
		}
	}
	return files, nil
}
