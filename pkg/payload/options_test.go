package payload

import (
	"fmt"
	"io"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/warmcore/warmcore/pkg/phys"
	"github.com/warmcore/warmcore/pkg/plan"
	"github.com/warmcore/warmcore/pkg/verdict"
)

func TestParseCmdline(t *testing.T) {
	tests := []struct {
		name    string
		cmdline string
		change  func(o *Options) // of the defaults
		warning string
	}{
		{"nothing", "console=ttyS0 quiet\n", func(*Options) {}, ""},
		{"window", "warmcore.window=128M@384M,2M@1M", func(o *Options) { o.Window = phys.NewSet(span(mib, 3*mib), span(384*mib, 512*mib)) }, ""},
		{"handoff", "warmcore.handoff=4M@0x40000000", func(o *Options) { o.Handoff = span(gib, gib+4*mib) }, ""},
		{"lost", "warmcore.lost=1M@2G,1M@3G", func(o *Options) { o.Lost = phys.NewSet(span(2*gib, 2*gib+mib), span(3*gib, 3*gib+mib)) }, ""},
		{"sizes", "warmcore.bootmem=1G warmcore.block=2G", func(o *Options) { o.BootMemory, o.BlockSize = gib, 2*gib }, ""},
		{"boot", "warmcore.boot=/boot/vmlinuz-6.1", func(o *Options) { o.Boot = "/boot/vmlinuz-6.1" }, ""},
		{"boot by title", `warmcore.boot="Debian GNU/Linux" quiet`, func(o *Options) { o.Boot = "Debian GNU/Linux" }, ""},
		{"all of it in quotes", `"warmcore.boot=Debian GNU/Linux"`, func(o *Options) { o.Boot = "Debian GNU/Linux" }, ""},
		{"for init", "quiet -- warmcore.off", func(*Options) {}, ""},
		{"in another's quotes", `x="y warmcore.off -- " warmcore.block=1G`, func(o *Options) { o.BlockSize = gib }, ""},
		{"with a dash", "warmcore.max-captures=1", func(o *Options) { o.Limits.Captures = 1 }, ""},
		{"limits", "warmcore.max_captures=0 warmcore.max_attempts=1", func(o *Options) { o.Limits = verdict.Limits{Captures: 0, Attempts: 1} }, ""},
		{"owner's", `warmcore.append="nr_cpus=4 quiet" warmcore.remove=a,b warmcore.append=x="y z" warmcore.remove=c`, func(o *Options) {
			o.Owner = plan.Owner{Remove: []string{"a", "b", "c"}, Append: `nr_cpus=4 quiet x="y z"`}
		}, ""},
		{"off", "warmcore.off", func(o *Options) { o.Off = true }, ""},
		{"the last one counts", "warmcore.block=1G warmcore.block=256M", func(o *Options) { o.BlockSize = 256 * mib }, ""},
		{"another's", "warmcorex.off xwarmcore.off", func(*Options) {}, ""},
		{"unknown", "warmcore.windows=1M@1M", func(*Options) {}, "parameter warmcore.windows=1M@1M: no such parameter; ignored"},
		{"bad window keeps the default", "warmcore.window=128M@384M,x", func(*Options) {}, `parameter warmcore.window=128M@384M,x: range "x"`},
		{"bad handoff keeps the default", "warmcore.handoff=2M", func(*Options) {}, `range "2M": want SIZE@START`},
		{"bad lost", "warmcore.lost=", func(*Options) {}, `range ""`},
		{"bad bootmem", "warmcore.bootmem=lots", func(*Options) {}, `size "lots"`},
		{"bad block", "warmcore.block=-1", func(*Options) {}, `size "-1"`},
		{"bad captures", "warmcore.max_captures=many", func(*Options) {}, "want a number of dumps an hour"},
		{"captures beyond 16 bits", "warmcore.max_captures=65536", func(*Options) {}, "want a number of dumps an hour"},
		{"no attempt", "warmcore.max_attempts=0", func(*Options) {}, "at least 1"},
		{"a good one behind a bad one", "warmcore.block=x warmcore.off", func(o *Options) { o.Off = true }, "warmcore.block=x"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			want := Options{Limits: verdict.Limits{Captures: 5, Attempts: 3}}
			tt.change(&want)
			got, warnings := ParseCmdline(tt.cmdline)
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("options (-want +got):\n%s", diff)
			}
			if all := strings.Join(warnings, "\n"); !strings.Contains(all, tt.warning) || (tt.warning == "") != (len(warnings) == 0) {
				t.Errorf("warnings %q, want %q", warnings, tt.warning)
			}
		})
	}
}

func TestLogger(t *testing.T) {
	var console strings.Builder
	l := NewLogger(&console, func() time.Duration { return 1234567 * time.Microsecond })
	log := slog.New(l)
	log.Debug("not shown")
	log.Info("memory plan", "window", "128M", "n", 3)
	log.Warn("clock", "error", fmt.Errorf("one\ntwo"), "so", "no limit")
	log.Error("disks")
	log.With("disk", "sda").WithGroup("entry").With("title", "Debian").Info("try", "kernel", "/vmlinuz")
	const want = `[    1.234567] warmcore: memory plan, window: 128M, n: 3
[    1.234567] warmcore: warn: clock, error: one; two -> no limit
[    1.234567] warmcore: error: disks
[    1.234567] warmcore: try, disk: sda, entry.title: Debian, entry.kernel: /vmlinuz
`
	if diff := cmp.Diff(want, console.String()); diff != "" {
		t.Errorf("console (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(want, string(l.Text())); diff != "" {
		t.Errorf("text (-want +got):\n%s", diff)
	}
}

// TestLoggerIsBounded must not eat the payload's memory.
func TestLoggerIsBounded(t *testing.T) {
	l := NewLogger(io.Discard, func() time.Duration { return 0 })
	log := slog.New(l)
	line := strings.Repeat("x", 1000)
	for range 3 * maxLogText / len(line) {
		log.Info(line)
	}
	if n := len(l.Text()); n < maxLogText || n > maxLogText+2*len(line) {
		t.Errorf("%d bytes are kept, want about %d", n, maxLogText)
	}
}

// Whatever the command line, the options make sense by themselves: what the
// plan relies on it checks, what the payload relies on is here.
func FuzzParseCmdline(f *testing.F) {
	f.Add("console=ttyS0 warmcore.window=128M@384M,2M@1M warmcore.handoff=4M@0x40000000 warmcore.lost=1M@2G")
	f.Add("warmcore.bootmem=1G warmcore.block=2G warmcore.boot=/boot/vmlinuz warmcore.max_captures=0 warmcore.max_attempts=1 warmcore.off")
	f.Add("warmcore.window= warmcore.window=18446744073709551615@1 warmcore.handoff=1@18446744073709551615 warmcore.block=-1")
	f.Fuzz(func(t *testing.T, cmdline string) {
		o, warnings := ParseCmdline(cmdline)
		if len(warnings) > strings.Count(cmdline, "warmcore.") {
			t.Errorf("%d warnings: %q", len(warnings), warnings)
		}
		for _, s := range []phys.Set{o.Window, o.Lost} {
			if diff := cmp.Diff(phys.NewSet(s...), s); diff != "" {
				t.Errorf("not a set (-want +got):\n%s", diff)
			}
		}
		if o.Handoff.End < o.Handoff.Start || o.Limits.Attempts == 0 {
			t.Errorf("options %+v", o)
		}
	})
}
