"""What streams and handlers may have beside what they must: methods `on_gap`, `on_conflict`, `on_evict`. Both cores ask for them by class.

`HooksOfClasses.of` is called once a stream, and once for each gap, conflict and eviction that somebody is told of.
"""

from __future__ import annotations

__all__ = ["HOOKS", "HooksOfClasses"]

HOOKS = ("on_gap", "on_conflict", "on_evict")
MOST_CLASSES = 64  # that are remembered: a program may make them without end


class HooksOfClasses:
    """Which of `HOOKS` a class has, as bits in their order; looked up once a class."""

    __slots__ = ("_found",)

    def __init__(self) -> None:
        self._found: dict[type, int] = {}

    def of(self, cls: type) -> int:
        """Bit i: it has a method HOOKS[i]."""
        found = self._found.get(cls)
        if found is None:
            found = sum(1 << at for at, name in enumerate(HOOKS) if callable(getattr(cls, name, None)))
            if len(self._found) >= MOST_CLASSES:
                self._found.clear()
            self._found[cls] = found
        return found
