"""Whatever a program does with an Assembler, in any order: calls from callbacks, exceptions everywhere, buffers that change, pieces that
are kept, calls after the close, threads. Nothing crashes or hangs, errors are the promised ones, and no byte goes missing.

A state machine of hypothesis plays; each rule is something that programs do, rightly or by mistake.
"""

from __future__ import annotations

import gc
import threading
from types import ModuleType
from typing import Any

import pytest
from conftest import load
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule, run_state_machine_as_test
from recorder import ACK, FIN, NS, RST, SYN, frame, number

START_NS = 1_700_000_000 * NS
CONNECTIONS = [number(index) for index in range(4)]
OPTIONS: list[dict[str, Any]] = [
    {},
    {"max_connections": 2, "open_on": "data"},
    {"max_buffered_pages_per_connection": 2, "overlap": "linux"},
    {"max_buffered_bytes_total": 2000, "overlap": "last", "syn_data": "acked"},
    {"start_wait_segments": 1, "closed_timeout": 0.0, "idle_timeout": 1.0, "hole_timeout": 1.0},
]
PLANS = st.sampled_from(["", "", "", "raise", "interrupt", "re-enter", "other", "collect"])
"""What a callback does, until it is told otherwise."""


class Oops(Exception):
    """What user code raises here."""


class Misuser:
    """A factory and its streams, which do what the machine has told them to."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine

    def new(self, net_flow: Any, transport_flow: Any) -> Any:
        self.machine.callback("new")
        return MisusedStream(self.machine)


class MisusedStream:
    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.over = False

    def reassembled(self, reassemblies: list[Any]) -> None:
        assert not self.over
        machine = self.machine
        for piece in reassemblies:
            if machine.keeps:
                for kept in (piece, memoryview(piece), memoryview(piece)[1:]):
                    machine.kept.append((kept, bytes(kept)))
        if machine.keeps == "list":
            machine.kept_lists.append((reassemblies, len(reassemblies)))
        elif machine.keeps == "emptied":
            reassemblies.clear()
        machine.callback("reassembled")

    def reassembly_complete(self) -> None:
        assert not self.over, "a stream ends once"
        self.over = True
        self.machine.callback("complete")


class Machine(RuleBasedStateMachine):
    package: ModuleType

    def __init__(self) -> None:
        super().__init__()
        self.plans: dict[str, str] = {}
        self.keeps = ""
        self.kept: list[tuple[Any, bytes]] = []
        self.kept_lists: list[tuple[list[Any], int]] = []
        self.now = START_NS
        self.at_work: Any = None  # the assembler of the call under way
        self.assemblers: list[Any] = []
        self.closed: list[Any] = []

    @initialize(choices=st.lists(st.sampled_from(OPTIONS), min_size=1, max_size=2))
    def begin(self, choices: list[dict[str, Any]]) -> None:
        self.pool = self.package.StreamPool(Misuser(self))
        for options in choices:
            self.assemblers.append(self.package.Assembler(self.pool, self.package.AssemblerOptions(**options)))

    # -- what callbacks do ------------------------------------------------------------------------------------------

    def callback(self, where: str) -> None:
        plan = self.plans.get(where, "")
        if plan == "raise":
            raise Oops(where)
        if plan == "interrupt":
            raise KeyboardInterrupt
        if plan == "re-enter" and self.at_work is not None:
            for call in (
                lambda: self.at_work.assemble_frame(frame(1, b"again"), timestamp_ns=self.now),
                lambda: self.at_work.flush_all(),
                lambda: self.at_work.close(),
                lambda: self.at_work.tick(),
            ):
                with pytest.raises(RuntimeError):
                    call()
        elif plan == "other":
            for other in self.assemblers:
                if other is not self.at_work:
                    before, self.at_work, plans, self.plans = self.at_work, other, self.plans, {}
                    try:
                        other.flush_older_than((self.now - NS) / NS)
                    finally:
                        self.at_work, self.plans = before, plans
        elif plan == "collect":
            gc.collect()

    @rule(keeps=st.sampled_from(["", "pieces", "list", "emptied"]))
    def keep(self, keeps: str) -> None:
        self.keeps = keeps

    # -- calls ------------------------------------------------------------------------------------------------------

    def call(self, assembler: Any, act: Any) -> None:
        """What may come back is what user code raised, or that a callback of its own flushed what is being served."""
        self.at_work = assembler
        try:
            act()
        except (Oops, KeyboardInterrupt):
            pass
        finally:
            self.at_work = None

    @rule(
        which=st.integers(0, 1),
        segments=st.lists(
            st.tuples(
                st.integers(0, 3),
                st.integers(0, 40),
                st.sampled_from([0, 1, 5, 30, 30, 500, 2000]),
                st.sampled_from([ACK, ACK, ACK, ACK, SYN, SYN | ACK, FIN | ACK, RST | ACK, RST, 0]),
                st.sampled_from([0, 1, NS // 2, 3 * NS, -NS, 200 * NS]),
                st.integers(0, 1),
            ),
            min_size=1,
            max_size=10,
        ),
        kind=st.sampled_from(["bytes", "bytearray", "memoryview", "strided"]),
        plans=st.fixed_dictionaries({"new": PLANS, "reassembled": PLANS, "complete": PLANS}),
    )
    def segments(self, which: int, segments: list[tuple[int, int, int, int, int, int]], kind: str, plans: dict[str, str]) -> None:
        self.plans = plans
        assembler = self.assemblers[which % len(self.assemblers)]
        for connection, place, size, flags, step, variant in segments:
            self.now += step
            text = bytes((place + i + variant) & 255 for i in range(size))
            self.give(assembler, frame(1000 + place, text, flags, ends=CONNECTIONS[connection]), kind)

    def give(self, assembler: Any, data: bytes, kind: str) -> None:
        mutable = bytearray(data) if kind != "strided" else bytearray(b for byte in data for b in (byte, 0))
        given = {"bytes": data, "bytearray": mutable, "memoryview": memoryview(mutable), "strided": memoryview(mutable)[::2]}[kind]
        self.call(assembler, lambda: assembler.assemble_frame(given, timestamp_ns=self.now))
        mutable[:] = bytes(len(mutable))  # what was handed in belongs to the caller again

    @rule(which=st.integers(0, 1), how=st.sampled_from(["flush_all", "flush_older", "expire", "tick"]))
    def flush(self, which: int, how: str) -> None:
        assembler = self.assemblers[which % len(self.assemblers)]
        act = {
            "flush_all": assembler.flush_all,
            "flush_older": lambda: assembler.flush_older_than((self.now - NS) / NS),
            "expire": assembler.expire,
            "tick": assembler.tick,
        }[how]
        self.call(assembler, act)

    @rule(which=st.integers(0, 1), wrong=st.sampled_from([None, "text", 5, (1, 2)]))
    def nonsense(self, which: int, wrong: Any) -> None:
        assembler = self.assemblers[which % len(self.assemblers)]
        before = assembler.stats
        with pytest.raises(TypeError):
            assembler.assemble_frame(wrong, timestamp_ns=self.now)
        with pytest.raises((TypeError, ValueError)):
            assembler.assemble(wrong, None)
        with pytest.raises((TypeError, ValueError, OverflowError)):
            assembler.assemble_frame(b"", timestamp_ns=1 << 80)
        assert assembler.stats == before

    @precondition(lambda self: len(self.assemblers) > 1)
    @rule()
    def close_one(self) -> None:
        assembler = self.assemblers.pop()
        self.call(assembler, assembler.close)
        if not assembler.closed:  # its last flush was interrupted
            self.assemblers.append(assembler)
        else:
            self.closed.append(assembler)

    @precondition(lambda self: self.closed)
    @rule()
    def after_the_close(self) -> None:
        for call in (
            lambda one: one.assemble_frame(frame(1, b"x"), timestamp_ns=self.now),
            lambda one: one.flush_all(),
            lambda one: one.tick(),
        ):
            with pytest.raises(ValueError, match="closed"):
                call(self.closed[-1])
        self.closed[-1].close()

    @precondition(lambda self: len(self.assemblers) > 1)
    @rule(count=st.integers(1, 30))
    def threads(self, count: int) -> None:
        """Both at once, on the same connections."""
        errors: list[BaseException] = []

        def work(assembler: Any, first: int) -> None:
            try:
                for i in range(count):
                    ends = CONNECTIONS[(first + i) % 4]
                    assembler.assemble_frame(frame(1000 + 7 * i, b"threads", ends=ends), timestamp_ns=self.now + i)
            except BaseException as error:
                errors.append(error)

        keeps, self.keeps, self.plans = self.keeps, "", {}
        workers = [threading.Thread(target=work, args=(one, index)) for index, one in enumerate(self.assemblers)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join(60)
            assert not worker.is_alive(), "it hangs"
        self.keeps = keeps
        assert not errors

    # -- what holds after every call --------------------------------------------------------------------------------

    @invariant()
    def no_byte_goes_missing(self) -> None:
        stats = [one.stats for one in (*self.assemblers, *self.closed)]
        captured = sum(one.bytes_captured for one in stats)
        assert captured == sum(one.bytes_delivered + one.bytes_dropped + one.bytes_held for one in stats)

    @invariant()
    def what_was_kept_stays_what_it_was(self) -> None:
        for kept, copy in self.kept:
            assert bytes(kept) == copy
        for pieces, count in self.kept_lists:
            assert len(pieces) == count
        del self.kept[:-20], self.kept_lists[:-20]

    def teardown(self) -> None:
        self.plans = {}
        for assembler in self.assemblers:
            self.call(assembler, assembler.close)
            assert assembler.closed
        if self.assemblers:
            assert len(self.pool) == 0
        self.what_was_kept_stays_what_it_was()
        self.no_byte_goes_missing()


@pytest.mark.parametrize("implementation", ["compiled", "pure"])
def test_whatever_a_program_does(implementation: str) -> None:
    class On(Machine):
        package = load(implementation)

    slow = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]
    run_state_machine_as_test(
        On, settings=settings(max_examples=15, stateful_step_count=25, deadline=None, derandomize=True, suppress_health_check=slow)
    )
