"""The pcapng file format, as a capture. The reader is in the core (records): the loop over the blocks is its own."""

from __future__ import annotations

from .._select import core
from .base import FileCapture
from .source import Source

__all__ = ["PcapngCapture"]


class PcapngCapture(FileCapture):
    """A pcapng file.

    Args:
        stream: where the rest comes from. Closed with this.
        head: what was read of it: at least the first 12 bytes, or all there is.
    """

    def __init__(self, stream: Source, head: bytes) -> None:
        super().__init__("pcapng", stream, core.PcapngRecords(stream, head))
