"""Sequence numbers: arithmetic modulo 2**32 against plain integers, and the byte-span rule. No packets here."""

from __future__ import annotations

import copy
import pickle
from types import ModuleType
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

TOP = 2**32 - 1
HALF = 2**31
sequence_numbers = st.integers(0, TOP)
near_the_wrap = st.one_of(sequence_numbers, st.integers(0, 5), st.integers(TOP - 5, TOP), st.integers(HALF - 3, HALF + 3))


# -- difference and add -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("a", "b", "distance"),
    [
        (0, 0, 0),
        (1, 2, 1),
        (2, 1, -1),
        (TOP, 0, 1),
        (0, TOP, -1),
        (TOP - 9, 10, 20),
        (10, TOP - 9, -20),
        (0, HALF - 1, HALF - 1),
        (HALF - 1, 0, 1 - HALF),
        (HALF, 0, -HALF),
        (0, HALF, -HALF),
        (TOP, HALF - 1, -HALF),
        (0xC0000000, 0, 2**30),
        (0xC0000000, 1, 2**30 + 1),
        (0xC0000001, 0, 2**30 - 1),
        (0x20000001, 0xBFFFFFFF, -(0x60000002)),
    ],
)
def test_difference(tcpreasm: ModuleType, a: int, b: int, distance: int) -> None:
    assert tcpreasm.Sequence(a).difference(tcpreasm.Sequence(b)) == distance
    assert tcpreasm.Sequence(a).difference(b) == distance


@given(near_the_wrap, near_the_wrap)
def test_difference_is_the_way_from_one_to_the_other(tcpreasm: ModuleType, a: int, b: int) -> None:
    distance = tcpreasm.Sequence(a).difference(b)
    assert -HALF <= distance < HALF
    assert (a + distance) % 2**32 == b


@given(near_the_wrap, st.integers(1 - HALF, HALF - 1))
@example(TOP, 1)
@example(0, HALF - 1)
@example(0, 1 - HALF)
def test_difference_is_exact_at_every_distance_but_half(tcpreasm: ModuleType, a: int, distance: int) -> None:
    there = tcpreasm.Sequence(a).add(distance)
    assert int(there) == (a + distance) % 2**32
    assert tcpreasm.Sequence(a).difference(there) == distance
    assert there.difference(a) == -distance


@given(near_the_wrap, st.integers(-(2**70), 2**70), st.integers(-(2**33), 2**33))
def test_add_in_two_steps_is_add_in_one(tcpreasm: ModuleType, a: int, m: int, n: int) -> None:
    assert tcpreasm.Sequence(a).add(m).add(n) == tcpreasm.Sequence(a).add(m + n) == (a + m + n) % 2**32


# -- the value ----------------------------------------------------------------------------------------------------------


def test_what_a_sequence_is_like(tcpreasm: ModuleType) -> None:
    sequence = tcpreasm.Sequence(7)
    assert (int(sequence), sequence.__index__(), repr(sequence)) == (7, 7, "Sequence(7)")
    assert sequence == tcpreasm.Sequence(7) == 7
    assert sequence != tcpreasm.Sequence(8)
    assert sequence != 8
    assert sequence != "7"
    assert {sequence, tcpreasm.Sequence(7), 7} == {7}
    assert tcpreasm.Sequence(sequence) == 7
    assert [10, 20, 30][tcpreasm.Sequence(1)] == 20


@pytest.mark.parametrize("value", [0, TOP, -1])
def test_a_sequence_can_be_copied_and_pickled(tcpreasm: ModuleType, value: int) -> None:
    sequence = tcpreasm.Sequence(value)
    assert copy.copy(sequence) == sequence
    assert copy.deepcopy(sequence) == sequence
    assert pickle.loads(pickle.dumps(sequence)) == sequence


@pytest.mark.parametrize("value", [-2, 2**32, 2**64, -(2**64)])
def test_what_is_no_sequence_number(tcpreasm: ModuleType, value: int) -> None:
    with pytest.raises(ValueError, match=rf"from 0 to 2\*\*32 - 1, not {value}$"):
        tcpreasm.Sequence(value)
    with pytest.raises(ValueError, match="from 0 to"):
        tcpreasm.Sequence(0).difference(value)


@pytest.mark.parametrize("value", [1.0, "1", None, b"\0", [1]])
def test_what_is_no_number(tcpreasm: ModuleType, value: Any) -> None:
    for call in (tcpreasm.Sequence, tcpreasm.Sequence(0).difference, tcpreasm.Sequence(0).add):
        with pytest.raises((TypeError, AttributeError)):
            call(value)


def test_the_invalid_sequence(tcpreasm: ModuleType) -> None:
    invalid = tcpreasm.INVALID_SEQUENCE
    assert (int(invalid), repr(invalid)) == (-1, "INVALID_SEQUENCE")
    assert invalid == tcpreasm.Sequence(-1)
    assert all(invalid != tcpreasm.Sequence(number) for number in (0, 1, TOP))
    with pytest.raises(ValueError, match="INVALID_SEQUENCE"):
        invalid.difference(1)
    with pytest.raises(ValueError, match="INVALID_SEQUENCE"):
        tcpreasm.Sequence(1).difference(invalid)
    with pytest.raises(ValueError, match="INVALID_SEQUENCE"):
        invalid.add(1)


# -- byte_span ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("expected", "received", "data", "new", "then"),
    [
        (-1, 10, b"abc", b"abc", 13),  # nothing expected yet
        (10, 10, b"abc", b"abc", 13),  # in order
        (10, 10, b"", b"", 10),
        (11, 10, b"abc", b"bc", 13),  # the first byte was delivered
        (12, 10, b"abc", b"c", 13),
        (13, 10, b"abc", b"", 13),  # all of it was
        (20, 10, b"abc", b"", 20),  # long ago
        (10, 20, b"abc", b"abc", 23),  # behind a hole
        (1, TOP, b"abc", b"c", 2),  # across the wrap
        (TOP, TOP - 1, b"abc", b"bc", 1),
        (5, TOP - 5, b"abc", b"", 5),
        (TOP, 1, b"abc", b"abc", 4),
    ],
)
def test_byte_span(tcpreasm: ModuleType, expected: int, received: int, data: bytes, new: bytes, then: int) -> None:
    for arguments in ((expected, received), (tcpreasm.Sequence(expected), tcpreasm.Sequence(received))):
        span, next_expected = tcpreasm.byte_span(*arguments, data)
        assert (span, int(next_expected)) == (new, then)
        assert isinstance(next_expected, tcpreasm.Sequence)


@given(sequence_numbers, st.integers(-300, 300), st.binary(max_size=200))
def test_byte_span_never_gives_a_byte_twice(tcpreasm: ModuleType, expected: int, step: int, data: bytes) -> None:
    span, then = tcpreasm.byte_span(expected, (expected + step) % 2**32, data)
    delivered = min(max(-step, 0), len(data))
    assert span == data[delivered:]
    assert then == (expected + max(step + len(data), 0 if step <= 0 else step)) % 2**32


def test_byte_span_of_what_was_never_received(tcpreasm: ModuleType) -> None:
    with pytest.raises(ValueError, match="INVALID_SEQUENCE"):
        tcpreasm.byte_span(5, tcpreasm.INVALID_SEQUENCE, b"abc")
