"""A real browser, driven by the W3C's WebDriver protocol: plain HTTP and JSON to chromedriver."""

import base64
import contextlib
import json
import re
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = ("chromium", "chromium-browser", "google-chrome", "chrome")
ELEMENT = "element-6066-11e4-a52e-4f735466cecf"
# A proxy of this machine is not for the loopback.
OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class Browser:
    """One window. `downloads` is where its downloads go."""

    def __init__(self, address: str, session: str, downloads: Path) -> None:
        self._base = f"{address}/session/{session}"
        self.downloads = downloads

    def open(self, url: str) -> None:
        self._call("POST", "url", {"url": url})

    def run(self, script: str, *arguments: Any) -> Any:
        """What a piece of JavaScript returns; it comes from outside the page and its policy."""
        return self._call("POST", "execute/sync", {"script": script, "args": list(arguments)})

    def text(self, selector: str = "body") -> str:
        return self.run("return document.querySelector(arguments[0]).innerText", selector)

    def find(self, selector: str) -> str:
        return self._call("POST", "element", {"using": "css selector", "value": selector})[ELEMENT]

    def click(self, selector: str) -> None:
        self._call("POST", f"element/{self.find(selector)}/click", {})

    def type(self, selector: str, text: str) -> None:
        """Into a field; for a file input the paths, a line each."""
        self._call("POST", f"element/{self.find(selector)}/value", {"text": text})

    def screenshot(self, path: Path) -> None:
        path.write_bytes(base64.b64decode(self._call("GET", "screenshot")))

    def complaints(self) -> list[str]:
        """What the console says of errors, such as a violation of the page's policy."""
        return [entry["message"] for entry in self._call("POST", "se/log", {"type": "browser"})]

    def close(self) -> None:
        self._call("DELETE", "")

    def _call(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        return _request(method, f"{self._base}/{path}".rstrip("/"), body)


def wait_for(condition: Callable[[], Any], seconds: float = 60) -> Any:
    """The first true value of `condition`."""
    ends_at = time.monotonic() + seconds
    while time.monotonic() < ends_at:
        if found := condition():
            return found
        time.sleep(0.1)
    raise AssertionError("waited in vain")


def _request(method: str, url: str, body: dict[str, Any] | None = None) -> Any:
    content = None if body is None else json.dumps(body).encode()
    headers = {"Content-Type": "application/json"}
    asked = urllib.request.Request(url, content, headers, method=method)
    try:
        with OPENER.open(asked, timeout=120) as answer:
            return json.load(answer)["value"]
    except urllib.error.HTTPError as error:
        with error:
            raise AssertionError(json.load(error)["value"]["message"]) from None


@contextlib.contextmanager
def browser(folder: Path) -> Iterator[Browser]:
    """A headless Chromium; skips the test where none, or no chromedriver, is installed."""
    binary = next(filter(None, map(shutil.which, CHROMIUM)), None)
    driver = shutil.which("chromedriver")
    if binary is None or driver is None:
        pytest.skip("needs chromium and chromedriver")
    log = folder / "chromedriver.log"
    downloads = folder / "downloads"
    downloads.mkdir()
    with log.open("wb") as output:
        process = subprocess.Popen([driver, "--port=0"], stdout=output, stderr=output)
    try:
        port = wait_for(lambda: re.search(rb"started successfully on port (\d+)", log.read_bytes()))[
            1
        ].decode()
        options = {
            "binary": binary,
            "args": [
                *("--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--no-proxy-server"),
                *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
                *("--window-size=1200,1500", f"--user-data-dir={folder / 'profile'}"),
            ],
            "prefs": {"download.default_directory": str(downloads), "download.prompt_for_download": False},
        }
        wanted = {"goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}
        address = f"http://127.0.0.1:{port}"
        made = _request("POST", f"{address}/session", {"capabilities": {"alwaysMatch": wanted}})
        window = Browser(address, made["sessionId"], downloads)
        try:
            yield window
        finally:
            window.close()
    finally:
        process.terminate()
        process.wait()
