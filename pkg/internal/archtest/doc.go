// Package archtest holds the rules of the house as a test: who may import
// whom, and what code in pkg may not do. Each rule has its reason beside it.
//
// There is nothing to import here; `go test ./pkg/internal/archtest` reads
// the whole module with `go list` and the Go parser.
package archtest
