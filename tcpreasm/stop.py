"""`STOP`: what a stream's `reassembled` returns to get no more. Both cores compare with it, once a call."""

from __future__ import annotations

__all__ = ["STOP"]


class Stop:
    """The class of `STOP`, which is the only one of it, copies and pickled ones included."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "tcpreasm.STOP"

    def __reduce__(self) -> str:
        return "STOP"


STOP = Stop()
"""Returned by a stream's or a handler's `reassembled`: the stream gets no more data."""
