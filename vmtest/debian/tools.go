package debian

import (
	"context"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/warmcore/warmcore/vmtest/command"
)

// newestSuite has the newest of all programs.
const newestSuite = "sid"

// toolPackages are the programs that read dumps.
var toolPackages = []string{"crash", "makedumpfile", "python3-drgn"}

// toolsScript builds a root file system in $1 from the archive $2 with the
// packages $3.
const toolsScript = `
debootstrap --variant=minbase --include="$3" ` + newestSuite + ` "$1" "$2"
rm -f "$1"/var/cache/apt/archives/*.deb
`

// Tools are the newest programs that read dumps, of this host's architecture,
// in a root file system of their own, since they need newer libraries than the
// host has.
type Tools struct {
	root string
}

// OpenTools builds the root file system with debootstrap into cache, once for
// each version of the programs. It needs root.
func OpenTools(ctx context.Context, cache string) (Tools, error) {
	apt, err := Native.apt(ctx, cache, newestSuite)
	if err != nil {
		return Tools{}, err
	}
	out, err := command.Output(ctx, "apt-get", append(append(apt, "--print-uris", "download"), toolPackages...)...)
	if err != nil {
		return Tools{}, fmt.Errorf("find packages: %w", err)
	}
	offered, err := parseURIs(out)
	if err != nil {
		return Tools{}, err
	}
	var names []string
	for _, o := range offered {
		names = append(names, o.name)
	}
	site, err := archiveSite(ctx)
	if err != nil {
		return Tools{}, err
	}
	root, err := cached(cache, "tools", shortHash(toolsScript+strings.Join(names, "\n")), func(dir string) error {
		_, err := command.Output(ctx, "unshare", "--mount", "env", "DEBIAN_FRONTEND=noninteractive", "LC_ALL=C",
			"sh", "-ec", toolsScript, "sh", dir, site, strings.Join(toolPackages, ","))
		return err
	})
	if err != nil {
		return Tools{}, fmt.Errorf("build the root file system of the newest tools: %w", err)
	}
	return Tools{root}, nil
}

// Command runs argv in the root file system, where the files in the folders
// dirs can be read and written; words of argv that are absolute names of such
// files are changed to what these are called there. Nothing stays mounted
// however it ends.
func (t Tools) Command(ctx context.Context, dirs []string, argv ...string) *exec.Cmd {
	const script = `
root=$1 n=$2; shift 2
mount -t proc proc "$root/proc"
mount -t tmpfs tmpfs "$root/mnt"
while [ "$n" -gt 0 ]; do
	mkdir -p "$root/mnt/$n"; mount --bind "$1" "$root/mnt/$n"
	n=$((n - 1)); shift
done
exec chroot "$root" "$@"
`
	words := []string{"--mount", "sh", "-ec", script, "sh", t.root, fmt.Sprint(len(dirs))}
	words = append(words, dirs...)
	for _, a := range argv {
		words = append(words, inRoot(dirs, a))
	}
	return exec.CommandContext(ctx, "unshare", words...)
}

// inRoot returns the name that a file called name outside has in the root, if it
// lies in one of dirs, which are mounted on numbered folders, the last on 1.
func inRoot(dirs []string, name string) string {
	for i, dir := range dirs {
		if rel, err := filepath.Rel(dir, name); err == nil && filepath.IsAbs(name) && rel != ".." && !strings.HasPrefix(rel, "../") {
			return filepath.Join("/mnt", fmt.Sprint(len(dirs)-i), rel)
		}
	}
	return name
}
