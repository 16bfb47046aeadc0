package registration_test

import (
	"bytes"
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/warmcore/warmcore/pkg/registration"
	"github.com/warmcore/warmcore/pkg/registration/registrationtest"
)

var update = flag.Bool("update", false, "write testdata; never over a v1-*.bin that exists")

// dump prints an image as hexdump -C does but for the text column: 16 bytes a
// line, and a line of "*" for lines that repeat the one before.
func dump(image []byte) string {
	var b strings.Builder
	var last []byte
	starred := false
	for off := 0; off < len(image); off += 16 {
		line := image[off:min(off+16, len(image))]
		if bytes.Equal(line, last) {
			if !starred {
				b.WriteString("*\n")
			}
			starred = true
			continue
		}
		last, starred = line, false
		fmt.Fprintf(&b, "%08x  % x\n", off, line)
	}
	fmt.Fprintf(&b, "%08x\n", len(image))
	return b.String()
}

// undump is the inverse of dump.
func undump(t *testing.T, text string) []byte {
	t.Helper()
	var image, last []byte
	for line := range strings.Lines(text) {
		line = strings.TrimSuffix(line, "\n")
		if line == "*" {
			continue
		}
		var off int
		addr, digits, _ := strings.Cut(line, "  ")
		if _, err := fmt.Sscanf(addr, "%x", &off); err != nil {
			t.Fatalf("image line %q: %v", line, err)
		}
		for len(image) < off && len(last) > 0 {
			image = append(image, last...)
		}
		if len(image) != off {
			t.Fatalf("image line %q: at offset %#x", line, len(image))
		}
		data, err := hex.DecodeString(strings.ReplaceAll(digits, " ", ""))
		if err != nil {
			t.Fatalf("image line %q: %v", line, err)
		}
		image, last = append(image, data...), data
	}
	return image
}

func TestFixtures(t *testing.T) {
	files := map[string]bool{}
	for _, f := range registrationtest.Fixtures() {
		t.Run(f.Name, func(t *testing.T) {
			file := filepath.Join("testdata", f.Name+".hex")
			if files[file] {
				t.Fatalf("%s: two fixtures of this name", f.Name)
			}
			files[file] = true
			if *update {
				if err := os.WriteFile(file, []byte(dump(f.Handoff)), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			image := undump(t, string(text))
			if !bytes.Equal(image, f.Handoff) {
				t.Errorf("Fixtures() is not what %s holds: %s", file, cmp.Diff(string(text), dump(f.Handoff)))
			}
			checkLoad(t, f, image)
		})
	}
	committed, err := filepath.Glob("testdata/*.hex")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range committed {
		if !files[file] {
			t.Errorf("%s: no fixture of this name", file)
		}
	}
}

func checkLoad(t *testing.T, f registrationtest.Fixture, image []byte) {
	t.Helper()
	b, err := registration.Load(image)
	if f.Err == nil {
		if err != nil {
			t.Fatalf("Load() = %v, want no error", err)
		}
		if b.Sequence != f.Sequence {
			t.Errorf("Load().Sequence = %d, want %d", b.Sequence, f.Sequence)
		}
		return
	}
	if b != nil {
		t.Errorf("Load() = %+v with an error, want nil", b)
	}
	if !errors.Is(err, f.Err) || !strings.Contains(err.Error(), f.Want) {
		t.Errorf("Load() error = %v, want %q in it and to wrap %q", err, f.Want, f.Err)
	}
	if !errors.Is(err, registration.ErrEmpty) && !errors.Is(err, registration.ErrNone) {
		t.Errorf("Load() error = %v, want it to wrap ErrEmpty or ErrNone", err)
	}
}

// Whatever is in the handoff area, the next registration can be stored in it
// and is what loads then.
func TestStoreOverEveryFixture(t *testing.T) {
	for _, f := range registrationtest.Fixtures() {
		t.Run(f.Name, func(t *testing.T) {
			b := registrationtest.Block()
			b.State = registration.Prearmed
			off, data, err := registration.Store(b, f.Handoff)
			if err != nil {
				t.Fatalf("Store() = %v", err)
			}
			want := uint64(1)
			if f.Err == nil {
				want = f.Sequence + 1
			}
			if b.Sequence != want {
				t.Errorf("Store() sequence = %d, want %d", b.Sequence, want)
			}
			copy(f.Handoff[off:], data)
			got, err := registration.Load(f.Handoff)
			if err != nil {
				t.Fatalf("Load() after Store() = %v", err)
			}
			if diff := cmp.Diff(b, got); diff != "" {
				t.Errorf("Load() after Store() (-want +got):\n%s", diff)
			}
		})
	}
}
