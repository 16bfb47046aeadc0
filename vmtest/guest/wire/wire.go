// Package wire is what the guest program and the rig say to each other over
// the virtio-serial port named Port, and the pattern that painted pages hold.
//
// Both directions carry JSON objects, one a line. The guest sends a line break
// before and after each, so that a line cut off by a crash ruins itself only.
// The host sends Request; each is answered by one Message that repeats its ID.
// The other messages have ID 0 and say in Event what happened.
package wire

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/bits"

	"github.com/warmcore/warmcore/pkg/phys"
)

// Names of virtio-serial ports, as /sys/class/virtio-ports/*/name shows them.
const (
	Port        = "org.warmcore.events"  // the normal kernel's guest program
	PayloadPort = "org.warmcore.payload" // the payload, one way
)

// MaxLine bounds one line of the protocol, in bytes. The largest is the page
// list of a painting: MaxPaintMiB in runs of one page, 24 bytes each.
const MaxLine = 64 << 20

// MaxPaintMiB bounds what one Paint asks for.
const MaxPaintMiB = 8 << 10

// Request is a command from the host. Exactly one of the pointers and lists
// is set.
type Request struct {
	ID      uint64   `json:"id"`
	Run     []string `json:"run,omitempty"` // argv
	Paint   *Paint   `json:"paint,omitempty"`
	Trigger *Trigger `json:"trigger,omitempty"`
	Go      bool     `json:"go,omitempty"`   // carry out the Trigger that was answered
	Read    string   `json:"read,omitempty"` // path of a file
	Sync    bool     `json:"sync,omitempty"` // write out the disk
}

// Paint asks for MiB mebibytes of pages filled with the pattern of Seed, held
// until the guest ends.
type Paint struct {
	MiB  int    `json:"mib"`
	Seed uint64 `json:"seed"`
}

// Trigger ends the guest in the manner of Kind.
type Trigger struct {
	Kind string `json:"kind"`
	// CPU to do it on.
	CPU int `json:"cpu,omitempty"`
	// Timeout of the watchdog, in seconds; 0 for 2.
	Timeout int `json:"timeout,omitempty"`
}

// Kinds of Trigger.
const (
	SysrqC   = "sysrq-c"  // a null pointer written to by the kernel: panic
	SysrqB   = "sysrq-b"  // reset at once, nothing synced
	Reboot   = "reboot"   // disk unmounted, then reboot(2); systemctl where the guest is a service
	PowerOff = "poweroff" // the same
	ExitInit = "exit"     // process 1 ends: panic
	Watchdog = "watchdog" // /dev/watchdog opened and left alone
)

// Message is an answer or an event.
type Message struct {
	ID    uint64  `json:"id,omitempty"`
	T     float64 `json:"t"` // seconds since the kernel started (CLOCK_BOOTTIME)
	Event string  `json:"event,omitempty"`
	Error string  `json:"error,omitempty"` // the request failed, and why

	Boot   *Boot   `json:"boot,omitempty"`
	Result *Result `json:"result,omitempty"`
	Pages  []Run   `json:"pages,omitempty"`
	Data   []byte  `json:"data,omitempty"`
	Text   string  `json:"text,omitempty"`
}

// Names of events.
const (
	EventBoot = "boot" // the guest program is ready for requests
	EventNote = "note" // something went wrong that isn't fatal: Text
)

// Boot is what the guest program found when it started.
type Boot struct {
	Kind        string  `json:"kind"` // Plain or Capture
	Release     string  `json:"release"`
	Cmdline     string  `json:"cmdline"`
	MemTotalKiB uint64  `json:"mem_total_kib"`
	CPUs        int     `json:"cpus"`
	Vmcore      bool    `json:"vmcore"` // /proc/vmcore exists
	Disk        string  `json:"disk,omitempty"`
	IOMem       string  `json:"iomem"`        // /proc/iomem
	InitSeconds float64 `json:"init_seconds"` // when the kernel started init, since it started itself
	BootID      string  `json:"boot_id"`
}

// Kinds of Boot.
const (
	Plain   = "plain"
	Capture = "capture"
)

// Result is what a command did. Output is cut to MaxOutput bytes each.
type Result struct {
	Exit   int    `json:"exit"` // -1: killed by a signal
	Stdout string `json:"stdout"`
	Stderr string `json:"stderr"`
}

// MaxOutput bounds each of a Result's outputs, in bytes.
const MaxOutput = 4 << 20

// Run is Count pages that are adjacent in physical memory and in the pattern:
// page Index+i of the painting is page frame PFN+i.
type Run struct {
	PFN   uint64 `json:"p"`
	Index uint64 `json:"i"`
	Count uint64 `json:"n"`
}

// AddPage appends one page to runs, to the last run if it fits.
func AddPage(runs []Run, pfn, index uint64) []Run {
	if n := len(runs); n > 0 {
		last := &runs[n-1]
		if last.PFN+last.Count == pfn && last.Index+last.Count == index {
			last.Count++
			return runs
		}
	}
	return append(runs, Run{pfn, index, 1})
}

// Range returns the physical memory of the run. It is an error if that is not
// below 52 address bits, or more than a Paint can ask for.
func (r Run) Range() (phys.Range, error) {
	const (
		endPFN   = 1 << 40 // 52 address bits
		maxPages = MaxPaintMiB * (phys.MiB / phys.PageSize)
	)
	if r.Count > maxPages || r.PFN > endPFN-r.Count {
		return phys.Range{}, fmt.Errorf("painted run at page frame %#x, %d pages: want at most %d, below 52 address bits", r.PFN, r.Count, maxPages)
	}
	start := r.PFN * phys.PageSize
	return phys.Range{Start: start, End: start + r.Count*phys.PageSize}, nil
}

// ErrPageSize is the error for a buffer that isn't one page.
var ErrPageSize = errors.New("pattern: buffer isn't one page")

// Fill writes page index of the painting called seed: the seed and the index
// in clear, so that a page found in a wrong place tells where it belongs, then
// numbers that look random and differ in each page.
func Fill(page []byte, seed, index uint64) error {
	if uint64(len(page)) != phys.PageSize {
		return ErrPageSize
	}
	binary.LittleEndian.PutUint64(page, seed)
	binary.LittleEndian.PutUint64(page[8:], index)
	state := bits.RotateLeft64(seed, 32) ^ index*0xd6e8feb86659fd93
	for off := 16; off < len(page); off += 8 {
		// SplitMix64 (Steele, Lea, Flood: Fast splittable
		// pseudorandom number generators, OOPSLA 2014).
		state += 0x9e3779b97f4a7c15
		z := state
		z = (z ^ z>>30) * 0xbf58476d1ce4e5b9
		z = (z ^ z>>27) * 0x94d049bb133111eb
		binary.LittleEndian.PutUint64(page[off:], z^z>>31)
	}
	return nil
}
