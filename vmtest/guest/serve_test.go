package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/warmcore/warmcore/pkg/phys"
	"github.com/warmcore/warmcore/vmtest/guest/wire"
)

// duplex is a port whose host sends requests and records answers.
type duplex struct {
	io.Reader
	io.Writer
}

func TestServe(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, []byte("data"), 0o600); err != nil {
		t.Fatal(err)
	}
	requests := strings.Join([]string{
		`{"id":1,"run":["sh","-c","echo out; echo err >&2; exit 3"]}`,
		``,
		`"id":9}`,
		`{"id":2,"run":["/nonexistent"]}`,
		`{"id":3,"read":"` + file + `"}`,
		`{"id":4,"trigger":{"kind":"nonsense"}}`,
		`{"id":5,"go":true}`,
		`{"id":6}`,
		`{"id":7,"trigger":{"kind":"sysrq-c"}}`,
	}, "\n")
	var out bytes.Buffer
	s := &server{port: duplex{strings.NewReader(requests), &out}}
	if err := s.serve(); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("serve() = %v, want %v at the end of the port", err, io.ErrUnexpectedEOF)
	}
	var got []wire.Message
	for lines := bufio.NewScanner(&out); lines.Scan(); {
		if lines.Text() == "" {
			continue
		}
		var m wire.Message
		if err := json.Unmarshal(lines.Bytes(), &m); err != nil {
			t.Fatalf("line %q: %v", lines.Text(), err)
		}
		got = append(got, m)
	}
	want := []wire.Message{
		{ID: 1, Result: &wire.Result{Exit: 3, Stdout: "out\n", Stderr: "err\n"}},
		{Event: "note", Text: `request "\"id\":9}": invalid character ':' after top-level value`},
		{ID: 2, Error: "fork/exec /nonexistent: no such file or directory"},
		{ID: 3, Data: []byte("data")},
		{ID: 4, Error: `trigger "nonsense": unknown`},
		{ID: 5, Error: "go: no trigger before it"},
		{ID: 6, Error: "request asks for nothing"},
		{ID: 7},
	}
	if diff := cmp.Diff(want, got, cmpopts.IgnoreFields(wire.Message{}, "T")); diff != "" {
		t.Errorf("answers: -want +got\n%s", diff)
	}
}

func TestLimited(t *testing.T) {
	l := limited{max: 5}
	for _, s := range []string{"abc", "def", "ghi"} {
		if n, err := l.Write([]byte(s)); n != 3 || err != nil {
			t.Errorf("Write(%q) = %d, %v", s, n, err)
		}
	}
	if l.String() != "abcde" {
		t.Errorf("kept %q, want the first 5 bytes", l.String())
	}
}

func TestFillNumbersPages(t *testing.T) {
	mem := make([]byte, 5*phys.PageSize)
	if err := fill(mem, 42); err != nil {
		t.Fatal(err)
	}
	want := make([]byte, phys.PageSize)
	for i := range uint64(5) {
		if err := wire.Fill(want, 42, i); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(mem[i*phys.PageSize:(i+1)*phys.PageSize], want) {
			t.Errorf("page %d doesn't hold its pattern", i)
		}
	}
}
