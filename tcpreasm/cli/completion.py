"""Completion in the shell: a script that knows all commands and options, made by shtab (the extra `cli`) from the parser itself."""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Iterator
from typing import Any

__all__ = ["Completion"]


class Completion(argparse.Action):
    """Prints the script for the shell that is named, and ends the program."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, option_string: str | None = None
    ) -> None:
        try:
            shtab = importlib.import_module("shtab")
        except ImportError as error:
            raise ImportError(f"this takes shtab: pip install 'tcpreasm[cli]' ({error})") from None
        files = {"CAPTURE": shtab.FILE, "FILE": shtab.FILE, "DIR": shtab.DIRECTORY}
        for action in _actions(parser):
            if action.metavar in files:
                action.complete = files[action.metavar]
        print(shtab.complete(parser, shell=values))
        parser.exit()


def _actions(parser: argparse.ArgumentParser) -> Iterator[Any]:
    """Those of all commands."""
    for action in parser._actions:
        yield action
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                yield from _actions(command)
