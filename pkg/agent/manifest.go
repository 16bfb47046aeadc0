package agent

import (
	"encoding/hex"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"github.com/warmcore/warmcore/pkg/phys"
	"github.com/warmcore/warmcore/pkg/registration"
	"github.com/warmcore/warmcore/pkg/vmcore/checksum"
)

// ManifestSchema is the number of the manifest's schema. A field is added
// without a new number; one is never given another meaning.
const ManifestSchema = 1

// Manifest says what is in a dump's directory, as manifest.json. Times are
// RFC 3339 in UTC, sizes are in bytes, offsets are in the dump file.
type Manifest struct {
	Schema    int       `json:"schema"`
	Directory string    `json:"directory"`
	Started   time.Time `json:"started"`
	Finished  time.Time `json:"finished"`
	Seconds   float64   `json:"seconds"` // from start to check

	Reason  string     `json:"reason"`             // panic, reset, early; "" if unknown
	Crashed *time.Time `json:"crashed,omitempty"`  // by the crashed kernel's clock
	Capture *time.Time `json:"captured,omitempty"` // when the payload copied boot memory
	Release string     `json:"release"`            // of the crashed kernel, as uname -r
	BuildID string     `json:"build_id,omitempty"` // of the crashed kernel
	BootID  string     `json:"boot_id,omitempty"`  // of the crashed kernel
	Nonce   string     `json:"nonce,omitempty"`    // of the registration
	Payload string     `json:"payload,omitempty"`  // version

	CPUs        []CPU  `json:"cpus"`         // those with registers
	CPUsSeen    uint32 `json:"cpus_seen"`    // that the stub expected to flush
	CPUsFlushed uint32 `json:"cpus_flushed"` // that did

	// DaxBytes is how much of the dump's source was read from dax devices,
	// instead of /proc/vmcore. Memory that the source has twice counts twice.
	DaxBytes       uint64   `json:"dax_bytes,omitempty"`
	Dump           DumpInfo `json:"dump"`
	Files          []File   `json:"files"`
	Unreadable     []Extent `json:"unreadable"`                // memory that could not be read: not in a kdump file, zero in an ELF file
	MoreUnreadable uint64   `json:"more_unreadable,omitempty"` // pages
	LogLost        int      `json:"log_lost,omitempty"`        // messages that could not be read
	Warnings       []string `json:"warnings,omitempty"`
}

// CPU is a CPU's place at the crash. Numbers that can be addresses are
// hexadecimal strings, for JSON's numbers don't hold them.
type CPU struct {
	PID uint32 `json:"pid"`
	PC  string `json:"pc"`
	SP  string `json:"sp"`
}

// File is a file of the dump.
type File struct {
	Name    string `json:"name"`
	Bytes   uint64 `json:"bytes"`            // its size
	Written uint64 `json:"written"`          // without the holes that zeroes became
	SHA256  string `json:"sha256,omitempty"` // of all its bytes
	// CRC32C is the checksums of its blocks; `warmcore inspect --verify` reads
	// them.
	CRC32C *checksum.Sums `json:"crc32c,omitempty"`
}

// Extent is a part of the crashed kernel's physical memory.
type Extent struct {
	Address string `json:"address"` // hexadecimal
	Bytes   uint64 `json:"bytes"`
}

// manifest begins a manifest with what the handoff area says. x and its block
// may be nil.
func (s *System) manifest(x *session, started time.Time) *Manifest {
	m := &Manifest{Schema: ManifestSchema, Started: started.UTC(), CPUs: []CPU{}, Files: []File{}, Unreadable: []Extent{}}
	switch {
	case x == nil:
		m.Warnings = append(m.Warnings, "saved without the handoff area")
		return m
	case x.block == nil:
		m.Warnings = append(m.Warnings, fmt.Sprintf("no registration: %v", x.err))
		return m
	}
	m.DaxBytes = x.dax.bytes
	m.Warnings = append(m.Warnings, x.dax.warnings...)
	b := x.block
	m.Release = b.Identity.Release
	m.BuildID = hex.EncodeToString(b.Identity.BuildID)
	m.Nonce = hex.EncodeToString(b.Identity.Nonce[:])
	if b.Identity.BootID != [16]byte{} {
		m.BootID = uuid(b.Identity.BootID)
	}
	m.Payload = b.PayloadVersion
	if b.Capture.Reason != registration.ReasonNone {
		m.Reason = b.Capture.Reason.String()
	}
	m.Capture = unixTime(b.Capture.Time)
	m.CPUsSeen, m.CPUsFlushed = b.Capture.CPUsSeen, b.Capture.CPUsFlushed
	return m
}

// describe adds what the dump says about itself, which wins: it is what the
// kernel wrote at its end.
func (m *Manifest) describe(d dump) {
	for _, c := range d.cpus {
		m.CPUs = append(m.CPUs, CPU{PID: c.PID, PC: fmt.Sprintf("%#x", c.PC), SP: fmt.Sprintf("%#x", c.SP)})
	}
	for _, err := range d.bad {
		m.Warnings = append(m.Warnings, err.Error())
	}
	if d.info == nil {
		m.Warnings = append(m.Warnings, d.err.Error())
		return
	}
	if m.Release != "" && m.Release != d.info.Release {
		m.Warnings = append(m.Warnings, fmt.Sprintf("registered kernel is %q", m.Release))
	}
	m.Release = d.info.Release
	if len(d.info.BuildID) > 0 {
		m.BuildID = hex.EncodeToString(d.info.BuildID)
	}
	m.Crashed = unixTime(d.info.CrashTime)
}

func (m *Manifest) finish(out written, now time.Time) {
	m.Dump = out.info
	m.Files = append(m.Files, out.files...)
	m.Unreadable = extents(out.missing.Unreadable)
	m.MoreUnreadable = out.missing.MoreUnreadable
	m.Warnings = append(m.Warnings, out.warnings...)
	m.Finished = now.UTC()
	m.Seconds = now.Sub(m.Started).Seconds()
}

// Summary is one line for people.
func (m *Manifest) Summary() string {
	var size uint64
	for _, f := range m.Files {
		if strings.HasPrefix(f.Name, DumpName) && f.CRC32C != nil {
			size += f.Written
		}
	}
	d := m.Dump
	return fmt.Sprintf("%s: %s in %s format for %s of memory, %d%% of the pages at dump level %d, kernel %s, %d CPUs with registers, in %.1f s",
		m.Directory, phys.FormatSize(size), d.Format, phys.FormatSize(d.Memory), percent(d.Kept, d.Pages), d.Level, m.Release, len(m.CPUs), m.Seconds) +
		unreadText(m.Unreadable, m.MoreUnreadable*d.PageSize)
}

// unreadText says how much memory could not be read, for the end of a summary;
// more is in bytes.
func unreadText(unreadable []Extent, more uint64) string {
	for _, e := range unreadable {
		more += e.Bytes
	}
	if more == 0 {
		return ""
	}
	return fmt.Sprintf("; %s could not be read", phys.FormatSize(more))
}

func percent(part, whole uint64) uint64 {
	if whole == 0 {
		return 0
	}
	return uint64(float64(part)/float64(whole)*100 + 0.5)
}

func (m *Manifest) encode() ([]byte, error) {
	b, err := json.MarshalIndent(m, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("encode manifest: %w", err)
	}
	return append(b, '\n'), nil
}

// unixTime returns seconds since 1970 as a time, nil for 0.
func unixTime(seconds int64) *time.Time {
	if seconds == 0 {
		return nil
	}
	t := time.Unix(seconds, 0).UTC()
	return &t
}

func uuid(b [16]byte) string {
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}
