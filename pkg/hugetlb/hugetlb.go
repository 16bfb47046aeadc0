// Package hugetlb reads which huge pages a kernel command line asks for, and
// encodes them as one word.
//
// A capture boot gets no huge pages: they would fill boot memory. The payload
// takes their parameters out and gives the word to the agent, which has the
// pages allocated once memory is released.
//
// Invariant: Parse returns the list that Format wrote.
package hugetlb

import (
	"fmt"
	"math/bits"
	"strconv"
	"strings"

	"github.com/warmcore/warmcore/pkg/cmdline"
	"github.com/warmcore/warmcore/pkg/phys"
)

// AnyNode says that pages may come from any NUMA node.
const AnyNode = -1

// Bounds of the input.
const (
	maxNode  = 1 << 10 // MAX_NUMNODES, at most 1024 (NODES_SHIFT in mm/Kconfig, v6.12)
	maxPools = 256     // entries in a list
	maxWord  = 4096    // bytes, a command line
)

// Pool is a number of huge pages of one size.
type Pool struct {
	Count uint64
	Size  uint64 // of a page, in bytes, a power of two; 0 is the kernel's default size
	Node  int    // NUMA node, or AnyNode
}

// IsParameter says whether p allocates huge pages, or sets the size of those
// that the next parameters allocate. It is false for default_hugepagesz=,
// which allocates none and must stay on the command line, because a running
// kernel can't change it.
func IsParameter(p cmdline.Param) bool {
	return p.Is("hugepages") || p.Is("hugepagesz") || isSysctl(p)
}

func isSysctl(p cmdline.Param) bool {
	switch strings.ReplaceAll(p.Name, "/", ".") { // process_sysctl_arg in fs/proc/proc_sysctl.c, v6.12
	case "sysctl.vm.nr_hugepages", "sysctl.vm.nr_hugepages_mempolicy":
		return true
	}
	return false
}

// Pools returns the huge pages that a kernel with this command line would try
// to allocate (hugepages_setup, hugepagesz_setup and default_hugepagesz_setup
// in mm/hugetlb.c, v6.12). What the kernel would ignore is left out.
func Pools(l cmdline.Line) []Pool {
	r := reader{counts: map[uint64][]Pool{}, seen: map[uint64]bool{}, valid: true}
	for _, p := range l.Params {
		switch {
		case p.Is("hugepages"):
			r.pages(p.Value)
		case p.Is("hugepagesz"):
			r.size(p.Value)
		case p.Is("default_hugepagesz"):
			r.defaultSize(p.Value)
		case isSysctl(p):
			if n, err := strconv.ParseUint(p.Value, 0, 64); err == nil {
				r.sysctl = &Pool{n, 0, AnyNode}
			}
		}
	}
	return r.pools()
}

// reader is the state of the kernel's parser.
type reader struct {
	order  []uint64          // sizes in their order; 0 is the default size
	counts map[uint64][]Pool // by size
	seen   map[uint64]bool   // sizes that were named
	now    uint64            // the size to which hugepages= applies
	last   *uint64           // the size of the last count; nil before the first
	valid  bool              // the size that came last is valid
	chosen uint64            // default_hugepagesz=
	sysctl *Pool
}

func (r *reader) pages(value string) {
	if !r.valid {
		r.valid = true
		return
	}
	size := r.now
	if r.last != nil && *r.last == size {
		return
	}
	if pools, ok := parseCounts(value, size); ok {
		if _, again := r.counts[size]; !again {
			r.order = append(r.order, size)
		}
		r.counts[size], r.last = pools, &size
	}
}

// parseCounts reads N or NODE:N[,NODE:N...].
func parseCounts(value string, size uint64) (pools []Pool, ok bool) {
	if n, err := strconv.ParseUint(value, 10, 64); err == nil {
		return []Pool{{n, size, AnyNode}}, true
	}
	for part := range strings.SplitSeq(value, ",") {
		node, count, _ := strings.Cut(part, ":")
		i, err1 := strconv.ParseUint(node, 10, 16)
		n, err2 := strconv.ParseUint(count, 10, 64)
		if err1 != nil || err2 != nil || i >= maxNode || len(pools) >= maxPools {
			return nil, false
		}
		pools = append(pools, Pool{n, size, int(i)})
	}
	return pools, true
}

func (r *reader) size(value string) {
	size, err := phys.ParseSize(value)
	again := r.seen[size] && (size != r.chosen || len(r.counts[size]) > 0)
	r.valid = err == nil && bits.OnesCount64(size) == 1 && !again
	if r.valid {
		r.now, r.seen[size] = size, true
	}
}

func (r *reader) defaultSize(value string) {
	r.valid = false
	if r.chosen != 0 {
		return
	}
	r.size(value)
	if !r.valid {
		return
	}
	r.chosen = r.now
	if early, ok := r.counts[0]; ok { // hugepages= before any size counts for the default size
		delete(r.counts, 0)
		for i := range early {
			early[i].Size = r.now
		}
		r.counts[r.now] = early
		for i, s := range r.order {
			if s == 0 {
				r.order[i] = r.now
			}
		}
	}
}

func (r *reader) pools() (pools []Pool) {
	for _, size := range r.order {
		if r.sysctl != nil && (size == 0 || size == r.chosen) {
			continue // a sysctl: the kernel sets it later, once it runs
		}
		for _, p := range r.counts[size] {
			if p.Count > 0 {
				pools = append(pools, p)
			}
		}
	}
	if r.sysctl != nil && r.sysctl.Count > 0 {
		pools = append(pools, *r.sysctl)
	}
	if len(pools) > maxPools {
		return pools[:maxPools]
	}
	return pools
}

// Format writes a list as one word without white space: COUNT*SIZE@NODE,...
// SIZE is "default" for the default size; @NODE is left out for AnyNode.
func Format(pools []Pool) string {
	var words []string
	for _, p := range pools {
		word := fmt.Sprintf("%d*default", p.Count)
		if p.Size != 0 {
			word = fmt.Sprintf("%d*%s", p.Count, formatSize(p.Size))
		}
		if p.Node != AnyNode {
			word += fmt.Sprintf("@%d", p.Node)
		}
		words = append(words, word)
	}
	return strings.Join(words, ",")
}

// formatSize writes a size in a short form that phys.ParseSize reads.
func formatSize(size uint64) string {
	for _, unit := range []struct {
		letter string
		size   uint64
	}{{"G", phys.GiB}, {"M", phys.MiB}, {"K", phys.KiB}} {
		if size%unit.size == 0 {
			return fmt.Sprintf("%d%s", size/unit.size, unit.letter)
		}
	}
	return strconv.FormatUint(size, 10)
}

// Parse reads what Format wrote.
func Parse(word string) (pools []Pool, err error) {
	if len(word) > maxWord {
		return nil, fmt.Errorf("huge pages: %d bytes, want at most %d", len(word), maxWord)
	}
	if word == "" {
		return nil, nil
	}
	for part := range strings.SplitSeq(word, ",") {
		p, err := parsePool(part)
		if err != nil {
			return nil, fmt.Errorf("huge pages %q: %w", part, err)
		}
		if pools = append(pools, p); len(pools) > maxPools {
			return nil, fmt.Errorf("huge pages: more than %d entries", maxPools)
		}
	}
	return pools, nil
}

func parsePool(word string) (p Pool, err error) {
	count, size, ok := strings.Cut(word, "*")
	size, node, onNode := strings.Cut(size, "@")
	if p.Count, err = strconv.ParseUint(count, 10, 64); err != nil || !ok || p.Count == 0 {
		return Pool{}, fmt.Errorf("want COUNT*SIZE or COUNT*SIZE@NODE")
	}
	p.Node = AnyNode
	if onNode {
		n, err := strconv.ParseUint(node, 10, 16)
		if err != nil || n >= maxNode {
			return Pool{}, fmt.Errorf("node %q: want a number below %d", node, maxNode)
		}
		p.Node = int(n)
	}
	if size == "default" {
		return p, nil
	}
	if p.Size, err = phys.ParseSize(size); err != nil {
		return Pool{}, err
	}
	if bits.OnesCount64(p.Size) != 1 {
		return Pool{}, fmt.Errorf("size %s: not a power of two", size)
	}
	return p, nil
}
