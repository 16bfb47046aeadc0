package kdump

// ExpandLZO is expandLZO.
var ExpandLZO = expandLZO
