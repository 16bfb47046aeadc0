package agent

import (
	"testing"

	"github.com/warmcore/warmcore/pkg/registration"
	"github.com/warmcore/warmcore/pkg/settings"
)

func TestUnsaved(t *testing.T) {
	for _, tc := range []struct {
		name, conf string
		attempts   uint32
		want       settings.Action
		state      registration.State
	}{
		{"no file", "", 3, settings.Keep, registration.Capturing},
		{"kept", "keep-boots=2", 2, settings.Keep, registration.Capturing},
		{"kept long enough", "keep-boots=2", 3, settings.Release, registration.Releasing},
		{"released", "save-failed=release", 1, settings.Release, registration.Releasing},
		{"power off", "save-failed=poweroff", 1, settings.PowerOff, registration.Capturing},
		{"nonsense", "save-failed=releas", 1, settings.Keep, registration.Capturing},
	} {
		t.Run(tc.name, func(t *testing.T) {
			m := captureBoot(t)
			m.setBlock(registration.Capturing, func(b *registration.Block) { b.Counters.Attempts = tc.attempts })
			if tc.conf != "" {
				m.file("etc/warmcore.conf", tc.conf+"\n")
			}
			done, err := m.Unsaved()
			if err != nil || done.Action != tc.want || done.Why == "" {
				t.Errorf("%+v, %v; want %v", done, err, tc.want)
			}
			if got := m.block().State; got != tc.state {
				t.Errorf("state %v, want %v", got, tc.state)
			}
			if released := done.Moved != nil && done.Moved.Blocks > 0; released != (tc.want == settings.Release) {
				t.Errorf("released: %+v", done.Moved)
			}
		})
	}
	_, err := plainBoot(t).Unsaved()
	wantNothing(t, err)
	m := captureBoot(t)
	m.setBlock(registration.Saved, nil)
	_, err = m.Unsaved()
	wantNothing(t, err)
	// A save that hangs holds the dump's memory and the lock.
	m = captureBoot(t)
	m.file("etc/warmcore.conf", "save-failed=release\n")
	unlock, err := m.lock()
	if err != nil {
		t.Fatal(err)
	}
	defer unlock()
	_, err = m.Unsaved()
	wantRefusal(t, err, "another warmcore")
	if got := m.block().State; got != registration.Capturing {
		t.Errorf("state %v while a save is at work", got)
	}
}
