"""Which two directions belong together, for whoever looks at both."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, TypeVar

from .flow import ConnectionKey

__all__ = ["Pairs"]

T = TypeVar("T")


class Pairs(Generic[T]):
    """Brings the two directions of a connection together: what the first one was given, the second one gets too.

    A third stream of the same endpoints begins another pair, and so does one in a tunnel beside one that is in none. Remembers the pairs
    of which one direction is missing.
    """

    def __init__(self, make: Callable[[ConnectionKey], T]) -> None:
        self._make = make
        self._waiting: dict[bytes, T] = {}  # by the first direction

    def join(self, key: ConnectionKey) -> T:
        """What the direction shares with the other one; made for the first of them, by its key."""
        other = _packed(key, reverse=True)
        if other in self._waiting:
            return self._waiting.pop(other)
        pair = self._waiting[_packed(key)] = self._make(key)
        return pair

    def forget(self, key: ConnectionKey) -> None:
        """The direction that is missing will not come: the key is that of the first one."""
        self._waiting.pop(_packed(key), None)


def _packed(key: ConnectionKey, reverse: bool = False) -> bytes:
    """The key, or that of the other direction, with its tunnels, in a third of the memory: there may be millions that nobody answered."""
    net: tuple[Any, Any] = (key.net_flow.raw_src, key.net_flow.raw_dst)
    transport: tuple[Any, Any] = (key.transport_flow.raw_src, key.transport_flow.raw_dst)
    way = slice(None, None, -1 if reverse else 1)
    return b"%b%b%d>%d/%d" % (*net[way], *transport[way], key.net_flow.tunnels)
