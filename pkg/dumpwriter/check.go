package dumpwriter

import (
	"bytes"
	"errors"
	"fmt"
	"hash/crc32"
	"math/rand/v2"
	"sync"

	"github.com/warmcore/warmcore/pkg/phys"
	"github.com/warmcore/warmcore/pkg/vmcore"
	"github.com/warmcore/warmcore/pkg/vmcore/dumpfile"
)

// samples is about how many pages of a dump are read back, all of a smaller
// one; maxSamples is a cap.
const (
	samples    = 64
	maxSamples = 4 * samples
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// sample is a page as it was read to be written.
type sample struct {
	addr uint64
	sum  uint32
}

// sampler takes samples of what is written. The source is no measure for that
// later: its memory may change, or fail.
type sampler struct {
	step uint64 // every so many pages, by chance; 0 for none

	mu    sync.Mutex
	taken []sample
}

// page is convert.Options.Written.
func (s *sampler) page(addr uint64, page []byte) {
	if s.step == 0 || s.step > 1 && rand.Uint64N(s.step) != 0 {
		return
	}
	sum := crc32.Checksum(page, castagnoli)
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.taken) < maxSamples {
		s.taken = append(s.taken, sample{addr, sum})
	}
}

// check opens what was written as any reader would, and reads the samples
// back, which must be what was read from the source then. It warns of those
// that the source shows in another way by now. What has no random access can't
// be read.
func (j *job) check(out *written) error {
	var files []dumpfile.File
	for _, f := range j.files {
		if f.random == nil {
			return nil
		}
		size, err := f.random.Size()
		if err != nil {
			return err
		}
		files = append(files, dumpfile.File{ReaderAt: f.random, Size: size})
	}
	got, err := dumpfile.Join(files...)
	if err != nil {
		return err
	}
	want := j.src.Info()
	switch info := got.Info(); {
	case info.Incomplete:
		return errors.New("it says that it is incomplete")
	case !bytes.Equal(info.Notes, want.Notes):
		return fmt.Errorf("it has %d bytes of notes, which are not the %d of the dump", len(info.Notes), len(want.Notes))
	case !bytes.Equal(info.VMCOREINFO, want.VMCOREINFO):
		return errors.New("its VMCOREINFO is another one")
	case len(info.Unreadable) == 0 && len(out.missing.Unreadable) > 0:
		return fmt.Errorf("it doesn't name the unreadable memory from %#x on", out.missing.Unreadable[0].Start)
	}
	page := make([]byte, out.missing.PageSize)
	failed, changed := 0, 0
	var failure error
	for _, s := range j.sampler.taken {
		if !want.Memory.Contains(phys.Range{Start: s.addr, End: s.addr + uint64(len(page))}) {
			continue // memory in part: it can't be read as a page
		}
		if err := got.ReadPhys(page, s.addr); err != nil {
			return fmt.Errorf("read back page %#x: %w", s.addr, err)
		}
		if crc32.Checksum(page, castagnoli) != s.sum {
			return fmt.Errorf("page %#x is not what was written", s.addr)
		}
		var missing *vmcore.MissingError
		if err := j.src.ReadPhys(page, s.addr); errors.As(err, &missing) && missing.Reason != vmcore.Unreadable {
			continue // in the source in part: it can't be read as a page
		} else if err != nil {
			failed, failure = failed+1, err
		} else if crc32.Checksum(page, castagnoli) != s.sum {
			changed++
		}
	}
	if failed > 0 {
		j.warn(&out.warnings, fmt.Sprintf("%d of %d pages could be read once, but not a second time", failed, len(j.sampler.taken)), failure)
	}
	if changed > 0 {
		j.warn(&out.warnings, fmt.Sprintf("%d of %d pages changed while the dump was written", changed, len(j.sampler.taken)), nil)
	}
	return nil
}
