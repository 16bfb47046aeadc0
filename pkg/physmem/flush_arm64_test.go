package physmem

import "testing"

// forEachFlush runs test with the only instruction that there is.
func forEachFlush(t *testing.T, test func(t *testing.T)) { test(t) }

// forEachCopy runs test with the only copy that there is.
func forEachCopy(t *testing.T, test func(t *testing.T)) { test(t) }
