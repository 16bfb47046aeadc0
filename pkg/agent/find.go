package agent

import (
	"time"

	corefile "github.com/warmcore/warmcore/pkg/vmcore" // tests here have a function vmcore
)

// searchTime bounds the search for VMCOREINFO. Some 500 MiB of a compressed
// dump's pages, and more of others, are looked at in a second.
const searchTime = 2 * time.Minute

// FindVMCOREINFO looks for VMCOREINFO in the memory of a dump that has none
// among its notes, for searchTime at most; see corefile.FindVMCOREINFO.
func (s *System) FindVMCOREINFO(d corefile.Dump) {
	started := s.now()
	corefile.FindVMCOREINFO(d, func(done, total uint64) bool {
		elapsed := s.now().Sub(started)
		s.progress(Progress{What: "look for VMCOREINFO", Done: done, Total: total, Elapsed: elapsed})
		return elapsed < searchTime
	})
}
