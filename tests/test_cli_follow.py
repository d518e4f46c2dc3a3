"""`tcpreasm follow` and `tcpreasm stats`."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from command import LIMIT, Run
from conftest import DATA
from traffic import ACK, RST, SYN, Talk, pcap, sha256

Capture = Callable[..., Path]
Start = Callable[..., "subprocess.Popen[bytes]"]
TRUTH: dict[str, Any] = json.loads((DATA / "truth.json").read_text())


def test_both_sides_in_the_order_of_the_capture(run: Run, capture: Capture) -> None:
    talk = Talk().open().say(0, b"HELO a\r\n").say(1, b"250 ").say(1, b"hello\r\n\tfriend\r\n").say(0, b"QUIT").close()
    assert run("follow", capture(talk), "1") == (
        0,
        "connection 1: > 10.0.0.1:40000  < 10.0.0.2:80\n> HELO a\n< 250 hello\n< \tfriend\n> QUIT\n",
        "",
    )


def test_what_waits_for_a_gap_stands_where_it_was_captured(run: Run, capture: Capture) -> None:
    """It comes to the stream two minutes of capture time later, or at the end."""
    talk = Talk().open().say(0, b"one\n").say(1, b"lost\n", lost=True).say(1, b"two\n").say(0, b"three\n").say(1, b"four\n")
    talk.say(0, b"five\n").close()
    lines = run("follow", capture(talk), "1").lines
    assert lines[1:] == ["> one", "< [5 bytes missing]", "< two", "> three", "< four", "> five"]
    for option, sign in (("--client", ">"), ("--server", "<")):
        assert run("follow", capture(talk), "1", option).lines[1:] == [line for line in lines[1:] if line[0] == sign]


def test_a_start_that_was_not_captured(run: Run, capture: Capture) -> None:
    assert run("follow", capture(Talk().say(0, b"late")), "1").lines[1:] == ["> [start not captured]", "> late"]
    assert run("follow", capture(Talk().say(1, b"late")), "1").lines == [
        "connection 1: > 10.0.0.1:40000  < 10.0.0.2:80  (client guessed)",
        "< [start not captured]",
        "< late",
    ]


def test_a_connection_that_says_nothing(run: Run, capture: Capture) -> None:
    """How it ended tells why."""
    refused = Talk().send(0, b"", SYN)
    refused.seqs = [refused.seqs[0] + 1, 0]
    path = capture(refused.send(1, b"", RST | ACK))
    head = "connection 1: > 10.0.0.1:40000  < 10.0.0.2:80"
    assert run("follow", path, "1").lines == [head, "[no bytes: refused]"]
    assert run("follow", path, "1", "--format", "hex").lines == [head, "[no bytes: refused]"]
    talk = capture(Talk().open().say(0, b"anybody?").close())
    assert run("follow", talk, "1", "--client").lines == [head, "> anybody?"]
    assert run("follow", talk, "1", "--server").lines == [head, "[no bytes: closed]"]


def test_the_number_is_that_of_flows(run: Run, capture: Capture) -> None:
    path = DATA / "edge.pcap"
    for flow in run("flows", "--json", path).json:
        first, *_ = run("follow", path, flow["number"]).lines
        (client, client_port), (server, server_port) = flow["client"], flow["server"]
        assert first == f"connection {flow['number']}: > {client}:{client_port}  < {server}:{server_port}"
    table = run("flows", path).lines[1:]
    assert [row.split()[0] for row in table] == [str(number) for number in range(1, len(table) + 1)]
    assert {row.split()[0]: row.split()[1] for row in table} == {
        str(flow["number"]): f"{flow['client'][0]}:{flow['client'][1]}" for flow in run("flows", "--json", path).json
    }
    beyond = run("follow", path, len(table) + 1)
    assert beyond[:2] == (2, "")
    assert beyond.err == f"tcpreasm: there is no conversation {len(table) + 1}: {len(table)} in all (tcpreasm flows lists them)\n"


def test_the_same_endpoints_again_are_another_connection(run: Run) -> None:
    flows = {flow["number"]: flow for flow in run("flows", "--json", DATA / "edge.pcap").json}
    again = [number for number, flow in flows.items() if flow["client"] == ["127.0.0.1", 41007]]
    assert len(again) == 2
    texts = [run("follow", DATA / "edge.pcap", number, "--format", "hex", "--client").lines for number in again]
    assert len(texts[0]) < len(texts[1])
    assert [int(text[-1].split()[1], 16) // 16 for text in texts] == [500 // 16, 600 // 16]


def test_hex(run: Run, capture: Capture) -> None:
    talk = Talk().open().say(0, bytes(range(30, 50))).say(0, b"lost", lost=True).say(0, b"\n\t|").say(1, b"\xff")
    assert run("follow", capture(talk.close()), "1", "--format", "hex").lines[1:] == [
        "> 00000000  1e 1f 20 21 22 23 24 25  26 27 28 29 2a 2b 2c 2d  |.. !\"#$%&'()*+,-|",
        "> 00000010  2e 2f 30 31                                       |./01|",
        "> [4 bytes missing]",
        "> 00000018  0a 09 7c                                          |..||",
        "< 00000000  ff                                                |.|",
    ]


@pytest.mark.parametrize("file", ["http.pcap", "edge.pcap", "missing.pcap"])
@pytest.mark.parametrize("side", [0, 1])
def test_raw_is_what_was_sent(start: Start, run: Run, file: str, side: int) -> None:
    number = 2 if file == "edge.pcap" else 1
    truth = TRUTH[file]["connections"][number - 1]["s2c" if side else "c2s"]
    process = start("follow", DATA / file, number, "--format", "raw", "--server" if side else "--client")
    out, err = process.communicate(timeout=LIMIT)
    assert (process.returncode, sha256(out)) == (0, truth["sha256"])
    who = "server" if side else "client"
    assert err.decode().splitlines() == [f"tcpreasm: the {who}'s next {size} bytes are missing" for _, size in truth.get("gaps", [])]


def test_raw_of_both(start: Start, capture: Capture) -> None:
    talk = Talk().open().say(0, b"\x1b[1m").say(1, b"\xff\n").say(0, b"\0").close()
    assert start("follow", capture(talk), "1", "--format", "raw").communicate(timeout=LIMIT) == (b"\x1b[1m\xff\n\0", b"")
    assert start("follow", capture(Talk().open()), "1", "--format", "raw").communicate(timeout=LIMIT) == (b"", b"")


HOSTILE = b"\x1b]0;owned\x07\x1b[2J\x9b31m\r\x08 \xe2\x80\xae\x7f\x00\r\nnext"


@pytest.mark.parametrize("form", ["ascii", "hex"])
def test_nothing_that_a_terminal_obeys_comes_out(run: Run, capture: Capture, form: str) -> None:
    out = run("follow", capture(Talk().open().say(0, HOSTILE).close()), "1", "--format", form).out
    assert re.fullmatch(r"[ -~\n]*", out)
    assert "]0;owned" in out or form == "hex"
    coloured = run("follow", capture(Talk().open().say(0, HOSTILE).close()), "1", "--format", form, "--color", "always").out
    assert re.sub("\x1b\\[(33|0)m", "", coloured) == out
    assert coloured.count("\x1b") == 2 * (out.count("\n") - 1)


def test_a_line_that_never_ends_is_broken(run: Run, capture: Capture) -> None:
    talk = Talk().open()
    for _ in range(4):
        talk.say(0, b"x" * 50_000)
    lines = run("follow", capture(talk.close()), "1").lines[1:]
    assert "".join(line[2:] for line in lines) == "x" * 200_000
    assert max(map(len, lines)) <= 150_000


def on_terminal(tcpreasm: ModuleType, *arguments: object, **environment: str) -> bytes:
    """What the command writes to a terminal that it has for itself, and how it ends."""
    read_end, write_end = pty.openpty()
    variables = {name: value for name, value in os.environ.items() if name != "NO_COLOR"} | {"TERM": "xterm", **environment}
    variables |= {"TCPREASM_IMPLEMENTATION": tcpreasm.implementation, "PYTHONPATH": str(Path(str(tcpreasm.__file__)).parent.parent)}
    process = subprocess.Popen([sys.executable, "-m", "tcpreasm", *map(str, arguments)], stdout=write_end, stderr=write_end, env=variables)
    os.close(write_end)
    out = b""
    try:
        while data := os.read(read_end, 65536):
            out += data
    except OSError:  # how a terminal says that nobody writes any more
        pass
    finally:
        os.close(read_end)
        process.wait(LIMIT)
    return out


def test_colours_on_a_terminal(tcpreasm: ModuleType, capture: Capture) -> None:
    path = capture(Talk().open().say(0, b"ask").say(1, b"tell").close())
    coloured = b"\x1b[33m> ask\x1b[0m\r\n\x1b[36m< tell\x1b[0m\r\n"
    assert on_terminal(tcpreasm, "follow", path, 1).endswith(coloured)
    assert on_terminal(tcpreasm, "follow", path, 1, NO_COLOR="").endswith(coloured)
    for plain in (
        on_terminal(tcpreasm, "follow", path, 1, NO_COLOR="1"),
        on_terminal(tcpreasm, "follow", path, 1, TERM="dumb"),
        on_terminal(tcpreasm, "follow", path, 1, "--color", "never"),
    ):
        assert plain.endswith(b"80\r\n> ask\r\n< tell\r\n")
    assert b"raw bytes are not for a terminal" in on_terminal(tcpreasm, "follow", path, 1, "--format", "raw")


def test_no_colours_elsewhere(run: Run, capture: Capture) -> None:
    assert "\x1b" not in run("follow", capture(Talk().open().say(0, b"ask").close()), "1").out


def test_it_ends_with_the_connection(start: Start) -> None:
    """The rest of what comes is not waited for."""
    process = start("follow", "-", "1")
    assert process.stdin is not None
    talks = [Talk().open().say(0, b"hello").close()]
    talks += [Talk(client=("10.0.0.3", port)).open().say(0, b"x" * 1000).close() for port in range(1, 2000)]
    with suppress(BrokenPipeError):
        process.stdin.write(pcap(record for talk in talks for record in talk.records))
        process.stdin.flush()
    assert process.wait(LIMIT) == 0  # though standard input stays open
    assert process.stdout is not None
    assert process.stdout.read().endswith(b"> hello\n")
    with suppress(BrokenPipeError):
        process.stdin.close()


# stats


def test_stats(run: Run, capture: Capture) -> None:
    talk = Talk().open().say(0, b"x" * 1000).say(1, b"lost", lost=True).say(1, b"answer").close()
    talk.records.append(talk.records[2])
    talk.records.append((talk.now_ns, bytes(60)))
    result = run("stats", capture(talk))
    assert (result.status, result.err) == (0, "")
    assert result.lines == [
        "frames                        8",
        "  SEGMENT                     7",
        "  NOT IP                      1",
        "conversations                 1",
        "  closed                      1",
        "streams                       2",
        "TCP segments                  7",
        "bytes captured            2,006",
        "  delivered               1,006",
        "  dropped                 1,000",
        "    retransmitted         1,000",
        "bytes missing in streams      4",
    ]


def test_stats_json_has_every_counter(run: Run, tcpreasm: ModuleType, capture: Capture) -> None:
    talk = Talk().open().say(0, b"x" * 1000).close()
    path = capture(talk, cut=3)
    result = run("stats", "--json", path)
    (told,) = result.json
    assembler = tcpreasm.Assembler(tcpreasm.StreamPool(tcpreasm.ByteCountStream))
    summary = assembler.assemble_capture(path)
    stats = assembler.stats
    names = {*tcpreasm.AssemblerStats.__dataclass_fields__, "bytes_dropped"}
    assert {*told} == names | {"complete", "problems", "conversations"}
    assert told["conversations"] == {"half-closed": 1}  # the capture is cut in the last packet
    for name in names:
        value = getattr(stats, name)
        assert told[name] == ({str(reason): count for reason, count in value.items()} if hasattr(value, "items") else value)
    assert (told["complete"], told["problems"]) == (False, list(summary.problems))


@pytest.mark.parametrize("file", sorted(TRUTH))
def test_stats_of_the_repository_captures(run: Run, file: str) -> None:
    one, two = (run("stats", "--json", "--threads", threads, DATA / file).json[0] for threads in ("1", "2"))
    sides = [c[side] for c in TRUTH[file]["connections"] for side in ("c2s", "s2c")]
    assert one["frames"] == TRUTH[file]["packets"]
    assert one["bytes_delivered"] + one["bytes_skipped"] == sum(side["len"] for side in sides)
    assert (one["frames"], one["bytes_delivered"], one["streams_opened"]) == (two["frames"], two["bytes_delivered"], two["streams_opened"])
    assert one["conversations"] == two["conversations"]
    assert sum(one["conversations"].values()) == len(TRUTH[file]["connections"])
