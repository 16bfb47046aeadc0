package printk

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/warmcore/warmcore/pkg/printk/printktest"
)

func TestLogBuffer(t *testing.T) {
	info := parse(t, printktest.LogBufferInfo)
	t.Run("empty", func(t *testing.T) {
		l, err := Read(info, printktest.NewLogBuffer())
		if err != nil || len(l.Records) != 0 || l.Lost != 0 {
			t.Errorf("Read = %v, %d lost, %v; want nothing", texts(l), l.Lost, err)
		}
	})
	t.Run("a record", func(t *testing.T) {
		b := printktest.NewLogBuffer()
		b.Print(2, "Linux\nversion", "SUBSYSTEM=acpi\x00DEVICE=+acpi:x")
		l, err := Read(info, b)
		if err != nil {
			t.Fatal(err)
		}
		want := Log{Records: []Record{{Nanos: 3e9, Facility: 3, Level: 6, Text: []byte("Linux\nversion")}}}
		if diff := cmp.Diff(want, l); diff != "" {
			t.Errorf("log (-want +got):\n%s", diff)
		}
		wantText := "[    3.000000] Linux\n[    3.000000] version\n"
		if diff := cmp.Diff(wantText, string(l.AppendText(nil))); diff != "" {
			t.Errorf("text (-want +got):\n%s", diff)
		}
	})
	t.Run("before v3.11", func(t *testing.T) {
		b := printktest.NewLogBuffer()
		b.Print(0, "old", "")
		l, err := Read(parse(t, strings.ReplaceAll(printktest.LogBufferInfo, "printk_log", "log")), b)
		if diff := cmp.Diff([]string{"0 old"}, texts(l)); diff != "" || err != nil || l.Lost != 0 {
			t.Errorf("records, error %v, %d lost (-want +got):\n%s", err, l.Lost, diff)
		}
	})
	t.Run("with callers", func(t *testing.T) {
		// CONFIG_PRINTK_CALLER makes the header longer.
		b := printktest.NewLogBuffer()
		b.Print(0, "T1  text", "")
		l, err := Read(parse(t, strings.Replace(printktest.LogBufferInfo, "=16", "=20", 1)), b)
		if err != nil || len(l.Records) != 0 || l.Lost != 1 {
			t.Errorf("Read of a record without the caller = %v, %d lost, %v", texts(l), l.Lost, err)
		}
		le.PutUint16(b.Record(0)[10:], 4)
		l, err = Read(parse(t, strings.Replace(printktest.LogBufferInfo, "=16", "=20", 1)), b)
		if diff := cmp.Diff([]string{"0 text"}, texts(l)); diff != "" || err != nil || l.Lost != 0 {
			t.Errorf("records, error %v, %d lost (-want +got):\n%s", err, l.Lost, diff)
		}
	})
	// Every number of messages, so that the log ends at every place.
	for n := range 40 {
		t.Run(fmt.Sprintf("%d messages", n), func(t *testing.T) {
			b := printktest.NewLogBuffer()
			var all []string
			for seq := range n {
				text := strings.Repeat(string(rune('a'+seq%26)), seq*7%31)
				b.Print(uint64(seq), text, strings.Repeat("D", seq%3))
				all = append(all, text)
			}
			l, err := Read(info, b)
			if err != nil || l.Lost != 0 || len(l.Records) < min(n, 4) {
				t.Fatalf("Read = %v, %d lost, %v", texts(l), l.Lost, err)
			}
			var got []string
			for _, r := range l.Records {
				got = append(got, string(r.Text))
			}
			if diff := cmp.Diff(all[n-len(got):], got); diff != "" && n > 0 {
				t.Errorf("the newest records (-want +got):\n%s", diff)
			}
		})
	}
}

// wrapped is a log of records of 40 bytes: "four", "five" and "six" at 120 to
// 240, then "seven" and "eight" at 0 to 80. at has their offsets.
func wrapped() (b *printktest.LogBuffer, at map[string]uint32) {
	b, at = printktest.NewLogBuffer(), map[string]uint32{}
	for i, text := range []string{"one", "two", "three", "four", "five", "six", "seven", "eight"} {
		at[text] = b.Print(uint64(i), text+strings.Repeat(".", 24-len(text)), "")
	}
	return b, at
}

func words(l Log) (list []string) {
	for _, r := range l.Records {
		list = append(list, strings.TrimRight(string(r.Text), "."))
	}
	return list
}

func TestLogBufferCorruptRecord(t *testing.T) {
	for _, tc := range []struct {
		name   string
		victim string
		off    int // of a u16 in the record
		value  uint16
		want   string
		lost   int
	}{
		{"nothing", "three", 10, 40, "four five six seven eight", 0}, // it has been overwritten in part
		{"text longer than the record", "five", 10, 25, "four six seven eight", 1},
		{"dictionary longer than the record", "four", 12, 0xffff, "five six seven eight", 1},
		{"length less than the header", "five", 8, 15, "four six seven eight", 1},
		{"no progress", "eight", 8, 0, "four five six seven", 1},
		{"wraps early", "six", 8, 0, "four five seven eight", 0}, // as a log may
		{"length beyond the buffer", "five", 8, 0xfffc, "four six seven eight", 1},
		{"length beyond the newest", "seven", 8, 84, "four five six eight", 1},
		{"length into the next", "four", 8, 40 + 16, "four six seven eight", 1},
	} {
		t.Run(tc.name, func(t *testing.T) {
			b, at := wrapped()
			le.PutUint16(b.Record(at[tc.victim])[tc.off:], tc.value)
			l, err := Read(parse(t, printktest.LogBufferInfo), b)
			if diff := cmp.Diff(strings.Fields(tc.want), words(l)); diff != "" || err != nil || l.Lost != tc.lost {
				t.Errorf("records, error %v, %d lost, want %d (-want +got):\n%s", err, l.Lost, tc.lost, diff)
			}
		})
	}
	t.Run("a log that has not wrapped", func(t *testing.T) {
		b, at := printktest.NewLogBuffer(), map[string]uint32{}
		for i, text := range []string{"one", "two", "three", "panic"} {
			at[text] = b.Print(uint64(i), text, "")
		}
		le.PutUint16(b.Record(at["two"])[8:], 7)
		l, err := Read(parse(t, printktest.LogBufferInfo), b)
		if diff := cmp.Diff([]string{"one", "three", "panic"}, words(l)); diff != "" || err != nil || l.Lost != 1 {
			t.Errorf("records, error %v, %d lost, want 1 (-want +got):\n%s", err, l.Lost, diff)
		}
	})
	t.Run("a cycle", func(t *testing.T) {
		// The empty header leads back to the beginning of a log that hasn't
		// wrapped.
		b, _ := wrapped()
		b.Ends(80, 256)
		l, err := Read(parse(t, printktest.LogBufferInfo), b)
		if err != nil || len(l.Records) != 4 || l.Lost != 1 {
			t.Errorf("Read = %v, %d lost, %v; want 4 records", words(l), l.Lost, err)
		}
	})
}

func TestLogBufferCorrupt(t *testing.T) {
	for _, tc := range []struct {
		name    string
		corrupt func(b *printktest.LogBuffer)
		want    string
	}{
		{"no buffer", func(b *printktest.LogBuffer) { le.PutUint32(b.Memory[printktest.AtLogLen:], 0) }, "log_buf_len is 0, want 16"},
		{"too large", func(b *printktest.LogBuffer) { le.PutUint32(b.Memory[printktest.AtLogLen:], 1<<31+1) }, "log_buf_len is 2147483649"},
		{"first out of range", func(b *printktest.LogBuffer) { b.Ends(256, 0) }, "log_first_idx is 256, beyond the 256"},
		{"next out of range", func(b *printktest.LogBuffer) { b.Ends(0, 257) }, "log_next_idx is 257, beyond the 256"},
		{"symbols in a hole", func(b *printktest.LogBuffer) { b.Memory = b.Memory[:printktest.AtNext] }, "log_next_idx at 0xffffffff81000018: hole"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			b, _ := wrapped()
			tc.corrupt(b)
			l, err := Read(parse(t, printktest.LogBufferInfo), b)
			if err == nil || !strings.Contains(err.Error(), tc.want) || l.Records != nil {
				t.Errorf("Read = %v, %v; want an error with %q", words(l), err, tc.want)
			}
		})
	}
	for _, base := range []uint64{0, printktest.Base + 1<<20, 1<<64 - 64} {
		b, _ := wrapped()
		le.PutUint64(b.Memory[printktest.AtLogBuf:], base)
		if l, err := Read(parse(t, printktest.LogBufferInfo), b); err != nil || len(l.Records) != 0 || l.Lost != 2 {
			t.Errorf("log at %#x: %v, %d lost, %v; want both parts lost", base, words(l), l.Lost, err)
		}
	}
}

// hollow is a log whose memory has a hole.
type hollow struct {
	*printktest.LogBuffer
	start, end uint64
}

func (h hollow) ReadVirtual(p []byte, addr uint64) error {
	if addr < h.end && addr+uint64(len(p)) > h.start {
		return errors.New("hole")
	}
	return h.LogBuffer.ReadVirtual(p, addr)
}

func TestLogBufferUnreadableText(t *testing.T) {
	b, at := wrapped()
	text := uint64(printktest.Base+printktest.AtRecords) + uint64(at["four"]) + 16
	l, err := Read(parse(t, printktest.LogBufferInfo), hollow{b, text, text + 24})
	if diff := cmp.Diff([]string{"five", "six", "seven", "eight"}, words(l)); diff != "" || err != nil || l.Lost != 1 {
		t.Errorf("records, error %v, %d lost, want 1 (-want +got):\n%s", err, l.Lost, diff)
	}
}

func TestLogBufferLayout(t *testing.T) {
	for _, tc := range []struct{ name, old, new, want string }{
		{"symbol missing", "SYMBOL(log_next_idx)=ffffffff81000018\n", "", "SYMBOL(log_next_idx) is missing"},
		{"size missing", "SIZE(printk_log)=16\n", "", "SIZE(printk_log) is 0"},
		{"size too large", "SIZE(printk_log)=16", "SIZE(printk_log)=4097", "SIZE(printk_log) is 4097"},
		{"offset missing", "OFFSET(printk_log.len)=8\n", "", "OFFSET(printk_log.len) is missing"},
		{"offset too large", "dict_len)=12", "dict_len)=13", "OFFSET(printk_log.dict_len) is 13, beyond the 16 bytes"},
		{"offset wraps", "ts_nsec)=0", "ts_nsec)=18446744073709551615", "beyond the 16 bytes"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			text := strings.Replace(printktest.LogBufferInfo, tc.old, tc.new, 1)
			if text == printktest.LogBufferInfo {
				t.Fatalf("%q is not in the text", tc.old)
			}
			if _, err := Read(parse(t, text), printktest.NewLogBuffer()); err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("Read error = %v, want %q", err, tc.want)
			}
		})
	}
}

func TestKeeper(t *testing.T) {
	var k keeper
	text := make([]byte, 1<<20)
	for i := range uint64(MaxText>>20 + 3) {
		k.add(Record{Sequence: i, Text: text})
	}
	if l := k.log(); len(l.Records) != MaxText>>20 || l.Lost != 3 || l.Records[0].Sequence != 3 {
		t.Errorf("%d records, %d lost; want %d, the newest", len(l.Records), l.Lost, MaxText>>20)
	}
	// Further than the array is long.
	const more = MaxRecords + 5
	k = keeper{}
	for i := range uint64(MaxRecords + more) {
		k.add(Record{Sequence: i})
	}
	l := k.log()
	if len(l.Records) != MaxRecords || l.Lost != more {
		t.Fatalf("%d records, %d lost; want %d and %d", len(l.Records), l.Lost, MaxRecords, more)
	}
	for i, r := range l.Records {
		if r.Sequence != uint64(i+more) {
			t.Fatalf("record %d is number %d, want the newest", i, r.Sequence)
		}
	}
}
