package dumpfilter_test

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/warmcore/warmcore/pkg/phys"
)

const sectionEarly = 1 << 3

// setSection gives one of the kernel's four sections flags beside the usual
// ones, and takes some of those away.
func (k *kernel) setSection(section, set, clear uint64) {
	at := sectionAt + 32*section + 8
	if !k.static {
		at += 0x100000
	}
	k.put64(at, k.get64(at)&^clear|set)
}

// TestAdded: memory that was there at boot isn't added, and neither is what is
// offline now.
func TestAdded(t *testing.T) {
	for _, m := range machines {
		t.Run(m.name, func(t *testing.T) {
			k := newKernel(m, encodings[len(encodings)-1])
			k.setSection(1, 0, sectionEarly)
			k.setSection(2, 0, sectionEarly|sectionOnline)
			k.setSection(3, 0, sectionEarly)
			size := uint64(1) << m.sectionBits
			want := phys.Set{{Start: size, End: 2 * size}, {Start: 3 * size, End: 4 * size}}
			got, err := k.filter(t, 0).Added(2)
			if diff := cmp.Diff(want, got); diff != "" || err != nil {
				t.Errorf("error %v, -want +got:\n%s", err, diff)
			}
			if _, err := k.filter(t, 0).Added(1); err == nil || !strings.Contains(err.Error(), "more than 1 ranges") {
				t.Errorf("error %v, want one about the limit", err)
			}
			k.setSection(2, sectionOnline, 0)
			if got, err = k.filter(t, 0).Added(1); err != nil || len(got) != 1 || got.Size() != 3*size {
				t.Errorf("%v, %v; want one range of %#x bytes", got, err, 3*size)
			}
			k.setSection(0, 0, sectionEarly) // as before 5.4
			if got, err = k.filter(t, 0).Added(1); err != nil || got != nil {
				t.Errorf("%v, %v; want none from a kernel that doesn't tell", got, err)
			}
		})
	}
}

// TestAddedUnreadable: tables that aren't there are an error.
func TestAddedUnreadable(t *testing.T) {
	k := newKernel(machines[0], encodings[0])
	k.put64(sectionAt, 0x1000) // not a mapped address
	if got, err := k.filter(t, 0).Added(8); err == nil || len(got) > 0 {
		t.Errorf("%v, %v; want an error", got, err)
	}
	k.text = strings.Replace(k.text, "SYMBOL(mem_section)", "SYMBOL(other)", 1)
	if _, err := k.filter(t, 0).Added(8); err == nil || !strings.Contains(err.Error(), "not understood") {
		t.Errorf("%v; want: not understood", err)
	}
}
