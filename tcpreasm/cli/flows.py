"""`tcpreasm flows`: who talked to whom, how much each way, what is missing, when, and how it ended."""

from __future__ import annotations

import argparse
import json
from itertools import count
from typing import Any

from ..api import Assembler, StreamPool
from ..flow import ConnectionKey, Flow
from ..streams import ByteCountStream
from .common import Pairs, add_captures, assembler_options, read, time_of

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
           no start: a direction was seen whose SYN was not captured"""


def add_parser(commands: Any) -> None:
    """Adds the subcommand."""
    parser = commands.add_parser(
        "flows",
        help="a table of TCP connections",
        description=_DESCRIPTION,
        epilog="examples:\n  tcpreasm flows capture.pcap\n  tcpreasm flows --json capture.pcap | jq .client",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_captures(parser)
    parser.add_argument(
        "--json", action="store_true", help="a JSON object for each connection, a line each, as soon as both directions ended"
    )
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
    """Reads the captures and prints the connections; on Ctrl-C those that were seen so far."""
    connections = _Connections(arguments.json)
    assembler = Assembler(StreamPool(connections), assembler_options(arguments))
    try:
        read(assembler, arguments.captures, is_silent=not arguments.json)
    except KeyboardInterrupt:
        _print_known(connections, arguments.json)
        raise
    _print_known(connections, arguments.json)


def _print_known(connections: _Connections, as_json: bool) -> None:
    if as_json:
        for connection in connections.known:
            print(connection.json())
        return
    rows = [connection.row() for connection in connections.known]
    widths = {name: max([len(name), *(len(row[name]) for row in rows)]) for name in _COLUMNS}
    for row in ({name: name for name in _COLUMNS}, *rows):
        cells = [row[name].rjust(widths[name]) if name in _NUMBERS else row[name].ljust(widths[name]) for name in _COLUMNS]
        print("  ".join(cells).rstrip())
