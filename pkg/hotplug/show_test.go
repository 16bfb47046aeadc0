package hotplug

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/warmcore/warmcore/pkg/hotplug/hotplugtest"
	"github.com/warmcore/warmcore/pkg/phys"
)

func TestShowAndBind(t *testing.T) {
	for _, tc := range []struct {
		name   string
		byType bool
	}{
		{"v6.1: device_dax has it first", false},
		{"v6.12: nobody has it without kmem", true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s, k := machine(t)
			k.ByType = tc.byType
			var files []File
			for range 2 { // everything can be done twice
				files = nil
				if err := s.LoadToShow(); err != nil {
					t.Fatal(err)
				}
				for _, d := range devices(t, s) {
					f, err := s.Show(d)
					if err != nil {
						t.Fatal(err)
					}
					files = append(files, f)
				}
			}
			want := []File{{"dev/dax1.0", "252:1", 2 * phys.MiB}, {"dev/dax0.0", "252:0", 2 * phys.MiB}}
			if diff := cmp.Diff(want, files); diff != "" {
				t.Errorf("files (-want +got):\n%s", diff)
			}
			if slices.Contains(k.Loaded, "kmem") {
				t.Error("kmem was loaded")
			}
			// Release comes after it.
			if err := s.Load(); err != nil {
				t.Fatal(err)
			}
			for _, d := range devices(t, s) {
				if d.Driver != "device_dax" {
					t.Errorf("driver of %s is %q, want device_dax", d.Name, d.Driver)
				}
				if err := s.Bind(d); err != nil {
					t.Error(err)
				}
				if _, err := s.Show(d); !errors.Is(err, ErrKmem) {
					t.Errorf("Show of what kmem has: %v, want ErrKmem", err)
				}
			}
			if list, err := s.Blocks(phys.NewSet(blocks(3, 16))); err != nil || len(list) != 4 {
				t.Errorf("blocks %v, %v; want those of the devices", list, err)
			}
		})
	}
}

func devices(t *testing.T, s System) []Device {
	t.Helper()
	list, err := s.Devices()
	if err != nil {
		t.Fatal(err)
	}
	return list
}

func TestLoadToShow(t *testing.T) {
	s, k := machine(t)
	k.Missing = []string{"device_dax"}
	if err := s.LoadToShow(); err == nil || !strings.Contains(err.Error(), "device_dax") {
		t.Errorf("without device_dax: %v", err)
	}
	s, k = machine(t)
	if err := k.Modprobe("kmem"); err != nil {
		t.Fatal(err)
	}
	if err := s.LoadToShow(); err != nil || len(devices(t, s)) > 0 {
		t.Errorf("with kmem: error %v, devices %v; want none", err, devices(t, s))
	}
	s, k = machine(t)
	k.AddPmem(blocks(8, 9))
	if err := s.LoadToShow(); !errors.Is(err, ErrPmem) || len(k.Loaded) > 0 {
		t.Errorf("with pmem regions: error %v, loaded %v", err, k.Loaded)
	}
}

func TestShowRefuses(t *testing.T) {
	const dir = "sys/bus/dax/devices/dax0.0/"
	for _, tc := range []struct {
		name, file, content string
		want                string
	}{
		{"two parts", "mapping1/page_offset", "0x0", "several parts"},
		{"no number", "align", "2 MiB", "align"},
		{"alignment of nothing", "align", "0", "not aligned"},
		{"no power of two", "align", "6291456", "not aligned"},
		{"less than a page", "align", "512", "not aligned"},
		{"aligned to more than the device", "align", "2147483648", "not aligned"},
		{"device number", "dev", "252", "MAJOR:MINOR"},
		{"negative device number", "dev", "252:-1", "MAJOR:MINOR"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s, k := shown(t)
			path := filepath.Join(k.Root, dir, tc.file)
			if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path, []byte(tc.content+"\n"), 0o644); err != nil {
				t.Fatal(err)
			}
			f, err := s.Show(devices(t, s)[1])
			if f != (File{}) || err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("Show = %v, %v; want an error with %q", f, err, tc.want)
			}
		})
	}
	for _, name := range []string{"align", "dev"} {
		s, k := shown(t)
		if err := os.Remove(filepath.Join(k.Root, dir, name)); err != nil {
			t.Fatal(err)
		}
		if f, err := s.Show(devices(t, s)[1]); f != (File{}) || !errors.Is(err, os.ErrNotExist) {
			t.Errorf("Show without %s = %v, %v", name, f, err)
		}
	}
	// A device that no driver takes.
	s, k := shown(t)
	if err := os.RemoveAll(filepath.Join(k.Root, "sys/bus/dax/drivers/device_dax")); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(k.Root, dir, "driver")); err != nil {
		t.Fatal(err)
	}
	if f, err := s.Show(devices(t, s)[1]); f != (File{}) || err == nil || !strings.Contains(err.Error(), "doesn't take it") {
		t.Errorf("Show without a driver = %v, %v", f, err)
	}
}

// shown is a machine whose second device by address is dax0.0.
func shown(t *testing.T) (System, *hotplugtest.Kernel) {
	t.Helper()
	s, k := machine(t)
	if err := s.LoadToShow(); err != nil {
		t.Fatal(err)
	}
	return s, k
}
