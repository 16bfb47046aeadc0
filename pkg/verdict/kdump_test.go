package verdict

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/warmcore/warmcore/pkg/registration"
)

func TestKdump(t *testing.T) {
	plan := []registration.PlanRange{{Role: registration.RoleBoot, Range: size(0, 4096)}}
	strikes := registration.Counters{PrearmStrikes: maxPrearmStrikes}
	for _, tc := range []struct {
		name  string
		block *registration.Block
		want  string
	}{
		{"nothing registered", nil, ""},
		{"armed", &registration.Block{State: registration.Armed, Plan: plan}, ""},
		{"refused", &registration.Block{State: registration.Disarmed, Plan: plan, Refused: "arm=no"}, "arm=no"},
		{"refused, and left to kdump before", &registration.Block{Refused: "arm=no"}, "arm=no"},
		{"strikes, and the agent may still arm", &registration.Block{State: registration.Capturing, Plan: plan, Counters: strikes}, ""},
		{"strikes, and it didn't", &registration.Block{State: registration.Empty, Plan: plan, Counters: strikes}, "no agent has armed since 2 resets"},
		{"strikes of a boot without a plan", &registration.Block{State: registration.Empty, Counters: strikes}, ""},
		{"one strike", &registration.Block{State: registration.Empty, Plan: plan, Counters: registration.Counters{PrearmStrikes: 1}}, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if got := Kdump(tc.block); got != tc.want {
				t.Errorf("%q, want %q", got, tc.want)
			}
		})
	}
}

// What is stored for a boot that is left to kdump makes no dump of a reset, and
// leaves the next boot to kdump, too.
func TestLeaveToKdump(t *testing.T) {
	for _, old := range []*registration.Block{nil, {
		State: registration.Prearmed, MapHash: thisHash, Identity: registration.Identity{Nonce: thisNonce},
		Plan: Ranges(made(t, input())), Counters: registration.Counters{Boots: 4, Attempts: 2, Captures: 1},
		Capture: registration.Capture{Copied: true}, CPUNotes: []registration.Note{{Addr: 1, Size: 1}},
	}} {
		b := LeaveToKdump(old, "arm=no")
		d := Decide(Situation{Block: b, MapHash: thisHash, Plan: made(t, input()), Now: now, Limits: DefaultLimits})
		if d.Kind != 0 || Kdump(b) != "arm=no" {
			t.Errorf("then a %v boot, %q", d.Kind, Kdump(b))
		}
		want := registration.Block{Refused: "arm=no", Counters: registration.Counters{Boots: 1}}
		if old != nil {
			want.Counters = registration.Counters{Boots: 5, Captures: 1}
		}
		if diff := cmp.Diff(want, *b); diff != "" {
			t.Errorf("block (-want +got):\n%s", diff)
		}
		// With a plan again nothing is left of it.
		if next := d.Begin(b, made(t, input()), thisHash, thisNonce, now); next.Refused != "" || next.State != registration.Prearmed {
			t.Errorf("planned again: %q, %v", next.Refused, next.State)
		}
	}
}
