package agent

import (
	"bytes"
	"errors"

	"github.com/warmcore/warmcore/pkg/outcome"
	"github.com/warmcore/warmcore/pkg/readiness"
	"github.com/warmcore/warmcore/pkg/registration"
)

// stubState says what the kernel would jump to if it panicked now.
type stubState string

const (
	stubLoaded   stubState = "loaded"   // the stub, as Arm would load it now
	stubUnloaded stubState = "unloaded" // nothing
	stubReplaced stubState = "replaced" // another image, or a stub that lacks a CPU
	stubUnknown  stubState = "unknown"  // an image that can't be looked at
)

// stub compares the crash image in memory with the stub of the registration.
// The kernel says only that there is an image. x86-64 keeps it mapped and
// read-only; arm64 unmaps it (arch_kexec_protect_crashkres in
// arch/x86/kernel/machine_kexec_64.c and arch/arm64/kernel/machine_kexec.c,
// v6.12), and then it reads as zeroes.
func (x *session) stub() stubState {
	if loaded, err := x.running().Text("sys/kernel/kexec_crash_loaded"); err == nil && loaded == "0" {
		return stubUnloaded
	}
	m, err := x.machine()
	if err != nil {
		return stubUnknown
	}
	area, err := x.crashArea(m.area())
	if err != nil {
		return stubUnknown
	}
	want, _, err := m.stub(area, x.area.Range(), x.block.Identity.Nonce)
	if err != nil {
		return stubUnknown
	}
	got := make([]byte, len(want.Data))
	if err := x.running().ReadRAM(got, want.Range.Start); err != nil || len(bytes.Trim(got, "\x00")) == 0 {
		return stubUnknown
	}
	if !bytes.Equal(got, want.Data) {
		return stubReplaced
	}
	return stubLoaded
}

// Keep arms again if this boot was armed and has lost its stub since. A
// machine that somebody has disarmed stays disarmed. The error is an
// outcome.Nothing if all is well, and a Refusal if a crash could not be
// dumped.
func (s *System) Keep() (Armed, error) {
	x, err := s.open(true)
	if errors.Is(err, errBusy) {
		return Armed{}, &outcome.Nothing{What: errBusy.What}
	}
	if err != nil {
		return Armed{}, err
	}
	defer x.close()
	if err := x.need(); err != nil {
		return Armed{}, err
	}
	id, err := x.running().Identity()
	if err != nil {
		return Armed{}, err
	}
	if b := x.block; b.State != registration.Armed || b.Identity.BootID != id.BootID {
		return Armed{}, &outcome.Nothing{What: "this boot is not armed: there is nothing to keep"}
	}
	switch stub := x.stub(); stub {
	case stubUnloaded, stubReplaced:
		x.log().Warn("arming again", "stub", string(stub))
		return x.arm()
	}
	memory, err := x.memoryCheck()
	if err != nil {
		return Armed{}, err
	}
	if memory.Verdict == readiness.Refuse {
		return Armed{}, refuse(memory.Remedy, "%s", memory.Reason)
	}
	return Armed{}, &outcome.Nothing{What: "still armed"}
}
