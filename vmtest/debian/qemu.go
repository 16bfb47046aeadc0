package debian

import (
	"context"
	"fmt"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"

	"github.com/warmcore/warmcore/vmtest/command"
)

// oldestQEMU is the first version of QEMU whose emulation runs Linux 7.x on
// several x86-64 CPUs. 7.2 doesn't: a CPU executes half of an instruction that
// another one is patching, and the kernel dies of an invalid opcode.
const oldestQEMU = 10

// qemuPackages is QEMU for x86-64 with its firmware. The libraries are the
// host's: the backports of a release are made for them.
var qemuPackages = []string{"qemu-system-x86", "qemu-system-common", "qemu-system-data", "seabios"}

// NewQEMU returns the words of a command line that begin with a qemu program
// which runs the newest kernels of a: the host's own, if that is new enough or
// another architecture's, else that of the backports of the host's release,
// unpacked in cache and not installed.
func (a *Arch) NewQEMU(ctx context.Context, cache string) ([]string, error) {
	if a != AMD64 {
		return nil, nil
	}
	const program = "qemu-system-x86_64"
	out, err := command.Output(ctx, program, "--version")
	if err != nil {
		return nil, err
	}
	if major, err := qemuMajor(out); err != nil || major >= oldestQEMU {
		return nil, err
	}
	debs, err := Native.DownloadAll(ctx, cache, hostSuite+"-backports", qemuPackages...)
	if err != nil {
		return nil, err
	}
	root, err := cached(cache, "qemu", debKey(debs[0]), func(dir string) error { return unpack(ctx, dir, debs...) })
	if err != nil {
		return nil, err
	}
	share := filepath.Join(root, "usr/share")
	argv := []string{filepath.Join(root, "usr/bin", program), "-L", filepath.Join(share, "qemu"), "-L", filepath.Join(share, "seabios")}
	if out, err = command.Output(ctx, argv[0], "--version"); err != nil {
		return nil, fmt.Errorf("%w (libraries that %s needs may be missing on this host)", err, filepath.Base(debs[0]))
	}
	major, err := qemuMajor(out)
	if err == nil && major < oldestQEMU {
		err = fmt.Errorf("QEMU of %s-backports is version %d; want %d", hostSuite, major, oldestQEMU)
	}
	return argv, err
}

var qemuVersion = regexp.MustCompile(`(?m)^QEMU emulator version (\d+)\.`)

// qemuMajor reads the first number of the version that QEMU prints.
func qemuMajor(out string) (int, error) {
	m := qemuVersion.FindStringSubmatch(out)
	if m == nil {
		line, _, _ := strings.Cut(out, "\n")
		return 0, fmt.Errorf("QEMU's version: no number in %q", line)
	}
	return strconv.Atoi(m[1])
}
