package dumpwriter

import (
	"time"

	"github.com/warmcore/warmcore/pkg/outcome"
	"github.com/warmcore/warmcore/pkg/vmcore"
)

// searchTime bounds the search for VMCOREINFO. Some 500 MiB of a compressed
// dump's pages, and more of others, are looked at in a second.
const searchTime = 2 * time.Minute

// FindVMCOREINFO looks for VMCOREINFO in the memory of a dump that has none
// among its notes, for searchTime at most; see vmcore.FindVMCOREINFO.
func (w Writer) FindVMCOREINFO(d vmcore.Dump) {
	started := w.now()
	vmcore.FindVMCOREINFO(d, func(done, total uint64) bool {
		elapsed := w.now().Sub(started)
		w.progress(outcome.Progress{What: "look for VMCOREINFO", Done: done, Total: total, Elapsed: elapsed})
		return elapsed < searchTime
	})
}
