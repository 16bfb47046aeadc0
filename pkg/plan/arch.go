package plan

import (
	"fmt"
	"slices"

	"github.com/warmcore/warmcore/pkg/phys"
)

// Arch is what a plan depends on that differs by architecture, as data:
// [AMD64] and [ARM64]. A further architecture is a file beside amd64.go and
// arm64.go.
type Arch struct {
	Name    string // as in the names of our files
	Machine uint16 // in ELF headers

	// Low is memory outside every plan: each kernel gets it as firmware
	// describes it, and no dump shows it.
	Low phys.Range

	// Granule is the unit of all parts of a plan, in bytes: the largest
	// page size that a normal kernel may have.
	Granule uint64

	// InfoBlock is how many bytes at the start of each range of memory given
	// to the kernel its driver keeps for itself. They lie before the first
	// memory block; otherwise they would cost a whole block.
	InfoBlock uint64

	// BlockSize is the size of the normal kernel's memory block in bytes,
	// LargeBlock the size on a machine whose RAM ends at LargeMachine or
	// above; 0 if there is no such case.
	BlockSize, LargeBlock, LargeMachine uint64

	// KeepTop says that the top of RAM must be boot memory, KeepBottom that
	// the bottom must be.
	KeepTop, KeepBottom bool

	// KexecOwn says that kexec_load can place a kernel only in the running
	// kernel's own memory.
	KexecOwn bool

	// CPUNumber is the name, for logs, of the number by which the stub
	// identifies a CPU.
	CPUNumber string

	// kernelBlocks are the memory blocks of kernels by page size; empty if
	// every kernel accepts the plan's blocks.
	kernelBlocks [3]kernelBlock

	crashkernel string // the crashkernel= parameter, whose reservation holds the stub
	blacklist   string // names of modules that would touch memory that is handed over
	elfcorehdr  bool   // the command line says where the ELF core header is
}

// kernelBlock is the size of a kernel's memory block for a page size, both in
// bytes.
type kernelBlock struct{ page, block uint64 }

// blockSize returns the memory block for a machine whose RAM ends at top.
func (a Arch) blockSize(top uint64) uint64 {
	if a.LargeMachine != 0 && top >= a.LargeMachine {
		return a.LargeBlock
	}
	return a.BlockSize
}

// CheckKernel returns an error if a kernel with pages of pageSize bytes can't
// be booted with the plan, because its memory blocks are larger than the
// plan's. The plan must be the same at every reset and is made before the
// kernel is known, so it can't follow the kernel; the policy says which kernel
// the machine is for.
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
