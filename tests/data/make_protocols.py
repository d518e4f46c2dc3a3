"""Makes the captures in this folder of servers that others wrote, and their part of truth.json: captured live on loopback.

    python tests/data/make_protocols.py        (as root or with CAP_NET_RAW; needs cypcap, nginx, redis-server and openssl)

Lives here: clients on bare sockets, so that what went each way is known to the byte, and what the servers were told to serve. Capturing
and writing is make_captures'.

    nginx.pcap        keep-alive, pipelining, chunked, gzip, HEAD, 304, 404, 100-continue
    nginx_lost.pcap   the same without four frames that carry data: `lost` in truth.json tells what was in them
    tls.pcap          two TLS handshakes with server names, and one without
    redis.pcap        commands one by one, and pipelined
    dns.pcap          three questions and answers over TCP; the server is this script

truth.json has, beside what make_captures writes, for each exchange: `interim`, `response_sha256` and `request_sha256` of the bodies with
their content coding undone; null where nothing of it is in the capture.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import socket
import ssl
import struct
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPResponse
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from make_captures import (
    ETHERNET,
    HERE,
    MAX_SEGMENT,
    Address,
    LoopbackCapture,
    Record,
    UnclosedReader,
    connection,
    data_of,
    direction,
    payload,
    request,
    text,
    write_pcap,
)

NGINX_PORT, BACKEND_PORT, TLS_PORT, REDIS_PORT, DNS_PORT = 8081, 8082, 8443, 6390, 5353
LOCAL = "127.0.0.1"

FILES = {"/text.txt": text("nginx text", 6_000), "/data.bin": payload("nginx data", 9_000), "/page.html": b"<p>" + text("nginx page", 900)}
MODIFIED = 1767225600  # Thu, 01 Jan 2026 00:00:00 GMT
NGINX = """
daemon off;
master_process off;
pid {folder}/nginx.pid;
error_log {folder}/error.log;
events {{}}
http {{
    access_log off;
    sendfile off;
    output_buffers 1 2k;
    gzip_buffers 16 512;
    postpone_output 0;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    server_tokens off;
    types {{ text/plain txt; text/html html; application/octet-stream bin; }}
    gzip on;
    gzip_types text/plain;
    gzip_min_length 1000;
    server {{
        listen {address}:{port};
        root {folder};
        location /upload {{ proxy_pass http://{address}:{backend}; }}
    }}
    server {{
        listen {address}:{backend};
        location / {{ default_type application/json; return 201 '{{"stored": true}}'; }}
    }}
}}
"""


class Client:
    """A socket that notes what goes each way."""

    def __init__(self, client_port: int, server_port: int) -> None:
        self.ends: tuple[Address, Address] = (LOCAL, client_port), (LOCAL, server_port)
        self.sent, self.received = bytearray(), bytearray()
        self._socket = socket.socket()
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, MAX_SEGMENT)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket.bind(self.ends[0])
        self._socket.connect(self.ends[1])
        self._socket.settimeout(5)

    def send(self, data: bytes) -> None:
        self._socket.sendall(data)
        self.sent += data

    def receive(self) -> bytes:
        """Some bytes; none at the end."""
        data = self._socket.recv(65536)
        self.received += data
        return data

    def close(self) -> None:
        self._socket.shutdown(socket.SHUT_WR)
        while self.receive():
            pass
        self._socket.close()

    def told(self, case: str, **more: Any) -> dict[str, Any]:
        return connection(case, *self.ends, bytes(self.sent), bytes(self.received), **more)


@contextmanager
def running(*command: str, port: int) -> Iterator[None]:
    """A server, from when it listens on."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        for _ in range(100):
            with socket.socket() as probe:
                if not probe.connect_ex((LOCAL, port)):
                    break
            time.sleep(0.05)
        else:
            raise RuntimeError(f"{command[0]} does not listen on port {port}")
        yield
    finally:
        process.terminate()
        process.wait()


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


# ---- nginx


class Responses(io.RawIOBase):
    """What a client receives, as a file."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._data = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        self._data = self._data or self._client.receive()
        count = min(len(buffer), len(self._data))
        buffer[:count], self._data = self._data[:count], self._data[count:]
        return count


Asked = tuple[str, str, bytes, tuple[str, ...]]
GZIP = ("Accept-Encoding: gzip",)
EXPECT = ("Expect: 100-continue",)
UPLOAD = text("nginx upload", 3_000)
PLANS: list[tuple[str, list[list[Asked]]]] = [
    # Each inner list goes out in one piece, before its responses are read.
    (
        "keep-alive",
        [
            [("GET", "/page.html", b"", ())],
            [("GET", "/text.txt", b"", GZIP)],
            [("GET", "/data.bin", b"", ())],
            [("POST", "/upload", UPLOAD, EXPECT)],
            [("HEAD", "/data.bin", b"", ())],
            [("GET", "/page.html", b"", ())],
            [("GET", "/nothing", b"", ())],
            [("GET", "/page.html", b"", ("If-Modified-Since: Thu, 01 Jan 2026 00:00:00 GMT",))],
            [("GET", "/text.txt", b"", GZIP)],
            [("GET", "/page.html", b"", ())],
        ],
    ),
    (
        "pipelined",
        [[("GET", "/page.html", b"", ()), ("GET", "/text.txt", b"", GZIP), ("GET", "/nothing", b"", ()), ("GET", "/page.html", b"", ())]],
    ),
    ("close", [[("GET", "/text.txt", b"", (*GZIP, "Connection: close"))]]),
]


def interim_responses(client: Client) -> int:
    """Waits for `100 Continue`."""
    seen = len(client.received)
    while not client.received[seen:].endswith(b"\r\n\r\n"):
        client.receive()
    assert client.received[seen:].startswith(b"HTTP/1.1 100 ")
    return 100


def exchange(responses: Any, asked: Asked, interim: list[int]) -> dict[str, Any]:
    method, path, body, _ = asked
    response = HTTPResponse(responses, method=method)
    response.begin()
    received = response.read()
    decoded = gzip.decompress(received) if response.headers["Content-Encoding"] == "gzip" else received
    if response.status == 200:
        assert decoded == (b"" if method == "HEAD" else FILES[path])
    return {
        "method": method,
        "path": path,
        "request_body": len(body),
        "request_sha256": sha256(body),
        "status": response.status,
        "interim": interim,
        "response_body": len(received),
        "response_sha256": sha256(decoded),
        "chunked": response.headers["Transfer-Encoding"] == "chunked",
    }


def nginx_traffic() -> list[dict[str, Any]]:
    told = []
    with TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        for path, data in FILES.items():
            (folder / path[1:]).write_bytes(data)
            os.utime(folder / path[1:], (MODIFIED, MODIFIED))
        (folder / "nginx.conf").write_text(NGINX.format(folder=folder, address=LOCAL, port=NGINX_PORT, backend=BACKEND_PORT))
        # Nobody looks whether it listens on the port that is captured: that would be a connection of its own.
        with running("nginx", "-c", f"{folder}/nginx.conf", "-e", f"{folder}/error.log", port=BACKEND_PORT):
            for number, (case, rounds) in enumerate(PLANS):
                client = Client(43001 + number, NGINX_PORT)
                responses = UnclosedReader(io.BufferedReader(Responses(client)))
                exchanges = []
                for asked in rounds:
                    whole = b"".join(
                        request(method, path, f"{LOCAL}:{NGINX_PORT}", body, *headers) for method, path, body, headers in asked
                    )
                    interim = []
                    if asked[0][3] == EXPECT:
                        client.send(whole[: -len(asked[0][2])])
                        interim.append(interim_responses(client))
                        whole = asked[0][2]
                    client.send(whole)
                    exchanges += [exchange(responses, each, interim) for each in asked]
                client.close()
                told.append(client.told(case, exchanges=exchanges))
    return told


# Of the first connection: exchange, who sends, and which of the frames with data that this side sends then.
LOST = {(2, "s2c", 2): "body", (5, "s2c", 0): "response", (6, "c2s", 0): "request", (8, "s2c", 1): "end"}


def lose(records: list[Record], told: list[dict[str, Any]]) -> tuple[list[Record], list[dict[str, Any]]]:
    """Takes the frames of LOST out. Gives what is left, and its truth."""
    told = json.loads(json.dumps(told))
    whole = told[0]
    client_port = whole["client"][1]
    raw = {"c2s": bytearray(), "s2c": bytearray()}
    gaps: dict[str, list[tuple[int, int]]] = {"c2s": [], "s2c": []}
    seen: dict[str, set[int]] = {"c2s": set(), "s2c": set()}
    at, count = -1, 0
    kept = []
    side = ""
    for record in records:
        source, sequence, data = data_of(record)
        destination = int.from_bytes(record.data[36:38], "big")
        if client_port in (source, destination) and data:
            before, side = side, "c2s" if source == client_port else "s2c"
            assert sequence not in seen[side], "no frame comes twice"
            seen[side].add(sequence)
            begins = data.startswith((b"GET ", b"HEAD ", b"POST "))
            at += side == "c2s" and begins
            count = 0 if side != before or (side == "c2s" and begins) else count + 1
            lost = LOST.get((at, side, count))
            if lost is not None:
                whole["exchanges"][at]["lost"] = lost
                gaps[side].append((len(raw[side]), len(data)))
            raw[side] += data
            if lost is not None:
                continue
        kept.append(record)
    assert {each["lost"] for each in whole["exchanges"] if "lost" in each} == {*LOST.values()}
    for side in ("c2s", "s2c"):
        assert len(raw[side]) == whole[side]["len"]
        whole[side] = direction(bytes(raw[side]), gaps[side])
    return kept, told


# ---- TLS


def tls_traffic() -> list[dict[str, Any]]:
    with TemporaryDirectory() as folder:
        key, certificate = f"{folder}/key.pem", f"{folder}/certificate.pem"
        make = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "3650"]
        subprocess.run([*make, "-subj", "/CN=example.org", "-keyout", key, "-out", certificate], check=True, capture_output=True)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)
    listener = listening(TLS_PORT)
    told = []

    def serve(connections: int) -> None:
        for _ in range(connections):
            plain, _ = listener.accept()
            with context.wrap_socket(plain, server_side=True) as server:
                server.sendall(b"you said " + server.recv(1000))

    names = ("example.org", "www.example.net", None)
    thread = threading.Thread(target=serve, args=(len(names),))
    thread.start()
    for number, name in enumerate(names):
        client = Client(44001 + number, TLS_PORT)
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        unverified = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        unverified.check_hostname = False
        unverified.verify_mode = ssl.CERT_NONE
        unverified.set_alpn_protocols(["http/1.1"])
        tls = unverified.wrap_bio(incoming, outgoing, server_hostname=name)
        for step in (tls.do_handshake, lambda tls=tls: tls.write(b"hello"), lambda tls=tls: tls.read(1000)):
            while True:
                try:
                    step()
                    break
                except ssl.SSLWantReadError:
                    client.send(outgoing.read())
                    incoming.write(client.receive())
            client.send(outgoing.read())
        client.close()
        told.append(client.told(f"tls {name}", server_name=name))
    thread.join()
    listener.close()
    return told


def listening(port: int) -> socket.socket:
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind((LOCAL, port))
    listener.listen()
    return listener


# ---- Redis


def redis_traffic() -> list[dict[str, Any]]:
    def command(*words: bytes) -> bytes:
        return b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%b\r\n" % (len(word), word) for word in words)

    told = []
    plans = [
        [[(b"SET", b"colour", b"blue")], [(b"GET", b"colour")], [(b"INCR", b"visits")], [(b"GET", b"nothing")]],
        [[(b"RPUSH", b"list", payload("redis", 2_000)), (b"LRANGE", b"list", b"0", b"-1"), (b"DEL", b"list"), (b"PING",)]],
    ]
    for number, rounds in enumerate(plans):
        client = Client(45001 + number, REDIS_PORT)
        for commands in rounds:
            expected = len(client.received)
            client.send(b"".join(command(*words) for words in commands))
            while len(client.received) == expected or (len(commands) > 1 and not client.received.endswith(b"+PONG\r\n")):
                client.receive()
        client.close()
        told.append(client.told("redis", commands=[words[0].decode() for commands in rounds for words in commands]))
    return told


# ---- DNS


def dns_traffic() -> list[dict[str, Any]]:
    names = ["example.org", "www.example.net", "a.very.long.name.example.com"]

    def question(number: int, name: str) -> bytes:
        labels = b"".join(bytes([len(label)]) + label.encode() for label in name.split("."))
        return struct.pack(">HHHHHH", number, 0x0100, 1, 0, 0, 0) + labels + struct.pack(">BHH", 0, 1, 1)

    def answer(asked: bytes) -> bytes:
        head = asked[:2] + struct.pack(">HHHHH", 0x8180, 1, 1, 0, 0)
        return head + asked[12:] + struct.pack(">HHHIH4s", 0xC00C, 1, 1, 300, 4, bytes([192, 0, 2, asked[1]]))

    listener = listening(DNS_PORT)

    def serve() -> None:
        server, _ = listener.accept()
        with server, server.makefile("rb") as file:
            while size := file.read(2):
                said = answer(file.read(int.from_bytes(size, "big")))
                server.sendall(struct.pack(">H", len(said)) + said)

    thread = threading.Thread(target=serve)
    thread.start()
    client = Client(46001, DNS_PORT)
    for number, name in enumerate(names, 1):
        asked = question(number, name)
        client.send(struct.pack(">H", len(asked)) + asked)
        client.receive()
    client.close()
    thread.join()
    listener.close()
    return [client.told("dns", names=names)]


def main() -> None:
    truth = json.loads((HERE / "truth.json").read_text())

    def write(file: str, records: list[Record], told: list[dict[str, Any]]) -> None:
        write_pcap(HERE / file, records)
        truth[file] = {"linktype": ETHERNET, "packets": len(records), "connections": told}

    with LoopbackCapture(f"tcp port {NGINX_PORT}") as capture:
        told = nginx_traffic()
    write("nginx.pcap", capture.records, told)
    write("nginx_lost.pcap", *lose(capture.records, told))
    for file, port, traffic in (("tls.pcap", TLS_PORT, tls_traffic), ("dns.pcap", DNS_PORT, dns_traffic)):
        with LoopbackCapture(f"tcp port {port}") as capture:
            told = traffic()
        write(file, capture.records, told)
    redis = ("redis-server", "--port", str(REDIS_PORT), "--bind", LOCAL, "--save", "", "--dir", "/tmp")
    with running(*redis, port=REDIS_PORT), LoopbackCapture(f"tcp port {REDIS_PORT}") as capture:
        told = redis_traffic()
    write("redis.pcap", capture.records, told)
    (HERE / "truth.json").write_text(json.dumps(truth, indent=1) + "\n")


if __name__ == "__main__":
    main()
