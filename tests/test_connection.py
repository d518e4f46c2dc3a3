"""One direction of one connection: what it answers about itself, and that nothing of one use is left in the next."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest
from recorder import NS, Rig, complete, got, new, number, piece

KEY = (b"\x0a\0\0\1", b"\x0a\0\0\2", 1234, 80, 0)
OTHER = (bytes(15) + b"\1", bytes(15) + b"\2", 5, 6, 1)


@pytest.fixture
def connection(tcpreasm: ModuleType) -> Any:
    connection = tcpreasm.Connection()
    connection.reset(KEY, 7 * NS)
    return connection


# -- by itself ----------------------------------------------------------------------------------------------------------


def test_a_new_connection(tcpreasm: ModuleType, connection: Any) -> None:
    flow = tcpreasm.Flow
    assert connection.key == tcpreasm.ConnectionKey(flow("10.0.0.1", "10.0.0.2"), flow(1234, 80))
    assert (connection.next_seq, connection.end_seq, connection.skip) == (None, None, 0)
    assert (connection.created_ns, connection.last_seen_ns) == (7 * NS, 7 * NS)
    assert (connection.closed, connection.waits(), connection.ended()) == (False, False, False)


def test_an_ipv6_key(tcpreasm: ModuleType, connection: Any) -> None:
    connection.reset(OTHER, 0)
    assert str(connection.key) == "[::1]:5->[::2]:6"
    assert connection.key.net_flow.tunnels == 1


def test_it_waits_until_the_end_is_reached(connection: Any) -> None:
    connection.next_seq = 100
    assert (connection.waits(), connection.ended()) == (False, False)
    connection.end_seq = 200
    assert (connection.waits(), connection.ended()) == (True, False)
    connection.next_seq = 200
    assert (connection.waits(), connection.ended()) == (False, True)


def test_sequence_number_0_is_a_place_like_any_other(connection: Any) -> None:
    connection.next_seq = 0
    connection.end_seq = 0
    assert (connection.next_seq, connection.end_seq, connection.waits(), connection.ended()) == (0, 0, False, True)


def test_reset_clears_everything(tcpreasm: ModuleType, connection: Any) -> None:
    fresh = tcpreasm.Connection()
    fresh.reset(OTHER, 3)
    connection.next_seq = 1000
    connection.end_seq = 2000
    connection.skip = -1
    connection.last_seen_ns = 99 * NS
    connection.reset(OTHER, 3)
    for name in ("key", "next_seq", "end_seq", "skip", "created_ns", "last_seen_ns", "closed"):
        assert getattr(connection, name) == getattr(fresh, name), name
    assert connection.last_seen_ns == connection.created_ns == 3


def test_reset_clears_every_field_of_the_reference(both: tuple[ModuleType, ModuleType]) -> None:
    """No field can be added to the reference and be forgotten in reset."""
    pure = both[1]
    fresh, used = pure.Connection(), pure.Connection()
    kept = {"lock", "owner", "pages", "state"}  # the pool's, and the page list, which closing empties
    for name in set(pure.Connection.__slots__) - kept:
        setattr(used, name, object())
    for each in (fresh, used):
        each.reset(OTHER, 3)
    for name in set(pure.Connection.__slots__) - kept:
        assert getattr(used, name) == getattr(fresh, name), name


# -- in use: the same memory serves one connection after the other ----------------------------------------------------------


def spoil(rig: Rig) -> None:
    """Leave everything in a connection that one can: late last_seen, gaps, held pages, a FIN far ahead, a remembered SYN, cut bytes."""
    ends = number(1)
    rig.segment(1000, b"early", at=500, ends=ends)
    rig.segment(2000, b"later", at=500, ends=ends)
    rig.segment(100, syn=True, at=500, ends=ends)
    rig.segment(101, b"ab", wire=900, at=500, ends=ends)
    rig.segment(5000, b"tail", fin=True, at=501, ends=ends)
    rig.segment(1 << 30, b"far", at=501, ends=ends)
    rig.segment(700_000, b"again", syn=True, at=502, ends=ends)
    rig.flush_all()


def test_nothing_of_the_last_use_is_left(tcpreasm: ModuleType) -> None:
    """Whatever a fresh pool does with a connection, a pool of used ones does the same."""
    steps: list[tuple[int, bytes, dict[str, Any]]] = [
        (5003, b"", {"rst": True}),  # the FIN's place in the last use
        (2005, b"d", {"at": 1}),
        (2006, b"ef", {"at": 2}),
        (1005, b"x", {"at": 2}),
        (700_001, b"", {"at": 2}),
        (99, b"", {"syn": True, "at": 3}),
        (100, b"abc", {"at": 3}),
        ((1 << 30) + 3, b"far", {"at": 3}),
        (700_006, b"!", {"at": 4}),
        (103, b"", {"fin": True, "at": 5}),
    ]
    fresh, used = Rig(tcpreasm), Rig(tcpreasm)
    for _ in range(1100):  # more than there are: each of them was used
        spoil(used)
    expected = [fresh.segment(seq, data, ends=number(1), **options) for seq, data, options in steps]
    assert [used.segment(seq, data, ends=number(1), **options) for seq, data, options in steps] == expected
    assert used.flush(2) == fresh.flush(2)
    assert used.flush_all() == fresh.flush_all()
    assert any(expected)


def test_last_seen_is_that_of_this_use(tcpreasm: ModuleType) -> None:
    rig = Rig(tcpreasm)
    for index in range(1024):
        rig.segment(0, syn=True, at=1000, ends=number(index))
    assert rig.flush_all()[0] == 1024
    rig.segment(0, syn=True, at=5, ends=number(0))
    assert rig.flush_older_than(100) == ((1, 1), [complete(number(0))])


def test_last_seen_never_goes_back(tcpreasm: ModuleType) -> None:
    rig = Rig(tcpreasm)
    rig.segment(0, syn=True, at=50)
    rig.segment(1, b"a", at=40)
    assert rig.flush_older_than(45) == ((0, 0), [])
    assert rig.flush_older_than(51) == ((1, 1), [complete()])


def test_the_pages_of_a_closed_connection_are_given_back(tcpreasm: ModuleType) -> None:
    rig = Rig(tcpreasm)
    rig.segment(0, syn=True)
    rig.segment(101, b"x" * 5000)
    assert rig.assembler.stats.pages_used == 3
    assert rig.segment(1, rst=True) == [got(piece(end=True)), complete()]
    assert (rig.assembler.stats.pages_used, rig.assembler.stats.bytes_held, rig.dropped) == (0, 0, {"after_end": 5000})
    assert rig.segment(0, syn=True) == []
    assert rig.segment(9, syn=True) == [new(), got(piece(start=True))]
