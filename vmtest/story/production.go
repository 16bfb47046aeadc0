package story

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/warmcore/warmcore/vmtest/guest/wire"
)

// hugePages is a crash of a machine that gives most of its memory to huge
// pages, more than boot memory has. The capture boot must go without them, or
// it could not save the dump, and have as many as before after the release.
func (l *Lab) hugePages() error {
	const pages = 400 // of 2 MiB, on both architectures
	left := fmt.Sprintf("hugepages=%d", pages)
	l.params = left
	painting, err := l.begin()
	if err != nil {
		return err
	}
	if err := l.hasHugePages(pages); err != nil {
		return err
	}
	ram, err := l.CrashNow(wire.Trigger{Kind: l.Trigger}, wire.Capture)
	if err != nil {
		return err
	}
	l.Report.Memory.CaptureKiB = l.Guest.MemTotalKiB
	if wanted := uint64(pages * 2 * 1024); l.Guest.MemTotalKiB >= wanted {
		return l.Machine.Fail("hugepages", fmt.Errorf("boot memory is %d KiB, and %d KiB of huge pages would not fill it", l.Guest.MemTotalKiB, wanted))
	}
	if err := l.wantLog("parameter left out, parameter: " + left + ": huge pages would fill boot memory"); err != nil {
		return err
	}
	if err := l.hasHugePages(0); err != nil {
		return err
	}
	d, err := l.save("/var/crash/dump", ram, painting)
	if err != nil {
		return err
	}
	out, err := l.Command("warmcore", "release")
	if err != nil {
		return err
	}
	if want := fmt.Sprintf("%d of %d huge pages of 2 MiB", pages, pages); !strings.Contains(out, want) {
		return l.Machine.Fail("warmcore release", fmt.Errorf("%q, want %q", out, want))
	}
	if err := l.hasHugePages(pages); err != nil {
		return err
	}
	if err := l.Warmcore("arm"); err != nil {
		return err
	}
	if err := l.memoryBack(); err != nil {
		return err
	}
	if err := l.PowerOff(); err != nil {
		return err
	}
	return l.judge([]saved{d})
}

// hasHugePages checks how many huge pages of the default size the kernel has.
func (l *Lab) hasHugePages(want uint64) error {
	text, err := l.Guest.ReadFile(l.ctx, "/proc/sys/vm/nr_hugepages")
	if err != nil {
		return err
	}
	got, err := strconv.ParseUint(strings.TrimSpace(string(text)), 10, 64)
	if err != nil || got != want {
		return l.Machine.Fail("hugepages", fmt.Errorf("the kernel has %q huge pages, want %d", text, want))
	}
	l.Step("huge pages: %d", got)
	return nil
}
