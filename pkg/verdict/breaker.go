package verdict

import (
	"fmt"

	"github.com/warmcore/warmcore/pkg/registration"
)

// breakerPeriod is the time over which Limits.Captures counts, in seconds.
const breakerPeriod = 3600

// firstTime is 2025-01-01, before any payload was built. A clock that
// shows an earlier time was never set.
const firstTime = 1_735_689_600

// kept is how many captures a registration lists.
const kept = len(registration.Counters{}.LastCaptures)

// breakerBoots is the number of boots over which Limits.Captures counts if the
// clock can't be trusted: as many as a machine makes that crashes at once in
// each boot and gives up each dump unsaved.
func breakerBoots(l Limits) uint64 { return uint64(l.Captures) * (uint64(l.Attempts) + 1) }

// clock returns the best known time of the reset, in Unix seconds. A machine
// without a battery starts its clock in 1970, or at the time when it was
// switched off. Then the time at which the crashed kernel's agent armed is
// nearer to the truth, because the normal system may have set the clock. That
// time lags by one crash, but it does so for every crash, and only the time
// between crashes counts.
func clock(b *registration.Block, now int64) int64 { return max(now, b.Identity.Time, 1) }

// tooFrequent returns the reason why no new dump is taken, "" if one is taken.
// A capture counts if it was within the last hour. If its time says nothing,
// because the clock was never set, stands still, or was ahead of the present
// time, the number of boots since then decides.
func tooFrequent(b *registration.Block, now int64, limits Limits) string {
	if limits.Captures == 0 {
		return ""
	}
	now = clock(b, now)
	byTime, byBoots := 0, 0
	for i, t := range b.Counters.LastCaptures {
		// Boots may wrap. The present boot is not yet counted in it:
		// hence + 1.
		boots := b.Counters.Boots + 1 - b.Counters.CaptureBoots[i]
		switch {
		case t == 0:
		case t >= firstTime && t < now:
			if now-t < breakerPeriod {
				byTime++
			}
		case b.Counters.CaptureBoots[i] != 0 && boots < breakerBoots(limits):
			byBoots++
		}
	}
	most := min(limits.Captures, kept)
	switch {
	case byTime+byBoots < most:
		return ""
	case byBoots == 0:
		return fmt.Sprintf("%d dumps within an hour", byTime)
	}
	return fmt.Sprintf("%d dumps within an hour, or within %d boots where the clock can't be trusted", byTime+byBoots, breakerBoots(limits))
}

// note adds a capture at time t in the present boot to the list.
func note(c *registration.Counters, t int64) {
	copy(c.LastCaptures[1:], c.LastCaptures[:kept-1])
	copy(c.CaptureBoots[1:], c.CaptureBoots[:kept-1])
	c.LastCaptures[0], c.CaptureBoots[0] = t, c.Boots
}
