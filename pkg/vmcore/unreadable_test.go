package vmcore_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/warmcore/warmcore/pkg/phys"
	"github.com/warmcore/warmcore/pkg/vmcore"
)

func TestUnreadableText(t *testing.T) {
	ranges := phys.NewSet(phys.Range{Start: 0x3000, End: 0x5000}, phys.Range{Start: 0, End: 0x1000})
	for _, tc := range []struct {
		name   string
		ranges phys.Set
		more   uint64
		want   string
	}{
		{"none", nil, 0, ""},
		{"ranges", ranges, 0, "unreadable 0x0 0x1000\nunreadable 0x3000 0x2000\n"},
		{"more", ranges[:1], 7, "unreadable 0x0 0x1000\nunreadable more 7\n"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got := vmcore.UnreadableText(tc.ranges, tc.more, 4096)
			if diff := cmp.Diff(tc.want, string(got)); diff != "" {
				t.Errorf("text (-want +got):\n%s", diff)
			}
			var info vmcore.Info
			info.AddUnreadable(got)
			if diff := cmp.Diff(vmcore.Info{Unreadable: tc.ranges, MoreUnreadable: tc.more}, info, cmpopts.IgnoreUnexported(vmcore.Info{})); diff != "" {
				t.Errorf("read back (-want +got):\n%s", diff)
			}
		})
	}
}

// A text never has more bytes than there is room for.
func TestUnreadableTextCapped(t *testing.T) {
	var all []phys.Range
	for i := range uint64(10000) {
		start := ^uint64(0) - 1<<30 + 1 + i*0x4000
		all = append(all, phys.Range{Start: start, End: start + 0x2000})
	}
	const more = uint64(1 << 40)
	text := vmcore.UnreadableText(phys.NewSet(all...), more, 4096)
	if len(text) > vmcore.MaxUnreadable || len(text) < vmcore.MaxUnreadable-100 {
		t.Errorf("%d bytes, want at most %d and nearly that", len(text), vmcore.MaxUnreadable)
	}
	var info vmcore.Info
	info.AddUnreadable(text)
	if n := uint64(len(info.Unreadable)); info.MoreUnreadable != more+2*(10000-n) {
		t.Errorf("%d ranges and %d pages more, want %d in all", n, info.MoreUnreadable, more+20000)
	}
	notes, err := vmcore.AppendUnreadableNote(nil, text)
	if err != nil || len(notes) > vmcore.UnreadableNoteSize {
		t.Errorf("note of %d bytes, want at most %d: %v", len(notes), vmcore.UnreadableNoteSize, err)
	}
}

func TestAddUnreadable(t *testing.T) {
	for _, tc := range []struct {
		name, text string
		want       string // in the warning
	}{
		{"makedumpfile's lines", "erase jprobe 40\n\nerase unreadable 1\n", ""},
		{"one word", "unreadable 0x1000", "1 words"},
		{"address", "unreadable x 0x1000", "invalid syntax"},
		{"size", "unreadable 0x1000 -1", "invalid syntax"},
		{"empty", "unreadable 0x1000 0", "empty or wraps"},
		{"wraps", "unreadable 0xfffffffffffff000 0x2000", "empty or wraps"},
		{"not of pages", "unreadable 0x1000 0x800", "not of whole pages"},
		{"more", "unreadable more 0x10", "invalid syntax"},
		{"more than there are", "unreadable more 18446744073709551615", "want 1 to"},
		{"too many", strings.Repeat("unreadable 0x0 0x1000\n", 1<<16+1), "more than 65536 ranges"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var info vmcore.Info
			info.AddUnreadable([]byte(tc.text))
			if len(info.Warnings) > 1 || (tc.want == "") != (info.Warnings == nil) || !strings.Contains(strings.Join(info.Warnings, ""), tc.want) {
				t.Errorf("warnings %q, want one with %q", info.Warnings, tc.want)
			}
			if info.MoreUnreadable != 0 || info.Unreadable.Size() > 0x1000 {
				t.Errorf("unreadable %v and %d pages", info.Unreadable, info.MoreUnreadable)
			}
		})
	}
}

// FuzzUnreadable: what is understood is written in the same way again.
func FuzzUnreadable(f *testing.F) {
	f.Add([]byte("unreadable 0x1000 0x3000\nunreadable 0x8000 0x1000\nunreadable more 12\n"))
	f.Add([]byte("erase something\nunreadable 4096 8192\nunreadable more 0\nunreadable"))
	f.Fuzz(func(t *testing.T, b []byte) {
		var info, again vmcore.Info
		info.AddUnreadable(b)
		text := vmcore.UnreadableText(info.Unreadable, info.MoreUnreadable, 4096)
		if len(text) > vmcore.MaxUnreadable {
			t.Fatalf("text of %d bytes", len(text))
		}
		again.AddUnreadable(text)
		if again.Warnings != nil {
			t.Fatalf("warnings %q of our own text", again.Warnings)
		}
		if len(again.Unreadable) == len(info.Unreadable) {
			if diff := cmp.Diff(fmt.Sprint(info.Unreadable, info.MoreUnreadable), fmt.Sprint(again.Unreadable, again.MoreUnreadable)); diff != "" {
				t.Fatalf("read, written and read (-want +got):\n%s", diff)
			}
		}
	})
}
