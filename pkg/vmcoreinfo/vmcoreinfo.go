// Package vmcoreinfo reads VMCOREINFO, the text in which a Linux kernel says
// what a dump tool must know about it, and finds it in the memory of a crashed
// kernel. Package kernelmap derives the kernel's addresses from it.
//
// The text is lines of KEY=VALUE (kernel/vmcore_info.c in v6.12,
// kernel/crash_core.c before v6.9). In the kernel's memory it is the
// descriptor of an ELF note named VMCOREINFO at the start of a page.
//
// Invariants: everything here reads memory that a crashed or hostile system
// wrote. Every loop is bounded, and every length is capped before it is used.
// Nothing is ever written.
package vmcoreinfo

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"strconv"
	"strings"

	"github.com/warmcore/warmcore/pkg/phys"
)

// MaxText caps the text, in bytes: VMCOREINFO_BYTES is one page, and arm64
// pages have up to 64 KiB.
const MaxText = 64 << 10

// Reader reads physical memory of the crashed kernel, by the addresses that
// the crashed kernel used. It fails if it can't read all of p.
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
	// with 0x%lx (VMALLOC_START); both are stored as their 64 bits.
	Numbers map[string]int64

	Text     string   // what was parsed
	Warnings []string // lines that aren't understood, repeated keys, bytes that are not text
}

// FormatError says where a text is not valid VMCOREINFO.
type FormatError struct {
	Off     int    // offset of the line in the text, in bytes
	Field   string // the line's key
	Problem string
}

func (e *FormatError) Error() string {
	return fmt.Sprintf("offset %d: %s: %s", e.Off, e.Field, e.Problem)
}

// Parse reads a VMCOREINFO text. It ends at the first NUL, because hypervisors
// and tools that build the note themselves end or pad it with NULs, or at the
// first line with a byte that is not printable ASCII. What is ignored after
// that is a Warning, unless it is all NULs. Lines may end with CR LF.
//
// A known key with an unreadable value, or no OSRELEASE, is a *FormatError;
// unknown lines are Warnings. A last line without a newline counts, unless the
// text fills whole pages: a kernel whose text outgrows its page cuts it there.
func Parse(text []byte) (*Info, error) {
	info := &Info{
		Symbols: map[string]uint64{},
		Offsets: map[string]uint64{},
		Sizes:   map[string]uint64{},
		Lengths: map[string]uint64{},
		Numbers: map[string]int64{},
	}
	text = info.printable(text)
	if len(text) > MaxText {
		return nil, fmt.Errorf("parse VMCOREINFO: %d bytes, want at most %d", len(text), MaxText)
	}
	info.Text = string(text)
	seen := map[string]bool{}
	for off := 0; off < len(text); {
		line, _, whole := strings.Cut(info.Text[off:], "\n")
		next := off + len(line) + 1
		line = strings.TrimSuffix(line, "\r")
		cutOff := !whole && uint64(len(text))%phys.PageSize == 0
		key, value, _ := strings.Cut(line, "=")
		var known bool
		var err error
		if !cutOff {
			known, err = info.set(key, value)
		}
		switch {
		case cutOff || !whole && (err != nil || !known):
			info.Warnings = append(info.Warnings, fmt.Sprintf("last line is cut off: %.80q", line))
		case err != nil:
			return nil, fmt.Errorf("parse VMCOREINFO: %w", &FormatError{off, key, err.Error()})
		case !known:
			info.Warnings = append(info.Warnings, fmt.Sprintf("unknown line: %.80q", line))
		case seen[key]:
			info.Warnings = append(info.Warnings, fmt.Sprintf("given twice, the last counts: %.80q", line))
		}
		seen[key] = true
		off = next
	}
	if info.Release == "" {
		return nil, fmt.Errorf("parse VMCOREINFO: %w", &FormatError{0, "OSRELEASE", "missing"})
	}
	return info, nil
}

// printable returns the part of text that Parse reads, and warns about what
// follows it.
func (info *Info) printable(text []byte) []byte {
	all := len(text)
	if i := bytes.IndexByte(text, 0); i >= 0 {
		rest := text[i:]
		text = text[:i]
		if len(bytes.Trim(rest, "\x00")) > 0 {
			info.Warnings = append(info.Warnings, fmt.Sprintf("offset %d: %d bytes after a NUL are ignored", len(text), len(rest)))
		}
	}
	for i, c := range text {
		if (c < ' ' || c > '~') && c != '\n' && (c != '\r' || i+1 < len(text) && text[i+1] != '\n') {
			text = text[:bytes.LastIndexByte(text[:i], '\n')+1]
			info.Warnings = append(info.Warnings, fmt.Sprintf("offset %d: byte %#02x is not printable: %d bytes from offset %d on are ignored", i, c, all-len(text), len(text)))
			break
		}
	}
	return text
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
