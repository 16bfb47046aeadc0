package debian

import "testing"

func TestQEMUMajor(t *testing.T) {
	for out, want := range map[string]int{
		"QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18+b5)\nCopyright (c) 2003-2022\n": 7,
		"QEMU emulator version 10.0.2 (Debian 1:10.0.2+ds-2+deb13u1~bpo12+1)\n":                     10,
	} {
		if got, err := qemuMajor(out); err != nil || got != want {
			t.Errorf("qemuMajor(%q) = %d, %v; want %d", out, got, err, want)
		}
	}
	if got, err := qemuMajor("bash: not found\n"); err == nil {
		t.Errorf("no version: %d, want an error", got)
	}
}
