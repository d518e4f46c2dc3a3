"""Who talks to whom: `Flow`, the pair of endpoints of one layer, and `ConnectionKey`, the two layers of one connection.

Lives here: endpoints, their text, their hash. Not here: tables (pool) and packets (decode).
Called once for each new stream, never for a packet that is already known.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import ipaddress
    from typing import TypeAlias

__all__ = ["ConnectionKey", "Endpoint", "Flow"]

Endpoint: TypeAlias = "ipaddress.IPv4Address | ipaddress.IPv6Address | int"
Raw = bytes | int  # a packed address (4 or 16 bytes), or a port


def _raw(endpoint: Endpoint | str | bytes) -> Raw:
    if isinstance(endpoint, int):
        if isinstance(endpoint, bool) or not 0 <= endpoint <= 0xFFFF:
            raise ValueError(f"a port is an int from 0 to 65535, not {endpoint!r}")
        return endpoint
    if isinstance(endpoint, bytes):
        if len(endpoint) not in (4, 16):
            raise ValueError(f"a packed address has 4 or 16 bytes, not {len(endpoint)}: {endpoint!r}")
        return endpoint
    import ipaddress  # a while to load, and reassembly does without: addresses are packed

    if isinstance(endpoint, str):
        return ipaddress.ip_address(endpoint).packed
    if isinstance(endpoint, (ipaddress.IPv4Address, ipaddress.IPv6Address)):
        return endpoint.packed
    raise TypeError(f"an endpoint is an address or a port, not {type(endpoint).__name__}: {endpoint!r}")


def _endpoint(raw: Raw) -> Endpoint:
    if isinstance(raw, int):
        return raw
    import ipaddress

    return ipaddress.ip_address(raw)


class Flow:
    """One layer's source and destination: two IP addresses (a network flow) or two ports (a transport flow).

    Args:
        src: `ipaddress` object, its text or its 4 or 16 packed bytes; or a port, an int from 0 to 65535.
        dst: the same kind as src.
        tunnels: of packets that were found in tunnels, how many lay around their IP header. Labels (MPLS, PPPoE, VLAN) do not count.

    Hashable, comparable, immutable. `tunnels` is no part of what is compared and hashed: a flow equals another one of the same endpoints,
    though the assembler takes what lies in one tunnel more for another connection. Addresses are kept packed (`raw_src`, `raw_dst`: bytes,
    of a port an int) and become `ipaddress` objects when asked for.

    >>> Flow("10.0.0.1", "10.0.0.2").src
    IPv4Address('10.0.0.1')
    >>> print(Flow(1234, 80).reverse())
    80->1234
    """

    __slots__ = ("raw_dst", "raw_src", "tunnels")

    raw_src: Raw
    raw_dst: Raw
    tunnels: int

    def __init__(self, src: Endpoint | str | bytes, dst: Endpoint | str | bytes, tunnels: int = 0) -> None:
        raw_src, raw_dst = _raw(src), _raw(dst)
        if isinstance(raw_src, int) != isinstance(raw_dst, int) or (
            isinstance(raw_src, bytes) and isinstance(raw_dst, bytes) and len(raw_src) != len(raw_dst)
        ):
            raise ValueError(f"src and dst are of one kind, not {src!r} and {dst!r}")
        if isinstance(tunnels, bool) or not isinstance(tunnels, int):
            raise TypeError(f"tunnels is a number, not {type(tunnels).__name__}: {tunnels!r}")
        if tunnels < 0:
            raise ValueError(f"tunnels is 0 or more, not {tunnels}")
        object.__setattr__(self, "raw_src", raw_src)
        object.__setattr__(self, "raw_dst", raw_dst)
        object.__setattr__(self, "tunnels", tunnels)

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"a Flow is immutable: {name} cannot be set")

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"a Flow is immutable: {name} cannot be deleted")

    @property
    def src(self) -> Endpoint:
        """Where the packets come from."""
        return _endpoint(self.raw_src)

    @property
    def dst(self) -> Endpoint:
        """Where the packets go to."""
        return _endpoint(self.raw_dst)

    def reverse(self) -> Flow:
        """The same two endpoints, the other way."""
        return Flow(self.raw_dst, self.raw_src, self.tunnels)

    def fast_hash(self) -> int:
        """A hash that both directions share, so that they can be brought to one place."""
        return hash(frozenset((self.raw_src, self.raw_dst)))

    def __iter__(self) -> Iterator[Endpoint]:
        yield self.src
        yield self.dst

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Flow):
            return NotImplemented
        return self.raw_src == other.raw_src and self.raw_dst == other.raw_dst

    def __hash__(self) -> int:
        return hash((self.raw_src, self.raw_dst))

    def __reduce__(self) -> tuple[type[Flow], tuple[Raw, Raw, int]]:
        return Flow, (self.raw_src, self.raw_dst, self.tunnels)

    def __str__(self) -> str:
        return f"{self.src}->{self.dst}"

    def __repr__(self) -> str:
        tunnels = f", tunnels={self.tunnels}" if self.tunnels else ""
        if isinstance(self.raw_src, bytes):
            return f"Flow('{self.src}', '{self.dst}'{tunnels})"
        return f"Flow({self.raw_src!r}, {self.raw_dst!r}{tunnels})"


def endpoint_text(address: Endpoint, port: Endpoint) -> str:
    """`10.0.0.1:80`, or `[2001:db8::1]:80`."""
    text = str(address)
    return f"[{text}]:{port}" if ":" in text else f"{text}:{port}"


class ConnectionKey(NamedTuple):
    """One direction of one TCP connection: its network flow and its transport flow.

    A connection in a tunnel and another one outside of it may have equal keys, as one of reused ports and the one before it:
    `net_flow.tunnels` tells them apart.

    >>> print(ConnectionKey(Flow("10.0.0.1", "10.0.0.2"), Flow(1234, 80)))
    10.0.0.1:1234->10.0.0.2:80
    """

    net_flow: Flow
    transport_flow: Flow

    def reverse(self) -> ConnectionKey:
        """The key of the other direction."""
        return ConnectionKey(self.net_flow.reverse(), self.transport_flow.reverse())

    @property
    def src(self) -> str:
        """`address:port` of the sender."""
        return endpoint_text(self.net_flow.src, self.transport_flow.src)

    @property
    def dst(self) -> str:
        """`address:port` of the receiver."""
        return endpoint_text(self.net_flow.dst, self.transport_flow.dst)

    def __str__(self) -> str:
        return f"{self.src}->{self.dst}"
