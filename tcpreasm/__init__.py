"""TCP stream reassembly: packets go in, the bytes that the applications sent come out, in order.

This is the tour; `help(tcpreasm.NAME)` tells the rest of each name. (Below, help shows all classes, in the order of the alphabet.)

1. The shortest way, from a capture file to its streams:

    import tcpreasm
    for stream in tcpreasm.follow("capture.pcapng"):
        print(stream.key, len(stream.data), "bytes,", len(stream.gaps), "gaps")

    follow(source)              each direction of each connection by itself, as it ends: a FinishedStream
    conversations(source)       both directions together: a FinishedConversation, with a FinishedSide for each
    flow_table(source)          a FlowTable: a Table of the flows, and one of their gaps, for numpy, pyarrow, polars, pandas, duckdb;
                                FlowCollector makes its streams, for sources of your own
    aio                         the same on asyncio: `aio.follow`, `aio.readers`

A source is a path, "-", a file object, bytes, an mmap, what open_capture(source) or open_live(interface) gave (both give Frame objects),
what scapy, dpkt or pypcap gave, or a list of these. CaptureError is raised for what is no capture.

2. The same in parts, each of which you can replace:

    capture  ->  decode  ->  pool  ->  connection  ->  Reassembly  ->  your stream

    Assembler(pool, options)    the conductor: assemble_capture, assemble_frame, assemble_batch or assemble takes packets in, a TCPSegment
                                and a Flow at a time; flush_older_than, flush_with_options, flush_all give out what waits for a hole
    StreamPool(factory)         the connections; calls factory(net_flow, transport_flow), or the `new` of a StreamFactory, for each new one
    Stream                      what your factory returns: reassembled(list of Reassembly), reassembly_complete()
    Reassembly                  one piece of a stream: bytes, skip, start, end, seen, packet_number, seq

A connection is one direction of a TCP connection; the other direction is another one, with a stream of its own. A ConversationPool in the
place of the StreamPool pairs them: its ConversationFactory makes a ConversationHandler for each Conversation, which tells who is client,
the handshake and how it was closed; each Side of it what that has sent. Or SideStreams make a stream for each Side, and no handler.

A stream that has enough returns STOP, and gets no more; AssemblerOptions.depth does that for all, behind so many bytes.

3. Ready-made streams:

    ByteCountStream             counts bytes and gaps
    BytesStream                 collects the bytes
    FileStream                  writes them to a file, through a FilePool
    DigestStream                their digest
    SpanStream                  where in the capture they lie
    ReaderStream                an io.RawIOBase, for parsers that want a file: DataLost at gaps; discard_bytes_to_eof and
                                discard_bytes_to_first_error read the rest

All but the last are fed in C, without the GIL; assemble_capture(path, threads=N) then runs N threads side by side.

4. Values: Flow and ConnectionKey (who talks to whom), Sequence (arithmetic modulo 2**32, with INVALID_SEQUENCE), AssemblerOptions with
DEFAULT_ASSEMBLER_OPTIONS, and FlushOptions (limits and rules), AssemblerStats (counters), Verdict (what a frame was), CaptureSummary (what
became of a capture).

5. Underneath, for the curious and for tests: Connection, Page (of PAGE_BYTES), PageCache, PageList, byte_span.

Times are seconds (float, or aware datetime) under plain names and integer nanoseconds under names that end in _ns. A hole is `skip` bytes
before a piece; all holes of a stream are its `missing` (of a ready-made stream: `skipped`) bytes, those of all streams `bytes_skipped`.

Two cores do exactly the same: `_compiled` (Cython) and `_pure` (the readable reference). `implementation` tells which one runs;
TCPREASM_IMPLEMENTATION=auto|compiled|pure in the environment chooses. Logging goes to the loggers "tcpreasm.memory" (growth of the
page cache and the pool) and "tcpreasm.assembly" (each decision about a segment), both at level DEBUG and asked for once, when a pool or
an Assembler is made: off, they cost nothing. "tcpreasm.assembly" warns once where verify_checksums="auto" notices a sender, and of each
link type that is not decoded.

On the command line: tcpreasm flows, extract, http, follow, stats, plot, report; see `tcpreasm --help`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ._select import core, implementation
from .api import Assembler, CaptureSummary, StreamPool
from .capture import Frame, open_capture
from .conversations import (
    Conversation,
    ConversationFactory,
    ConversationHandler,
    ConversationPool,
    FinishedConversation,
    FinishedSide,
    Side,
    SideStreams,
    conversations,
)
from .errors import CaptureError, DataLost
from .flow import ConnectionKey, Flow
from .follow import FinishedStream, follow
from .options import DEFAULT_ASSEMBLER_OPTIONS, AssemblerOptions, FlushOptions
from .segment import TCPSegment
from .stats import AssemblerStats
from .stop import STOP
from .streams import (
    ByteCountStream,
    BytesStream,
    DigestStream,
    FilePool,
    FileStream,
    ReaderStream,
    SpanStream,
    Stream,
    StreamFactory,
    discard_bytes_to_eof,
    discard_bytes_to_first_error,
)
from .verdict import Verdict

if TYPE_CHECKING:
    from . import aio
    from .capture import open_live
    from .tables import FlowCollector, FlowTable, Table, flow_table

INVALID_SEQUENCE = core.INVALID_SEQUENCE
PAGE_BYTES = core.PAGE_BYTES
Connection = core.Connection
Page = core.Page
PageCache = core.PageCache
PageList = core.PageList
Reassembly = core.Reassembly
Sequence = core.Sequence
byte_span = core.byte_span

__version__ = "0.1.0"

__all__ = [
    "DEFAULT_ASSEMBLER_OPTIONS",
    "INVALID_SEQUENCE",
    "PAGE_BYTES",
    "STOP",
    "Assembler",
    "AssemblerOptions",
    "AssemblerStats",
    "ByteCountStream",
    "BytesStream",
    "CaptureError",
    "CaptureSummary",
    "Connection",
    "ConnectionKey",
    "Conversation",
    "ConversationFactory",
    "ConversationHandler",
    "ConversationPool",
    "DataLost",
    "DigestStream",
    "FilePool",
    "FileStream",
    "FinishedConversation",
    "FinishedSide",
    "FinishedStream",
    "Flow",
    "FlowCollector",
    "FlowTable",
    "FlushOptions",
    "Frame",
    "Page",
    "PageCache",
    "PageList",
    "ReaderStream",
    "Reassembly",
    "Sequence",
    "Side",
    "SideStreams",
    "SpanStream",
    "Stream",
    "StreamFactory",
    "StreamPool",
    "TCPSegment",
    "Table",
    "Verdict",
    "aio",
    "byte_span",
    "conversations",
    "discard_bytes_to_eof",
    "discard_bytes_to_first_error",
    "flow_table",
    "follow",
    "implementation",
    "open_capture",
    "open_live",
]


_LATE = {
    "aio": "aio",
    "open_live": "capture",
    "FlowCollector": "tables",
    "FlowTable": "tables",
    "Table": "tables",
    "flow_table": "tables",
}  # imported when they are first asked for: most programs do without


def __getattr__(name: str) -> Any:
    """What few programs need, imported when it is first asked for."""
    if name not in _LATE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = import_module(f".{_LATE[name]}", __name__)
    return module if name == _LATE[name] else getattr(module, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_LATE})
