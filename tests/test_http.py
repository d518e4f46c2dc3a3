"""`tcpreasm http`: which response answers which request, and what bodies hold. Where messages begin and end is test_cli's."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from command import Run
from traffic import Talk

Capture = Callable[..., Path]


def asked(path: str, method: str = "GET", *headers: str, body: bytes = b"") -> bytes:
    """A request."""
    length = [f"Content-Length: {len(body)}"] if body else []
    return "\r\n".join([f"{method} {path} HTTP/1.1", "Host: a", *headers, *length, "", ""]).encode() + body


def answered(status: int = 200, body: bytes = b"", *headers: str) -> bytes:
    """A response."""
    return "\r\n".join([f"HTTP/1.1 {status} X", *headers, f"Content-Length: {len(body)}", "", ""]).encode() + body


def exchanges(run: Run, path: Path, *options: object) -> list[dict[str, Any]]:
    result = run("http", "--json", *options, path)
    assert (result.status, result.err) == (0, "")
    return [line for line in result.json if line["kind"] == "exchange"]


Pair = tuple[Any, Any, bool]


def pairs(run: Run, path: Path) -> list[Pair]:
    """(path asked for, status, guessed) of each exchange, in the order in which they are told."""
    return [(e["request"] and e["request"]["target"], e["status"], e["guessed"]) for e in exchanges(run, path)]


# Which answers which. Each response here has a status of its own.


def test_keep_alive_and_pipelining(run: Run, capture: Capture) -> None:
    talk = Talk().open()
    talk.say(0, asked("/1")).say(1, answered(201))
    talk.say(0, asked("/2") + asked("/3", "HEAD") + asked("/4")).say(1, answered(202, b"x"))
    talk.say(1, b"HTTP/1.1 203 X\r\nContent-Length: 1000\r\n\r\n" + answered(204))
    talk.say(0, asked("/5")).say(1, b"HTTP/1.1 205 X\r\n\r\nto the end").close()
    assert pairs(run, capture(talk)) == [(f"/{number}", 200 + number, False) for number in range(1, 6)]


def test_interim_responses_belong_to_the_answer(run: Run, capture: Capture) -> None:
    talk = Talk().open()
    request = asked("/1", "POST", "Expect: 100-continue", body=b"12345")
    talk.say(0, request[:-5]).say(1, b"HTTP/1.1 100 Continue\r\n\r\n").say(0, request[-5:])
    talk.say(1, b"HTTP/1.1 103 Hints\r\nLink: </x>\r\n\r\n" + answered(201))
    talk.say(0, asked("/2")).say(1, answered(202)).close()
    first, second = exchanges(run, capture(talk))
    assert (first["status"], first["interim"], first["request"]["body_bytes"]) == (201, [100, 103], 5)
    assert (second["status"], second["interim"]) == (202, [])
    assert "201, after 100 103, 5 bytes sent" in run("http", capture(talk)).lines[0]


def test_an_interim_response_and_no_answer(run: Run, capture: Capture) -> None:
    talk = Talk().open().say(0, asked("/1")).say(1, b"HTTP/1.1 102 Wait\r\n\r\n").close()
    (only,) = exchanges(run, capture(talk))
    assert (only["url"], only["status"], only["interim"], only["response"]) == ("http://a/1", None, [102], None)


def test_connect_and_upgrade_end_what_is_read(run: Run, capture: Capture) -> None:
    upgrade = "Connection: Upgrade\r\nUpgrade: websocket"
    for ask, answer, status in (
        (b"CONNECT example.org:443 HTTP/1.1\r\nHost: example.org:443\r\n\r\n", b"HTTP/1.1 200 Go\r\n\r\n", 200),
        (asked("/ws", "GET", upgrade), f"HTTP/1.1 101 Go\r\n{upgrade}\r\n\r\n".encode(), 101),
    ):
        talk = Talk().open().say(0, ask).say(1, answer).say(0, asked("/inside")).say(1, answered(500)).close()
        (only,) = exchanges(run, capture(talk))
        assert only["status"] == status
        assert only["url"] == ("example.org:443" if status == 200 else "http://a/ws")


@pytest.mark.parametrize(
    ("request_line", "host", "url"),
    [
        ("GET /a?b#c", "example.org", "http://example.org/a?b#c"),
        ("GET /", "example.org:8080", "http://example.org:8080/"),
        ("GET /", "[2001:db8::1]:81", "http://[2001:db8::1]:81/"),
        ("GET http://other.org/x", "example.org", "http://other.org/x"),
        ("GET https://other.org/x", "example.org", "https://other.org/x"),
        ("OPTIONS *", "example.org", "http://example.org"),
        ("GET /", None, "http://10.0.0.2/"),
        ("GET /", "", "http://10.0.0.2/"),
        ("GET /", "a/../b", "http://10.0.0.2/"),
        ("GET /", "user@example.org", "http://10.0.0.2/"),
    ],
)
def test_the_url_is_absolute(run: Run, capture: Capture, request_line: str, host: str | None, url: str) -> None:
    header = "" if host is None else f"Host: {host}\r\n"
    talk = Talk().open().say(0, f"{request_line} HTTP/1.1\r\n{header}\r\n".encode()).say(1, answered()).close()
    assert [e["url"] for e in exchanges(run, capture(talk))] == [url]


def test_the_url_names_the_port_of_a_server_without_a_name(run: Run, capture: Capture) -> None:
    talk = Talk(("2001:db8::1", 5), ("2001:db8::2", 8080)).open().say(0, b"GET / HTTP/1.0\r\n\r\n").say(1, answered()).close()
    assert [e["url"] for e in exchanges(run, capture(talk))] == ["http://[2001:db8::2]:8080/"]


def test_times(run: Run, capture: Capture) -> None:
    response = answered(200, b"abcdef")
    talk = Talk().open().say(0, asked("/")[:10]).say(0, asked("/")[10:])
    talk.say(1, response[:5]).say(1, response[5:-3]).say(1, response[-3:]).close()
    (only,) = exchanges(run, capture(talk))
    start = talk.records[2][0]
    assert (only["time_ns"], only["time"]) == (start, "2023-11-14T22:13:20.002000000Z")
    assert (only["waited"], only["duration"]) == (0.002, 0.004)
    assert (only["request"]["first_ns"] - start, only["request"]["last_ns"] - start) == (0, 1_000_000)
    assert (only["response"]["first_ns"] - start, only["response"]["last_ns"] - start) == (2_000_000, 4_000_000)


def test_a_message_begins_when_its_own_first_byte_came(run: Run, capture: Capture) -> None:
    """Not with the empty line, or the rest of something, that is looked through for it."""
    talk = Talk().open().say(0, asked("/1") + b"\r\n").say(1, answered(201)).say(1, b"junk\r\n").say(0, asked("/2")).say(1, answered(202))
    first, second = exchanges(run, capture(talk.close()))
    assert [e["status"] for e in (first, second)] == [201, 202]
    assert second["request"]["first_ns"] == talk.records[5][0]
    assert second["response"]["first_ns"] == talk.records[6][0]


def test_who_asks_is_the_client_whoever_opened(run: Run, capture: Capture) -> None:
    talk = Talk().open().say(1, asked("/")).say(0, answered()).close()
    (only,) = exchanges(run, capture(talk))
    assert (only["client"], only["server"]) == (["10.0.0.2", 80], ["10.0.0.1", 40000])


def test_requests_that_nobody_answered(run: Run, capture: Capture) -> None:
    talk = Talk().open().say(0, asked("/1")).say(1, answered(201)).say(0, asked("/2") + asked("/3")).close()
    assert pairs(run, capture(talk)) == [("/1", 201, False), ("/2", None, False), ("/3", None, False)]
    assert run("http", capture(talk)).lines[1].endswith("GET http://a/2 (no response)")


def test_one_direction_only(run: Run, capture: Capture) -> None:
    talk = Talk().open().say(0, asked("/1")).say(1, answered(201)).say(0, asked("/2")).say(1, answered(202)).close()
    for side, expected in ((0, [("/1", None, False), ("/2", None, False)]), (1, [(None, 201, False), (None, 202, False)])):
        half = Talk()
        half.records = [record for record in talk.records if record[1][26:30] == bytes([10, 0, 0, 1 + side])]
        assert pairs(run, capture(half)) == expected
    assert run("http", capture(half)).lines[0].split(" ", 1)[1] == "10.0.0.1:40000->10.0.0.2:80 (no request) 201, 0 bytes received"


ROUNDS = 5
SEEDS = 20


def rounds(lost: tuple[int, int], rest: bytes) -> Talk:
    """A request and a response at a time; of one, named by number and side, only `rest` was captured, its end."""
    talk = Talk().open()
    for number in range(1, ROUNDS + 1):
        for side, message in ((0, asked(f"/{number}")), (1, answered(410 + number, b"x" * 40))):
            if (number, side) == lost:
                talk.say(side, message[: len(message) - len(rest)], lost=True)
                message = rest
            if message:
                talk.say(side, message)
    return talk.close()


@pytest.mark.parametrize("number", range(1, ROUNDS + 1))
@pytest.mark.parametrize("rest", [b"", b"x" * 7])
def test_a_lost_response_puts_nothing_out_of_step(run: Run, capture: Capture, number: int, rest: bytes) -> None:
    told = {path: (status, guessed) for path, status, guessed in pairs(run, capture(rounds((number, 1), rest)))}
    # The one behind it is a guess: it could answer both requests.
    assert told == {f"/{each}": (None, False) if each == number else (410 + each, each == number + 1) for each in range(1, ROUNDS + 1)}


@pytest.mark.parametrize("number", range(1, ROUNDS + 1))
@pytest.mark.parametrize("rest", [b"", b"\r\n"])
def test_a_lost_request_puts_nothing_out_of_step(run: Run, capture: Capture, number: int, rest: bytes) -> None:
    told = {status: (path, guessed) for path, status, guessed in pairs(run, capture(rounds((number, 0), rest)))}
    assert told == {410 + each: (None if each == number else f"/{each}", False) for each in range(1, ROUNDS + 1)}


def test_a_capture_that_began_late(run: Run, capture: Capture) -> None:
    talk = Talk()
    talk.say(1, b"the rest of a response").say(0, asked("/1")).say(1, answered(201)).say(0, asked("/2")).say(1, answered(202)).close()
    assert pairs(run, capture(talk)) == [("/1", 201, False), ("/2", 202, False)]


def test_of_a_pipeline_with_a_gap_the_end_is_paired(run: Run, capture: Capture) -> None:
    talk = Talk().open().say(0, b"".join(asked(f"/{number}") for number in range(1, 6)))
    talk.say(1, answered(201)).say(1, answered(202) + answered(203), lost=True).say(1, answered(204) + answered(205))
    talk.say(0, asked("/6")).say(1, answered(206)).close()
    assert pairs(run, capture(talk)) == [
        ("/1", 201, False),
        ("/2", None, False),
        ("/3", None, False),
        ("/4", 204, True),
        ("/5", 205, True),
        ("/6", 206, False),
    ]


def test_the_answer_to_head_behind_a_gap_has_no_body(run: Run, capture: Capture) -> None:
    talk = Talk().open()
    talk.say(0, asked("/1")).say(1, answered(201, b"x" * 50), lost=True)
    talk.say(0, asked("/2", "HEAD")).say(1, b"HTTP/1.1 202 X\r\nContent-Length: 1000\r\n\r\n")
    talk.say(0, asked("/3")).say(1, answered(203)).close()
    assert pairs(run, capture(talk)) == [("/1", None, False), ("/2", 202, True), ("/3", 203, False)]


def test_an_answer_that_nobody_asked_for_is_marked(run: Run, capture: Capture) -> None:
    """A server that gives up waiting says 408, and closes."""
    talk = Talk().open().say(1, answered(408)).say(0, asked("/late")).close()
    assert pairs(run, capture(talk)) == [("/late", 408, True)]


def test_far_too_many_requests_are_given_up(run: Run, capture: Capture) -> None:
    talk = Talk().open()
    for _ in range(30):
        talk.say(0, asked("/") * 50)
    talk.say(1, answered(201)).close()
    told = pairs(run, capture(talk))
    assert len([path for path, _, _ in told if path]) == 1500


@pytest.mark.parametrize("seed", range(SEEDS))
def test_what_is_not_called_a_guess_is_right(run: Run, capture: Capture, seed: int) -> None:
    """Rounds of one request, now and then of several, and packets lost at random: each response tells what it answers."""
    chance = random.Random(seed)
    talks, count, lost_count = [], 0, 0
    for port in range(8):
        talk = Talk(client=("10.0.0.1", 1000 + port), start_ns=1_700_000_000_000_000_000 + port * 10**10)
        talk.open()
        for _ in range(10):
            size = chance.choice((1, 1, 1, 1, 3))
            numbers = range(count, count + size)
            count += size
            for side, data in (
                (0, b"".join(asked(f"/{number}", body=b"." * chance.choice((0, 0, 90))) for number in numbers)),
                (1, b"".join(answered(200, b"%d" % number + b"." * chance.randrange(90), f"X-Path: /{number}") for number in numbers)),
            ):
                while data:
                    part = chance.randrange(1, 120)
                    lost = chance.random() < 0.06
                    lost_count += lost
                    talk.say(side, data[:part], lost=lost)
                    data = data[part:]
        talks.append(talk.close())
    told = [
        (e["request"] and e["request"]["target"], e["response"] and e["response"]["headers"]["x-path"], e["guessed"])
        for e in exchanges(run, capture(*talks))
    ]
    right = [path == answer for path, answer, guessed in told if path and answer and not guessed]
    assert all(right)
    assert len(right) > count // 3
    assert lost_count >= 10
    guesses = [path == answer for path, answer, guessed in told if path and answer and guessed]
    assert guesses.count(True) >= guesses.count(False)
