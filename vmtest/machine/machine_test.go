package machine

import (
	"context"
	"encoding/json"
	"errors"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/warmcore/warmcore/pkg/phys"
)

func TestArgv(t *testing.T) {
	p := paths{sockets: "/s", ram: "/ram", console: "/log"}
	for _, tt := range []struct {
		name string
		o    Options
		want []string // in this order, among others
	}{
		{"payload", Options{Memory: 2 * phys.GiB, CPUs: 2, Kernel: "vmlinux"}, []string{
			"qemu-system-x86_64", "-nic", "none", "-accel", "tcg,thread=multi", "-cpu", "max,la57=off", "-smp", "2", "-m", "2048M",
			"memory-backend-file,id=ram,share=on,size=2048M,mem-path=/ram",
			"-action", "reboot=shutdown,shutdown=pause,panic=pause,watchdog=reset",
			"virtserialport,chardev=events,name=org.warmcore.events", "virtserialport,chardev=payload,name=org.warmcore.payload",
			"-kernel", "vmlinux",
		}},
		{"firmware, disk, KVM", Options{Memory: phys.MiB, CPUs: 1, Accel: KVM, QEMU: []string{"q", "-L", "d"}, BIOS: "rom", Disk: "d", Args: []string{"-x"}}, []string{
			"q", "-L", "d", "-accel", "kvm", "-cpu", "host", "-bios", "rom", "-smp", "1", "-m", "1M",
			"if=none,id=disk,format=raw,cache=unsafe,discard=unmap,file=d", "-x",
		}},
		{"normal kernel", Options{Memory: phys.MiB, CPUs: 1, CPU: "qemu64", Kernel: "k", Initrd: "i", Append: "a b"}, []string{
			"-cpu", "qemu64", "-kernel", "k", "-initrd", "i", "-append", "a b",
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := tt.o.argv(p)
			if err != nil {
				t.Fatal(err)
			}
			rest := got
			for _, w := range tt.want {
				i := slices.Index(rest, w)
				if i < 0 {
					t.Fatalf("no %q in its place in %q", w, got)
				}
				rest = rest[i+1:]
			}
			if slices.Contains(got, "-no-reboot") {
				t.Error("-no-reboot: the machine would never really reset")
			}
		})
	}
	for _, tt := range []struct {
		name string
		o    Options
	}{
		{"no memory", Options{CPUs: 1, Kernel: "k"}},
		{"half a mebibyte", Options{Memory: phys.MiB / 2, CPUs: 1, Kernel: "k"}},
		{"no CPU", Options{Memory: phys.MiB, Kernel: "k"}},
		{"nothing to start", Options{Memory: phys.MiB, CPUs: 1}},
		{"initrd without kernel", Options{Memory: phys.MiB, CPUs: 1, BIOS: "b", Initrd: "i"}},
		{"comma", Options{Memory: phys.MiB, CPUs: 1, Kernel: "a,b"}},
		{"accelerator", Options{Memory: phys.MiB, CPUs: 1, Kernel: "k", Accel: "xen"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got, err := tt.o.argv(p); err == nil || got != nil {
				t.Errorf("argv = %q, %v; want an error", got, err)
			}
		})
	}
}

func TestOffset(t *testing.T) {
	for _, tt := range []struct {
		name         string
		memory, addr uint64
		want         uint64
		ok           bool
	}{
		{"first", phys.GiB, 0, 0, true},
		{"last", phys.GiB, phys.GiB - 1, phys.GiB - 1, true},
		{"behind", phys.GiB, phys.GiB, 0, false},
		{"largest in one piece", lowIfSplit - phys.MiB, lowIfSplit - phys.MiB - 1, lowIfSplit - phys.MiB - 1, true},
		{"smallest in two pieces, end of low", lowIfSplit, 2*phys.GiB - 1, 2*phys.GiB - 1, true},
		{"smallest in two pieces, hole", lowIfSplit, 2 * phys.GiB, 0, false},
		{"hole's end", lowIfSplit, 4*phys.GiB - 1, 0, false},
		{"high", lowIfSplit, 4 * phys.GiB, 2 * phys.GiB, true},
		{"6 GiB, last", 6 * phys.GiB, 8*phys.GiB - 1, 6*phys.GiB - 1, true},
		{"6 GiB, behind", 6 * phys.GiB, 8 * phys.GiB, 0, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got, ok := AMD64.Layout(tt.memory).Offset(tt.addr); got != tt.want || ok != tt.ok {
				t.Errorf("Offset(%#x, %#x) = %#x, %v; want %#x, %v", tt.memory, tt.addr, got, ok, tt.want, tt.ok)
			}
		})
	}
}

func TestFailure(t *testing.T) {
	m := &Machine{Timeline: newTimeline(), dir: "/logs", opts: Options{Reproduce: "run this"}}
	for i := range 2 * consoleLines {
		m.Timeline.add(Event{Source: FromConsole, Text: strings.Repeat("x", i)})
	}
	if err := m.fail("nothing", nil); err != nil {
		t.Errorf("fail of no error: %v", err)
	}
	cause := errors.New("cause")
	err := m.fail("wait for rain", cause)
	var f *Failure
	if !errors.As(err, &f) || !errors.Is(err, cause) {
		t.Fatalf("%v (%T): want a Failure with its cause", err, err)
	}
	if len(f.Console) != consoleLines || !strings.HasSuffix(f.Console[consoleLines-1], strings.Repeat("x", 2*consoleLines-1)) {
		t.Errorf("console of the failure: %q; want the last %d lines", f.Console, consoleLines)
	}
	for _, want := range []string{"wait for rain: cause\n", "last 30 console lines", "logs: /logs", "run again: run this"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("message has no %q:\n%v", want, err)
		}
	}
	if again := m.fail("outer", err); !errors.Is(again, err) {
		t.Errorf("fail of a Failure: %v, want the same", again)
	}
}

func TestTimelineWait(t *testing.T) {
	tl, lost := newTimeline(), make(chan struct{})
	named := func(name string) func(Event) bool { return func(e Event) bool { return e.Name == name } }
	tl.Note("a", "")
	tl.Note("b", "")
	if e, next, err := tl.wait(t.Context(), lost, 0, named("b")); err != nil || e.Name != "b" || next != 2 {
		t.Errorf("wait for b = %+v, %d, %v", e, next, err)
	}
	go tl.Note("later", "")
	if _, _, err := tl.wait(t.Context(), lost, 2, named("later")); err != nil {
		t.Errorf("wait for an event to come: %v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
	defer cancel()
	if _, _, err := tl.wait(ctx, lost, 0, named("never")); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("wait beyond the deadline: %v", err)
	}
	tl.Note("last words", "")
	close(lost)
	if _, _, err := tl.wait(t.Context(), lost, 0, named("last words")); err != nil {
		t.Errorf("wait for what came before the end: %v", err)
	}
	if _, _, err := tl.wait(t.Context(), lost, 0, named("never")); !errors.Is(err, errLost) {
		t.Errorf("wait behind the end: %v, want %v", err, errLost)
	}
}

func TestQMP(t *testing.T) {
	ours, theirs := net.Pipe()
	var events []string
	q := newQMP(ours, func(name string, _ json.RawMessage) { events = append(events, name) })
	go func() {
		defer theirs.Close()
		in := json.NewDecoder(theirs)
		for _, reply := range []string{
			`{"return":{"status":"paused"},"id":1}`,
			`{"error":{"class":"GenericError","desc":"no"},"id":2}`,
		} {
			var cmd map[string]any
			if in.Decode(&cmd) != nil {
				return
			}
			theirs.Write([]byte(`{"event":"STOP","data":{}}` + "\n" + reply + "\n"))
		}
	}()
	var status struct{ Status string }
	if err := q.do(t.Context(), "query-status", nil, &status); err != nil || status.Status != "paused" {
		t.Errorf("query-status: %+v, %v", status, err)
	}
	if err := q.do(t.Context(), "wrong", nil, nil); err == nil || err.Error() != "QMP wrong: GenericError: no" {
		t.Errorf("a command that fails: %v", err)
	}
	if err := q.do(t.Context(), "late", nil, nil); err == nil {
		t.Error("a command after the end: no error")
	}
	<-q.ended
	if diff := cmp.Diff([]string{"STOP", "STOP"}, events); diff != "" {
		t.Errorf("events: -want +got\n%s", diff)
	}
}

func TestParseMemInfo(t *testing.T) {
	got, err := parseMemInfo("MemTotal:        1000 kB\nHugePages_Total:       3\n")
	want := map[string]uint64{"MemTotal": 1000, "HugePages_Total": 3}
	if diff := cmp.Diff(want, got); err != nil || diff != "" {
		t.Errorf("parseMemInfo: %v, -want +got\n%s", err, diff)
	}
	for _, bad := range []string{"MemTotal 5 kB\n", "MemTotal: x kB\n", "MemTotal:\n"} {
		if got, err := parseMemInfo(bad); err == nil || got != nil {
			t.Errorf("parseMemInfo(%q) = %v, %v; want an error", bad, got, err)
		}
	}
}
