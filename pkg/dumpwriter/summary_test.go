package dumpwriter

import (
	"strings"
	"testing"

	"github.com/warmcore/warmcore/pkg/manifest"
)

// Both summaries say what a person would not look for in the manifest.
func TestSummaryUnread(t *testing.T) {
	lost := []manifest.Extent{{Address: "0x1000", Bytes: 1 << 20}, {Address: "0x200000", Bytes: 2 << 20}}
	for _, tc := range []struct {
		name       string
		unreadable []manifest.Extent
		more       uint64 // pages
		want       string // the end; "" for no such words
	}{
		{"all was read", nil, 0, ""},
		{"two ranges", lost, 0, "; 3 MiB could not be read"},
		{"ranges and pages", lost, 256, "; 4 MiB could not be read"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			info := manifest.Dump{PageSize: 4096, Pages: 1024}
			m := &manifest.Manifest{Dump: info, Unreadable: tc.unreadable, MoreUnreadable: tc.more}
			c := &Conversion{Dump: info, Unreadable: tc.unreadable, MoreUnreadable: tc.more}
			for _, got := range []string{m.Summary(), c.Summary()} {
				if !strings.HasSuffix(got, tc.want) || strings.Contains(got, "could not be read") != (tc.want != "") {
					t.Errorf("summary %q, want %q at its end", got, tc.want)
				}
			}
		})
	}
}
