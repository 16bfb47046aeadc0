// Package manifest is manifest.json, which lies beside a saved dump and says
// what was saved, when, of which kernel, and the checksums of its files.
//
// Invariants: fields may be added without a new Schema; the meaning of a field
// never changes. The input of Read may be damaged or foreign: its size is
// capped, and nothing in it is used as a path.
package manifest

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/warmcore/warmcore/pkg/phys"
	"github.com/warmcore/warmcore/pkg/vmcore/checksum"
)

// Schema is the number of the manifest's schema.
const Schema = 1

// Names of the files that belong to a saved dump. The files of a split dump
// have DumpName and a dot and their number from 1 on.
const (
	DumpName = "vmcore"
	LogName  = "vmcore-dmesg.txt" // the crashed kernel's log
	FileName = "manifest.json"
)

// maxSize caps the input of Read, in bytes: it has room for the checksums of
// the most blocks that package checksum allows.
const maxSize = 1 << 30

// Manifest says what is in a dump's directory. Times are RFC 3339 in UTC,
// sizes are in bytes, offsets are in the dump file.
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
	CPUsSeen    uint32 `json:"cpus_seen"`    // that should have been flushed: online at the crash, as far as is known
	CPUsFlushed uint32 `json:"cpus_flushed"` // that did

	// DaxBytes is how much of the dump's source was read from dax devices,
	// instead of /proc/vmcore. Memory that is in the source twice counts
	// twice.
	DaxBytes       uint64   `json:"dax_bytes,omitempty"`
	Dump           Dump     `json:"dump"`
	Files          []File   `json:"files"`
	Unreadable     []Extent `json:"unreadable"`                // memory that could not be read: not in a kdump file, zero in an ELF file
	MoreUnreadable uint64   `json:"more_unreadable,omitempty"` // pages
	// NotDumped is memory that the crashed kernel had online and that is not in the
	// dump because it was added after boot: window and destination where they
	// were lent, and what the plan doesn't know.
	NotDumped []Extent `json:"not_dumped"`
	// Changed has pages of the dump that something wrote to after the payload
	// had handed it over, of the few that are watched.
	Changed  []Extent `json:"changed,omitempty"`
	LogLost  int      `json:"log_lost,omitempty"` // messages that could not be read
	Warnings []string `json:"warnings,omitempty"`
}

// CPU says what a CPU was executing at the crash. Numbers that can be
// addresses are hexadecimal strings, because JSON's numbers can't hold them.
type CPU struct {
	PID uint32 `json:"pid"`
	PC  string `json:"pc"`
	SP  string `json:"sp"`
}

// Dump describes the contents of a written dump. Counts are in pages.
type Dump struct {
	Format      string `json:"format"`      // "kdump" or "elf", then " flattened" if it is
	Compression string `json:"compression"` // "none", "zlib", "snappy", "zstd"
	DumpLevel   int    `json:"dump_level"`  // of all filters that it went through
	PageSize    uint64 `json:"page_size"`   // bytes
	Pages       uint64 `json:"pages"`       // of memory
	Kept        uint64 `json:"kept"`
	Zero        uint64 `json:"zero"`           // kept, and all zeroes
	Incompress  uint64 `json:"incompressible"` // kept, and stored as they are
	LeftOut     Counts `json:"left_out"`
	Memory      uint64 `json:"memory_bytes"` // of the pages
	Data        uint64 `json:"data_bytes"`   // that they take in the files
}

// Counts are the numbers of pages that a filter left out, by reason.
type Counts struct {
	Cache        uint64 `json:"cache"`
	CachePrivate uint64 `json:"cache_private"`
	User         uint64 `json:"user"`
	Free         uint64 `json:"free"`
	HWPoison     uint64 `json:"hwpoison"`
	Offline      uint64 `json:"offline"`
	Absent       uint64 `json:"absent"` // missing in the source already
}

// File is a file of the dump.
type File struct {
	Name    string `json:"name"`
	Bytes   uint64 `json:"bytes"`            // its size
	Written uint64 `json:"written"`          // its size without holes, which stand for zeroes
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

// Extents returns ranges as extents, none as an empty list.
func Extents(ranges []phys.Range) []Extent {
	out := []Extent{}
	for _, r := range ranges {
		out = append(out, Extent{fmt.Sprintf("%#x", r.Start), r.Size()})
	}
	return out
}

// Time returns seconds since 1970 as a time, nil for 0.
func Time(seconds int64) *time.Time {
	if seconds == 0 {
		return nil
	}
	t := time.Unix(seconds, 0).UTC()
	return &t
}

// Encode returns the content of manifest.json.
func (m *Manifest) Encode() ([]byte, error) {
	b, err := json.MarshalIndent(m, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("encode manifest: %w", err)
	}
	return append(b, '\n'), nil
}

// Read reads a manifest to its end. name is what errors call it.
func Read(r io.Reader, name string) (*Manifest, error) { return read(r, name, maxSize) }

func read(r io.Reader, name string, maxSize int64) (*Manifest, error) {
	text, err := io.ReadAll(io.LimitReader(r, maxSize+1))
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", name, err)
	}
	if int64(len(text)) > maxSize {
		return nil, fmt.Errorf("%s has more than %d bytes", name, maxSize)
	}
	var m Manifest
	if err := json.Unmarshal(text, &m); err != nil {
		return nil, fmt.Errorf("decode %s: %w", name, err)
	}
	return &m, nil
}

// Sums returns the checksums of the file called name, nil if the manifest has
// none of it.
func (m *Manifest) Sums(name string) *checksum.Sums {
	for _, f := range m.Files {
		if f.Name == name && f.CRC32C != nil {
			return f.CRC32C
		}
	}
	return nil
}

// Summary returns one line for people.
func (m *Manifest) Summary() string {
	var size uint64
	for _, f := range m.Files {
		if strings.HasPrefix(f.Name, DumpName) && f.CRC32C != nil {
			size += f.Written
		}
	}
	d := m.Dump
	return fmt.Sprintf("%s: %s in %s format for %s of memory, %d%% of the pages at dump level %d, kernel %s, %d CPUs with registers, in %.1f s",
		m.Directory, phys.FormatSize(size), d.Format, phys.FormatSize(d.Memory), d.KeptPercent(), d.DumpLevel, m.Release, len(m.CPUs), m.Seconds) +
		UnreadText(m.Unreadable, m.MoreUnreadable*d.PageSize) + m.notDumpedText()
}

func (m *Manifest) notDumpedText() string {
	if len(m.NotDumped) == 0 {
		return ""
	}
	return fmt.Sprintf("; %s that was lent or added after boot is not in it", phys.FormatSize(total(m.NotDumped)))
}

func total(list []Extent) (bytes uint64) {
	for _, e := range list {
		bytes += e.Bytes
	}
	return bytes
}

// UnreadText says how much memory could not be read, for the end of a summary:
// what is listed and more bytes. It is "" if there is none.
func UnreadText(unreadable []Extent, more uint64) string {
	if more += total(unreadable); more == 0 {
		return ""
	}
	return fmt.Sprintf("; %s could not be read", phys.FormatSize(more))
}

// KeptPercent returns how many percent of all pages are in the dump, 0 to 100.
func (d Dump) KeptPercent() uint64 {
	if d.Pages == 0 {
		return 0
	}
	return uint64(float64(d.Kept)/float64(d.Pages)*100 + 0.5)
}
