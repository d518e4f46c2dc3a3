"""Flows and gaps as tables: their rows, and what pyarrow, polars, pandas and duckdb make of them.

Each of those four is large, and tried only where it is installed (`pip install '.[dataframes]'`). nanoarrow is always there.
"""

from __future__ import annotations

import importlib
import ipaddress
import json
import logging
import sys
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy
import pytest
from conftest import DATA
from traffic import ACK, RST, START_NS, SYN, Record, Talk, corpus_cases, pcap

TRUTH: dict[str, Any] = json.loads((DATA / "truth.json").read_text())
MS = 1_000_000
Row = tuple[Any, ...]


def reader(name: str) -> Any:
    """A library that reads tables. Skips where it is not installed."""
    return pytest.importorskip(name, reason=f"NOT TRIED WITH {name.upper()}: pip install '.[dataframes]'")


def talks() -> list[Record]:
    """Three connections: one with gaps in both directions, one over IPv6 that begins in the middle, one that is a SYN alone."""
    first = Talk().open().say(0, b"abc").say(0, b"lost", lost=True).say(0, b"de").say(1, b"x", lost=True).say(1, b"yz").close()
    second = Talk(("2001:db8::1", 6000), ("2001:db8::2", 443), START_NS + 500 * MS).say(0, b"late").say(0, b"er")
    third = Talk(("10.0.0.3", 7), start_ns=START_NS + 700 * MS).open().records[:1]
    return first.records + second.records + third


UNKNOWN = numpy.iinfo("<i8").min
LATE = START_NS + 500 * MS, START_NS + 501 * MS
FLOWS: list[Row] = [
    (0, 0, "10.0.0.1", 40000, "10.0.0.2", 80, True, 5, 4, 1, START_NS, START_NS + 3 * MS, True, True, 0, "closed", False, 2 * MS),
    (1, 0, "10.0.0.2", 80, "10.0.0.1", 40000, False, 2, 1, 1, START_NS + 1 * MS, START_NS + 4 * MS, True, True, 0, "closed", False, 2 * MS),
    (2, 1, "2001:db8::1", 6000, "2001:db8::2", 443, True, 6, 0, 0, *LATE, False, False, 0, "open", True, UNKNOWN),
    (3, 2, "10.0.0.3", 7, "10.0.0.2", 80, True, 0, 0, 0, *[START_NS + 700 * MS] * 2, True, False, 0, "opening", False, UNKNOWN),
]
GAPS: list[Row] = [(0, 3, 4, START_NS + 3 * MS), (1, 0, 1, START_NS + 4 * MS)]
COLUMNS = {
    "flows": (
        *("stream", "conversation", "src", "src_port", "dst", "dst_port", "from_client", "bytes", "missing", "gap_count"),
        *("first_seen_ns", "last_seen_ns", "started", "ended", "tunnels", "state", "guessed", "handshake_time_ns"),
    ),
    "gaps": ("stream", "offset", "length", "seen_ns"),
}


def rows(table: Any) -> list[Row]:
    """As Python objects: text is str, times are nanoseconds."""
    columns = [table[name].astype("<i8") if table[name].dtype.kind in "Mm" else table[name] for name in table.columns]
    return list(zip(*(column.tolist() for column in columns)))


def moment(ns: int) -> datetime:
    return datetime.fromtimestamp(ns // 10**9, timezone.utc).replace(microsecond=ns % 10**9 // 1000)


def objects(row: Row, name: str) -> dict[str, Any]:
    """A row by names, with times as datetime: what the readers of Arrow give. All times here are whole microseconds."""
    return {column: moment(cell) if column.endswith("seen_ns") else cell for column, cell in zip(COLUMNS[name], row)} | (
        {"handshake_time_ns": None if row[-1] == UNKNOWN else timedelta(microseconds=row[-1] // 1000)} if name == "flows" else {}
    )


@pytest.fixture
def table(tcpreasm: ModuleType) -> Any:
    return tcpreasm.flow_table(pcap(talks()))


# ---- rows


def test_flows_and_gaps(table: Any) -> None:
    assert table.flows.columns == COLUMNS["flows"]
    assert table.gaps.columns == COLUMNS["gaps"]
    assert rows(table.flows) == FLOWS
    assert rows(table.gaps) == GAPS
    assert (len(table.flows), len(table.gaps)) == (4, 2)
    assert repr(table.gaps) == "<Table of 2 rows: stream, offset, length, seen_ns>"


def test_the_arrays(table: Any, submodule: Callable[[ModuleType, str], ModuleType], tcpreasm: ModuleType) -> None:
    flows = table.flows.array
    assert flows.dtype == submodule(tcpreasm, "tables").FLOW_DTYPE
    assert table.gaps.array.dtype == submodule(tcpreasm, "tables").GAP_DTYPE
    assert flows["dst"].tolist() == [b"10.0.0.2", b"10.0.0.1", b"2001:db8::2", b"10.0.0.2"]
    assert flows["first_seen_ns"][2] == numpy.datetime64(START_NS + 500 * MS, "ns")
    assert flows[table.gaps["stream"]]["src_port"].tolist() == [40000, 80]  # a gap's stream is the row of its flow
    assert numpy.shares_memory(table.flows["bytes"], flows)
    with pytest.raises(KeyError, match="no column 'byte'; there are stream, conversation, src"):
        table.flows["byte"]


def test_who_is_client_and_how_it_ended(tcpreasm: ModuleType) -> None:
    """The server is seen first; one is refused, one reset, one in a tunnel of none."""
    late = Talk(("10.0.0.5", 50000), start_ns=START_NS).say(1, b"answer").say(0, b"question")
    refused = Talk(("10.0.0.6", 60000), start_ns=START_NS + 10 * MS)
    refused.send(0, b"", SYN)
    refused.seqs = [refused.seqs[0] + 1, 0]
    refused.send(1, b"", RST | ACK)
    reset = Talk(("10.0.0.7", 7000), start_ns=START_NS + 20 * MS).open().say(0, b"x")
    reset.send(1, b"", RST | ACK)
    flows = tcpreasm.flow_table(pcap(late.records + refused.records + reset.records)).flows
    names = ("conversation", "src", "from_client", "state", "guessed", "tunnels")
    assert list(zip(*(flows[name].tolist() for name in names))) == [
        (0, "10.0.0.2", False, "open", True, 0),
        (0, "10.0.0.5", True, "open", True, 0),
        (1, "10.0.0.6", True, "refused", False, 0),
        (2, "10.0.0.7", True, "reset", False, 0),
        (2, "10.0.0.2", False, "reset", False, 0),
    ]


def test_what_is_in_a_tunnel_says_so(tcpreasm: ModuleType) -> None:
    talk = Talk().open().say(0, b"inside").close()
    outside = [
        (ns, b"\x60" + bytes(3) + (len(frame) - 14).to_bytes(2, "big") + b"\x04\x40" + bytes(32) + frame[14:]) for ns, frame in talk.records
    ]
    records = [(ns, bytes(12) + b"\x86\xdd" + packet) for ns, packet in outside]  # IPv4 in IPv6 (RFC 2473)
    flows = tcpreasm.flow_table(pcap(records)).flows
    assert flows["tunnels"].tolist() == [1, 1]
    assert flows["src"].tolist() == ["10.0.0.1", "10.0.0.2"]


def test_a_start_that_was_not_captured_is_no_gap(tcpreasm: ModuleType) -> None:
    talk = Talk().say(0, b"abc").say(0, b"lost", lost=True).say(0, b"de")
    table = tcpreasm.flow_table(pcap(talk.records))
    assert rows(table.gaps) == [(0, 3, 4, START_NS + 1 * MS)]
    assert table.flows["missing"].tolist() == [4]


def test_a_gap_before_the_end(tcpreasm: ModuleType) -> None:
    table = tcpreasm.flow_table(pcap(Talk().open().say(0, b"abc").say(0, b"lost", lost=True).close(0).records))
    assert rows(table.gaps) == [(0, 3, 4, START_NS + 3 * MS)]
    assert table.flows["ended"].tolist() == [True, False]


def test_no_flows(tcpreasm: ModuleType) -> None:
    table = tcpreasm.flow_table([])
    assert (len(table.flows), len(table.gaps)) == (0, 0)
    assert rows(table.flows) == rows(table.gaps) == []
    nanoarrow = importlib.import_module("nanoarrow")
    assert nanoarrow.Array(table.flows).to_pylist() == []


def test_the_same_endpoints_twice_are_two_conversations(tcpreasm: ModuleType) -> None:
    again = Talk(start_ns=START_NS + 10 * MS)
    again.seqs = [90000, 95000]
    table = tcpreasm.flow_table(pcap(Talk().open().close().records + again.open().close().records))
    assert table.flows["conversation"].tolist() == [0, 0, 1, 1]
    assert table.flows["from_client"].tolist() == [True, False, True, False]


def test_a_time_that_is_not_known_is_null_and_stands_last(tcpreasm: ModuleType) -> None:
    collector = tcpreasm.FlowCollector()
    early = Talk(("10.0.0.8", 1), start_ns=START_NS - MS).say(0, b"waits for what may lie before it")
    tcpreasm.Assembler(tcpreasm.ConversationPool(streams=collector)).assemble_capture(pcap(early.records + talks()), flush=False)
    flows = collector.table().flows
    assert flows["src"].tolist() == ["10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.0.8", "2001:db8::1"]
    assert numpy.isnat(flows["first_seen_ns"]).tolist() == [False] * 3 + [True] * 2
    assert numpy.isnat(flows["last_seen_ns"]).tolist() == [False] * 3 + [True] * 2
    assert flows["stream"].tolist() == [0, 1, 2, 3, 4]
    got = importlib.import_module("nanoarrow").Array(flows).to_pylist()
    assert [row["last_seen_ns"] is None for row in got] == [False] * 3 + [True] * 2


def test_open_streams_are_in_the_table(tcpreasm: ModuleType) -> None:
    collector = tcpreasm.FlowCollector()
    assembler = tcpreasm.Assembler(tcpreasm.ConversationPool(streams=collector))
    talk = Talk().open().say(0, b"abc").say(0, b"lost", lost=True).say(0, b"de")
    assembler.assemble_capture(pcap(talk.records), flush=False)
    assert rows(collector.table().flows)[0][7:10] == (3, 0, 0)
    assembler.flush_older_than(START_NS / 1e9 + 1)
    assert rows(collector.table().flows)[0][7:10] == (5, 4, 1)
    before = rows(collector.table().gaps)
    assert before == [(0, 3, 4, START_NS + 3 * MS)]
    assembler.close()
    assert rows(collector.table().gaps) == before
    assert collector.table().flows["bytes"].tolist() == [5, 0]


@pytest.mark.parametrize("file", sorted(TRUTH))
def test_the_repository_captures(tcpreasm: ModuleType, file: str) -> None:
    table = tcpreasm.flow_table(DATA / file)
    flows = table.flows
    lengths = flows["bytes"] + flows["missing"]
    ends = zip(*(flows[name].tolist() for name in ("src", "src_port", "dst", "dst_port")))
    got = sorted((*end, length) for end, length in zip(ends, lengths.tolist()) if length)
    expected, gaps = [], []
    for connection in TRUTH[file]["connections"]:
        for side, (src, dst) in (("c2s", ("client", "server")), ("s2c", ("server", "client"))):
            if connection[side]["len"]:
                expected.append((*connection[src], *connection[dst], connection[side]["len"]))
            gaps += [(*connection[src], *gap) for gap in connection[side].get("gaps", [])]
    assert got == sorted(expected)
    of_gaps = flows.array[table.gaps["stream"]]
    assert sorted(
        zip(of_gaps["src"].astype("U").tolist(), of_gaps["src_port"].tolist(), table.gaps["offset"].tolist(), table.gaps["length"].tolist())
    ) == sorted(gaps)


def records_of_many() -> Iterator[Record]:
    """Connections that begin at the same moment, some of which lose something."""
    for number in range(300):
        talk = Talk(
            (str(ipaddress.ip_address(0x0A000001 + number * 7919 % 65521)), 1024 + number % 3), start_ns=START_NS + number // 40 * MS
        )
        talk.open().say(0, b"a" * (number % 7)).say(1, b"b" * number, lost=number % 5 == 0).say(1, b"c")
        yield from talk.close().records


def test_any_number_of_threads_gives_the_same_tables(tcpreasm: ModuleType) -> None:
    capture = pcap(sorted(records_of_many(), key=lambda record: record[0]))
    one = tcpreasm.flow_table(capture)
    assert (len(one.flows), len(one.gaps)) == (600, 59)
    for threads in (2, 3):
        more = tcpreasm.flow_table(capture, threads=threads)
        assert more.flows.array.tobytes() == one.flows.array.tobytes()
        assert more.gaps.array.tobytes() == one.gaps.array.tobytes()


def test_both_cores_give_the_same(both: tuple[ModuleType, ModuleType]) -> None:
    for source in (pcap(talks()), pcap(records_of_many()), *(DATA / file for file in sorted(TRUTH))):
        compiled, pure = (package.flow_table(source) for package in both)
        assert compiled.flows.array.tobytes() == pure.flows.array.tobytes()
        assert compiled.gaps.array.tobytes() == pure.gaps.array.tobytes()


def test_the_corpus(tcpreasm: ModuleType, corpus: Path) -> None:
    """The tables say what `follow` says, of every capture."""
    count = 0
    for capture, _ in corpus_cases(corpus):
        table = tcpreasm.flow_table(capture)
        flows = table.flows
        gaps: dict[int, list[tuple[int, int]]] = {}
        for stream, offset, length, _ns in rows(table.gaps):
            gaps.setdefault(stream, []).append((offset, length))
        names = ("src", "src_port", "dst", "dst_port", "bytes", "first_seen_ns", "last_seen_ns", "started", "ended")
        columns = [flows[name].astype("<i8") if name.endswith("_ns") else flows[name] for name in names]
        got = [(*row, tuple(gaps.get(number, ()))) for number, row in enumerate(zip(*(column.tolist() for column in columns)))]
        expected = []
        for stream in tcpreasm.follow(capture):
            net, transport = stream.key
            ends = str(net.src), transport.src, str(net.dst), transport.dst
            seen = stream.first_seen_ns, stream.last_seen_ns, stream.started, stream.ended
            expected.append((*ends, len(stream.data), *seen, stream.gaps))
        assert sorted(row for row in got if row[5] != numpy.iinfo("<i8").min) == sorted(expected), capture.name
        count += len(got)
    assert count > 1000


def test_options_and_errors(tcpreasm: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="options"):
        tcpreasm.flow_table(b"", 5)
    with pytest.raises(ValueError, match="threads"):
        tcpreasm.flow_table(b"", threads=0)
    with pytest.raises(FileNotFoundError):
        tcpreasm.flow_table(tmp_path / "nothing")
    with pytest.raises(tcpreasm.CaptureError):
        tcpreasm.flow_table(b"no capture at all")
    talk = Talk().open().say(0, b"one")
    talk.now_ns += 100 * 10**9
    other = Talk(("10.0.0.9", 9), start_ns=START_NS + 50 * 10**9).open().records
    records = sorted(talk.say(0, b"two").records + other * 100)
    table = tcpreasm.flow_table(pcap(records), tcpreasm.AssemblerOptions(idle_timeout=20.0))
    assert table.flows["bytes"][table.flows["src_port"] == 40000].tolist() == [3, 3]


def test_a_cut_capture_gives_what_is_there_and_a_warning(tcpreasm: ModuleType, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        table = tcpreasm.flow_table(pcap(Talk().open().say(0, b"hello").say(0, b"world").records)[:-3])
    assert table.flows["bytes"].tolist() == [5, 0]
    assert [record.levelname for record in caplog.records] == ["WARNING"]


# ---- Arrow


@pytest.mark.parametrize("name", ["flows", "gaps"])
def test_arrow(table: Any, name: str) -> None:
    nanoarrow = importlib.import_module("nanoarrow")
    expected = [objects(row, name) for row in {"flows": FLOWS, "gaps": GAPS}[name]]
    for _ in range(2):  # each call gives a stream of its own
        assert nanoarrow.Array(getattr(table, name)).to_pylist() == expected
    schema = nanoarrow.Schema(getattr(table, name))
    types = {"bool": [], "duration": [], "int64": [], "string": [], "timestamp": [], "uint16": []}  # type: dict[str, list[str]]
    for field in schema.fields:
        types[field.type.name.lower()].append(field.name)
        if field.type.name in ("TIMESTAMP", "DURATION"):
            assert (field.unit.name, field.nullable) == ("NANO", True)
            assert field.type.name == "DURATION" or field.timezone == "UTC"
        else:
            assert not field.nullable
    told = {kind: tuple(names) for kind, names in types.items()}
    if name == "gaps":
        of_gaps = {"int64": ("stream", "offset", "length"), "timestamp": ("seen_ns",)}
        assert told == dict.fromkeys(types, ()) | of_gaps
    else:
        assert told == {
            "bool": ("from_client", "started", "ended", "guessed"),
            "duration": ("handshake_time_ns",),
            "int64": ("stream", "conversation", "bytes", "missing", "gap_count"),
            "string": ("src", "dst", "state"),
            "timestamp": ("first_seen_ns", "last_seen_ns"),
            "uint16": ("src_port", "dst_port", "tunnels"),
        }


def test_long_tables_come_in_batches(
    tcpreasm: ModuleType, submodule: Callable[[ModuleType, str], ModuleType], monkeypatch: pytest.MonkeyPatch
) -> None:
    nanoarrow = importlib.import_module("nanoarrow")
    flows = tcpreasm.flow_table(pcap(records_of_many())).flows
    whole = nanoarrow.Array(flows).to_pylist()
    monkeypatch.setattr(submodule(tcpreasm, "tables"), "_BATCH_ROWS", 7)
    assert [len(batch) for batch in nanoarrow.ArrayStream(flows).iter_chunks()] == [7] * 85 + [5]
    assert nanoarrow.Array(flows).to_pylist() == whole
    assert [row["src"] for row in whole] == flows["src"].tolist()


def test_without_nanoarrow(table: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nanoarrow", None)
    for call in (table.flows.__arrow_c_stream__, table.flows.__arrow_c_schema__):
        with pytest.raises(ImportError, match=r"need nanoarrow: pip install 'tcpreasm\[arrow\]'"):
            call()
    assert rows(table.flows) == FLOWS


@pytest.mark.parametrize("name", ["flows", "gaps"])
def test_pyarrow(table: Any, name: str) -> None:
    pyarrow = reader("pyarrow")
    got = pyarrow.table(getattr(table, name))
    got.validate(full=True)
    assert got.column_names == list(COLUMNS[name])
    times = {"flows": ["timestamp[ns, tz=UTC]"] * 2 + ["duration[ns]"], "gaps": ["timestamp[ns, tz=UTC]"]}[name]
    assert [str(field.type) for field in got.schema if field.name.endswith("_ns")] == times
    columns = [column.cast("int64") if pyarrow.types.is_temporal(column.type) else column for column in got.columns]
    known = [tuple(None if cell == UNKNOWN else cell for cell in row) for row in {"flows": FLOWS, "gaps": GAPS}[name]]
    assert list(zip(*(column.to_pylist() for column in columns))) == known
    assert pyarrow.RecordBatchReader.from_stream(getattr(table, name)).read_all().equals(got)


def test_polars(table: Any) -> None:
    polars = reader("polars")
    flows = polars.DataFrame(table.flows)
    assert [objects(row, "flows") for row in FLOWS] == flows.to_dicts()
    assert flows.schema["first_seen_ns"] == polars.Datetime("ns", "UTC")
    joined = polars.DataFrame(table.gaps).join(flows, on="stream")
    assert joined.sort("stream")["src"].to_list() == ["10.0.0.1", "10.0.0.2"]


def test_pandas(table: Any) -> None:
    pandas = reader("pandas")
    reader("pyarrow")  # pandas reads Arrow through it
    flows = pandas.DataFrame.from_arrow(table.flows)
    assert str(flows["first_seen_ns"].dtype) == "datetime64[ns, UTC]"
    assert flows.groupby("conversation")["missing"].sum().tolist() == [5, 0, 0]
    assert flows["src"].tolist() == [row[2] for row in FLOWS]
    assert flows["last_seen_ns"].astype("int64").tolist() == [row[11] for row in FLOWS]


def test_duckdb(table: Any) -> None:
    duckdb = reader("duckdb")
    flows, gaps = table.flows, table.gaps  # duckdb finds them by these names
    assert (len(flows), len(gaps)) == (4, 2)
    found = duckdb.sql("select src, dst_port, missing, g.offset, length from flows join gaps g using (stream) order by stream").fetchall()
    assert found == [("10.0.0.1", 80, 4, 3, 4), ("10.0.0.2", 40000, 1, 0, 1)]
    assert duckdb.sql("select epoch_ns(max(last_seen_ns)) from flows").fetchall() == [(START_NS + 700 * MS,)]
