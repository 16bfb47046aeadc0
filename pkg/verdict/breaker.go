package verdict

import (
	"fmt"

	"github.com/warmcore/warmcore/pkg/registration"
)

// breakerPeriod is over which Limits.Captures counts, in seconds.
const breakerPeriod = 3600

// firstTime is before any payload was built: 2025-01-01. A clock that says
// less was never set.
const firstTime = 1_735_689_600

// kept is how many captures a registration lists.
const kept = len(registration.Counters{}.LastCaptures)

// breakerBoots is over how many boots Limits.Captures counts where time can't
// be told: so many as a machine needs that crashes at once in each boot, if no
// dump is saved before it is given up.
func breakerBoots(l Limits) uint64 { return uint64(l.Captures) * (uint64(l.Attempts) + 1) }

// clock is the time of the reset as well as it is known, in Unix seconds. A
// machine without a battery starts its clock in 1970, or where it was
// switched off; then the time at which the crashed kernel's agent armed, when
// the normal system may have set the clock, is nearer to the truth. It is late
// by one crash, and so are all of them: what counts is the time between.
func clock(b *registration.Block, now int64) int64 { return max(now, b.Identity.Time, 1) }

// tooFrequent says why no new dump is taken, "" if one is. A capture within an
// hour counts. It counts by its boot where its time says nothing: the clock was
// never set, stands still, or was ahead of what it is now.
func tooFrequent(b *registration.Block, now int64, limits Limits) string {
	if limits.Captures == 0 {
		return ""
	}
	now = clock(b, now)
	byTime, byBoots := 0, 0
	for i, t := range b.Counters.LastCaptures {
		// Boots may wrap, and the next one is this.
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

// note lists a capture at the time t in the present boot.
func note(c *registration.Counters, t int64) {
	copy(c.LastCaptures[1:], c.LastCaptures[:kept-1])
	copy(c.CaptureBoots[1:], c.CaptureBoots[:kept-1])
	c.LastCaptures[0], c.CaptureBoots[0] = t, c.Boots
}
