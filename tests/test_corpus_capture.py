"""The reader against real captures (fixture `corpus`: skipped, loudly, where they are absent)."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from tcpreasm.capture import open_capture

FUZZED = "real/seladb+PcapPlusPlus/Tests/Fuzzers/RegressionTests/regression_samples"
# Files that do not end where a record does: what is told about them. All packets before the cut come out.
CUT = {
    "real/OISF+suricata-verify/tests/http-mime-truncated/input.pcap": "byte 2715459: 1 of 16 bytes",
    "real/OISF+suricata-verify/tests/pgsql/pgsql-5000-query-results/input.pcap": "byte 3276005: 1 of 16 bytes",
    "real/andrewf+pcap2har/tests/out-of-order.pcap": "byte 2235594: 822 of 872 bytes",
    f"{FUZZED}/clusterfuzz-testcase-minimized-FuzzTarget-5755755617189888": "byte 65631: 155 of 16844842 bytes",
    f"{FUZZED}/crash-invalid-asn-record-len": "byte 299: 6 of 16 bytes",
}
IDLE_INTERFACES = ("/many_interfaces-1.pcapng", "/ldap/modify-request.pcapng")
LINKTYPES = {
    "EN10MB": 1,
    "CHDLC": 104,
    "FDDI": 10,
    "RADIOTAP": 127,
    "NULL": 0,
    "RAW": 101,
    "RAW12": 12,
    "RAW14": 14,
    "SLL": 113,
    "SLL2": 276,
    "IPV4": 228,
    "IPV6": 229,
    "LOOP": 108,
    "PPP": 9,
}


def rows(corpus: Path) -> list[dict[str, str]]:
    with open(corpus / "real" / "MANIFEST.tsv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file, delimiter="\t"))


def test_real_captures_have_the_packets_that_the_manifest_counts(corpus: Path) -> None:
    checked = 0
    for row in rows(corpus):
        with open_capture(corpus / row["path"]) as capture:
            frames = list(capture)
        assert len(frames) == capture.packets == int(row["packets"]), row["path"]
        _, _, form = row["format"].rpartition(":")
        assert capture.format == form.partition("-")[0], row["path"]
        assert capture.size == capture.position == int(row["size"]), row["path"]
        known = [LINKTYPES[name] if name in LINKTYPES else int(name) for name in row["linktypes"].split("+")]
        # The manifest names the link types of all interfaces described; two files have some that no packet came from.
        found = {frame.linktype for frame in frames}
        assert found == set(known) or (found < set(known) and row["path"].endswith(IDLE_INTERFACES)), row["path"]
        if row["path"] in CUT:
            assert capture.problem is not None
            assert CUT[row["path"]] in capture.problem
            assert not capture.complete
        else:
            assert (capture.complete, capture.problem) == (True, None), row["path"]
        checked += 1
    assert checked == len(rows(corpus)) > 0


@pytest.mark.parametrize("folder", ["kernel", "perturbed"])
def test_made_captures_are_whole(corpus: Path, folder: str) -> None:
    paths = [path for path in sorted((corpus / folder).rglob("*")) if path.suffix in (".pcap", ".pcapng")]
    assert paths
    for path in paths:
        with open_capture(path) as capture:
            count = sum(1 for _ in capture)
        assert count > 0
        assert (capture.complete, capture.problem) == (True, None), path


def test_one_traffic_in_three_formats(corpus: Path) -> None:
    """The same packets as pcap in microseconds and nanoseconds and as pcapng of three interfaces."""
    with open_capture(corpus / "kernel" / "http_python_v4_v6" / "http_python_v4_v6.pcap") as capture:
        plain = list(capture)
    with open_capture(corpus / "perturbed" / "fmt_pcap_ns.pcap") as capture:
        nano = list(capture)
    with open_capture(corpus / "perturbed" / "fmt_pcapng_3if.pcapng") as capture:
        several = list(capture)
    assert len(plain) == len(nano) == len(several)
    assert [frame.data for frame in nano] == [frame.data for frame in plain]
    assert {frame.interface for frame in several} == {0, 1, 2}
    for one, same in zip(plain, several, strict=True):
        assert same.data == (one.data if same.linktype == 1 else one.data[14:])
        assert abs(same.timestamp_ns - one.timestamp_ns) < 1_000_000_000


def test_cut_anywhere_the_frames_before_come_out(corpus: Path) -> None:
    """Real files, cut at 40 places each: what comes out is a beginning of the whole, and the cut is told."""
    for row in sorted(rows(corpus), key=lambda row: int(row["size"]))[::12]:
        data = (corpus / row["path"]).read_bytes()
        with open_capture(data) as capture:
            whole = list(capture)
        for i in range(1, 40):
            cut = max(64, len(data) * i // 40)
            with open_capture(data[:cut]) as capture:
                part = list(capture)
            assert part == whole[: len(part)], row["path"]
            assert capture.complete == (capture.problem is None)
