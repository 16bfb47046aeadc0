package verdict

import (
	"errors"
	"fmt"
	"math"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/warmcore/warmcore/pkg/kernelmap"
	"github.com/warmcore/warmcore/pkg/memmap"
	"github.com/warmcore/warmcore/pkg/phys"
	"github.com/warmcore/warmcore/pkg/plan"
	"github.com/warmcore/warmcore/pkg/registration"
)

var (
	thisNonce  = [16]byte{1, 2, 3}
	otherNonce = [16]byte{9}
	thisHash   = [32]byte{0xab, 0xcd, 0xef, 0x01}
)

const now = int64(1_800_000_000)

func size(start, n uint64) phys.Range { return phys.Range{Start: start, End: start + n} }

// input is a machine of 4 GiB; tests change it.
func input() plan.Input {
	const mib = phys.MiB
	return plan.Input{
		Arch: plan.AMD64,
		Firmware: memmap.Map{Entries: []memmap.Entry{
			{Range: size(0, 0x9f000), Kind: memmap.RAM},
			{Range: size(mib, 2047*mib), Kind: memmap.RAM},
			{Range: size(4096*mib, 2048*mib), Kind: memmap.RAM},
		}},
		Policy: plan.Policy{Window: phys.Set{size(384*mib, 128*mib)}, Handoff: size(512*mib, 2*mib)},
	}
}

func made(t testing.TB, in plan.Input) *plan.Plan {
	t.Helper()
	p, err := plan.Make(in)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// TestRanges: the registration calls each part as the plan does.
func TestRanges(t *testing.T) {
	in := input()
	in.Overwritten = phys.Set{size(4096*phys.MiB, phys.PageSize)}
	p := made(t, in)
	ranges := Ranges(p)
	for i, x := range p.Parts() {
		if got := ranges[i]; got.Range != x.Range || got.Role.String() != x.Role.String() {
			t.Errorf("%v %v is registered as %v %v", x.Role, x.Range, got.Role, got.Range)
		}
	}
	for role, name := range roles {
		if role.String() != name.String() {
			t.Errorf("role %v is registered as %v", role, name)
		}
	}
}

// thisPlan is today's plan and, unless a test says otherwise, the crashed
// kernel's.
var thisPlan = func() *plan.Plan {
	p, err := plan.Make(input())
	if err != nil {
		panic(err)
	}
	return p
}()

// armed returns a situation in which a dump is taken; tests change it.
func armed() Situation {
	return Situation{
		Block: &registration.Block{
			State:    registration.Armed,
			Identity: registration.Identity{Nonce: thisNonce},
			MapHash:  thisHash,
			Plan:     Ranges(thisPlan),
		},
		MapHash: thisHash,
		Plan:    thisPlan,
		Now:     now,
		Limits:  DefaultLimits,
	}
}

func record(nonce [16]byte) *registration.Record {
	return &registration.Record{Nonce: nonce, Flags: registration.RecordPanic, CPU: 7, Expected: 4, Flushed: 3}
}

// TestDecideStates asks of every state with every kind of crash record, after
// so many capture boots, what a reset leads to.
func TestDecideStates(t *testing.T) {
	const (
		early  = "capture early"
		panics = "capture panic"
		reset  = "capture reset"
		again  = "capture none copied"
		plain  = "plain prearm"
	)
	records := []struct {
		name   string
		record *registration.Record
	}{{"no record", nil}, {"its record", record(thisNonce)}, {"a stale record", record(otherNonce)}}
	tests := []struct {
		state    registration.State
		copied   bool
		attempts uint32
		// By records: none, its own, a stale one.
		want [3]string
		why  string // of the first
	}{
		{registration.Empty, false, 0, [3]string{plain, plain, plain}, "nothing registered"},
		{registration.Disarmed, false, 0, [3]string{plain, plain, plain}, "clean shutdown: disarmed"},
		{registration.Disarmed, true, 1, [3]string{plain, plain, plain}, "clean shutdown: disarmed"},
		{registration.Saved, true, 1, [3]string{plain, plain, plain}, "reset while saved: that dump is complete, memory of this crash is not"},
		{registration.Releasing, true, 1, [3]string{plain, plain, plain}, "reset while releasing: that dump is complete, memory of this crash is not"},
		{registration.State(7), false, 0, [3]string{plain, plain, plain}, "registration in unknown state state(7)"},
		{registration.State(math.MaxUint32), true, 0, [3]string{plain, plain, plain}, "registration in unknown state state(4294967295)"},

		{registration.Prearmed, false, 0, [3]string{early + " new", early + " new", early + " new"}, "reset before the agent had armed: early crash or reset"},
		{registration.Prearmed, false, 1, [3]string{early, early, early}, "reset before the agent had armed: early crash or reset"},
		{registration.Prearmed, false, 2, [3]string{early, early, early}, "reset before the agent had armed: early crash or reset"},
		{registration.Prearmed, false, 3, [3]string{plain, plain, plain}, "gave the dump up after 3 attempts to copy boot memory"},

		{registration.Armed, false, 0, [3]string{reset + " new", panics + " new", reset + " new"}, "armed, and reset without a crash record: watchdog or reset"},
		{registration.Armed, false, 1, [3]string{reset, panics, reset}, "armed, and reset without a crash record: watchdog or reset"},
		{registration.Armed, false, 2, [3]string{reset, panics, reset}, "armed, and reset without a crash record: watchdog or reset"},
		{registration.Armed, false, 3, [3]string{plain, plain, plain}, "gave the dump up after 3 attempts to copy boot memory"},
		{registration.Armed, false, math.MaxUint32, [3]string{plain, plain, plain}, "gave the dump up after 4294967295 attempts to copy boot memory"},

		{registration.Capturing, true, 1, [3]string{again, again, again}, "the dump was not saved in capture boot 1, it is offered again"},
		{registration.Capturing, true, 2, [3]string{again, again, again}, "the dump was not saved in capture boot 2, it is offered again"},
		{registration.Capturing, true, 3, [3]string{plain, plain, plain}, "gave the dump up after 3 capture boots in which it was not saved"},
		{registration.Capturing, false, 1, [3]string{"capture none", "capture none", "capture none"}, "the dump was not saved in capture boot 1, it is offered again"},
	}
	for _, tt := range tests {
		for i, r := range records {
			t.Run(fmt.Sprintf("%v copied %v after %d with %s", tt.state, tt.copied, tt.attempts, r.name), func(t *testing.T) {
				s := armed()
				s.Block.State = tt.state
				s.Block.Capture.Copied = tt.copied
				s.Block.Counters.Attempts = tt.attempts
				s.Record = r.record
				d := Decide(s)
				if got := words(d); got != tt.want[i] {
					t.Errorf("got %s, want %s (%s)", got, tt.want[i], d.Why)
				}
				if i == 0 && d.Why != tt.why {
					t.Errorf("why: got %q, want %q", d.Why, tt.why)
				}
				if d.Why == "" {
					t.Error("no reason is given")
				}
			})
		}
	}
}

// words says what is in a decision besides its sentence.
func words(d Decision) string {
	out := []string{d.Kind.String()}
	if d.Kind == plan.Capture || d.Reason != 0 {
		out = append(out, d.Reason.String())
	}
	for _, f := range []struct {
		set  bool
		word string
	}{{d.Copied, "copied"}, {d.Prearm, "prearm"}, {d.NewDump, "new"}} {
		if f.set {
			out = append(out, f.word)
		}
	}
	return strings.Join(out, " ")
}

func TestDecide(t *testing.T) {
	times := func(n int, at int64) (c [8]int64) {
		for i := range n {
			c[i] = at
		}
		return c
	}
	tests := []struct {
		name   string
		change func(s *Situation)
		want   string
		why    string
	}{
		{"armed", func(*Situation) {}, "capture reset new", "watchdog or reset"},
		{"panic", func(s *Situation) { s.Record = record(thisNonce) }, "capture panic new", "panic on the CPU with APIC ID 7, caches of 3 of 4 CPUs flushed"},
		{"panic on arm64", func(s *Situation) {
			p := *thisPlan
			p.Arch.CPUNumber = plan.ARM64.CPUNumber
			s.Record, s.Plan = record(thisNonce), &p
		}, "capture panic new", "panic on the CPU with number 7, caches of 3 of 4 CPUs flushed"},
		{"off", func(s *Situation) { s.Off = true }, "plain", "warmcore.off is on the payload's command line"},
		{"off wins over a damaged registration", func(s *Situation) { s.Off, s.Block, s.BlockErr = true, nil, errors.New("x") }, "plain", "warmcore.off"},
		{"no registration", func(s *Situation) { s.Block = nil }, "plain prearm", "no registration"},
		{"damaged registration", func(s *Situation) { s.Block, s.BlockErr = nil, errors.New("copy A: offset 0x38: checksum") },
			"plain prearm", "no registration: copy A: offset 0x38: checksum"},
		{"record without a registration", func(s *Situation) { s.Block, s.Record = nil, record(thisNonce) }, "plain prearm", "no registration"},
		{"map changed", func(s *Situation) { s.MapHash = [32]byte{1, 2, 3, 4} }, "plain prearm", "the firmware's memory map changed since arming: abcdef01 is now 01020304"},
		{"map changed while capturing", func(s *Situation) { s.Block.State, s.MapHash = registration.Capturing, [32]byte{} }, "plain prearm", "map changed"},
		{"map unknown when arming", func(s *Situation) { s.Block.MapHash = [32]byte{} }, "plain prearm", "map changed"},
		{"map does not matter after a clean shutdown", func(s *Situation) { s.Block.State, s.MapHash = registration.Disarmed, [32]byte{} }, "plain prearm", "clean shutdown"},
		{"reason of an offered dump", func(s *Situation) {
			s.Block.State = registration.Capturing
			s.Block.Capture = registration.Capture{Reason: registration.ReasonPanic, Copied: true}
		}, "capture panic copied", "offered again"},
		{"offered dump while armed", func(s *Situation) {
			s.Block.Capture = registration.Capture{Reason: registration.ReasonEarly, Copied: true}
			s.Block.Counters.Attempts = 1
		}, "capture early copied", "offered again"},

		{"last capture before the limit", func(s *Situation) { s.Block.Counters.LastCaptures = times(4, now-3599) }, "capture reset new", "armed"},
		{"too many captures", func(s *Situation) { s.Block.Counters.LastCaptures = times(5, now-3599) },
			"plain prearm", "5 dumps within an hour: crashes are too frequent, taking no more for now"},
		{"no limit", func(s *Situation) { s.Limits.Captures, s.Block.Counters.LastCaptures = 0, times(8, now-1) }, "capture reset new", "armed"},
		{"no plan registered", func(s *Situation) { s.Block.Plan = nil }, "plain prearm", "the registration has no memory plan"},
		{"a plan of which nothing is dumped", func(s *Situation) {
			s.Block.Plan = []registration.PlanRange{{Role: registration.RoleWindow, Range: size(0, 1<<40)}}
		}, "plain prearm", "nothing of that kernel's memory is left"},
		{"too many captures, but this one has begun", func(s *Situation) {
			s.Block.Counters.LastCaptures, s.Block.Counters.Attempts = times(8, now-1), 1
		}, "capture reset", "armed"},
		{"too many captures, but this one is copied", func(s *Situation) {
			s.Block.Counters.LastCaptures = times(8, now-1)
			s.Block.State, s.Block.Capture.Copied, s.Block.Counters.Attempts = registration.Capturing, true, 1
		}, "capture none copied", "offered again"},

		{"one attempt allowed", func(s *Situation) { s.Limits.Attempts, s.Block.Counters.Attempts = 1, 1 }, "plain prearm", "gave the dump up after 1 attempts"},
		{"one strike", func(s *Situation) { s.Block.State, s.Block.Counters.PrearmStrikes = registration.Disarmed, 1 }, "plain prearm", "clean shutdown"},
		{"two strikes", func(s *Situation) { s.Block.State, s.Block.Counters.PrearmStrikes = registration.Disarmed, 2 }, "plain", "clean shutdown"},
		{"two strikes and a changed map", func(s *Situation) { s.MapHash[0]++; s.Block.Counters.PrearmStrikes = 2 }, "plain", "map changed"},
		{"strikes don't stop an armed system's dump", func(s *Situation) { s.Block.Counters.PrearmStrikes = 9 }, "capture reset new", "armed"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := armed()
			tt.change(&s)
			d := Decide(s)
			if got := words(d); got != tt.want || !strings.Contains(d.Why, tt.why) {
				t.Errorf("got  %s: %s\nwant %s: ...%s", got, d.Why, tt.want, tt.why)
			}
		})
	}
}

// everything is a block with something in each field that Begin may touch.
func everything() *registration.Block {
	return &registration.Block{
		State:      registration.Armed,
		Identity:   registration.Identity{Nonce: thisNonce, Release: "6.1.0", Time: now - 500},
		MapHash:    thisHash,
		CPUNotes:   []registration.Note{{Addr: 0x1000, Size: 424}},
		VMCoreInfo: registration.Note{Addr: 0x2000, Size: 500},
		Mapping:    kernelmap.Mapping{DirectBase: 0xffff888000000000},
		Policy:     registration.Policy{MaxCaptures: 4, BlockSize: 1},
		Counters:   registration.Counters{Boots: 9, Captures: 3, PrearmStrikes: 1, LastCaptures: [8]int64{now - 10, now - 20}, CaptureBoots: [8]uint64{7, 5}},
		Absent:     phys.Set{size(1, 2)},
		Lost:       phys.Set{size(5, 2)},
		Kernel:     registration.Kernel{Title: "Debian"},
		Plan:       []registration.PlanRange{{Role: registration.RoleLost}},
		Unknown:    []registration.Section{{Type: 4000, Data: []byte("later")}},
	}
}

func TestBegin(t *testing.T) {
	p := made(t, input())
	hash := [32]byte{7}
	tests := []struct {
		name     string
		decision Decision
		old      func(b *registration.Block) // nil: no block at all
		want     func(b *registration.Block) // changes what was there
	}{
		{"new dump", Decision{Kind: plan.Capture, Reason: registration.ReasonPanic, NewDump: true}, func(*registration.Block) {},
			func(b *registration.Block) {
				b.Counters = registration.Counters{Boots: 10, Captures: 4, Attempts: 1, PrearmStrikes: 1, LastCaptures: [8]int64{now, now - 10, now - 20}, CaptureBoots: [8]uint64{10, 7, 5}}
				b.Capture = registration.Capture{Reason: registration.ReasonPanic, Time: now}
			}},
		{"early dump counts as a strike", Decision{Kind: plan.Capture, Reason: registration.ReasonEarly, NewDump: true}, func(*registration.Block) {},
			func(b *registration.Block) {
				b.Counters = registration.Counters{Boots: 10, Captures: 4, Attempts: 1, PrearmStrikes: 2, LastCaptures: [8]int64{now, now - 10, now - 20}, CaptureBoots: [8]uint64{10, 7, 5}}
				b.Capture = registration.Capture{Reason: registration.ReasonEarly, Time: now}
			}},
		{"a full list of captures", Decision{Kind: plan.Capture, Reason: registration.ReasonReset, NewDump: true},
			func(b *registration.Block) { b.Counters.LastCaptures = [8]int64{8, 7, 6, 5, 4, 3, 2, 1} },
			func(b *registration.Block) {
				b.Counters = registration.Counters{Boots: 10, Captures: 4, Attempts: 1, PrearmStrikes: 1, LastCaptures: [8]int64{now, 8, 7, 6, 5, 4, 3, 2}, CaptureBoots: [8]uint64{10, 7, 5}}
				b.Capture = registration.Capture{Reason: registration.ReasonReset, Time: now}
			}},
		{"same dump again", Decision{Kind: plan.Capture, Reason: registration.ReasonEarly, Copied: true},
			func(b *registration.Block) {
				b.State = registration.Capturing
				b.Counters.Attempts = 1
				b.Capture = registration.Capture{Reason: registration.ReasonEarly, Copied: true, Time: 5}
			},
			func(b *registration.Block) {
				b.Counters.Boots, b.Counters.Attempts = 10, 2
			}},
		{"plain", Decision{Kind: plan.Plain, Prearm: true},
			func(b *registration.Block) { b.Counters.Attempts, b.Capture.Copied = 3, true },
			func(b *registration.Block) {
				b.State = registration.Prearmed
				b.Identity = registration.Identity{Nonce: otherNonce, Time: now}
				b.CPUNotes, b.VMCoreInfo = nil, registration.Note{}
				b.Counters.Boots, b.Counters.Attempts = 10, 0
				b.Capture = registration.Capture{}
			}},
		{"plain after a clean shutdown forgets the captures", Decision{Kind: plan.Plain},
			func(b *registration.Block) { b.State = registration.Disarmed },
			func(b *registration.Block) {
				b.State = registration.Empty
				b.Identity = registration.Identity{Nonce: otherNonce, Time: now}
				b.CPUNotes, b.VMCoreInfo = nil, registration.Note{}
				b.Counters = registration.Counters{Boots: 10, Captures: 3, PrearmStrikes: 1}
			}},
		{"first boot", Decision{Kind: plan.Plain, Prearm: true}, nil,
			func(b *registration.Block) {
				*b = registration.Block{State: registration.Prearmed, Identity: registration.Identity{Nonce: otherNonce, Time: now}}
				b.Counters.Boots = 1
			}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var old, before *registration.Block
			want := everything()
			if tt.old != nil {
				old, before = everything(), everything()
				tt.old(old)
				tt.old(before)
				tt.old(want)
			}
			want.Absent, want.Lost = nil, nil
			tt.want(want)
			want.MapHash, want.Plan, want.Policy.BlockSize = hash, Ranges(p), p.BlockSize
			got := tt.decision.Begin(old, p, hash, otherNonce, now)
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("block (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(before, old); diff != "" {
				t.Errorf("the old block was changed (-before +after):\n%s", diff)
			}
		})
	}
}

// TestBeginClock: where the payload has no clock, the time at which the agent
// armed is the best that there is.
func TestBeginClock(t *testing.T) {
	for _, tt := range []struct {
		name             string
		now, armed, want int64
	}{
		{"the payload's", now, now - 100, now},
		{"the agent's", 5, now - 100, now - 100},
		{"none", 0, 0, 1}, // 0 means no capture
	} {
		t.Run(tt.name, func(t *testing.T) {
			old := everything()
			old.Identity.Time = tt.armed
			b := Decision{Kind: plan.Capture, Reason: registration.ReasonReset, NewDump: true}.Begin(old, nil, thisHash, otherNonce, tt.now)
			if got := b.Counters.LastCaptures[0]; got != tt.want || b.Counters.CaptureBoots[0] != 10 {
				t.Errorf("capture noted at %d in boot %d, want %d in boot 10", got, b.Counters.CaptureBoots[0], tt.want)
			}
			if diff := cmp.Diff(old.Plan, b.Plan); diff != "" {
				t.Errorf("plan (-want +got):\n%s", diff)
			}
		})
	}
}

func letter(d Decision) string {
	switch {
	case d.Kind == plan.Plain:
		return "P"
	case d.NewDump:
		return "C"
	}
	return "c"
}

// TestDecideBegin follows a machine that always crashes: the dumps end, the
// boots don't.
func TestDecideBegin(t *testing.T) {
	saved := func(b *registration.Block, d Decision) {
		b.State, b.Counters.Attempts, b.Counters.PrearmStrikes, b.Capture.Copied = registration.Armed, 0, 0, false
	}
	notSaved := func(b *registration.Block, d Decision) {
		if d.Kind == plan.Plain {
			saved(b, d)
		}
	}
	// at makes a clock that reads start at the first boot and then goes on.
	at := func(start, step int64) func(i int) int64 {
		return func(i int) int64 { return start + int64(i)*step }
	}
	tests := []struct {
		name string
		now  func(i int) int64 // in boot i, from 0
		// next is what the normal system makes of the block until the crash.
		next func(b *registration.Block, d Decision)
		want string
	}{
		{"the agent arms, and every dump is saved", at(now, 1), saved, "P CCCCC PPP"},
		{"the agent arms, and no dump is saved", at(now, 1), notSaved, "P CccPCccPCccPCccPCccPPP"},
		{"there is no agent", at(now, 1), func(*registration.Block, Decision) {}, "P CccPCccPPPP"},
		{"a crash every 15 minutes", at(now, 900), saved, "P CCCCCCCC"},

		// Without a clock, dumps come again after 20 boots, 5 of 20.
		{"no clock, and every dump is saved", at(0, 0), saved, "P CCCCCPPPPPPPPPPPPPPP CCCCC PPP"},
		{"a clock that begins in 1970 with each boot", at(17, 0), saved, "P CCCCCPPPPPPPPPPPPPPP CCCCC PPP"},
		{"a clock that begins in 2000 and runs", at(946_684_800, 100_000), saved, "P CCCCCPPPPPPPPPPPPPPP CCCCC PPP"},
		{"a clock that stands still", at(now, 0), saved, "P CCCCCPPPPPPPPPPPPPPP CCCCC PPP"},
		{"a clock that runs backwards", at(now, -1), saved, "P CCCCCPPPPPPPPPPPPPPP CCCCC PPP"},
		{"no clock, and no dump is saved", at(0, 0), notSaved, "P CccPCccPCccPCccPCccP CccPCccPCcc"},
		{"no clock, and there is no agent", at(0, 0), func(*registration.Block, Decision) {}, "P CccPCccPPPP"},
		{"no clock in the payload, one in the system: an hour between crashes", at(5, 0), func() func(b *registration.Block, d Decision) {
			armed := now
			return func(b *registration.Block, d Decision) {
				saved(b, d)
				armed += 3600
				b.Identity.Time = armed
			}
		}(), "P CCCCCCCCCCCC"},
		{"no clock in the payload, one in the system: a minute between crashes", at(5, 0), func() func(b *registration.Block, d Decision) {
			armed := now
			return func(b *registration.Block, d Decision) {
				saved(b, d)
				armed += 60
				b.Identity.Time = armed
			}
		}(), "P CCCCC PPPP"},
		{"a clean shutdown between", at(0, 0), func() func(b *registration.Block, d Decision) {
			boots := 0
			return func(b *registration.Block, d Decision) {
				saved(b, d)
				if boots++; boots%4 == 0 {
					b.State = registration.Disarmed
				}
			}
		}(), "P CCCPCCCPCCCPCCC"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			want := strings.ReplaceAll(tt.want, " ", "")
			var b *registration.Block
			got := ""
			for i := range len(want) {
				d := Decide(Situation{Block: b, MapHash: thisHash, Plan: thisPlan, Now: tt.now(i), Limits: DefaultLimits})
				got += letter(d)
				b = d.Begin(b, thisPlan, thisHash, [16]byte{byte(i)}, tt.now(i))
				if d.Kind == plan.Capture {
					b.State, b.Capture.Copied = registration.Capturing, true
				}
				tt.next(b, d)
			}
			if got != want {
				t.Errorf("plain boots (P), new dumps (C) and dumps offered again (c):\n got %s\nwant %s", got, want)
			}
		})
	}
}
