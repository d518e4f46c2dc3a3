"""The arguments of `assemble_batch`: what they may be, and what is said of those that they may not be. No state.

Both cores ask here, so that both refuse the same with the same words. Called once a batch; the compiled core, which looks at whole
arrays by itself, calls it only where they are no plain arrays, or where something in them is wrong.
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping
from operator import index
from typing import Any, NamedTuple, SupportsIndex

from .clock import NS_LIMIT

__all__ = ["BatchArrays", "batch_arrays", "batch_buffer", "check_linktype"]

_NO_ARRAYS = (str, bytes, bytearray, Mapping)
_INT64_MAX = 2**63 - 1


class BatchArrays(NamedTuple):
    """A checked batch: int64 each, one item a frame. Copies: nobody else can change them."""

    offsets: array[int]
    lengths: array[int]
    timestamps_ns: array[int]
    wire_lengths: array[int] | None


def batch_buffer(buffer: Any) -> memoryview:
    """A view of the batch's bytes. TypeError for anything but a one-dimensional, C-contiguous buffer of bytes."""
    try:
        view = memoryview(buffer)
    except (BufferError, TypeError, ValueError):
        view = None
    if view is None or view.ndim != 1 or view.itemsize != 1 or not view.c_contiguous:
        raise TypeError(f"buffer is a one-dimensional, C-contiguous buffer of bytes, which this {type(buffer).__name__} is not")
    return view


def batch_arrays(size: int, offsets: Any, lengths: Any, timestamps_ns: Any, wire_lengths: Any = None) -> BatchArrays:
    """The frames of a batch whose buffer has `size` bytes.

    Each argument is a sequence of ints or a one-dimensional array of an integer type (whatever has `tolist`); wire_lengths may be None.
    TypeError for other kinds, and for items that are no ints. ValueError where their numbers differ, for negative ones, frames that
    reach beyond the buffer, and times that are 2**62 ns or more from 1970.
    """
    starts = _numbers("offsets", offsets)
    sizes = _numbers("lengths", lengths)
    times = _numbers("timestamps_ns", timestamps_ns)
    wires = None if wire_lengths is None else _numbers("wire_lengths", wire_lengths)
    if not len(starts) == len(sizes) == len(times):
        raise ValueError(
            f"a batch has an offset, a length and a time for each frame: not {len(starts)}, {len(sizes)} and {len(times)} of them"
        )
    if wires is not None and len(wires) != len(starts):
        raise ValueError(f"a batch has a wire length for each frame: not {len(wires)} for {len(starts)} frames")
    for number, (start, length) in enumerate(zip(starts, sizes)):
        if start < 0:
            raise ValueError(f"offsets[{number}] is 0 or more, not {start}")
        if length < 0:
            raise ValueError(f"lengths[{number}] is 0 or more, not {length}")
        if start + length > size:
            raise ValueError(f"frame {number} reaches beyond the buffer: {length} bytes at offset {start} of {size}")
    for number, time in enumerate(times):
        if not -NS_LIMIT <= time <= NS_LIMIT:
            raise ValueError(f"timestamps_ns[{number}] lies less than 2**62 ns from 1970, not at {time} ns")
    for number, wire in enumerate(wires or ()):
        if wire < 0:
            raise ValueError(f"wire_lengths[{number}] is 0 or more, not {wire}")
    return BatchArrays(
        array("q", starts),
        array("q", sizes),
        array("q", times),
        # No frame counts as longer than 2 GiB (decode), so that it does not matter by how much it is.
        None if wires is None else array("q", [min(wire, _INT64_MAX) for wire in wires]),
    )


def check_linktype(linktype: object) -> None:
    """TypeError for what is no int."""
    if isinstance(linktype, bool) or not isinstance(linktype, int):
        raise TypeError(f"linktype is an int, not {type(linktype).__name__}: {linktype!r}")


def _numbers(name: str, values: Any) -> list[int]:
    items = values.tolist() if hasattr(values, "tolist") else values
    if isinstance(items, _NO_ARRAYS) or not (hasattr(items, "__len__") and hasattr(items, "__getitem__")):
        raise TypeError(f"{name} is a sequence or a one-dimensional array of ints, not {type(values).__name__}: {values!r:.80}")
    numbers = []
    for number, item in enumerate(items):
        if isinstance(item, bool) or not isinstance(item, SupportsIndex):
            raise TypeError(f"{name}[{number}] is an int, not {type(item).__name__}: {item!r:.80}")
        numbers.append(index(item))
    return numbers
