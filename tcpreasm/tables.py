"""`flow_table`: the flows of a capture and their gaps as tables, for numpy and for whatever reads Arrow.

Lives here: the rows, their types, and their way into Arrow's memory (nanoarrow does the C part). Not here: files of tables (cli/flows).
Called once a stream, when it begins and when it ends; nothing runs in Python for a packet.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from functools import lru_cache
from itertools import count
from threading import Lock
from typing import Any

import numpy

from ._log import Log
from .api import Assembler, CaptureSource, StreamPool
from .flow import ConnectionKey, Flow
from .options import AssemblerOptions
from .pairs import Pairs
from .streams import SpanStream

__all__ = ["FLOW_DTYPE", "GAP_DTYPE", "FlowCollector", "FlowTable", "Table", "flow_table"]

_log = Log(__name__)

Array = numpy.ndarray[Any, numpy.dtype[Any]]

# Addresses are text: it reads, prints, groups and joins without a word about families. As bytes, since numpy's str takes four times as
# much; 39 is the longest that an address gets.
FLOW_DTYPE = numpy.dtype(
    [
        ("stream", "<i8"),
        ("conversation", "<i8"),
        ("src", "S39"),
        ("src_port", "<u2"),
        ("dst", "S39"),
        ("dst_port", "<u2"),
        ("from_client", "?"),
        ("bytes", "<i8"),
        ("missing", "<i8"),
        ("gap_count", "<i8"),
        ("first_seen_ns", "<M8[ns]"),
        ("last_seen_ns", "<M8[ns]"),
        ("started", "?"),
        ("ended", "?"),
    ]
)
"""A row of `FlowTable.flows.array`."""

GAP_DTYPE = numpy.dtype([("stream", "<i8"), ("offset", "<i8"), ("length", "<i8"), ("seen_ns", "<M8[ns]")])
"""A row of `FlowTable.gaps.array`."""

_FLOW_ROW = struct.Struct("<qq39sH39sH?qqqqq??")  # the same as FLOW_DTYPE
_NO_TIME = -(1 << 63)  # numpy's NaT
_BATCH_ROWS = 1 << 20  # rows in one piece of an Arrow stream: their text stays far below the 2 GiB of its offsets


class Table:
    """Rows of a numpy structured array, which pyarrow, polars, pandas and duckdb take as they are.

    `pyarrow.table(table)`, `polars.DataFrame(table)`, `pandas.DataFrame.from_arrow(table)`; duckdb takes `from table` in its SQL. They ask
    for `__arrow_c_stream__` (Arrow's PyCapsule interface), which needs the extra `arrow` (nanoarrow): ImportError without it.

    In Arrow, text is string, `..._ns` is timestamp[ns, UTC], null where it is not known (numpy: NaT), and all else what it is in numpy.
    """

    __slots__ = ("_array",)

    def __init__(self, array: Array) -> None:
        self._array = array

    @property
    def array(self) -> Array:
        """The rows. Text is bytes, times are datetime64[ns] in UTC."""
        return self._array

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns' names."""
        return self._array.dtype.names or ()

    def __len__(self) -> int:
        return len(self._array)

    def __getitem__(self, name: str) -> Array:
        """A column: a view into `array`, or, of text, a copy as str. KeyError for names that are none."""
        if name not in self.columns:
            raise KeyError(f"no column {name!r}; there are {', '.join(self.columns)}")
        column: Array = self._array[name]
        return column.astype("U") if column.dtype.kind == "S" else column

    def __repr__(self) -> str:
        return f"<Table of {len(self)} rows: {', '.join(self.columns)}>"

    def __arrow_c_schema__(self) -> object:
        """The columns' types, as Arrow's PyCapsule interface wants them. ImportError without nanoarrow."""
        na = _nanoarrow()
        return na.c_schema(self._schema(na)).__arrow_c_schema__()

    def __arrow_c_stream__(self, requested_schema: object | None = None) -> object:
        """The rows, as Arrow's PyCapsule interface wants them: a copy. ImportError without nanoarrow.

        Another schema than the table's is not heeded, as that interface allows: whoever asks casts what comes.
        """
        na = _nanoarrow()
        from nanoarrow.c_array_stream import CArrayStream

        schema = na.c_schema(self._schema(na))
        batches = [_batch(na, schema, self._array[at : at + _BATCH_ROWS]) for at in range(0, len(self), _BATCH_ROWS)]
        return CArrayStream.from_c_arrays(batches, schema).__arrow_c_stream__()

    def _schema(self, na: Any) -> Any:
        return na.struct({name: _arrow_type(na, self._array.dtype[name]) for name in self.columns}, nullable=False)


def _nanoarrow() -> Any:
    try:
        import nanoarrow
    except ImportError as error:
        raise ImportError(f"tables for Arrow need nanoarrow: pip install 'tcpreasm[arrow]' ({error})", name="nanoarrow") from None
    return nanoarrow


def _arrow_type(na: Any, dtype: numpy.dtype[Any]) -> Any:
    if dtype.kind == "S":
        return na.string(nullable=False)
    if dtype.kind == "M":
        return na.timestamp("ns", "UTC")
    if dtype.kind == "b":
        return na.bool_(nullable=False)
    return {"<i8": na.int64, "<u2": na.uint16}[dtype.str](nullable=False)


def _batch(na: Any, schema: Any, rows: Array) -> Any:
    columns = []
    for name in rows.dtype.names or ():
        column = numpy.ascontiguousarray(rows[name])
        buffers: list[Array | None] = [None, column]
        if column.dtype.kind == "S":
            buffers = [None, *_text_buffers(column)]
        elif column.dtype.kind == "M":
            buffers = [numpy.packbits(~numpy.isnat(column), bitorder="little"), column.view("<i8")]
        elif column.dtype.kind == "b":
            buffers = [None, numpy.packbits(column, bitorder="little")]
        columns.append(na.c_array_from_buffers(_arrow_type(na, column.dtype), len(column), buffers))
    return na.c_array_from_buffers(schema, len(rows), [None], children=columns)


def _text_buffers(column: Array) -> tuple[Array, Array]:
    """Arrow's text: where each begins, and all of it in a row."""
    lengths = numpy.strings.str_len(column)
    offsets = numpy.zeros(len(column) + 1, "<i4")
    numpy.cumsum(lengths, out=offsets[1:])
    letters = column.view("u1").reshape(len(column), column.dtype.itemsize)
    return offsets, letters[numpy.arange(column.dtype.itemsize) < lengths[:, None]]


@dataclass(frozen=True, slots=True)
class FlowTable:
    """What `flow_table` gives.

    Attributes:
        flows: a row for each direction of each connection, in the order in which they began (by `first_seen_ns`, then addresses and ports).

            | column | |
            | --- | --- |
            | stream | the row's number, from 0 |
            | conversation | the connection's number: both directions have the same |
            | src, src_port, dst, dst_port | who sent to whom |
            | from_client | this direction was seen first of the two |
            | bytes | bytes that came |
            | missing, gap_count | bytes in holes, and their number; an unknown start counts as none |
            | first_seen_ns, last_seen_ns | capture time of the earliest and the latest packet that brought something |
            | started, ended | the SYN was captured; FIN or RST was reached |

        gaps: a row for each hole, in the order of streams and offsets.

            | column | |
            | --- | --- |
            | stream | whose it is: the row in `flows` |
            | offset, length | where in the stream, which counts missing bytes too, and how many bytes |
            | seen_ns | capture time of the packet whose bytes (or end) stand behind the hole |
    """

    flows: Table
    gaps: Table


class _Conversation:
    __slots__ = ("number", "seen")

    def __init__(self, number: int) -> None:
        self.number = number
        self.seen = False


class _FlowStream(SpanStream):
    """One direction. Tells the collector when it is complete, and can be forgotten then."""

    __slots__ = ("_collector", "conversation", "from_client", "number")

    def __init__(self, net_flow: Flow, transport_flow: Flow, collector: FlowCollector, number: int, conversation: _Conversation) -> None:
        super().__init__(net_flow, transport_flow)
        self._collector = collector
        self.number = number
        self.conversation = conversation.number
        self.from_client = not conversation.seen
        conversation.seen = True

    def reassembly_complete(self) -> None:
        super().reassembly_complete()
        self._collector.stream_complete(self)

    def flow_row(self) -> bytes:
        """As FLOW_DTYPE."""
        net, transport = self.key
        return _FLOW_ROW.pack(
            self.number,
            self.conversation,
            _text(net.raw_src),
            transport.raw_src,
            _text(net.raw_dst),
            transport.raw_dst,
            self.from_client,
            self.length,
            self.skipped,
            self.gap_count,
            _NO_TIME if self.first_seen_ns is None else self.first_seen_ns,
            _NO_TIME if self.last_seen_ns is None else self.last_seen_ns,
            self.started,
            self.ended,
        )

    def gap_rows(self) -> bytes:
        """As GAP_DTYPE."""
        if not self.gap_count:
            return b""
        spans = self.spans
        lengths = spans["skip"].clip(0)
        holes = lengths > 0
        gaps = numpy.empty(holes.sum(), GAP_DTYPE)
        gaps["stream"] = self.number
        gaps["offset"] = (numpy.cumsum(lengths + spans["length"]) - lengths - spans["length"])[holes]
        gaps["length"] = lengths[holes]
        gaps["seen_ns"] = spans["seen_ns"][holes].view("<M8[ns]")
        return gaps.tobytes()


@lru_cache(maxsize=1 << 12)
def _text(raw: bytes | int) -> bytes:
    import ipaddress

    return str(ipaddress.ip_address(raw)).encode()


class FlowCollector:
    """A factory for a `StreamPool` whose streams become a FlowTable: what `flow_table` is made with, for sources of your own.

    For any number of assemblers and threads. Of a stream that is over it keeps the row, about 150 bytes, and its gaps; as much again while
    the other direction was not seen. Of one that is open it also keeps 32 bytes for each packet with payload.

    >>> collector = FlowCollector()
    >>> with Assembler(StreamPool(collector)) as assembler:
    ...     summary = assembler.assemble_capture([])
    >>> len(collector.table().flows)
    0
    """

    def __init__(self) -> None:
        self._lock = Lock()
        self._numbers = count()
        self._conversations = count()
        self._pairs = Pairs(self._begin)
        self._open: dict[int, _FlowStream] = {}
        self._flows = bytearray()
        self._gaps = bytearray()

    def _begin(self, key: ConnectionKey) -> _Conversation:
        return _Conversation(next(self._conversations))

    def new(self, net_flow: Flow, transport_flow: Flow) -> _FlowStream:
        """The stream for one direction of a new connection."""
        conversation = self._pairs.join(ConnectionKey(net_flow, transport_flow))
        stream = _FlowStream(net_flow, transport_flow, self, next(self._numbers), conversation)
        with self._lock:
            self._open[stream.number] = stream
        return stream

    def stream_complete(self, stream: _FlowStream) -> None:
        """Called by the stream."""
        with self._lock:
            self._flows += stream.flow_row()
            self._gaps += stream.gap_rows()
            del self._open[stream.number]

    def table(self) -> FlowTable:
        """What came so far, open streams too. From any thread."""
        with self._lock:
            still_open = list(self._open.values())
            flow_rows = self._flows + b"".join(stream.flow_row() for stream in still_open)
            gap_rows = self._gaps + b"".join(stream.gap_rows() for stream in still_open)
        flows = numpy.frombuffer(flow_rows, FLOW_DTYPE)
        gaps = numpy.frombuffer(gap_rows, GAP_DTYPE)
        # With several threads chance numbers the streams; their order must not show it. Unknown times, as unsigned numbers, come last.
        first_seen = flows["first_seen_ns"].astype("<i8").view("<u8")
        flows = flows[numpy.lexsort((flows["stream"], flows["dst_port"], flows["src_port"], flows["dst"], flows["src"], first_seen))]
        gaps = gaps.copy()
        by_number = numpy.argsort(flows["stream"])
        gaps["stream"] = by_number[numpy.searchsorted(flows["stream"], gaps["stream"], sorter=by_number)]
        flows["stream"] = numpy.arange(len(flows))
        _, first, which = numpy.unique(flows["conversation"], return_index=True, return_inverse=True)
        conversations = numpy.empty(len(first), "<i8")
        conversations[numpy.argsort(first)] = numpy.arange(len(first))
        flows["conversation"] = conversations[which]
        return FlowTable(Table(flows), Table(gaps[numpy.lexsort((gaps["offset"], gaps["stream"]))]))


def flow_table(source: CaptureSource, options: AssemblerOptions | None = None, *, threads: int = 1) -> FlowTable:
    """The flows of a capture, and the gaps in them, as tables.

    Args:
        source: a path, "-" for standard input, a binary file object, bytes, an open capture, an iterable of frames, or a list of these: see
            `Assembler.assemble_capture`.
        options: AssemblerOptions; the defaults where None.
        threads: as for `Assembler.assemble_capture`. The tables are the same with any number.

    A capture that is cut in the middle gives what is there, and a logged warning. OSError and CaptureError as `assemble_capture`.

    >>> table = flow_table([])
    >>> table.flows
    <Table of 0 rows: stream, conversation, src, src_port, dst, dst_port, from_client, bytes, missing, gap_count, first_seen_ns, \
last_seen_ns, started, ended>
    >>> table.gaps["length"].tolist()
    []
    """
    collector = FlowCollector()
    summary = Assembler(StreamPool(collector), options).assemble_capture(source, threads=threads)
    for problem in summary.problems:
        _log.warning("%s", problem)
    return collector.table()
