package main

import (
	"bytes"
	"encoding/json"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/warmcore/warmcore/pkg/dumpwriter"
	"github.com/warmcore/warmcore/pkg/manifest"
	"github.com/warmcore/warmcore/pkg/vmcore/checksum"
	"github.com/warmcore/warmcore/pkg/vmcore/vmcoretest"
)

const inspectedText = `
vmcoreinfo OSRELEASE=6.1.0-test
level 31
cpu 42
0x0-0x4000 raw random 1
0x4000 excluded
`

// dumpFiles writes files into a new directory, with a manifest of those whose
// name begins with "vmcore", and goes there.
func dumpFiles(t *testing.T, files map[string][]byte) {
	t.Helper()
	t.Chdir(t.TempDir())
	m := manifest.Manifest{Schema: manifest.Schema}
	for name, content := range files {
		if err := os.WriteFile(name, content, 0o600); err != nil {
			t.Fatal(err)
		}
		if !strings.HasPrefix(name, "vmcore") {
			continue
		}
		w := checksum.NewWriter(nowhere{})
		if _, err := w.WriteAt(content, 0); err != nil {
			t.Fatal(err)
		}
		sums, err := w.Sums(-1)
		if err != nil {
			t.Fatal(err)
		}
		m.Files = append(m.Files, manifest.File{Name: name, CRC32C: &sums})
	}
	b, err := json.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(manifest.FileName, b, 0o600); err != nil {
		t.Fatal(err)
	}
}

// nowhere is an io.WriterAt.
type nowhere struct{}

func (nowhere) WriteAt(p []byte, _ int64) (int, error) { return len(p), nil }

func warmcore(args ...string) (exit int, stdout, stderr string) {
	var out, errs bytes.Buffer
	exit = run(args, environment{stdout: &out, stderr: &errs})
	return exit, out.String(), errs.String()
}

// large is a dump of more than two blocks.
func large(t *testing.T) []byte {
	return vmcoretest.Parse(t, "0x0-0x280000 raw random 1").Kdump(t)
}

func damage(b []byte, offsets ...int) []byte {
	b = bytes.Clone(b)
	for _, off := range offsets {
		b[off] ^= 1
	}
	return b
}

func TestInspect(t *testing.T) {
	spec := vmcoretest.Parse(t, inspectedText)
	parts := spec.Parts(t, 0, 2, 5, 5)
	dumpFiles(t, map[string][]byte{
		"vmcore": spec.Kdump(t), "vmcore.elf": spec.ELF(t), "vmcore.large": large(t),
		"part.1": parts[0], "part.2": parts[1], "part.3": parts[2],
		"text": []byte("no dump"), "empty": nil,
	})
	if err := os.MkdirAll("dir/old", 0o700); err != nil {
		t.Fatal(err)
	}
	for _, f := range []struct{ name, content string }{{"dir/manifest.json", "{"}, {"dir/vmcore", string(spec.ELF(t))}, {"dir/old/vmcore", string(spec.ELF(t))}} {
		if err := os.WriteFile(f.name, []byte(f.content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	tests := []struct {
		name           string
		args           string
		want           int
		stdout, stderr string // part of it
	}{
		{"nothing", "", exitUsage, "", "warmcore: inspect: want the name of a dump file"},
		{"unknown flag", "--force vmcore", exitUsage, "", "flag provided but not defined"},
		{"kdump", "vmcore", exitDone, "file       vmcore, ", ""},
		{"elf", "vmcore.elf", exitDone, "\nkernel     6.1.0-test, x86_64\n", ""},
		{"two", "vmcore vmcore.elf", exitDone, "\n\nfile       vmcore.elf, ", ""},
		{"part", "part.1", exitDone, "part       of a split dump: 8 KiB from 0x0 on", ""},
		{"parts", "part.2 part.3 part.1", exitDone, "pages      4 held, 1 not", ""},
		{"partMissing", "part.1 part.3", exitDone, "warning    the file of the split dump that holds 00002000-00004fff is not here", ""},
		{"partTwice", "part.1 part.1", exitFailed, "", "two files hold 00000000-00001fff"},
		{"missing", "nothing", exitFailed, "", "warmcore: inspect: open dump: stat nothing: no such file"},
		{"directory", "dir", exitFailed, "", "warmcore: inspect: open dump: dir is a directory"},
		{"text", "vmcore text", exitFailed, "", "warmcore: inspect: text: open dump: offset 0x0: magic"},
		{"empty", "empty", exitFailed, "", "warmcore: inspect: open dump: empty: the file is empty"},
		{"verified", "--verify vmcore", exitDone, "\nverified   vmcore: all 1 blocks are as they were written\n", ""},
		{"verifiedTwo", "vmcore.large vmcore.elf --verify", exitDone, "\nverified   vmcore.large: all 3 blocks", ""},
		{"notInManifest", "--verify part.1", exitFailed, "\nverify     part.1: manifest.json has no checksums of part.1", "warmcore: inspect: verify part.1: manifest.json has no checksums"},
		{"brokenManifest", "--verify dir/vmcore", exitFailed, "format     elf", "verify dir/vmcore: decode dir/manifest.json: unexpected end"},
		{"noManifest", "--verify dir/old/vmcore", exitFailed, "format     elf", "verify dir/old/vmcore: there is no manifest.json"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			exit, stdout, stderr := warmcore(append([]string{"inspect"}, strings.Fields(tt.args)...)...)
			if exit != tt.want || !strings.Contains(stdout, tt.stdout) || !strings.Contains(stderr, tt.stderr) ||
				(tt.stdout == "") != (stdout == "") || (tt.stderr == "") != (stderr == "") {
				t.Errorf("exit %d, stdout %s\nstderr %s\nwant exit %d, %q, %q", exit, stdout, stderr, tt.want, tt.stdout, tt.stderr)
			}
		})
	}
}

func TestInspectDamaged(t *testing.T) {
	file := large(t)
	dumpFiles(t, map[string][]byte{"vmcore": file, "vmcore.short": file})
	for name, content := range map[string][]byte{
		"vmcore":       damage(file, 0x180000, 0x1fffff, len(file)-1),
		"vmcore.short": file[:len(file)-1],
	} {
		if err := os.WriteFile(name, content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	exit, stdout, stderr := warmcore("inspect", "--verify", "vmcore")
	if exit != exitFailed || !strings.Contains(stderr, "2 of 3 blocks are damaged, the first at offset 0x100000") {
		t.Errorf("exit %d, stderr %s", exit, stderr)
	}
	if want := "\nDAMAGED    vmcore: 2 of 3 blocks\n           1048576 bytes at offset 0x100000\n           "; !strings.Contains(stdout, want) {
		t.Errorf("stdout %s, want %s", stdout, want)
	}
	exit, stdout, _ = warmcore("inspect", "--verify", "--json", "vmcore", "vmcore.short")
	var got struct {
		Dumps []struct {
			Files []struct {
				Verify dumpwriter.Verification
			}
		}
	}
	if err := json.Unmarshal([]byte(stdout), &got); err != nil || exit != exitFailed || len(got.Dumps) != 2 {
		t.Fatalf("exit %d, error %v, stdout %s", exit, err, stdout)
	}
	want := dumpwriter.Verification{Blocks: 3, Block: 1 << 20, Bad: []dumpwriter.Block{
		{Offset: 1 << 20, Bytes: 1 << 20},
		{Offset: 2 << 20, Bytes: int64(len(file)) - 2<<20},
	}}
	if diff := cmp.Diff(want, got.Dumps[0].Files[0].Verify); diff != "" {
		t.Errorf("verification (-want +got):\n%s", diff)
	}
	if e := got.Dumps[1].Files[0].Verify.Error; !strings.Contains(e, "size differs") {
		t.Errorf("verification of a file that was cut off: %q", e)
	}
}

func TestInspectManyDamaged(t *testing.T) {
	file := vmcoretest.Parse(t, "0x0-0xa00000 raw random 1").Kdump(t)
	dumpFiles(t, map[string][]byte{"vmcore": file})
	var all []int
	for off := 0x80000; off < 0xa00000; off += 0x100000 {
		all = append(all, off)
	}
	if err := os.WriteFile("vmcore", damage(file, all...), 0o600); err != nil {
		t.Fatal(err)
	}
	// The damage is in pages, which inspect doesn't read.
	if _, stdout, _ := warmcore("inspect", "--verify", "vmcore"); !strings.Contains(stdout, "\n           and 2 more\n") {
		t.Errorf("stdout %s", stdout)
	}
}

// The schema is what scripts rely on.
func TestInspectJSON(t *testing.T) {
	spec := vmcoretest.Parse(t, inspectedText)
	dumpFiles(t, map[string][]byte{"vmcore": spec.Kdump(t)})
	exit, stdout, stderr := warmcore("inspect", "--json", "--verify", "vmcore")
	if exit != exitDone || stderr != "" {
		t.Fatalf("exit %d, stderr %s", exit, stderr)
	}
	var got map[string]any
	if err := json.Unmarshal([]byte(stdout), &got); err != nil {
		t.Fatal(err)
	}
	st, err := os.Stat("vmcore")
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]any{
		"schema": 1.0,
		"dumps": []any{map[string]any{
			"files": []any{map[string]any{
				"name": "vmcore", "bytes": float64(st.Size()),
				"verify": map[string]any{"blocks": 1.0, "block_bytes": 1048576.0, "bad": []any{}},
			}},
			"schema": 1.0, "format": "kdump", "compression": "none", "level": 31.0, "incomplete": false,
			"release": "6.1.0-test", "machine": "x86_64", "node": "test",
			"created": "2023-11-14T22:13:20Z", "log_messages": 0.0, "log_lost": 0.0, "cpus": 1.0,
			"registers": []any{map[string]any{"pid": 42.0, "pc": "0x0", "sp": "0x0"}},
			"page_size": 4096.0, "block_size": 4096.0, "memory": []any{map[string]any{"start": "0x0", "bytes": 20480.0}},
			"memory_bytes": 20480.0, "held_bytes": 16384.0,
			"unreadable": []any{},
			"warnings":   []any{"read printk log: VMCOREINFO describes no log (kernels before v3.5, or without printk)"},
		}},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("JSON (-want +got):\n%s", diff)
	}
}
