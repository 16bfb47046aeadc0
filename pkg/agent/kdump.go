package agent

import (
	"errors"

	"github.com/warmcore/warmcore/pkg/outcome"
	"github.com/warmcore/warmcore/pkg/readiness"
	"github.com/warmcore/warmcore/pkg/registration"
)

// leaveWord tells the payload that arming was refused for a lasting reason, so
// that it leaves the next boot to kdump. Memory in use where it should not be
// is not a lasting reason: in the next boot that may differ. Nor is what is
// refused later than at the boot's start: kexec_load may have been disabled
// meanwhile, as sysctl.d can, and always is in a capture boot.
func (x *session) leaveWord(err error) {
	var r *outcome.Refusal
	var t *transient
	if !errors.As(err, &r) || errors.As(err, &t) {
		return
	}
	switch state := x.block.State; {
	case state == registration.Prearmed || state == registration.Empty:
	case state == registration.Disarmed && !x.Settings().Arm:
	default:
		return
	}
	if word := registration.Text(r.What, registration.MaxRefused); word != x.block.Refused {
		x.block.Refused = word
		if err := x.store(); err != nil {
			x.log().Warn("the payload isn't told that arming is refused", "err", err)
		}
	}
}

// transient is a refusal that may not recur in the next boot.
type transient struct{ error }

func (t *transient) Unwrap() error { return t.error }

// leftToKdump says why a boot that the payload left to kdump can't be armed. If
// the reason no longer holds, it has the next boot planned for dumps again.
func (x *session) leftToKdump() error {
	for _, c := range x.lasting() {
		// In this boot kdump has the memory that the stub would need.
		if c.Verdict == readiness.Refuse && c.Name != readiness.CrashMemory {
			return refuse(c.Remedy, "this boot is left to kdump: %s", c.Reason)
		}
	}
	was := x.block.Refused
	x.block.Refused, x.block.Counters.PrearmStrikes = "", 0
	if err := x.store(); err != nil {
		return err
	}
	return refuse("reboot: the payload will plan for dumps again", "this boot is left to kdump, because arming was refused: %s", was)
}
