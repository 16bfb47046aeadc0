package kernelmap_test

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/warmcore/warmcore/pkg/elfcore"
	"github.com/warmcore/warmcore/pkg/kernelmap"
	"github.com/warmcore/warmcore/pkg/phys"
	"github.com/warmcore/warmcore/pkg/vmcoreinfo"
)

// riscv is what a kernel of an architecture without a file here writes
// (arch/riscv/kernel/vmcore_info.c in v6.12).
const riscv = "OSRELEASE=6.12.0\nSYMBOL(swapper_pg_dir)=ffffffff81a00000\nSYMBOL(_stext)=ffffffff80002000\n" +
	"NUMBER(VMALLOC_START)=0xff20000000000000\nNUMBER(va_kernel_pa_offset)=0xfffffffeffe00000\n"

func parse(t *testing.T, text string) *vmcoreinfo.Info {
	t.Helper()
	info, err := vmcoreinfo.Parse([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return info
}

// TestText has what the text says without memory.
func TestText(t *testing.T) {
	type answers struct {
		Symbol, PhysBase, DirectBase uint64
	}
	const lacks = "VMCOREINFO is of no known architecture: it lacks NUMBER(phys_base) of amd64 and NUMBER(kimage_voffset) of arm64"
	for _, tt := range []struct {
		name, text string
		virt       uint64
		want       answers
		err        string // of all three
		noText     string // of FromText alone
	}{
		{"amd64", "OSRELEASE=6.1\nNUMBER(phys_base)=188743680\n", 0xffffffff91e00000, answers{Symbol: 0x1d200000, PhysBase: 0xb400000}, "", "amd64 doesn't say where the direct map is"},
		{"amd64 below its link address", "OSRELEASE=6.1\nNUMBER(phys_base)=-14680064\n", 0xffffffff81000000, answers{Symbol: 0x200000, PhysBase: 0xffffffffff200000}, "", "doesn't say"},
		{"arm64", "OSRELEASE=6.12\nNUMBER(VA_BITS)=48\nNUMBER(PHYS_OFFSET)=0x40000000\nNUMBER(kimage_voffset)=0xffff7fffc0000000\n", 0xffff800000210000,
			answers{Symbol: 0x40210000, PhysBase: 0x40000000, DirectBase: 0xfffeffffc0000000}, "", ""},
		{"arm64 without VA_BITS", "OSRELEASE=6.12\nNUMBER(kimage_voffset)=0xffff7fffc0000000\n", 0xffff800000210000,
			answers{Symbol: 0x40210000}, "", "lacks NUMBER(VA_BITS)"},
		{"riscv64", riscv, 0xffffffff80002000, answers{}, lacks, lacks},
		{"two at once", "OSRELEASE=1\nNUMBER(phys_base)=0\nNUMBER(kimage_voffset)=0\n", 0, answers{},
			"VMCOREINFO is of two architectures, amd64 and arm64", "two architectures"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			info := parse(t, tt.text)
			var got answers
			check := func(what, want string, err error) {
				t.Helper()
				if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
					t.Errorf("%s: error %v, want %q", what, err, want)
				}
			}
			var err error
			got.Symbol, err = kernelmap.Symbol(info, tt.virt)
			check("Symbol", tt.err, err)
			got.PhysBase, err = kernelmap.PhysBase(info)
			check("PhysBase", tt.err, err)
			m, err := kernelmap.FromText(info)
			check("FromText", tt.noText, err)
			got.DirectBase = m.DirectBase
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
	if tables, err := kernelmap.Tables(standard().build(), parse(t, riscv)); tables != nil || err == nil || !strings.Contains(err.Error(), lacks) {
		t.Errorf("page tables of riscv64: %v, %v", tables, err)
	}
}

func TestDefaultDirectBase(t *testing.T) {
	for _, tt := range []struct {
		name    string
		machine uint16
		start   uint64
		want    uint64
		err     string
	}{
		{"amd64", elfcore.MachineAMD64, 0, 0xffff888000000000, ""},
		{"amd64, first RAM elsewhere", elfcore.MachineAMD64, phys.MiB, 0xffff888000000000, ""},
		{"arm64, RAM from 0", elfcore.MachineARM64, 0, 0xffff000000000000, ""},
		{"arm64, RAM from 1 GiB", elfcore.MachineARM64, 0x40200000, 0xfffeffffc0000000, ""},
		{"riscv64", 243, 0, 0, "ELF machine 243 is of no known architecture"},
		{"none", 0, 0, 0, "ELF machine 0 is of no known architecture"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := kernelmap.DefaultDirectBase(tt.machine, tt.start)
			if got != tt.want || (err == nil) != (tt.err == "") || err != nil && !strings.Contains(err.Error(), tt.err) {
				t.Errorf("got %#x, %v; want %#x, %q", got, err, tt.want, tt.err)
			}
		})
	}
}

func TestFromCore(t *testing.T) {
	none := ^uint64(0) // p_paddr of what is neither RAM nor the kernel
	text := elfcore.Load{Virt: 0xffffffff9a000000, Phys: 0x12000000, Size: 0x3400000}
	low := elfcore.Load{Virt: 0xffff8ab040001000, Phys: 0x1000, Size: 0x9e000}
	high := elfcore.Load{Virt: 0xffff8ab140000000, Phys: 0x100000000, Size: 0x40000000}
	vmalloc := elfcore.Load{Virt: 0xffffb10000000000, Phys: none, Size: 0x1fffffffffff}
	for _, tt := range []struct {
		name  string
		loads []elfcore.Load
		want  kernelmap.Mapping
		err   string
	}{
		{"text first", []elfcore.Load{text, vmalloc, high, low}, kernelmap.Mapping{DirectBase: 0xffff8ab040000000, TextVirt: text.Virt, TextPhys: text.Phys, TextSize: text.Size}, ""},
		{"no text", []elfcore.Load{vmalloc, low, high}, kernelmap.Mapping{DirectBase: 0xffff8ab040000000}, ""},
		{"arm64, wraps", []elfcore.Load{{Virt: 0xffff000000000000, Phys: 0x40000000, Size: phys.GiB}}, kernelmap.Mapping{DirectBase: 0xfffeffffc0000000}, ""},
		{"two direct maps", []elfcore.Load{low, {Virt: high.Virt + 0x1000, Phys: high.Phys, Size: 0x1000}, text}, kernelmap.Mapping{}, "two direct maps, at 0xffff8ab040000000 and 0xffff8ab040001000"},
		{"vmalloc only", []elfcore.Load{vmalloc}, kernelmap.Mapping{}, "no direct map"},
		{"nothing", nil, kernelmap.Mapping{}, "no direct map"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := kernelmap.FromCore(elfcore.Header{Loads: tt.loads})
			if diff := cmp.Diff(tt.want, got); diff != "" || (err == nil) != (tt.err == "") || err != nil && !strings.Contains(err.Error(), tt.err) {
				t.Errorf("error %v, want %q; (-want +got):\n%s", err, tt.err, diff)
			}
		})
	}
}
