"""A real browser, driven over its debugging pipe (Chrome DevTools Protocol): for pages that are looked at as people see them.

Lives here: starting chromium without a window, its messages, and what a test asks of a page. No test. Only the standard library.
"""

from __future__ import annotations

import base64
import fcntl
import json
import os
import select
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome")
SECONDS = 60  # for anything a browser may take


def browser_path() -> str:
    """Where the browser is. Skips the test where there is none."""
    found = next((path for name in NAMES if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip("NO BROWSER: pages are not looked at without chromium (Debian: apt-get install chromium)")
    return found


class Page:
    """One page in a browser. What it logs, what goes wrong in it, and what it asks for is kept."""

    def __init__(self, commands: int, answers: int) -> None:
        self._commands = commands
        self._answers = os.fdopen(answers, "rb", buffering=0)
        self._rest = b""
        self._number = 0
        self._session: str | None = None
        self.events: list[tuple[str, dict[str, Any]]] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def _message(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            if not select.select([self._answers], [], [], SECONDS)[0]:
                raise TimeoutError(f"the browser has said nothing for {SECONDS} seconds")
            part = self._answers.read(1 << 20)
            if not part:
                raise EOFError("the browser has gone")
            self._rest += part
        message, _, self._rest = self._rest.partition(b"\0")
        found: dict[str, Any] = json.loads(message)
        if "method" in found:
            self.events.append((found["method"], found.get("params", {})))
        return found

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """One command, and its result."""
        self._number += 1
        command: dict[str, Any] = {"id": self._number, "method": method, "params": parameters}
        if self._session is not None:
            command["sessionId"] = self._session
        data = json.dumps(command).encode() + b"\0"
        while data:
            data = data[os.write(self._commands, data) :]
        while True:
            message = self._message()
            if message.get("id") == self._number:
                assert "error" not in message, (method, message["error"])
                result: dict[str, Any] = message["result"]
                return result

    def open(self, path: Path, fragment: str = "") -> None:
        """Shows a file, and waits until it is there."""
        before = len(self.events)
        url = path.as_uri() + (f"#{fragment}" if fragment else "")
        self.call("Page.navigate", url="about:blank")
        self.call("Page.navigate", url=url)
        while not (any(name == "Page.loadEventFired" for name, _ in self.events[before:]) and self.value("document.URL") == url):
            self._message()
        while self.value("document.readyState") != "complete":
            pass

    def value(self, expression: str) -> Any:
        """Of a JavaScript expression. An exception in it fails the test."""
        result = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def click(self, selector: str) -> None:
        """With the mouse, in the middle of the element."""
        place = self.value(
            f"(() => {{ const element = document.querySelector({json.dumps(selector)}); element.scrollIntoView({{block: 'center'}});"
            " const box = element.getBoundingClientRect(); return [box.x + box.width / 2, box.y + box.height / 2]; })()"
        )
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=place[0], y=place[1], button="left", clickCount=1)

    def press(self, key: str, code: int, text: str = "") -> None:
        """A key."""
        for kind in ("keyDown", "keyUp"):
            self.call(
                "Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code, text=text if kind == "keyDown" else ""
            )

    def type(self, text: str) -> None:
        """Into what has the focus."""
        self.call("Input.insertText", text=text)

    def screenshot(self) -> bytes:
        """A PNG."""
        return base64.b64decode(self.call("Page.captureScreenshot")["data"])

    @property
    def complaints(self) -> list[Any]:
        """What the page logged, exceptions that nobody caught, and what the browser itself said against it."""
        told = ("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded")
        return [event for event in self.events if event[0] in told]

    @property
    def requests(self) -> list[str]:
        """Everything that the page asked for."""
        return [told["request"]["url"].partition("#")[0] for name, told in self.events if name == "Network.requestWillBeSent"]


def _apart() -> tuple[int, int]:
    """A pipe whose ends have numbers that no redirection below uses."""
    ends = []
    for end in os.pipe():
        ends.append(fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10))
        os.close(end)
    return ends[0], ends[1]


@contextmanager
def a_page(folder: Path, width: int = 1300, height: int = 900) -> Iterator[Page]:
    """A page in a browser of its own, which ends with the block."""
    its_commands, commands = _apart()
    answers, its_answers = _apart()
    options = [
        *(
            "--headless=new",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-sync",
        ),
        *("--disable-component-update", "--disable-extensions", "--mute-audio", "--hide-scrollbars", "--force-device-scale-factor=1"),
        *(f"--user-data-dir={folder}", f"--window-size={width},{height}", "--remote-debugging-pipe"),
        *(["--no-sandbox"] if os.geteuid() == 0 else []),
    ]
    command = ["bash", "-c", f'exec "$@" 3<&{its_commands} 4>&{its_answers}', "bash", browser_path(), *options, "about:blank"]
    quiet = subprocess.DEVNULL
    # Not with the sanitizers that the core may run with: chromium does not get up beside them.
    environment = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
    browser = subprocess.Popen(command, pass_fds=(its_commands, its_answers), stdin=quiet, stdout=quiet, stderr=quiet, env=environment)
    os.close(its_commands)
    os.close(its_answers)
    page = None
    try:
        page = Page(commands, answers)
        yield page
    finally:
        browser.kill()
        browser.wait(SECONDS)
        os.close(commands)
        if page is not None:
            page._answers.close()
