package agent

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/warmcore/warmcore/boot/stub"
	"github.com/warmcore/warmcore/pkg/kernelmap"
	"github.com/warmcore/warmcore/pkg/phys"
	"github.com/warmcore/warmcore/pkg/registration"
)

func TestArm(t *testing.T) {
	m := plainBoot(t)
	done, err := m.Arm()
	if err != nil {
		t.Fatal(err)
	}
	want := Armed{CPUs: 2, CrashArea: MemoryRange{"0x10000000", stub.AMD64Size}, Release: "6.12.0-test"}
	if diff := cmp.Diff(want, done); diff != "" {
		t.Errorf("Arm (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]string{"load", "state armed"}, m.done); diff != "" {
		t.Errorf("steps (-want +got):\n%s", diff)
	}
	b := m.block()
	nonce := b.Identity.Nonce
	if nonce == [16]byte{} || !strings.Contains(string(m.stub.Data), string(nonce[:])) {
		t.Errorf("nonce %x is not in the stub", nonce)
	}
	wantBlock := &registration.Block{
		Sequence: 2, State: registration.Armed, MapHash: [32]byte{0xab}, Plan: testPlan, PayloadVersion: "1.0",
		Policy:   registration.Policy{BlockSize: testBlock},
		Counters: registration.Counters{Boots: 7},
		Identity: registration.Identity{
			Nonce:   nonce,
			BootID:  [16]byte{0x00, 0x11, 0x22, 0x33, 0x44, 0x55, 0x66, 0x77, 0x88, 0x99, 0xaa, 0xbb, 0xcc, 0xdd, 0xee, 0xff},
			Release: "6.12.0-test", BuildID: []byte{0xb1, 0xd}, Machine: 62, PageSize: uint32(os.Getpagesize()), Time: b.Identity.Time,
		},
		CPUNotes:   []registration.Note{{Addr: 0x7f000000, Size: 368}, {Addr: 0x7f000200, Size: 368}},
		VMCoreInfo: registration.Note{Addr: 0x1234000, Size: 0x1024},
		Mapping:    kernelmap.Mapping{DirectBase: 0xffff8ab040000000, TextVirt: 0xffffffff9a000000, TextPhys: 0x12000000, TextSize: 0x3400000},
	}
	if diff := cmp.Diff(wantBlock, b); diff != "" {
		t.Errorf("block (-want +got):\n%s", diff)
	}
	wantStub, _, err := stub.BuildAMD64(stub.AMD64Params{
		Base: 0x10000000, Record: testHandoff.Start + registration.RecordOff, LowPage: 0x8000, Nonce: nonce,
		APICIDs: []uint32{0, 2}, BSP: 0, ResetRegister: stub.ResetRegister{Space: stub.SpaceIO, Address: 0xcf9, Value: 0xf},
	})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(phys.Segment{Name: "stub", Range: phys.Range{Start: 0x10000000, End: 0x10000000 + stub.AMD64Size}, Data: wantStub}, m.stub); diff != "" {
		t.Errorf("stub (-want +got):\n%s", diff)
	}

	again, err := m.Arm()
	if err != nil {
		t.Fatal(err)
	}
	if !again.Rearmed || m.block().Identity.Nonce == nonce {
		t.Errorf("second Arm = %+v with the nonce of the first, want a new registration", again)
	}
}

// The dump of before must not be taken for the next one.
func TestArmAfterRelease(t *testing.T) {
	m := captureBoot(t)
	m.setBlock(registration.Releasing, func(b *registration.Block) {
		b.Capture = registration.Capture{Reason: registration.ReasonPanic, Copied: true}
		b.Counters.Attempts = 2
	})
	if _, err := m.Arm(); err != nil {
		t.Fatal(err)
	}
	b := m.block()
	if b.Capture.Copied || b.Counters.Attempts != 0 || b.Capture.Reason != registration.ReasonPanic {
		t.Errorf("capture %+v, attempts %d: want it not copied, the reason kept, no attempts", b.Capture, b.Counters.Attempts)
	}
}

// A block of the destination that holds user pages only is as it should be.
func TestArmLent(t *testing.T) {
	m := plainBoot(t)
	if _, err := m.Lend(); err != nil {
		t.Fatal(err)
	}
	m.file("proc/iomem", "00100000-17ffffff : System RAM\n  10000000-100fffff : Crash kernel\n18000000-1fffffff : System RAM (kmem)\n50000000-77ffffff : System RAM (kmem)\n")
	if _, err := m.Arm(); err != nil {
		t.Error(err)
	}
}

// Memory that the plan doesn't have is named, with its size.
func TestArmMemoryAdded(t *testing.T) {
	m := plainBoot(t)
	m.file("proc/iomem", "00100000-17ffffff : System RAM\n  10000000-100fffff : Crash kernel\n100000000-107ffffff : System RAM\n")
	done, err := m.Arm()
	if err != nil || len(done.Warnings) != 1 || !strings.Contains(done.Warnings[0].Reason, "128 MiB of kernel memory, from 0x100000000 on, would be in no dump") {
		t.Errorf("warnings %+v, error %v", done.Warnings, err)
	}
}

// What the dump of the next crash would hold of the last one is said.
func TestArmWhileReleasing(t *testing.T) {
	m := captureBoot(t)
	m.setBlock(registration.Releasing, nil)
	done, err := m.Arm()
	if err != nil {
		t.Fatal(err)
	}
	if len(done.Warnings) != 1 || !strings.Contains(done.Warnings[0].Reason, "640 MiB of the last dump is not given back") {
		t.Errorf("before anything was released: %+v", done.Warnings)
	}
	if _, err := m.Release(false); err != nil {
		t.Fatal(err)
	}
	if done, err = m.Arm(); err != nil || len(done.Warnings) != 0 {
		t.Errorf("when all was released: %+v, %v", done.Warnings, err)
	}
}

func TestArmRefusals(t *testing.T) {
	for _, tc := range []struct {
		name   string
		change func(m *testMachine)
		want   string
	}{
		{"not root", func(m *testMachine) { m.EUID = func() int { return 1000 } }, "needs root"},
		{"no payload", func(m *testMachine) { m.file("proc/cmdline", "root=/dev/vda1\n") }, "not started by the warmcore payload"},
		{"handoff parameter is broken", func(m *testMachine) { m.file("proc/cmdline", "warmcore.handoff=here\n") }, "want ADDR,SIZE"},
		{"handoff area too small", func(m *testMachine) { m.file("proc/cmdline", "warmcore.handoff=512M,1M\n") }, "1 MiB, want at least 2 MiB"},
		{"no registration", func(m *testMachine) { clear(m.memory.bytes) }, "holds no registration"},
		{"registration is broken", func(m *testMachine) { m.memory.bytes[100]++ }, "holds no registration"},
		{"no memory plan", func(m *testMachine) {
			m.setBlock(registration.Empty, func(b *registration.Block) { b.Plan = nil })
		}, "no memory plan"},
		{"no map hash", func(m *testMachine) {
			m.setBlock(registration.Empty, func(b *registration.Block) { b.MapHash = [32]byte{} })
		}, "no memory plan"},
		{"another handoff area", func(m *testMachine) {
			m.setBlock(registration.Prearmed, func(b *registration.Block) { b.Plan = testPlan[2:] })
		}, "planned its handoff area at none"},
		{"dump not saved", func(m *testMachine) { m.setBlock(registration.Capturing, nil) }, "not saved"},
		{"dump not released", func(m *testMachine) {
			m.setBlock(registration.Saved, nil)
			m.file("proc/cmdline", plainCmdline+" elfcorehdr=1K@0x200c0000\n")
		}, "has not been given back"},
		{"lockdown", func(m *testMachine) {
			m.file("sys/kernel/security/lockdown", "none [integrity] confidentiality\n")
		}, "lockdown is integrity"},
		{"kexec_load disabled", func(m *testMachine) { m.file("proc/sys/kernel/kexec_load_disabled", "1\n") }, "kexec_load_disabled is set"},
		{"no kexec_load", func(m *testMachine) { m.remove("proc/sys/kernel/kexec_load_disabled") }, "no kexec_load"},
		{"no crash images", func(m *testMachine) { m.remove("sys/kernel/kexec_crash_size") }, "can't load a crash image"},
		{"no crash memory", func(m *testMachine) { m.file("sys/kernel/kexec_crash_size", "0\n") }, "no memory is reserved"},
		{"crash memory above 4 GiB", func(m *testMachine) {
			m.setBlock(registration.Prearmed, func(b *registration.Block) {
				b.Plan = append(b.Plan[:len(b.Plan):len(b.Plan)], registration.PlanRange{Role: registration.RolePreserved, Range: phys.Range{Start: 4 * phys.GiB, End: 6 * phys.GiB}})
			})
			m.file("proc/iomem", "00001000-0009fbff : System RAM\n100000000-17fffffff : System RAM\n  110000000-1100fffff : Crash kernel\n")
		}, "below 4 GiB"},
		{"iomem without addresses", func(m *testMachine) {
			m.file("proc/iomem", "00000000-00000000 : System RAM\n  00000000-00000000 : Crash kernel\n")
		}, "CAP_SYS_ADMIN"},
		{"arm=no", func(m *testMachine) { m.file("etc/warmcore.conf", "arm=no\n") }, "arm=no in /etc/warmcore.conf"},
		{"memory encryption", func(m *testMachine) { m.file("proc/cmdline", plainCmdline+" mem_encrypt=on\n") }, "memory encryption is on"},
		{"TDX guest", func(m *testMachine) { m.file("proc/cpuinfo", "flags\t: fpu tdx_guest\n") }, "confidential guest (tdx_guest)"},
		{"SEV-SNP guest", func(m *testMachine) { m.file("dev/sev-guest", "") }, "confidential guest (SEV-SNP)"},
		{"the destination is online for the kernel, too", func(m *testMachine) {
			m.file("proc/iomem", "00100000-17ffffff : System RAM\n50000000-57ffffff : System RAM (kmem)\n")
		}, "overwrites 128 MiB that this kernel uses, from 0x50000000 on"},
		{"no low memory", func(m *testMachine) {
			m.file("sys/firmware/memmap/0/start", "0x100000\n")
			m.file("sys/firmware/memmap/0/end", "0x7fffffff\n")
		}, "no RAM below 640 KiB"},
		{"another agent", func(m *testMachine) {
			unlock, err := m.lock()
			if err != nil {
				m.t.Fatal(err)
			}
			m.t.Cleanup(unlock)
		}, "another warmcore"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			m := plainBoot(t)
			tc.change(m)
			before := string(m.memory.bytes)
			done, err := m.Arm()
			wantRefusal(t, err, tc.want)
			m.refusedWith(done, before, lasting[tc.name])
		})
	}
}

// lasting are the refusals that the payload is told of, so that it leaves the
// next boot to kdump.
var lasting = map[string]bool{
	"lockdown": true, "kexec_load disabled": true, "no kexec_load": true, "no crash images": true, "no crash memory": true,
	"memory encryption": true, "TDX guest": true, "SEV-SNP guest": true, "no low memory": true, "arm=no": true,
	"no PSCI": true, "old PSCI": true, "ACPI without PSCI": true, "kernel of 64 KiB pages": true,
}

// refusedWith fails unless nothing was done but, for a refusal that lasts, to
// tell the payload.
func (m *testMachine) refusedWith(done Armed, before string, lasting bool) {
	m.t.Helper()
	if lasting {
		b := m.block()
		if done.CPUs != 0 || !slices.Equal(m.done, []string{"state prearmed"}) || b.Refused == "" || b.State != registration.Prearmed {
			m.t.Errorf("did %v (%+v), refused %q; want the payload to be told", m.done, done, b.Refused)
		}
	} else if done.CPUs != 0 || len(m.done) != 0 || string(m.memory.bytes) != before {
		m.t.Errorf("refused, but did %v (%+v)", m.done, done)
	}
}

func (m *testMachine) remove(name string) {
	m.t.Helper()
	if err := os.Remove(filepath.Join(m.Root, name)); err != nil {
		m.t.Fatal(err)
	}
}

// Armed must not be written unless the stub is loaded.
func TestArmFailures(t *testing.T) {
	bad := errors.New("invalid argument")
	m := plainBoot(t)
	m.Load = func(uint64, []phys.Segment) error { return bad }
	if _, err := m.Arm(); !errors.Is(err, bad) {
		t.Errorf("Arm error = %v, want %v", err, bad)
	}
	if got := m.block().State; got != registration.Prearmed {
		t.Errorf("state is %v, want prearmed", got)
	}
	for _, file := range []string{"proc/sys/kernel/random/boot_id", "sys/kernel/vmcoreinfo", "sys/devices/system/cpu/cpu1/crash_notes_size"} {
		m := plainBoot(t)
		m.file(file, "nonsense\n")
		if _, err := m.Arm(); err == nil || len(m.done) > 0 {
			t.Errorf("Arm with a broken %s: %v, did %v", file, err, m.done)
		}
	}
}

// A dump without the mapping is better than none.
func TestArmWithoutKcore(t *testing.T) {
	m := plainBoot(t)
	m.remove("proc/kcore")
	if _, err := m.Arm(); err != nil {
		t.Fatal(err)
	}
	if got := m.block().Mapping; got != (kernelmap.Mapping{}) {
		t.Errorf("mapping is %+v, want none", got)
	}
}

func TestDisarm(t *testing.T) {
	m := plainBoot(t)
	if _, err := m.Arm(); err != nil {
		t.Fatal(err)
	}
	m.done = nil
	if err := m.Disarm(); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"state disarmed", "unload"}, m.done); diff != "" {
		t.Errorf("steps (-want +got):\n%s", diff)
	}
	wantNothing(t, m.Disarm())
	// Written but broken off: the stub is still there.
	m.file("sys/kernel/kexec_crash_loaded", "1\n")
	if err := m.Disarm(); err != nil {
		t.Errorf("Disarm with the stub loaded: %v", err)
	}
	m = captureBoot(t)
	wantRefusal(t, m.Disarm(), "would lose the dump")
	if got := m.block().State; got != registration.Capturing {
		t.Errorf("state is %v, want capturing", got)
	}
}

func TestLowPage(t *testing.T) {
	for _, tc := range []struct {
		name, start, end string
		want             uint64
	}{
		{"usual", "0x0", "0x9fbff", 0x8000},
		{"it is reserved", "0x9000", "0x9fbff", 0x9000},
		{"only page 1", "0x0", "0x1fff", 0x1000},
	} {
		t.Run(tc.name, func(t *testing.T) {
			m := plainBoot(t)
			m.file("sys/firmware/memmap/0/start", tc.start+"\n")
			m.file("sys/firmware/memmap/0/end", tc.end+"\n")
			if got, err := m.lowPage(); got != tc.want || err != nil {
				t.Errorf("lowPage() = %#x, %v; want %#x", got, err, tc.want)
			}
		})
	}
}

// A table that firmware got wrong must not keep the machine from being armed.
func TestArmBadFADT(t *testing.T) {
	m := plainBoot(t)
	m.file("sys/firmware/acpi/tables/FACP", "FACP")
	if _, err := m.Arm(); err != nil {
		t.Errorf("Arm: %v", err)
	}
}
