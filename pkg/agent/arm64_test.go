package agent

import (
	"encoding/binary"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/warmcore/warmcore/boot/stub"
	"github.com/warmcore/warmcore/pkg/acpi/acpitest"
	"github.com/warmcore/warmcore/pkg/elfcore"
	"github.com/warmcore/warmcore/pkg/hotplug"
	"github.com/warmcore/warmcore/pkg/kernelmap"
	"github.com/warmcore/warmcore/pkg/phys"
	"github.com/warmcore/warmcore/pkg/registration"
)

// pmem is a region of hidden memory blocks, with the info block in front.
func pmem(from, to uint64) phys.Range {
	return phys.Range{Start: from*testBlock - hotplug.InfoBlock, End: to * testBlock}
}

// makeARM64 makes an arm64 machine of m, whose device tree hides regions.
func makeARM64(t *testing.T, m *testMachine, regions ...phys.Range) *testMachine {
	t.Helper()
	m.Arch = "arm64"
	m.kernel.Soft = nil
	m.kernel.AddPmem(regions...)
	for _, name := range []string{"proc/cpuinfo", "sys/firmware/memmap/0/start", "sys/firmware/acpi/tables/FACP"} {
		m.remove(name)
	}
	m.file("proc/device-tree/psci/method", "hvc\x00")
	m.file("proc/device-tree/psci/compatible", "arm,psci-1.0\x00arm,psci-0.2\x00arm,psci\x00")
	m.file("sys/devices/system/cpu/online", "0-1\n")
	m.file("sys/devices/system/cpu/cpu0/of_node/reg", "\x00\x00\x00\x00")
	m.file("sys/devices/system/cpu/cpu1/of_node/reg", "\x00\x00\x01\x00")
	m.file("proc/iomem", "00000000-17dfffff : System RAM\n"+
		"  10001000-101fffff : Crash kernel\n"+
		"28000000-4fdfffff : System RAM\n"+
		"78000000-7fffffff : System RAM\n")
	// Debian's 6.12 in QEMU: the text above the linear map, RAM at 1 GiB.
	const notRAM = 1<<64 - 1
	b, err := elfcore.Header{Machine: elfcore.MachineARM64, Loads: []elfcore.Load{
		{Virt: 0xffffd15e4ec00000, Phys: 0x40200000, Offset: 0xfd15e4ec03000, Size: 0x2b30000},
		{Virt: 0xffff800080000000, Phys: notRAM, Offset: 0xf800080003000, Size: 0x7dff3f800000},
		{Virt: 0xffff01bb80000000, Phys: 0x40000000, Offset: 0xf01bb80003000, Size: 0x1fc00000},
		{Virt: 0xfffffe06ae000000, Phys: notRAM, Offset: 0xffe06ae003000, Size: 0x7f0000},
		{Virt: 0xffff01bbb8000000, Phys: 0x78000000, Offset: 0xf01bbb8003000, Size: 0x7e00000},
	}}.AppendBinary(nil)
	if err != nil {
		t.Fatal(err)
	}
	m.file("proc/kcore", string(b))
	return m
}

// plainARM64 is an arm64 machine in a plain boot: window and destination are
// hidden.
func plainARM64(t *testing.T) *testMachine {
	return makeARM64(t, plainBoot(t), pmem(3, 4), pmem(10, 15))
}

func TestArmARM64(t *testing.T) {
	m := plainARM64(t)
	done, err := m.Arm()
	if err != nil {
		t.Fatal(err)
	}
	want := Armed{CPUs: 2, CrashArea: MemoryRange{"0x10010000", stub.ARM64Size}, Release: "6.12.0-test"}
	if diff := cmp.Diff(want, done); diff != "" {
		t.Errorf("Arm (-want +got):\n%s", diff)
	}
	b := m.block()
	if b.State != registration.Armed || b.Identity.Machine != elfcore.MachineARM64 {
		t.Errorf("state %v, machine %d; want armed, %d", b.State, b.Identity.Machine, elfcore.MachineARM64)
	}
	wantMapping := kernelmap.Mapping{DirectBase: 0xffff01bb40000000, TextVirt: 0xffffd15e4ec00000, TextPhys: 0x40200000, TextSize: 0x2b30000}
	if diff := cmp.Diff(wantMapping, b.Mapping); diff != "" {
		t.Errorf("mapping (-want +got):\n%s", diff)
	}
	image, _, err := stub.BuildARM64(stub.ARM64Params{
		Base: 0x10010000, Record: testHandoff.Start + registration.RecordOff, Nonce: b.Identity.Nonce,
		Conduit: stub.ConduitHVC, CPUs: []uint64{0, 0x100},
	})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(phys.Segment{Name: "stub", Range: phys.Range{Start: 0x10010000, End: 0x10010000 + stub.ARM64Size}, Data: image}, m.stub); diff != "" {
		t.Errorf("stub (-want +got):\n%s", diff)
	}
}

func TestArmARM64Refusals(t *testing.T) {
	for _, tc := range []struct {
		name   string
		change func(m *testMachine)
		want   string
	}{
		{"no PSCI", func(m *testMachine) { m.remove("proc/device-tree/psci/method") }, "neither the device tree nor ACPI names PSCI"},
		{"old PSCI", func(m *testMachine) { m.file("proc/device-tree/psci/compatible", "arm,psci\x00") }, "PSCI is version 0.1"},
		{"ACPI without PSCI", func(m *testMachine) {
			m.remove("proc/device-tree/psci/method")
			m.file("sys/firmware/acpi/tables/FACP", fadt(0))
		}, "firmware has no PSCI"},
		{"kernel of 64 KiB pages", func(m *testMachine) {
			m.file("sys/devices/system/memory/block_size_bytes", "20000000\n")
		}, "memory blocks are 512 MiB, and the payload planned with 128 MiB"},
		{"memory map is firmware's", func(m *testMachine) {
			m.file("proc/iomem", "00000000-7fffffff : System RAM\n  10001000-101fffff : Crash kernel\n")
		}, "overwrites 770 MiB that this kernel uses"},
		{"crash memory too small", func(m *testMachine) {
			m.file("proc/iomem", "00000000-17dfffff : System RAM\n  10001000-1001efff : Crash kernel\n")
		}, "want 64 KiB below 256 TiB"},
		{"device tree and command line differ", func(m *testMachine) { handoffNode(m, 0x30000000) }, "but 20000000-201fffff on the kernel command line"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			m := plainARM64(t)
			tc.change(m)
			before := string(m.memory.bytes)
			done, err := m.Arm()
			wantRefusal(t, err, tc.want)
			m.refusedWith(done, before, lasting[tc.name])
		})
	}
	m := plainARM64(t)
	m.Arch = "riscv64"
	_, err := m.Arm()
	wantRefusal(t, err, "no stub for riscv64")
}

// handoffNode enters the handoff area into the device tree.
func handoffNode(m *testMachine, start uint32) {
	const dir = "proc/device-tree/reserved-memory/"
	m.file(dir+"#address-cells", "\x00\x00\x00\x02")
	m.file(dir+"#size-cells", "\x00\x00\x00\x02")
	m.file(dir+"ranges", "")
	m.file(dir+"handoff/compatible", "warmcore,handoff\x00")
	reg := binary.BigEndian.AppendUint64(nil, uint64(start))
	m.file(dir+"handoff/reg", string(binary.BigEndian.AppendUint64(reg, testHandoff.Size())))
}

func TestHandoffFromDeviceTree(t *testing.T) {
	m := plainARM64(t)
	m.file("proc/cmdline", "root=/dev/vda1\n")
	handoffNode(m, uint32(testHandoff.Start))
	if _, err := m.Arm(); err != nil {
		t.Errorf("Arm with the handoff area in the device tree only: %v", err)
	}
	m.file("sys/kernel/kexec_crash_loaded", "1\n")
	if st, err := m.Status(); err != nil || !st.Armed || st.Handoff != testHandoff.String() {
		t.Errorf("Status = %+v, %v; want armed", st, err)
	}
}

// A kernel that can't take memory back can be dumped all the same.
func TestArmWithoutZoneDevice(t *testing.T) {
	m := plainARM64(t)
	m.file("lib/modules/6.12.0-test/modules.dep", "kernel/drivers/nvdimm/of_pmem.ko:\nkernel/drivers/dax/kmem.ko:\n")
	m.file("lib/modules/6.12.0-test/modules.builtin", "")
	done, err := m.Arm()
	if err != nil || len(done.Warnings) != 1 || !strings.Contains(done.Warnings[0].Reason, "has no dax_pmem") {
		t.Errorf("Arm = %+v, %v; want a warning about dax_pmem", done, err)
	}
	_, err = m.Lend()
	wantRefusal(t, err, "it has no dax_pmem")
}

func TestLendReclaimARM64(t *testing.T) {
	m := plainARM64(t)
	moved, err := m.Lend()
	if err != nil || moved.Blocks != 6 {
		t.Fatalf("Lend = %+v, %v; want 6 blocks", moved, err)
	}
	_, err = m.Lend()
	wantNothing(t, err)
	// Lent memory is not the kernel's own.
	m.file("proc/iomem", "00000000-17dfffff : System RAM\n  10001000-101fffff : Crash kernel\n"+
		"17e00000-17ffffff : namespace0.0\n18000000-1fffffff : dax0.0\n  18000000-1fffffff : System RAM (kmem)\n")
	if _, err := m.Arm(); err != nil {
		t.Errorf("Arm with lent memory: %v", err)
	}
	if moved, err := m.Reclaim(); err != nil || moved.Blocks != 6 {
		t.Errorf("Reclaim = %+v, %v; want 6 blocks", moved, err)
	}
	_, err = m.Reclaim()
	wantNothing(t, err)
}

func TestReleaseARM64(t *testing.T) {
	m := makeARM64(t, captureBoot(t), pmem(3, 4), pmem(5, 15))
	m.file("proc/cmdline", plainCmdline+"\n")
	m.file("proc/device-tree/chosen/linux,elfcorehdr", strings.Repeat("\x00", 16))
	if st, err := m.Status(); err != nil || st.Boot != "capture" || !st.Dump {
		t.Errorf("Status = %+v, %v; want a capture boot with a dump", st, err)
	}
	_, err := m.Release(false)
	wantRefusal(t, err, "the dump is not saved")
	moved, err := m.Release(true)
	if err != nil || moved.Blocks != 11 {
		t.Fatalf("Release = %+v, %v; want 11 blocks", moved, err)
	}
	if diff := cmp.Diff([]string{"state releasing", "hide", "online"}, m.done); diff != "" {
		t.Errorf("steps (-want +got):\n%s", diff)
	}
}

// What one region has is given back though another can't be had.
func TestReleasePartly(t *testing.T) {
	m := makeARM64(t, captureBoot(t), pmem(3, 4), pmem(5, 15))
	m.file("proc/device-tree/chosen/linux,elfcorehdr", strings.Repeat("\x00", 16))
	if err := m.kernel.Modprobe("of_pmem"); err != nil {
		t.Fatal(err)
	}
	m.remove("sys/bus/nd/devices/region0/driver")
	moved, err := m.Release(true)
	if moved.Blocks != 10 || err == nil || !strings.Contains(err.Error(), "make a dax device of region0") {
		t.Errorf("Release = %+v, %v; want 10 blocks and an error about region0", moved, err)
	}
}

// fadt is a Fixed ACPI Description Table with ARM_BOOT_ARCH flags.
func fadt(flags byte) string {
	b := make([]byte, 276-36)
	b[129-36] = flags
	return string(acpitest.Table("FACP", 6, b))
}
