"""`open_live`: frames from a network interface, through pypcap or cypcap, whichever is installed.

Lives here: the one adapter over both libraries, and what it takes to hide their faults (each is named where it is hidden).
Capture files need none of this. `poll` runs once a packet; the libraries are asked for up to 256 at a time.
"""

from __future__ import annotations

import contextlib
import errno
import importlib
import math
import os
import select
import socket
import sys
import threading
import time
import warnings
from collections import deque
from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol

from ..clock import seconds_to_ns
from ..packets import MAX_IP_BYTES
from .base import Capture, Frame

__all__ = ["Drops", "LiveCapture", "borrow_handle", "open_live"]

_BATCH = 256
_DLT_RAW = {12: 101, 14: 101}  # raw IP: its DLT_ number differs between systems, its LINKTYPE_ number does not
_BORROWED_TIMEOUT = 0.5  # seconds that packets may wait in a handle whose timeout nobody tells: pypcap's default
_NAP = 0.01  # seconds between two looks where the system has nothing to wait on


class Drops(NamedTuple):
    """What became of the packets of a live capture, as libpcap counts it (pcap_stats)."""

    received: int
    """Packets that reached the capture. On Linux's loopback each counts twice, outgoing and incoming."""
    dropped: int
    """Packets lost because the buffer was full."""
    interface_dropped: int
    """Packets lost by the interface or its driver; 0 where that is not counted."""


class _Library(Protocol):
    """What LiveCapture needs of a library. Never called after close."""

    fd: int | None
    linktype: int
    wait_limit: float | None

    def read(self, queue: deque[Frame]) -> int:
        """Append what is there, at most _BATCH frames, without waiting; how many. OSError where capturing broke."""

    def stats(self) -> Drops: ...
    def close(self) -> None: ...


def _linktype(datalink: int) -> int:
    return _DLT_RAW.get(datalink, datalink)


def _open_error(interface: str, text: str, code: str = "") -> OSError:
    """The right OSError for what a library says, by libpcap's code where the library gives it, else by its words."""
    low = text.lower()
    if code.endswith("PERM_DENIED") or "permission" in low or "not permitted" in low:
        return PermissionError(errno.EPERM, f"capturing on {interface} is not permitted (on Linux it takes CAP_NET_RAW): {text}")
    if code == "NO_SUCH_DEVICE" or "no such device" in low or "no such network device" in low or "doesn't exist" in low:
        return OSError(errno.ENODEV, f"there is no interface {interface}: {text}")
    return OSError(f"capturing on {interface} cannot start: {text}")


def _filter_error(expression: str, error: object) -> ValueError:
    text = error.decode(errors="replace") if isinstance(error, bytes) else str(error)
    return ValueError(f"the filter {expression!r} is not understood: {text}")


class _Pypcap:
    """Over pypcap 1.3 (module `pcap`).

    Faults hidden: `pcap()` reads a file of the interface's name if there is one; it fails on libpcap's mere warnings (no
    promiscuous mode on "any"); seconds are floats unless asked otherwise; iterating replaces the handler of SIGINT for good
    and cannot return without a packet, so frames come through `dispatch`, in non-blocking mode, where it does not hold the
    GIL while it waits; any use after close() crashes. What cannot be hidden: it does not tell the wire length; an
    upper bound stands for it where the snaplen cut.
    """

    def __init__(self, interface: str, snaplen: int, promiscuous: bool, expression: str | None, timeout: float, buffer_bytes: int) -> None:
        module = importlib.import_module("pcap")
        if not hasattr(module, "pcap") or not hasattr(module, "bpf"):
            raise ImportError("the module pcap is not pypcap's", name="pcap")
        if os.path.exists(interface):
            raise ImportError(f"pypcap would read the file {interface} in place of the interface", name="pcap")
        milliseconds = math.ceil(timeout * 1000)

        def start(promiscuous: bool) -> Any:
            return module.pcap(
                interface,
                snaplen=snaplen,
                promisc=promiscuous,
                timeout_ms=milliseconds,
                immediate=not milliseconds,
                timestamp_in_ns=True,
                buffer_size=buffer_bytes,
            )

        try:
            try:
                handle = start(promiscuous)
            except OSError as error:
                if not promiscuous or "romiscuous" not in str(error):
                    raise
                handle = start(False)
        except OSError as error:
            text = str(error).rpartition("library was ")[2]
            raise _open_error(interface, text[2:-1] if text.startswith("b'") else text) from None
        self._handle = handle
        self._snaplen = snaplen
        self._in_ns = True
        try:
            if expression:
                try:
                    handle.setfilter(expression)
                except OSError as error:
                    raise _filter_error(expression, error.args[0] if error.args else "") from None
            handle.setnonblock(True)
            self._begin()
        except BaseException:
            self.close()
            raise

    def _begin(self) -> None:
        descriptor = int(self._handle.fileno())
        self.fd = descriptor if descriptor >= 0 else None
        self.linktype = _linktype(int(self._handle.datalink()))
        self.wait_limit: float | None = None

    def read(self, queue: deque[Frame]) -> int:
        linktype, snaplen, in_ns = self.linktype, self._snaplen, self._in_ns

        def collect(seen: Any, data: bytes) -> None:
            size = len(data)
            timestamp_ns = seen if in_ns else seconds_to_ns(seen)
            queue.append(Frame(data, timestamp_ns, size if size < snaplen else size + MAX_IP_BYTES, linktype))

        count = int(self._handle.dispatch(_BATCH, collect))
        if count < 0:
            text = self._handle.geterr()
            raise OSError(text.decode(errors="replace") if isinstance(text, bytes) else str(text))
        return count

    def stats(self) -> Drops:
        return Drops(*map(int, self._handle.stats()))

    def close(self) -> None:
        self._handle.close()


class _Borrowed(_Pypcap):
    """Over a handle of pypcap that the caller has opened, and goes on using afterwards: it must not be closed here."""

    def __init__(self, handle: Any) -> None:
        self._handle = handle
        self._snaplen = int(handle.snaplen)
        self._in_ns = handle.timestamp_in_ns
        self._waited = not handle.getnonblock()
        handle.setnonblock(True)
        self._begin()

    def close(self) -> None:
        if self._waited:
            self._handle.setnonblock(False)


class _Cypcap:
    """Over cypcap 0.6.

    Faults hidden: `setfilter` prints the netmask to standard output and fails on interfaces without an address, unless it is
    told the netmask; time stamps asked for in nanoseconds come out wrong (they are divided as if they were microseconds), so
    these are in microseconds, exactly; warnings are Python warnings.
    """

    def __init__(self, interface: str, snaplen: int, promiscuous: bool, expression: str | None, timeout: float, buffer_bytes: int) -> None:
        module = importlib.import_module("cypcap")
        self._error: type[Exception] = module.Error
        try:
            handle = module.create(interface)
        except self._error as error:
            raise _open_error(interface, *self._said(error)) from None
        self._handle = handle
        try:
            try:
                handle.set_snaplen(snaplen)
                handle.set_promisc(promiscuous)
                handle.set_buffer_size(buffer_bytes)
                if timeout:
                    handle.set_timeout(math.ceil(timeout * 1000) / 1000)
                else:
                    handle.set_immediate_mode(True)
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", module.Warning)
                    handle.activate()
                if expression:
                    try:
                        handle.setfilter(expression, netmask=module.NETMASK_UNKNOWN)
                    except self._error as error:
                        raise _filter_error(expression, self._said(error)[0]) from None
                handle.setnonblock(True)
                self.linktype = _linktype(int(handle.datalink()))
            except self._error as error:
                raise _open_error(interface, *self._said(error)) from None
            self.fd: int | None = None
            self.wait_limit: float | None = None
            if os.name == "posix":
                try:
                    self.fd = int(handle.get_selectable_fd())
                    self.wait_limit = handle.get_required_select_timeout()
                except self._error:
                    pass  # an interface that cannot be waited for
        except BaseException:
            self.close()
            raise

    def read(self, queue: deque[Frame]) -> int:
        linktype = self.linktype
        following = self._handle.__next__
        try:
            for count in range(_BATCH):
                header, data = following()
                if header is None:
                    return count
                # A double near 2**31 is exact to 0.24 us: the microseconds that went in come out again.
                seconds = header.ts
                whole = int(seconds)
                timestamp_ns = whole * 1_000_000_000 + round((seconds - whole) * 1e6) * 1000
                queue.append(Frame(data, timestamp_ns, max(header.len, len(data)), linktype))
        except self._error as error:
            raise OSError(self._said(error)[0]) from None
        return _BATCH

    @staticmethod
    def _said(error: Exception) -> tuple[str, str]:
        """libpcap's words and the name of its code."""
        return str(getattr(error, "msg", "") or error), str(getattr(getattr(error, "code", None), "name", ""))

    def stats(self) -> Drops:
        try:
            stats = self._handle.stats()
        except self._error as error:
            raise OSError(self._said(error)[0]) from None
        return Drops(stats.recv, stats.drop, stats.ifdrop)

    def close(self) -> None:
        self._handle.close()


_LIBRARIES: dict[str, type[_Pypcap | _Cypcap]] = {"pypcap": _Pypcap, "cypcap": _Cypcap}


class LiveCapture(Capture):
    """A running capture on an interface. Made by `open_live`.

    Iterating waits for packets until `stop` is called; what was captured before the stop is still given out. Ctrl-C raises
    KeyboardInterrupt out of the iteration as out of any other Python code; the capture is intact then, and can be stopped,
    iterated to its end, asked for `drops` and closed. `poll` is the same, one frame at a time and with a time limit.

    `complete` is True once it was stopped and nothing is left; `problem` tells if capturing broke (the interface went away).
    """

    waits = True

    def __init__(self, interface: str, library: _Library, library_name: str, snaplen: int, timeout: float) -> None:
        super().__init__("live", interface, None)
        self.snaplen = snaplen
        """Bytes of a packet that are captured at most."""
        self.library = library_name
        """"pypcap" or "cypcap"."""
        self.linktype = library.linktype
        """The LINKTYPE_ number of every frame."""
        self._timeout = timeout
        self._library: _Library | None = library
        self._bytes = 0
        self._queue: deque[Frame] = deque()
        self._last_drops = Drops(0, 0, 0)
        # Guards the library: it is not safe in several threads, and any use after its close may crash.
        self._lock = threading.Lock()
        self._closing = False
        self._stop_ns: int | None = None
        self._stop_deadline = math.inf
        # A byte in it wakes a waiting poll. It is never read: stopping is for good.
        self._waker, self._woken = socket.socketpair()
        self._waker.setblocking(False)

    @property
    def position(self) -> int:
        """Bytes of the frames given out so far."""
        return self._bytes

    @property
    def stopped(self) -> bool:
        """True once the capture was stopped, or broke, and nothing is left to give out."""
        return self._ended

    @property
    def drops(self) -> Drops:
        """The counts so far; after `close`, the last ones."""
        if self._lock.acquire(timeout=1):
            try:
                if self._library is not None:
                    self._last_drops = self._library.stats()
            except OSError:
                pass  # the interface is gone
            finally:
                self._release()
        return self._last_drops

    def stop(self) -> None:
        """End the capture at this moment, from any thread or signal handler. What came before is still given out. Never waits."""
        if self._stop_ns is None:
            self._stop_deadline = time.monotonic() + self._timeout + 0.05
            self._stop_ns = time.time_ns()
            with contextlib.suppress(OSError):  # closed already
                self._waker.send(b"\0")

    def close(self) -> None:
        """End the capture and let go of the interface; frames not given out are lost. From any thread, any number of times."""
        self._closing = True
        self.stop()
        # Whoever holds the library now lets go of it for us.
        if self._lock.acquire(blocking=False):
            self._release()

    def _release(self) -> None:
        """Give up the lock, and close the library if that was asked for meanwhile."""
        while True:
            if self._closing and self._library is not None:
                library, self._library = self._library, None
                with contextlib.suppress(OSError):
                    self._last_drops = library.stats()
                library.close()
                self._waker.close()
                self._woken.close()
            self._lock.release()
            # Between the look and the release somebody may have asked.
            if not self._closing or self._library is None or not self._lock.acquire(blocking=False):
                return

    def _fetch(self) -> int:
        """Bring what the library has into the queue; how many frames. Never waits for packets."""
        self._lock.acquire()
        try:
            if self._closing or self._library is None or self._ended:
                return 0
            return self._library.read(self._queue)
        except OSError as error:
            self._fatal = f"capturing on {self.source_name} broke: {error}"
            self._ended = True
            return 0
        finally:
            self._release()

    def _wait(self, seconds: float, wakeable: bool) -> None:
        """Until there may be packets, or the time is over, or stop() is called, or was called since wakeable was found True."""
        library = self._library
        if library is None:
            return
        if library.wait_limit is not None:
            seconds = min(seconds, library.wait_limit)
        if library.fd is None or not hasattr(select, "poll"):
            time.sleep(min(seconds, _NAP))
            return
        poller = select.poll()
        poller.register(library.fd, select.POLLIN)
        if wakeable:
            try:
                poller.register(self._woken, select.POLLIN)
            except (OSError, ValueError):
                return  # closed meanwhile
        poller.poll(math.ceil(seconds * 1000))

    def _step(self, deadline: float) -> Frame | None:
        while True:
            if self._closing:
                return None
            try:
                frame = self._queue.popleft()
            except IndexError:
                pass
            else:
                if self._stop_ns is not None and frame.timestamp_ns > self._stop_ns:
                    self._queue.clear()
                    self._ended = True
                    return None
                self.packets += 1
                self._bytes += len(frame.data)
                return frame
            if self._ended or self._fetch():
                if self._queue:
                    continue
                return None
            wakeable = self._stop_ns is None
            now = time.monotonic()
            if now >= self._stop_deadline:
                self._ended = True
                return None
            if now >= deadline:
                return None
            # Looked at again every few seconds in any case: an interface that goes away need not wake anybody.
            self._wait(min(deadline - now, self._stop_deadline - now, 5.0), wakeable)

    def poll(self, timeout: float = 0.0) -> Frame | None:
        """The next frame, or None if none comes within timeout seconds, or ever (then `stopped` is True).

        Raises ValueError after `close`.
        """
        if self._closing:
            raise ValueError(f"the capture on {self.source_name} was closed")
        return self._step(time.monotonic() + max(0.0, timeout))

    def __enter__(self) -> LiveCapture:
        return self

    def __iter__(self) -> Iterator[Frame]:
        if self._closing:
            raise ValueError(f"the capture on {self.source_name} was closed")
        return self

    def __next__(self) -> Frame:
        frame = self._step(math.inf)
        if frame is None:
            raise StopIteration
        return frame

    def __del__(self) -> None:
        if hasattr(self, "_woken"):
            self.close()


def _check_name(what: str, value: object) -> None:
    if not isinstance(value, str):
        raise TypeError(f"{what} is a str, not {type(value).__name__}: {value!r}")
    if "\0" in value or (what == "interface" and not value):
        raise ValueError(f"{value!r} is no {what}")


def _check_number(what: str, value: object, limit: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{what} is an int, not {type(value).__name__}: {value!r}")
    if not 1 <= value <= limit:
        raise ValueError(f"{what} is from 1 to {limit}, not {value}")


def borrow_handle(handle: Any) -> LiveCapture:
    """A handle of pypcap over an interface, as a capture. Closing that leaves the handle open, and as it was."""
    library = _Borrowed(handle)
    return LiveCapture(handle.name, library, "pypcap", int(handle.snaplen), _BORROWED_TIMEOUT)


def open_live(
    interface: str,
    *,
    snaplen: int = 262_144,
    promiscuous: bool = True,
    filter: str | None = None,  # noqa: A002 -- the word that everybody looks for
    timeout: float = 0.05,
    buffer_bytes: int = 64 << 20,
    library: str | None = None,
) -> LiveCapture:
    """Capture on a network interface.

    Args:
        interface: its name; "any" for all of them, on Linux.
        snaplen: bytes of a packet that are captured at most, from 1 to 262144.
        promiscuous: also capture what is not addressed to this host, where the interface can.
        filter: an expression as tcpdump takes it (pcap-filter), such as "tcp port 80". None: everything.
        timeout: seconds that the kernel may hold packets back, to hand over many at once; the delay of a packet is no longer
            than that. 0: each at once (libpcap's immediate mode), which holds far fewer packets in the same buffer, since each
            takes the room of a full snaplen.
        buffer_bytes: the kernel's buffer. Packets that come while it is full are lost, and counted in `drops`.
        library: "pypcap" or "cypcap"; None: pypcap on Python 3.10 and 3.11, where it is installed, else cypcap.

    pypcap does not tell how long a packet was on the wire: there `Frame.wire_length` of a packet that fills the snaplen is 65,535 bytes
    more than was captured, so that the IP header tells what was cut off. cypcap tells it, but its times are in whole
    microseconds, where pypcap gives nanoseconds.

    Raises:
        ImportError: neither library is there (the extra `live` brings the right one).
        PermissionError: capturing is not permitted.
        OSError: there is no such interface, or it cannot be captured on.
        ValueError: the filter is not understood, or a number is out of range.
    """
    _check_name("interface", interface)
    if filter is not None:
        _check_name("filter", filter)
    _check_number("snaplen", snaplen, 262_144)
    _check_number("buffer_bytes", buffer_bytes, 2**31 - 1)
    if isinstance(timeout, bool) or not isinstance(timeout, (int, float)):
        raise TypeError(f"timeout is a number of seconds, not {type(timeout).__name__}: {timeout!r}")
    if not 0 <= timeout <= 3600:
        raise ValueError(f"timeout is from 0 to 3600 seconds, not {timeout!r}")
    if library is None:
        names = ["pypcap", "cypcap"] if sys.version_info < (3, 12) else ["cypcap", "pypcap"]
    elif library in _LIBRARIES:
        names = [library]
    else:
        raise ValueError(f"library is 'pypcap', 'cypcap' or None, not {library!r}")
    reasons = []
    for name in names:
        try:
            opened = _LIBRARIES[name](interface, snaplen, bool(promiscuous), filter, float(timeout), buffer_bytes)
        except ImportError as error:
            reasons.append(f"{name}: {error}")
            continue
        return LiveCapture(interface, opened, name, snaplen, float(timeout))
    raise ImportError(f"live capture takes pypcap or cypcap: pip install 'tcpreasm[live]' ({'; '.join(reasons)})")
