"""The command `tcpreasm`: what it prints and writes, how it ends. Most run `main` in this process; what needs a process of its own
(standard input, signals, a broken pipe, a live interface) starts one."""

from __future__ import annotations

import dataclasses
import errno
import fcntl
import io
import json
import os
import pty
import re
import shlex
import signal
import socket
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from command import LIMIT, Run, assert_one_line
from conftest import DATA
from traffic import ACK, RST, START_NS, SYN, Talk, corpus_cases, pcap, sha256

COMMANDS = ("flows", "extract", "http", "follow", "stats", "plot", "report")
TRUTH: dict[str, Any] = json.loads((DATA / "truth.json").read_text())


# The command as a whole.


def test_help_and_version(run: Run, tcpreasm: ModuleType) -> None:
    text = run("--help")
    assert text.status == 0
    for part in (*COMMANDS, "examples:", "exit status", "tcp port 80"):
        assert part in text.out
    for command in COMMANDS:
        text = run(command, "--help")
        assert text.status == 0
        assert f"examples:\n  tcpreasm {command} " in text.out
        assert max(map(len, text.lines)) <= 120
    assert run("--version") == (0, f"tcpreasm {tcpreasm.__version__} ({tcpreasm.implementation} core)\n", "")


@pytest.mark.parametrize(
    ("words", "completed"),
    [
        (("fl",), {"flows"}),
        (("",), {*COMMANDS}),
        (("--ver",), {"--version"}),
        (("flows", "--hol"), {"--hole-timeout"}),
        (("follow", "--for"), {"--format"}),
        (("follow", "--format", ""), {"ascii", "hex", "raw"}),
        (("stats", "a-cap"), {"a-capture.pcap"}),
        (("http", "--bodies", "a-"), {"a-folder"}),
    ],
)
def test_completion(run: Run, tmp_path: Path, words: tuple[str, ...], completed: set[str]) -> None:
    script = run("--completion", "bash")
    assert (script.status, script.err) == (0, "")
    (tmp_path / "a-capture.pcap").touch()
    (tmp_path / "a-folder").mkdir()
    words = ("tcpreasm", *words)
    line = f"COMP_WORDS=({shlex.join(words)}); COMP_CWORD={len(words) - 1}; _shtab_tcpreasm; printf '%s\\n' \"${{COMPREPLY[@]}}\""
    done = subprocess.run(["bash", "-c", f"{script.out}\n{line}"], cwd=tmp_path, capture_output=True, text=True, check=True, timeout=LIMIT)
    assert completed <= {*done.stdout.split()}
    assert all(word.startswith(words[-1]) for word in done.stdout.split())


def test_completion_without_shtab(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    for shell in ("zsh", "tcsh"):
        assert "tcpreasm" in run("--completion", shell).out
    monkeypatch.setitem(sys.modules, "shtab", None)
    result = run("--completion", "bash")
    assert (result.status, result.out) == (2, "")
    assert_one_line(result.err)
    assert "tcpreasm[cli]" in result.err


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("nonsense",),
        ("flows",),
        ("flows", "--nonsense", "x"),
        ("flows", "{missing}"),
        ("flows", "{folder}"),
        ("flows", "{text}"),
        ("flows", "{empty}"),
        ("flows", "{capture}", "{missing}"),
        ("flows", "{capture}", "--hole-timeout", "-1"),
        ("flows", "{capture}", "--idle-timeout", "soon"),
        ("flows", "{capture}", "--hole-timeout", "nan"),
        ("flows", "{capture}", "--overlap", "newest"),
        ("flows", "{capture}", "--urgent", ""),
        ("flows", "{capture}", "--syn-data", "later"),
        ("flows", "{capture}", "--verify-checksums=no"),
        ("flows", "{capture}", "--decapsulate", "gre,l2tp"),
        ("flows", "{capture}", "--max-gap", "0"),
        ("flows", "{capture}", "--max-gap", "much"),
        ("flows", "{capture}", "--max-connections", "-1"),
        ("flows", "{capture}", "--max-buffered-bytes", "0"),
        ("flows", "{capture}", "--closed-timeout", "2e9"),
        ("flows", "--verify-checksums"),
        ("flows", "--verify-checksums", "auto"),
        ("flows", "{capture}", "--csv", "--json"),
        ("extract", "{capture}"),
        ("extract", "{capture}", "-o", "{text}"),
        ("extract", "{capture}", "-o", "{folder}", "--max-open", "0"),
        ("http",),
        ("http", "{text}"),
        ("http", "{capture}", "-i", "lo"),
        ("http", "{capture}", "-f", "tcp"),
        ("http", "-i", "no-such-interface"),
        ("http", "-i", "lo", "--snaplen", "0"),
        ("http", "{capture}", "--max-body", "0"),
        ("http", "{capture}", "--bodies", "{text}"),
        ("follow", "{capture}"),
        ("follow", "{capture}", "0"),
        ("follow", "{capture}", "2"),
        ("follow", "{capture}", "1", "--client", "--server"),
        ("follow", "{capture}", "1", "--format", "pdf"),
        ("follow", "{missing}", "1"),
        ("stats",),
        ("stats", "{missing}"),
    ],
)
def test_errors_are_one_line_and_status_2(run: Run, tmp_path: Path, capture: Callable[..., Path], arguments: tuple[str, ...]) -> None:
    (tmp_path / "text").write_text("no capture\n")
    (tmp_path / "empty").write_bytes(b"")
    names = {
        "missing": tmp_path / "missing",
        "folder": tmp_path,
        "text": tmp_path / "text",
        "empty": tmp_path / "empty",
        "capture": capture(Talk().open()),
    }
    result = run(*(argument.format(**names) for argument in arguments))
    assert result.status == 2
    assert_one_line(result.err)
    assert "Traceback" not in result.err


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (("--overlap", "newest"), "newest"),
        (("--decapsulate", "gre,l2tp"), "l2tp"),
        (("--verify-checksums=no",), "no"),
        (("--max-gap", "2147483648"), "2147483648"),
        (("--depth", "0"), "0"),
        (("--max-connections", "many"), "many"),
        (("--closed-timeout", "-0.5"), "-0.5"),
    ],
)
def test_a_wrong_value_is_named(run: Run, given: tuple[str, ...], told: str) -> None:
    result = run("flows", DATA / "http.pcap", *given)
    assert (result.status, result.out) == (2, "")
    assert_one_line(result.err)
    assert re.search(rf"\b{given[0][2:].split('=')[0].replace('-', '[-_]')}\b.*{re.escape(told)}", result.err)


@pytest.mark.parametrize(
    ("given", "options"),
    [
        ((), {}),
        (("--verify-checksums",), {"verify_checksums": True}),
        (("--verify",), {"verify_checksums": True}),
        (("--verify-checksums", "yes"), {"verify_checksums": True}),
        (("--verify-checksums", "auto"), {"verify_checksums": "auto"}),
        (("--verify-checksums=auto",), {"verify_checksums": "auto"}),
        (("--overlap", "linux"), {"overlap": "linux"}),
        (("--urgent", "oob"), {"urgent": "oob"}),
        (("--paws",), {"paws": True}),
        (("--syn-data", "acked"), {"syn_data": "acked"}),
        (("--decapsulate", "none"), {"decapsulate": False}),
        (("--decapsulate", "all"), {"decapsulate": True}),
        (("--decapsulate", "gre,6in4"), {"decapsulate": ["gre", "6in4"]}),
        (("--no-defragment",), {"defragment": False}),
        (("--depth", "4096"), {"depth": 4096}),
        (("--max-gap", "1000"), {"max_gap": 1000}),
        (("--max-connections", "0"), {"max_connections": 0}),
        (("--max-buffered-bytes", "5000000"), {"max_buffered_bytes_total": 5_000_000}),
        (("--hole-timeout", "0.5"), {"hole_timeout": 0.5}),
        (("--idle-timeout", "60"), {"idle_timeout": 60.0}),
        (("--closed-timeout", "0"), {"closed_timeout": 0.0}),
        (("--paws", "--overlap=last", "--verify-checksums", "--max-gap=9"), {
            "paws": True, "overlap": "last", "verify_checksums": True, "max_gap": 9,
        }),
    ],
)  # fmt: skip
@pytest.mark.parametrize("behind", [False, True])
def test_switches_are_options(
    run: Run,
    tcpreasm: ModuleType,
    submodule: Callable[[ModuleType, str], ModuleType],
    monkeypatch: pytest.MonkeyPatch,
    given: tuple[str, ...],
    options: dict[str, Any],
    behind: bool,
) -> None:
    """In front of the captures and behind them: a switch takes no capture for its value."""
    used = []
    flows = submodule(tcpreasm, "cli.flows")
    monkeypatch.setattr(flows, "read", lambda assembler, captures, **rest: used.append((assembler.options, captures)))
    assert run("flows", *(("x.pcap", *given) if behind else (*given, "x.pcap"))).status == 0
    assert used == [(tcpreasm.AssemblerOptions(**options), ["x.pcap"])]


def test_every_switch_is_there_once(submodule: Callable[[ModuleType, str], ModuleType], tcpreasm: ModuleType, run: Run) -> None:
    switches = submodule(tcpreasm, "cli.common")._SWITCHES
    options = [option for option, _, _ in switches.values()]
    assert len(set(options)) == len(options)
    assert set(options) <= {field.name for field in dataclasses.fields(tcpreasm.AssemblerOptions)}
    for command in COMMANDS:
        text = run(command, "--help").out
        assert all(flag in text for flag in switches)


def test_switches_reach_the_streams(run: Run, tmp_path: Path, capture: Callable[..., Path]) -> None:
    """What some of them change, in what comes out."""
    pair = capture(*inside_and_outside(), name="pair")
    assert len(run("flows", pair, "--decapsulate", "none").lines) == 2
    assert len(run("flows", "--decapsulate", "gre,vxlan", pair).lines) == 3
    talk = Talk().open().say(0, b"first")
    talk.seqs[0] += 3  # a hole, and two copies that wait behind it
    talk.say(0, b"old")
    talk.seqs[0] -= 3
    talk.say(0, b"new")
    talk.seqs[0] -= 6
    overlapping = capture(talk.say(0, b"..."), name="overlapping")
    for policy, expected in (("first", b"first...old"), ("last", b"first...new")):
        assert run("extract", overlapping, "--overlap", policy, "-o", tmp_path / policy).status == 0
        assert [*files_in(tmp_path / policy).values()] == [expected]
    far = capture(Talk().open().say(0, b"x" * 2000, lost=True).say(0, b"far"), name="far")
    assert [flow["c2s"]["missing"] for flow in run("flows", "--json", far).json] == [2000]
    assert [flow["c2s"]["missing"] for flow in run("flows", "--json", far, "--max-gap", "1000").json] == [0]
    auto = run("flows", DATA / "http.pcap", "--verify-checksums", "auto")
    assert auto.out == run("flows", DATA / "http.pcap").out
    assert len(run("flows", "--verify-checksums", DATA / "http.pcap").lines) == 1


@pytest.mark.parametrize("value", ["0", "-3", "many"])
@pytest.mark.parametrize(
    ("option", "name", "command"),
    [
        ("--count", "-c/--count", ("http", "-i", "lo")),
        ("--threads", "--threads", ("extract", DATA / "http.pcap")),
        ("--max-open", "--max-open", ("extract", DATA / "http.pcap")),
    ],
)
def test_numbers_of_things_are_1_or_more(run: Run, option: str, name: str, command: tuple[str, ...], value: str) -> None:
    result = run(*command, f"{option}={value}")
    assert (result.status, result.out) == (2, "")
    assert_one_line(result.err)
    assert f"argument {name}: is 1 or more, not {value!r}" in result.err


@pytest.mark.parametrize("command", [("extract", "-o", "{folder}/out"), ("stats",)])
def test_there_are_only_so_many_threads(run: Run, tmp_path: Path, command: tuple[str, ...]) -> None:
    words = [part.format(folder=tmp_path) for part in command]
    error = f"tcpreasm {command[0]}: argument --threads: is 64 or less, not '65' (see tcpreasm {command[0]} --help)\n"
    assert run(*words, DATA / "http.pcap", "--threads", "65") == (2, "", error)
    assert not list(tmp_path.iterdir())
    assert run(*words, DATA / "http.pcap", "--threads", "64").status == 0


@pytest.mark.parametrize("command", [("extract", "-o"), ("http", "--bodies")])
def test_a_file_is_no_folder_for_files(run: Run, tmp_path: Path, command: tuple[str, ...]) -> None:
    (tmp_path / "file").write_bytes(b"kept")
    assert run(*command, tmp_path / "file", DATA / "http.pcap") == (2, "", f"tcpreasm: {tmp_path / 'file'} is no folder\n")
    assert (tmp_path / "file").read_bytes() == b"kept"


def test_an_error_without_a_file_is_told_without_its_number(start: Callable[..., subprocess.Popen[bytes]]) -> None:
    with open("/dev/full", "wb") as full:
        err = start("flows", DATA / "http.pcap", stdout=full).communicate(timeout=LIMIT)[1]
    assert err == b"tcpreasm: No space left on device\n"


def test_plot_takes_one_capture_and_says_so(run: Run) -> None:
    assert "several are read" in " ".join(run("flows", "--help").out.split())
    assert "several are read" not in " ".join(run("plot", "--help").out.split())


@pytest.mark.parametrize("command", [("flows",), ("flows", "--json"), ("http",), ("extract", "-o", "{folder}/out")])
def test_all_captures_are_there_before_the_first_is_read(run: Run, tmp_path: Path, command: tuple[str, ...]) -> None:
    names = {"missing": (tmp_path / "missing", "No such file or directory"), "folder": (tmp_path, "Is a directory")}
    for name, error in names.values():
        result = run(*(part.format(folder=tmp_path) for part in command), DATA / "http.pcap", name)
        assert result == (2, "", f"tcpreasm: {name}: {error}\n")
        assert not list(tmp_path.glob("out/*"))


@pytest.mark.parametrize("arguments", [("flows",), ("http",), ("extract", "-o", "{folder}/out")])
def test_a_cut_capture_is_used_as_far_as_it_goes(
    run: Run, tmp_path: Path, capture: Callable[..., Path], arguments: tuple[str, ...]
) -> None:
    talk = Talk().open().say(0, b"GET / HTTP/1.1\r\n\r\n").say(1, b"lost in the cut")
    path = capture(talk, cut=3)
    result = run(*(argument.format(folder=tmp_path) for argument in arguments), path)
    assert result.status == 0
    assert_one_line(result.err)
    assert str(path) in result.err
    assert "18" in result.out or "GET http://10.0.0.2/ (no response)" in result.out


def test_standard_input(start: Callable[..., subprocess.Popen[bytes]]) -> None:
    data = (DATA / "http.pcap").read_bytes()
    out, err = start("flows", "-").communicate(data, timeout=LIMIT)
    assert err == b""
    assert len(out.splitlines()) == 4


def test_a_broken_pipe_is_silent(start: Callable[..., subprocess.Popen[bytes]], capture: Callable[..., Path]) -> None:
    path = capture(*(Talk(client=("10.0.0.1", port)).open().close() for port in range(1000)))
    for arguments in (("flows",), ("flows", "--json")):
        read_end, write_end = os.pipe()
        os.close(read_end)
        process = start(*arguments, path, stdout=write_end)
        os.close(write_end)
        _, err = process.communicate(timeout=LIMIT)
        assert err == b""
        assert process.returncode == 141


@pytest.mark.parametrize("form", [(), ("--json",), ("--csv",)])
def test_interrupt_gives_what_was_read(start: Callable[..., subprocess.Popen[bytes]], form: tuple[str, ...]) -> None:
    process = start("flows", *form, "-")
    assert process.stdin is not None
    talk = Talk().open().say(0, b"hello")
    process.stdin.write(pcap(talk.records))
    process.stdin.flush()
    end = time.monotonic() + LIMIT
    while any(fcntl.ioctl(process.stdin, termios.FIONREAD, bytes(4))):  # bytes that it has not read yet
        assert time.monotonic() < end
        time.sleep(0.01)
    time.sleep(0.3)  # it waits for more; nothing tells from outside that it does
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=LIMIT)
    assert process.returncode == 130
    assert err == b""
    assert b"10.0.0.1" in out
    assert b"40000" in out


def test_captures_in_a_row_are_one(run: Run, tmp_path: Path) -> None:
    records = Talk().open().say(0, b"one").say(0, b"two").close().records
    for number, part in enumerate((records[:3], records[3:])):
        (tmp_path / f"{number}.pcap").write_bytes(pcap(part))
    result = run("flows", "--json", tmp_path / "0.pcap", tmp_path / "1.pcap")
    assert [flow["c2s"]["bytes"] for flow in result.json] == [6]


# flows


@pytest.mark.parametrize("file", sorted(TRUTH))
def test_flows_of_the_repository_captures(run: Run, file: str) -> None:
    result = run("flows", "--json", DATA / file)
    assert (result.status, result.err) == (0, "")
    got = sorted(
        (flow["client"], flow["server"], *(flow[side]["bytes"] + flow[side]["missing"] if flow[side] else 0 for side in ("c2s", "s2c")))
        for flow in result.json
    )
    assert got == sorted((c["client"], c["server"], c["c2s"]["len"], c["s2c"]["len"]) for c in TRUTH[file]["connections"])
    assert sum(flow[side]["gaps"] for flow in result.json for side in ("c2s", "s2c") if flow[side]) == sum(
        len(c[side].get("gaps", ())) for c in TRUTH[file]["connections"] for side in ("c2s", "s2c")
    )


def test_the_table_of_flows(run: Run, capture: Callable[..., Path]) -> None:
    talks = (
        Talk().open().say(0, b"abc").say(1, b"x" * 1000).close(),
        Talk(client=("10.0.0.1", 5), start_ns=1_700_000_001_000_000_005)
        .open()
        .say(0, b"abc")
        .say(0, b"lost", lost=True)
        .say(0, b"d")
        .close(1),
        Talk(client=("2001:db8::1", 6000), server=("2001:db8::2", 443), start_ns=1_700_000_002_000_000_000).say(0, b"late"),
    )
    result = run("flows", capture(*talks))
    assert (result.status, result.err) == (0, "")
    header, *rows = result.lines
    assert header.split() == ["#", "client", "server", "sent", "received", "gaps", "missing", "first", "last", "handshake", "state"]
    assert [row.split()[0] for row in rows] == ["1", "2", "3"]
    rows = [row.split(None, 1)[1] for row in rows]
    assert rows[0].split() == [
        *("10.0.0.1:40000", "10.0.0.2:80", "3", "1000", "0", "0"),
        *("2023-11-14T22:13:20.000000000Z", "2023-11-14T22:13:20.005000000Z", "2.000ms", "closed"),
    ]
    assert rows[1].split()[:6] == ["10.0.0.1:5", "10.0.0.2:80", "4", "0", "1", "4"]
    assert rows[1].split()[6] == "2023-11-14T22:13:21.000000005Z"
    assert rows[1].split()[8:] == ["2.000ms", "half-closed"]
    assert rows[2].split()[:3] == ["[2001:db8::1]:6000", "[2001:db8::2]:443", "4"]
    assert rows[2].split()[8:] == ["-", "open,", "no", "start,", "client", "guessed"]
    for name in ("server", "first", "last", "state"):  # the columns stand below each other
        at = header.index(name) - header.index("client")
        assert all(row[at - 1] == " " != row[at] for row in rows)


def test_the_states_of_flows(run: Run, capture: Callable[..., Path]) -> None:
    """Each with who closed it, and how."""
    refused = Talk(client=("10.0.0.1", 4), start_ns=START_NS + 10**9).send(0, b"", SYN)
    refused.seqs = [refused.seqs[0] + 1, 0]
    talks = [
        Talk(client=("10.0.0.1", 1)).send(0, b"", SYN).send(0, b"", SYN),
        Talk(client=("10.0.0.1", 2)).open().say(0, b"abc"),
        Talk(client=("10.0.0.1", 3)).open().say(0, b"abc").close(1),
        refused.send(1, b"", RST | ACK),
        Talk(client=("10.0.0.1", 5)).open().say(0, b"abc").send(1, b"", RST | ACK),
        Talk(client=("10.0.0.1", 6)).open().close(),
        Talk(client=("10.0.0.1", 7000)).say(1, b"answer").say(0, b"question"),
        Talk(client=("10.0.0.1", 8000)).say(0, b"", lost=True).send(1, b"", SYN | ACK),
    ]
    flows = {flow["client"][1]: flow for flow in run("flows", "--json", capture(*talks)).json}
    names = ("state", "closed_by", "closed_how", "guessed")
    assert {port: tuple(flow[name] for name in names) for port, flow in flows.items()} == {
        1: ("opening", None, None, False),
        2: ("open", None, None, False),
        3: ("half-closed", "server", "fin", False),
        4: ("refused", "server", "rst", False),
        5: ("reset", "server", "rst", False),
        6: ("closed", "client", "fin", False),
        7000: ("open", None, None, True),
        8000: ("open", None, None, False),
    }
    assert flows[4]["s2c"] is None
    states = {line.split()[1]: " ".join(line.split()[10:]) for line in run("flows", capture(*talks)).lines[1:]}
    assert states["10.0.0.1:4"] == "refused"
    assert states["10.0.0.1:7000"] == "open, no start, client guessed"
    told = {"opening": 1, "open": 3, "half-closed": 1, "closed": 1, "reset": 1, "refused": 1}
    assert run("stats", "--json", capture(*talks)).json[0]["conversations"] == told
    assert [*run("stats", "--json", capture(*talks)).json[0]["conversations"]] == [*told]


def test_a_hole_that_the_other_side_has_acknowledged_is_not_waited_for(run: Run, capture: Callable[..., Path]) -> None:
    talk = Talk().open().say(0, b"lost", lost=True).say(0, b"x").say(1, b"I have that")
    talk.now_ns += 2 * 10**9
    talk.say(1, b"and nothing else").say(0, b"y")
    (flow,) = run("flows", "--json", capture(talk)).json
    assert (flow["c2s"]["missing"], flow["c2s"]["bytes"]) == (4, 2)
    stats = [run("stats", "--json", *options, capture(talk)).json[0] for options in ((), ("--acked-hole-timeout", "60"))]
    assert [(one["holes_acked"], one["holes_ended"]) for one in stats] == [(1, 0), (0, 1)]


def test_a_narrow_terminal_gets_fewer_columns(start: Callable[..., subprocess.Popen[bytes]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)

    def shown(columns: int) -> tuple[list[str], str]:
        reading, writing = pty.openpty()
        fcntl.ioctl(writing, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
        process = start("flows", DATA / "http.pcap", stdout=writing)
        os.close(writing)
        data = b""
        with suppress(OSError):  # how a terminal says that nobody writes any more
            while part := os.read(reading, 65536):
                data += part
        os.close(reading)
        _, err = process.communicate(timeout=LIMIT)
        return data.decode().splitlines(), err.decode()

    whole, err = shown(200)
    assert err == ""
    assert whole[0].split() == ["#", "client", "server", "sent", "received", "gaps", "missing", "first", "last", "handshake", "state"]
    lines, err = shown(80)
    assert max(map(len, lines)) <= 80
    assert lines[0].split() == ["#", "client", "server", "sent", "received", "gaps", "handshake", "state"]
    assert lines[1].split() == ["1", "127.0.0.1:40001", "127.0.0.1:8080", "5453", "13432", "0", "0.064ms", "closed"]
    assert err == "tcpreasm: left out, for the terminal is too narrow: missing, first, last\n"
    lines, err = shown(20)
    assert lines[0].split() == ["#", "client", "server", "sent", "received", "state"]


def test_many_wrong_checksums_may_be_those_of_a_network_card(run: Run, capture: Callable[..., Path]) -> None:
    """It is said where `auto` was not asked for, and they are many."""
    hint = "tcpreasm: --verify-checksums auto takes what was captured before the network card filled in its checksum"
    assert run("flows", "--verify-checksums", DATA / "edge.pcap").err.splitlines() == [
        "tcpreasm: 204 of 205 frames were left out: 204 BAD_CHECKSUM",
        hint,
    ]
    assert hint not in run("flows", "--verify-checksums=auto", DATA / "edge.pcap").err
    assert hint not in run("flows", DATA / "edge.pcap").err


def test_flows_json(run: Run, capture: Callable[..., Path]) -> None:
    (flow,) = run("flows", "--json", capture(Talk().open().say(0, b"abc").close(0))).json
    assert flow == {
        "number": 1,
        "client": ["10.0.0.1", 40000],
        "server": ["10.0.0.2", 80],
        "tunnels": 0,
        "state": "half-closed",
        "first_seen": "2023-11-14T22:13:20.000000000Z",
        "last_seen": "2023-11-14T22:13:20.003000000Z",
        "first_seen_ns": 1_700_000_000_000_000_000,
        "last_seen_ns": 1_700_000_000_003_000_000,
        "c2s": {"bytes": 3, "gaps": 0, "missing": 0, "started": True, "ended": True},
        "s2c": {"bytes": 0, "gaps": 0, "missing": 0, "started": True, "ended": False},
        "guessed": False,
        "handshake_time_ns": 2_000_000,
        "closed_by": "client",
        "closed_how": "fin",
    }
    (flow,) = run("flows", "--json", capture(Talk().say(0, b"abc"))).json
    assert flow["s2c"] is None
    assert (flow["guessed"], flow["handshake_time_ns"], flow["closed_by"], flow["closed_how"]) == (True, None, None, None)
    (flow,) = run("flows", "--json", capture(Talk(start_ns=0).open())).json  # 0 is a time as any other
    assert (flow["first_seen"], flow["first_seen_ns"], flow["last_seen_ns"]) == ("1970-01-01T00:00:00.000000000Z", 0, 1_000_000)


@pytest.fixture
def gappy(capture: Callable[..., Path]) -> Path:
    """Two connections, one of which lost something in both directions."""
    first = Talk().open().say(0, b"abc").say(0, b"lost", lost=True).say(0, b"de").say(1, b"x", lost=True).say(1, b"yz").close()
    return capture(first, Talk(("2001:db8::1", 6000), ("2001:db8::2", 443), START_NS + 10**9).say(0, b"late"))


COLUMNS = (
    *("stream", "conversation", "src", "src_port", "dst", "dst_port", "from_client", "bytes", "missing", "gap_count"),
    *("first_seen_ns", "last_seen_ns", "started", "ended", "tunnels", "state", "guessed", "handshake_time_ns"),
)


def test_flows_csv(run: Run, gappy: Path) -> None:
    result = run("flows", "--csv", gappy)
    assert (result.status, result.err) == (0, "")
    assert result.lines == [
        ",".join(COLUMNS),
        "0,0,10.0.0.1,40000,10.0.0.2,80,true,5,4,1,1700000000000000000,1700000000003000000,true,true,0,closed,false,2000000",
        "1,0,10.0.0.2,80,10.0.0.1,40000,false,2,1,1,1700000000001000000,1700000000004000000,true,true,0,closed,false,2000000",
        "2,1,2001:db8::1,6000,2001:db8::2,443,true,4,0,0,1700000001000000000,1700000001000000000,false,false,0,open,true,",
    ]


def test_gaps(run: Run, gappy: Path) -> None:
    result = run("flows", "--gaps", gappy)
    assert (result.status, result.err) == (0, "")
    assert result.out == (
        "stream  src       src_port  dst       dst_port  offset  length  seen\n"
        "     0  10.0.0.1     40000  10.0.0.2        80       3       4  2023-11-14T22:13:20.003000000Z\n"
        "     1  10.0.0.2        80  10.0.0.1     40000       0       1  2023-11-14T22:13:20.004000000Z\n"
    )
    assert run("flows", "--gaps", "--csv", gappy).lines == [
        "stream,src,src_port,dst,dst_port,offset,length,seen_ns",
        "0,10.0.0.1,40000,10.0.0.2,80,3,4,1700000000003000000",
        "1,10.0.0.2,80,10.0.0.1,40000,0,1,1700000000004000000",
    ]
    of_first = {"stream": 0, "src": "10.0.0.1", "src_port": 40000, "dst": "10.0.0.2", "dst_port": 80}
    first, second = run("flows", "--gaps", "--json", gappy).json
    assert first == of_first | {"offset": 3, "length": 4, "seen_ns": 1700000000003000000}
    assert (second["stream"], second["offset"], second["length"]) == (1, 0, 1)


def test_no_gaps(run: Run, capture: Callable[..., Path]) -> None:
    path = capture(Talk().open().say(0, b"abc").close())
    assert run("flows", "--gaps", path).lines == ["stream  src  src_port  dst  dst_port  offset  length  seen"]
    assert run("flows", "--gaps", "--json", path).lines == []


@pytest.mark.parametrize("gaps", [(), ("--gaps",)])
def test_parquet(run: Run, tmp_path: Path, gappy: Path, gaps: tuple[str, ...]) -> None:
    """The same rows as in CSV."""
    pyarrow = pytest.importorskip("pyarrow", reason="NO PARQUET TRIED: pip install '.[dataframes]'")
    from pyarrow import csv, parquet

    assert run("flows", *gaps, "--parquet", tmp_path / "x.parquet", gappy) == (0, "", "")
    written = parquet.read_table(tmp_path / "x.parquet")
    times = ["timestamp[ns, tz=UTC]"] * (1 if gaps else 2) + ["duration[ns]"] * (not gaps)
    assert [str(field.type) for field in written.schema if field.name.endswith("_ns")] == times
    (tmp_path / "x.csv").write_text(run("flows", *gaps, "--csv", gappy).out)
    read = csv.read_csv(tmp_path / "x.csv").cast(
        pyarrow.schema([(field.name, "int64" if field.name.endswith("_ns") else field.type) for field in written.schema])
    )
    assert written.cast(pyarrow.schema([(field.name, read.schema.field(field.name).type) for field in written.schema])).equals(read)
    result = run("flows", "--parquet", tmp_path / "no" / "x", gappy)
    assert result == (2, "", f"tcpreasm: {tmp_path / 'no' / 'x'}: No such file or directory\n")


@pytest.mark.parametrize("missing", ["nanoarrow", "pyarrow"])
def test_parquet_without_its_extra(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    result = run("flows", "--parquet", tmp_path / "x.parquet", tmp_path / "no capture is looked for")
    assert result.status == 2
    assert_one_line(result.err)
    assert "--parquet needs pyarrow and nanoarrow: pip install 'tcpreasm[parquet]'" in result.err


def test_the_same_endpoints_twice_are_two_flows(run: Run, capture: Callable[..., Path]) -> None:
    first = Talk().open().say(0, b"one").close()
    second = Talk(start_ns=first.now_ns + 10**9)
    second.seqs = [900_000_000, 700_000_000]
    second.open().say(0, b"second").say(1, b"answer").close()
    path = capture(first, second)
    assert [(flow["c2s"]["bytes"], flow["s2c"]["bytes"]) for flow in run("flows", "--json", path).json] == [(3, 0), (6, 6)]
    assert [line.split()[3:5] for line in run("flows", path).lines[1:]] == [["3", "0"], ["6", "6"]]


def in_vxlan(talk: Talk) -> Talk:
    """The same, seen in a tunnel."""
    for at, (seen_ns, frame) in enumerate(talk.records):
        udp = struct.pack("!HHHHII", 50000, 4789, 16 + len(frame), 0, 0x08000000, 77 << 8) + frame
        ip = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 20 + len(udp), 0, 0, 64, 17, 0, b"\xac\x10\0\1", b"\xac\x10\0\2")
        talk.records[at] = seen_ns, bytes(12) + b"\x08\0" + ip + udp
    return talk


def inside_and_outside() -> tuple[Talk, Talk]:
    """Equal addresses and ports, packet by packet in turn; the one outside begins."""
    outside = Talk().open().say(0, b"question").say(1, b"answer").close()
    inside = in_vxlan(Talk(start_ns=1_700_000_000_000_500_000).open().say(0, b"forged").say(1, b"lie").close())
    return outside, inside


def test_a_tunnel_is_another_flow(run: Run, capture: Callable[..., Path]) -> None:
    """Directions are paired within it."""
    flows = run("flows", "--json", capture(*inside_and_outside())).json
    assert [(flow["tunnels"], flow["c2s"]["bytes"], flow["s2c"]["bytes"], flow["state"]) for flow in flows] == [
        (0, 8, 6, "closed"),
        (1, 6, 3, "closed"),
    ]
    assert {(*flow["client"], *flow["server"]) for flow in flows} == {("10.0.0.1", 40000, "10.0.0.2", 80)}
    rows = [line.split()[1:5] for line in run("flows", capture(*inside_and_outside())).lines[1:]]
    assert rows == [["10.0.0.1:40000", "10.0.0.2:80", "8", "6"], ["10.0.0.1:40000", "10.0.0.2:80", "6", "3"]]


def test_no_flows(run: Run, capture: Callable[..., Path]) -> None:
    assert len(run("flows", capture()).lines) == 1
    assert run("flows", "--json", capture()).out == ""


# extract


def files_in(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_extract(run: Run, tmp_path: Path, capture: Callable[..., Path]) -> None:
    talk = Talk(("10.0.0.1", 9999), ("10.0.0.2", 36559)).open().say(0, b"request").say(1, b"answer").close()
    v6 = Talk(("2001:db8::1", 6), ("2001:db8::2", 443)).open().say(0, b"v6").close()
    result = run("extract", capture(talk, v6), "-o", tmp_path / "new" / "out")
    assert (result.status, result.err) == (0, "")
    assert files_in(tmp_path / "new" / "out") == {
        "010.000.000.001.09999-010.000.000.002.36559": b"request",
        "010.000.000.002.36559-010.000.000.001.09999": b"answer",
        "2001.0db8.0000.0000.0000.0000.0000.0001.00006-2001.0db8.0000.0000.0000.0000.0000.0002.00443": b"v6",
    }
    assert "010.000.000.001.09999-010.000.000.002.36559  7 bytes" in result.lines
    assert len(result.lines) == 3


def test_extract_never_overwrites_without_force(run: Run, tmp_path: Path, capture: Callable[..., Path]) -> None:
    path = capture(Talk().open().say(0, b"new").close())
    there = tmp_path / "out" / "010.000.000.001.40000-010.000.000.002.00080"
    there.parent.mkdir()
    there.write_bytes(b"precious and long")
    result = run("extract", path, "-o", there.parent)
    assert result.status == 2
    assert_one_line(result.err)
    assert str(there) in result.err
    assert "--force" in result.err
    assert there.read_bytes() == b"precious and long"
    assert run("extract", path, "-o", there.parent, "--force", "--quiet") == (0, "", "")
    assert there.read_bytes() == b"new"


@pytest.mark.parametrize("threads", ["1", "2"])
def test_extract_ends_at_a_file_that_exists(run: Run, tmp_path: Path, capture: Callable[..., Path], threads: str) -> None:
    """At once, and what is listed was made."""
    talks = [
        Talk(client=("10.0.0.1", port), start_ns=1_700_000_000_000_000_000 + port * 10**8).open().say(0, b"%d" % port).close()
        for port in range(1, 400)
    ]
    there = tmp_path / "out" / "010.000.000.001.00050-010.000.000.002.00080"
    there.parent.mkdir()
    there.write_bytes(b"precious")
    result = run("extract", capture(*talks), "-o", there.parent, "--threads", threads)
    assert result.status == 2
    assert str(there) in result.err
    made = files_in(there.parent)
    assert made.pop(there.name) == b"precious"
    assert {line.split()[0] for line in result.lines} <= set(made)
    assert all(data == b"%d" % int(name[16:21]) for name, data in made.items())
    assert threads != "1" or len(made) == 49


def test_extract_numbers_later_streams_of_the_same_endpoints(run: Run, tmp_path: Path, capture: Callable[..., Path]) -> None:
    talks = []
    start = 1_700_000_000_000_000_000
    for number, text in enumerate((b"first", b"", b"second", b"third")):
        talk = Talk(start_ns=start + number * 10**9)
        talk.seqs = [1000 + number * 800_000_000, 5000 + number * 700_000_000]
        talks.append(talk.open().say(0, text).close())
    assert run("extract", capture(*talks), "-o", tmp_path / "out").status == 0
    name = "010.000.000.001.40000-010.000.000.002.00080"
    assert files_in(tmp_path / "out") == {name: b"first", f"{name}c1": b"second", f"{name}c2": b"third"}


@pytest.mark.parametrize("threads", ["1", "2"])
def test_extract_keeps_what_came_in_a_tunnel_apart(run: Run, tmp_path: Path, capture: Callable[..., Path], threads: str) -> None:
    assert run("extract", capture(*inside_and_outside()), "-o", tmp_path / "out", "--threads", threads).status == 0
    to_server, to_client = ("010.000.000.001.40000-010.000.000.002.00080", "010.000.000.002.00080-010.000.000.001.40000")
    assert files_in(tmp_path / "out") == {
        to_server: b"question",
        f"{to_server}c1": b"forged",
        to_client: b"answer",
        f"{to_client}c1": b"lie",
    }


def test_extract_and_gaps(run: Run, tmp_path: Path, capture: Callable[..., Path]) -> None:
    talk = Talk().open().say(0, b"abc").say(0, b"12", lost=True).say(0, b"de")
    many = Talk(client=("10.0.0.1", 7)).say(0, b"x")
    for _ in range(12):
        many.say(0, b"?", lost=True).say(0, b"x")
    path = capture(talk, many)
    joined = run("extract", path, "-o", tmp_path / "joined")
    name, other = "010.000.000.001.40000-010.000.000.002.00080", "010.000.000.001.00007-010.000.000.002.00080"
    assert files_in(tmp_path / "joined") == {name: b"abcde", other: b"x" * 13}
    assert f"{name}  5 bytes, 2 missing: 3+2" in joined.lines
    assert f"{other}  13 bytes, 12 missing: 1+1 3+1 5+1 7+1 9+1 11+1 13+1 15+1 and 4 more gaps, start not captured" in joined.lines
    filled = run("extract", path, "-o", tmp_path / "filled", "--fill-gaps")
    assert files_in(tmp_path / "filled") == {name: b"abc\0\0de", other: b"x\0" * 12 + b"x"}
    assert filled.lines == joined.lines


def test_extract_in_several_threads(run: Run, tmp_path: Path, capture: Callable[..., Path]) -> None:
    talks = [Talk(client=("10.0.0.1", port)).open().say(0, b"%d" % port).say(1, b"to %d" % port).close() for port in range(1, 200)]
    path = capture(*talks)
    one, two = (run("extract", path, "-o", tmp_path / threads, "--threads", threads) for threads in ("1", "2"))
    assert (one.status, two.status) == (0, 0)
    assert sorted(one.lines) == sorted(two.lines)
    assert files_in(tmp_path / "1") == files_in(tmp_path / "2")
    assert len(one.lines) == 398


def test_extract_with_few_open_files(run: Run, tmp_path: Path, capture: Callable[..., Path]) -> None:
    talks = [Talk(client=("10.0.0.1", port)).open() for port in range(20)]
    for _ in range(5):
        for port, talk in enumerate(talks):
            talk.say(0, b"%d " % port)
    run("extract", capture(*talks), "-o", tmp_path / "out", "--max-open", "2")
    for port in range(20):
        assert (tmp_path / "out" / f"010.000.000.001.{port:05}-010.000.000.002.00080").read_bytes() == b"%d " % port * 5


@pytest.mark.parametrize("file", sorted(TRUTH))
def test_extract_of_the_repository_captures(run: Run, tmp_path: Path, file: str) -> None:
    assert run("extract", "-q", DATA / file, "-o", tmp_path / "out") == (0, "", "")
    got = sorted(sha256(data) for data in files_in(tmp_path / "out").values())
    assert got == sorted(c[side]["sha256"] for c in TRUTH[file]["connections"] for side in ("c2s", "s2c") if c[side]["len"])


def test_extract_of_the_corpus(
    run: Run, tcpreasm: ModuleType, submodule: Callable[[ModuleType, str], ModuleType], tmp_path: Path, corpus: Path
) -> None:
    file_name = submodule(tcpreasm, "cli.extract").file_name
    flow = submodule(tcpreasm, "flow")
    for capture, expected in corpus_cases(corpus):
        out = tmp_path / capture.name
        assert run("extract", "-q", capture, "-o", out) == (0, "", ""), capture.name
        got = files_in(out)
        for (src, dst), truths in expected.items():
            key = flow.ConnectionKey(flow.Flow(src[0], dst[0]), flow.Flow(src[1], dst[1]))
            digests = []
            while (name := file_name(key, len(digests))) in got:
                digests.append(sha256(got[name]))
            assert sorted(digests) == sorted(truth.sha256 for truth in truths if truth.length), (capture.name, src, dst)


# http


@pytest.mark.parametrize("file", ["http.pcap", "http6.pcapng"])
def test_http_of_the_repository_captures(run: Run, file: str) -> None:
    result = run("http", "--messages", "--json", DATA / file)
    assert (result.status, result.err) == (0, "")
    for connection in TRUTH[file]["connections"]:
        client, server, exchanges = connection["client"], connection["server"], connection["exchanges"]
        requests = [m for m in result.json if m["src"] == client and m["dst"] == server]
        responses = [m for m in result.json if m["src"] == server and m["dst"] == client]
        assert [(m["method"], m["target"], m["body_bytes"]) for m in requests] == [
            (e["method"], e["path"], e["request_body"]) for e in exchanges
        ]
        assert [(m["status"], m["body_bytes"]) for m in responses] == [(e["status"], e["response_body"]) for e in exchanges]
        assert all(m["complete"] and not m["missing"] for m in requests + responses)
    assert len(result.json) == 2 * sum(len(c["exchanges"]) for c in TRUTH[file]["connections"])
    paired = run("http", "--json", DATA / file)
    assert (paired.status, paired.err) == (0, "")
    for connection in TRUTH[file]["connections"]:
        own = [e for e in paired.json if e["client"] == connection["client"]]
        assert [(e["request"]["target"], e["method"], e["status"], e["guessed"]) for e in own] == [
            (told["path"], told["method"], told["status"], False) for told in connection["exchanges"]
        ]
        assert [(e["request"]["body_bytes"], e["response"]["body_bytes"]) for e in own] == [
            (told["request_body"], told["response_body"]) for told in connection["exchanges"]
        ]


def test_http_lines(run: Run, capture: Callable[..., Path]) -> None:
    talk = Talk().open()
    talk.say(0, b"POST /a%20b HTTP/1.1\r\nHost: example.org\r\nContent-Length: 5\r\n\r\nhello")
    talk.say(1, b"HTTP/1.0 200 Fine\r\nContent-Type: text/plain\r\n\r\nto the end").close()
    assert run("http", "--messages", capture(talk)).lines == [
        "2023-11-14T22:13:20.002000000Z 10.0.0.1:40000->10.0.0.2:80 POST /a%20b HTTP/1.1 example.org 5 bytes",
        "2023-11-14T22:13:20.003000000Z 10.0.0.2:80->10.0.0.1:40000 HTTP/1.0 200 Fine text/plain 10 bytes",
    ]
    assert run("http", capture(talk)).out == (
        "2023-11-14T22:13:20.002000000Z 10.0.0.1:40000->10.0.0.2:80 POST http://example.org/a%20b 200 text/plain,"
        " 5 bytes sent, 10 bytes received, 1.000 ms\n"
    )


def test_http_and_gaps(run: Run, capture: Callable[..., Path]) -> None:
    talk = Talk().open().say(0, b"GET /1 HTTP/1.1\r\n\r\nGET /2 HTTP/1.1\r\n\r\nGET /3 HTTP/1.1\r\n\r\n")
    talk.say(1, b"HTTP/1.1 200 OK\r\nContent-Length: 30\r\n\r\n0123456789").say(1, b"0123456789", lost=True).say(1, b"0123456789")
    talk.say(1, b"HTTP/1.1 200 OK\r\nContent-", lost=True).say(1, b"Length: 3\r\n\r\nabc")
    talk.say(1, b"HTTP/1.1 201 OK\r\nContent-Length: 30\r\n\r\n0123456789")
    lines = run("http", "--messages", capture(talk)).lines
    assert len(lines) == 6
    assert lines[3].endswith("HTTP/1.1 200 OK 20 bytes, 10 missing")
    assert lines[4].endswith("HTTP/1.1 201 OK 10 bytes, incomplete")
    assert lines[5].endswith("16 bytes belong to no message")
    for options in ((), ("--messages",)):
        *_, skipped = run("http", "--json", *options, capture(talk)).json
        assert (skipped["kind"], skipped["bytes"]) == ("skipped", 16)


def test_http_does_not_print_what_a_terminal_would_obey(run: Run, capture: Callable[..., Path]) -> None:
    talk = Talk().open().say(0, b"GET /x HTTP/1.1\r\nHost: a\xc3\xa9\xff\r\n\r\n").say(1, b"HTTP/1.1 200 \xe2\x80\xae\xff\r\n\r\n").close()
    for options in ((), ("--messages",)):
        out = run("http", *options, capture(talk)).out
        assert out.isascii()
        assert all(character.isprintable() or character == "\n" for character in out)


@pytest.mark.parametrize("arguments", [(), ("--json",), ("--messages",)])
def test_http_says_so_where_there_are_other_protocols_only(run: Run, capture: Callable[..., Path], arguments: tuple[str, ...]) -> None:
    talk = Talk().open().say(0, b"SSH-2.0-x\r\n").say(1, bytes(range(256)) * 200).close()
    assert run("http", *arguments, capture(talk)) == (0, "", "tcpreasm: no HTTP/1 message was found\n")


def test_http_without_httptools(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "httptools", None)
    result = run("http", DATA / "http.pcap")
    assert result.status == 2
    assert_one_line(result.err)
    assert "tcpreasm[http]" in result.err


class _Answer(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        body = b"x" * 100_000
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments: object) -> None:
        pass


@contextmanager
def http_server() -> Iterator[int]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Answer)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()
        thread.join(LIMIT)


def may_capture() -> bool:
    """This machine lets this user capture: the raw socket that libpcap needs can be made."""
    try:
        socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0).close()
    except (AttributeError, OSError) as error:
        if isinstance(error, OSError) and error.errno not in (errno.EPERM, errno.EACCES):
            raise
        return False
    return True


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_http_live(start: Callable[..., subprocess.Popen[bytes]], number: signal.Signals) -> None:
    if not may_capture():
        pytest.skip("THIS MACHINE FORBIDS CAPTURING: `tcpreasm http -i` was not tried")
    with http_server() as port:
        process = start("http", "--json", "-i", "lo", "-f", f"tcp port {port}")
        assert process.stderr is not None
        assert process.stdout is not None
        watchdog = threading.Timer(LIMIT, process.kill)
        watchdog.start()
        try:
            assert b"capturing on lo" in process.stderr.readline()
            client = HTTPConnection("127.0.0.1", port, timeout=LIMIT)
            for path in ("/one", "/two"):
                client.request("GET", path)
                assert len(client.getresponse().read()) == 100_000
            lines = [json.loads(process.stdout.readline()) for _ in range(2)]  # they come while it runs
            process.send_signal(number)
            rest, err = process.communicate(timeout=LIMIT)
            client.close()
        finally:
            watchdog.cancel()
            process.kill()
    assert process.returncode == 0
    assert (rest, err) == (b"", b"")
    assert [(line["url"], line["status"], line["response"]["body_bytes"]) for line in lines] == [
        (f"http://127.0.0.1:{port}{path}", 200, 100_000) for path in ("/one", "/two")
    ]
    assert {line["response"]["sha256"] for line in lines} == {sha256(b"x" * 100_000)}


# The messages of one direction.


@pytest.fixture
def messages(tcpreasm: ModuleType, submodule: Callable[[ModuleType, str], ModuleType]) -> ModuleType:
    return submodule(tcpreasm, "cli.messages")


Told = tuple[object, int, int, bool]


class Heard:
    """Who listens to a parser and hands on what it is told."""

    def __init__(self, side: Any) -> None:
        self.side = side
        self.told: list[Told] = []

    @property
    def tunnel(self) -> bool:
        return bool(self.side.tunnel)

    @tunnel.setter
    def tunnel(self, tunnel: bool) -> None:
        self.side.tunnel = tunnel

    def begun(self, message: Any) -> Any:
        return self.side.begun(message)

    def done(self, message: Any) -> None:
        self.told.append((message.status or message.target, message.body_bytes, message.missing, message.complete))
        self.side.done(message)

    def lost(self) -> None:
        self.side.lost()

    def rest(self, seen_ns: int) -> None:
        self.side.rest(seen_ns)


class Ignored:
    """A watcher of a conversation whose exchanges are of no interest."""

    def begun(self, message: Any) -> None: ...

    def message(self, key: Any, message: Any) -> None: ...

    def exchange(self, client: Any, exchange: Any) -> None: ...


@pytest.fixture
def sides(tcpreasm: ModuleType, submodule: Callable[[ModuleType, str], ModuleType]) -> Callable[[], tuple[Any, Any]]:
    """Makes both sides of a conversation."""

    def make() -> tuple[Any, Any]:
        dialogue = submodule(tcpreasm, "cli.exchanges").Dialogue(Ignored())
        key = tcpreasm.ConnectionKey(tcpreasm.Flow("10.0.0.1", "10.0.0.2"), tcpreasm.Flow(40000, 80))
        return dialogue.half(key), dialogue.half(key.reverse())

    return make


def parsed(messages: ModuleType, side: Any, *parts: bytes | int, size: int = 1 << 20) -> tuple[list[Told], int]:
    """Feeds bytes, `size` at a time, and gaps (ints). Gives (target or status, body, missing, complete) of each message, and the bytes
    skipped."""
    heard = Heard(side)
    parser = messages.MessageParser(heard)
    for part in parts:
        if isinstance(part, int):
            parser.lost(part)
        else:
            for at in range(0, len(part), size):
                parser.feed(part[at : at + size], 0)
    parser.finish()
    return heard.told, parser.skipped


CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nwiki\r\n5;x=y\r\npedia\r\n0\r\nTrailer: x\r\n\r\n"
SIZED = b"HTTP/1.1 404 No\r\nContent-Length: 3\r\n\r\nabc"
CASES: list[tuple[str, tuple[bytes | int, ...], list[Told], int]] = [
    (
        "requests",
        (b"GET /1 HTTP/1.1\r\n\r\nPOST /2 HTTP/1.1\r\nContent-Length: 2\r\n\r\nab",),
        [(b"/1", 0, 0, True), (b"/2", 2, 0, True)],
        0,
    ),
    ("chunked", (CHUNKED, SIZED), [(200, 9, 0, True), (404, 3, 0, True)], 0),
    ("until close", (b"HTTP/1.1 200 OK\r\n\r\n", b"abc"), [(200, 3, 0, True)], 0),
    (
        "no body",
        (b"HTTP/1.1 204 No\r\n\r\nHTTP/1.1 304 No\r\nContent-Length: 9\r\n\r\n", SIZED),
        [(204, 0, 0, True), (304, 0, 0, True), (404, 3, 0, True)],
        0,
    ),
    ("continue", (b"HTTP/1.1 100 Continue\r\n\r\n", SIZED), [(100, 0, 0, True), (404, 3, 0, True)], 0),
    ("empty lines between", (b"\r\n", SIZED, b"\r\n\r\n", SIZED), [(404, 3, 0, True), (404, 3, 0, True)], 0),
    ("cut in the body", (SIZED[:-1],), [(404, 2, 0, False)], 0),
    ("cut in the head", (SIZED[:20],), [], 20),
    ("gap in the head", (SIZED[:20], 9, b"4: 3\r\n\r\nabc", SIZED), [(404, 0, 0, False), (404, 3, 0, True)], 11),
    ("gap in the first line", (SIZED[:13], 9, b"4: 3\r\n\r\nabc", SIZED), [(404, 3, 0, True)], 24),
    ("gap at the end of the head", (SIZED[:33], 9, SIZED), [(404, 0, 0, False), (404, 3, 0, True)], 0),
    ("gap in the head of a request", (b"POST /1 HTTP/1.1\r\nContent-Length: 5\r\nHost", 9), [(b"/1", 0, 0, False)], 0),
    ("cut in a chunk", (CHUNKED[:50],), [(200, 0, 0, False)], 0),
    ("middle of a body first", (b"\0junk\nand more\n", SIZED), [(404, 3, 0, True)], 15),
    ("no HTTP", (b"\x16\x03\x01" * 50_000,), [], 150_000),
    ("gap in a body", (SIZED[:-2], 2, SIZED), [(404, 1, 2, True), (404, 3, 0, True)], 0),
    ("gap in a chunk", (CHUNKED[:51], 2, CHUNKED[53:], SIZED), [(200, 7, 2, True), (404, 3, 0, True)], 0),
    ("gap between chunks", (CHUNKED[:54], 2, CHUNKED[56:], SIZED), [(200, 9, 0, True), (404, 3, 0, True)], 0),
    ("gap in a chunk's size", (CHUNKED[:47], 2, CHUNKED[49:], SIZED), [(200, 0, 0, False), (404, 3, 0, True)], 38),
    ("request behind a body", (b"body of anotherGET /1 HTTP/1.1\r\n\r\n",), [(b"/1", 0, 0, True)], 15),
    ("rare method", (b"junk\nPROPFIND /1 HTTP/1.1\r\n\r\n",), [(b"/1", 0, 0, True)], 5),
    ("words about HTTP", (b"we speak HTTP/1.1 here, HTTP/1.1\r\n and HTTP/1.1 everywhere\r\n", SIZED), [(404, 3, 0, True)], 60),
    ("gap over a body's end", (SIZED[:-2], 9, b"rest", SIZED), [(404, 1, 2, False), (404, 3, 0, True)], 4),
    ("gap between", (SIZED, 9, SIZED), [(404, 3, 0, True), (404, 3, 0, True)], 0),
    ("gap of unknown length", (-1, b"tail\r\n", SIZED), [(404, 3, 0, True)], 6),
    ("gap until close", (b"HTTP/1.1 200 OK\r\n\r\n", 5, b"abc"), [(200, 3, 5, True)], 0),
    (
        "wrong chunk size",
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", SIZED),
        [(200, 0, 0, False), (404, 3, 0, True)],
        0,
    ),
    ("both lengths", (b"POST / HTTP/1.1\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n",), [], 66),
]


@pytest.mark.parametrize("size", [1, 3, 1 << 20])
@pytest.mark.parametrize(("parts", "told", "skipped"), [pytest.param(*case[1:], id=case[0]) for case in CASES])
def test_messages(
    messages: ModuleType, sides: Callable[[], tuple[Any, Any]], parts: tuple[bytes | int, ...], told: list[Told], skipped: int, size: int
) -> None:
    assert parsed(messages, sides()[0], *parts, size=size) == (told, skipped)


def test_the_answer_to_head_has_no_body(messages: ModuleType, sides: Callable[[], tuple[Any, Any]]) -> None:
    client, server = sides()
    parsed(messages, client, b"GET /1 HTTP/1.1\r\n\r\nHEAD /2 HTTP/1.1\r\n\r\nGET /3 HTTP/1.1\r\n\r\n")
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n"
    told, _ = parsed(messages, server, SIZED, b"HTTP/1.1 102 Wait\r\n\r\n", head, SIZED)
    assert told == [(404, 3, 0, True), (102, 0, 0, True), (200, 0, 0, True), (404, 3, 0, True)]


def test_a_tunnel_is_not_looked_into(messages: ModuleType, sides: Callable[[], tuple[Any, Any]]) -> None:
    for request, answer in (
        (b"CONNECT a:443 HTTP/1.1\r\nHost: a\r\n\r\n", b"HTTP/1.1 200 OK\r\n\r\n"),
        (
            b"GET /ws HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
            b"HTTP/1.1 101 Go\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
        ),
    ):
        client, server = sides()
        assert len(parsed(messages, client, request)[0]) == 1
        assert len(parsed(messages, server, answer + SIZED, SIZED)[0]) == 1
        assert parsed(messages, client, b"GET / HTTP/1.1\r\n\r\n") == ([], 0)


def test_an_upgrade_that_is_refused_changes_nothing(messages: ModuleType, sides: Callable[[], tuple[Any, Any]]) -> None:
    client, server = sides()
    request = b"GET /1 HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n"
    assert len(parsed(messages, client, request + b"GET /2 HTTP/1.1\r\n\r\n")[0]) == 2
    assert len(parsed(messages, server, SIZED + SIZED)[0]) == 2


def test_endless_heads_and_lines_end(messages: ModuleType, sides: Callable[[], tuple[Any, Any]]) -> None:
    flood = io.BytesIO(b"x" * 300_000).read()
    told, skipped = parsed(messages, sides()[1], b"HTTP/1.1 200 OK\r\nA: ", flood, b"\r\n", SIZED)
    assert told == [(404, 3, 0, True)]
    assert skipped > 300_000
    told, _ = parsed(messages, sides()[1], CHUNKED[:47], flood, b"\r\n", SIZED, size=1000)
    assert told == [(200, 0, 0, False), (404, 3, 0, True)]
