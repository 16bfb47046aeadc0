package main

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/warmcore/warmcore/pkg/kernelmap"
	"github.com/warmcore/warmcore/pkg/vmcore"
	"github.com/warmcore/warmcore/pkg/vmcoreinfo"
)

// Bounds on what VMCOREINFO and the memory may say.
const (
	maxNodes     = 4096
	maxZones     = 16
	maxFreeAreas = 32
)

var errNoZones = errors.New("VMCOREINFO doesn't say where the zones are")

// freeByZones is how many free pages the page allocator of the crashed kernel
// counted: the sum of free_area.nr_free of each zone of each node. Nothing in
// it comes from page structures, so it judges the filter where makedumpfile
// doesn't know a kernel.
func freeByZones(dump vmcore.Dump, info *vmcoreinfo.Info) (uint64, error) {
	tables, err := kernelmap.Tables(dump, info)
	if err != nil {
		return 0, err
	}
	read := func(virt uint64, n int) (uint64, error) {
		addr, ok, err := tables.Translate(virt)
		if err != nil {
			return 0, err
		}
		if !ok {
			return 0, fmt.Errorf("virtual address %#x is not mapped", virt)
		}
		var b [8]byte
		err = dump.ReadPhys(b[:n], addr)
		return binary.LittleEndian.Uint64(b[:]), err
	}
	nodes, length := info.Symbols["node_data"], info.Lengths["node_data"]
	zone, area := info.Sizes["zone"], info.Sizes["free_area"]
	if nodes == 0 || length > maxNodes || zone == 0 || area < 8 || info.Lengths["zone.free_area"] > maxFreeAreas {
		return 0, errNoZones
	}
	var free uint64
	for n := range length {
		node, err := read(nodes+8*n, 8)
		if err != nil {
			return 0, err
		}
		if node == 0 {
			continue
		}
		zones, err := read(node+info.Offsets["pglist_data.nr_zones"], 4)
		if err != nil {
			return 0, err
		}
		if zones > maxZones {
			return 0, fmt.Errorf("node %d has %d zones, want at most %d", n, zones, maxZones)
		}
		for z := range zones {
			at := node + info.Offsets["pglist_data.node_zones"] + z*zone + info.Offsets["zone.free_area"]
			for order := range info.Lengths["zone.free_area"] {
				// nr_free is the last field, after the lists.
				blocks, err := read(at+order*area+area-8, 8)
				if err != nil {
					return 0, err
				}
				free += blocks << order
			}
		}
	}
	return free, nil
}
