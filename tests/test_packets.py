"""What scapy, dpkt and pypcap give goes in as it is, and leads to what the same capture leads to when it is read from its file.

The libraries read the same bytes that the reader of this package does: that is what everything is compared with. Besides: what their
packets tell beyond their bytes (time, link type, length on the wire), what is refused, and the times of pairs to the nanosecond.
"""

from __future__ import annotations

import io
import random
import re
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import fields
from decimal import Decimal
from pathlib import Path
from types import ModuleType
from typing import Any

import dpkt
import numpy as np
import pytest
from conftest import DATA
from recorder import ENDS, NS, SYN, Rig, frame, got, new, number, pcap, piece
from scapy.config import conf
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import ARP, CookedLinux, Ether
from scapy.layers.ppp import PPP
from scapy.packet import Raw
from scapy.utils import PcapReader, rdpcap
from test_live import LOOPBACK, unusable

CAPTURES = sorted(path for path in DATA.iterdir() if path.name.endswith((".pcap", ".pcapng")))


def pypcap_of(path: Path, **options: Any) -> Any:
    return pytest.importorskip("pcap", reason="pypcap is not installed").pcap(str(path), **options)


def universal(path: Path) -> Any:
    return dpkt.pcap.UniversalReader(io.BytesIO(path.read_bytes()))


READERS: dict[str, Callable[[Path], Any]] = {
    "dpkt": universal,
    "scapy PcapReader": lambda path: PcapReader(str(path)),
    "scapy PacketList": lambda path: rdpcap(str(path)),
    "scapy list": lambda path: list(rdpcap(str(path))),
    "scapy tuple": lambda path: tuple(rdpcap(str(path))),
    "scapy generator": lambda path: (packet for packet in PcapReader(str(path))),
    "pypcap": pypcap_of,
    "pypcap in ns": lambda path: pypcap_of(path, timestamp_in_ns=True),
}


def numbers(assembler: Any) -> dict[str, Any]:
    stats = assembler.stats
    return {field.name: getattr(stats, field.name) for field in fields(stats)}


def told(value: Any) -> dict[str, Any]:
    """A finished stream, or a side: its fields as plain values."""
    return {field.name: getattr(value, field.name) for field in fields(value)} | {"key": str(value.key)}


def followed(package: ModuleType, source: Any) -> list[dict[str, Any]]:
    return [told(stream) for stream in package.follow(source)]


def conversed(package: ModuleType, source: Any) -> list[tuple[Any, ...]]:
    return [(str(each), told(each.client), told(each.server), each.handshake_time) for each in package.conversations(source)]


def tabled(package: ModuleType, source: Any) -> list[list[Any]]:
    table = package.flow_table(source)
    return [table.flows.array.tolist(), table.gaps.array.tolist()]


def assembled(package: ModuleType, source: Any) -> tuple[Any, ...]:
    rig = Rig(package)
    summary = rig.assembler.assemble_capture(source)
    return rig.recorder.take(), numbers(rig.assembler), {field.name: getattr(summary, field.name) for field in fields(summary)}


def is_exact(library: str, path: Path) -> bool:
    """dpkt's pcapng reader makes floats of nanoseconds, by way of other floats: some hundred of them are lost there."""
    return library != "dpkt" or path.suffix == ".pcap"


# -- whole captures -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("library", READERS)
@pytest.mark.parametrize("path", CAPTURES, ids=lambda path: path.name)
def test_a_reader_is_a_capture(tcpreasm: ModuleType, library: str, path: Path) -> None:
    """Streams, calls and all counters, to the byte and the nanosecond; also of frames that the capture cut."""
    if not is_exact(library, path):
        pytest.skip(f"{library} loses time there")
    assert assembled(tcpreasm, READERS[library](path)) == assembled(tcpreasm, path)


@pytest.mark.parametrize("library", READERS)
def test_whatever_reads_a_capture_reads_them(tcpreasm: ModuleType, library: str) -> None:
    path = DATA / "missing.pcap"
    for way in (followed, conversed, tabled):
        assert way(tcpreasm, READERS[library](path)) == way(tcpreasm, path)
        assert way(tcpreasm, [READERS[library](path)]) == way(tcpreasm, path)


def test_several_readers_are_read_one_after_the_other(tcpreasm: ModuleType) -> None:
    paths = [DATA / "redis.pcap", DATA / "dns.pcap"]
    assert followed(tcpreasm, [READERS["dpkt"](paths[0]), READERS["scapy PacketList"](paths[1])]) == followed(tcpreasm, paths)


def test_dpkt_on_pcapng_loses_some_hundred_nanoseconds(tcpreasm: ModuleType) -> None:
    path = DATA / "http6.pcapng"
    streams = followed(tcpreasm, universal(path))
    for stream, whole in zip(streams, followed(tcpreasm, path), strict=True):
        for name in ("first_seen_ns", "last_seen_ns"):
            assert abs(stream.pop(name) - whole.pop(name)) < 500
        assert stream == whole


TEXT = b"the text"
LINKS: dict[int, bytes] = {
    0: b"\2\0\0\0",
    1: bytes(12) + b"\x08\0",
    9: b"\xff\x03\0\x21",
    101: b"",
    113: b"\0\0\0\1\0\6" + bytes(8) + b"\x08\0",
    276: b"\x08\0" + bytes(2) + b"\0\0\0\1\0\1\0\6" + bytes(8),
}


def talk(link: bytes, ends: Any = ENDS) -> list[tuple[int, bytes]]:
    """Times that take nanoseconds to tell."""
    frames = [frame(0, b"", SYN, ends=ends, link=link), frame(1, TEXT, ends=ends, link=link), frame(20, b"!", ends=ends, link=link)]
    return [(1_700_000_000 * NS + 123_456_789 + nth, data) for nth, data in enumerate(frames)]


@pytest.mark.parametrize("linktype", LINKS)
@pytest.mark.parametrize("library", READERS)
def test_a_reader_tells_its_link_type_and_nanoseconds(tcpreasm: ModuleType, tmp_path: Path, library: str, linktype: int) -> None:
    path = tmp_path / "capture.pcap"
    path.write_bytes(pcap(talk(LINKS[linktype]), linktype))
    expected = assembled(tcpreasm, path)
    assert expected[1]["segments"] == 3
    if library == "pypcap":  # floats of microseconds
        path.write_bytes(pcap(((ns // 1000 * 1000, data) for ns, data in talk(LINKS[linktype])), linktype))
        expected = assembled(tcpreasm, path)
    assert assembled(tcpreasm, READERS[library](path)) == expected


@pytest.mark.parametrize("version", [4, 6])
def test_ip_without_a_link_layer(tcpreasm: ModuleType, tmp_path: Path, version: int) -> None:
    ends = ENDS if version == 4 else ("2001:db8::1", 1234, "2001:db8::2", 80)
    frames = talk(b"", ends)
    path = tmp_path / "capture.pcap"
    path.write_bytes(pcap(frames, 101))
    expected = assembled(tcpreasm, path)
    assert expected[1]["segments"] == 3
    assert assembled(tcpreasm, rdpcap(str(path))) == expected
    of_dpkt = dpkt.ip.IP if version == 4 else dpkt.ip6.IP6
    pairs = [(Decimal(ns).scaleb(-9), of_dpkt(data)) for ns, data in frames]
    assert assembled(tcpreasm, pairs) == expected
    packets = [(IP if version == 4 else IPv6)(data) for _, data in frames]
    for packet, (ns, _) in zip(packets, frames, strict=True):
        packet.time = Decimal(ns).scaleb(-9)
    assert assembled(tcpreasm, packets) == expected


def test_what_the_caller_says_of_the_link_type_counts(tcpreasm: ModuleType) -> None:
    frames = talk(LINKS[101])
    for source in ([(0, data) for _, data in frames], [Raw(data) for _, data in frames]):
        rig = Rig(tcpreasm)
        rig.assembler.assemble_capture(source, linktype=101)
        assert rig.recorder.data() == TEXT + b"!"


def test_frames_that_scapy_cannot_read_are_counted(tcpreasm: ModuleType, tmp_path: Path) -> None:
    """They come as Raw, or as what they are cut down to: nothing that was captured raises."""
    frames = [(nth, frame(0, TEXT)[:size]) for nth, size in enumerate((60, 5, 13, 14, 20, 33, 34, 53, 54, 62))]
    path = tmp_path / "capture.pcap"
    path.write_bytes(pcap(frames))
    expected = assembled(tcpreasm, path)
    assert {verdict.name for verdict in expected[1]["verdicts"]} == {"SEGMENT", "TRUNCATED"}
    conf.logLevel, level = 50, conf.logLevel
    try:
        assert assembled(tcpreasm, rdpcap(str(path))) == expected
    finally:
        conf.logLevel = level


def test_pairs_with_dpkt_packets(tcpreasm: ModuleType) -> None:
    path = DATA / "http.pcap"
    pairs = [(seconds, dpkt.ethernet.Ethernet(data)) for seconds, data in universal(path)]
    assert assembled(tcpreasm, pairs) == assembled(tcpreasm, path)


def test_a_packet_goes_in_as_it_was_changed(tcpreasm: ModuleType) -> None:
    packets = rdpcap(str(DATA / "dns.pcap"))
    for packet in packets:
        packet[IP].src, packet[IP].dst = str(packet[IP].src).replace("127", "10"), str(packet[IP].dst).replace("127", "10")
    streams = followed(tcpreasm, packets)
    for stream, whole in zip(streams, followed(tcpreasm, DATA / "dns.pcap"), strict=True):
        assert stream["key"] == whole["key"].replace("127", "10")
        assert stream["data"] == whole["data"]


def test_packets_through_threads_are_refused(tcpreasm: ModuleType) -> None:
    for source in (universal(DATA / "dns.pcap"), rdpcap(str(DATA / "dns.pcap"))):
        with pytest.raises(ValueError, match=rf"threads=2 takes captures in files, not {type(source).__name__}"):
            tcpreasm.flow_table(source, threads=2)


# -- one packet -----------------------------------------------------------------------------------------------------------


def built(seq: int, text: bytes = b"", flags: str = "A") -> Any:
    return Ether() / IP(src=ENDS[0], dst=ENDS[2]) / TCP(sport=ENDS[1], dport=ENDS[3], seq=seq, ack=1, flags=flags) / Raw(text)


def taken(rig: Rig, packet: Any, *times: Any, **given: Any) -> list[Any]:
    assert rig.assembler.assemble_frame(packet, *times, **given) is rig.package.Verdict.SEGMENT
    return rig.taken(one_segment=True)


def test_a_scapy_packet_has_its_own_time(tcpreasm: ModuleType) -> None:
    rig = Rig(tcpreasm)
    packet = built(1000, flags="S")
    packet.time = Decimal("1700000000.123456789")
    assert taken(rig, packet) == [new(), got((b"", 0, True, False, 1_700_000_000_123_456_789))]
    packet = built(1001, b"abc")
    assert taken(rig, packet, 1_700_000_001.5) == [got((b"abc", 0, False, False, 1_700_000_001_500_000_000))]
    packet = built(1004, b"def")
    assert taken(rig, packet, timestamp_ns=1_700_000_001_500_000_007) == [got((b"def", 0, False, False, 1_700_000_001_500_000_007))]


def test_a_scapy_packet_tells_how_long_it_was(tcpreasm: ModuleType) -> None:
    whole = bytes(built(1001, b"0123456789"))
    for given in ({}, {"wire_length": len(whole)}):
        rig = Rig(tcpreasm)
        taken(rig, built(1000, flags="S"), 0)
        cut = Ether(whole[:-4])
        cut.wirelen = len(whole) if not given else 0
        assert taken(rig, cut, 1, **given) == [got(piece(b"012345", at=1))]
        assert taken(rig, built(1011, b"!"), 2) == [got(piece(b"!", skip=4, at=2))]


def test_a_packet_tells_what_it_begins_with(tcpreasm: ModuleType) -> None:
    ethernet = built(1000, b"text")
    ipv6 = IPv6(src="2001:db8::1", dst="2001:db8::2") / TCP(bytes(ethernet[TCP]))
    sll = CookedLinux(lladdrtype=1) / IP(bytes(ethernet[IP]))
    packets = [
        PPP(b"\xff\x03\0\x21" + bytes(ethernet[IP])),
        ethernet,
        ethernet[IP],
        ipv6,
        sll,
        dpkt.ethernet.Ethernet(bytes(ethernet)),
        dpkt.ip.IP(bytes(ethernet[IP])),
        dpkt.ip6.IP6(bytes(ipv6)),
        dpkt.sll.SLL(bytes(sll)),
        Raw(bytes(ethernet)),
    ]
    for packet in packets:
        rig = Rig(tcpreasm)
        assert rig.assembler.assemble_frame(packet, 0) is tcpreasm.Verdict.SEGMENT, packet
        rig.assembler.flush_all()
        assert [call[2] for call in rig.recorder.take() if call[0] == "reassembled"] == [[(b"text", -1, False, False, 0)]]
    rig = Rig(tcpreasm)
    assert rig.assembler.assemble_frame(Raw(bytes(ethernet[IP])), 0, linktype=101) is tcpreasm.Verdict.SEGMENT
    assert rig.assembler.assemble_frame(ethernet[IP], 0, linktype=12) is tcpreasm.Verdict.SEGMENT


def test_a_class_made_of_theirs_is_one_of_theirs(tcpreasm: ModuleType) -> None:
    class Mine(dpkt.ip.IP):  # type: ignore[misc]
        pass

    class Own(Ether):  # type: ignore[misc]
        pass

    packet = built(1000, b"text")
    for one in (Mine(bytes(packet[IP])), Own(bytes(packet))):
        assert Rig(tcpreasm).assembler.assemble_frame(one, 0) is tcpreasm.Verdict.SEGMENT


def refused(text: str) -> Any:
    return pytest.raises(TypeError, match=f"^{re.escape(text)}")


def test_what_is_no_frame_is_named(tcpreasm: ModuleType) -> None:
    rig = Rig(tcpreasm)
    take = rig.assembler.assemble_frame
    for value in ("abc", 5, None, [1], 1.5):
        with refused(f"a frame is bytes, or a packet of scapy or dpkt, not {type(value).__name__}: {value!r}"):
            take(value, 0)
    for packet in (TCP(dport=80), ARP(), dpkt.tcp.TCP(), UDP()):
        with refused(f"a packet begins with a link layer or IP, not with {type(packet).__name__}: "):
            take(packet, 0)
    with refused("linktype is an int, not str: '1'"):
        take(built(0), 0, linktype="1")
    assert rig.assembler.stats.frames == 0


def test_what_an_iterable_of_frames_must_not_give_is_named(tcpreasm: ModuleType) -> None:
    rig = Rig(tcpreasm)
    take = rig.assembler.assemble_capture
    with refused("a frame is a Frame, a (seconds, bytes) pair or a packet of scapy, not int: 0"):
        take(iter(range(3)))
    with refused("a frame is bytes, or a packet of scapy or dpkt, not int: 7"):
        take(iter([(0.5, 7)]))
    with refused("a frame is bytes, or a packet of scapy or dpkt, not str: 'abc'"):
        take([(0.5, "abc")])
    with refused("a packet of dpkt has no time: give (seconds, packet) pairs, not IP: IP("):
        take([dpkt.ip.IP()])
    with refused("a packet begins with a link layer or IP, not with TCP: "):
        take([TCP()])
    with refused("a single packet goes to assemble_frame, not to assemble_capture: "):
        take(built(0))
    with refused("a single packet goes to assemble_frame, not to assemble_capture: "):
        take(dpkt.ethernet.Ethernet())
    assert rig.assembler.stats.frames == 0


def test_what_is_no_tcp_layer_is_named(tcpreasm: ModuleType) -> None:
    for value in (None, "abc", IP() / UDP(), dpkt.tcp.TCP()):
        with refused(f"tcp is a packet of scapy with a TCP layer, not {type(value).__name__}: "):
            tcpreasm.TCPSegment.from_scapy(value)
    for value in (None, b"abc", built(0)[TCP], dpkt.ip.IP()):
        with refused(f"tcp is a TCP segment of dpkt, not {type(value).__name__}: "):
            tcpreasm.TCPSegment.from_dpkt(value)


def test_a_whole_scapy_packet_is_as_good_as_its_layer(tcpreasm: ModuleType) -> None:
    packet = Ether(bytes(built(1000, b"text", "PA")) + bytes(3))
    for part in (packet, packet[IP], packet[TCP]):
        segment = tcpreasm.TCPSegment.from_scapy(part)
        assert (segment.src_port, segment.dst_port, segment.seq, segment.ack, segment.payload) == (ENDS[1], ENDS[3], 1000, 1, b"text")
        assert (segment.psh, segment.ack_flag, segment.syn, segment.fin) == (True, True, False, False)


# -- times ----------------------------------------------------------------------------------------------------------------


def test_a_float_of_microseconds_is_just_that(tcpreasm: ModuleType) -> None:
    """As every reader makes them: so near today, a float does not tell more."""
    rng = random.Random(1)
    times = [rng.randrange(2**31 * 1_000_000) for _ in range(300)] + [1, 0, 2**31 * 1_000_000 - 1]
    rig = Rig(tcpreasm)
    for nth, microseconds in enumerate(times):
        seconds = microseconds // 1_000_000 + microseconds % 1_000_000 / 1e6
        for way, (value, sign) in enumerate(((seconds, 1), (-seconds, -1), (np.float64(seconds), 1))):
            rig.assembler.assemble_frame(frame(0, b"", SYN, ends=number(3 * nth + way)), value)
            [(_, _, [(*_, seen_ns)])] = rig.recorder.take()[1:]
            assert seen_ns == sign * microseconds * 1000


def test_a_float_of_less_is_rounded_to_the_nanosecond(tcpreasm: ModuleType) -> None:
    for seconds, ns in ((0.123456789, 123_456_789), (1e-9, 1), (-1e-9, -1), (1000.000000001, 1_000_000_000_001), (0.1, 100_000_000)):
        rig = Rig(tcpreasm)
        rig.assembler.assemble_capture([(seconds, frame(0, b"", SYN))], flush=False)
        assert rig.recorder.take() == [new(), ("reassembled", new()[1], [(b"", 0, True, False, ns)])]


# -- live -----------------------------------------------------------------------------------------------------------------


@pytest.fixture
def handle() -> Iterator[Any]:
    """Of pypcap, over the loopback interface."""
    reason = unusable("pypcap")
    if reason is not None:
        pytest.skip(reason)
    import pcap as pypcap

    opened = pypcap.pcap(LOOPBACK, immediate=True)
    yield opened
    opened.close()


def echo(text: bytes) -> int:
    """Sends it through loopback, and it comes back. Returns the port of who was asked."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            with server.accept()[0] as peer:
                peer.sendall(peer.recv(100))

        thread = threading.Thread(target=answer)
        thread.start()
        with socket.create_connection(server.getsockname()) as client:
            client.sendall(text)
            assert client.recv(100) == text
            assert client.recv(100) == b""
        thread.join()
        return int(server.getsockname()[1])


def test_a_live_handle_of_pypcap(tcpreasm: ModuleType, handle: Any) -> None:
    """Capture time goes on without packets, it can be stopped, and stays the caller's: as it was, and open."""
    handle.setfilter("tcp")
    port = echo(b"over the wire")
    seen: set[str] = set()

    def progress(capture: Any) -> None:
        seen.add(f"{capture.source_name} {capture.library}")
        if capture.packets >= 8:
            capture.stop()

    streams: list[Any] = []

    def factory(net_flow: Any, transport_flow: Any) -> Any:
        streams.append(tcpreasm.BytesStream(net_flow, transport_flow))
        return streams[-1]

    tcpreasm.Assembler(tcpreasm.StreamPool(factory)).assemble_capture(handle, progress=progress)
    texts = {stream.data for stream in streams if port in (stream.transport_flow.src, stream.transport_flow.dst)}
    assert texts == {b"over the wire"}
    assert seen == {f"{LOOPBACK} pypcap"}
    assert not handle.getnonblock()
    assert handle.stats()[0] >= 8
