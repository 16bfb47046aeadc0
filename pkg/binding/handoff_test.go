package binding

import (
	"encoding/binary"
	"errors"
	"io/fs"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/google/go-cmp/cmp"

	"github.com/warmcore/warmcore/pkg/devicetree"
	"github.com/warmcore/warmcore/pkg/phys"
)

// cells are 32-bit big-endian numbers, as a property has them.
func cells(values ...uint32) string {
	var b []byte
	for _, v := range values {
		b = binary.BigEndian.AppendUint32(b, v)
	}
	return string(b)
}

// tree is a device tree as the kernel shows it: the one that QEMU's virt board
// and our plan make, with changes; a nil value removes a file.
func tree(changes map[string]*string) fs.FS {
	files := map[string]string{
		"#address-cells":                              cells(2),
		"memory@40000000/reg":                         cells(0, 0x40000000, 0, 0x1fc00000),
		"reserved-memory/#address-cells":              cells(2),
		"reserved-memory/#size-cells":                 cells(2),
		"reserved-memory/ranges":                      "",
		"reserved-memory/name":                        "reserved-memory\x00",
		"reserved-memory/cma@50000000/compatible":     "shared-dma-pool\x00",
		"reserved-memory/cma@50000000/reg":            cells(0, 0x50000000, 0, 0x4000000),
		"reserved-memory/handoff@5fc00000/compatible": "warmcore,handoff\x00",
		"reserved-memory/handoff@5fc00000/no-map":     "",
		"reserved-memory/handoff@5fc00000/reg":        cells(0, 0x5fc00000, 0, 0x200000),
	}
	for name, content := range changes {
		delete(files, name)
		if content != nil {
			files[name] = *content
		}
	}
	m := fstest.MapFS{}
	for name, content := range files {
		m[name] = &fstest.MapFile{Data: []byte(content)}
	}
	return m
}

func set(name, content string) map[string]*string { return map[string]*string{name: &content} }

const nodeDir = "reserved-memory/handoff@5fc00000/"

func TestHandoffNode(t *testing.T) {
	area := phys.Range{Start: 0x5fc00000, End: 0x5fe00000}
	two := set("reserved-memory/other@70000000/compatible", "warmcore,handoff\x00")
	reg := cells(0, 0x70000000, 0, 0x200000)
	two["reserved-memory/other@70000000/reg"] = &reg
	small := set("reserved-memory/#address-cells", cells(1))
	one, smallReg := cells(1), cells(0x5fc00000, 0x200000)
	small["reserved-memory/#size-cells"], small[nodeDir+"reg"] = &one, &smallReg
	for _, tc := range []struct {
		name    string
		tree    fs.FS
		want    phys.Range
		none    bool
		wantErr string // part of the error
	}{
		{name: "as the plan writes it", tree: tree(nil), want: area},
		{name: "one cell each", tree: tree(small), want: area},
		{name: "above 4 GiB", tree: tree(set(nodeDir+"reg", cells(8, 0x5fc00000, 0, 0x200000))), want: phys.Range{Start: 0x85fc00000, End: 0x85fe00000}},
		{name: "one of several compatible", tree: tree(set(nodeDir+"compatible", "vendor,kept\x00warmcore,handoff\x00")), want: area},
		{name: "no device tree", tree: fstest.MapFS{}, none: true},
		{name: "no node", tree: tree(set(nodeDir+"compatible", "ramoops\x00")), none: true},
		{name: "disabled", tree: tree(set(nodeDir+"status", "disabled\x00")), none: true},
		{name: "two nodes", tree: tree(two), wantErr: "both handoff@5fc00000 and other@70000000 are it"},
		{name: "no ranges", tree: tree(map[string]*string{"reserved-memory/ranges": nil}), wantErr: "ranges is missing or not empty"},
		{name: "addresses of another bus", tree: tree(set("reserved-memory/ranges", cells(0, 0, 1, 0, 1, 0))), wantErr: "ranges is missing or not empty"},
		{name: "no reg", tree: tree(map[string]*string{nodeDir + "reg": nil}), wantErr: "reg has 0 ranges"},
		{name: "two ranges", tree: tree(set(nodeDir+"reg", cells(0, 0x5fc00000, 0, 0x100000, 0, 0x5fd00000, 0, 0x100000))), wantErr: "reg has 2 ranges"},
		{name: "half a range", tree: tree(set(nodeDir+"reg", cells(0, 0x5fc00000, 0))), wantErr: "12 bytes"},
		{name: "three cells", tree: tree(set("reserved-memory/#address-cells", cells(3))), wantErr: "#address-cells 3"},
		{name: "wraps", tree: tree(set(nodeDir+"reg", cells(0xffffffff, 0xfff00000, 0, 0x200000))), wantErr: "beyond 64 bits"},
		{name: "too small", tree: tree(set(nodeDir+"reg", cells(0, 0x5fc00000, 0, 0x1000))), wantErr: "want at least 2 MiB"},
		{name: "not aligned", tree: tree(set(nodeDir+"reg", cells(0, 0x5fc00800, 0, 0x200000))), wantErr: "not whole pages"},
		{name: "property too large", tree: tree(set(nodeDir+"compatible", strings.Repeat("x", devicetree.MaxSize+1))), wantErr: "bytes in all"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got, err := handoffFS(tc.tree)
			if diff := cmp.Diff(tc.want, got); diff != "" {
				t.Errorf("handoffFS (-want +got):\n%s", diff)
			}
			if errors.Is(err, ErrNone) != tc.none {
				t.Errorf("handoffFS error = %v, want ErrNone: %v", err, tc.none)
			}
			if tc.wantErr != "" && (err == nil || !strings.Contains(err.Error(), tc.wantErr)) || tc.wantErr == "" && !tc.none && err != nil {
				t.Errorf("handoffFS error = %v, want %q", err, tc.wantErr)
			}
		})
	}
}

func TestFindHandoff(t *testing.T) {
	area := phys.Range{Start: 0x5fc00000, End: 0x5fe00000}
	broken := tree(set(nodeDir+"reg", "x"))
	for _, tc := range []struct {
		name, cmdline string
		tree          fs.FS
		want          phys.Range
		wantErr       string
	}{
		{"both", "quiet warmcore.handoff=0x5fc00000,0x200000", tree(nil), area, ""},
		{"device tree only", "quiet", tree(nil), area, ""},
		{"command line only", "warmcore.handoff=0x5fc00000,0x200000", fstest.MapFS{}, area, ""},
		{"neither", "quiet", fstest.MapFS{}, phys.Range{}, "no warmcore.handoff="},
		{"they differ", "warmcore.handoff=0x5fe00000,0x200000", tree(nil), phys.Range{}, "5fc00000-5fdfffff in the device tree, but 5fe00000-5fffffff on"},
		{"sizes differ", "warmcore.handoff=0x5fc00000,0x400000", tree(nil), phys.Range{}, "in the device tree, but"},
		{"broken node", "warmcore.handoff=0x5fc00000,0x200000", broken, phys.Range{}, "find handoff area in the device tree"},
		{"broken parameter", "warmcore.handoff=here", tree(nil), phys.Range{}, "want ADDR,SIZE"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got, err := FindHandoff(tc.cmdline, tc.tree)
			if diff := cmp.Diff(tc.want, got); diff != "" {
				t.Errorf("FindHandoff (-want +got):\n%s", diff)
			}
			if tc.wantErr == "" && err != nil || tc.wantErr != "" && (err == nil || !strings.Contains(err.Error(), tc.wantErr)) {
				t.Errorf("FindHandoff error = %v, want %q", err, tc.wantErr)
			}
		})
	}
	if _, err := FindHandoff("", fstest.MapFS{}); !errors.Is(err, ErrNone) {
		t.Errorf("FindHandoff of nothing: %v, want ErrNone", err)
	}
}

func FuzzHandoffNode(f *testing.F) {
	f.Add([]byte(cells(0, 0x5fc00000, 0, 0x200000)), []byte(cells(2)), []byte(cells(2)))
	f.Add([]byte(cells(0x5fc00000, 0x200000)), []byte(cells(1)), []byte(cells(1)))
	f.Fuzz(func(t *testing.T, reg, address, size []byte) {
		changes := map[string]*string{}
		for name, b := range map[string][]byte{nodeDir + "reg": reg, "reserved-memory/#address-cells": address, "reserved-memory/#size-cells": size} {
			text := string(b)
			changes[name] = &text
		}
		r, err := handoffFS(tree(changes))
		if err != nil {
			if r != (phys.Range{}) {
				t.Errorf("handoffFS = %v with error %v", r, err)
			}
			return
		}
		if n := r.Size(); n < MinHandoff || n > MaxHandoff || r.Start < phys.MiB {
			t.Errorf("handoffFS = %v", r)
		}
	})
}

func TestHandoffParam(t *testing.T) {
	area := phys.Range{Start: 512 * phys.MiB, End: 514 * phys.MiB}
	for _, tc := range []struct {
		name, cmdline string
		want          phys.Range
		wantErr       string // part of the error
	}{
		{name: "as the payload writes it", cmdline: "root=/dev/vda1 ro warmcore.handoff=0x20000000,0x200000", want: area},
		{name: "with suffixes", cmdline: "warmcore.handoff=512M,2M quiet", want: area},
		{name: "the last counts", cmdline: "warmcore.handoff=0x100000,2M warmcore.handoff=512M,2M", want: area},
		{name: "none", cmdline: "root=/dev/vda1", wantErr: "no warmcore.handoff="},
		{name: "init's", cmdline: "quiet -- warmcore.handoff=512M,2M", wantErr: "no warmcore.handoff="},
		{name: "dashes in another's quotes", cmdline: `systemd.run="a -- b warmcore.handoff=1" warmcore.handoff=512M,2M`, want: area},
		{name: "in quotes", cmdline: `"warmcore.handoff=512M,2M"`, want: area},
		{name: "no value", cmdline: "warmcore.handoff", wantErr: "want ADDR,SIZE"},
		{name: "a longer name", cmdline: "xwarmcore.handoff=512M,2M warmcore.handoffs=1,2", wantErr: "no warmcore.handoff="},
		{name: "no size", cmdline: "warmcore.handoff=512M", wantErr: "want ADDR,SIZE"},
		{name: "no number", cmdline: "warmcore.handoff=here,2M", wantErr: "address"},
		{name: "no size number", cmdline: "warmcore.handoff=512M,", wantErr: "size"},
		{name: "wraps", cmdline: "warmcore.handoff=0xffffffffffff0000,2M", wantErr: "beyond 64 bits"},
		{name: "too small", cmdline: "warmcore.handoff=512M,4K", wantErr: "want at least 2 MiB"},
		{name: "too large", cmdline: "warmcore.handoff=512M,1G", wantErr: "want at most 16 MiB"},
		{name: "low", cmdline: "warmcore.handoff=0,2M", wantErr: "below 1 MiB"},
		{name: "not aligned", cmdline: "warmcore.handoff=0x20000001,2M", wantErr: "not whole pages"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got, err := HandoffParam(tc.cmdline)
			if diff := cmp.Diff(tc.want, got); diff != "" {
				t.Errorf("HandoffParam(%q) (-want +got):\n%s", tc.cmdline, diff)
			}
			if tc.wantErr == "" && err != nil || tc.wantErr != "" && (err == nil || !strings.Contains(err.Error(), tc.wantErr)) {
				t.Errorf("HandoffParam(%q) error = %v, want %q", tc.cmdline, err, tc.wantErr)
			}
		})
	}
	if _, err := HandoffParam(""); !errors.Is(err, ErrNone) {
		t.Errorf("HandoffParam of nothing: %v, want ErrNone", err)
	}
}

func FuzzHandoffParam(f *testing.F) {
	f.Add("warmcore.handoff=0x20000000,0x200000")
	f.Add("warmcore.handoff=1T,64K --")
	f.Fuzz(func(t *testing.T, cmdline string) {
		r, err := HandoffParam(cmdline)
		if err != nil {
			if r != (phys.Range{}) {
				t.Errorf("HandoffParam(%q) = %v with error %v", cmdline, r, err)
			}
			return
		}
		if n := r.Size(); n < MinHandoff || n > MaxHandoff || r.Start < phys.MiB {
			t.Errorf("HandoffParam(%q) = %v", cmdline, r)
		}
	})
}
