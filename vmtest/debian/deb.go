package debian

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/warmcore/warmcore/vmtest/command"
)

// CacheDir returns the directory for downloads and the packages unpacked
// from them.
func CacheDir() (string, error) {
	dir, err := os.UserCacheDir() // XDG_CACHE_HOME or ~/.cache
	if err != nil {
		return "", err
	}
	return filepath.Join(dir, "warmcore"), nil
}

// archived is a package file as the archive offers it.
type archived struct {
	name   string // PACKAGE_VERSION_ARCH.deb
	sha256 string // hexadecimal
}

// parseURIs reads what apt-get download --print-uris prints: a line
// 'URI' NAME SIZE SHA256:HASH per package.
func parseURIs(out string) ([]archived, error) {
	var all []archived
	for line := range strings.Lines(out) {
		f := strings.Fields(line)
		if len(f) != 4 || !strings.HasPrefix(f[3], "SHA256:") || strings.Contains(f[1], "/") {
			return nil, fmt.Errorf("apt-get download --print-uris: %q: want 'URI' NAME SIZE SHA256:HASH", line)
		}
		all = append(all, archived{f[1], strings.TrimPrefix(f[3], "SHA256:")})
	}
	return all, nil
}

// apt returns the options that make apt's programs act for a, in a release of
// Debian or, if suite is empty, in this host's. For another
// architecture or release than the host's they have lists of their own in
// cache, from the archives that the host uses, and leave the host's alone.
func (a *Arch) apt(ctx context.Context, cache, suite string) ([]string, error) {
	if a == Native && suite == "" {
		return []string{"-qq"}, nil
	}
	dir := filepath.Join(cache, "apt", strings.TrimSuffix(a.Name+"-"+suite, "-"))
	argv := []string{"-qq", "-o", "APT::Architecture=" + a.Name, "-o", "APT::Architectures=" + a.Name,
		"-o", "Dir::State=" + filepath.Join(dir, "state"), "-o", "Dir::State::status=/dev/null", "-o", "Dir::Cache=" + dir}
	for _, sub := range []string{"state/lists/partial", "archives/partial"} {
		if err := os.MkdirAll(filepath.Join(dir, sub), 0o755); err != nil {
			return nil, err
		}
	}
	// Stories run beside each other, and apt doesn't wait for apt.
	stamp, err := os.OpenFile(filepath.Join(dir, "updated"), os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, err
	}
	defer stamp.Close()
	if err := unix.Flock(int(stamp.Fd()), unix.LOCK_EX); err != nil {
		return nil, fmt.Errorf("lock %s: %w", stamp.Name(), err)
	}
	if suite != "" {
		site, err := archiveSite(ctx)
		if err != nil {
			return nil, err
		}
		sources := filepath.Join(dir, "sources.list")
		line := fmt.Sprintf("deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] %s %s main\n", site, suite)
		if err := os.WriteFile(sources, []byte(line), 0o644); err != nil {
			return nil, err
		}
		argv = append(argv, "-o", "Dir::Etc::sourcelist="+sources, "-o", "Dir::Etc::sourceparts=/dev/null")
	}
	fi, err := stamp.Stat()
	if err != nil {
		return nil, err
	}
	if fi.Size() > 0 && time.Since(fi.ModTime()) < listsAge {
		return argv, nil
	}
	if _, err := command.Output(ctx, "apt-get", append(slices.Clone(argv), "update")...); err != nil {
		return nil, err
	}
	_, err = stamp.WriteAt([]byte("updated\n"), 0)
	return argv, err
}

// listsAge is the age at which our own package lists are fetched again.
const listsAge = 24 * time.Hour

// DownloadAll returns the files of Debian packages, in the order of pkgs, in the
// versions that the archive of a release has, as apt's lists know them; if suite
// is empty, that of the host's release. A file in cache/debs with the archive's
// hash isn't downloaded again. All are one call, because apt takes a second to
// start.
func (a *Arch) DownloadAll(ctx context.Context, cache, suite string, pkgs ...string) ([]string, error) {
	apt, err := a.apt(ctx, cache, suite)
	if err != nil {
		return nil, err
	}
	out, err := command.Output(ctx, "apt-get", slices.Concat(apt, []string{"--print-uris", "download"}, pkgs)...)
	if err != nil {
		return nil, fmt.Errorf("find packages (has apt-get update run?): %w", err)
	}
	offered, err := parseURIs(out)
	if err != nil {
		return nil, err
	}
	var paths []string
	for _, pkg := range pkgs {
		i := slices.IndexFunc(offered, func(a archived) bool { return strings.HasPrefix(a.name, pkg+"_") })
		if i < 0 {
			return nil, fmt.Errorf("find package %s: apt-get offers %v", pkg, offered)
		}
		path := filepath.Join(cache, "debs", offered[i].name)
		if sum, err := fileSHA256(path); err != nil || sum != offered[i].sha256 {
			if err := download(ctx, apt, pkg, path, offered[i].sha256); err != nil {
				return nil, fmt.Errorf("download %s: %w", pkg, err)
			}
		}
		paths = append(paths, path)
	}
	return paths, nil
}

// download puts the file of a package, whose hash is want, at path.
func download(ctx context.Context, apt []string, pkg, path, want string) error {
	debs := filepath.Dir(path)
	if err := os.MkdirAll(debs, 0o755); err != nil {
		return err
	}
	tmp, err := os.MkdirTemp(debs, "download")
	if err != nil {
		return err
	}
	defer os.RemoveAll(tmp)
	cmd := exec.CommandContext(ctx, "apt-get", slices.Concat(apt, []string{"-o", "APT::Sandbox::User=root", "download", pkg})...)
	cmd.Dir = tmp
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%w: %s", err, bytes.TrimSpace(out))
	}
	got := filepath.Join(tmp, filepath.Base(path))
	sum, err := fileSHA256(got)
	if err != nil {
		return err
	}
	if sum != want {
		return fmt.Errorf("SHA-256 %s, want %s", sum, want)
	}
	return os.Rename(got, path)
}

func fileSHA256(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return "", err
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

// KernelPackages returns the packages of the kernel that a release of Debian
// has today, or this host's if suite is empty. The first is the image's, such
// as linux-image-6.1.0-56-amd64; since 7.2 that is empty, and depends on others
// that have the kernel, its modules and what describes them.
func (a *Arch) KernelPackages(ctx context.Context, cache, suite string) ([]string, error) {
	apt, err := a.apt(ctx, cache, suite)
	if err != nil {
		return nil, err
	}
	name := a.kernel
	if suite != "" {
		name = "linux-image-" + a.Name
	}
	depends := func(name string) (string, error) {
		return command.Output(ctx, "apt-cache", slices.Concat(apt, []string{"depends", "--important", name})...)
	}
	out, err := depends(name)
	if err != nil {
		return nil, err
	}
	image := ""
	for _, d := range parseDepends(out) {
		if strings.HasPrefix(d, imagePrefix) {
			image = d
			break
		}
	}
	if image == "" {
		return nil, fmt.Errorf("apt-cache depends %s: no %s in %q", name, imagePrefix, out)
	}
	if out, err = depends(image); err != nil {
		return nil, err
	}
	return append([]string{image}, kernelParts(image, parseDepends(out))...), nil
}

const imagePrefix = "linux-image-"

// parseDepends returns the packages that apt-cache depends prints, without
// those that have alternatives.
func parseDepends(out string) (names []string) {
	for line := range strings.Lines(out) {
		name, ok := strings.CutPrefix(strings.TrimSpace(line), "Depends: ")
		if ok && !strings.HasPrefix(name, "<") {
			names = append(names, name)
		}
	}
	return names
}

// kernelParts returns those packages of depends that are parts of the kernel of
// the package image: named as that is, but for the first words.
func kernelParts(image string, depends []string) (parts []string) {
	release := strings.TrimPrefix(image, imagePrefix)
	for _, d := range depends {
		if strings.HasPrefix(d, "linux-") && strings.HasSuffix(d, "-"+release) {
			parts = append(parts, d)
		}
	}
	return parts
}

// cached returns the folder cache/kind/key, which make fills if it doesn't
// exist. It is complete or not there.
func cached(cache, kind, key string, make func(dir string) error) (string, error) {
	dir := filepath.Join(cache, kind, key)
	if _, err := os.Stat(dir); err == nil {
		return dir, nil
	}
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		return "", err
	}
	tmp, err := os.MkdirTemp(filepath.Dir(dir), "."+key)
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(tmp)
	if err := make(tmp); err != nil {
		return "", err
	}
	if err := os.Chmod(tmp, 0o755); err != nil {
		return "", err
	}
	err = os.Rename(tmp, dir)
	if errors.Is(err, fs.ErrExist) {
		err = nil // another process was faster
	}
	return dir, err
}

// debKey names what is unpacked of deb: the file name has the package and its
// version.
func debKey(deb string) string { return strings.TrimSuffix(filepath.Base(deb), ".deb") }

// unpack unpacks debs into dir.
func unpack(ctx context.Context, dir string, debs ...string) error {
	for _, deb := range debs {
		if _, err := command.Output(ctx, "dpkg-deb", "-x", deb, dir); err != nil {
			return err
		}
	}
	return nil
}

// DebugVmlinux returns the vmlinux with debug information of the kernel
// release from a linux-image-*-dbg package, and unpacks nothing else of that.
func DebugVmlinux(ctx context.Context, cache, deb, release string) (string, error) {
	name := "vmlinux-" + release
	dir, err := cached(cache, "vmlinux", debKey(deb), func(dir string) error {
		return extractMember(ctx, deb, filepath.Join(dir, name),
			"usr/lib/debug/boot/"+name, "usr/lib/debug/usr/lib/modules/"+release+"/vmlinux", "usr/lib/debug/lib/modules/"+release+"/vmlinux")
	})
	if err != nil {
		return "", err
	}
	return filepath.Join(dir, name), nil
}

// extractMember writes the first file of a package that has one of the names in
// members to path.
func extractMember(ctx context.Context, deb, path string, members ...string) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	cmd := exec.CommandContext(ctx, "dpkg-deb", "--fsys-tarfile", deb)
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	defer func() {
		cancel() // most of the package may come after the file
		_ = cmd.Wait()
	}()
	for tr := tar.NewReader(stdout); ; {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return fmt.Errorf("extract %s from %s: not in it", strings.Join(members, " or "), deb)
		}
		if err != nil {
			return fmt.Errorf("extract %s from %s: %w", members[0], deb, err)
		}
		if !slices.Contains(members, strings.TrimPrefix(h.Name, "./")) || h.Typeflag != tar.TypeReg {
			continue
		}
		f, err := os.Create(path)
		if err != nil {
			return err
		}
		_, err = io.Copy(f, tr)
		return errors.Join(err, f.Close())
	}
}
