package stub

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"maps"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/warmcore/warmcore/boot/boottest"
	"github.com/warmcore/warmcore/pkg/registration"
)

const (
	arm64Base   = 0x5000_0000
	arm64Record = 0x6002_0000
)

// Progress as arm64's stub.S counts it.
const (
	arm64AtReset2 = 5
	arm64AtReset  = 6
	arm64AtHalted = 7
)

// PSCI functions (Arm DEN 0022).
const (
	psciAffinityInfo = 0xc400_0004
	psciSystemReset  = 0x8400_0009
	psciFeatures     = 0x8400_000a
	psciSystemReset2 = 0xc400_0012
)

// runARM64 crashes m into the image of p and checks the crash record.
func runARM64(t *testing.T, boot []byte, m boottest.ARM64Machine, p ARM64Params, want record) *boottest.Result {
	t.Helper()
	p.Base, p.Record = arm64Base, arm64Record
	p.Nonce = [16]byte([]byte("nonce of the day"))
	image, entry, err := BuildARM64(p)
	if err != nil {
		t.Fatal(err)
	}
	m.Entry = entry
	m.Load = map[uint64][]byte{
		p.Base:   image,
		p.Record: bytes.Repeat([]byte{0xff}, recordSize), // what was there must not matter
	}
	r := m.Run(t, boot)
	want.Magic, want.Version, want.Flags, want.Nonce, want.SumOK = "WCRECORD", 1, 1, p.Nonce, true
	got, ticks := decodeRecord(r.Memory(p.Record, recordSize))
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("crash record (-want +got):\n%s", diff)
	}
	if _, err := registration.DecodeRecord(r.Memory(p.Record, recordSize)); err != nil {
		t.Errorf("decode the crash record: %v", err)
	}
	if ticks == 0 {
		t.Error("time stamp: 0")
	}
	return r
}

// state is what the image says of itself.
type state struct {
	Progress, Faults, Result uint32
}

func stateARM64(r *boottest.Result) state {
	word := func(off uint64) uint32 { return binary.LittleEndian.Uint32(r.Memory(arm64Base+off, 4)) }
	return state{word(arm64OffProgress), word(arm64OffFaults), word(arm64OffResult)}
}

func mpidrs(n uint64) (list []uint64) {
	for i := range n {
		list = append(list, i)
	}
	return list
}

// TestIntegrationARM64 crashes a bare machine into the stub, with QEMU's own
// PSCI, and reads what it left in memory when it has reset the machine.
func TestIntegrationARM64(t *testing.T) {
	boot := boottest.Assemble(t, "../boottest/testdata/arm64", "testboot.bin")
	machine := boottest.ARM64Machine{CPUs: 4}
	for _, c := range []struct {
		name string
		edit func(m *boottest.ARM64Machine, p *ARM64Params)
		want record
	}{
		{"EL1", func(*boottest.ARM64Machine, *ARM64Params) {},
			record{Expected: 4, Flushed: 4, Bitmap: bitmap(0b1111)}},
		{"EL2", func(m *boottest.ARM64Machine, p *ARM64Params) { m.EL2 = true },
			record{Expected: 4, Flushed: 4, Bitmap: bitmap(0b1111)}},
		{"EL1, newest CPU", func(m *boottest.ARM64Machine, p *ARM64Params) { m.CPU = "max" },
			record{Expected: 4, Flushed: 4, Bitmap: bitmap(0b1111)}},
		{"EL2, newest CPU", func(m *boottest.ARM64Machine, p *ARM64Params) { m.CPU, m.EL2 = "max", true },
			record{Expected: 4, Flushed: 4, Bitmap: bitmap(0b1111)}},
		{"EL2 of a kernel with VHE", func(m *boottest.ARM64Machine, p *ARM64Params) {
			m.CPU, m.EL2, m.Flags = "max", true, boottest.FlagE2H
		}, record{Expected: 4, Flushed: 4, Bitmap: bitmap(0b1111)}},
		{"one CPU", func(m *boottest.ARM64Machine, p *ARM64Params) { m.CPUs, p.CPUs = 1, mpidrs(1) },
			record{Expected: 1, Flushed: 1, Bitmap: bitmap(0b0001)}},
		{"two CPUs", func(m *boottest.ARM64Machine, p *ARM64Params) { m.CPUs, p.CPUs = 2, mpidrs(2) },
			record{Expected: 2, Flushed: 2, Bitmap: bitmap(0b0011)}},
		{"three CPUs at EL2", func(m *boottest.ARM64Machine, p *ARM64Params) {
			m.CPUs, p.CPUs, m.EL2 = 3, mpidrs(3), true
		}, record{Expected: 3, Flushed: 3, Bitmap: bitmap(0b0111)}},
		{"another CPU than the first", func(m *boottest.ARM64Machine, p *ARM64Params) { m.Crash = 2 },
			record{CPU: 2, Expected: 4, Flushed: 4, Bitmap: bitmap(0b1111)}},
		{"listed in another order", func(m *boottest.ARM64Machine, p *ARM64Params) {
			m.Crash, p.CPUs = 3, []uint64{2, 3, 1}
		}, record{CPU: 1, Expected: 3, Flushed: 3, Bitmap: bitmap(0b0111)}},
		{"not listed", func(m *boottest.ARM64Machine, p *ARM64Params) { m.Crash, p.CPUs = 1, []uint64{0, 2} },
			record{CPU: arm64NotListed, Expected: 3, Flushed: 3, Bitmap: bitmap(0b0011)}},
		{"CPU that doesn't go off", func(m *boottest.ARM64Machine, p *ARM64Params) { m.Parked = 0b0010 },
			record{Expected: 4, Flushed: 3, Bitmap: bitmap(0b1101)}},
		{"none goes off", func(m *boottest.ARM64Machine, p *ARM64Params) { m.Parked, m.EL2 = 0b1110, true },
			record{Expected: 4, Flushed: 1, Bitmap: bitmap(0b0001)}},
		{"CPUs that PSCI doesn't know", func(m *boottest.ARM64Machine, p *ARM64Params) {
			p.CPUs = []uint64{0x12_0034_5678, 3, 0, 7}
		}, record{CPU: 2, Expected: 4, Flushed: 2, Bitmap: bitmap(0b0110)}},
		{"CPUs that the bitmap has no bit for", func(m *boottest.ARM64Machine, p *ARM64Params) {
			p.CPUs = slices.Repeat([]uint64{0}, 257)
			for i := range p.CPUs {
				p.CPUs[i] = uint64(i) + 0x100
			}
			p.CPUs[255], p.CPUs[256] = 1, 2
		}, record{CPU: arm64NotListed, Expected: 258, Flushed: 3, Bitmap: [32]byte{31: 0x80}}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			m, p := machine, ARM64Params{Conduit: ConduitHVC, CPUs: mpidrs(4)}
			c.edit(&m, &p)
			if m.EL2 {
				p.Conduit = ConduitSMC
			}
			r := runARM64(t, boot, m, p, c.want)
			// QEMU has no SYSTEM_RESET2, and says so.
			if diff := cmp.Diff(state{Progress: arm64AtReset}, stateARM64(r)); diff != "" {
				t.Errorf("state (-want +got):\n%s", diff)
			}
		})
	}
}

// TestIntegrationARM64Resets has a hypervisor answer, and looks at what the
// stub asks for.
func TestIntegrationARM64Resets(t *testing.T) {
	boot := boottest.Assemble(t, "../boottest/testdata/arm64", "testboot.bin")
	const wfi = 0x01
	features := [3]uint64{psciFeatures, psciSystemReset2}
	warm := [3]uint64{psciSystemReset2, 0, 0}
	cold := [3]uint64{psciSystemReset}
	for _, c := range []struct {
		name  string
		flags uint32
		skip  uint32
		calls [][3]uint64 // without AFFINITY_INFO
		halts bool
		want  state
		clean uint32 // CPUs
	}{
		{"warm", boottest.FlagHasReset2 | boottest.FlagReset2Works | boottest.FlagResetWorks, 0,
			[][3]uint64{features, warm}, false, state{arm64AtReset2, 0, 0}, 2},
		{"warm, refused", boottest.FlagHasReset2 | boottest.FlagResetWorks, 0,
			[][3]uint64{features, warm, cold}, false, state{arm64AtReset, 0, 0xffff_fffe}, 2},
		{"no warm", boottest.FlagReset2Works | boottest.FlagResetWorks, 0,
			[][3]uint64{features, cold}, false, state{arm64AtReset, 0, 0}, 2},
		{"skip warm", boottest.FlagHasReset2 | boottest.FlagReset2Works | boottest.FlagResetWorks, SkipSystemReset2,
			[][3]uint64{cold}, false, state{arm64AtReset, 0, 0}, 2},
		{"warm alone", boottest.FlagHasReset2 | boottest.FlagReset2Works, SkipSystemReset,
			[][3]uint64{features, warm}, false, state{arm64AtReset2, 0, 0}, 2},
		{"all refused", boottest.FlagHasReset2, 0,
			[][3]uint64{features, warm, cold}, true, state{arm64AtHalted, 0, 0xffff_fffa}, 2},
		{"skip all", boottest.FlagResetWorks, arm64SkipAll,
			nil, true, state{arm64AtHalted, 0, 0}, 2},
		{"no AFFINITY_INFO", boottest.FlagNoAffinity | boottest.FlagResetWorks, 0,
			[][3]uint64{features, cold}, false, state{arm64AtReset, 0, 0}, 1},
		{"no PSCI", boottest.FlagNoPSCI, 0,
			// The call itself is seen, and then undefined.
			[][3]uint64{features, cold}, true, state{arm64AtHalted, 3, 0}, 1},
		{"set and way forbidden", boottest.FlagNoSetWay | boottest.FlagResetWorks, 0,
			[][3]uint64{features, cold}, false, state{arm64AtReset, 2, 0}, 0},
	} {
		for conduit, class := range map[Conduit]uint64{ConduitHVC: 0x16, ConduitSMC: 0x17} {
			t.Run(fmt.Sprintf("%s by %v", c.name, conduit), func(t *testing.T) {
				t.Parallel()
				m := boottest.ARM64Machine{CPUs: 2, EL2: true, Flags: boottest.FlagGuest | c.flags}
				want := record{Expected: 2, Flushed: c.clean, Bitmap: bitmap(byte(1<<c.clean - 1))}
				r := runARM64(t, boot, m, ARM64Params{Conduit: conduit, CPUs: mpidrs(2), Skip: c.skip}, want)
				if diff := cmp.Diff(c.want, stateARM64(r)); diff != "" {
					t.Errorf("state (-want +got):\n%s", diff)
				}
				var got [][3]uint64
				halted, switched := false, 0
				for _, trap := range r.Traps() {
					switch {
					case trap.SetWay():
					case trap.SCTLR():
						const instructionCache, mmu, dataCache = 1 << 12, 1 << 0, 1 << 2
						if on := trap.X[0] & (instructionCache | mmu | dataCache); on != instructionCache {
							t.Errorf("SCTLR_EL1 written with %#x, want the instruction cache on, and data cache and MMU off", trap.X[0])
						}
						switched++
					case trap.Class() == class:
						x := trap.X
						if x[0] == psciAffinityInfo {
							if x[1] != 1 || x[2] != 0 {
								t.Errorf("AFFINITY_INFO of %#x, level %d; want of CPU 1, level 0", x[1], x[2])
							}
							continue
						}
						switch x[0] { // what isn't a parameter is anything
						case psciSystemReset:
							x[1], x[2] = 0, 0
						case psciFeatures:
							x[2] = 0
						}
						got = append(got, x)
					case trap.Class() == wfi:
						halted = true
					default:
						t.Errorf("trap of class %#x (ESR %#x), want none", trap.Class(), trap.Syndrome)
					}
				}
				if diff := cmp.Diff(c.calls, got); diff != "" {
					t.Errorf("PSCI calls (-want +got):\n%s", diff)
				}
				if switched != 1 {
					t.Errorf("SCTLR_EL1 written %d times, want once", switched)
				}
				if halted != c.halts {
					t.Errorf("halted: %v, want %v", halted, c.halts)
				}
			})
		}
	}
}

// cache is a level's geometry; one without sets is none that data is in.
type cache struct {
	sets, ways, line uint64
	instructions     bool // it has, or beside it is, an instruction cache
}

// cacheRegisters returns ID_AA64MMFR2_EL1, CLIDR_EL1 and CCSIDR_EL1 of each level
// (Arm DDI 0487), with caches below the point of coherency and one level, of
// 64 lines, behind it.
func cacheRegisters(wide uint64, caches []cache) []uint64 {
	caches = append(slices.Clip(caches), cache{sets: 16, ways: 4, line: 64})
	regs := []uint64{wide << 20, uint64(len(caches)-1) << 24}
	for level, x := range caches {
		ctype := uint64(4) // unified
		switch {
		case x.sets == 0 && x.instructions:
			ctype = 1
		case x.sets == 0:
			ctype = 0
		case x.instructions:
			ctype = 3
		case level%2 == 1:
			ctype = 2 // data alone
		}
		regs[1] |= ctype << (3 * level)
		lineBits := uint64(0)
		for 16<<lineBits < x.line {
			lineBits++
		}
		switch {
		case x.sets == 0:
			regs = append(regs, 0xffff_ffff_ffff_fff8) // nobody may look
		case wide != 0:
			regs = append(regs, lineBits|(x.ways-1)<<3|(x.sets-1)<<32)
		default:
			regs = append(regs, lineBits|(x.ways-1)<<3|(x.sets-1)<<13)
		}
	}
	return regs
}

// TestIntegrationARM64MPIDR: the register has more than affinity fields, and
// they have a gap.
func TestIntegrationARM64MPIDR(t *testing.T) {
	boot := boottest.Assemble(t, "../boottest/testdata/arm64", "testboot.bin")
	m := boottest.ARM64Machine{
		CPUs: 1, EL2: true, Flags: boottest.FlagGuest | boottest.FlagResetWorks,
		MPIDR: 0x12_c134_5678, // bit 31 is one; U and MT are set
	}
	p := ARM64Params{Conduit: ConduitHVC, CPUs: []uint64{0x34_5678, 0x12_0034_5678, 9}}
	r := runARM64(t, boot, m, p, record{CPU: 1, Expected: 3, Flushed: 1, Bitmap: bitmap(0b010)})
	var asked []uint64
	for _, trap := range r.Traps() {
		if trap.X[0] == psciAffinityInfo {
			asked = append(asked, trap.X[1])
		}
	}
	slices.Sort(asked)
	if diff := cmp.Diff([]uint64{9, 0x34_5678}, slices.Compact(asked)); diff != "" {
		t.Errorf("CPUs that PSCI was asked about (-want +got):\n%s", diff)
	}
}

// TestIntegrationARM64NoRecord: a fault, here of a store to where nothing is,
// goes on with the reset, at each exception level.
func TestIntegrationARM64NoRecord(t *testing.T) {
	boot := boottest.Assemble(t, "../boottest/testdata/arm64", "testboot.bin")
	for _, c := range []struct {
		name    string
		machine boottest.ARM64Machine
		conduit Conduit
	}{
		{"EL1", boottest.ARM64Machine{}, ConduitHVC},
		{"EL2", boottest.ARM64Machine{EL2: true}, ConduitSMC},
		{"EL2 of a kernel with VHE", boottest.ARM64Machine{CPU: "max", EL2: true, Flags: boottest.FlagE2H}, ConduitSMC},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			p := ARM64Params{Base: arm64Base, Record: 0x30_0000_0000, Nonce: [16]byte{1}, Conduit: c.conduit, CPUs: mpidrs(1)}
			image, entry, err := BuildARM64(p)
			if err != nil {
				t.Fatal(err)
			}
			m := c.machine
			m.CPUs, m.Entry, m.Load = 1, entry, map[uint64][]byte{p.Base: image}
			r := m.Run(t, boot)
			if diff := cmp.Diff(state{Progress: arm64AtReset, Faults: 1}, stateARM64(r)); diff != "" {
				t.Errorf("state (-want +got):\n%s", diff)
			}
			const dataAbort = 0x25 // from the same exception level
			if esr := binary.LittleEndian.Uint32(r.Memory(p.Base+arm64OffSyndrome, 4)); esr>>26 != dataAbort {
				t.Errorf("syndrome %#x: class %#x, want %#x", esr, esr>>26, dataAbort)
			}
		})
	}
}

// TestIntegrationARM64SetWay compares the operations that a hypervisor sees
// with the caches of the CPU.
func TestIntegrationARM64SetWay(t *testing.T) {
	boot := boottest.Assemble(t, "../boottest/testdata/arm64", "testboot.bin")
	odd := []cache{
		{sets: 3, ways: 1, line: 32, instructions: true}, // direct mapped: the way has no bits
		{instructions: true},
		{},
		{sets: 64, ways: 5, line: 64},
		{sets: 8, ways: 16, line: 128},
		{sets: 1, ways: 12, line: 16}, // fully associative
	}
	huge := []cache{{sets: 0x9001, ways: 1, line: 64}} // more sets than the narrow field has
	for _, c := range []struct {
		name, cpu string
		caches    []cache // by level
		emulated  []uint64
	}{
		// CCSIDR in QEMU 7.2's target/arm/cpu64.c.
		{"cortex-a57", "cortex-a57", []cache{{sets: 256, ways: 2, line: 64}, {sets: 2048, ways: 16, line: 64}}, nil},
		{"cortex-a53", "cortex-a53", []cache{{sets: 128, ways: 4, line: 64}, {sets: 1024, ways: 16, line: 64}}, nil},
		{"neoverse-n1", "neoverse-n1", []cache{{sets: 256, ways: 4, line: 64}, {sets: 2048, ways: 8, line: 64}}, nil},
		{"max", "max", []cache{{sets: 256, ways: 2, line: 64}, {sets: 2048, ways: 16, line: 64}}, nil},
		{"odd caches", "", odd, cacheRegisters(0, odd)},
		{"odd caches, wide fields", "", odd, cacheRegisters(1, odd)},
		{"many sets", "", huge, cacheRegisters(1, huge)},
		{"no caches", "", nil, cacheRegisters(0, nil)},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			m := boottest.ARM64Machine{
				CPU: c.cpu, CPUs: 1, EL2: true, Caches: c.emulated,
				Flags: boottest.FlagGuest | boottest.FlagResetWorks,
			}
			r := runARM64(t, boot, m, ARM64Params{Conduit: ConduitHVC, CPUs: mpidrs(1)}, record{Expected: 1, Flushed: 1, Bitmap: bitmap(1)})
			const passes = 2
			want := map[uint64]int{}
			for level, x := range c.caches {
				for set := range x.sets {
					for way := range x.ways {
						want[operand(uint64(level), set, way, x)] = passes
					}
				}
			}
			got := map[uint64]int{}
			for _, trap := range r.Traps() {
				if trap.SetWay() {
					got[trap.X[0]]++
				}
			}
			if !maps.Equal(got, want) {
				t.Errorf("set and way: %s", difference(want, got))
			}
			if lines := binary.LittleEndian.Uint64(r.Memory(arm64Base+arm64OffCleaned, 8)); lines != uint64(len(want)) {
				t.Errorf("lines that the image counted: %d, want %d", lines, len(want))
			}
			if diff := cmp.Diff(state{Progress: arm64AtReset}, stateARM64(r)); diff != "" {
				t.Errorf("state (-want +got):\n%s", diff)
			}
		})
	}
}

// difference tells of the first operand that is wrong; all would be thousands.
func difference(want, got map[uint64]int) string {
	all := maps.Clone(want)
	maps.Copy(all, got)
	for _, x := range slices.Sorted(maps.Keys(all)) {
		if want[x] != got[x] {
			return fmt.Sprintf("operand %#x %d times, want %d (%d operands, want %d)", x, got[x], want[x], len(got), len(want))
		}
	}
	return "no difference"
}

// operand is that of DC CISW (Arm DDI 0487, "DC CISW"): level in bits 3:1,
// set above the bits of a line, way at the top of 32 bits.
func operand(level, set, way uint64, c cache) uint64 {
	wayBits := 0
	for 1<<wayBits < c.ways {
		wayBits++
	}
	return level<<1 | set*c.line | way<<(32-wayBits)
}
