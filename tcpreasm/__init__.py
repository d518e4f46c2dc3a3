"""TCP stream reassembly: packets go in, the bytes that the applications sent come out, in order.

The shortest way from a capture file to its streams:

    import tcpreasm
    for stream in tcpreasm.follow("capture.pcapng"):
        print(stream.key, len(stream.data), "bytes,", len(stream.gaps), "gaps")

The same in parts, each of which you can replace:

    capture  ->  decode  ->  pool  ->  connection  ->  Reassembly  ->  your stream

    open_capture(source), open_live(interface)     frames from a pcap or pcapng file, or from a network interface
    Assembler(pool, options)                       the conductor: assemble_capture, assemble_frame or assemble takes packets in;
                                                   flush_older_than, flush_with_options, flush_all give out what waits for a hole
    StreamPool(factory)                            the connections; calls factory(net_flow, transport_flow) for each new direction
    Stream                                         what your factory returns: reassembled(list of Reassembly), reassembly_complete()
    Reassembly                                     one piece of a stream: bytes, skip, start, end, seen

A connection is one direction of a TCP connection; the other direction is another one, with a stream of its own. A ConversationPool in the
place of the StreamPool pairs them: a handler for both sides, who is client, the handshake, how it was closed; `conversations` is to it
what `follow` is to streams.

A stream that has enough returns STOP, and gets no more; AssemblerOptions.depth does that for all, behind so many bytes.

Ready-made streams: ReaderStream (an io.RawIOBase, for parsers that want a file; DataLost at gaps), BytesStream, FileStream (with a
FilePool), DigestStream, SpanStream (where in the capture the bytes lie), ByteCountStream. All but the first are fed in C, without the
GIL; assemble_capture(path, threads=N) then runs N threads side by side. assemble_batch takes many frames at once.

Above all this, imported when they are first asked for: flow_table (flows and gaps as tables, for numpy, pyarrow, polars, pandas, duckdb;
FlowCollector is its factory), and aio (`aio.follow`, `aio.readers`: captures on asyncio).

Values: Flow and ConnectionKey (who talks to whom), TCPSegment (for `assemble`), Sequence (arithmetic modulo 2**32), AssemblerOptions
and FlushOptions (limits and rules), AssemblerStats (counters), Verdict (what a frame was), CaptureSummary.

Times are seconds (float, or aware datetime) under plain names and integer nanoseconds under names that end in _ns.

Two cores do exactly the same: `_compiled` (Cython) and `_pure` (the readable reference). `tcpreasm.implementation` tells which one runs;
TCPREASM_IMPLEMENTATION=auto|compiled|pure in the environment chooses. Logging goes to the loggers "tcpreasm.memory" (growth of the
page cache and the pool) and "tcpreasm.assembly" (each decision about a segment), both at level DEBUG and asked for once, when a pool or
an Assembler is made: off, they cost nothing. "tcpreasm.assembly" warns once where verify_checksums="auto" notices a sender.

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
