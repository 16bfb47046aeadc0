package agent

import (
	"strings"

	"github.com/warmcore/warmcore/pkg/hotplug"
	"github.com/warmcore/warmcore/pkg/phys"
	"github.com/warmcore/warmcore/pkg/registration"
)

// ownPolicy gives memory that is not ours, such as CXL and HBM, back to the
// policy that this kernel has without the payload: the payload keeps all added
// memory offline, and drivers from loading by themselves. was is the policy that
// addMemory found. Memory that was added meanwhile gets what it would have had.
// What fails is logged, and is no failure: our own memory is where it should be.
func (x *session) ownPolicy(was string) {
	if was == "" {
		return // memory hotplug without a policy, or none
	}
	h := x.hotplug()
	line, err := x.running().CommandLine()
	if err != nil {
		x.log().Warn("memory that is added stays offline", "err", err)
		return
	}
	if list, ok := line.Last("modprobe.blacklist"); ok {
		h.LoadModules(strings.Split(list.Value, ","))
	}
	policy, first := was, was == "offline"
	if first {
		var ok bool
		if policy, ok = hotplug.OwnPolicy(line, x.kernelConfig()); !ok {
			x.log().Warn("memory that is added stays offline: neither memhp_default_state= nor the kernel's configuration in /boot or /lib/modules says what to do")
			return
		}
	}
	if policy == "offline" {
		return
	}
	if first {
		x.onlineOthers(policy)
	}
	if err := h.SetPolicy(policy); err != nil {
		x.log().Warn("memory that is added stays offline", "err", err)
	}
}

// onlineOthers switches memory online that is in no part of the plan.
func (x *session) onlineOthers(policy string) {
	h := x.hotplug()
	blocks, err := h.Blocks(phys.Set{{Start: 0, End: 1 << 63}})
	if err != nil {
		x.log().Warn("memory that is not ours stays offline", "err", err)
		return
	}
	ours := x.plan(registration.RoleWindow, registration.RoleHandoff, registration.RoleBoot, registration.RoleDestination,
		registration.RolePreserved, registration.RoleLost, registration.RoleMargin).Union(phys.Set{x.area.Range()})
	for i := range blocks {
		b := &blocks[i]
		if b.Online() || ours.Overlaps(b.Range) {
			continue
		}
		if err := h.OnlineAs(b, policy); err != nil {
			x.log().Warn("memory that is not ours stays offline", "err", err)
		}
	}
}

// kernelConfig is the running kernel's configuration, "" if it can't be read.
func (x *session) kernelConfig() string {
	release, err := x.running().Text("proc/sys/kernel/osrelease")
	if err != nil || strings.Contains(release, "/") {
		return ""
	}
	for _, name := range []string{"boot/config-" + release, "lib/modules/" + release + "/config"} {
		if text, err := x.running().Text(name); err == nil {
			return text + "\n"
		}
	}
	return ""
}
