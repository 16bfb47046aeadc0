package registration_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/warmcore/warmcore/pkg/registration"
	"github.com/warmcore/warmcore/pkg/registration/registrationtest"
)

// FuzzDecode decodes its input as it is, and once more with a header that is
// right, so that mutations get past the checksums.
func FuzzDecode(f *testing.F) {
	for _, fixture := range registrationtest.Fixtures() {
		c := fixture.Handoff[:registration.CopySize]
		n := min(binary.LittleEndian.Uint32(c[32:]), 4096)
		f.Add(c[:64+n])
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		checkDecode(t, data)
		if len(data) < 64 || len(data) > registration.CopySize {
			return
		}
		c := bytes.Clone(data)
		copy(c, "WCREGIST")
		binary.LittleEndian.PutUint32(c[8:], 1)
		binary.LittleEndian.PutUint32(c[12:], 64)
		binary.LittleEndian.PutUint32(c[32:], uint32(len(c)-64))
		clear(c[36:56])
		checkDecode(t, registrationtest.Seal(c))
	})
}

func checkDecode(t *testing.T, data []byte) {
	t.Helper()
	b, err := registration.Decode(data)
	if err != nil {
		var format *registration.FormatError
		if b != nil || !errors.As(err, &format) {
			t.Fatalf("Decode() = %v, %v; want nil and a FormatError", b, err)
		}
		return
	}
	again, err := b.AppendBinary(nil)
	if err != nil {
		t.Fatalf("AppendBinary(Decode()) = %v for %+v", err, b)
	}
	got, err := registration.Decode(again)
	if err != nil {
		t.Fatalf("Decode(AppendBinary(Decode())) = %v", err)
	}
	if diff := cmp.Diff(b, got); diff != "" {
		t.Fatalf("Decode(AppendBinary(Decode())) (-want +got):\n%s", diff)
	}
}

// FuzzLoad places its inputs at the start of each copy.
func FuzzLoad(f *testing.F) {
	for _, fixture := range registrationtest.Fixtures() {
		a, b := fixture.Handoff[:1024], fixture.Handoff[registration.CopyBOff:][:1024]
		f.Add(a, b)
	}
	f.Fuzz(func(t *testing.T, a, b []byte) {
		area := make([]byte, registration.CopiesSize)
		copy(area[:registration.CopyBOff], a)
		copy(area[registration.CopyBOff:], b)
		before, loadErr := registration.Load(area)
		if loadErr != nil && (before != nil || errors.Is(loadErr, registration.ErrEmpty) == errors.Is(loadErr, registration.ErrNone)) {
			t.Fatalf("Load() = %v, %v; want nil and either ErrEmpty or ErrNone", before, loadErr)
		}
		next := &registration.Block{State: registration.Prearmed}
		off, data, err := registration.Store(next, area)
		if err != nil {
			t.Fatalf("Store() = %v", err)
		}
		// A write that never got to its end, then the whole one.
		for i := range data {
			area[off+i] ^= 0xff
		}
		if after, err := registration.Load(area); loadErr == nil && (err != nil || after.Sequence != before.Sequence) {
			t.Fatalf("Load() with the stored copy damaged = %v, %v; want sequence %d", after, err, before.Sequence)
		}
		copy(area[off:], data)
		after, err := registration.Load(area)
		if err != nil {
			t.Fatalf("Load() after Store() = %v", err)
		}
		if diff := cmp.Diff(next, after); diff != "" {
			t.Fatalf("Load() after Store() (-want +got):\n%s", diff)
		}
	})
}

func FuzzDecodeRecord(f *testing.F) {
	f.Add(recordBytes)
	f.Add(make([]byte, registration.RecordLen))
	f.Add(recordBytes[:100])
	f.Fuzz(func(t *testing.T, data []byte) {
		checkRecord(t, data)
		if len(data) < registration.RecordLen {
			return
		}
		sealed := bytes.Clone(data)
		copy(sealed, recordBytes[:12])
		clear(sealed[44:48])
		clear(sealed[56:64])
		clear(sealed[96:120])
		sealRecord(sealed)
		if !checkRecord(t, sealed) {
			t.Fatal("DecodeRecord() refused a sealed record")
		}
	})
}

// checkRecord says whether data decodes.
func checkRecord(t *testing.T, data []byte) bool {
	t.Helper()
	r, err := registration.DecodeRecord(data)
	if err != nil {
		if r != (registration.Record{}) {
			t.Fatalf("DecodeRecord() = %+v with %v, want the zero Record", r, err)
		}
		return false
	}
	again, err := r.AppendBinary(nil)
	if err != nil || !bytes.Equal(again, data[:registration.RecordLen]) {
		t.Fatalf("AppendBinary(DecodeRecord()) = % x, %v; want % x", again, err, data[:registration.RecordLen])
	}
	return true
}

// FuzzDecodeLogs places its inputs at the start of each slot, the second with
// the checksum of its header made right.
func FuzzDecodeLogs(f *testing.F) {
	f.Add(registration.EncodeLog(text("old", 1)), registration.EncodeLog(text("new", 2)))
	f.Add(registration.EncodeLog(text("", 0)), []byte(nil))
	f.Add([]byte("WCLOG\x00\x00\x00\x01\x00\x00\x00\xff\xff\xff\xff"), []byte("WCLOG"))
	f.Fuzz(func(t *testing.T, a, b []byte) {
		area := make([]byte, registration.CoreHeaderOff)
		copy(area[slot0:slot1], a)
		copy(area[slot1:], b)
		sealLog(area[slot1:])
		before, previous, err := registration.DecodeLogs(area)
		zero := before.Boot == 0 && before.Text == nil && previous.Boot == 0 && previous.Text == nil
		if err != nil && !zero {
			t.Fatalf("DecodeLogs() = %v, %v with %v, want zero", before, previous, err)
		}
		off, boot := registration.NextLogSlot(area)
		next := registration.Log{Boot: boot, Text: a}
		copy(area[off:], registration.EncodeLog(next))
		current, previous, err2 := registration.DecodeLogs(area)
		if err2 != nil || current.Boot != boot || !bytes.Equal(current.Text, a) {
			t.Fatalf("DecodeLogs() = %v, %v; want boot %d with the text that was stored", current, err2, boot)
		}
		if err == nil && cmp.Diff(before, previous) != "" {
			t.Fatalf("DecodeLogs() previous = %v, want %v", previous, before)
		}
	})
}
