"""The conversations of captures, counted from 1 in the order in which they begin, and what the two streams of each come to together.

Lives here: the numbers that `tcpreasm flows`, `follow`, `plot` and `report` have in common, and sums over two streams. Not here: which two
belong together, who is client, and how it ended (ConversationPool). Called when a stream begins, and when a conversation is complete.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .conversations import Conversation, Side
from .flow import ConnectionKey
from .streams import Stream

__all__ = ["Numbered", "Numbering"]


class Numbered:
    """A conversation that is complete, and its number. Its streams are ByteCountStreams or SpanStreams.

    Attributes:
        number: counted from 1.
        conversation: the Conversation.
        client, server: the streams; None where nothing came that opens one.
        streams: one or two of them.
    """

    __slots__ = ("client", "conversation", "number", "server", "streams")

    def __init__(self, conversation: Conversation) -> None:
        self.number: int = conversation.context
        self.conversation = conversation
        self.client, self.server = (side.stream for side in conversation.sides)
        self.streams: list[Any] = [stream for stream in (self.client, self.server) if stream is not None]

    @property
    def key(self) -> ConnectionKey:
        """Client to server."""
        return self.conversation.key

    @property
    def sent(self) -> int:
        """Bytes from client to server, as far as captured."""
        return self.client.length if self.client is not None else 0

    @property
    def received(self) -> int:
        """Bytes from server to client."""
        return self.server.length if self.server is not None else 0

    @property
    def gap_count(self) -> int:
        """Holes in both directions."""
        return sum(stream.gap_count for stream in self.streams)

    @property
    def missing(self) -> int:
        """Bytes missing there."""
        return sum(stream.skipped for stream in self.streams)

    @property
    def span_ns(self) -> tuple[int | None, int | None]:
        """Capture time of the first and of the last segment. The clock may have been set back in between, and a SYN that was only
        believed later has come before the others: what the streams were given lies in it."""
        conversation = self.conversation
        first = conversation.first_seen_ns, *(stream.first_seen_ns for stream in self.streams)
        last = conversation.last_seen_ns, *(stream.last_seen_ns for stream in self.streams)
        return min((ns for ns in first if ns is not None), default=None), max((ns for ns in last if ns is not None), default=None)

    @property
    def started(self) -> bool:
        """The SYN of each direction that was seen was captured."""
        return all(stream.started for stream in self.streams)

    @property
    def state_text(self) -> str:
        """The state, and what is not known."""
        text = self.conversation.state
        if not self.started:
            text += ", no start"
        return f"{text}, client guessed" if self.conversation.guessed else text


class Numbering:
    """What `ConversationPool(streams=...)` is given: numbers the conversations.

    Args:
        stream: makes the stream of a side; the number is its `conversation.context`.
        done: called with each one that is complete.
    """

    def __init__(self, stream: Callable[[Side], Stream], done: Callable[[Numbered], None]) -> None:
        self._stream = stream
        self._done = done
        self.count = 0
        """Conversations so far."""

    def new(self, side: Side) -> Stream:
        """The stream of a side."""
        if side.conversation.context is None:
            self.count += 1
            side.conversation.context = self.count
        return self._stream(side)

    def conversation_complete(self, conversation: Conversation) -> None:
        """Nothing more comes."""
        self._done(Numbered(conversation))
