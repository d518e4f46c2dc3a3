"""`StreamPoolBase`: finds the connection of a key, makes new ones, remembers closed ones. Called once for each packet that counts.

One lock guards the tables and is never held while user code runs. Each connection has its own lock, taken after it was found; who gets
the lock looks again whether the connection is still the one of that key, since it may have been closed in between.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from types import MethodType
from typing import Any
from weakref import ref

from .._log import Log
from ..errors import no_handler
from ..flow import ConnectionKey
from ..hooks import HOOKS, HooksOfClasses
from .clock import ALWAYS_NS
from .connection import Connection, RawKey, key_object
from .conversation import Conversation, ConversationState, SideState

__all__ = ["ConversationPoolBase", "StreamPoolBase"]

INITIAL_CONNECTIONS = 1024
ON_GAP, ON_CONFLICT, ON_EVICT = (1 << at for at in range(len(HOOKS)))

_memory_log = Log("tcpreasm.memory")


class StreamPoolBase:
    """The connections that one or several assemblers serve. Keeps 1024 ready, doubles when they run out."""

    def __init__(self, factory: Any) -> None:
        new = getattr(factory, "new", factory)
        if not callable(new):
            raise TypeError(f"a stream factory has a method new(net_flow, transport_flow) or is callable, not {factory!r}")
        self.factory = factory
        self._new = new
        # Allocating may start the garbage collector, and that a finaliser which asks this pool something.
        self._lock = threading.RLock()
        self._open: dict[RawKey, Connection] = {}  # in order of creation
        self._closed: dict[RawKey, Connection] = {}  # in order of closing
        self._closed_at: dict[RawKey, int] = {}
        self._free: list[Connection] = []
        self._next_grow = INITIAL_CONNECTIONS
        self._requests = 0
        self._classes = HooksOfClasses()
        self._hooks = 0  # ON_GAP ... ON_EVICT: streams with such methods were opened
        self._log = _memory_log.is_on()
        self._grow()

    def _make(self, connection: Connection) -> Any:
        """The factory's stream for it."""
        return self._new(*connection.key)

    def _note_hooks(self, stream: Any) -> None:
        """From now on it is told what its class has methods for."""
        hooks = self._classes.of(type(self._hooked(stream)))
        if hooks & ~self._hooks:
            with self._lock:
                self._hooks |= hooks

    def _hook(self, stream: Any, which: int) -> Callable[..., object] | None:
        """What is called to tell a stream of that; None: nothing, or there is no stream."""
        if stream is None or not self._classes.of(type(self._hooked(stream))) & which:
            return None
        return self._bound_hook(stream, HOOKS[which.bit_length() - 1])

    def _hooked(self, stream: Any) -> Any:
        """Whose class has them."""
        return stream

    def _bound_hook(self, stream: Any, name: str) -> Callable[..., object]:
        bound: Callable[..., object] = getattr(stream, name)
        return bound

    def __len__(self) -> int:
        """Open connections."""
        return len(self._open)

    def keys(self) -> list[ConnectionKey]:
        """The keys of the open connections, oldest first. Two may be equal: then their `net_flow.tunnels` differ."""
        with self._lock:
            keys = list(self._open)
        return [key_object(key) for key in keys]

    def _grow(self) -> None:
        self._free.extend([Connection() for _ in range(self._next_grow)])
        if self._log:
            _memory_log.debug("stream pool: %d connections added", self._next_grow)
        self._next_grow *= 2

    def acquire(self, key: RawKey, create: bool, seen_ns: int, forget_ns: int) -> Connection | None:
        """The connection of the key, locked; a new one without a stream where there is none and create says so.

        A connection that was closed before forget_ns counts as none.
        """
        me = threading.get_ident()
        while True:
            with self._lock:
                connection = self._open.get(key)
                if connection is None and key in self._closed and not self._forget(key, forget_ns):
                    connection = self._closed.get(key)
                if connection is None:
                    if not create:
                        return None
                    self._forget_closed(forget_ns)
                    connection = self._take(key, seen_ns)
                    connection.owner = me
                    if key not in self._closed and self._open.setdefault(key, connection) is connection:
                        return connection
                    # A finaliser came in while this one was made ready, and made the connection: look again.
                    connection.state = Connection.REMOVED
                    self.release(connection)
                    continue
            if self._lock_found(connection, key, me):
                return connection

    def may_be_full(self, most: int) -> bool:
        """There are so many connections, those included that were closed and are not forgotten yet."""
        return len(self._open) + len(self._closed) >= most

    def evict(self, key: RawKey, most: int, forget_ns: int) -> tuple[RawKey, Connection | None, str] | None:
        """Who makes room for a new connection of that key: which one and why; locked, if it is open, else forgotten already and None here.

        None where there is room, where the key has a connection, or where all are being served.
        """
        with self._lock:
            if key in self._open or not self._forget(key, forget_ns):
                return None
            self._forget_closed(forget_ns)
            if len(self._open) + len(self._closed) < most:
                return None
            for closed in self._closed:
                if self._forget(closed, ALWAYS_NS):
                    return closed, None, "closed"
            for reason, connections in (
                ("half_open", [one for one in self._open.values() if one.half_open]),
                ("idle", sorted(self._open.values(), key=lambda one: one.last_seen_ns)),
            ):
                for connection in connections:
                    if connection.lock.acquire(blocking=False):
                        connection.owner = threading.get_ident()
                        return connection._key, connection, reason
            return None

    def acquire_open(self, connection: Connection, key: RawKey) -> bool:
        """Lock a connection met in a walk; False if it is no longer open under that key, or served by this very thread."""
        me = threading.get_ident()
        if connection.owner == me or not self._lock_found(connection, key, me):
            return False
        if connection.state == Connection.OPEN:
            return True
        self.release(connection)
        return False

    def _lock_found(self, connection: Connection, key: RawKey, me: int) -> bool:
        if connection.owner == me:
            raise RuntimeError("a stream's callback called back into its own connection")
        connection.lock.acquire()
        if connection.state in (Connection.OPEN, Connection.CLOSED) and connection._key == key:
            connection.owner = me
            return True
        connection.lock.release()
        return False

    def release(self, connection: Connection) -> None:
        """The opposite of acquire. A removed connection becomes a free one only now, when nobody serves it any more."""
        connection.owner = 0
        if connection.state == Connection.REMOVED:
            # Here, and not under the pool's lock: it may be the last that keeps the stream alive.
            connection.stream = connection.reassembled = connection.reassembly_complete = None
            with self._lock:
                self._set_free(connection)
                connection.lock.release()
        else:
            connection.lock.release()

    def _take(self, key: RawKey, seen_ns: int) -> Connection:
        self._requests += 1
        if self._log and not self._requests & 0x7FFF:
            _memory_log.debug("stream pool: %d requests, %d open, %d free", self._requests, len(self._open), len(self._free))
        if not self._free:
            self._grow()
        connection = self._free.pop()
        if not connection.lock.acquire(blocking=False):
            # Somebody found it under its last key, and is about to see that it was too late: leave it to him.
            connection = Connection()
            connection.lock.acquire()
        connection.reset(key, seen_ns)
        connection.state = Connection.OPEN
        return connection

    def walk(self, idle_ns: int) -> list[tuple[Connection, RawKey]]:
        """The open connections that hold something back or have seen nothing since idle_ns, oldest first."""
        with self._lock:
            return [(connection, key) for key, connection in self._open.items() if connection.last_seen_ns < idle_ns or connection.waits()]

    def reopen(self, connection: Connection, seen_ns: int) -> None:
        """Begin anew under the same key: the newest connection now. The caller holds its lock and has emptied it."""
        key = connection._key
        with self._lock:
            self._open.pop(key, None)
            if self._closed.pop(key, None) is not None:
                del self._closed_at[key]
            self._leave(connection)
            connection.reset(key, seen_ns)
            connection.state = Connection.OPEN
            self._open[key] = connection

    def close(self, connection: Connection, now_ns: int) -> None:
        """From open to closed, and remembered."""
        key = connection._key
        with self._lock:
            del self._open[key]
            self._closed[key] = connection
            self._closed_at[key] = now_ns
            connection.state = Connection.CLOSED
        connection.stream = connection.reassembled = connection.reassembly_complete = None

    def remove(self, connection: Connection) -> None:
        """From open to forgotten."""
        with self._lock:
            del self._open[connection._key]
            connection.state = Connection.REMOVED

    def set_back(self, now_ns: int) -> None:
        """The clock was set back: nothing was closed later than now."""
        with self._lock:
            for key, closed_at in self._closed_at.items():
                self._closed_at[key] = min(closed_at, now_ns)

    def forget_closed(self, before_ns: int) -> None:
        """Connections that were closed before before_ns are forgotten. Looks at the oldest only."""
        with self._lock:
            self._forget_closed(before_ns)

    def _forget_closed(self, before_ns: int) -> None:
        while self._closed and self._forget(next(iter(self._closed)), before_ns):
            pass

    def _forget(self, key: RawKey, before_ns: int) -> bool:
        connection = self._closed.get(key)
        if connection is None:
            return True
        if self._closed_at[key] >= before_ns or not connection.lock.acquire(blocking=False):
            return False
        del self._closed[key], self._closed_at[key]
        self._set_free(connection)
        connection.lock.release()
        return True

    def _leave(self, connection: Connection) -> None:
        """It has no side of a conversation any more."""

    def _set_free(self, connection: Connection) -> None:
        self._leave(connection)
        connection.reset((b"", b"", 0, 0, 0), 0)
        connection.state = Connection.FREE
        self._free.append(connection)


class ConversationPoolBase(StreamPoolBase):
    """The same, with the two directions of each connection paired.

    Args:
        factory: makes the handler of each conversation, or the stream of each side.
        called_with: which of the two, and of what: "conversation"; or "side", or "flows", the two of that side.
        done: called with each Conversation that is complete, where there are streams; or None.
    """

    def __init__(self, factory: Any, called_with: str = "conversation", done: Callable[[Conversation], None] | None = None) -> None:
        super().__init__(factory)
        if called_with != "conversation":
            self._new = factory
        self._called_with = called_with
        self._done = done
        self._objects = threading.Lock()
        self._pending: deque[ConversationState] = deque()  # something is to be done for these

    def _make(self, connection: Connection) -> Any:
        assert connection.side is not None
        state, index = connection.side.conversation, connection.side.index
        conversation = state.conversation
        if conversation is None:
            with self._objects:  # the two sides may begin in two threads
                conversation = state.conversation
                if conversation is None:
                    conversation = state.conversation = Conversation(state, self._called_with == "conversation")
        if self._called_with == "conversation":
            if conversation._lock is not None:
                self._make_handler(conversation, conversation._lock)
            return conversation._side(index)
        made = self._new(*connection.key) if self._called_with == "flows" else self._new(conversation._side(index))
        conversation._streams[index] = made
        return made

    def _hooked(self, stream: Any) -> Any:
        return stream.conversation.handler if self._called_with == "conversation" else stream

    def _bound_hook(self, stream: Any, name: str) -> Callable[..., object]:
        bound = super()._bound_hook(self._hooked(stream), name)
        return MethodType(bound, stream) if self._called_with == "conversation" else bound

    def _make_handler(self, conversation: Conversation, lock: threading.RLock) -> None:
        with lock:
            if conversation._makes:
                raise RuntimeError("a conversation's factory called back into its own conversation")
            if conversation._lock is None:
                return
            conversation._makes = True
            try:
                handler = self._new(conversation)
                if not (callable(getattr(handler, "reassembled", None)) and callable(getattr(handler, "conversation_complete", None))):
                    raise no_handler(handler, conversation.key)
            finally:
                conversation._makes = False
            conversation.handler, conversation._lock = handler, None

    def tell_complete(self, state: ConversationState) -> None:
        """To the handler, or `done`, of a conversation that is complete: the last thing that is told of it."""
        conversation, state.conversation = state.conversation, None
        if conversation is None:
            return
        try:
            if self._called_with != "conversation":
                if self._done is not None:
                    self._done(conversation)
            elif conversation.handler is not None:
                conversation.handler.conversation_complete()
        finally:
            conversation._sides = [ref(conversation._side(index)) for index in (0, 1)]  # else all would wait for the garbage collector

    def _peer(self, key: RawKey, forget_ns: int) -> Connection | None:
        src, dst, src_port, dst_port, tunnels = key
        back = (dst, src, dst_port, src_port, tunnels)
        peer = self._open.get(back)
        if peer is None and not self._forget(back, forget_ns):
            peer = self._closed.get(back)
        return peer

    def side_beside(self, key: RawKey, forget_ns: int) -> SideState | None:
        """The side of a conversation that a segment without a connection comes from."""
        with self._lock:
            peer = self._peer(key, forget_ns)
            side = None if peer is None or peer.side is None else peer.side.peer
            return side if side is not None and side.connection is None else None

    def join(self, connection: Connection, flags: int, isn: int, ack: int, forget_ns: int) -> SideState:
        """The side of a connection that begins with such a segment: of its other direction's conversation, or of a new one."""
        with self._lock:
            peer = self._peer(connection._key, forget_ns)
            side = None if peer is None or peer.side is None else peer.side.peer
            if side is None or not side.may_be_taken(flags, isn, ack):
                side = ConversationState(connection._key).sides[0]
            side.taken = True
            side.connection, connection.side = connection, side
            return side

    def _leave(self, connection: Connection) -> None:
        side = connection.side
        if side is not None:
            connection.side = side.connection = None
            self.look_after(side.conversation)

    def give_back_side(self, connection: Connection) -> None:
        """No stream could be made for it: the next segment tries again."""
        side = connection.side
        assert side is not None
        side.taken = False

    def end_side(self, side: SideState) -> None:
        """Its stream has had its last call."""
        with self._lock:
            side.over = True
            self.look_after(side.conversation)

    def look_after(self, conversation: ConversationState) -> None:
        """Note what is to be done for it, if anything."""
        with self._lock:
            conversation.complete = conversation.complete or conversation.is_over()
            ends_other = (conversation.reset or conversation.refused) and not conversation.complete
            tells = conversation.complete and not conversation.told
            if (ends_other or tells or conversation.gives_up) and not conversation.pending:
                conversation.pending = True
                self._pending.append(conversation)

    def next_pending(self) -> ConversationState | None:
        """One that something is to be done for. None: there is none."""
        with self._lock:
            if not self._pending:
                return None
            conversation = self._pending.popleft()
            conversation.pending = False
            return conversation
