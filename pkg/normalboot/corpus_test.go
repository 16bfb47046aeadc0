//go:build linux

package normalboot

import (
	"bytes"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/u-root/u-root/pkg/mount"
	"github.com/warmcore/warmcore/pkg/superblock"
)

// machine is mounted file systems for a test, in folders.
type machine struct {
	points  []*mount.MountPoint
	devices []device
	log     bytes.Buffer
	used    bool // the entries for one boot
}

func (m *machine) pool() *mount.Pool { return &mount.Pool{MountPoints: slices.Clone(m.points)} }

// entries is what Scan makes of the file systems.
func (m *machine) entries(t *testing.T) (entries []Entry, looked []string) {
	t.Helper()
	entries, looked = collect(m.pool(), m.devices, slog.New(slog.NewTextHandler(&m.log, nil)), func(once string) bool { return m.used })
	return entries, looked
}

func (m *machine) add(t *testing.T, root, name, fsType, uuid, chosen string) {
	t.Helper()
	m.points = append(m.points, &mount.MountPoint{Path: filepath.Join(root, name), Device: "/dev/" + name, FSType: fsType})
	if chosen != "" {
		// As the second mount shows it.
		if err := os.Symlink(filepath.Join(root, name, chosen), filepath.Join(root, name+defaultSuffix)); err != nil {
			t.Fatal(err)
		}
		m.points = append(m.points, &mount.MountPoint{Path: filepath.Join(root, name+defaultSuffix), Device: "/dev/" + name, FSType: fsType})
	}
	number := strings.TrimLeft(name, "abcdefghijklmnopqrstuvwxyz")
	d := device{name: name, disk: strings.TrimSuffix(name, number), Info: superblock.Info{Type: fsType, UUID: uuid}}
	for _, c := range name[strings.LastIndexFunc(name, func(r rune) bool { return r < '0' || r > '9' })+1:] {
		d.partition = d.partition*10 + int(c-'0')
	}
	m.devices = append(m.devices, d)
}

func write(t *testing.T, name, content string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
}

// wanted is what a case of the corpus says about itself.
type wanted struct {
	Title, Kernel, Initrd, DeviceTree, Cmdline, Once string
	Then                                             []string // titles that follow
	left, log                                        string
}

// readCase writes a case's files and returns its machine.
func readCase(t *testing.T, name string) (*machine, wanted) {
	t.Helper()
	text, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	root := t.TempDir()
	var w wanted
	var volumes [][]string
	head, rest, _ := strings.Cut("\n"+string(text), "\n-- ")
	for line := range strings.Lines(head) {
		key, value, _ := strings.Cut(strings.TrimSpace(line), " ")
		switch key {
		case "volume":
			volumes = append(volumes, strings.Fields(value))
		case "want":
			w.Title = value
		case "kernel":
			w.Kernel = value
		case "initrd":
			w.Initrd = value
		case "devicetree":
			w.DeviceTree = value
		case "cmdline":
			w.Cmdline = value
		case "once":
			w.Once = value
		case "then":
			w.Then = append(w.Then, value)
		case "left":
			w.left = value + " entries of this payload left out"
		case "log":
			w.log = value
		}
	}
	if w.Title == "" || w.Kernel == "" {
		t.Fatalf("%s doesn't say what it wants", name)
	}
	top := root
	if volumes == nil {
		volumes, top = [][]string{{"vda1", "ext4"}}, filepath.Join(root, "vda1")
	}
	for file := range strings.SplitSeq(rest, "\n-- ") {
		header, content, _ := strings.Cut(file, " --\n")
		write(t, filepath.Join(top, strings.TrimSuffix(header, " --")), content)
	}
	m := &machine{}
	for _, v := range volumes {
		if err := os.MkdirAll(filepath.Join(root, v[0]), 0o755); err != nil {
			t.Fatal(err)
		}
		v = append(v, "", "")
		m.add(t, root, v[0], v[1], v[2], strings.TrimPrefix(v[3], "chosen="))
	}
	return m, w
}

// TestCorpus has configurations as distributions write them, each with what
// its own loader boots.
func TestCorpus(t *testing.T) {
	cases, err := filepath.Glob("testdata/*.txtar")
	if err != nil || len(cases) < 20 {
		t.Fatalf("%d cases, %v", len(cases), err)
	}
	for _, name := range cases {
		t.Run(strings.TrimSuffix(filepath.Base(name), ".txtar"), func(t *testing.T) {
			m, want := readCase(t, name)
			entries, looked := m.entries(t)
			if len(entries) == 0 {
				t.Fatalf("no entries; looked at %q; log: %s", looked, m.log.String())
			}
			e := entries[0]
			got := wanted{Title: e.Title, Kernel: e.Kernel.Path, Initrd: e.Initrd.Path, DeviceTree: e.DeviceTree, Cmdline: e.Cmdline, Once: e.Once, left: want.left, log: want.log}
			for _, e := range entries[1:min(len(entries), 1+len(want.Then))] {
				got.Then = append(got.Then, e.Title)
			}
			got.Once, _, _ = strings.Cut(got.Once, "@") // the time of a file that was just written
			if diff := cmp.Diff(want, got, cmp.AllowUnexported(wanted{})); diff != "" {
				t.Errorf("first entry (-want +got):\n%s\nlooked at %q\nlog: %s", diff, looked, m.log.String())
			}
			if want.log == "" && strings.Contains(m.log.String(), "WARN") || !strings.Contains(m.log.String(), want.log) {
				t.Errorf("log %q, want %q", m.log.String(), want.log)
			}
			if m.used = true; want.Once != "" {
				entries, _ := m.entries(t)
				if len(entries) == 0 || entries[0].Title != want.Then[0] || entries[0].Once != "" {
					t.Errorf("after it was booted: %+v, want %s first", entries, want.Then[0])
				}
			}
			if !strings.Contains(strings.Join(looked, "; "), want.left) {
				t.Errorf("looked at %q, want %q", looked, want.left)
			}
			if strings.Contains(filepath.Base(name), "saved.") {
				return // without files for the kernels
			}
			for _, f := range []File{e.Kernel, e.Initrd} {
				if !f.Exists() {
					continue
				}
				if _, err := f.Size(1 << 20); err != nil {
					t.Error(err)
				}
			}
		})
	}
}

// namespace runs a script as root of a mount namespace of its own.
func namespace(t *testing.T, script string, env ...string) string {
	t.Helper()
	cmd := exec.Command("unshare", "--map-root-user", "--mount", "sh", "-euc", script)
	cmd.Env = append(os.Environ(), env...)
	var errs bytes.Buffer
	cmd.Stderr = &errs
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v: %s (make tools installs what is missing)", err, errs.String())
	}
	return string(out)
}

// grubProbe says what grub-probe would about a root file system in the
// subvolume @rootfs of vda2.
const grubProbe = `#!/bin/sh
case "$*" in
*--target=device*) echo /dev/vda2 ;;
*--target=fs_uuid*) echo 11d6cafe-0000-4000-8000-000000000001 ;;
*--target=partuuid*) echo 11d6cafe-02 ;;
*--target=fs*) echo btrfs ;;
*--target=partmap*) echo gpt ;;
*--target=drive*) echo '(hd0,gpt2)' ;;
*--target=compatibility_hint*) echo hd0,gpt2 ;;
*--target=hints_string*) echo "--hint-bios=hd0,gpt2 --hint-efi=hd0,gpt2 --hint-baremetal=ahci0,gpt2 " ;;
*--target=abstraction*) ;;
*) exit 1 ;;
esac
`

// TestGRUBMkconfig has Debian's own generator write the configuration: two
// kernels, microcode, GRUB_DEFAULT=saved, and btrfs with a subvolume.
func TestGRUBMkconfig(t *testing.T) {
	dir := t.TempDir()
	boot := filepath.Join(dir, "vda2", "@rootfs", "boot")
	for _, v := range []string{"6.1.0-39-amd64", "6.1.0-40-amd64"} {
		write(t, filepath.Join(boot, "vmlinuz-"+v), "kernel "+v)
		write(t, filepath.Join(boot, "initrd.img-"+v), "initrd "+v)
		write(t, filepath.Join(boot, "config-"+v), "CONFIG_X86=y\n")
	}
	write(t, filepath.Join(boot, "intel-ucode.img"), "ucode")
	write(t, filepath.Join(dir, "default", "grub"), "GRUB_DEFAULT=saved\nGRUB_TIMEOUT=5\nGRUB_DISTRIBUTOR=Debian\nGRUB_CMDLINE_LINUX_DEFAULT=quiet\nGRUB_CMDLINE_LINUX='crashkernel=256M \"spaced=a b\"'\n")
	write(t, filepath.Join(dir, "grub-probe"), grubProbe)
	write(t, filepath.Join(dir, "grub-mkrelpath"), "#!/bin/sh\nfor p; do :; done\necho /@rootfs${p%/}\n")
	for _, f := range []string{"grub-probe", "grub-mkrelpath"} {
		if err := os.Chmod(filepath.Join(dir, f), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	script := namespace(t, `
mount --bind "$DIR/vda2/@rootfs/boot" /boot
mount --bind "$DIR/default" /etc/default
mount --bind "$DIR/grub-probe" /usr/sbin/grub-probe
mount --bind "$DIR/grub-mkrelpath" /usr/bin/grub-mkrelpath
mkdir -p /boot/grub
grub-mkconfig
grub-editenv /boot/grub/grubenv create
`, "DIR="+dir, "LC_ALL=C.UTF-8", "PATH=/usr/sbin:/usr/bin:/sbin:/bin")
	write(t, filepath.Join(boot, "grub", "grub.cfg"), script)

	m := &machine{}
	m.add(t, dir, "vda2", "btrfs", "11d6cafe-0000-4000-8000-000000000001", "")
	first := func(saved string) (string, string) {
		t.Helper()
		if saved != "" {
			if out, err := exec.Command("grub-editenv", filepath.Join(boot, "grub", "grubenv"), "set", "saved_entry="+saved).CombinedOutput(); err != nil {
				t.Fatalf("grub-editenv: %v: %s", err, out)
			}
		}
		entries, looked := m.entries(t)
		if len(entries) != 5 {
			t.Fatalf("%d entries, want 5; looked at %q; log: %s", len(entries), looked, m.log.String())
		}
		if strings.Contains(m.log.String(), "WARN") {
			t.Errorf("log: %s", m.log.String())
		}
		e := entries[0]
		return contents(t, e.Kernel) + ", " + strings.ReplaceAll(contents(t, e.Initrd), "\x00", ""), e.Cmdline
	}
	const id = "11d6cafe-0000-4000-8000-000000000001"
	for _, tt := range []struct{ saved, want string }{
		{"", "kernel 6.1.0-40-amd64, ucodeinitrd 6.1.0-40-amd64"},
		{"gnulinux-advanced-" + id + ">gnulinux-6.1.0-39-amd64-advanced-" + id, "kernel 6.1.0-39-amd64, ucodeinitrd 6.1.0-39-amd64"},
		{"1>0", "kernel 6.1.0-40-amd64, ucodeinitrd 6.1.0-40-amd64"},
		{"Advanced options for Debian GNU/Linux>Debian GNU/Linux, with Linux 6.1.0-39-amd64 (recovery mode)", "kernel 6.1.0-39-amd64, ucodeinitrd 6.1.0-39-amd64"},
		{"gnulinux-advanced-gone>gnulinux-6.1.0-38-amd64-advanced-gone", "kernel 6.1.0-40-amd64, ucodeinitrd 6.1.0-40-amd64"},
	} {
		got, cmdline := first(tt.saved)
		if got != tt.want {
			t.Errorf("saved_entry %q: %s, want %s", tt.saved, got, tt.want)
		}
		if want := `rootflags=subvol=@rootfs crashkernel=256M "spaced=a b"`; !strings.Contains(cmdline, want) {
			t.Errorf("saved_entry %q: command line %q, want %q in it", tt.saved, cmdline, want)
		}
	}
}

// TestBootctl compares the order of BootLoaderSpec entries with systemd's own.
// `make tools` unpacks bootctl.
func TestBootctl(t *testing.T) {
	cache, err := os.UserCacheDir()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	esp := filepath.Join(dir, "vda1")
	for name, content := range map[string]string{
		"loader.conf":                          "timeout 3\n",
		"entries/0123-6.1.0-9-amd64.conf":      "title Debian\nversion 6.1.0-9-amd64\nsort-key debian\nmachine-id 0123\nlinux /9\noptions a\n",
		"entries/0123-6.1.0-10-amd64.conf":     "title Debian\nversion 6.1.0-10-amd64\nsort-key debian\nmachine-id 0123\nlinux /10\noptions a\n",
		"entries/0123-6.1.0-rc1-1-amd64.conf":  "title Debian\nversion 6.1.0~rc1-1-amd64\nsort-key debian\nmachine-id 0123\nlinux /rc\noptions a\n",
		"entries/0123-6.2.0-1-amd64+0-3.conf":  "title Debian\nversion 6.2.0-1-amd64\nsort-key debian\nmachine-id 0123\nlinux /bad\noptions a\n",
		"entries/0123-6.1.0-11-amd64+2-1.conf": "title Debian\nversion 6.1.0-11-amd64\nsort-key debian\nmachine-id 0123\nlinux /tries\noptions a\n",
		"entries/old-style-1.conf":             "title Old 1\nlinux /old1\noptions a\n",
		"entries/old-style-2.conf":             "title Old 2\nlinux /old2\noptions a\n",
		"entries/arch.conf":                    "title Arch Linux\nsort-key arch\nversion 6.17.8.arch1-1\nlinux /arch\noptions a\n",
		"entries/arch-zen.conf":                "title Arch Linux\nsort-key arch\nversion 6.17.8.zen1-1\nlinux /zen\noptions a\n",
	} {
		write(t, filepath.Join(esp, "loader", name), content)
	}
	for _, k := range []string{"9", "10", "rc", "bad", "tries", "old1", "old2", "arch", "zen"} {
		write(t, filepath.Join(esp, k), "kernel")
	}
	out := namespace(t, `
mount -t tmpfs none /mnt
cp -r "$ESP/." /mnt
"$BOOTCTL" --esp-path=/mnt --no-pager list
`, "ESP="+esp, "BOOTCTL="+filepath.Join(cache, "warmcore/unpacked/systemd-boot/usr/bin/bootctl"), "SYSTEMD_RELAX_ESP_CHECKS=1", "SYSTEMD_COLORS=0", "LC_ALL=C")
	var want []string
	for line := range strings.Lines(out) {
		key, value, _ := strings.Cut(strings.TrimSpace(line), ": ")
		if key == "linux" {
			want = append(want, strings.TrimPrefix(strings.TrimSpace(value), "/mnt"))
		}
	}
	m := &machine{}
	m.add(t, dir, "vda1", "vfat", "1234-5678", "")
	entries, _ := m.entries(t)
	var got []string
	for _, e := range entries {
		got = append(got, e.Kernel.Path)
	}
	if diff := cmp.Diff(want, got); diff != "" || len(want) < 9 {
		t.Errorf("order (-bootctl +got):\n%s\n%s", diff, out)
	}
}
