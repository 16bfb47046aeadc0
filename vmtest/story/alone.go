package story

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/warmcore/warmcore/pkg/phys"
	"github.com/warmcore/warmcore/vmtest/machine"
)

// memTotalAlone returns MemTotal, in KiB, of the story's normal kernel on the
// same machine when QEMU starts it by itself, with no payload: what a user has
// without us. It is measured once for each kernel and size of memory and kept
// in the cache. CPUs aren't part of the key: each takes a few hundred KiB.
func (l *Lab) memTotalAlone() (uint64, error) {
	image, err := os.ReadFile(l.files.kernel.Image)
	if err != nil {
		return 0, err
	}
	sum := sha256.Sum256(image)
	file := filepath.Join(l.files.cache, "memtotal", fmt.Sprintf("%s-%s-%dM", l.board.Name, hex.EncodeToString(sum[:8]), l.Memory/phys.MiB))
	switch b, err := os.ReadFile(file); {
	case err == nil:
		return strconv.ParseUint(strings.TrimSpace(string(b)), 10, 64)
	case !errors.Is(err, fs.ErrNotExist):
		return 0, err
	}
	total, err := l.bootAlone()
	if err != nil {
		return 0, fmt.Errorf("boot the normal kernel without a payload: %w", err)
	}
	l.Step("the same kernel without us: MemTotal %s", phys.FormatSize(total*phys.KiB))
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		return 0, err
	}
	// Renamed, because other stories read it meanwhile.
	tmp, err := os.CreateTemp(filepath.Dir(file), ".memtotal")
	if err != nil {
		return 0, err
	}
	_, err = fmt.Fprintln(tmp, total)
	return total, errors.Join(err, tmp.Close(), os.Rename(tmp.Name(), file))
}

// bootAlone lets QEMU start the normal kernel and returns its MemTotal in KiB.
func (l *Lab) bootAlone() (total uint64, err error) {
	dir := filepath.Join(l.Out, "alone")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return 0, err
	}
	initrd := filepath.Join(dir, "initrd")
	if err := l.Initrd(l.files.guest).Write(initrd); err != nil {
		return 0, err
	}
	m, err := machine.Start(l.ctx, machine.Options{
		Arch: l.board.Arch, Memory: l.Memory, CPUs: l.CPUs, Hypervisor: l.Hypervisor, QEMU: l.files.qemu, Accel: l.accel(),
		Kernel: l.files.kernel.Image, Initrd: initrd, Append: l.cmdline(),
		Reproduce: l.reproduce(),
	}, dir)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, m.Close(), os.Remove(initrd)) }()
	g, err := m.WaitGuest(l.ctx)
	if err != nil {
		return 0, err
	}
	return g.MemTotalKiB, nil
}
