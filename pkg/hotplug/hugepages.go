package hotplug

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/warmcore/warmcore/pkg/hugetlb"
	"github.com/warmcore/warmcore/pkg/phys"
)

// hugePageTries is how often the kernel is asked for missing pages. Each time
// it compacts memory again, and stops at the first page that it can't make
// (set_max_huge_pages in mm/hugetlb.c, v6.12).
const hugePageTries = 4

// GrowHugePages has the kernel allocate huge pages until it has p.Count of
// size p.Size on node p.Node, and returns how many it has. It never frees a
// page. Getting fewer than asked for is no error.
func (s System) GrowHugePages(p hugetlb.Pool) (have uint64, err error) {
	if p.Size == 0 {
		if p.Size, err = s.HugePageSize(); err != nil {
			return 0, err
		}
	}
	dir := "sys/kernel/mm"
	if p.Node != hugetlb.AnyNode {
		dir = fmt.Sprintf("sys/devices/system/node/node%d", p.Node)
	}
	name := fmt.Sprintf("%s/hugepages/hugepages-%dkB/nr_hugepages", dir, p.Size/phys.KiB)
	if have, err = s.number(name, 10); err != nil {
		return 0, fmt.Errorf("huge pages of %s: %w", phys.FormatSize(p.Size), err)
	}
	for range hugePageTries {
		if have >= p.Count {
			break
		}
		if err := s.write(name, strconv.FormatUint(p.Count, 10)); err != nil {
			return have, fmt.Errorf("huge pages of %s: %w", phys.FormatSize(p.Size), err)
		}
		if have, err = s.number(name, 10); err != nil {
			return 0, fmt.Errorf("huge pages of %s: %w", phys.FormatSize(p.Size), err)
		}
	}
	return have, nil
}

// HugePageSize returns the kernel's default huge page size, in bytes.
func (s System) HugePageSize() (uint64, error) {
	text, err := s.readAll("proc/meminfo", maxAttribute)
	if err != nil {
		return 0, fmt.Errorf("default size of huge pages: %w", err)
	}
	for line := range strings.Lines(text) {
		if rest, ok := strings.CutPrefix(line, "Hugepagesize:"); ok {
			n, err := strconv.ParseUint(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(rest), "kB")), 10, 40)
			if err != nil || n == 0 {
				return 0, fmt.Errorf("default size of huge pages: /proc/meminfo says %q", strings.TrimSpace(rest))
			}
			return n * phys.KiB, nil
		}
	}
	return 0, fmt.Errorf("this kernel has no huge pages: no Hugepagesize in /proc/meminfo")
}
