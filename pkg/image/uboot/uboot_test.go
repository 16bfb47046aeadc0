package uboot_test

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/warmcore/warmcore/pkg/devicetree"
	"github.com/warmcore/warmcore/pkg/image/uboot"
)

func parts() uboot.FIT {
	return uboot.FIT{
		Description: "a payload",
		Kernel:      uboot.Part{Load: 0x5800_0000, Data: bytes.Repeat([]byte("kernel"), 1<<20)},
		Ramdisk:     uboot.Part{Load: 0x5c00_0000, Data: []byte("initramfs")},
		DeviceTree:  uboot.Part{Load: 0x1_0000_0000, Data: []byte("tree!")},
	}
}

// TestFIT: U-Boot's own program finds each part in the image, with the right
// checksum, also after something else in the same buffer.
func TestFIT(t *testing.T) {
	f := parts()
	b, err := f.Append([]byte("xyz"))
	if err != nil {
		t.Fatal(err)
	}
	b = b[3:]
	if tree, err := devicetree.Parse(b); err != nil || tree.Find("/images/ramdisk/hash-1") == nil {
		t.Errorf("the tree: %+v, %v", tree, err)
	}
	image := filepath.Join(t.TempDir(), "payload.itb")
	if err := os.WriteFile(image, b, 0o644); err != nil {
		t.Fatal(err)
	}
	list := run(t, "dumpimage", "-l", image)
	for _, want := range []string{"a payload", "Default Configuration: 'payload'", "Load Address: 0x58000000", "Entry Point:  0x58000000", "Load Address: 0x100000000", "Hash algo:    crc32"} {
		if !strings.Contains(list, want) {
			t.Errorf("no %q in\n%s", want, list)
		}
	}
	for i, p := range []uboot.Part{f.Kernel, f.Ramdisk, f.DeviceTree} {
		out := filepath.Join(t.TempDir(), "part")
		run(t, "dumpimage", "-T", "flat_dt", "-p", strconv.Itoa(i), "-o", out, image)
		got, err := os.ReadFile(out)
		if err != nil || !bytes.Equal(got, p.Data) {
			t.Errorf("part %d has %d bytes, want %d: %v", i, len(got), len(p.Data), err)
		}
	}
}

// TestFITWithoutRamdisk: the initramfs may be in the kernel.
func TestFITWithoutRamdisk(t *testing.T) {
	f := parts()
	f.Ramdisk.Data = nil
	b, err := f.Append(nil)
	if err != nil {
		t.Fatal(err)
	}
	tree, err := devicetree.Parse(b)
	if err != nil || tree.Find("/images/ramdisk") != nil || len(tree.Find("/configurations/payload").Strings("ramdisk")) > 0 {
		t.Errorf("%v: there is a ramdisk", err)
	}
	f.Kernel.Data = nil
	if _, err := f.Append(nil); err == nil {
		t.Error("an image without a kernel is no error")
	}
}

// TestEnvironment: the same bytes as mkenvimage's.
func TestEnvironment(t *testing.T) {
	variables := []string{"bootcmd=bootm 0x4000000", "bootdelay=0", "empty="}
	got, err := uboot.Environment(4096, variables...)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	text, image := filepath.Join(dir, "text"), filepath.Join(dir, "image")
	if err := os.WriteFile(text, []byte(strings.Join(variables, "\n")+"\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	run(t, "mkenvimage", "-s", "4096", "-o", image, text)
	want, err := os.ReadFile(image)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("got %q..., want %q...", got[:100], want[:100])
	}
	for _, bad := range []string{"bootcmd", "=x", "a=b\x00c", strings.Repeat("x", 4096) + "=1"} {
		if _, err := uboot.Environment(4096, bad); err == nil {
			t.Errorf("%.20q is no error", bad)
		}
	}
}

func run(t *testing.T, argv ...string) string {
	t.Helper()
	out, err := exec.Command(argv[0], argv[1:]...).CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %v\n%s", argv, err, out)
	}
	return string(out)
}
