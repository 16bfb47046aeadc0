package story

import (
	"encoding/json"
	"os"
	"path/filepath"
)

// Report is DIR/report.json: the result of a story. Absent parts did not
// happen in it.
type Report struct {
	Schema        int             `json:"schema"`
	Story         string          `json:"story"`
	Arch          string          `json:"arch"`
	Accel         string          `json:"accel"`
	MemBytes      uint64          `json:"mem_bytes"`
	CPUs          int             `json:"cpus"`
	Handover      string          `json:"handover"`
	PayloadKernel string          `json:"payload_kernel"`
	NormalKernel  string          `json:"normal_kernel"`
	Firmware      string          `json:"firmware"`
	Result        string          `json:"result"` // pass or fail
	Error         string          `json:"error,omitempty"`
	Boots         []Boot          `json:"boots"`
	Crash         *Crash          `json:"crash,omitempty"`
	Copy          *Copy           `json:"copy,omitempty"`
	Dump          *Dump           `json:"dump,omitempty"`
	Oracle        *Oracle         `json:"oracle,omitempty"`
	Memory        *Memory         `json:"memory,omitempty"`
	Timeline      []TimelineEvent `json:"timeline"`
}

// Boot is one way from a reset to the normal kernel's user space.
type Boot struct {
	Kind    string  `json:"kind"` // plain or capture
	Seconds Seconds `json:"seconds"`
}

// Seconds is where the time of a boot went, on the host's clock. Firmware is
// what is left of it: from the reset to the payload kernel's first
// instruction.
type Seconds struct {
	Firmware float64 `json:"firmware"`
	Payload  float64 `json:"payload"`
	Kernel   float64 `json:"kernel"`
}

// Crash is how the machine ended and what was recorded of it.
type Crash struct {
	Trigger           string `json:"trigger"`
	Reason            string `json:"reason"`
	CPUsWithRegisters int    `json:"cpus_with_registers"`
	CPUsFlushed       int    `json:"cpus_flushed"`
}

// Copy is the payload's copy of boot memory.
type Copy struct {
	Bytes   uint64  `json:"bytes"`
	Seconds float64 `json:"seconds"`
}

// Dump is the file that was saved.
type Dump struct {
	Path   string `json:"path"`
	Format string `json:"format"`
	Bytes  int64  `json:"bytes"` // of the file, holes included
	Pages  uint64 `json:"pages"`
}

// Oracle is the comparison with QEMU's view of memory at the reset, in pages.
type Oracle struct {
	Painted   uint64 `json:"painted"`   // pages that the guest painted and the dump shows
	Preserved uint64 `json:"preserved"` // pages compared
	Wrong     uint64 `json:"wrong"`
	Missing   uint64 `json:"missing"`
}

// Memory is RAM in KiB: what the machine has, and MemTotal. Alone is that of
// the same kernel without us.
type Memory struct {
	InstalledKiB uint64 `json:"installed_kib"`
	AloneKiB     uint64 `json:"alone_kib"`
	PlainKiB     uint64 `json:"plain_kib"`
	CaptureKiB   uint64 `json:"capture_kib"`
	ReleasedKiB  uint64 `json:"released_kib"`
}

// TimelineEvent is a step of the story, in seconds since it began.
type TimelineEvent struct {
	T     float64 `json:"t"`
	Event string  `json:"event"`
}

// Tidy removes the large files of a story from its folder, and leaves the
// report and the logs.
func Tidy(dir string) error {
	for _, name := range []string{"vmcore", wholeName, convertedName, "filtered", "disk.img", "initrd", "initramfs", "payload.itb", "flash.img"} {
		if err := os.RemoveAll(filepath.Join(dir, name)); err != nil {
			return err
		}
	}
	return nil
}

// Write writes dir/report.json.
func (r *Report) Write(dir string) error {
	b, err := json.MarshalIndent(r, "", " ")
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, "report.json"), append(b, '\n'), 0o644)
}
