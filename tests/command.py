"""What a run of the command `tcpreasm` gave, for the tests of it. The fixtures `run` and `start` in conftest run it."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, NamedTuple

LIMIT = 30.0  # seconds after which a process counts as hanging


class Result(NamedTuple):
    """How one run ended."""

    status: int
    out: str
    err: str

    @property
    def lines(self) -> list[str]:
        return self.out.splitlines()

    @property
    def json(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.lines]


Run = Callable[..., Result]


def assert_one_line(text: str) -> None:
    assert text.startswith("tcpreasm")
    assert text.count("\n") == 1
    assert text.endswith("\n")
