package payload

import (
	"slices"
	"testing"

	"github.com/warmcore/warmcore/pkg/memmap"
	"github.com/warmcore/warmcore/pkg/normalboot"
	"github.com/warmcore/warmcore/pkg/phys"
	"github.com/warmcore/warmcore/pkg/registration"
)

const ownCrashKernel = entryCmdline + " crashkernel=256M"

const leftToKdump = ownCrashKernel + " warmcore.handoff=0x20000000,0x200000 warmcore.kdump panic=10"

func refuse(b *registration.Block) {
	b.State, b.Refused = registration.Disarmed, "arm=no in /etc/warmcore.conf"
}

// kdumpMachine is one whose kdump has reserved memory by its boot entry.
func kdumpMachine(t *testing.T) *machine {
	m := newMachine(t)
	m.entries[0].Cmdline = ownCrashKernel
	return m
}

// wantKdump fails unless a boot is left to kdump: the entry's own parameters, and
// all of memory but the handoff area.
func wantKdump(t *testing.T, m *machine, r result, why string) {
	t.Helper()
	wantKernel(t, r, 1, leftToKdump)
	handoff := phys.NewSet(span(512*mib, 514*mib))
	if want := firmwareMap.Set(memmap.RAM).Minus(handoff); !slices.Equal(r.ram, want) || len(r.soft) > 0 {
		t.Errorf("RAM %v, Soft Reserved %v; want %v, none", r.ram, r.soft, want)
	}
	wantLog(t, r.log, "arming is refused, why: "+why+" -> this boot is left to kdump", "normal kernel, boot: left to kdump")
	if b := m.block(); b.State != registration.Empty || b.Refused != why || len(b.Plan) > 0 {
		t.Errorf("state %v, refused %q, a plan of %d ranges; want empty, %q, none", b.State, b.Refused, len(b.Plan), why)
	}
}

// TestRefused: where the agent can't arm, kdump comes back, until the kernel, its
// parameters or the agent's word changes.
func TestRefused(t *testing.T) {
	const why = "arm=no in /etc/warmcore.conf"
	for _, tt := range []struct {
		name   string
		change func(m *machine)
		kdump  bool
	}{
		{"nothing", func(*machine) {}, true},
		{"a reset in the boot that is left to kdump", func(m *machine) { m.run() }, true},
		{"disarmed at its clean end", func(m *machine) {
			m.register(func(b *registration.Block) { b.State = registration.Disarmed })
		}, true},
		{"another kernel", func(m *machine) {
			m.entries = []normalboot.Entry{debian("Debian", 2)}
			m.entries[0].Cmdline = ownCrashKernel
		}, false},
		{"other parameters", func(m *machine) { m.entries[0].Cmdline += " debug" }, false},
		{"the agent wants to arm", func(m *machine) { m.register(func(b *registration.Block) { b.Refused = "" }) }, false},
		{"power cycle", func(m *machine) {
			if err := m.mem.Zero(span(512*mib, 514*mib)); err != nil {
				m.tb.Fatal(err)
			}
		}, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			m := kdumpMachine(t)
			m.run()
			m.register(refuse)
			wantKdump(t, m, m.run(), why)
			tt.change(m)
			r := m.run()
			if tt.kdump {
				wantKdump(t, m, r, why)
				return
			}
			if b := m.block(); !r.started || b.State != registration.Prearmed || b.Refused != "" || len(b.Plan) == 0 {
				t.Errorf("state %v, refused %q, a plan of %d ranges; want a plan for dumps again\n%s", b.State, b.Refused, len(b.Plan), r.log)
			}
		})
	}
}

// A dump that is there is worth more than a refusal.
func TestRefusedWithDump(t *testing.T) {
	m := newMachine(t)
	m.run()
	m.register(func(b *registration.Block) { arm(b); b.Refused = "then" })
	if r := m.run(); !r.started || m.block().State != registration.Capturing {
		t.Errorf("state %v, want a capture boot\n%s", m.block().State, r.log)
	}
}

// Where nobody ever arms, because there is no agent, kdump comes back, too.
func TestNoAgent(t *testing.T) {
	m := kdumpMachine(t)
	m.run()
	m.register(func(b *registration.Block) { b.State, b.Counters.PrearmStrikes = registration.Disarmed, 2 })
	if r := m.run(); !r.started || m.block().State != registration.Empty || len(m.block().Plan) == 0 {
		t.Fatalf("state %v; want one boot with a plan, not prearmed\n%s", m.block().State, r.log)
	}
	wantKdump(t, m, m.run(), "no agent has armed since 2 resets")
	wantKdump(t, m, m.run(), "no agent has armed since 2 resets")
}

// A kernel that is locked down can't be armed, nor tell anybody.
func TestLockdown(t *testing.T) {
	m := newMachine(t)
	m.entries[0].Cmdline += " lockdown=integrity"
	r := m.run()
	wantKernel(t, r, 1, entryCmdline+" lockdown=integrity warmcore.handoff=0x20000000,0x200000 warmcore.kdump panic=10")
	wantLog(t, r.log, "arming is refused, why: lockdown=integrity on the command line")
	m.entries[0].Cmdline = entryCmdline + " lockdown=none"
	if m.run(); m.block().State != registration.Prearmed {
		t.Errorf("state %v without lockdown, want prearmed", m.block().State)
	}
}
