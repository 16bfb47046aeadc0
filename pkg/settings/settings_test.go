package settings

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestParse(t *testing.T) {
	change := func(f func(*Settings)) Settings { s := Default; f(&s); return s }
	for _, tc := range []struct {
		name, text string
		want       Settings
		warnings   []string
	}{
		{name: "no file", want: Default},
		{name: "comments", text: "# save-failed=release\n\n  # x\n", want: Default},
		{name: "all", text: "save-failed = poweroff\nkeep-boots=2 # more\nsave-timeout=2h\nsave-stall=0\narm=no", want: Settings{PowerOff, 2, 2 * time.Hour, 0, false}},
		{name: "the last counts", text: "arm=no\narm=yes\nsave-failed=release\n", want: change(func(s *Settings) { s.OnFailure = Release })},
		{name: "unknown name", text: "\nsave=now\nkeep-boots=1\n", want: change(func(s *Settings) { s.KeepBoots = 1 }), warnings: []string{`line 2: "save" is no setting`}},
		{name: "no value", text: "arm\n", want: Default, warnings: []string{`line 1: arm="": want yes or no`}},
		{name: "wrong values", text: "save-failed=panic\nkeep-boots=-1\nsave-timeout=-2h\nsave-stall=5\narm=maybe\n", want: Default, warnings: []string{
			`line 1: save-failed="panic": want keep, release or poweroff`,
			`line 2: keep-boots="-1": want a number of boots`,
			`line 3: save-timeout="-2h": want a time such as 90s, 10m or 2h`,
			`line 4: save-stall="5": want a time such as 90s, 10m or 2h`,
			`line 5: arm="maybe": want yes or no`,
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got, warnings := Parse(tc.text)
			if diff := cmp.Diff(tc.want, got); diff != "" {
				t.Errorf("settings (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(tc.warnings, warnings); diff != "" {
				t.Errorf("warnings (-want +got):\n%s", diff)
			}
		})
	}
}

func TestFailed(t *testing.T) {
	for _, tc := range []struct {
		name  string
		set   Settings
		boots uint32
		want  Action
	}{
		{"keep", Settings{OnFailure: Keep}, 100, Keep},
		{"keep, first boot", Settings{OnFailure: Keep, KeepBoots: 2}, 1, Keep},
		{"keep, last boot", Settings{OnFailure: Keep, KeepBoots: 2}, 2, Keep},
		{"keep, one too many", Settings{OnFailure: Keep, KeepBoots: 2}, 3, Release},
		{"release", Settings{OnFailure: Release, KeepBoots: 2}, 1, Release},
		{"power off", Settings{OnFailure: PowerOff}, 1, PowerOff},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got, why := tc.set.Failed(tc.boots)
			if got != tc.want || why == "" {
				t.Errorf("%v, %q; want %v", got, why, tc.want)
			}
		})
	}
}

func FuzzParse(f *testing.F) {
	f.Add("save-failed=release\n#\narm=no")
	f.Fuzz(func(t *testing.T, text string) {
		s, _ := Parse(text)
		if s.SaveTimeout < 0 || s.SaveStall < 0 {
			t.Errorf("%+v", s)
		}
		if a, why := s.Failed(1); a != Keep && a != Release && a != PowerOff || why == "" {
			t.Errorf("%v, %q", a, why)
		}
	})
}
