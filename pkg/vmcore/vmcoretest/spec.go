// Package vmcoretest makes small dump files out of a text, for tests of what
// reads and writes dumps.
//
// A text is lines; empty ones and those that begin with # don't count:
//
//	pagesize 4096                        default
//	machine x86_64                       default
//	release 6.1.0-test                   in kdump's header; default VMCOREINFO's
//	version 6                            of kdump's header, default
//	level 31                             default 0
//	status zlib incomplete               flags in kdump's header, default none
//	vmcoreinfo OSRELEASE=6.1.0-test      one line of it; may come often
//	cpu 42                               an NT_PRSTATUS note with that PID
//	load 0xffff888000000000 0x0 0x8000   virtual and physical address, size
//	end 0x10000                          end of what the bitmaps stand for,
//	                                     default the end of the last page
//	0x1000 zlib random 7                 a page, how it is stored, its content
//	0x2000-0x5000 raw fill aa            pages, up to but not with the last
//	0x5000 excluded                      left out, but memory
//	0x6000 unwritten                     its descriptor was never written
//	0x7000 unreadable                    named as unreadable; zero in ELF files
//
// Pages are in the order of their addresses. Stored as: raw, zlib, lzo,
// snappy, zstd, excluded, unwritten, unreadable; what a codec doesn't make smaller is
// stored raw. Content: zero (the default), fill BYTE
// in hexadecimal, random SEED, text WORDS (repeated), same (as the page
// before it, and, in a kdump file, the same bytes). An ELF file has the loads
// of the text, or else one for each row of neighbouring pages; it holds all
// pages but those excluded and unwritten. Each file of a split dump names all
// that is unreadable.
package vmcoretest

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/warmcore/warmcore/pkg/elfcore"
	"github.com/warmcore/warmcore/pkg/phys"
	"github.com/warmcore/warmcore/pkg/vmcore"
	"github.com/warmcore/warmcore/pkg/vmcore/kdump"
)

// How a page is stored, besides the names of the codecs.
const (
	Raw        = "raw"
	Excluded   = "excluded"
	Unwritten  = "unwritten"
	Unreadable = "unreadable"
)

// Spec is a parsed text.
type Spec struct {
	PageSize   uint64
	Machine    string
	Release    string // in kdump's header; that of VMCOREINFO, or 6.1.0-test, if it is empty
	Version    int32
	Level      int32
	Status     uint32
	VMCOREINFO string
	CPUs       []uint32
	Loads      []vmcore.Load
	MaxMapNr   uint64
	Pages      []Page
}

// Page is one page of memory.
type Page struct {
	Addr   uint64
	Stored string
	Same   bool   // its bytes in the file are those of the page before
	Data   []byte // nil unless it is stored
}

// Held says whether a file holds the page.
func (p Page) Held() bool {
	return p.Stored != Excluded && p.Stored != Unwritten && p.Stored != Unreadable
}

// flags of kdump headers and descriptors by name.
var flags = map[string]uint32{
	Raw:          0,
	"zlib":       kdump.FlagZlib,
	"lzo":        kdump.FlagLZO,
	"snappy":     kdump.FlagSnappy,
	"zstd":       kdump.FlagZstd,
	"incomplete": kdump.FlagIncomplete,
	"vmemmap":    kdump.FlagExcludedVmemmap,
}

// Parse reads a text; a mistake in it ends the test.
func Parse(t testing.TB, text string) *Spec {
	t.Helper()
	s := &Spec{PageSize: 4096, Machine: "x86_64", Version: 6}
	for i, line := range strings.Split(text, "\n") {
		line = strings.TrimSpace(line)
		if line == "" || line[0] == '#' {
			continue
		}
		if err := s.line(line); err != nil {
			t.Fatalf("line %d of dump, %q: %v", i+1, line, err)
		}
	}
	for i := 1; i < len(s.Pages); i++ {
		if s.Pages[i].Addr <= s.Pages[i-1].Addr {
			t.Fatalf("page %#x after %#x, want the order of addresses", s.Pages[i].Addr, s.Pages[i-1].Addr)
		}
	}
	if n := len(s.Pages); n > 0 && s.MaxMapNr == 0 {
		s.MaxMapNr = s.Pages[n-1].Addr/s.PageSize + 1
	}
	return s
}

func (s *Spec) line(line string) error {
	words := strings.Fields(line)
	key, args := words[0], words[1:]
	if key[0] >= '0' && key[0] <= '9' {
		return s.pages(key, args)
	}
	if len(args) == 0 {
		return fmt.Errorf("a value is missing")
	}
	number, err := strconv.ParseUint(args[0], 0, 64)
	switch key {
	case "machine", "release", "vmcoreinfo", "status":
		err = nil
	}
	if err != nil {
		return err
	}
	switch key {
	case "pagesize":
		s.PageSize = number
	case "machine":
		s.Machine = args[0]
	case "release":
		s.Release = args[0]
	case "version":
		s.Version = int32(number)
	case "level":
		s.Level = int32(number)
	case "status":
		for _, a := range args {
			f, ok := flags[a]
			if !ok {
				return fmt.Errorf("flag %q is not known", a)
			}
			s.Status |= f
		}
	case "vmcoreinfo":
		s.VMCOREINFO += strings.TrimSpace(strings.TrimPrefix(line, key)) + "\n"
	case "cpu":
		s.CPUs = append(s.CPUs, uint32(number))
	case "end":
		s.MaxMapNr = number / s.PageSize
	case "load":
		l := vmcore.Load{Virt: number}
		for i, to := range []*uint64{&l.Phys, &l.Size} {
			if *to, err = strconv.ParseUint(args[i+1], 0, 64); err != nil {
				return err
			}
		}
		s.Loads = append(s.Loads, l)
	default:
		return fmt.Errorf("not understood")
	}
	return nil
}

// pages adds the pages from START to END.
func (s *Spec) pages(where string, args []string) error {
	from, to, several := strings.Cut(where, "-")
	start, err := strconv.ParseUint(from, 0, 64)
	if err != nil {
		return err
	}
	end := start + s.PageSize
	if several {
		if end, err = strconv.ParseUint(to, 0, 64); err != nil {
			return err
		}
	}
	if start%s.PageSize != 0 || end%s.PageSize != 0 || end <= start || len(args) == 0 {
		return fmt.Errorf("want whole pages, and how they are stored")
	}
	for at := start; at < end; at += s.PageSize {
		p := Page{Addr: at, Stored: args[0]}
		if _, ok := flags[p.Stored]; !ok && p.Held() {
			return fmt.Errorf("way of storing %q is not known", p.Stored)
		}
		if p.Held() {
			if err := s.content(&p, args[1:]); err != nil {
				return err
			}
		}
		s.Pages = append(s.Pages, p)
	}
	return nil
}

func (s *Spec) content(p *Page, args []string) error {
	p.Data = make([]byte, s.PageSize)
	if len(args) == 0 || args[0] == "zero" {
		return nil
	}
	if args[0] == "same" && len(s.Pages) > 0 {
		p.Same, p.Data = true, s.Pages[len(s.Pages)-1].Data
		return nil
	}
	if len(args) < 2 {
		return fmt.Errorf("content %q: want an argument", args[0])
	}
	switch args[0] {
	case "fill":
		x, err := strconv.ParseUint(args[1], 16, 8)
		for i := range p.Data {
			p.Data[i] = byte(x)
		}
		return err
	case "random":
		seed, err := strconv.ParseUint(args[1], 0, 64)
		rng := rand.New(rand.NewPCG(seed, p.Addr))
		for i := 0; i < len(p.Data); i += 8 {
			binary.LittleEndian.PutUint64(p.Data[i:], rng.Uint64())
		}
		return err
	case "text":
		words := strings.Join(args[1:], " ") + "\n"
		for i := range p.Data {
			p.Data[i] = words[i%len(words)]
		}
		return nil
	}
	return fmt.Errorf("content %q is not known", args[0])
}

// Notes returns the notes, as in a PT_NOTE.
func (s *Spec) Notes(t testing.TB) []byte {
	t.Helper()
	var notes []elfcore.ELFNote
	size := 336 // struct elf_prstatus of x86-64
	if s.Machine == "aarch64" {
		size = 392
	}
	for _, pid := range s.CPUs {
		desc := make([]byte, size)
		binary.LittleEndian.PutUint32(desc[32:], pid)
		notes = append(notes, elfcore.ELFNote{Name: elfcore.NameCore, Type: elfcore.TypePRStatus, Desc: desc})
	}
	if s.VMCOREINFO != "" {
		notes = append(notes, elfcore.ELFNote{Name: elfcore.NameVMCoreInfo, Type: elfcore.TypeVMCoreInfo, Desc: []byte(s.VMCOREINFO)})
	}
	var b []byte
	for _, n := range notes {
		var err error
		if b, err = elfcore.AppendNote(b, n); err != nil {
			t.Fatal(err)
		}
	}
	return b
}

// Memory returns the addresses that the text has pages for.
func (s *Spec) Memory() phys.Set {
	var all []phys.Range
	for _, p := range s.Pages {
		all = append(all, phys.Range{Start: p.Addr, End: p.Addr + s.PageSize})
	}
	return phys.NewSet(all...)
}

// Unreadable returns the addresses of the pages that are named so.
func (s *Spec) Unreadable() phys.Set {
	var all []phys.Range
	for _, p := range s.Pages {
		if p.Stored == Unreadable {
			all = append(all, phys.Range{Start: p.Addr, End: p.Addr + s.PageSize})
		}
	}
	return phys.NewSet(all...)
}

// Page returns the page at addr; ok is false for a hole.
func (s *Spec) Page(addr uint64) (p Page, ok bool) {
	i, ok := slices.BinarySearchFunc(s.Pages, addr, func(p Page, addr uint64) int {
		switch {
		case p.Addr < addr:
			return -1
		case p.Addr > addr:
			return 1
		}
		return 0
	})
	if !ok {
		return Page{}, false
	}
	return s.Pages[i], true
}
