"""`Settler`: what segments have led to for conversations: sides end with the other one, holes that were acknowledged go, handlers are told.

Called after each segment, and in walks over connections; does something where that is pending, in pools that pair.
"""

from __future__ import annotations

from .clock import ALWAYS_NS
from .connection import Connection
from .conversation import ConversationState
from .engine import Engine


class Settler(Engine):
    """What is left to do for the conversations of a pool."""

    def _give_up_acked(self, connection: Connection, before_ns: int) -> bool:
        """Holes go that were acknowledged before that time, no others: who acknowledges has the bytes, and nobody sends them again."""
        side = connection.side
        if side is None or side.acked_ns is None or side.acked_ns >= before_ns:
            return False
        gives_up = self._is_acked(connection, side.acked_to)
        while self._is_acked(connection, side.acked_to):
            self._skip(connection, "holes_acked")
        side.acked_ns = None
        return gives_up

    def _settle(self) -> None:
        """What the last segments led to for conversations, and what of them was given up. What user code raises there is kept."""
        while self._pairing is not None and (conversation := self._pairing.next_pending()) is not None:
            gives_up, conversation.gives_up = conversation.gives_up, False
            if gives_up:
                self._serve_sides(conversation, False)
            if (conversation.reset or conversation.refused) and not conversation.complete:
                self._serve_sides(conversation, True)
            if conversation.complete and not conversation.told:
                conversation.told = True
                try:
                    self._pairing.tell_complete(conversation)
                except BaseException as raised:
                    self._keep_error(raised)
        if self._gaps:
            self._tell_gaps()

    def _serve_sides(self, conversation: ConversationState, closes: bool) -> None:
        """Each side that is open: close it, or give up what was acknowledged. One that this very thread serves is left as it is."""
        for side in conversation.sides:
            connection = side.connection
            if connection is None or side.over:
                continue
            with self._serving(connection, connection._key) as is_open:
                if is_open and closes:
                    self._drop_unopened(connection)
                    self._close(connection, True)
                elif is_open and self._give_up_acked(connection, ALWAYS_NS):
                    self._mark_acked(connection)
                    self._serve(connection, 0)
