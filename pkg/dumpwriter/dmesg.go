package dumpwriter

import (
	"fmt"

	"github.com/warmcore/warmcore/pkg/printk"
	"github.com/warmcore/warmcore/pkg/vmcore"
	"github.com/warmcore/warmcore/pkg/vmcore/dumpfile"
)

// Dmesg returns the crashed kernel's log from a dump file of any format that
// dumpfile.New knows. lost is how many messages could not be read.
func (w Writer) Dmesg(path string) (text []byte, lost int, err error) {
	f, st, err := OpenFile(path)
	if err != nil {
		return nil, 0, err
	}
	defer f.Close()
	d, err := dumpfile.New(f, st.Size())
	if err != nil {
		return nil, 0, fmt.Errorf("read %s: %w", path, err)
	}
	w.FindVMCOREINFO(d)
	text, lost, err = KernelLog(d)
	if err != nil {
		return nil, 0, fmt.Errorf("read %s: %w", path, err)
	}
	return text, lost, nil
}

// KernelLog returns the crashed kernel's log as text. lost is how many messages
// could not be read.
func KernelLog(d vmcore.Dump) (text []byte, lost int, err error) {
	kernel, err := d.Info().Kernel()
	if err != nil {
		return nil, 0, err
	}
	l, err := printk.Read(kernel, vmcore.NewVirtual(d, kernel))
	if err != nil {
		return nil, 0, err
	}
	return l.AppendText(nil), l.Lost, nil
}
