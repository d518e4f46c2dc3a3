"""`flow_table`: the flows of a capture and their gaps as tables, for numpy and for whatever reads Arrow.

Lives here: the rows, their types, and their way into Arrow's memory (nanoarrow does the C part). Not here: files of tables (cli/flows).
Called once a stream, when it begins and when it ends; nothing runs in Python for a packet.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from functools import lru_cache
from threading import Lock
from typing import Any

import numpy

from ._log import Log
from .api import Assembler, CaptureSource
from .conversations import Conversation, ConversationPool, Side
from .options import AssemblerOptions
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
        ("tunnels", "<u2"),
        ("state", "S11"),
        ("guessed", "?"),
        ("handshake_time_ns", "<m8[ns]"),
    ]
)
"""A row of `FlowTable.flows.array`."""

GAP_DTYPE = numpy.dtype([("stream", "<i8"), ("offset", "<i8"), ("length", "<i8"), ("seen_ns", "<M8[ns]")])
"""A row of `FlowTable.gaps.array`."""

_FLOW_ROW = struct.Struct("<qq39sH39sH?qqqqq??H11s?q")  # the same as FLOW_DTYPE
_NO_TIME = -(1 << 63)  # numpy's NaT
_BATCH_ROWS = 1 << 20  # rows in one piece of an Arrow stream: their text stays far below the 2 GiB of its offsets


class Table:
    """Rows of a numpy structured array, which pyarrow, polars, pandas and duckdb take as they are.

    `pyarrow.table(table)`, `polars.DataFrame(table)`, `pandas.DataFrame.from_arrow(table)`; duckdb takes `from table` in its SQL. They ask
    for `__arrow_c_stream__` (Arrow's PyCapsule interface), which needs the extra `arrow` (nanoarrow): ImportError without it.

    In Arrow, text is string, `..._seen_ns` is timestamp[ns, UTC], `..._time_ns` is duration[ns], either of them null where it is not known
    (numpy: NaT), and all else what it is in numpy.
    """

    __slots__ = ("_array",)

    def __init__(self, array: Array) -> None:
        self._array = array

    @property
    def array(self) -> Array:
        """The rows. Text is bytes, times are datetime64[ns] in UTC, or timedelta64[ns]."""
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
    if dtype.kind == "m":
        return na.duration("ns")
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
        elif column.dtype.kind in "Mm":
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
            | from_client | the client sent it: see `Conversation.client` |
            | bytes | bytes that came |
            | missing, gap_count | bytes in holes, and their number; an unknown start counts as none |
            | first_seen_ns, last_seen_ns | capture time of the earliest and the latest packet that brought something |
            | started, ended | the SYN was captured; FIN or RST was reached |
            | tunnels | how many tunnels lay around it: `Flow.tunnels` |
            | state | the connection's: `Conversation.state` |
            | guessed | who is client is a guess: `Conversation.guessed` |
            | handshake_time_ns | from the SYN to the client's ACK: `Conversation.handshake_time_ns` |

        gaps: a row for each hole, in the order of streams and offsets.

            | column | |
            | --- | --- |
            | stream | whose it is: the row in `flows` |
            | offset, length | where in the stream, which counts missing bytes too, and how many bytes |
            | seen_ns | capture time of the packet whose bytes (or end) stand behind the hole |
    """

    flows: Table
    gaps: Table


def _flow_row(
    side: Side, from_client: bool, number: int, conversation: int, state: bytes, guessed: bool, handshake_ns: int | None
) -> bytes:
    """As FLOW_DTYPE."""
    net, transport = side.key
    stream = side.stream
    return _FLOW_ROW.pack(
        number,
        conversation,
        _text(net.raw_src),
        transport.raw_src,
        _text(net.raw_dst),
        transport.raw_dst,
        from_client,
        stream.length,
        stream.skipped,
        stream.gap_count,
        _NO_TIME if stream.first_seen_ns is None else stream.first_seen_ns,
        _NO_TIME if stream.last_seen_ns is None else stream.last_seen_ns,
        stream.started,
        stream.ended,
        net.tunnels,
        state,
        guessed,
        _NO_TIME if handshake_ns is None else handshake_ns,
    )


def _gap_rows(stream: SpanStream, number: int) -> bytes:
    """As GAP_DTYPE."""
    if not stream.gap_count:
        return b""
    spans = stream.spans
    lengths = spans["skip"].clip(0)
    holes = lengths > 0
    gaps = numpy.empty(holes.sum(), GAP_DTYPE)
    gaps["stream"] = number
    gaps["offset"] = (numpy.cumsum(lengths + spans["length"]) - lengths - spans["length"])[holes]
    gaps["length"] = lengths[holes]
    gaps["seen_ns"] = spans["seen_ns"][holes].view("<M8[ns]")
    return gaps.tobytes()


@lru_cache(maxsize=1 << 12)
def _text(raw: bytes | int) -> bytes:
    import ipaddress

    return str(ipaddress.ip_address(raw)).encode()


class FlowCollector:
    """The `streams` of a `ConversationPool`, which become a FlowTable: what `flow_table` is made with, for sources of your own.

    For any number of assemblers and threads. Of a conversation that is complete it keeps the rows, about 170 bytes for each direction, and
    its gaps. Of one that is not it also keeps 32 bytes for each packet with payload. `Conversation.context` is its own.

    >>> collector = FlowCollector()
    >>> with Assembler(ConversationPool(streams=collector)) as assembler:
    ...     summary = assembler.assemble_capture([])
    >>> len(collector.table().flows)
    0
    """

    def __init__(self) -> None:
        self._lock = Lock()
        self._conversations = 0
        self._open: dict[int, Conversation] = {}
        self._complete = _Rows()

    def new(self, side: Side) -> SpanStream:
        """The stream for one side of a conversation."""
        conversation = side.conversation
        with self._lock:
            if conversation.context is None:
                conversation.context = self._conversations
                self._open[self._conversations] = conversation
                self._conversations += 1
        return SpanStream()

    def conversation_complete(self, conversation: Conversation) -> None:
        """Called by the pool."""
        with self._lock:
            self._complete.add(conversation)
            del self._open[conversation.context]

    def table(self) -> FlowTable:
        """What came so far, open streams too. From any thread."""
        with self._lock:
            rows = self._complete.copy()
            for conversation in self._open.values():
                rows.add(conversation)
        flows = numpy.frombuffer(rows.flows, FLOW_DTYPE)
        gaps = numpy.frombuffer(rows.gaps, GAP_DTYPE)
        # With several threads chance numbers the streams; their order must not show it. Unknown times, as unsigned numbers, come last.
        first_seen = flows["first_seen_ns"].astype("<i8").view("<u8")
        ends = (flows[name] for name in ("stream", "tunnels", "dst_port", "src_port", "dst", "src"))
        flows = flows[numpy.lexsort((*ends, first_seen))]
        gaps = gaps.copy()
        by_number = numpy.argsort(flows["stream"])
        gaps["stream"] = by_number[numpy.searchsorted(flows["stream"], gaps["stream"], sorter=by_number)]
        flows["stream"] = numpy.arange(len(flows))
        _, first, which = numpy.unique(flows["conversation"], return_index=True, return_inverse=True)
        conversations = numpy.empty(len(first), "<i8")
        conversations[numpy.argsort(first)] = numpy.arange(len(first))
        flows["conversation"] = conversations[which]
        return FlowTable(Table(flows), Table(gaps[numpy.lexsort((gaps["offset"], gaps["stream"]))]))


class _Rows:
    """Rows of flows and of their gaps, packed."""

    __slots__ = ("count", "flows", "gaps")

    def __init__(self) -> None:
        self.count = 0
        self.flows = bytearray()
        self.gaps = bytearray()

    def add(self, conversation: Conversation) -> None:
        shared = conversation.context, conversation.state.encode(), conversation.guessed, conversation.handshake_time_ns
        for side, from_client in zip(conversation.sides, (True, False)):
            if side.stream is not None:
                self.flows += _flow_row(side, from_client, self.count, *shared)
                self.gaps += _gap_rows(side.stream, self.count)
                self.count += 1

    def copy(self) -> _Rows:
        rows = _Rows()
        rows.count, rows.flows, rows.gaps = self.count, self.flows[:], self.gaps[:]
        return rows


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
last_seen_ns, started, ended, tunnels, state, guessed, handshake_time_ns>
    >>> table.gaps["length"].tolist()
    []
    """
    collector = FlowCollector()
    summary = Assembler(ConversationPool(streams=collector), options).assemble_capture(source, threads=threads)
    for problem in summary.problems:
        _log.warning("%s", problem)
    return collector.table()
