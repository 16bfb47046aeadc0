package flattened_test

import (
	"bytes"
	"errors"
	"io"
	"math"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/warmcore/warmcore/pkg/vmcore/flattened"
	"github.com/warmcore/warmcore/pkg/vmcore/vmcoretest"
)

// memory is an io.WriterAt.
type memory []byte

func (m *memory) WriteAt(p []byte, off int64) (int, error) {
	if end := off + int64(len(p)); end > int64(len(*m)) {
		*m = append(*m, make([]byte, end-int64(len(*m)))...)
	}
	return copy((*m)[off:], p), nil
}

type write struct {
	off  int64
	data string
}

// form writes writes, and what they make.
func form(t *testing.T, writes ...write) (b, want []byte) {
	t.Helper()
	var buf bytes.Buffer
	w, err := flattened.NewWriter(&buf)
	if err != nil {
		t.Fatal(err)
	}
	var file memory
	for _, x := range writes {
		if n, err := w.WriteAt([]byte(x.data), x.off); n != len(x.data) || err != nil {
			t.Fatalf("WriteAt(%q, %d): %d, %v", x.data, x.off, n, err)
		}
		file.WriteAt([]byte(x.data), x.off)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes(), file
}

func TestRoundTrip(t *testing.T) {
	tests := []struct {
		name   string
		writes []write
	}{
		{"one", []write{{0, "abc"}}},
		{"inOrder", []write{{0, "abcd"}, {4, "efgh"}, {8, "ij"}}},
		{"gap", []write{{3, "abcd"}, {20, "x"}}},
		{"backwards", []write{{8, "ij"}, {4, "efgh"}, {0, "abcd"}}},
		{"overwritten", []write{{0, "abcdefgh"}, {2, "XY"}}},
		{"overwrittenWhole", []write{{2, "XY"}, {0, "abcdefgh"}}},
		{"overwrittenAtBothEnds", []write{{2, "cdef"}, {0, "ABC"}, {5, "FGH"}}},
		{"overwrittenTwice", []write{{0, "abcdefgh"}, {1, "BCDEF"}, {2, "xyz"}}},
		{"overwrittenRuns", []write{{0, "aa"}, {2, "bb"}, {4, "cc"}, {6, "dd"}, {1, "1"}, {2, "2"}, {3, "3"}, {4, "4"}, {5, "5"}, {6, "6"}}},
		{"sameAgain", []write{{0, "abcd"}, {0, "abcd"}, {0, "wxyz"}}},
		{"longer", []write{{0, strings.Repeat("abc", 10000)}, {30000, "x"}}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			b, want := form(t, tt.writes...)
			check(t, b, want)
			var got memory
			if n, err := flattened.Rebuild(&got, bytes.NewReader(b)); err != nil || n != int64(len(want)) {
				t.Errorf("Rebuild: %d, error %v, want %d", n, err, len(want))
			}
			if !bytes.Equal(got, want) {
				t.Errorf("rebuilt %q, want %q", got, want)
			}
		})
	}
}

// check reads all of a form and every part of it.
func check(t *testing.T, form, want []byte) {
	t.Helper()
	r, err := flattened.NewReader(bytes.NewReader(form), int64(len(form)))
	if err != nil {
		t.Fatal(err)
	}
	if !r.Complete() || r.Size() != int64(len(want)) {
		t.Errorf("complete %v, size %d, want %d", r.Complete(), r.Size(), len(want))
	}
	got, err := io.ReadAll(io.NewSectionReader(r, 0, r.Size()))
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("read %.80q, error %v, want %.80q", got, err, want)
	}
	for off := range min(len(want), 20) {
		p := make([]byte, 5)
		n, err := r.ReadAt(p, int64(off))
		if wantN := min(5, len(want)-off); n != wantN || (n < 5) != errors.Is(err, io.EOF) || !bytes.Equal(p[:n], want[off:off+n]) {
			t.Errorf("ReadAt(%d): %q, error %v, want %q", off, p[:n], err, want[off:off+wantN])
		}
	}
}

func TestRandomWrites(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for range 200 {
		var writes []write
		for i := range 1 + rng.IntN(30) {
			writes = append(writes, write{int64(rng.IntN(200)), strings.Repeat(string(rune('a'+i%26)), 1+rng.IntN(40))})
		}
		b, want := form(t, writes...)
		check(t, b, want)
	}
}

func TestOpenRefuses(t *testing.T) {
	file, _ := form(t, write{0, "abcd"}, write{4, "efgh"})
	patch := func(off, size int, value uint64) []byte { return vmcoretest.Patch(t, file, off, size, value) }
	const first = 4096
	tests := []struct {
		name string
		file []byte
		want string
	}{
		{"empty", nil, "read header"},
		{"headerCutOff", file[:4095], "read header"},
		{"onlyHeader", file[:4096], "no record"},
		{"signature", patch(0, 1, 0), "offset 0x0: signature"},
		{"type", patch(23, 1, 2), "offset 0x10: type: 2"},
		{"version", patch(31, 1, 2), "offset 0x18: version: 2"},
		{"negativeOffset", patch(first, 1, 0x80), "offset 0x1000: offset: -9223372036854775808 is negative"},
		{"size0", patch(first+15, 1, 0), "offset 0x1008: buf_size: 0x0"},
		{"negativeSize", patch(first+8, 1, 0x80), "offset 0x1008: buf_size"},
		{"farAway", patch(first+20, 1, 1), "are in no record: want at most 0x100000000"},
		{"wraps", vmcoretest.Patch(t, patch(first, 1, 0x7f), first+8, 1, 0x7f), "offset 0x1008: buf_size"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r, err := flattened.NewReader(bytes.NewReader(tt.file), int64(len(tt.file)))
			if r != nil || err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("NewReader: %v, error %v, want one with %q", r, err, tt.want)
			}
		})
	}
}

func TestCutOff(t *testing.T) {
	file, _ := form(t, write{0, "abcd"}, write{4, "efgh"})
	const records = 4096
	tests := []struct {
		name string
		file []byte
		want string
	}{
		{"noEnd", file[:len(file)-16], "abcdefgh"},
		{"endCutOff", file[:len(file)-1], "abcdefgh"},
		{"insideBytes", file[:records+20+16+2], "abcdef"},
		{"behindRecord", file[:records+20+16], "abcd"},
		{"insideRecord", file[:records+20+15], "abcd"},
		{"brokenRecord", vmcoretest.Patch(t, file, records+20, 1, 0x90), "abcd"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r, err := flattened.NewReader(bytes.NewReader(tt.file), int64(len(tt.file)))
			if err != nil {
				t.Fatal(err)
			}
			got, err := io.ReadAll(io.NewSectionReader(r, 0, r.Size()))
			if string(got) != tt.want || err != nil || r.Complete() {
				t.Errorf("%q, error %v, complete %v, want %q", got, err, r.Complete(), tt.want)
			}
			var file memory
			_, err = flattened.Rebuild(&file, bytes.NewReader(tt.file))
			if tt.name == "brokenRecord" {
				if err == nil || errors.Is(err, io.ErrUnexpectedEOF) {
					t.Errorf("Rebuild: %v, want a broken record", err)
				}
			} else if !errors.Is(err, io.ErrUnexpectedEOF) {
				t.Errorf("Rebuild: %v, want that the end is missing", err)
			}
		})
	}
}

// failing fails after some writes.
type failing struct{ left int }

var errFull = errors.New("full")

func (f *failing) Write(p []byte) (int, error) {
	if f.left--; f.left < 0 {
		return 0, errFull
	}
	return len(p), nil
}

func TestWriterFails(t *testing.T) {
	if _, err := flattened.NewWriter(&failing{0}); !errors.Is(err, errFull) {
		t.Errorf("NewWriter: %v", err)
	}
	for left := 1; left <= 4; left++ {
		w, err := flattened.NewWriter(&failing{left})
		if err != nil {
			t.Fatal(err)
		}
		_, err = w.WriteAt([]byte("abc"), 0)
		if left < 3 != errors.Is(err, errFull) {
			t.Errorf("%d writes: %v", left, err)
		}
		if _, again := w.WriteAt([]byte("abc"), 0); err != nil && !errors.Is(again, err) {
			t.Errorf("%d writes, then: %v, want %v", left, again, err)
		}
		if err := w.Close(); !errors.Is(err, errFull) {
			t.Errorf("%d writes, Close: %v", left, err)
		}
	}
	w, err := flattened.NewWriter(io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.WriteAt([]byte("x"), -1); err == nil {
		t.Error("a negative offset is taken")
	}
	if _, err := w.WriteAt([]byte("x"), math.MaxInt64); err == nil {
		t.Error("an offset that wraps is taken")
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := w.WriteAt([]byte("x"), 0); err == nil {
		t.Error("a write past the end is taken")
	}
}

func FuzzOpen(f *testing.F) {
	file := func(writes ...write) []byte {
		var buf bytes.Buffer
		w, err := flattened.NewWriter(&buf)
		if err != nil {
			f.Fatal(err)
		}
		for _, x := range writes {
			w.WriteAt([]byte(x.data), x.off)
		}
		w.Close()
		return buf.Bytes()[4096:]
	}
	f.Add(file())
	f.Add(file(write{0, "abcd"}, write{4, "efgh"}, write{2, "x"}))
	f.Add(file(write{8, "ij"}, write{0, strings.Repeat("x", 5000)}))
	f.Add(file(write{1 << 50, "far"}))
	head := make([]byte, 4096)
	copy(head, flattened.Signature)
	head[23], head[31] = 1, 1
	f.Fuzz(func(t *testing.T, records []byte) {
		form := append(bytes.Clone(head), records...)
		r, err := flattened.NewReader(bytes.NewReader(form), int64(len(form)))
		if err != nil {
			if r != nil {
				t.Fatalf("a Reader besides error %v", err)
			}
			return
		}
		if r.Size() > 1<<20 {
			return // Rebuild would have to fill it
		}
		var want memory
		n, err := flattened.Rebuild(&want, bytes.NewReader(form))
		if r.Complete() != (err == nil) || r.Complete() && n != r.Size() {
			t.Fatalf("complete %v, size %d; Rebuild: %d, %v", r.Complete(), r.Size(), n, err)
		}
		got, readErr := io.ReadAll(io.NewSectionReader(r, 0, r.Size()))
		if readErr != nil || r.Complete() && !bytes.Equal(got, want) {
			t.Fatalf("read %q, error %v, want %q", got, readErr, want)
		}
	})
}
