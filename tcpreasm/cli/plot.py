"""`tcpreasm plot`: a picture of one conversation, segment by segment, or of a capture as a whole."""

from __future__ import annotations

import argparse
import os
from typing import Any

from ..api import Assembler
from ..conversations import ConversationPool
from ..pictures.observed import ConversationWatch
from ..pictures.overview import Overview
from ..pictures.plot import FORMATS, capture_figure, conversation_figure, load_matplotlib, save
from .common import CommandError, add_captures, assembler_options, check_names, positive, read, tell

__all__ = ["add_parser"]

_LARGEST = 10

_DESCRIPTION = """With a number: that conversation (# of tcpreasm flows): the position in the stream of each segment over time,
for both directions, with what the reassembly made of it, the other side's acknowledgements, and what was never
captured; the throughput; how many bytes waited for missing ones.
Without: the throughput of all conversations, how many were open, and the largest ones.

Takes matplotlib: pip install 'tcpreasm[plot]'"""


def add_parser(commands: Any) -> None:
    """Adds the subcommand."""
    parser = commands.add_parser(
        "plot",
        help="a picture of a conversation, or of a capture",
        description=_DESCRIPTION,
        epilog="examples:\n  tcpreasm plot capture.pcap\n  tcpreasm plot capture.pcap 3 -o third.svg",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_captures(parser, nargs=1)
    parser.add_argument("number", metavar="N", nargs="?", type=positive, help="the conversation, counted from 1")
    parser.add_argument(
        "-o", "--output", metavar="FILE", help=f"the picture, overwritten where there is one: {', '.join(FORMATS)} (default NAME-N.png)"
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Reads the capture, and draws."""
    output = arguments.output or _default_name(arguments.captures[0], arguments.number)
    if not output.lower().endswith(FORMATS):
        raise CommandError(f"a picture's name ends with {', '.join(FORMATS)}, not {output!r}")
    load_matplotlib()
    options = assembler_options(arguments)
    if arguments.number is None:
        overview = Overview(_LARGEST)
        read(Assembler(ConversationPool(streams=overview.streams), options), arguments.captures, is_silent=True)
        overview.finish()
        figure = capture_figure(overview)
    else:
        watch = ConversationWatch(arguments.number)
        assembler = Assembler(ConversationPool(streams=watch.streams), options)
        check_names(arguments.captures)
        tell(watch.read(assembler, arguments.captures), assembler)
        observed = watch.observed()
        if observed is None:
            raise CommandError(f"there is no conversation {arguments.number}: {watch.streams.count} in all (tcpreasm flows lists them)")
        figure = conversation_figure(observed)
    save(figure, output)
    print(output)


def _default_name(capture: str, number: int | None) -> str:
    stem = "stdin" if capture == "-" else os.path.basename(capture).split(".")[0] or "capture"
    return f"{stem}.png" if number is None else f"{stem}-{number}.png"
