"""Capture time, as far as it is believed. Observed once a packet."""

from libc.stdint cimport int64_t


cdef extern from *:
    """
    #include <stdint.h>
    #define TCPREASM_SECONDS INT64_C(1000000000)
    """
    const int64_t ALWAYS_NS "INT64_MAX"                                # every time lies before this one
    const int64_t NEVER_NS "(-INT64_MAX)"                              # and none before this one
    const int64_t CLOCK_STEP_NS "(60 * TCPREASM_SECONDS)"              # further from the last packet's time, a second one must agree
    const int64_t CLOCK_CHANGE_NS "(3600 * TCPREASM_SECONDS)"          # further ahead than this is a changed clock, not a quiet hour


# Capture time. It follows the packets, but a far step only when a second packet confirms it.
cdef struct clock_s:
    int64_t now                   # as far as it is believed
    int64_t suspect               # a time far from it, seen last
    int64_t changed               # when the clock was last set ahead
    bint has_now
    bint has_suspect
    bint has_changed


# A packet was seen at that time.
cdef inline void observe(clock_s *clock, int64_t seen_ns) noexcept nogil:
    cdef int64_t step = seen_ns - clock.now
    cdef int64_t agreed
    if not clock.has_now:
        clock.now, clock.has_now = seen_ns, True
    elif -CLOCK_STEP_NS <= step <= CLOCK_STEP_NS:
        clock.now, clock.has_suspect = max(clock.now, seen_ns), False
    elif not clock.has_suspect or (clock.suspect > clock.now) != (step > 0):
        clock.suspect, clock.has_suspect = seen_ns, True
    else:
        agreed = min(clock.suspect, seen_ns) if step > 0 else max(clock.suspect, seen_ns)  # two packets say: at least so far
        if agreed - clock.now > CLOCK_CHANGE_NS:
            clock.changed, clock.has_changed = agreed, True
        clock.now = agreed
        clock.suspect, clock.has_suspect = seen_ns, not -CLOCK_STEP_NS <= seen_ns - agreed <= CLOCK_STEP_NS
