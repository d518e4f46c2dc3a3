"""Packets as other libraries have them: what scapy, dpkt and pypcap give becomes bytes, a time, a link type.

Lives here: which of their documented attributes are asked for. None of them is imported: who brings such a packet has its library loaded.
Called once a packet where packets come as Python objects, and not at all for `bytes`.
"""

from __future__ import annotations

import os
import sys
from functools import lru_cache
from typing import Any, NamedTuple, SupportsIndex

from .clock import Timestamp, is_seconds, seconds_to_ns, to_ns
from .frame import Frame

__all__ = ["Told", "is_frame", "is_live_handle", "is_packet", "plain_frame", "to_frame", "told_by"]

MAX_IP_BYTES = 65_535
ETHERNET, RAW_IP = 1, 101  # link types

# First layers, as their classes are called, and what they are as link types.
_LINKTYPES = {
    "dpkt.ethernet.Ethernet": ETHERNET,
    "dpkt.ieee80211.IEEE80211": 105,
    "dpkt.ip.IP": RAW_IP,
    "dpkt.ip6.IP6": RAW_IP,
    "dpkt.loopback.Loopback": 0,
    "dpkt.ppp.PPP": 9,
    "dpkt.radiotap.Radiotap": 127,
    "dpkt.sll.SLL": 113,
    "dpkt.sll2.SLL2": 276,
    "scapy.layers.inet.IP": RAW_IP,
    "scapy.layers.inet6.IPv6": RAW_IP,
}
_PACKETS = {"dpkt.dpkt.Packet": "dpkt", "scapy.packet.Packet": "scapy"}
_UNTOLD = "scapy.packet.Raw"  # what scapy makes of a frame that it does not understand


class Told(NamedTuple):
    """What a source of frames says of all of them."""

    linktype: int | None
    """None: it does not."""
    snaplen: int
    """Bytes of a packet that it has at most; 0 where that is unknown."""
    in_ns: bool
    """Its times are integer nanoseconds."""


def told_by(source: object, linktype: int) -> Told:
    """By an iterable: dpkt's readers and pypcap's handles have a method `datalink`, scapy's PcapReader an attribute `linktype`.

    Args:
        linktype: what the caller says. It counts where it is not 1, which stands for Ethernet as well as for nothing said.
    """
    told, number, snaplen = (getattr(source, name, None) for name in ("datalink", "linktype", "snaplen"))
    known = linktype if linktype != ETHERNET else int(told()) if callable(told) else number if isinstance(number, int) else None
    return Told(known, snaplen if isinstance(snaplen, int) else 0, getattr(source, "timestamp_in_ns", False) is True)


def is_live_handle(source: object) -> bool:
    """pypcap's, over an interface. It takes for a file what is the name of one."""
    name = getattr(source, "name", None)
    return type(source).__module__ == "pcap" and hasattr(source, "setnonblock") and isinstance(name, str) and not os.path.exists(name)


def is_packet(item: object) -> bool:
    """One of scapy's or dpkt's."""
    return _kind(item) != ""


def is_frame(item: object) -> bool:
    """What `to_frame` takes, or tells what is wrong with."""
    return isinstance(item, Frame) or _is_pair(item) or is_packet(item)


def to_frame(item: Any, told: Told) -> Frame:
    """A Frame as it is, or one made of a packet or a pair. TypeError for anything else."""
    if isinstance(item, Frame):
        return item
    if _is_pair(item):
        time, packet = item
        data = _data_of(packet)
        linktype, wire_length = _linktype_of(packet, told.linktype), _wire_length(packet)
        if wire_length is None and 0 < told.snaplen <= len(data):  # the IP header tells how long it was: any upper bound will do
            wire_length = len(data) + MAX_IP_BYTES
        seen_ns = to_ns(None, time) if told.in_ns and isinstance(time, int) else seconds_to_ns(time)
    elif _kind(item) == "scapy":
        data, seen_ns = _data_of(item), to_ns(item.time, name="a packet's time")
        linktype, wire_length = _linktype_of(item, told.linktype), _wire_length(item)
    elif is_packet(item):
        raise TypeError(f"a packet of dpkt has no time: give (seconds, packet) pairs, not {type(item).__name__}: {item!r:.80}")
    else:
        raise TypeError(f"a frame is a Frame, a (seconds, bytes) pair or a packet of scapy, not {type(item).__name__}: {item!r:.80}")
    return Frame(data, seen_ns, len(data) if wire_length is None else max(wire_length, len(data)), linktype)


def plain_frame(
    frame: Any, timestamp: Timestamp | None, timestamp_ns: SupportsIndex | None, linktype: Any, wire_length: Any
) -> tuple[bytes, Timestamp | None, Any, Any]:
    """The arguments of `assemble_frame` where the frame is no `bytes` object: its bytes, timestamp, link type and wire length.

    What the caller does not say a packet says, as far as it knows. TypeError for what is neither a packet nor a buffer.
    """
    data = _data_of(frame)
    if is_packet(frame):
        linktype = _linktype_of(frame, None if linktype == ETHERNET else linktype)
        wire_length = _wire_length(frame) if wire_length is None else wire_length
        if timestamp is None and timestamp_ns is None:
            timestamp = getattr(frame, "time", None) if _kind(frame) == "scapy" else None
    return data, timestamp, linktype, wire_length


def _is_pair(item: object) -> bool:
    return isinstance(item, tuple) and len(item) == 2 and is_seconds(item[0])


def _names(cls: type) -> list[str]:
    return [f"{each.__module__}.{each.__qualname__}" for each in cls.__mro__]


def _kind(packet: Any) -> str:
    """ "scapy", "dpkt", or "" for what is no packet."""
    cls: Any = type(packet)
    return _kind_of(cls)


@lru_cache(maxsize=256)
def _kind_of(cls: Any) -> str:
    return next((_PACKETS[name] for name in _names(cls) if name in _PACKETS), "")


def _data_of(packet: Any) -> bytes:
    if type(packet) is bytes:
        return packet
    if is_packet(packet):
        return bytes(packet)
    try:
        return bytes(memoryview(packet))
    except TypeError:
        raise TypeError(f"a frame is bytes, or a packet of scapy or dpkt, not {type(packet).__name__}: {packet!r:.80}") from None


def _wire_length(packet: object) -> int | None:
    """Of scapy's packets, where the capture cut them."""
    length = getattr(packet, "wirelen", None) if _kind(packet) == "scapy" else None
    return length if isinstance(length, int) else None


def _linktype_of(packet: object, told: int | None) -> int:
    """What the source said, else what the packet begins with; TypeError where that has neither a link layer's header nor IP's."""
    if told is not None:
        return told
    kind = _kind(packet)
    if not kind:
        return ETHERNET
    names = _names(type(packet))
    if _UNTOLD in names:
        return ETHERNET
    for name in names:
        if name in _LINKTYPES:
            return _LINKTYPES[name]
    scapy = sys.modules.get("scapy.config")
    numbers = scapy.conf.l2types.layer2num if kind == "scapy" and scapy is not None else {}
    for cls in type(packet).__mro__:
        if cls in numbers:
            return int(numbers[cls])
    raise TypeError(f"a packet begins with a link layer or IP, not with {type(packet).__name__}: {packet!r:.80}")
