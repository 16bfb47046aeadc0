package readiness

import (
	"encoding/binary"
	"io"
	"io/fs"
	"slices"
	"strings"

	"github.com/warmcore/warmcore/pkg/cmdline"
)

// guest refuses in a guest whose memory is encrypted. The CPU flag sme is not
// enough: it only says that the CPU is able to encrypt.
func guest(root fs.FS) Check {
	const remedy = "use kdump"
	if _, err := fs.Stat(root, "dev/sev-guest"); err == nil {
		return refuse(remedy, "this is a confidential guest (SEV-SNP), whose memory no reset preserves")
	}
	if cpuFlag(root, "tdx_guest") {
		return refuse(remedy, "this is a confidential guest (tdx_guest), whose memory no reset preserves")
	}
	return ok()
}

// memoryEncryption refuses if memory is encrypted with a key that changes at a
// reset: preserved memory would then be unreadable.
func memoryEncryption(root fs.FS) Check {
	const remedy = "turn memory encryption off in firmware's setup, or use kdump"
	text, err := read(root, "proc/cmdline")
	if err != nil {
		return unreadable(err)
	}
	if mode, _ := cmdline.Parse(text).Last("mem_encrypt"); mode.Value == "on" {
		return refuse("boot with mem_encrypt=off, or use kdump", "memory encryption is on (mem_encrypt=on), and a reset changes its key")
	}
	// AMD's transparent SME, which the kernel doesn't take part in
	// (drivers/crypto/ccp/hsti.c, v6.12).
	files, err := fs.Glob(root, "sys/bus/pci/devices/*/tsme_status")
	if err != nil {
		return unreadable(err)
	}
	for _, f := range files {
		if v, err := read(root, f); err == nil && v == "1" {
			return refuse(remedy, "firmware encrypts memory (TSME), and a reset changes the key")
		}
	}
	// Since v6.8 the kernel removes the flag if firmware hasn't enabled
	// TME; the register is right with any kernel.
	switch on, known := tme(root); {
	case known && on:
		return refuse(remedy, "firmware encrypts memory (TME), and a reset changes the key")
	case !known && cpuFlag(root, "tme"):
		return warn("`modprobe msr`, then arm again", "the CPU can encrypt memory (TME); whether it does is not known")
	}
	return ok()
}

const (
	tmeActivate = 0x982 // IA32_TME_ACTIVATE
	tmeEnabled  = 1 << 1
)

// tme reads IA32_TME_ACTIVATE through the module msr. known is false if that
// module isn't loaded or the CPU has no TME.
func tme(root fs.FS) (on, known bool) {
	if !cpuFlag(root, "tme") {
		return false, false // reading the register would fault
	}
	f, err := root.Open("dev/cpu/0/msr")
	if err != nil {
		return false, false
	}
	defer f.Close()
	r, ok := f.(io.ReaderAt)
	if !ok {
		return false, false
	}
	var b [8]byte
	if n, _ := r.ReadAt(b[:], tmeActivate); n < len(b) {
		return false, false
	}
	return binary.LittleEndian.Uint64(b[:])&tmeEnabled != 0, true
}

// cpuFlag says whether /proc/cpuinfo lists an x86 flag for the first CPU.
func cpuFlag(root fs.FS, flag string) bool {
	text, err := read(root, "proc/cpuinfo")
	if err != nil {
		return false
	}
	for line := range strings.Lines(text) {
		key, value, _ := strings.Cut(line, ":")
		if strings.TrimSpace(key) == "flags" {
			return slices.Contains(strings.Fields(value), flag)
		}
	}
	return false
}
