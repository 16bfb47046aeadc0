package story

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/warmcore/warmcore/pkg/phys"
)

func TestClasses(t *testing.T) {
	got, err := parseClasses("16 kernel\n17 kernel\n18 free\n20 kernel\n")
	want := map[string]phys.Set{
		"kernel": {{Start: 0x10000, End: 0x12000}, {Start: 0x14000, End: 0x15000}},
		"free":   {{Start: 0x12000, End: 0x13000}},
	}
	if diff := cmp.Diff(want, got); err != nil || diff != "" {
		t.Errorf("parseClasses: %v, -want +got\n%s", err, diff)
	}
	if got, want := whoIsRight(got, "ours", "theirs"), "1 free: theirs is right, 3 kernel: ours is right"; got != want {
		t.Errorf("whoIsRight = %q, want %q", got, want)
	}
	for _, bad := range []string{"Traceback\n", "16\n", "x kernel\n"} {
		if got, err := parseClasses(bad); err == nil || got != nil {
			t.Errorf("parseClasses(%q) = %v, %v; want an error", bad, got, err)
		}
	}
}

func TestGivesUp(t *testing.T) {
	const out = "\ncrash: invalid structure member offset: module_core_size\n       FILE: kernel.c  LINE: 3787  FUNCTION: module_init()\n"
	if got, want := givesUp(out), "invalid structure member offset: module_core_size"; got != want {
		t.Errorf("givesUp = %q, want %q", got, want)
	}
	if got := givesUp("crash: page excluded: kernel virtual address: ffff888000000000\n"); got != "" {
		t.Errorf("givesUp of a dump that lacks a page = %q, want none", got)
	}
}
