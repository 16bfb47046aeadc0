package kernelmap

// For tests of single tables.
var (
	NewAMD64 = newAMD64
	NewARM64 = newARM64
)
