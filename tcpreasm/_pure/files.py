"""Streams that write to files: FileStream, and the FilePool that bounds the number of open files.

Lives here: the reference of what the compiled ones do. `write` is called about once a packet with payload, the rest about once a file.
"""

from __future__ import annotations

import errno
import os
import threading
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from functools import lru_cache
from typing import Any

from ..flow import Flow
from ..options import DEFAULT_MAX_OPEN_FILES, check_number
from .reassembly import Reassembly
from .streams import _GapStream

__all__ = ["FilePool", "FileStream", "FlowPaths", "flow_name"]

_GATHERED = 1 << 16  # bytes that a file gathers before they are written
_BUFFERED_TOTAL = 1 << 25  # bytes that all files of a pool may have gathered; beyond, the longest unused are written out


class FilePool:
    """The open files of many FileStreams: the least recently written one is closed when too many are open, and opened again when
    its stream goes on.

    Args:
        max_open: files that may be open at once. Where the system allows fewer, fewer it is.
        write_behind: the files of streams may be made when their bytes are written, and written and closed by a thread of the pool's
            own, after `reassembly_complete`: faster where streams are many and short. Then an OSError is raised, with the file's name,
            by a later call of any of the pool's streams, one by each call, and `close` raises one for all that are left, with their
            number; files are there after `close`. (A file that exists and may not be overwritten is found at once, unless it comes in
            the meantime.) Streams of one path must follow one another: who begins before the former is complete may find its file or
            not. Not for a child that fork() makes meanwhile: once it was used, `close` does nothing there, and the rest raises
            RuntimeError. (The pure core has no such thread, and does all at once.)

    Small writes are gathered, up to 64 KiB a file and 32 MiB in all. What the system refuses to write is lost, and raises OSError in the
    call that found out.

    Made to be closed, best by a `with` block: only then all is on disk. (Where the block ends by an exception, that passes, and not the
    OSError of files that could not be written.) Safe to share between threads.
    """

    _closed = True  # until there is something to close

    def __init__(self, max_open: int = DEFAULT_MAX_OPEN_FILES, *, write_behind: bool = False) -> None:
        check_number("max_open", max_open, "files")
        self._max_open = max_open
        self._lock = threading.Lock()
        self._files: dict[str, _File] = {}
        self._open: OrderedDict[_File, None] = OrderedDict()  # the least recently written first
        self._gathering: OrderedDict[_File, None] = OrderedDict()  # those that hold bytes, the longest waiting first
        self._gathered = 0
        self._closed = False
        self._failures: list[OSError] = []  # that no call raised yet

    def __del__(self) -> None:
        if not self._closed:
            with suppress(OSError):
                self.close()

    def __len__(self) -> int:
        return len(self._open)

    @property
    def max_open(self) -> int:
        """Files that may be open at once: as given, or fewer since the system refused more."""
        return self._max_open

    def create(self, path: str, *, overwrite: bool = False) -> None:
        """Makes an empty file and keeps it open. FileExistsError where there is one, unless overwrite is set."""
        self.finish(path)  # where it was created before
        with self._lock:
            self._new_file(path, os.O_CREAT | (os.O_TRUNC if overwrite else os.O_EXCL))

    def write(self, path: str, offset: int, data: bytes) -> None:
        """Writes at an offset of a file that `create` made. An offset beyond the end leaves a hole, which reads as zeros."""
        with self._lock:
            self._put(self._files.get(path) or self._new_file(path, 0), offset, data)
            while self._gathered > _BUFFERED_TOTAL:
                self._write_out(next(iter(self._gathering)))
            self._raise_failure()

    def finish(self, path: str, size: int | None = None) -> None:
        """Closes a file. It gets the given size, where one is given: a hole at its end needs no bytes."""
        with self._lock:
            file = self._files.get(path)
            if file is None:
                if size is None:
                    return
                file = self._new_file(path, 0)
            del self._files[path]
            self._write_out(file)
            try:
                if size is not None:
                    os.ftruncate(self._descriptor(file), size)
            except OSError as error:
                self._note(error, file)
            self._close_file(file)
            self._raise_failure()

    def close(self) -> None:
        """Closes all files. Later writes raise ValueError. One OSError tells of all files that could not be written, and were not told of
        before: it names the first one, and says how many errors there are besides."""
        with self._lock:
            for file in list(self._gathering):  # a full disk: the others still have to be closed
                self._write_out(file)
            for file in list(self._open):
                self._close_file(file)
            self._files.clear()
            self._closed = True
            failures, self._failures = self._failures, []
            if len(failures) > 1:
                first, others = failures[0], len(failures) - 1
                raise OSError(first.errno, f"{first.strerror} (and {others} more errors of files of this pool)", first.filename)
            if failures:
                raise failures[0]

    def __enter__(self) -> FilePool:
        return self

    def __exit__(self, *exc_info: object) -> None:
        try:
            self.close()
        except OSError:
            if not exc_info or exc_info[0] is None:  # else the block's own error says more
                raise

    def _new_file(self, path: str, flags: int) -> _File:
        file = _File(path)
        self._open_file(file, flags)
        self._raise_failure()
        self._files[path] = file
        return file

    def _descriptor(self, file: _File) -> int:
        if file in self._open:
            self._open.move_to_end(file)
        else:
            self._open_file(file, 0)
        return file.descriptor

    def _open_file(self, file: _File, flags: int) -> None:
        if self._closed:
            raise ValueError("this FilePool is closed")
        while True:
            while len(self._open) >= self._max_open:
                self._close_file(next(iter(self._open)))
            try:
                file.descriptor = os.open(file.path, flags | os.O_WRONLY | os.O_CLOEXEC, 0o666)
                break
            except OSError as error:
                if error.errno not in (errno.EMFILE, errno.ENFILE) or not self._open:
                    raise
                self._max_open = len(self._open)  # the system allows no more
        self._open[file] = None

    def _close_file(self, file: _File) -> None:
        if file in self._open:
            del self._open[file]
            try:
                os.close(file.descriptor)
            except OSError as error:
                self._note(error, file)

    def _put(self, file: _File, offset: int, data: bytes) -> None:
        if self._closed:
            raise ValueError("this FilePool is closed")
        if offset != file.offset + len(file.waiting) or len(file.waiting) + len(data) > _GATHERED:
            self._write_out(file)
            file.offset = offset
        file.waiting += data
        self._gathered += len(data)
        self._gathering[file] = None
        if len(file.waiting) > _GATHERED:
            self._write_out(file)

    def _write_out(self, file: _File) -> None:
        """Writes what waits. Bytes that the system refuses are lost, and noted; their place stays empty."""
        if not file.waiting:
            return
        data, file.waiting = file.waiting, bytearray()
        offset, file.offset = file.offset, file.offset + len(data)
        self._gathered -= len(data)
        del self._gathering[file]
        try:
            descriptor = self._descriptor(file)
            with memoryview(data) as left:
                done = 0
                while done < len(data):
                    done += _write_at(descriptor, left[done:], offset + done)
        except OSError as error:
            self._note(error, file)

    def _note(self, error: OSError, file: _File) -> None:
        error.filename = os.fsdecode(file.path)
        self._failures.append(error)

    def _raise_failure(self) -> None:
        if self._failures:
            raise self._failures.pop(0)


class _File:
    __slots__ = ("descriptor", "offset", "path", "waiting")

    def __init__(self, path: str) -> None:
        self.path = path
        self.descriptor = -1  # good while the pool has it open
        self.offset = 0  # in the file: where the bytes that wait begin
        self.waiting = bytearray()


def _write_at(descriptor: int, data: memoryview, offset: int) -> int:
    try:
        return os.pwrite(descriptor, data, offset)
    except OSError as error:
        if error.errno != errno.ESPIPE:
            raise
        return os.write(descriptor, data)  # a pipe: bytes only ever follow each other


@lru_cache(1 << 14)
def _address(raw: bytes) -> str:
    if len(raw) == 4:
        return ".".join(f"{byte:03}" for byte in raw)
    return ".".join(raw[at : at + 2].hex() for at in range(0, 16, 2))


def flow_name(net_flow: Flow, transport_flow: Flow) -> str:
    """tcpflow's name for what the flows' source sends: 010.000.000.001.09999-010.000.000.002.36559. TypeError for other flows than
    those of TCP over IP."""
    src, dst = net_flow.raw_src, net_flow.raw_dst
    src_port, dst_port = transport_flow.raw_src, transport_flow.raw_dst
    if type(src) is not bytes or type(dst) is not bytes or len(src) != len(dst) or len(src) not in {4, 16}:
        raise TypeError(f"a file's name takes two addresses of 4 or of 16 bytes, not {src!r:.80} and {dst!r:.80}")
    for port in (src_port, dst_port):
        if not isinstance(port, int) or not 0 <= port <= 65535:
            raise TypeError(f"a file's name takes ports, 0 to 65535, not {port!r:.80}")
    return f"{_address(src)}.{int(src_port):05}-{_address(dst)}.{int(dst_port):05}"


class FlowPaths:
    """Names files in a folder as tcpflow does; a later stream of the same flows gets a suffix: c1, c2, ... Called with two flows, it gives
    the next path for them. For the `path` of many FileStreams.

    Args:
        folder: a str. It is not made.
    """

    def __init__(self, folder: str) -> None:
        self._prefix = os.path.join(folder, "")
        self._numbers: dict[str, int] = {}  # of streams that had a name

    def __call__(self, net_flow: Flow, transport_flow: Flow) -> str:
        name = flow_name(net_flow, transport_flow)
        number = self._numbers.get(name, 0)
        self._numbers[name] = number + 1
        return f"{self._prefix}{name}c{number}" if number else self._prefix + name


class FileStream(_GapStream):
    """Writes a stream to a file as it comes. The file is made with the first byte, or with the first write where the pool writes behind: a
    stream without bytes leaves none.

    Args:
        net_flow, transport_flow: as for ByteCountStream.
        path: the file's path, or a callable that gives it when it is needed, or the tcpreasm.streams.FlowPaths that names it after the
            flows.
        pool: the FilePool that bounds the number of open files; many streams share one, and its owner closes it.
        overwrite: replace a file that exists. Else FileExistsError, through the assembler.
        fill_gaps: leave holes, which read as zeros, where bytes are missing, so that offsets are the stream's. Else what is there is
            joined.
        context: as for ByteCountStream.
    """

    __slots__ = ("_fill_gaps", "_make_path", "_overwrite", "_path", "_pool", "_position")

    def __init__(
        self,
        net_flow: Flow | None = None,
        transport_flow: Flow | None = None,
        *,
        path: str | os.PathLike[str] | Callable[[], str | os.PathLike[str]] | FlowPaths,
        pool: FilePool,
        overwrite: bool = False,
        fill_gaps: bool = False,
        context: Any = None,
    ) -> None:
        super().__init__(net_flow, transport_flow, context=context)
        if not isinstance(pool, FilePool):
            raise TypeError(f"pool is a FilePool, not {type(pool).__name__}: {pool!r}")
        self._pool = pool
        self._overwrite = bool(overwrite)
        self._fill_gaps = bool(fill_gaps)
        self._path: str | None = None
        self._make_path = path
        self._position = 0  # in the file: where the next byte goes

    @property
    def path(self) -> str | None:
        """Where the bytes are; None as long as there were none."""
        return self._path

    @property
    def pool(self) -> FilePool:
        """As given."""
        return self._pool

    @property
    def overwrite(self) -> bool:
        """As given."""
        return self._overwrite

    @property
    def fill_gaps(self) -> bool:
        """As given."""
        return self._fill_gaps

    def reassembled(self, reassemblies: list[Reassembly]) -> object:
        """Writes the next pieces. OSError where the system refuses. STOP where that is enough, else None."""
        pieces = list(reassemblies)
        for piece in pieces:
            self._count(piece)
        failure: Exception | None = None
        for number, piece in enumerate(pieces):
            if self._fill_gaps and piece.skip > 0:
                self._position += piece.skip
            data = piece.bytes
            if not data:
                continue
            if self._path is None:
                try:
                    self._create()
                except BaseException:
                    if self._fill_gaps:  # the place of what cannot be written
                        self._position += sum(len(left) + max(left.skip, 0) for left in pieces[number:]) - max(piece.skip, 0)
                    raise
            assert self._path is not None
            try:
                self._pool.write(self._path, self._position, data)
            except OSError as error:
                failure = failure or error
            except ValueError as error:  # closed
                failure = failure or error
                continue
            self._position += len(data)
        if failure is not None:
            raise failure
        return self._whether_to_stop()

    def reassembly_complete(self) -> None:
        """Closes the file."""
        super().reassembly_complete()
        if self._path is not None:
            self._pool.finish(self._path, self._position if self._fill_gaps else None)

    def _create(self) -> None:
        if isinstance(self._make_path, FlowPaths):
            assert self._net_flow is not None
            assert self._transport_flow is not None
            path = self._make_path(self._net_flow, self._transport_flow)
        else:
            path = os.fspath(self._make_path() if callable(self._make_path) else self._make_path)
        self._pool.create(path, overwrite=self._overwrite)
        self._path = path
