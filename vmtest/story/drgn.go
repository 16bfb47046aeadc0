package story

import (
	_ "embed"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/warmcore/warmcore/vmtest/debian"
)

// drgnPackages are drgn and what it needs, of Debian 13. On arm64 it is the
// only judge: neither makedumpfile nor crash(8), of Debian 12 or 13, knows the
// page tables of its 6.12, which is for 52 address bits with pages of 4 KiB;
// the drgn of 12 reads no memory that only page tables find, as stacks are.
var drgnPackages = []string{"python3-drgn", "python3.13-minimal", "libpython3.13-minimal", "libpython3.13-stdlib",
	"libc6", "libgcc-s1", "libbz2-1.0", "liblzma5", "libzstd1", "zlib1g", "libexpat1", "libssl3t64", "libffi8",
	"libelf1t64", "libdw1t64", "libgomp1", "liblzo2-2", "libstdc++6", "libsnappy1v5", "libkdumpfile10"}

// drgnScript prints what drgn finds of the crash in a dump.
//
//go:embed drgn.py
var drgnScript string

// drgn lets drgn read the dumps with Debian's debug information. It reads
// those of another architecture than this host's.
func (l *Lab) drgn(saved) error {
	ours, err := os.ReadFile(filepath.Join(l.Out, "vmcore-dmesg.txt"))
	if err != nil {
		return err
	}
	if want := "Linux version " + l.files.kernel.Release; !strings.Contains(string(ours), want) {
		return fmt.Errorf("the crashed kernel's log, vmcore-dmesg.txt, has no %q", want)
	}
	if !l.story.Debuggers {
		return nil
	}
	vmlinux, err := l.debugVmlinux()
	if err != nil {
		return err
	}
	tools, err := debian.Native.OpenPrograms(l.ctx, l.files.cache, "trixie", drgnPackages)
	if err != nil {
		return err
	}
	argv := append([]string{"env", "PYTHONHOME=" + filepath.Join(tools.Root, "usr"),
		"PYTHONPATH=" + filepath.Join(tools.Root, "usr/lib/python3/dist-packages")},
		tools.Argv("usr/bin/python3.13", "-", vmlinux)...)
	return l.drgnBy(func(name string) ([]byte, error) {
		return output(l.ctx, drgnScript, argv[0], append(argv[1:], filepath.Join(l.Out, name))...)
	})
}

// drgnBy checks what drgn, run by the function on a dump in the story's folder,
// finds of the crash.
func (l *Lab) drgnBy(run func(name string) ([]byte, error)) error {
	for _, name := range []string{"vmcore", wholeName} {
		if !exists(filepath.Join(l.Out, name)) {
			continue
		}
		out, err := run(name)
		if err := os.WriteFile(filepath.Join(l.Out, "drgn-"+name+".txt"), out, 0o644); err != nil {
			return err
		}
		if err != nil {
			return fmt.Errorf("drgn of %s: %w\n%s", name, err, out)
		}
		want := []string{"release " + l.files.kernel.Release, "log Kernel panic - not syncing: sysrq triggered crash", "crashed init",
			"__crash_kexec", "sysrq_handle_crash", l.board.entry}
		for cpu := range l.CPUs {
			want = append(want, fmt.Sprintf("cpu %d registers", cpu))
		}
		for _, w := range want {
			if !strings.Contains(string(out), w) {
				return fmt.Errorf("drgn printed no %q of %s:\n%s", w, name, out)
			}
		}
		l.Step("drgn shows the panic task's stack and the registers of %d CPUs in %s", l.CPUs, name)
	}
	return nil
}

// debugVmlinux is the kernel with debug information of Debian's package.
func (l *Lab) debugVmlinux() (string, error) {
	packages, err := l.board.debian.KernelPackages(l.ctx, l.files.cache, l.Release)
	if err != nil {
		return "", err
	}
	debs, err := l.board.debian.DownloadAll(l.ctx, l.files.cache, l.Release, packages[0]+"-dbg")
	if err != nil {
		return "", err
	}
	return debian.DebugVmlinux(l.ctx, l.files.cache, debs[0], l.files.kernel.Release)
}
