"""What the subcommands share: options of the assembler, texts, and which two directions belong together."""

from __future__ import annotations

import argparse
import errno
import os
import stat
import sys
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta, timezone
from typing import Any, Generic, TypeVar

from ..api import Assembler, CaptureSummary, Progress
from ..capture import Capture
from ..flow import ConnectionKey
from ..options import DEFAULT_ASSEMBLER_OPTIONS, AssemblerOptions
from ..verdict import Verdict
from .progress import progress_bar

__all__ = ["CommandError", "Pairs", "add_captures", "assembler_options", "complain", "positive", "read", "text_of", "time_of"]

_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)

T = TypeVar("T")


class CommandError(Exception):
    """Ends the command with one line on standard error."""


def complain(text: str) -> None:
    """One line on standard error, whatever the text holds."""
    print("tcpreasm:", " ".join(text.split()), file=sys.stderr)


def add_captures(parser: argparse.ArgumentParser, nargs: str = "+") -> None:
    """The captures, and how they are reassembled."""
    parser.add_argument(
        "captures",
        metavar="CAPTURE",
        nargs=nargs,
        help="pcap or pcapng file, also compressed (gzip, zstd); - is standard input; several are read one after the other, as one",
    )
    group = parser.add_argument_group("reassembly")
    group.add_argument("--verify-checksums", action="store_true", help="ignore segments with a wrong TCP checksum")
    group.add_argument(
        "--hole-timeout",
        metavar="SECONDS",
        type=float,
        help=f"capture time that missing bytes are waited for (default {DEFAULT_ASSEMBLER_OPTIONS.hole_timeout:g})",
    )
    group.add_argument(
        "--idle-timeout",
        metavar="SECONDS",
        type=float,
        help=f"capture time without a packet that ends a stream (default {DEFAULT_ASSEMBLER_OPTIONS.idle_timeout:g})",
    )


def positive(text: str) -> int:
    """For options that count something: an int, 1 or more."""
    try:
        number = int(text)
    except ValueError:
        number = 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"is 1 or more, not {text!r}")
    return number


def assembler_options(arguments: argparse.Namespace) -> AssemblerOptions:
    """From the command's options."""
    given: dict[str, Any] = {"verify_checksums": arguments.verify_checksums}
    for name in ("hole_timeout", "idle_timeout"):
        if getattr(arguments, name) is not None:
            given[name] = getattr(arguments, name)
    try:
        return AssemblerOptions(**given)
    except ValueError as error:
        raise CommandError(str(error)) from None


# Every capture has some of these; they are worth a word only where there is nothing else.
_ORDINARY = (Verdict.NOT_IP, Verdict.NOT_TCP)


def _check_names(captures: Sequence[str]) -> None:
    """OSError for what cannot be opened, before anything is read. By name: opening a pipe may end whoever writes to it."""
    for name in captures:
        if name == "-":
            continue
        wrong = 0
        if stat.S_ISDIR(os.stat(name).st_mode):
            wrong = errno.EISDIR
        elif not os.access(name, os.R_OK):
            wrong = errno.EACCES
        if wrong:
            raise OSError(wrong, os.strerror(wrong), name)


def read(
    assembler: Assembler, captures: Sequence[str], threads: int = 1, *, is_silent: bool = False, between: Progress | None = None
) -> CaptureSummary:
    """Assembles captures, and tells on standard error what was wrong with them, and what may hold TCP but was left out.

    Args:
        is_silent: the streams print nothing meanwhile, so that a terminal has room for a bar that shows how far it is.
        between: called now and then with the capture at hand.
    """
    _check_names(captures)
    with progress_bar(captures, is_silent) as bar:
        called = [each for each in (between, bar) if each is not None]

        def progress(capture: Capture) -> None:
            for each in called:
                each(capture)

        summary = assembler.assemble_capture(list(captures), threads=threads, progress=progress if called else None)
    for problem in summary.problems:
        complain(problem)
    left_out = {
        verdict: count
        for verdict, count in summary.verdicts.items()
        if verdict is not Verdict.SEGMENT and (verdict not in _ORDINARY or not summary.segments)
    }
    if Verdict.FRAGMENT in left_out:  # all but the last fragment of a datagram that became whole are FRAGMENT, and not left out
        stats = assembler.stats
        used = stats.fragments_joined - stats.datagrams + stats.fragments_dropped.get("repeated", 0)
        left_out[Verdict.FRAGMENT] -= used
        if left_out[Verdict.FRAGMENT] <= 0:
            del left_out[Verdict.FRAGMENT]
    if left_out:
        reasons = ", ".join(f"{count} {verdict}" for verdict, count in left_out.items())
        complain(f"{sum(left_out.values())} of {summary.packets} frames were left out: {reasons}")
    return summary


class Pairs(Generic[T]):
    """Brings the two directions of a connection together: what the first one was given, the second one gets too.

    A third stream of the same endpoints begins another pair. Remembers the pairs of which one direction is missing.
    """

    def __init__(self, make: Callable[[ConnectionKey], T]) -> None:
        self._make = make
        self._waiting: dict[ConnectionKey, T] = {}  # by the key of the direction that is missing

    def join(self, key: ConnectionKey) -> T:
        """What the direction shares with the other one; made for the first of them, by its key."""
        if key in self._waiting:
            return self._waiting.pop(key)
        pair = self._waiting[key.reverse()] = self._make(key)
        return pair

    def forget(self, key: ConnectionKey) -> None:
        """The direction that is missing will not come: the key is that of the first one."""
        self._waiting.pop(key.reverse(), None)


def time_of(seen_ns: int | None) -> str:
    """`2026-01-31T12:00:00.123456789Z`, or - for none, or the plain number of seconds where no calendar reaches."""
    if seen_ns is None:
        return "-"
    seconds, ns = divmod(seen_ns, 10**9)
    try:
        moment = _EPOCH + timedelta(seconds=seconds)
    except OverflowError:
        return f"{seconds}.{ns:09}"
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{ns:09}Z"


def text_of(data: bytes) -> str:
    """Bytes out of a capture, fit for a terminal: ASCII, everything else escaped."""
    return data.decode("latin-1").encode("unicode_escape").decode("ascii")
