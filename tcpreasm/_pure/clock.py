"""Capture time, as far as it is believed. Observed once a packet."""

from __future__ import annotations

from typing import NamedTuple

CLOCK_STEP_NS = 60_000_000_000  # a packet that is further from the last one's time needs a second one to be believed
CLOCK_CHANGE_NS = 3_600_000_000_000  # further ahead than this is a changed clock, not a quiet hour
ALWAYS_NS = (1 << 63) - 1  # every time lies before this one
NEVER_NS = -ALWAYS_NS  # and none before this one


class Clock(NamedTuple):
    """Capture time. It follows the packets, but a far step only when a second packet confirms it."""

    now_ns: int | None  # as far as it is believed
    suspect_ns: int | None  # a time far from it, seen last
    changed_ns: int | None  # when the clock was last set ahead

    def observe(self, seen_ns: int) -> Clock:
        """The clock after a packet of that time."""
        now, suspect, changed = self
        if now is None:
            return Clock(seen_ns, None, None)
        step = seen_ns - now
        if abs(step) <= CLOCK_STEP_NS:
            return Clock(max(now, seen_ns), None, changed)
        if suspect is None or (suspect > now) != (step > 0):
            return Clock(now, seen_ns, changed)
        agreed = min(suspect, seen_ns) if step > 0 else max(suspect, seen_ns)  # two packets say: at least so far
        return Clock(
            agreed,
            seen_ns if abs(seen_ns - agreed) > CLOCK_STEP_NS else None,
            agreed if agreed - now > CLOCK_CHANGE_NS else changed,
        )
