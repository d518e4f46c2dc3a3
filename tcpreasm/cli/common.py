"""What the subcommands share: options of the assembler, and texts."""

from __future__ import annotations

import argparse
import errno
import os
import stat
import sys
from collections.abc import Sequence
from typing import Any

from .._select import core
from ..api import Assembler, CaptureSummary, Progress
from ..capture import Capture
from ..clock import time_of
from ..conversations import Conversation
from ..options import DEFAULT_ASSEMBLER_OPTIONS, OVERLAP, SYN_DATA, TUNNELS, URGENT, AssemblerOptions
from ..verdict import Verdict
from .progress import progress_bar

__all__ = [
    "CommandError",
    "add_captures",
    "assembler_options",
    "check_names",
    "complain",
    "handshake_text",
    "make_folder",
    "positive",
    "read",
    "spelled_out",
    "tell",
    "text_of",
    "thread_count",
    "time_of",
]


class CommandError(Exception):
    """Ends the command with one line on standard error."""


def complain(text: str) -> None:
    """One line on standard error, whatever the text holds."""
    print("tcpreasm:", " ".join(text.split()), file=sys.stderr)


def add_captures(parser: argparse.ArgumentParser, nargs: str | int = "+") -> None:
    """The captures, and how they are reassembled."""
    parser.add_argument(
        "captures",
        metavar="CAPTURE",
        nargs=nargs,
        help="pcap or pcapng file, also compressed (gzip, zstd); - is standard input"
        + ("" if nargs == 1 else "; several are read one after the other, as one"),
    )
    group = parser.add_argument_group("reassembly", "Options of the assembler, as the documentation of AssemblerOptions tells them.")
    for flag, (option, text, keywords) in _SWITCHES.items():
        default = getattr(DEFAULT_ASSEMBLER_OPTIONS, option)
        if default is not None and not isinstance(default, bool):
            text += f" (default {default:g})" if isinstance(default, float) else f" (default {default})"
        group.add_argument(flag, dest=option, default=argparse.SUPPRESS, help=text, **keywords)


def _tunnels(text: str) -> bool | list[str]:
    """`none`, `all`, or names with commas between them."""
    return text == "all" if text in ("all", "none") else text.split(",")


def _checksums(text: str) -> bool | str:
    if text not in _VERIFY_HOW:
        raise argparse.ArgumentTypeError(f"is {' or '.join(_VERIFY_HOW)}, not {text!r}")
    return text if text == "auto" else True


def spelled_out(argv: Sequence[str]) -> list[str]:
    """A command's arguments, with the value that --verify-checksums has where none is given: argparse would take the capture behind it
    for one."""
    words = list(argv)
    for at, (word, following) in enumerate(zip(words, [*words[1:], ""])):
        if word == "--":
            break
        if word.startswith("--v") and _VERIFY.startswith(word) and following not in _VERIFY_HOW:
            words[at] += "=yes"
    return words


_VERIFY, _VERIFY_HOW = "--verify-checksums", ("auto", "yes")
_WHOLE: dict[str, Any] = {"metavar": "N", "type": int}
_SECONDS: dict[str, Any] = {"metavar": "SECONDS", "type": float}

# Flag -> the attribute of AssemblerOptions that it sets, what it does, and how it is read. One that is not given sets nothing.
_SWITCHES: dict[str, tuple[str, str, dict[str, Any]]] = {
    _VERIFY: (
        "verify_checksums",
        "ignore segments with a wrong TCP checksum; auto: but take those of senders that leave theirs to the network card",
        {"metavar": "[auto|yes]", "type": _checksums},
    ),
    "--overlap": ("overlap", "whose bytes stay where segments overlap", {"choices": OVERLAP}),
    "--urgent": ("urgent", "what becomes of urgent data", {"choices": URGENT}),
    "--paws": ("paws", "leave out segments with an old timestamp", {"action": "store_true"}),
    "--syn-data": ("syn_data", "when text of a SYN goes out", {"choices": SYN_DATA}),
    "--decapsulate": (
        "decapsulate",
        f"tunnels that TCP is looked for in: all (the default), none, or some of {', '.join(TUNNELS)}",
        {"metavar": "NAME,...", "type": _tunnels},
    ),
    "--no-defragment": ("defragment", "leave fragmented IP datagrams out", {"action": "store_false"}),
    "--depth": ("depth", "bytes of each stream that are looked at, missing ones among them counted", _WHOLE | {"metavar": "BYTES"}),
    "--max-gap": ("max_gap", "bytes that a segment may lie ahead of its stream", _WHOLE),
    "--max-connections": ("max_connections", "connections (directions) at a time, 0 for no limit", _WHOLE),
    "--max-buffered-bytes": ("max_buffered_bytes_total", "memory for what waits for missing bytes", _WHOLE),
    "--hole-timeout": ("hole_timeout", "capture time that missing bytes are waited for", _SECONDS),
    "--acked-hole-timeout": ("acked_hole_timeout", "the same where the other side has acknowledged them", _SECONDS),
    "--idle-timeout": ("idle_timeout", "capture time without a packet that ends a stream", _SECONDS),
    "--closed-timeout": ("closed_timeout", "capture time for which a closed connection is remembered", _SECONDS),
}


def positive(text: str) -> int:
    """For options that count something: an int, 1 or more."""
    try:
        number = int(text)
    except ValueError:
        number = 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"is 1 or more, not {text!r}")
    return number


def thread_count(text: str) -> int:
    """For --threads: an int, 1 or more, and no more than the core takes."""
    number = positive(text)
    if number > core.MAX_THREADS:
        raise argparse.ArgumentTypeError(f"is {core.MAX_THREADS} or less, not {text!r}")
    return number


def make_folder(path: str) -> None:
    """Where there is none. CommandError where something else has that name."""
    try:
        os.makedirs(path, exist_ok=True)
    except FileExistsError:
        raise CommandError(f"{path} is no folder") from None


def assembler_options(arguments: argparse.Namespace) -> AssemblerOptions:
    """From the command's options."""
    names = {option for option, _, _ in _SWITCHES.values()}
    try:
        return AssemblerOptions(**{name: value for name, value in vars(arguments).items() if name in names})
    except ValueError as error:
        raise CommandError(str(error)) from None


# Every capture has some of these; they are worth a word only where there is nothing else.
_ORDINARY = (Verdict.NOT_IP, Verdict.NOT_TCP)


def check_names(captures: Sequence[str]) -> None:
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
    """Assembles captures with an assembler that has done nothing yet, and tells on standard error what `tell` does.

    Args:
        is_silent: the streams print nothing meanwhile, so that a terminal has room for a bar that shows how far it is.
        between: called now and then with the capture at hand.
    """
    check_names(captures)
    with progress_bar(captures, is_silent) as bar:
        called = [each for each in (between, bar) if each is not None]

        def progress(capture: Capture) -> None:
            for each in called:
                each(capture)

        summary = assembler.assemble_capture(list(captures), threads=threads, progress=progress if called else None)
    tell(summary.problems, assembler)
    return summary


_MANY = 0.1  # of the frames; where packets were damaged on their way there are few


def tell(problems: Sequence[str], assembler: Assembler) -> None:
    """On standard error: what was wrong with captures, and what in them may hold TCP but was left out."""
    stats = assembler.stats
    for problem in problems:
        complain(problem)
    left_out = {
        verdict: count
        for verdict, count in stats.verdicts.items()
        if verdict is not Verdict.SEGMENT and (verdict not in _ORDINARY or not stats.segments)
    }
    if Verdict.FRAGMENT in left_out:  # all but the last fragment of a datagram that became whole are FRAGMENT, and not left out
        used = stats.fragments_joined - stats.datagrams + stats.fragments_dropped.get("repeated", 0)
        left_out[Verdict.FRAGMENT] -= used
        if left_out[Verdict.FRAGMENT] <= 0:
            del left_out[Verdict.FRAGMENT]
    if left_out:
        reasons = ", ".join(f"{count} {verdict}" for verdict, count in left_out.items())
        complain(f"{sum(left_out.values())} of {stats.frames} frames were left out: {reasons}")
    if assembler.options.verify_checksums is True and left_out.get(Verdict.BAD_CHECKSUM, 0) > _MANY * stats.frames:
        complain(f"{_VERIFY} auto takes what was captured before the network card filled in its checksum")


def handshake_text(conversation: Conversation) -> str:
    """How long the handshake took, as far as it was captured."""
    time_ns = conversation.handshake_time_ns
    return "-" if time_ns is None else f"{time_ns / 1e6:.3f}ms"


def text_of(data: bytes) -> str:
    """Bytes out of a capture, fit for a terminal: ASCII, everything else escaped."""
    return data.decode("latin-1").encode("unicode_escape").decode("ascii")
