// Package printktest is a printk ring buffer for tests, written as the kernel
// writes it. pkg/printk's constants are not used, so that a wrong one shows.
package printktest

import (
	"encoding/binary"
	"errors"
)

var le = binary.LittleEndian

// States of a record: being written, written, and written for good.
const (
	Reserved  uint64 = 0
	Committed uint64 = 1
	Finalized uint64 = 2
	reusable  uint64 = 3

	idMask    uint64 = 1<<62 - 1
	emptyLine uint64 = 3
)

// VMCoreInfo is what Debian's 6.12 amd64 says about its ring buffer.
const VMCoreInfo = `OSRELEASE=6.12.0-test
SYMBOL(prb)=ffffffff81000000
SIZE(printk_ringbuffer)=88
OFFSET(printk_ringbuffer.desc_ring)=0
OFFSET(printk_ringbuffer.text_data_ring)=48
OFFSET(printk_ringbuffer.fail)=80
SIZE(prb_desc_ring)=48
OFFSET(prb_desc_ring.count_bits)=0
OFFSET(prb_desc_ring.descs)=8
OFFSET(prb_desc_ring.infos)=16
OFFSET(prb_desc_ring.head_id)=24
OFFSET(prb_desc_ring.tail_id)=32
SIZE(prb_desc)=24
OFFSET(prb_desc.state_var)=0
OFFSET(prb_desc.text_blk_lpos)=8
SIZE(prb_data_blk_lpos)=16
OFFSET(prb_data_blk_lpos.begin)=0
OFFSET(prb_data_blk_lpos.next)=8
SIZE(printk_info)=88
OFFSET(printk_info.seq)=0
OFFSET(printk_info.ts_nsec)=8
OFFSET(printk_info.text_len)=16
OFFSET(printk_info.caller_id)=20
OFFSET(printk_info.dev_info)=24
SIZE(prb_data_ring)=32
OFFSET(prb_data_ring.size_bits)=0
OFFSET(prb_data_ring.data)=8
OFFSET(prb_data_ring.head_lpos)=16
OFFSET(prb_data_ring.tail_lpos)=24
SIZE(atomic_long_t)=8
OFFSET(atomic_long_t.counter)=0
`

// Where things are in memory.
const (
	Base    = 0xffffffff81000000
	AtPrb   = 0x000 // the pointer
	AtRing  = 0x010
	atDescs = 0x080
	atInfos = 0x200
	atText  = 0x800

	countBits = 3
	sizeBits  = 8
	memSize   = atText + 1<<sizeBits
)

// Memory is the crashed kernel's, from Base on.
type Memory []byte

var errHole = errors.New("hole")

// ReadVirtual implements printk.Memory.
func (m Memory) ReadVirtual(p []byte, addr uint64) error {
	if addr < Base || addr-Base > uint64(len(m)) || uint64(len(p)) > uint64(len(m))-(addr-Base) {
		return errHole
	}
	copy(p, m[addr-Base:])
	return nil
}

// Kernel writes into memory what the kernel's writer would.
type Kernel struct {
	Memory
	ID, lpos uint64 // next
	// Exact is set for kernels since v6.18, which let a block end exactly where
	// the ring ends.
	Exact bool
}

// New returns an empty ring buffer.
func New() *Kernel {
	// As the kernel starts: close before both counters wrap.
	k := &Kernel{Memory: make(Memory, memSize), ID: ^uint64(1<<countBits-1) & idMask, lpos: ^uint64(1<<sizeBits - 1)}
	le.PutUint64(k.Memory[AtPrb:], Base+AtRing)
	ring := k.Memory[AtRing:]
	le.PutUint32(ring[0:], countBits)
	le.PutUint64(ring[8:], Base+atDescs)
	le.PutUint64(ring[16:], Base+atInfos)
	le.PutUint32(ring[48:], sizeBits)
	le.PutUint64(ring[56:], Base+atText)
	le.PutUint64(k.Desc(k.ID-1), reusable<<62|(k.ID-1)&idMask)
	k.Ends(k.ID-1, k.ID-1)
	return k
}

// Ends sets the oldest and the newest id.
func (k *Kernel) Ends(tail, head uint64) {
	le.PutUint64(k.Memory[AtRing+24:], head&idMask)
	le.PutUint64(k.Memory[AtRing+32:], tail&idMask)
}

// Desc returns the memory of an id's descriptor.
func (k *Kernel) Desc(id uint64) []byte { return k.Memory[atDescs+id%(1<<countBits)*24:] }

// Info returns the memory of an id's printk_info.
func (k *Kernel) Info(id uint64) []byte { return k.Memory[atInfos+id%(1<<countBits)*88:] }

// Block returns the memory of an id's text block.
func (k *Kernel) Block(id uint64) []byte {
	return k.Memory[atText+le.Uint64(k.Desc(id)[8:])%(1<<sizeBits):]
}

// Lap lets the next message begin where the ring begins.
func (k *Kernel) Lap() { k.lpos = (k.lpos + 1<<sizeBits - 1) &^ (1<<sizeBits - 1) }

// Print adds a message; state is what it is left in.
func (k *Kernel) Print(seq uint64, text string, state uint64) (id uint64) {
	id = k.ID
	k.ID = (k.ID + 1) & idMask
	begin, next := emptyLine, emptyLine
	if text != "" {
		size := (uint64(len(text)) + 8 + 7) &^ 7
		begin = k.lpos
		at := begin % (1 << sizeBits)
		next = begin + size
		if at+size > 1<<sizeBits || at+size == 1<<sizeBits && !k.Exact {
			at = 0
			next = begin&^(1<<sizeBits-1) + 1<<sizeBits + size
		}
		copy(k.Memory[atText+at+8:], text)
		le.PutUint64(k.Memory[atText+at:], id)
		k.lpos = next
	}
	d := k.Desc(id)
	le.PutUint64(d, state<<62|id)
	le.PutUint64(d[8:], begin)
	le.PutUint64(d[16:], next)
	i := k.Info(id)
	le.PutUint64(i, seq)
	le.PutUint64(i[8:], seq*1_500_000_000)
	le.PutUint16(i[16:], uint16(len(text)))
	i[18] = 0        // facility
	i[19] = 6<<5 | 1 // level and flags
	le.PutUint32(i[20:], 0x80000001)
	first := id
	if n := uint64(1 << countBits); seq+1 >= n {
		first = id - n + 1
	} else {
		first = id - seq
	}
	k.Ends(first, id)
	return id
}
