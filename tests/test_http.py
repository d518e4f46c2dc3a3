"""`tcpreasm http`: which response answers which request, and what bodies hold. Where messages begin and end is test_cli's."""

from __future__ import annotations

import gzip
import json
import random
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from command import Run, assert_one_line
from conftest import DATA
from traffic import Talk, sha256

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


def test_headers_over_several_lines(run: Run, capture: Capture) -> None:
    head = b"GET / HTTP/1.1\r\nHost: a\r\nX-Long: one,\r\n \ttwo\r\n three\r\nAccept: x\r\n\r\n"
    (only,) = exchanges(run, capture(Talk().open().say(0, head).say(1, answered()).close()))
    assert only["request"]["headers"] == {"host": "a", "x-long": "one, two three", "accept": "x"}


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
    told = {path: result for path, *result in pairs(run, capture(rounds((number, 1), rest)))}
    # The one behind it is a guess, for it could answer both requests, unless something of the lost one shows that it was there.
    expected = {f"/{each}": [410 + each, False] for each in range(1, ROUNDS + 1)} | {f"/{number}": [None, False]}
    if not rest and number < ROUNDS:
        expected[f"/{number + 1}"][1] = True
    assert told == expected


@pytest.mark.parametrize("number", range(1, ROUNDS + 1))
@pytest.mark.parametrize("rest", [b"", b"\r\n"])
def test_a_lost_request_puts_nothing_out_of_step(run: Run, capture: Capture, number: int, rest: bytes) -> None:
    told = {status: (path, guessed) for path, status, guessed in pairs(run, capture(rounds((number, 0), rest)))}
    assert told == {410 + each: (None if each == number else f"/{each}", False) for each in range(1, ROUNDS + 1)}


def test_a_response_to_head_behind_a_lost_request(run: Run, capture: Capture) -> None:
    """The requests wait for what is lost, so that none is known where the responses are read: what stands where the body would be tells."""
    talk = Talk().open().say(0, asked("/1"), lost=True).say(1, answered(201, b"one"))
    talk.say(0, asked("/2", "HEAD")).say(1, answered(202, b"x" * 1000)[:-1000])
    talk.say(0, asked("/3")).say(1, answered(203, b"three")).close()
    told = [(e["request"] and e["request"]["target"], e["status"], e["response"]["sha256"]) for e in exchanges(run, capture(talk))]
    assert told == [(None, 201, sha256(b"one")), ("/2", 202, sha256(b"")), ("/3", 203, sha256(b"three"))]


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
    for request, count in ((asked("/"), 20_000), (asked("/", "GET", "X: " + "x" * 60_000), 400)):
        talk = Talk().open().say(0, asked("/0")).say(1, answered(200)).say(1, answered(201), lost=True)
        at_once = max(1, 60_000 // len(request))
        for _ in range(0, count, at_once):
            for part in (request * at_once)[:60_000], (request * at_once)[60_000:]:
                talk.say(0, part)
        talk.say(1, answered(202)).say(0, asked("/last")).say(1, answered(203)).close()
        told = pairs(run, capture(talk))
        paths = [path for path, _, _ in told if path]
        assert len(paths) >= count
        assert (paths[0], paths[-1]) == ("/0", "/last")
        assert told[-1] == ("/last", 203, False)


def test_a_flood_of_interim_responses(run: Run, capture: Capture) -> None:
    talk = Talk().open().say(0, asked("/")).say(1, b"HTTP/1.1 102 Wait\r\n\r\n" * 2000).say(1, answered(201)).close()
    (only,) = exchanges(run, capture(talk))
    assert (only["status"], only["interim"]) == (201, [102] * 16)


def test_a_busy_connection_with_a_gap(run: Run, capture: Capture) -> None:
    """All that one side says behind it comes when it is given up; the other side has said all by then."""
    for side in (0, 1):
        talk = Talk().open()
        for number in range(3000):
            talk.say(0, asked(f"/{number}"), lost=(side, number) == (0, 5))
            talk.say(1, answered(200, b"x", f"X-Path: /{number}"), lost=(side, number) == (1, 5))
        found = exchanges(run, capture(talk.close()))
        told = [(e["request"] and e["request"]["target"], e["response"] and e["response"]["headers"]["x-path"]) for e in found]
        expected = [(f"/{number}", f"/{number}") for number in range(3000)]
        expected[5] = (None, "/5") if side == 0 else ("/5", None)
        assert sorted(told, key=str) == sorted(expected, key=str)


def test_a_capture_that_began_before_a_long_response(run: Run, capture: Capture) -> None:
    """Its stream starts by itself after some segments; that of the request only when it has waited."""
    talk = Talk().say(0, asked("/1"))
    whole = answered(201, b"x" * 30_000)
    for at in range(0, len(whole), 1000):
        talk.say(1, whole[at : at + 1000])
    talk.say(0, asked("/2")).say(1, answered(202)).close()
    assert pairs(run, capture(talk)) == [("/1", 201, False), ("/2", 202, False)]


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
        (e["request"] and e["request"]["target"], e["response"] and e["response"]["headers"].get("x-path"), e["guessed"])
        for e in exchanges(run, capture(*talks))
    ]
    right = [path == answer for path, answer, guessed in told if path and answer and not guessed]
    assert all(right)
    assert len(right) > count // 3
    assert lost_count >= 10
    guesses = [path == answer for path, answer, guessed in told if path and answer and guessed]
    assert guesses.count(True) >= guesses.count(False)


# nginx: real exchanges, against what it was told to serve.

NGINX: dict[str, Any] = {file: json.loads((DATA / "truth.json").read_text())[file] for file in ("nginx.pcap", "nginx_lost.pcap")}


def of_nginx(run: Run, file: str, *options: object) -> list[tuple[dict[str, Any], list[dict[str, Any]]]]:
    """Each connection's truth, and what was found."""
    told = sorted(exchanges(run, DATA / file, *options), key=lambda exchange: exchange["time_ns"])
    return [(c, [e for e in told if e["client"] == c["client"]]) for c in NGINX[file]["connections"]]


@pytest.mark.parametrize("options", [(), ("--bodies", "{folder}/bodies")])
def test_nginx(run: Run, tmp_path: Path, options: tuple[str, ...]) -> None:
    chunked = 0
    for truth, found in of_nginx(run, "nginx.pcap", *(option.format(folder=tmp_path) for option in options)):
        assert len(found) == len(truth["exchanges"])
        for got, told in zip(found, truth["exchanges"], strict=True):
            assert (got["method"], got["url"]) == (told["method"], f"http://127.0.0.1:8081{told['path']}")
            assert (got["status"], got["interim"], got["guessed"]) == (told["status"], told["interim"], False)
            for side in ("request", "response"):
                part = got[side]
                assert (part["body_bytes"], part["missing"], part["complete"]) == (told[f"{side}_body"], 0, True)
                assert (part["sha256"], part["problem"]) == (told[f"{side}_sha256"], None)
                assert (part["file"] is not None) == bool(options and part["body_bytes"])
                if part["file"]:
                    assert sha256(Path(part["file"]).read_bytes()) == part["sha256"]
            chunked += told["chunked"]
            assert ("transfer-encoding" in got["response"]["headers"]) == told["chunked"]
    assert chunked >= 3
    told_of = [told for truth in NGINX["nginx.pcap"]["connections"] for told in truth["exchanges"]]
    bodies = sum(bool(told[f"{side}_body"]) for told in told_of for side in ("request", "response"))
    assert len([*tmp_path.glob("bodies/*")]) == (bodies if options else 0)


def test_nginx_with_lost_segments(run: Run) -> None:
    connections = of_nginx(run, "nginx_lost.pcap")
    lost = {told.get("lost") for truth, _ in connections for told in truth["exchanges"]}
    assert lost == {None, "body", "response", "request", "end"}
    for truth, found in connections:
        assert len(found) == len(truth["exchanges"])
        for got, told in zip(found, truth["exchanges"], strict=True):
            what = told.get("lost")
            assert got["url"] == (None if what == "request" else f"http://127.0.0.1:8081{told['path']}")
            assert got["status"] == (None if what == "response" else told["status"])
            assert not got["guessed"]
            if what in (None, "request"):
                assert got["response"]["sha256"] == told["response_sha256"]
            elif what != "response":
                assert got["response"]["sha256"] != told["response_sha256"]
                assert got["response"]["complete"] == (what == "body")
                assert got["response"]["missing"] == (2048 if what == "body" else 0)
            if what != "request":
                assert got["request"]["sha256"] == told["request_sha256"]


# Bodies.

TEXT = b"".join(b"line %d of a text that repeats itself\n" % number for number in range(2000))


def bare_deflate(data: bytes) -> bytes:
    compress = zlib.compressobj(wbits=-15)
    return compress.compress(data) + compress.flush()


def brotli(data: bytes) -> bytes:
    return bytes(pytest.importorskip("brotli", reason="NO BROTLI HERE: its coding was not tried").compress(data))


def zstandard(data: bytes) -> bytes:
    return bytes(pytest.importorskip("zstandard").compress(data))


def body_of(run: Run, path: Path, *options: object) -> dict[str, Any]:
    (only,) = exchanges(run, path, *options)
    response: dict[str, Any] = only["response"]
    return response


def coded(coding: str, body: bytes, sizes: int = 500) -> Talk:
    """A response with this body, in segments."""
    talk = Talk().open().say(0, asked("/"))
    data = answered(200, body, f"Content-Encoding: {coding}", "Content-Type: text/plain")
    for at in range(0, len(data), sizes):
        talk.say(1, data[at : at + sizes])
    return talk.close()


CODINGS: dict[str, tuple[str, Callable[[bytes], bytes]]] = {
    "identity": ("identity", bytes),
    "gzip": ("gzip", gzip.compress),
    "x-gzip": ("X-GZip", gzip.compress),
    "members": ("gzip", lambda data: gzip.compress(data[:1000]) + gzip.compress(data[1000:])),
    "rest": ("gzip", lambda data: gzip.compress(data) + b"padding"),
    "deflate": ("deflate", zlib.compress),
    "bare deflate": ("deflate", bare_deflate),
    "zstd": ("zstd", zstandard),
    "frames": ("zstd", lambda data: zstandard(data[:1000]) + zstandard(data[1000:])),
    "br": ("br", brotli),
    "twice": ("deflate, gzip", lambda data: gzip.compress(zlib.compress(data))),
}


@pytest.mark.parametrize("sizes", [1, 7, 100_000])
@pytest.mark.parametrize("name", CODINGS)
def test_codings_are_undone(run: Run, capture: Capture, name: str, sizes: int) -> None:
    coding, encode = CODINGS[name]
    text = TEXT if sizes > 1 else TEXT[:2000]
    body = body_of(run, capture(coded(coding, encode(text), min(sizes, 60_000))))
    assert (body["decoded_bytes"], body["sha256"], body["problem"]) == (len(text), sha256(text), None)


def test_chunks_are_no_part_of_what_is_decoded(run: Run, capture: Capture) -> None:
    data = gzip.compress(TEXT)
    chunks = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in (data[:100], data[100:101], data[101:])) + b"0\r\nX: y\r\n\r\n"
    head = b"HTTP/1.1 200 X\r\nTransfer-Encoding: chunked\r\nContent-Encoding: gzip\r\n\r\n"
    body = body_of(run, capture(Talk().open().say(0, asked("/")).say(1, head + chunks).close()))
    assert (body["sha256"], body["body_bytes"], body["problem"]) == (sha256(TEXT), len(data), None)


@pytest.mark.parametrize("name", ["gzip", "deflate", "zstd", "br"])
def test_what_is_broken_is_decoded_as_far_as_it_goes(run: Run, capture: Capture, name: str) -> None:
    coding, encode = CODINGS[name]
    data = encode(random.Random(1).randbytes(3000) + TEXT)
    broken = data[:2000] + bytes(byte ^ 0x55 for byte in data[2000:])
    for wrong in (broken, data[:2000]):
        body = body_of(run, capture(coded(coding, wrong)))
        assert "encoded data" in body["problem"]
        assert body["complete"]
    assert "too early" in body["problem"]
    assert "broken" in body_of(run, capture(coded(coding, b"\xff" * 100)))["problem"]


def test_of_a_gap_in_what_is_encoded(run: Run, capture: Capture) -> None:
    data = gzip.compress(random.Random(1).randbytes(3000))
    talk = Talk().open().say(0, asked("/"))
    whole = answered(200, data, "Content-Encoding: gzip")
    talk.say(1, whole[:1500]).say(1, whole[1500:1600], lost=True).say(1, whole[1600:]).close()
    body = body_of(run, capture(talk))
    assert (body["missing"], body["complete"]) == (100, True)
    assert 1000 < body["decoded_bytes"] < 1500
    assert body["problem"] == "decoded up to the first of the missing bytes only, 100 of them"


def test_a_gap_in_what_is_not_encoded_is_left_out(run: Run, tmp_path: Path, capture: Capture) -> None:
    talk = Talk().open().say(0, asked("/")).say(1, answered(200, b"abcdefgh")[:-4])
    talk.say(1, b"ef", lost=True).say(1, b"gh").close()
    body = body_of(run, capture(talk), "--bodies", tmp_path / "out")
    assert (body["missing"], body["decoded_bytes"], body["sha256"]) == (2, 6, sha256(b"abcdgh"))
    assert Path(body["file"]).read_bytes() == b"abcdgh"


@pytest.mark.parametrize("name", ["gzip", "deflate", "zstd", "br", "twice"])
def test_a_small_body_does_not_fill_the_disk(run: Run, tmp_path: Path, capture: Capture, name: str) -> None:
    coding, encode = CODINGS[name]
    bomb = encode(bytes(50_000_000))
    assert len(bomb) < 60_000
    body = body_of(run, capture(coded(coding, bomb, 60_000)), "--bodies", tmp_path / "out", "--max-body", "100000")
    assert (body["decoded_bytes"], body["sha256"]) == (100_000, sha256(bytes(100_000)))
    assert body["problem"] == "only its first 100000 bytes were taken"
    assert Path(body["file"]).stat().st_size == 100_000


@pytest.mark.parametrize("coding", ["compress", "../../etc", ", ".join(["gzip"] * 5)])
def test_other_codings_are_left_as_they_are(run: Run, capture: Capture, coding: str) -> None:
    data = TEXT[:100]
    for _ in range(coding.count("gzip")):
        data = gzip.compress(data, mtime=0)
    body = body_of(run, capture(coded(coding, data)))
    assert "is not decoded" in body["problem"]
    assert body["sha256"] == sha256(gzip.compress(TEXT[:100], mtime=0) if "gzip" in coding else data)


def test_without_a_library_its_coding_is_left(run: Run, capture: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("brotli", "zstandard"):
        monkeypatch.setitem(sys.modules, name, None)
    for coding in ("br", "zstd"):
        body = body_of(run, capture(coded(coding, b"whatever")))
        assert (body["sha256"], body["problem"]) == (sha256(b"whatever"), f"{coding} is not decoded")


def test_names_of_files_come_from_nowhere_else(run: Run, tmp_path: Path, capture: Capture) -> None:
    talk = Talk().open()
    for path, kind in (("/../../../x", "text/html; charset=x"), ("/%2e%2e/%00", "application/../../x"), ("/a" * 5000, "IMAGE/PNG")):
        talk.say(0, asked(path, "POST", body=b"sent")).say(1, answered(200, b"got", f"Content-Type: {kind}"))
    result = run("http", "--bodies", tmp_path / "new" / "out", capture(talk.close()))
    assert result.status == 0
    assert {path.name: path.read_bytes() for path in tmp_path.rglob("0*")} == {
        "000001-request.bin": b"sent",
        "000002-response.html": b"got",
        "000003-request.bin": b"sent",
        "000004-response.bin": b"got",
        "000005-request.bin": b"sent",
        "000006-response.png": b"got",
    }


def test_files_are_not_overwritten_without_force(run: Run, tmp_path: Path, capture: Capture) -> None:
    path = capture(Talk().open().say(0, asked("/")).say(1, answered(200, b"new")).close())
    there = tmp_path / "out" / "000001-response.bin"
    there.parent.mkdir()
    there.write_bytes(b"precious")
    result = run("http", "--bodies", there.parent, path)
    assert result.status == 2
    assert_one_line(result.err)
    assert f"{there} exists (--force overwrites)" in result.err
    assert there.read_bytes() == b"precious"
    assert run("http", "--bodies", there.parent, "--force", path).status == 0
    assert there.read_bytes() == b"new"
