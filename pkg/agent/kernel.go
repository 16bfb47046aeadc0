package agent

import (
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"

	"github.com/warmcore/warmcore/pkg/elfcore"
	"github.com/warmcore/warmcore/pkg/kernelmap"
	"github.com/warmcore/warmcore/pkg/memmap"
	"github.com/warmcore/warmcore/pkg/phys"
	"github.com/warmcore/warmcore/pkg/registration"
)

// kernel is what the running kernel says about itself.
type kernel struct {
	identity   registration.Identity // without Nonce, Machine and Time
	notes      []registration.Note
	cpus       int // with notes
	vmcoreinfo registration.Note
	mapping    kernelmap.Mapping
	crashArea  phys.Range
}

func (s *System) kernel(m machine) (k kernel, err error) {
	if k.identity, err = s.identity(); err != nil {
		return kernel{}, fmt.Errorf("identify the running kernel: %w", err)
	}
	if k.notes, k.cpus, err = s.crashNotes(); err != nil {
		return kernel{}, fmt.Errorf("find the crash notes: %w", err)
	}
	if k.vmcoreinfo, err = s.vmcoreinfo(); err != nil {
		return kernel{}, fmt.Errorf("find VMCOREINFO: %w", err)
	}
	if k.crashArea, err = s.crashArea(m.area()); err != nil {
		return kernel{}, err
	}
	// A dump without the mapping is harder to read but complete: the payload
	// can find it in the page tables.
	if k.mapping, err = s.mapping(); err != nil {
		s.log().Warn("the kernel's mappings are not known", "err", err)
	}
	return k, nil
}

func (s *System) identity() (id registration.Identity, err error) {
	if id.Release, err = s.read("proc/sys/kernel/osrelease"); err != nil {
		return registration.Identity{}, err
	}
	id.Release = id.Release[:min(len(id.Release), registration.MaxRelease)]
	boot, err := s.read("proc/sys/kernel/random/boot_id")
	if err != nil {
		return registration.Identity{}, err
	}
	raw, err := hex.DecodeString(strings.ReplaceAll(boot, "-", ""))
	if err != nil || len(raw) != len(id.BootID) {
		return registration.Identity{}, fmt.Errorf("boot_id %q is no UUID", boot)
	}
	copy(id.BootID[:], raw)
	// The kernel's own notes; one of them is GNU's build id.
	notes, err := s.readBytes("sys/kernel/notes")
	if err == nil {
		if list, err := elfcore.ParseNotes(notes); err == nil {
			for _, n := range list {
				const typeBuildID = 3 // NT_GNU_BUILD_ID
				if n.Name == "GNU" && n.Type == typeBuildID && len(n.Desc) <= registration.MaxBuildID {
					id.BuildID = append([]byte(nil), n.Desc...)
				}
			}
		}
	}
	id.PageSize = uint32(os.Getpagesize())
	return id, nil
}

// crashNotes returns where each CPU's registers go at a panic, by CPU number.
// sysfs has a CPU that is present, online or not.
func (s *System) crashNotes() ([]registration.Note, int, error) {
	const dir = "sys/devices/system/cpu"
	entries, err := os.ReadDir(s.path(dir))
	if err != nil {
		return nil, 0, err
	}
	var notes []registration.Note
	found := 0
	for _, e := range entries {
		digits, ok := strings.CutPrefix(e.Name(), "cpu")
		n, err := strconv.ParseUint(digits, 10, 32)
		if !ok || err != nil || digits != strconv.FormatUint(n, 10) {
			continue
		}
		if n >= registration.MaxCPUs {
			s.log().Warn("registers of this CPU will not be in a dump", "cpu", n, "limit", registration.MaxCPUs)
			continue
		}
		addr, err := s.read(dir + "/" + e.Name() + "/crash_notes")
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, 0, err
		}
		size, err := s.read(dir + "/" + e.Name() + "/crash_notes_size")
		if err != nil {
			return nil, 0, err
		}
		note, err := parseNote(addr, 16, size, 10)
		if err != nil {
			return nil, 0, fmt.Errorf("%s: %w", e.Name(), err)
		}
		for uint64(len(notes)) <= n {
			notes = append(notes, registration.Note{})
		}
		notes[n] = note
		found++
	}
	if found == 0 {
		return nil, 0, errors.New("no CPU has any (CONFIG_KEXEC)")
	}
	return notes, found, nil
}

// vmcoreinfo reads "ADDR SIZE", both hexadecimal (vmcoreinfo_show in
// kernel/ksysfs.c, v6.12).
func (s *System) vmcoreinfo() (registration.Note, error) {
	text, err := s.read("sys/kernel/vmcoreinfo")
	if err != nil {
		return registration.Note{}, err
	}
	addr, size, ok := strings.Cut(text, " ")
	if !ok {
		return registration.Note{}, fmt.Errorf("%q is not an address and a size", text)
	}
	return parseNote(addr, 16, size, 16)
}

func parseNote(addr string, addrBase int, size string, sizeBase int) (registration.Note, error) {
	a, err := strconv.ParseUint(strings.TrimPrefix(addr, "0x"), addrBase, 64)
	if err != nil {
		return registration.Note{}, fmt.Errorf("address: %w", err)
	}
	n, err := strconv.ParseUint(strings.TrimPrefix(size, "0x"), sizeBase, 64)
	if err != nil {
		return registration.Note{}, fmt.Errorf("size: %w", err)
	}
	if _, ok := phys.Sized(a, n); !ok || a == 0 || n == 0 || n > registration.MaxNoteSize {
		return registration.Note{}, fmt.Errorf("%d bytes at %#x: no note is there", n, a)
	}
	return registration.Note{Addr: a, Size: n}, nil
}

// crashArea returns the part of the memory reserved by crashkernel= that the
// stub can be in.
func (s *System) crashArea(want stubArea) (phys.Range, error) {
	m, err := s.ioMem()
	if err != nil {
		return phys.Range{}, err
	}
	areas := m.Named("Crash kernel")
	for _, r := range areas {
		r = phys.Range{Start: r.Start, End: min(r.End, want.top)}.AlignIn(want.align)
		if r.Size() >= want.size {
			return r, nil
		}
	}
	return phys.Range{}, refuse("see why in `dmesg | grep -i crash`: the payload asks for "+want.kernel,
		"the memory reserved for the stub is %v, want %s below %s", areas, phys.FormatSize(want.size), phys.FormatSize(want.top))
}

func (s *System) ioMem() (memmap.Map, error) {
	f, err := os.Open(s.path("proc/iomem"))
	if err != nil {
		return memmap.Map{}, err
	}
	defer f.Close()
	m, err := memmap.IOMem(f)
	if errors.Is(err, memmap.ErrUnprivileged) {
		return memmap.Map{}, refuse("run it as root, with CAP_SYS_ADMIN", "%v", err)
	}
	return m, err
}

// mapping is the running kernel's, as /proc/kcore tells.
func (s *System) mapping() (kernelmap.Mapping, error) {
	f, err := os.Open(s.path("proc/kcore"))
	if err != nil {
		return kernelmap.Mapping{}, err
	}
	defer f.Close()
	h, err := elfcore.Read(f)
	if err != nil {
		return kernelmap.Mapping{}, fmt.Errorf("%s: %w", f.Name(), err)
	}
	m, err := kernelmap.FromCore(h)
	if err != nil {
		return kernelmap.Mapping{}, fmt.Errorf("%s: %w", f.Name(), err)
	}
	return m, nil
}
