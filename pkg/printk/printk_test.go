package printk

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/warmcore/warmcore/pkg/printk/printktest"
	"github.com/warmcore/warmcore/pkg/vmcoreinfo"
)

func parse(t testing.TB, text string) *vmcoreinfo.Info {
	t.Helper()
	info, err := vmcoreinfo.Parse([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return info
}

func texts(l Log) (list []string) {
	for _, r := range l.Records {
		list = append(list, fmt.Sprintf("%d %s", r.Sequence, r.Text))
	}
	return list
}

func TestRead(t *testing.T) {
	info := parse(t, printktest.VMCoreInfo)
	t.Run("empty", func(t *testing.T) {
		l, err := Read(info, printktest.New())
		if err != nil || len(l.Records) != 0 || l.Lost != 0 {
			t.Errorf("Read = %v, %d lost, %v; want nothing", texts(l), l.Lost, err)
		}
	})
	t.Run("a record", func(t *testing.T) {
		k := printktest.New()
		k.Print(0, "Linux version", printktest.Finalized)
		l, err := Read(info, k)
		if err != nil {
			t.Fatal(err)
		}
		want := Log{Records: []Record{{Caller: 0x80000001, Level: 6, Text: []byte("Linux version")}}}
		if diff := cmp.Diff(want, l); diff != "" {
			t.Errorf("log (-want +got):\n%s", diff)
		}
	})
	t.Run("wraps, and an empty line", func(t *testing.T) {
		k := printktest.New()
		for seq := range uint64(20) {
			text := strings.Repeat(string(rune('a'+seq)), int(seq))
			if seq == 17 {
				text = ""
			}
			state := uint64(printktest.Finalized)
			if seq == 19 {
				state = printktest.Committed // as the last one is while it may be continued
			}
			k.Print(seq, text, state)
		}
		l, err := Read(info, k)
		if err != nil {
			t.Fatal(err)
		}
		var want []string
		for seq := 12; seq < 20; seq++ {
			text := strings.Repeat(string(rune('a'+seq)), seq)
			if seq == 17 {
				text = ""
			}
			want = append(want, fmt.Sprintf("%d %s", seq, text))
		}
		if diff := cmp.Diff(want, texts(l)); diff != "" || l.Lost != 0 {
			t.Errorf("records, %d lost (-want +got):\n%s", l.Lost, diff)
		}
	})
	t.Run("died while writing", func(t *testing.T) {
		k := printktest.New()
		k.Print(0, "whole", printktest.Finalized)
		k.Print(1, "half", printktest.Reserved)
		le.PutUint16(k.Info(k.ID - 1)[16:], 0) // the length comes last
		k.Print(2, "after", printktest.Finalized)
		l, err := Read(info, k)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff([]string{"0 whole", "2 after"}, texts(l)); diff != "" || l.Lost != 1 {
			t.Errorf("records, %d lost, want 1 (-want +got):\n%s", l.Lost, diff)
		}
	})
}

// TestReadEndOfRing: blocks that end at the end of the ring, or nearly, on the
// first lap, where positions wrap to 0, and on later ones.
func TestReadEndOfRing(t *testing.T) {
	info := parse(t, printktest.VMCoreInfo)
	for _, exact := range []bool{false, true} {
		for _, short := range []int{0, 1, 7, 8, 9, 16} { // how much before the end
			for laps := 1; laps <= 4; laps++ {
				t.Run(fmt.Sprintf("exact %v, %d before the end, lap %d", exact, short, laps), func(t *testing.T) {
					k := printktest.New()
					k.Exact = exact
					var want []string
					seq := uint64(0)
					print := func(text string, state uint64) {
						k.Print(seq, text, state)
						want = append(want, fmt.Sprintf("%d %s", seq, text))
						seq++
					}
					// A lap is 256 bytes: three of 64, and one that ends near the end.
					for lap := range laps {
						for range 3 {
							print(strings.Repeat(string(rune('a'+lap)), 56), printktest.Finalized)
						}
						print(strings.Repeat(string(rune('A'+lap)), 56-short), printktest.Finalized)
						if short >= 8 {
							k.Lap() // as if the next one hadn't fitted
						}
					}
					print("Kernel panic - not syncing", printktest.Committed)
					l, err := Read(info, k)
					if err != nil {
						t.Fatal(err)
					}
					got := texts(l)
					// What the ring has no room for is overwritten; the newest are not.
					if n := min(len(got), 3); n < 3 || !slices.Equal(got[len(got)-n:], want[len(want)-n:]) {
						t.Errorf("got %q, want the end of %q", got, want)
					}
				})
			}
		}
	}
}

// TestReadStates: what a record is left in, when the kernel dies.
func TestReadStates(t *testing.T) {
	info := parse(t, printktest.VMCoreInfo)
	for _, tc := range []struct {
		name   string
		state  uint64
		damage func(k *printktest.Kernel, id uint64)
		read   bool
	}{
		{"finalized", printktest.Finalized, nil, true},
		{"committed, not finalized", printktest.Committed, nil, true},
		// A line that is being continued is reserved again, its text whole.
		{"reserved again", printktest.Reserved, nil, true},
		{"reserved, without a text", printktest.Reserved, func(k *printktest.Kernel, id uint64) { le.PutUint16(k.Info(id)[16:], 0) }, false},
		{"reserved, the block another's", printktest.Reserved, func(k *printktest.Kernel, id uint64) {
			le.PutUint64(k.Block(id), id+1)
		}, false},
		{"text dropped", printktest.Finalized, func(k *printktest.Kernel, id uint64) {
			le.PutUint64(k.Desc(id)[8:], failedPosition)
			le.PutUint64(k.Desc(id)[16:], failedPosition)
		}, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			k := printktest.New()
			k.Print(0, "before", printktest.Finalized)
			id := k.Print(1, "Kernel panic - not syncing: Fatal exception", tc.state)
			if tc.damage != nil {
				tc.damage(k, id)
			}
			l, err := Read(info, k)
			if err != nil {
				t.Fatal(err)
			}
			want, lost := []string{"0 before"}, 1
			if tc.read {
				want, lost = append(want, "1 Kernel panic - not syncing: Fatal exception"), 0
			}
			if diff := cmp.Diff(want, texts(l)); diff != "" || l.Lost != lost {
				t.Errorf("records, %d lost, want %d (-want +got):\n%s", l.Lost, lost, diff)
			}
		})
	}
}

// TestReadNewest: of a ring with more descriptors than are read, the newest
// are.
func TestReadNewest(t *testing.T) {
	k := printktest.New()
	id := k.Print(0, "Kernel panic - not syncing", printktest.Committed)
	const countBits = 23
	le.PutUint32(k.Memory[printktest.AtRing:], countBits)
	// The descriptors' array begins so far before that the last one's place is
	// where the small ring has it.
	index, small := id%(1<<countBits), id%8
	le.PutUint64(k.Memory[printktest.AtRing+8:], le.Uint64(k.Memory[printktest.AtRing+8:])-(index-small)*24)
	le.PutUint64(k.Memory[printktest.AtRing+16:], le.Uint64(k.Memory[printktest.AtRing+16:])-(index-small)*88)
	k.Ends(id-1<<countBits+1, id)
	l, err := Read(parse(t, printktest.VMCoreInfo), k)
	if err != nil || len(l.Records) != 1 || l.Records[0].Sequence != 0 || l.Lost < 1<<countBits-2 {
		t.Errorf("Read = %q, %d lost, %v; want the panic, and all others lost", texts(l), l.Lost, err)
	}
}

// TestReadLongest: a block as large as the kernel lets one be, half of the ring,
// or, since v6.18, all of it.
func TestReadLongest(t *testing.T) {
	for _, n := range []int{128 - 8, 256 - 8} {
		k := printktest.New()
		k.Exact = true
		text := strings.Repeat("x", n)
		k.Print(0, text, printktest.Committed)
		l, err := Read(parse(t, printktest.VMCoreInfo), k)
		if err != nil || len(l.Records) != 1 || string(l.Records[0].Text) != text {
			t.Errorf("a text of %d: %q, %d lost, %v", n, texts(l), l.Lost, err)
		}
	}
}

// Every corruption of one record costs that record only.
func TestReadCorruptRecord(t *testing.T) {
	info := parse(t, printktest.VMCoreInfo)
	for _, tc := range []struct {
		name    string
		corrupt func(k *printktest.Kernel, id uint64)
	}{
		{"id of another", func(k *printktest.Kernel, id uint64) {
			le.PutUint64(k.Desc(id), stateFinalized<<stateShift|(id+8)&idMask)
		}},
		{"text position not aligned", func(k *printktest.Kernel, id uint64) { le.PutUint64(k.Desc(id)[8:], le.Uint64(k.Desc(id)[8:])+2) }},
		{"text ends before it begins", func(k *printktest.Kernel, id uint64) { le.PutUint64(k.Desc(id)[16:], le.Uint64(k.Desc(id)[8:])-8) }},
		{"text ends where it begins", func(k *printktest.Kernel, id uint64) { le.PutUint64(k.Desc(id)[16:], le.Uint64(k.Desc(id)[8:])) }},
		{"text far away", func(k *printktest.Kernel, id uint64) { le.PutUint64(k.Desc(id)[16:], 1<<40) }},
		{"text dropped", func(k *printktest.Kernel, id uint64) {
			le.PutUint64(k.Desc(id)[8:], failedPosition)
			le.PutUint64(k.Desc(id)[16:], failedPosition)
		}},
		{"text longer than its block", func(k *printktest.Kernel, id uint64) { le.PutUint16(k.Info(id)[16:], 0xffff) }},
	} {
		t.Run(tc.name, func(t *testing.T) {
			k := printktest.New()
			k.Print(0, "before", printktest.Finalized)
			id := k.Print(1, "victim", printktest.Finalized)
			k.Print(2, "after", printktest.Finalized)
			tc.corrupt(k, id)
			l, err := Read(info, k)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff([]string{"0 before", "2 after"}, texts(l)); diff != "" || l.Lost != 1 {
				t.Errorf("records, %d lost, want 1 (-want +got):\n%s", l.Lost, diff)
			}
		})
	}
}

func TestReadCorruptRing(t *testing.T) {
	for _, tc := range []struct {
		name    string
		corrupt func(k *printktest.Kernel)
		want    string
	}{
		{"pointer into nowhere", func(k *printktest.Kernel) { le.PutUint64(k.Memory[printktest.AtPrb:], 1) }, "struct printk_ringbuffer at 0x1"},
		{"too many descriptors", func(k *printktest.Kernel) { le.PutUint32(k.Memory[printktest.AtRing:], 31) }, "count_bits is 31"},
		{"count wraps", func(k *printktest.Kernel) { le.PutUint32(k.Memory[printktest.AtRing:], 64) }, "count_bits is 64"},
		{"text ring too large", func(k *printktest.Kernel) { le.PutUint32(k.Memory[printktest.AtRing+48:], 32) }, "size_bits is 32"},
		{"text ring too small", func(k *printktest.Kernel) { le.PutUint32(k.Memory[printktest.AtRing+48:], 0) }, "size_bits is 0"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			k := printktest.New()
			tc.corrupt(k)
			l, err := Read(parse(t, printktest.VMCoreInfo), k)
			if err == nil || !strings.Contains(err.Error(), tc.want) || l.Records != nil {
				t.Errorf("Read = %v, %v; want an error with %q", texts(l), err, tc.want)
			}
		})
	}
	t.Run("head and tail contradict each other", func(t *testing.T) {
		k := printktest.New()
		for seq := range uint64(8) {
			k.Print(seq, "x", printktest.Finalized)
		}
		k.Ends(12345, k.ID-1)
		l, err := Read(parse(t, printktest.VMCoreInfo), k)
		if err != nil || len(l.Records) != 8 {
			t.Errorf("Read = %v, %v; want the 8 records before head", texts(l), err)
		}
	})
	t.Run("arrays in a hole", func(t *testing.T) {
		k := printktest.New()
		k.Print(0, "x", printktest.Finalized)
		le.PutUint64(k.Memory[printktest.AtRing+8:], 1<<64-16)
		l, err := Read(parse(t, printktest.VMCoreInfo), k)
		if err != nil || len(l.Records) != 0 || l.Lost != 1 {
			t.Errorf("Read = %v, %d lost, %v; want 1 lost", texts(l), l.Lost, err)
		}
	})
}

func TestReadLayout(t *testing.T) {
	if _, err := Read(parse(t, "OSRELEASE=3.4.0\n"), printktest.New()); !errors.Is(err, ErrNoLog) {
		t.Errorf("Read without prb and log_first_idx: %v, want ErrNoLog", err)
	}
	for _, tc := range []struct{ name, old, new, want string }{
		{"size missing", "SIZE(prb_desc)=24\n", "", "SIZE(prb_desc) is 0"},
		{"size too large", "SIZE(prb_desc)=24", "SIZE(prb_desc)=99999", "SIZE(prb_desc) is 99999"},
		{"offset missing", "OFFSET(prb_desc.state_var)=0\n", "", "OFFSET(prb_desc.state_var) is missing"},
		{"offset too large", "printk_info.text_len)=16", "printk_info.text_len)=86", "OFFSET(printk_info.text_len) is 86"},
		{"offset wraps", "prb_desc_ring.descs)=8", "prb_desc_ring.descs)=18446744073709551615", "beyond the 88 bytes"},
		{"offsets add up to too much", "text_data_ring)=48", "text_data_ring)=80", "fields reach to byte 96"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			text := strings.Replace(printktest.VMCoreInfo, tc.old, tc.new, 1)
			if text == printktest.VMCoreInfo {
				t.Fatalf("%q is not in the text", tc.old)
			}
			if _, err := Read(parse(t, text), printktest.New()); err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("Read error = %v, want %q", err, tc.want)
			}
		})
	}
}

func TestAppendText(t *testing.T) {
	l := Log{Records: []Record{
		{Nanos: 1_234_567_890, Text: []byte("one\ttab\ntwo")},
		{Nanos: 123_456_000_000_000, Text: []byte("\x1b[2Jpanic: \u00fc\x00\r")},
		{},
	}}
	want := "[    1.234567] one\ttab\n" +
		"[    1.234567] two\n" +
		"[123456.000000] \\x1b[2Jpanic: \u00fc\\x00\\x0d\n" +
		"[    0.000000] \n"
	if diff := cmp.Diff(want, string(l.AppendText(nil))); diff != "" {
		t.Errorf("text (-want +got):\n%s", diff)
	}
}

func FuzzRead(f *testing.F) {
	k := printktest.New()
	f.Add([]byte(k.Memory), printktest.VMCoreInfo)
	for seq := range uint64(12) {
		k.Print(seq, strings.Repeat("text ", int(seq)), printktest.Finalized)
	}
	f.Add([]byte(k.Memory), printktest.VMCoreInfo)
	f.Add([]byte(k.Memory), strings.Replace(printktest.VMCoreInfo, "SIZE(printk_info)=88", "SIZE(printk_info)=24", 1))
	old := printktest.NewLogBuffer()
	f.Add([]byte(old.Memory), printktest.LogBufferInfo)
	for seq := range uint64(12) {
		old.Print(seq, strings.Repeat("text ", int(seq)), "KEY=1")
	}
	f.Add([]byte(old.Memory), printktest.LogBufferInfo)
	f.Add([]byte(old.Memory), strings.Replace(printktest.LogBufferInfo, "SIZE(printk_log)=16", "SIZE(printk_log)=20", 1))
	f.Fuzz(func(t *testing.T, mem []byte, text string) {
		info, err := vmcoreinfo.Parse([]byte(text))
		if err != nil {
			return
		}
		l, err := Read(info, printktest.Memory(mem))
		if err != nil {
			if l.Records != nil || l.Lost != 0 {
				t.Errorf("Read = %v with error %v", l, err)
			}
			return
		}
		if n := len(l.Records); n > MaxRecords || l.Lost > 1<<maxCountBits {
			t.Errorf("%d records and %d lost, want at most %d and %d", n, l.Lost, MaxRecords, 1<<maxCountBits)
		}
		for _, line := range bytes.Split(l.AppendText(nil), []byte{'\n'}) {
			if bytes.ContainsAny(line, "\x1b\r\x00") {
				t.Errorf("control character in %q", line)
			}
		}
	})
}
