package registration

import "hash/crc32"

// Header of a copy; little endian. FORMAT.md has the table.
const (
	headerLen = 64
	version   = 1

	offMagic    = 0
	offVersion  = 8
	offHeader   = 12 // length of the header
	offSequence = 16
	offState    = 24
	offCount    = 28 // number of sections
	offLength   = 32 // bytes of sections
	offReserved = 36 // zero up to offBodyCRC
	offBodyCRC  = 56 // over the sections
	offCRC      = 60 // over the header before it

	sectionHeaderLen = 8 // type, length
)

const (
	magic        = "WCREGIST"
	magicSwapped = "TSIGERCW" // as a big-endian machine would have stored it
)

// Section types. A type is never given a second meaning, and the data of a
// type never grows: new data gets a new type.
const (
	secIdentity       = 1
	secMapHash        = 2
	secCPUNotes       = 3
	secVMCoreInfo     = 4
	secMapping        = 5
	secPolicy         = 6
	secCounters       = 7
	secKernel         = 8
	secCapture        = 9
	secPlan           = 10
	secPayloadVersion = 11
	secAbsent         = 12
	secCaptureBoots   = 13
	secBooted         = 14
	secMounting       = 15
	secRefused        = 16

	maxKnown = secRefused
)

// Encoded lengths of array elements, in bytes.
const (
	noteLen      = 8 + 4
	planRangeLen = 4 + 8 + 8
	absentLen    = 8 + 8
)

// castagnoli is CRC32C: every single-bit error and every burst of up to 32
// bits is found, and x86-64 and arm64 have an instruction for it.
var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func checksum(b []byte) uint32 { return crc32.Checksum(b, castagnoli) }
