// The assembler of gopacket/tcpassembly, for common.go: one direction a stream.
package main

import (
	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
	"github.com/google/gopacket/tcpassembly"
)

type assembler struct {
	inner *tcpassembly.Assembler
	sum   totals
}

func newAssembler() *assembler {
	a := &assembler{}
	a.inner = tcpassembly.NewAssembler(tcpassembly.NewStreamPool(a))
	return a
}

func (a *assembler) New(net, transport gopacket.Flow) tcpassembly.Stream {
	return &counter{sum: &a.sum}
}

func (a *assembler) assemble(net gopacket.Flow, tcp *layers.TCP, ci gopacket.CaptureInfo) {
	a.inner.AssembleWithTimestamp(net, tcp, ci.Timestamp)
}

func (a *assembler) finish() totals {
	a.inner.FlushAll()
	return a.sum
}

type counter struct {
	bytes, skipped int64
	sum            *totals
}

func (c *counter) Reassembled(pieces []tcpassembly.Reassembly) {
	for i := range pieces {
		piece := &pieces[i]
		c.bytes += int64(len(piece.Bytes))
		if piece.Skip > 0 {
			c.skipped += int64(piece.Skip)
		}
	}
}

func (c *counter) ReassemblyComplete() {
	c.sum.bytes += c.bytes
	c.sum.skipped += c.skipped
	if c.bytes > 0 {
		c.sum.streams++
	}
}
