// Package stub builds the image that the agent loads as the "crash kernel": it
// writes the crash record, has the CPUs' caches written back and resets the
// machine warm.
//
// BuildAMD64 and BuildARM64 are pure: the same parameters give the same bytes.
// An image has one fixed size. The code is stub.S in the architecture's folder;
// stub.bin beside it is committed, and a test rebuilds and compares it. The u32
// named P_PROGRESS in stub.S says how far the stub got; it is found in the
// dump, in the crash kernel's area. All numbers are little endian.
//
// # x86-64
//
// The image for x86-64 works only at the address it was built for, below
// 4 GiB, because it brings its own page tables. Its layout, offsets in bytes:
//
//	0x0000 code, with the parameters at 0x0010 (see the table in stub.S)
//	0x1000 page tables: level 5, 4, 3, then four of level 2
//	0x8000 APIC IDs, u32 each, at most MaxCPUs
//	0xb000 stack, down from 0xc000
//
// What it can't do: flush the bootstrap processor when another CPU crashes
// (see AMD64Params.BSP), so that the record then counts one CPU less than
// expected; start CPUs beyond APIC ID 254 without x2APIC; work in a guest with
// encrypted registers (SEV-ES, TDX), where the hypervisor decides what INIT
// and WBINVD do.
//
// # arm64
//
// The image for arm64 works at any address that is aligned to its size. Its
// layout, offsets in bytes:
//
//	0x0000 code, with the parameters at 0x0010 (see the table in stub.S)
//	0x0800 exception vectors
//	0x1000 MPIDRs of the CPUs, u64 each, at most MaxCPUs
//
// In the crash record a CPU is identified by its index in ARM64Params.CPUs, or
// by ARM64NotListed if it isn't listed. The time stamp is CNTVCT_EL0.
//
// What it can't do: write back the caches of CPUs that didn't go off (spin
// tables, or firmware whose CPU_OFF fails), which the record then doesn't
// count; write back a cache beyond the point of coherency, which operations by
// set and way don't reach; reset a machine that has no PSCI.
package stub

import (
	"fmt"

	"github.com/warmcore/warmcore/pkg/phys"
)

// MaxCPUs is the most CPUs that an image can list, the same as in a
// registration.
const MaxCPUs = 3072

// The crash record's alignment and size, in bytes.
const (
	recordSize  = 128
	recordAlign = 64 // whole cache lines, as most CPUs have them
)

// within returns the range of size bytes at start if it is aligned and lies
// inside bounds.
func within(start, size, align uint64, bounds phys.Range) (phys.Range, error) {
	r, ok := phys.Sized(start, size)
	if !ok || !bounds.Contains(r) {
		return phys.Range{}, fmt.Errorf("%#x bytes at %#x: outside %v", size, start, bounds)
	}
	if start%align != 0 {
		return phys.Range{}, fmt.Errorf("%#x: not a multiple of %#x", start, align)
	}
	return r, nil
}
