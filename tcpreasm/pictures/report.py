"""A page of HTML that shows what is in a capture: sums, and a table of conversations with small graphs. It needs no other file.

Lives here: the page's elements. They are put together as a tree (xml.etree), so that no text can become markup, whatever a capture or a
file's name holds: the writer escapes every one, which a template leaves to its author. The page's policy (CSP) allows its own script and
style, by their digests, and nothing else.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Sequence
from importlib import resources
from typing import TYPE_CHECKING
from xml.etree.ElementTree import Element, SubElement, tostring

from ..api import CaptureSummary
from ..clock import NS, time_of
from ..stats import AssemblerStats
from .overview import GRAPH_BINS, Overview, Row

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["report_page"]

_GRAPH_WIDTH, _GRAPH_HEIGHT = 3 * GRAPH_BINS, 28
_WHOLE_HEIGHT = 100
_COLUMNS = (  # name, words, numeric
    ("number", "#", True),
    ("client", "client", False),
    ("server", "server", False),
    ("sent", "sent", True),
    ("received", "received", True),
    ("gaps", "gaps", True),
    ("missing", "missing", True),
    ("first", "first packet", True),
    ("duration", "seconds", True),
    ("handshake", "handshake, ms", True),
    ("state", "state", False),
    ("", "bytes over time", False),
)


def report_page(titles: Sequence[str], overview: Overview, summary: CaptureSummary, stats: AssemblerStats) -> bytes:
    """The page, in UTF-8.

    Args:
        titles: names of the captures.
        overview: their conversations; its limit is the table's.
        summary, stats: what the assembler said of them.
    """
    script, style = _file("report.js"), _file("report.css")
    page = Element("html", lang="en")
    head = SubElement(page, "head")
    SubElement(head, "meta", charset="utf-8")
    policy = f"default-src 'none'; script-src {_digest(script)}; style-src {_digest(style)}; base-uri 'none'; form-action 'none'"
    SubElement(head, "meta", {"http-equiv": "Content-Security-Policy", "content": policy})
    SubElement(head, "meta", name="viewport", content="width=device-width, initial-scale=1")
    SubElement(head, "title").text = _clean(f"{', '.join(titles)}: TCP conversations")
    SubElement(head, "style").text = style
    body = SubElement(page, "body")
    SubElement(body, "h1").text = _clean(", ".join(titles))
    _summary(body, overview, summary, stats)
    _conversations(body, overview)
    SubElement(body, "script").text = script
    text: bytes = tostring(page, encoding="utf-8", method="html")
    return b"<!DOCTYPE html>\n" + text + b"\n"


def _file(name: str) -> str:
    return (resources.files(__package__) / name).read_text(encoding="utf-8")


def _digest(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _clean(text: str) -> str:
    """What HTML can hold: names of files may have bytes that are no text, and control characters."""
    readable = text.encode("utf-8", "backslashreplace").decode()
    return "".join(character if character.isprintable() else character.encode("unicode_escape").decode() for character in readable)


def _facts(parent: Element, facts: Iterable[tuple[str, object]]) -> None:
    """Names and values, one beside the other."""
    block = SubElement(parent, "dl", {"class": "facts"})
    for name, value in facts:
        fact = SubElement(block, "div")
        SubElement(fact, "dt").text = name
        SubElement(fact, "dd").text = f"{value:,}" if isinstance(value, int) else str(value)


def _summary(body: Element, overview: Overview, summary: CaptureSummary, stats: AssemblerStats) -> None:
    first_ns, last_ns = overview.first_seen_ns, overview.last_seen_ns
    if first_ns is not None and last_ns is not None:
        text = f"{time_of(first_ns)} to {time_of(last_ns)}: {_seconds(last_ns - first_ns)} seconds"
        SubElement(body, "p", {"class": "quiet"}).text = text
    for problem in summary.problems:
        SubElement(body, "p", {"class": "warning", "role": "alert"}).text = _clean(problem)
    _facts(
        body,
        [
            ("packets", summary.packets),
            ("TCP segments", summary.segments),
            ("conversations", overview.count),
            ("bytes sent by clients", overview.sent),
            ("bytes sent by servers", overview.received),
            ("gaps", overview.gap_count),
            ("bytes missing", overview.missing),
        ],
    )
    _whole(body, overview)
    states = [(state, count) for state, count in overview.states.items() if count]
    if states:
        SubElement(body, "h2").text = "Conversations, by how they ended"
        _facts(body, states)
    SubElement(body, "h2").text = "Packets, by what they were"
    _facts(body, [(str(verdict), count) for verdict, count in summary.verdicts.items()] or [("packets", 0)])
    SubElement(body, "h2").text = "Captured bytes, by what became of them"
    _facts(body, [("delivered", stats.bytes_delivered), *((name.replace("_", " "), count) for name, count in stats.dropped.items())])
    others = ("conflicting", "rst_ignored", "fin_ignored", "late_syn", "syn_remembered", "urgent_segments", "fragments", "datagrams")
    counters = [(name.replace("_", " "), getattr(stats, name)) for name in others if getattr(stats, name)]
    if counters:
        SubElement(body, "h2").text = "Other counters"
        _facts(body, counters)


def _whole(body: Element, overview: Overview) -> None:
    """All conversations together."""
    sums = overview.timeline.sums
    if not sums.any():
        return
    figure = SubElement(body, "figure")
    picture = _picture(figure, sums.shape[1] * 3, _WHOLE_HEIGHT, "Bytes over time, clients above and servers below the line")
    picture.attrib |= {"class": "whole", "preserveAspectRatio": "none"}
    _bars(picture, sums, _WHOLE_HEIGHT, [int(sums.max())] * 2)
    width = overview.timeline.width_ns
    peaks = " and ".join(f"{int(side.max()) * 8 * NS // width:,}" for side in sums)
    caption = SubElement(figure, "figcaption")
    caption.text = f"All conversations, in steps of {width / NS:.3g} seconds; at most {peaks} bit/s, to one scale:"
    for kind, words in (("client", "sent by clients"), ("server", "sent by servers")):
        SubElement(caption, "span", {"class": f"key {kind}"}).tail = words


def _conversations(body: Element, overview: Overview) -> None:
    SubElement(body, "h2").text = "Conversations"
    rows = overview.rows
    left_out = overview.count - len(rows)
    if left_out:
        shown = sum(row.sent + row.received for row in rows)
        rest = overview.sent + overview.received - shown
        text = f"The {len(rows):,} largest of {overview.count:,}; {left_out:,} are left out, with {rest:,} bytes together (--limit)."
        SubElement(body, "p", {"class": "warning"}).text = text
    if not rows:
        SubElement(body, "p").text = "None."
        return
    hint = SubElement(body, "p", {"class": "quiet"})
    hint.text = "Small graphs: bytes over the conversation's own time, each direction to its own scale:"
    for kind, words in (("client", "client"), ("server", "server"), ("gap", "bytes are missing before these")):
        SubElement(hint, "span", {"class": f"key {kind}"}).tail = words
    line = SubElement(body, "p")
    label = SubElement(line, "label")
    label.text = "Show only "
    SubElement(label, "input", id="filter", type="search", placeholder="part of an address, a port, a state")
    SubElement(line, "output", {"id": "told", "class": "quiet", "for": "filter"})
    table = SubElement(body, "table", id="conversations")
    head = SubElement(SubElement(table, "thead"), "tr")
    for name, words, numeric in _COLUMNS:
        cell = SubElement(head, "th", {"scope": "col", "class": "number" if numeric else "" if name else "plain"})
        if name:
            cell.set("data-name", name)
            SubElement(cell, "button", type="button").text = words
        else:
            cell.text = words
    lines = SubElement(table, "tbody")
    for row in rows:
        _conversation(lines, row)


def _conversation(lines: Element, row: Row) -> None:
    line = SubElement(lines, "tr")
    duration_ns = None if row.first_seen_ns is None or row.last_seen_ns is None else row.last_seen_ns - row.first_seen_ns
    cells: list[tuple[str, int | None]] = [  # text, and what it is sorted by where that is something else
        (str(row.number), row.number),
        (row.client, None),
        (row.server, None),
        (f"{row.sent:,}", row.sent),
        (f"{row.received:,}", row.received),
        (f"{row.gap_count:,}", row.gap_count),
        (f"{row.missing:,}", row.missing),
        (time_of(row.first_seen_ns), row.first_seen_ns),
        ("-" if duration_ns is None else _seconds(duration_ns), duration_ns),
        ("-" if row.handshake_ns is None else f"{row.handshake_ns / 1e6:,.3f}", row.handshake_ns),
        (row.state, None),
    ]
    for (_, _, numeric), (text, value) in zip(_COLUMNS, cells):
        cell = SubElement(line, "td")
        cell.text = text
        if numeric:
            cell.set("class", "number")
            cell.set("data-value", "" if value is None else str(value))
    text = f"{row.sent} bytes sent, {row.received} received, {row.gap_count} gaps"
    picture = _picture(SubElement(line, "td"), _GRAPH_WIDTH, _GRAPH_HEIGHT, text)
    _bars(picture, row.graph, _GRAPH_HEIGHT, [int(side.max()) for side in row.graph])
    if row.gap_places:
        marks = "".join(f"M{3 * place + 0.5} 0v{_GRAPH_HEIGHT}" for place in row.gap_places)
        SubElement(picture, "path", {"class": "gap", "d": marks})


def _picture(parent: Element, width: int, height: int, words: str) -> Element:
    return SubElement(
        parent,
        "svg",
        {"viewBox": f"0 0 {width} {height}", "width": str(width), "height": str(height), "role": "img", "aria-label": words},
    )


def _bars(picture: Element, sums: NDArray[np.int64], height: int, peaks: Sequence[int]) -> None:
    """A bar for each bin, three units wide: the client's up from the middle, the server's down; each side's peak reaches the edge."""
    middle = height // 2
    SubElement(picture, "path", {"class": "axis", "d": f"M0 {middle}h{3 * sums.shape[1]}"})
    for side, peak, (kind, sign) in zip(sums.tolist(), peaks, (("client", -1), ("server", 1))):
        # What is there can be seen, however small.
        sizes = {at: sign * max(1.0, round(value / peak * middle, 1)) for at, value in enumerate(side) if value}
        if sizes:
            bars = "".join(f"M{3 * at} {middle}v{size:g}h3V{middle}z" for at, size in sizes.items())
            SubElement(picture, "path", {"class": kind, "d": bars})


def _seconds(ns: int) -> str:
    """Exact."""
    text = f"{ns // NS:,}.{ns % NS:09}".rstrip("0")
    return text.rstrip(".")
