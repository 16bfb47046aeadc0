package vmcore

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/warmcore/warmcore/pkg/elfcore"
	"github.com/warmcore/warmcore/pkg/phys"
)

// A dump lists the pages that could not be read when it was written, in a text
// that is the same in both formats. An ELF file has the text in a note with
// this name and type, a kdump file in its erase information, whose other lines
// are makedumpfile's:
//
//	unreadable ADDRESS SIZE     physical address and bytes, 0x and hexadecimal
//	unreadable more PAGES       the last line, if not all had room; decimal
//
// Other readers see zeroes in an ELF file, and pages that are left out in a
// kdump file. A dump that makedumpfile makes from such a dump has the text,
// too, because it copies notes and erase information, also from an ELF file to
// a kdump file.
const (
	NameUnreadable        = "warmcore"
	TypeUnreadable uint32 = 0x77630001 // no type that crash(8) takes for another note
)

// MaxUnreadable caps the text in bytes, which is about 2000 ranges.
const MaxUnreadable = 60 << 10

// UnreadableNoteSize is the size of the largest note that AppendUnreadableNote
// appends.
const UnreadableNoteSize = noteHeaderSize + (len(NameUnreadable)+1+3)&^3 + MaxUnreadable

// Caps of what a reader accepts.
const (
	maxUnreadableRanges = 64 << 10 // of all texts of a dump
	maxMorePages        = 1 << 52  // all pages of 4 KiB that there are
)

const (
	unreadableKey = "unreadable"
	moreKey       = "more"
	// rangeRoom and moreRoom are the longest lines of the two kinds, in
	// bytes.
	rangeRoom = len(unreadableKey) + 2*len(" 0x0123456789abcdef") + 1
	moreRoom  = len(unreadableKey) + len(" "+moreKey+" ") + 20 + 1
)

// UnreadableText returns the text for ranges of whole pages, and for more
// further pages of which only the number is known. It is empty if there are
// none, and no longer than MaxUnreadable: ranges without room count as more.
func UnreadableText(ranges phys.Set, more, pageSize uint64) []byte {
	var b []byte
	for _, r := range ranges {
		if len(b)+rangeRoom+moreRoom <= MaxUnreadable {
			b = fmt.Appendf(b, "%s %#x %#x\n", unreadableKey, r.Start, r.Size())
		} else {
			more += (r.Size()-1)/pageSize + 1
		}
	}
	if more > 0 {
		b = fmt.Appendf(b, "%s %s %d\n", unreadableKey, moreKey, more)
	}
	return b
}

// AppendUnreadableNote appends the note with the text, or nothing if the text
// is empty.
func AppendUnreadableNote(notes, text []byte) ([]byte, error) {
	if len(text) == 0 {
		return notes, nil
	}
	return elfcore.AppendNote(notes, elfcore.ELFNote{Name: NameUnreadable, Type: TypeUnreadable, Desc: text})
}

// AddUnreadable adds the contents of a text to i.Unreadable and
// i.MoreUnreadable. It ignores other programs' lines; a line that can't be
// understood becomes a Warning.
func (i *Info) AddUnreadable(text []byte) {
	ranges := slices.Clone(i.Unreadable)
	for line := range strings.Lines(string(text)) {
		fields := strings.Fields(line)
		if len(fields) == 0 || fields[0] != unreadableKey {
			continue
		}
		r, more, err := parseUnreadable(fields[1:])
		switch {
		case err != nil:
			i.Warn(fmt.Sprintf("unreadable memory: line %.80q: %v", line, err))
		case more > 0:
			i.MoreUnreadable = max(i.MoreUnreadable, more)
		case len(ranges) == maxUnreadableRanges:
			i.Warn(fmt.Sprintf("unreadable memory: more than %d ranges", maxUnreadableRanges))
			i.Unreadable = phys.NewSet(ranges...)
			return
		default:
			ranges = append(ranges, r)
		}
	}
	i.Unreadable = phys.NewSet(ranges...)
}

// parseUnreadable reads a line without its first word.
func parseUnreadable(fields []string) (r phys.Range, more uint64, err error) {
	if len(fields) != 2 {
		return r, 0, fmt.Errorf("%d words after the first, want 2", len(fields))
	}
	if fields[0] == moreKey {
		more, err = strconv.ParseUint(fields[1], 10, 64)
		if err == nil && (more == 0 || more > maxMorePages) {
			err = fmt.Errorf("%d pages, want 1 to %d", more, uint64(maxMorePages))
		}
		return r, more, err
	}
	start, err := strconv.ParseUint(fields[0], 0, 64)
	if err != nil {
		return r, 0, err
	}
	size, err := strconv.ParseUint(fields[1], 0, 64)
	if err != nil {
		return r, 0, err
	}
	r, ok := phys.Sized(start, size)
	switch {
	case !ok || r.Empty():
		err = fmt.Errorf("range is empty or wraps")
	case start%MinPageSize != 0 || size%MinPageSize != 0:
		err = fmt.Errorf("range is not of whole pages")
	}
	return r, 0, err
}

// NamedUnreadable says whether the start of r is in i.Unreadable. The result is
// the part of r up to where the answer changes.
func (i *Info) NamedUnreadable(r phys.Range) (part phys.Range, named bool) {
	n, _ := slices.BinarySearchFunc(i.Unreadable, r.Start, func(u phys.Range, at uint64) int {
		if u.End <= at {
			return -1
		}
		return 1
	})
	switch {
	case n == len(i.Unreadable) || i.Unreadable[n].Start >= r.End:
		return r, false
	case i.Unreadable[n].Start > r.Start:
		return phys.Range{Start: r.Start, End: i.Unreadable[n].Start}, false
	}
	return phys.Range{Start: r.Start, End: min(r.End, i.Unreadable[n].End)}, true
}
