"""Both cores in lock-step (promise 14): the same calls with the same arguments in the same order, whatever comes in.

Lives here: random segments, frames, flushes, clocks, errors of the caller and of streams, and every capture of the corpus. What is right
is not asked here (test_model, test_faults), only that both do the same, and what holds after every call on any input at all.

TCPREASM_EXAMPLES multiplies the number of examples.
"""

from __future__ import annotations

import hashlib
import os
import random
import struct
import subprocess
import sys
from collections.abc import Callable
from dataclasses import fields
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from conftest import IMPLEMENTATIONS, load
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from recorder import ACK, NS, URG, Ends, Hooks, RecordedStream, Recorder, frame, in_a_tunnel, key_of, segment, timestamps

EXAMPLES = int(os.environ.get("TCPREASM_EXAMPLES", "1"))
START_NS = 1_700_000_000 * NS
CONNECTIONS: list[Ends] = [
    ("10.0.0.1", 1234, "10.0.0.2", 80),
    ("10.0.0.2", 80, "10.0.0.1", 1234),
    ("2001:db8::1", 1234, "2001:db8::2", 80),
]
ISNS = [0, 1000, 2**31 - 20, 2**32 - 10, 2**32 - 4000]
Both = tuple[ModuleType, ModuleType]


def examples(count: int) -> settings:
    slow = [HealthCheck.too_slow, HealthCheck.data_too_large]
    return settings(max_examples=count * EXAMPLES, derandomize=EXAMPLES == 1, deadline=None, suppress_health_check=slow)


# -- one core, and what it did --------------------------------------------------------------------------------------------


class Keeper(Recorder):
    """Keeps pieces, lists of pieces and views of pieces, as users do, each with a copy of what it was."""

    def __init__(self, keep: bool, hooked: bool) -> None:
        super().__init__(keep=keep)
        self.hooked = hooked
        self.copies: list[tuple[Any, bytes]] = []

    def new(self, net_flow: Any, transport_flow: Any) -> RecordedStream:
        made = super().new(net_flow, transport_flow)
        self.streams[-1] = (HookedKeptStream if self.hooked else KeptStream)(self, made.key)
        return self.streams[-1]

    def check(self) -> None:
        for kept, copy in self.copies:
            assert bytes(kept) == copy
            assert len(kept) == len(copy)


class KeptStream(RecordedStream):
    recorder: Keeper

    def reassembled(self, reassemblies: list[Any]) -> object:
        if self.recorder.keep:
            for i, piece in enumerate(reassemblies):
                kept = (piece, memoryview(piece), memoryview(piece)[1:], piece.bytes)[(i + len(self.recorder.calls)) % 4]
                self.recorder.copies.append((kept, bytes(kept)))
        self.recorder.calls.append(("numbers", self.key, [(piece.packet_number, piece.seq) for piece in reassemblies]))
        return super().reassembled(reassemblies)


class HookedKeptStream(Hooks, KeptStream):
    """The same, with all hooks."""


class Side:
    """One core with two Assemblers on one pool. Option `pairs`: a ConversationPool."""

    def __init__(self, package: ModuleType, isns: list[int], keep: bool, options: dict[str, Any]) -> None:
        self.package = package
        self.isns = isns
        self.recorder = Keeper(keep, options.get("hooked", False))
        self.ends: list[Any] = []  # sides of conversations
        pairs = options.get("pairs", False)
        self.pool = recorded_conversations(package, self.recorder, self.ends) if pairs else package.StreamPool(self.recorder)
        self.assemblers = []
        options = dict(options)
        options.pop("pairs", None)
        options.pop("hooked", None)
        first_number = options.pop("first_number", 0)
        if options.pop("tells", False):
            options["on_conflict"] = partial(self.tell, "conflict")
            options["on_gap"] = partial(self.tell, "gap")
        for overlap, depth in zip(options.pop("overlaps", ("first", "first")), options.pop("depths", (None, None))):
            self.assemblers.append(package.Assembler(self.pool, package.AssemblerOptions(overlap=overlap, depth=depth, **options)))
            self.assemblers[-1]._number_from(first_number)

    def tell(self, kind: str, net_flow: Any, transport_flow: Any, *what: Any) -> None:
        key = key_of((str(net_flow.src), transport_flow.src, str(net_flow.dst), transport_flow.dst))
        self.recorder.calls.append((kind, key, *what))
        self.recorder.raise_planned(kind)

    def do(self, act: Callable[[Side], Any]) -> tuple[Any, ...]:
        """What came back or was raised, and what was called."""
        try:
            result = act(self)
        except (Exception, KeyboardInterrupt) as error:
            result = type(error).__name__, str(error)
        return result, self.recorder.take()

    def state(self, with_allocated: bool) -> list[Any]:
        keys = self.pool.keys()
        states: list[Any] = [[*map(str, keys)], [key.net_flow.tunnels for key in keys]]
        for assembler in self.assemblers:
            stats = assembler.stats
            numbers = {field.name: getattr(stats, field.name) for field in fields(stats)}
            numbers["verdicts"] = {int(verdict): count for verdict, count in stats.verdicts.items()}
            numbers["dropped"] = dict(stats.dropped)
            if not with_allocated:
                del numbers["pages_allocated"]
            states.append((numbers, assembler.now_ns(), assembler.closed))
        return states + [facts_of_side(side) for side in self.ends]


def facts_of_side(side: Any) -> tuple[Any, ...]:
    """All that a side tells, and its conversation."""
    conversation = side.conversation
    return (
        *(str(side.key), side.role, side.packets, side.bytes, side.delivered, side.skipped, side.acked, side.started, side.ended),
        *(side.first_seen_ns, side.last_seen_ns, str(conversation.key), conversation.guessed, conversation.handshake),
        *(conversation.syn_ns, conversation.syn_ack_ns, conversation.handshake_ack_ns, conversation.handshake_time_ns),
        *(conversation.closed_by, conversation.closed_how, conversation.state, conversation.complete),
        *(conversation.first_seen_ns, conversation.last_seen_ns, side.peer == conversation.client),
    )


def recorded_conversations(package: ModuleType, recorder: Keeper, ends: list[Any]) -> Any:
    """A pool whose conversations write down what is called, for each side as a stream does, and their end; the sides come to `ends`."""

    class Handler:
        def __init__(self, conversation: Any) -> None:
            self.conversation = conversation
            self.streams: dict[Any, Any] = {}
            self.origins: dict[Any, Any] = {}
            self.ended: list[Any] = []
            recorder.raise_planned("new")

        def stream(self, side: Any) -> Any:
            if side not in self.streams:
                ends.append(side)
                recorder.calls.append(("new", str(side.key)))
                self.streams[side] = KeptStream(recorder, str(side.key))
                self.origins[side] = package.BytesStream(provenance=True)
            return self.streams[side]

        def reassembled(self, side: Any, pieces: list[Any]) -> object:
            recorder.expect(side.conversation is self.conversation and not self.ended.count(side), f"{side}: a call behind its end")
            stream = self.stream(side)
            self.origins[side].reassembled(pieces)
            recorder.calls.append(("acked", str(side.key), self.origins[side].provenance["acked"][-len(pieces) :].tolist()))
            return stream.reassembled(pieces)

        def side_complete(self, side: Any) -> None:
            self.ended.append(side)
            self.stream(side).reassembly_complete()

        def conversation_complete(self) -> None:
            recorder.expect(self.conversation.complete, "told as complete, and it is not")
            recorder.expect({*self.ended} >= {*self.streams}, "told as complete, and a side is not")
            recorder.calls.append(("over", str(self.conversation.key), self.conversation.state, len(self.streams)))
            recorder.raise_planned("over")

    class HookedHandler(Handler):
        def on_gap(self, side: Any, *what: Any) -> None:
            self.stream(side).on_gap(*what)

        def on_conflict(self, side: Any, *what: Any) -> None:
            self.stream(side).on_conflict(*what)

        def on_evict(self, side: Any, *what: Any) -> None:
            self.stream(side).on_evict(*what)

    return package.ConversationPool(HookedHandler if recorder.hooked else Handler)


class LockStep:
    """Both cores, led through the same."""

    def __init__(self, both: Both, isns: list[int], keep: bool, options: dict[str, Any]) -> None:
        self.sides = [Side(package, isns, keep, options) for package in both]
        self.keep = keep
        self.now = START_NS
        self.balanced = True  # (12) holds: no call was refused half-way
        self.streams: dict[str, tuple[bool, bool]] = {}  # the stream of a key: open, has begun
        self.skipped = 0

    def do(self, act: Callable[[Side], Any]) -> Any:
        (result, calls), other = (side.do(act) for side in self.sides)
        assert (result, calls) == other
        compiled, pure = (side.state(not self.keep) for side in self.sides)
        assert compiled == pure
        self.check(calls)
        return result

    def check(self, calls: list[Any]) -> None:
        """What holds on any input."""
        for side in self.sides:
            assert not side.recorder.wrong
        for kind, key, *rest in calls:
            if kind in ("acked", "numbers", "over", "gap of", "conflict of", "eviction of"):
                continue
            if kind == "conflict":
                _, held, new, wins = rest
                assert len(held) == len(new) > 0
                assert all(a != b for a, b in zip(held, new))
                assert wins in ("held", "new")
                continue
            if kind == "gap":
                _, missing, why = rest
                assert (missing == -1 and why == "start") or (missing > 0 and why in ("limited", "expired", "acked", "ended", "cut"))
                continue
            is_open, begun = self.streams.get(key, (False, False))
            if kind == "new":
                is_open = begun = False
            elif kind == "complete":
                is_open = False
            else:
                for data, skip, start, end, _ in rest[0]:
                    assert skip >= -1
                    assert not begun or (skip >= 0 and not start)
                    assert data or skip or start or end, "an empty piece that says nothing"
                    begun = True
                    self.skipped += max(skip, 0)
                is_open = True
            self.streams[key] = is_open, begun
        if self.balanced:
            stats = [assembler.stats for assembler in self.sides[1].assemblers]
            captured = sum(one.bytes_captured for one in stats)
            assert captured == sum(one.bytes_delivered + one.bytes_dropped + one.bytes_held for one in stats)
            assert min(min(one.bytes_skipped, one.bytes_held, one.pages_used) for one in stats) >= 0

    def end(self) -> None:
        """Everything goes out; then what was kept is looked at."""
        for which in range(2):
            self.do(lambda side, which=which: side.assemblers[which].flush_all())
        for which in range(2):
            self.do(lambda side, which=which: side.assemblers[which].close())
        for side in self.sides:
            side.recorder.check()
            assert not len(side.pool)
        stats = [assembler.stats for assembler in self.sides[1].assemblers]
        assert sum(one.bytes_skipped for one in stats) == self.skipped
        assert sum(one.pages_used for one in stats) == sum(one.bytes_held for one in stats) == 0


# -- what can happen ------------------------------------------------------------------------------------------------------


def content(which: int, place: int, size: int, variant: int) -> bytes:
    return bytes((place + i) * 31 + which * 7 + variant * 101 & 255 for i in range(size))


def send(
    which: int, assembler: int, place: int, size: int, cut: int, flags: int, variant: int, now: int, *, ack_place: int | None = None
) -> Callable[[Side], Any]:
    """A segment; place counts from behind the ISN, ack_place from behind that of the other direction."""
    ends = CONNECTIONS[which]
    named = {name: bool(flags & bit) for bit, name in ((1, "fin"), (2, "syn"), (4, "rst"), (16, "ack_flag"))}
    payload = content(which, place, size, variant)
    if flags & URG:
        named |= {"urg": True, "urgent": (place * 7 + variant) % (size + 2)}
    numbers: dict[str, Any] = dict(named)

    def act(side: Side) -> Any:
        if ack_place is not None:
            numbers["ack"] = side.isns[1 - which] + 1 + ack_place & 0xFFFFFFFF
        tcp = segment(side.package, side.isns[which] + 1 + place, payload, ends=ends, wire=size + cut, **numbers)
        return side.assemblers[assembler].assemble(side.package.Flow(ends[0], ends[2]), tcp, timestamp_ns=now)

    return act


def send_frame(data: bytes, assembler: int, linktype: int, wire: int | None, now: int) -> Callable[[Side], Any]:
    return lambda side: int(side.assemblers[assembler].assemble_frame(data, timestamp_ns=now, linktype=linktype, wire_length=wire))


PLACE = st.one_of(
    st.integers(-3, 45),
    st.integers(-3, 45),
    st.integers(-3, 45),
    st.builds(lambda pages, off: pages * 1900 + off, st.integers(0, 6), st.integers(-2, 2)),
    st.builds(
        lambda far, sign, off: sign * far + off,
        st.sampled_from([1 << 20, 1 << 24, 1 << 27, (1 << 27) + (1 << 19), 1 << 30, (1 << 31) - 30, 1 << 31]),
        st.sampled_from([1, 1, -1]),
        st.integers(-12, 12),
    ),
)
SIZE = st.one_of(st.integers(0, 9), st.integers(0, 9), st.integers(0, 9), st.sampled_from([1899, 1900, 1901, 3800, 3801, 6000]))
CUT = st.sampled_from([0] * 12 + [1, 5, 20, 3000, 1 << 20, 2**31 - 6001])
FLAGS = st.sampled_from(
    [ACK] * 14 + [ACK | URG] * 2 + [ACK | 1] * 3 + [2] * 3 + [2 | ACK, 2 | 1, 4, 4 | ACK, 4 | ACK, 0, 1, 2 | 4, 7, 3 | ACK]
)
STEP = st.sampled_from(
    [0] * 8 + [1, 1, 400_000_000, NS, 5 * NS, -5 * NS, 59 * NS, 61 * NS, -61 * NS, 200 * NS, 4000 * NS, -4000 * NS, 3 << 60]
)
SEGMENT = st.tuples(
    st.just("segment"), st.sampled_from([0, 0, 0, 0, 1, 2]), st.sampled_from([0, 0, 0, 1]), PLACE, SIZE, CUT, FLAGS, st.integers(0, 2)
)
FLUSH = st.one_of(
    st.tuples(st.just("flush"), st.integers(0, 1), st.sampled_from([None, 0, 1, NS, 5 * NS, 130 * NS, -5 * NS]), st.booleans()),
    st.tuples(st.just("flush older"), st.integers(0, 1), st.sampled_from([0.0, 0.5, 1.0, 100.0])),
    st.tuples(st.just("flush all"), st.integers(0, 1)),
    st.tuples(st.just("expire"), st.integers(0, 1)),
    st.tuples(st.just("expire"), st.integers(0, 1)),
    st.tuples(st.just("advance"), st.integers(0, 1), st.sampled_from([NS, 100 * NS, -NS, 5000 * NS])),
)
RAISE = st.tuples(
    st.just("raise"),
    st.sampled_from(["new", "reassembled", "reassembled", "complete", "conflict", "gap", "conflict of", "gap of", "eviction of"]),
    st.sampled_from([ValueError, KeyError, KeyboardInterrupt]),
)
STOP = st.just(("stop",))
ACTION = st.one_of(*[SEGMENT] * 12, FLUSH, FLUSH, RAISE, STOP)
POLICY = st.sampled_from(["first", "last", "bsd", "linux", "windows", "solaris", "old-linux"])
OPTIONS = st.fixed_dictionaries(
    {},
    optional={
        "max_buffered_pages_total": st.sampled_from([0, 1, 2, 5]),
        "max_buffered_pages_per_connection": st.sampled_from([0, 1, 2, 3, 7]),
        "max_buffered_bytes_total": st.sampled_from([None, 1, 97, 2000, 6000]),
        "max_buffered_bytes_per_connection": st.sampled_from([None, 96, 500, 2100, 4000]),
        "start_wait_segments": st.sampled_from([None, 1, 2, 5]),
        "start_wait": st.sampled_from([None, 0.0, 0.5, 1e9]),
        "max_gap": st.sampled_from([None, 1, 10, 3000, 1 << 20, (1 << 31) - 1]),
        "hole_timeout": st.sampled_from([None, 0, 1.0, 1e9]),
        "idle_timeout": st.sampled_from([None, 0, 10.0, 1e9]),
        "closed_timeout": st.sampled_from([0, 1.0, 1e9]),
        "verify_checksums": st.booleans(),
        "max_connections": st.sampled_from([1, 2]),
        "open_on": st.just("data"),
        "overlaps": st.one_of(POLICY.map(lambda policy: (policy, policy)), st.tuples(POLICY, POLICY)),
        "tells": st.booleans(),
        "hooked": st.booleans(),
        "depths": st.lists(st.sampled_from([None, 1, 3, 10, 2000, 5000, 1 << 30]), min_size=2, max_size=2),
        "urgent": st.sampled_from(["inline", "oob", "oob-linux"]),
        "paws": st.booleans(),
        "syn_data": st.sampled_from(["deliver", "acked"]),
        "first_number": st.sampled_from([2**32 - 8, 2**40]),
    },
)
LIMIT_NS = 2**62


def perform(step: LockStep, action: tuple[Any, ...]) -> None:
    kind, *rest = action
    if kind == "segment":
        which, assembler, place, size, cut, flags, variant = rest
        step.do(send(which, assembler, place, size, cut, flags, variant, step.now))
    elif kind == "talk":
        which, assembler, place, size, flags, ack_place, isn_shift = rest
        shifted = place + isn_shift, ack_place + isn_shift
        step.do(send(which, assembler, shifted[0], size, 0, flags, 0, step.now, ack_place=shifted[1]))
    elif kind == "frame":
        step.do(send_frame(*rest, step.now))
    elif kind == "flush":
        assembler, age, close_all = rest
        t = None if age is None else max(step.now - age, -LIMIT_NS)
        step.do(lambda side: side.assemblers[assembler].flush_ns(t, close_all))
    elif kind == "flush older":
        step.do(lambda side: side.assemblers[rest[0]].flush_older_than(step.now / NS - rest[1]))
    elif kind == "flush all":
        step.do(lambda side: side.assemblers[rest[0]].flush_all())
    elif kind == "expire":
        step.do(lambda side: side.assemblers[rest[0]].expire())
    elif kind == "advance":
        step.now = min(step.now + rest[1], LIMIT_NS)
        step.do(lambda side: side.assemblers[rest[0]].advance_clock(step.now))
    elif kind == "raise":
        for side in step.sides:
            side.recorder.plan[rest[0]] = rest[1](rest[0])
    elif kind == "stop":
        for side in step.sides:
            side.recorder.plan["reassembled"] = partial(stop_once, side)
    elif kind == "nest":
        call, inner = rest

        def plan(side: Side) -> Callable[[], None]:
            def planned() -> None:
                del side.recorder.plan[call]
                try:
                    inner_result = inner_act(side)
                except (RuntimeError, ValueError) as error:
                    inner_result = type(error).__name__, str(error)
                side.recorder.calls.append(("complete", f"nested: {inner_result!r}"))

            return planned

        inner_act = send(*inner, step.now) if inner[0] != "flush" else lambda side: side.assemblers[inner[1]].flush_ns(inner[2], True)
        for side in step.sides:
            side.recorder.plan[call] = plan(side)


def stop_once(side: Side) -> object:
    del side.recorder.plan["reassembled"]
    return side.package.STOP


def run(both: Both, actions: list[tuple[tuple[Any, ...], int]], isns: list[int], keep: bool, options: dict[str, Any], nested: bool) -> None:
    step = LockStep(both, isns, keep, options)
    step.balanced = not nested
    for action, time_step in actions:
        step.now = max(min(step.now + time_step, LIMIT_NS), -LIMIT_NS)
        perform(step, action)
    for side in step.sides:
        side.recorder.plan.clear()
    step.end()


@examples(400)
@given(
    actions=st.lists(st.tuples(ACTION, STEP), min_size=4, max_size=60),
    isns=st.lists(st.sampled_from(ISNS), min_size=3, max_size=3),
    keep=st.booleans(),
    options=OPTIONS,
)
def test_any_segments(both: Both, actions: list[tuple[tuple[Any, ...], int]], isns: list[int], keep: bool, options: dict[str, Any]) -> None:
    run(both, actions, isns, keep, options, nested=False)


TALK = st.tuples(
    st.just("talk"),
    st.integers(0, 1),
    st.sampled_from([0, 0, 0, 1]),
    st.one_of(st.integers(-1, 12), st.sampled_from([-1, 0, 5000, 1 << 27])),
    st.integers(0, 4),
    st.sampled_from([ACK] * 12 + [ACK | 1] * 3 + [2, 2, 2 | ACK, 2 | ACK, 4, 4 | ACK, 4 | ACK, 0]),
    st.one_of(st.integers(-1, 14), st.sampled_from([0, 0, 5000, -5000, 1 << 30])),
    st.sampled_from([0] * 9 + [100_000]),  # the same ports again, with other numbers
)
CONVERSATION_RAISES = RAISE.filter(lambda action: action[1] != "conflict") | st.just(("raise", "over", ValueError))
CONVERSATION_OPTIONS = st.tuples(OPTIONS, st.sampled_from([None, 0, 0.5, 1.0, 100.0])).map(
    lambda drawn: drawn[0] | {"acked_hole_timeout": drawn[1], "pairs": True}
)


@examples(500)
@given(
    actions=st.lists(st.tuples(st.one_of(*[TALK] * 14, SEGMENT, FLUSH, FLUSH, CONVERSATION_RAISES, STOP), STEP), min_size=4, max_size=70),
    isns=st.lists(st.sampled_from(ISNS), min_size=3, max_size=3),
    keep=st.booleans(),
    options=CONVERSATION_OPTIONS,
)
def test_any_conversation(both: Both, actions: list[tuple[tuple[Any, ...], int]], isns: list[int], keep: bool, options: Any) -> None:
    """Both directions of one connection, paired; what each side tells is compared after every call."""
    run(both, actions, isns, keep, options, nested=False)


def script(rng: random.Random) -> list[tuple[tuple[Any, ...], int]]:
    """Uses of the same two ports, one after the other: each opens, talks and closes in one of many ways, as captured by who loses packets,
    takes some twice, and others in another order."""
    actions: list[tuple[tuple[Any, ...], int]] = []
    lost, moved = rng.choice([(0, 0), (0.1, 0.1), (0.3, 0.2)])
    for use in range(rng.randrange(1, 4)):
        sent, acked = [0, 0], [0, 0]  # by each side
        packets: list[tuple[int, int, int, int, int]] = []

        def say(which: int, size: int, flags: int, packets: Any = packets, sent: Any = sent, acked: Any = acked) -> None:
            syn = bool(flags & 2)
            packets.append((which, sent[which] - syn, size, flags, acked[which]))
            sent[which] += size + (flags & 1)

        say(0, rng.choice([0, 0, 0, 3]), 2)
        if rng.random() < 0.15:
            packets.append((1, 0, 0, 4 | ACK, rng.choice([0, sent[0], 7])))  # refused
        elif rng.random() < 0.15:
            say(1, 0, 2)  # both at the same time
            say(0, 0, 2 | ACK)
            say(1, 0, ACK)
        else:
            say(1, 0, 2 | ACK)
            say(0, 0, ACK)
        for _ in range(rng.randrange(10)):
            which = rng.randrange(2)
            for _ in range(rng.randrange(1, 4)):
                say(which, rng.randrange(1, 6), ACK)
            acked[1 - which] = sent[which]
            if rng.random() < 0.8:
                say(1 - which, 0, ACK)
        first = rng.randrange(2)
        for which, end in ((first, rng.choice([ACK | 1, ACK | 1, 4, 4 | ACK, None])), (1 - first, rng.choice([ACK | 1, ACK | 1, None]))):
            if end is not None:
                say(which, 0, end)
                acked[1 - which] = sent[which]
                say(1 - which, 0, ACK)
        packets = [packet for packet in packets for _ in range(1 + (rng.random() < moved / 2)) if rng.random() >= lost]
        for at in range(len(packets) - 1):
            if rng.random() < moved:
                packets[at], packets[at + 1] = packets[at + 1], packets[at]
        for which, place, size, flags, ack_place in packets:
            talk = ("talk", which, int(rng.random() < 0.1), place, size, flags, ack_place, use * 100_000)
            actions.append((talk, rng.choice([0, 1000, NS // 100, NS // 100, NS // 3])))
            if rng.random() < 0.25:
                actions.append((("expire", rng.randrange(2)), rng.choice([0, NS // 2, NS, 3 * NS])))
        actions.append((rng.choice([("expire", 0), ("flush", 0, NS, True), ("flush all", 1)]), rng.choice([0, NS, 61 * NS, 4000 * NS])))
    return actions


@pytest.mark.parametrize("seed", range(150 * EXAMPLES))
def test_conversations_as_they_are(both: Both, seed: int) -> None:
    rng = random.Random(seed)
    options: dict[str, Any] = {"pairs": True, "acked_hole_timeout": rng.choice([None, 0, 0.5, 1.0, 1.0])}
    for name, values in (
        ("open_on", ["data"]),
        ("start_wait_segments", [1, 2, None]),
        ("hole_timeout", [0, 1.0]),
        ("idle_timeout", [5.0]),
        ("closed_timeout", [0, 1.0]),
        ("max_connections", [1, 2, 3]),
        ("syn_data", ["acked"]),
    ):
        if rng.random() < 0.25:
            options[name] = rng.choice(values)
    run(both, script(rng), rng.choices(ISNS, k=3), rng.random() < 0.3, options, nested=False)


NEST = st.tuples(
    st.just("nest"),
    st.sampled_from(["new", "reassembled", "reassembled", "complete"]),
    st.one_of(
        st.tuples(
            st.integers(0, 2),
            st.integers(0, 1),
            st.integers(-3, 45),
            st.integers(0, 9),
            st.just(0),
            st.sampled_from([ACK, ACK, ACK | 1, 2, ACK | 4]),
            st.just(0),
        ),
        st.tuples(st.just("flush"), st.integers(0, 1), st.sampled_from([None, START_NS])),
    ),
)


@examples(300)
@given(
    actions=st.lists(st.tuples(st.one_of(*[SEGMENT] * 6, NEST, NEST, FLUSH), STEP), min_size=4, max_size=50),
    isns=st.lists(st.sampled_from(ISNS), min_size=3, max_size=3),
    options=OPTIONS,
)
def test_callbacks_that_call_the_other_assembler(
    both: Both, actions: list[tuple[tuple[Any, ...], int]], isns: list[int], options: dict[str, Any]
) -> None:
    """From a callback into the other assembler of the pool, or into the one at work, which refuses."""
    run(both, actions, isns, False, options, nested=True)


@examples(300)
@given(
    actions=st.lists(st.tuples(st.one_of(*[TALK] * 6, NEST, NEST, FLUSH), STEP), min_size=4, max_size=50),
    isns=st.lists(st.sampled_from(ISNS), min_size=3, max_size=3),
    options=CONVERSATION_OPTIONS,
)
def test_callbacks_of_conversations_that_call_the_other_assembler(
    both: Both, actions: list[tuple[tuple[Any, ...], int]], isns: list[int], options: Any
) -> None:
    run(both, actions, isns, False, options, nested=True)


def test_flush_by_an_assembler_that_has_seen_no_packet(both: Both) -> None:
    """What waits for a hole before its FIN ends in the flush of another assembler on the pool. Late packets open no ghost stream."""
    step = LockStep(both, [1000] * 3, False, {})
    step.do(send(0, 0, 0, 1, 0, ACK | 1, 0, START_NS))
    assert step.do(lambda side: side.assemblers[1].flush_ns(None, False)) == (1, 1)
    step.do(send(0, 0, 0, 1, 0, ACK | 1, 0, START_NS + NS))
    assert not len(step.sides[0].pool)
    step.end()


@pytest.mark.parametrize("call", ["new", "reassembled", "complete"])
def test_flush_of_the_other_assembler_from_a_callback(both: Both, call: str) -> None:
    step = LockStep(both, [1000] * 3, False, {})
    step.balanced = False
    step.do(send(1, 0, -1, 0, 0, 2, 0, START_NS))
    step.do(send(1, 0, 5, 5, 0, ACK, 0, START_NS))
    perform(step, ("nest", call, ("flush", 1, START_NS + NS)))
    for place, flags in ((-1, 2), (0, ACK), (1, ACK | 1)):
        step.do(send(0, 0, place, place + 1 & 1, 0, flags, 0, START_NS))
    step.end()


SYN_SEGMENT = st.tuples(
    st.just("segment"),
    st.integers(0, 2),
    st.sampled_from([0, 0, 0, 1]),
    st.sampled_from([-1, -1, -1, -1, 0, 2, 5, 40, 41, 45]),
    st.integers(0, 6),
    st.sampled_from([0, 0, 0, 0, 3]),
    st.sampled_from([2] * 6 + [2 | ACK, 2 | 1] + [ACK] * 4 + [ACK | 1, 4 | ACK]),
    st.integers(0, 1),
)
SYN_OPTIONS = st.builds(
    lambda some, more: some | more,
    OPTIONS,
    st.fixed_dictionaries(
        {
            "open_on": st.sampled_from(["syn", "data"]),
            "syn_data": st.sampled_from(["deliver", "acked", "acked"]),
            "max_connections": st.sampled_from([0, 1, 2, 2]),
        }
    ),
)


@examples(400)
@given(
    actions=st.lists(st.tuples(st.one_of(*[SYN_SEGMENT] * 10, FLUSH, RAISE), STEP), min_size=4, max_size=40),
    isns=st.lists(st.sampled_from(ISNS), min_size=3, max_size=3),
    options=SYN_OPTIONS,
)
def test_syns_with_text(both: Both, actions: list[tuple[tuple[Any, ...], int]], isns: list[int], options: dict[str, Any]) -> None:
    """Again and again, with other numbers, with a FIN, and little else: which ones count as half-open, and when their streams are made."""
    run(both, actions, isns, False, options, nested=False)


# -- frames -----------------------------------------------------------------------------------------------------------------

LINKTYPES = (1, 0, 9, 10, 12, 50, 51, 101, 104, 105, 108, 113, 127, 228, 229, 276, 147)
LINKS = {
    1: None,
    0: b"\2\0\0\0",
    108: b"\0\0\0\2",
    101: b"",
    228: b"",
    229: b"",
    113: bytes(14) + b"\x08\x00",
    276: b"\x08\x00" + bytes(18),
    9: b"\0\x21",
}
WHOLE_FRAME = st.tuples(
    st.sampled_from([0, 0, 1, 2]),
    st.integers(-2, 40),
    st.integers(0, 12),
    st.sampled_from([ACK] * 7 + [ACK | URG, ACK | 1, 2, 20, 0, 0xC2]),
)
OPTION_BYTES = st.lists(st.sampled_from([0, 1, 2, 3, 8, 10, 99]), min_size=12, max_size=12).map(bytes)


@st.composite
def frames(draw: st.DrawFn) -> tuple[Any, ...]:
    """A frame as captured: whole, cut, padded, with bytes changed, or nothing but noise."""
    which, place, size, flags = draw(WHOLE_FRAME)
    linktype = draw(st.sampled_from([1] * 12 + list(LINKS) + list(LINKTYPES)))
    header = draw(st.one_of(st.just(b""), st.just(b""), st.sampled_from([1, 2, 3, 2**31, 2**32 - 1]).map(timestamps), OPTION_BYTES))
    urgent = draw(st.integers(0, 13)) if flags & URG else 0
    data = bytearray(
        frame(
            1001 + place,
            content(which, place, size, 0),
            flags,
            ends=CONNECTIONS[which],
            link=LINKS.get(linktype),
            options=header,
            urgent=urgent,
        )
    )
    for _ in range(draw(st.sampled_from([0, 0, 0, 0, 1, 2])) if linktype == 1 else 0):
        data = bytearray(in_a_tunnel(bytes(data)))
    how = draw(st.sampled_from(["whole", "whole", "whole", "cut", "cut", "padded", "changed", "changed", "changed", "noise"]))
    wire = None
    if how == "cut":
        wire = draw(st.sampled_from([len(data), None, len(data) - 1, 0, 2**40]))
        del data[draw(st.integers(0, len(data))) :]
    elif how == "padded":
        data += bytes(draw(st.integers(0, 20)))
    elif how == "changed":
        for _ in range(draw(st.integers(1, 3))):
            data[draw(st.integers(0, len(data) - 1))] = draw(st.integers(0, 255))
    elif how == "noise":
        data = bytearray(draw(st.binary(max_size=90)))
    return "frame", bytes(data), draw(st.sampled_from([0, 0, 0, 1])), linktype, wire


@examples(400)
@given(
    actions=st.lists(st.tuples(st.one_of(*[frames()] * 8, FLUSH, RAISE), STEP), min_size=4, max_size=50),
    keep=st.booleans(),
    options=OPTIONS,
)
def test_any_frames(both: Both, actions: list[tuple[tuple[Any, ...], int]], keep: bool, options: dict[str, Any]) -> None:
    run(both, actions, [1000] * 3, keep, options, nested=False)


# -- errors of the caller -----------------------------------------------------------------------------------------------------


def tcp(side: Side, **flags: Any) -> Any:
    return segment(side.package, 1001, b"abc", **flags)


def flow(side: Side) -> Any:
    return side.package.Flow("10.0.0.1", "10.0.0.2")


class Odd:
    """Something that is nothing in particular."""

    def __repr__(self) -> str:
        return "<odd>"


FRAME = frame(1001, b"abc")
NAIVE = datetime(2024, 1, 1)
AWARE = datetime(2024, 1, 1, tzinfo=timezone.utc)
ODD = Odd()
BAD_CALLS: dict[str, Callable[[Side], Any]] = {
    "assemble: net_flow is text": lambda s: s.assemblers[0].assemble("10.0.0.1", tcp(s)),
    "assemble: net_flow of ports": lambda s: s.assemblers[0].assemble(s.package.Flow(1, 2), tcp(s)),
    "assemble: net_flow is None": lambda s: s.assemblers[0].assemble(None, tcp(s)),
    "assemble: tcp is bytes": lambda s: s.assemblers[0].assemble(flow(s), b"abc"),
    "assemble: tcp is None": lambda s: s.assemblers[0].assemble(flow(s), None),
    "assemble: timestamp is text": lambda s: s.assemblers[0].assemble(flow(s), tcp(s), "soon"),
    "assemble: timestamp is bool": lambda s: s.assemblers[0].assemble(flow(s), tcp(s), True),
    "assemble: timestamp is nan": lambda s: s.assemblers[0].assemble(flow(s), tcp(s), float("nan")),
    "assemble: timestamp is infinite": lambda s: s.assemblers[0].assemble(flow(s), tcp(s), float("-inf")),
    "assemble: timestamp far off": lambda s: s.assemblers[0].assemble(flow(s), tcp(s), 1e12),
    "assemble: naive datetime": lambda s: s.assemblers[0].assemble(flow(s), tcp(s), NAIVE),
    "assemble: two times": lambda s: s.assemblers[0].assemble(flow(s), tcp(s), 1.0, timestamp_ns=1),
    "assemble: timestamp_ns is float": lambda s: s.assemblers[0].assemble(flow(s), tcp(s), timestamp_ns=1.0),
    "assemble: timestamp_ns is bool": lambda s: s.assemblers[0].assemble(flow(s), tcp(s), timestamp_ns=True),
    "assemble: timestamp_ns too big": lambda s: s.assemblers[0].assemble(flow(s), tcp(s), timestamp_ns=2**62 + 1),
    "assemble: timestamp_ns much too big": lambda s: s.assemblers[0].assemble(flow(s), tcp(s), timestamp_ns=2**80),
    "with_timestamp: text": lambda s: s.assemblers[0].assemble_with_timestamp(flow(s), tcp(s), "now"),
    "frame: int": lambda s: s.assemblers[0].assemble_frame(5, 1.0),
    "frame: text": lambda s: s.assemblers[0].assemble_frame("abc", 1.0),
    "frame: None": lambda s: s.assemblers[0].assemble_frame(None, 1.0),
    "frame: odd": lambda s: s.assemblers[0].assemble_frame(ODD, 1.0),
    "frame: timestamp is text": lambda s: s.assemblers[0].assemble_frame(FRAME, "now"),
    "frame: timestamp_ns is float": lambda s: s.assemblers[0].assemble_frame(FRAME, timestamp_ns=0.5),
    "frame: two times": lambda s: s.assemblers[0].assemble_frame(FRAME, 1.0, timestamp_ns=5),
    "frame: wire_length below 0": lambda s: s.assemblers[0].assemble_frame(FRAME, 1.0, wire_length=-1),
    "frame: wire_length is text": lambda s: s.assemblers[0].assemble_frame(FRAME, 1.0, wire_length="5"),
    "frame: linktype is text": lambda s: s.assemblers[0].assemble_frame(FRAME, 1.0, linktype="ethernet"),
    "frame: linktype is None": lambda s: s.assemblers[0].assemble_frame(FRAME, 1.0, linktype=None),
    "frame: linktype is a fraction": lambda s: s.assemblers[0].assemble_frame(FRAME, 1.0, linktype=1.5),
    "frame: wire_length is a fraction": lambda s: s.assemblers[0].assemble_frame(FRAME, 1.0, wire_length=99.5),
    "frame: bad time and bad frame": lambda s: s.assemblers[0].assemble_frame(5, "now"),
    "frame: bad wire_length and bad frame": lambda s: s.assemblers[0].assemble_frame(5, 1.0, wire_length=-1),
    "flush_older_than: text": lambda s: s.assemblers[0].flush_older_than("x"),
    "flush_older_than: nan": lambda s: s.assemblers[0].flush_older_than(float("nan")),
    "flush_older_than: naive": lambda s: s.assemblers[0].flush_older_than(NAIVE),
    "flush_with_options: a number": lambda s: s.assemblers[0].flush_with_options(5),
    "flush_with_options: bad t": lambda s: s.assemblers[0].flush_with_options(s.package.FlushOptions(t="x")),
    "assemble_capture: a number": lambda s: s.assemblers[0].assemble_capture(5),
    "assemble_capture: no capture": lambda s: s.assemblers[0].assemble_capture(b"no capture at all"),
    "assemble_capture: odd frames": lambda s: s.assemblers[0].assemble_capture(iter([5])),
    "Assembler: no pool": lambda s: s.package.Assembler(5),
    "Assembler: None": lambda s: s.package.Assembler(None),
    "Assembler: odd options": lambda s: s.package.Assembler(s.pool, 5),
    "StreamPool: a number": lambda s: s.package.StreamPool(5),
    "StreamPool: None": lambda s: s.package.StreamPool(None),
    "Sequence: too big": lambda s: s.package.Sequence(2**32),
    "Sequence: below -1": lambda s: s.package.Sequence(-2),
    "Sequence: invalid difference": lambda s: s.package.INVALID_SEQUENCE.difference(5),
    "Sequence: invalid add": lambda s: s.package.INVALID_SEQUENCE.add(5),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_CALLS)
def test_errors_of_the_caller(both: Both, name: str) -> None:
    """The same exception with the same words, and nothing is changed by it (13)."""
    step = LockStep(both, [1000] * 3, False, {})
    step.do(send(0, 0, -1, 0, 0, 2, 0, START_NS))
    step.do(send(0, 0, 5, 5, 0, ACK, 0, START_NS))
    before = [side.state(True) for side in step.sides]
    result = step.do(BAD_CALLS[name])
    assert isinstance(result, tuple)
    assert result[0] in ("TypeError", "ValueError", "CaptureError")
    assert [side.state(True) for side in step.sides] == before
    assert step.do(send(0, 0, 0, 5, 0, ACK, 0, START_NS)) is None
    step.end()


@pytest.mark.parametrize(
    "arguments",
    [{"linktype": 2**31}, {"linktype": 2**70}, {"linktype": -1}, {"linktype": True}, {"wire_length": 2**64}, {"wire_length": 2**200}],
)
@pytest.mark.parametrize("size", [54, 57, len(FRAME)])
def test_numbers_of_any_size(both: Both, arguments: dict[str, int], size: int) -> None:
    step = LockStep(both, [1000] * 3, False, {})
    step.do(lambda side: int(side.assemblers[0].assemble_frame(FRAME[:size], timestamp_ns=START_NS, **arguments)))
    step.end()


@pytest.mark.parametrize(
    "kind", [bytes, bytearray, memoryview, lambda data: memoryview(bytes(2) + data)[2:], lambda data: memoryview(data[::-1])[::-1]]
)
def test_buffers_of_any_kind(both: Both, kind: Callable[[bytes], Any]) -> None:
    step = LockStep(both, [1000] * 3, True, {})
    for time in (1.0, 1, AWARE, 0.1 + 0.2, -5.5):
        assert step.do(lambda side, time=time: int(side.assemblers[0].assemble_frame(kind(FRAME), time))) == 0
    step.end()


@pytest.mark.parametrize(
    "call", ["assemble", "assemble_frame", "flush_ns", "expire", "finish", "flush_all", "flush_older_than", "assemble_capture"]
)
def test_no_calls_after_close(both: Both, call: str) -> None:
    step = LockStep(both, [1000] * 3, False, {})
    step.do(lambda side: side.assemblers[0].close())
    arguments: dict[str, Callable[[Side], tuple[Any, ...]]] = {
        "assemble": lambda side: (flow(side), tcp(side), 1.0),
        "assemble_frame": lambda side: (FRAME, 1.0),
        "flush_ns": lambda side: (None, True),
        "flush_older_than": lambda side: (1.0,),
        "assemble_capture": lambda side: ([(1.0, FRAME)],),
    }
    result = step.do(lambda side: getattr(side.assemblers[0], call)(*arguments.get(call, lambda side: ())(side)))
    assert result == ("ValueError", "this Assembler is closed")
    step.end()


def test_times_at_both_ends(both: Both) -> None:
    """Capture times at the limits of what is a time: their distance is still exact."""
    step = LockStep(both, [1000] * 3, False, {})
    for place, now in enumerate((-LIMIT_NS, LIMIT_NS, LIMIT_NS, -LIMIT_NS, LIMIT_NS - 1)):
        step.do(send(0, 0, place, 1, 0, ACK, 0, now))
        step.do(lambda side: side.assemblers[0].expire())
    step.end()


@pytest.mark.parametrize("change", ["clear", "append", "replace", "pop and keep", "keep and clear later"])
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_streams_that_change_their_list(implementation: str, change: str) -> None:
    """The list of pieces is the stream's own: it may do with it what it likes. Kept pieces stay what they were."""
    command = [sys.executable, "-X", "faulthandler", __file__, implementation, change]
    environment = {**os.environ, "PYTHONPATH": str(Path(str(load(implementation).__file__)).parent.parent)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (0, "1600 bytes delivered, 0 held\n"), done.stderr


def change_the_list(package: ModuleType, change: str) -> str:
    """In a process of its own, since what goes wrong here may end it."""
    kept: list[Any] = []

    class Stream:
        def __init__(self, *flows: Any) -> None:
            pass

        def reassembled(self, pieces: list[Any]) -> None:
            if change == "clear":
                kept.extend((piece, bytes(piece)) for piece in pieces)
                pieces.clear()
            elif change == "append":
                pieces += [None, "text", b"bytes", 5, kept, Odd()]
            elif change == "replace":
                pieces[:] = [bytes(piece) for piece in pieces]
            elif change == "pop and keep":
                while pieces:
                    piece = pieces.pop()
                    kept.append((piece, bytes(piece)))
            else:
                kept.append((pieces, b""))

        def reassembly_complete(self) -> None:
            pass

    assembler = package.Assembler(package.StreamPool(Stream))
    sender = package.Flow("10.0.0.1", "10.0.0.2")
    assembler.assemble(sender, segment(package, 0, syn=True), timestamp_ns=START_NS)
    for turn in range(200):
        for place in (3, 5, 7, 1):
            assembler.assemble(sender, segment(package, turn * 8 + place, content(0, place, 2, turn)), timestamp_ns=START_NS)
        if change == "keep and clear later" and turn % 3 == 0:
            kept[-1][0].clear()
    assert all(bytes(piece) == copy for piece, copy in kept if copy)
    assert assembler.flush_all() == 1
    stats = assembler.stats
    assert stats.pages_used == 0
    return f"{stats.bytes_delivered} bytes delivered, {stats.bytes_held} held"


# -- the corpus -----------------------------------------------------------------------------------------------------------------


class Digest:
    """A stream factory that keeps one running digest of every call of every stream, in order."""

    def __init__(self) -> None:
        self.sum = hashlib.blake2b(digest_size=16)
        self.calls = 0

    def note(self, *parts: bytes) -> None:
        self.calls += 1
        for part in parts:
            self.sum.update(struct.pack("<q", len(part)) + part)

    def new(self, net_flow: Any, transport_flow: Any) -> DigestedStream:
        key = f"{net_flow} {transport_flow}".encode()
        self.note(b"new", key)
        return DigestedStream(self, key)


class DigestedStream:
    def __init__(self, digest: Digest, key: bytes) -> None:
        self.digest = digest
        self.key = key

    def reassembled(self, reassemblies: list[Any]) -> None:
        for piece in reassemblies:
            told = piece.skip, piece.seen_ns, piece.packet_number, piece.seq, piece.start, piece.end
            self.digest.note(struct.pack("<qqqIbb", *told), memoryview(piece))
        self.digest.note(b"reassembled", self.key)

    def reassembly_complete(self) -> None:
        self.digest.note(b"complete", self.key)


def digest(package: ModuleType, path: Path, options: dict[str, Any]) -> tuple[Any, ...]:
    told = Digest()
    assembler = package.Assembler(package.StreamPool(told), package.AssemblerOptions(**options))
    summary = assembler.assemble_capture(path)
    stats = assembler.stats
    numbers = {field.name: getattr(stats, field.name) for field in fields(stats)}
    numbers["verdicts"] = {int(verdict): count for verdict, count in stats.verdicts.items()}
    numbers["dropped"] = dict(stats.dropped)
    assert stats.bytes_captured == stats.bytes_delivered + stats.bytes_dropped
    assert (stats.bytes_held, stats.pages_used, stats.connections) == (0, 0, 0)
    assert stats.streams_opened == stats.streams_closed
    return told.calls, told.sum.hexdigest(), [getattr(summary, field.name) for field in fields(summary)], numbers


def first_difference(both: Both, path: Path, options: dict[str, Any]) -> str:
    """For the report of a failure: the first call that differs."""
    calls = []
    for package in both:
        recorder = Recorder()
        package.Assembler(package.StreamPool(recorder), package.AssemblerOptions(**options)).assemble_capture(path)
        calls.append(recorder.calls)
    for number, (compiled, pure) in enumerate(zip(*calls)):
        if compiled != pure:
            return f"call {number}: compiled {compiled!r:.400}, pure {pure!r:.400}"
    return f"one has {len(calls[0])} calls, the other {len(calls[1])}; or stats differ"


def agree(both: Both, paths: list[Path], **options: Any) -> None:
    assert paths
    differing = [path for path in paths if digest(both[0], path, options) != digest(both[1], path, options)]
    assert not differing, [(str(path), first_difference(both, path, options)) for path in differing[:3]]


def captures(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.rglob("*")) if path.suffix in (".pcap", ".pcapng")]


def real(corpus: Path) -> list[Path]:
    with open(corpus / "real" / "MANIFEST.tsv", encoding="utf-8") as file:
        return [corpus / line.split("\t")[0] for line in list(file)[1:]]


def test_kernel_captures(both: Both, corpus: Path) -> None:
    agree(both, captures(corpus / "kernel"))


def test_perturbed_captures(both: Both, corpus: Path) -> None:
    agree(both, captures(corpus / "perturbed"))


def test_real_captures(both: Both, corpus: Path) -> None:
    """All of them, the broken ones included: the same, and no exception."""
    agree(both, real(corpus))


def test_captures_of_this_repository(both: Both, data: Path) -> None:
    agree(both, captures(data))


@pytest.mark.parametrize(
    "options",
    [
        {"max_buffered_pages_per_connection": 2, "verify_checksums": True},
        {"max_buffered_pages_total": 3, "start_wait_segments": 1},
        {
            "start_wait_segments": None,
            "start_wait": None,
            "max_gap": None,
            "hole_timeout": None,
            "idle_timeout": None,
            "closed_timeout": 1e9,
        },
        {"max_gap": 3000, "hole_timeout": 0, "idle_timeout": 0, "closed_timeout": 0, "start_wait": 0},
    ],
    ids=["few pages", "few pages in all", "patient", "impatient"],
)
def test_real_captures_with_other_options(both: Both, corpus: Path, options: dict[str, Any]) -> None:
    paths = [path for path in real(corpus) if path.stat().st_size < 150_000]
    agree(both, [*paths, corpus / "kernel" / "edge" / "edge.pcap"], **options)


if __name__ == "__main__":
    print(change_the_list(load(sys.argv[1]), sys.argv[2]))
