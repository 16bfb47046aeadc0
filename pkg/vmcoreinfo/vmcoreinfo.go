// Package vmcoreinfo reads VMCOREINFO, the text in which a Linux kernel says
// what a dump tool must know about it, finds it in the memory of a crashed
// kernel, and derives from it where that kernel mapped its memory.
//
// The text is lines of KEY=VALUE (kernel/vmcore_info.c in v6.12,
// kernel/crash_core.c before v6.9). In the kernel's memory it is the
// descriptor of an ELF note named VMCOREINFO at the start of a page.
//
// Invariants: everything here reads memory that a crashed or hostile system
// wrote. Every loop is bounded, every length is capped before it is used,
// and page tables are believed only where they agree with themselves and with
// the text. Nothing is ever written.
package vmcoreinfo

import (
	"encoding/hex"
	"fmt"
	"strconv"
	"strings"
)

// MaxText caps the text, in bytes: VMCOREINFO_BYTES is one page, and arm64
// pages have up to 64 KiB.
const MaxText = 64 << 10

// Reader reads physical memory of the crashed kernel, where addresses are
// those that the crashed kernel used. It fails if it can't read all of p.
type Reader interface {
	ReadPhys(p []byte, addr uint64) error
}

// Info is a parsed VMCOREINFO text.
type Info struct {
	Release      string // OSRELEASE, as uname -r
	BuildID      []byte // BUILD-ID of vmlinux; nil before v5.9
	PageSize     uint64 // PAGESIZE, in bytes
	KernelOffset uint64 // KERNELOFFSET: how far KASLR moved the kernel, in bytes
	CrashTime    int64  // CRASHTIME, Unix seconds; 0 if the kernel didn't panic

	Symbols map[string]uint64 // SYMBOL(name): virtual address
	Offsets map[string]uint64 // OFFSET(struct.field): bytes
	Sizes   map[string]uint64 // SIZE(struct): bytes
	Lengths map[string]uint64 // LENGTH(array): elements
	// Numbers is NUMBER(name). The kernel prints most with %ld and some
	// with 0x%lx (VMALLOC_START); both are kept as the 64 bits they are.
	Numbers map[string]int64

	Text     string   // what was parsed
	Warnings []string // lines that aren't understood, and keys that came twice
}

// FormatError says where a text is not VMCOREINFO.
type FormatError struct {
	Off     int    // offset of the line in the text, in bytes
	Field   string // the line's key
	Problem string
}

func (e *FormatError) Error() string {
	return fmt.Sprintf("offset %d: %s: %s", e.Off, e.Field, e.Problem)
}

// Parse reads a VMCOREINFO text. A known key with an unreadable value, a byte
// that is no printable ASCII, or no OSRELEASE is a *FormatError; unknown
// lines are Warnings. A last line without newline, which the kernel leaves
// when the text outgrows its page, is a Warning too.
func Parse(text []byte) (*Info, error) {
	if len(text) > MaxText {
		return nil, fmt.Errorf("parse VMCOREINFO: %d bytes, want at most %d", len(text), MaxText)
	}
	info := &Info{
		Symbols: map[string]uint64{},
		Offsets: map[string]uint64{},
		Sizes:   map[string]uint64{},
		Lengths: map[string]uint64{},
		Numbers: map[string]int64{},
		Text:    string(text),
	}
	for i, c := range text {
		if (c < ' ' || c > '~') && c != '\n' {
			return nil, fmt.Errorf("parse VMCOREINFO: %w", &FormatError{i, "text", fmt.Sprintf("byte %#02x is not printable", c)})
		}
	}
	seen := map[string]bool{}
	for off := 0; off < len(text); {
		line, _, whole := strings.Cut(info.Text[off:], "\n")
		if !whole {
			info.Warnings = append(info.Warnings, fmt.Sprintf("last line is cut off: %.80q", line))
			break
		}
		key, value, _ := strings.Cut(line, "=")
		known, err := info.set(key, value)
		switch {
		case err != nil:
			return nil, fmt.Errorf("parse VMCOREINFO: %w", &FormatError{off, key, err.Error()})
		case !known:
			info.Warnings = append(info.Warnings, fmt.Sprintf("unknown line: %.80q", line))
		case seen[key]:
			info.Warnings = append(info.Warnings, fmt.Sprintf("given twice, the last counts: %.80q", line))
		}
		seen[key] = true
		off += len(line) + 1
	}
	if info.Release == "" {
		return nil, fmt.Errorf("parse VMCOREINFO: %w", &FormatError{0, "OSRELEASE", "missing"})
	}
	return info, nil
}

// set stores one line's value; known is false for a key of unknown form.
func (info *Info) set(key, value string) (known bool, err error) {
	switch key {
	case "OSRELEASE":
		info.Release = value
		return true, nil
	case "BUILD-ID":
		info.BuildID, err = hex.DecodeString(value)
		return true, err
	case "PAGESIZE":
		info.PageSize, err = strconv.ParseUint(value, 10, 64)
		return true, err
	case "KERNELOFFSET":
		info.KernelOffset, err = strconv.ParseUint(value, 16, 64)
		return true, err
	case "CRASHTIME":
		info.CrashTime, err = strconv.ParseInt(value, 10, 64)
		return true, err
	}
	kind, name, ok := strings.Cut(key, "(")
	name, closed := strings.CutSuffix(name, ")")
	if !ok || !closed || name == "" {
		return false, nil
	}
	switch kind {
	case "SYMBOL":
		info.Symbols[name], err = strconv.ParseUint(value, 16, 64)
	case "OFFSET":
		info.Offsets[name], err = strconv.ParseUint(value, 10, 64)
	case "SIZE":
		info.Sizes[name], err = strconv.ParseUint(value, 10, 64)
	case "LENGTH":
		info.Lengths[name], err = strconv.ParseUint(value, 10, 64)
	case "NUMBER":
		info.Numbers[name], err = parseNumber(value)
	default:
		return false, nil
	}
	return true, err
}

// parseNumber reads what %ld or 0x%lx printed. A value printed in
// hexadecimal may have bit 63 set, which is kept.
func parseNumber(value string) (int64, error) {
	if digits, ok := strings.CutPrefix(value, "0x"); ok {
		n, err := strconv.ParseUint(digits, 16, 64)
		return int64(n), err
	}
	return strconv.ParseInt(value, 10, 64)
}
