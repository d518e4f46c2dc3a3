"""Arrays of what was observed, brought to the resolution of a picture: bins of time, and marks joined where nobody could tell them apart.

Lives here: arithmetic on numpy arrays, nothing of TCP and nothing of drawing. Sums stay exact, and no mark is dropped: what is merged
covers the same pixels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Timeline", "binned", "merge_marks", "open_at_a_time", "thin_steps"]

_BUFFERED_ROWS = 1 << 16


class Timeline:
    """Bytes of both sides by capture time, in bins of one width: the smallest power of two of nanoseconds with which they are enough.

    Args:
        bins: the most there are, 2 or more.

    Memory is that of the bins, however much is added.
    """

    def __init__(self, bins: int) -> None:
        self._bins = bins
        self._shift = 0
        self._first = 0  # number of the first bin
        self._sums = np.zeros((2, 0), np.int64)
        self._waiting: list[tuple[int, NDArray[np.int64], NDArray[np.int64]]] = []
        self._waiting_rows = 0

    def add(self, side: int, seen_ns: NDArray[np.int64], lengths: NDArray[np.int64]) -> None:
        """So many bytes of the client (0) or the server (1) at those times, in any order."""
        if not len(seen_ns):
            return
        self._waiting.append((side, seen_ns, lengths))
        self._waiting_rows += len(seen_ns)
        if self._waiting_rows >= _BUFFERED_ROWS:
            self._settle()

    def _settle(self) -> None:
        if not self._waiting:
            return
        sides = np.repeat([side for side, _, _ in self._waiting], [len(one) for _, one, _ in self._waiting])
        times = np.concatenate([one for _, one, _ in self._waiting])
        lengths = np.concatenate([one for _, _, one in self._waiting])
        self._waiting, self._waiting_rows = [], 0
        first, last = int(times.min()) >> self._shift, int(times.max()) >> self._shift
        known = self._sums.shape[1]
        if known:
            first, last = min(first, self._first), max(last, self._first + known - 1)
        shift = 0
        while (last >> shift) - (first >> shift) >= self._bins:
            shift += 1
        self._shift += shift
        sums = np.zeros((2, (last >> shift) - (first >> shift) + 1), np.int64)
        places = ((self._first + np.arange(known)) >> shift) - (first >> shift)
        for side in (0, 1):
            np.add.at(sums[side], places, self._sums[side])
        np.add.at(sums, (sides, (times >> self._shift) - (first >> shift)), lengths)
        self._first, self._sums = first >> shift, sums

    @property
    def width_ns(self) -> int:
        """Of a bin."""
        self._settle()
        return 1 << self._shift

    @property
    def sums(self) -> NDArray[np.int64]:
        """Bytes of each bin: a row for the clients, one for the servers; without columns where nothing came."""
        self._settle()
        return self._sums

    @property
    def edges_ns(self) -> NDArray[np.int64]:
        """Where bins begin, and where the last one ends."""
        self._settle()
        return (self._first + np.arange(self._sums.shape[1] + 1, dtype=np.int64)) << self._shift


def binned(seen_ns: NDArray[np.int64], lengths: NDArray[np.int64], begin_ns: int, end_ns: int, bins: int) -> NDArray[np.int64]:
    """The bytes of so many equal parts of [begin_ns, end_ns]; all times lie in it."""
    width_ns = max(1, -((begin_ns - end_ns) // bins))
    sums = np.zeros(bins, np.int64)
    np.add.at(sums, np.minimum((seen_ns - begin_ns) // width_ns, bins - 1), lengths)
    return sums


def merge_marks(
    seen_ns: NDArray[np.int64],
    begin: NDArray[np.int64],
    end: NDArray[np.int64],
    columns: int,
    rows: int,
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Marks from begin to end at a time, those of one column of pixels joined where less than a row of pixels lies between them.

    Args:
        seen_ns, begin, end: a mark each, in any order.
        columns, rows: pixels that the whole takes.

    Returns (seen_ns, begin, end) of what is left to draw, by column; a merged mark stands at the time of its lowest one. As few
    marks as there are pixels come back as they are.
    """
    if len(seen_ns) <= columns:
        return seen_ns, begin, end
    first, last = int(seen_ns.min()), int(seen_ns.max())
    column_ns = max(1, (last - first) // columns)
    column = (seen_ns - first) // column_ns
    low = int(begin.min())
    height = int(end.max()) - low
    row = height // rows
    stride = height + row + 1  # a column lies above the other: one sort and one running maximum for all of them
    low_edge = begin - low + column * stride
    order = np.argsort(low_edge, kind="stable")
    low_edge = low_edge[order]
    reach = np.maximum.accumulate((end - low + column * stride)[order])
    starts = np.flatnonzero(np.concatenate(([True], low_edge[1:] > reach[:-1] + row)))
    ends = np.concatenate((starts[1:], [len(order)])) - 1
    return seen_ns[order[starts]], begin[order[starts]], reach[ends] - column[order[starts]] * stride + low


def thin_steps(seen_ns: NDArray[np.int64], values: NDArray[np.int64], columns: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """A curve that changes in steps, for so many columns of pixels: of each one the first, lowest, highest and last value, in order."""
    if len(seen_ns) <= 4 * columns:
        return seen_ns, values
    order = np.argsort(seen_ns, kind="stable")
    seen_ns, values = seen_ns[order], values[order]
    column = (seen_ns - seen_ns[0]) // max(1, int(seen_ns[-1] - seen_ns[0]) // columns)
    starts = np.flatnonzero(np.diff(column, prepend=-1))
    ends = np.concatenate((starts[1:], [len(column)])) - 1
    by_value = np.lexsort((values, column))
    kept = np.unique(np.concatenate((starts, ends, by_value[starts], by_value[ends])))
    return seen_ns[kept], values[kept]


def open_at_a_time(spans: NDArray[Any]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """How many of the spans, rows of first and last time, cover a time: the times at which that changes, and the number from then on.

    A span covers its last time too, and ends a nanosecond later.
    """
    times, places = np.unique(np.concatenate((spans[:, 0], spans[:, 1] + 1)), return_inverse=True)
    changes = np.zeros(len(times), np.int64)
    np.add.at(changes, places[: len(spans)], 1)
    np.add.at(changes, places[len(spans) :], -1)
    return times, np.cumsum(changes)
