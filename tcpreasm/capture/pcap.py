"""The pcap file format, as a capture. The reader is in the core (records): the loop over the packets is its own."""

from __future__ import annotations

from .._select import core
from .base import FileCapture
from .source import Source

__all__ = ["PcapCapture"]


class PcapCapture(FileCapture):
    """A pcap file.

    Args:
        stream: where the rest comes from. Closed with this.
        head: what was read of it: at least the 24 bytes of the file's header, or all there is.
    """

    def __init__(self, stream: Source, head: bytes) -> None:
        super().__init__("pcap", stream, core.PcapRecords(stream, head))
