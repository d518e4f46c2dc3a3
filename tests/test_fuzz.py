"""What fuzzing begins with, and what it once found: each input again, on both cores side by side. .ci/run fuzzes on from there."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from fuzz import targets

FOUND = Path(__file__).parent / "fuzz" / "found"


@pytest.mark.parametrize("target", targets.TARGETS)
def test_what_was_found_stays_mended(target: str) -> None:
    for path in sorted(FOUND.glob(f"{target}/*")):
        targets.TARGETS[target](path.read_bytes())


@pytest.mark.parametrize("target", targets.TARGETS)
def test_seeds_and_what_is_near_them(target: str) -> None:
    """Some bytes changed, some left out, some put in: enough that a target which does nothing any more is noticed, and no more."""
    rng = random.Random(target)
    for seed in targets.SEEDS[target]:
        targets.TARGETS[target](seed)
        for _ in range(20):
            data = bytearray(seed)
            for _ in range(rng.randrange(1, 4)):
                at = rng.randrange(len(data))
                data[at : at + rng.randrange(2)] = rng.randbytes(rng.randrange(3))
            targets.TARGETS[target](bytes(data))


def test_a_difference_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """The targets can fail: a core that decodes something else, or loses a byte, is told."""
    seed = targets.SEEDS["decode"][0]
    compiled, pure = targets.DECODERS
    monkeypatch.setattr(targets, "DECODERS", (compiled, lambda frame, *arguments: pure(frame[:-1], *arguments)))
    with pytest.raises(targets.Different):
        targets.decode(seed)
    original = targets.play

    def forgetful(core: int, choice: int, acts: list[targets.Act]) -> object:
        return original(core, choice, acts[core:])

    monkeypatch.setattr(targets, "play", forgetful)
    with pytest.raises(targets.Different):
        targets.assembler(targets.SEEDS["assembler"][0])


def test_the_seeds_reach_deep() -> None:
    """Each target's seeds are sound inputs: frames are segments or fragments, files have packets, scripts deliver and end streams."""
    for seed in targets.SEEDS["decode"]:
        verdict, segment = targets.DECODERS[0](seed[2:], targets.LINKTYPES[seed[0]], None, True)
        assert verdict.name == "FRAGMENT" or (verdict.name == "SEGMENT" and segment is not None)
    for seed in targets.SEEDS["capture"]:
        with targets.BOTH[0].open_capture(seed[1:]) as capture:
            assert len(list(capture)) > 1
            assert capture.complete
    for seed in targets.SEEDS["assembler"]:
        book, _ = targets.play(0, seed[0], targets.script(seed))
        assert any(isinstance(one, tuple) and one[1] == "complete" for one in book)
        assert any(isinstance(one, tuple) and isinstance(one[1], list) for one in book)
