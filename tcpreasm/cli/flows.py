"""`tcpreasm flows`: who talked to whom, how much each way, what is missing, when, and how it ended.

Connections, both directions in a row, as text or JSON; or the tables of tcpreasm.tables, a row for a direction or a gap. Text for a
terminal has one writer, `_TextTable`; tables have one path, `_write`, whatever the format.
"""

from __future__ import annotations

import argparse
import csv
import json
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any

from ..api import Assembler
from ..conversations import ConversationPool, SideStreams
from ..numbered import Numbered, Numbering
from ..streams import ByteCountStream
from .common import add_captures, assembler_options, complain, handshake_text, read, time_of

if TYPE_CHECKING:
    from ..tables import FlowCollector, FlowTable, Table

__all__ = ["add_parser"]

_COLUMNS = ("#", "client", "server", "sent", "received", "gaps", "missing", "first", "last", "handshake", "state")
_NUMBERS = ("#", "sent", "received", "gaps", "missing", "handshake")

_DESCRIPTION = """A line for each TCP connection, both directions together, in the order in which they began.

#          number, for `tcpreasm follow` and `tcpreasm plot`
client     who sent the SYN, or was answered with a SYN-ACK; see `client guessed`
sent       bytes from client to server, as far as captured
received   bytes from server to client
gaps       holes in both streams together, and the bytes missing there
first/last capture time of the first and last segment
handshake  from the SYN to the client's ACK: a round trip
state      opening (nothing but a SYN), open, half-closed (one FIN), closed (both), reset (by RST),
           refused (a RST answered the SYN);
           no start: a direction was seen whose SYN was not captured;
           client guessed: nobody's was, and who has the lower port is taken for the server

Where a terminal is too narrow, columns are left out, and a line on standard error names them.

--csv and --parquet give a row for each direction instead: stream (the row), conversation (both
directions have the same), src, src_port, dst, dst_port, from_client (the client sent it), bytes,
missing, gap_count, first_seen_ns, last_seen_ns (of what the stream got; in CSV, nanoseconds since
1970), started and ended (SYN captured, FIN or RST reached), tunnels (around it), state, guessed (who
is client), handshake_time_ns. --gaps gives a row for each hole: stream, its addresses and ports,
offset, length, and when the bytes behind it were seen."""


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
        help="a JSON object for each connection, a line each, as soon as it is complete; or for each hole",
    )
    formats.add_argument("--csv", action="store_true", help="comma-separated values, a row for each direction, or for each hole")
    formats.add_argument("--parquet", metavar="FILE", help="the same rows as a Parquet file (needs the extra parquet)")
    parser.set_defaults(run=run)


def _cells_of(one: Numbered) -> list[str]:
    """As _COLUMNS."""
    first_ns, last_ns = one.span_ns
    return [
        str(one.number),
        one.key.src,
        one.key.dst,
        str(one.sent),
        str(one.received),
        str(one.gap_count),
        str(one.missing),
        time_of(first_ns),
        time_of(last_ns),
        handshake_text(one.conversation),
        one.state_text,
    ]


def _json(one: Numbered) -> str:
    conversation = one.conversation
    net, transport = one.key
    first_ns, last_ns = one.span_ns
    return json.dumps(
        {
            "number": one.number,
            "client": [str(net.src), transport.src],
            "server": [str(net.dst), transport.dst],
            "tunnels": net.tunnels,
            "state": conversation.state,
            "first_seen": time_of(first_ns),
            "last_seen": time_of(last_ns),
            "first_seen_ns": first_ns,
            "last_seen_ns": last_ns,
            "c2s": _direction(one.client),
            "s2c": _direction(one.server),
            "guessed": conversation.guessed,
            "handshake_time_ns": conversation.handshake_time_ns,
            "closed_by": conversation.closed_by,
            "closed_how": conversation.closed_how,
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


class _TextTable:
    """Rows that are printed below each other once all are there; numbers to the right.

    Args:
        names: of the columns.
        numbers: those of numbers.
        spare: those that are left out first, in this order, where a terminal is too narrow for all.
    """

    def __init__(self, names: Sequence[str], numbers: Sequence[str], spare: Sequence[str] = ()) -> None:
        self._names = names
        self._numbers = numbers
        self._spare = spare
        self._widths = [*map(len, names)]
        self._rows: list[tuple[int, str]] = []

    def add(self, number: int, cells: Sequence[str]) -> None:
        """A row, and where it stands among the others."""
        self._widths = [*map(max, self._widths, map(len, cells))]
        self._rows.append((number, "\t".join(cells)))  # a third of the memory of its cells: there may be millions

    def print(self) -> None:
        shown = [*self._names]
        widths = dict(zip(self._names, self._widths))
        room = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
        for name in self._spare:
            if room is None or sum(widths[one] for one in shown) + 2 * (len(shown) - 1) <= room:
                break
            shown.remove(name)
        self._rows.sort()
        for cells in chain([self._names], (row.split("\t") for _, row in self._rows)):
            columns = dict(zip(self._names, cells))
            line = (columns[one].rjust(widths[one]) if one in self._numbers else columns[one].ljust(widths[one]) for one in shown)
            print("  ".join(line).rstrip())
        if len(shown) < len(self._names):
            left_out = ", ".join(name for name in self._names if name not in shown)
            complain(f"left out, for the terminal is too narrow: {left_out}")


def run(arguments: argparse.Namespace) -> None:
    """Reads the captures and prints the connections, or writes a table; on Ctrl-C what was seen so far."""
    streams: SideStreams
    give: Callable[[], None]
    is_silent = True
    if arguments.gaps or arguments.csv or arguments.parquet:
        from ..tables import FlowCollector

        if arguments.parquet:
            _pyarrow()  # before the captures are read
        streams = collector = FlowCollector()
        give = partial(_give_table, collector, arguments)
    elif arguments.json:
        streams = Numbering(lambda side: ByteCountStream(), lambda one: print(_json(one)))
        give = sys.stdout.flush  # each was printed when it was complete
        is_silent = False
    else:
        table = _TextTable(_COLUMNS, _NUMBERS, ("last", "first", "missing", "gaps", "handshake"))
        streams = Numbering(lambda side: ByteCountStream(), lambda one: table.add(one.number, _cells_of(one)))
        give = table.print
    try:
        read(Assembler(ConversationPool(streams=streams), assembler_options(arguments)), arguments.captures, is_silent=is_silent)
    except KeyboardInterrupt:
        give()
        raise
    give()


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
        names = [name.removesuffix("_ns") for name in table.columns]
        text = _TextTable(names, [name for name, kind in zip(names, kinds) if kind in "iu"], ("seen",))
        for number, row in enumerate(_rows(table)):
            text.add(number, [time_of(cell) if kind == "M" else str(cell) for cell, kind in zip(row, kinds)])
        text.print()


def _rows(table: Table) -> Iterator[list[Any]]:
    """As Python objects: text is str, times are nanoseconds, or None where they are not known."""
    import numpy

    for at in range(0, len(table), _ROWS):
        block = table.array[at : at + _ROWS]
        columns = []
        for name in table.columns:
            column = block[name]
            if column.dtype.kind in "Mm":
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
