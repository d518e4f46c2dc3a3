"""What parts that are right by themselves do together: assemblers with different options on one pool, hooks beside short cuts, and the
index of many small pages where the stream goes on and pages come before all others. Both cores, side by side or each against a model.
"""

from __future__ import annotations

import random
from types import ModuleType
from typing import Any

import pytest
from recorder import Recorder, Rig, got, piece, segment
from test_promises import opened

NO_LIMITS: dict[str, Any] = {"max_buffered_pages_total": 0, "max_buffered_pages_per_connection": 0, "max_buffered_bytes_total": None}


def test_a_page_before_all_others_where_the_first_leaf_is_full(tcpreasm: ModuleType) -> None:
    """200 islands, the first of them goes out, one comes into their midst, one before them all; then a long one over everything."""
    rig = opened(tcpreasm, 999, **NO_LIMITS)
    content = {10 + 4 * i: b"p" for i in range(200)}
    for place, text in content.items():
        rig.send(segment(tcpreasm, 1000 + place, text))
    rig.send(segment(tcpreasm, 1000, b"0123456789"))
    for place, text in ((100, b"q"), (12, b"r"), (51, b"Z")):
        content[place] = text
        rig.send(segment(tcpreasm, 1000 + place, text))
    rig.send(segment(tcpreasm, 1011, b"s" * 900))
    came = b"".join(data for call in rig.taken() for data, *_ in call[2])
    rest = bytearray(b"s" * 900)
    for place, text in content.items():
        if place >= 11:
            rest[place - 11] = text[0]
    assert came == b"0123456789p" + rest


@pytest.mark.parametrize("seed", range(12))
def test_many_small_pages_with_a_stream_that_goes_on(tcpreasm: ModuleType, seed: int) -> None:
    """Islands at random, some bytes in order now and then: what comes out is the first copy of each byte."""
    rng = random.Random(seed)
    isn = rng.choice([0, 2**32 - 3000, 2**31 - 2000])
    reach = rng.choice([300, 2000])
    rig = opened(tcpreasm, isn, **NO_LIMITS)
    first: dict[int, int] = {}
    came = bytearray()
    for _ in range(700):
        if rng.random() < 0.93:
            place, size = len(came) + rng.randrange(1, reach if rng.random() < 0.8 else 40), rng.choice([1, 1, 1, 2, 3, 30])
        else:
            place, size = len(came), rng.choice([1, 5, 12, 700])
        text = rng.randbytes(size)
        rig.send(segment(tcpreasm, isn + 1 + place, text))
        for at, byte in enumerate(text, place):
            first.setdefault(at, byte)
        while len(came) in first:
            came.append(first[len(came)])
    out = b"".join(data for call in rig.taken() for data, *_ in call[2])
    assert out == came


def test_a_conflict_is_told_in_one_run_however_it_is_found(tcpreasm: ModuleType) -> None:
    """A long segment over many pages, three times: the runs of differing bytes are the same, whole and in order."""
    told: list[tuple[int, int]] = []
    rig = opened(tcpreasm, 999, on_conflict=lambda net, transport, seq, held, new, wins: told.append((seq, len(new))), **NO_LIMITS)
    for i in range(1300):
        rig.send(segment(tcpreasm, 1100 + 2 * i, b"a"))
    for seq, text in ((1050, b"a" * 3000), (1100, b"b" * 2000), (1100, b"b" * 2000), (1050, b"b" * 3000)):
        rig.send(segment(tcpreasm, seq, text))
    assert told == [(1100, 2000), (1100, 2000), (1050, 3000)]


def test_a_policy_beside_another_one_on_one_pool(tcpreasm: ModuleType) -> None:
    """What "last" has put in place of held bytes is what "first" compares with from then on."""
    recorder = Recorder()
    one = Rig(tcpreasm, recorder, overlap="first", **NO_LIMITS)
    two = Rig(tcpreasm, recorder, pool=one.pool, overlap="last", **NO_LIMITS)
    one.send(segment(tcpreasm, 999, syn=True))
    for i in range(1500):
        one.send(segment(tcpreasm, 1100 + i, b"a"))
    one.send(segment(tcpreasm, 1100, b"a" * 1500))
    two.send(segment(tcpreasm, 1200, b"b" * 1100))
    before = one.assembler.stats.conflicting
    one.send(segment(tcpreasm, 1200, b"b" * 1100))
    assert one.assembler.stats.conflicting == before
    one.send(segment(tcpreasm, 1000, b"c" * 100))
    assert b"".join(data for call in recorder.take() if call[0] == "reassembled" for data, *_ in call[2]) == (
        b"c" * 100 + b"a" * 100 + b"b" * 1100 + b"a" * 300
    )


def test_an_ack_through_another_assembler_settles_the_text_of_a_syn(tcpreasm: ModuleType) -> None:
    recorder = Recorder()
    one = Rig(tcpreasm, recorder, syn_data="acked")
    two = Rig(tcpreasm, recorder, pool=one.pool)
    one.send(segment(tcpreasm, 999, b"hello", syn=True))
    recorder.take()
    two.send(segment(tcpreasm, 1005))
    assert recorder.take() == [got(piece(b"hello"))]
