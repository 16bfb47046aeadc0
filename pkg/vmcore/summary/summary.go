// Package summary describes in a few lines what is in a dump: which kernel,
// when and why it crashed, which CPUs' registers, how much memory.
//
// Invariants: facts that a dump doesn't have are left out, never guessed;
// parts that can't be read lead to a warning. Text from a dump can't control a
// terminal.
package summary

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/warmcore/warmcore/pkg/elfcore"
	"github.com/warmcore/warmcore/pkg/phys"
	"github.com/warmcore/warmcore/pkg/printk"
	"github.com/warmcore/warmcore/pkg/vmcore"
	"github.com/warmcore/warmcore/pkg/vmcoreinfo"
)

// Schema is the number of the JSON schema of Summary. A field is added without
// a new number; one is never given another meaning.
const Schema = 1

// Summary describes the contents of a dump. Sizes are in bytes; times are RFC
// 3339 in UTC; numbers that can be addresses are hexadecimal strings, for
// JSON's numbers don't hold them.
type Summary struct {
	Schema      int    `json:"schema"`
	Format      string `json:"format"`                // elf or kdump, with " flattened" appended if the file is
	Compression string `json:"compression,omitempty"` // none, zlib, lzo, snappy, zstd
	Level       *int   `json:"level,omitempty"`       // makedumpfile's dump level
	Incomplete  bool   `json:"incomplete"`            // the file says that it is not finished
	Part        *Range `json:"part,omitempty"`        // of a split dump: the memory that this file is for

	Release  string     `json:"release,omitempty"` // uname -r
	Machine  string     `json:"machine,omitempty"` // uname -m, or e_machine of others
	Node     string     `json:"node,omitempty"`    // uname -n
	BuildID  string     `json:"build_id,omitempty"`
	Crashed  *time.Time `json:"crashed,omitempty"` // by the kernel's clock
	Created  *time.Time `json:"created,omitempty"` // the file, as it says
	Cause    string     `json:"cause,omitempty"`   // the log's line that tells what went wrong
	Panic    string     `json:"panic,omitempty"`   // the log's line of the panic
	Messages int        `json:"log_messages"`      // that could be read
	LogLost  int        `json:"log_lost"`          // messages that could not be read

	CPUs      int   `json:"cpus,omitempty"` // that the file counts
	Registers []CPU `json:"registers"`      // CPUs with registers

	PageSize    uint64  `json:"page_size"`            // the kernel's
	BlockSize   uint64  `json:"block_size,omitempty"` // of a kdump file
	Memory      []Range `json:"memory"`               // that the dump describes
	MemoryBytes uint64  `json:"memory_bytes"`
	HeldBytes   *uint64 `json:"held_bytes,omitempty"` // of it, in the file

	// Unreadable is memory that the dump names as what could not be read when it
	// was written; MoreUnreadable counts pages that it doesn't name.
	Unreadable     []Range `json:"unreadable"`
	MoreUnreadable uint64  `json:"more_unreadable,omitempty"`

	Warnings []string `json:"warnings"`
}

// CPU is a CPU's place at the crash.
type CPU struct {
	PID uint32 `json:"pid"`
	PC  string `json:"pc"`
	SP  string `json:"sp"`
}

// Range is physical memory.
type Range struct {
	Start string `json:"start"`
	Bytes uint64 `json:"bytes"`
}

// Of returns the summary of d.
func Of(d vmcore.Dump) *Summary {
	info := d.Info()
	s := &Summary{
		Schema:      Schema,
		Format:      info.Format,
		Compression: info.Compression,
		Incomplete:  info.Incomplete,
		Release:     clean(info.Uname.Release),
		Machine:     clean(info.Uname.Machine),
		Node:        clean(info.Uname.Nodename),
		Created:     moment(info.Created),
		CPUs:        info.CPUs,
		Registers:   []CPU{},
		PageSize:    info.PageSize,
		BlockSize:   info.BlockSize,
		Memory:      []Range{},
		MemoryBytes: info.Memory.Size(),
		Unreadable:  []Range{},
		Warnings:    []string{},
	}
	if s.Machine == "" {
		s.Machine = fmt.Sprintf("e_machine %d", info.Machine)
	}
	if info.Level != vmcore.LevelUnknown {
		s.Level = &info.Level
	}
	if info.Part != (phys.Range{}) {
		s.Part = &Range{hexadecimal(info.Part.Start), info.Part.Size()}
	}
	for _, w := range info.Warnings {
		s.warn(w)
	}
	for _, r := range info.Memory {
		s.Memory = append(s.Memory, Range{hexadecimal(r.Start), r.Size()})
	}
	for _, r := range info.Unreadable {
		s.Unreadable = append(s.Unreadable, Range{hexadecimal(r.Start), r.Size()})
	}
	s.MoreUnreadable = info.MoreUnreadable
	if c, ok := d.(vmcore.Counter); ok {
		if held, err := c.HeldSize(); err != nil {
			s.warn(fmt.Sprintf("count pages: %v", err))
		} else {
			s.HeldBytes = &held
		}
	}
	s.registers(info)
	if info.VMCOREINFO == nil {
		s.warn("without VMCOREINFO the log can't be read")
	} else if v, err := info.Kernel(); err == nil { // else the reader has warned
		s.kernel(d, v)
	}
	return s
}

func (s *Summary) warn(text string) { s.Warnings = append(s.Warnings, clean(text)) }

// registers counts the CPUs that have a note.
func (s *Summary) registers(info *vmcore.Info) {
	for n, err := range vmcore.Notes(info.Notes) {
		if err != nil {
			return // the reader has warned
		}
		if n.Name != elfcore.NameCore || n.Type != elfcore.TypePRStatus {
			continue
		}
		p, err := elfcore.ParsePRStatus(info.Machine, n.Desc)
		if err != nil {
			s.warn(fmt.Sprintf("registers of CPU %d: %v", len(s.Registers), err))
			return
		}
		s.Registers = append(s.Registers, CPU{p.PID, hexadecimal(p.PC), hexadecimal(p.SP)})
	}
}

// kernel fills in what VMCOREINFO and the log tell.
func (s *Summary) kernel(d vmcore.Dump, v *vmcoreinfo.Info) {
	s.BuildID = hex.EncodeToString(v.BuildID)
	s.Crashed = moment(v.CrashTime)
	log, err := printk.Read(v, vmcore.NewVirtual(d, v))
	if err != nil {
		s.warn(err.Error())
		return
	}
	s.Messages, s.LogLost = len(log.Records), log.Lost
	s.Cause, s.Panic = cause(log)
}

// panicLine begins the last message of panic() (kernel/panic.c).
const panicLine = "Kernel panic - not syncing"

// causes begin the first message of what ends in a panic: on x86
// (arch/x86/kernel/dumpstack.c, mm/fault.c), on arm64
// (arch/arm64/kernel/traps.c, mm/fault.c), in both.
var causes = []string{
	"BUG:", "kernel BUG at", "Oops:", "Oops ", "general protection fault", "divide error:", "invalid opcode:",
	"Unable to handle kernel", "Internal error:", "Unhandled fault", "SError Interrupt",
	"mce: [Hardware Error]", "Out of memory:", "watchdog: BUG:", "sysrq: Trigger a crash", "INFO: task ", "rcu: INFO:",
}

// hardLockup is in the message of the watchdog for those, after a prefix that
// has changed often (kernel/watchdog.c).
const hardLockup = "Watchdog detected hard LOCKUP"

// incident is how long after one such message another belongs to it, in
// nanoseconds: an oops says "BUG:", then "Oops:", then panics.
const incident = 10e9

// cause returns the panic in the log, and the first message of the incident
// that led to it, or else of the last incident.
func cause(log printk.Log) (cause, fatal string) {
	var last uint64
	for _, r := range log.Records {
		line, _, _ := bytes.Cut(r.Text, []byte{'\n'})
		text := string(line)
		if strings.HasPrefix(text, panicLine) {
			return cause, clean(text)
		}
		if isCause(text) {
			if cause == "" || r.Nanos > last && r.Nanos-last > incident {
				cause = clean(text)
			}
			last = r.Nanos
		}
	}
	return cause, ""
}

func isCause(text string) bool {
	return strings.Contains(text, hardLockup) ||
		slices.ContainsFunc(causes, func(c string) bool { return strings.HasPrefix(text, c) })
}

// maxClean is how much of a text is shown, in bytes.
const maxClean = 300

// clean makes text out of a dump fit for a terminal.
func clean(text string) string {
	text = strings.ToValidUTF8(text, "?")
	if len(text) > maxClean {
		text = strings.ToValidUTF8(text[:maxClean], "") + "..."
	}
	return strings.Map(func(r rune) rune {
		if r < ' ' || r >= 0x7f && r < 0xa0 || r >= 0x200b && r <= 0x202e || r >= 0x2066 && r <= 0x2069 {
			return '?' // controls, and what turns the direction of writing
		}
		return r
	}, text)
}

func hexadecimal(x uint64) string { return fmt.Sprintf("%#x", x) }

// moment returns seconds since 1970 as a time that JSON can say; nil for 0.
func moment(seconds int64) *time.Time {
	const year10000 = 253402300800
	if seconds <= 0 || seconds >= year10000 {
		return nil
	}
	t := time.Unix(seconds, 0).UTC()
	return &t
}

// Lines returns the summary for people: a name and a value in each line.
func (s *Summary) Lines() []string {
	var lines []string
	add := func(name, format string, args ...any) {
		lines = append(lines, Line(name, fmt.Sprintf(format, args...)))
	}
	format := []string{s.Format}
	if s.Compression != "" {
		format = append(format, "compression "+s.Compression)
	}
	if s.Level != nil {
		format = append(format, fmt.Sprintf("dump level %d", *s.Level))
	}
	if s.Incomplete {
		format = append(format, "INCOMPLETE")
	}
	add("format", "%s", strings.Join(format, ", "))
	if s.Part != nil {
		add("part", "of a split dump: %s from %s on", phys.FormatSize(s.Part.Bytes), s.Part.Start)
	}
	kernel := s.Release
	if kernel == "" {
		kernel = "unknown"
	}
	kernel += ", " + s.Machine
	if s.Node != "" && s.Node != "(none)" { // what the kernel calls one without a name
		kernel += ", on " + s.Node
	}
	add("kernel", "%s", kernel)
	if s.BuildID != "" {
		add("build id", "%s", s.BuildID)
	}
	if s.Crashed != nil {
		add("crashed", "%s", s.Crashed.Format(time.DateTime+" MST"))
	}
	if s.Created != nil {
		add("created", "%s", s.Created.Format(time.DateTime+" MST"))
	}
	if s.Cause != "" {
		add("cause", "%s", s.Cause)
	}
	if s.Panic != "" {
		add("panic", "%s", s.Panic)
	}
	if s.Messages > 0 || s.LogLost > 0 {
		add("log", "%d messages%s", s.Messages, lost(s.LogLost))
	}
	return append(lines, s.numbers()...)
}

func lost(n int) string {
	if n == 0 {
		return ""
	}
	return fmt.Sprintf(", %d could not be read", n)
}

// maxListed is how many CPUs and ranges are listed for people.
const maxListed = 8

func (s *Summary) numbers() []string {
	cpus := fmt.Sprintf("%d with registers", len(s.Registers))
	if s.CPUs > 0 {
		cpus = fmt.Sprintf("%d, %s", s.CPUs, cpus)
	}
	lines := []string{Line("CPUs", cpus)}
	for i, c := range s.Registers {
		if i == maxListed {
			lines = append(lines, Line("", fmt.Sprintf("and %d more", len(s.Registers)-i)))
			break
		}
		lines = append(lines, Line("", fmt.Sprintf("pid %-7d pc %s  sp %s", c.PID, c.PC, c.SP)))
	}
	lines = append(lines, listed("memory", s.MemoryBytes, s.Memory)...)
	if s.HeldBytes != nil {
		size, kernel := s.PageSize, ""
		if s.BlockSize != 0 && s.BlockSize != size {
			size, kernel = s.BlockSize, fmt.Sprintf("; the kernel's are of %s", phys.FormatSize(s.PageSize))
		}
		held, all := *s.HeldBytes/size, s.MemoryBytes/size
		lines = append(lines, Line("pages", fmt.Sprintf("%d held, %d not, of %s: %s%s", held, all-min(all, held), phys.FormatSize(size), phys.FormatSize(*s.HeldBytes), kernel)))
	}
	if len(s.Unreadable) > 0 {
		var size uint64
		for _, r := range s.Unreadable {
			size += r.Bytes
		}
		lines = append(lines, listed("unreadable", size, s.Unreadable)...)
	}
	if s.MoreUnreadable > 0 {
		lines = append(lines, Line("unreadable", fmt.Sprintf("and %d pages that are not named", s.MoreUnreadable)))
	}
	for _, w := range s.Warnings {
		lines = append(lines, Line("warning", w))
	}
	return lines
}

// listed returns the lines of ranges, of size bytes together.
func listed(name string, size uint64, ranges []Range) []string {
	lines := []string{Line(name, fmt.Sprintf("%s in %d ranges", phys.FormatSize(size), len(ranges)))}
	for i, r := range ranges {
		if i == maxListed {
			return append(lines, Line("", fmt.Sprintf("and %d more", len(ranges)-i)))
		}
		lines = append(lines, Line("", fmt.Sprintf("%s from %s on", phys.FormatSize(r.Bytes), r.Start)))
	}
	return lines
}

// Line returns a line with a name and a value, as Lines aligns them.
func Line(name, value string) string { return fmt.Sprintf("%-10s %s", name, value) }
