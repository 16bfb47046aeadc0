package vmcore_test

import (
	"bytes"
	"math"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/warmcore/warmcore/pkg/elfcore"
	"github.com/warmcore/warmcore/pkg/vmcore"
	"github.com/warmcore/warmcore/pkg/vmcore/vmcoretest"
)

func note(t testing.TB, name string, size int) []byte {
	t.Helper()
	b, err := elfcore.AppendNote(nil, elfcore.ELFNote{Name: name, Type: 1, Desc: bytes.Repeat([]byte{7}, size)})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestNotes(t *testing.T) {
	a, b := note(t, "CORE", 5), note(t, "X", 0)
	both := append(bytes.Clone(a), b...)
	tests := []struct {
		name  string
		b     []byte
		want  []string
		error string
	}{
		{"none", nil, nil, ""},
		{"two", both, []string{"CORE", "X"}, ""},
		{"padding", append(bytes.Clone(both), make([]byte, 50)...), []string{"CORE", "X"}, ""},
		{"endBetween", append(append(bytes.Clone(a), make([]byte, 12)...), b...), []string{"CORE"}, ""},
		{"headerCutOff", both[:len(a)+11], []string{"CORE"}, ""},
		{"descriptorCutOff", a[:len(a)-1], nil, "offset 0x0: note: name of 0x5 and descriptor of 0x5 bytes, but 0x1b bytes"},
		{"nameHuge", vmcoretest.Patch(t, both, len(a), 4, math.MaxUint32), []string{"CORE"}, "offset 0x1c: note: name of 0xffffffff"},
		{"descriptorHuge", vmcoretest.Patch(t, both, 4, 4, math.MaxUint32), nil, "descriptor of 0xffffffff"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var got []string
			var failed string
			for n, err := range vmcore.Notes(tt.b) {
				if err != nil {
					failed = err.Error()
					continue
				}
				got = append(got, n.Name)
			}
			if diff := cmp.Diff(tt.want, got); diff != "" || tt.error == "" != (failed == "") || !strings.Contains(failed, tt.error) {
				t.Errorf("error %q, want %q; names (-want +got):\n%s", failed, tt.error, diff)
			}
			var info vmcore.Info
			info.AddNotes(tt.b)
			if (len(info.Warnings) > 0) != (tt.error != "") {
				t.Errorf("warnings %q", info.Warnings)
			}
		})
	}
}

// More CPUs than elfcore reads at once: 4096 of 356 bytes.
func TestNotesOfManyCPUs(t *testing.T) {
	all := bytes.Repeat(note(t, "CORE", 336), 4096)
	all = append(all, note(t, "VMCOREINFO", 10)...)
	n := 0
	for _, err := range vmcore.Notes(all) {
		if err != nil {
			t.Fatal(err)
		}
		n++
	}
	if n != 4097 {
		t.Errorf("%d notes, want 4097", n)
	}
}

func TestWarnIsBounded(t *testing.T) {
	var info vmcore.Info
	for range 1000 {
		info.Warn("again")
	}
	if n := len(info.Warnings); n > 40 || info.Warnings[n-1] != "there are more warnings" {
		t.Errorf("%d warnings, the last %q", n, info.Warnings[n-1])
	}
}

func TestReadNotes(t *testing.T) {
	const x86, arm = "NUMBER(phys_base)=0\nNUMBER(KERNEL_IMAGE_SIZE)=1\n", "NUMBER(kimage_voffset)=0\nNUMBER(PHYS_OFFSET)=0\n"
	for _, tt := range []struct {
		name, text string
		header     vmcore.Info
		want       vmcore.Info // PageSize, Machine, Uname
		warning    string
	}{
		{"arm64", "OSRELEASE=6.12\nPAGESIZE=65536\n", vmcore.Info{},
			vmcore.Info{PageSize: 65536, Uname: vmcore.Uname{Release: "6.12"}}, ""},
		{"oddPageSize", "OSRELEASE=6.12\nPAGESIZE=5000\n", vmcore.Info{},
			vmcore.Info{PageSize: 4096, Uname: vmcore.Uname{Release: "6.12"}}, "PAGESIZE is 5000, want a power of two from 4096 to 262144: taken for 4096"},
		{"hugePageSize", "OSRELEASE=6.12\nPAGESIZE=1048576\n", vmcore.Info{BlockSize: 65536},
			vmcore.Info{PageSize: 65536, Uname: vmcore.Uname{Release: "6.12"}}, "PAGESIZE is 1048576, want a power of two from 4096 to 262144: taken for 65536"},
		{"x86PageSize", "OSRELEASE=6.12\nPAGESIZE=65536\n" + x86, vmcore.Info{Machine: elfcore.MachineAMD64, BlockSize: 65536, Uname: vmcore.Uname{Machine: "x86_64"}},
			vmcore.Info{PageSize: 4096, Machine: elfcore.MachineAMD64, Uname: vmcore.Uname{Release: "6.12", Machine: "x86_64"}}, "PAGESIZE is 65536, but x86-64 kernels have pages of 4096"},
		{"noPageSize", "OSRELEASE=6.12\n", vmcore.Info{BlockSize: 16384},
			vmcore.Info{PageSize: 16384, Uname: vmcore.Uname{Release: "6.12"}}, ""},
		{"smallerThanBlock", "OSRELEASE=6.12\nPAGESIZE=4096\n", vmcore.Info{BlockSize: 65536},
			vmcore.Info{PageSize: 4096, Uname: vmcore.Uname{Release: "6.12"}}, ""},
		{"largerThanBlock", "OSRELEASE=6.12\nPAGESIZE=65536\n", vmcore.Info{BlockSize: 4096},
			vmcore.Info{PageSize: 65536, Uname: vmcore.Uname{Release: "6.12"}}, ""},
		{"otherRelease", "OSRELEASE=6.12\n", vmcore.Info{Uname: vmcore.Uname{Release: "6.1"}},
			vmcore.Info{PageSize: 4096, Uname: vmcore.Uname{Release: "6.12"}}, `the header says release "6.1", VMCOREINFO "6.12", which is taken`},
		{"machine", "OSRELEASE=6.12\n" + arm, vmcore.Info{},
			vmcore.Info{PageSize: 4096, Machine: elfcore.MachineARM64, Uname: vmcore.Uname{Release: "6.12", Machine: "aarch64"}}, ""},
		{"otherMachine", "OSRELEASE=6.12\n" + arm, vmcore.Info{Machine: elfcore.MachineAMD64, Uname: vmcore.Uname{Machine: "x86_64"}},
			vmcore.Info{PageSize: 4096, Machine: elfcore.MachineARM64, Uname: vmcore.Uname{Release: "6.12", Machine: "aarch64"}}, `the header says machine "x86_64", VMCOREINFO aarch64, which is taken`},
		{"otherMachineELF", "OSRELEASE=6.12\n" + x86, vmcore.Info{Machine: elfcore.MachineARM64},
			vmcore.Info{PageSize: 4096, Machine: elfcore.MachineAMD64, Uname: vmcore.Uname{Release: "6.12", Machine: "x86_64"}}, `the header says machine e_machine 183, VMCOREINFO x86_64`},
		{"foreignMachine", "OSRELEASE=6.12\nNUMBER(phys_ram_base)=0\n", vmcore.Info{Machine: 243, Uname: vmcore.Uname{Machine: "riscv64"}},
			vmcore.Info{PageSize: 4096, Machine: 243, Uname: vmcore.Uname{Release: "6.12", Machine: "riscv64"}}, ""},
		{"binary", "OSRELEASE=6.12\nx\x80\n", vmcore.Info{},
			vmcore.Info{PageSize: 4096, Uname: vmcore.Uname{Release: "6.12"}}, "VMCOREINFO: offset 16: byte 0x80 is not printable"},
		{"garbage", "x=y\n", vmcore.Info{}, vmcore.Info{PageSize: 4096}, "OSRELEASE: missing"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b, err := elfcore.AppendNote(nil, elfcore.ELFNote{Name: elfcore.NameVMCoreInfo, Desc: []byte(tt.text)})
			if err != nil {
				t.Fatal(err)
			}
			got := tt.header
			got.AddNotes(b)
			got.ReadNotes(nil)
			if string(got.VMCOREINFO) != tt.text || got.PageSize != tt.want.PageSize || got.Uname != tt.want.Uname || got.Machine != tt.want.Machine {
				t.Errorf("VMCOREINFO %q, page size %d, machine %d, %+v; want %d, %d, %+v",
					got.VMCOREINFO, got.PageSize, got.Machine, got.Uname, tt.want.PageSize, tt.want.Machine, tt.want.Uname)
			}
			if all := strings.Join(got.Warnings, "\n"); !strings.Contains(all, tt.warning) || (tt.warning == "") != (all == "") {
				t.Errorf("warnings %q, want %q", got.Warnings, tt.warning)
			}
		})
	}
}

// TestReadNotesRegisters: a machine that no header names is known by the size
// of its registers.
func TestReadNotesRegisters(t *testing.T) {
	for _, tt := range []struct {
		name string // in the header
		size int
		want uint16
	}{
		{"Unknown", 392, elfcore.MachineARM64},
		{"", 336, elfcore.MachineAMD64},
		{"", 376, 0}, // riscv64
		{"riscv64", 392, 0},
	} {
		info := vmcore.Info{Uname: vmcore.Uname{Machine: tt.name}}
		info.AddNotes(note(t, "CORE", tt.size))
		info.ReadNotes(nil)
		if info.Machine != tt.want || tt.want != 0 && info.Uname.Machine != vmcore.MachineName(tt.want) || info.Uname.Machine == "Unknown" {
			t.Errorf("%q, registers of %d bytes: machine %d, %q; want %d", tt.name, tt.size, info.Machine, info.Uname.Machine, tt.want)
		}
	}
}

// TestReadNotesTwice: of several texts, the first that can be read counts.
func TestReadNotesTwice(t *testing.T) {
	for _, tt := range []struct {
		name, first, second, outside, want string
	}{
		{"first", "OSRELEASE=1\n", "OSRELEASE=2\n", "OSRELEASE=3\n", "1"},
		{"second", "garbage", "OSRELEASE=2\n", "OSRELEASE=3\n", "2"},
		{"outside", "garbage", "", "OSRELEASE=3\n", "3"},
		{"none", "garbage", "", "", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var b []byte
			for _, text := range []string{tt.first, tt.second} {
				var err error
				if b, err = elfcore.AppendNote(b, elfcore.ELFNote{Name: elfcore.NameVMCoreInfo, Desc: []byte(text)}); err != nil {
					t.Fatal(err)
				}
			}
			var got vmcore.Info
			got.AddNotes(b)
			got.ReadNotes([]byte(tt.outside))
			if got.Uname.Release != tt.want || (tt.want == "") != (len(got.Warnings) > 0) {
				t.Errorf("release %q, want %q; warnings %q", got.Uname.Release, tt.want, got.Warnings)
			}
		})
	}
}

func FuzzNotes(f *testing.F) {
	f.Add(note(f, "CORE", 336))
	f.Add(append(note(f, "VMCOREINFO", 20), note(f, "X", 1)...))
	f.Add(make([]byte, 40))
	f.Fuzz(func(t *testing.T, b []byte) {
		var info vmcore.Info
		info.AddNotes(b)
		info.ReadNotes(nil)
		// What was taken over reads back as it is.
		var again vmcore.Info
		again.AddNotes(info.Notes)
		if again.Warnings != nil || !bytes.Equal(again.Notes, info.Notes) {
			t.Fatalf("notes % x read back as % x, warnings %q", info.Notes, again.Notes, again.Warnings)
		}
	})
}
