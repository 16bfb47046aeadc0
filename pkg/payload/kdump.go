package payload

import (
	"slices"

	"github.com/warmcore/warmcore/pkg/normalboot"
	"github.com/warmcore/warmcore/pkg/phys"
	"github.com/warmcore/warmcore/pkg/plan"
	"github.com/warmcore/warmcore/pkg/registration"
	"github.com/warmcore/warmcore/pkg/segments"
	"github.com/warmcore/warmcore/pkg/verdict"
)

// leaveToKdump says why a plain boot of e, whose kernel has the SHA-256 sum, is
// left to kdump; "" if it isn't. An agent's refusal to arm holds only for the
// kernel and the parameters that it ran with: with others, arming is tried again.
func (p *Payload) leaveToKdump(e normalboot.Entry, sum [32]byte) string {
	if p.decision.Kind != plan.Plain {
		return ""
	}
	if lockdown, ok := plan.LocksDown(e.Cmdline); ok {
		return lockdown + " on the command line"
	}
	why := verdict.Kdump(p.block)
	if why == "" {
		return ""
	}
	planned, _ := p.plan.Cmdline(e.Cmdline, plan.Plain, phys.Range{})
	lines := []string{clip(planned, registration.MaxCmdline), clip(p.plan.KdumpCmdline(e.Cmdline), registration.MaxCmdline)}
	if p.block.Booted.KernelSum != sum || !slices.Contains(lines, p.block.Kernel.Cmdline) {
		p.log.Info("kernel or parameters changed since arming was refused", "refused", why, "so", "a plan for dumps again")
		return ""
	}
	return why
}

// bootKdump starts an entry with its own parameters and all of memory but the
// handoff area, which keeps the agent's refusal.
func (p *Payload) bootKdump(e normalboot.Entry, l segments.Linux, sum [32]byte, why string) error {
	p.log.Warn("arming is refused", "why", why, "so", "this boot is left to kdump")
	l.Cmdline = p.plan.KdumpCmdline(e.Cmdline)
	l.Map = p.plan.WholeMap()
	b := verdict.LeaveToKdump(p.block, clip(why, registration.MaxRefused))
	b.Mounting = ""
	b.Booted = registration.Booted{FileSystem: clip(e.FileSystem, registration.MaxUUID), KernelSum: sum, Once: clip(e.Once, registration.MaxOnce)}
	if b.Booted.Once == "" && p.block != nil {
		b.Booted.Once = p.block.Booted.Once
	}
	b.Kernel = kernelOf(e, l.Cmdline)
	if err := p.store(b); err != nil {
		return err
	}
	return p.bootWhole(e, l, "left to kdump", func(phys.Set) error { return nil })
}
