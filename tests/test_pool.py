"""The pool: which packets make a connection, how connections are made ready and reused, and several assemblers over one pool."""

from __future__ import annotations

import gc
import logging
import threading
import weakref
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
from recorder import BACK, ENDS, Ends, RecordedStream, Recorder, Rig, complete, got, key_of, new, number, piece, segment

FIRST = 1024


def added(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if "stream pool" in record.getMessage() and "added" in record.getMessage()]


# -- which packets make a connection ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "flags",
    [
        {},
        {"psh": True},
        {"urg": True},
        {"fin": True},
        {"rst": True},
        {"rst": True, "ack_flag": False},
        {"fin": True, "rst": True},
        {"syn": True, "rst": True},
        {"ack_flag": False},
        {"fin": True, "ack_flag": False},
    ],
)
def test_without_syn_or_payload_there_is_no_connection(tcpreasm: ModuleType, flags: dict[str, Any]) -> None:
    rig = Rig(tcpreasm)
    assert rig.segment(1000, **flags) == []
    assert (len(rig.pool), rig.pool.keys(), rig.assembler.stats.streams_opened) == (0, [], 0)
    assert rig.flush_all() == (0, [])


@pytest.mark.parametrize("flags", [{}, {"psh": True}, {"fin": True}, {"urg": True}])
def test_payload_makes_one(tcpreasm: ModuleType, flags: dict[str, Any]) -> None:
    rig = Rig(tcpreasm)
    assert rig.segment(1000, b"x", **flags) == [new()]
    assert len(rig.pool) == 1


@pytest.mark.parametrize("flags", [{}, {"ack": 5}, {"psh": True}])
def test_a_syn_makes_one(tcpreasm: ModuleType, flags: dict[str, Any]) -> None:
    rig = Rig(tcpreasm)
    assert rig.segment(1000, syn=True, **flags) == [new(), got(piece(start=True))]
    assert len(rig.pool) == 1


@pytest.mark.parametrize("text", [b"", b"reset cause"])
def test_a_rst_makes_none(tcpreasm: ModuleType, text: bytes) -> None:
    rig = Rig(tcpreasm)
    assert rig.segment(1000, text, rst=True) == []
    assert (len(rig.pool), rig.dropped) == (0, {"rst_text": 11} if text else {})


def test_data_without_ack_makes_none(tcpreasm: ModuleType) -> None:
    rig = Rig(tcpreasm)
    assert rig.segment(1000, b"abc", ack_flag=False) == []
    assert (len(rig.pool), rig.dropped) == (0, {"no_ack_flag": 3})


def test_payload_that_the_capture_cut_off_makes_one(tcpreasm: ModuleType) -> None:
    """It was there on the wire."""
    rig = Rig(tcpreasm)
    assert rig.segment(1000, b"", wire=100) == [new()]


# -- keys ---------------------------------------------------------------------------------------------------------------


def test_len_and_keys(tcpreasm: ModuleType) -> None:
    rig = Rig(tcpreasm)
    several: list[Ends] = [
        ENDS,
        BACK,
        ("10.0.0.1", 1235, "10.0.0.2", 80),
        ("10.0.0.1", 1234, "10.0.0.2", 81),
        ("10.0.0.2", 1234, "10.0.0.1", 80),
        ("2001:db8::1", 1234, "2001:db8::2", 80),
        ("::10.0.0.1", 1234, "::10.0.0.2", 80),  # other addresses than those of IPv4
        ("::ffff:10.0.0.1", 1234, "::ffff:10.0.0.2", 80),
        ("a00:1::", 1234, "a00:2::", 80),  # begins with the bytes of the IPv4 ones
    ]
    for ends in several:
        assert rig.segment(0, syn=True, ends=ends)[0] == new(ends)
    assert len(rig.pool) == len(several)
    flow, key = tcpreasm.Flow, tcpreasm.ConnectionKey
    assert rig.pool.keys() == [key(flow(src, dst), flow(src_port, dst_port)) for src, src_port, dst, dst_port in several]
    for ends in several:
        assert rig.segment(1, b"abc", ends=ends) == [got(piece(b"abc"), ends=ends)]
    assert len(rig.pool) == len(several)
    assert rig.segment(4, ends=several[3], fin=True)[-1] == complete(several[3])
    assert [str(key) for key in rig.pool.keys()] == [key_of(ends) for ends in several if ends != several[3]]  # noqa: SIM118
    assert rig.flush_all()[0] == len(several) - 1
    assert (len(rig.pool), rig.pool.keys()) == (0, [])


def test_the_two_flows_that_the_factory_gets(tcpreasm: ModuleType) -> None:
    seen: list[Any] = []

    class Factory(Recorder):
        def new(self, net_flow: Any, transport_flow: Any) -> Any:
            seen.append((net_flow, transport_flow))
            return super().new(net_flow, transport_flow)

    rig = Rig(tcpreasm, Factory())
    rig.segment(0, syn=True)
    ((net_flow, transport_flow),) = seen
    assert (net_flow, transport_flow) == (tcpreasm.Flow("10.0.0.1", "10.0.0.2"), tcpreasm.Flow(1234, 80))
    assert (type(net_flow), type(transport_flow)) == (tcpreasm.Flow, tcpreasm.Flow)


def test_many_connections_are_kept_apart(tcpreasm: ModuleType) -> None:
    """More than the table begins with, and holes in it."""
    rig = Rig(tcpreasm)
    count = 5000
    for index in range(count):
        assert rig.segment(index, syn=True, ends=number(index)) == [new(number(index)), got(piece(start=True), ends=number(index))]
    for index in range(0, count, 3):
        assert rig.segment(index + 1, fin=True, ends=number(index)) == [got(piece(end=True), ends=number(index)), complete(number(index))]
    assert len(rig.pool) == count - len(range(0, count, 3))
    for index in range(count):
        expected = [got(piece(b"%d" % index), ends=number(index))] if index % 3 else []
        assert rig.segment(index + 1, b"%d" % index, ends=number(index)) == expected
    assert [str(key) for key in rig.pool.keys()] == [key_of(number(index)) for index in range(count) if index % 3]  # noqa: SIM118


# -- made ready, and reused ---------------------------------------------------------------------------------------------


def test_1024_are_ready_and_their_number_doubles(tcpreasm: ModuleType, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, "tcpreasm.memory"):
        rig = Rig(tcpreasm)
        assert added(caplog) == ["stream pool: 1024 connections added"]
        for index in range(1024 + 2048 + 1):
            rig.send(segment(tcpreasm, 0, syn=True, ends=number(index)), ends=number(index))
            if index in (1023, 1024, 1024 + 2048 - 1):
                assert len(added(caplog)) == (1 if index == 1023 else 2)
    assert added(caplog) == [f"stream pool: {count} connections added" for count in (1024, 2048, 4096)]


def test_connections_that_were_closed_are_used_again(tcpreasm: ModuleType, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, "tcpreasm.memory"):
        rig = Rig(tcpreasm)
        for round_ in range(6):
            for index in range(FIRST):
                rig.segment(0, syn=True, ends=number(round_ * FIRST + index))
            assert rig.flush_all()[0] == FIRST
    assert len(added(caplog)) == 1


def test_connections_that_ended_are_used_again_when_they_are_forgotten(tcpreasm: ModuleType, caplog: pytest.LogCaptureFixture) -> None:
    """closed_timeout: 60 s of capture time."""
    with caplog.at_level(logging.DEBUG, "tcpreasm.memory"):
        rig = Rig(tcpreasm)
        for index in range(20_000):
            ends, at = number(index), index * 0.1
            rig.send(segment(tcpreasm, 0, syn=True, ends=ends), at=at, ends=ends)
            rig.send(segment(tcpreasm, 1, fin=True, ends=ends), at=at, ends=ends)
    assert (len(rig.pool), len(rig.recorder.streams)) == (0, 20_000)
    assert len(added(caplog)) == 1


def test_requests_are_logged(tcpreasm: ModuleType, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, "tcpreasm.memory"):
        rig = Rig(tcpreasm)
        for index in range(0x8000):
            ends = number(index % FIRST)
            rig.send(segment(tcpreasm, 0, syn=True, ends=ends), ends=ends)
            if index % FIRST == FIRST - 1:
                rig.assembler.flush_all()
    requests = [record.getMessage() for record in caplog.records if "requests" in record.getMessage()]
    assert len(requests) == 1
    assert requests[0].startswith("stream pool: 32768 requests, ")


# -- the factory --------------------------------------------------------------------------------------------------------


def test_a_factory_is_an_object_with_new_or_a_callable(tcpreasm: ModuleType) -> None:
    recorder = Recorder()
    for factory in (recorder, recorder.new, lambda net, transport: recorder.new(net, transport)):
        assembler = tcpreasm.Assembler(tcpreasm.StreamPool(factory))
        assembler.assemble(tcpreasm.Flow("10.0.0.1", "10.0.0.2"), segment(tcpreasm, 0, syn=True), timestamp_ns=0)
        assert recorder.take() == [new(), got(piece(start=True))]


@pytest.mark.parametrize("factory", [None, 5, "new", object()])
def test_what_is_no_factory(tcpreasm: ModuleType, factory: Any) -> None:
    with pytest.raises(TypeError, match="a stream factory has a method new"):
        tcpreasm.StreamPool(factory)


def test_a_factory_whose_new_cannot_be_called(tcpreasm: ModuleType) -> None:
    class Factory:
        new = 5

    with pytest.raises(TypeError, match="a stream factory has a method new"):
        tcpreasm.StreamPool(Factory())


# -- several assemblers -------------------------------------------------------------------------------------------------


def test_two_assemblers_see_the_same_connections(tcpreasm: ModuleType) -> None:
    one = Rig(tcpreasm)
    two = Rig(tcpreasm, one.recorder, one.pool)
    one.shared = True
    assert one.segment(0, syn=True) == [new(), got(piece(start=True))]
    assert two.segment(1, b"abc") == [got(piece(b"abc"))]
    assert one.segment(7, b"ghi") == []
    assert two.segment(4, b"def") == [got(piece(b"def"), piece(b"ghi"))]
    assert one.assembler.stats.pages_used == two.assembler.stats.pages_used == 0
    assert two.segment(10, fin=True) == [got(piece(end=True)), complete()]
    assert one.segment(10, fin=True) == []
    assert (len(one.pool), one.flush_all(), two.flush_all()) == (0, (0, []), (0, []))


@pytest.mark.parametrize("threads", [2, 4])
def test_threads_on_the_same_connections(tcpreasm: ModuleType, threads: int) -> None:
    """Each stream is served serially and gets each byte once, in order, whoever brings it; each new connection makes one stream."""
    connections, size = 40, 200
    recorder = Recorder(stream=GuardedStream)
    pool = tcpreasm.StreamPool(recorder)
    assemblers = [tcpreasm.Assembler(pool) for _ in range(threads)]
    errors: list[BaseException] = []
    barrier = threading.Barrier(threads)

    def work(me: int) -> None:
        try:
            barrier.wait()
            for index in range(connections):
                ends = number(index)
                flow = tcpreasm.Flow(ends[0], ends[2])
                assemblers[me].assemble(flow, segment(tcpreasm, 0, syn=True, ends=ends), timestamp_ns=0)
                for offset in range(me, size, threads):
                    assemblers[me].assemble(flow, segment(tcpreasm, 1 + offset, bytes([offset]), ends=ends), timestamp_ns=0)
                assemblers[me].assemble(flow, segment(tcpreasm, 1 + size, fin=True, ends=ends), timestamp_ns=0)
        except BaseException as error:
            errors.append(error)

    workers = [threading.Thread(target=work, args=(me,)) for me in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert not any(worker.is_alive() for worker in workers)
    assert not errors
    for assembler in assemblers:
        assembler.flush_all()
    assert not recorder.wrong
    assert len(recorder.streams) == connections
    for index in range(connections):
        assert recorder.data(number(index)) == bytes(range(size))
    stats = [assembler.stats for assembler in assemblers]
    assert sum(s.bytes_captured for s in stats) == sum(s.bytes_delivered + s.bytes_dropped for s in stats) == connections * size
    assert [s.pages_used for s in stats] == [0] * threads


class GuardedStream(RecordedStream):
    """Notes where it is called while it is being called."""

    def __init__(self, recorder: Recorder, key: str) -> None:
        super().__init__(recorder, key)
        self.inside = threading.Lock()

    def reassembled(self, reassemblies: list[Any]) -> None:
        self._guarded(lambda: super(GuardedStream, self).reassembled(reassemblies))

    def reassembly_complete(self) -> None:
        self._guarded(super().reassembly_complete)

    def _guarded(self, call: Callable[[], None]) -> None:
        if not self.inside.acquire(blocking=False):
            self.recorder.wrong.append(f"{self.key}: served by two threads at once")
            return
        try:
            threading.Event().wait(0)  # lets the others in
            call()
        finally:
            self.inside.release()


def test_closed_between_look_up_and_lock(tcpreasm: ModuleType) -> None:
    """While one thread closes a connection, another has found it already and waits: its packet goes to no other stream."""
    recorder = Recorder()
    pool = tcpreasm.StreamPool(recorder)
    closer, late = tcpreasm.Assembler(pool), tcpreasm.Assembler(pool)
    flow = tcpreasm.Flow("10.0.0.1", "10.0.0.2")
    closer.assemble(flow, segment(tcpreasm, 0, syn=True), timestamp_ns=0)
    inside, go_on = threading.Event(), threading.Event()

    def linger() -> None:
        inside.set()
        assert go_on.wait(20)

    recorder.plan["complete"] = linger
    closing = threading.Thread(target=closer.flush_all)
    closing.start()
    assert inside.wait(20)
    waiting = threading.Thread(target=lambda: late.assemble(flow, segment(tcpreasm, 1, b"late"), timestamp_ns=0))
    waiting.start()
    waiting.join(0.2)
    del recorder.plan["complete"]
    go_on.set()
    closing.join(20)
    waiting.join(20)
    assert not closing.is_alive()
    assert not waiting.is_alive()
    late.flush_all()
    assert recorder.take() == [new(), got(piece(start=True)), complete(), new(), got(piece(b"late", skip=-1)), complete()]


def test_a_pool_is_shared_or_not(tcpreasm: ModuleType) -> None:
    one, two = Rig(tcpreasm), Rig(tcpreasm)
    one.segment(0, syn=True)
    assert two.segment(1, b"abc") == [new()]
    assert (len(one.pool), len(two.pool)) == (1, 1)


@pytest.mark.parametrize("pool", [None, 5, Recorder()])
def test_what_is_no_pool(tcpreasm: ModuleType, pool: Any) -> None:
    with pytest.raises(TypeError, match="pool is a StreamPool, not "):
        tcpreasm.Assembler(pool)


def test_a_pool_in_a_reference_cycle_dies_with_all_that_it_holds(tcpreasm: ModuleType) -> None:
    """The garbage collector empties the members of a cycle in any order: open connections, held pages and kept pieces among them."""
    for _ in range(3):
        recorder = Recorder(keep=True)
        rig = Rig(tcpreasm, recorder)
        rig.segment(1000, syn=True)
        rig.segment(1100, b"early" * 1000)
        rig.segment(5000, syn=True, payload=b"of a successor")
        rig.assembler.cycle = recorder.cycle = [rig.assembler, rig.pool, recorder]
        dead = weakref.ref(rig.assembler)
        del rig, recorder
        gc.collect()
        assert dead() is None
