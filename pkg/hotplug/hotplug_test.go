package hotplug

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/warmcore/warmcore/pkg/hotplug/hotplugtest"
	"github.com/warmcore/warmcore/pkg/phys"
)

const block = 128 * phys.MiB

func blocks(from, to uint64) phys.Range { return phys.Range{Start: from * block, End: to * block} }

func machine(t *testing.T) (System, *hotplugtest.Kernel) {
	t.Helper()
	k := hotplugtest.New(t, t.TempDir(), block, phys.NewSet(blocks(0, 3)))
	k.Soft = []phys.Range{blocks(5, 8), blocks(3, 4)}
	return System{Root: k.Root, Modprobe: k.Modprobe, Write: k.Write}, k
}

func TestBindAndOnline(t *testing.T) {
	for _, tc := range []struct {
		name   string
		byType bool
	}{
		{"v6.1: device_dax has it first", false},
		{"v6.12: kmem has it first", true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s, k := machine(t)
			k.ByType = tc.byType
			if d, err := s.Devices(); d != nil || err != nil {
				t.Fatalf("Devices before Load = %v, %v; want none", d, err)
			}
			for range 2 { // everything can be done twice
				if err := s.Load(); err != nil {
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
				list, err := s.Blocks(phys.NewSet(blocks(3, 6)))
				if err != nil {
					t.Fatal(err)
				}
				for i := range list {
					if err := s.Online(&list[i], i == 0); err != nil {
						t.Fatal(err)
					}
				}
			}
			devices, err := s.Devices()
			if err != nil {
				t.Fatal(err)
			}
			wantDevices := []Device{
				{Name: "dax1.0", Range: blocks(3, 4), Driver: "kmem"},
				{Name: "dax0.0", Range: blocks(5, 8), Driver: "kmem"},
			}
			if diff := cmp.Diff(wantDevices, devices); diff != "" {
				t.Errorf("devices (-want +got):\n%s", diff)
			}
			list, err := s.Blocks(phys.NewSet(blocks(0, 16)))
			if err != nil {
				t.Fatal(err)
			}
			normal, movable, either := []string{"Normal"}, []string{"Movable"}, []string{"Normal", "Movable"}
			want := []Block{
				{"memory0", blocks(0, 1), "online", normal},
				{"memory1", blocks(1, 2), "online", normal},
				{"memory2", blocks(2, 3), "online", normal},
				{"memory3", blocks(3, 4), "online", movable},
				{"memory5", blocks(5, 6), "online", normal},
				{"memory6", blocks(6, 7), "offline", either},
				{"memory7", blocks(7, 8), "offline", either},
			}
			if diff := cmp.Diff(want, list); diff != "" {
				t.Errorf("blocks (-want +got):\n%s", diff)
			}
		})
	}
}

func TestBlocksAreWholeAndInside(t *testing.T) {
	s, _ := machine(t)
	got, err := s.Blocks(phys.NewSet(phys.Range{Start: block / 2, End: 2*block + block/2}))
	if err != nil {
		t.Fatal(err)
	}
	if len(got) != 1 || got[0].Range != blocks(1, 2) {
		t.Errorf("blocks inside half a block to two and a half: %v, want memory1", got)
	}
}

func TestOffline(t *testing.T) {
	s, k := machine(t)
	k.Pinned = []phys.Range{blocks(2, 3)}
	list, err := s.Blocks(phys.NewSet(blocks(1, 3)))
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := s.Offline(&list[0]); err != nil {
			t.Fatal(err)
		}
		if list[0].Online() {
			t.Error("memory1 is online after Offline")
		}
	}
	if err := s.Offline(&list[1]); err == nil || !list[1].Online() {
		t.Errorf("Offline of a pinned block: %v, state %s", err, list[1].State)
	}
}

// Something switched the block online for the kernel before us.
func TestOnlineMovableCorrects(t *testing.T) {
	s, k := machine(t)
	list, err := s.Blocks(phys.NewSet(blocks(1, 3)))
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Online(&list[0], true); err != nil {
		t.Fatal(err)
	}
	if !list[0].Movable() {
		t.Errorf("memory1 is in %v, want Movable", list[0].Zones)
	}
	k.Pinned = []phys.Range{blocks(2, 3)}
	if err := s.Online(&list[1], true); !errors.Is(err, ErrZone) {
		t.Errorf("Online of a block with kernel data: %v, want ErrZone", err)
	}
}

func TestLoadWithoutModules(t *testing.T) {
	s, k := machine(t)
	k.Missing = []string{"device_dax"}
	if err := s.Load(); err != nil {
		t.Errorf("Load without device_dax: %v, want that kmem is enough", err)
	}
	s, k = machine(t)
	k.Missing = []string{"kmem"}
	if err := s.Load(); err == nil || !strings.Contains(err.Error(), "kmem") {
		t.Errorf("Load without kmem: %v, want that it is missing", err)
	}
}

func TestBindWithoutNode(t *testing.T) {
	s, k := machine(t)
	k.NoNode = true
	if err := s.Load(); err != nil {
		t.Fatal(err)
	}
	devices, err := s.Devices()
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Bind(devices[0]); err == nil || !strings.Contains(err.Error(), "NUMA node") {
		t.Errorf("Bind without a NUMA node: %v", err)
	}
}

func TestBrokenAttributes(t *testing.T) {
	for _, tc := range []struct{ name, file, content, want string }{
		{"block size is no number", "sys/devices/system/memory/block_size_bytes", "large", "no memory block size"},
		{"block size is no power of two", "sys/devices/system/memory/block_size_bytes", "8000001", "no memory block size"},
		{"index is no number", "sys/devices/system/memory/memory1/phys_index", "one", "invalid syntax"},
		{"index is too large", "sys/devices/system/memory/memory1/phys_index", "ffffffffffff", "beyond 63 bits"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s, _ := machine(t)
			if err := os.WriteFile(filepath.Join(s.Root, tc.file), []byte(tc.content), 0o644); err != nil {
				t.Fatal(err)
			}
			list, err := s.Blocks(phys.NewSet(blocks(0, 16)))
			if list != nil || err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("Blocks = %v, %v; want an error with %q", list, err, tc.want)
			}
		})
	}
	s, k := machine(t)
	if err := k.Modprobe("dax_hmem"); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(s.Root, "sys/bus/dax/devices/dax0.0/resource"), []byte("0xfffffffffffff000"), 0o644); err != nil {
		t.Fatal(err)
	}
	if list, err := s.Devices(); list != nil || err == nil || !strings.Contains(err.Error(), "wrap") {
		t.Errorf("Devices with a range that wraps = %v, %v", list, err)
	}
}

// Without Write, attributes are files; one that is missing isn't made.
func TestWriteFile(t *testing.T) {
	s, _ := machine(t)
	s.Write = nil
	list, err := s.Blocks(phys.NewSet(blocks(1, 2)))
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Offline(&list[0]); err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(filepath.Join(s.Root, "sys/devices/system/memory/memory1/state")); err != nil || !strings.HasPrefix(string(got), "offline") {
		t.Errorf("state is %q, %v", got, err)
	}
	if err := s.write("sys/devices/system/memory/memory9/state", "online"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("write to a missing attribute: %v, want that it doesn't exist", err)
	}
}
