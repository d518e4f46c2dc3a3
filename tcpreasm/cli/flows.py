"""`tcpreasm flows`: who talked to whom, how much each way, what is missing, when, and how it ended.

Connections, both directions in a row, as text or JSON; or the tables of tcpreasm.tables, a row for a direction or a gap. Text for a
terminal has one writer, `_print_text`; tables have one path, `_write`, whatever the format.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from itertools import count
from typing import TYPE_CHECKING, Any

from ..api import Assembler, StreamPool
from ..flow import ConnectionKey, Flow
from ..pairs import Pairs
from ..streams import ByteCountStream, StreamFactory
from .common import add_captures, assembler_options, read, time_of

if TYPE_CHECKING:
    from ..tables import FlowCollector, FlowTable, Table

__all__ = ["add_parser"]

_COLUMNS = ("#", "client", "server", "sent", "received", "gaps", "missing", "first", "last", "state")
_NUMBERS = ("#", "sent", "received", "gaps", "missing")

_DESCRIPTION = """A line for each TCP connection, both directions together, in the order in which they began.

#          number, for `tcpreasm follow`
client     who was seen first
sent       bytes from client to server, as far as captured
received   bytes from server to client
gaps       holes in both streams together, and the bytes missing there
first/last capture time of the first and last packet that mattered
state      closed (both directions ended by FIN or RST), half-closed (one), open;
           no start: a direction was seen whose SYN was not captured

--csv and --parquet give a row for each direction instead: stream (the row), conversation (both
directions have the same), src, src_port, dst, dst_port, from_client (the direction seen first),
bytes, missing, gap_count, first_seen_ns, last_seen_ns (in CSV, nanoseconds since 1970), started and
ended (SYN captured, FIN or RST reached). --gaps gives a row for each hole: stream, its addresses and
ports, offset, length, and when the bytes behind it were seen."""


def add_parser(commands: Any) -> None:
    """Adds the subcommand."""
    parser = commands.add_parser(
        "flows",
        help="a table of TCP connections",
        description=_DESCRIPTION,
        epilog="examples:\n  tcpreasm flows capture.pcap\n  tcpreasm flows --json capture.pcap | jq .client\n"
        "  tcpreasm flows --gaps --csv capture.pcap > gaps.csv\n  tcpreasm flows --parquet flows.parquet capture.pcap",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_captures(parser)
    parser.add_argument("--gaps", action="store_true", help="a row for each hole in a stream")
    formats = parser.add_mutually_exclusive_group()
    formats.add_argument(
        "--json",
        action="store_true",
        help="a JSON object for each connection, a line each, as soon as both directions ended; or for each hole",
    )
    formats.add_argument("--csv", action="store_true", help="comma-separated values, a row for each direction, or for each hole")
    formats.add_argument("--parquet", metavar="FILE", help="the same rows as a Parquet file (needs the extra parquet)")
    parser.set_defaults(run=run)


class _Connection:
    """Both directions, as far as they were seen. The first one counts as the client's."""

    __slots__ = ("client", "key", "number", "server")

    def __init__(self, number: int, key: ConnectionKey) -> None:
        self.number = number
        self.key = key
        self.client: ByteCountStream | None = None
        self.server: ByteCountStream | None = None

    def directions(self) -> list[ByteCountStream]:
        return [stream for stream in (self.client, self.server) if stream is not None]

    def finished(self) -> bool:
        """Nothing can come any more."""
        return self.client is not None and self.server is not None and self.client.complete and self.server.complete

    def first_seen_ns(self) -> int | None:
        return min((stream.first_seen_ns for stream in self.directions() if stream.first_seen_ns is not None), default=None)

    def last_seen_ns(self) -> int | None:
        return max((stream.last_seen_ns for stream in self.directions() if stream.last_seen_ns is not None), default=None)

    def state(self) -> str:
        return ("open", "half-closed", "closed")[sum(stream.ended for stream in self.directions())]

    def row(self) -> dict[str, str]:
        directions = self.directions()
        return {
            "#": str(self.number),
            "client": self.key.src,
            "server": self.key.dst,
            "sent": str(self.client.length if self.client else 0),
            "received": str(self.server.length if self.server else 0),
            "gaps": str(sum(stream.gap_count for stream in directions)),
            "missing": str(sum(stream.skipped for stream in directions)),
            "first": time_of(self.first_seen_ns()),
            "last": time_of(self.last_seen_ns()),
            "state": self.state() + ("" if all(stream.started for stream in directions) else ", no start"),
        }

    def json(self) -> str:
        net, transport = self.key
        return json.dumps(
            {
                "number": self.number,
                "client": [str(net.src), transport.src],
                "server": [str(net.dst), transport.dst],
                "tunnels": net.tunnels,
                "state": self.state(),
                "first_seen": time_of(self.first_seen_ns()),
                "last_seen": time_of(self.last_seen_ns()),
                "first_seen_ns": self.first_seen_ns(),
                "last_seen_ns": self.last_seen_ns(),
                "c2s": _direction(self.client),
                "s2c": _direction(self.server),
            }
        )


def _direction(stream: ByteCountStream | None) -> dict[str, int | bool] | None:
    if stream is None:
        return None
    return {
        "bytes": stream.length,
        "gaps": stream.gap_count,
        "missing": stream.skipped,
        "started": stream.started,
        "ended": stream.ended,
    }


class _FlowStream(ByteCountStream):
    """One direction. Tells the connection's table when it is complete."""

    __slots__ = ("_connection", "_table")

    def __init__(self, net_flow: Flow, transport_flow: Flow, connection: _Connection, table: _Connections) -> None:
        super().__init__(net_flow, transport_flow)
        self._connection = connection
        self._table = table

    def reassembly_complete(self) -> None:
        super().reassembly_complete()
        self._table.stream_complete(self._connection)


class _Connections:
    """The factory, and all connections in the order in which they began; those printed at once are forgotten."""

    def __init__(self, print_at_once: bool) -> None:
        self._print_at_once = print_at_once
        numbers = count(1)
        self._pairs = Pairs(lambda key: _Connection(next(numbers), key))
        self.known: dict[_Connection, None] = {}

    def new(self, net_flow: Flow, transport_flow: Flow) -> _FlowStream:
        key = ConnectionKey(net_flow, transport_flow)
        connection = self._pairs.join(key)
        stream = _FlowStream(net_flow, transport_flow, connection, self)
        if connection.client is None:
            connection.client = stream
            self.known[connection] = None
        else:
            connection.server = stream
        return stream

    def stream_complete(self, connection: _Connection) -> None:
        if self._print_at_once and connection.finished():
            del self.known[connection]
            print(connection.json())


def run(arguments: argparse.Namespace) -> None:
    """Reads the captures and prints the connections, or writes a table; on Ctrl-C what was seen so far."""
    factory: StreamFactory
    if arguments.gaps or arguments.csv or arguments.parquet:
        from ..tables import FlowCollector

        if arguments.parquet:
            _pyarrow()  # before the captures are read
        factory = collector = FlowCollector()
        give = partial(_give_table, collector, arguments)
        is_silent = True
    else:
        factory = connections = _Connections(arguments.json)
        give = partial(_print_known, connections, arguments.json)
        is_silent = not arguments.json
    try:
        read(Assembler(StreamPool(factory), assembler_options(arguments)), arguments.captures, is_silent=is_silent)
    except KeyboardInterrupt:
        give()
        raise
    give()


def _print_known(connections: _Connections, as_json: bool) -> None:
    if as_json:
        for connection in connections.known:
            print(connection.json())
        return
    _print_text(_COLUMNS, _NUMBERS, [connection.row().values() for connection in connections.known])


def _print_text(names: Sequence[str], numbers: Sequence[str], rows: Iterable[Iterable[str]]) -> None:
    """Columns below each other, numbers to the right."""
    lines = [tuple(names), *map(tuple, rows)]
    widths = [max(map(len, column)) for column in zip(*lines)]
    for line in lines:
        cells = [cell.rjust(width) if name in numbers else cell.ljust(width) for name, cell, width in zip(names, line, widths)]
        print("  ".join(cells).rstrip())


# ---- tables

_ROWS = 1 << 12  # that are Python objects at a time


def _give_table(collector: FlowCollector, arguments: argparse.Namespace) -> None:
    tables = collector.table()
    _write(_gaps_with_ends(tables) if arguments.gaps else tables.flows, arguments)


def _gaps_with_ends(tables: FlowTable) -> Table:
    """The gaps, each with its stream's addresses and ports."""
    import numpy

    from ..tables import Table

    flows, gaps = tables.flows.array, tables.gaps.array
    ends = ("src", "src_port", "dst", "dst_port")
    names = ("stream", *ends, "offset", "length", "seen_ns")
    rows = numpy.empty(len(gaps), [(name, (flows if name in ends else gaps).dtype[name]) for name in names])
    for name in names:
        rows[name] = flows[name][gaps["stream"]] if name in ends else gaps[name]
    return Table(rows)


def _write(table: Table, arguments: argparse.Namespace) -> None:
    if arguments.parquet:
        pyarrow = _pyarrow()
        with open(arguments.parquet, "wb") as file:
            pyarrow.parquet.write_table(pyarrow.table(table), file)
    elif arguments.csv:
        writer = csv.writer(sys.stdout, lineterminator="\n")
        writer.writerow(table.columns)
        writer.writerows(map(_cells, _rows(table)))
    elif arguments.json:
        for row in _rows(table):
            print(json.dumps(dict(zip(table.columns, row))))
    else:
        kinds = [table.array.dtype[name].kind for name in table.columns]
        _print_text(
            [name.removesuffix("_ns") for name in table.columns],
            [name for name, kind in zip(table.columns, kinds) if kind in "iu"],
            ([time_of(cell) if kind == "M" else str(cell) for cell, kind in zip(row, kinds)] for row in _rows(table)),
        )


def _rows(table: Table) -> Iterator[list[Any]]:
    """As Python objects: text is str, times are nanoseconds, or None where they are not known."""
    import numpy

    for at in range(0, len(table), _ROWS):
        block = table.array[at : at + _ROWS]
        columns = []
        for name in table.columns:
            column = block[name]
            if column.dtype.kind == "M":
                columns.append([None if unknown else time for unknown, time in zip(numpy.isnat(column), column.astype("<i8").tolist())])
            else:
                columns.append((column.astype("U") if column.dtype.kind == "S" else column).tolist())
        yield from map(list, zip(*columns))


def _cells(row: list[Any]) -> list[Any]:
    """For CSV: truth as JSON writes it. (csv leaves None empty.)"""
    return [("false", "true")[cell] if isinstance(cell, bool) else cell for cell in row]


def _pyarrow() -> Any:
    try:
        import nanoarrow  # noqa: F401  # through which pyarrow takes a table
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise ImportError(f"--parquet needs pyarrow and nanoarrow: pip install 'tcpreasm[parquet]' ({error})") from None
    return pyarrow
