package payload

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/warmcore/warmcore/pkg/devicetree"
	"github.com/warmcore/warmcore/pkg/memmap"
	"github.com/warmcore/warmcore/pkg/normalboot"
	"github.com/warmcore/warmcore/pkg/phys"
	"github.com/warmcore/warmcore/pkg/physmem/physmemtest"
	"github.com/warmcore/warmcore/pkg/plan"
	"github.com/warmcore/warmcore/pkg/registration"
	"github.com/warmcore/warmcore/pkg/segments/segmentstest"
	"github.com/warmcore/warmcore/pkg/zeropage"
)

const (
	mib = phys.MiB
	gib = phys.GiB
)

func span(start, end uint64) phys.Range { return phys.Range{Start: start, End: end} }

// firmwareMap is QEMU's q35 machine with 1 GiB.
var firmwareMap = memmap.Map{Entries: []memmap.Entry{
	{Range: span(0, 0x9fc00), Kind: memmap.RAM},
	{Range: span(0x9fc00, 0xa0000), Kind: memmap.Reserved},
	{Range: span(0xf0000, mib), Kind: memmap.Reserved},
	{Range: span(mib, gib-0x21000), Kind: memmap.RAM},
	{Range: span(gib-0x21000, gib), Kind: memmap.Reserved},
}}

var window = span(384*mib, 512*mib)

// machine is a System whose memory survives its resets.
type machine struct {
	tb  testing.TB
	mem *physmemtest.Memory

	arch     plan.Arch
	firmware memmap.Map
	own      phys.Set
	reserved phys.Set         // in own
	params   []byte           // x86
	tree     *devicetree.Tree // arm64
	srat     []byte           // x86
	entries  []normalboot.Entry
	looked   []string
	cmdline  string // the payload kernel's
	now      time.Time

	firmwareErr, ownErr, openErr, scanErr, loadErr, rebootErr error
	// waits ends a run that finds nothing to boot: so often it may wait.
	waits int
	// onWait changes the machine while the payload waits.
	onWait func()
	// onScan sees how the payload looks at the disks.
	onScan func(normalboot.Options)

	// hangs is the phase that never ends; the machine is reset then. dmaDevices
	// are what QuietDevices finds, once a run.
	hangs      string
	releaseErr error
	resetErr   error
	dmaDevices []string

	// Of the present run.
	missed  func(phase string, limit time.Duration)
	guards  []string // phases and limits
	armed   bool     // the watchdog
	quieted int
	entry   uint64
	loaded  []phys.Segment
	scans   int
	boots   int
}

func newMachine(t testing.TB) *machine {
	return &machine{
		tb:       t,
		arch:     plan.AMD64,
		mem:      physmemtest.New(t, firmwareMap.Set(memmap.RAM)),
		firmware: firmwareMap,
		own:      phys.NewSet(span(0x1000, 0x9f000), window),
		entries:  []normalboot.Entry{debian("Debian", 1)},
		looked:   []string{"vda1 (ext4): boot/grub/grub.cfg with 1 entries"},
		now:      time.Unix(1_800_000_000, 0),
	}
}

const entryCmdline = "root=/dev/vda1 ro"

// initrd is of more than one piece.
var initrd = func() []byte {
	b := make([]byte, initrdPiece+12345)
	for i := range b {
		b[i] = byte(i * 3 >> 2)
	}
	return b
}()

func debian(title string, seed byte) normalboot.Entry {
	return normalboot.Entry{
		Title:   title,
		Kernel:  normalboot.NewFile("/boot/vmlinuz", bytes.NewReader(segmentstest.Debian(seed).Image())),
		Initrd:  normalboot.NewFile("/boot/initrd.img", bytes.NewReader(initrd)),
		Cmdline: entryCmdline,
	}
}

var errBroken = errors.New("broken for this test")

// broken reads nothing.
type broken struct{}

func (broken) ReadAt([]byte, int64) (int, error) { return 0, errBroken }

func (m *machine) FirmwareMap() (memmap.Map, error) {
	if m.firmwareErr != nil {
		return memmap.Map{}, m.firmwareErr
	}
	return m.firmware, nil
}

func (m *machine) OwnRAM() (phys.Set, error) {
	if m.ownErr != nil {
		return nil, m.ownErr
	}
	return m.own, nil
}

func (m *machine) FreeRAM() (phys.Set, error) {
	own, err := m.OwnRAM()
	return own.Minus(m.reserved), err
}

func (m *machine) OpenMemory() (Memory, error) {
	if m.openErr != nil {
		return nil, m.openErr
	}
	return m.mem, nil
}

func (m *machine) Scan(o normalboot.Options) (*normalboot.Disks, error) {
	m.scans++
	if m.onScan != nil {
		m.onScan(o)
	}
	if m.scanErr != nil {
		return nil, m.scanErr
	}
	return &normalboot.Disks{Entries: m.entries, Looked: m.looked}, nil
}

func (m *machine) Load(entry uint64, segments []phys.Segment) error {
	if m.loadErr != nil {
		return m.loadErr
	}
	m.entry, m.loaded = entry, slices.Clone(segments)
	return nil
}

// rebooted and waited leave Run, as the real ones would.
type (
	rebooted struct{}
	waited   struct{}
	hung     struct{} // until the watchdog has reset the machine
)

func (m *machine) Reboot() error {
	if m.rebootErr != nil {
		return m.rebootErr
	}
	if m.armed {
		m.tb.Error("the watchdog is still armed in the next kernel")
	}
	panic(rebooted{})
}

func (m *machine) Wait(time.Duration) {
	if m.onWait != nil {
		m.onWait()
	}
	if m.waits--; m.waits < 0 {
		panic(waited{})
	}
}

func (m *machine) Guard(phase string, limit time.Duration, missed func(phase string, limit time.Duration)) {
	m.missed, m.armed = missed, true
	m.Within(phase, limit)
}

func (m *machine) Within(phase string, limit time.Duration) {
	if !m.armed {
		m.tb.Errorf("phase %s: nobody guards it", phase)
	}
	m.guards = append(m.guards, fmt.Sprint(phase, " ", limit))
	if phase == m.hangs {
		m.missed(phase, limit)
		panic(hung{})
	}
}

func (m *machine) Release() error { m.armed = false; return m.releaseErr }
func (m *machine) Reset() error   { return m.resetErr }

func (m *machine) QuietDevices() ([]string, error) {
	if m.quieted++; m.quieted > 1 {
		return nil, nil
	}
	return m.dmaDevices, nil
}

func (m *machine) Arch() plan.Arch              { return m.arch }
func (m *machine) BootParams() []byte           { return m.params }
func (m *machine) DeviceTree() *devicetree.Tree { return m.tree }
func (m *machine) SRAT() []byte                 { return m.srat }
func (m *machine) RSDP(Memory) uint64           { return 0xf5a40 }
func (m *machine) Now() time.Time               { return m.now }
func (m *machine) Nonce() [16]byte              { return [16]byte{0: 0xee, 1: byte(m.boots)} }
func (m *machine) CPUs() int                    { return 2 }

// result is what a run of the payload came to.
type result struct {
	payload *Payload
	log     string
	started bool // a kernel
	cmdline string
	ram     phys.Set // of the started kernel
	tree    *devicetree.Tree
	treeErr error // of reading memory in it
	soft    phys.Set
	code    []byte // at the kernel's entry
	initrd  []byte
	writes  []physmemtest.Access
}

// run resets the machine: the payload runs until it starts a kernel, whose
// zero page it then reads as the kernel would, or until it has waited enough.
func (m *machine) run() result {
	m.tb.Helper()
	m.boots++
	m.scans, m.entry, m.loaded, m.guards, m.quieted, m.armed = 0, 0, nil, nil, 0, false
	m.mem.Writes()
	opts, warnings := ParseCmdline(m.cmdline)
	if len(warnings) > 0 {
		m.tb.Fatalf("command line %q: %q", m.cmdline, warnings)
	}
	logger := NewLogger(io.Discard, func() time.Duration { return 0 })
	p := New(m, slog.New(logger), logger.Text, opts, "v1")
	r := result{payload: p}
	func() {
		defer func() {
			switch x := recover().(type) {
			case rebooted:
				r.started = true
			case waited, hung:
			default:
				panic(x)
			}
		}()
		m.tb.Errorf("Run returned: %v", p.Run())
	}()
	r.log = string(logger.Text())
	r.writes = m.mem.Writes()
	if r.started {
		m.readKernel(&r)
	}
	return r
}

// readKernel follows the trampoline to the kernel, in what was given to
// kexec_load and in memory.
func (m *machine) readKernel(r *result) {
	m.tb.Helper()
	get := func(addr, n uint64) []byte {
		for _, s := range m.loaded {
			if off := addr - s.Range.Start; addr >= s.Range.Start && off+n <= s.Range.Size() {
				b := append(bytes.Clone(s.Data), make([]byte, s.Range.Size()-uint64(len(s.Data)))...)
				return b[off:][:n]
			}
		}
		return m.mem.Get(span(addr, addr+n))
	}
	if len(m.loaded) == 0 || m.loaded[0].Range.Start != m.entry {
		m.tb.Fatalf("rebooted into %v with entry %#x", m.loaded, m.entry)
	}
	le := binary.LittleEndian
	params := m.loaded[0].Data[0x10:]
	if m.arch == plan.ARM64 {
		m.readTree(r, get, le.Uint64(params), le.Uint64(params[8:]))
		return
	}
	entry, zero := le.Uint64(params), get(le.Uint64(params[8:]), phys.PageSize)
	r.code = get(entry-0x200, 4096)
	u32 := func(off int) uint64 { return uint64(le.Uint32(zero[off:])) }
	cmdline, _, _ := bytes.Cut(get(u32(0x228)|u32(0xc8)<<32, 2048), []byte{0})
	r.cmdline = string(cmdline)
	if size := u32(0x21c); size > 0 {
		r.initrd = get(u32(0x218)|u32(0xc0)<<32, size)
	}
	table := zero[0x2d0:][:int(zero[0x1e8])*zeropage.EntrySize]
	next, err := memmap.E820(table)
	if err != nil {
		m.tb.Fatalf("the started kernel's memory map: %v", err)
	}
	r.ram, r.soft = next.Set(memmap.RAM), next.Set(memmap.SoftReserved)
}

// plan is the machine's plan, made as the payload makes it.
func (m *machine) plan() *plan.Plan {
	m.tb.Helper()
	p, err := plan.Make(plan.Input{Arch: plan.AMD64, Firmware: m.firmware, Policy: plan.Policy{Window: phys.NewSet(window), Handoff: DefaultHandoff}})
	if err != nil {
		m.tb.Fatal(err)
	}
	return p
}

// block returns what is registered.
func (m *machine) block() *registration.Block {
	m.tb.Helper()
	b, err := registration.Load(m.mem.Get(DefaultHandoff))
	if err != nil {
		m.tb.Fatal(err)
	}
	return b
}

// register does what the agent does: change the block and store it.
func (m *machine) register(change func(b *registration.Block)) {
	m.tb.Helper()
	b := m.block()
	change(b)
	off, data, err := registration.Store(b, m.mem.Get(DefaultHandoff))
	if err != nil {
		m.tb.Fatal(err)
	}
	m.mem.Set(DefaultHandoff.Start+uint64(off), data)
}

// logs returns the payload's log in H.
func (m *machine) logs() (current, previous registration.Log) {
	m.tb.Helper()
	current, previous, err := registration.DecodeLogs(m.mem.Get(DefaultHandoff))
	if err != nil {
		m.tb.Fatal(err)
	}
	return current, previous
}

// wantLog checks that words are in the log, in that order.
func wantLog(t *testing.T, log string, words ...string) {
	t.Helper()
	rest := log
	for _, w := range words {
		_, after, found := strings.Cut(rest, w)
		if !found {
			t.Errorf("the log lacks %q (in this order: %q):\n%s", w, words, log)
			return
		}
		rest = after
	}
}

// wantKernel checks that a kernel was started, whole.
func wantKernel(t *testing.T, r result, seed byte, cmdline string) {
	t.Helper()
	switch {
	case !r.started:
		t.Fatalf("no kernel was started:\n%s", r.log)
	case !bytes.Equal(r.code, segmentstest.Debian(seed).Code):
		t.Errorf("the started kernel is not number %d, or not whole", seed)
	case !bytes.Equal(r.initrd, initrd):
		t.Errorf("the initrd of %d bytes differs, or is not %d bytes", len(r.initrd), len(initrd))
	case !strings.Contains(r.cmdline, cmdline):
		t.Errorf("command line %q, want %q in it", r.cmdline, cmdline)
	}
}

// touched returns the parts of p that were written.
func touched(p *plan.Plan, writes []physmemtest.Access) (out []string) {
	for _, part := range []struct {
		name string
		set  phys.Set
	}{{"window", p.Window}, {"handoff", phys.Set{p.Handoff}}, {"boot", p.Boot}, {"destination", p.Destination}, {"preserved", p.Preserved}} {
		if slices.ContainsFunc(writes, func(a physmemtest.Access) bool { return part.set.Overlaps(a.Range) }) {
			out = append(out, part.name)
		}
	}
	return out
}

func (r result) String() string { return fmt.Sprintf("%q, RAM %v\n%s", r.cmdline, r.ram, r.log) }
