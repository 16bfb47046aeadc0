package verdict

import (
	"fmt"

	"github.com/warmcore/warmcore/pkg/registration"
)

// Kdump says why the next plain boot is left to kdump: arming was refused, or
// no agent has armed for several boots. It is "" if the boot is to be planned
// for dumps.
func Kdump(b *registration.Block) (why string) {
	switch {
	case b == nil:
		return ""
	case b.Refused != "":
		return b.Refused
	case b.State == registration.Empty && b.Counters.PrearmStrikes >= maxPrearmStrikes && len(b.Plan) > 0:
		// The payload stopped pre-arming, and in the whole boot since then nobody
		// has armed.
		return fmt.Sprintf("no agent has armed since %d resets", b.Counters.PrearmStrikes)
	}
	return ""
}

// LeaveToKdump returns the block to store for a boot that is left to kdump: a
// reset is not taken for a crash, and there is no memory plan.
func LeaveToKdump(old *registration.Block, why string) *registration.Block {
	b := next(old)
	withoutDump(b)
	b.State, b.Refused = registration.Empty, why
	b.Identity, b.MapHash = registration.Identity{}, [32]byte{}
	b.Plan = nil
	return b
}
