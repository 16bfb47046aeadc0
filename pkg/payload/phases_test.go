package payload

import (
	"errors"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/warmcore/warmcore/pkg/normalboot"
	"github.com/warmcore/warmcore/pkg/phys"
	"github.com/warmcore/warmcore/pkg/registration"
	"github.com/warmcore/warmcore/pkg/verdict"
)

func (m *machine) progressRecord() registration.Progress {
	m.tb.Helper()
	p, err := registration.DecodeProgress(m.mem.Get(DefaultHandoff)[registration.ProgressOff:])
	if err != nil {
		m.tb.Fatal(err)
	}
	return p
}

// TestPhases: each phase has its deadline, and the watchdog is stopped before
// another kernel starts (machine.Reboot checks that).
func TestPhases(t *testing.T) {
	c := newCrash(t)
	plain := []string{"plan 3m0s", "disks 5m0s", "place 2m0s", "place 2m5s", "start 3m0s"}
	if diff := cmp.Diff(plain, c.guards); diff != "" {
		t.Errorf("plain boot's deadlines (-want +got):\n%s", diff)
	}
	r := c.run()
	copied := 3*time.Minute + time.Duration((c.p.Boot.Size()+16*mib-1)/(16*mib))*time.Second
	capture := []string{"plan 3m0s", "copy " + copied.String(), "dump 3m8s", "disks 5m0s", "place 2m0s", "place 2m5s", "start 3m0s"}
	if diff := cmp.Diff(capture, c.guards); diff != "" || !r.started {
		t.Errorf("capture boot's deadlines (-want +got):\n%s%s", diff, r.log)
	}
	if got, want := c.progressRecord(), (registration.Progress{Phase: registration.PhaseStarted}); got != want {
		t.Errorf("progress %+v, want %+v", got, want)
	}
}

// TestDryRunGuardsNothing: warminit -n must not open a watchdog that nobody
// would answer afterwards.
func TestDryRunGuardsNothing(t *testing.T) {
	m := newMachine(t)
	p := New(m, slog.New(slog.DiscardHandler), func() []byte { return nil }, Options{Limits: verdict.DefaultLimits}, "v1")
	p.Plan()
	if len(m.guards) > 0 || len(m.mem.Writes()) > 0 {
		t.Errorf("a dry run set deadlines %q or wrote to memory", m.guards)
	}
}

// TestHangs: whatever hangs, the machine is reset, the next payload says where,
// and in the end the machine boots.
func TestHangs(t *testing.T) {
	for _, phase := range []string{"copy", "dump", "disks", "place", "start"} {
		t.Run(phase+" in a capture boot", func(t *testing.T) {
			c := newCrash(t)
			c.hangs = phase
			for n := range 3 {
				r := c.run()
				if r.started {
					t.Fatalf("it should hang in phase %s:\n%s", phase, r.log)
				}
				wantLog(t, r.log, "capture boot", "error: deadline, phase: "+phase, "-> reset")
				if n > 0 {
					wantLog(t, r.log, "started a kernel, in_phase: "+phase)
				}
				if b := c.block(); b.Counters.Attempts != uint32(n+1) || b.Counters.Captures != 1 {
					t.Errorf("after hang %d: %d attempts at %d dumps, want %d at 1", n, b.Counters.Attempts, b.Counters.Captures, n+1)
				}
				current, _ := c.logs()
				wantLog(t, string(current.Text), "deadline, phase: "+phase)
			}
			if got, want := c.progressRecord().Stalls, uint32(2); got != want {
				t.Errorf("%d stalls, want %d: the present one counts at the next reset", got, want)
			}
			c.hangs = ""
			r := c.run()
			wantLog(t, r.log, "plain boot, why: gave the dump up after 3", "in_a_row: 3, ever: 3")
			wantKernel(t, r, 1, entryCmdline)
			if got, want := c.progressRecord(), (registration.Progress{Phase: registration.PhaseStarted, Total: 3}); got != want {
				t.Errorf("progress %+v, want %+v", got, want)
			}
		})
	}
	t.Run("disks in a plain boot", func(t *testing.T) {
		m := newMachine(t)
		m.hangs = "disks"
		m.run()
		m.hangs = ""
		r := m.run()
		wantLog(t, r.log, "plain boot", "in_phase: disks, in_a_row: 1, ever: 1")
		wantKernel(t, r, 1, entryCmdline)
		if r = m.run(); strings.Contains(r.log, "in_phase") {
			t.Errorf("a stall that is over is still told:\n%s", r.log)
		}
	})
	t.Run("in the plan, and the reset fails", func(t *testing.T) {
		m := newMachine(t)
		m.hangs, m.resetErr = "plan", errBroken
		r := m.run()
		wantLog(t, r.log, "deadline, phase: plan", "error: reset, error: broken for this test -> waiting for the watchdog")
		if len(r.writes) > 0 {
			t.Errorf("wrote %v without a plan", r.writes)
		}
	})
}

// TestWaitingIsGuarded waits for ever, and in time for the watchdog.
func TestWaitingIsGuarded(t *testing.T) {
	m := newMachine(t)
	m.entries, m.waits = nil, 3
	r := m.run()
	if r.started || len(m.guards) < 4 || !slices.Equal(slices.Compact(slices.Clone(m.guards[1:])), []string{"disks 5m0s"}) {
		t.Errorf("deadlines %q, want one for each look at the disks", m.guards)
	}
}

// TestWatchdogStays: a watchdog that can't be stopped doesn't keep the machine
// from booting.
func TestWatchdogStays(t *testing.T) {
	m := newMachine(t)
	m.releaseErr = errors.New("stop watchdog: it goes on running")
	r := m.run()
	wantLog(t, r.log, "watchdog, error: stop watchdog")
	wantKernel(t, r, 1, entryCmdline)
}

// TestGuardedAgain: an entry whose kernel doesn't start is followed by the next,
// and that within deadlines, too.
func TestGuardedAgain(t *testing.T) {
	m := newMachine(t)
	m.entries = []normalboot.Entry{debian("first", 1), debian("second", 2)}
	m.rebootErr, m.waits = errBroken, 0
	m.run()
	starts := 0
	for _, g := range m.guards {
		if strings.HasPrefix(g, "start") {
			starts++
		}
	}
	if !m.armed || starts < 2 {
		t.Errorf("guarded: %v, after %d starts; want it guarded after at least 2", m.armed, starts)
	}
}

func TestQuietDevices(t *testing.T) {
	c := newCrash(t)
	c.dmaDevices = []string{"0000:00:02.0 (class 020000)"}
	r := c.run()
	wantLog(t, r.log, "could still write to memory after the reset, stopped: 0000:00:02.0 (class 020000) -> ", "boot memory copied")
	if c.quieted != 2 {
		t.Errorf("looked for devices %d times, want 2: at the start and before the copy", c.quieted)
	}
}

func TestTransfer(t *testing.T) {
	for _, tt := range []struct {
		n, rate uint64
		want    time.Duration
	}{
		{0, phys.MiB, 0},
		{1, phys.MiB, time.Second},
		{phys.GiB, 16 * phys.MiB, 64 * time.Second},
		{1 << 63, phys.MiB, 24 * time.Hour},
	} {
		if got := transfer(tt.n, tt.rate); got != tt.want {
			t.Errorf("transfer(%d, %d) = %v, want %v", tt.n, tt.rate, got, tt.want)
		}
	}
}
