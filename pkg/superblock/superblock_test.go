package superblock

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// TestRead has the file systems' own tools make them.
func TestRead(t *testing.T) {
	const uuid = "11d6cafe-0102-4304-8506-0708090a0b0c"
	for _, tt := range []struct {
		command string // with %UUID and the image's name to come
		mib     int64
		want    Info
	}{
		{"mkfs.ext4 -q -L root -U " + uuid, 4, Info{"ext2", uuid, "root"}},
		{"mkfs.xfs -q -L boot -m uuid=" + uuid, 300, Info{"xfs", uuid, "boot"}},
		{"mkfs.btrfs -q -L data -U " + uuid, 128, Info{"btrfs", uuid, "data"}},
		{"mkfs.vfat -F 32 -n ESP -i 1234ABCD", 64, Info{"fat", "1234-ABCD", "ESP"}},
		{"mkfs.vfat -F 16 -i 00000001", 16, Info{"fat", "0000-0001", ""}},
	} {
		t.Run(strings.Join(strings.Fields(tt.command)[:3], " "), func(t *testing.T) {
			name := filepath.Join(t.TempDir(), "disk")
			f, err := os.Create(name)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			if err := f.Truncate(tt.mib << 20); err != nil {
				t.Fatal(err)
			}
			args := append(strings.Fields(tt.command), name)
			if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
				t.Fatalf("%v: %s (make tools installs what is missing)", err, out)
			}
			got, ok := Read(f)
			if diff := cmp.Diff(tt.want, got); diff != "" || !ok {
				t.Errorf("%t (-want +got):\n%s", ok, diff)
			}
		})
	}
	if got, ok := Read(bytes.NewReader(make([]byte, 1<<20))); ok || got != (Info{}) {
		t.Errorf("an empty disk: %+v", got)
	}
	if got, ok := Read(bytes.NewReader(nil)); ok || got != (Info{}) {
		t.Errorf("nothing: %+v", got)
	}
}

func FuzzRead(f *testing.F) {
	f.Add([]byte("XFSB"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if i, ok := Read(bytes.NewReader(b)); ok != (i.Type != "") {
			t.Errorf("%+v, %t", i, ok)
		}
	})
}
