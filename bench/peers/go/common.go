// gopacket as a peer of bench.peers: a capture is read, decoded and reassembled, and the streams' bytes are counted.
//
// Lives here: reading, decoding, the ways to use two goroutines, timing. Not here: the assembler, which is one of tcpassembly.go and
// reassembly.go: both packages register flags of the same names, so each gets a program of its own. Called once a packet: everything but main.
//
// Its fastest way is taken everywhere: pcapgo over a large buffer, one packet buffer used again, DecodingLayerParser over a sparse container
// with layers that are used again and no handler for panics, nothing decoded behind TCP, streams that only count, no output.
package main

import (
	"bufio"
	"encoding/binary"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"io/ioutil"
	"os"
	"runtime"
	"runtime/debug"
	"sync"
	"time"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
	"github.com/google/gopacket/pcapgo"
)

const (
	fileHeaderBytes   = 24
	recordHeaderBytes = 16
	batchPackets      = 256
	batchBytes        = 512 * 1024
	batchesUnderWay   = 8
)

// totals is what all streams of one assembler got.
type totals struct {
	streams, bytes, skipped int64
}

func (t *totals) add(other totals) {
	t.streams += other.streams
	t.bytes += other.bytes
	t.skipped += other.skipped
}

// decoder holds the layers of the packet at hand.
type decoder struct {
	ethernet layers.Ethernet
	ip4      layers.IPv4
	ip6      layers.IPv6
	tcp      layers.TCP
	parser   *gopacket.DecodingLayerParser
	decoded  []gopacket.LayerType
}

func newDecoder() *decoder {
	d := &decoder{decoded: make([]gopacket.LayerType, 0, 8)}
	d.parser = gopacket.NewDecodingLayerParser(layers.LayerTypeEthernet)
	d.parser.IgnorePanic = true
	d.parser.IgnoreUnsupported = true
	container := gopacket.DecodingLayerContainer(gopacket.DecodingLayerSparse(nil))
	for _, layer := range []gopacket.DecodingLayer{&d.ethernet, &d.ip4, &d.ip6, &d.tcp} {
		container = container.Put(layer)
	}
	d.parser.SetDecodingLayerContainer(container)
	return d
}

// decode fills d.tcp and gives the addresses; false for what is no TCP.
func (d *decoder) decode(data []byte) (net gopacket.Flow, isTCP bool) {
	if d.parser.DecodeLayers(data, &d.decoded) != nil {
		return net, false
	}
	for _, layer := range d.decoded {
		switch layer {
		case layers.LayerTypeIPv4:
			net = d.ip4.NetworkFlow()
		case layers.LayerTypeIPv6:
			net = d.ip6.NetworkFlow()
		case layers.LayerTypeTCP:
			isTCP = true
		}
	}
	return net, isTCP
}

// memorySource walks a capture in memory (pcap, little-endian, microseconds) and gives the packets where they lie.
type memorySource struct {
	rest []byte
}

func (s *memorySource) ZeroCopyReadPacketData() (data []byte, ci gopacket.CaptureInfo, err error) {
	if len(s.rest) < recordHeaderBytes {
		return nil, ci, io.EOF
	}
	head := s.rest[:recordHeaderBytes]
	ci.Timestamp = time.Unix(int64(binary.LittleEndian.Uint32(head)), int64(binary.LittleEndian.Uint32(head[4:]))*1000).UTC()
	ci.CaptureLength = int(binary.LittleEndian.Uint32(head[8:]))
	ci.Length = int(binary.LittleEndian.Uint32(head[12:]))
	end := recordHeaderBytes + ci.CaptureLength
	if end > len(s.rest) {
		return nil, ci, io.ErrUnexpectedEOF
	}
	data, s.rest = s.rest[recordHeaderBytes:end:end], s.rest[end:]
	return data, ci, nil
}

func openFile(path string, buffer int) gopacket.ZeroCopyPacketDataSource {
	file, err := os.Open(path)
	check(err)
	reader, err := pcapgo.NewReader(bufio.NewReaderSize(file, buffer))
	check(err)
	return reader
}

// one reads, decodes and assembles in one goroutine.
func one(source gopacket.ZeroCopyPacketDataSource, keep func(data []byte) bool) (packets int64, sum totals) {
	d, a := newDecoder(), newAssembler()
	for {
		data, ci, err := source.ZeroCopyReadPacketData()
		if err == io.EOF {
			break
		}
		check(err)
		packets++
		if keep != nil && !keep(data) {
			continue
		}
		if net, isTCP := d.decode(data); isTCP {
			a.assemble(net, &d.tcp, ci)
		}
	}
	return packets, a.finish()
}

// segment is a decoded packet on its way to the assembling goroutine; its payload lies in the batch's bytes.
type segment struct {
	net gopacket.Flow
	tcp layers.TCP
	ci  gopacket.CaptureInfo
}

// frame is a packet that is not decoded yet.
type frame struct {
	data []byte
	ci   gopacket.CaptureInfo
}

type batch struct {
	memory   []byte
	segments []segment
	frames   []frame
}

// pipe reads in one goroutine and assembles in the other; `decodeFirst` says which of them decodes.
func pipe(source gopacket.ZeroCopyPacketDataSource, decodeFirst bool) (packets int64, sum totals) {
	full, empty := make(chan *batch, batchesUnderWay), make(chan *batch, batchesUnderWay)
	for i := 0; i < batchesUnderWay; i++ {
		empty <- &batch{
			memory: make([]byte, 0, batchBytes), segments: make([]segment, 0, batchPackets), frames: make([]frame, 0, batchPackets),
		}
	}
	go func() {
		defer close(full)
		d := newDecoder()
		b := <-empty
		for {
			data, ci, err := source.ZeroCopyReadPacketData()
			if err == io.EOF {
				break
			}
			check(err)
			packets++
			if len(b.memory)+len(data) > cap(b.memory) || len(b.segments)+len(b.frames) == batchPackets {
				full <- b
				b = <-empty
			}
			data = b.put(data)
			if !decodeFirst {
				b.frames = append(b.frames, frame{data, ci})
			} else if net, isTCP := d.decode(data); isTCP {
				b.segments = append(b.segments, segment{net, d.tcp, ci})
			}
		}
		full <- b
	}()
	d, a := newDecoder(), newAssembler()
	for b := range full {
		for i := range b.segments {
			s := &b.segments[i]
			a.assemble(s.net, &s.tcp, s.ci)
		}
		b.assembleFrames(d, a)
		b.clear()
		empty <- b
	}
	return packets, a.finish()
}

// shard reads in one goroutine, which hands each packet to one of `workers` others, by its flow; those decode and assemble.
func shard(source gopacket.ZeroCopyPacketDataSource, workers int) (packets int64, sum totals) {
	var wait sync.WaitGroup
	results := make([]totals, workers)
	full, empty := make([]chan *batch, workers), make([]chan *batch, workers)
	for w := range full {
		full[w], empty[w] = make(chan *batch, batchesUnderWay), make(chan *batch, batchesUnderWay)
		for i := 0; i < batchesUnderWay; i++ {
			empty[w] <- &batch{memory: make([]byte, 0, batchBytes), frames: make([]frame, 0, batchPackets)}
		}
		wait.Add(1)
		go func(w int) {
			defer wait.Done()
			d, a := newDecoder(), newAssembler()
			for b := range full[w] {
				b.assembleFrames(d, a)
				b.clear()
				empty[w] <- b
			}
			results[w] = a.finish()
		}(w)
	}
	filling := make([]*batch, workers)
	for w := range filling {
		filling[w] = <-empty[w]
	}
	for {
		data, ci, err := source.ZeroCopyReadPacketData()
		if err == io.EOF {
			break
		}
		check(err)
		packets++
		w := int(flowHash(data) % uint32(workers))
		b := filling[w]
		if len(b.memory)+len(data) > cap(b.memory) || len(b.frames) == batchPackets {
			full[w] <- b
			b = <-empty[w]
			filling[w] = b
		}
		b.frames = append(b.frames, frame{b.put(data), ci})
	}
	for w := range full {
		full[w] <- filling[w]
		close(full[w])
	}
	wait.Wait()
	for _, r := range results {
		sum.add(r)
	}
	return packets, sum
}

// twice reads the file in each of two goroutines; each decodes and assembles the flows that are its own. Nothing is handed over.
func twice(open func() gopacket.ZeroCopyPacketDataSource) (packets int64, sum totals) {
	const workers = 2
	var wait sync.WaitGroup
	var counts [workers]int64
	var results [workers]totals
	for w := 0; w < workers; w++ {
		wait.Add(1)
		go func(w int) {
			defer wait.Done()
			counts[w], results[w] = one(open(), func(data []byte) bool { return flowHash(data)%workers == uint32(w) })
		}(w)
	}
	wait.Wait()
	for _, r := range results {
		sum.add(r)
	}
	return counts[0], sum
}

func (b *batch) put(data []byte) []byte {
	begin := len(b.memory)
	b.memory = append(b.memory, data...)
	return b.memory[begin:len(b.memory):len(b.memory)]
}

func (b *batch) assembleFrames(d *decoder, a *assembler) {
	for i := range b.frames {
		f := &b.frames[i]
		if net, isTCP := d.decode(f.data); isTCP {
			a.assemble(net, &d.tcp, f.ci)
		}
	}
}

func (b *batch) clear() {
	b.memory, b.segments, b.frames = b.memory[:0], b.segments[:0], b.frames[:0]
}

// flowHash is the same for both directions. Only what the benchmark's captures hold (Ethernet, IPv4 without options) is told apart.
func flowHash(data []byte) uint32 {
	if len(data) < 38 {
		return 0
	}
	h := binary.BigEndian.Uint32(data[26:]) ^ binary.BigEndian.Uint32(data[30:])
	ports := binary.BigEndian.Uint32(data[34:])
	h ^= ports>>16 ^ ports&0xffff
	h *= 0x9e3779b1
	return h >> 16
}

func check(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func main() {
	mode := flag.String("mode", "one", "one | memory | pipe | pipe-raw | shard | twice")
	buffer := flag.Int("buffer", 1<<20, "bytes that the file is read in")
	collect := flag.Int("gc", 100, "how much the heap grows before it is collected, in percent, as GOGC's")
	version := flag.Bool("version", false, "say which Go built this")
	flag.Parse()
	if *version {
		fmt.Println(runtime.Version())
		return
	}
	debug.SetGCPercent(*collect)
	path := flag.Arg(0)
	var memory []byte
	if *mode == "memory" {
		var err error
		memory, err = ioutil.ReadFile(path)
		check(err)
		runtime.GC()
	}
	open := func() gopacket.ZeroCopyPacketDataSource { return openFile(path, *buffer) }

	var packets int64
	var sum totals
	begin := time.Now()
	switch *mode {
	case "one":
		packets, sum = one(open(), nil)
	case "memory":
		packets, sum = one(&memorySource{memory[fileHeaderBytes:]}, nil)
	case "pipe":
		packets, sum = pipe(open(), true)
	case "pipe-raw":
		packets, sum = pipe(open(), false)
	case "shard":
		packets, sum = shard(open(), 2)
	case "twice":
		packets, sum = twice(open)
	default:
		check(fmt.Errorf("no such mode: %s", *mode))
	}
	ns := time.Since(begin).Nanoseconds()
	check(json.NewEncoder(os.Stdout).Encode(map[string]int64{
		"ns": ns, "packets": packets, "bytes_delivered": sum.bytes, "bytes_skipped": sum.skipped, "streams": sum.streams,
	}))
}
