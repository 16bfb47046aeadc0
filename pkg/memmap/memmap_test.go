package memmap_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"strings"
	"testing"
	"testing/fstest"
	"testing/iotest"

	"github.com/google/go-cmp/cmp"
	"github.com/warmcore/warmcore/pkg/memmap"
	"github.com/warmcore/warmcore/pkg/memmap/memmaptest"
	"github.com/warmcore/warmcore/pkg/phys"
)

func entry(start, end uint64, kind memmap.Kind) memmap.Entry {
	return memmap.Entry{Range: phys.Range{Start: start, End: end}, Kind: kind}
}

func nested(start, end uint64, kind memmap.Kind, depth int) memmap.Entry {
	e := entry(start, end, kind)
	e.Depth = depth
	return e
}

func TestNormalize(t *testing.T) {
	type entries = []memmap.Entry
	for _, tc := range []struct {
		name     string
		in, want entries
	}{
		{"nothing", nil, nil},
		{"sorted", entries{entry(8, 9, memmap.RAM), entry(0, 1, memmap.Reserved)}, entries{entry(0, 1, memmap.Reserved), entry(8, 9, memmap.RAM)}},
		{"neighbours of one kind", entries{entry(0, 4, memmap.RAM), entry(4, 8, memmap.RAM)}, entries{entry(0, 8, memmap.RAM)}},
		{"neighbours of two kinds", entries{entry(0, 4, memmap.RAM), entry(4, 8, memmap.ACPI)}, entries{entry(0, 4, memmap.RAM), entry(4, 8, memmap.ACPI)}},
		{"overlap of one kind", entries{entry(0, 6, memmap.RAM), entry(4, 8, memmap.RAM)}, entries{entry(0, 8, memmap.RAM)}},
		{"the same twice", entries{entry(0, 6, memmap.RAM), entry(0, 6, memmap.RAM)}, entries{entry(0, 6, memmap.RAM)}},
		{"hole in RAM", entries{entry(0, 10, memmap.RAM), entry(4, 6, memmap.Reserved)}, entries{entry(0, 4, memmap.RAM), entry(4, 6, memmap.Reserved), entry(6, 10, memmap.RAM)}},
		{"RAM in a hole", entries{entry(0, 10, memmap.Reserved), entry(4, 6, memmap.RAM)}, entries{entry(0, 10, memmap.Reserved)}},
		{"unknown beats all", entries{entry(0, 10, memmap.SoftReserved), entry(4, 6, memmap.Unknown)}, entries{entry(0, 4, memmap.SoftReserved), entry(4, 6, memmap.Unknown), entry(6, 10, memmap.SoftReserved)}},
		{"soft reserved stay apart", entries{entry(0, 4, memmap.SoftReserved), entry(4, 8, memmap.SoftReserved)}, entries{entry(0, 4, memmap.SoftReserved), entry(4, 8, memmap.SoftReserved)}},
		{"soft reserved over two kinds of RAM", entries{entry(0, 4, memmap.RAM), entry(4, 8, memmap.RAM), entry(2, 6, memmap.SoftReserved)}, entries{
			entry(0, 2, memmap.RAM),
			entry(2, 4, memmap.SoftReserved),
			entry(4, 6, memmap.SoftReserved),
			entry(6, 8, memmap.RAM),
		}},
		{"persistent stay apart", entries{entry(0, 4, memmap.PRAM), entry(4, 8, memmap.PRAM)}, entries{entry(0, 4, memmap.PRAM), entry(4, 8, memmap.PRAM)}},
		{"kind 0 is dropped", entries{entry(0, 4, 0), entry(2, 8, memmap.RAM)}, entries{entry(2, 8, memmap.RAM)}},
		{"empty and inverted are dropped", entries{entry(4, 4, memmap.Reserved), entry(6, 5, memmap.Reserved), entry(0, 8, memmap.RAM)}, entries{entry(0, 8, memmap.RAM)}},
		{"to the end of the address space", entries{entry(1, math.MaxUint64, memmap.RAM)}, entries{entry(1, math.MaxUint64, memmap.RAM)}},
		{"nested replaces", entries{entry(0, 10, memmap.Unknown), nested(4, 6, memmap.Reserved, 1)}, entries{entry(0, 4, memmap.Unknown), entry(4, 6, memmap.Reserved), entry(6, 10, memmap.Unknown)}},
		{"deepest replaces", entries{entry(0, 10, memmap.SoftReserved), nested(0, 10, memmap.SoftReserved, 1), nested(0, 10, memmap.RAM, 2)}, entries{entry(0, 10, memmap.RAM)}},
		// The picture above e820__update_table.
		{"the kernel's example", entries{
			entry(10, 15, 3),
			entry(14, 16, 2),
			entry(19, 23, 2),
			entry(9, 18, 1),
			entry(21, 23, 1),
			entry(17, 18, 4),
		}, entries{
			entry(9, 10, 1),
			entry(10, 15, 3),
			entry(15, 16, 2),
			entry(16, 17, 1),
			entry(17, 18, 4),
			entry(19, 23, 2),
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			m := memmap.Map{Entries: tc.in, Warnings: []string{"kept"}}
			got := m.Normalize()
			if diff := cmp.Diff(memmap.Map{Entries: tc.want, Warnings: []string{"kept"}}, got); diff != "" {
				t.Errorf("Normalize() (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(got, got.Normalize()); diff != "" {
				t.Errorf("Normalize() twice (-want +got):\n%s", diff)
			}
			checkOrder(t, m)
		})
	}
}

// Most of the overlaps that a map can have, and still fast.
func TestNormalizeWorstCase(t *testing.T) {
	var m memmap.Map
	for i := range uint64(memmap.MaxEntries) {
		m.Entries = append(m.Entries, entry(i, 2*memmap.MaxEntries-i, memmap.Kind(1+i%7)))
	}
	got := m.Normalize()
	if n := len(got.Entries); n == 0 || n > 2*memmap.MaxEntries {
		t.Errorf("Normalize() = %d entries", n)
	}
	if got, want := m.Set(1, 2, 3, 4, 5, 6, 7).String(), "00000000-00001fff"; got != want {
		t.Errorf("Set(all kinds) = %s, want %s", got, want)
	}
}

func TestHashTellsMapsApart(t *testing.T) {
	maps := []memmap.Map{
		{},
		{Entries: []memmap.Entry{entry(0, 8, memmap.RAM)}},
		{Entries: []memmap.Entry{entry(0, 8, memmap.Reserved)}},
		{Entries: []memmap.Entry{entry(0, 9, memmap.RAM)}},
		{Entries: []memmap.Entry{entry(1, 8, memmap.RAM)}},
		{Entries: []memmap.Entry{entry(0, 8, memmap.RAM), entry(9, 10, memmap.RAM)}},
		{Entries: []memmap.Entry{entry(0, 8, memmap.SoftReserved)}},
		{Entries: []memmap.Entry{entry(0, 4, memmap.SoftReserved), entry(4, 8, memmap.SoftReserved)}},
	}
	seen := map[[32]byte]int{}
	for i, m := range maps {
		if j, ok := seen[m.Hash()]; ok {
			t.Errorf("maps %d and %d have the same hash", j, i)
		}
		seen[m.Hash()] = i
	}
	// Names, warnings and how it is cut make no difference.
	same := memmap.Map{Entries: []memmap.Entry{entry(4, 8, memmap.RAM), entry(0, 4, memmap.RAM)}, Warnings: []string{"w"}}
	same.Entries[0].Name = "System RAM"
	if same.Hash() != maps[1].Hash() {
		t.Error("Hash() differs by name, warning or where RAM is cut")
	}
	// The format of the hash is in registrations of the last boot.
	if got, want := fmt.Sprintf("%x", maps[1].Hash()), "f32344e59646fb527459765b8326aee1ece84fab3206915270437cb1df03e751"; got != want {
		t.Errorf("Hash() = %s, want %s", got, want)
	}
}

func TestString(t *testing.T) {
	m := memmap.Map{Entries: []memmap.Entry{
		{Range: phys.Range{Start: 0, End: 0x1000}, Kind: memmap.RAM, Name: "System RAM"},
		{Range: phys.Range{Start: 0x100, End: 0x200}, Kind: memmap.RAM, Name: "Kernel code", Depth: 1},
		{Range: phys.Range{Start: 1 << 32, End: 2 << 32}, Kind: memmap.SoftReserved},
		{Range: phys.Range{Start: 2 << 32, End: 3 << 32}, Kind: 6},
	}}
	want := "" +
		"00000000-00000fff : System RAM\n" +
		"  00000100-000001ff : Kernel code [System RAM]\n" +
		"100000000-1ffffffff : Soft Reserved\n" +
		"200000000-2ffffffff : type 6\n"
	if got := m.String(); got != want {
		t.Errorf("String() = %s, want %s", got, want)
	}
}

// broken fails to open one file, as sysfs does for a reader without rights.
type broken struct {
	fs.FS
	name string
}

func (b broken) Open(name string) (fs.File, error) {
	if name == b.name {
		return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrPermission}
	}
	return b.FS.Open(name)
}

func TestSysfs(t *testing.T) {
	ram := "0 0x0 0x9fbff System RAM\n"
	for _, tc := range []struct {
		name     string
		text     string
		want     string // Map.String
		warnings []string
	}{
		{"every type", "0 0x0 0xfff System RAM\n1 0x1000 0x1fff Reserved\n2 0x2000 0x2fff ACPI Tables\n3 0x3000 0x3fff ACPI Non-volatile Storage\n" +
			"4 0x4000 0x4fff Unusable memory\n5 0x5000 0x5fff Persistent Memory\n6 0x6000 0x6fff Persistent Memory (legacy)\n" +
			"7 0x7000 0x7fff Soft Reserved\n8 0x8000 0x8fff Unknown E820 type\n",
			"00000000-00000fff : System RAM\n00001000-00001fff : Reserved\n00002000-00002fff : ACPI Tables\n00003000-00003fff : ACPI Non-volatile Storage\n" +
				"00004000-00004fff : Unusable memory\n00005000-00005fff : Persistent Memory\n00006000-00006fff : Persistent Memory (legacy)\n" +
				"00007000-00007fff : Soft Reserved\n00008000-00008fff : Unknown E820 type [Unknown]\n", nil},
		{"by number, not by name", "10 0x2000 0x2fff System RAM\n2 0x1000 0x1fff System RAM\n" + ram,
			"00000000-0009fbff : System RAM\n00001000-00001fff : System RAM\n00002000-00002fff : System RAM\n", nil},
		{"unknown type", ram + "1 0x100000 0x1fffff Quantum Memory\n",
			"00000000-0009fbff : System RAM\n00100000-001fffff : Quantum Memory [Unknown]\n",
			[]string{`firmware memory map entry 1 has the unknown type "Quantum Memory"`}},
		{"no size", ram + "1 0x100000 0xfffff Reserved\n", "00000000-0009fbff : System RAM\n",
			[]string{"firmware memory map entry 1 at 0x100000 has no size"}},
		{"last byte of the address space", ram + "1 0xffffffff00000000 0xffffffffffffffff Reserved\n",
			"00000000-0009fbff : System RAM\nffffffff00000000-fffffffffffffffe : Reserved\n",
			[]string{"0xffffffff00000000-0xffffffffffffffff (Reserved) is cut by its last byte"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			m, err := memmap.Sysfs(memmaptest.Sysfs(tc.text))
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tc.want, m.String()); diff != "" {
				t.Errorf("Sysfs() (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(tc.warnings, m.Warnings); diff != "" {
				t.Errorf("Sysfs() warnings (-want +got):\n%s", diff)
			}
		})
	}
}

func TestSysfsRefused(t *testing.T) {
	ram := "0 0x0 0x9fbff System RAM\n"
	var many strings.Builder
	for i := range memmap.MaxEntries + 1 {
		fmt.Fprintf(&many, "%d 0x0 0xfff System RAM\n", i)
	}
	raw := func(file, data string) fs.FS {
		fsys := memmaptest.Sysfs(ram).(fstest.MapFS)
		fsys[file] = &fstest.MapFile{Data: []byte(data)}
		return fsys
	}
	for _, tc := range []struct {
		name string
		fsys fs.FS
		err  error
		want string
	}{
		{"nothing", memmaptest.Sysfs(""), memmap.ErrNoRAM, "no RAM"},
		{"no RAM", memmaptest.Sysfs("0 0x0 0xfff Reserved\n"), memmap.ErrNoRAM, "no RAM"},
		{"no folder", fstest.MapFS{".": {}}, nil, "read firmware memory map"},
		{"no start", memmaptest.Sysfs(ram + "1 - 0xfff Reserved"), fs.ErrNotExist, "entry 1: open 1/start"},
		{"no end", memmaptest.Sysfs(ram + "1 0x0 - Reserved"), fs.ErrNotExist, "entry 1: open 1/end"},
		{"no type", memmaptest.Sysfs(ram + "1 0x0 0xfff"), fs.ErrNotExist, "entry 1: open 1/type"},
		{"not allowed", broken{memmaptest.Sysfs(ram), "0/start"}, fs.ErrPermission, "entry 0"},
		{"inverted", memmaptest.Sysfs(ram + "1 0x2000 0xfff Reserved"), nil, "ends before it starts"},
		{"one byte that can't be", memmaptest.Sysfs(ram + "1 0xffffffffffffffff 0xffffffffffffffff Reserved"), nil, "beyond 64 bits"},
		{"decimal", memmaptest.Sysfs(ram + "1 4096 8191 Reserved"), nil, `1/start: "4096"`},
		{"not a number", memmaptest.Sysfs(ram + "1 0x1000 0x1fgf Reserved"), nil, `1/end: "0x1fgf"`},
		{"65 bits", memmaptest.Sysfs(ram + "1 0x0 0x10000000000000000 Reserved"), nil, "1/end"},
		{"name of a folder", memmaptest.Sysfs(ram + "one 0x0 0xfff Reserved"), nil, `entry "one"`},
		{"negative folder", memmaptest.Sysfs(ram + "-1 0x0 0xfff Reserved"), nil, `entry "-1"`},
		{"folder with zeroes", memmaptest.Sysfs(ram + "007 0x0 0xfff Reserved"), nil, `entry "007"`},
		{"folder too large", memmaptest.Sysfs(ram + "4096 0x0 0xfff Reserved"), nil, `entry "4096"`},
		{"too many", memmaptest.Sysfs(many.String()), memmap.ErrTooMany, "4096"},
		{"empty type", raw("0/type", "\n"), nil, "0/type: not a line"},
		{"two lines", raw("0/type", "System RAM\nReserved\n"), nil, "0/type: not a line"},
		{"control character", raw("0/type", "\x1b[2J"), nil, "0/type: not a line"},
		{"endless type", raw("0/type", strings.Repeat("x", 5000)), nil, "0/type: not a line"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			m, err := memmap.Sysfs(tc.fsys)
			refused(t, m, err, tc.err, tc.want)
		})
	}
}

// refused checks for the zero Map and an error that wraps is, unless nil, and
// has want in it.
func refused(t *testing.T, m memmap.Map, err, is error, want string) {
	t.Helper()
	if diff := cmp.Diff(memmap.Map{}, m); diff != "" {
		t.Errorf("the map is not zero (-want +got):\n%s", diff)
	}
	if err == nil || is != nil && !errors.Is(err, is) || !strings.Contains(err.Error(), want) {
		t.Errorf("error = %v, want %q in it and to wrap %v", err, want, is)
	}
}

// A range that the kmem driver has made RAM is RAM, whatever it is in.
func TestIOMemLent(t *testing.T) {
	m, err := memmap.IOMem(strings.NewReader("" +
		"00100000-17ffffff : System RAM\n" +
		"  00200000-002fffff : reserved\n" +
		"18000000-1fffffff : Soft Reserved\n" +
		"  18000000-1fffffff : dax0.0\n" +
		"    18000000-1fffffff : System RAM (kmem)\n" +
		"20000000-201fffff : Reserved\n" +
		"28000000-2fffffff : hmem.1\n" +
		"  28000000-2fffffff : Soft Reserved\n" +
		"    28000000-2fffffff : dax1.0\n"))
	if err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		kind memmap.Kind
		want string
	}{
		{memmap.RAM, "00100000-001fffff 00300000-1fffffff"},
		{memmap.SoftReserved, "28000000-2fffffff"},
		{memmap.Reserved, "00200000-002fffff 20000000-201fffff"},
		{memmap.Unknown, "none"},
	} {
		if got := m.Set(tc.kind).String(); got != tc.want {
			t.Errorf("Set(%v) = %s, want %s", tc.kind, got, tc.want)
		}
	}
}

func TestIOMemRefused(t *testing.T) {
	ram := "00001000-0009fbff : System RAM\n"
	for _, tc := range []struct {
		name string
		r    io.Reader
		err  error
		want string
	}{
		{"nothing", strings.NewReader(""), memmap.ErrNoRAM, "no RAM"},
		{"no RAM", strings.NewReader("00000000-00000fff : Reserved\n"), memmap.ErrNoRAM, "no RAM"},
		{"unprivileged", strings.NewReader("00000000-00000000 : Reserved\n00000000-00000000 : System RAM\n  00000000-00000000 : Kernel code\n"), memmap.ErrUnprivileged, "CAP_SYS_ADMIN"},
		{"empty line", strings.NewReader(ram + "\n"), nil, "line 2"},
		{"no name", strings.NewReader(ram + "00100000-001fffff : \n"), nil, "line 2"},
		{"no colon", strings.NewReader(ram + "00100000-001fffff System RAM\n"), nil, "line 2"},
		{"no dash", strings.NewReader(ram + "00100000 : System RAM\n"), nil, "line 2"},
		{"not a number", strings.NewReader(ram + "0010000g-001fffff : System RAM\n"), nil, "line 2"},
		{"sign", strings.NewReader(ram + "+0100000-001fffff : System RAM\n"), nil, "line 2"},
		{"inverted", strings.NewReader(ram + "00200000-001fffff : System RAM\n"), nil, "line 2: 0x200000-0x1fffff: ends before it starts"},
		{"odd indentation", strings.NewReader(ram + " 00001000-00001fff : Kernel code\n"), nil, "line 2"},
		{"indented too far", strings.NewReader(ram + "    00001000-00001fff : Kernel code\n"), nil, "line 2: nested"},
		{"indented at the start", strings.NewReader("  00001000-00001fff : System RAM\n"), nil, "line 1: nested"},
		{"control character", strings.NewReader(ram + "00100000-001fffff : System\x1b[2J\n"), nil, "line 2"},
		{"endless line", strings.NewReader(ram + strings.Repeat("0", 5000) + "\n"), nil, "line 2: "},
		{"too many lines", strings.NewReader(strings.Repeat(ram, memmap.MaxIOMemLines+1)), memmap.ErrTooManyLines, "1048576"},
		{"read error", io.MultiReader(strings.NewReader(ram), iotest.ErrReader(io.ErrUnexpectedEOF)), io.ErrUnexpectedEOF, "line 2"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			m, err := memmap.IOMem(tc.r)
			refused(t, m, err, tc.err, tc.want)
		})
	}
}

func e820Entry(addr, size uint64, kind uint32) []byte {
	b := binary.LittleEndian.AppendUint64(nil, addr)
	b = binary.LittleEndian.AppendUint64(b, size)
	return binary.LittleEndian.AppendUint32(b, kind)
}

func TestE820(t *testing.T) {
	table := []byte{
		0, 0, 0, 0, 0, 0, 0, 0, // address
		0, 0xfc, 9, 0, 0, 0, 0, 0, // size
		1, 0, 0, 0, // type: RAM
		0, 0, 0, 0, 1, 0, 0, 0, // address
		0, 0, 0, 0x40, 0, 0, 0, 0, // size
		0xff, 0xff, 0xff, 0xef, // type: soft reserved
		0, 0, 0, 0, 2, 0, 0, 0, // address
		0, 0x10, 0, 0, 0, 0, 0, 0, // size
		6, 0, 0, 0, // type: one without a name
	}
	want := memmap.Map{Entries: []memmap.Entry{
		entry(0, 0x9fc00, memmap.RAM),
		entry(1<<32, 1<<32+1<<30, memmap.SoftReserved),
		entry(2<<32, 2<<32+4096, 6),
	}}
	got, err := memmap.E820(table)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("E820() (-want +got):\n%s", diff)
	}
	again, err := memmap.AppendE820([]byte("before"), got.Entries)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(append([]byte("before"), table...), again); diff != "" {
		t.Errorf("AppendE820() (-want +got):\n%s", diff)
	}

	got, err = memmap.E820(append(e820Entry(0x1000, 0, 2), e820Entry(0, 0x1000, 1)...))
	wantEmpty := memmap.Map{Entries: []memmap.Entry{entry(0, 0x1000, memmap.RAM)}, Warnings: []string{"e820 entry 0 at 0x1000 has no size"}}
	if diff := cmp.Diff(wantEmpty, got); diff != "" || err != nil {
		t.Errorf("E820() with an entry of no size = %v (-want +got):\n%s", err, diff)
	}
}

func TestE820Refused(t *testing.T) {
	ram := e820Entry(0, 0x1000, 1)
	for _, tc := range []struct {
		name string
		data []byte
		err  error
		want string
	}{
		{"nothing", nil, memmap.ErrNoRAM, "no RAM"},
		{"zeroes", make([]byte, 20), memmap.ErrNoRAM, "no RAM"},
		{"no RAM", e820Entry(0, 0x1000, 2), memmap.ErrNoRAM, "no RAM"},
		{"part of an entry", append(bytes.Clone(ram), 0), nil, "21 bytes"},
		{"wraps", append(bytes.Clone(ram), e820Entry(math.MaxUint64, 2, 2)...), nil, "offset 0x14"},
		{"too many", bytes.Repeat(ram, memmap.MaxEntries+1), memmap.ErrTooMany, "4096"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			m, err := memmap.E820(tc.data)
			refused(t, m, err, tc.err, tc.want)
		})
	}
	for _, tc := range []struct {
		name    string
		entries []memmap.Entry
		want    string
	}{
		{"empty", []memmap.Entry{entry(0, 1, memmap.RAM), entry(4, 4, memmap.RAM)}, "entry 1"},
		{"nested", []memmap.Entry{nested(0, 1, memmap.RAM, 1)}, "nested"},
		{"too many", make([]memmap.Entry, memmap.MaxEntries+1), "more than 4096"},
	} {
		b, err := memmap.AppendE820(nil, tc.entries)
		if b != nil || err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("AppendE820(%s) = %d bytes, %v; want %q", tc.name, len(b), err, tc.want)
		}
	}
}
