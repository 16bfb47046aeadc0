package vmcoreinfo_test

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/warmcore/warmcore/pkg/vmcoreinfo"
)

// debian is the text of Debian's 6.1.0-56-amd64, from the memory of a guest.
func debian(t testing.TB) []byte {
	t.Helper()
	b, err := os.ReadFile("testdata/debian-6.1-amd64.txt")
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestParseDebian(t *testing.T) {
	info, err := vmcoreinfo.Parse(debian(t))
	if err != nil {
		t.Fatal(err)
	}
	if got, want := info.Release, "6.1.0-56-amd64"; got != want {
		t.Errorf("Release: got %q, want %q", got, want)
	}
	if got, want := hex.EncodeToString(info.BuildID), "eb4fbcd037e7253717950bf2b93bd5566f47c56f"; got != want {
		t.Errorf("BuildID: got %s, want %s", got, want)
	}
	if info.PageSize != 4096 || info.KernelOffset != 0x10e00000 || info.CrashTime != 0 {
		t.Errorf("got page size %d, offset %#x, crash time %d; want 4096, 0x10e00000, 0", info.PageSize, info.KernelOffset, info.CrashTime)
	}
	for name, want := range map[string]uint64{"swapper_pg_dir": 0xffffffff93810000, "_stext": 0xffffffff91e00000} {
		if got := info.Symbols[name]; got != want {
			t.Errorf("SYMBOL(%s): got %#x, want %#x", name, got, want)
		}
	}
	for name, want := range map[string]int64{"phys_base": 188743680, "PAGE_BUDDY_MAPCOUNT_VALUE": -129, "pgtable_l5_enabled": 0} {
		if got, ok := info.Numbers[name]; got != want || !ok {
			t.Errorf("NUMBER(%s): got %d, want %d", name, got, want)
		}
	}
	if len(info.Warnings) != 0 {
		t.Errorf("warnings: %q", info.Warnings)
	}
	if got := len(info.Symbols) + len(info.Numbers) + len(info.Offsets) + len(info.Sizes) + len(info.Lengths); got != 109-4 {
		t.Errorf("got %d keys in the maps, want %d", got, 109-4)
	}
}

func TestParse(t *testing.T) {
	text := strings.Join([]string{
		"OSRELEASE=6.12.1",
		"BUILD-ID=00ff",
		"PAGESIZE=65536",
		"SYMBOL(a)=ffffffff81000000",
		"OFFSET(s.f)=8",
		"SIZE(s)=64",
		"LENGTH(l)=3",
		"NUMBER(decimal)=-12",
		"NUMBER(VMALLOC_START)=0xffffc90000000000",
		"KERNELOFFSET=1f000000",
		"CONFIG_X=y",
		"SIZE(s)=65",
		"CRASHTIME=1700000000",
		"NUMBER(cut_of",
	}, "\n")
	got, err := vmcoreinfo.Parse([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	vmalloc := uint64(0xffffc90000000000)
	want := &vmcoreinfo.Info{
		Release:      "6.12.1",
		BuildID:      []byte{0, 0xff},
		PageSize:     65536,
		KernelOffset: 0x1f000000,
		CrashTime:    1700000000,
		Symbols:      map[string]uint64{"a": 0xffffffff81000000},
		Offsets:      map[string]uint64{"s.f": 8},
		Sizes:        map[string]uint64{"s": 65},
		Lengths:      map[string]uint64{"l": 3},
		Numbers:      map[string]int64{"decimal": -12, "VMALLOC_START": int64(vmalloc)},
		Text:         text,
		Warnings: []string{
			`unknown line: "CONFIG_X=y"`,
			`given twice, the last counts: "SIZE(s)=65"`,
			`last line is cut off: "NUMBER(cut_of"`,
		},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("Parse (-want +got):\n%s", diff)
	}
}

func TestParseDamaged(t *testing.T) {
	for _, c := range []struct {
		name, text string
		off        int
		field      string
	}{
		{"empty", "", 0, "OSRELEASE"},
		{"noRelease", "PAGESIZE=4096\n", 0, "OSRELEASE"},
		{"startsWithNUL", "\x00OSRELEASE=6.1\n", 0, "OSRELEASE"},
		{"releaseNotASCII", "OSRELEASE=6.1\xe9\nPAGESIZE=4096\n", 0, "OSRELEASE"},
		{"buildID", "OSRELEASE=6.1\nBUILD-ID=xyz\n", 14, "BUILD-ID"},
		{"pageSize", "OSRELEASE=6.1\nPAGESIZE=4k\n", 14, "PAGESIZE"},
		{"kernelOffset", "OSRELEASE=6.1\nKERNELOFFSET=\n", 14, "KERNELOFFSET"},
		{"crashTime", "OSRELEASE=6.1\nCRASHTIME=now\n", 14, "CRASHTIME"},
		{"symbol", "OSRELEASE=6.1\nSYMBOL(x)=0x10\n", 14, "SYMBOL(x)"},
		{"symbolTooLarge", "OSRELEASE=6.1\nSYMBOL(x)=10000000000000000\n", 14, "SYMBOL(x)"},
		{"offset", "OSRELEASE=6.1\nOFFSET(x.y)=-1\n", 14, "OFFSET(x.y)"},
		{"size", "OSRELEASE=6.1\nSIZE(x)=ff\n", 14, "SIZE(x)"},
		{"length", "OSRELEASE=6.1\nLENGTH(x)\n", 14, "LENGTH(x)"},
		{"number", "OSRELEASE=6.1\nNUMBER(x)=ff\n", 14, "NUMBER(x)"},
	} {
		t.Run(c.name, func(t *testing.T) {
			info, err := vmcoreinfo.Parse([]byte(c.text))
			var f *vmcoreinfo.FormatError
			if !errors.As(err, &f) {
				t.Fatalf("got error %v, want a FormatError", err)
			}
			if f.Off != c.off || f.Field != c.field {
				t.Errorf("got %v, want offset %d, field %s", err, c.off, c.field)
			}
			if info != nil {
				t.Errorf("got %+v with an error", info)
			}
		})
	}
	if _, err := vmcoreinfo.Parse(bytes.Repeat([]byte("\n"), vmcoreinfo.MaxText+1)); err == nil {
		t.Error("a text above MaxText: no error")
	}
}

// TestParseEnds: what others put around the text, or leave off, changes
// nothing of what it says.
func TestParseEnds(t *testing.T) {
	const text = "OSRELEASE=6.1\nPAGESIZE=65536\nSIZE(s)=65\nNUMBER(n)=-1\n"
	whole := strings.TrimSuffix(text, "\n")
	fill := func(n int) string { // text of n bytes, without a newline at its end
		return text + "SIZE(x)=" + strings.Repeat("0", n-len(text)-len("SIZE(x)=")-1) + "7"
	}
	for _, c := range []struct {
		name, text string
		number     bool // NUMBER(n) is read
		x          uint64
		warning    string
	}{
		{"asKernel", text, true, 0, ""},
		{"oneNUL", text + "\x00", true, 0, ""},
		{"padded", text + strings.Repeat("\x00", 4072), true, 0, ""},
		{"paddedBeyondMaxText", text + strings.Repeat("\x00", vmcoreinfo.MaxText), true, 0, ""},
		{"garbageAfterNUL", text + "\x00SIZE(s)=1\nx", true, 0, "offset 53: 12 bytes after a NUL are ignored"},
		{"garbage", text + "\xff\xfe\x01", true, 0, "offset 53: byte 0xff is not printable: 3 bytes from offset 53 on are ignored"},
		{"garbageInLastLine", whole + "\x7f\n", false, 0, "14 bytes from offset 40 on are ignored"},
		{"textAfterGarbage", text + "\x80SIZE(s)=1\n", true, 0, "byte 0x80 is not printable"},
		{"unknownLine", text + "garbage\n", true, 0, "unknown line"},
		{"crlf", strings.ReplaceAll(text, "\n", "\r\n"), true, 0, ""},
		{"crlfNoLastNewline", strings.ReplaceAll(whole, "\n", "\r\n"), true, 0, ""},
		{"crlfCutInside", strings.ReplaceAll(text, "\n", "\r\n")[:len(text)+3], true, 0, ""},
		{"crAlone", text + "SIZE(x)=1\rSIZE(x)=2\n", true, 0, "byte 0x0d is not printable"},
		{"noLastNewline", whole, true, 0, ""},
		{"noLastNewlineNUL", whole + "\x00\x00", true, 0, ""},
		{"lastLineCut", text + "SYMBOL(_ste", true, 0, "last line is cut off"},
		{"lastValueCut", text + "SYMBOL(_stext)=", true, 0, "last line is cut off"},
		{"page", fill(4096), true, 0, "last line is cut off"},
		{"lessThanPage", fill(4095), true, 7, ""},
		{"morePages", fill(16384), true, 0, "last line is cut off"},
	} {
		t.Run(c.name, func(t *testing.T) {
			info, err := vmcoreinfo.Parse([]byte(c.text))
			if err != nil {
				t.Fatal(err)
			}
			_, number := info.Numbers["n"]
			if info.Release != "6.1" || info.PageSize != 65536 || info.Sizes["s"] != 65 || number != c.number || info.Sizes["x"] != c.x {
				t.Errorf("got release %q, page size %d, sizes %v, NUMBER(n) %v; want NUMBER(n) %v, SIZE(x) %d", info.Release, info.PageSize, info.Sizes, number, c.number, c.x)
			}
			got := strings.Join(info.Warnings, "\n")
			if !strings.Contains(got, c.warning) || (c.warning == "") != (got == "") {
				t.Errorf("warnings %q, want %q", got, c.warning)
			}
		})
	}
}

// render prints info as the kernel does, in an order of its own.
func render(info *vmcoreinfo.Info) []byte {
	var b strings.Builder
	fmt.Fprintf(&b, "OSRELEASE=%s\n", info.Release)
	if info.BuildID != nil {
		fmt.Fprintf(&b, "BUILD-ID=%x\n", info.BuildID)
	}
	fmt.Fprintf(&b, "PAGESIZE=%d\nKERNELOFFSET=%x\nCRASHTIME=%d\n", info.PageSize, info.KernelOffset, info.CrashTime)
	unsigned := func(format string, m map[string]uint64) {
		for _, name := range slices.Sorted(maps.Keys(m)) {
			fmt.Fprintf(&b, format, name, m[name])
		}
	}
	unsigned("SYMBOL(%s)=%x\n", info.Symbols)
	unsigned("OFFSET(%s)=%d\n", info.Offsets)
	unsigned("SIZE(%s)=%d\n", info.Sizes)
	unsigned("LENGTH(%s)=%d\n", info.Lengths)
	for _, name := range slices.Sorted(maps.Keys(info.Numbers)) {
		fmt.Fprintf(&b, "NUMBER(%s)=%d\n", name, info.Numbers[name])
	}
	return []byte(b.String())
}

func FuzzParse(f *testing.F) {
	f.Add(debian(f)[:400]) // all of it would take the minimizer minutes
	f.Add([]byte("OSRELEASE=6.1\r\nSIZE(x)=1\x00\x00garbage"))
	f.Add([]byte("OSRELEASE=6.1\nNUMBER(x)=0xffffc90000000000\nunknown\nSIZE(x"))
	f.Fuzz(func(t *testing.T, text []byte) {
		info, err := vmcoreinfo.Parse(text)
		if err != nil {
			if info != nil {
				t.Fatalf("error %v with %+v", err, info)
			}
			return
		}
		again := render(info)
		if len(again) > vmcoreinfo.MaxText {
			return // decimal is longer than hexadecimal
		}
		got, err := vmcoreinfo.Parse(again)
		if err != nil {
			t.Fatalf("can't parse %q again: %v", again, err)
		}
		got.Text, got.Warnings = info.Text, info.Warnings
		if diff := cmp.Diff(info, got); diff != "" {
			t.Fatalf("round trip (-want +got):\n%s", diff)
		}
	})
}
