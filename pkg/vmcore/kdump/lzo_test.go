package kdump_test

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/warmcore/warmcore/pkg/vmcore/kdump"
	"github.com/warmcore/warmcore/pkg/vmcore/vmcoretest"
)

// What lzop 1.04 with liblzo2 2.10 made, -1 (LZO1X-1, as makedumpfile) and -9
// (LZO1X-999), of: text; a smooth curve; 64 KiB with far repeats; structures
// with pointers; runs.
var streams = []struct {
	name string
	size int
	sum  string // SHA-256 of what comes out
}{
	{"text", 4096, "b0fe9000cd0254b406affa625b19a1c225f657a32b6256d9e7b70c5dc132c567"},
	{"pattern", 4096, "489cf0fd6d67c50978ba8642ecd8645c1cdb1efefb1505bd765cc1240b7ca936"},
	{"far64k", 65536, "0b65ce05c25d923fce69b6ceabe79c2d446ecb84848ef7d1a8e6719e1ab2b4fb"},
	{"records", 4096, "02680ea706ccfe079e33804abeb35eca7b4b3bf8c594c46a4ae19203ce795981"},
	{"runs", 4096, "806850fb91a4a12c97325cc94cfb2a56c0bdb9dac8c41c6d1d4806730854ac4c"},
}

func stream(t testing.TB, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("testdata", "lzo", name+".lzo"))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestExpandLZO(t *testing.T) {
	for _, tt := range streams {
		for _, level := range []string{"-1", "-9"} {
			t.Run(tt.name+level, func(t *testing.T) {
				dst := make([]byte, tt.size)
				if err := kdump.ExpandLZO(dst, stream(t, tt.name+level)); err != nil {
					t.Fatal(err)
				}
				if got := fmt.Sprintf("%x", sha256.Sum256(dst)); got != tt.sum {
					t.Errorf("SHA-256 %s, want %s", got, tt.sum)
				}
			})
		}
	}
}

// TestLZOInstructions has a stream for each kind of instruction.
func TestLZOInstructions(t *testing.T) {
	after2K := "abc" + strings.Repeat("y", 2046)
	tests := []struct {
		name string
		src  string
		want string
	}{
		{"empty", "\x11\x00\x00", ""},
		{"firstLiterals4", "\x15abcd\x11\x00\x00", "abcd"},
		{"firstLiterals1", "\x12a\x20\x03\x00\x00\x11\x00\x00", "a" + strings.Repeat("a", 36)},
		{"literals4", "\x01abcd\x11\x00\x00", "abcd"},
		{"literals18", "\x0fabcdefghijklmnopqr\x11\x00\x00", "abcdefghijklmnopqr"},
		{"literals19", "\x00\x01abcdefghijklmnopqrs\x11\x00\x00", "abcdefghijklmnopqrs"},
		{"literals274", "\x00\x00\x01" + strings.Repeat("ab", 137) + "\x11\x00\x00", strings.Repeat("ab", 137)},
		{"match2", "\x15abcd\x49\x00e\x08\x00\x11\x00\x00", "abcd" + "bcd" + "e" + "cd"},
		{"match3After2K", "\x00" + strings.Repeat("\x00", 7) + "\xf6" + after2K + "\x00\x00\x11\x00\x00", after2K + "abc"},
		{"match3", "\x15abcd\x4c\x00\x11\x00\x00", "abcdabc"},
		{"match4", "\x15abcd\x6c\x00\x11\x00\x00", "abcdabcd"},
		{"match5", "\x15abcd\x8c\x00\x11\x00\x00", "abcdabcda"},
		{"match8", "\x15abcd\xec\x00\x11\x00\x00", "abcdabcdabcd"},
		{"match3To33", "\x15abcd\x21\x0c\x00\x11\x00\x00", "abcdabc"},
		{"matchLong", "\x15abcd\x20\x00\x01\x0c\x00\x11\x00\x00", "abcd" + strings.Repeat("abcd", 73)[:289]},
		{"literalsBehindMatch", "\x15abcd\x4f\x00xyz\x11\x00\x00", "abcdabcxyz"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			dst := make([]byte, len(tt.want))
			if err := kdump.ExpandLZO(dst, []byte(tt.src)); err != nil || string(dst) != tt.want {
				t.Errorf("%q, error %v, want %q", dst, err, tt.want)
			}
		})
	}
}

func TestBrokenLZO(t *testing.T) {
	good := stream(t, "text-1")
	tests := []struct {
		name string
		src  []byte
		size int
	}{
		{"empty", nil, 0},
		{"tooSmall", good, 4095},
		{"tooLarge", good, 4097},
		{"cutOff", good[:len(good)-1], 4096},
		{"moreBehindEnd", append(bytes.Clone(good), 0), 4096},
		{"matchBeforeStart", []byte("\x15abcd\x50\x00\x11\x00\x00"), 7},
		{"matchOfNothing", []byte("\x40\x00\x11\x00\x00"), 3},
		{"endlessLength", append([]byte{0}, make([]byte, 1000)...), 4096},
		{"lengthWraps", append([]byte{0x20}, make([]byte, 1<<20)...), 4096},
		{"literalsCutOff", []byte("\x15abc"), 4},
		{"matchCutOff", []byte("\x15abcd\x21\x0c"), 7},
		{"noEnd", []byte("\x15abcd"), 4},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if err := kdump.ExpandLZO(make([]byte, tt.size), tt.src); err == nil {
				t.Error("no error")
			}
		})
	}
}

// Whatever the stream, it ends, and touches nothing but its page.
func FuzzExpandLZO(f *testing.F) {
	for _, tt := range streams {
		if tt.size == 4096 {
			f.Add(stream(f, tt.name+"-1"))
			f.Add(stream(f, tt.name+"-9"))
		}
	}
	f.Fuzz(func(t *testing.T, src []byte) {
		dst := bytes.Repeat([]byte{0xee}, 4096+100)
		kdump.ExpandLZO(dst[:4096], src)
		if !bytes.Equal(dst[4096:], bytes.Repeat([]byte{0xee}, 100)) {
			t.Fatal("bytes behind the page have changed")
		}
		// What was put in comes out of a stream made of it.
		in := src[:min(len(src), 4096)]
		back := make([]byte, len(in))
		if err := kdump.ExpandLZO(back, vmcoretest.CompressLZO(in)); err != nil || !bytes.Equal(back, in) {
			t.Fatalf("round trip of % x: % x, error %v", in, back, err)
		}
	})
}
