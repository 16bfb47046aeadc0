package printk

import (
	"bytes"
	"fmt"
)

// AppendText appends the log as dmesg(1) prints it: "[    1.234567] text",
// every line of a message with its own prefix. Bytes that could steer a
// terminal are written as \x1b and the like; text in UTF-8 stays.
func (l Log) AppendText(dst []byte) []byte {
	for _, r := range l.Records {
		for line := range bytes.SplitSeq(r.Text, []byte{'\n'}) {
			dst = fmt.Appendf(dst, "[%5d.%06d] ", r.Nanos/1e9, r.Nanos%1e9/1e3)
			for _, c := range line {
				if c < ' ' && c != '\t' || c == 0x7f {
					dst = fmt.Appendf(dst, `\x%02x`, c)
					continue
				}
				dst = append(dst, c)
			}
			dst = append(dst, '\n')
		}
	}
	return dst
}
