// Package acpitest makes ACPI tables for tests.
package acpitest

import "encoding/binary"

// Table returns a table with a right length and a right checksum. body
// follows the header, which has 36 bytes.
func Table(signature string, revision uint8, body []byte) []byte {
	b := make([]byte, 36, 36+len(body))
	copy(b, signature)
	b = append(b, body...)
	binary.LittleEndian.PutUint32(b[4:], uint32(len(b)))
	b[8] = revision
	return Sum(b, 9)
}

// Sum sets the byte at offset at so that all bytes add up to 0.
func Sum(b []byte, at int) []byte {
	b[at] = 0
	for i, x := range b {
		if i != at {
			b[at] -= x
		}
	}
	return b
}
