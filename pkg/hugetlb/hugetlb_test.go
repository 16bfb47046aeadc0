package hugetlb

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/warmcore/warmcore/pkg/cmdline"
)

func TestPools(t *testing.T) {
	for _, tt := range []struct{ name, cmdline, want string }{
		{"none", "root=/dev/vda1 transparent_hugepage=always hugetlb_cma=1G", ""},
		{"default size", "hugepages=512", "512*default"},
		{"one size", "hugepagesz=1G hugepages=200", "200*1G"},
		{"a database", "default_hugepagesz=1G hugepagesz=1G hugepages=200 hugepagesz=2M hugepages=4096", "200*1G,4096*2M"},
		{"nodes", "hugepagesz=2M hugepages=0:4096,1:100", "4096*2M@0,100*2M@1"},
		{"other page sizes", "hugepagesz=64K hugepages=3 hugepagesz=0x2000000 hugepages=1", "3*64K,1*32M"},
		{"count before the default size", "hugepages=5 default_hugepagesz=1G", "5*1G"},
		{"count behind the default size", "default_hugepagesz=1G hugepages=5", "5*1G"},
		{"count of the default size, said twice", "hugepages=5 default_hugepagesz=1G hugepages=6 hugepagesz=2M hugepages=7", "6*1G,7*2M"},
		{"default size, named again", "default_hugepagesz=1G hugepagesz=1G hugepages=5 hugepagesz=1G hugepages=6", "5*1G"},
		{"size named again", "hugepagesz=2M hugepages=1 hugepagesz=1G hugepages=2 hugepagesz=2M hugepages=3", "1*2M,2*1G"},
		{"second default size", "default_hugepagesz=1G default_hugepagesz=2M hugepages=5", ""},
		{"second count of a size", "hugepagesz=2M hugepages=1 hugepages=2", "1*2M"},
		{"no size", "hugepagesz=big hugepages=1 hugepages=2", "2*default"},
		{"zero", "hugepagesz=2M hugepages=0 hugepagesz=1G hugepages=1", "1*1G"},
		{"no number", "hugepages=x hugepages=0:1,y hugepages=1024:1 hugepages=-1 hugepages=", ""},
		{"sysctl", "sysctl.vm.nr_hugepages=7", "7*default"},
		{"sysctl counts", "hugepages=5 hugepagesz=2M hugepages=6 sysctl.vm/nr_hugepages=7", "6*2M,7*default"},
		{"for init", "-- hugepages=1", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			pools := Pools(cmdline.Parse(tt.cmdline))
			if got := Format(pools); got != tt.want {
				t.Errorf("got %q, want %q", got, tt.want)
			}
			if again, err := Parse(tt.want); err != nil || !cmp.Equal(pools, again) {
				t.Errorf("Parse: %v, %v, want %v", again, err, pools)
			}
		})
	}
}

func TestIsParameter(t *testing.T) {
	for word, want := range map[string]bool{
		"hugepages=1": true, "hugepagesz=2M": true, "sysctl.vm.nr_hugepages=1": true, "sysctl/vm/nr_hugepages_mempolicy=1": true,
		"default_hugepagesz=1G": false, "hugetlb_cma=1G": false, "sysctl.vm.nr_overcommit_hugepages=1": false, "hugepagesx=1": false,
	} {
		if got := IsParameter(cmdline.Parse(word).Params[0]); got != want {
			t.Errorf("%s: %v", word, got)
		}
	}
}

func TestParseErrors(t *testing.T) {
	for word, want := range map[string]string{
		"5":                                   "want COUNT*SIZE",
		"0*2M":                                "want COUNT*SIZE",
		"*2M":                                 "want COUNT*SIZE",
		"1*3M":                                "not a power of two",
		"1*":                                  `size ""`,
		"1*2M@":                               `node ""`,
		"1*2M@1024":                           "below 1024",
		"1*2M,":                               `huge pages ""`,
		strings.Repeat("1*2M,", 1000):         "5000 bytes",
		strings.Repeat("1*2M,", 300)[1:]:      `"*2M"`,
		"1*2M" + strings.Repeat(",1*2M", 300): "more than 256",
	} {
		if p, err := Parse(word); err == nil || p != nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%.20q: %v, %v, want %q", word, p, err, want)
		}
	}
}

func FuzzPools(f *testing.F) {
	f.Add("default_hugepagesz=1G hugepagesz=1G hugepages=200 hugepagesz=2M hugepages=0:4096,1:1 sysctl.vm.nr_hugepages=1", "1*2M@0,2*default")
	f.Fuzz(func(t *testing.T, line, word string) {
		pools := Pools(cmdline.Parse(line))
		if len(pools) > maxPools {
			t.Fatalf("%d entries", len(pools))
		}
		if text := Format(pools); len(text) <= maxWord {
			if again, err := Parse(text); err != nil || !cmp.Equal(pools, again) {
				t.Fatalf("%q is written as %q, read as %v, %v", line, text, again, err)
			}
			if strings.ContainsAny(text, " \t\n\"=") {
				t.Fatalf("%q is not one word", text)
			}
		}
		if pools, err := Parse(word); err == nil {
			if again, err := Parse(Format(pools)); err != nil || !cmp.Equal(pools, again) {
				t.Fatalf("%q is %v, then %v, %v", word, pools, again, err)
			}
		}
	})
}
