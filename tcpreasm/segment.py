"""`TCPSegment`: a decoded segment as the caller of `Assembler.assemble` hands it over.

Lives here: the caller's record and its bridges from dpkt and scapy. Frames are decoded elsewhere (`decode`), without it.
"""

from __future__ import annotations

from typing import Any

from .flow import Flow

__all__ = ["ACK", "FIN", "PSH", "RST", "SYN", "URG", "TCPSegment"]

FIN, SYN, RST, PSH, ACK, URG = 1, 2, 4, 8, 16, 32  # RFC 9293 3.1

MAX_TEXT_BYTES = 1 << 30  # RFC 7323 2.3: no window is larger


def _bounded(name: str, value: object, limit: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} is an int, not {type(value).__name__}: {value!r}")
    if not 0 <= value <= limit:
        raise ValueError(f"{name} is from 0 to {limit}, not {value}")
    return value


class TCPSegment:
    """One TCP segment (RFC 9293 3.1). Immutable.

    Args:
        src_port: 0 to 65535.
        dst_port: 0 to 65535.
        seq: sequence number of the first byte (of the SYN, where there is one), 0 to 2**32 - 1.
        payload: what was captured of the text: any buffer of bytes. A writable one is copied at once, so that later writes
            change nothing; a `bytes` object is delivered from where it lies.
        ack: acknowledgement number.
        syn, fin, rst, psh, urg: flags.
        ack_flag: the ACK flag. None: set, except on a SYN without an acknowledgement number.
        window: as in the header, not scaled.
        urgent: urgent pointer, as in the header.
        wire_payload_length: bytes of text that the segment had on the wire, where the capture cut it short. None: as captured.
    """

    __slots__ = ("ack", "dst_port", "flags", "payload", "seq", "src_port", "urgent", "window", "wire_payload_length")

    src_port: int
    dst_port: int
    seq: int
    ack: int
    flags: int
    window: int
    urgent: int
    payload: bytes
    wire_payload_length: int

    def __init__(
        self,
        src_port: int,
        dst_port: int,
        seq: int,
        payload: bytes | bytearray | memoryview = b"",
        *,
        ack: int = 0,
        syn: bool = False,
        fin: bool = False,
        rst: bool = False,
        psh: bool = False,
        urg: bool = False,
        ack_flag: bool | None = None,
        window: int = 0,
        urgent: int = 0,
        wire_payload_length: int | None = None,
    ) -> None:
        text = payload if isinstance(payload, bytes) else bytes(memoryview(payload))
        if ack_flag is None:
            ack_flag = not syn or ack != 0
        wire = len(text) if wire_payload_length is None else wire_payload_length
        put = object.__setattr__
        put(self, "src_port", _bounded("src_port", src_port, 0xFFFF))
        put(self, "dst_port", _bounded("dst_port", dst_port, 0xFFFF))
        put(self, "seq", _bounded("seq", seq, 0xFFFFFFFF))
        put(self, "ack", _bounded("ack", ack, 0xFFFFFFFF))
        put(self, "window", _bounded("window", window, 0xFFFF))
        put(self, "urgent", _bounded("urgent", urgent, 0xFFFF))
        put(self, "payload", text)
        put(self, "wire_payload_length", _bounded("wire_payload_length", wire, MAX_TEXT_BYTES))
        if wire < len(text):
            raise ValueError(f"wire_payload_length {wire} is below the {len(text)} bytes of payload")
        flags = (
            (FIN if fin else 0) | (SYN if syn else 0) | (RST if rst else 0)
            | (PSH if psh else 0) | (ACK if ack_flag else 0) | (URG if urg else 0)
        )  # fmt: skip
        put(self, "flags", flags)

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"a TCPSegment is immutable: {name} cannot be set")

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"a TCPSegment is immutable: {name} cannot be deleted")

    @property
    def transport_flow(self) -> Flow:
        """The ports, as a `Flow`."""
        return Flow(self.src_port, self.dst_port)

    syn = property(lambda self: bool(self.flags & SYN), doc="The SYN flag.")
    fin = property(lambda self: bool(self.flags & FIN), doc="The FIN flag.")
    rst = property(lambda self: bool(self.flags & RST), doc="The RST flag.")
    psh = property(lambda self: bool(self.flags & PSH), doc="The PSH flag.")
    urg = property(lambda self: bool(self.flags & URG), doc="The URG flag.")
    ack_flag = property(lambda self: bool(self.flags & ACK), doc="The ACK flag.")

    @classmethod
    def from_dpkt(cls, tcp: Any) -> TCPSegment:
        """From a `dpkt.tcp.TCP`. TypeError for anything else: a whole packet goes to `Assembler.assemble_frame`.

        Args:
            tcp: the segment, as it is `ip.data`.
        """
        try:
            header = tcp.sport, tcp.dport, tcp.seq, tcp.ack, int(tcp.flags), tcp.win, tcp.urp, bytes(tcp.data)
        except AttributeError:
            raise TypeError(f"tcp is a TCP segment of dpkt, not {type(tcp).__name__}: {tcp!r:.80}") from None
        return cls._from_header(*header)

    @classmethod
    def from_scapy(cls, tcp: Any) -> TCPSegment:
        """From a packet of scapy that has a TCP layer, or that layer. Ethernet padding behind it is left out. TypeError for anything else.

        Args:
            tcp: the layer, as `packet[TCP]` gives it, or the whole packet, of which the outermost one counts.
        """
        layer = tcp.getlayer("TCP") if callable(getattr(tcp, "getlayer", None)) else None
        if layer is None:
            raise TypeError(f"tcp is a packet of scapy with a TCP layer, not {type(tcp).__name__}: {tcp!r:.80}")
        payload = bytes(layer.payload)
        padding = layer.getlayer("Padding")
        if padding is not None:
            payload = payload[: len(payload) - len(padding.load)]
        return cls._from_header(layer.sport, layer.dport, layer.seq, layer.ack, int(layer.flags), layer.window, layer.urgptr, payload)

    @classmethod
    def _from_header(cls, sport: int, dport: int, seq: int, ack: int, flags: int, window: int, urgent: int, payload: bytes) -> TCPSegment:
        return cls(
            sport, dport, seq, payload, ack=ack, window=window, urgent=urgent,
            syn=bool(flags & SYN), fin=bool(flags & FIN), rst=bool(flags & RST),
            psh=bool(flags & PSH), urg=bool(flags & URG), ack_flag=bool(flags & ACK),
        )  # fmt: skip

    def __repr__(self) -> str:
        names = [n for n, bit in (("FIN", FIN), ("SYN", SYN), ("RST", RST), ("PSH", PSH), ("ACK", ACK), ("URG", URG)) if self.flags & bit]
        return f"<TCPSegment {self.src_port}->{self.dst_port} seq={self.seq} ack={self.ack} {'|'.join(names)} {len(self.payload)} bytes>"
