package agent

import (
	"bytes"
	"slices"
	"testing"

	"github.com/warmcore/warmcore/pkg/elfcore"
	"github.com/warmcore/warmcore/pkg/registration"
)

// showCrashMemory makes /proc/kcore show image at the start of the crash area.
func (m *testMachine) showCrashMemory(image []byte) {
	m.t.Helper()
	const area, size, offset = 0x10000000, 1 << 20, 0x1000
	b, err := elfcore.Header{Machine: elfcore.MachineAMD64, Loads: []elfcore.Load{
		{Virt: 0xffff888000000000 + area, Phys: area, Offset: offset, Size: size},
	}}.AppendBinary(nil)
	if err != nil {
		m.t.Fatal(err)
	}
	b = append(b, make([]byte, offset+size-len(b))...)
	copy(b[offset:], image)
	m.file("proc/kcore", string(b))
}

// armedMachine is one whose stub is loaded.
func armedMachine(t *testing.T) *testMachine {
	t.Helper()
	m := plainBoot(t)
	if _, err := m.Arm(); err != nil {
		t.Fatal(err)
	}
	m.file("sys/kernel/kexec_crash_loaded", "1\n")
	m.showCrashMemory(m.stub.Data)
	m.done = nil
	return m
}

// losses are what may become of a stub.
var losses = []struct {
	name   string
	change func(m *testMachine)
	stub   stubState
	armed  bool // says status
	again  bool // Keep arms
}{
	{"nothing happened", func(*testMachine) {}, stubLoaded, true, false},
	{"kexec -p -u", func(m *testMachine) { m.file("sys/kernel/kexec_crash_loaded", "0\n") }, stubUnloaded, false, true},
	{"kexec -p of another kernel", func(m *testMachine) { m.showCrashMemory(bytes.Repeat([]byte{0x90}, 1000)) }, stubReplaced, false, true},
	{"one byte differs", func(m *testMachine) {
		image := slices.Clone(m.stub.Data)
		image[len(image)-1]++
		m.showCrashMemory(image)
	}, stubReplaced, false, true},
	{"a CPU came", func(m *testMachine) {
		m.file("proc/cpuinfo", "apicid\t\t: 0\n\napicid\t\t: 2\n\napicid\t\t: 4\n")
	}, stubReplaced, false, true},
	{"arm64 unmaps it", func(m *testMachine) { m.showCrashMemory(nil) }, stubUnknown, true, false},
	{"no /proc/kcore", func(m *testMachine) { m.remove("proc/kcore") }, stubUnknown, true, false},
}

func TestStatusOfStub(t *testing.T) {
	for _, tc := range losses {
		t.Run(tc.name, func(t *testing.T) {
			m := armedMachine(t)
			tc.change(m)
			st, err := m.Status()
			if err != nil || st.Stub != tc.stub || st.Armed != tc.armed {
				t.Errorf("stub %q, armed %v, %q, %v; want %q, %v", st.Stub, st.Armed, st.Why, err, tc.stub, tc.armed)
			}
		})
	}
}

func TestKeep(t *testing.T) {
	for _, tc := range losses {
		t.Run(tc.name, func(t *testing.T) {
			m := armedMachine(t)
			tc.change(m)
			done, err := m.Keep()
			if !tc.again {
				wantNothing(t, err)
				if len(m.done) > 0 {
					t.Errorf("did %v, want nothing", m.done)
				}
				return
			}
			if err != nil || !done.Rearmed || !slices.Equal(m.done, []string{"load", "state armed"}) {
				t.Errorf("%+v, %v, did %v", done, err, m.done)
			}
		})
	}
}

// What somebody has disarmed, or nobody has armed, is left so.
func TestKeepLeavesAlone(t *testing.T) {
	for _, tc := range []struct {
		name   string
		change func(m *testMachine)
	}{
		{"prearmed", func(m *testMachine) { m.setBlock(registration.Prearmed, nil) }},
		{"another boot's", func(m *testMachine) {
			m.file("proc/sys/kernel/random/boot_id", "ffffffff-4455-6677-8899-aabbccddeeff\n")
		}},
		{"disarmed", func(m *testMachine) {
			if err := m.Disarm(); err != nil {
				t.Fatal(err)
			}
		}},
		{"a dump", func(m *testMachine) { m.setBlock(registration.Capturing, nil) }},
		{"another agent is at work", func(m *testMachine) {
			unlock, err := m.lock()
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(unlock)
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			m := armedMachine(t)
			m.file("sys/kernel/kexec_crash_loaded", "0\n")
			tc.change(m)
			m.done = nil
			_, err := m.Keep()
			wantNothing(t, err)
			if contains(m.done, "load") {
				t.Errorf("did %v", m.done)
			}
		})
	}
}

// Memory that came online where the copy goes is told though the stub is there.
func TestKeepRefuses(t *testing.T) {
	m := armedMachine(t)
	m.file("proc/iomem", "00100000-17ffffff : System RAM\n  10000000-100fffff : Crash kernel\n50000000-57ffffff : System RAM (kmem)\n")
	_, err := m.Keep()
	wantRefusal(t, err, "overwrites 128 MiB")
	m = plainBoot(t)
	m.file("proc/cmdline", "quiet\n")
	_, err = m.Keep()
	wantRefusal(t, err, "not started by the warmcore payload")
}
