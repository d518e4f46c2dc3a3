"""`Evicter`: the connection of a segment; where there is none, a new one, and room for it.

Called once for each segment that is not simply the next one; makes room only where there are as many connections as there may be.
"""

from libc.stdint cimport int64_t, uint8_t, uint32_t

from .clock cimport ALWAYS_NS
from .connection cimport CLOSED, COUNTED, OPEN, SERVED, connection_s, key_object, key_s, net_flow_of, owner_of, transport_flow_of
from .delivering cimport Deliverer
from .holding cimport EVICTED_CLOSED, EVICTED_HALF_OPEN, EVICTED_IDLE
from .pool cimport ENDLESS, ON_EVICT, find

from .._log import Log
from ..stats import EVICTION_REASONS

cdef enum:
    FORGET_AT_ONCE = 16           # closed connections that a new one may erase: what has piled up delays no packet much

_log = Log("tcpreasm.assembly")


cdef class Evicter(Deliverer):
    """The connections of a pool, as one assembler finds them, and how many there may be."""

    # The connection of the key, not served by anybody now; a new one without a stream where there is none and the segment opens one. *found
    # is what the look-up has given.
    cdef int _find(self, const key_s *key, uint32_t hash, bint opens, int64_t seen_ns, connection_s **found) except -1 nogil:
        cdef connection_s *connection = found[0]
        cdef bint refused
        while True:
            if connection != NULL:
                if owner_of(connection) != 0:
                    refused = True
                    try:
                        self.pool_.wait_for(connection)
                        refused = False
                    finally:
                        if refused:
                            self.clock = self.clock_before  # as if it had not been called
                    connection = find(&self.pool_.table, key, hash)
                    continue
                if connection.state != CLOSED or not self.pool_.forget(connection, self._forget_before()):
                    break
            if not opens:
                connection = NULL
                break
            self.pool_.forget_closed_before(self._forget_before(), ENDLESS if self.pairs else FORGET_AT_ONCE)
            if self.pool_.table.filled >= self.limit_connections and self._evict_for_room():
                connection = find(&self.pool_.table, key, hash)
                continue
            if not self.pool_.is_ready():
                self.pool_.make_ready()
            connection = self.pool_.take(key, hash, seen_ns)
            if self.pool_.counts and not self.opens_on_data:
                self._open_stream(connection, 0)
            break
        found[0] = connection
        return 0

    cdef bint _evict_for_room(self) except -1 nogil:
        cdef connection_s *connection
        cdef bint user_code = False
        cdef int reason
        cdef key_s key
        while not user_code and self.pool_.table.filled >= self.limit_connections:
            connection = self.pool_.oldest_closed()
            if connection != NULL:
                if self.pool_.forget(connection, self._forget_before()):
                    continue
                reason, key = EVICTED_CLOSED, connection.key
                self.pool_.forget(connection, ALWAYS_NS)
            else:
                reason, connection = EVICTED_HALF_OPEN, self.pool_.oldest_half_open()
                if connection == NULL:
                    reason, connection = EVICTED_IDLE, self.pool_.idlest()
                if connection == NULL:
                    break
                key = connection.key
                user_code = (connection.has & SERVED) not in (0, COUNTED)
                self._evict(connection)
            self.counts[reason] += 1
            if self.tells_evictions or self.debug or (user_code and self.pool_.hooks & ON_EVICT):
                user_code = True
                self._take_gil()
                with gil:
                    self._tell_eviction(&key, reason)
        return user_code

    # As `_close`, but that no stream is made for what it holds. What a stream raises is raised once the segment at hand is taken in.
    cdef int _evict(self, connection_s *connection) except -1 nogil:
        cdef uint8_t how = connection.has & SERVED
        if how == 0 or how == COUNTED:
            self._drop_unopened(connection)
            return self._close(connection)
        self._take_gil()
        try:
            with gil:
                if self.pool_.hooks & ON_EVICT:
                    self.evicted = self.pool_.stream_of(connection)
                try:
                    self._close(connection)
                except BaseException as raised:
                    if connection.state == OPEN:  # no memory
                        self.evicted = None
                        self.pool_.is_seen_kept = False
                        raise
                    self._keep_error(raised)
        finally:
            if self.out_count:
                self._drop_pieces()
        return 0

    cdef int _tell_eviction(self, const key_s *key, int reason) except -1:
        why = EVICTION_REASONS[reason - EVICTED_CLOSED]
        if self.debug:
            _log.debug("%s: evicted, %s", key_object(key), why)
        stream, self.evicted = self.evicted, None
        self.pool_.unlock()
        try:
            hook = self.pool_.hook_of(stream, ON_EVICT)
            if hook is not None:
                hook(why)
            if self.tells_evictions:
                self.on_evict(net_flow_of(key), transport_flow_of(key), why)
        except BaseException as raised:
            self._keep_error(raised)
        finally:
            stream = hook = None  # without the lock: what dies with it may be user code
            self.pool_.lock()
        return 0
