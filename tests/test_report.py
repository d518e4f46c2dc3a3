"""The page that `tcpreasm report` writes: what is in it, that nothing out of a capture becomes markup, and, in a real browser, that it
sorts and filters by mouse, keyboard and address, logs no error and asks for nothing."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from browser import Page, a_page
from command import Run
from conftest import DATA, load, submodule
from traffic import Talk, pcap

VOID = {"meta", "input"}
HOSTILE = "<img src=x onerror=alert(1)>\"'&amp;</script><script>document.title='taken'</script>.pcap".replace("/", "\N{DIVISION SLASH}")


class Parsed(HTMLParser):
    """The page's elements, in order: tag, attributes, and all text inside."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str], list[str]]] = []
        self._open: list[tuple[str, dict[str, str], list[str]]] = []
        self.feed(page)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        element = (tag, {name: value or "" for name, value in attrs}, list[str]())
        self.elements.append(element)
        if tag not in VOID:
            self._open.append(element)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop()[0] == tag

    def handle_data(self, data: str) -> None:
        for _, _, texts in self._open:
            texts.append(data)

    def texts(self, tag: str) -> list[str]:
        return ["".join(texts) for found, _, texts in self.elements if found == tag]

    def table(self) -> list[list[str]]:
        """Of each conversation the cells, but the picture."""
        cells = self.texts("td")
        assert len(cells) % 12 == 0
        return [cells[at : at + 11] for at in range(0, len(cells), 12)]


@pytest.fixture
def report(run: Run, tmp_path: Path) -> Callable[..., Parsed]:
    """Writes a report, and reads it."""

    def call(*arguments: object) -> Parsed:
        path = tmp_path / "report.html"
        assert run("report", *arguments, "-o", path)[:2] == (0, f"{path}\n")
        return Parsed(path.read_text(encoding="utf-8"))

    return call


def test_the_table_is_that_of_flows(run: Run, report: Callable[..., Parsed]) -> None:
    for name in ("http.pcap", "edge.pcap", "missing.pcap", "http6.pcapng"):
        page = report(DATA / name)
        lines = [line.split() for line in run("flows", DATA / name).lines[1:]]
        rows = page.table()
        assert [[row[0], row[1], row[2], *(cell.replace(",", "") for cell in row[3:7]), row[7], row[9], row[10]] for row in rows] == [
            [*line[:8], line[9].removesuffix("ms"), " ".join(line[10:])] for line in lines
        ]


def test_the_summary(report: Callable[..., Parsed]) -> None:
    page = report(DATA / "missing.pcap")
    facts = dict(zip(page.texts("dt"), page.texts("dd")))
    assert facts == {
        "packets": "78", "TCP segments": "78", "conversations": "1", "bytes sent by clients": "16,000", "bytes sent by servers": "11,200",
        "gaps": "6", "bytes missing": "6,800", "closed": "1", "SEGMENT": "78", "delivered": "27,200",
    }  # fmt: skip
    assert page.texts("h1") == ["missing.pcap"]
    assert "2026-11-23T00:50:32.885534000Z to 2026-11-23T00:50:32.886193000Z: 0.000659 seconds" in page.texts("p")


def paths(page: Parsed, kind: str) -> list[str]:
    return [attributes["d"] for tag, attributes, _ in page.elements if tag == "path" and attributes["class"] == kind]


def test_the_graphs_show_bytes_and_gaps(report: Callable[..., Parsed], tmp_path: Path) -> None:
    """Four parts of 48 have bytes: the first and last of the client's, and the server's; each bar's height is its part of the peak."""
    talk = Talk().open().say(0, b"a" * 1000)
    talk.now_ns += 20_000_000
    talk.say(1, b"b" * 300).say(1, b"b" * 10, lost=True)
    talk.now_ns += 20_000_000
    talk.say(0, b"a" * 250).say(1, b"b" * 600).close()
    (tmp_path / "made.pcap").write_bytes(pcap(talk.records))
    page = report(tmp_path / "made.pcap")
    _, client = paths(page, "client")
    _, server = paths(page, "server")
    (gap,) = paths(page, "gap")
    # In ms: 0 SYN, 2 a, 23 b, 44 a, 45 b, 46 and 47 FIN; 48 parts of 47/48 ms
    assert client == "M6 14v-14h3V14zM132 14v-3.5h3V14z"
    assert server == "M69 14v7h3V14zM135 14v14h3V14z"
    assert gap == "M135.5 0v28"


def test_what_is_left_out_is_said(report: Callable[..., Parsed], tmp_path: Path) -> None:
    talks = [Talk(("10.0.0.1", 40000 + number)).open().say(0, b"x" * (number + 1)) for number in range(30)]
    (tmp_path / "made.pcap").write_bytes(pcap(sorted(record for talk in talks for record in talk.records)))
    page = report(tmp_path / "made.pcap", "--limit", 10)
    assert [row[3] for row in page.table()] == [str(number) for number in range(21, 31)]
    assert "The 10 largest of 30; 20 are left out, with 210 bytes together (--limit)." in page.texts("p")
    assert dict(zip(page.texts("dt"), page.texts("dd")))["bytes sent by clients"] == "465"
    assert len(report(tmp_path / "made.pcap").table()) == 30


def test_an_empty_capture(report: Callable[..., Parsed], tmp_path: Path) -> None:
    (tmp_path / "empty.pcap").write_bytes(pcap([]))
    page = report(tmp_path / "empty.pcap")
    assert "None." in page.texts("p")
    assert page.texts("table") == []


def test_problems_are_told(report: Callable[..., Parsed], tmp_path: Path) -> None:
    (tmp_path / HOSTILE).write_bytes((DATA / "http.pcap").read_bytes()[:-5])
    page = report(tmp_path / HOSTILE)
    (problem,) = ["".join(texts) for _, attributes, texts in page.elements if attributes.get("role") == "alert"]
    assert problem.startswith(f"{tmp_path / HOSTILE}: the file ends in the middle of a record")
    assert len(page.texts("script")) == 1


def test_nothing_out_of_a_capture_becomes_markup(report: Callable[..., Parsed], tmp_path: Path) -> None:
    name = HOSTILE + "\x1b[31m\u202e\udcff"
    (tmp_path / name).write_bytes((DATA / "http.pcap").read_bytes())
    page = report(tmp_path / name)
    shown = HOSTILE + r"\x1b[31m\u202e\udcff"
    assert page.texts("h1") == [shown]
    assert page.texts("title") == [f"{shown}: TCP conversations"]
    tags = {tag for tag, _, _ in page.elements}
    assert tags == {
        *("html", "head", "meta", "title", "style", "body", "h1", "h2", "p", "dl", "div", "dt", "dd", "figure", "figcaption", "span"),
        *("svg", "path", "label", "input", "output", "table", "thead", "tbody", "tr", "th", "td", "button", "script"),
    }
    assert len(page.texts("script")) == 1


def test_the_page_needs_nothing_and_allows_nothing(report: Callable[..., Parsed]) -> None:
    page = report(DATA / "http.pcap")
    names = {name for _, attributes, _ in page.elements for name in attributes}
    assert not names & {"src", "href", "srcset", "style", "action", "data", "onclick", "onload"}
    (style,), (script,) = page.texts("style"), page.texts("script")
    for text in (style, script):
        assert not re.search(r"url\(|@import|https?:|fetch|XMLHttp|innerHTML|eval|document\.write", text)
    (policy,) = [attributes["content"] for _, attributes, _ in page.elements if attributes.get("http-equiv") == "Content-Security-Policy"]
    digests = ["'sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() + "'" for text in (script, style)]
    assert policy == f"default-src 'none'; script-src {digests[0]}; style-src {digests[1]}; base-uri 'none'; form-action 'none'"


def test_both_cores_write_the_same_page(both: tuple[ModuleType, ModuleType], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pages = []
    for package in both:
        submodule(package, "cli").main(["report", str(DATA / "edge.pcap"), str(DATA / "missing.pcap"), "-o", str(tmp_path / "page.html")])
        pages.append((tmp_path / "page.html").read_bytes())
    assert pages[0] == pages[1]


def test_report_errors_are_one_line(run: Run, tmp_path: Path) -> None:
    for arguments in (
        ["report", DATA / "http.pcap"],
        ["report", "nowhere.pcap", "-o", "x"],
        ["report", DATA / "http.pcap", "-o", tmp_path],
    ):
        done = run(*arguments)
        assert (done.status, done.out, done.err.count("\n")) == (2, "", 1)


# ---- in a browser

VALUES = "Array.from(document.querySelectorAll('tbody tr'), (row) => row.cells[{0}].dataset.value ?? row.cells[{0}].textContent)"
ROWS = (
    "Array.from(document.querySelectorAll('#conversations tbody tr')).filter((row) => !row.hidden).map((row) => row.cells[{}].textContent)"
)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    """A page that shows the report of a capture whose name means harm."""
    folder = tmp_path_factory.mktemp("browser")
    capture = folder / HOSTILE
    talks = [
        Talk(("10.0.0.1", 40000 + number), start_ns=10**18 + number).open().say(0, b"x" * (number * 7 % 30 + 1)) for number in range(30)
    ]
    talks[12].say(0, b"y" * 5000, lost=True).say(1, b"z" * 4000).say(0, b"y" * 9).close()
    capture.write_bytes(pcap(sorted(record for talk in talks for record in talk.records)))
    assert submodule(load("compiled"), "cli").main(["report", str(capture), "-o", str(folder / "report.html")]) == 0
    with a_page(folder / "profile") as shown:
        shown.report = folder / "report.html"  # type: ignore[attr-defined]
        yield shown


@pytest.fixture
def opened(page: Page) -> Iterator[Callable[..., Any]]:
    """Opens the report with a fragment; gives a column of what is shown. Afterwards nothing was logged, and only the report asked for."""
    page.events.clear()
    file: Path = page.report  # type: ignore[attr-defined]

    def call(fragment: str = "") -> None:
        page.open(file, fragment)

    yield call
    assert page.complaints == []
    assert {*page.requests} <= {file.as_uri(), "about:blank"}
    assert page.value("performance.getEntriesByType('resource').length") == 0


def sent(page: Page) -> list[int]:
    return [int(text.replace(",", "")) for text in page.value(ROWS.format(3))]


def test_as_it_is_opened(page: Page, opened: Callable[..., None]) -> None:
    opened()
    assert page.value(ROWS.format(0)) == [str(number) for number in range(1, 31)]
    assert page.value("document.querySelector('th[aria-sort]').dataset.name") == "number"
    assert page.value("document.querySelector('h1').textContent") == HOSTILE
    assert page.value("document.images.length + document.scripts.length") == 1
    assert page.value("document.title") == f"{HOSTILE}: TCP conversations"


@pytest.mark.parametrize(("fragment", "reverse"), [("sort=sent", False), ("sort=-sent", True)])
def test_sorted_by_the_address(page: Page, opened: Callable[..., None], fragment: str, reverse: bool) -> None:
    opened(fragment)
    assert sent(page) == sorted(sent(page), reverse=reverse)
    assert len(sent(page)) == 30
    assert page.value("document.querySelector('th[aria-sort]').getAttribute('aria-sort')") == ("descending" if reverse else "ascending")


def test_every_column_sorts(page: Page, opened: Callable[..., None]) -> None:
    opened()
    for column, name in enumerate(
        ("number", "client", "server", "sent", "received", "gaps", "missing", "first", "duration", "handshake", "state")
    ):
        numeric = name not in ("client", "server", "state")
        orders = []
        for _ in range(2):
            page.click(f"th[data-name={name}] button")
            values = page.value(VALUES.format(column))
            orders.append(list(map(int, values)) if numeric else values)
            assert page.value("location.hash").lstrip("#").startswith(("sort=" + name, "sort=-" + name))
        rising, falling = orders if orders[0] == sorted(orders[0]) else orders[::-1]
        assert rising == sorted(rising)
        assert falling == sorted(falling, reverse=True)


def test_times_sort_to_the_nanosecond(page: Page, opened: Callable[..., None]) -> None:
    """The conversations begin a nanosecond apart: more than a double can tell."""
    opened("sort=-first")
    assert page.value(ROWS.format(0)) == [str(number) for number in range(30, 0, -1)]


def test_filtered(page: Page, opened: Callable[..., None]) -> None:
    opened("filter=40012")
    assert page.value(ROWS.format(1)) == ["10.0.0.1:40012"]
    assert page.value("document.querySelector('#told').textContent") == "1 of 30"
    opened()
    page.click("#filter")
    page.type("Closed 10.0.0.1:400")
    assert page.value(ROWS.format(10)) == ["closed"]
    assert "filter=Closed+10.0.0.1" in page.value("location.hash")
    page.value("document.querySelector('#filter').select()")
    page.type("<b>")
    assert page.value(ROWS.format(0)) == []
    assert page.value("document.querySelectorAll('b').length") == 0


def test_by_keyboard(page: Page, opened: Callable[..., None]) -> None:
    opened()
    page.value("document.querySelector('#filter').focus()")
    for _ in range(4):
        page.press("Tab", 9)
    assert page.value("document.activeElement.closest('th').dataset.name") == "sent"
    page.press("Enter", 13, "\r")
    assert sent(page) == sorted(sent(page), reverse=True)
    page.press(" ", 32, " ")
    assert sent(page) == sorted(sent(page))
    assert page.value("getComputedStyle(document.activeElement).outlineStyle") == "solid"


def test_dark_and_light(page: Page, opened: Callable[..., None]) -> None:
    """Text stands out against the page: a contrast of 7 to 1 (WCAG 1.4.6)."""
    contrast = """(() => {
        const light = (text) => text.match(/\\d+/g).slice(0, 3).map((c) => c / 255)
            .map((c) => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
            .reduce((sum, c, at) => sum + c * [0.2126, 0.7152, 0.0722][at], 0);
        const style = getComputedStyle(document.body);
        const [one, other] = [light(style.color), light(style.backgroundColor)];
        return [(Math.max(one, other) + 0.05) / (Math.min(one, other) + 0.05), other];
    })()"""
    grounds = []
    for scheme in ("dark", "light"):
        opened()
        page.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        ratio, ground = page.value(contrast)
        assert ratio >= 7
        grounds.append(ground)
    assert grounds[0] < 0.1
    assert grounds[1] > 0.9
    assert page.screenshot().startswith(b"\x89PNG")


def test_a_script_that_gets_in_does_not_run(page: Page, tmp_path: Path) -> None:
    """What the page's policy is for: a copy with other markup in it, as if escaping had failed."""
    file: Path = page.report  # type: ignore[attr-defined]
    text = file.read_text(encoding="utf-8")
    assert text.count("<h1>") == 1
    (tmp_path / "bad.html").write_text(text.replace("<h1>", "<script>document.title='taken'</script><img src='http://127.0.0.1:9/x'><h1>"))
    page.events.clear()
    page.open(tmp_path / "bad.html")
    assert page.value("document.title") != "taken"
    assert sum("Content Security Policy" in str(told) for _, told in page.complaints) >= 2
