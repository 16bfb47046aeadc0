package plan

import (
	"fmt"
	"slices"

	"github.com/warmcore/warmcore/pkg/phys"
)

// Arch is what a plan depends on of an architecture, as data: [AMD64] and
// [ARM64]. A further one is a file beside amd64.go and arm64.go.
type Arch struct {
	Name    string // as in the names of our files
	Machine uint16 // in ELF headers

	// Low is memory that is in no plan: it is given to each kernel as firmware
	// says, and is in no dump.
	Low phys.Range

	// Granule is what all parts of a plan are made of, in bytes: the largest
	// page that a normal kernel may have.
	Granule uint64

	// InfoBlock is how much the driver of memory that is handed over keeps
	// for itself at the beginning of each piece, in bytes. These bytes lie in
	// front of a memory block, or a whole block would be lost for them.
	InfoBlock uint64

	// BlockSize is the normal kernel's memory block in bytes, LargeBlock the
	// one of a machine whose RAM ends at LargeMachine or above; 0 for none.
	BlockSize, LargeBlock, LargeMachine uint64

	// KeepTop says that the top of RAM must be boot memory, KeepBottom that
	// the bottom must be.
	KeepTop, KeepBottom bool

	// KexecOwn says that kexec_load can place a kernel in the running kernel's
	// own memory only.
	KexecOwn bool

	// CPUNumber is what the stub's number of a CPU is, in a log.
	CPUNumber string

	// kernelBlocks are the memory blocks of kernels by their page; none where
	// any kernel takes the plan's.
	kernelBlocks [3]kernelBlock

	crashkernel string // what holds the stub
	blacklist   string // modules that would touch memory that is handed over
	elfcorehdr  bool   // the ELF core header's place is on the command line
}

// kernelBlock is the memory block of a kernel with pages of a size, in bytes.
type kernelBlock struct{ page, block uint64 }

// blockSize returns the memory block for a machine whose RAM ends at top.
func (a Arch) blockSize(top uint64) uint64 {
	if a.LargeMachine != 0 && top >= a.LargeMachine {
		return a.LargeBlock
	}
	return a.BlockSize
}

// CheckKernel says whether a kernel with pages of pageSize bytes can be booted
// with the plan: its memory blocks must not be larger than the plan's. The
// plan is the same at every reset, so it can't be made for the kernel that is
// found later; the policy says which kernel the machine is for.
func (p *Plan) CheckKernel(pageSize uint64) error {
	if p.Arch.kernelBlocks == ([3]kernelBlock{}) {
		return nil
	}
	i := slices.IndexFunc(p.Arch.kernelBlocks[:], func(k kernelBlock) bool { return k.page == pageSize })
	if i < 0 {
		return fmt.Errorf("a kernel with pages of %s: the size of its memory blocks is not known", phys.FormatSize(pageSize))
	}
	block := p.Arch.kernelBlocks[i].block
	if p.BlockSize%block != 0 {
		return fmt.Errorf("a kernel with pages of %s has memory blocks of %s, the plan has %s: start the payload with warmcore.block=%dM",
			phys.FormatSize(pageSize), phys.FormatSize(block), phys.FormatSize(p.BlockSize), block/phys.MiB)
	}
	return nil
}
