"""`tcpreasm extract`: one file for each direction of each connection, written while the capture is read.

File names are tcpflow's: 010.000.000.001.09999-010.000.000.002.36559 is what 10.0.0.1 port 9999 sent to 10.0.0.2 port 36559. A later
stream of the same endpoints gets a suffix: c1, c2, ...
"""

from __future__ import annotations

import argparse
import os
import sys
from functools import partial
from typing import Any

from .._select import core
from ..api import Assembler, StreamPool
from ..flow import ConnectionKey
from ..options import DEFAULT_MAX_OPEN_FILES
from ..streams import FilePool, FileStream, FlowPaths
from .common import CommandError, add_captures, assembler_options, make_folder, positive, read, thread_count

__all__ = ["add_parser", "file_name"]

_GAPS_LISTED = 8

_DESCRIPTION = """Writes what each side of each TCP connection sent to a file of its own, while the capture is read.
Names: 010.000.000.001.09999-010.000.000.002.36559 is what 10.0.0.1 port 9999 sent to 10.0.0.2 port 36559;
a later stream of the same endpoints gets a suffix (c1, c2, ...). A stream without bytes makes no file.

A line for each file: name, bytes, gaps as OFFSET+LENGTH, counted in the stream with its missing bytes.
What is missing is left out, and what is there joined, unless --fill-gaps is given."""


def add_parser(commands: Any) -> None:
    """Adds the subcommand."""
    parser = commands.add_parser(
        "extract",
        help="one file per direction of each connection",
        description=_DESCRIPTION,
        epilog="examples:\n  tcpreasm extract capture.pcap -o streams\n  tcpreasm extract part1.pcap part2.pcap -o streams --force --quiet",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_captures(parser)
    parser.add_argument("-o", "--output", metavar="DIR", required=True, help="folder for the files; made where there is none")
    parser.add_argument("--force", action="store_true", help="overwrite files; without it a file that exists ends the command")
    parser.add_argument("--fill-gaps", action="store_true", help="zeros where bytes are missing, as holes in the file")
    parser.add_argument("-q", "--quiet", action="store_true", help="no list of files")
    parser.add_argument(
        "--max-open", metavar="N", type=positive, default=DEFAULT_MAX_OPEN_FILES, help="files open at once (default %(default)s)"
    )
    parser.add_argument(
        "--threads",
        metavar="N",
        type=thread_count,
        default=1,
        help="threads that do the work (default 1); with more, lines may change places",
    )
    parser.set_defaults(run=run)


def file_name(key: ConnectionKey, number: int) -> str:
    """The name for the stream with this number among those of the key, counted from 0."""
    name = core.flow_name(*key)
    return f"{name}c{number}" if number else name


class _ListedStream(FileStream):
    """Prints its line when it is complete."""

    __slots__ = ()

    def reassembly_complete(self) -> None:
        super().reassembly_complete()
        if self.path is None:
            return
        line = f"{os.path.basename(self.path)}  {self.length} bytes"
        if self.gaps:
            line += f", {self.skipped} missing: " + " ".join(f"{offset}+{length}" for offset, length in self.gaps[:_GAPS_LISTED])
            if len(self.gaps) > _GAPS_LISTED:
                line += f" and {len(self.gaps) - _GAPS_LISTED} more gaps"
        sys.stdout.write(f"{line}\n" if self.started else f"{line}, start not captured\n")  # at once: there may be other threads


def run(arguments: argparse.Namespace) -> None:
    """Reads the captures and writes the files."""
    options = assembler_options(arguments)
    make_folder(arguments.output)
    try:
        with FilePool(arguments.max_open, write_behind=True) as pool:
            # Without a list, streams are the core's own: nothing runs in Python.
            factory = partial(
                FileStream if arguments.quiet else _ListedStream,
                path=FlowPaths(arguments.output),
                pool=pool,
                overwrite=arguments.force,
                fill_gaps=arguments.fill_gaps,
            )
            read(Assembler(StreamPool(factory), options), arguments.captures, arguments.threads, is_silent=arguments.quiet)
    except FileExistsError as error:
        raise CommandError(f"{error.filename} exists (--force overwrites)") from None
