"""`tcpreasm http`: the HTTP/1 requests and responses of a capture or an interface, with their sizes.

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

from ..api import Assembler, StreamPool
from ..capture import LiveCapture, open_live
from ..errors import DataLost
from ..flow import ConnectionKey, Flow
from ..pairs import Pairs
from ..streams import ReaderStream
from .common import CommandError, add_captures, assembler_options, complain, positive, read, text_of, time_of
from .messages import Exchange, Message, MessageParser, load_httptools

if TYPE_CHECKING:
    from .._select import core

__all__ = ["add_parser"]

_CHUNK = 1 << 16
_FLUSH_EVERY = 1.0  # seconds, live
_FLUSH_AGE = 120.0  # seconds: what waits for longer, or is silent for longer, is given out and closed, live

_DESCRIPTION = """A line for each HTTP/1 request and response: capture time, who to whom, first line, host or content type, bytes of the
body (of chunked ones without the chunks' framing). "missing" are bytes of the body that the capture lacks; "incomplete" is a message
whose end was not seen. Streams that hold no HTTP make no line.

With -i, packets come from an interface until Ctrl-C or SIGTERM ends it; every second, what has waited for more than two
minutes is given out. Takes httptools, and for -i pypcap or cypcap: pip install 'tcpreasm[http,live]'"""


def add_parser(commands: Any) -> None:
    """Adds the subcommand."""
    parser = commands.add_parser(
        "http",
        help="HTTP requests and responses, from captures or live",
        description=_DESCRIPTION,
        epilog="examples:\n  tcpreasm http capture.pcap\n  tcpreasm http -i eth0 -f 'tcp port 80'\n  tcpreasm http --json capture.pcap",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_captures(parser, nargs="*")
    parser.add_argument("--json", action="store_true", help="a JSON object for each message, a line each")
    live = parser.add_argument_group("live")
    live.add_argument("-i", "--interface", metavar="NAME", help="capture on this interface")
    live.add_argument("-f", "--filter", metavar="EXPRESSION", help="only packets that match, as tcpdump takes it: 'tcp port 80'")
    live.add_argument("-c", "--count", metavar="N", type=positive, help="end after N packets")
    live.add_argument("--snaplen", metavar="BYTES", type=int, default=262_144, help="bytes captured of a packet (default %(default)s)")
    live.add_argument("--no-promiscuous", action="store_true", help="only what is addressed to this host")
    parser.set_defaults(run=run)


class _HttpStream(ReaderStream):
    """One direction: read at once, by whoever feeds it."""

    def __init__(self, printer: _Printer, key: ConnectionKey, exchange: Exchange) -> None:
        super().__init__(loss_errors=True)
        self._printer = printer
        self._key = key
        self._parser = MessageParser(exchange, lambda message: printer.message(key, message))

    def reassembled(self, reassemblies: list[core.Reassembly]) -> None:
        for piece in reassemblies:  # one by one: only what was read makes room
            super().reassembled([piece])
            while self.ready:
                self._read(piece.seen_ns)

    def reassembly_complete(self) -> None:
        super().reassembly_complete()
        self.close()
        self._parser.finish()
        self._printer.stream_complete(self._key, self._parser, self.counts.last_seen_ns)

    def _read(self, seen_ns: int) -> None:
        try:
            data = self.read(_CHUNK)
        except DataLost as lost:
            self._parser.lost(lost.skip)
        else:
            self._parser.feed(data, seen_ns)


class _Printer:
    """The factory, and what prints a line for each message."""

    def __init__(self, as_json: bool, at_once: bool) -> None:
        self._as_json = as_json
        self._at_once = at_once
        self._pairs = Pairs(lambda key: Exchange())
        self.messages = 0

    def new(self, net_flow: Flow, transport_flow: Flow) -> _HttpStream:
        key = ConnectionKey(net_flow, transport_flow)
        return _HttpStream(self, key, self._pairs.join(key))

    def message(self, key: ConnectionKey, message: Message) -> None:
        self.messages += 1
        if self._as_json:
            self._print_json(key, message.seen_ns, _fields(message))
        else:
            self._print(f"{time_of(message.seen_ns)} {key} {_line(message)}")

    def stream_complete(self, key: ConnectionKey, parser: MessageParser, seen_ns: int | None) -> None:
        self._pairs.forget(key)
        if not parser.message_count or not parser.skipped:
            return
        if self._as_json:
            self._print_json(key, seen_ns, {"kind": "skipped", "bytes": parser.skipped})
        else:
            self._print(f"{time_of(seen_ns)} {key} {parser.skipped} bytes belong to no message")

    def _print_json(self, key: ConnectionKey, seen_ns: int | None, fields: dict[str, Any]) -> None:
        net, transport = key
        where = {
            "time": time_of(seen_ns),
            "time_ns": seen_ns,
            "src": [str(net.src), transport.src],
            "dst": [str(net.dst), transport.dst],
        }
        self._print(json.dumps(where | fields))

    def _print(self, line: str) -> None:
        print(line, flush=self._at_once)


def _line(message: Message) -> str:
    if message.method is not None:
        parts = [text_of(message.method), text_of(message.target), f"HTTP/{message.version}"]
        about = message.headers.get(b"host")
    else:
        parts = [f"HTTP/{message.version}", str(message.status), text_of(message.reason)]
        about = message.headers.get(b"content-type")
    if about:
        parts.append(text_of(about))
    line = " ".join([*parts, f"{message.body_bytes} bytes"])
    if message.missing:
        line += f", {message.missing} missing"
    return line if message.complete else f"{line}, incomplete"


def _fields(message: Message) -> dict[str, Any]:
    def header(name: bytes) -> str | None:
        value = message.headers.get(name)
        return None if value is None else value.decode("latin-1")

    if message.method is not None:
        fields: dict[str, Any] = {
            "kind": "request",
            "method": message.method.decode("latin-1"),
            "target": message.target.decode("latin-1"),
            "host": header(b"host"),
        }
    else:
        fields = {"kind": "response", "status": message.status, "reason": message.reason.decode("latin-1")}
    return fields | {
        "version": message.version,
        "content_type": header(b"content-type"),
        "body_bytes": message.body_bytes,
        "missing": message.missing,
        "complete": message.complete,
    }


def run(arguments: argparse.Namespace) -> None:
    """Prints the messages of the captures, or of the interface until it is stopped."""
    live = arguments.interface is not None
    if live == bool(arguments.captures):
        raise CommandError("http takes captures or -i INTERFACE, one of both (see tcpreasm http --help)")
    if not live and (arguments.filter is not None or arguments.count is not None):
        raise CommandError("http takes -f and -c only with -i INTERFACE")
    load_httptools()
    printer = _Printer(arguments.json, live)
    assembler = Assembler(StreamPool(printer), assembler_options(arguments))
    if live:
        _run_live(assembler, arguments)
    else:
        read(assembler, arguments.captures)
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
