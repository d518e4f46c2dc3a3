"""The floor's totals, as its program reports them."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from . import floor
from .captures import Capture
from .conftest import SCALES


@pytest.mark.parametrize("where", floor.WAYS)
@pytest.mark.parametrize("workload", [*SCALES, "ooo-random-1k"])
def test_floor(get_capture: Callable[[str], Capture], workload: str, where: str) -> None:
    """Packets, directions, and bytes in order; WrongTotals where one is not the capture's."""
    capture = get_capture(workload)
    found = floor.measure(where, capture)
    assert (found.packets, found.bytes_delivered, found.streams) == (capture.packets, capture.bytes_in_order, 2 * capture.connections)
