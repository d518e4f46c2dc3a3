// The assembler of gopacket/reassembly, for common.go: both directions are one stream.
package main

import (
	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
	"github.com/google/gopacket/reassembly"
)

type assembler struct {
	inner *reassembly.Assembler
	sum   totals
}

// context is one packet's: held pages keep a reference to it, so it can't be used again.
type context struct {
	ci gopacket.CaptureInfo
}

func (c *context) GetCaptureInfo() gopacket.CaptureInfo { return c.ci }

func newAssembler() *assembler {
	a := &assembler{}
	a.inner = reassembly.NewAssembler(reassembly.NewStreamPool(a))
	return a
}

func (a *assembler) New(net, transport gopacket.Flow, tcp *layers.TCP, ac reassembly.AssemblerContext) reassembly.Stream {
	return &counter{sum: &a.sum}
}

func (a *assembler) assemble(net gopacket.Flow, tcp *layers.TCP, ci gopacket.CaptureInfo) {
	a.inner.AssembleWithContext(net, tcp, &context{ci})
}

func (a *assembler) finish() totals {
	a.inner.FlushAll()
	return a.sum
}

type counter struct {
	bytes   [2]int64 // of each direction
	skipped int64
	sum     *totals
}

func (c *counter) Accept(tcp *layers.TCP, ci gopacket.CaptureInfo, direction reassembly.TCPFlowDirection, nextSeq reassembly.Sequence, start *bool, ac reassembly.AssemblerContext) bool {
	return true
}

func (c *counter) ReassembledSG(pieces reassembly.ScatterGather, ac reassembly.AssemblerContext) {
	length, _ := pieces.Lengths()
	direction, _, _, skip := pieces.Info()
	if direction == reassembly.TCPDirClientToServer {
		c.bytes[0] += int64(length)
	} else {
		c.bytes[1] += int64(length)
	}
	if skip > 0 {
		c.skipped += int64(skip)
	}
}

func (c *counter) ReassemblyComplete(ac reassembly.AssemblerContext) bool {
	for _, bytes := range c.bytes {
		c.sum.bytes += bytes
		if bytes > 0 {
			c.sum.streams++
		}
	}
	c.sum.skipped += c.skipped
	return true
}
