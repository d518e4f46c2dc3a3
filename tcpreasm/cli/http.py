"""`tcpreasm http`: the HTTP/1 exchanges of a capture or an interface, and what their bodies hold.

Each stream is a ReaderStream that is read as soon as something came, in the assembler's own thread, so that lines come out in the order
of the capture. A program that wants a thread for each stream reads the same class in those.
"""

from __future__ import annotations

import argparse
import json
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING, Any

from ..api import Assembler
from ..capture import LiveCapture, open_live
from ..conversations import ConversationPool, Side
from ..errors import DataLost
from ..flow import ConnectionKey
from ..streams import ReaderStream
from .bodies import DecodedBody, Folder
from .common import CommandError, add_captures, assembler_options, complain, positive, read
from .exchanges import Dialogue, Exchange, Half
from .http_texts import exchange_json, exchange_line, message_json, message_line, skipped_json, skipped_line
from .messages import Message, MessageParser, load_httptools

if TYPE_CHECKING:
    from .._select import core

__all__ = ["add_parser"]

_CHUNK = 1 << 16
_FLUSH_EVERY = 1.0  # seconds, live
_FLUSH_AGE = 120.0  # seconds: what waits for longer, or is silent for longer, is given out and closed, live

_DESCRIPTION = """A line for each HTTP/1 exchange, a request and its response: capture time of the request's first byte,
client and server, method, URL, status, content type, bytes of both bodies (of chunked ones without
the chunks' framing), and the time to the response's last byte.

missing       bytes of the body that the capture lacks
incomplete    the message's end was not seen
no response,
no request    never sent, or not captured
after 100     an interim response came before it
guessed       messages beside the two are missing, so that they may not belong together

Streams that hold no HTTP make no line.

--bodies writes what the bodies hold, decoded, to numbered files; --json names the file of each, and
tells the SHA-256 of what was decoded, and why it is not all. Codings: gzip and deflate; zstd and br
where Python's zstandard and brotli are installed. Where bytes of a body are missing, the others are
joined; of an encoded one the part before the gap is decoded.

With -i, packets come from an interface until Ctrl-C or SIGTERM ends it; every second, what has waited
for more than two minutes is given out. Takes httptools, and for -i pypcap or cypcap:
pip install 'tcpreasm[http,live]'"""

_EXAMPLES = """examples:
  tcpreasm http capture.pcap
  tcpreasm http --json capture.pcap | jq 'select(.status >= 500) | .url'
  tcpreasm http --bodies files --json capture.pcap > exchanges.json
  tcpreasm http --messages capture.pcap            one by one, as they end in the capture
  tcpreasm http -i eth0 -f 'tcp port 80'           live"""

_MAX_BODY = 64 << 20


def add_parser(commands: Any) -> None:
    """Adds the subcommand."""
    parser = commands.add_parser(
        "http",
        help="HTTP requests and responses, from captures or live",
        description=_DESCRIPTION,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_captures(parser, nargs="*")
    parser.add_argument("--json", action="store_true", help="a JSON object for each exchange, a line each")
    parser.add_argument("--messages", action="store_true", help="requests and responses one by one, each where it ends in the capture")
    bodies = parser.add_argument_group("bodies")
    bodies.add_argument("--bodies", metavar="DIR", help="write each body, decoded, to a file in this folder; made where there is none")
    bodies.add_argument(
        "--max-body",
        metavar="BYTES",
        type=positive,
        default=_MAX_BODY,
        help="the most that is decoded of a body (default %(default)s): a small one may hold a very large one",
    )
    bodies.add_argument("--force", action="store_true", help="overwrite files; without it a file that exists ends the command")
    live = parser.add_argument_group("live")
    live.add_argument("-i", "--interface", metavar="NAME", help="capture on this interface")
    live.add_argument("-f", "--filter", metavar="EXPRESSION", help="only packets that match, as tcpdump takes it: 'tcp port 80'")
    live.add_argument("-c", "--count", metavar="N", type=positive, help="end after N packets")
    live.add_argument("--snaplen", metavar="BYTES", type=int, default=262_144, help="bytes captured of a packet (default %(default)s)")
    live.add_argument("--no-promiscuous", action="store_true", help="only what is addressed to this host")
    parser.set_defaults(run=run)


class _HttpStream(ReaderStream):
    """One direction: read at once, by whoever feeds it."""

    def __init__(self, printer: _Printer, key: ConnectionKey, half: Half) -> None:
        super().__init__(loss_errors=True)
        self._printer = printer
        self._key = key
        self._half = half
        self._parser = MessageParser(half)

    def reassembled(self, reassemblies: list[core.Reassembly]) -> None:
        for piece in reassemblies:  # one by one: only what was read makes room
            super().reassembled([piece])
            while self.ready:
                self._read(piece.seen_ns)

    def reassembly_complete(self) -> None:
        super().reassembly_complete()
        self.close()
        self._parser.finish()
        self._half.over()
        self._printer.stream_complete(self._key, self._parser, self.counts.last_seen_ns)

    def _read(self, seen_ns: int) -> None:
        try:
            data = self.read(_CHUNK)
        except DataLost as lost:
            self._parser.lost(lost.skip)
        else:
            self._parser.feed(data, seen_ns)


class _Printer:
    """The factory, and what prints a line for each exchange or message."""

    def __init__(self, arguments: argparse.Namespace, at_once: bool) -> None:
        self._as_json = arguments.json
        self._by_message = arguments.messages
        self._max_body = arguments.max_body
        self._folder = None if arguments.bodies is None else Folder(arguments.bodies, arguments.force)
        self._at_once = at_once
        self.messages = 0

    def new(self, side: Side) -> _HttpStream:
        conversation = side.conversation
        if conversation.context is None:
            conversation.context = Dialogue(self)
        return _HttpStream(self, side.key, conversation.context.half(side.key))

    def begun(self, message: Message) -> None:
        """See `Watcher`."""
        self.messages += 1
        if self._as_json or self._folder is not None:
            message.body = DecodedBody(message, self._max_body, self._folder)

    def message(self, key: ConnectionKey, message: Message) -> None:
        """See `Watcher`."""
        if self._by_message:
            self._print(json.dumps(message_json(key, message)) if self._as_json else message_line(key, message))

    def exchange(self, client: ConnectionKey, exchange: Exchange) -> None:
        """See `Watcher`."""
        if not self._by_message:
            self._print(json.dumps(exchange_json(client, exchange)) if self._as_json else exchange_line(client, exchange))

    def stream_complete(self, key: ConnectionKey, parser: MessageParser, seen_ns: int | None) -> None:
        if not parser.message_count or not parser.skipped:
            return
        self._print(json.dumps(skipped_json(key, parser.skipped, seen_ns)) if self._as_json else skipped_line(key, parser.skipped, seen_ns))

    def _print(self, line: str) -> None:
        print(line, flush=self._at_once)


def run(arguments: argparse.Namespace) -> None:
    """Prints the exchanges of the captures, or of the interface until it is stopped."""
    live = arguments.interface is not None
    if live == bool(arguments.captures):
        raise CommandError("http takes captures or -i INTERFACE, one of both (see tcpreasm http --help)")
    if not live and (arguments.filter is not None or arguments.count is not None):
        raise CommandError("http takes -f and -c only with -i INTERFACE")
    load_httptools()
    options = assembler_options(arguments)
    printer = _Printer(arguments, live)
    assembler = Assembler(ConversationPool(streams=printer), options)
    try:
        if live:
            _run_live(assembler, arguments)
        else:
            read(assembler, arguments.captures)
    except FileExistsError as error:
        raise CommandError(f"{error.filename} exists (--force overwrites)") from None
    if not printer.messages:
        complain("no HTTP/1 message was found")


def _run_live(assembler: Assembler, arguments: argparse.Namespace) -> None:
    try:
        capture = open_live(
            arguments.interface, snaplen=arguments.snaplen, promiscuous=not arguments.no_promiscuous, filter=arguments.filter
        )
    except ValueError as error:
        raise CommandError(str(error)) from None
    with capture, _stopped_by_signals(capture):
        complain(f"capturing on {capture.source_name}; Ctrl-C ends it")
        next_flush = time.monotonic() + _FLUSH_EVERY
        for _ in assembler.assemble_steps(capture, flush=False):
            if arguments.count is not None and capture.packets >= arguments.count:
                break
            if time.monotonic() >= next_flush:
                next_flush = time.monotonic() + _FLUSH_EVERY
                assembler.flush_older_than(time.time() - _FLUSH_AGE)
        assembler.flush_all()
        drops = capture.drops
    if drops.dropped or drops.interface_dropped:
        complain(f"{drops.dropped} packets were lost because the buffer was full, {drops.interface_dropped} by the interface")
    if capture.problem is not None:
        raise CommandError(capture.problem)


@contextmanager
def _stopped_by_signals(capture: LiveCapture) -> Iterator[None]:
    """The first SIGINT or SIGTERM stops the capture, so that everything captured before it is used; a second one does what it did."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before: dict[int, Any] = {}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def stop(number: int, frame: FrameType | None) -> None:
        restore()
        capture.stop()

    for number in (signal.SIGINT, signal.SIGTERM):
        before[number] = signal.signal(number, stop)
    try:
        yield
    finally:
        restore()
