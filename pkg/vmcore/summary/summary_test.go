package summary_test

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/warmcore/warmcore/pkg/printk"
	"github.com/warmcore/warmcore/pkg/printk/printktest"
	"github.com/warmcore/warmcore/pkg/vmcore"
	"github.com/warmcore/warmcore/pkg/vmcore/dumpfile"
	"github.com/warmcore/warmcore/pkg/vmcore/kdump"
	"github.com/warmcore/warmcore/pkg/vmcore/summary"
	"github.com/warmcore/warmcore/pkg/vmcore/vmcoretest"
)

// The kernel's image lies at physical 16 MiB: the log, the top page table,
// and the two below that map the image by a page of 2 MiB.
const kernel = `
level 31
status zlib
cpu 42
cpu 0
0x1000000 zlib
0x1001000 zlib
0x1002000 zlib
0x1003000 zlib
0x1004000 excluded
0x2000000-0x2003000 raw random 1
`

const info = printktest.VMCoreInfo + `BUILD-ID=0123456789abcdef
CRASHTIME=1700000000
PAGESIZE=4096
SYMBOL(swapper_pg_dir)=ffffffff81001000
SYMBOL(_stext)=ffffffff81000000
NUMBER(phys_base)=0
`

// crashed returns a dump whose log has messages.
func crashed(t testing.TB, messages ...string) *vmcoretest.Spec {
	t.Helper()
	s := vmcoretest.Parse(t, kernel)
	s.VMCOREINFO = info
	k := printktest.New()
	for i, m := range messages {
		k.Print(uint64(i), m, printktest.Finalized)
	}
	copy(s.Pages[0].Data, k.Memory)
	for _, e := range []struct{ page, index, entry uint64 }{
		{1, 511, 0x1002003},
		{2, 510, 0x1003003},
		{3, 8, 0x1000083},
	} {
		binary.LittleEndian.PutUint64(s.Pages[e.page].Data[e.index*8:], e.entry)
	}
	return s
}

func of(t *testing.T, file []byte) *summary.Summary {
	t.Helper()
	d, err := dumpfile.New(bytes.NewReader(file), int64(len(file)))
	if err != nil {
		t.Fatal(err)
	}
	return summary.Of(d)
}

func TestKdump(t *testing.T) {
	got := of(t, crashed(t, "booting", "BUG: bad address", "more", "Kernel panic - not syncing: Oops").Kdump(t))
	level, held, when := 31, uint64(7*4096), time.Unix(1700000000, 0).UTC()
	want := &summary.Summary{
		Schema: 1, Format: "kdump", Compression: "zlib", Level: &level,
		Release: "6.12.0-test", Machine: "x86_64", Node: "test", BuildID: "0123456789abcdef",
		Crashed: &when, Created: &when,
		Cause: "BUG: bad address", Panic: "Kernel panic - not syncing: Oops", Messages: 4,
		CPUs: 2, Registers: []summary.CPU{{PID: 42, PC: "0x0", SP: "0x0"}, {PID: 0, PC: "0x0", SP: "0x0"}},
		PageSize: 4096, BlockSize: 4096, Memory: []summary.Range{{Start: "0x1000000", Bytes: 5 * 4096}, {Start: "0x2000000", Bytes: 3 * 4096}},
		MemoryBytes: 8 * 4096, HeldBytes: &held, Unreadable: []summary.Range{}, Warnings: []string{},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("summary (-want +got):\n%s", diff)
	}
	wantLines := []string{
		"format     kdump, compression zlib, dump level 31",
		"kernel     6.12.0-test, x86_64, on test",
		"build id   0123456789abcdef",
		"crashed    2023-11-14 22:13:20 UTC",
		"created    2023-11-14 22:13:20 UTC",
		"cause      BUG: bad address",
		"panic      Kernel panic - not syncing: Oops",
		"log        4 messages",
		"CPUs       2, 2 with registers",
		"           pid 42      pc 0x0  sp 0x0",
		"           pid 0       pc 0x0  sp 0x0",
		"memory     32 KiB in 2 ranges",
		"           20 KiB from 0x1000000 on",
		"           12 KiB from 0x2000000 on",
		"pages      7 held, 1 not, of 4 KiB: 28 KiB",
	}
	if diff := cmp.Diff(wantLines, got.Lines()); diff != "" {
		t.Errorf("lines (-want +got):\n%s", diff)
	}
}

func TestELF(t *testing.T) {
	s := crashed(t, "watchdog: BUG: soft lockup")
	s.Loads = []vmcore.Load{{Virt: 0xffffffff81000000, Phys: 0x1000000, Size: 0x5000}}
	got := of(t, s.ELF(t))
	if got.Format != "elf" || got.Level != nil || got.Created != nil || got.Cause != "watchdog: BUG: soft lockup" || got.Panic != "" || len(got.Warnings) > 0 {
		t.Errorf("summary %+v", got)
	}
}

// TestBlocks: a file of QEMU's, whose blocks are not the kernel's pages.
func TestBlocks(t *testing.T) {
	s := vmcoretest.Parse(t, "machine aarch64\npagesize 65536\nvmcoreinfo OSRELEASE=6.12\nvmcoreinfo PAGESIZE=4096\n0x40000000-0x40040000 raw random 1\n0x40040000 excluded")
	got := of(t, s.Kdump(t))
	if got.PageSize != 4096 || got.BlockSize != 65536 || *got.HeldBytes != 4*65536 {
		t.Errorf("summary %+v", got)
	}
	if all, want := strings.Join(got.Lines(), "\n"), "pages      4 held, 1 not, of 64 KiB: 256 KiB; the kernel's are of 4 KiB\n"; !strings.Contains(all, want) {
		t.Errorf("lines %s\nwant %s", all, want)
	}
}

func TestWithoutParts(t *testing.T) {
	tests := []struct {
		name    string
		change  func(*vmcoretest.Spec)
		warning string
		line    string
	}{
		{"noVMCOREINFO", func(s *vmcoretest.Spec) { s.VMCOREINFO = "" }, "without VMCOREINFO the log", "kernel     6.1.0-test, x86_64, on test"},
		{"brokenVMCOREINFO", func(s *vmcoretest.Spec) { s.VMCOREINFO = "garbage\n" }, "OSRELEASE: missing", "kernel     6.1.0-test, x86_64, on test"},
		{"noLog", func(s *vmcoretest.Spec) { s.VMCOREINFO = strings.Replace(info, "SYMBOL(prb)", "SYMBOL(xrb)", 1) }, "describes no log", "crashed    2023-11-14 22:13:20 UTC"},
		{"noPageTables", func(s *vmcoretest.Spec) { s.Pages[1].Stored = vmcoretest.Excluded }, "01001000-01001fff is excluded", "memory     32 KiB in 2 ranges"},
		{"notMapped", func(s *vmcoretest.Spec) { clear(s.Pages[3].Data) }, "not mapped", "memory     32 KiB in 2 ranges"},
		{"unknownMachine", func(s *vmcoretest.Spec) { s.Machine, s.VMCOREINFO = "sparc64", "" }, "registers of CPU 0", "kernel     6.1.0-test, sparc64, on test"},
		{"incomplete", func(s *vmcoretest.Spec) { s.Status |= kdump.FlagIncomplete }, "was not finished", "format     kdump, compression zlib, dump level 31, INCOMPLETE"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := crashed(t, "hello")
			tt.change(s)
			got := of(t, s.Kdump(t))
			if !strings.Contains(strings.Join(got.Warnings, "\n"), tt.warning) {
				t.Errorf("warnings %q, want one with %q", got.Warnings, tt.warning)
			}
			if !strings.Contains(strings.Join(got.Lines(), "\n"), tt.line) {
				t.Errorf("lines %q, want %q", got.Lines(), tt.line)
			}
		})
	}
}

func TestCause(t *testing.T) {
	at := func(seconds uint64, text string) printk.Record {
		return printk.Record{Nanos: seconds * 1e9, Text: []byte(text)}
	}
	tests := []struct {
		name         string
		records      []printk.Record
		cause, fatal string
	}{
		{"nothing", []printk.Record{at(1, "all is well"), at(2, "no BUG: here")}, "", ""},
		{"oops", []printk.Record{at(5, "BUG: null\nmore"), at(5, "Oops: 0002"), at(6, "Kernel panic - not syncing: Fatal"), at(6, "Oops: again")},
			"BUG: null", "Kernel panic - not syncing: Fatal"},
		{"olderIncident", []printk.Record{at(5, "BUG: first"), at(500, "BUG: second"), at(505, "Oops: x"), at(512, "Oops: y"), at(512, "Kernel panic - not syncing: z")},
			"BUG: second", "Kernel panic - not syncing: z"},
		{"watchdogReset", []printk.Record{at(5, "BUG: first"), at(500, "rcu: INFO: stall")}, "rcu: INFO: stall", ""},
		{"hardLockup", []printk.Record{at(1, "NMI watchdog: Perf NMI watchdog permanently disabled"), at(500, "watchdog: Watchdog detected hard LOCKUP on cpu 3")},
			"watchdog: Watchdog detected hard LOCKUP on cpu 3", ""},
		{"panicAlone", []printk.Record{at(5, "Kernel panic - not syncing: VFS")}, "", "Kernel panic - not syncing: VFS"},
		{"clockBackwards", []printk.Record{at(500, "BUG: first"), at(5, "Oops: second")}, "BUG: first", ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			cause, fatal := summary.Cause(printk.Log{Records: tt.records})
			if cause != tt.cause || fatal != tt.fatal {
				t.Errorf("cause %q, panic %q, want %q, %q", cause, fatal, tt.cause, tt.fatal)
			}
		})
	}
}

// What a hostile dump says must not reach the terminal as it is.
func TestClean(t *testing.T) {
	got := of(t, crashed(t, "Kernel panic - not syncing: \x1b[2J\u202e\x07x\xff").Kdump(t))
	if want := "Kernel panic - not syncing: ?[2J??x?"; got.Panic != want {
		t.Errorf("panic %q, want %q", got.Panic, want)
	}
	file := bytes.Replace(crashed(t).Kdump(t), []byte("6.1.0-test"), []byte("\x1b]0;title\x07"), 1)
	if got := of(t, file).Lines()[1]; strings.ContainsAny(got, "\x1b\x07") {
		t.Errorf("line %q", got)
	}
}

func TestPart(t *testing.T) {
	s := vmcoretest.Parse(t, "0x0-0x4000 raw\n")
	for i, want := range []string{"part       of a split dump: 12 KiB from 0x0 on", "part       of a split dump: 0 B from 0x3000 on"} {
		if got := of(t, s.Parts(t, 0, 3, 3)[i]).Lines(); got[1] != want {
			t.Errorf("lines %q, want %q", got, want)
		}
	}
}

func TestManyCPUsAndRanges(t *testing.T) {
	var text strings.Builder
	for range 10 {
		text.WriteString("cpu 1\n")
	}
	text.WriteString("pagesize 16384\n")
	for _, at := range []string{"0x8000", "0x10000", "0x18000", "0x20000", "0x28000", "0x30000", "0x38000", "0x40000", "0x48000"} {
		text.WriteString(at + " raw\n")
	}
	lines := strings.Join(of(t, vmcoretest.Parse(t, text.String()).Kdump(t)).Lines(), "\n")
	for _, want := range []string{"and 2 more\nmemory", "and 1 more\npages"} {
		if !strings.Contains(lines, want) {
			t.Errorf("lines without %q:\n%s", want, lines)
		}
	}
}

// FuzzOf: a summary of whatever opens can be printed, and is whole JSON.
func FuzzOf(f *testing.F) {
	s := crashed(f, "hello", "Kernel panic - not syncing: x")
	f.Add(s.Kdump(f))
	f.Add(s.ELF(f))
	f.Fuzz(func(t *testing.T, b []byte) {
		d, err := dumpfile.New(bytes.NewReader(b), int64(len(b)))
		if err != nil {
			return
		}
		s := summary.Of(d)
		if _, err := json.Marshal(s); err != nil {
			t.Fatal(err)
		}
		for _, l := range s.Lines() {
			if strings.ContainsFunc(l, func(r rune) bool { return r < ' ' || r == 0x7f }) {
				t.Fatalf("line %q", l)
			}
		}
	})
}

func TestUnreadable(t *testing.T) {
	s := vmcoretest.Parse(t, "0x0 raw random 1\n0x1000-0x3000 unreadable\n0x3000 excluded\n0x4000 unreadable")
	b := s.Kdump(t)
	b = append(b, bytes.TrimSpace(vmcore.UnreadableText(nil, 12, 4096))...)
	size := binary.LittleEndian.Uint64(b[4096+72:]) // size_eraseinfo
	b = vmcoretest.Patch(t, b, 4096+72, 8, size+uint64(len("unreadable more 12")))
	got := of(t, b)
	want := []summary.Range{{Start: "0x1000", Bytes: 8192}, {Start: "0x4000", Bytes: 4096}}
	if diff := cmp.Diff(want, got.Unreadable); diff != "" || got.MoreUnreadable != 12 || *got.HeldBytes != 4096 {
		t.Errorf("%d more, %d bytes held, unreadable (-want +got):\n%s", got.MoreUnreadable, *got.HeldBytes, diff)
	}
	lines := strings.Join(got.Lines(), "\n")
	for _, want := range []string{"unreadable 12 KiB in 2 ranges\n           8 KiB from 0x1000 on\n", "unreadable and 12 pages that are not named"} {
		if !strings.Contains(lines, want) {
			t.Errorf("lines are\n%s\nwant %q", lines, want)
		}
	}
}
