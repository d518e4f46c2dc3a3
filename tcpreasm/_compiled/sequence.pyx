"""Sequence numbers for callers: `Sequence` and `byte_span`. The core itself works on uint32_t (sequence.pxd)."""

from operator import index

from libc.stdint cimport uint32_t

__all__ = ["INVALID_SEQUENCE", "Sequence", "byte_span"]

cdef object MASK = 0xFFFFFFFF


cdef class Sequence:
    """Sequence(value)\n--\n\n\
A TCP sequence number.

    Args:
        value: 0 to 2**32 - 1, or -1 for INVALID_SEQUENCE. ValueError for others.
    """

    def __init__(self, value):
        number = index(value)
        if not -1 <= number <= MASK:
            raise ValueError(f"a sequence number is from 0 to 2**32 - 1, not {number}")
        self._value = number

    cdef uint32_t _valid(self) except? 0:
        if self._value < 0:
            raise ValueError("INVALID_SEQUENCE has no place among the sequence numbers")
        return self._value

    def difference(self, other):
        """How many bytes other lies ahead of this one, modulo 2**32: from -2**31 to 2**31 - 1.

        Exact at every distance but 2**31, which counts as behind. ValueError if either is INVALID_SEQUENCE.
        """
        cdef Sequence there = Sequence(other)
        return difference(self._valid(), there._valid())

    def add(self, n):
        """The sequence number n bytes on (or back, where n is negative)."""
        return Sequence((self._valid() + index(n)) & MASK)

    def __index__(self):
        return self._value

    def __int__(self):
        return self._value

    def __eq__(self, other):
        if isinstance(other, (Sequence, int)):
            return self._value == int(other)
        return NotImplemented

    def __hash__(self):
        return hash(self._value)

    def __reduce__(self):
        return Sequence, (self._value,)

    def __repr__(self):
        return "INVALID_SEQUENCE" if self._value < 0 else f"Sequence({self._value})"


INVALID_SEQUENCE = Sequence(-1)
"""Stands for: the start was not seen yet."""


def byte_span(expected, received, data):
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
