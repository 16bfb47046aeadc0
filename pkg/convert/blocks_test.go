package convert_test

import (
	"bytes"
	"fmt"
	"io"
	"strings"
	"testing"

	"github.com/warmcore/warmcore/pkg/convert"
	"github.com/warmcore/warmcore/pkg/dumpfilter"
	"github.com/warmcore/warmcore/pkg/vmcore"
	"github.com/warmcore/warmcore/pkg/vmcore/vmcoretest"
)

// every leaves out every third page of a size.
type every struct{ size uint64 }

func (e every) PageSize() uint64 { return e.size }

func (e every) left(addr uint64) bool { return addr/e.size%3 == 1 }

func (e every) Drop(dst []uint64, first, n uint64) (c dumpfilter.Counts, err error) {
	for i := range n {
		if e.left((first + i) * e.size) {
			dst[i/64] |= 1 << (i % 64)
		}
	}
	c.HWPoison = 1 // so that an ELF file leaves out single pages, too
	return c, nil
}

// TestConvertBlocks: whatever the sizes of a file's blocks and of the kernel's
// pages, the filter's decision about a page is about that memory, all of it
// and no other.
func TestConvertBlocks(t *testing.T) {
	for _, block := range []uint64{4 << 10, 16 << 10, 64 << 10} {
		for _, page := range []uint64{4 << 10, 16 << 10, 64 << 10} {
			s := vmcoretest.Parse(t, fmt.Sprintf("machine aarch64\npagesize %d\nvmcoreinfo OSRELEASE=6.12\nvmcoreinfo PAGESIZE=%d\n", block, page)+`
				0x40000000-0x40200000 raw random 1
				0x40200000-0x40210000 excluded
				0x40210000-0x40300000 raw text kernel data
				0x50000000-0x50040000 raw random 2`)
			for _, source := range []struct {
				name string
				b    []byte
			}{{"kdump", s.Kdump(t)}, {"elf", s.ELF(t)}} {
				for _, to := range []convert.Format{convert.KDump, convert.ELF} {
					t.Run(fmt.Sprintf("%s, block %d, page %d, to %v", source.name, block, page, to), func(t *testing.T) {
						want := page // of the blocks
						if source.name == "kdump" {
							want = min(page, block)
						}
						for _, filter := range []convert.Filter{every{page}, nil} {
							got, r, _ := write(t, openBytes(t, source.b), filter, form{o: convert.Options{Format: to}, parts: 1})
							if info := got.Info(); info.PageSize != page || info.BlockSize != 0 && info.BlockSize != want || r.PageSize != want {
								t.Errorf("page size %d, block size %d, result's %d; want %d and %d", info.PageSize, info.BlockSize, r.PageSize, page, want)
							}
							checkBlocks(t, s, got, filter)
						}
					})
				}
			}
		}
	}
}

// checkBlocks compares 4 KiB at a time.
func checkBlocks(t *testing.T, s *vmcoretest.Spec, got vmcore.Dump, filter convert.Filter) {
	t.Helper()
	b := make([]byte, 4096)
	for _, p := range s.Pages {
		for in := uint64(0); in < s.PageSize; in += 4096 {
			err := got.ReadPhys(b, p.Addr+in)
			left := !p.Held() || filter != nil && filter.(every).left(p.Addr+in)
			switch {
			case left && err == nil:
				t.Fatalf("%#x is in the file, want it left out", p.Addr+in)
			case !left && err != nil:
				t.Fatalf("read %#x: %v", p.Addr+in, err)
			case !left && !bytes.Equal(b, p.Data[in:][:4096]):
				t.Fatalf("%#x is not what the source has", p.Addr+in)
			}
		}
	}
}

// TestConvertAbsurdPages: of a kernel that says nonsense about its pages all is
// passed on, in the file's blocks.
func TestConvertAbsurdPages(t *testing.T) {
	for _, size := range []string{"5000", "0", "1", "2048", "1048576", "18446744073709551615"} {
		s := vmcoretest.Parse(t, "machine aarch64\npagesize 65536\nvmcoreinfo OSRELEASE=6.12\nvmcoreinfo PAGESIZE="+size+"\n0x40000000-0x40040000 raw random 1")
		d := openBytes(t, s.Kdump(t))
		got, r, _ := write(t, d, nil, form{parts: 1})
		if r.PageSize != 65536 || r.Kept != 4 {
			t.Errorf("PAGESIZE=%s: %+v", size, r)
		}
		checkBlocks(t, s, got, nil)
		if warned := strings.Contains(strings.Join(d.Info().Warnings, "\n"), "PAGESIZE is "+size+", want a power of two"); warned != (size != "0") {
			t.Errorf("PAGESIZE=%s: warnings %q", size, d.Info().Warnings)
		}
	}
}

// TestConvertMachine: a dump keeps its machine through all formats, or is not
// converted.
func TestConvertMachine(t *testing.T) {
	const number = 18 // offset of e_machine
	for _, tt := range []struct {
		name, machine string
		number        uint16 // in an ELF file
	}{
		{"riscv64", "riscv64", 243},
		{"ppc64le", "ppc64le", 21},
		{"loongarch64", "loongarch64", 258},
		{"x86_64", "x86_64", 62},
		{"aarch64", "aarch64", 183},
		{"unknown", "newarch", 0x7777},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := vmcoretest.Parse(t, "machine "+tt.machine+"\nvmcoreinfo OSRELEASE=6.12.0\nvmcoreinfo PAGESIZE=4096\n0x80200000-0x80208000 raw random 1")
			elf := vmcoretest.Patch(t, s.ELF(t), number, 2, uint64(tt.number))
			for _, source := range []struct {
				name string
				b    []byte
			}{{"kdump", s.Kdump(t)}, {"elf", elf}} {
				for _, to := range []convert.Format{convert.KDump, convert.ELF} {
					out := &file{}
					_, err := convert.Convert(t.Context(), openBytes(t, source.b), nil, []io.WriterAt{out}, convert.Options{Format: to})
					if other := source.name != to.String(); tt.name == "unknown" && other {
						if err == nil || !strings.Contains(err.Error(), "machine") || !strings.Contains(err.Error(), "write "+source.name) && !strings.Contains(err.Error(), "write ELF") {
							t.Errorf("%s to %v: error %v, want one that names the machine and the other format", source.name, to, err)
						}
						continue
					}
					if err != nil {
						t.Fatalf("%s to %v: %v", source.name, to, err)
					}
					info := open(t, out).Info()
					if to == convert.ELF && info.Machine != tt.number || to == convert.KDump && info.Uname.Machine != tt.machine {
						t.Errorf("%s to %v: machine %d, %q; want %d, %q", source.name, to, info.Machine, info.Uname.Machine, tt.number, tt.machine)
					}
				}
			}
		})
	}
}

// TestConvertWithoutMachine: a file that says nothing about its machine.
func TestConvertWithoutMachine(t *testing.T) {
	s := vmcoretest.Parse(t, "0x1000 raw random 1")
	s.Machine = ""
	d := openBytes(t, s.Kdump(t))
	_, err := convert.Convert(t.Context(), d, nil, []io.WriterAt{&file{}}, convert.Options{Format: convert.ELF})
	if err == nil || !strings.Contains(err.Error(), "doesn't tell its machine") {
		t.Errorf("to ELF: error %v", err)
	}
	if _, err := convert.Convert(t.Context(), d, nil, []io.WriterAt{&file{}}, convert.Options{}); err != nil {
		t.Errorf("to kdump: error %v", err)
	}
}
