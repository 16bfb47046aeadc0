package agent

import (
	"errors"
	"fmt"
	"time"

	"github.com/warmcore/warmcore/pkg/hotplug"
	"github.com/warmcore/warmcore/pkg/manifest"
	"github.com/warmcore/warmcore/pkg/outcome"
	"github.com/warmcore/warmcore/pkg/readiness"
	"github.com/warmcore/warmcore/pkg/registration"
)

// StatusSchema is the number of Status's schema; see ManifestSchema.
const StatusSchema = 1

// Status is what `warmcore status --json` prints. Sizes are in bytes.
type Status struct {
	Schema int    `json:"schema"`
	Armed  bool   `json:"armed"` // a crash now would be dumped
	Why    string `json:"why"`   // one sentence
	State  string `json:"state"` // in the handoff area; "" if there is none
	// Stub is what a panic would jump to if the state is armed: loaded,
	// unloaded, replaced, or unknown where the kernel doesn't show it.
	Stub    stubState `json:"stub,omitempty"`
	Boot    string    `json:"boot"` // plain or capture
	Dump    bool      `json:"dump"` // there is a dump that can be saved
	Payload string    `json:"payload,omitempty"`
	Mode    string    `json:"handover"` // vmcore, or "" in a plain boot
	Kernel  string    `json:"kernel"`   // running, as uname -r

	Handoff  string          `json:"handoff,omitempty"`
	Plan     []StatusRange   `json:"plan,omitempty"`
	Memory   StatusMemory    `json:"memory"`
	Counters *StatusCounters `json:"counters,omitempty"`
	Last     *StatusCapture  `json:"last_capture,omitempty"`
}

// StatusRange is a range of the memory plan.
type StatusRange struct {
	Role string `json:"role"`
	MemoryRange
}

// StatusMemory is how much memory is used for what, in bytes. What isn't known
// is absent in JSON: without a memory plan all but TotalKiB, on a kernel without
// memory hotplug the last two.
type StatusMemory struct {
	TotalKiB uint64 `json:"total_kib,omitempty"` // of the running kernel
	*StatusPlan
	Lent *uint64 `json:"lent,omitempty"` // of what can be lent, in use
	Kept *uint64 `json:"kept,omitempty"` // preserved memory not given back in this boot
}

// StatusPlan is the size of the memory plan's parts, in bytes.
type StatusPlan struct {
	Window    uint64 `json:"window"`    // the payload's
	Boot      uint64 `json:"boot"`      // boot memory
	Lendable  uint64 `json:"lendable"`  // window and destination
	Preserved uint64 `json:"preserved"` // kept at a crash
}

// StatusCounters are kept across resets.
type StatusCounters struct {
	Boots    uint64 `json:"boots"`
	Captures uint64 `json:"captures"`
	Attempts uint32 `json:"attempts"` // capture boots of the present dump
}

// StatusCapture is the last dump that the payload made.
type StatusCapture struct {
	Time      *time.Time `json:"time,omitempty"`
	Reason    string     `json:"reason"`
	CopyBytes uint64     `json:"copy_bytes"`
	CopySecs  float64    `json:"copy_seconds"`
	CPUs      uint32     `json:"cpus_with_registers"`
	Flushed   uint32     `json:"cpus_flushed"`
	Seen      uint32     `json:"cpus_seen"`
}

// Status returns the machine's state. A machine that was not booted by the
// payload has a status too: not armed. If the handoff area can't be read, there
// is only the error.
func (s *System) Status() (Status, error) {
	if err := s.root(); err != nil {
		return Status{}, err // what can be seen would be half the truth
	}
	st := Status{Schema: StatusSchema, Boot: "plain"}
	st.Kernel, _ = s.running().Text("proc/sys/kernel/osrelease")
	st.Memory.TotalKiB = s.running().MemTotal()
	if s.running().CaptureBoot() {
		st.Boot, st.Mode = "capture", "vmcore"
	}
	x, err := s.open(false)
	var refusal *outcome.Refusal
	var blind *blindRefusal
	switch {
	case errors.As(err, &refusal) && !errors.As(err, &blind):
		st.Why = refusal.What
		return st, nil
	case err != nil:
		return Status{}, err
	}
	defer x.close()
	st.Handoff = x.area.Range().String()
	if x.block == nil {
		st.Why = x.err.Error()
		return st, nil
	}
	b := x.block
	st.State, st.Payload = b.State.String(), b.PayloadVersion
	st.Dump = b.State == registration.Capturing || b.State == registration.Saved && st.Boot == "capture"
	st.Counters = &StatusCounters{b.Counters.Boots, b.Counters.Captures, b.Counters.Attempts}
	if b.State == registration.Armed {
		st.Stub = x.stub()
	}
	st.Armed, st.Why = x.armed(st.Stub)
	for _, p := range b.Plan {
		st.Plan = append(st.Plan, StatusRange{p.Role.String(), memoryRange(p.Range)})
	}
	x.measure(&st.Memory)
	if c := b.Capture; c.Reason != registration.ReasonNone {
		st.Last = &StatusCapture{
			Time: manifest.Time(c.Time), Reason: c.Reason.String(),
			CopyBytes: c.CopyBytes, CopySecs: float64(c.CopyNanos) / 1e9,
			CPUs: c.CPUsWithRegisters, Flushed: c.CPUsFlushed, Seen: c.CPUsSeen,
		}
	}
	return st, nil
}

// armed says whether a crash now would be dumped, and why.
func (x *session) armed(stub stubState) (bool, string) {
	switch b := x.block; {
	case b.State == registration.Capturing:
		return false, "there is a dump to save"
	case b.State == registration.Prearmed:
		return false, "the agent has not armed; an early crash is dumped, without registers of CPUs"
	case b.Refused != "" && len(b.Plan) == 0:
		return false, "this boot is left to kdump: " + b.Refused
	case b.State != registration.Armed:
		return false, "the state is " + b.State.String()
	case stub == stubUnloaded:
		return false, "something unloaded the stub (kdump-tools does): run `warmcore arm`"
	case stub == stubReplaced:
		return false, "the crash image in memory is not the stub that `warmcore arm` would load now: run it"
	}
	// A state should not outlive the boot that wrote it: the payload changes
	// it at every reset.
	if id, err := x.running().Identity(); err == nil && id.BootID != x.block.Identity.BootID {
		return false, "it was another boot that armed: run `warmcore arm`"
	}
	why := "a panic or a reset now is dumped"
	switch memory, err := x.memoryCheck(); {
	case err != nil:
		return false, fmt.Sprintf("which memory this kernel uses is not known: %v", err)
	case memory.Verdict == readiness.Refuse:
		return false, memory.Reason + ": " + memory.Remedy
	case memory.Verdict == readiness.Warn:
		why += ", but " + memory.Reason
	}
	if stub == stubUnknown {
		why += ", unless another program has replaced the stub: this kernel doesn't show it"
	}
	return true, why
}

func (x *session) measure(m *StatusMemory) {
	m.StatusPlan = &StatusPlan{
		Window:    x.plan(registration.RoleWindow).Size(),
		Boot:      x.plan(registration.RoleBoot).Size(),
		Lendable:  x.plan(registration.RoleWindow, registration.RoleDestination).Size(),
		Preserved: x.plan(registration.RolePreserved).Size(),
	}
	p, err := x.parts()
	if err != nil {
		return // a kernel without memory hotplug
	}
	online := func(list []hotplug.Block) (n uint64) {
		for _, b := range list {
			if b.Online() {
				n += b.Range.Size()
			}
		}
		return n
	}
	lent, kept := online(p.lendable), m.Preserved-min(m.Preserved, online(p.preserved))
	m.Lent, m.Kept = &lent, &kept
}

// PayloadLog is the payload's log of one boot.
type PayloadLog struct {
	Boot uint64 `json:"boot"` // number of the boot
	Text string `json:"text"`
}

// Logs returns the payload's log of this boot and, if there is one, of the
// boot before.
func (s *System) Logs() ([]PayloadLog, error) {
	x, err := s.open(false)
	if err != nil {
		return nil, err
	}
	defer x.close()
	current, previous, err := registration.DecodeLogs(x.bytes)
	if errors.Is(err, registration.ErrEmpty) {
		return nil, &outcome.Nothing{What: "the payload has logged nothing"}
	}
	if err != nil {
		return nil, err
	}
	list := []PayloadLog{{current.Boot, string(current.Text)}}
	if previous.Boot != 0 || len(previous.Text) > 0 {
		list = append(list, PayloadLog{previous.Boot, string(previous.Text)})
	}
	return list, nil
}
