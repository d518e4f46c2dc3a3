"""Which two directions belong together."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest


@pytest.fixture
def pairs(tcpreasm: ModuleType, submodule: Callable[[ModuleType, str], ModuleType]) -> Any:
    """Gives each pair the keys that it was made for."""
    return submodule(tcpreasm, "pairs").Pairs(lambda key: [str(key)])


@pytest.mark.parametrize(("one", "other"), [("10.0.0.1", "10.0.0.2"), ("2001:db8::1", "2001:db8::2")])
def test_both_directions_get_the_same(tcpreasm: ModuleType, pairs: Any, one: str, other: str) -> None:
    key = tcpreasm.ConnectionKey(tcpreasm.Flow(one, other), tcpreasm.Flow(1234, 80))
    first = pairs.join(key)
    assert first == [str(key)]
    others = [
        tcpreasm.ConnectionKey(net, transport)
        for net in (key.net_flow, key.net_flow.reverse())
        for transport in (tcpreasm.Flow(1234, 80), tcpreasm.Flow(80, 1234), tcpreasm.Flow(123, 480), tcpreasm.Flow(48, 123))
        if tcpreasm.ConnectionKey(net, transport) not in (key, key.reverse())
    ]
    assert len(others) == 6
    for near in others:
        assert pairs.join(near) is not first
    assert pairs.join(key.reverse()) is first
    assert pairs.join(key.reverse()) is not first  # a third stream begins another pair
    assert pairs.join(key) == [str(key.reverse())]


def test_the_same_direction_again_begins_another_pair(tcpreasm: ModuleType, pairs: Any) -> None:
    key = tcpreasm.ConnectionKey(tcpreasm.Flow("10.0.0.1", "10.0.0.2"), tcpreasm.Flow(1234, 80))
    first, second = pairs.join(key), pairs.join(key)
    assert first is not second
    assert pairs.join(key.reverse()) is second


def test_what_is_in_a_tunnel_is_apart(tcpreasm: ModuleType, pairs: Any) -> None:
    inside = tcpreasm.ConnectionKey(tcpreasm.Flow("10.0.0.1", "10.0.0.2", 1), tcpreasm.Flow(1234, 80))
    outside = tcpreasm.ConnectionKey(tcpreasm.Flow("10.0.0.1", "10.0.0.2"), tcpreasm.Flow(1234, 80))
    first = pairs.join(inside)
    assert pairs.join(outside.reverse()) is not first
    assert pairs.join(inside.reverse()) is first


def test_forget(tcpreasm: ModuleType, pairs: Any) -> None:
    key = tcpreasm.ConnectionKey(tcpreasm.Flow("10.0.0.1", "10.0.0.2"), tcpreasm.Flow(1234, 80))
    first = pairs.join(key)
    pairs.forget(key)
    pairs.forget(key)
    assert pairs.join(key.reverse()) is not first


def test_who_talks_to_itself(tcpreasm: ModuleType, pairs: Any) -> None:
    key = tcpreasm.ConnectionKey(tcpreasm.Flow("10.0.0.1", "10.0.0.1"), tcpreasm.Flow(80, 80))
    assert pairs.join(key) is pairs.join(key)
    assert pairs.join(key) is not None
