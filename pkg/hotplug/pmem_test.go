package hotplug

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/warmcore/warmcore/pkg/hotplug/hotplugtest"
	"github.com/warmcore/warmcore/pkg/phys"
)

// region is memory blocks from to to, with the info block in front.
func region(from, to uint64) phys.Range {
	return phys.Range{Start: from*block - InfoBlock, End: to * block}
}

// arm64Machine is a machine whose device tree hides blocks 3 and 5 to 7.
func arm64Machine(t *testing.T) (System, *hotplugtest.Kernel) {
	t.Helper()
	k := hotplugtest.New(t, t.TempDir(), block, phys.NewSet(blocks(0, 3)))
	k.AddPmem(region(3, 4), region(5, 8))
	return System{Root: k.Root, Modprobe: k.Modprobe, Write: k.Write}, k
}

const nd = "sys/bus/nd/devices/"

func TestConvert(t *testing.T) {
	for _, tc := range []struct {
		name   string
		before func(*testing.T, *hotplugtest.Kernel)
	}{
		{"nobody was there", nil},
		{"udev loaded what it found", func(t *testing.T, k *hotplugtest.Kernel) {
			load(t, k, "of_pmem", "nd_pmem", "device_dax")
		}},
		{"broken off before bind", func(t *testing.T, k *hotplugtest.Kernel) {
			load(t, k, "of_pmem")
			for _, a := range []string{"mode=ram", "uuid=6b1b3e4c-2f0e-4c39-9d4b-5c0c9f0a9b01", "namespace=namespace1.0"} {
				name, value, _ := strings.Cut(a, "=")
				if err := k.Write(nd+"dax1.0/"+name, value); err != nil {
					t.Fatal(err)
				}
			}
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s, k := arm64Machine(t)
			if tc.before != nil {
				tc.before(t, k)
			}
			for range 2 { // everything can be done twice
				if err := s.Load(); err != nil {
					t.Fatal(err)
				}
				if err := s.Convert(phys.NewSet(blocks(3, 8))); err != nil {
					t.Fatal(err)
				}
				devices, err := s.Devices()
				if err != nil {
					t.Fatal(err)
				}
				for _, d := range devices {
					if err := s.Bind(d); err != nil {
						t.Fatal(err)
					}
				}
			}
			devices, err := s.Devices()
			if err != nil {
				t.Fatal(err)
			}
			want := []Device{
				{Name: "dax0.0", Range: blocks(3, 4), Driver: "kmem"},
				{Name: "dax1.0", Range: blocks(5, 8), Driver: "kmem"},
			}
			if diff := cmp.Diff(want, devices); diff != "" {
				t.Errorf("devices (-want +got):\n%s", diff)
			}
			list, err := s.Blocks(phys.NewSet(blocks(3, 8)))
			if err != nil || len(list) != 4 {
				t.Errorf("blocks %v, %v; want all four", list, err)
			}
		})
	}
}

func load(t *testing.T, k *hotplugtest.Kernel, modules ...string) {
	t.Helper()
	for _, m := range modules {
		if err := k.Modprobe(m); err != nil {
			t.Fatal(err)
		}
	}
}

// Without device_dax no page of a region is described before it is memory,
// and dax_hmem has nothing to do.
func TestLoadForPmem(t *testing.T) {
	s, k := arm64Machine(t)
	if err := s.Load(); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"of_pmem", "dax_pmem", "kmem"}, k.Loaded); diff != "" {
		t.Errorf("modules (-want +got):\n%s", diff)
	}
	for _, missing := range []string{"of_pmem", "dax_pmem", "kmem"} {
		s, k := arm64Machine(t)
		k.Missing = []string{missing}
		err := s.Load()
		if err == nil || !strings.Contains(err.Error(), "the kernel has no "+missing+" driver") {
			t.Errorf("Load without %s: %v, want that it is missing", missing, err)
		}
	}
}

// In a plain boot only window and destination are hidden, and what isn't
// asked for stays as it is.
func TestConvertTouchesOnlyWhatIsWanted(t *testing.T) {
	s, k := arm64Machine(t)
	if err := s.Load(); err != nil {
		t.Fatal(err)
	}
	if err := s.Convert(phys.NewSet(blocks(6, 7))); err != nil {
		t.Fatal(err)
	}
	for _, w := range k.Writes {
		if strings.Contains(w, "dax0.0") || strings.Contains(w, "namespace0.0") {
			t.Errorf("wrote %s, and nobody wants region0", w)
		}
	}
	if d, err := s.Devices(); err != nil || len(d) != 1 || d[0].Range != blocks(5, 8) {
		t.Errorf("devices %v, %v; want one of region1", d, err)
	}
	if err := (System{Root: t.TempDir()}).Convert(phys.NewSet(blocks(0, 9))); err != nil {
		t.Errorf("Convert without an nvdimm bus: %v", err)
	}
}

func TestConvertAlign(t *testing.T) {
	for _, tc := range []struct{ name, supported, want string }{
		{"pages of 4 KiB", "4096 [2097152] ", "2097152"},
		{"pages of 16 KiB", "16384 [33554432] ", "16384"},
		{"pages of 64 KiB", "65536 [536870912] ", "65536"},
		{"no huge pages", "[4096] ", "4096"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s, k := arm64Machine(t)
			if err := s.Load(); err != nil {
				t.Fatal(err)
			}
			put(t, k, nd+"dax0.0/supported_alignments", tc.supported)
			if err := s.Convert(phys.NewSet(blocks(3, 4))); err != nil {
				t.Fatal(err)
			}
			if want := nd + "dax0.0/align=" + tc.want; !slices.Contains(k.Writes, want) {
				t.Errorf("writes %q, want %s", k.Writes, want)
			}
		})
	}
}

func put(t *testing.T, k *hotplugtest.Kernel, name, content string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(k.Root, name), []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
}

func TestConvertFails(t *testing.T) {
	for _, tc := range []struct {
		name   string
		damage func(*testing.T, *hotplugtest.Kernel)
		want   string
	}{
		{"region is not taken", func(t *testing.T, k *hotplugtest.Kernel) {
			if err := os.Remove(filepath.Join(k.Root, nd+"region1/driver")); err != nil {
				t.Fatal(err)
			}
		}, "nd_region has not taken it"},
		{"no dax devices", func(t *testing.T, k *hotplugtest.Kernel) { put(t, k, nd+"region1/dax_seed", "\n") }, "CONFIG_NVDIMM_DAX"},
		{"address is no number", func(t *testing.T, k *hotplugtest.Kernel) { put(t, k, nd+"region1/resource", "there") }, "invalid syntax"},
		{"range wraps", func(t *testing.T, k *hotplugtest.Kernel) { put(t, k, nd+"region1/resource", "0xfffffffffffff000") }, "wrap"},
		{"alignment is no number", func(t *testing.T, k *hotplugtest.Kernel) { put(t, k, nd+"dax1.0/supported_alignments", "two") }, "invalid syntax"},
		{"no alignment", func(t *testing.T, k *hotplugtest.Kernel) { put(t, k, nd+"dax1.0/supported_alignments", "\n") }, "it is empty"},
		{"mode is refused", func(t *testing.T, k *hotplugtest.Kernel) {
			if err := os.Remove(filepath.Join(k.Root, nd+"dax1.0/mode")); err != nil {
				t.Fatal(err)
			}
		}, "set mode of dax1.0 to ram"},
		{"dax_pmem is refused", func(t *testing.T, k *hotplugtest.Kernel) {
			if err := os.Remove(filepath.Join(k.Root, "sys/bus/nd/drivers/dax_pmem/bind")); err != nil {
				t.Fatal(err)
			}
		}, "give dax1.0 to dax_pmem"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s, k := arm64Machine(t)
			if err := s.Load(); err != nil {
				t.Fatal(err)
			}
			tc.damage(t, k)
			err := s.Convert(phys.NewSet(blocks(3, 8)))
			if err == nil || !strings.Contains(err.Error(), tc.want) || !strings.Contains(err.Error(), "region1") {
				t.Errorf("Convert: %v, want an error about region1 with %q", err, tc.want)
			}
			// One region's failure keeps no other from being given back.
			if tc.name == "dax_pmem is refused" {
				return // of both
			}
			if d, err := s.Devices(); err != nil || len(d) != 1 || d[0].Range != blocks(3, 4) {
				t.Errorf("devices %v, %v; want one of region0", d, err)
			}
		})
	}
}

// TestMissing reads the lists of Debian's kernels for arm64. In testdata they
// are cut to the folders of memory and its drivers; depmod made modules.dep of
// 6.1, as it does where the package is installed.
func TestMissing(t *testing.T) {
	// 6.1 has no ZONE_DEVICE, and so no DEV_DAX_PMEM.
	const old, current = "6.1.0-50-arm64", "6.12.117+deb12-arm64"
	s, k := arm64Machine(t)
	for _, release := range []string{old, current} {
		if got := s.Missing(release); got != nil {
			t.Errorf("Missing of %s without lists = %q, want none: it isn't known", release, got)
		}
		to := filepath.Join(k.Root, "lib/modules", release)
		if err := os.MkdirAll(to, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.CopyFS(to, os.DirFS(filepath.Join("testdata", release))); err != nil {
			t.Fatal(err)
		}
	}
	if got := s.Missing(current); got != nil {
		t.Errorf("Missing of %s = %q, want none", current, got)
	}
	if diff := cmp.Diff([]string{"dax_pmem"}, s.Missing(old)); diff != "" {
		t.Errorf("Missing of %s (-want +got):\n%s", old, diff)
	}
	put(t, k, "lib/modules/"+old+"/modules.builtin", "kernel/drivers/dax/dax_pmem.ko\n")
	if got := s.Missing(old); got != nil {
		t.Errorf("Missing with the driver built in = %q, want none", got)
	}
	put(t, k, "lib/modules/"+old+"/modules.builtin", "")
	load(t, k, "dax_pmem")
	if got := s.Missing(old); got != nil {
		t.Errorf("Missing with the driver in the kernel = %q, want none", got)
	}
}
