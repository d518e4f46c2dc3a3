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

from ..frame import Frame
from .base import Capture, FileCapture
from .files import open_capture
from .live import Drops, LiveCapture, open_live
from .source import CaptureSource

__all__ = ["Capture", "CaptureSource", "Drops", "FileCapture", "Frame", "LiveCapture", "open_capture", "open_live"]
