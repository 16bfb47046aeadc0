package grub

import (
	"bytes"
	"strings"
)

// ParseEnv reads GRUB's environment block (grubenv): lines NAME=VALUE after a
// signature, in which a backslash takes the next character as it is, filled up
// with #. Without the signature there are no variables, as for GRUB.
func ParseEnv(b []byte) map[string]string {
	b, ok := bytes.CutPrefix(b, []byte("# GRUB Environment Block\n"))
	if !ok {
		return nil
	}
	vars := map[string]string{}
	for len(b) > 0 {
		if b[0] == '#' { // a comment, or what is left of the block
			_, b, _ = bytes.Cut(b, []byte("\n"))
			continue
		}
		var line strings.Builder
		for len(b) > 0 && b[0] != '\n' {
			if b[0] == '\\' && len(b) > 1 {
				b = b[1:]
			}
			line.WriteByte(b[0])
			b = b[1:]
		}
		if len(b) > 0 {
			b = b[1:]
		}
		if name, value, ok := strings.Cut(line.String(), "="); ok && name != "" {
			vars[name] = value
		}
	}
	return vars
}
