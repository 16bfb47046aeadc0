package bls

import (
	"bytes"
	"os/exec"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/google/go-cmp/cmp"
	"github.com/warmcore/warmcore/pkg/bootconfig"
	"github.com/warmcore/warmcore/pkg/bootconfig/uki/ukitest"
)

func files(content map[string]string) fstest.MapFS {
	m := fstest.MapFS{}
	for name, text := range content {
		m[name] = &fstest.MapFile{Data: []byte(text)}
	}
	return m
}

func TestParseEntry(t *testing.T) {
	got, ok := ParseEntry("0123-6.1+3-2.conf", []byte("\ufeff# comment\ntitle\t Debian  GNU/Linux \nversion 6.1\nmachine-id 0123\nsort-key debian\n"+
		"architecture x64\r\nlinux \\0123\\6.1\\linux\ninitrd /ucode\ninitrd 0123/initrd\noptions\troot=UUID=1  ro\noptions \"quoted whole\"\noptions a=\"b c\" d=\"e\"\ndevicetree /x.dtb\nunknown x\nbare\n"), "amd64")
	want := Entry{
		Entry: bootconfig.Entry{ID: "0123-6.1.conf", Title: "Debian  GNU/Linux", Version: "6.1", Kernel: bootconfig.Path{Name: "/0123/6.1/linux"},
			Initrds: []bootconfig.Path{{Name: "/ucode"}, {Name: "/0123/initrd"}}, DeviceTree: bootconfig.Path{Name: "/x.dtb"},
			Cmdline: `root=UUID=1  ro quoted whole a="b c" d="e"`},
		File: "0123-6.1+3-2.conf", SortKey: "debian", MachineID: "0123", HasOptions: true, TriesLeft: 3, TriesDone: 2,
	}
	if diff := cmp.Diff(want, got); diff != "" || !ok {
		t.Errorf("entry, %t (-want +got):\n%s", ok, diff)
	}
	for name, text := range map[string]string{"no kernel": "title x\n", "another architecture": "linux /x\narchitecture aa64\n", "empty": ""} {
		if e, ok := ParseEntry("x.conf", []byte(text), "amd64"); ok {
			t.Errorf("%s: %+v", name, e)
		}
	}
	if _, ok := ParseEntry("x.conf", []byte("linux /x\narchitecture AA64\n"), "arm64"); !ok {
		t.Error("arm64's entry is left out")
	}
}

func TestCutTries(t *testing.T) {
	for _, tt := range []struct {
		file, id   string
		left, done int
	}{
		{"a.conf", "a.conf", -1, 0}, {"a+3.conf", "a.conf", 3, 0}, {"a+0-3.conf", "a.conf", 0, 3}, {"a+b+2-1.efi", "a+b.efi", 2, 1},
		{"a+x.conf", "a+x.conf", -1, 0}, {"a+1-x.conf", "a+1-x.conf", -1, 0}, {"a+.conf", "a+.conf", -1, 0}, {"a++1.conf", "a+.conf", 1, 0}, {"6.12.57+deb13-amd64.conf", "6.12.57+deb13-amd64.conf", -1, 0},
	} {
		if id, left, done := cutTries(tt.file); id != tt.id || left != tt.left || done != tt.done {
			t.Errorf("%s: %s, %d left, %d done; want %s, %d, %d", tt.file, id, left, done, tt.id, tt.left, tt.done)
		}
	}
}

// TestDefault: which entry comes first.
func TestDefault(t *testing.T) {
	for _, tt := range []struct {
		name, conf, want string
		v                Variables
	}{
		{"no configuration: the newest", "", "b-2 b-1 a", Variables{}},
		{"by name", "default a.conf", "a b-2 b-1", Variables{}},
		{"as old versions wrote it", "default b-1", "b-1 b-2 a", Variables{}},
		{"pattern", "default b-*", "b-2 b-1 a", Variables{}},
		{"pattern with ? and []", "default [x-z]?*\ndefault [a-b]-?.conf", "b-2 b-1 a", Variables{}},
		{"other case", "default A.CONF", "a b-2 b-1", Variables{}},
		{"gone", "default c.conf", "b-2 b-1 a", Variables{}},
		{"saved", "default @saved", "b-1 b-2 a", Variables{LastBooted: "b-1.conf"}},
		{"nothing saved", "default @saved", "b-2 b-1 a", Variables{}},
		{"the variable counts more", "default a.conf", "b-1 b-2 a", Variables{Default: "b-1.conf"}},
		{"once", "default a.conf", "b-1! a b-2", Variables{OneShot: "b-1.conf"}},
		{"once, the default", "default a.conf", "a! b-2 b-1", Variables{OneShot: "a.conf"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := Read(files(map[string]string{
				"loader/loader.conf":      "timeout 3\n" + tt.conf + "\n",
				"loader/entries/b-1.conf": "title b-1\nsort-key b\nversion 1\nlinux /x\n",
				"loader/entries/b-2.conf": "title b-2\nsort-key b\nversion 2\nlinux /x\n",
				"loader/entries/a.conf":   "title a\nlinux /x\n", // without a key: after those that have one
				"loader/entries/no.txt":   "title no\nlinux /x\n",
			}), "amd64", tt.v)
			var got []string
			for _, e := range c.Entries {
				if e.Once != "" {
					e.Title += "!"
				}
				got = append(got, e.Title)
			}
			if g := strings.Join(got, " "); g != tt.want {
				t.Errorf("entries %s, want %s", g, tt.want)
			}
		})
	}
}

// TestVersionsAsSystemd asks systemd-analyze.
func TestVersionsAsSystemd(t *testing.T) {
	versions := []string{"1.0~rc1", "1", "1.", "1.0-1", "1.0^post", "1.0.1", "1.00", "1.9", "1.10", "6.12.57+deb13-amd64", "6.8.12-9-pve", "6.8.12-13-pve", "a1", "1a", "1_a"}
	for i, a := range versions {
		for _, b := range versions[i:min(len(versions), i+3)] {
			out, err := exec.Command("systemd-analyze", "compare-versions", a, b).Output()
			if err != nil && len(out) == 0 {
				t.Fatalf("systemd-analyze compare-versions %q %q: %v", a, b, err)
			}
			op := map[int]string{-1: "<", 0: "==", 1: ">"}[CompareVersions(a, b)]
			if want := a + " " + op + " " + b; strings.TrimSpace(string(out)) != want {
				t.Errorf("%s, systemd says %s", want, out)
			}
		}
	}
}

func TestUnifiedImage(t *testing.T) {
	img := ukitest.Image(ukitest.Sections{".linux": "kernel", ".cmdline": "root=UUID=1 ro\n", ".osrel": "NAME=Debian\nPRETTY_NAME=\"Debian 13\"\nID=debian\nVERSION_ID=13\n"})
	c := Read(files(map[string]string{"EFI/Linux/debian-6.12+2-1.efi": string(img), "EFI/Linux/broken.efi": "MZ", "EFI/Linux/x.txt": ""}), "amd64", Variables{})
	want := []bootconfig.Entry{{ID: "debian-6.12.efi", Title: "Debian 13", Version: "13", Kernel: bootconfig.Path{Name: "/EFI/Linux/debian-6.12+2-1.efi"}, EFI: true, Image: true}}
	if diff := cmp.Diff(want, c.Entries); diff != "" {
		t.Errorf("entries (-want +got):\n%s", diff)
	}
	if w := strings.Join(c.Warnings, "; "); w != "EFI/Linux/broken.efi: no unified kernel image" {
		t.Errorf("warnings %q", w)
	}
}

func TestDecodeVariable(t *testing.T) {
	for want, b := range map[string][]byte{
		"a.conf": []byte("\x07\x00\x00\x00a\x00.\x00c\x00o\x00n\x00f\x00\x00\x00"),
		"a":      []byte("\x07\x00\x00\x00a\x00b"),
		"":       []byte("\x07\x00"),
	} {
		if got := DecodeVariable(b); got != want {
			t.Errorf("%q: %q, want %q", b, got, want)
		}
	}
}

func FuzzParseEntry(f *testing.F) {
	f.Add("a+1-2.conf", []byte("title a\nlinux /x\ninitrd y\noptions a \"b\"\n"))
	f.Fuzz(func(t *testing.T, name string, b []byte) {
		e, ok := ParseEntry(name, b, "amd64")
		if ok && !strings.HasPrefix(e.Kernel.Name, "/") {
			t.Errorf("kernel %q", e.Kernel.Name)
		}
		if ok && bytes.Count(b, []byte("\n"))+1 < len(e.Initrds) {
			t.Errorf("%d initrds", len(e.Initrds))
		}
	})
}

// FuzzCompareVersions: an order is one in both directions.
func FuzzCompareVersions(f *testing.F) {
	f.Add("1.0~rc1", "1.0^a-2")
	f.Fuzz(func(t *testing.T, a, b string) {
		if x, y := CompareVersions(a, b), CompareVersions(b, a); x != -y || CompareVersions(a, a) != 0 {
			t.Errorf("%q and %q: %d, and %d", a, b, x, y)
		}
	})
}
