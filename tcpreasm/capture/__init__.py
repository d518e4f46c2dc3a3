"""Sources of frames: capture files (pcap, pcapng, also compressed) and live interfaces.

Lives here: reading captures, and nothing else; frames are decoded elsewhere. Depends on neither core, and on the standard
library alone: zstd (before Python 3.14) and live capture import their library when they are first used.

    base      Frame, and Capture, what every source of frames is
    source    bytes out of a path, a file object, memory or standard input, decompressed
    files     open_capture: which format is it?
    pcap      the pcap format
    pcapng    the pcapng format
    live      open_live: interfaces, through pypcap or cypcap
"""

from __future__ import annotations

from .base import Capture, Frame
from .files import open_capture
from .live import Drops, LiveCapture, open_live
from .source import CaptureSource

__all__ = ["Capture", "CaptureSource", "Drops", "Frame", "LiveCapture", "open_capture", "open_live"]
