package dumpwriter

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/warmcore/warmcore/pkg/convert"
	"github.com/warmcore/warmcore/pkg/manifest"
	"github.com/warmcore/warmcore/pkg/outcome"
	"github.com/warmcore/warmcore/pkg/target"
	"github.com/warmcore/warmcore/pkg/vmcore"
	"github.com/warmcore/warmcore/pkg/vmcore/checksum"
	"github.com/warmcore/warmcore/pkg/vmcore/dumpfile"
	"github.com/warmcore/warmcore/pkg/vmcore/kdump"
	"github.com/warmcore/warmcore/pkg/vmcore/vmcoretest"
)

const sourceText = `
vmcoreinfo OSRELEASE=6.1.0-test
cpu 42
0x0-0x10000 raw random 1
0x10000-0x3f0000 raw
0x3f0000-0x400000 raw random 2
`

const sourcePages = 1024

func source(t *testing.T) []byte { return vmcoretest.Parse(t, sourceText).ELF(t) }

func open(t *testing.T, files ...[]byte) vmcore.Dump {
	t.Helper()
	var parts []dumpfile.File
	for _, b := range files {
		parts = append(parts, dumpfile.File{ReaderAt: bytes.NewReader(b), Size: int64(len(b))})
	}
	d, err := dumpfile.Join(parts...)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// samePages fails unless a dump has the pages of the source.
func samePages(t *testing.T, got vmcore.Dump) {
	t.Helper()
	want := open(t, source(t))
	if diff := cmp.Diff(want.Info().Memory, got.Info().Memory); diff != "" {
		t.Errorf("memory (-want +got):\n%s", diff)
	}
	for _, r := range want.Info().Memory {
		a, b := make([]byte, r.Size()), make([]byte, r.Size())
		if err := errors.Join(want.ReadPhys(a, r.Start), got.ReadPhys(b, r.Start)); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(a, b) {
			t.Errorf("memory %v differs", r)
		}
	}
}

func TestConvert(t *testing.T) {
	dir := t.TempDir()
	path := func(name string) string { return filepath.Join(dir, name) }
	if err := os.WriteFile(path("vmcore"), source(t), 0o600); err != nil {
		t.Fatal(err)
	}
	zlib, err := kdump.ParseCodec("zlib")
	if err != nil {
		t.Fatal(err)
	}
	// Each step converts what the one before made.
	for _, tc := range []struct {
		in  []string
		out string
		o   Options
	}{
		{[]string{"vmcore"}, "kdump", Options{Codec: zlib}},
		{[]string{"kdump"}, "elf", Options{Format: convert.ELF}},
		{[]string{"elf"}, "flat", Options{Flattened: true}},
		{[]string{"flat"}, "split", Options{Split: 2}},
		{[]string{"split.2", "split.1"}, "last", Options{Format: convert.ELF}},
	} {
		var in []string
		for _, name := range tc.in {
			in = append(in, path(name))
		}
		c, err := Writer{}.Convert(t.Context(), ConvertOptions{In: in, Out: path(tc.out), Options: tc.o})
		if err != nil {
			t.Fatalf("%v to %s: %v", tc.in, tc.out, err)
		}
		if c.Dump.Kept != sourcePages || c.Summary() == "" {
			t.Errorf("%v to %s: %+v", tc.in, tc.out, c)
		}
		if tc.o.Split == 0 {
			b, err := os.ReadFile(path(tc.out))
			if err != nil {
				t.Fatal(err)
			}
			samePages(t, open(t, b))
		}
		_, err = Writer{}.Convert(t.Context(), ConvertOptions{In: in, Out: path(tc.out), Options: tc.o})
		wantRefusal(t, err, "exists already")
	}
	if _, err := (Writer{}).Convert(t.Context(), ConvertOptions{In: []string{path("missing")}, Out: path("x")}); err == nil {
		t.Error("Convert of a missing file: no error")
	}
	var pipe bytes.Buffer
	c, err := Writer{}.Convert(t.Context(), ConvertOptions{In: []string{path("elf")}, Out: target.Stdout, Stdout: &pipe})
	if err != nil {
		t.Fatal(err)
	}
	samePages(t, open(t, pipe.Bytes()))
	if len(c.Files) > 0 || c.Dump.Format != "kdump flattened" {
		t.Errorf("to a pipe: files %v, format %q", c.Files, c.Dump.Format)
	}
	_, err = Writer{}.Convert(t.Context(), ConvertOptions{In: []string{path("elf")}, Out: target.Stdout, Stdout: &pipe, Options: Options{Split: 2}})
	wantRefusal(t, err, "can't go through a pipe")
}

func wantRefusal(t *testing.T, err error, want string) {
	t.Helper()
	var r *outcome.Refusal
	if !errors.As(err, &r) || !strings.Contains(r.What, want) {
		t.Errorf("error = %v, want a refusal with %q", err, want)
	}
}

// remote is a target that takes files from start to end, as one on the network
// does. It fails at the step called fail.
type remote struct {
	durable bool
	fail    string
	steps   []string
	stored  map[string][]byte // with names
	dump    *remoteFile
}

type remoteFile struct {
	bytes.Buffer
	remote *remote
	name   string
}

var errLine = errors.New("the line is dead")

func (r *remote) step(what string) error {
	if !slices.Contains(r.steps, what) {
		r.steps = append(r.steps, what)
	}
	if what == r.fail {
		return errLine
	}
	return nil
}

func (r *remote) String() string { return "remote:place" }

func (r *remote) Create(_ context.Context, name string, parts int) ([]target.File, error) {
	var files []target.File
	for i := range parts {
		r.dump = &remoteFile{remote: r, name: target.PartName(name, i, parts)}
		files = append(files, r.dump)
	}
	return files, r.step("create")
}

func (f *remoteFile) Name() string { return f.name }

func (f *remoteFile) Write(p []byte) (int, error) {
	if err := f.remote.step("write"); err != nil {
		return 0, err
	}
	return f.Buffer.Write(p)
}

func (r *remote) Put(_ context.Context, name string, content []byte) error {
	r.stored[name] = content
	return r.step(name)
}

func (r *remote) Commit(context.Context) (bool, error) {
	if err := r.step("commit"); err != nil {
		return false, err
	}
	r.stored[r.dump.name] = r.dump.Bytes()
	return r.durable, nil
}

func (r *remote) Abort() error          { return r.step("abort") }
func (r *remote) Close() error          { return nil }
func (r *remote) Free() (uint64, error) { return 0, errors.ErrUnsupported }

// A target without random access gets the same: log, dump and manifest, in that
// order, with checksums, and only what it says itself makes the dump durable.
func TestSaveInOrder(t *testing.T) {
	for _, durable := range []bool{true, false} {
		r := &remote{durable: durable, stored: map[string][]byte{}}
		m := &manifest.Manifest{Schema: manifest.Schema}
		got, err := Writer{}.Save(t.Context(), r, open(t, source(t)), m, Options{SHA256: true})
		if err != nil || got != durable {
			t.Fatalf("Save = %v, %v; want %v", got, err, durable)
		}
		// This kernel has no log.
		if diff := cmp.Diff([]string{"create", "write", manifest.FileName, "commit"}, r.steps); diff != "" {
			t.Errorf("steps (-want +got):\n%s", diff)
		}
		b := r.stored[manifest.DumpName]
		samePages(t, open(t, b))
		if m.Dump.Format != "kdump flattened" || len(m.Files) != 1 || m.Files[0].Bytes != uint64(len(b)) {
			t.Fatalf("manifest %+v for %d bytes", m, len(b))
		}
		read, err := manifest.Read(bytes.NewReader(r.stored[manifest.FileName]), "manifest")
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(m, read); diff != "" {
			t.Errorf("manifest (-want +stored):\n%s", diff)
		}
		if err := checksum.Verify(bytes.NewReader(b), int64(len(b)), *read.Sums(manifest.DumpName), func(b checksum.Bad) { t.Error(b) }, nil); err != nil {
			t.Error(err)
		}
		if want := sha256Of(b); read.Files[0].SHA256 != want {
			t.Errorf("SHA-256 is %s, want %s", read.Files[0].SHA256, want)
		}
	}
}

// Where a step fails, nothing that comes after it is done.
func TestSaveFails(t *testing.T) {
	steps := []string{"create", "write", manifest.FileName, "commit"}
	for i, fail := range steps {
		t.Run(fail, func(t *testing.T) {
			r := &remote{durable: true, fail: fail, stored: map[string][]byte{}}
			durable, err := Writer{}.Save(t.Context(), r, open(t, source(t)), &manifest.Manifest{}, Options{})
			if durable || !errors.Is(err, errLine) {
				t.Errorf("Save = %v, %v; want %v", durable, err, errLine)
			}
			if diff := cmp.Diff(steps[:i+1], r.steps); diff != "" {
				t.Errorf("steps (-want +got):\n%s", diff)
			}
		})
	}
	r := &remote{stored: map[string][]byte{}}
	_, err := Writer{}.Save(t.Context(), r, open(t, source(t)), &manifest.Manifest{}, Options{Split: 2})
	wantRefusal(t, err, "only kdump files can be split")
	if diff := cmp.Diff([]string{"create", "abort"}, r.steps); diff != "" {
		t.Errorf("steps (-want +got):\n%s", diff)
	}
}

// What is stopped says whether something is left of it.
func TestStopped(t *testing.T) {
	ctx, stop := context.WithCancelCause(t.Context())
	stop(errors.New("enough"))
	for _, tc := range []struct {
		name string
		to   target.Target
		want string
	}{
		{"remote", &remote{stored: map[string][]byte{}}, "stopped: enough; what was written is removed, the dump is still offered"},
		{"remote that is gone", &remote{stored: map[string][]byte{}, fail: "abort"}, "stopped: enough; what was written could not be removed: the line is dead, the dump is still offered"},
		{"pipe", target.NewPipe(new(bytes.Buffer)), "stopped: enough, the dump is still offered"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			durable, err := Writer{}.Save(ctx, tc.to, open(t, source(t)), &manifest.Manifest{}, Options{})
			if durable || fmt.Sprint(err) != tc.want {
				t.Errorf("Save = %v, %v; want %q", durable, err, tc.want)
			}
		})
	}
}

func sha256Of(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

// TestSaveSampled: memory that changed after the payload took its samples is
// named, and only that.
func TestSaveSampled(t *testing.T) {
	for _, write := range []bool{false, true} {
		d := open(t, source(t))
		samples := vmcore.TakeSamples(d, d.Info().Memory)
		if write {
			samples[1].Sum++ // as if the page had had other bytes then
		}
		d.Info().Samples = samples
		r := &remote{durable: true, stored: map[string][]byte{}}
		m := &manifest.Manifest{}
		if _, err := (Writer{}).Save(t.Context(), r, d, m, Options{}); err != nil {
			t.Fatal(err)
		}
		var want []manifest.Extent
		if write {
			want = []manifest.Extent{{Address: fmt.Sprintf("%#x", samples[1].Addr), Bytes: vmcore.SampleSize}}
		}
		if diff := cmp.Diff(want, m.Changed); diff != "" {
			t.Errorf("changed (-want +got):\n%s", diff)
		}
		if got := strings.Contains(strings.Join(m.Warnings, " "), "1 of 512 sampled pages changed"); got != write {
			t.Errorf("warnings %q", m.Warnings)
		}
	}
}
