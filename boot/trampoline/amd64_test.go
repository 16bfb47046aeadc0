package trampoline

import (
	"bytes"
	"encoding/binary"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/warmcore/warmcore/boot/boottest"
	"github.com/warmcore/warmcore/boot/identmap"
	"github.com/warmcore/warmcore/pkg/phys"
)

const (
	basicSize = 0x8000 // of an image that maps 4 GiB
	stockInit = 0x4000_0200
)

// valid returns parameters that Build takes; each test changes one.
func validAMD64() AMD64Params {
	return AMD64Params{Base: 0x1800_0000, Entry: stockInit, BootParams: 0x3fff_0000, MapTop: 4 * phys.GiB}
}

func TestAMD64IsRebuilt(t *testing.T) {
	if got := boottest.Assemble(t, "amd64", "trampoline.bin"); !bytes.Equal(got, amd64Code) {
		t.Errorf("amd64/trampoline.bin: %d bytes that differ from the %d that trampoline.S gives; run make in amd64", len(amd64Code), len(got))
	}
}

// TestAMD64Offsets compares the constants of amd64.go with trampoline.S's own,
// which it carries as a table after the parameters.
func TestAMD64Offsets(t *testing.T) {
	const offTable = 0x20
	if got, want := string(amd64Code[0x08:0x10]), "WCTRAM01"; got != want {
		t.Fatalf("magic: got %q, want %q", got, want)
	}
	var got []int
	for i := range int(binary.LittleEndian.Uint16(amd64Code[offTable:])) {
		got = append(got, int(binary.LittleEndian.Uint16(amd64Code[offTable+2+2*i:])))
	}
	want := []int{offEntry, offBootParams, offStackTop, offTables + identmap.PML5, offTables + identmap.PML4}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("offsets (-amd64.go +trampoline.S):\n%s", diff)
	}
	if !bytes.Equal(amd64Code[offEntry:offTable], make([]byte, offTable-offEntry)) {
		t.Error("parameters in trampoline.bin: not all zero")
	}
}

func TestBuildAMD64(t *testing.T) {
	p := validAMD64()
	p.MapTop = 6*phys.GiB - 1
	image, err := BuildAMD64(p)
	if err != nil {
		t.Fatal(err)
	}
	if got, want := len(image), basicSize+2*0x1000; got != want {
		t.Errorf("image: %#x bytes, want %#x", got, want)
	}
	want := bytes.Clone(amd64Code)
	copy(want[0x10:], []byte{0x00, 0x02, 0x00, 0x40, 0, 0, 0, 0}) // entry
	copy(want[0x18:], []byte{0x00, 0x00, 0xff, 0x3f, 0, 0, 0, 0}) // boot_params
	want = append(want, make([]byte, offTables-len(want))...)
	if diff := cmp.Diff(want, image[:offTables]); diff != "" {
		t.Errorf("code and parameters (-want +got):\n%s", diff)
	}
	tables := make([]byte, len(image)-offTables)
	if err := identmap.Put(tables, p.Base+0x1000, 6*phys.GiB); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(image[offTables:], tables) {
		t.Error("page tables: not those of [0, 6 GiB)")
	}
	again, err := BuildAMD64(p)
	if err != nil || !bytes.Equal(image, again) {
		t.Errorf("second Build: not the same image (error %v)", err)
	}
}

func TestBuildAMD64Limits(t *testing.T) {
	for _, c := range []struct {
		name string
		edit func(*AMD64Params)
		size int
		want string // in the error; empty: no error
	}{
		{"as it is", func(*AMD64Params) {}, basicSize, ""},
		{"no top", func(p *AMD64Params) { p.MapTop = 0 }, basicSize, ""},
		{"largest map", func(p *AMD64Params) { p.MapTop = MaxMapTop }, int(amd64MaxSize), ""},
		{"highest base", func(p *AMD64Params) { p.Base = 4*phys.GiB - basicSize }, basicSize, ""},
		{"highest boot_params", func(p *AMD64Params) { p.BootParams = 4*phys.GiB - 0x1000 }, basicSize, ""},
		{"entry behind the image", func(p *AMD64Params) { p.Entry = p.Base + basicSize }, basicSize, ""},

		{"map too large", func(p *AMD64Params) { p.MapTop = MaxMapTop + 1 }, 0, "map memory up to 0x8000000001"},
		{"base not aligned", func(p *AMD64Params) { p.Base++ }, 0, "base: 0x18000001: not a multiple"},
		{"base too low", func(p *AMD64Params) { p.Base = 0 }, 0, "base: 0x8000 bytes at 0x0: outside"},
		{"base not mapped", func(p *AMD64Params) { p.Base = 4*phys.GiB - basicSize + 0x1000 }, 0, "base: 0x8000 bytes at 0xffff9000: outside"},
		{"base wraps", func(p *AMD64Params) { p.Base = 1<<64 - 0x1000 }, 0, "base: 0x8000 bytes at 0xfffffffffffff000: outside"},
		{"no entry", func(p *AMD64Params) { p.Entry = 0 }, 0, "entry: 0x0: not in"},
		{"entry not mapped", func(p *AMD64Params) { p.Entry = 4 * phys.GiB }, 0, "entry: 0x100000000: not in"},
		{"entry in the image", func(p *AMD64Params) { p.Entry = p.Base + 0x200 }, 0, "entry: 18000200-18000200: in the image"},
		{"no boot_params", func(p *AMD64Params) { p.BootParams = 0 }, 0, "boot_params: 0x0: not in"},
		{"boot_params not mapped", func(p *AMD64Params) { p.BootParams = 4*phys.GiB - 0xfff }, 0, "boot_params: 0xfffff001: not in"},
		{"boot_params wraps", func(p *AMD64Params) { p.BootParams = 1<<64 - 1 }, 0, "boot_params: 0xffffffffffffffff: not in"},
		{"boot_params in the image", func(p *AMD64Params) { p.BootParams = p.Base - 1 }, 0, "in the image"},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := validAMD64()
			c.edit(&p)
			image, err := BuildAMD64(p)
			if len(image) != c.size {
				t.Errorf("image: %#x bytes, want %#x", len(image), c.size)
			}
			if c.want == "" && err != nil {
				t.Errorf("got error %v, want none", err)
			}
			if c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
				t.Errorf("got error %v, want one with %q", err, c.want)
			}
			if size, err := p.Size(); c.want == "" && (err != nil || size != uint64(c.size)) {
				t.Errorf("size: got %#x, error %v; want %#x", size, err, c.size)
			}
		})
	}
}

// TestIntegrationAMD64 enters a payload far from the image through it.
func TestIntegrationAMD64(t *testing.T) {
	const (
		base       = 0x1000_0000
		entry      = 0x3000_0200        // not mapped by the entry's tables
		bootParams = 0x1_4000_0000      // 5 GiB
		far        = bootParams + 1<<27 // DISTANT in payload.S
		result     = 0x60_0000          // RESULT in payload.S
	)
	boot := boottest.Assemble(t, "../boottest/testdata/amd64", "testboot.bin")
	payload := boottest.Assemble(t, "amd64/testdata", "payload.bin")
	for _, c := range []struct {
		name  string
		flags uint32
		cr3   uint64
	}{
		{"four levels", 0, base + 0x2000},
		{"five levels", boottest.FlagLA57, base + 0x1000},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			image, err := BuildAMD64(AMD64Params{Base: base, Entry: entry, BootParams: bootParams, MapTop: 6 * phys.GiB})
			if err != nil {
				t.Fatal(err)
			}
			r := boottest.AMD64Machine{
				CPUs: 1, Flags: c.flags, Entry: base, Memory: "6G",
				Load: map[uint64][]byte{
					base:       image,
					entry:      payload,
					bootParams: []byte("zeropage"),
					far:        []byte("far away"),
				},
			}.Run(t, boot)
			type found struct {
				Mark          string
				RSI           uint64
				BootParams    string
				CS, DS, ES    uint64
				SS, Flags     uint64
				CR3           uint64
				Far, FarAfter string
			}
			b := r.Memory(result, 0x50)
			u64 := binary.LittleEndian.Uint64
			got := found{
				Mark: string(b[0:8]), RSI: u64(b[8:]), BootParams: string(b[0x10:0x18]),
				CS: u64(b[0x18:]), DS: u64(b[0x20:]), ES: u64(b[0x28:]), SS: u64(b[0x30:]),
				Flags: u64(b[0x38:]), CR3: u64(b[0x40:]), Far: string(b[0x48:0x50]),
				FarAfter: string(r.Memory(far+8, 8)),
			}
			want := found{
				Mark: "LOAD_OK\x00", RSI: bootParams, BootParams: "zeropage",
				CS: 0x10, DS: 0x18, ES: 0x18, SS: 0x18, CR3: c.cr3,
				Far: "far away", FarAfter: "\xcd\xab\xff\x7f\x00\x00\x00\x00",
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("what the payload found (-want +got):\n%s", diff)
			}
		})
	}
}
