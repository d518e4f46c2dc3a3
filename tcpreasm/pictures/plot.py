"""Figures: one conversation as a time-sequence graph, or a capture as a whole. By matplotlib, which the extra `plot` brings.

Lives here: what is drawn where, in which colour. The numbers come from `observed`, their thinning from `series`. The colours are those of
Okabe and Ito, which most people can tell apart; what matters differs in shape too.
"""

from __future__ import annotations

import io
import os
from typing import TYPE_CHECKING, Any

import numpy as np

from ..clock import NS, time_of
from ..numbered import Numbered
from ..segment import FIN, RST, SYN
from .observed import Direction, Kind, Observed
from .overview import Overview
from .series import Timeline, merge_marks, open_at_a_time, thin_steps

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

__all__ = ["FORMATS", "capture_figure", "conversation_figure", "load_matplotlib", "save"]

FORMATS = (".pdf", ".png", ".svg")

_BLUE, _ORANGE, _GREEN, _VERMILLION, _PURPLE, _SKY = "#0072b2", "#e69f00", "#009e73", "#d55e00", "#cc79a7", "#56b4e9"
_GREY, _DARK = "#767676", "#333333"
_KINDS = (  # how segments are drawn: kind, words, colour, marker at the middle
    (Kind.IN_ORDER, "in order", _BLUE, ""),
    (Kind.HELD, "early: held", _ORANGE, "^"),
    (Kind.LATE, "late: fills a hole", _GREEN, "v"),
    (Kind.REPEATED, "retransmission", _VERMILLION, "x"),
    (Kind.UNUSED, "not used", _GREY, "+"),
)
_FLAGS = ((SYN, "SYN", ">"), (FIN, "FIN", "s"), (RST, "RST", "X"))
_ACKED, _DELIVERED, _MISSING = "acknowledged by the other side", "delivered up to", "never captured"
_LEGEND = (*(words for _, words, _, _ in _KINDS), _MISSING, _DELIVERED, _ACKED, *(words for _, words, _ in _FLAGS))
_COLUMNS, _ROWS = 1500, 900  # finer than the pictures' pixels
_CROWD = 100  # marks of a kind from which on they are smaller
_BINS = 128
_LARGEST = 10
_INCH_DOTS = 110


def load_matplotlib() -> Any:
    """The library. ImportError with one line that tells how to get it."""
    try:
        import matplotlib as library
    except ImportError as error:
        raise ImportError(f"this takes matplotlib: pip install 'tcpreasm[plot]' ({error})") from None
    return library


def save(figure: Figure, path: str | os.PathLike[str]) -> None:
    """Writes a figure, in the format that the name ends with. The same figure makes the same file."""
    library = load_matplotlib()
    ending = os.path.splitext(os.fspath(path))[1].lower()
    if ending == ".png":
        from PIL import Image  # matplotlib brings it

        drawn = io.BytesIO()
        figure.savefig(drawn, format="png", dpi=_INCH_DOTS)
        # Lines in few colours: with a palette the file takes a third. This way of choosing one keeps those that are rare.
        image = Image.open(drawn).convert("RGB").quantize(256, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
        image.save(path, format="png", optimize=True)
    else:
        undated = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}}
        with library.rc_context({"svg.hashsalt": "tcpreasm", "svg.fonttype": "none"}):
            figure.savefig(path, metadata=undated[ending])


def _figure(height: float, panels: int, ratios: list[float]) -> tuple[Figure, list[Axes]]:
    load_matplotlib()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, height), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(panels, 1, height_ratios=ratios)
    for panel in axes:
        panel.grid(visible=True, color="#dddddd", linewidth=0.6)
        panel.set_axisbelow(True)
        panel.spines[["top", "right"]].set_visible(False)
    return figure, list(axes)


def _seconds(seen_ns: NDArray[np.int64], first_ns: int) -> NDArray[np.float64]:
    return (seen_ns - first_ns) / NS


def _units(axis: Any, unit: str) -> None:
    """Ticks with the prefixes of units, and without a sign: what lies below zero goes the other way."""
    from matplotlib.ticker import EngFormatter, FuncFormatter

    text = EngFormatter(unit)
    axis.set_major_formatter(FuncFormatter(lambda value, _: text(abs(value))))


def _count(number: int, word: str) -> str:
    return f"{number:,} {word}" if number == 1 else f"{number:,} {word}s"


def _time_axis(panels: list[Axes], first_ns: int | None, last_ns: int | None) -> None:
    """Panels one above the other share their times; the lowest one says them."""
    from matplotlib.ticker import EngFormatter

    width = max(((last_ns or 0) - (first_ns or 0)) / NS, 1e-6)
    for panel in panels:
        panel.set_xlim(-0.02 * width, 1.02 * width)
        panel.tick_params(labelbottom=panel is panels[-1])
    lowest = panels[-1].xaxis
    if first_ns is not None:
        lowest.set_label_text(f"since {time_of(first_ns)}" if width < 1 else f"seconds since {time_of(first_ns)}")
    if width < 1:
        lowest.set_major_formatter(EngFormatter("s"))


def _mirrored(panel: Axes, title: str, none: str, curves: list[tuple[Any, Any]]) -> None:
    """Steps: what the client sent above zero, what the server sent below. `none` is the title where there is nothing to show."""
    for (seconds, values), sign, colour in zip(curves, (1, -1), (_BLUE, _ORANGE)):
        panel.fill_between(seconds, sign * values, step="post", color=colour, alpha=0.35, linewidth=0)
        panel.step(seconds, sign * values, where="post", color=colour, linewidth=1.2)
    panel.axhline(0, color=_DARK, linewidth=0.8)
    empty = not any(np.any(values) for _, values in curves)
    _caption(panel, none if empty else f"{title}client to server above, server to client below")
    if empty:
        panel.set_yticks([0])


def _caption(panel: Axes, text: str) -> None:
    panel.set_title(text, loc="left", fontsize=9, color=_DARK)


def _throughput(panel: Axes, timeline: Timeline, first_ns: int) -> None:
    from matplotlib.ticker import EngFormatter

    curves = []
    for sums in timeline.sums:
        seconds = _seconds(timeline.edges_ns, first_ns)
        rates = np.concatenate(([0], sums, [0])) * (8 * NS / timeline.width_ns)
        curves.append((np.concatenate((seconds[:1], seconds)), rates) if len(sums) else (seconds[:0], sums))
    width = EngFormatter("s", places=0)(timeline.width_ns / NS)
    _mirrored(panel, f"in steps of {width}: ", "nothing was sent", curves)
    panel.set_ylabel("throughput")
    _units(panel.yaxis, "bit/s")


# ---- one conversation


def conversation_figure(observed: Observed) -> Figure:
    """The time-sequence graphs of both directions, their throughput, and what was held."""
    figure, (client, server, throughput, held) = _figure(11.5, 4, [3, 3, 1.6, 1.3])
    times = np.concatenate([rows["seen_ns"] for one in observed.directions for rows in (one.segments, one.acks)])
    # There is the segment that began it, unless it came in fragments. What is given out later, by time, lies beyond the edge.
    first_ns, last_ns = (int(times.min()), int(times.max())) if len(times) else (observed.numbered.span_ns[0] or 0,) * 2
    drawn: dict[str, Any] = {}
    timeline = Timeline(_BINS)
    timeline.add(0, np.array([first_ns, last_ns]), np.array([0, 0]))  # steps of the whole time that is shown
    waiting = []
    for side, (panel, one, name) in enumerate(
        ((client, observed.client, "client to server"), (server, observed.server, "server to client"))
    ):
        _time_sequence(panel, one, name, first_ns, last_ns, drawn)
        timeline.add(side, one.pieces["seen_ns"], one.pieces["length"])
        seen_ns, values = thin_steps(one.held["seen_ns"], one.held["length"], _COLUMNS)
        waiting.append((_seconds(seen_ns, first_ns), values))
    _throughput(throughput, timeline, first_ns)
    _mirrored(held, "waiting for missing bytes: ", "nothing had to wait", waiting)
    held.set_ylabel("held")
    _units(held.yaxis, "B")
    _time_axis([client, server, throughput, held], first_ns, last_ns)
    figure.suptitle(_heading(observed.numbered), fontsize=12, x=0.01, ha="left")
    words = [words for words in _LEGEND if words in drawn]
    figure.legend([drawn[one] for one in words], words, loc="outside lower left", ncols=6, fontsize=8, frameon=False)
    return figure


def _heading(one: Numbered) -> str:
    from matplotlib.ticker import EngFormatter

    time_ns = one.conversation.handshake_time_ns
    handshake = "" if time_ns is None else f", handshake {EngFormatter('s')(time_ns / NS)}"
    return f"{one.number}: {one.key}   {one.state_text}{handshake}"


def _title(one: Direction, name: str, last_ns: int) -> str:
    from matplotlib.ticker import EngFormatter

    stream = one.stream
    parts = [f"{name}: " + (_count(stream.length, "byte") if stream is not None else "no text was captured")]
    if stream is not None and not stream.started:
        parts.append("start not captured")
    repeated = one.count(Kind.REPEATED)
    if repeated:
        parts.append(_count(repeated, "retransmission"))
    if len(one.gaps):
        parts.append(f"{_count(len(one.gaps), 'gap')}, {_count(int(one.gaps['length'].sum()), 'byte')} missing")
    if len(one.delivered) and (later := int(one.delivered["seen_ns"][-1]) - last_ns) > 0:
        parts.append(f"given out {EngFormatter('s', places=0)(later / NS)} after the last packet")
    if one.fragmented:
        parts.append("from IP fragments")
    return ", ".join(parts)


def _time_sequence(panel: Axes, one: Direction, name: str, first_ns: int, last_ns: int, drawn: dict[str, Any]) -> None:
    """Position in the stream over time: segments as bars from their first to their last byte, with what became of them."""
    from matplotlib.ticker import EngFormatter, MaxNLocator

    low, high = _extent(one)
    rows = one.segments
    marks = 0
    for offset, length in one.gaps[["offset", "length"]].tolist():
        band = panel.axhspan(offset, offset + length, facecolor=_PURPLE, alpha=0.25, edgecolor=_PURPLE, linewidth=0.6, hatch="///")
        drawn.setdefault(_MISSING, band)
    if len(one.acks):
        seen_ns, positions = thin_steps(one.acks["seen_ns"], one.acks["position"], _COLUMNS)
        (drawn[_ACKED],) = panel.step(
            _seconds(seen_ns, first_ns), positions, where="post", color=_DARK, linewidth=1, linestyle=(0, (2, 1.5))
        )
    if len(one.delivered):
        seen_ns, positions = thin_steps(one.delivered["seen_ns"], one.delivered["position"], _COLUMNS)
        (drawn[_DELIVERED],) = panel.step(_seconds(seen_ns, first_ns), positions, where="post", color=_SKY, linewidth=1.3)
    for kind, words, colour, marker in _KINDS:
        found = rows[(rows["kind"] == kind) & ((rows["end"] > rows["begin"]) | (kind == Kind.UNUSED))]
        if not len(found):
            continue
        seen_ns, begin, end = merge_marks(found["seen_ns"], found["begin"], found["end"], _COLUMNS, _ROWS)
        marks += len(seen_ns)
        seconds = _seconds(seen_ns, first_ns)
        crowded = len(seen_ns) > _CROWD
        under = crowded and kind is Kind.REPEATED  # so that they hide nothing; then they have a line of their own at the lower edge
        if under:
            panel.vlines(seconds, 0, 0.025, colors=colour, linewidth=0.8, transform=panel.get_xaxis_transform(), zorder=3)
        bars = panel.vlines(
            seconds, begin, end, colors=colour, linewidth=1.6 if crowded else 2.2, capstyle="round", zorder=2.4 if under else 3
        )
        drawn.setdefault(words, bars)
        if marker:
            drawn[words] = panel.scatter(
                seconds, (begin + end) / 2, s=9 if crowded else 34, marker=marker, color=colour, linewidths=0.8, zorder=2.5 if under else 4
            )
    for flag, words, marker in _FLAGS:
        found = rows[(rows["flags"] & flag > 0) & (rows["kind"] != Kind.UNUSED)]
        if len(found):
            seconds, places = _seconds(found["seen_ns"], first_ns), found["end"]
            drawn[words] = panel.scatter(seconds, places, s=36, marker=marker, facecolor="white", edgecolor=_DARK, linewidths=1.1, zorder=5)
    title = _title(one, name, last_ns)
    shown = len(rows[rows["end"] > rows["begin"]])
    if marks < shown:
        title += f"   ({shown:,} segments, drawn as {marks:,} marks)"
    outside = int(np.count_nonzero((rows["end"] < low) | (rows["begin"] > high)))
    if outside:
        title += f"   ({outside:,} unused beyond the edges)"
    _caption(panel, title)
    panel.set_ylabel("position in the stream")
    panel.set_ylim(low, high)
    panel.yaxis.set_major_locator(MaxNLocator(integer=True))
    panel.yaxis.set_major_formatter(EngFormatter("B"))


def _extent(one: Direction) -> tuple[float, float]:
    """Of the positions that count; segments of no use may lie anywhere."""
    used = one.segments[one.segments["kind"] != Kind.UNUSED]
    stream_end = 0 if one.stream is None else one.stream.length + one.stream.skipped
    # Without a stream, what the other side acknowledged is all there is.
    ends = [stream_end, *used["end"].tolist(), *(one.acks["position"].tolist() if not stream_end else ())]
    high = max(1, *ends)
    return -0.04 * high, 1.04 * high


# ---- a whole capture


def capture_figure(overview: Overview) -> Figure:
    """The throughput of all conversations together, how many were open, and the largest ones."""
    from matplotlib.ticker import MaxNLocator

    figure, (throughput, opened, largest) = _figure(9.5, 3, [2, 1.4, 2.4])
    first_ns = overview.first_seen_ns or 0
    _throughput(throughput, overview.timeline, first_ns)
    times, counts = thin_steps(*open_at_a_time(overview.spans), _COLUMNS)
    opened.step(_seconds(times, first_ns), counts, where="post", color=_GREEN, linewidth=1.4)
    opened.fill_between(_seconds(times, first_ns), counts, step="post", color=_GREEN, alpha=0.3, linewidth=0)
    opened.set_ylim(bottom=0)
    opened.yaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    opened.set_ylabel("conversations open")
    _time_axis([throughput, opened], overview.first_seen_ns, overview.last_seen_ns)
    _largest(largest, overview)
    missing = f", {_count(overview.gap_count, 'gap')}, {_count(overview.missing, 'byte')} missing" if overview.gap_count else ""
    text = f"{_count(overview.count, 'conversation')}, {_count(overview.sent + overview.received, 'byte')}{missing}"
    figure.suptitle(text, fontsize=12, x=0.01, ha="left")
    return figure


def _largest(panel: Axes, overview: Overview) -> None:
    """Bars with their names above them: two IPv6 addresses are longer than any margin."""
    rows = [row for row in overview.largest[:_LARGEST] if row.sent + row.received]
    places = np.arange(len(rows))
    panel.barh(places, [one.sent for one in rows], height=0.4, color=_BLUE, label="client to server")
    panel.barh(places, [one.received for one in rows], height=0.4, left=[one.sent for one in rows], color=_ORANGE, label="server to client")
    for place, one in zip(places, rows):
        panel.text(0, place - 0.22, f" {one.number}: {one.client} - {one.server}, {one.state}", fontsize=8, va="bottom")
    panel.set_yticks([])
    panel.set_ylim(max(len(rows), 4) - 0.5, -0.8)
    _units(panel.xaxis, "B")
    _caption(panel, "the largest conversations" if rows else "no bytes in any conversation")
    if rows:
        panel.legend(loc="lower right", fontsize=8)
    else:
        panel.set_xticks([0])
