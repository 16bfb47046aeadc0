package segments

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/warmcore/warmcore/pkg/memmap"
	"github.com/warmcore/warmcore/pkg/phys"
	"github.com/warmcore/warmcore/pkg/segments/segmentstest"
	"github.com/warmcore/warmcore/pkg/zeropage"
)

const (
	mib = phys.MiB
	gib = phys.GiB
)

func span(start, end uint64) phys.Range { return phys.Range{Start: start, End: end} }

func parse(t testing.TB, k segmentstest.Kernel) *BzImage {
	t.Helper()
	kernel, err := ParseBzImage(k.Image())
	if err != nil {
		t.Fatal(err)
	}
	return kernel
}

// smallMap is a memory map of three entries.
func smallMap() memmap.Map {
	return memmap.Map{Entries: []memmap.Entry{
		{Range: span(0, 0x9fc00), Kind: memmap.RAM},
		{Range: span(mib, 2*gib), Kind: memmap.RAM},
		{Range: span(2*gib, 3*gib), Kind: memmap.SoftReserved},
	}}
}

// stripes returns a map of n entries that nothing joins.
func stripes(n int) memmap.Map {
	var m memmap.Map
	for i := range n {
		kind := memmap.RAM
		if i%2 == 1 {
			kind = memmap.Reserved
		}
		m.Entries = append(m.Entries, memmap.Entry{Range: span(uint64(i)*mib, uint64(i+1)*mib), Kind: kind})
	}
	return m
}

// bootMemory is L of a machine with 2 GiB.
var bootMemory = phys.NewSet(span(mib, 128*mib), span(0x20200000, 0x28000000), span(0x70000000, 0x7ffdf000))

func linux(t testing.TB) Linux {
	return Linux{
		Kernel:     parse(t, segmentstest.Debian(9)),
		InitrdSize: 30*mib + 5,
		Cmdline:    "root=/dev/vda1 ro",
		Map:        smallMap(),
		Allowed:    bootMemory,
	}
}

// TestAMD64 compares all places.
func TestAMD64(t *testing.T) {
	change := func(f func(k *segmentstest.Kernel)) func(t *testing.T, l *Linux) {
		return func(t *testing.T, l *Linux) {
			k := segmentstest.Debian(9)
			f(&k)
			l.Kernel = parse(t, k)
		}
	}
	all := func(changes ...func(t *testing.T, l *Linux)) func(t *testing.T, l *Linux) {
		return func(t *testing.T, l *Linux) {
			for _, c := range changes {
				c(t, l)
			}
		}
	}
	allowed := func(r ...phys.Range) func(t *testing.T, l *Linux) {
		return func(_ *testing.T, l *Linux) { l.Allowed = phys.NewSet(r...) }
	}
	tests := []struct {
		name   string
		change func(t *testing.T, l *Linux)
		// Kernel, zero page and command line, trampoline, initrd.
		want string
	}{
		{"preferred address", all(),
			"01000000-03ffffff 00100000-00101fff 00102000-00109fff 7e1de000-7ffde004"},
		{"no initrd", func(_ *testing.T, l *Linux) { l.InitrdSize = 0 },
			"01000000-03ffffff 00100000-00101fff 00102000-00109fff 00000000-empty"},
		{"preferred address taken", allowed(span(32*mib, 128*mib)),
			"02000000-04ffffff 05000000-05001fff 05002000-05009fff 061ff000-07fff004"},
		{"preferred address is free in part", allowed(span(mib, 48*mib), span(49*mib, 256*mib)),
			"03200000-061fffff 00100000-00101fff 00102000-00109fff 0e1ff000-0ffff004"},
		// The kernel would move itself up to its preferred address.
		{"never below the preferred address", all(allowed(span(mib, 24*mib), span(64*mib, 256*mib)), change(func(k *segmentstest.Kernel) { k.InitSize = 0x400000; k.PrefAddress = 0x2000000 })),
			"04000000-043fffff 00100000-00101fff 00102000-00109fff 0e1ff000-0ffff004"},
		{"preferred address is not aligned", change(func(k *segmentstest.Kernel) { k.PrefAddress += 0x1000 }),
			"01200000-041fffff 00100000-00101fff 00102000-00109fff 7e1de000-7ffde004"},
		{"alignment of 16 MiB", all(allowed(span(33*mib, 256*mib)), change(func(k *segmentstest.Kernel) { k.Alignment = 16 << 20 })),
			"03000000-05ffffff 02100000-02101fff 02102000-02109fff 0e1ff000-0ffff004"},
		{"not relocatable", change(func(k *segmentstest.Kernel) { k.Relocatable = false; k.PrefAddress += 0x1000 }),
			"01001000-04000fff 00100000-00101fff 00102000-00109fff 7e1de000-7ffde004"},
		{"initrd above 4 GiB", allowed(span(mib, 128*mib), span(4*gib, 5*gib)),
			"01000000-03ffffff 00100000-00101fff 00102000-00109fff 13e1ff000-13ffff004"},
		{"initrd above 4 GiB without the flag", all(allowed(span(mib, 128*mib), span(4*gib, 5*gib)), change(func(k *segmentstest.Kernel) { k.XLoadFlags = 1 })),
			"01000000-03ffffff 00100000-00101fff 00102000-00109fff 061ff000-07fff004"},
		{"initrd below initrd_addr_max", change(func(k *segmentstest.Kernel) { k.XLoadFlags = 1; k.InitrdMax = 0x37ffffff }),
			"01000000-03ffffff 00100000-00101fff 00102000-00109fff 261ff000-27fff004"},
		{"initrd across initrd_addr_max", change(func(k *segmentstest.Kernel) { k.XLoadFlags = 1; k.InitrdMax = 0x740007ff }),
			"01000000-03ffffff 00100000-00101fff 00102000-00109fff 721ff000-73fff004"},
		{"initrd fits its range exactly", allowed(span(mib, 128*mib), span(gib, gib+30*mib+4096)),
			"01000000-03ffffff 00100000-00101fff 00102000-00109fff 40000000-41e00004"},
		{"setup_data", func(_ *testing.T, l *Linux) { l.Map = stripes(129) },
			"01000000-03ffffff 00100000-00102fff 00103000-0010afff 7e1de000-7ffde004"},
		{"command line of a page and NUL", all(change(func(k *segmentstest.Kernel) { k.CmdlineSize = 4096 }), func(_ *testing.T, l *Linux) { l.Cmdline = strings.Repeat("x", 4096) }),
			"01000000-03ffffff 00100000-00102fff 00103000-0010afff 7e1de000-7ffde004"},
		{"initrd of 5 GiB", all(allowed(span(mib, 128*mib), span(4*gib, 16*gib)), func(_ *testing.T, l *Linux) { l.InitrdSize = 5*gib + 1 }),
			"01000000-03ffffff 00100000-00101fff 00102000-00109fff 2bffff000-3fffff000"},
		{"all above 2 GiB", allowed(span(0xa0000000, 0xb0000000)),
			"a0000000-a2ffffff a3000000-a3001fff a3002000-a3009fff ae1ff000-affff004"},
		{"parts of pages", allowed(span(mib+1, 128*mib-1), span(gib, gib+64*mib)),
			"01000000-03ffffff 00101000-00102fff 00103000-0010afff 421ff000-43fff004"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			l := linux(t)
			tt.change(t, &l)
			img, err := AMD64(l)
			if err != nil {
				t.Fatal(err)
			}
			if err := check(l, img); err != nil {
				t.Error(err)
			}
			got := fmt.Sprint(img.Segments[0].Range, img.Segments[1].Range, img.Trampoline.Range, img.Initrd)
			if got != tt.want {
				t.Errorf("places of kernel, zero page, trampoline, initrd\n got %s\nwant %s", got, tt.want)
			}
		})
	}
}

func TestAMD64Refuses(t *testing.T) {
	tests := []struct {
		name   string
		change func(l *Linux)
		want   string
	}{
		{"command line too long", func(l *Linux) { l.Cmdline = strings.Repeat("x", 2048) }, "command line of 2048 bytes: the kernel takes 2047"},
		{"nothing allowed", func(l *Linux) { l.Allowed = nil }, "place kernel: no room for 48 MiB: nothing is left"},
		{"kernel only above 4 GiB", func(l *Linux) { l.Allowed = phys.NewSet(span(4*gib, 5*gib)) }, "place kernel: no room for 48 MiB: nothing is left"},
		{"no room for the kernel", func(l *Linux) { l.Allowed = phys.NewSet(span(17*mib, 60*mib)) }, "place kernel: no room for 48 MiB: the largest piece left is 01100000-03bfffff, 43 MiB"},
		{"alignment leaves no room", func(l *Linux) { l.Allowed = phys.NewSet(span(17*mib, 65*mib)) }, "place kernel: no room for 48 MiB"},
		{"not relocatable", func(l *Linux) { l.Kernel.(*BzImage).Relocatable = false; l.Allowed = phys.NewSet(span(32*mib, gib)) },
			"it is not relocatable and its place 01000000-03ffffff is not boot memory (02000000-3fffffff)"},
		{"not relocatable, place wraps", func(l *Linux) {
			l.Kernel.(*BzImage).Relocatable = false
			l.Kernel.(*BzImage).PrefAddress = ^uint64(0) - 4095
		}, "it is not relocatable"},
		{"preferred address above 4 GiB", func(l *Linux) { l.Kernel.(*BzImage).PrefAddress = 8 * gib }, "place kernel: no room for 48 MiB: nothing is left"},
		{"no room for the initrd", func(l *Linux) { l.InitrdSize = gib }, "place initrd: no room for 1 GiB: the largest piece left is 70000000-7ffdefff, 255.9 MiB"},
		{"initrd of 16 EiB", func(l *Linux) { l.InitrdSize = ^uint64(0) }, "place initrd: no room"},
		{"initrd above initrd_addr_max only", func(l *Linux) { l.Kernel.(*BzImage).Above4G, l.Kernel.(*BzImage).InitrdMax = false, mib-1 }, "place initrd: no room for 30 MiB: nothing is left"},
		{"no room for the zero page", func(l *Linux) { l.Allowed, l.InitrdSize = phys.NewSet(span(16*mib, 64*mib)), 0 }, "place zero page and command line: no room for 8 KiB: nothing is left"},
		{"no room for the trampoline", func(l *Linux) { l.Allowed, l.InitrdSize = phys.NewSet(span(16*mib, 64*mib+0x8000)), 0 }, "place trampoline: no room for 64 KiB: the largest piece left is 04002000-04007fff, 24 KiB"},
		{"trampoline in the first MiB", func(l *Linux) { l.Allowed = phys.NewSet(span(0, gib)) }, "build trampoline: base"},
		{"too many map entries", func(l *Linux) { l.Map = stripes(memmap.MaxEntries + 1) }, "more than 4096 entries"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			l := linux(t)
			tt.change(&l)
			img, err := AMD64(l)
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want an error with %q", err, tt.want)
			}
			if img != nil {
				t.Errorf("an error came with the image %+v", img)
			}
		})
	}
}

// TestZeroPage looks at what a zero page has besides the places.
func TestZeroPage(t *testing.T) {
	running := make([]byte, phys.PageSize)
	for i := range running {
		running[i] = byte(i * 13)
	}
	for _, entries := range []int{1, 128, 129, 128 + 204, 4096} {
		t.Run(fmt.Sprintf("%d entries", entries), func(t *testing.T) {
			l := linux(t)
			l.Map = stripes(entries)
			l.RSDP = 0x7fffe014_12345678
			l.BootParams = running
			img, err := AMD64(l)
			if err != nil {
				t.Fatal(err)
			}
			if err := check(l, img); err != nil {
				t.Error(err)
			}
			zero := img.Segments[1].Data[:phys.PageSize]
			page, err := zeropage.Parse(zero)
			if err != nil {
				t.Fatal(err)
			}
			if got := page.RSDP(); got != l.RSDP {
				t.Errorf("RSDP %#x, want %#x", got, l.RSDP)
			}
			if !bytes.Equal(zero[:0x40], running[:0x40]) {
				t.Error("screen_info differs from the running kernel's")
			}
			if !bytes.Equal(zero[0x140:0x1c0], running[0x140:0x1c0]) {
				t.Error("EDID differs from the running kernel's")
			}
			if r, ok := page.Initrd(); !ok || r != img.Initrd {
				t.Errorf("initrd %v (%v), want %v", r, ok, img.Initrd)
			}
			table, err := page.E820()
			if err != nil || len(table) != 20*min(entries, 128) {
				t.Errorf("e820 table of %d bytes (%v), want %d entries", len(table), err, min(entries, 128))
			}
		})
	}
}

// TestZeroPageWithoutRunning leaves the screen to the kernel's own search.
func TestZeroPageWithoutRunning(t *testing.T) {
	l := linux(t)
	l.BootParams = make([]byte, 100)
	img, err := AMD64(l)
	if err != nil {
		t.Fatal(err)
	}
	zero := img.Segments[1].Data
	if !bytes.Equal(zero[:0x1e8], append(make([]byte, 0xc0), append(zero[0xc0:0xcc:0xcc], make([]byte, 0x1e8-0xcc)...)...)) {
		t.Errorf("something is set in the zero page before the e820 count:\n% x", zero[:0x1e8])
	}
}

// check proves an image without the package's own arithmetic: it puts all of
// it into a picture of memory and reads it back as the kernel does.
func check(l Linux, img *Image) error {
	k := l.Kernel.(*BzImage)
	kernel, tables := img.Segments[0], img.Segments[1]
	taken := []phys.Segment{kernel, tables, img.Trampoline}
	if img.Initrd.Size() != l.InitrdSize {
		return fmt.Errorf("initrd %v, want %d bytes", img.Initrd, l.InitrdSize)
	}
	if l.InitrdSize > 0 {
		taken = append(taken, phys.Segment{Name: "initrd", Range: span(img.Initrd.Start, (img.Initrd.End+4095)/4096*4096)})
		if !k.Above4G && img.Initrd.End-1 > k.InitrdMax {
			return fmt.Errorf("initrd %v, want it below %#x", img.Initrd, k.InitrdMax)
		}
	}
	if len(img.Segments) != 2 || kernel.Name != "kernel" || tables.Name != "zero page" {
		return fmt.Errorf("segments %v, want the kernel and the zero page", img.Segments)
	}
	for i, s := range taken {
		switch {
		case s.Range.Empty() || s.Range.Start%4096 != 0 || s.Range.End%4096 != 0:
			return fmt.Errorf("%v: not whole pages", s)
		case uint64(len(s.Data)) > s.Range.Size():
			return fmt.Errorf("%v: %d bytes of data", s, len(s.Data))
		case !l.Allowed.Contains(s.Range):
			return fmt.Errorf("%v: outside %v", s, l.Allowed)
		case s.Name != "initrd" && s.Range.End > 4*gib:
			return fmt.Errorf("%v: above 4 GiB", s)
		}
		for _, o := range taken[:i] {
			if s.Range.Overlaps(o.Range) {
				return fmt.Errorf("%v overlaps %v", s, o)
			}
		}
	}
	if !bytes.Equal(kernel.Data, k.code) || img.Entry != kernel.Range.Start+0x200 {
		return fmt.Errorf("entry %#x of %v, or its code", img.Entry, kernel)
	}
	// Where it runs: "init_size" in boot.rst.
	run := k.PrefAddress
	if k.Relocatable {
		run = (max(kernel.Range.Start, k.PrefAddress) + k.Alignment - 1) / k.Alignment * k.Alignment
	}
	if !kernel.Range.Contains(span(run, run+k.InitSize)) {
		return fmt.Errorf("%v: the kernel runs at %#x and needs %#x bytes there", kernel, run, k.InitSize)
	}
	tramp := img.Trampoline.Data
	if at, params := u64(tramp, 0x10), u64(tramp, 0x18); at != img.Entry || params != tables.Range.Start {
		return fmt.Errorf("the trampoline goes to %#x with the zero page at %#x, want %#x and %#x", at, params, img.Entry, tables.Range.Start)
	}
	return checkZeroPage(l, img.Initrd, tables)
}

func u32(b []byte, off int) uint64 { return uint64(binary.LittleEndian.Uint32(b[off:])) }
func u64(b []byte, off int) uint64 { return binary.LittleEndian.Uint64(b[off:]) }

func checkZeroPage(l Linux, initrd phys.Range, s phys.Segment) error {
	zero := s.Data
	inside := func(addr uint64) []byte {
		if addr < s.Range.Start || addr >= s.Range.End {
			return nil
		}
		return s.Data[addr-s.Range.Start:]
	}
	if start, size := u32(zero, 0x218)|u32(zero, 0x0c0)<<32, u32(zero, 0x21c)|u32(zero, 0x0c4)<<32; start != initrd.Start || size != initrd.Size() {
		return fmt.Errorf("zero page: initrd of %#x bytes at %#x, want %v", size, start, initrd)
	}
	cmdline, _, found := bytes.Cut(inside(u32(zero, 0x228)|u32(zero, 0x0c8)<<32), []byte{0})
	if !found || string(cmdline) != l.Cmdline {
		return fmt.Errorf("zero page: command line %q, want %q", cmdline, l.Cmdline)
	}
	if zero[0x210] != 0xff || u64(zero, 0x070) != l.RSDP || zero[0x1ef] != 0 {
		return fmt.Errorf("zero page: loader %#x, RSDP %#x, sentinel %#x", zero[0x210], u64(zero, 0x070), zero[0x1ef])
	}
	// The header is the image's, but for what a loader fills in.
	header := bytes.Clone(l.Kernel.(*BzImage).header)
	for _, f := range []struct{ off, n int }{{0x210, 1}, {0x218, 8}, {0x228, 4}, {0x250, 8}} {
		copy(header[f.off-0x1f1:][:f.n], zero[f.off:])
	}
	if !bytes.Equal(header, zero[0x1f1:][:len(header)]) {
		return fmt.Errorf("zero page: header differs from the image's")
	}
	table := zero[0x2d0:][:int(zero[0x1e8])*20]
	for at := u64(zero, 0x250); at != 0; {
		data := inside(at)
		if len(data) < 16 || u32(data, 8) != 1 || int(u32(data, 12)) > len(data)-16 {
			return fmt.Errorf("zero page: setup_data at %#x: not an e820 table in %v", at, s)
		}
		table = append(table[:len(table):len(table)], data[16:][:u32(data, 12)]...)
		at = u64(data, 0)
	}
	want := l.Map.Normalize().Entries
	if len(want) == 0 && len(table) == 0 {
		return nil
	}
	var got []memmap.Entry
	for ; len(table) >= 20; table = table[20:] {
		got = append(got, memmap.Entry{Range: span(u64(table, 0), u64(table, 0)+u64(table, 8)), Kind: memmap.Kind(u32(table, 16))})
	}
	if diff := cmp.Diff(want, got); diff != "" {
		return fmt.Errorf("e820 entries (-want +got):\n%s", diff)
	}
	return nil
}

// FuzzAMD64 places kernels of any header in any memory; what is placed must
// pass the checker.
func FuzzAMD64(f *testing.F) {
	f.Add([]byte{1, 127, 100, 50}, uint32(0x1000), uint32(0x3000), uint8(21), uint8(3), uint64(30*mib), uint32(0x7fffffff), uint16(17), uint16(14))
	f.Add([]byte{1, 60, 5, 3, 200, 200, 255, 255}, uint32(0x2001), uint32(0x400), uint8(12), uint8(2), uint64(5), uint32(0xffffffff), uint16(4095), uint16(129))
	f.Add([]byte{17, 255, 255, 255, 255, 255}, uint32(0), uint32(1), uint8(30), uint8(0), ^uint64(0), uint32(0), uint16(0), uint16(0))
	f.Fuzz(func(t *testing.T, ranges []byte, pref, initPages uint32, align, flags uint8, initrd uint64, initrdMax uint32, cmdline, entries uint16) {
		var allowed []phys.Range
		at := uint64(0)
		for i := 0; i+1 < len(ranges) && i < 40; i += 2 {
			at += uint64(ranges[i])*mib + uint64(i)*0x801
			end := at + uint64(ranges[i+1])*(mib+0x333)
			allowed = append(allowed, span(at, end))
			at = end
		}
		file := segmentstest.Debian(flags)
		file.PrefAddress = uint64(pref) * 0x1000
		file.InitSize = initPages%(1<<18)*0x1000 + uint32(flags)
		file.Alignment = 1 << (align % 31)
		file.Relocatable = flags&1 != 0
		file.XLoadFlags = 1 | uint16(flags&2)
		file.InitrdMax = initrdMax
		file.CmdlineSize = 4096
		k, err := ParseBzImage(file.Image())
		if err != nil {
			return
		}
		l := Linux{
			Kernel:     k,
			InitrdSize: initrd,
			Cmdline:    strings.Repeat("c", int(cmdline%5000)),
			Map:        stripes(int(entries % 4200)),
			Allowed:    phys.NewSet(allowed...),
			RSDP:       initrd,
		}
		img, err := AMD64(l)
		if err != nil {
			if img != nil {
				t.Fatalf("an error came with the image %+v", img)
			}
			return
		}
		if err := check(l, img); err != nil {
			t.Fatalf("%v\n%+v", err, k)
		}
	})
}
