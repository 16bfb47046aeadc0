package debian

import (
	"bytes"
	"io"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/google/go-cmp/cmp"
)

// modulesOf6 is what depmod writes of a kernel whose ext4 asks for crc32c by
// name; modulesOf7 of one that has it built in, under another name.
var (
	modulesOf6 = fstest.MapFS{
		"modules.dep": {Data: []byte("kernel/fs/ext4/ext4.ko: kernel/lib/crc16.ko kernel/fs/mbcache.ko\n" +
			"kernel/lib/crc16.ko:\n" +
			"kernel/arch/x86/crypto/crc32c-intel.ko.xz:\n" +
			"kernel/crypto/crc32c_generic.ko: kernel/lib/other.ko\n" +
			"kernel/crypto/unused.ko:\n" +
			"kernel/crypto/after.ko:\n")},
		"modules.builtin": {Data: []byte("kernel/drivers/virtio/virtio_pci.ko\n")},
		"modules.softdep": {Data: []byte("# Soft dependencies extracted from modules themselves.\nsoftdep ext4 pre: crc32c nosuch post: after\n")},
		"modules.alias":   {Data: []byte("# Aliases extracted from modules themselves.\nalias crc32c crc32c_generic\nalias crypto-crc32c crc32c_intel\nalias pci:v* unused\nalias platform soc card unused\n")},
	}
	modulesOf7 = fstest.MapFS{
		"modules.dep":     {Data: []byte("kernel/fs/ext4/ext4.ko: kernel/fs/mbcache.ko\n")},
		"modules.builtin": {Data: []byte("kernel/drivers/virtio/virtio_pci.ko\nkernel/lib/crc/crc32.ko\n")},
	}
)

func TestModules(t *testing.T) {
	for _, tt := range []struct {
		name   string
		kernel fstest.MapFS
		names  []string
		want   []string
	}{
		{"what is loaded before, by names and aliases", modulesOf6, []string{"ext4", "virtio-pci"}, []string{
			"kernel/arch/x86/crypto/crc32c-intel.ko.xz", "kernel/crypto/crc32c_generic.ko", "kernel/fs/ext4/ext4.ko",
			"kernel/fs/mbcache.ko", "kernel/lib/crc16.ko", "kernel/lib/other.ko"}},
		{"a newer kernel", modulesOf7, []string{"ext4", "virtio_pci"}, []string{"kernel/fs/ext4/ext4.ko", "kernel/fs/mbcache.ko"}},
		{"built in", modulesOf7, []string{"virtio_pci"}, nil},
	} {
		m, err := readModules(tt.kernel)
		if err != nil {
			t.Fatal(err)
		}
		got, err := m.closure(tt.names)
		if diff := cmp.Diff(tt.want, got); err != nil || diff != "" {
			t.Errorf("%s: %v, -want +got\n%s", tt.name, err, diff)
		}
		if got, err := m.closure([]string{"nosuch"}); err == nil || got != nil {
			t.Errorf("%s: a module that isn't there: %v, %v", tt.name, got, err)
		}
	}
	for name, file := range map[string]string{
		"modules.dep": "no colon\n", "modules.softdep": "softdep\n", "modules.alias": "alias one\n",
	} {
		bad := maps.Clone(modulesOf6)
		bad[name] = &fstest.MapFile{Data: []byte(file)}
		if _, err := readModules(bad); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%s with %q: %v; want an error that names the file", name, file, err)
		}
	}
	delete(modulesOf7, "modules.dep")
	if _, err := readModules(modulesOf7); err == nil {
		t.Error("no modules.dep: no error")
	}
}

func TestParseURIs(t *testing.T) {
	got, err := parseURIs("'http://a/kmod_30%2b2_amd64.deb' kmod_30+2_amd64.deb 9 SHA256:ab\n'http://a/b' libc6_2_amd64.deb 9 SHA256:cd\n")
	if err != nil || len(got) != 2 || got[0] != (archived{"kmod_30+2_amd64.deb", "ab"}) || got[1] != (archived{"libc6_2_amd64.deb", "cd"}) {
		t.Errorf("parseURIs = %+v, %v", got, err)
	}
	for _, bad := range []string{"'u' n 9\n", "'u' ../n 9 SHA256:ab\n", "'u' n 9 MD5Sum:ab\n"} {
		if got, err := parseURIs(bad); err == nil || got != nil {
			t.Errorf("parseURIs(%q) = %+v, %v; want an error", bad, got, err)
		}
	}
}

func TestNoise(t *testing.T) {
	var a, b bytes.Buffer
	for _, w := range []*bytes.Buffer{&a, &b} {
		if _, err := io.CopyN(w, &noise{}, 10_001); err != nil {
			t.Fatal(err)
		}
	}
	if !bytes.Equal(a.Bytes(), b.Bytes()) {
		t.Error("noise differs from one time to the next")
	}
	if bytes.Equal(a.Bytes()[:4096], a.Bytes()[4096:8192]) {
		t.Error("noise repeats")
	}
}

// What apt-cache depends prints of kernels before and since the image's package
// was split.
func TestKernelParts(t *testing.T) {
	for _, tt := range []struct {
		image, depends string
		want           []string
	}{
		{"linux-image-6.1.0-56-amd64", "linux-image-6.1.0-56-amd64\n  Depends: kmod\n  Depends: linux-base\n |Depends: initramfs-tools\n  Depends: <linux-initramfs-tool>\n    dracut\n", nil},
		{"linux-image-7.3.4+deb13-amd64", "linux-image-7.3.4+deb13-amd64\n  PreDepends: linux-base\n |Depends: dracut\n  Depends: <linux-initramfs-tool>\n" +
			"  Depends: linux-base-7.3.4+deb13-amd64\n  Depends: linux-binary-7.3.4+deb13-amd64\n  Depends: linux-modules-7.3.4+deb13-amd64\n",
			[]string{"linux-base-7.3.4+deb13-amd64", "linux-binary-7.3.4+deb13-amd64", "linux-modules-7.3.4+deb13-amd64"}},
	} {
		if diff := cmp.Diff(tt.want, kernelParts(tt.image, parseDepends(tt.depends))); diff != "" {
			t.Errorf("%s: -want +got\n%s", tt.image, diff)
		}
	}
}

func TestFindKernel(t *testing.T) {
	for _, tt := range []struct {
		name          string
		files         []string
		release, file string // empty if it is an error
	}{
		{"in boot", []string{"boot/vmlinuz-6.1.0-56-amd64", "lib/modules/6.1.0-56-amd64/modules.builtin"}, "6.1.0-56-amd64", "boot/vmlinuz-6.1.0-56-amd64"},
		{"beside its modules", []string{"lib/modules/7.3.4+deb13-amd64/vmlinuz"}, "7.3.4+deb13-amd64", "lib/modules/7.3.4+deb13-amd64/vmlinuz"},
		{"none", []string{"lib/modules/7.3.4+deb13-amd64/modules.builtin"}, "", ""},
		{"two", []string{"boot/vmlinuz-1", "boot/vmlinuz-2"}, "", ""},
	} {
		root := t.TempDir()
		for _, f := range tt.files {
			if err := os.MkdirAll(filepath.Join(root, filepath.Dir(f)), 0o755); err != nil {
				t.Fatal(err)
			}
			writeFile(t, filepath.Join(root, f), nil)
		}
		release, image, err := findKernel(root)
		if tt.release == "" {
			if err == nil || release != "" || image != "" {
				t.Errorf("%s: %q, %q, %v; want an error", tt.name, release, image, err)
			}
		} else if err != nil || release != tt.release || image != filepath.Join(root, tt.file) {
			t.Errorf("%s: %q, %q, %v; want %s in %s", tt.name, release, image, err, tt.release, tt.file)
		}
	}
}
