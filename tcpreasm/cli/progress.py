"""A bar on the terminal while captures are read: how much, how fast, how long it still takes.

Lives here: whether there is a bar, and drawing it, by rich (the extra `cli`). Called now and then, not for packets.

It must never get between what others write to the same terminal. So there is one only where standard error is a terminal, and standard
output either a file, or the same terminal and the command prints nothing before it has read everything. What goes into a pipe ends
on that terminal as a rule, in a pager for one.
"""

from __future__ import annotations

import importlib
import math
import os
import stat
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from ..api import Progress
from ..capture import Capture

__all__ = ["progress_bar"]

_DELAY = 0.5  # seconds; what takes less shows nothing
_EVERY = 0.1  # seconds from one drawing to the next


@contextmanager
def progress_bar(captures: Sequence[str], is_silent: bool) -> Iterator[Progress | None]:
    """What is to be called while captures are read; None where there is no bar. Gone without a trace behind the block.

    Args:
        captures: as they were named to the command.
        is_silent: the command prints nothing within the block.
    """
    if not _has_room(is_silent):
        yield None
        return
    bar = _Bar(captures)
    try:
        yield bar.update
    finally:
        bar.close()


def _has_room(is_silent: bool) -> bool:
    if not sys.stderr.isatty() or os.environ.get("TERM") == "dumb":
        return False
    if sys.stdout.isatty():
        return is_silent
    try:
        mode = os.fstat(sys.stdout.fileno()).st_mode
    except (OSError, ValueError):
        return False
    return stat.S_ISREG(mode) or stat.S_ISCHR(mode)


class _Bar:
    """One for all captures together. rich is loaded when there is something to show, and where it is missing nothing is."""

    def __init__(self, captures: Sequence[str]) -> None:
        self._captures = captures
        self._capture: Capture | None = None
        self._before = 0  # bytes of the captures before this one
        self._position = 0  # in this one
        self._due = time.monotonic() + _DELAY
        self._drawn: Any = None
        self._task: Any = None

    def update(self, capture: Capture) -> None:
        """With the capture at hand."""
        if capture is not self._capture:
            self._before += self._position
            self._capture = capture
        self._position = capture.position
        now = time.monotonic()
        if now < self._due:
            return
        self._due = now + _EVERY
        if self._drawn is None and not self._begin():
            self._due = math.inf
            return
        self._drawn.update(self._task, description=_name(capture), completed=self._before + self._position)
        self._drawn.refresh()

    def _begin(self) -> bool:
        try:
            rich = importlib.import_module("rich.progress")
            console = importlib.import_module("rich.console").Console(stderr=True)
        except ImportError:
            return False
        self._drawn = rich.Progress(
            rich.TextColumn("{task.description}", markup=False),
            rich.BarColumn(),
            rich.TaskProgressColumn(),
            rich.TransferSpeedColumn(),
            rich.TimeRemainingColumn(),
            console=console,
            transient=True,
            auto_refresh=False,
        )
        self._task = self._drawn.add_task("", total=_size(self._captures))
        self._drawn.start()
        return True

    def close(self) -> None:
        """Takes it off the terminal."""
        if self._drawn is not None:
            self._drawn.stop()


def _size(captures: Sequence[str]) -> int | None:
    """Bytes in all. None where that is not known before they were read."""
    if any(name == "-" or not os.path.isfile(name) for name in captures):
        return None
    return sum(map(os.path.getsize, captures))


def _name(capture: Capture) -> str:
    return "".join(character if character.isprintable() else "?" for character in os.path.basename(capture.source_name))
