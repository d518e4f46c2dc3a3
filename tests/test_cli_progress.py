"""The bar that shows how far a command is with its captures: where there is one, what it shows, and that nothing is left of it."""

from __future__ import annotations

import os
import pty
import re
import sys
import termios
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from command import LIMIT, Run
from conftest import DATA
from traffic import Talk, pcap

Capture = Callable[..., Path]
FRAMES = 20_000


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A capture that is read in several steps."""
    talk = Talk().open()
    for _ in range(FRAMES):
        talk.say(0, b"x" * 100)
    path: Path = tmp_path_factory.mktemp("many") / "many.pcap"
    path.write_bytes(pcap(talk.close().records))
    return path


class Terminal:
    """A terminal, and who reads what is written to it."""

    def __init__(self) -> None:
        self._reading, writing = pty.openpty()
        attributes = termios.tcgetattr(writing)
        attributes[1] &= ~termios.OPOST
        termios.tcsetattr(writing, termios.TCSANOW, attributes)
        self.file = os.fdopen(writing, "w", buffering=1)
        self._shown = bytearray()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        with suppress(OSError):  # how a terminal says that nobody writes any more
            while part := os.read(self._reading, 65536):
                self._shown += part

    def shown(self) -> str:
        """All that was written to it; the last call."""
        self.file.close()
        self._reader.join(LIMIT)
        assert not self._reader.is_alive()
        return self._shown.decode()

    def close(self) -> None:
        self.shown()
        os.close(self._reading)


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[Terminal]:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.delenv("NO_COLOR", raising=False)
    made = Terminal()
    yield made
    made.close()


@pytest.fixture
def main(tcpreasm: ModuleType, submodule: Callable[[ModuleType, str], ModuleType], monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """The command, with bars that do not wait until a file has taken long."""
    progress = submodule(tcpreasm, "cli.progress")
    monkeypatch.setattr(progress, "_DELAY", 0)
    monkeypatch.setattr(progress, "_EVERY", 0)

    def call(*arguments: object) -> int:
        status: int = submodule(tcpreasm, "cli").main([str(argument) for argument in arguments])
        return status

    return call


def shown_by(main: Callable[..., int], monkeypatch: pytest.MonkeyPatch, terminal: Terminal, stdout: Any, *arguments: object) -> str:
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", terminal.file)
        patch.setattr(sys, "stdout", stdout)
        assert main(*arguments) == 0
        stdout.flush()
    return terminal.shown()


BAR = re.compile(r"([\w.]+) \S*[━╸╺ ]+\S*\s+(\d+)%")


def plain(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", text)


def test_a_bar(main: Callable[..., int], monkeypatch: pytest.MonkeyPatch, terminal: Terminal, many: Path) -> None:
    text = shown_by(main, monkeypatch, terminal, terminal.file, "stats", many, DATA / "http.pcap", DATA / "edge.pcap")
    drawn = [(name, int(percent)) for name, percent in BAR.findall(plain(text))]
    percents = [percent for _, percent in drawn]
    assert len({*percents}) >= 3
    assert percents == sorted(percents)
    assert {name for name, _ in drawn} == {"many.pcap", "http.pcap", "edge.pcap"}
    assert drawn[-1] == ("edge.pcap", 100)
    # It was taken away before the table came.
    bar, _, table = text.rpartition("\x1b[2K")
    assert bar
    assert plain(table).strip().startswith("frames")
    assert "━" not in table


@pytest.mark.parametrize(
    ("command", "is_shown"),
    [(("stats",), True), (("flows",), True), (("flows", "--json"), False), (("http",), False), (("follow", "1"), False)],
)
def test_on_a_terminal_a_bar_never_meets_what_is_printed(
    main: Callable[..., int], monkeypatch: pytest.MonkeyPatch, terminal: Terminal, many: Path, command: tuple[str, ...], is_shown: bool
) -> None:
    name, *rest = command
    assert ("━" in shown_by(main, monkeypatch, terminal, terminal.file, name, many, *rest)) == is_shown


@pytest.mark.parametrize("command", [("stats",), ("flows", "--json"), ("http",), ("follow", "1"), ("extract", "-o", "{folder}")])
def test_beside_a_file_there_is_always_one(
    main: Callable[..., int], monkeypatch: pytest.MonkeyPatch, terminal: Terminal, many: Path, tmp_path: Path, command: tuple[str, ...]
) -> None:
    name, *rest = (part.format(folder=tmp_path / "out") for part in command)
    with (tmp_path / "stdout").open("w") as file:
        text = shown_by(main, monkeypatch, terminal, file, name, many, *rest)
    assert "━" in text
    assert plain(text.rpartition("\x1b[2K")[2]).strip() in ("", "tcpreasm: no HTTP/1 message was found")


def test_beside_a_pipe_there_is_none(main: Callable[..., int], monkeypatch: pytest.MonkeyPatch, terminal: Terminal, many: Path) -> None:
    """A pager at its end has the terminal."""
    reading, writing = os.pipe()
    with os.fdopen(writing, "w") as file:
        assert shown_by(main, monkeypatch, terminal, file, "stats", many) == ""
    os.close(reading)


def test_no_terminal_no_bar(run: Run, many: Path) -> None:
    assert run("stats", many).err == ""


def test_a_dumb_terminal_has_none(main: Callable[..., int], monkeypatch: pytest.MonkeyPatch, terminal: Terminal, many: Path) -> None:
    monkeypatch.setenv("TERM", "dumb")
    assert "━" not in shown_by(main, monkeypatch, terminal, terminal.file, "stats", many)


def test_without_rich_there_is_none(main: Callable[..., int], monkeypatch: pytest.MonkeyPatch, terminal: Terminal, many: Path) -> None:
    for name in ("rich", "rich.progress", "rich.console"):
        monkeypatch.setitem(sys.modules, name, None)
    assert shown_by(main, monkeypatch, terminal, terminal.file, "stats", many).startswith("frames")


def test_what_takes_no_time_shows_nothing(run: Run, monkeypatch: pytest.MonkeyPatch, terminal: Terminal) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", terminal.file)
        run("stats", DATA / "http.pcap")
    assert terminal.shown() == ""


def test_names_of_files_are_not_obeyed(
    main: Callable[..., int], monkeypatch: pytest.MonkeyPatch, terminal: Terminal, many: Path, tmp_path: Path
) -> None:
    path = tmp_path / "a\x1b]0;owned\x07[red]b.pcap"
    path.write_bytes(many.read_bytes())
    text = shown_by(main, monkeypatch, terminal, terminal.file, "stats", path)
    assert "a?]0;owned?[red]b.pcap" in text
    assert "\x1b]0;" not in text


def test_it_is_gone_after_an_error(
    main: Callable[..., int], monkeypatch: pytest.MonkeyPatch, terminal: Terminal, many: Path, tmp_path: Path
) -> None:
    (tmp_path / "text").write_text("no capture")
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", terminal.file)
        patch.setattr(sys, "stdout", terminal.file)
        assert main("stats", many, tmp_path / "text") == 2
    before, _, after = terminal.shown().rpartition("\x1b[2K")
    assert "━" in before
    assert plain(after).strip().startswith("tcpreasm: ")
