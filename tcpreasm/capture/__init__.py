"""Sources of frames: capture files (pcap, pcapng, also compressed) and live interfaces.

Lives here: opening captures, and nothing else; the core reads the records of files, and frames are decoded elsewhere. Beside the core
it needs the standard library alone: zstd (before Python 3.14) and live capture import their library when they are first used.

    base      Capture, what every source of frames is
    source    bytes out of a path, a file object, memory or standard input, decompressed
    files     open_capture: which format is it?
    pcap      the pcap format
    pcapng    the pcapng format
    live      open_live: interfaces, through pypcap or cypcap
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..frame import Frame
from .base import Capture, FileCapture
from .files import open_capture
from .source import CaptureSource

if TYPE_CHECKING:
    from .live import Drops, LiveCapture, open_live

__all__ = ["Capture", "CaptureSource", "Drops", "FileCapture", "Frame", "LiveCapture", "open_capture", "open_live"]

_LIVE = ("Drops", "LiveCapture", "open_live")


def __getattr__(name: str) -> Any:
    """What has to do with interfaces, imported when it is first asked for: most programs read files."""
    if name not in _LIVE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from . import live

    return getattr(live, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_LIVE})
