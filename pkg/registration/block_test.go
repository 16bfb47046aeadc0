package registration_test

import (
	"bytes"
	"errors"
	"math"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/warmcore/warmcore/pkg/phys"
	"github.com/warmcore/warmcore/pkg/registration"
	"github.com/warmcore/warmcore/pkg/registration/registrationtest"
)

// fullest returns a block with each field at its cap.
func fullest() *registration.Block {
	b := registrationtest.Block()
	b.Identity.Release = strings.Repeat("r", registration.MaxRelease)
	b.Identity.BuildID = bytes.Repeat([]byte{1}, registration.MaxBuildID)
	b.CPUNotes = make([]registration.Note, registration.MaxCPUs)
	for i := range b.CPUNotes {
		b.CPUNotes[i] = registration.Note{Addr: uint64(i) << 30, Size: registration.MaxNoteSize}
	}
	b.Kernel = registration.Kernel{
		Title:   strings.Repeat("t", registration.MaxTitle),
		Path:    strings.Repeat("p", registration.MaxPath),
		Initrd:  strings.Repeat("i", registration.MaxPath),
		Cmdline: strings.Repeat("c", registration.MaxCmdline),
	}
	b.Capture.Timeline = make([]registration.Event, registration.MaxTimeline)
	for i := range b.Capture.Timeline {
		b.Capture.Timeline[i] = registration.Event{Nanos: uint64(i), Name: strings.Repeat("e", registration.MaxEventName)}
	}
	b.Plan = make([]registration.PlanRange, registration.MaxPlan)
	for i := range b.Plan {
		start := uint64(i) * phys.GiB
		b.Plan[i] = registration.PlanRange{Role: registration.RolePreserved, Range: phys.Range{Start: start, End: start + phys.GiB}}
	}
	for i := range uint64(registration.MaxAbsent) {
		b.Absent = append(b.Absent, phys.Range{Start: i * 2 * phys.GiB, End: (i*2 + 1) * phys.GiB})
		b.Lost = append(b.Lost, phys.Range{Start: (i*2 + 1) * phys.GiB, End: (i*2 + 2) * phys.GiB})
	}
	for i := range b.Counters.CaptureBoots {
		b.Counters.CaptureBoots[i] = math.MaxUint64 - uint64(i)
	}
	b.PayloadVersion = strings.Repeat("v", registration.MaxPayloadName)
	b.Booted = registration.Booted{FileSystem: strings.Repeat("u", registration.MaxUUID), Once: strings.Repeat("o", registration.MaxOnce)}
	b.Booted.KernelSum[0], b.Booted.InitrdSum[31] = 1, 2
	b.Mounting = strings.Repeat("m", registration.MaxMounting)
	b.Refused = strings.Repeat("r", registration.MaxRefused)
	return b
}

func TestBlockRoundTrip(t *testing.T) {
	for _, tc := range []struct {
		name  string
		block *registration.Block
	}{
		{"zero", &registration.Block{}},
		{"state only", &registration.Block{Sequence: math.MaxUint64, State: registration.Disarmed}},
		{"every field", registrationtest.Block()},
		{"every field at its cap", fullest()},
		{"a CPU without a note", &registration.Block{CPUNotes: make([]registration.Note, 1)}},
		{"negative times", &registration.Block{Identity: registration.Identity{Time: -1}, Capture: registration.Capture{Time: math.MinInt64}}},
		{"unknown reason and role", &registration.Block{
			Capture: registration.Capture{Reason: 9},
			Plan:    []registration.PlanRange{{Role: 99, Range: phys.Range{Start: 1, End: 2}}},
		}},
		{"unknown sections in order", &registration.Block{Unknown: []registration.Section{
			{Type: math.MaxUint32, Data: []byte{1}},
			{Type: 4242},
		}}},
		{"text beyond ASCII", &registration.Block{Kernel: registration.Kernel{Title: "Größe 核\t2"}}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			data, err := tc.block.AppendBinary([]byte("before"))
			if err != nil {
				t.Fatalf("AppendBinary() = %v", err)
			}
			data, ok := bytes.CutPrefix(data, []byte("before"))
			if !ok {
				t.Fatal("AppendBinary() changed what was before")
			}
			if len(data) > registration.CopySize {
				t.Errorf("AppendBinary() = %d bytes, want at most %d", len(data), registration.CopySize)
			}
			got, err := registration.Decode(data)
			if err != nil {
				t.Fatalf("Decode() = %v", err)
			}
			if diff := cmp.Diff(tc.block, got); diff != "" {
				t.Errorf("Decode(AppendBinary()) (-want +got):\n%s", diff)
			}
			again, err := got.AppendBinary(nil)
			if err != nil || !bytes.Equal(again, data) {
				t.Errorf("AppendBinary(Decode()) differs, error %v", err)
			}
		})
	}
}

// The block that all tests use must use all of the format.
func TestBlockHasEveryField(t *testing.T) {
	v := reflect.ValueOf(*fullest())
	for i := range v.NumField() {
		if name := v.Type().Field(i).Name; v.Field(i).IsZero() && name != "Sequence" {
			t.Errorf("field %s is zero", name)
		}
	}
}

func TestAppendBinaryRefuses(t *testing.T) {
	for _, tc := range []struct {
		name   string
		change func(*registration.Block)
		err    error
		field  string
	}{
		{"state", func(b *registration.Block) { b.State = 7 }, registration.ErrValue, "state"},
		{"release", func(b *registration.Block) { b.Identity.Release += strings.Repeat("r", 64) }, registration.ErrTooLarge, "kernel release"},
		{"build id", func(b *registration.Block) { b.Identity.BuildID = make([]byte, 65) }, registration.ErrTooLarge, "build id"},
		{"CPUs", func(b *registration.Block) { b.CPUNotes = make([]registration.Note, registration.MaxCPUs+1) }, registration.ErrTooLarge, "CPU notes"},
		{"note size", func(b *registration.Block) { b.CPUNotes[0].Size = registration.MaxNoteSize + 1 }, registration.ErrTooLarge, "CPU note"},
		{"note size beyond 32 bits", func(b *registration.Block) { b.VMCoreInfo.Size = 1 << 32 }, registration.ErrTooLarge, "vmcoreinfo"},
		{"note wraps", func(b *registration.Block) { b.VMCoreInfo.Addr = math.MaxUint64 }, registration.ErrValue, "vmcoreinfo"},
		{"title", func(b *registration.Block) { b.Kernel.Title = strings.Repeat("t", 129) }, registration.ErrTooLarge, "kernel title"},
		{"path", func(b *registration.Block) { b.Kernel.Path = strings.Repeat("t", 257) }, registration.ErrTooLarge, "kernel path"},
		{"initrd", func(b *registration.Block) { b.Kernel.Initrd = "/boot\x00" }, registration.ErrValue, "kernel initrd"},
		{"command line", func(b *registration.Block) { b.Kernel.Cmdline = "quiet\n" }, registration.ErrValue, "kernel command line"},
		{"core header", func(b *registration.Block) { b.Capture.CoreHeader.End = 1 }, registration.ErrValue, "core header range"},
		{"timeline", func(b *registration.Block) {
			b.Capture.Timeline = make([]registration.Event, registration.MaxTimeline+1)
		}, registration.ErrTooLarge, "timeline"},
		{"event name", func(b *registration.Block) { b.Capture.Timeline[0].Name = "\xff" }, registration.ErrValue, "event name"},
		{"plan", func(b *registration.Block) { b.Plan = make([]registration.PlanRange, registration.MaxPlan+1) }, registration.ErrTooLarge, "plan"},
		{"plan range", func(b *registration.Block) { b.Plan[1].Range = phys.Range{Start: 2, End: 2} }, registration.ErrValue, "plan range"},
		{"file system", func(b *registration.Block) { b.Booted.FileSystem = "a\nb" }, registration.ErrValue, "file system"},
		{"request to boot once", func(b *registration.Block) { b.Booted.Once = strings.Repeat("x", registration.MaxOnce+1) }, registration.ErrTooLarge, "request to boot once"},
		{"disks being mounted", func(b *registration.Block) { b.Mounting = "\x00" }, registration.ErrValue, "disks being mounted"},
		{"refusal", func(b *registration.Block) { b.Refused = "a\nb" }, registration.ErrValue, "refusal"},
		{"long refusal", func(b *registration.Block) { b.Refused = strings.Repeat("r", registration.MaxRefused+1) }, registration.ErrTooLarge, "refusal"},
		{"absent ranges", func(b *registration.Block) {
			for i := range uint64(registration.MaxAbsent + 1) {
				b.Absent = append(b.Absent, phys.Range{Start: i * 2, End: i*2 + 1})
			}
		}, registration.ErrTooLarge, "absent count"},
		{"absent range", func(b *registration.Block) { b.Absent = phys.Set{{Start: 2, End: 2}} }, registration.ErrValue, "absent range"},
		{"lost range", func(b *registration.Block) { b.Lost = phys.Set{{Start: 3, End: 2}} }, registration.ErrValue, "lost range"},
		{"payload version", func(b *registration.Block) { b.PayloadVersion = "a\u0085b" }, registration.ErrValue, "payload version"},
		{"known type as unknown", func(b *registration.Block) { b.Unknown = []registration.Section{{Type: 3}} }, registration.ErrDuplicate, "unknown section type"},
		{"unknown type twice", func(b *registration.Block) { b.Unknown = []registration.Section{{Type: 30}, {Type: 30}} }, registration.ErrDuplicate, "unknown section type"},
		{"unknown section too long", func(b *registration.Block) {
			b.Unknown = []registration.Section{{Type: 30, Data: make([]byte, registration.CopySize)}}
		}, registration.ErrTooLarge, "copy"},
		{"unknown sections too many", func(b *registration.Block) {
			b.Unknown = nil
			for i := range registration.MaxSections {
				b.Unknown = append(b.Unknown, registration.Section{Type: uint32(100 + i)})
			}
		}, registration.ErrTooLarge, "section count"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			b := registrationtest.Block()
			tc.change(b)
			data, err := b.AppendBinary(nil)
			var format *registration.FormatError
			if data != nil || !errors.Is(err, tc.err) || !errors.As(err, &format) || format.Field != tc.field {
				t.Errorf("AppendBinary() = %d bytes, %v; want a FormatError of %s around %q", len(data), err, tc.field, tc.err)
			}
			before := b.Sequence
			if _, _, err := registration.Store(b, make([]byte, registration.CopiesSize)); !errors.Is(err, tc.err) {
				t.Errorf("Store() = %v, want %q", err, tc.err)
			}
			if b.Sequence != before {
				t.Errorf("Store() set the sequence to %d with an error", b.Sequence)
			}
		})
	}
}

func TestEverySingleBitFlipIsDetected(t *testing.T) {
	data, err := registrationtest.Block().AppendBinary(nil)
	if err != nil {
		t.Fatal(err)
	}
	for bit := range 8 * len(data) {
		data[bit/8] ^= 1 << (bit % 8)
		if b, err := registration.Decode(data); err == nil || b != nil {
			t.Errorf("Decode() with bit %d of byte %#x flipped = %v, want an error", bit%8, bit/8, b)
		}
		data[bit/8] ^= 1 << (bit % 8)
	}
}

// A write that stops after any byte leaves the old block or the new one.
func TestTornStoreLeavesABlock(t *testing.T) {
	area := make([]byte, registration.CopiesSize)
	for round := range 4 {
		old, oldErr := registration.Load(area)
		next := registrationtest.Block()
		next.PayloadVersion = strings.Repeat("v", 10*round)
		off, data, err := registration.Store(next, area)
		if err != nil {
			t.Fatal(err)
		}
		for n := range len(data) {
			area[off+n] = data[n]
			got, err := registration.Load(area)
			switch {
			case n == len(data)-1 && cmp.Diff(next, got) != "":
				t.Fatalf("round %d: Load() after a whole write = %+v, %v; want the new block", round, got, err)
			case err != nil && oldErr == nil:
				t.Fatalf("round %d: Load() after %d of %d bytes = %v, want a block", round, n+1, len(data), err)
			case err == nil && got.Sequence != next.Sequence && (oldErr != nil || got.Sequence != old.Sequence):
				t.Fatalf("round %d: Load() after %d of %d bytes = sequence %d, want %d or %d", round, n+1, len(data), got.Sequence, old.Sequence, next.Sequence)
			}
		}
	}
}

func TestShortArea(t *testing.T) {
	for _, n := range []int{0, 1, registration.CopySize, registration.CopiesSize - 1} {
		if b, err := registration.Load(make([]byte, n)); b != nil || !errors.Is(err, registration.ErrTooShort) {
			t.Errorf("Load(%d bytes) = %v, %v; want ErrTooShort", n, b, err)
		}
		off, data, err := registration.Store(&registration.Block{}, make([]byte, n))
		if off != 0 || data != nil || !errors.Is(err, registration.ErrTooShort) {
			t.Errorf("Store(%d bytes) = %d, %d bytes, %v; want ErrTooShort", n, off, len(data), err)
		}
	}
}

// A prefix of a copy never decodes, nor panics.
func TestDecodePrefixes(t *testing.T) {
	data, err := registrationtest.Block().AppendBinary(nil)
	if err != nil {
		t.Fatal(err)
	}
	for n := range data {
		if b, err := registration.Decode(data[:n]); b != nil || !errors.Is(err, registration.ErrTooShort) {
			t.Errorf("Decode(%d of %d bytes) = %v, %v; want ErrTooShort", n, len(data), b, err)
		}
	}
}

// What was written once stays readable.
func TestVersion1(t *testing.T) {
	keep := func(name string, now []byte) []byte {
		t.Helper()
		file := filepath.Join("testdata", name)
		if _, err := os.Stat(file); *update && errors.Is(err, os.ErrNotExist) {
			if err := os.WriteFile(file, now, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		kept, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		return kept
	}
	for name, want := range map[string]*registration.Block{
		"v1-block.bin":   registrationtest.Block(),
		"v1-minimal.bin": {Sequence: 1, State: registration.Prearmed},
	} {
		now, err := want.AppendBinary(nil)
		if err != nil {
			t.Fatal(err)
		}
		got, err := registration.Decode(keep(name, now))
		if err != nil {
			t.Fatalf("Decode(%s) = %v", name, err)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("Decode(%s) (-want +got):\n%s", name, diff)
		}
	}

	wantRecord := record()
	now, err := wantRecord.AppendBinary(nil)
	if err != nil {
		t.Fatal(err)
	}
	gotRecord, err := registration.DecodeRecord(keep("v1-record.bin", now))
	if err != nil || gotRecord != wantRecord {
		t.Errorf("DecodeRecord(v1-record.bin) = %+v, %v; want %+v", gotRecord, err, wantRecord)
	}

	wantLog := registration.Log{Boot: 42, Text: []byte("warminit: plain boot\n")}
	area := make([]byte, registration.SizeMin)
	copy(area[registration.LogOff:], keep("v1-log.bin", registration.EncodeLog(wantLog)))
	gotLog, _, err := registration.DecodeLogs(area)
	if diff := cmp.Diff(wantLog, gotLog); diff != "" || err != nil {
		t.Errorf("DecodeLogs(v1-log.bin) = %v (-want +got):\n%s", err, diff)
	}
}

func TestWords(t *testing.T) {
	for _, tc := range []struct {
		got, want string
	}{
		{registration.Empty.String(), "empty"},
		{registration.Disarmed.String(), "disarmed"},
		{registration.State(7).String(), "state(7)"},
		{registration.ReasonPanic.String(), "panic"},
		{registration.ReasonReset.String(), "reset"},
		{registration.ReasonEarly.String(), "early"},
		{registration.Reason(math.MaxUint32).String(), "reason(4294967295)"},
		{registration.RoleWindow.String(), "window"},
		{registration.RoleLost.String(), "lost"},
		{registration.Role(8).String(), "role(8)"},
	} {
		if tc.got != tc.want {
			t.Errorf("String() = %q, want %q", tc.got, tc.want)
		}
	}
}

// The areas follow one another without overlapping.
func TestLayout(t *testing.T) {
	areas := []phys.Range{
		{Start: registration.CopyAOff, End: registration.CopyAOff + registration.CopySize},
		{Start: registration.CopyBOff, End: registration.CopyBOff + registration.CopySize},
		{Start: registration.RecordOff, End: registration.RecordOff + registration.RecordSize},
		{Start: registration.LogOff, End: registration.LogOff + 2*registration.LogSlotSize},
		{Start: registration.CoreHeaderOff, End: registration.SizeMin},
	}
	for i := 1; i < len(areas); i++ {
		if areas[i].Start < areas[i-1].End {
			t.Errorf("area %v begins in %v", areas[i], areas[i-1])
		}
	}
	if end := areas[len(areas)-1].End; end != registration.SizeMin {
		t.Errorf("areas end at %#x, want %#x", end, registration.SizeMin)
	}
	h := phys.Range{Start: 0x2000_0000, End: 0x2040_0000}
	if got, want := registration.CoreHeaderRange(h), (phys.Range{Start: 0x200c_0000, End: 0x2040_0000}); got != want {
		t.Errorf("CoreHeaderRange(%v) = %v, want %v", h, got, want)
	}
	h.End = h.Start + registration.SizeMin - 1
	if got := registration.CoreHeaderRange(h); got != (phys.Range{}) {
		t.Errorf("CoreHeaderRange(%v) = %v, want none", h, got)
	}
}

func TestText(t *testing.T) {
	for _, text := range []string{"", "short", "a\nb\x00\x7f\xff", strings.Repeat("x", 200), strings.Repeat("é", 100), strings.Repeat("日本", 40), "\u0085\u200b"} {
		got := registration.Text(text, registration.MaxRefused)
		b := registration.Block{Refused: got}
		if _, err := b.AppendBinary(nil); err != nil || got == "" && text != "" {
			t.Errorf("%q: %q, %v", text, got, err)
		}
	}
}
