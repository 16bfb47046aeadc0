package extlinux

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/warmcore/warmcore/pkg/bootconfig"
)

func TestParse(t *testing.T) {
	got := Parse([]byte(`# comment
APPEND global
DEFAULT two
LABEL one
  KERNEL vmlinuz
  INITRD /u.img, initrd.img
LABEL two
	MENU LABEL ^Second
	LINUX /k2 inline
	APPEND  root=UUID=1  ro
	FDT /two.dtb
LABEL three
  KERNEL /k3
  APPEND -
LABEL four
  KERNEL /k4
  APPEND initrd=/i4,/j4 quiet
LABEL reboot
  COM32 reboot.c32
`), "/boot/extlinux")
	p := func(names ...string) (out []bootconfig.Path) {
		for _, n := range names {
			out = append(out, bootconfig.Path{Name: n})
		}
		return out
	}
	want := []bootconfig.Entry{
		{ID: "two", Title: "Second", Kernel: p("/k2")[0], DeviceTree: p("/two.dtb")[0], Cmdline: "inline root=UUID=1  ro"},
		{ID: "one", Title: "one", Kernel: p("/boot/extlinux/vmlinuz")[0], Initrds: p("/u.img", "/boot/extlinux/initrd.img"), Cmdline: "global"},
		{ID: "three", Title: "three", Kernel: p("/k3")[0]},
		{ID: "four", Title: "four", Kernel: p("/k4")[0], Initrds: p("/i4", "/j4"), Cmdline: "initrd=/i4,/j4 quiet"},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("entries (-want +got):\n%s", diff)
	}
	for _, text := range []string{"", "\x00\xff", "LABEL", "LABEL x", "KERNEL x"} {
		if got := Parse([]byte(text), "/"); len(got) > 0 {
			t.Errorf("%q: %+v", text, got)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte("default a\nlabel a\nmenu default\nkernel /k\nappend initrd=x,y\ninitrd z\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, e := range Parse(b, "/extlinux") {
			if !strings.HasPrefix(e.Kernel.Name, "/") {
				t.Errorf("kernel %q", e.Kernel.Name)
			}
		}
	})
}
