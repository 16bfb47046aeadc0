package checksum

import (
	"bytes"
	"encoding/json"
	"errors"
	"hash/crc32"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// file is a file in memory, of fixed size.
type file []byte

func (f file) WriteAt(p []byte, off int64) (int, error) { return copy(f[off:], p), nil }

// plain computes sums in the simplest way.
func plain(b []byte) Sums {
	s := Sums{Size: int64(len(b)), Blocks: []uint32{}}
	for len(b) > 0 {
		n := min(len(b), BlockSize)
		s.Blocks = append(s.Blocks, crc32.Checksum(b[:n], crc32.MakeTable(crc32.Castagnoli)))
		b = b[n:]
	}
	return s
}

func TestWriter(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	const size = 5*BlockSize + 777
	type write struct{ off, n int }
	for _, tc := range []struct {
		name   string
		size   int
		writes []write
	}{
		{"nothing", 0, nil},
		{"one byte", 1, []write{{0, 1}}},
		{"whole blocks", 2 * BlockSize, []write{{BlockSize, BlockSize}, {0, BlockSize}}},
		{"several blocks at once", size, []write{{0, size}}},
		{"hole", size, []write{{5 * BlockSize, 777}}},
		{"hole at the end", size, []write{{10, 20}}},
		{"backwards", BlockSize, []write{{900, BlockSize - 900}, {500, 400}, {0, 500}}},
		{"gap is filled last", BlockSize, []write{{0, 100}, {200, BlockSize - 200}, {100, 100}}},
		{"across blocks", size, []write{{BlockSize - 5, 10}, {2*BlockSize - 5, BlockSize + 10}, {5, 100}}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			f := make(file, tc.size)
			w := NewWriter(f)
			for _, x := range tc.writes {
				b := make([]byte, x.n)
				for i := range b {
					b[i] = byte(rng.Uint32())
				}
				if _, err := w.WriteAt(b, int64(x.off)); err != nil {
					t.Fatal(err)
				}
			}
			got, err := w.Sums(int64(tc.size))
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(plain(f), got); diff != "" {
				t.Errorf("sums (-want +got):\n%s", diff)
			}
		})
	}
}

// A file that is written in random pieces, by several goroutines.
func TestWriterConcurrent(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	want := make([]byte, 9*BlockSize+12345)
	for i := range want {
		want[i] = byte(rng.Uint32())
	}
	var pieces [][2]int
	for off := 0; off < len(want); {
		n := min(len(want)-off, 1+rng.IntN(300<<10))
		pieces = append(pieces, [2]int{off, off + n})
		off += n
	}
	rng.Shuffle(len(pieces), func(i, j int) { pieces[i], pieces[j] = pieces[j], pieces[i] })
	f := make(file, len(want))
	w := NewWriter(f)
	var wg sync.WaitGroup
	for i := range 4 {
		wg.Go(func() {
			for ; i < len(pieces); i += 4 {
				p := pieces[i]
				if _, err := w.WriteAt(want[p[0]:p[1]], int64(p[0])); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	got, err := w.Sums(-1)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(plain(want), got); diff != "" {
		t.Errorf("sums (-want +got):\n%s", diff)
	}
	if len(w.part) > 1 {
		t.Errorf("%d blocks are still in parts, want the last at most", len(w.part))
	}
}

func TestWriterErrors(t *testing.T) {
	w := NewWriter(make(file, 100))
	for _, off := range []int64{0, 5} {
		if _, err := w.WriteAt(make([]byte, 10), off); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := w.Sums(-1); !errors.Is(err, errTwice) {
		t.Errorf("after bytes were written twice: %v", err)
	}
	w = NewWriter(make(file, 100))
	if _, err := w.WriteAt(make([]byte, 10), -1); err == nil {
		t.Error("write at -1: no error")
	}
	if _, err := w.WriteAt(make([]byte, 10), maxBlocks*BlockSize); err == nil {
		t.Error("write past the last block: no error")
	}
	if _, err := w.WriteAt(make([]byte, 10), 90); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Sums(99); err == nil {
		t.Error("sums of less than was written: no error")
	}
}

func TestVerify(t *testing.T) {
	b := make([]byte, 3*BlockSize+100)
	for i := range b {
		b[i] = byte(i * i >> 8)
	}
	sums := plain(b)
	for _, tc := range []struct {
		name  string
		spoil int
		want  []int64 // offsets of bad blocks
	}{
		{"good", -1, nil},
		{"first byte", 0, []int64{0}},
		{"second block", BlockSize + 7, []int64{BlockSize}},
		{"last byte", len(b) - 1, []int64{3 * BlockSize}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c := bytes.Clone(b)
			if tc.spoil >= 0 {
				c[tc.spoil] ^= 0x10
			}
			var got []int64
			var done int64
			err := Verify(bytes.NewReader(c), int64(len(c)), sums, func(b Bad) { got = append(got, b.Offset) }, func(n int64) { done = n })
			if diff := cmp.Diff(tc.want, got); err != nil || diff != "" || done != int64(len(c)) {
				t.Errorf("%v, %d bytes done, bad blocks (-want +got):\n%s", err, done, diff)
			}
		})
	}
	if err := Verify(bytes.NewReader(b), int64(len(b)-1), sums, nil, nil); !errors.Is(err, ErrSize) {
		t.Errorf("a file that is cut off: %v, want ErrSize", err)
	}
	if err := Verify(bytes.NewReader(b[:10]), int64(len(b)), sums, nil, nil); err == nil {
		t.Error("a file that can't be read: no error")
	}
}

func TestJSON(t *testing.T) {
	want := Sums{Size: BlockSize + 1, Blocks: []uint32{0x01020304, 0xa0b0c0d0}}
	text, err := json.Marshal(want)
	if err != nil {
		t.Fatal(err)
	}
	if s := `{"algorithm":"crc32c","block":1048576,"size":1048577,"sums":"AQIDBKCwwNA="}`; string(text) != s {
		t.Errorf("JSON is %s, want %s", text, s)
	}
	var got Sums
	if err := json.Unmarshal(text, &got); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("round trip (-want +got):\n%s", diff)
	}
	for _, change := range [][2]string{
		{"crc32c", "crc32"}, {"1048576", "4096"}, {"1048577", "1048576"}, {"1048577", "-1"}, {"1048577", "99999999999999"}, {"AQID", "AQ!D"}, {`"AQ`, "3"},
	} {
		var s Sums
		if err := json.Unmarshal([]byte(strings.Replace(string(text), change[0], change[1], 1)), &s); err == nil {
			t.Errorf("with %s in place of %s: %+v, no error", change[1], change[0], s)
		}
	}
}

func FuzzSums(f *testing.F) {
	f.Add([]byte(`{"algorithm":"crc32c","block":1048576,"size":1048577,"sums":"AQIDBKCwwNA="}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		var s Sums
		if err := json.Unmarshal(text, &s); err != nil {
			if s.Size != 0 || s.Blocks != nil {
				t.Fatalf("error %v, and %+v", err, s)
			}
			return
		}
		again, err := json.Marshal(s)
		if err != nil {
			t.Fatal(err)
		}
		var back Sums
		if err := json.Unmarshal(again, &back); err != nil || !cmp.Equal(s, back) {
			t.Fatalf("round trip: %+v, %v; want %+v", back, err, s)
		}
	})
}
