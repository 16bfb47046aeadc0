// Package ukitest builds unified kernel images for tests: as many headers as
// a reader needs, none that firmware would start.
package ukitest

import (
	"encoding/binary"
	"slices"
)

// Sections are names and contents.
type Sections map[string]string

// Image is a PE file with the sections in the order of their names.
func Image(s Sections) []byte {
	var names []string
	for name := range s {
		names = append(names, name)
	}
	slices.Sort(names)
	const peAt, optional = 0x80, 0x70
	b := make([]byte, peAt+24+optional+40*len(s))
	copy(b, "MZ")
	binary.LittleEndian.PutUint32(b[0x3c:], peAt)
	copy(b[peAt:], "PE\x00\x00")
	binary.LittleEndian.PutUint16(b[peAt+4:], 0x8664)
	binary.LittleEndian.PutUint16(b[peAt+6:], uint16(len(s)))
	binary.LittleEndian.PutUint16(b[peAt+20:], optional)
	for i, name := range names {
		b = append(b, make([]byte, -len(b)&511)...) // as linkers align files
		h := b[peAt+24+optional+40*i:]
		copy(h[:8], name)
		binary.LittleEndian.PutUint32(h[8:], uint32(len(s[name])))
		binary.LittleEndian.PutUint32(h[16:], uint32((len(s[name])+511)&^511))
		binary.LittleEndian.PutUint32(h[20:], uint32(len(b)))
		b = append(b, s[name]...)
	}
	return append(b, make([]byte, -len(b)&511)...)
}
