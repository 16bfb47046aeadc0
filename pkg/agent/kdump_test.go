package agent

import (
	"strings"
	"testing"

	"github.com/warmcore/warmcore/pkg/registration"
)

// leftToKdump is a machine in a boot that the payload left to kdump.
func leftToKdump(t *testing.T) *testMachine {
	m := plainBoot(t)
	m.file("proc/cmdline", "quiet crashkernel=256M warmcore.handoff=0x20000000,0x200000 warmcore.kdump\n")
	m.setBlock(registration.Empty, func(b *registration.Block) {
		b.MapHash, b.Plan, b.Refused, b.Counters.PrearmStrikes = [32]byte{}, nil, "arm=no in /etc/warmcore.conf", 2
	})
	m.done = nil
	return m
}

func TestLeftToKdump(t *testing.T) {
	m := leftToKdump(t)
	m.file("etc/warmcore.conf", "arm=no\n")
	_, err := m.Arm()
	wantRefusal(t, err, "this boot is left to kdump: arm=no")
	if len(m.done) != 0 {
		t.Errorf("did %v", m.done)
	}
	st, err := m.Status()
	if err != nil || st.Armed || !strings.Contains(st.Why, "left to kdump: arm=no") {
		t.Errorf("status: armed %v, %q, %v", st.Armed, st.Why, err)
	}
	_, err = m.Keep()
	wantNothing(t, err)
	// A reservation for the stub is the next boot's business.
	m = leftToKdump(t)
	m.file("sys/kernel/kexec_crash_size", "0\n")
	_, err = m.Arm()
	wantRefusal(t, err, "because arming was refused: arm=no")
	if b := m.block(); b.Refused != "" || b.Counters.PrearmStrikes != 0 || b.State != registration.Empty {
		t.Errorf("the payload is not told to plan again: %q, %d strikes, %v", b.Refused, b.Counters.PrearmStrikes, b.State)
	}
}

// Once the machine is armed, nothing is left of an earlier refusal; and while it
// is armed, none is written.
func TestArmTakesWordBack(t *testing.T) {
	m := plainBoot(t)
	m.setBlock(registration.Prearmed, func(b *registration.Block) { b.Refused = "then" })
	if _, err := m.Arm(); err != nil {
		t.Fatal(err)
	}
	if got := m.block().Refused; got != "" {
		t.Errorf("refused %q stays", got)
	}
	m.file("etc/warmcore.conf", "arm=no\n")
	_, err := m.Arm()
	wantRefusal(t, err, "arm=no")
	if b := m.block(); b.Refused != "" || b.State != registration.Armed {
		t.Errorf("refused %q in state %v", b.Refused, b.State)
	}
}

// A reason that the next boot's first arm may not see leaves no word.
func TestNoWord(t *testing.T) {
	disabled := func(m *testMachine) *testMachine {
		m.file("proc/sys/kernel/kexec_load_disabled", "1\n")
		return m
	}
	disarmed := plainBoot(t)
	if err := disarmed.Disarm(); err != nil {
		t.Fatal(err)
	}
	released := captureBoot(t)
	if _, err := released.Release(true); err != nil {
		t.Fatal(err)
	}
	for name, m := range map[string]*testMachine{"disarmed": disabled(disarmed), "after a release": disabled(released)} {
		_, err := m.Arm()
		wantRefusal(t, err, "kexec_load_disabled is set")
		if got := m.block().Refused; got != "" {
			t.Errorf("%s: the payload is told %q", name, got)
		}
	}
	disarmed.file("etc/warmcore.conf", "arm=no\n")
	disarmed.file("proc/sys/kernel/kexec_load_disabled", "0\n")
	_, err := disarmed.Arm()
	wantRefusal(t, err, "arm=no")
	if got := disarmed.block().Refused; got == "" {
		t.Error("arm=no: the payload isn't told")
	}
}
