package main

import "unsafe"

// address returns where mem is mapped. mem comes from mmap, so it never moves.
func address(mem []byte) uint64 { return uint64(uintptr(unsafe.Pointer(unsafe.SliceData(mem)))) }
