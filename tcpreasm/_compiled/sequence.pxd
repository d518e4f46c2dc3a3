"""Sequence numbers: arithmetic modulo 2**32 (RFC 9293 3.4). No state. Inlined wherever it is used, several times a packet."""

from libc.stdint cimport int32_t, uint32_t


# How far b lies ahead of a: negative where it lies behind, -2**31 at the distance 2**31, which has no direction.
cdef inline int32_t difference(uint32_t a, uint32_t b) noexcept nogil:
    return <int32_t>(b - a)


cdef class Sequence:
    cdef object _value             # int: 0 to 2**32 - 1, or -1 for INVALID_SEQUENCE

    cdef uint32_t _valid(self) except? 0
