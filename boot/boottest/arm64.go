package boottest

import (
	"encoding/binary"
	"fmt"
	"testing"
)

// Addresses of testdata/arm64/testboot.S, of its parameters and of its log.
// RAM begins at 0x4000_0000, with QEMU's device tree in its first MiB.
const (
	arm64Boot   = 0x4020_0000
	arm64Params = 0x4030_0000
	arm64Log    = 0x4040_0000

	arm64LogEntries = 64 // offset of the first
	arm64LogEntry   = 32 // bytes
	arm64LogMax     = 0x2_0000
)

// Flags for arm64's testboot.S. With FlagGuest the test's own hypervisor logs
// what the image does; the flags after it say how the hypervisor answers.
// FlagGuest needs ARM64Machine.EL2.
const (
	FlagE2H         = 1 << iota // at EL2, as a kernel with VHE leaves it
	FlagGuest                   // at EL1, below a hypervisor
	FlagHasReset2               // PSCI_FEATURES knows SYSTEM_RESET2
	FlagReset2Works             // SYSTEM_RESET2 resets, whether or not PSCI_FEATURES knows it
	FlagResetWorks              // SYSTEM_RESET resets
	FlagNoSetWay                // operations by set and way are undefined
	FlagNoPSCI                  // hvc and smc are undefined
	FlagNoAffinity              // AFFINITY_INFO is not supported
)

// ARM64Machine is the arm64 machine of one run: QEMU's virt, 1 GiB of RAM.
type ARM64Machine struct {
	CPU    string // as QEMU's -cpu; empty is cortex-a57
	CPUs   int    // at most 8; the MPIDR of each is its number
	EL2    bool   // with virtualization: PSCI is called by smc, and not by hvc
	Crash  uint32 // number of the CPU that enters the image
	Flags  uint32
	Parked uint32 // bitmap of CPUs that wait for ever and don't go off
	Entry  uint64

	// MPIDR, if not 0, is the value of that register that FlagGuest's CPU
	// sees.
	MPIDR uint64
	// Caches, if not nil, are the caches that FlagGuest's CPU sees:
	// ID_AA64MMFR2_EL1, CLIDR_EL1, and CCSIDR_EL1 of each level.
	Caches []uint64

	// Load has bytes to put into guest memory before the guest starts, by
	// physical address.
	Load map[uint64][]byte
}

// flagCaches says that the parameters from Caches are set.
const flagCaches = 1 << 8

// Run starts m from the boot image, made from arm64's testboot.S, and returns
// when the guest has reset itself. It fails the test if the guest doesn't.
func (m ARM64Machine) Run(t testing.TB, boot []byte) *Result {
	t.Helper()
	f := files{t: t, dir: t.TempDir()}
	virtualization, cpu := "off", m.CPU
	if m.EL2 {
		virtualization = "on"
	}
	if cpu == "" {
		cpu = "cortex-a57"
	}
	f.args = []string{
		"-machine", "virt,memory-backend=ram,virtualization=" + virtualization,
		"-cpu", cpu, "-smp", fmt.Sprint(m.CPUs),
	}
	f.loader(f.put("testboot.bin", boot), arm64Boot, ",cpu-num=0")
	var params []byte
	flags := m.Flags
	if m.Caches != nil {
		flags |= flagCaches
	}
	for _, v := range []uint32{m.Crash, uint32(m.CPUs), flags, m.Parked} {
		params = binary.LittleEndian.AppendUint32(params, v)
	}
	for _, v := range append([]uint64{m.Entry, m.MPIDR}, m.Caches...) {
		params = binary.LittleEndian.AppendUint64(params, v)
	}
	f.load(arm64Params, params)
	for addr, b := range m.Load {
		f.load(addr, b)
	}
	return f.start("qemu-system-aarch64", "1G")
}

// Trap is an instruction that FlagGuest's hypervisor has seen.
type Trap struct {
	Syndrome uint64 // ESR_EL2
	// For a call, x0 to x2. For a system register or cache operation X[0]
	// is the value that was written, and the others mean nothing.
	X [3]uint64
}

// Class is the exception class: 0x01 WFI, 0x16 HVC, 0x17 SMC, 0x18 a system
// register or cache operation (Arm DDI 0487, ESR_ELx).
func (t Trap) Class() uint64 { return t.Syndrome >> 26 & 0x3f }

// SetWay says whether the instruction is DC CISW, clean and invalidate by set
// and way; X[0] is its operand.
func (t Trap) SetWay() bool { return t.writes(1, 0, 7, 14, 2) }

// SCTLR says whether the instruction is a write to SCTLR_EL1; X[0] is the
// value.
func (t Trap) SCTLR() bool { return t.writes(3, 0, 1, 0, 0) }

// writes says whether the instruction is the write to a register, or the cache
// operation, with this encoding.
func (t Trap) writes(op0, op1, crn, crm, op2 uint64) bool {
	const fields = 0x3f_fc1f // all fields except the general register; bit 0 is 0
	return t.Class() == 0x18 && t.Syndrome&fields == op0<<20|op2<<17|op1<<14|crn<<10|crm<<1
}

// Traps returns the hypervisor's log, oldest first.
func (r *Result) Traps() []Trap {
	r.t.Helper()
	le := binary.LittleEndian
	n := le.Uint64(r.Memory(arm64Log, 8))
	if n > arm64LogMax {
		r.t.Fatalf("hypervisor's log: %d entries, room for %d", n, arm64LogMax)
	}
	traps := make([]Trap, n)
	if n == 0 {
		return traps
	}
	b := r.Memory(arm64Log+arm64LogEntries, n*arm64LogEntry)
	for i := range traps {
		e := b[i*arm64LogEntry:]
		traps[i] = Trap{le.Uint64(e), [3]uint64{le.Uint64(e[8:]), le.Uint64(e[16:]), le.Uint64(e[24:])}}
	}
	return traps
}
