package registration_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"math"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/warmcore/warmcore/pkg/registration"
)

const (
	slot0 = registration.LogOff
	slot1 = registration.LogOff + registration.LogSlotSize
)

func text(s string, boot uint64) registration.Log {
	return registration.Log{Boot: boot, Text: []byte(s)}
}

// sealLog makes the checksum of a log's header right.
func sealLog(b []byte) {
	binary.LittleEndian.PutUint32(b[28:], crc32.Checksum(b[:28], crc32.MakeTable(crc32.Castagnoli)))
}

func TestLogsOfThreeBoots(t *testing.T) {
	area := make([]byte, registration.SizeMin)
	if _, _, err := registration.DecodeLogs(area); !errors.Is(err, registration.ErrEmpty) {
		t.Errorf("DecodeLogs(zeroes) = %v, want ErrEmpty", err)
	}
	var last registration.Log
	for i, wantOff := range []int{slot0, slot1, slot0} {
		off, boot := registration.NextLogSlot(area)
		if off != wantOff || boot != uint64(i+1) {
			t.Fatalf("NextLogSlot() = %#x, %d; want %#x, %d", off, boot, wantOff, i+1)
		}
		// A log that grows stays in its slot.
		for _, s := range []string{"first line\n", "first line\nsecond line\n", fmt.Sprintf("boot %d\n", boot)} {
			l := text(s, boot)
			copy(area[off:], registration.EncodeLog(l))
			current, previous, err := registration.DecodeLogs(area)
			if err != nil {
				t.Fatalf("DecodeLogs() = %v", err)
			}
			if diff := cmp.Diff([]registration.Log{l, last}, []registration.Log{current, previous}); diff != "" {
				t.Errorf("DecodeLogs() (-want +got):\n%s", diff)
			}
		}
		last = text(fmt.Sprintf("boot %d\n", boot), boot)
	}
}

func TestDecodeLogs(t *testing.T) {
	area := func(a, b []byte) []byte {
		h := make([]byte, registration.CoreHeaderOff)
		copy(h[slot0:], a)
		copy(h[slot1:], b)
		return h
	}
	change := func(off int, l registration.Log) []byte {
		b := registration.EncodeLog(l)
		b[off] ^= 1
		return b
	}
	old, now := text("old", 7), text("new", 8)
	tooLong := registration.EncodeLog(now)
	binary.LittleEndian.PutUint32(tooLong[12:], registration.MaxLogText+1)
	sealLog(tooLong)
	for _, tc := range []struct {
		name              string
		area              []byte
		current, previous registration.Log
		err               error
		off               int
		boot              uint64
	}{
		{"both", area(registration.EncodeLog(old), registration.EncodeLog(now)), now, old, nil, slot0, 9},
		{"both, newer first", area(registration.EncodeLog(now), registration.EncodeLog(old)), now, old, nil, slot1, 9},
		{"newer torn", area(registration.EncodeLog(old), change(33, now)), old, registration.Log{}, nil, slot1, 8},
		{"older torn", area(change(33, old), registration.EncodeLog(now)), now, registration.Log{}, nil, slot0, 9},
		{"wrap", area(registration.EncodeLog(text("a", math.MaxUint64)), registration.EncodeLog(text("b", 0))), text("b", 0), text("a", math.MaxUint64), nil, slot0, 1},
		{"no text", area(registration.EncodeLog(registration.Log{Boot: 3}), nil), registration.Log{Boot: 3}, registration.Log{}, nil, slot1, 4},
		{"not text", area(registration.EncodeLog(text("\x00\xff", 3)), nil), text("\x00\xff", 3), registration.Log{}, nil, slot1, 4},
		{"zeroes", area(nil, nil), registration.Log{}, registration.Log{}, registration.ErrEmpty, slot0, 1},
		{"all ones", bytes.Repeat([]byte{0xff}, registration.CoreHeaderOff), registration.Log{}, registration.Log{}, registration.ErrEmpty, slot0, 1},
		{"version", area(change(8, old), change(8, now)), registration.Log{}, registration.Log{}, registration.ErrVersion, slot0, 1},
		{"length", area(change(12, old), change(15, now)), registration.Log{}, registration.Log{}, registration.ErrChecksum, slot0, 1},
		{"length beyond the slot", area(nil, tooLong), registration.Log{}, registration.Log{}, registration.ErrTooLarge, slot0, 1},
		{"boot", area(change(16, old), nil), registration.Log{}, registration.Log{}, registration.ErrNone, slot0, 1},
		{"header checksum", area(change(28, old), nil), registration.Log{}, registration.Log{}, registration.ErrChecksum, slot0, 1},
		{"area cut", area(registration.EncodeLog(old), nil)[:slot1+registration.LogSlotSize-1], old, registration.Log{}, nil, slot1, 8},
		{"no area", nil, registration.Log{}, registration.Log{}, registration.ErrTooShort, slot0, 1},
	} {
		t.Run(tc.name, func(t *testing.T) {
			current, previous, err := registration.DecodeLogs(tc.area)
			if !errors.Is(err, tc.err) {
				t.Errorf("DecodeLogs() = %v, want %v", err, tc.err)
			}
			if diff := cmp.Diff([]registration.Log{tc.current, tc.previous}, []registration.Log{current, previous}); diff != "" {
				t.Errorf("DecodeLogs() (-want +got):\n%s", diff)
			}
			off, boot := registration.NextLogSlot(tc.area)
			if off != tc.off || boot != tc.boot {
				t.Errorf("NextLogSlot() = %#x, %d; want %#x, %d", off, boot, tc.off, tc.boot)
			}
		})
	}
}

func TestLongLogKeepsItsEnd(t *testing.T) {
	for _, extra := range []int{-1, 0, 1, 100_000} {
		whole := strings.Repeat("x", registration.MaxLogText+extra-4) + "end\n"
		area := make([]byte, registration.SizeMin)
		b := registration.EncodeLog(text(whole, 1))
		if len(b) > registration.LogSlotSize {
			t.Fatalf("EncodeLog(%d bytes) = %d bytes, want at most %d", len(whole), len(b), registration.LogSlotSize)
		}
		copy(area[slot0:], b)
		l, _, err := registration.DecodeLogs(area)
		if err != nil {
			t.Fatal(err)
		}
		got := string(l.Text)
		if extra <= 0 {
			if got != whole {
				t.Errorf("text of %d bytes came back as %d", len(whole), len(got))
			}
			continue
		}
		var cut int
		first, rest, _ := strings.Cut(got, "\n")
		if _, err := fmt.Sscanf(first, "[%d bytes cut]", &cut); err != nil || cut+len(rest) != len(whole) || !strings.HasSuffix(rest, "end\n") {
			t.Errorf("text of %d bytes came back as %q and %d bytes", len(whole), first, len(rest))
		}
	}
}
