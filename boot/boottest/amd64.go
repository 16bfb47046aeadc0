package boottest

import (
	"encoding/binary"
	"fmt"
	"os"
	"strings"
	"testing"
)

// paramsAddr is where testboot.S expects its parameters.
const paramsAddr = 0x500000

// Flags for testboot.S.
const (
	FlagLA57 = 1 << 0 // enter the image with 5-level paging
)

// AMD64Machine is the x86-64 machine of one run.
type AMD64Machine struct {
	CPUs   int
	Crash  uint32 // APIC ID of the CPU that enters the image
	Flags  uint32
	Entry  uint64 // where it enters, below 1 GiB
	Memory string // as QEMU's -m; empty is 1G

	// Load has bytes to put into guest memory before the guest starts, by
	// physical address.
	Load map[uint64][]byte
}

// Run starts m from the boot image, made from testboot.S, and returns when
// the guest has reset itself. It fails the test if the guest doesn't.
func (m AMD64Machine) Run(t testing.TB, boot []byte) *Result {
	t.Helper()
	f := files{t: t, dir: t.TempDir()}
	f.args = []string{
		"-machine", "q35,memory-backend=ram", "-cpu", "max", "-smp", fmt.Sprint(m.CPUs),
		"-kernel", f.put("testboot.bin", boot),
	}
	var params []byte
	for _, v := range []uint32{m.Crash, uint32(m.CPUs), m.Flags, uint32(m.Entry)} {
		params = binary.LittleEndian.AppendUint32(params, v)
	}
	f.load(paramsAddr, params)
	for addr, b := range m.Load {
		f.load(addr, b)
	}
	memory := m.Memory
	if memory == "" {
		memory = "1G"
	}
	return f.start("qemu-system-x86_64", memory)
}

// TripleFault says whether the reset came from a triple fault.
func (r *Result) TripleFault() bool {
	r.t.Helper()
	b, err := os.ReadFile(r.log)
	if err != nil {
		r.t.Fatal(err)
	}
	return strings.Contains(string(b), "Triple fault")
}
