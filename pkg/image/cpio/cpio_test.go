package cpio

import (
	"bytes"
	"io"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestWriter(t *testing.T) {
	var b bytes.Buffer
	c := NewWriter(&b)
	c.File("/bin/sh", 5, strings.NewReader("hello"))
	c.Link("bin/ash", "sh")
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	header := func(inode, mode, size, name string) string {
		return "070701" + inode + mode + "0000000000000000" + "0000000100000000" + size + "00000000000000000000000000000000" + name + "00000000"
	}
	want := header("00000001", "000041ED", "00000000", "00000004") + "bin\x00" + "\x00\x00" +
		header("00000002", "000081ED", "00000005", "00000007") + "bin/sh\x00" + "\x00\x00\x00" + "hello\x00\x00\x00" +
		header("00000003", "0000A1FF", "00000002", "00000008") + "bin/ash\x00" + "\x00\x00" + "sh\x00\x00" +
		header("00000004", "00000000", "00000000", "0000000B") + "TRAILER!!!\x00" + "\x00\x00\x00"
	if diff := cmp.Diff(want, b.String()); diff != "" {
		t.Errorf("archive: -want +got\n%s", diff)
	}
	for name, spoil := range map[string]func(*Writer){
		"twice":     func(c *Writer) { c.File("a", 0, nil); c.File("a", 0, nil) },
		"too large": func(c *Writer) { c.File("a", 1<<32, nil) },
		"short":     func(c *Writer) { c.File("a", 9, strings.NewReader("8 bytes.")) },
		"negative":  func(c *Writer) { c.File("a", -1, nil) },
	} {
		c := NewWriter(io.Discard)
		spoil(c)
		if err := c.Close(); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}
