"""`tcpreasm stats`: what was in the captures, and what became of it: the counters of the assembler, as a table or as JSON."""

from __future__ import annotations

import argparse
import json
import threading
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from ..api import Assembler, CaptureSummary
from ..conversations import STATES, Conversation, ConversationPool, Side
from ..stats import AssemblerStats
from ..streams import ByteCountStream
from .common import add_captures, assembler_options, read, thread_count

__all__ = ["add_parser"]

_DESCRIPTION = """What was in the captures, and what became of it: frames by what they were, bytes captured, delivered
and dropped, each reason by itself; reasons that did not occur are left out. Bytes captured are those
delivered and dropped: at the end nothing is held. A conversation is both directions of a connection;
its states are those of `tcpreasm flows`.

--json has every counter under its name in tcpreasm.AssemblerStats, whose documentation tells what it
counts; and "conversations", their number by state."""


def add_parser(commands: Any) -> None:
    """Adds the subcommand."""
    parser = commands.add_parser(
        "stats",
        help="what was counted, and what was left out",
        description=_DESCRIPTION,
        epilog="examples:\n  tcpreasm stats capture.pcap\n  tcpreasm stats --json capture.pcap | jq .dropped",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_captures(parser)
    parser.add_argument("--json", action="store_true", help="one JSON object")
    parser.add_argument("--threads", metavar="N", type=thread_count, default=1, help="threads that do the work (default 1)")
    parser.set_defaults(run=run)


class _States:
    """The factory: counts conversations by how they ended. Several threads may end some at a time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: dict[str, int] = {}

    def new(self, side: Side) -> ByteCountStream:
        return ByteCountStream()

    def conversation_complete(self, conversation: Conversation) -> None:
        state = conversation.state
        with self._lock:
            self._counts[state] = self._counts.get(state, 0) + 1

    @property
    def counts(self) -> dict[str, int]:
        """Those that occurred, in the order of STATES."""
        return {state: self._counts[state] for state in STATES if state in self._counts}


def run(arguments: argparse.Namespace) -> None:
    """Reads the captures and prints what was counted."""
    states = _States()
    assembler = Assembler(ConversationPool(streams=states), assembler_options(arguments))
    summary = read(assembler, arguments.captures, arguments.threads, is_silent=True)
    print(_json(summary, assembler.stats, states.counts) if arguments.json else _table(assembler.stats, states.counts))


def _json(summary: CaptureSummary, stats: AssemblerStats, conversations: Mapping[str, int]) -> str:
    told: dict[str, Any] = {"complete": summary.complete, "problems": summary.problems}
    for name in (*(field.name for field in fields(stats)), "bytes_dropped"):
        value = getattr(stats, name)
        told[name] = {str(reason): count for reason, count in value.items()} if isinstance(value, Mapping) else value
    return json.dumps(told | {"conversations": conversations})


def _table(stats: AssemblerStats, conversations: Mapping[str, int]) -> str:
    rows = [(0, "frames", stats.frames), *_reasons(1, stats.verdicts)]
    rows += [
        (0, "conversations", sum(conversations.values())),
        *_reasons(1, conversations),
        (0, "streams", stats.streams_opened),
        *_reasons(1, {f"evicted while {reason}": count for reason, count in stats.connections_evicted.items()}),
        (0, "TCP segments", stats.segments),
        *_occurred("RST ignored", stats.rst_ignored),
        *_occurred("FIN ignored", stats.fin_ignored),
        *_occurred("SYN late", stats.late_syn),
        *_occurred("SYN remembered", stats.syn_remembered),
        *_occurred("urgent", stats.urgent_segments),
        (0, "bytes captured", stats.bytes_captured),
        (1, "delivered", stats.bytes_delivered),
        (1, "dropped", stats.bytes_dropped),
        *_reasons(2, stats.dropped),
        *_occurred("that differ from an overlapping copy", stats.conflicting),
        (0, "bytes missing in streams", stats.bytes_skipped),
    ]
    if stats.fragments:
        rows += [
            (0, "IP fragments", stats.fragments),
            (1, "joined", stats.fragments_joined),
            *_reasons(1, {f"dropped, {reason}": count for reason, count in stats.fragments_dropped.items()}),
            (0, "datagrams of fragments", stats.datagrams),
        ]
    rows += [(0, *row[1:]) for row in _occurred("senders that offload checksums", stats.offloading_senders)]
    names = ["  " * depth + name for depth, name, _ in rows]
    numbers = [f"{count:,}" for _, _, count in rows]
    name_width, number_width = max(map(len, names)), max(map(len, numbers))
    return "\n".join(f"{name:<{name_width}}  {number:>{number_width}}" for name, number in zip(names, numbers, strict=True))


def _reasons(depth: int, counts: Mapping[Any, int]) -> list[tuple[int, str, int]]:
    return [(depth, str(reason).replace("_", " "), count) for reason, count in counts.items()]


def _occurred(name: str, count: int) -> list[tuple[int, str, int]]:
    return [(1, name, count)] if count else []
