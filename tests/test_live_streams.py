"""Live capture to streams, all the way: real traffic of a real HTTP server on loopback, on both cores and through both libraries.

Skipped only where the machine forbids capturing or a library is not installed, with the reason (fixture `library` of test_live).
"""

from __future__ import annotations

import _thread
import asyncio
import threading
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest
from test_live import BODY, LOOPBACK, fetch, library, port

__all__ = ["library", "port"]  # fixtures

REQUEST = b"GET /it HTTP/1.1\r\n"


class Collected:
    """A factory of BytesStreams that remembers them by the sender's port."""

    def __init__(self, tcpreasm: ModuleType) -> None:
        self.tcpreasm = tcpreasm
        self.streams: list[Any] = []
        self.complete = threading.Event()

    def new(self, net_flow: Any, transport_flow: Any) -> Any:
        stream = self.tcpreasm.BytesStream(net_flow, transport_flow)
        self.streams.append(stream)
        return stream

    def sent_by(self, port: int) -> Any:
        (stream,) = [stream for stream in self.streams if stream.key.transport_flow.src == port]
        return stream


def check(collected: Collected, port: int) -> None:
    assert len(collected.streams) == 2
    answer = collected.sent_by(port)
    assert answer.started
    assert answer.complete
    assert answer.gaps == ()
    head, _, body = answer.data.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 OK\r\n")
    assert body == BODY
    (request,) = [stream for stream in collected.streams if stream is not answer]
    assert request.data.startswith(REQUEST)
    assert request.complete


def test_the_bytes_of_an_http_server(tcpreasm: ModuleType, library: str, port: int) -> None:
    collected = Collected(tcpreasm)
    with tcpreasm.open_live(LOOPBACK, filter=f"tcp port {port}", library=library) as capture:
        fetch(port)
        capture.stop()
        summary = tcpreasm.Assembler(tcpreasm.StreamPool(collected)).assemble_capture(capture)
        drops = capture.drops
    assert (summary.streams, summary.bytes_skipped, summary.complete) == (2, 0, True)
    assert drops.dropped == 0
    check(collected, port)


def test_ctrl_c_gives_out_everything(tcpreasm: ModuleType, library: str, port: int) -> None:
    """KeyboardInterrupt while it waits for packets; the connection is still open, its last bytes are there."""
    collected = Collected(tcpreasm)
    with tcpreasm.open_live(LOOPBACK, filter=f"tcp port {port}", library=library) as capture:
        fetch(port)
        timer = threading.Timer(0.5, _thread.interrupt_main)
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            tcpreasm.Assembler(tcpreasm.StreamPool(collected)).assemble_capture(capture)
        timer.join()
    check(collected, port)


def test_follow_gives_streams_while_the_interface_runs(tcpreasm: ModuleType, library: str, port: int) -> None:
    with tcpreasm.open_live(LOOPBACK, filter=f"tcp port {port}", library=library) as capture:
        streams: Iterator[Any] = tcpreasm.follow(capture)
        fetch(port)
        first, second = next(streams), next(streams)
        assert not capture.stopped
        capture.stop()
        assert list(streams) == []
    bodies = {stream.key.transport_flow.src == port: stream.data for stream in (first, second)}
    assert bodies[True].endswith(BODY)
    assert bodies[False].startswith(REQUEST)


def test_readers_on_asyncio_while_the_interface_runs(tcpreasm: ModuleType, library: str, port: int) -> None:
    """Each side is read while the capture goes on, which ends by being left."""

    async def main(capture: Any) -> dict[bool, bytes]:
        readers = tcpreasm.aio.readers(capture)
        await asyncio.to_thread(fetch, port)
        pair = [await anext(readers), await anext(readers)]
        got = {reader.key.transport_flow.src == port: await reader.read() for reader in pair}
        assert all(reader.at_eof() for reader in pair)
        assert not capture.stopped
        await readers.aclose()
        assert not [thread for thread in threading.enumerate() if thread.name == "tcpreasm-aio"]
        return got

    with tcpreasm.open_live(LOOPBACK, filter=f"tcp port {port}", library=library) as capture:
        got = asyncio.run(asyncio.wait_for(main(capture), 60))
    assert got[True].startswith(b"HTTP/1.1 200 OK\r\n")
    assert got[True].endswith(BODY)
    assert got[False].startswith(REQUEST)


def test_follow_on_asyncio_is_cancelled_while_the_interface_is_silent(tcpreasm: ModuleType, library: str, port: int) -> None:
    async def main(capture: Any) -> list[bytes]:
        got: list[bytes] = []
        both = asyncio.Event()

        async def consume() -> None:
            async for stream in tcpreasm.aio.follow(capture):
                got.append(stream.data)
                if len(got) == 2:
                    both.set()

        task = asyncio.create_task(consume())
        await asyncio.to_thread(fetch, port)
        await both.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert not [thread for thread in threading.enumerate() if thread.name == "tcpreasm-aio"]
        return got

    with tcpreasm.open_live(LOOPBACK, filter=f"tcp port {port}", library=library) as capture:
        request, answer = sorted(asyncio.run(asyncio.wait_for(main(capture), 60)), key=len)
        with pytest.raises(ValueError, match="was closed"):
            capture.poll()
    assert request.startswith(REQUEST)
    assert answer.endswith(BODY)
