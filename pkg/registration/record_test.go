package registration_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/warmcore/warmcore/pkg/registration"
)

func record() registration.Record {
	return registration.Record{
		Nonce:      [16]byte(bytes.Repeat([]byte{0xa5}, 16)),
		Flags:      registration.RecordPanic,
		CPU:        1,
		Expected:   2,
		Flushed:    2,
		FlushedMap: [32]byte{0: 3},
		Ticks:      0x0102_0304_0506_0708,
	}
}

// recordBytes is what the stub writes, by hand.
var recordBytes = []byte{
	'W', 'C', 'R', 'E', 'C', 'O', 'R', 'D', // magic
	1, 0, 0, 0, // version
	1, 0, 0, 0, // flags
	0xa5, 0xa5, 0xa5, 0xa5, 0xa5, 0xa5, 0xa5, 0xa5, // nonce
	0xa5, 0xa5, 0xa5, 0xa5, 0xa5, 0xa5, 0xa5, 0xa5,
	1, 0, 0, 0, // CPU
	2, 0, 0, 0, // expected
	2, 0, 0, 0, // flushed
	0, 0, 0, 0, // zero
	8, 7, 6, 5, 4, 3, 2, 1, // ticks
	0, 0, 0, 0, 0, 0, 0, 0, // zero
	3, 0, 0, 0, 0, 0, 0, 0, // bitmap
	0, 0, 0, 0, 0, 0, 0, 0,
	0, 0, 0, 0, 0, 0, 0, 0,
	0, 0, 0, 0, 0, 0, 0, 0,
	0, 0, 0, 0, 0, 0, 0, 0, // zero
	0, 0, 0, 0, 0, 0, 0, 0,
	0, 0, 0, 0, 0, 0, 0, 0,
	0, 0, 0, 0, 0, 0, 0, 0, // checksum, added by init
}

func init() { sealRecord(recordBytes) }

// sealRecord stores the checksum, in the stub's own arithmetic.
func sealRecord(b []byte) {
	sum := uint64(0x574152434f524531)
	for off := 0; off < 120; off += 8 {
		sum += binary.LittleEndian.Uint64(b[off:])
	}
	binary.LittleEndian.PutUint64(b[120:], sum)
}

func TestRecordRoundTrip(t *testing.T) {
	b, err := record().AppendBinary([]byte("before"))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(append([]byte("before"), recordBytes...), b); diff != "" {
		t.Errorf("AppendBinary() (-want +got):\n%s", diff)
	}
	// The bytes after the record are ignored.
	got, err := registration.DecodeRecord(append(bytes.Clone(recordBytes), 0xff))
	if err != nil || got != record() {
		t.Errorf("DecodeRecord() = %+v, %v; want %+v", got, err, record())
	}
}

func TestRecordRefused(t *testing.T) {
	set := func(off int, v byte) []byte {
		b := bytes.Clone(recordBytes)
		b[off] = v
		sealRecord(b)
		return b
	}
	unsealed := bytes.Clone(recordBytes)
	unsealed[60] = 1
	cleared := bytes.Clone(recordBytes)
	clear(cleared[:8])
	for _, tc := range []struct {
		name string
		data []byte
		err  error
		want string
	}{
		{"nothing", nil, registration.ErrTooShort, "crash record"},
		{"short", recordBytes[:127], registration.ErrTooShort, "crash record"},
		{"zero", make([]byte, 128), registration.ErrMagic, "magic"},
		{"all ones", bytes.Repeat([]byte{0xff}, 128), registration.ErrMagic, "magic"},
		{"reset while writing", cleared, registration.ErrMagic, "magic"},
		{"other version", set(8, 2), registration.ErrVersion, "version"},
		{"checksum", unsealed, registration.ErrChecksum, "checksum"},
		{"zero at 44", set(44, 1), registration.ErrValue, "offset 0x2c"},
		{"zero at 56", set(63, 1), registration.ErrValue, "offset 0x3f"},
		{"zero at 96", set(119, 1), registration.ErrValue, "offset 0x77"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r, err := registration.DecodeRecord(tc.data)
			if r != (registration.Record{}) || !errors.Is(err, tc.err) || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("DecodeRecord() = %+v, %v; want %q around %q", r, err, tc.want, tc.err)
			}
		})
	}
}

func TestEverySingleBitFlipOfARecordIsDetected(t *testing.T) {
	b := bytes.Clone(recordBytes)
	for bit := range 8 * len(b) {
		b[bit/8] ^= 1 << (bit % 8)
		if r, err := registration.DecodeRecord(b); err == nil {
			t.Errorf("DecodeRecord() with bit %d of byte %d flipped = %+v, want an error", bit%8, bit/8, r)
		}
		b[bit/8] ^= 1 << (bit % 8)
	}
}
