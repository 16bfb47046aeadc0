package vmcore

import (
	"encoding/binary"
	"hash/crc32"

	"github.com/warmcore/warmcore/pkg/elfcore"
	"github.com/warmcore/warmcore/pkg/phys"
	"github.com/warmcore/warmcore/pkg/vmcoreinfo"
)

// The payload takes the checksums of some pages of the crashed kernel's memory
// when it hands over the dump. A page that has changed when the dump is saved
// was written by a device or by firmware: nobody else has that memory. The
// samples are in a note of NameUnreadable's name and this type: for each an
// address, 8 bytes, and the CRC-32C of its SampleSize bytes, 4 bytes,
// little-endian.
const TypeSamples uint32 = 0x77630002

// Size of samples.
const (
	MaxSamples = 512
	SampleSize = 4096 // bytes of a page

	sampleLen = 8 + 4
)

// Sample is the checksum of a page.
type Sample struct {
	Addr uint64 // physical, by the crashed kernel's addresses
	Sum  uint32 // CRC-32C
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// TakeSamples takes MaxSamples samples at even distances in memory, or fewer
// if it is small. Pages that can't be read are left out.
func TakeSamples(r vmcoreinfo.Reader, memory phys.Set) []Sample {
	memory = memory.AlignIn(SampleSize)
	pages := memory.Size() / SampleSize
	n := min(pages, MaxSamples)
	var samples []Sample
	before := uint64(0) // pages in the ranges before
	k := uint64(0)
	buf := make([]byte, SampleSize)
	for _, m := range memory {
		end := before + m.Size()/SampleSize
		for ; k < n && k*pages/n < end; k++ {
			s := Sample{Addr: m.Start + (k*pages/n-before)*SampleSize}
			if r.ReadPhys(buf, s.Addr) == nil {
				s.Sum = crc32.Checksum(buf, castagnoli)
				samples = append(samples, s)
			}
		}
		before = end
	}
	return samples
}

// Changed returns the samples' pages that differ now, and how many could be
// read.
func Changed(r vmcoreinfo.Reader, samples []Sample) (changed phys.Set, read int) {
	buf := make([]byte, SampleSize)
	var pages []phys.Range
	for _, s := range samples {
		at, ok := phys.Sized(s.Addr, SampleSize)
		if !ok || r.ReadPhys(buf, s.Addr) != nil {
			continue
		}
		read++
		if crc32.Checksum(buf, castagnoli) != s.Sum {
			pages = append(pages, at)
		}
	}
	return phys.NewSet(pages...), read
}

// SamplesNote returns the note of samples.
func SamplesNote(samples []Sample) elfcore.ELFNote {
	var b []byte
	for _, s := range samples {
		b = binary.LittleEndian.AppendUint64(b, s.Addr)
		b = binary.LittleEndian.AppendUint32(b, s.Sum)
	}
	return elfcore.ELFNote{Name: NameUnreadable, Type: TypeSamples, Desc: b}
}

// addSamples reads a note's content.
func (i *Info) addSamples(b []byte) {
	if len(b)%sampleLen != 0 || len(b)/sampleLen > MaxSamples {
		i.Warn("the note with samples of memory is damaged")
		return
	}
	i.Samples = nil
	for ; len(b) > 0; b = b[sampleLen:] {
		i.Samples = append(i.Samples, Sample{binary.LittleEndian.Uint64(b), binary.LittleEndian.Uint32(b[8:])})
	}
}
