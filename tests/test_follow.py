"""`follow`: finished streams, one after the other, while the capture is read."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from conftest import DATA
from traffic import START_NS, Record, Talk, corpus_cases, pcap, sha256, without_start

Follow = Callable[..., Iterator[Any]]
TRUTH: dict[str, Any] = json.loads((DATA / "truth.json").read_text())


@pytest.fixture
def follow(tcpreasm: ModuleType, submodule: Callable[[ModuleType, str], ModuleType]) -> Follow:
    found: Follow = submodule(tcpreasm, "follow").follow
    return found


def ends_of(stream: Any) -> tuple[tuple[str, int], tuple[str, int]]:
    net, transport = stream.key
    return (str(net.src), transport.src), (str(net.dst), transport.dst)


def frames(records: list[Record]) -> Iterator[tuple[float, bytes]]:
    for ns, data in records:
        yield ns / 1e9, data


@pytest.mark.parametrize("file", sorted(TRUTH))
def test_the_repository_captures(follow: Follow, file: str) -> None:
    got = sorted((*ends_of(s), len(s.data) + s.missing, sha256(s.data), list(map(list, s.gaps))) for s in follow(DATA / file) if s.data)
    expected = []
    for connection in TRUTH[file]["connections"]:
        client, server = tuple(connection["client"]), tuple(connection["server"])
        for ends, name in (((client, server), "c2s"), ((server, client), "s2c")):
            truth = connection[name]
            if truth["len"]:
                expected.append((*ends, truth["len"], truth["sha256"], truth.get("gaps", [])))
    assert got == sorted(expected)


def test_sources(follow: Follow, tmp_path: Path) -> None:
    talk = Talk().open().say(0, b"hello").close()
    data = pcap(talk.records)
    path = tmp_path / "x.pcap"
    path.write_bytes(data)
    expected = [b"hello", b""]
    assert [s.data for s in follow(path)] == expected
    assert [s.data for s in follow(str(path))] == expected
    assert [s.data for s in follow(data)] == expected
    assert [s.data for s in follow(io.BytesIO(data))] == expected
    assert [s.data for s in follow(frames(talk.records))] == expected


def test_what_a_finished_stream_tells(follow: Follow) -> None:
    talk = Talk().open().say(0, b"abc").say(0, b"lost", lost=True).say(0, b"de").close(0)
    client, server = follow(pcap(talk.records))
    assert str(client.key) == "10.0.0.1:40000->10.0.0.2:80"
    assert client.data == b"abcde"
    assert client.gaps == ((3, 4),)
    assert client.missing == 4
    assert client.started
    assert client.ended
    assert str(client) == "10.0.0.1:40000->10.0.0.2:80 5 bytes, 1 gap (4 bytes missing)"
    assert not server.ended
    assert str(server) == "10.0.0.2:80->10.0.0.1:40000 0 bytes, end not captured"


def test_first_and_last_time(follow: Follow) -> None:
    stream = next(follow(pcap(Talk().open().say(0, b"abc").close(0).records)))
    assert stream.first_seen_ns == START_NS
    assert stream.last_seen_ns == START_NS + 3_000_000
    assert stream.first_seen == START_NS / 1e9
    assert stream.last_seen == (START_NS + 3_000_000) / 1e9


def test_a_start_that_was_not_captured(follow: Follow) -> None:
    (stream,) = follow(pcap(Talk().say(0, b"abc").close(0).records))
    assert not stream.started
    assert stream.gaps == ()
    assert str(stream) == "10.0.0.1:40000->10.0.0.2:80 3 bytes, start not captured"


def test_streams_come_while_the_capture_is_read(follow: Follow) -> None:
    taken = 0

    def source() -> Iterator[tuple[float, bytes]]:
        nonlocal taken
        for number in range(2000):
            talk = Talk(client=("10.0.0.1", 1024 + number), start_ns=START_NS + number * 10_000_000)
            for record in frames(talk.open().say(0, b"%d" % number).close().records):
                taken += 1
                yield record

    most = 0
    for count, stream in enumerate(follow(source()), 1):
        assert stream.data in (b"", b"%d" % ((count - 1) // 2))
        most = max(most, taken - count * 5 // 2)
    assert count == 4000
    assert most <= 70, "frames are read ahead of what was yielded"


def test_several_captures_are_one(follow: Follow) -> None:
    records = Talk().open().say(0, b"first ").say(0, b"second").close().records
    assert [s.data for s in follow([pcap(records[:3]), pcap(records[3:])])] == [b"first second", b""]


def test_a_cut_capture_gives_what_is_there_and_a_warning(follow: Follow, caplog: pytest.LogCaptureFixture) -> None:
    records = Talk().open().say(0, b"hello").say(0, b"world").records
    with caplog.at_level(logging.WARNING):
        streams = list(follow(pcap(records)[:-3]))
    assert sorted(s.data for s in streams) == [b"", b"hello"]
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "record" in caplog.text


def test_no_warning_where_nothing_is_wrong(follow: Follow, caplog: pytest.LogCaptureFixture) -> None:
    list(follow(DATA / "http.pcap"))
    assert not caplog.records


def test_options_are_heard(follow: Follow, tcpreasm: ModuleType, submodule: Callable[[ModuleType, str], ModuleType]) -> None:
    options = submodule(tcpreasm, "options").AssemblerOptions
    talk = Talk().open().say(0, b"one")
    talk.now_ns += 100 * 10**9
    talk.say(0, b"two")
    other = Talk(client=("10.0.0.9", 9), start_ns=START_NS + 50 * 10**9).open().say(0, b"x" * 10).records
    records = sorted(talk.records + other * 100)
    assert [s.data for s in follow(pcap(records), options(idle_timeout=20.0)) if s.key.src == "10.0.0.1:40000"] == [b"one", b"two"]
    with pytest.raises(TypeError, match="options"):
        follow(b"", 5)


def test_errors_come_with_the_first_stream(
    follow: Follow, tcpreasm: ModuleType, submodule: Callable[[ModuleType, str], ModuleType], tmp_path: Path
) -> None:
    streams = follow(tmp_path / "nothing")
    with pytest.raises(FileNotFoundError):
        next(streams)
    with pytest.raises(submodule(tcpreasm, "errors").CaptureError):
        next(follow(b"no capture at all"))
    with pytest.raises(TypeError):
        next(follow(7))


def test_interrupt_gives_the_open_streams_first(follow: Follow) -> None:
    def source() -> Iterator[tuple[float, bytes]]:
        yield from frames(Talk().open().say(0, b"half a st").records)
        raise KeyboardInterrupt

    streams = follow(source())
    assert sorted(stream.data for stream in (next(streams), next(streams))) == [b"", b"half a st"]
    with pytest.raises(KeyboardInterrupt):
        next(streams)


def test_stopping_early_closes_the_capture(follow: Follow, tcpreasm: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "x.pcap"
    path.write_bytes(
        pcap([record for port in range(100) for record in Talk(client=("10.0.0.1", port)).open().say(0, b"x").close().records])
    )
    capture = tcpreasm.open_capture(path)
    streams: Any = follow(capture)
    assert next(streams).data == b"x"
    streams.close()
    with pytest.raises(ValueError, match="closed"):
        list(capture)


def test_both_cores_give_the_same(both: tuple[ModuleType, ModuleType], submodule: Callable[[ModuleType, str], ModuleType]) -> None:
    for file in sorted(TRUTH):
        compiled, pure = (
            [(str(s), s.data, s.gaps, s.first_seen_ns, s.last_seen_ns) for s in submodule(package, "follow").follow(DATA / file)]
            for package in both
        )
        assert compiled == pure, file


def test_the_corpus(follow: Follow, corpus: Path) -> None:
    count = 0
    for capture, expected in corpus_cases(corpus):
        streams: dict[Any, list[Any]] = {}
        for stream in follow(capture):
            if stream.data or stream.gaps:
                streams.setdefault(ends_of(stream), []).append(stream)
        for ends, truths in expected.items():
            got = streams.get(ends, [])
            told = sorted((truth.length, truth.sha256) for truth in truths if truth.length)
            assert sorted((len(s.data), sha256(s.data)) for s in got if s.data) == told, (capture.name, ends)
            for truth, stream in zip(truths, got):
                if truth.gaps is not None:
                    wanted = truth.gaps if stream.started else without_start(truth.gaps)
                    assert stream.gaps == wanted, (capture.name, ends)
            count += 1
    assert count > 1000
