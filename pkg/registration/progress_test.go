package registration_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/warmcore/warmcore/pkg/registration"
)

// progressBytes is a record of version 1, by hand.
var progressBytes = []byte{
	'W', 'C', 'P', 'R', 'O', 'G', 'R', 'S', // magic
	1, 0, 0, 0, // version
	5, 0, 0, 0, // phase: disks
	2, 0, 0, 0, // stalls
	0, 0, 0, 0, // zero
	8, 7, 6, 5, 4, 3, 2, 1, // stalls ever
	0, 0, 0, 0, 0, 0, 0, 0, // zero
	0, 0, 0, 0, 0, 0, 0, 0,
	0, 0, 0, 0, 0, 0, 0, 0,
	0, 0, 0, 0,
	0xc3, 0xd7, 0x3c, 0x21, // CRC32C
}

var progress = registration.Progress{Phase: registration.PhaseDisks, Stalls: 2, Total: 0x0102_0304_0506_0708}

func sealProgress(b []byte) []byte {
	binary.LittleEndian.PutUint32(b[60:], crc32.Checksum(b[:60], crc32.MakeTable(crc32.Castagnoli)))
	return b
}

func TestProgress(t *testing.T) {
	b, err := progress.AppendBinary([]byte{7})
	if err != nil || !bytes.Equal(b[1:], progressBytes) || b[0] != 7 {
		t.Errorf("encoded % x (error %v), want % x", b[1:], err, progressBytes)
	}
	got, err := registration.DecodeProgress(append(bytes.Clone(progressBytes), 1, 2, 3))
	if err != nil || got != progress {
		t.Errorf("decoded %+v, %v; want %+v", got, err, progress)
	}
	if end := uint64(registration.ProgressOff + registration.ProgressLen); registration.ProgressOff < registration.RecordOff+registration.RecordSize || end > registration.LogOff {
		t.Error("the record overlaps another part of the handoff area")
	}
}

func TestProgressCorrupt(t *testing.T) {
	change := func(off int, to byte) []byte {
		b := bytes.Clone(progressBytes)
		b[off] = to
		return b
	}
	for _, tt := range []struct {
		name string
		b    []byte
		want error
		off  int
	}{
		{"empty", nil, registration.ErrTooShort, 0},
		{"short", progressBytes[:63], registration.ErrTooShort, 63},
		{"zeroes", make([]byte, 64), registration.ErrMagic, 0},
		{"magic", change(7, 's'), registration.ErrMagic, 0},
		{"version", sealProgress(change(8, 2)), registration.ErrVersion, 8},
		{"one bit of the phase", change(12, 4), registration.ErrChecksum, 60},
		{"checksum", change(63, 0), registration.ErrChecksum, 60},
		{"zero bytes", sealProgress(change(23, 1)), registration.ErrValue, 23},
		{"last zero byte", sealProgress(change(59, 1)), registration.ErrValue, 59},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := registration.DecodeProgress(tt.b)
			var format *registration.FormatError
			if !errors.Is(err, tt.want) || !errors.As(err, &format) || format.Off != tt.off {
				t.Errorf("decode: %v, want %v at %d", err, tt.want, tt.off)
			}
			if got != (registration.Progress{}) {
				t.Errorf("with an error: %+v", got)
			}
			// As good as none: it counts from 0.
			if next, phase, stalled := registration.NextProgress(tt.b); stalled || phase != 0 || next != (registration.Progress{Phase: registration.PhasePlan}) {
				t.Errorf("next: %+v, %v, %v; want a new record", next, phase, stalled)
			}
		})
	}
}

func TestNextProgress(t *testing.T) {
	for _, tt := range []struct {
		name    string
		last    registration.Progress
		want    registration.Progress
		phase   registration.Phase
		stalled bool
	}{
		{"the last one started a kernel", registration.Progress{Phase: registration.PhaseStarted, Total: 7},
			registration.Progress{Phase: registration.PhasePlan, Total: 7}, 0, false},
		{"the last one hung", registration.Progress{Phase: registration.PhaseCopy},
			registration.Progress{Phase: registration.PhasePlan, Stalls: 1, Total: 1}, registration.PhaseCopy, true},
		{"and those before", registration.Progress{Phase: registration.PhaseDisks, Stalls: 2, Total: 9},
			registration.Progress{Phase: registration.PhasePlan, Stalls: 3, Total: 10}, registration.PhaseDisks, true},
		{"in an unknown phase", registration.Progress{Phase: 99},
			registration.Progress{Phase: registration.PhasePlan, Stalls: 1, Total: 1}, 99, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b, _ := tt.last.AppendBinary(nil)
			next, phase, stalled := registration.NextProgress(b)
			if diff := cmp.Diff(tt.want, next); diff != "" || phase != tt.phase || stalled != tt.stalled {
				t.Errorf("next: phase %v, stalled %v (-want +got):\n%s", phase, stalled, diff)
			}
		})
	}
	if got, want := registration.Phase(99).String(), "phase 99"; got != want {
		t.Errorf("unknown phase: %q, want %q", got, want)
	}
}

func FuzzDecodeProgress(f *testing.F) {
	f.Add(progressBytes)
	f.Add(make([]byte, registration.ProgressLen))
	f.Fuzz(func(t *testing.T, data []byte) {
		for _, b := range [][]byte{data, func() []byte {
			if len(data) < registration.ProgressLen {
				return data
			}
			b := bytes.Clone(data)
			copy(b, progressBytes[:12])
			return sealProgress(b)
		}()} {
			p, err := registration.DecodeProgress(b)
			if err != nil {
				continue
			}
			if again, _ := p.AppendBinary(nil); !bytes.Equal(again, b[:registration.ProgressLen]) {
				t.Errorf("% x decodes to %+v, which encodes to % x", b, p, again)
			}
		}
	})
}
