"""`tcpreasm report`: what is in captures, as a page of HTML that needs nothing else."""

from __future__ import annotations

import argparse
import os
from typing import Any

from ..api import Assembler
from ..conversations import ConversationPool
from ..pictures.overview import Overview
from ..pictures.report import report_page
from .common import add_captures, assembler_options, positive, read

__all__ = ["add_parser"]

_LIMIT = 2000

_DESCRIPTION = """Writes one file that a browser shows, without a network or other files: what the captures hold, what was wrong with
them, and a table of their conversations, to be sorted (a click on a column) and filtered, each with its bytes over time
and its gaps.
Numbers of conversations are those of tcpreasm plot CAPTURE N."""


def add_parser(commands: Any) -> None:
    """Adds the subcommand."""
    parser = commands.add_parser(
        "report",
        help="a page of HTML about a capture",
        description=_DESCRIPTION,
        epilog="examples:\n  tcpreasm report capture.pcap -o report.html\n  tcpreasm report capture.pcap -o report.html --limit 100",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_captures(parser)
    parser.add_argument("-o", "--output", metavar="FILE", required=True, help="the page, overwritten where there is one")
    parser.add_argument(
        "--limit", metavar="N", type=positive, default=_LIMIT, help="conversations in the table, the largest ones (default %(default)s)"
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Reads the captures, and writes the page."""
    overview = Overview(arguments.limit)
    assembler = Assembler(ConversationPool(streams=overview.streams), assembler_options(arguments))
    summary = read(assembler, arguments.captures, is_silent=True)
    overview.finish()
    titles = ["standard input" if name == "-" else os.path.basename(name) for name in arguments.captures]
    page = report_page(titles, overview, summary, assembler.stats)
    with open(arguments.output, "wb") as file:
        file.write(page)
    print(arguments.output)
