package dumpfilter_test

import (
	"bytes"
	"fmt"
	"io"
	"testing"

	"github.com/warmcore/warmcore/pkg/convert"
	"github.com/warmcore/warmcore/pkg/dumpfilter"
	"github.com/warmcore/warmcore/pkg/elfcore"
	"github.com/warmcore/warmcore/pkg/phys"
	"github.com/warmcore/warmcore/pkg/vmcore"
	"github.com/warmcore/warmcore/pkg/vmcore/kdump"
)

// blocksDump is the first pages of a kernel's memory as a file with blocks of
// some size, or none, would show them.
type blocksDump struct {
	*kernel
	info vmcore.Info
}

func (d *blocksDump) Info() *vmcore.Info { return &d.info }

func (d *blocksDump) ReadPhys(p []byte, addr uint64) error { return d.kernel.ReadPhys(p, addr) }

// memoryFile is a file in memory, for one goroutine at a time.
type memoryFile []byte

func (f *memoryFile) WriteAt(p []byte, off int64) (int, error) {
	if end := int(off) + len(p); end > len(*f) {
		*f = append(*f, make([]byte, end-len(*f))...)
	}
	return copy((*f)[off:], p), nil
}

// TestFilterBlocks: at every dump level a converted dump lacks the kernel's
// pages that the level leaves out, and no other, whatever the blocks of the
// source are.
func TestFilterBlocks(t *testing.T) {
	const pages = 0x1800 // that have something in them
	byName := func(name string) machine {
		for _, m := range machines {
			if m.name == name {
				return m
			}
		}
		t.Fatalf("no machine %q", name)
		return machine{}
	}
	for _, tt := range []struct {
		machine string
		block   uint64 // 0 for an ELF file
		levels  []int  // nil for all
	}{
		{"arm64 4K 48 bits", 64 << 10, nil},
		{"x86 4 levels", 16 << 10, []int{2, 31}},
		{"arm64 64K 52 bits", 4 << 10, []int{0, 1, 2, 4, 8, 16, 31}},
		{"arm64 64K 52 bits", 0, []int{31}},
		{"arm64 16K 47 bits", 64 << 10, []int{4, 31}},
	} {
		k := newKernel(byName(tt.machine), encodings[len(encodings)-1])
		want := populate(k)
		size := uint64(1) << k.page
		info := k.info(t)
		d := &blocksDump{k, vmcore.Info{
			Format: "kdump", Machine: elfcore.MachineARM64, PageSize: size, BlockSize: tt.block,
			Memory: phys.Set{{Start: 0, End: pages * size}}, VMCOREINFO: []byte(k.text),
		}}
		levels := tt.levels
		for level := 0; tt.levels == nil && level < 32; level++ {
			levels = append(levels, level)
		}
		for _, level := range levels {
			t.Run(fmt.Sprintf("%s, blocks of %d, level %d", tt.machine, tt.block, level), func(t *testing.T) {
				filter, err := dumpfilter.New(k, info, d.info.Memory, dumpfilter.Level(level))
				if err != nil {
					t.Fatal(err)
				}
				var file memoryFile
				_, err = convert.Convert(t.Context(), d, filter, []io.WriterAt{&file}, convert.Options{Workers: 1})
				if err != nil {
					t.Fatal(err)
				}
				got, err := kdump.New(bytes.NewReader(file), int64(len(file)))
				if err != nil {
					t.Fatal(err)
				}
				for pfn := range uint64(pages) {
					left := want[pfn].left(dumpfilter.Level(level))
					for at := pfn * size; at < (pfn+1)*size; at += phys.PageSize {
						if held := got.Holds(phys.Range{Start: at, End: at + phys.PageSize}); held == left {
							t.Fatalf("page %#x, address %#x: held is %v", pfn, at, held)
						}
					}
				}
			})
		}
	}
}
