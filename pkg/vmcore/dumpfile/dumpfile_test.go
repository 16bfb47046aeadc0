package dumpfile_test

import (
	"bytes"
	"strings"
	"testing"

	"github.com/warmcore/warmcore/pkg/phys"
	"github.com/warmcore/warmcore/pkg/vmcore/dumpfile"
	"github.com/warmcore/warmcore/pkg/vmcore/vmcoretest"
)

const text = `
vmcoreinfo OSRELEASE=6.1.0-test
status zlib
0x1000-0x4000 zlib text some pages
0x4000 excluded
0x5000 raw random 1
0x6000 unreadable
`

func file(b []byte) dumpfile.File {
	return dumpfile.File{ReaderAt: bytes.NewReader(b), Size: int64(len(b))}
}

func TestOpen(t *testing.T) {
	s := vmcoretest.Parse(t, text)
	for _, tt := range []struct {
		format string
		file   []byte
	}{
		{"elf", s.ELF(t)},
		{"kdump", s.Kdump(t)},
		{"elf flattened", vmcoretest.Flatten(t, s.ELF(t), 1000)},
		{"kdump flattened", vmcoretest.Flatten(t, s.Kdump(t), 4096)},
	} {
		t.Run(tt.format, func(t *testing.T) {
			d, err := dumpfile.New(bytes.NewReader(tt.file), int64(len(tt.file)))
			if err != nil {
				t.Fatal(err)
			}
			s.Check(t, d)
			info := d.Info()
			if info.Format != tt.format || info.Incomplete || info.Uname.Release != "6.1.0-test" || info.Warnings != nil {
				t.Errorf("format %q, incomplete %v, release %q, warnings %q", info.Format, info.Incomplete, info.Uname.Release, info.Warnings)
			}
		})
	}
}

func TestOpenRefuses(t *testing.T) {
	s := vmcoretest.Parse(t, text)
	kdump := s.Kdump(t)
	flat := vmcoretest.Flatten(t, kdump, 4096)
	for _, tt := range []struct {
		name string
		file []byte
		want string
	}{
		{"empty", nil, "the file is empty"},
		{"short", []byte("KDU"), "offset 0x0: magic"},
		{"text", []byte("some text that is no dump"), "neither that of an ELF file"},
		{"diskdump", []byte("DISKDUMP and more than that"), "predecessor"},
		{"gzip", []byte("\x1f\x8b\x08\x00more of it"), "compressed by gzip: decompress it first"},
		{"zstd", []byte("\x28\xb5\x2f\xfdmore of it"), "compressed by zstd"},
		{"xz", []byte("\xfd7zXZ\x00more"), "compressed by xz"},
		{"virsh save", []byte("LibvirtQemudSave\x02\x00"), "virsh dump --memory-only"},
		{"vmware", []byte("\xd2\xbe\xd2\xbe\x08\x00"), "vmss2core"},
		{"dmesg", []byte("[    0.000000] Linux version 6.12"), "the text of a log"},
		{"flattenedText", vmcoretest.Flatten(t, []byte("some text that is no dump"), 100), "in flattened form: open dump"},
		{"flattenedTwice", vmcoretest.Flatten(t, flat, 4096), "a flattened file in a flattened file"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			d, err := dumpfile.New(bytes.NewReader(tt.file), int64(len(tt.file)))
			if d != nil || err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("New: %v, error %v, want one with %q", d, err, tt.want)
			}
		})
	}
}

func TestFlattenedCutOff(t *testing.T) {
	flat := vmcoretest.Flatten(t, vmcoretest.Parse(t, text).ELF(t), 100)
	// Only the record that ends it is missing.
	d, err := dumpfile.New(bytes.NewReader(flat[:len(flat)-16]), int64(len(flat)-16))
	if err != nil {
		t.Fatal(err)
	}
	if info := d.Info(); !info.Incomplete || len(info.Warnings) != 1 {
		t.Errorf("incomplete %v, warnings %q", info.Incomplete, info.Warnings)
	}
}

func TestJoin(t *testing.T) {
	s := vmcoretest.Parse(t, text)
	parts := s.Parts(t, 0, 3, 7)
	d, err := dumpfile.Join(file(parts[1]), file(parts[0]))
	if err != nil {
		t.Fatal(err)
	}
	s.Check(t, d)
	if d, err = dumpfile.Join(file(s.ELF(t))); err != nil || d.Info().Format != "elf" {
		t.Errorf("join one file: %v", err)
	}
	for _, tt := range []struct {
		name  string
		files []dumpfile.File
		want  string
	}{
		{"none", nil, "0 files"},
		{"elf", []dumpfile.File{file(parts[0]), file(s.ELF(t))}, "file 2 of split dump: it is of format elf"},
		{"garbage", []dumpfile.File{file(parts[0]), file([]byte("x"))}, "file 2 of split dump: open dump"},
		{"whole", []dumpfile.File{file(parts[0]), file(s.Kdump(t))}, "file 2 of split dump: it is a dump by itself"},
		{"same", []dumpfile.File{file(parts[0]), file(parts[0])}, "two files hold"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			d, err := dumpfile.Join(tt.files...)
			if d != nil || err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("Join: %v, error %v, want one with %q", d, err, tt.want)
			}
		})
	}
}

// FuzzOpen reads what it can of any file: no panic, no end of memory, and
// every byte that it reads twice is the same.
func FuzzOpen(f *testing.F) {
	s := vmcoretest.Parse(f, text+"\n0x7000 lzo text lzo\n0x8000 snappy text snappy\n0x9000 zstd text zstd\n0xa000 unwritten")
	for _, b := range [][]byte{
		s.ELF(f), s.Kdump(f), s.Parts(f, 2, 6)[0],
		vmcoretest.Parse(f, "version 3\nvmcoreinfo OSRELEASE=1\ncpu 1\n0x0-0x3000 lzo fill 1").Kdump(f),
		vmcoretest.Parse(f, "machine aarch64\npagesize 65536\nvmcoreinfo OSRELEASE=1\nvmcoreinfo PAGESIZE=4096\n0x0-0x20000 zlib fill 1").Kdump(f),
		vmcoretest.Parse(f, "machine aarch64\nvmcoreinfo OSRELEASE=1\nvmcoreinfo PAGESIZE=65536\n0x0-0x20000 zlib fill 1").Kdump(f),
		vmcoretest.Flatten(f, s.ELF(f), 1000), vmcoretest.Flatten(f, s.Kdump(f), 5000),
	} {
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		d, err := dumpfile.New(bytes.NewReader(b), int64(len(b)))
		if err != nil {
			if d != nil {
				t.Fatalf("a dump besides error %v", err)
			}
			return
		}
		readSome(t, d)
	})
}

// FuzzJoin reads what it can of files that may be those of a split dump.
func FuzzJoin(f *testing.F) {
	s := vmcoretest.Parse(f, text+"\n0x7000 lzo text lzo\n0xa000-0xe000 raw random 3")
	parts := s.Parts(f, 0, 3, 9, 14)
	f.Add(parts[0], parts[1], parts[2])
	f.Add(parts[2], parts[0], parts[0])
	f.Add(parts[1], parts[2], []byte(nil))
	f.Add(vmcoretest.Flatten(f, parts[0], 5000), parts[1], s.Parts(f, 9, 9)[0])
	f.Add(parts[0], s.Kdump(f), s.ELF(f))
	f.Fuzz(func(t *testing.T, a, b, c []byte) {
		files := []dumpfile.File{file(a), file(b)}
		if len(c) > 0 {
			files = append(files, file(c))
		}
		d, err := dumpfile.Join(files...)
		if err != nil {
			if d != nil {
				t.Fatalf("a dump besides error %v", err)
			}
			return
		}
		if d.Info().Part != (phys.Range{}) {
			t.Fatalf("joined dump is a part: %v", d.Info().Part)
		}
		readSome(t, d)
	})
}

// TestEveryPrefix cuts files off where a full disk or a dead machine may: what
// opens gives right pages, or none.
func TestEveryPrefix(t *testing.T) {
	s := vmcoretest.Parse(t, text+"\n0x7000 lzo text lzo\n0x8000 snappy text snappy\n0x9000 zstd text zstd")
	for _, tt := range []struct {
		name string
		file []byte
	}{
		{"elf", s.ELF(t)},
		{"kdump", s.Kdump(t)},
		{"flattenedELF", vmcoretest.Flatten(t, s.ELF(t), 1000)},
		{"flattenedKdump", vmcoretest.Flatten(t, s.Kdump(t), 5000)},
	} {
		t.Run(tt.name, func(t *testing.T) {
			opened, whole := 0, 0
			for n := 0; n < len(tt.file); n += 61 {
				d, err := dumpfile.New(bytes.NewReader(tt.file[:n]), int64(n))
				if err != nil {
					continue
				}
				opened++
				good := 0
				for _, p := range s.Pages {
					b := make([]byte, s.PageSize)
					err := d.ReadPhys(b, p.Addr)
					switch {
					case err == nil && bytes.Equal(b, p.Data):
						good++
					case err == nil && strings.HasPrefix(tt.name, "flattened") && d.Info().Incomplete:
						// A record that is missing may be zeroes.
					case err == nil:
						t.Fatalf("%d bytes: page %#x has wrong content", n, p.Addr)
					case vmcoretest.Missing(err) == 0:
						t.Fatalf("%d bytes: page %#x: %v", n, p.Addr, err)
					}
				}
				whole = max(whole, good)
			}
			if opened == 0 || whole < 5 {
				t.Errorf("%d prefixes could be opened, of one %d pages could be read", opened, whole)
			}
		})
	}
}
