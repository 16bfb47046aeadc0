package agent

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/warmcore/warmcore/pkg/binding"
	"github.com/warmcore/warmcore/pkg/cmdline"
	"github.com/warmcore/warmcore/pkg/hugetlb"
	"github.com/warmcore/warmcore/pkg/phys"
)

// HugePages says how many there are of the huge pages that the payload left
// out of the capture boot's command line.
type HugePages struct {
	PageBytes uint64 `json:"page_bytes,omitempty"` // 0: the kernel's default size, which isn't known
	Node      *int   `json:"node,omitempty"`       // nil: any
	Wanted    uint64 `json:"wanted"`
	Have      uint64 `json:"have"`
	Why       string `json:"why,omitempty"` // if there are fewer
}

// String says what was wanted and what there is.
func (h HugePages) String() string {
	size, node := "the default size", ""
	if h.PageBytes != 0 {
		size = phys.FormatSize(h.PageBytes)
	}
	if h.Node != nil {
		node = fmt.Sprintf(" on node %d", *h.Node)
	}
	text := fmt.Sprintf("%d of %d huge pages of %s%s", h.Have, h.Wanted, size, node)
	if h.Why != "" {
		text += ": " + h.Why
	}
	return text
}

// production gives a capture boot, after its memory is released, what its boot
// entry asks for and the payload left out because it would have filled boot
// memory. What can't be had is reported and is no failure: the memory is
// released.
func (x *session) production(m *Moved) {
	line, err := x.running().CommandLine()
	if err != nil {
		x.log().Warn("huge pages are not given back", "err", err)
		return
	}
	m.HugePages = x.hugePages(line)
	if p, ok := line.Last(binding.ParamDropped); ok && p.Value != "" {
		m.Missing = strings.Split(p.Value, ",")
		x.log().Warn("parameters of the boot entry are missing until the next plain boot", "names", p.Value)
	}
}

// hugePages allocates the largest pages first: they are the hardest to get.
func (x *session) hugePages(line cmdline.Line) (all []HugePages) {
	param, ok := line.Last(binding.ParamHugePages)
	if !ok {
		return nil
	}
	pools, err := hugetlb.Parse(param.Value)
	if err != nil {
		x.log().Warn("huge pages are not given back", "err", err)
		return nil
	}
	h := x.hotplug()
	for i := range pools {
		if pools[i].Size == 0 {
			pools[i].Size, _ = h.HugePageSize() // the error comes again below
		}
	}
	slices.SortStableFunc(pools, func(a, b hugetlb.Pool) int { return cmp.Compare(b.Size, a.Size) })
	for _, p := range pools {
		now := HugePages{PageBytes: p.Size, Wanted: p.Count}
		if p.Node != hugetlb.AnyNode {
			now.Node = &p.Node
		}
		now.Have, err = h.GrowHugePages(p)
		switch {
		case err != nil:
			now.Why = err.Error()
		case now.Have < now.Wanted:
			now.Why = "the kernel finds no more free memory in one piece"
		}
		if now.Why != "" {
			x.log().Warn("huge pages", "have", now.String())
		} else {
			x.log().Info("huge pages", "have", now.String())
		}
		all = append(all, now)
	}
	return all
}
