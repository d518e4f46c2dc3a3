"""Live capture: real traffic on the loopback interface, through each library that is installed.

Skipped where this machine forbids capturing or a library is not installed, and then with a reason that cannot be overlooked.
The arguments, and the rules of stopping and closing, are tested everywhere, on a stand-in for the library.
"""

from __future__ import annotations

import contextlib
import errno
import gc
import http.client
import http.server
import importlib
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import tcpreasm.capture
from tcpreasm.capture import Drops, Frame, LiveCapture, live, open_live

LOOPBACK = {"linux": "lo", "darwin": "lo0"}.get(sys.platform, "lo0")
BODY = bytes(range(256)) * 400
LIBRARIES = {"pypcap": "pcap", "cypcap": "cypcap"}


def unusable(library: str) -> str | None:
    """Why nothing can be captured through the library here; None if it can."""
    try:
        importlib.import_module(LIBRARIES[library])
    except ImportError as error:
        return f"LIVE CAPTURE NOT TESTED: {library} is not installed ({error})"
    try:
        open_live(LOOPBACK, library=library).close()
    except PermissionError as error:
        return f"LIVE CAPTURE NOT TESTED: this machine forbids capturing ({error})"
    except OSError as error:
        return f"LIVE CAPTURE NOT TESTED: this machine cannot capture on {LOOPBACK} ({error})"
    return None


@pytest.fixture(params=sorted(LIBRARIES))
def library(request: pytest.FixtureRequest) -> str:
    reason = unusable(request.param)
    if reason is not None:
        pytest.skip(reason)
    return str(request.param)


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(BODY)))
        self.end_headers()
        self.wfile.write(BODY)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 -- the name that the base class gives it
        pass


@pytest.fixture
def port() -> Iterator[int]:
    """A real HTTP server on loopback."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield server.server_address[1]
    server.shutdown()
    thread.join()
    server.server_close()


def fetch(port: int) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request("GET", "/it")
    assert connection.getresponse().read() == BODY
    connection.close()


def sent_by(frames: list[Frame], port: int) -> bytes:
    """The bytes that the port sent on its first connection, put together from Ethernet frames in the simplest way."""
    pieces: dict[int, bytes] = {}
    start = client = None
    for frame in frames:
        data = frame.data
        header = 14 + (data[14] & 0xF) * 4
        source, target, sequence = struct.unpack_from(">HHI", data, header)
        if source != port or client not in (None, target):
            continue
        client = target
        if data[header + 13] & 2:
            start = sequence + 1
        length = struct.unpack_from(">H", data, 16)[0] or len(data) - 14
        text = data[header + (data[header + 12] >> 4) * 4 : 14 + length]
        if text:
            pieces[sequence] = text
    assert start is not None
    out = b""
    while start + len(out) in pieces:
        out += pieces[start + len(out)]
    return out


def collect(capture: LiveCapture, enough: int, seconds: float = 10.0) -> list[Frame]:
    frames: list[Frame] = []
    deadline = time.monotonic() + seconds
    while len(frames) < enough and time.monotonic() < deadline:
        frame = capture.poll(0.2)
        if frame is not None:
            frames.append(frame)
    return frames


def python(*arguments: str) -> subprocess.CompletedProcess[bytes]:
    """A process of its own, with the package that is under test."""
    root = Path(tcpreasm.capture.__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")])}
    return subprocess.run([sys.executable, *arguments], capture_output=True, env=environment, timeout=60, check=False)


# ---- on real traffic ---------------------------------------------------------------------------------------------------


def test_real_http_traffic(library: str, port: int) -> None:
    before = time.time_ns()
    with open_live(LOOPBACK, filter=f"tcp port {port}", library=library) as capture:
        assert (capture.format, capture.source_name, capture.library, capture.linktype) == ("live", LOOPBACK, library, 1)
        fetch(port)
        capture.stop()
        frames = list(capture)  # what was captured before the stop still comes
        assert capture.stopped
        assert (capture.complete, capture.problem, capture.size) == (True, None, None)
        assert capture.poll(0) is None
        drops = capture.drops
    after = time.time_ns()
    assert sent_by(frames, port).endswith(b"\r\n\r\n" + BODY)
    assert capture.packets == len(frames)
    assert capture.position == sum(len(frame.data) for frame in frames)
    for frame in frames:
        assert type(frame) is Frame
        assert type(frame.data) is bytes
        assert (frame.linktype, frame.interface, frame.wire_length) == (1, 0, len(frame.data))
        assert before - 1_000_000_000 < frame.timestamp_ns < after + 1_000_000_000
    assert [frame.timestamp_ns for frame in frames] == sorted(frame.timestamp_ns for frame in frames)
    assert type(drops) is Drops
    assert drops.received >= len(frames)
    assert drops.dropped == 0
    assert capture.drops.received >= drops.received  # the last ones stay, once it is closed


def test_each_packet_at_once_with_timeout_0(library: str, port: int) -> None:
    with open_live(LOOPBACK, filter=f"tcp port {port}", timeout=0, library=library) as capture:
        fetch(port)
        frames = collect(capture, 8)
        assert len(frames) >= 8
        assert sent_by(frames, port).startswith(b"HTTP/1.1 200 OK\r\n")


def test_poll_keeps_its_time(library: str, port: int) -> None:
    with open_live(LOOPBACK, filter=f"tcp port {port}", library=library) as capture:
        for timeout in (0.0, 0.3):
            start = time.monotonic()
            assert capture.poll(timeout) is None
            assert timeout - 0.01 <= time.monotonic() - start < timeout + 3
        # Packets that the filter leaves out wake nobody for good.
        noise = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        start = time.monotonic()
        with noise:
            noise.sendto(b"x", ("127.0.0.1", 9))
            assert capture.poll(0.3) is None
        assert 0.29 <= time.monotonic() - start < 3.3
        assert not capture.stopped


def test_filter_and_snaplen(library: str, port: int) -> None:
    with (
        open_live(LOOPBACK, filter=f"src port {port}", snaplen=100, library=library) as cut,
        open_live(LOOPBACK, filter="tcp port 1", library=library) as none,
    ):
        fetch(port)
        cut.stop()
        frames = list(cut)
        none.stop()
        assert list(none) == []
    assert max(len(frame.data) for frame in frames) == 100
    assert {struct.unpack_from(">H", frame.data, 34)[0] for frame in frames} == {port}
    longest = max(frame.wire_length for frame in frames)
    assert longest > 1000 if library == "cypcap" else longest == 100 + 65_535  # pypcap does not tell: the IP header does


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has the interface any")
def test_interface_any(library: str, port: int) -> None:
    """pypcap fails on it in promiscuous mode, cypcap with a filter: the adapter must not."""
    with open_live("any", filter=f"tcp port {port}", library=library) as capture:
        assert capture.linktype in (113, 276)
        fetch(port)
        capture.stop()
        assert len(list(capture)) > 8


def test_many_packets_at_once(library: str) -> None:
    """20,000 packets before the first look: more than one call to the library can hold, and none is lost."""
    receiver = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    receiver.bind(("127.0.0.1", 0))
    target = receiver.getsockname()
    with (
        receiver,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender,
        open_live(LOOPBACK, filter=f"udp dst port {target[1]}", library=library) as capture,
    ):
        for i in range(20_000):
            sender.sendto(struct.pack(">I", i), target)
        capture.stop()
        frames = list(capture)
        assert capture.drops.dropped == 0
    assert [struct.unpack_from(">I", frame.data, 42)[0] for frame in frames] == list(range(20_000))


def test_stop_from_another_thread_wakes_the_waiting_one(library: str, port: int) -> None:
    with open_live(LOOPBACK, filter=f"tcp port {port}", library=library) as capture:
        timer = threading.Timer(0.3, capture.stop)
        timer.start()
        start = time.monotonic()
        assert list(capture) == []
        assert 0.2 < time.monotonic() - start < 3
        timer.join()
        assert list(capture) == []


def test_close_from_another_thread_while_one_waits(library: str, port: int) -> None:
    for _ in range(20):
        capture = open_live(LOOPBACK, filter=f"tcp port {port}", library=library)
        frames = iter(capture)
        timer = threading.Timer(0.01, capture.close)
        timer.start()
        assert next(frames, None) is None
        timer.join()
        capture.close()


def test_nothing_crashes_after_close(library: str) -> None:
    capture = open_live(LOOPBACK, library=library)
    capture.close()
    capture.close()
    capture.stop()
    assert type(capture.drops) is Drops
    with pytest.raises(ValueError, match="closed"):
        capture.poll(0)
    with pytest.raises(ValueError, match="closed"):
        iter(capture)
    assert next(capture, None) is None
    assert "lo" in repr(capture)
    del capture
    gc.collect()


def test_descriptors_are_given_back(library: str) -> None:
    folder = Path("/proc/self/fd")
    if not folder.is_dir():
        pytest.skip("no /proc here to count open files in")
    open_live(LOOPBACK, library=library).close()
    gc.collect()
    before = len(list(folder.iterdir()))
    for i in range(10):
        capture = open_live(LOOPBACK, library=library)
        if i % 2:
            capture.close()  # else the garbage collector does it
        del capture
        with contextlib.suppress(ValueError):
            open_live(LOOPBACK, filter="this is no filter", library=library)
    gc.collect()
    assert len(list(folder.iterdir())) == before


@pytest.mark.skipif(os.name != "posix", reason="signals are sent as POSIX knows them")
def test_ctrl_c_comes_out_as_anywhere_else(library: str, port: int) -> None:
    before = signal.getsignal(signal.SIGINT)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with open_live(LOOPBACK, filter=f"tcp port {port}", library=library) as capture:
            fetch(port)
            timer = threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT))
            timer.start()
            frames: list[Frame] = []
            with pytest.raises(KeyboardInterrupt):
                frames.extend(capture)
            timer.join()
            assert sent_by(frames, port).endswith(BODY)
            # The capture is intact: it goes on, and ends in order.
            fetch(port)
            capture.stop()
            assert len(list(capture)) > 8
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        # And so is the handler in C, which pypcap replaces when it is iterated: the next Ctrl-C arrives too.
        timer = threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT))
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            time.sleep(5)
        timer.join()
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.skipif(os.name != "posix", reason="signals are sent as POSIX knows them")
def test_stop_and_close_in_a_signal_handler(library: str, port: int) -> None:
    for method in ("stop", "close"):
        capture = open_live(LOOPBACK, filter=f"tcp port {port}", library=library)
        act = getattr(capture, method)
        before = signal.signal(signal.SIGALRM, lambda *_, act=act: act())
        try:
            signal.setitimer(signal.ITIMER_REAL, 0.2)
            start = time.monotonic()
            assert list(capture) == []
            assert time.monotonic() - start < 3
        finally:
            signal.signal(signal.SIGALRM, before)
        capture.close()


def test_nothing_is_printed_and_nothing_warned(library: str) -> None:
    """cypcap prints the netmask when a filter is set, and warns; the process that captures must see none of it."""
    code = (
        "import sys, gc\n"
        "from tcpreasm.capture import open_live\n"
        f"for name in ({LOOPBACK!r}, 'any') if sys.platform == 'linux' else ({LOOPBACK!r},):\n"
        f"    capture = open_live(name, filter='tcp', library={library!r})\n"
        "    capture.poll(0); capture.drops; del capture; gc.collect()\n"
    )
    done = python("-W", "error", "-c", code)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def test_what_cannot_be_opened(library: str) -> None:
    with pytest.raises(OSError, match="no-such-if") as caught:
        open_live("no-such-if", library=library)
    assert caught.value.errno == errno.ENODEV
    with pytest.raises(ValueError, match=r"the filter 'no such filter' is not understood: .*syntax error"):
        open_live(LOOPBACK, filter="no such filter", library=library)
    with pytest.raises(OSError, match="x" * 300):
        open_live("x" * 300, library=library)


@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="takes root, to give up its rights")
def test_capturing_forbidden(library: str) -> None:
    code = (
        f"import os, {LIBRARIES[library]}\n"
        "from tcpreasm.capture import open_live\n"
        "os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
        "try:\n"
        f"    open_live({LOOPBACK!r}, library={library!r})\n"
        "except PermissionError as error:\n"
        "    print(error)\n"
    )
    done = python("-c", code)
    assert done.returncode == 0, done.stderr
    assert b"capturing on lo is not permitted (on Linux it takes CAP_NET_RAW)" in done.stdout


def test_a_file_named_like_the_interface(library: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """pypcap would open it in place of the interface, and read a capture that is none."""
    (tmp_path / LOOPBACK).write_bytes(b"\xd4\xc3\xb2\xa1" + bytes(20))
    monkeypatch.chdir(tmp_path)
    if library == "pypcap":
        with pytest.raises(ImportError, match="would read the file"):
            open_live(LOOPBACK, library=library)
    else:
        open_live(LOOPBACK, library=library).close()


# ---- without a library -------------------------------------------------------------------------------------------------


class StandIn:
    """A library that has what the test gives it."""

    fd: int | None = None
    linktype = 1
    wait_limit: float | None = None

    def __init__(self, *batches: list[Frame] | OSError) -> None:
        self.batches = list(batches)
        self.closed = 0

    def read(self, queue: deque[Frame]) -> int:
        assert not self.closed, "used after close"
        if not self.batches:
            return 0
        batch = self.batches.pop(0)
        if isinstance(batch, OSError):
            raise batch
        queue.extend(batch)
        return len(batch)

    def stats(self) -> Drops:
        assert not self.closed, "used after close"
        return Drops(7, 2, 1)

    def close(self) -> None:
        self.closed += 1


def frame(seconds: float) -> Frame:
    return Frame(b"data", int(seconds * 1e9), 4, 1)


def test_stand_in_polls_counts_and_ends() -> None:
    library = StandIn([frame(1), frame(2)], [frame(3)])
    capture = LiveCapture("if0", library, "pypcap", 100, 0.0)
    assert [capture.poll() for _ in range(4)] == [frame(1), frame(2), frame(3), None]
    assert not capture.stopped
    assert not capture.complete
    assert (capture.packets, capture.position, capture.drops) == (3, 12, Drops(7, 2, 1))
    library.batches.append([frame(4), frame(time.time() + 100), frame(5)])
    capture.stop()
    assert list(capture) == [frame(4)]  # what is later than the stop is not waited for
    assert capture.stopped
    assert capture.complete
    capture.close()
    capture.close()
    assert library.closed == 1
    assert capture.drops == Drops(7, 2, 1)


def test_stand_in_that_breaks() -> None:
    capture = LiveCapture("if0", StandIn([frame(1)], OSError("The interface disappeared")), "cypcap", 100, 0.0)
    assert list(capture) == [frame(1)]
    assert capture.stopped
    assert not capture.complete
    assert capture.problem == "capturing on if0 broke: The interface disappeared"
    assert capture.poll(5) is None
    capture.close()


def test_close_while_the_library_is_in_use() -> None:
    """As from a signal handler in the middle of a read: the library must not be closed under its own feet."""

    class Closing(StandIn):
        def read(self, queue: deque[Frame]) -> int:
            capture.close()
            assert not self.closed
            return super().read(queue)

    library = Closing([frame(1)])
    capture = LiveCapture("if0", library, "pypcap", 100, 0.0)
    assert list(capture) == []
    assert library.closed == 1


def test_arguments_are_checked() -> None:
    wrong: list[tuple[type[Exception], dict[str, Any]]] = [
        (TypeError, {"interface": 5}),
        (TypeError, {"interface": None}),
        (ValueError, {"interface": ""}),
        (ValueError, {"interface": "a\0b"}),
        (TypeError, {"filter": b"tcp"}),
        (ValueError, {"filter": "tcp\0"}),
        (TypeError, {"snaplen": 1.5}),
        (TypeError, {"snaplen": True}),
        (ValueError, {"snaplen": 0}),
        (ValueError, {"snaplen": 262_145}),
        (TypeError, {"timeout": "1"}),
        (ValueError, {"timeout": -1}),
        (ValueError, {"timeout": float("nan")}),
        (ValueError, {"buffer_bytes": 0}),
        (ValueError, {"library": "libpcap"}),
    ]
    for error, arguments in wrong:
        with pytest.raises(error):
            open_live(**{"interface": LOOPBACK, **arguments})


def test_without_a_library_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pcap", None)
    monkeypatch.setitem(sys.modules, "cypcap", None)
    with pytest.raises(ImportError, match=r"pip install 'tcpreasm\[live\]'"):
        open_live(LOOPBACK)


def test_another_module_named_pcap_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pcap", type(sys)("pcap"))
    with pytest.raises(ImportError, match="not pypcap's"):
        open_live(LOOPBACK, library="pypcap")


def test_which_library_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = []

    def recorder(name: str) -> Any:
        def make(*arguments: object) -> StandIn:
            taken.append(name)
            if name in absent:
                raise ImportError(name)
            return StandIn()

        return make

    monkeypatch.setattr(live, "_LIBRARIES", {name: recorder(name) for name in LIBRARIES})
    absent: set[str] = set()
    for version, missing, expected in (
        ((3, 10), (), ["pypcap"]),
        ((3, 11), ("pypcap",), ["pypcap", "cypcap"]),
        ((3, 12), (), ["cypcap"]),
        ((3, 13), ("cypcap",), ["cypcap", "pypcap"]),
    ):
        taken.clear()
        absent = set(missing)
        monkeypatch.setattr(sys, "version_info", version)
        capture = open_live("if0")
        assert (taken, capture.library) == (expected, expected[-1])
        capture.close()
