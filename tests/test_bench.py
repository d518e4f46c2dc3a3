"""The benchmarks' captures: what the generator says they hold is what both cores get out of them; and what the measurements stand on.

Lives here: tiny captures, exact results. No time is measured.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from conftest import REPOSITORY


def _load_bench() -> None:
    """The package bench, which nobody installs, without the repository on sys.path: there, its sources would hide what is installed."""
    folder = REPOSITORY / "bench"
    spec = importlib.util.spec_from_file_location("bench", folder / "__init__.py", submodule_search_locations=[str(folder)])
    assert spec is not None
    assert spec.loader is not None
    sys.modules["bench"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules["bench"])


_load_bench()
captures: Any = importlib.import_module("bench.captures")
attacks: Any = importlib.import_module("bench.attacks")
measure: Any = importlib.import_module("bench.measure")
traffic: Any = importlib.import_module("bench.traffic")

COMMANDS = {"run": (), "compare": ("HEAD",), "peers.__main__": ()}

SCALES = {"bulk": 0.01, "web": 0.003, "web100k": 0.001, "manyflows": 0.0004, "small": 0.0005, "lossy": 0.01}
NAMES = [*SCALES, "ooo-reverse-1k", "ooo-random-1k", "ooo-even-odd-1k", "ooo-head-last-1k"]
OOO_SCALE = 0.0075  # 1,500 segments: one window and a half
Made = Callable[[str], tuple[Any, Any]]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """`made("web")`: a tiny capture of that workload, and the traffic that it was made of."""
    folder = tmp_path_factory.mktemp("captures")

    def make(name: str) -> tuple[Any, Any]:
        scale = SCALES.get(name, OOO_SCALE)
        return captures.get(name, scale, folder), captures.SHAPES[name](scale)

    return make


def address(number: int) -> str:
    return ".".join(str(byte) for byte in int(number).to_bytes(4, "big"))


def expected_streams(shape: Any) -> Counter[Any]:
    """Of each direction with bytes: who sends to whom, how many bytes, their digest, the gaps."""
    ends = shape.connections
    found: Counter[Any] = Counter()
    for direction in traffic.directions(shape):
        sides = (direction.sender, direction.connection), (1 - direction.sender, direction.connection)
        (src, src_port), (dst, dst_port) = ((address(ends.address[side]), int(ends.port[side])) for side in sides)
        if direction.present:
            found[src, src_port, dst, dst_port, direction.present, direction.sha256, tuple(direction.gaps)] += 1
    return found


@pytest.mark.parametrize("name", NAMES)
def test_the_truth_of_a_capture_is_what_comes_out(tcpreasm: ModuleType, made: Made, name: str) -> None:
    capture, shape = made(name)
    streams: list[Any] = []

    def factory(net_flow: Any, transport_flow: Any) -> Any:
        streams.append(tcpreasm.BytesStream(net_flow, transport_flow))
        return streams[-1]

    with tcpreasm.Assembler(tcpreasm.StreamPool(factory), tcpreasm.AssemblerOptions(verify_checksums=True)) as assembler:
        summary = assembler.assemble_capture(capture.path)

    assert summary.complete
    assert summary.segments == summary.packets == capture.packets
    assert (summary.streams, summary.bytes_delivered, summary.bytes_skipped) == (
        2 * capture.connections,
        capture.bytes_present,
        capture.bytes_skipped,
    )
    found: Counter[Any] = Counter()
    for stream in streams:
        if stream.length:
            net, transport = stream.net_flow, stream.transport_flow
            digest = hashlib.sha256(stream.data).digest()
            found[str(net.src), transport.src, str(net.dst), transport.dst, stream.length, digest, stream.gaps] += 1
        assert stream.started
    assert found == expected_streams(shape)
    assert sum(found.values()) == capture.directions
    assert sum(len(stream.gaps) for stream in streams) == capture.gaps
    digest_sum = sum(int.from_bytes(hashlib.sha256(stream.data).digest()[:8], "big") for stream in streams if stream.length)
    assert f"{digest_sum % 2**64:016x}" == capture.digest_sum


@pytest.mark.parametrize("name", ["web", "lossy", "ooo-random-1k"])
@pytest.mark.parametrize(
    "way",
    ["count", "count-memory", "count-batch", "python", "python-coalesced", "frames", "frames-python"],
)
def test_a_way_of_use_gets_the_totals(tcpreasm: ModuleType, made: Made, name: str, way: str) -> None:
    check_way(tcpreasm, made(name)[0], way)


@pytest.mark.parametrize("way", ["collect", "write-files", "digest", "spans", *measure.TOGETHER])
def test_a_kind_of_stream_gets_the_totals(tcpreasm: ModuleType, made: Made, way: str) -> None:
    check_way(tcpreasm, made("lossy")[0], way, tells_packets=way not in ("follow", "conversations"))


@pytest.mark.parametrize("way", ["tables", "follow-asyncio", "readers-asyncio"])
def test_what_is_made_of_streams_gets_the_totals(tcpreasm: ModuleType, made: Made, way: str) -> None:
    check_way(tcpreasm, made("lossy")[0], way, tells_packets=False)


def check_way(tcpreasm: ModuleType, capture: Any, way: str, tells_packets: bool = True) -> None:
    totals = measure.WAYS[way].run(measure.Job(tcpreasm, capture.path))
    expected = (capture.packets if tells_packets else None, capture.bytes_present, capture.bytes_skipped, 2 * capture.connections)
    assert (totals.packets, totals.bytes_delivered, totals.bytes_skipped, totals.streams) == expected
    assert totals.digest_sum == (capture.digest_sum if way == "digest" else None)


def test_wrong_totals_are_no_measurement(made: Made) -> None:
    capture, _ = made("lossy")
    right = {"bytes_delivered": capture.bytes_present, "bytes_skipped": capture.bytes_skipped, "digest_sum": capture.digest_sum}
    measure.check(measure.Measurement(name="x", workload="lossy", ns_per_packet=1.0, **right), capture)
    for name, wrong in (("bytes_delivered", 1), ("bytes_skipped", 0), ("digest_sum", "0" * 16), ("packets", 0), ("streams", 3)):
        with pytest.raises(measure.WrongTotals, match=name):
            measure.check(measure.Measurement(name="x", workload="lossy", ns_per_packet=1.0, **{**right, name: wrong}), capture)


def test_a_process_prints_one_measurement(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    command = [sys.executable, "-c", 'print(\'noise\'); print(\'{"name": "x", "workload": "y", "ns_per_packet": 2.5}\')']
    assert measure.run_process(command) == measure.Measurement(name="x", workload="y", ns_per_packet=2.5)
    assert json.loads(measure.run_process(command).line()) == {"name": "x", "workload": "y", "ns_per_packet": 2.5}
    with pytest.raises(measure.Missing, match="no threads="):
        measure.run_process([sys.executable, "-c", 'print(\'{"missing": "no threads="}\')'])
    with pytest.raises(RuntimeError, match="ended with 3:\nwhy"):
        measure.run_process([sys.executable, "-c", "import sys; sys.stderr.write('why'); sys.exit(3)"])


def test_peak_memory_is_the_process_own() -> None:
    held = bytearray(b"x" * (192 << 20))  # a child that is forked from here begins with as much resident
    code = f"import sys; sys.path.insert(0, {str(REPOSITORY)!r}); from bench.measure import peak_rss; print(peak_rss())"
    child = int(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)
    assert measure.peak_rss() > len(held)
    assert child < 192 << 20


def test_the_same_seed_makes_the_same_file(made: Made, tmp_path: Path) -> None:
    capture, _ = made("lossy")
    again = captures.make("lossy", tmp_path, capture.scale)
    assert again.path.read_bytes() == capture.path.read_bytes()
    assert json.loads(again.path.with_suffix(".json").read_text()) == json.loads(capture.path.with_suffix(".json").read_text())


def test_captures_are_kept_and_made_again_when_they_are_not_whole(tmp_path: Path) -> None:
    first = captures.get("ooo-random-1k", 0.001, tmp_path)
    assert captures.load(first.path) == first
    written = first.path.stat().st_mtime_ns
    assert captures.get("ooo-random-1k", 0.001, tmp_path) == first
    assert first.path.stat().st_mtime_ns == written
    content = first.path.read_bytes()
    first.path.write_bytes(content[:-1])
    assert captures.get("ooo-random-1k", 0.001, tmp_path) == first
    assert first.path.read_bytes() == content
    assert captures.get("ooo-random-1k", 0.002, tmp_path).data_packets == 400
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ooo-random-1k.json", "ooo-random-1k.pcap"]


def test_names_on_the_command_line() -> None:
    assert captures.select([]) == list(captures.NAMES)
    assert captures.select(["web", "bulk"]) == ["bulk", "web"]
    assert captures.select(["ooo", "web"]) == ["web", *(name for name in captures.NAMES if name.startswith("ooo-"))]
    with pytest.raises(ValueError, match="no workload is called 'ooo-'"):
        captures.select(["ooo-"])


@pytest.mark.parametrize(
    ("arrival", "order"),
    [
        ("reverse", [3, 2, 1, 0, 7, 6, 5, 4, 9, 8]),
        ("even-odd", [1, 3, 2, 0, 5, 7, 6, 4, 9, 8]),
        ("head-last", [1, 2, 3, 0, 5, 6, 7, 4, 9, 8]),
    ],
)
def test_orders_of_arrival(arrival: str, order: list[int]) -> None:
    assert traffic.arrival_order(arrival, 10, 4, np.random.default_rng(1)).tolist() == order


def test_a_random_order_of_arrival_stays_in_its_windows() -> None:
    order = traffic.arrival_order("random", 1000, 300, np.random.default_rng(1))
    assert order.tolist() != sorted(order.tolist())
    for begin in range(0, 1000, 300):
        assert sorted(order[begin : begin + 300].tolist()) == list(range(begin, min(begin + 300, 1000)))


def test_the_lossy_capture_has_every_kind_of_damage(tcpreasm: ModuleType, made: Made) -> None:
    capture, _ = made("lossy")
    with tcpreasm.Assembler(tcpreasm.StreamPool(tcpreasm.ByteCountStream)) as assembler:
        assembler.assemble_capture(capture.path)
        stats = assembler.stats
    assert stats.bytes_dropped == capture.payload_bytes - capture.bytes_present > 0
    assert stats.conflicting == 0
    assert 0 < capture.bytes_in_order < capture.bytes_present
    assert capture.gaps > 0


@pytest.mark.parametrize("command", COMMANDS)
def test_the_commands_take_one_round_or_more(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("tabulate", reason="the extra bench is not installed")
    with pytest.raises(SystemExit) as ended:
        importlib.import_module(f"bench.{command}").main([*COMMANDS[command], "--rounds", "0"])
    assert ended.value.code == 2
    assert capsys.readouterr().err.endswith("error: --rounds is 1 or more, not 0\n")


@pytest.mark.parametrize("command", [*COMMANDS, "captures"])
def test_the_commands_tell_where_captures_are_kept(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    if command != "captures":
        pytest.importorskip("tabulate", reason="the extra bench is not installed")
    with pytest.raises(SystemExit) as ended:
        importlib.import_module(f"bench.{command}").main(["--help"])
    assert ended.value.code == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "about 4 GB" in told
    assert "TCPREASM_BENCH_CACHE" in told


@pytest.mark.parametrize("name", attacks.ATTACKS)
def test_attacks_come_out_as_they_must(name: str) -> None:
    """Small ones: the program checks what is held and delivered by itself."""
    for count in (20, 500):
        packets = attacks.ATTACKS[name][1](count)
        assert len(packets.frames) >= count
        assert attacks.measure(packets).ns_per_packet > 0
