package vmcore_test

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"strings"
	"testing"

	"github.com/warmcore/warmcore/pkg/vmcore"
	"github.com/warmcore/warmcore/pkg/vmcore/dumpfile"
	"github.com/warmcore/warmcore/pkg/vmcore/vmcoretest"
)

// lost is a dump of an x86-64 kernel without VMCOREINFO in its notes: page
// tables at 16 MiB, and notes in other pages.
const lost = `
cpu 42
0x1000000 zlib
0x1001000 zlib
0x1002000 zlib
0x1003000 zlib
0x1004000-0x100a000 zlib
0x1010000-0x1100000 excluded
0x2000000 raw random 1
0x2001000-0x2004000 zlib
0x40000000-0x40010000 raw random 2
`

// kernelText is VMCOREINFO of that kernel.
func kernelText(release string, more ...string) string {
	return "OSRELEASE=" + release + "\nPAGESIZE=4096\nSYMBOL(swapper_pg_dir)=ffffffff81000000\nSYMBOL(_stext)=ffffffff81009000\n" +
		"SYMBOL(init_uts_ns)=ffffffff81008000\nOFFSET(uts_namespace.name)=0\n" +
		"NUMBER(phys_base)=0\nNUMBER(pgtable_l5_enabled)=0\nNUMBER(KERNEL_IMAGE_SIZE)=1073741824\n" + strings.Join(more, "")
}

func lostDump(t testing.TB, release string, notes map[uint64]string) *vmcoretest.Spec {
	t.Helper()
	s := vmcoretest.Parse(t, lost)
	page := func(addr uint64) []byte {
		p, ok := s.Page(addr)
		if !ok {
			t.Fatalf("no page %#x", addr)
		}
		return p.Data
	}
	le := binary.LittleEndian
	le.PutUint64(page(0x1000000)[511*8:], 0x1001003) // the image
	le.PutUint64(page(0x1001000)[510*8:], 0x1003003)
	le.PutUint64(page(0x1003000)[8*8:], 0x1000083)
	le.PutUint64(page(0x1000000)[273*8:], 0x1002003) // the direct map, of 1 GiB
	le.PutUint64(page(0x1002000), 0x83)
	copy(page(0x1008000)[2*65:], release)
	for addr, text := range notes {
		b := page(addr)
		le.PutUint32(b, 11)
		le.PutUint32(b[4:], uint32(len(text)))
		copy(b[12:], "VMCOREINFO")
		copy(b[24:], text)
	}
	return s
}

func TestFindVMCOREINFO(t *testing.T) {
	all := func(uint64, uint64) bool { return true }
	for _, tt := range []struct {
		name    string
		notes   map[uint64]string
		own     string // in the file's notes
		more    func(done, total uint64) bool
		want    string // the text
		warning string
	}{
		{"one", map[uint64]string{0x2001000: kernelText("6.12")}, "", all, kernelText("6.12"), "the file has no VMCOREINFO: it was found at 0x2001000, in all "},
		{"unreadable in the file", map[uint64]string{0x2001000: kernelText("6.12")}, "garbage\n", all, kernelText("6.12"), "it was found at 0x2001000"},
		{"of another kernel", map[uint64]string{0x2001000: kernelText("6.1"), 0x2002000: kernelText("6.12")}, "", all, kernelText("6.12"), "it was found at 0x2002000"},
		{"latest", map[uint64]string{0x2001000: kernelText("6.12", "CRASHTIME=200\n"), 0x2002000: kernelText("6.12", "CRASHTIME=100\n"), 0x2003000: kernelText("6.12")}, "", all,
			kernelText("6.12", "CRASHTIME=200\n"), "it was found at 0x2001000"},
		{"stale", map[uint64]string{0x2001000: kernelText("6.1")}, "", all, "", "nor was it found in all 1.1 MiB of memory: what is at 0x2001000 is of another boot"},
		{"none", nil, "", all, "", "there is no note of it"},
		{"stopped", map[uint64]string{0x2001000: kernelText("6.12")}, "", func(done, total uint64) bool { return done < 4096 }, "", "nor was it found in 40 KiB of 1.1 MiB of memory"},
		{"in the file", map[uint64]string{0x2001000: kernelText("6.12")}, "OSRELEASE=6.12\nSIZE(x)=1\n", func(uint64, uint64) bool { panic("searched") }, "OSRELEASE=6.12\nSIZE(x)=1\n", ""},
	} {
		for _, format := range []string{"kdump", "elf"} {
			t.Run(tt.name+"/"+format, func(t *testing.T) {
				s := lostDump(t, "6.12", tt.notes)
				s.VMCOREINFO, s.Release = tt.own, "6.12"
				b := s.Kdump(t)
				if format == "elf" {
					b = s.ELF(t)
				}
				d, err := dumpfile.New(bytes.NewReader(b), int64(len(b)))
				if err != nil {
					t.Fatal(err)
				}
				vmcore.FindVMCOREINFO(d, tt.more)
				info := d.Info()
				if want := tt.want; string(info.VMCOREINFO) != want && (want != "" || tt.own == "") {
					t.Errorf("VMCOREINFO %q, want %q", info.VMCOREINFO, want)
				}
				if all := strings.Join(info.Warnings, "\n"); !strings.Contains(all, tt.warning) || (tt.warning == "") != (all == "") {
					t.Errorf("warnings %q, want %q", info.Warnings, tt.warning)
				}
				if tt.want == "" {
					return
				}
				if info.Uname.Release != "6.12" || info.Uname.Machine != "x86_64" || info.PageSize != 4096 {
					t.Errorf("release %q, machine %q, page size %d", info.Uname.Release, info.Uname.Machine, info.PageSize)
				}
				found := 0
				for n, err := range vmcore.Notes(info.Notes) {
					if err == nil && n.Name == "VMCOREINFO" && string(n.Desc) == tt.want {
						found++
					}
				}
				if found != 1 {
					t.Errorf("%d notes with the text, want 1", found)
				}
			})
		}
	}
}

// TestFindVMCOREINFOProgress: the whole of a large dump, most of which is not
// in the file, is looked at.
func TestFindVMCOREINFOProgress(t *testing.T) {
	s := lostDump(t, "6.12", map[uint64]string{0x2003000: kernelText("6.12")})
	b := s.Kdump(t)
	d, err := dumpfile.New(bytes.NewReader(b), int64(len(b)))
	if err != nil {
		t.Fatal(err)
	}
	last := uint64(0)
	vmcore.FindVMCOREINFO(d, func(done, total uint64) bool {
		if done < last || done > total {
			panic(fmt.Sprintf("%d after %d of %d", done, last, total))
		}
		last = done
		return true
	})
	if d.Info().VMCOREINFO == nil {
		t.Errorf("warnings %q", d.Info().Warnings)
	}
}
