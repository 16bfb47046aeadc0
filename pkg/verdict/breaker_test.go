package verdict

import (
	"math"
	"testing"

	"github.com/warmcore/warmcore/pkg/registration"
)

func TestTooFrequent(t *testing.T) {
	all := func(n int, at int64, boot uint64) (c registration.Counters) {
		c.Boots = 100
		for i := range n {
			c.LastCaptures[i], c.CaptureBoots[i] = at, boot
		}
		return c
	}
	usual := DefaultLimits // 5 captures, 20 boots
	const byTime, byBoots = "5 dumps within an hour", "5 dumps within an hour, or within 20 boots where the clock can't be trusted"
	for _, tt := range []struct {
		name     string
		counters registration.Counters
		now      int64
		armed    int64
		limits   Limits
		want     string
	}{
		{"none", all(0, 0, 0), now, 0, usual, ""},
		{"within the hour", all(5, now-3599, 1), now, 0, usual, byTime},
		{"an hour ago", all(8, now-3600, 99), now, 0, usual, ""},
		{"one less", all(4, now-1, 99), now, 0, usual, ""},
		{"no limit", all(8, now-1, 99), now, 0, Limits{Attempts: 3}, ""},
		{"more than is kept", all(8, now-1, 99), now, 0, Limits{Captures: 1000, Attempts: 3}, "8 dumps within an hour"},
		{"in the future, lately", all(5, now+1_000_000, 99), now, 0, usual, byBoots},
		{"in the future, long ago", all(5, now+1_000_000, 80), now, 0, usual, ""},
		{"20 boots ago", all(5, now+1_000_000, 81), now, 0, usual, ""},
		{"19 boots ago", all(5, now+1_000_000, 82), now, 0, usual, byBoots},
		{"in the future, boot not known", all(5, now+1_000_000, 0), now, 0, usual, ""},
		{"clock back in 1970", all(5, now, 99), 3, 0, usual, byBoots},
		{"clock back in 1970, armed an hour later", all(5, now, 99), 3, now + 3600, usual, ""},
		{"clock back in 1970, armed at once", all(5, now, 99), 3, now + 60, usual, byTime},
		{"captures in 1970, the clock is right now", all(5, 1, 99), now, 0, usual, byBoots},
		{"captures in 1970, long ago", all(5, 1, 50), now, 0, usual, ""},
		{"clock stands still", all(5, now, 99), now, 0, usual, byBoots},
		{"half and half", registration.Counters{Boots: 100, LastCaptures: [8]int64{now - 1, now - 2, now - 3, 5, 5}, CaptureBoots: [8]uint64{1, 1, 1, 99, 98}}, now, 0, usual, byBoots},
		{"boots have wrapped", registration.Counters{Boots: 3, LastCaptures: [8]int64{1, 1, 1, 1, 1}, CaptureBoots: [8]uint64{2, 1, math.MaxUint64, math.MaxUint64 - 1, math.MaxUint64 - 2}}, 1, 0, usual, byBoots},
		{"hostile", registration.Counters{LastCaptures: [8]int64{math.MinInt64, math.MaxInt64, math.MinInt64, math.MaxInt64, math.MinInt64, 1, 1, 1},
			CaptureBoots: [8]uint64{math.MaxUint64, 1 << 63, 9, 8, 7, 6, 5, 4}}, now, 0, usual, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b := &registration.Block{Counters: tt.counters, Identity: registration.Identity{Time: tt.armed}}
			if got := tooFrequent(b, tt.now, tt.limits); got != tt.want {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}
}
