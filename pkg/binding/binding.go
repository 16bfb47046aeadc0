// Package binding has the names by which the payload and the normal kernel's
// user space find each other: parameters on the kernel command line.
package binding

// Parameters that the payload puts on the normal kernel's command line.
const (
	// ParamHandoff says where the handoff area is: ADDR,SIZE.
	ParamHandoff = "warmcore.handoff"
	// ParamHugePages, in a capture boot, has the huge pages that its boot
	// entry asks for, as pkg/hugetlb writes them.
	ParamHugePages = "warmcore.hugepages"
	// ParamDropped, in a capture boot, has the names, with commas between
	// them, of its boot entry's parameters that are left out and can't be
	// given back to a running kernel.
	ParamDropped = "warmcore.dropped"
)
