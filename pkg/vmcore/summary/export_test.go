package summary

// Cause is cause.
var Cause = cause
