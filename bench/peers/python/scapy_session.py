"""scapy's TCPSession: sniff(offline=..., session=...) with a protocol of our own that takes whatever bytes are in order.

TCPSession reassembles only for protocols that have `tcp_reassemble`; this one hands the bytes back as soon as it gets them, so that
the session never gathers more than it must (which would cost more with each packet).
Nothing beyond TCP is dissected, and no packet is stored.
"""

from __future__ import annotations

from typing import Any

from outcome import Outcome, main
from scapy.config import conf
from scapy.layers.inet import IP, TCP
from scapy.layers.l2 import Ether
from scapy.packet import Packet, bind_bottom_up, split_layers
from scapy.sendrecv import sniff
from scapy.sessions import TCPSession

PORTS = (5001, 40000)  # where the benchmark's servers listen


class Counted(Packet):
    """Bytes in order, whatever they are."""

    name = "Counted"
    delivered = 0
    streams = 0

    @classmethod
    def tcp_reassemble(cls, data: bytes, metadata: dict[str, Any], session: dict[str, Any]) -> Packet:
        Counted.delivered += len(data)
        return cls()


def count(path: str) -> Outcome:
    packets = 0

    def see(packet: Packet) -> None:
        pass

    class Session(TCPSession):
        def process(self, packet: Packet, cls: type[Packet] | None = None) -> Packet | None:
            nonlocal packets
            packets += 1
            return super().process(packet, cls)

    conf.layers.filter([Ether, IP, TCP, Counted])
    for port in PORTS:
        bind_bottom_up(TCP, Counted, dport=port)
        bind_bottom_up(TCP, Counted, sport=port)
    sniff(offline=path, session=Session, store=False, prn=see, quiet=True)
    for port in PORTS:
        split_layers(TCP, Counted, dport=port)
    return Outcome(packets, Counted.delivered, -1, -1)


if __name__ == "__main__":
    main(count)
