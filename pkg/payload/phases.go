package payload

import (
	"strings"
	"time"

	"github.com/warmcore/warmcore/pkg/phys"
	"github.com/warmcore/warmcore/pkg/registration"
)

// How long the phases may take. Each limit is far more than the phase needs,
// because a missed deadline is a reset. Where the time depends on a size, it is
// added at the rate of slow hardware: memory without caches, an old USB stick.
const (
	phaseLimit = 3 * time.Minute // plan, start, and the fixed part of the others
	disksLimit = 5 * time.Minute // of one look at all disks
	placeLimit = 2 * time.Minute // the kernel, and small initrds

	copyRate = 16 * phys.MiB // bytes a second
	scanRate = 64 * phys.MiB
	diskRate = phys.MiB
)

// transfer returns how long n bytes take at a rate in bytes a second, in whole seconds.
func transfer(n, rate uint64) time.Duration {
	return time.Duration(min((n+rate-1)/rate, maxTransfer)) * time.Second
}

// maxTransfer is a day, in seconds. It keeps a large size from overflowing a deadline.
const maxTransfer = 24 * 3600

// guard begins to hold the payload to deadlines.
func (p *Payload) guard() {
	p.guarded = true
	p.sys.Guard(registration.PhasePlan.String(), phaseLimit, p.missed)
}

// missed ends a payload that hangs. The log says in which phase, for the next
// one and for `warmcore log`. It runs while another goroutine hangs, so it only
// uses what doesn't change any more after the plan was made. In the phase plan
// the log goes to the console only.
func (p *Payload) missed(phase string, limit time.Duration) {
	p.log.Error("deadline", "phase", phase, "limit", limit, "so", "reset")
	if phase != registration.PhasePlan.String() {
		p.storeLog()
	}
	if err := p.sys.Reset(); err != nil {
		p.log.Error("reset", "error", err, "so", "waiting for the watchdog, if there is one")
	}
}

// resume finds out how the payload before ended, and begins this one's record.
func (p *Payload) resume() {
	if p.plan == nil {
		return
	}
	next, phase, stalled := registration.NextProgress(p.handoff[registration.ProgressOff:])
	if stalled {
		p.log.Warn("the payload before was reset before it had started a kernel", "in_phase", phase,
			"in_a_row", next.Stalls, "ever", next.Total)
	}
	p.progress = next
}

// enter begins a phase.
func (p *Payload) enter(phase registration.Phase, limit time.Duration) {
	if !p.guarded {
		return
	}
	p.record(phase)
	p.sys.Within(phase.String(), limit)
}

// record writes the phase into H.
func (p *Payload) record(phase registration.Phase) {
	if p.plan == nil || p.progress.Phase == phase {
		return
	}
	p.progress.Phase = phase
	b, _ := p.progress.AppendBinary(nil)
	if err := p.mem.WritePhys(b, p.plan.Handoff.Start+registration.ProgressOff); err != nil {
		p.log.Warn("progress record", "error", err)
	}
}

// start jumps into the loaded kernel. It stops the watchdog first, because that
// kernel may need longer than the watchdog's time-out to open it. If the payload
// hangs in between, its kernel's detectors for hung tasks and CPUs reset the
// machine.
func (p *Payload) start() error {
	p.enter(registration.PhaseStart, phaseLimit)
	if err := p.sys.Release(); err != nil {
		p.log.Warn("watchdog", "error", err)
	}
	p.progress.Stalls = 0
	p.record(registration.PhaseStarted)
	err := p.sys.Reboot()
	p.guard() // we are still here: go on with the next entry
	return err
}

// quietDevices stops DMA of devices that nobody has reset.
func (p *Payload) quietDevices() {
	quiet, err := p.sys.QuietDevices()
	if len(quiet) > 0 {
		p.log.Warn("devices that could still write to memory after the reset", "stopped", strings.Join(quiet, ", "),
			"so", "what they wrote until now is in memory, and in a dump")
	}
	if err != nil {
		p.log.Warn("stop devices from writing to memory", "error", err)
	}
}
