package debian

import (
	"bytes"
	"io"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestClosure(t *testing.T) {
	const dep = "kernel/fs/ext4/ext4.ko: kernel/lib/crc16.ko kernel/fs/mbcache.ko\n" +
		"kernel/lib/crc16.ko:\n" +
		"kernel/crypto/crc32c-intel.ko.xz:\n"
	const builtin = "kernel/drivers/virtio/virtio_pci.ko\n"
	got, err := closure(dep, builtin, []string{"ext4", "crc32c_intel", "virtio-pci"})
	want := []string{"kernel/crypto/crc32c-intel.ko.xz", "kernel/fs/ext4/ext4.ko", "kernel/fs/mbcache.ko", "kernel/lib/crc16.ko"}
	if diff := cmp.Diff(want, got); err != nil || diff != "" {
		t.Errorf("closure: %v, -want +got\n%s", err, diff)
	}
	if got, err := closure(dep, builtin, []string{"nosuch"}); err == nil || got != nil {
		t.Errorf("a module that isn't there: %v, %v", got, err)
	}
	if got, err := closure("no colon\n", builtin, nil); err == nil || got != nil {
		t.Errorf("modules.dep without a colon: %v, %v", got, err)
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
