//go:build linux

package oldmem

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"math"
	"os"
	"slices"

	"golang.org/x/sys/unix"
)

// Device is memory of the crashed kernel that device-dax shows as a file. The
// file can only be mapped, not read.
type Device struct {
	file *os.File
	size int64 // bytes
}

// OpenDevice opens the character device at path. number is "MAJOR:MINOR" as sysfs
// has it; another file at that path is an error.
func OpenDevice(path, number string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, fmt.Errorf("open device: %w", err)
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		f.Close()
		return nil, fmt.Errorf("open device %s: %w", path, err)
	}
	got := fmt.Sprintf("%d:%d", unix.Major(st.Rdev), unix.Minor(st.Rdev))
	if st.Mode&unix.S_IFMT != unix.S_IFCHR || got != number {
		f.Close()
		return nil, fmt.Errorf("open device %s: it is not character device %s", path, number)
	}
	return f, nil
}

// NewDevice returns the device that is open as f and shows size bytes. Its driver
// maps only multiples of align bytes, at multiples of align. NewDevice takes f
// over: it closes f on an error.
func NewDevice(f *os.File, size, align uint64) (*Device, error) {
	if align < page || align&(align-1) != 0 || align > mapWindow || size == 0 || size%align != 0 || size > math.MaxInt64 {
		f.Close()
		return nil, fmt.Errorf("map %s: %#x bytes, aligned to %#x: want a multiple of a power of two up to %#x", f.Name(), size, align, mapWindow)
	}
	return &Device{f, int64(size)}, nil
}

// Close closes the file. What is mapped stays mapped.
func (d *Device) Close() error { return d.file.Close() }

// Piece says that a part of a dump, Size bytes at Offset of its file, is the
// same memory that Device shows at At. Size, Offset and At are multiples of a
// page.
type Piece struct {
	Offset, Size uint64
	Device       *Device
	At           uint64
}

func (p Piece) String() string {
	return fmt.Sprintf("%#x bytes at %#x of %s for offset %#x of the dump", p.Size, p.At, p.Device.file.Name(), p.Offset)
}

func (p Piece) end() int64 { return int64(p.Offset + p.Size) }

// Splice makes later calls of Mapped read a piece of the dump from a device, which
// must stay open as long as their results are used.
//
// First it compares the piece's first, middle and last page in device and
// file. A page that can't be read in one of them is passed over, but at least
// one must be readable in the device: a process without huge pages
// (PR_SET_THP_DISABLE) can read nothing of a device whose alignment is that of
// huge pages (__dev_dax_pte_fault in drivers/dax/device.c, v6.12), and must
// not get a dump full of holes because of that.
func (s *Source) Splice(p Piece) error {
	size := uint64(p.Device.size)
	switch {
	case p.Size == 0 || (p.Offset|p.Size|p.At)%page != 0:
		return fmt.Errorf("splice %v: these are no whole pages", p)
	case p.At > size || p.Size > size-p.At:
		return fmt.Errorf("splice %v: the device has %#x bytes", p, size)
	case p.Offset > s.size || p.Size > s.size-p.Offset:
		return fmt.Errorf("splice %v: the dump has %#x bytes", p, s.size)
	}
	i, _ := slices.BinarySearchFunc(s.pieces, p.Offset, func(p Piece, off uint64) int { return cmp.Compare(p.Offset, off) })
	if i > 0 && s.pieces[i-1].end() > int64(p.Offset) || i < len(s.pieces) && s.pieces[i].Offset < uint64(p.end()) {
		return fmt.Errorf("splice %v: another device shows the same part", p)
	}
	if err := s.prove(p); err != nil {
		return fmt.Errorf("splice %v: %w", p, err)
	}
	s.pieces = slices.Insert(s.pieces, i, p)
	return nil
}

// prove returns an error if pages of a piece differ from those of the file.
func (s *Source) prove(p Piece) error {
	file, device := newMapped(s.file, int64(s.size), unix.MAP_PRIVATE), p.Device.mapped()
	defer file.Close()
	defer device.Close()
	var want, got [page]byte
	var unreadable error
	readable := false
	for _, at := range []uint64{0, p.Size / 2 / page * page, p.Size - page} {
		// Not with read(2), in which bad memory may crash the kernel.
		if _, err := device.ReadAt(got[:], int64(p.At+at)); errors.Is(err, ErrUnreadable) {
			unreadable = err
			continue
		} else if err != nil {
			return err
		}
		readable = true
		if _, err := file.ReadAt(want[:], int64(p.Offset+at)); err != nil {
			continue
		}
		if !bytes.Equal(want[:], got[:]) {
			return fmt.Errorf("the device's page at %#x is not the dump's", p.At+at)
		}
	}
	if !readable {
		return unreadable
	}
	return nil
}

// mapped returns a view of the device alone. Device-dax refuses MAP_PRIVATE
// (check_vma in drivers/dax/device.c, v6.12).
func (d *Device) mapped() *Mapped { return newMapped(d.file, d.size, unix.MAP_SHARED) }
