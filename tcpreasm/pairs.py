"""Which two directions belong together, for whoever looks at both."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

from .flow import ConnectionKey

__all__ = ["Pairs"]

T = TypeVar("T")


class Pairs(Generic[T]):
    """Brings the two directions of a connection together: what the first one was given, the second one gets too.

    A third stream of the same endpoints begins another pair. Remembers the pairs of which one direction is missing.
    """

    def __init__(self, make: Callable[[ConnectionKey], T]) -> None:
        self._make = make
        self._waiting: dict[ConnectionKey, T] = {}  # by the key of the direction that is missing

    def join(self, key: ConnectionKey) -> T:
        """What the direction shares with the other one; made for the first of them, by its key."""
        if key in self._waiting:
            return self._waiting.pop(key)
        pair = self._waiting[key.reverse()] = self._make(key)
        return pair

    def forget(self, key: ConnectionKey) -> None:
        """The direction that is missing will not come: the key is that of the first one."""
        self._waiting.pop(key.reverse(), None)
