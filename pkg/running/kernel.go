package running

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
	"github.com/warmcore/warmcore/pkg/outcome"
	"github.com/warmcore/warmcore/pkg/phys"
	"github.com/warmcore/warmcore/pkg/registration"
)

// Identity says which kernel runs, in which boot: all but Nonce, Machine and Time.
func (k Kernel) Identity() (id registration.Identity, err error) {
	if id.Release, err = k.Text("proc/sys/kernel/osrelease"); err != nil {
		return registration.Identity{}, err
	}
	id.Release = id.Release[:min(len(id.Release), registration.MaxRelease)]
	boot, err := k.Text("proc/sys/kernel/random/boot_id")
	if err != nil {
		return registration.Identity{}, err
	}
	raw, err := hex.DecodeString(strings.ReplaceAll(boot, "-", ""))
	if err != nil || len(raw) != len(id.BootID) {
		return registration.Identity{}, fmt.Errorf("boot_id %q is no UUID", boot)
	}
	copy(id.BootID[:], raw)
	// The kernel's own notes; one of them is GNU's build id.
	notes, err := k.Bytes("sys/kernel/notes")
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

// CrashNotes returns where each CPU's registers go at a panic, by CPU number,
// and of how many CPUs that is known. sysfs has a CPU that is present, online or not.
func (k Kernel) CrashNotes() ([]registration.Note, int, error) {
	entries, err := os.ReadDir(k.path(cpus))
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
			k.log().Warn("registers of this CPU will not be in a dump", "cpu", n, "limit", registration.MaxCPUs)
			continue
		}
		addr, err := k.Text(cpus + "/" + e.Name() + "/crash_notes")
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, 0, err
		}
		size, err := k.Text(cpus + "/" + e.Name() + "/crash_notes_size")
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

// VMCoreInfo returns where VMCOREINFO is. The file has "ADDR SIZE", both
// hexadecimal (vmcoreinfo_show in kernel/ksysfs.c, v6.12).
func (k Kernel) VMCoreInfo() (registration.Note, error) {
	text, err := k.Text("sys/kernel/vmcoreinfo")
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

// IOMem reads /proc/iomem; it is a Refusal if that shows no addresses.
func (k Kernel) IOMem() (memmap.Map, error) {
	f, err := os.Open(k.path("proc/iomem"))
	if err != nil {
		return memmap.Map{}, err
	}
	defer f.Close()
	m, err := memmap.IOMem(f)
	if errors.Is(err, memmap.ErrUnprivileged) {
		return memmap.Map{}, outcome.Refuse("run it as root, with CAP_SYS_ADMIN", "%v", err)
	}
	return m, err
}

// SystemRAM is all RAM that the running kernel has.
func (k Kernel) SystemRAM() (phys.Set, error) {
	m, err := k.IOMem()
	if err != nil {
		return nil, err
	}
	var ram []phys.Range
	for _, e := range m.Entries {
		// What a driver has added is "System RAM (kmem)", or the like.
		if e.Name == "System RAM" || strings.HasPrefix(e.Name, "System RAM (") {
			ram = append(ram, e.Range)
		}
	}
	return phys.NewSet(ram...), nil
}

// Mapping is the running kernel's, as /proc/kcore tells.
func (k Kernel) Mapping() (kernelmap.Mapping, error) {
	f, err := os.Open(k.path("proc/kcore"))
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
