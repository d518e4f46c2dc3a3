"""HTTP/1 messages out of one direction's bytes, pushed in as they come, gaps included.

Lives here: where a message begins and ends (RFC 9112 2 and 6), over gaps too. What its head says is httptools' business (the extra
`http`), which request a response answers that of exchanges, what a body holds that of bodies. `feed` is called about once a packet.

A gap inside a body whose length is known costs nothing but the bytes. After any other gap, and after bytes that are no HTTP, the
next line that begins a message is looked for.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

__all__ = ["Body", "Listener", "Message", "MessageParser", "load_httptools"]

_MAX_LINE = 16 * 1024  # a request line longer than this is none
_MAX_HEAD = 256 * 1024
_MAX_CHUNK_LINE = 4096
_MARK = b"HTTP/1."  # stands in every first line
_STATUS_LINE_SIZE, _REQUEST_LINE_END_SIZE = 13, 10  # of what the next two match
_STATUS_LINE = re.compile(rb"HTTP/1\.[01] [1-9][0-9][0-9][ \r]")
_REQUEST_LINE_END = re.compile(rb"HTTP/1\.[01]\r\n")
_FOLD = re.compile(rb"\r\n[ \t]+(?!\r\n)")  # a header's value may go on in the next line (RFC 9112 5.2), which httptools refuses
_TOKEN = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_METHODS = (b"GET", b"HEAD", b"POST", b"PUT", b"DELETE", b"CONNECT", b"OPTIONS", b"TRACE", b"PATCH")


def load_httptools() -> Any:
    """The parser's module. ImportError with one line that tells how to get it."""
    try:
        return importlib.import_module("httptools")
    except ImportError as error:
        raise ImportError(f"this takes httptools: pip install 'tcpreasm[http]' ({error})") from None


class Body(Protocol):
    """Takes the bytes of one body, without the framing of chunks."""

    def write(self, data: bytes) -> None:
        """The next ones."""

    def lost(self, count: int) -> None:
        """So many are missing here."""

    def close(self) -> None:
        """No more come."""


@dataclass(slots=True, eq=False)
class Message:
    """One request or response."""

    seen_ns: int
    """Capture time of the packet that brought its first byte."""
    version: str = ""
    """"1.0" or "1.1"."""
    method: bytes | None = None
    """None: a response."""
    target: bytes = b""
    """What was requested."""
    status: int | None = None
    """None: a request."""
    reason: bytes = b""
    headers: dict[bytes, bytes] = field(default_factory=dict)
    """By lower-case name; the values of a repeated one joined by a comma."""
    head_bytes: int = 0
    """First line and headers, as they were sent."""
    body_bytes: int = 0
    """Bytes of the body that were captured, without the framing of chunks."""
    missing: int = 0
    """Bytes of the body that were not."""
    complete: bool = False
    """Its end was reached."""
    end_ns: int | None = None
    """Capture time of the packet that brought the last byte of it; None while more may come."""
    body: Body | None = None
    """Who wants the body's bytes."""

    @property
    def is_rest(self) -> bool:
        """Nothing is known of it but that it was there."""
        return self.method is None and self.status is None

    @property
    def is_interim(self) -> bool:
        """A response that is not the answer yet (RFC 9110 15.2); 101 is the last one of HTTP, and so an answer."""
        return self.status is not None and 100 <= self.status < 200 and self.status != 101


class Listener(Protocol):
    """Whom the parser of one direction tells what it finds, and asks what only the other direction knows."""

    tunnel: bool
    """From here on the connection speaks another protocol, both ways (CONNECT, Upgrade)."""

    def begun(self, message: Message) -> bytes | None:
        """Its head was read. For a response: the method of the request that it answers, where that is known."""

    def done(self, message: Message) -> None:
        """Its end, the end of the stream, or the gap that cuts it is reached."""

    def lost(self) -> None:
        """Between the message before and the next one, others may be missing."""

    def rest(self, seen_ns: int) -> None:
        """So may they around bytes, seen then, that belong to no message: the rest of one, as a rule."""


class _Head:
    """Takes httptools' callbacks."""

    def __init__(self) -> None:
        self.target = b""
        self.reason = b""
        self.headers: dict[bytes, bytes] = {}
        self.complete = False

    def on_url(self, url: bytes) -> None:
        self.target += url

    def on_status(self, status: bytes) -> None:
        self.reason += status

    def on_header(self, name: bytes, value: bytes) -> None:
        name = name.lower()
        before = self.headers.get(name)
        self.headers[name] = value if before is None else before + b", " + value

    def on_headers_complete(self) -> None:
        self.complete = True


class MessageParser:
    """One direction: bytes in, messages out.

    Args:
        listener: is told of each message.
    """

    def __init__(self, listener: Listener) -> None:
        self._httptools = load_httptools()
        self._listener = listener
        self._state: Callable[[bytes, int], int] = self._seek
        self._pending = bytearray()  # the beginning of what is not whole yet: a first line, a head, a chunk's size
        self._pending_seen: list[tuple[int, int]] = []  # while a first line is looked for: from which byte of pending on, and when seen
        self._seen_ns = 0
        self._sought = 0  # so far pending holds no first line
        self._message: Message | None = None
        self._remaining = 0  # bytes to the end of the body or chunk; of a chunk with its CRLF
        self._chunked = False
        self._likely: Callable[[bytes, int], int] = self._seek  # the state behind _likely_body
        self.message_count = 0
        """Messages so far."""
        self.skipped = 0
        """Bytes that belong to no message."""

    def feed(self, data: bytes, seen_ns: int) -> None:
        """The next bytes, and when they were captured."""
        self._seen_ns = seen_ns
        position = 0
        while position < len(data) and not self._listener.tunnel:
            position = self._state(data, position)

    def lost(self, count: int) -> None:
        """So many bytes are missing here; -1 for an unknown number."""
        if self._listener.tunnel:
            return
        message = self._message
        self._begin_likely_body()
        if message is not None and count > 0:
            if self._state == self._until_close:
                self._advance(count)
                return
            if count <= self._remaining:
                self._advance(count)
                return
            if self._remaining:
                self._miss(message, self._of_body(self._remaining))
        if self._state == self._head and b"\r\n" in self._pending:
            self._begin_cut()
        self._give_up()

    def finish(self) -> None:
        """The end of the stream."""
        self._begin_likely_body()
        if self._message is not None:
            self._complete(self._state == self._until_close)
        self.skipped += len(self._pending)
        self._pending.clear()

    # Each state takes bytes of data from position on, and returns the position behind them.

    def _seek(self, data: bytes, position: int) -> int:
        pending = self._pending
        self._pending_seen.append((len(pending), self._seen_ns))
        pending += data[position:]
        while (mark := pending.find(_MARK, self._sought)) >= 0:
            is_status = pending.startswith(b" ", mark + len(_MARK) + 1)
            if len(pending) < mark + (_STATUS_LINE_SIZE if is_status else _REQUEST_LINE_END_SIZE):
                self._sought = mark
                return len(data)
            begin = self._begin_of_line(mark)
            if begin is not None:
                self._skip(begin)
                self._state = self._head
                return self._head_of_pending(data, 0)
            self._sought = mark + 1
        self._sought = max(self._sought, len(pending) - len(_MARK) + 1)
        if len(pending) > 2 * _MAX_LINE:
            self._skip(len(pending) - _MAX_LINE)
        return len(data)

    def _begin_of_line(self, mark: int) -> int | None:
        """Where the first line of a message begins that has its version at mark; None if it is none. It may follow a body directly."""
        pending = self._pending
        if _STATUS_LINE.match(pending, mark):
            return mark
        if not _REQUEST_LINE_END.match(pending, mark) or not pending.endswith(b" ", 0, mark):
            return None
        line = pending.rfind(b"\n", 0, mark) + 1
        method_end = pending.rfind(b" ", line, mark - 1)
        for method in _METHODS:
            if pending.endswith(method, line, max(line, method_end)):
                return method_end - len(method)
        return line if _TOKEN.fullmatch(pending, line, max(line, method_end)) else None

    def _skip(self, count: int) -> None:
        """Bytes in front of pending that are no HTTP; empty lines before a message are (RFC 9112 2.2)."""
        if self._pending[:count].strip(b"\r\n"):
            self.skipped += count
            self._listener.rest(self._pending_seen[0][1] if self._pending_seen else self._seen_ns)
        del self._pending[:count]
        self._sought = max(0, self._sought - count)
        seen = self._pending_seen
        while len(seen) > 1 and seen[1][0] <= count:
            del seen[0]
        self._pending_seen = [(max(0, begin - count), seen_ns) for begin, seen_ns in seen]

    def _head(self, data: bytes, position: int) -> int:
        searched = max(0, len(self._pending) - 3)
        self._pending += data[position:]
        return self._head_of_pending(data, searched)

    def _head_of_pending(self, data: bytes, searched: int) -> int:
        end = self._pending.find(b"\r\n\r\n", searched)
        if end < 0:
            if len(self._pending) > _MAX_HEAD:
                self._give_up()
            return len(data)
        end += 4
        rest = len(self._pending) - end
        head = bytes(self._pending[:end])
        self._pending.clear()
        self._sought = 0
        self._begin(head)
        return len(data) - rest

    def _likely_body(self, data: bytes, position: int) -> int:
        """Behind the head of a response to nobody knows what. Another response there tells that it was to HEAD, and has no body."""
        if _STATUS_LINE.match(data, position):
            self._complete(True)
            return position
        self._begin_likely_body()
        return self._state(data, position)

    def _begin_likely_body(self) -> None:
        if self._state == self._likely_body:
            self._state = self._likely

    def _body(self, data: bytes, position: int) -> int:
        count = min(self._remaining, len(data) - position)
        self._advance(count, data, position)
        return position + count

    def _until_close(self, data: bytes, position: int) -> int:
        self._advance(len(data) - position, data, position)
        return len(data)

    def _chunk_size(self, data: bytes, position: int) -> int:
        line, position = self._line(data, position)
        if line is None:
            return position
        try:
            size = int(line.partition(b";")[0].strip(), 16)
        except ValueError:
            self._give_up()
            return position
        if size > 0:
            self._remaining = size + 2
            self._state = self._body
        else:
            self._state = self._trailer
        return position

    def _trailer(self, data: bytes, position: int) -> int:
        line, position = self._line(data, position)
        if line is not None and not line.strip():
            self._complete(True)
        return position

    def _line(self, data: bytes, position: int) -> tuple[bytes | None, int]:
        """The next whole line, if it is there, and the position behind it."""
        end = data.find(b"\n", position) + 1
        self._pending += data[position : end or len(data)]
        if len(self._pending) > _MAX_CHUNK_LINE:
            self._give_up()
            return None, end or len(data)
        if not end:
            return None, len(data)
        line = bytes(self._pending)
        self._pending.clear()
        return line, end

    def _of_body(self, count: int) -> int:
        """How many of the next bytes are the body's: the last two of a chunk are its CRLF."""
        return min(count, max(0, self._remaining - 2)) if self._chunked else count

    def _miss(self, message: Message, count: int) -> None:
        message.missing += count
        if message.body is not None:
            message.body.lost(count)

    def _advance(self, count: int, data: bytes | None = None, position: int = 0) -> None:
        """Over so many bytes of a body or chunk, which lie in data from position on, or are missing."""
        message = self._message
        assert message is not None
        of_body = self._of_body(count)
        if data is None:
            self._miss(message, of_body)
        else:
            message.body_bytes += of_body
            if message.body is not None:
                message.body.write(data[position : position + of_body])
        if self._state == self._until_close:
            return
        self._remaining -= count
        if self._remaining:
            return
        if self._chunked:
            self._state = self._chunk_size
        else:
            self._complete(True)

    def _begin_cut(self) -> None:
        """Of a head the whole lines before a gap: what they say is worth having. Nobody knows where its body ends."""
        head = bytes(self._pending[: self._pending.rindex(b"\r\n")])
        self._pending.clear()
        self._begin(head + b"\r\n\r\n", is_cut=True)

    def _begin(self, data: bytes, is_cut: bool = False) -> None:
        """A whole head is there, or a part of one that looks like it."""
        seen_ns = self._pending_seen[0][1]
        self._pending_seen.clear()
        is_response = data.startswith(_MARK)
        head = _Head()
        parser = (self._httptools.HttpResponseParser if is_response else self._httptools.HttpRequestParser)(head)
        try:
            parser.feed_data(_FOLD.sub(b" ", data))
        except self._httptools.HttpParserUpgrade:
            pass  # the answer decides
        except self._httptools.HttpParserError:
            head.complete = False
        if not head.complete:
            self.skipped += len(data)
            self._listener.rest(seen_ns)
            self._give_up()
            return
        message = self._message = Message(seen_ns, version=parser.get_http_version(), headers=head.headers, head_bytes=len(data))
        self.message_count += 1
        if is_response:
            message.status, message.reason = parser.get_status_code(), head.reason
            method = self._listener.begun(message)
            has_body = self._answer(message, method)
        else:
            message.method, message.target = parser.get_method(), head.target
            self._listener.begun(message)
            has_body = message.method != b"CONNECT"
        if not is_cut:
            self._begin_body(head.headers, has_body, is_response)
            if is_response and has_body and method is None and self._message is not None:
                self._likely, self._state = self._state, self._likely_body

    def _answer(self, message: Message, method: bytes | None) -> bool:
        """Does the response to this method have a body (RFC 9112 6.3)? False too where it makes a tunnel of the connection."""
        assert message.status is not None
        if message.status == 101 or (method == b"CONNECT" and 200 <= message.status < 300):
            self._listener.tunnel = True
            return False
        return not message.is_interim and method != b"HEAD" and message.status not in (204, 304)

    def _begin_body(self, headers: dict[bytes, bytes], has_body: bool, is_response: bool) -> None:
        codings = headers.get(b"transfer-encoding", b"").lower()
        length = headers.get(b"content-length", b"")
        self._chunked = False
        if has_body and codings.rpartition(b",")[2].strip() == b"chunked":
            self._chunked = True
            self._state = self._chunk_size
        elif has_body and is_response and (codings or not length.isdigit()):
            self._state = self._until_close
        elif has_body and length.isdigit() and int(length):
            self._remaining = int(length)
            self._state = self._body
        else:
            self._complete(True)

    def _complete(self, complete: bool) -> None:
        """The message at hand is over; the next one may begin."""
        message, self._message = self._message, None
        assert message is not None
        message.complete = complete
        message.end_ns = self._seen_ns
        self._state = self._seek
        self._remaining = 0
        if message.body is not None:
            message.body.close()
        self._listener.done(message)

    def _give_up(self) -> None:
        """What comes next is anywhere."""
        self._skip(len(self._pending))
        self._state = self._seek
        if self._message is not None:
            self._complete(False)
        self._pending_seen.clear()
        self._listener.lost()
