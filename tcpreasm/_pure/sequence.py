"""Sequence numbers: arithmetic modulo 2**32 (RFC 9293 3.4). No state.

Called several times a packet. Inside the core a sequence number is a plain int from 0 to 2**32 - 1, and `difference` and `add` work on
those; `Sequence` is the same for callers.
"""

from __future__ import annotations

from operator import index
from typing import Final, SupportsIndex

__all__ = ["INVALID_SEQUENCE", "Sequence", "add", "byte_span", "difference"]

_HALF = 0x80000000
_MASK = 0xFFFFFFFF


def difference(a: int, b: int) -> int:
    """How far b lies ahead of a: negative where it lies behind, -2**31 at the distance 2**31, which has no direction."""
    return ((b - a + _HALF) & _MASK) - _HALF


def add(a: int, n: int) -> int:
    """The sequence number n bytes behind a."""
    return (a + n) & _MASK


class Sequence:
    """A TCP sequence number.

    Args:
        value: 0 to 2**32 - 1, or -1 for INVALID_SEQUENCE. ValueError for others.
    """

    __slots__ = ("_value",)

    def __init__(self, value: SupportsIndex) -> None:
        number = index(value)
        if not -1 <= number <= _MASK:
            raise ValueError(f"a sequence number is from 0 to 2**32 - 1, not {number}")
        self._value = number

    def difference(self, other: Sequence | int) -> int:
        """How many bytes other lies ahead of this one, modulo 2**32: from -2**31 to 2**31 - 1.

        Exact at every distance but 2**31, which counts as behind. ValueError if either is INVALID_SEQUENCE.
        """
        return difference(self._valid(), Sequence(other)._valid())

    def add(self, n: SupportsIndex) -> Sequence:
        """The sequence number n bytes on (or back, where n is negative)."""
        return Sequence(add(self._valid(), index(n)))

    def _valid(self) -> int:
        if self._value < 0:
            raise ValueError("INVALID_SEQUENCE has no place among the sequence numbers")
        return self._value

    def __index__(self) -> int:
        return self._value

    def __int__(self) -> int:
        return self._value

    def __eq__(self, other: object) -> bool:
        if isinstance(other, (Sequence, int)):
            return self._value == int(other)
        return NotImplemented

    def __hash__(self) -> int:
        return hash(self._value)

    def __repr__(self) -> str:
        return "INVALID_SEQUENCE" if self._value < 0 else f"Sequence({self._value})"


INVALID_SEQUENCE: Final = Sequence(-1)
"""Stands for: the start was not seen yet."""


def byte_span(expected: Sequence | int, received: Sequence | int, data: bytes) -> tuple[bytes, Sequence]:
    """The part of data that was not delivered yet, and the sequence number expected after it.

    Args:
        expected: next sequence number of the stream; INVALID_SEQUENCE where it has none yet.
        received: sequence number of data's first byte. ValueError if it is INVALID_SEQUENCE.
        data: the segment's text.
    """
    start = Sequence(received)
    if int(expected) < 0:
        return data, start.add(len(data))
    done = start.difference(expected)
    if done <= 0:
        return data, start.add(len(data))
    if done >= len(data):
        return b"", Sequence(expected)
    return data[done:], start.add(len(data))
