"""The command `tcpreasm` in this process, as tests call it: the fixture `run`, which conftest hands on, and what it gives. No test."""

from __future__ import annotations

import json
from collections.abc import Callable
from types import ModuleType
from typing import Any, NamedTuple

import pytest


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


@pytest.fixture
def run(tcpreasm: ModuleType, submodule: Callable[[ModuleType, str], ModuleType], capsys: pytest.CaptureFixture[str]) -> Run:
    main = submodule(tcpreasm, "cli").main

    def call(*arguments: object) -> Result:
        capsys.readouterr()
        status = main([str(argument) for argument in arguments])
        return Result(status, *capsys.readouterr())

    return call
