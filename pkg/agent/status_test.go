package agent

import (
	"encoding/json"
	"errors"
	"io/fs"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/warmcore/warmcore/pkg/phys"
	"github.com/warmcore/warmcore/pkg/registration"
)

func TestStatusWithoutRoot(t *testing.T) {
	m := plainBoot(t)
	m.EUID = func() int { return 1 }
	st, err := m.Status()
	wantRefusal(t, err, "this needs root")
	if diff := cmp.Diff(Status{}, st); diff != "" {
		t.Errorf("status (-want +got):\n%s", diff)
	}
}

// Nobody knows whether such a machine is armed, so none has a status.
func TestMemoryOutOfReach(t *testing.T) {
	for _, tc := range []struct {
		name   string
		change func(m *testMachine)
		want   string
		todo   string
	}{
		{"no /dev/mem", func(m *testMachine) { m.Memory = nil }, "dev/mem: no such file", "CONFIG_DEVMEM"},
		{"a mapping that faults", func(m *testMachine) {
			m.Memory = nil
			m.file("dev/mem", "") // what is behind its end faults
		}, "read handoff area 20000000-201fffff: physical memory 20000000-201fffff: fault", "/proc/iomem"},
		{"forbidden", func(m *testMachine) { m.memory.err = fs.ErrPermission }, "permission denied", "CONFIG_DEVMEM"},
		{"lockdown", func(m *testMachine) {
			m.memory.err = fs.ErrPermission
			m.file("sys/kernel/security/lockdown", "none integrity [confidentiality]\n")
		}, "lockdown is confidentiality", "boot without lockdown"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			m := plainBoot(t)
			tc.change(m)
			st, err := m.Status()
			_, armErr := m.Arm()
			for _, err := range []error{err, armErr} {
				wantRefusal(t, err, tc.want)
				if err == nil || !strings.Contains(err.Error(), tc.todo) {
					t.Errorf("%v; want it to name %q", err, tc.todo)
				}
			}
			if diff := cmp.Diff(Status{}, st); diff != "" {
				t.Errorf("status (-want +got):\n%s", diff)
			}
			unlock, err := m.lock()
			if err != nil {
				t.Fatalf("the refused verb left its lock: %v", err)
			}
			unlock()
		})
	}
}

func TestStatus(t *testing.T) {
	for _, tc := range []struct {
		name  string
		setup func(t *testing.T) *testMachine
		armed bool
		why   string
		state string
		boot  string
		dump  bool
		lent  uint64 // blocks
		kept  uint64 // blocks
	}{
		{name: "no payload", setup: func(t *testing.T) *testMachine {
			m := plainBoot(t)
			m.file("proc/cmdline", "quiet\n")
			return m
		}, why: "not started by the warmcore payload", boot: "plain"},
		{name: "prearmed", setup: plainBoot, why: "the agent has not armed", state: "prearmed", boot: "plain"},
		{name: "armed and lent", setup: func(t *testing.T) *testMachine {
			m := plainBoot(t)
			if _, err := m.Arm(); err != nil {
				t.Fatal(err)
			}
			if _, err := m.Lend(); err != nil {
				t.Fatal(err)
			}
			m.file("sys/kernel/kexec_crash_loaded", "1\n")
			return m
		}, armed: true, why: "a panic or a reset now is dumped", state: "armed", boot: "plain", lent: 6},
		{name: "the destination is online for the kernel, too", setup: func(t *testing.T) *testMachine {
			m := plainBoot(t)
			if _, err := m.Arm(); err != nil {
				t.Fatal(err)
			}
			m.file("sys/kernel/kexec_crash_loaded", "1\n")
			m.file("proc/iomem", "00100000-17ffffff : System RAM\n50000000-57ffffff : System RAM (kmem)\n")
			return m
		}, why: "overwrites 128 MiB that this kernel uses", state: "armed", boot: "plain"},
		{name: "memory was added that is not in the plan", setup: func(t *testing.T) *testMachine {
			m := plainBoot(t)
			if _, err := m.Arm(); err != nil {
				t.Fatal(err)
			}
			m.file("sys/kernel/kexec_crash_loaded", "1\n")
			m.file("proc/iomem", "00100000-17ffffff : System RAM\n100000000-107ffffff : System RAM\n")
			return m
		}, armed: true, why: "is dumped, but 128 MiB of kernel memory, from 0x100000000 on, would be in no dump", state: "armed", boot: "plain"},
		{name: "stub unloaded", setup: func(t *testing.T) *testMachine {
			m := plainBoot(t)
			if _, err := m.Arm(); err != nil {
				t.Fatal(err)
			}
			return m
		}, why: "something unloaded the stub", state: "armed", boot: "plain"},
		{name: "armed by another boot", setup: func(t *testing.T) *testMachine {
			m := plainBoot(t)
			if _, err := m.Arm(); err != nil {
				t.Fatal(err)
			}
			m.file("sys/kernel/kexec_crash_loaded", "1\n")
			m.file("proc/sys/kernel/random/boot_id", "ffffffff-4455-6677-8899-aabbccddeeff\n")
			return m
		}, why: "another boot", state: "armed", boot: "plain"},
		{name: "disarmed", setup: func(t *testing.T) *testMachine {
			m := plainBoot(t)
			if err := m.Disarm(); err != nil {
				t.Fatal(err)
			}
			return m
		}, why: "the state is disarmed", state: "disarmed", boot: "plain"},
		{name: "a dump", setup: captureBoot, why: "there is a dump to save", state: "capturing", boot: "capture", dump: true, kept: 5},
	} {
		t.Run(tc.name, func(t *testing.T) {
			m := tc.setup(t)
			before := string(m.memory.bytes)
			st, err := m.Status()
			if err != nil {
				t.Fatal(err)
			}
			if st.Armed != tc.armed || !strings.Contains(st.Why, tc.why) || st.State != tc.state || st.Boot != tc.boot || st.Dump != tc.dump {
				t.Errorf("status = %+v\nwant armed %v, why %q, state %q, boot %q, dump %v", st, tc.armed, tc.why, tc.state, tc.boot, tc.dump)
			}
			if st.State != "" {
				lent, kept := uint64(tc.lent*testBlock), uint64(tc.kept*testBlock)
				want := StatusMemory{
					TotalKiB:   1000,
					StatusPlan: &StatusPlan{Window: testBlock, Boot: 383*phys.MiB + 126*phys.MiB + testBlock, Lendable: 6 * testBlock, Preserved: 5 * testBlock},
					Lent:       &lent, Kept: &kept,
				}
				if diff := cmp.Diff(want, st.Memory); diff != "" {
					t.Errorf("memory (-want +got):\n%s", diff)
				}
				if len(st.Plan) != len(testPlan) || st.Plan[1] != (StatusRange{"handoff", MemoryRange{"0x20000000", 2 * phys.MiB}}) {
					t.Errorf("plan = %v", st.Plan)
				}
			}
			// What isn't known is not 0.
			text, err := json.Marshal(st)
			if err != nil {
				t.Fatal(err)
			}
			for _, key := range []string{`"window":`, `"lent":`, `"kept":`, `"counters":`} {
				if strings.Contains(string(text), key) != (st.State != "") {
					t.Errorf("state %q, and %s in %s: %v", st.State, key, text, st.State == "")
				}
			}
			if (st.Last != nil) != tc.dump {
				t.Errorf("last capture = %+v", st.Last)
			}
			if string(m.memory.bytes) != before {
				t.Error("Status changed the handoff area")
			}
		})
	}
	m := plainBoot(t)
	m.memory.err = errors.New("bus error")
	if _, err := m.Status(); !errors.Is(err, m.memory.err) {
		t.Errorf("Status with bad memory: %v", err)
	}
}

func TestLogs(t *testing.T) {
	m := plainBoot(t)
	_, err := m.Logs()
	wantNothing(t, err)
	for _, text := range []string{"first\n", "second\n"} {
		off, boot := registration.NextLogSlot(m.memory.bytes)
		copy(m.memory.bytes[off:], registration.EncodeLog(registration.Log{Boot: boot, Text: []byte(text)}))
	}
	got, err := m.Logs()
	if err != nil {
		t.Fatal(err)
	}
	want := []PayloadLog{{2, "second\n"}, {1, "first\n"}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("logs (-want +got):\n%s", diff)
	}
}
