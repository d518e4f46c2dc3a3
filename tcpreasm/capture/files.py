"""`open_capture`: finds out what a source is, by its first bytes, and opens it.

Lives here: that decision, nothing else. Called once per capture.
"""

from __future__ import annotations

from ..errors import CaptureError
from ..frame import BYTE_ORDERS, PCAP_MAGICS, SECTION_MAGIC
from .base import Capture
from .pcap import PcapCapture
from .pcapng import PcapngCapture
from .source import CaptureSource, Compressed, Source, compression_of, open_source

__all__ = ["open_capture"]

# What people try to open now and then, so that the message can say more than the first bytes.
_OTHERS = (
    (b"\x1f\x8b", "gzip data inside compressed data"),
    (b"\x28\xb5\x2f\xfd", "zstd data inside compressed data"),
    (b"\xfd7zXZ\0", "xz data; decompress it first"),
    (b"BZh", "bzip2 data; decompress it first"),
    (b"\x04\x22\x4d\x18", "lz4 data; decompress it first"),
    (b"PK\x03\x04", "a zip archive; unpack it first"),
    (b"snoop\0\0\0", "a snoop capture; editcap -F pcapng turns it into one that is read here"),
    (b"GMBU", "a Network Monitor capture; editcap -F pcapng turns it into one that is read here"),
    (b"RTSS", "a Network Monitor capture; editcap -F pcapng turns it into one that is read here"),
    (b"<", "text (HTML or XML)"),
    (b"version https://git-lfs", "a Git LFS pointer; git lfs pull fetches the capture"),
)


def open_capture(source: CaptureSource) -> Capture:
    """Open a capture: pcap or pcapng, plain or compressed with gzip or zstd, told by their first bytes and not by a name.

    Args:
        source: a path, "-" for standard input, a binary file object (it need not be seekable; it is read from where it
            stands and stays open), or the capture itself as bytes, bytearray, memoryview or mmap. bytes and an mmap are read where
            they lie, an mmap from its beginning; it can be closed once the capture is, and nothing in it waits any longer. Who maps a
            file answers for it: if somebody cuts it short meanwhile, the system ends the process (SIGBUS).

    Returns:
        A Capture: iterate it for `Frame`s, read `complete` and `problem` afterwards, close it.

    Raises:
        CaptureError: the source is empty, or no capture; or zstd is needed and not there.
        OSError: opening or reading fails.
        TypeError: source is nothing that can be read.

    >>> with open_capture(bytes.fromhex("d4c3b2a1 0200 0400 00000000 00000000 ffff0000 01000000")) as capture:
    ...     list(capture), capture.complete
    ([], True)
    """
    stream = open_source(source)
    try:
        return _recognise(stream)
    except BaseException:
        stream.close()
        raise


def _recognise(stream: Source) -> Capture:
    head = stream.read_to(b"", 4)
    if not head:
        raise CaptureError(f"{stream.name} is empty")
    kind = compression_of(head)
    if kind is not None:
        stream = Compressed(stream, kind, head)
        head = stream.read_to(b"", 4)
        if not head:
            raise CaptureError(f"{stream.name} is {kind} data with nothing in it{': ' + stream.problem if stream.problem else ''}")
    if head[:4] in PCAP_MAGICS:
        return PcapCapture(stream, stream.read_to(head, 24))
    if head[:4] == SECTION_MAGIC:
        head = stream.read_to(head, 12)
        if len(head) < 12 or head[8:12] in BYTE_ORDERS:
            return PcapngCapture(stream, head)
    what = next((f", but {text}" for magic, text in _OTHERS if head.startswith(magic)), "")
    inside = "" if kind is None else f" (inside {kind})"
    raise CaptureError(f"{stream.name} is no pcap or pcapng capture{what}: it begins with the bytes {head[:16].hex(' ')}{inside}")
