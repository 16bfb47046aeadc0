package vmcore

import (
	"errors"

	"github.com/warmcore/warmcore/pkg/vmcoreinfo"
)

// Kernel returns what the crashed kernel says about itself, which is VMCOREINFO
// as ReadNotes has read it. It is not to be changed.
func (i *Info) Kernel() (*vmcoreinfo.Info, error) {
	switch {
	case i.kernel != nil:
		return i.kernel, nil
	case i.VMCOREINFO == nil:
		return nil, errors.New("the dump has no VMCOREINFO")
	}
	return vmcoreinfo.Parse(i.VMCOREINFO)
}
