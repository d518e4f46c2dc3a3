"""`Connection`: what is remembered of one direction of one TCP connection. Touched by every packet.

The functions work on connection_s; the class opens it to Python callers.
"""

from cpython.bytes cimport PyBytes_FromStringAndSize
from cpython.object cimport PyObject
from cpython.ref cimport Py_INCREF
from libc.stdint cimport int64_t, uint8_t, uint32_t
from libc.string cimport memcpy, memset

from .decode cimport LEVEL_IPV6, LEVEL_TUNNEL
from .pages cimport page_s

from ..flow import ConnectionKey, Flow

__all__ = ["Connection"]

cdef extern from *:
    """
    #include <structmember.h>

    /* Its slots hold nothing yet, not even NULL, and the garbage collector does not know of it. */
    #define tcpreasm_new_untracked(type) PyObject_GC_New(PyObject, (PyTypeObject *)(type))
    """
    ctypedef struct PyMemberDef:
        Py_ssize_t offset
    ctypedef struct PyMemberDescrObject:
        PyMemberDef *d_member
    object new_untracked "tcpreasm_new_untracked"(object cls)

# Where in a Flow its slots lie.
cdef Py_ssize_t RAW_SRC = (<PyMemberDescrObject *>Flow.raw_src).d_member.offset
cdef Py_ssize_t RAW_DST = (<PyMemberDescrObject *>Flow.raw_dst).d_member.offset
cdef Py_ssize_t TUNNELS = (<PyMemberDescrObject *>Flow.tunnels).d_member.offset


cdef void reset(connection_s *connection, const key_s *key, int64_t seen_ns) noexcept nogil:
    connection.key = key[0]
    connection.key.more = 0
    connection.has = 0
    connection.next_seq = connection.first_seq = connection.cut_end = 0
    connection.isn = connection.end_seq = 0
    connection.end_ns = -0x7FFFFFFFFFFFFFFF
    connection.skip = 0
    connection.more.skipped = 0
    connection.more.side = NULL
    connection.phase.before.early_end = connection.phase.before.early_segments = 0
    connection.since.created_ns = connection.last_seen_ns = seen_ns
    connection.successor = NULL


cdef bint waits_until(connection_s *connection, int64_t t_ns, uint32_t *seq) noexcept nogil:
    cdef page_s *page
    if connection.has & HAS_END and not ended(connection) and connection.end_ns < t_ns:
        seq[0] = connection.end_seq
        return True
    page = connection.pages.last
    while page != NULL:
        if page.seen_ns < t_ns:
            seq[0] = page.seq
            return True
        page = page.prev
    return False


cdef int64_t oldest_held(connection_s *connection) noexcept nogil:
    cdef int64_t oldest = 0x7FFFFFFFFFFFFFFF
    cdef page_s *page = connection.pages.first
    if connection.has & HAS_END:
        oldest = connection.end_ns
    while page != NULL:
        oldest = min(oldest, page.seen_ns)
        page = page.next
    return oldest


# Flow(src, dst, tunnels), without the checks: twice for each new stream. It refers to bytes and ints only, so that no cycle can go through
# it: the garbage collector is spared it.
cdef object flow_of(object src, object dst, object tunnels):
    flow = new_untracked(Flow)
    Py_INCREF(src)
    Py_INCREF(dst)
    Py_INCREF(tunnels)
    (<PyObject **>(<char *><PyObject *>flow + RAW_SRC))[0] = <PyObject *>src
    (<PyObject **>(<char *><PyObject *>flow + RAW_DST))[0] = <PyObject *>dst
    (<PyObject **>(<char *><PyObject *>flow + TUNNELS))[0] = <PyObject *>tunnels
    return flow


cdef object net_flow_of(const key_s *key):
    cdef Py_ssize_t size = 16 if key.level & LEVEL_IPV6 else 4
    cdef object src = PyBytes_FromStringAndSize(<const char *>key.src, size)
    return flow_of(src, PyBytes_FromStringAndSize(<const char *>key.dst, size), key.level // LEVEL_TUNNEL)


cdef object transport_flow_of(const key_s *key):
    return flow_of(key.src_port, key.dst_port, 0)


cdef object key_object(const key_s *key):
    return tuple.__new__(ConnectionKey, (net_flow_of(key), transport_flow_of(key)))  # its own constructor is Python code


cdef key_s raw_key(object key) except *:
    cdef key_s raw
    cdef bytes src, dst
    src, dst, src_port, dst_port, tunnels = key
    if len(src) != len(dst) or len(src) not in (4, 16):
        raise ValueError(f"packed addresses have 4 or 16 bytes, not {len(src)} and {len(dst)}")
    memset(&raw, 0, sizeof(raw))
    memcpy(raw.src, <const char *>src, len(src))
    memcpy(raw.dst, <const char *>dst, len(dst))
    raw.src_port, raw.dst_port = src_port, dst_port
    raw.level = (LEVEL_IPV6 if len(src) == 16 else 0) + <uint8_t>tunnels * LEVEL_TUNNEL
    return raw


cdef class Connection:
    """Connection()\n--\n\n\
One direction of one connection, for tests: the pool keeps its own in slabs."""

    def __init__(self):
        self.reset((b"\0\0\0\0", b"\0\0\0\0", 0, 0, 0), 0)

    def reset(self, key, seen_ns):
        """Forget everything, last_seen_ns too.

        Args:
            key: packed source and destination address, source and destination port, tunnels around.
            seen_ns: capture time of the first segment.
        """
        cdef key_s raw = raw_key(key)
        reset(&self.connection, &raw, seen_ns)

    @property
    def key(self):
        """Both flows."""
        return key_object(&self.connection.key)

    @property
    def next_seq(self):
        """Sequence number of the next byte to deliver; None before the start."""
        return self.connection.next_seq if self.connection.has & HAS_START else None

    @next_seq.setter
    def next_seq(self, value):
        begin_at(&self.connection, value)

    @property
    def end_seq(self):
        """That of the FIN or RST; None while there is none."""
        return self.connection.end_seq if self.connection.has & HAS_END else None

    @end_seq.setter
    def end_seq(self, value):
        self.connection.has |= HAS_END
        self.connection.end_seq = value

    @property
    def created_ns(self):
        """Capture time of the first segment, in nanoseconds since 1970."""
        return self.connection.since.created_ns

    @property
    def last_seen_ns(self):
        """The same of the latest one."""
        return self.connection.last_seen_ns

    @last_seen_ns.setter
    def last_seen_ns(self, value):
        self.connection.last_seen_ns = value

    @property
    def skip(self):
        """Missing bytes before what is delivered next; -1: an unknown number."""
        return self.connection.skip

    @skip.setter
    def skip(self, value):
        self.connection.skip = value

    @property
    def closed(self):
        """Ended by FIN or RST, and remembered for a while."""
        return self.connection.state == CLOSED

    def waits(self):
        """There is something to come that a hole holds back."""
        return bool(waits(&self.connection))

    def ended(self):
        """The stream has reached its FIN or RST."""
        return bool(ended(&self.connection))
