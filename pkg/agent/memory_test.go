package agent

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/warmcore/warmcore/pkg/outcome"
	"github.com/warmcore/warmcore/pkg/phys"
	"github.com/warmcore/warmcore/pkg/registration"
)

// zones returns where each block of the machine is: "Normal", "Movable",
// "offline", "" for none.
func (m *testMachine) zones() [16]string {
	m.t.Helper()
	list, err := m.hotplug().Blocks(phys.NewSet(blocks(0, 16)))
	if err != nil {
		m.t.Fatal(err)
	}
	var z [16]string
	for _, b := range list {
		z[b.Range.Start/testBlock] = b.State
		if b.Online() {
			z[b.Range.Start/testBlock] = strings.Join(b.Zones, " ")
		}
	}
	return z
}

const (
	n = "Normal"
	v = "Movable"
	o = "offline"
)

// What a machine looks like on which all memory is in use. Block 4 holds the
// handoff area and is RAM outside it; sysfs of the fake doesn't show it.
var allInUse = [16]string{n, n, n, v, "", n, n, n, n, n, v, v, v, v, v, n}

func TestRelease(t *testing.T) {
	for _, tc := range []struct {
		name       string
		byType     bool
		autoOnline bool
	}{
		{name: "v6.1"},
		{name: "v6.12", byType: true},
		{name: "a udev rule puts blocks online", autoOnline: true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			m := captureBoot(t)
			m.kernel.ByType, m.kernel.AutoOnline = tc.byType, tc.autoOnline
			m.setBlock(registration.Saved, nil)
			var last outcome.Progress
			m.Progress = func(p outcome.Progress) { last = p }
			got, err := m.Release(false)
			if err != nil {
				t.Fatal(err)
			}
			want := Moved{Bytes: 11 * testBlock, Blocks: 11, MemTotalKiB: [2]uint64{1000, 1000}}
			if tc.autoOnline {
				// Those of window and destination were corrected, not added.
				want.Bytes, want.Blocks = 0, 0
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("Release (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(allInUse, m.zones()); diff != "" {
				t.Errorf("zones (-want +got):\n%s", diff)
			}
			// There is no dump any more before the first block is touched.
			if diff := cmp.Diff([]string{"state releasing", "hide", "online"}, m.done); diff != "" {
				t.Errorf("steps (-want +got):\n%s", diff)
			}
			if last.What != "release" || last.Done != last.Total || last.Total != 11*testBlock {
				t.Errorf("last progress %+v, want all of 11 blocks", last)
			}
			// Again, before and after arming.
			if _, err := m.Release(false); err != nil {
				t.Errorf("second Release: %v", err)
			}
			if _, err := m.Arm(); err != nil {
				t.Fatal(err)
			}
			_, err = m.Release(false)
			wantNothing(t, err)
			if got := m.block().State; got != registration.Armed {
				t.Errorf("state after another Release is %v, want armed", got)
			}
		})
	}
}

func TestReleaseRefusals(t *testing.T) {
	m := captureBoot(t)
	_, err := m.Release(false)
	wantRefusal(t, err, "the dump is not saved")
	if len(m.done) > 0 || len(m.kernel.Writes) > 0 || len(m.kernel.Loaded) > 0 {
		t.Errorf("refused, but did %v, wrote %v, loaded %v", m.done, m.kernel.Writes, m.kernel.Loaded)
	}
	if _, err := m.Release(true); err != nil {
		t.Errorf("Release with discard: %v", err)
	}
	if diff := cmp.Diff(allInUse, m.zones()); diff != "" {
		t.Errorf("zones (-want +got):\n%s", diff)
	}

	_, err = plainBoot(t).Release(true)
	wantNothing(t, err)

	m = captureBoot(t)
	m.kernel.Missing = []string{"kmem"}
	_, err = m.Release(true)
	wantRefusal(t, err, "no kmem driver")

	m = captureBoot(t)
	m.kernel.Soft = nil
	_, err = m.Release(true)
	wantRefusal(t, err, "made no dax device")

	m = captureBoot(t)
	m.Hide = func(path, cover string) error { return errors.New("busy") }
	if _, err := m.Release(true); err == nil || len(m.kernel.Writes) > 0 {
		t.Errorf("Release with a visible dump: %v, wrote %v", err, m.kernel.Writes)
	}
}

func TestReleaseLeavesSome(t *testing.T) {
	m := captureBoot(t)
	m.kernel.Stuck = []phys.Range{blocks(6, 7)}
	got, err := m.Release(true)
	if err == nil || !strings.Contains(err.Error(), "1 of 11 memory blocks are left") {
		t.Errorf("Release error = %v, want that one is left", err)
	}
	if got.Blocks != 10 || len(got.Left) != 1 || got.Left[0].Range.Start != "0x30000000" {
		t.Errorf("Release = %+v, want all but block 6", got)
	}
	m.kernel.Stuck = nil
	if got, err = m.Release(false); err != nil || got.Blocks != 1 {
		t.Errorf("Release once more = %+v, %v; want the block that was left", got, err)
	}
}

// A plan that a crashed kernel wrote must not lead to boot memory or the
// handoff area being switched.
func TestHostilePlan(t *testing.T) {
	for _, tc := range []struct {
		name string
		plan []registration.PlanRange
	}{
		{"boot memory is preserved, too", append(slices.Clone(testPlan), registration.PlanRange{Role: registration.RolePreserved, Range: blocks(0, 16)})},
		{"handoff area is preserved, too", append(slices.Clone(testPlan[2:]), registration.PlanRange{Role: registration.RolePreserved, Range: blocks(4, 5)})},
		{"half blocks", append(slices.Clone(testPlan[:6]), registration.PlanRange{Role: registration.RolePreserved, Range: phys.Range{Start: 5*testBlock + 4096, End: 10*testBlock - 4096}})},
	} {
		t.Run(tc.name, func(t *testing.T) {
			m := captureBoot(t)
			m.setBlock(registration.Saved, func(b *registration.Block) { b.Plan = tc.plan })
			// Show the blocks that must not be touched.
			m.kernel.Soft = []phys.Range{blocks(3, 15)}
			m.Release(false)
			for _, w := range m.kernel.Writes {
				for _, keep := range []string{"memory0/", "memory1/", "memory2/", "memory4/", "memory15/"} {
					if strings.Contains(w, keep) {
						t.Errorf("wrote %s", w)
					}
				}
				if tc.name == "half blocks" && (strings.Contains(w, "memory5/") || strings.Contains(w, "memory9/")) {
					t.Errorf("wrote %s, a block that is preserved in part", w)
				}
			}
		})
	}
}

func TestLendAndReclaim(t *testing.T) {
	for _, byType := range []bool{false, true} {
		m := plainBoot(t)
		m.kernel.ByType = byType
		_, err := m.Reclaim()
		wantNothing(t, err)
		got, err := m.Lend()
		if err != nil {
			t.Fatal(err)
		}
		if got.Blocks != 6 || got.Bytes != 6*testBlock {
			t.Errorf("Lend = %+v, want 6 blocks", got)
		}
		if diff := cmp.Diff(allInUse, m.zones()); diff != "" {
			t.Errorf("zones after Lend (-want +got):\n%s", diff)
		}
		_, err = m.Lend()
		wantNothing(t, err)

		m.kernel.Pinned = []phys.Range{blocks(12, 13)}
		got, err = m.Reclaim()
		if err == nil || got.Blocks != 5 || len(got.Left) != 1 {
			t.Errorf("Reclaim with a block in use = %+v, %v; want 5 blocks and an error", got, err)
		}
		m.kernel.Pinned = nil
		if got, err = m.Reclaim(); err != nil || got.Blocks != 1 {
			t.Errorf("second Reclaim = %+v, %v; want the block that was in use", got, err)
		}
		want := allInUse
		for _, i := range []int{3, 10, 11, 12, 13, 14} {
			want[i] = o
		}
		if diff := cmp.Diff(want, m.zones()); diff != "" {
			t.Errorf("zones after Reclaim (-want +got):\n%s", diff)
		}
		if m.block().Sequence != 1 {
			t.Error("lending changed the registration")
		}
	}
}

func TestLendRefusals(t *testing.T) {
	m := captureBoot(t)
	for _, state := range []registration.State{registration.Capturing, registration.Saved} {
		m.setBlock(state, nil)
		_, err := m.Lend()
		wantRefusal(t, err, "holds part of the dump")
		if len(m.kernel.Loaded) > 0 {
			t.Errorf("refused, but loaded %v", m.kernel.Loaded)
		}
	}
	m = plainBoot(t)
	m.setBlock(registration.Prearmed, func(b *registration.Block) { b.Plan = testPlan[1:3] })
	_, err := m.Lend()
	wantNothing(t, err)
}

// TestReleaseGivesProductionBack: what the payload left out of the command
// line comes when there is memory for it.
func TestReleaseGivesProductionBack(t *testing.T) {
	const (
		of1G    = "sys/kernel/mm/hugepages/hugepages-1048576kB/nr_hugepages"
		of2M    = "sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages"
		of2Mon1 = "sys/devices/system/node/node1/hugepages/hugepages-2048kB/nr_hugepages"
	)
	m := captureBoot(t)
	m.file("proc/cmdline", plainCmdline+" elfcorehdr=1K@0x200c0000 warmcore.hugepages=100*default,4*2M@1,3*1G,5*64K warmcore.dropped=cma,isolcpus\n")
	m.file("proc/meminfo", "MemTotal: 1000 kB\nHugepagesize: 2048 kB\n")
	for _, f := range []string{of1G, of2M, of2Mon1} {
		m.file(f, "0\n")
	}
	var order []string
	write := m.Write
	m.Write = func(path, data string) error {
		if !strings.HasSuffix(path, "nr_hugepages") {
			return write(path, data)
		}
		if zones := m.zones(); zones != allInUse {
			t.Errorf("huge pages before all memory is released: %v", zones)
		}
		if !contains(order, path) {
			order = append(order, path)
		}
		if path == of1G {
			data = "1" // no more in one piece
		}
		m.file(path, data+"\n")
		return nil
	}
	got, err := m.Release(true)
	if err != nil {
		t.Fatal(err)
	}
	one := 1
	want := []HugePages{
		{PageBytes: 1 << 30, Wanted: 3, Have: 1, Why: "the kernel finds no more free memory in one piece"},
		{PageBytes: 2 << 20, Wanted: 100, Have: 100},
		{PageBytes: 2 << 20, Node: &one, Wanted: 4, Have: 4},
		{PageBytes: 64 << 10, Wanted: 5},
	}
	if n := len(got.HugePages); n == 4 && strings.Contains(got.HugePages[3].Why, "no such file") {
		got.HugePages[3].Why = ""
	}
	if diff := cmp.Diff(want, got.HugePages); diff != "" {
		t.Errorf("huge pages (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]string{of1G, of2M, of2Mon1}, order); diff != "" {
		t.Errorf("order (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]string{"cma", "isolcpus"}, got.Missing); diff != "" {
		t.Errorf("missing (-want +got):\n%s", diff)
	}
	if s := got.HugePages[2].String(); s != "4 of 4 huge pages of 2 MiB on node 1" {
		t.Errorf("%q", s)
	}
}

func TestReleaseGarbledHugePages(t *testing.T) {
	m := captureBoot(t)
	m.file("proc/cmdline", plainCmdline+" elfcorehdr=1K@0x200c0000 warmcore.hugepages=lots\n")
	if got, err := m.Release(true); err != nil || got.HugePages != nil {
		t.Errorf("Release = %+v, %v; want the memory released, and no huge pages", got, err)
	}
}

// Memory that is the operator's gets his policy back, however often memory is
// lent, and ours never follows it.
func TestOwnPolicy(t *testing.T) {
	const file = "sys/devices/system/memory/auto_online_blocks"
	for _, tc := range []struct {
		name, line, config string
		before             string // policy at the time
		want               string
		other              string // state of a block that isn't ours
	}{
		{"boot entry", "memhp_default_state=online_movable ", "", "offline", "online_movable", "online"},
		{"kernel's default", "", "CONFIG_MHP_DEFAULT_ONLINE_TYPE_ONLINE_AUTO=y", "offline", "online", "online"},
		{"kernel's default is offline", "", "# CONFIG_MEMORY_HOTPLUG_DEFAULT_ONLINE is not set", "offline", "offline", "offline"},
		{"not known", "", "", "offline", "offline", "offline"},
		{"somebody has set it", "memhp_default_state=online ", "", "online_kernel", "online_kernel", "offline"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			m := plainBoot(t)
			m.file("proc/cmdline", "modprobe.blacklist=mine "+tc.line+plainCmdline+" modprobe.blacklist=kmem,dax_hmem,device_dax\n")
			m.file("boot/config-6.12.0-test", tc.config+"\n")
			m.file(file, tc.before+"\n")
			// A block beyond the plan, as of CXL, that was added offline.
			const other = "sys/devices/system/memory/memory100/"
			m.file(other+"phys_index", "64\n")
			m.file(other+"state", "offline\n")
			m.file(other+"valid_zones", "Normal Movable\n")
			if _, err := m.Arm(); err != nil {
				t.Fatal(err)
			}
			var modules []string
			load := m.Modprobe
			m.Modprobe = func(name string) error { modules = append(modules, name); return load(name) }
			for range 2 {
				if _, err := m.Lend(); err != nil {
					wantNothing(t, err)
				}
				if got, _ := os.ReadFile(filepath.Join(m.Root, file)); string(got) != tc.want+"\n" {
					t.Errorf("policy %q, want %q", got, tc.want)
				}
				if got, _ := os.ReadFile(filepath.Join(m.Root, other, "state")); string(got) != tc.other+"\n" {
					t.Errorf("a block that isn't ours is %q, want %s", got, tc.other)
				}
			}
			for _, w := range m.kernel.Writes {
				if strings.HasSuffix(w, "memory100/state=online_kernel") {
					t.Errorf("%s: somebody else's setting is of later memory only", w)
				}
			}
			for _, want := range []string{"kmem", "dax_hmem", "device_dax"} {
				if !contains(modules, want) {
					t.Errorf("modules loaded: %v, want %s", modules, want)
				}
			}
			if contains(modules, "mine") {
				t.Error("what the operator has blacklisted was loaded")
			}
			st, err := m.Status()
			if err != nil || *st.Memory.Lent != 6*testBlock {
				t.Errorf("lent %d, %v", *st.Memory.Lent, err)
			}
		})
	}
}

// While our memory is being added, nothing but the agent brings it online.
func TestHoldBack(t *testing.T) {
	const file = "sys/devices/system/memory/auto_online_blocks"
	m := plainBoot(t)
	m.file(file, "online\n")
	write := m.Write
	held := false
	m.Write = func(path, data string) error {
		policy, err := os.ReadFile(filepath.Join(m.Root, file))
		if err != nil {
			t.Fatal(err)
		}
		if path != file && string(policy) != "offline\n" {
			t.Errorf("%s=%s while the policy is %q", path, data, policy)
		}
		held = held || path != file
		return write(path, data)
	}
	if _, err := m.Lend(); err != nil || !held {
		t.Error(err, held)
	}
	m = plainBoot(t)
	m.file(file, "online\n")
	m.Write = func(path, data string) error { return errors.New("denied") }
	_, err := m.Lend()
	wantRefusal(t, err, "can't be kept offline")
}
