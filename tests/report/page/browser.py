"""Chromium without a screen, spoken to over two pipes in the protocol of its developer tools; no library needed.

with Browser(tmp_path) as browser:
    tab = browser.open(tmp_path / "page.html")
    tab.run("document.title")
    assert tab.messages == []
assert browser.asked() == set()
"""

import json
import os
import shutil
import subprocess
import threading
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FOUND = next((path for name in NAMES if (path := shutil.which(name))), None)

FLAGS = (
    "--headless",
    # A container's root has no sandbox; the pages are this test's own, and nothing is resolved.
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    # A browser asks for updates, for lists of what to block and for new experiments by itself. No page asked for those.
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-default-apps",
    "--disable-extensions",
    "--disable-quic",
    "--disable-sync",
    "--no-pings",
    # What a page does ask for is written into the log and goes nowhere, by no name and through no proxy.
    "--no-proxy-server",
    "--host-resolver-rules=MAP * ~NOTFOUND",
    "--hide-scrollbars",
    "--lang=en",
    "--remote-debugging-pipe",
)
MESSAGES = ("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded")
Event = dict[str, Any]


class Browser:
    """A browser with a folder of its own; ended with the `with` block, or after `limit` seconds if it hangs."""

    def __init__(self, folder: Path, limit: float = 60.0) -> None:
        assert FOUND is not None
        self.log = folder / "net-log.json"
        flags = [*FLAGS, f"--user-data-dir={folder / 'profile'}", f"--log-net-log={self.log}"]
        # It reads commands from file 3 and writes answers to file 4.
        swap = ["sh", "-c", 'exec "$@" 3<&0 4>&1 </dev/null >/dev/null 2>&1', "sh"]
        self.process = subprocess.Popen(
            [*swap, FOUND, *flags, "about:blank"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self._to, self._from = self.process.stdin, self.process.stdout
        self._left = b""
        self._count = 0
        self.events: list[Event] = []
        self._watchdog = threading.Timer(limit, self.process.kill)
        self._watchdog.start()

    def __enter__(self) -> "Browser":
        return self

    def __exit__(self, *_: object) -> None:
        # The log is whole only after an orderly end.
        self.call("Browser.close")
        self.process.wait()
        self._watchdog.cancel()
        self._to.close()
        self._from.close()

    def call(self, method: str, session: str | None = None, **params: Any) -> Any:
        """One command and its answer; what happens meanwhile goes to `events`."""
        self._count += 1
        number = self._count
        asked = {"id": number, "method": method, "params": params, **({"sessionId": session} if session else {})}
        self._to.write(json.dumps(asked).encode() + b"\0")
        self._to.flush()
        while (answer := self._next()).get("id") != number:
            self.events.append(answer)
        assert "error" not in answer, (method, answer)
        return answer["result"]

    def wait(self, method: str, session: str) -> None:
        """Until this event has come."""
        while not any(event["method"] == method and event.get("sessionId") == session for event in self.events):
            self.events.append(self._next())

    def _next(self) -> Event:
        while b"\0" not in self._left:
            more = os.read(self._from.fileno(), 1 << 20)
            assert more, "the browser has gone, or hung and was ended"
            self._left += more
        message, _, self._left = self._left.partition(b"\0")
        return json.loads(message)

    def open(self, path: Path, *, width: int = 1100, scripts: bool = True, **media: str) -> "Tab":
        """A tab `width` CSS pixels wide with a page that has been read to its end.

        Args:
            path: the page.
            width: of the window.
            scripts: whether pages may run any.
            media: "print" as `media`, or features such as prefers_color_scheme="dark".
        """
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        tab = Tab(self, session)
        for domain in ("Page", "Runtime", "Log", "Network"):
            tab.call(f"{domain}.enable")
        tab.call("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False)
        tab.call("Emulation.setScriptExecutionDisabled", value=not scripts)
        kind = media.pop("media", "")
        features = [{"name": name.replace("_", "-"), "value": value} for name, value in media.items()]
        tab.call("Emulation.setEmulatedMedia", media=kind, features=features)
        tab.call("Page.navigate", url=path.as_uri())
        self.wait("Page.loadEventFired", session)
        return tab

    def asked(self) -> set[str]:
        """Every address and host that a page from a file had the network asked for, by the log of a browser that ended.

        Chromium keeps caches and connections apart by who asked, and writes so into its log. What it asks on its own
        behalf (the time, its maker's accounts), which no flag stops for good, is none of a file's.
        """
        found = set()
        for event in json.loads(self.log.read_text())["events"]:
            given = event.get("params", {})
            who = given.get("network_isolation_key") or given.get("network_anonymization_key") or ""
            if who.startswith("file:"):
                found.add(str(given.get("url") or given.get("host") or given))
        return found


class Tab:
    """A page in the browser."""

    def __init__(self, browser: Browser, session: str) -> None:
        self.browser, self.session = browser, session

    def call(self, method: str, **params: Any) -> Any:
        return self.browser.call(method, self.session, **params)

    def run(self, script: str) -> Any:
        """The value of an expression, waited for if it is a promise."""
        answer = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def _events(self, *methods: str) -> list[Event]:
        return [
            event["params"]
            for event in self.browser.events
            if event.get("sessionId") == self.session and event["method"] in methods
        ]

    @property
    def messages(self) -> list[Event]:
        """Whatever stands on the console, whoever wrote it."""
        return self._events(*MESSAGES)

    @property
    def requests(self) -> list[str]:
        """Addresses that the page wished for, itself first, refused ones too; its pixels stand in the page."""
        asked = [event["request"]["url"] for event in self._events("Network.requestWillBeSent")]
        return [address for address in asked if not address.startswith(("data:", "blob:"))]
