"""The exceptions of this package that are more than a TypeError or ValueError."""

from __future__ import annotations

from .flow import ConnectionKey

__all__ = ["CaptureError", "DataLost", "no_handler", "no_stream"]


class CaptureError(ValueError):
    """A source that is no capture, or one of a kind that is not read here.

    Args:
        text: names the source, and what was found.
    """

    def __init__(self, text: str) -> None:
        super().__init__(text)


class DataLost(OSError):
    """Raised by `ReaderStream` once for each gap, if asked to; reading can go on behind it.

    Args:
        skip: number of missing bytes, -1 where the start of the stream was never seen. An attribute, too.
    """

    def __init__(self, skip: int) -> None:
        super().__init__("the start of the stream was not captured" if skip < 0 else f"{skip} bytes are missing here")
        self.skip = skip


def no_stream(made: object, key: ConnectionKey) -> TypeError:
    """What the cores raise where a factory made something without the methods of a stream."""
    return TypeError(f"the factory gave {made!r:.80} for {key}: a stream has reassembled() and reassembly_complete()")


def no_handler(made: object, key: ConnectionKey) -> TypeError:
    """The same for a factory of a ConversationPool."""
    return TypeError(f"the factory gave {made!r:.80} for {key}: a handler has reassembled() and conversation_complete()")
