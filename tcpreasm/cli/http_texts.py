"""HTTP messages and exchanges as lines for people, and as JSON.

Lives here: nothing but texts. Whatever comes out of a capture is escaped before it gets into a line.
"""

from __future__ import annotations

import re
from typing import Any

from ..flow import ConnectionKey
from .bodies import DecodedBody
from .common import text_of, time_of
from .exchanges import Exchange
from .messages import Message

__all__ = ["exchange_json", "exchange_line", "message_json", "message_line", "skipped_json", "skipped_line", "url_of"]

_HOST = re.compile(rb"[0-9A-Za-z._~%!$&'()*+,;=:\[\]-]+")  # RFC 3986 3.2, without user information
_SCHEME = re.compile(rb"[A-Za-z][0-9A-Za-z+.-]*://")
_DEFAULT_PORT = 80


def url_of(request: Message, client: ConnectionKey) -> str:
    """What was asked for, absolute (RFC 9112 3.3). Without a usable Host header: at the server's address."""
    target = request.target.decode("latin-1")
    if request.method == b"CONNECT" or _SCHEME.match(request.target):
        return target
    host = request.headers.get(b"host", b"")
    if _HOST.fullmatch(host):
        authority = host.decode("ascii")
    else:
        net, transport = client
        address = f"[{net.dst}]" if ":" in str(net.dst) else str(net.dst)
        authority = address if transport.dst == _DEFAULT_PORT else f"{address}:{transport.dst}"
    return f"http://{authority}" if target == "*" else f"http://{authority}{target}"


def _header(message: Message, name: bytes) -> str | None:
    value = message.headers.get(name)
    return None if value is None else value.decode("latin-1")


def _escaped(text: str) -> str:
    return text_of(text.encode("latin-1"))


def message_line(key: ConnectionKey, message: Message) -> str:
    """One message by itself."""
    if message.method is not None:
        parts = [text_of(message.method), text_of(message.target), f"HTTP/{message.version}"]
        about = message.headers.get(b"host")
    else:
        parts = [f"HTTP/{message.version}", str(message.status), text_of(message.reason)]
        about = message.headers.get(b"content-type")
    if about:
        parts.append(text_of(about))
    line = " ".join([time_of(message.seen_ns), str(key), *parts, f"{message.body_bytes} bytes"])
    if message.missing:
        line += f", {message.missing} missing"
    return line if message.complete else f"{line}, incomplete"


def exchange_line(client: ConnectionKey, exchange: Exchange) -> str:
    """A request and its response."""
    request, response = exchange.request, exchange.response
    parts = [time_of(exchange.seen_ns), str(client)]
    parts += ["(no request)"] if request is None else [text_of(request.method or b""), _escaped(url_of(request, client))]
    notes = []
    if response is None:
        parts.append("(no response)")
    else:
        parts.append(str(response.status))
        content_type = response.headers.get(b"content-type")
        if content_type:
            parts.append(text_of(content_type))
    if exchange.interim:
        notes.append("after " + " ".join(str(message.status) for message in exchange.interim))
    for message, verb, name in ((request, "sent", "request"), (response, "received", "response")):
        if message is None:
            continue
        missing = f" ({message.missing} missing)" if message.missing else ""
        if message.body_bytes or missing or message is response:
            notes.append(f"{message.body_bytes} bytes {verb}{missing}")
        if not message.complete:
            notes.append(f"{name} incomplete")
    if exchange.duration_ns is not None:
        notes.append(f"{exchange.duration_ns / 1e6:.3f} ms")
    if exchange.guessed:
        notes.append("guessed")
    return ", ".join([" ".join(parts), *notes])


def message_json(key: ConnectionKey, message: Message) -> dict[str, Any]:
    """One message by itself."""
    return _where(key, message.seen_ns) | _fields(message)


def skipped_line(key: ConnectionKey, count: int, seen_ns: int | None) -> str:
    """What a stream holds beside messages."""
    return f"{time_of(seen_ns)} {key} {count} bytes belong to no message"


def skipped_json(key: ConnectionKey, count: int, seen_ns: int | None) -> dict[str, Any]:
    """What a stream holds beside messages."""
    return _where(key, seen_ns) | {"kind": "skipped", "bytes": count}


def _where(key: ConnectionKey, seen_ns: int | None) -> dict[str, Any]:
    net, transport = key
    return {
        "time": time_of(seen_ns),
        "time_ns": seen_ns,
        "src": [str(net.src), transport.src],
        "dst": [str(net.dst), transport.dst],
    }


def _fields(message: Message) -> dict[str, Any]:
    if message.method is not None:
        fields: dict[str, Any] = {
            "kind": "request",
            "method": message.method.decode("latin-1"),
            "target": message.target.decode("latin-1"),
            "host": _header(message, b"host"),
        }
    else:
        fields = {"kind": "response", "status": message.status, "reason": message.reason.decode("latin-1")}
    fields |= {
        "version": message.version,
        "content_type": _header(message, b"content-type"),
        "headers": {name.decode("latin-1"): value.decode("latin-1") for name, value in message.headers.items()},
        "body_bytes": message.body_bytes,
        "missing": message.missing,
        "complete": message.complete,
    }
    body = message.body
    if isinstance(body, DecodedBody):
        fields |= {"decoded_bytes": body.length, "sha256": body.sha256, "problem": body.problem, "file": body.path}
    return fields


def exchange_json(client: ConnectionKey, exchange: Exchange) -> dict[str, Any]:
    """A request and its response. Times are None where there is nothing that they could be of."""
    net, transport = client
    request, response = exchange.request, exchange.response

    def part(message: Message | None) -> dict[str, Any] | None:
        if message is None:
            return None
        times = {"first_ns": message.seen_ns, "last_ns": message.end_ns}
        return {name: value for name, value in _fields(message).items() if name != "kind"} | times

    return {
        "kind": "exchange",
        "time": time_of(exchange.seen_ns),
        "time_ns": exchange.seen_ns,
        "client": [str(net.src), transport.src],
        "server": [str(net.dst), transport.dst],
        "method": None if request is None or request.method is None else request.method.decode("latin-1"),
        "url": None if request is None else url_of(request, client),
        "status": None if response is None else response.status,
        "content_type": None if response is None else _header(response, b"content-type"),
        "interim": [message.status for message in exchange.interim],
        "waited": None if exchange.waited_ns is None else exchange.waited_ns / 1e9,
        "duration": None if exchange.duration_ns is None else exchange.duration_ns / 1e9,
        "guessed": exchange.guessed,
        "request": part(request),
        "response": part(response),
    }
