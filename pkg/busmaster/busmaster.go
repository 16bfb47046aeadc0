// Package busmaster keeps PCI devices without a driver from writing to memory.
//
// A warm reset need not reach every device. A device to which the crashed
// kernel gave buffers may go on filling them, in memory that now is part of a
// dump or belongs to the next kernel. Bit 2 of a device's command register,
// Bus Master Enable, prevents that (PCI Local Bus 3.0, section 6.2.2): while
// it is clear the device starts no access, neither to memory nor as a message
// signalled interrupt.
//
// A device that is bound to a driver of the running kernel is left alone: the
// driver has reset it and needs it. So are bridges, which pass on the accesses
// of the devices behind them, and the parts of the chipset that other devices
// depend on.
package busmaster

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

// Offsets and bits in a device's configuration space.
const (
	commandOff = 0x04
	classOff   = 0x09 // 3 bytes: programming interface, subclass, base class
	headerLen  = 0x40 // what each device has

	busMaster = 1 << 2 // of the command register
)

// Base classes and subclasses (PCI Code and ID Assignment Specification).
const (
	classBridge = 0x06
	classSystem = 0x08
	// Subclasses of classSystem: other devices' interrupts and addresses
	// go through them.
	subclassInterrupts = 0x00
	subclassIOMMU      = 0x06
)

// Device is a PCI function in the state in which it was found.
type Device struct {
	Address string // "0000:00:1f.2"
	Driver  string // to which it is bound; empty for none
	Config  []byte // the first bytes of its configuration space
}

// Class returns the class code, base class first: 0x020000 is an Ethernet
// card.
func (d Device) Class() uint32 {
	return uint32(d.Config[classOff+2])<<16 | uint32(d.Config[classOff+1])<<8 | uint32(d.Config[classOff])
}

func (d Device) String() string { return fmt.Sprintf("%s (class %06x)", d.Address, d.Class()) }

func (d Device) command() uint16 { return binary.LittleEndian.Uint16(d.Config[commandOff:]) }

// Write is a new command register for a device.
type Write struct {
	Device  Device
	Command uint16
}

// Quiet returns the writes that keep all devices without a driver from writing
// to memory. A device whose configuration space is missing, or reads as ones
// because the device doesn't answer, is left out.
func Quiet(devices []Device) (writes []Write) {
	for _, d := range devices {
		if len(d.Config) < headerLen || d.command() == 0xffff || d.Driver != "" || d.command()&busMaster == 0 {
			continue
		}
		base, sub := d.Class()>>16, d.Class()>>8&0xff
		if base == classBridge || base == classSystem && (sub == subclassInterrupts || sub == subclassIOMMU) {
			continue
		}
		writes = append(writes, Write{d, d.command() &^ busMaster})
	}
	return writes
}

// Devices reads the devices below dir, /sys/bus/pci/devices in production. A
// machine without PCI has none.
func Devices(dir string) (devices []Device, err error) {
	names, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("PCI devices: %w", err)
	}
	var errs []error
	for _, n := range names {
		d := Device{Address: n.Name()}
		if link, err := os.Readlink(filepath.Join(dir, n.Name(), "driver")); err == nil {
			d.Driver = filepath.Base(link)
		}
		if d.Config, err = readHeader(filepath.Join(dir, n.Name(), "config")); err != nil {
			errs = append(errs, fmt.Errorf("PCI device %s: %w", d.Address, err))
			continue
		}
		devices = append(devices, d)
	}
	return devices, errors.Join(errs...)
}

func readHeader(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b := make([]byte, headerLen)
	n, err := f.ReadAt(b, 0)
	if n < len(b) {
		return nil, err
	}
	return b, nil
}

// Apply carries out the writes below dir, and returns the devices whose bit
// was clear afterwards. It goes on after an error.
func Apply(dir string, writes []Write) (quiet []Device, err error) {
	var errs []error
	for _, w := range writes {
		if err := apply(filepath.Join(dir, w.Device.Address, "config"), w.Command); err != nil {
			errs = append(errs, fmt.Errorf("PCI device %v: command register: %w", w.Device, err))
			continue
		}
		quiet = append(quiet, w.Device)
	}
	return quiet, errors.Join(errs...)
}

func apply(path string, command uint16) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	b := binary.LittleEndian.AppendUint16(nil, command)
	if _, err := f.WriteAt(b, commandOff); err != nil {
		return err
	}
	// Reading the register back also waits until the device has received
	// the write.
	if _, err := f.ReadAt(b, commandOff); err != nil {
		return err
	}
	if got := binary.LittleEndian.Uint16(b); got&busMaster != 0 {
		return fmt.Errorf("%#04x after writing %#04x", got, command)
	}
	return nil
}
