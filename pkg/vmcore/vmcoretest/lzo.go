package vmcoretest

// lzoStream is an LZO1X stream being made; see
// Documentation/staging/lzo.rst of the kernel.
type lzoStream struct {
	b        []byte
	literals []byte // that wait for the next match
	state    int    // index in b of the byte that has the S bits, of a match
}

// CompressLZO makes an LZO1X stream of p, with every kind of instruction that
// one match is tried for: the nearest place of the same three bytes.
func CompressLZO(p []byte) []byte {
	var z lzoStream
	last := map[[3]byte]int{}
	for i := 0; i < len(p); {
		n, distance := 0, 0
		if i+3 <= len(p) {
			key := [3]byte(p[i:])
			if at, ok := last[key]; ok && i-at < 0xbfff {
				distance = i - at
				for i+n < len(p) && p[i+n] == p[at+n] {
					n++
				}
			}
			last[key] = i
		}
		if n < 3 || distance > 0x4000 && n < 4 {
			z.literals = append(z.literals, p[i])
			i++
			continue
		}
		z.match(n, distance)
		i += n
	}
	z.flush()
	return append(z.b, 17, 0, 0)
}

// length appends op with n in its low bits, which hold up to all, or n after
// it.
func (z *lzoStream) length(op byte, n, all int) {
	if n <= all {
		z.b = append(z.b, op|byte(n))
		return
	}
	z.b = append(z.b, op)
	for n -= all; n > 255; n -= 255 {
		z.b = append(z.b, 0)
	}
	z.b = append(z.b, byte(n))
}

// flush appends the literals.
func (z *lzoStream) flush() {
	switch n := len(z.literals); {
	case n == 0:
		return
	case len(z.b) == 0 && n <= 238:
		z.b = append(z.b, byte(17+n))
	case len(z.b) > 0 && n <= 3:
		z.b[z.state] |= byte(n)
	default:
		z.length(0, n-3, 15)
	}
	z.b = append(z.b, z.literals...)
	z.literals = nil
}

func (z *lzoStream) match(n, distance int) {
	afterRun := len(z.literals) > 3
	z.flush()
	switch d := distance - 1; {
	case n == 3 && d >= 2048 && d < 3072 && afterRun:
		d -= 2048
		z.b = append(z.b, byte(d&3<<2), byte(d>>2))
		z.state = len(z.b) - 2
	case n <= 4 && d < 2048:
		z.b = append(z.b, byte(64|(n-3)<<5|d&7<<2), byte(d>>3))
		z.state = len(z.b) - 2
	case n <= 8 && d < 2048:
		z.b = append(z.b, byte(128|(n-5)<<5|d&7<<2), byte(d>>3))
		z.state = len(z.b) - 2
	case d < 0x4000:
		z.length(32, n-2, 31)
		z.b = append(z.b, byte(d<<2), byte(d>>6))
		z.state = len(z.b) - 2
	default:
		d = distance - 0x4000
		z.length(byte(16|d>>14<<3), n-2, 7)
		z.b = append(z.b, byte(d<<2), byte(d>>6))
		z.state = len(z.b) - 2
	}
}
