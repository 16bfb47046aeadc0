// Package running is what the running kernel tells about itself and its machine
// in proc and sys: who it is, where it keeps registers and VMCOREINFO, how it maps
// memory, which CPUs there are. It reads files and changes nothing; what each
// file may say is checked, because it goes into the handoff area and into the stub.
package running

import (
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/warmcore/warmcore/pkg/acpi"
	"github.com/warmcore/warmcore/pkg/binding"
	"github.com/warmcore/warmcore/pkg/cmdline"
)

// Kernel is the running kernel. With Root "/" it is that of this machine.
type Kernel struct {
	Root string       // where proc and sys are
	Log  *slog.Logger // nil discards
}

func (k Kernel) log() *slog.Logger {
	if k.Log == nil {
		return slog.New(slog.DiscardHandler)
	}
	return k.Log
}

func (k Kernel) path(name string) string { return filepath.Join(k.Root, name) }

// DeviceTree is where the kernel shows its device tree.
const DeviceTree = "proc/device-tree"

// maxFile caps what is read of a file in proc or sys, in bytes. The largest are
// ACPI tables with an entry of 80 bytes for each CPU.
const maxFile = 16 << 20

// Text returns a small file's text without white space at its ends.
func (k Kernel) Text(name string) (string, error) {
	b, err := k.Bytes(name)
	return strings.TrimSpace(string(b)), err
}

// Bytes returns a file below Root, of 16 MiB at most.
func (k Kernel) Bytes(name string) ([]byte, error) {
	f, err := os.Open(k.path(name))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", k.path(name), err)
	}
	if len(b) > maxFile {
		return nil, fmt.Errorf("read %s: more than %d bytes", k.path(name), maxFile)
	}
	return b, nil
}

// CaptureBoot says whether the payload started this kernel to save a dump:
// by the kernel command line on x86, by the device tree on arm64.
func (k Kernel) CaptureBoot() bool {
	if b, err := k.Bytes(DeviceTree + "/chosen/" + binding.CoreHeaderProperty); err == nil && len(b) > 0 {
		return true
	}
	line, err := k.CommandLine()
	if err != nil {
		return false
	}
	place, ok := line.Last("elfcorehdr")
	return ok && place.HasValue
}

// CommandLine reads the running kernel's command line.
func (k Kernel) CommandLine() (cmdline.Line, error) {
	text, err := k.Text("proc/cmdline")
	if err != nil {
		return cmdline.Line{}, err
	}
	return cmdline.Parse(text), nil
}

// MemTotal returns the running kernel's memory in KiB, 0 if it doesn't say.
func (k Kernel) MemTotal() uint64 {
	text, err := k.Text("proc/meminfo")
	if err != nil {
		return 0
	}
	for line := range strings.Lines(text) {
		if rest, ok := strings.CutPrefix(line, "MemTotal:"); ok {
			if f := strings.Fields(rest); len(f) > 0 {
				n, _ := strconv.ParseUint(f[0], 10, 64)
				return n
			}
		}
	}
	return 0
}

const acpiTables = "sys/firmware/acpi/tables/"

// FADT reads the Fixed ACPI Description Table; fs.ErrNotExist if there is none.
func (k Kernel) FADT() (acpi.FADT, error) {
	b, err := k.Bytes(acpiTables + "FACP")
	if err != nil {
		return acpi.FADT{}, err
	}
	return acpi.ParseFADT(b)
}

// Config returns the running kernel's configuration as distributions install it,
// "" if it isn't there.
func (k Kernel) Config() string {
	release, err := k.Text("proc/sys/kernel/osrelease")
	if err != nil || strings.Contains(release, "/") {
		return ""
	}
	for _, name := range []string{"boot/config-" + release, "lib/modules/" + release + "/config"} {
		if b, err := k.Bytes(name); err == nil {
			return string(b)
		}
	}
	return ""
}

// HostName returns the host name as part of a file name.
func (k Kernel) HostName() string {
	name, err := k.Text("proc/sys/kernel/hostname")
	name = strings.Map(func(r rune) rune {
		switch {
		case r >= 'a' && r <= 'z', r >= 'A' && r <= 'Z', r >= '0' && r <= '9', r == '-', r == '_', r == '.':
			return r
		}
		return '_'
	}, name)
	// "(none)" before anyone gave it a name.
	if err != nil || strings.Trim(name, ".") == "" || name == "_none_" {
		return "localhost"
	}
	return name[:min(len(name), 64)]
}
