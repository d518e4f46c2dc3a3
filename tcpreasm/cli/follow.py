"""`tcpreasm follow`: what both sides of one connection said, in the order of the capture.

Lives here: which connection, the order of its pieces, and three ways to write them. What an application sent is fit for a terminal only
as `ascii` and `hex` write it: printable ASCII, and nothing that a terminal would obey.
"""

from __future__ import annotations

import argparse
import os
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ..api import Assembler
from ..capture import Capture
from ..conversations import ROLES, ConversationPool, Side
from ..flow import ConnectionKey
from ..numbered import Numbered, Numbering
from ..streams import ByteCountStream, Stream
from .common import CommandError, add_captures, assembler_options, complain, positive, read

if TYPE_CHECKING:
    from .._select import core

__all__ = ["add_parser"]

_MAX_WAITING = 64 << 20  # bytes that wait for their place in the order
_ROW = 16  # bytes of a line of hex
_SIGNS = ("> ", "< ")
_COLOURS = ("\x1b[33m", "\x1b[36m")  # yellow and cyan: readable on dark and light, and told apart by nearly everybody
_RESET = "\x1b[0m"
_LONG_LINE = 1 << 16  # bytes; longer ones are broken, for all of a stream may be one
_DOTS = bytes(byte if 32 <= byte < 127 else ord(".") for byte in range(256))
_DOTS_AND_TABS = _DOTS[:9] + b"\t" + _DOTS[10:]

_DESCRIPTION = """What both sides of one connection sent, in the order of the capture. N is its number in
`tcpreasm flows`, called with the same captures and options.

ascii   lines begin with > for the client and < for the server; what is no printable ASCII is a dot
hex     offset in the side's stream, bytes, and the same as ascii
raw     the bytes alone, for a file or another program; what is missing is left out, and told on
        standard error

In ascii and hex a line tells where bytes are missing, or that there are none, and how it ended. Two
colours on a terminal, unless NO_COLOR is set. Reading ends with the connection. `client guessed`: see
`tcpreasm flows --help`."""


def add_parser(commands: Any) -> None:
    """Adds the subcommand."""
    parser = commands.add_parser(
        "follow",
        help="what both sides of one connection said",
        description=_DESCRIPTION,
        epilog="examples:\n  tcpreasm follow capture.pcap 3\n  tcpreasm follow capture.pcap 3 --format hex --color always | less -R\n"
        "  tcpreasm follow capture.pcap 3 --format raw --server > answer.bin",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_captures(parser)
    parser.add_argument("number", metavar="N", type=positive, help="the connection's number in `tcpreasm flows`")
    parser.add_argument("--format", choices=tuple(_WRITERS), default="ascii", help="how to write it (default %(default)s)")
    when = "auto: on a terminal, unless NO_COLOR is set (default %(default)s)"
    parser.add_argument("--color", choices=("auto", "always", "never"), default="auto", help=when)
    sides = parser.add_mutually_exclusive_group()
    sides.add_argument("--client", dest="only", action="store_const", const="client", help="only what the client sent")
    sides.add_argument("--server", dest="only", action="store_const", const="server", help="only what the server sent")
    parser.set_defaults(run=run)


class _Writer(ABC):
    """Takes the pieces in their order. Side 0 is the client's."""

    def __init__(self, colours: bool) -> None:
        self._colours = colours
        self._side: int | None = None

    def begin(self, number: int, client: ConnectionKey, guessed: bool) -> None:
        """Which connection it is."""
        words = "  (client guessed)" if guessed else ""
        sys.stdout.write(f"connection {number}: {_SIGNS[0]}{client.src}  {_SIGNS[1]}{client.dst}{words}\n")

    def nothing(self, state: str) -> None:
        """Nobody who is wanted has sent a byte."""
        sys.stdout.write(f"[no bytes: {state}]\n")

    def write(self, side: int, skip: int, data: bytes) -> None:
        """Bytes, after so many that are missing; -1 where nobody knows how many."""
        if side != self._side or skip:
            self.end()
        self._side = side
        if skip:
            self._gap(side, skip)
        self._bytes(side, data)

    @abstractmethod
    def end(self) -> None:
        """Of what one side said at once: nothing may wait for more of it."""

    @abstractmethod
    def _bytes(self, side: int, data: bytes) -> None: ...

    def _gap(self, side: int, skip: int) -> None:
        self._line(side, "[start not captured]" if skip < 0 else f"[{skip} bytes missing]")

    def _line(self, side: int, text: str) -> None:
        text = _SIGNS[side] + text
        sys.stdout.write(f"{_COLOURS[side]}{text}{_RESET}\n" if self._colours else f"{text}\n")


class _AsciiWriter(_Writer):
    def __init__(self, colours: bool) -> None:
        super().__init__(colours)
        self._rest = b""  # a line that is not over

    def _bytes(self, side: int, data: bytes) -> None:
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            self._line(side, line.removesuffix(b"\r").translate(_DOTS_AND_TABS).decode())
        if len(self._rest) > _LONG_LINE:
            self.end()

    def end(self) -> None:
        if self._rest and self._side is not None:
            self._line(self._side, self._rest.translate(_DOTS_AND_TABS).decode())
            self._rest = b""


class _HexWriter(_Writer):
    def __init__(self, colours: bool) -> None:
        super().__init__(colours)
        self._rest = b""  # a row that is not full
        self._offsets = [0, 0]

    def _bytes(self, side: int, data: bytes) -> None:
        data = self._rest + data
        whole = len(data) // _ROW * _ROW
        for at in range(0, whole, _ROW):
            self._row(side, data[at : at + _ROW])
        self._rest = data[whole:]

    def _row(self, side: int, row: bytes) -> None:
        digits = f"{row[: _ROW // 2].hex(' ')}  {row[_ROW // 2 :].hex(' ')}"
        self._line(side, f"{self._offsets[side]:08x}  {digits:<{3 * _ROW}}  |{row.translate(_DOTS).decode()}|")
        self._offsets[side] += len(row)

    def _gap(self, side: int, skip: int) -> None:
        super()._gap(side, skip)
        self._offsets[side] += max(0, skip)

    def end(self) -> None:
        if self._rest and self._side is not None:
            self._row(self._side, self._rest)
            self._rest = b""


class _RawWriter(_Writer):
    def __init__(self, colours: bool) -> None:
        super().__init__(False)
        if sys.stdout.isatty():
            raise CommandError("raw bytes are not for a terminal, which may obey them: send them to a file or another program")
        self._missing = 0

    def begin(self, number: int, client: ConnectionKey, guessed: bool) -> None:
        """Nothing: there are bytes only."""

    def nothing(self, state: str) -> None:
        """Nothing either."""

    def _bytes(self, side: int, data: bytes) -> None:
        sys.stdout.buffer.write(data)

    def _gap(self, side: int, skip: int) -> None:
        complain(f"the {ROLES[side]}'s " + ("start was not captured" if skip < 0 else f"next {skip} bytes are missing"))

    def end(self) -> None:
        """Nothing waits."""


_WRITERS: dict[str, Callable[[bool], _Writer]] = {"ascii": _AsciiWriter, "hex": _HexWriter, "raw": _RawWriter}


class _Order:
    """The pieces of both sides, brought back into the order of the capture: what lies behind a gap comes late.

    Args:
        number: of the connection.
        writer: gets them.
        only: the role of the only side that is wanted; None: both.
    """

    def __init__(self, number: int, writer: _Writer, only: str | None) -> None:
        self._number = number
        self._writer = writer
        self._only = only
        self._sides: list[Side] = []  # in the order in which they began
        self._client: int | None = None  # which of them; known from the first piece that is written on: what is written stays true
        self._waiting: list[tuple[int, int, int, int, bytes]] = []
        self._waiting_bytes = 0
        self._last_ns = [0, 0]
        self._is_silent = True  # nothing was written yet
        self.is_over = False
        """Nothing more comes."""

    def stream(self, side: Side) -> Stream:
        """The stream of a side of any connection."""
        if side.conversation.context != self._number:
            return ByteCountStream()
        self._sides.append(side)
        return _SideStream(self, len(self._sides) - 1)

    def done(self, one: Numbered) -> None:
        """A connection is complete."""
        self.is_over = self.is_over or one.number == self._number

    def add(self, at: int, piece: core.Reassembly) -> None:
        """The next piece of the side that began first (0), or second (1). Within one the order of the stream holds, whenever its packets
        came."""
        self._last_ns[at] = max(self._last_ns[at], piece.seen_ns)
        if piece.skip or len(piece):
            self._waiting.append((self._last_ns[at], len(self._waiting), at, piece.skip, piece.bytes))
            self._waiting_bytes += len(piece)

    @property
    def is_full(self) -> bool:
        """Memory is worth more than the order."""
        return self._waiting_bytes > _MAX_WAITING

    def write(self) -> None:
        """What has come so far."""
        if self._waiting:
            self._begin()
        for _, _, at, skip, data in sorted(self._waiting):
            side = int(at != self._client)
            if self._only in (None, ROLES[side]):
                self._is_silent = False
                self._writer.write(side, skip, data)
        self._waiting.clear()
        self._waiting_bytes = 0

    def finish(self) -> bool:
        """Nothing more is read. False: there was no such connection."""
        self._begin()
        self.write()
        self._writer.end()
        if self._sides and self._is_silent:
            self._writer.nothing(self._sides[0].conversation.state)
        return bool(self._sides)

    def _begin(self) -> None:
        if self._sides and self._client is None:
            first = self._sides[0]
            self._client = ROLES.index(first.role)
            self._writer.begin(self._number, first.conversation.key, first.conversation.guessed)


class _SideStream(ByteCountStream):
    """One side of the connection that is followed."""

    __slots__ = ("_at", "_order")

    def __init__(self, order: _Order, at: int) -> None:
        super().__init__()
        self._order = order
        self._at = at

    def reassembled(self, reassemblies: list[core.Reassembly]) -> None:
        for piece in reassemblies:
            self._order.add(self._at, piece)


class _Followed(Exception):
    """All of the connection was seen: the rest of the capture is not needed."""


def run(arguments: argparse.Namespace) -> None:
    """Reads the captures as far as the connection goes, and writes what it said."""
    if arguments.color == "auto":
        colours = sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    else:
        colours = arguments.color == "always"
    writer = _WRITERS[arguments.format](colours)
    order = _Order(arguments.number, writer, arguments.only)
    numbering = Numbering(order.stream, order.done)
    assembler = Assembler(ConversationPool(streams=numbering), assembler_options(arguments))

    def between(capture: Capture) -> None:
        if order.is_over:
            raise _Followed
        if order.is_full or not assembler.stats.bytes_held:  # nothing waits: all that came is in order
            order.write()

    try:
        read(assembler, arguments.captures, between=between)
    except _Followed:
        pass
    finally:
        found = order.finish()
    if not found:
        raise CommandError(f"there is no conversation {arguments.number}: {numbering.count} in all (tcpreasm flows lists them)")
