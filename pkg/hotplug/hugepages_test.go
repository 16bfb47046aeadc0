package hotplug

import (
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/warmcore/warmcore/pkg/hugetlb"
)

const (
	anyNode2M = "sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages"
	node1of1G = "sys/devices/system/node/node1/hugepages/hugepages-1048576kB/nr_hugepages"
)

func TestGrowHugePages(t *testing.T) {
	const meminfo = "MemTotal: 1000 kB\nHugePages_Total:       0\nHugepagesize:       2048 kB\n"
	refused := errors.New("refused")
	for _, tc := range []struct {
		name    string
		pool    hugetlb.Pool
		has     string // before
		each    uint64 // how many the kernel makes in one try
		most    uint64
		writeTo error
		meminfo string
		file    string
		want    uint64
		writes  int
		wantErr string
	}{
		{name: "all", pool: hugetlb.Pool{Count: 512, Size: 2 << 20, Node: hugetlb.AnyNode}, file: anyNode2M, has: "0", each: 1000, most: 1000, want: 512, writes: 1},
		{name: "default size", pool: hugetlb.Pool{Count: 5, Node: hugetlb.AnyNode}, file: anyNode2M, has: "0", each: 9, most: 9, want: 5, writes: 1},
		{name: "of a node", pool: hugetlb.Pool{Count: 2, Size: 1 << 30, Node: 1}, file: node1of1G, has: "1", each: 9, most: 9, want: 2, writes: 1},
		{name: "has them", pool: hugetlb.Pool{Count: 5, Node: hugetlb.AnyNode}, file: anyNode2M, has: "5", want: 5},
		{name: "has more", pool: hugetlb.Pool{Count: 5, Node: hugetlb.AnyNode}, file: anyNode2M, has: "9", want: 9},
		{name: "little by little", pool: hugetlb.Pool{Count: 5, Node: hugetlb.AnyNode}, file: anyNode2M, has: "0", each: 2, most: 5, want: 5, writes: 3},
		{name: "some", pool: hugetlb.Pool{Count: 500, Node: hugetlb.AnyNode}, file: anyNode2M, has: "0", each: 9, most: 9, want: 9, writes: hugePageTries},
		{name: "no such size", pool: hugetlb.Pool{Count: 5, Size: 1 << 30, Node: hugetlb.AnyNode}, file: anyNode2M, has: "0", wantErr: "huge pages of 1 GiB: "},
		{name: "refused", pool: hugetlb.Pool{Count: 5, Size: 2 << 20, Node: hugetlb.AnyNode}, file: anyNode2M, has: "1", writeTo: refused, want: 1, writes: 1, wantErr: "refused"},
		{name: "no huge pages", pool: hugetlb.Pool{Count: 5, Node: hugetlb.AnyNode}, meminfo: "MemTotal: 1 kB\n", file: anyNode2M, has: "0", wantErr: "this kernel has no huge pages"},
		{name: "garbage", pool: hugetlb.Pool{Count: 5, Node: hugetlb.AnyNode}, meminfo: "Hugepagesize: many\n", file: anyNode2M, has: "0", wantErr: "default size"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			root := t.TempDir()
			put := func(name, text string) {
				if err := errors.Join(os.MkdirAll(filepath.Dir(filepath.Join(root, name)), 0o755), os.WriteFile(filepath.Join(root, name), []byte(text), 0o644)); err != nil {
					t.Fatal(err)
				}
			}
			if tc.meminfo == "" {
				tc.meminfo = meminfo
			}
			put("proc/meminfo", tc.meminfo)
			put(tc.file, tc.has+"\n")
			has, _ := strconv.ParseUint(tc.has, 10, 64)
			writes := 0
			s := System{Root: root, Write: func(path, data string) error {
				writes++
				want, err := strconv.ParseUint(data, 10, 64)
				if path != tc.file || err != nil {
					t.Fatalf("wrote %q to %s", data, path)
				}
				has = min(has+tc.each, want, tc.most)
				if tc.writeTo == nil {
					put(path, strconv.FormatUint(has, 10)+"\n")
				}
				return tc.writeTo
			}}
			got, err := s.GrowHugePages(tc.pool)
			if got != tc.want || writes != tc.writes || (err == nil) != (tc.wantErr == "") || err != nil && !strings.Contains(err.Error(), tc.wantErr) {
				t.Errorf("has %d after %d writes, %v; want %d after %d, %q", got, writes, err, tc.want, tc.writes, tc.wantErr)
			}
		})
	}
}
