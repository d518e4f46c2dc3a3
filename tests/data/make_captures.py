"""Makes the captures in this folder, and truth.json beside them: real TCP between real sockets on loopback, captured live.

    python tests/data/make_captures.py        (as root or with CAP_NET_RAW; needs cypcap; some seconds)

Lives here: the traffic, its capture, and what the applications wrote. The payloads are the same on every run, and so are the
ports; only times and initial sequence numbers differ. A loopback frame may hold several segments' worth of data, as with
offloading on a real interface.

    http.pcap         HTTP/1.1 over IPv4: keep-alive, pipelining, chunked, HEAD, 304, 404; microseconds
    http6.pcapng      the same requests over IPv6, in units of nanoseconds
    edge.pcap         one connection per corner case, named in truth.json
    snap96.pcap       the connection `bulk`, every frame cut to 96 bytes when it was captured
    disordered.pcap   the connection `bulk` with records swapped and repeated after the capture, by a fixed rule
    missing.pcap      the connection `bulk` with some records taken out after the capture: `gaps` in truth.json tells where

truth.json: file -> linktype, connections: client and server as [address, port], c2s and s2c with the number and sha256 of the
bytes that were written (`gaps`: [offset, length] of what the file lacks, left out of the digest), for HTTP each exchange.
"""

from __future__ import annotations

import hashlib
import json
import random
import socket
import struct
import threading
import time
from collections.abc import Callable
from http.client import HTTPResponse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple

import cypcap

HERE = Path(__file__).resolve().parent
HTTP_PORT = 8080
EDGE_PORT = 9001
BULK_PORT = 9002
REFUSED_PORT = 9003
MAX_SEGMENT = 1400
ETHERNET = 1

Address = tuple[str, int]


class Record(NamedTuple):
    """One captured frame."""

    timestamp_ns: int
    wire_length: int
    data: bytes


def payload(name: str, length: int) -> bytes:
    """Bytes that look like nothing, the same on every run."""
    return random.Random(name).randbytes(length)


def text(name: str, length: int) -> bytes:
    """Readable bytes, the same on every run."""
    words = random.Random(name).choices(["segment", "stream", "window", "sequence", "packet", "socket", "urgent", "port", "flow"], k=length)
    return " ".join(words).encode()[:length]


# ---- capturing


class LoopbackCapture:
    """Captures on `lo` while its block runs; `records` is what was seen."""

    def __init__(self, bpf: str, snaplen: int = 262144) -> None:
        self._pcap = cypcap.create("lo")
        self._pcap.set_snaplen(snaplen)
        self._pcap.set_immediate_mode(True)
        self._pcap.set_timeout(100)
        self._pcap.set_buffer_size(1 << 26)  # each frame takes a place of `snaplen` bytes in it
        self._pcap.activate()
        self._pcap.setfilter(self._pcap.compile(bpf, True, 0))
        self._pcap.setnonblock(True)
        assert self._pcap.datalink() == ETHERNET
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.records: list[Record] = []

    def _run(self) -> None:
        quiet_since = time.monotonic()
        while not self._stopped.is_set() or time.monotonic() - quiet_since < 0.3:  # the last packets come after the last close
            for header, data in self._pcap:
                if header is None:
                    break
                quiet_since = time.monotonic()
                self.records.append(Record(timestamp_ns(header.ts), header.len, bytes(data)))
            time.sleep(0.002)

    def __enter__(self) -> LoopbackCapture:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        time.sleep(0.1)
        self._stopped.set()
        self._thread.join()
        statistics = self._pcap.stats()
        assert statistics.drop == 0, statistics
        self._pcap.close()


def timestamp_ns(ts: Any) -> int:
    """cypcap's time, a float of microseconds' precision (asked for nanoseconds it counts them as microseconds)."""
    return round(ts * 1e6) * 1000


def write_pcap(path: Path, records: list[Record], snaplen: int = 262144) -> None:
    """Microseconds, little-endian."""
    with path.open("wb") as file:
        file.write(struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, snaplen, ETHERNET))
        for record in records:
            seconds, nanoseconds = divmod(record.timestamp_ns, 10**9)
            file.write(struct.pack("<IIII", seconds, nanoseconds // 1000, len(record.data), record.wire_length))
            file.write(record.data)


def pcapng_block(kind: int, body: bytes) -> bytes:
    body += bytes(-len(body) % 4)
    length = len(body) + 12
    return struct.pack("<II", kind, length) + body + struct.pack("<I", length)


def write_pcapng(path: Path, records: list[Record]) -> None:
    """One section, one interface, nanoseconds, little-endian."""
    options = struct.pack("<HH4s", 2, 2, b"lo") + struct.pack("<HHB3x", 9, 1, 9) + struct.pack("<HH", 0, 0)
    with path.open("wb") as file:
        file.write(pcapng_block(0x0A0D0D0A, struct.pack("<IHHq", 0x1A2B3C4D, 1, 0, -1)))
        file.write(pcapng_block(1, struct.pack("<HHI", ETHERNET, 0, 262144) + options))
        for record in records:
            high, low = record.timestamp_ns >> 32, record.timestamp_ns & 0xFFFFFFFF
            file.write(pcapng_block(6, struct.pack("<IIIII", 0, high, low, len(record.data), record.wire_length) + record.data))


# ---- what was sent


def direction(data: bytes, gaps: list[tuple[int, int]] | None = None) -> dict[str, Any]:
    captured = bytearray(data)
    for offset, length in reversed(gaps or []):
        del captured[offset : offset + length]
    told: dict[str, Any] = {"len": len(data), "sha256": hashlib.sha256(captured).hexdigest()}
    if gaps:
        told["gaps"] = gaps
    return told


def connection(case: str, client: Address, server: Address, c2s: bytes, s2c: bytes, **more: Any) -> dict[str, Any]:
    return {"case": case, "client": client[:2], "server": server[:2], "c2s": direction(c2s), "s2c": direction(s2c), **more}


# ---- HTTP


class Handler(BaseHTTPRequestHandler):
    """A few resources, always the same, over connections that are kept alive. Notes what it writes, by client port."""

    protocol_version = "HTTP/1.1"
    server_version = "example"
    sys_version = ""
    disable_nagle_algorithm = True
    written: dict[int, bytearray]

    def setup(self) -> None:
        super().setup()
        note = self.written.setdefault(self.client_address[1], bytearray())
        really_write = self.wfile.write

        def write(data: bytes) -> int:
            note.extend(data)
            return really_write(data)

        self.wfile.write = write

    def date_time_string(self, timestamp: float | None = None) -> str:
        return "Thu, 01 Jan 2026 00:00:00 GMT"

    def log_message(self, *_: Any) -> None:
        pass

    def answer(self, status: int, kind: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_GET(self) -> None:
        if self.path == "/":
            self.answer(200, "text/html", b"<!doctype html><title>example</title><p>" + text("index", 700) + b"</p>\n")
        elif self.path == "/data.bin":
            self.answer(200, "application/octet-stream", payload("data.bin", 12_000))
        elif self.path == "/chunked":
            self.send_response(200)
            self.send_header("Content-Type", "text/plain")
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            for number in range(5):
                chunk = text(f"chunk {number}", 300 + 100 * number)
                self.wfile.write(b"%x\r\n%b\r\n" % (len(chunk), chunk))
            self.wfile.write(b"0\r\n\r\n")
        elif self.path == "/unchanged":
            self.send_response(304)
            self.send_header("ETag", '"1"')
            self.end_headers()
        else:
            self.answer(404, "text/plain", b"no such resource\n")

    do_HEAD = do_GET

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.answer(201, "application/json", json.dumps({"received": len(body)}).encode())


def request(method: str, path: str, host: str, body: bytes = b"", *headers: str) -> bytes:
    lines = [f"{method} {path} HTTP/1.1", f"Host: {host}", "User-Agent: make_captures", "Accept: */*", *headers]
    if body:
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode() + body


def http_traffic(family: socket.AddressFamily, address: str) -> list[dict[str, Any]]:
    """Three connections. Gives their truth."""

    class Server(ThreadingHTTPServer):
        address_family = family
        allow_reuse_address = True

    handler = type("NotingHandler", (Handler,), {"written": {}})
    server = Server((address, HTTP_PORT), handler)
    server.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, MAX_SEGMENT)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    host = f"[{address}]:{HTTP_PORT}" if ":" in address else f"{address}:{HTTP_PORT}"
    plans: list[tuple[str, list[list[tuple[str, str, bytes]]]]] = [
        # Each inner list goes out in one piece, before its responses are read.
        (
            "keep-alive",
            [
                [("GET", "/", b"")],
                [("GET", "/data.bin", b"")],
                [("HEAD", "/data.bin", b"")],
                [("POST", "/upload", payload("upload", 5_000))],
                [("GET", "/nothing", b"")],
            ],
        ),
        ("pipelined", [[("GET", "/", b""), ("GET", "/unchanged", b""), ("GET", "/chunked", b"")]]),
        ("close", [[("GET", "/chunked", b"")]]),
    ]
    told = []
    for number, (case, rounds) in enumerate(plans):
        client_port = 40001 + number
        sent = bytearray()
        exchanges = []
        with socket.socket(family, socket.SOCK_STREAM) as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, MAX_SEGMENT)
            client.bind((address, client_port))
            client.connect((address, HTTP_PORT))
            reader = UnclosedReader(client.makefile("rb"))

            for requests in rounds:
                more = ("Connection: close",) if case == "close" else ()
                out = b"".join(request(method, path, host, body, *more) for method, path, body in requests)
                sent += out
                client.sendall(out)
                for method, path, body in requests:
                    response = HTTPResponse(reader, method=method)
                    response.begin()
                    received = response.read()
                    exchanges.append(
                        {
                            "method": method,
                            "path": path,
                            "request_body": len(body),
                            "status": response.status,
                            "response_body": len(received),
                        }
                    )
            reader.really_close()
        server_side = (address, HTTP_PORT)
        time.sleep(0.1)  # the server's thread sees the end of the connection
        told.append(
            connection(case, (address, client_port), server_side, bytes(sent), bytes(handler.written[client_port]), exchanges=exchanges)
        )
    server.shutdown()
    server.server_close()
    return told


class UnclosedReader:
    """What HTTPResponse takes for a socket. All responses share its one buffer, and closing one of them closes nothing."""

    def __init__(self, reader: Any) -> None:
        self._reader = reader

    def makefile(self, _mode: str) -> UnclosedReader:
        return self

    def really_close(self) -> None:
        self._reader.close()

    def close(self) -> None:
        pass

    def flush(self) -> None:
        pass

    def __getattr__(self, name: str) -> Any:
        return getattr(self._reader, name)


# ---- corner cases


def pair(client_port: int, server_port: int) -> tuple[socket.socket, socket.socket]:
    """A connected client and its server side."""
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, MAX_SEGMENT)
        listener.bind(("127.0.0.1", server_port))
        listener.listen()
        client = socket.socket()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, MAX_SEGMENT)
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        client.bind(("127.0.0.1", client_port))
        client.connect(("127.0.0.1", server_port))
        server, _ = listener.accept()
    server.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return client, server


def read_all(side: socket.socket, length: int) -> bytes:
    data = bytearray()
    while len(data) < length:
        piece = side.recv(length - len(data))
        assert piece, f"the connection ended after {len(data)} of {length} bytes"
        data += piece
    return bytes(data)


def carry(sender: socket.socket, receiver: socket.socket, data: bytes) -> None:
    sender.sendall(data)
    assert read_all(receiver, len(data)) == data


def close_by_reset(side: socket.socket) -> None:
    side.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    side.close()


def empty(client: socket.socket, server: socket.socket, c2s: bytes, s2c: bytes) -> None:
    client.close()
    assert server.recv(1) == b""
    server.close()


def half_close_client(client: socket.socket, server: socket.socket, c2s: bytes, s2c: bytes) -> None:
    carry(client, server, c2s)
    client.shutdown(socket.SHUT_WR)
    assert server.recv(1) == b""
    carry(server, client, s2c)
    server.close()
    assert client.recv(1) == b""
    client.close()


def half_close_server(client: socket.socket, server: socket.socket, c2s: bytes, s2c: bytes) -> None:
    half_close_client(server, client, s2c, c2s)


def reset(client: socket.socket, server: socket.socket, c2s: bytes, s2c: bytes) -> None:
    carry(client, server, c2s)
    carry(server, client, s2c)
    time.sleep(0.05)
    close_by_reset(server)
    client.close()


def one_byte_segments(client: socket.socket, server: socket.socket, c2s: bytes, s2c: bytes) -> None:
    for number in range(len(c2s)):
        carry(client, server, c2s[number : number + 1])
    carry(server, client, s2c)
    empty(client, server, b"", b"")


def urgent(client: socket.socket, server: socket.socket, c2s: bytes, s2c: bytes) -> None:
    """The byte in the middle is urgent: it is a byte of the stream like any other (RFC 6093)."""
    server.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)
    middle = len(c2s) // 2
    client.sendall(c2s[:middle])
    client.send(c2s[middle : middle + 1], socket.MSG_OOB)
    client.sendall(c2s[middle + 1 :])
    assert read_all(server, len(c2s)) == c2s
    carry(server, client, s2c)
    empty(client, server, b"", b"")


def server_closes(client: socket.socket, server: socket.socket, c2s: bytes, s2c: bytes) -> None:
    carry(client, server, c2s)
    carry(server, client, s2c)
    server.close()
    assert client.recv(1) == b""
    client.close()


def left_open(client: socket.socket, server: socket.socket, c2s: bytes, s2c: bytes) -> None:
    carry(client, server, c2s)
    carry(server, client, s2c)
    LEFT_OPEN.extend((client, server))


LEFT_OPEN: list[socket.socket] = []

Behaviour = Callable[[socket.socket, socket.socket, bytes, bytes], None]
EDGES: list[tuple[str, int, Behaviour, int, int]] = [
    # The last two numbers: bytes from the client, bytes from the server.
    ("empty", 41001, empty, 0, 0),
    ("half close by the client", 41002, half_close_client, 3000, 5000),
    ("half close by the server", 41003, half_close_server, 4000, 2000),
    ("reset", 41004, reset, 1500, 700),
    ("one byte segments", 41005, one_byte_segments, 60, 10),
    ("urgent", 41006, urgent, 201, 100),
    ("ports used first", 41007, server_closes, 500, 900),
    ("ports used again", 41007, server_closes, 600, 1000),
    ("left open", 41008, left_open, 800, 1600),
]


def edge_traffic() -> list[dict[str, Any]]:
    told = []
    for case, client_port, behave, c2s_length, s2c_length in EDGES:
        c2s, s2c = payload(f"{case} c2s", c2s_length), payload(f"{case} s2c", s2c_length)
        client, server = pair(client_port, EDGE_PORT)
        behave(client, server, c2s, s2c)
        told.append(connection(case, ("127.0.0.1", client_port), ("127.0.0.1", EDGE_PORT), c2s, s2c))
        time.sleep(0.05)
    with socket.socket() as client:
        client.bind(("127.0.0.1", 41009))
        try:
            client.connect(("127.0.0.1", REFUSED_PORT))
        except ConnectionRefusedError:
            told.append(connection("refused", ("127.0.0.1", 41009), ("127.0.0.1", REFUSED_PORT), b"", b""))
    return told


# ---- one plain transfer, and what can happen to its records


def bulk_traffic(client_port: int, c2s: bytes, s2c: bytes) -> None:
    client, server = pair(client_port, BULK_PORT)
    for offset in range(0, len(c2s), 1000):
        carry(client, server, c2s[offset : offset + 1000])
    for offset in range(0, len(s2c), 700):
        carry(server, client, s2c[offset : offset + 700])
    server_closes(client, server, b"", b"")


def data_of(record: Record) -> tuple[int, int, bytes]:
    """Source port, sequence number and payload of an Ethernet, IPv4, TCP frame."""
    header = 14 + (record.data[14] & 15) * 4
    source_port, sequence = struct.unpack_from(">HxxI", record.data, header)
    return source_port, sequence, record.data[header + (record.data[header + 12] >> 4) * 4 :]


def disorder(records: list[Record]) -> list[Record]:
    """Every third data record changes places with the fifth after it, every fourth comes once more a little later."""
    places = [place for place, record in enumerate(records) if data_of(record)[2]]
    out = list(records)
    for first, second in zip(places[::3], places[5::3], strict=False):
        out[first], out[second] = out[second], out[first]
    for copied, place in enumerate(places[2:-3:4]):
        out.insert(place + copied + 2, records[place])
    # Only the order is changed: the times stay in it, as they would had the packets come so.
    times = sorted(record.timestamp_ns for record in out)
    return [record._replace(timestamp_ns=at) for record, at in zip(out, times, strict=True)]


def lose(records: list[Record], client_port: int, c2s: bytes, s2c: bytes) -> tuple[list[Record], dict[str, list[tuple[int, int]]]]:
    """Takes out the data records 3, 4, 9 and 14 of each direction. Gives what is left, and the gaps."""
    kept = []
    seen = {"c2s": 0, "s2c": 0}
    gaps: dict[str, list[tuple[int, int]]] = {"c2s": [], "s2c": []}
    for record in records:
        source_port, _, data = data_of(record)
        name, whole = ("c2s", c2s) if source_port == client_port else ("s2c", s2c)
        if data:
            seen[name] += 1
            if seen[name] in (3, 4, 9, 14):
                offset = whole.index(data)
                if gaps[name] and sum(gaps[name][-1]) == offset:
                    offset_before, length_before = gaps[name].pop()
                    gaps[name].append((offset_before, length_before + len(data)))
                else:
                    gaps[name].append((offset, len(data)))
                continue
        kept.append(record)
    return kept, gaps


def cut_gaps(records: list[Record], client_port: int, c2s: bytes, s2c: bytes) -> dict[str, list[tuple[int, int]]]:
    """Where the cut frames leave gaps, told by the whole ones."""
    gaps: dict[str, list[tuple[int, int]]] = {"c2s": [], "s2c": []}
    for record in records:
        source_port, _, data = data_of(record)
        captured = max(0, 96 - (len(record.data) - len(data)))
        if len(data) > captured:
            name, whole = ("c2s", c2s) if source_port == client_port else ("s2c", s2c)
            gaps[name].append((whole.index(data) + captured, len(data) - captured))
    return gaps


def main() -> None:
    file_of_truth = HERE / "truth.json"
    truth: dict[str, Any] = json.loads(file_of_truth.read_text()) if file_of_truth.exists() else {}  # make_protocols has its part in it

    for family, address, file in ((socket.AF_INET, "127.0.0.1", "http.pcap"), (socket.AF_INET6, "::1", "http6.pcapng")):
        with LoopbackCapture(f"tcp port {HTTP_PORT}") as capture:
            told = http_traffic(family, address)
        (write_pcapng if file.endswith("ng") else write_pcap)(HERE / file, capture.records)
        truth[file] = {"linktype": ETHERNET, "packets": len(capture.records), "connections": told}

    with LoopbackCapture(f"tcp port {EDGE_PORT} or tcp port {REFUSED_PORT}") as capture:
        told = edge_traffic()
    for side in LEFT_OPEN:
        side.close()
    write_pcap(HERE / "edge.pcap", capture.records)
    truth["edge.pcap"] = {"linktype": ETHERNET, "packets": len(capture.records), "connections": told}

    client_port, c2s, s2c = 42001, payload("bulk c2s", 20_000), payload("bulk s2c", 14_000)
    ends: tuple[Address, Address] = ("127.0.0.1", client_port), ("127.0.0.1", BULK_PORT)
    with LoopbackCapture(f"tcp port {BULK_PORT}") as whole, LoopbackCapture(f"tcp port {BULK_PORT}", snaplen=96) as cut:
        bulk_traffic(client_port, c2s, s2c)
    assert [record.wire_length for record in whole.records] == [record.wire_length for record in cut.records]

    out = disorder(whole.records)
    write_pcap(HERE / "disordered.pcap", out)
    truth["disordered.pcap"] = {"linktype": ETHERNET, "packets": len(out), "connections": [connection("disordered", *ends, c2s, s2c)]}

    for file, records, gaps, snaplen in (
        ("missing.pcap", *lose(whole.records, client_port, c2s, s2c), 262144),
        ("snap96.pcap", cut.records, cut_gaps(whole.records, client_port, c2s, s2c), 96),
    ):
        write_pcap(HERE / file, records, snaplen)
        told = [{"case": file.split(".")[0], "client": ends[0], "server": ends[1]}]
        told[0] |= {"c2s": direction(c2s, gaps["c2s"]), "s2c": direction(s2c, gaps["s2c"])}
        truth[file] = {"linktype": ETHERNET, "packets": len(records), "connections": told}

    file_of_truth.write_text(json.dumps(truth, indent=1) + "\n")


if __name__ == "__main__":
    main()
