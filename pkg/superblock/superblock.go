// Package superblock reads what boot configurations identify a file system by:
// type, UUID and label of ext2 to ext4, xfs, btrfs and FAT.
package superblock

import (
	"encoding/binary"
	"fmt"
	"io"
	"strings"
)

// Info identifies a file system.
type Info struct {
	Type  string // GRUB's name: ext2, xfs, btrfs, fat
	UUID  string // as blkid prints it; for FAT the serial number
	Label string
}

// Read looks at the beginning of a disk or partition; ok is false if there is
// no known file system.
func Read(disk io.ReaderAt) (i Info, ok bool) {
	at := func(off int64, n int) []byte {
		b := make([]byte, n)
		if got, _ := disk.ReadAt(b, off); got < n {
			return make([]byte, n)
		}
		return b
	}
	uuid := func(off int64) string {
		b := at(off, 16)
		return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
	}
	text := func(off int64, n int) string {
		s, _, _ := strings.Cut(string(at(off, n)), "\x00")
		return s
	}
	serial := func(off int64) string {
		n := binary.LittleEndian.Uint32(at(off, 4))
		return fmt.Sprintf("%04X-%04X", n>>16, n&0xffff)
	}
	volume := func(off int64) string {
		s := strings.TrimRight(text(off, 11), " ")
		if s == "NO NAME" {
			return ""
		}
		return s
	}
	switch {
	case string(at(0, 4)) == "XFSB": // struct xfs_dsb: sb_uuid, sb_fname
		return Info{"xfs", uuid(32), text(108, 12)}, true
	case string(at(0x10040, 8)) == "_BHRfS_M": // struct btrfs_super_block at 64 KiB: fsid, label
		return Info{"btrfs", uuid(0x10020), text(0x1012b, 256)}, true
	case binary.LittleEndian.Uint16(at(1024+56, 2)) == 0xef53: // struct ext4_super_block: s_uuid, s_volume_name
		return Info{"ext2", uuid(1024 + 104), text(1024+120, 16)}, true
	case string(at(82, 8)) == "FAT32   ": // struct fat_boot_sector: vol_id, vol_label
		return Info{"fat", serial(67), volume(71)}, true
	case string(at(54, 8)) == "FAT16   ", string(at(54, 8)) == "FAT12   ":
		return Info{"fat", serial(39), volume(43)}, true
	}
	return Info{}, false
}
