package holes

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"
)

func TestWriter(t *testing.T) {
	// Pages: data, zero, zero, data, and a part; written in odd pieces.
	want := make([]byte, 4*4096+100)
	copy(want, bytes.Repeat([]byte{1}, 4096))
	copy(want[3*4096:], bytes.Repeat([]byte{2}, 4096))
	for _, piece := range []int{1, 100, 4095, 4096, 10000, 100000} {
		f, err := os.Create(filepath.Join(t.TempDir(), "f"))
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		w := NewWriter(f)
		for rest := want; len(rest) > 0; {
			n, err := w.Write(rest[:min(piece, len(rest))])
			if err != nil {
				t.Fatal(err)
			}
			rest = rest[n:]
		}
		if err := w.Flush(); err != nil {
			t.Fatal(err)
		}
		got, err := os.ReadFile(f.Name())
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, want) {
			t.Errorf("pieces of %d: the file has %d bytes, want %d; or they differ", piece, len(got), len(want))
		}
	}
}
