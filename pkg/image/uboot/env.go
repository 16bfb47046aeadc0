package uboot

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"strings"
)

const (
	sumLen  = 4    // CRC-32 of the rest, little-endian
	padding = 0xff // erased flash
)

// Environment returns an environment of size bytes (CONFIG_ENV_SIZE of the
// board's U-Boot) with variables, "name=value" each, for a board that keeps one
// copy of it (without CONFIG_SYS_REDUNDAND_ENVIRONMENT).
func Environment(size int, variables ...string) ([]byte, error) {
	b := make([]byte, sumLen)
	for _, v := range variables {
		name, _, ok := strings.Cut(v, "=")
		if !ok || name == "" || strings.ContainsRune(v, 0) {
			return nil, fmt.Errorf("U-Boot's environment: %q: want name=value", v)
		}
		b = append(append(b, v...), 0)
	}
	b = append(b, 0) // ends the list
	if len(b) > size {
		return nil, fmt.Errorf("U-Boot's environment: %d bytes, and there is room for %d", len(b), size)
	}
	b = append(b, bytes.Repeat([]byte{padding}, size-len(b))...)
	binary.LittleEndian.PutUint32(b, crc32.ChecksumIEEE(b[sumLen:]))
	return b, nil
}
