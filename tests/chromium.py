"""Headless Chromium under the DevTools protocol: what a test of the page needs of it, and no more."""

import asyncio
import base64
import contextlib
import itertools
import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from processes import running
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

PROGRAM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
NEEDED = "no chromium on the PATH (Debian and Ubuntu: apt install chromium)"
_FLAGS = (
    *("--headless", "--disable-gpu", "--disable-quic", "--no-first-run", "--no-default-browser-check"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-extensions"),
    *("--disable-dev-shm-usage", "--force-color-profile=srgb", "--remote-debugging-port=0"),
    "--autoplay-policy=no-user-gesture-required",
)
_START_SECONDS = 60.0


class Browser(NamedTuple):
    """A running browser."""

    port: int  # of its DevTools, on loopback
    path: str  # of the whole browser's websocket
    microphone: Path | None  # the WAV file that it plays


@contextlib.contextmanager
def chromium(microphone: Path | None = None) -> Iterator[Browser]:
    """Start Chromium, and end it. `microphone`: a WAV file that every opening of the microphone plays from its start.

    Without one, there is no microphone, and nobody to allow it.
    """
    flags = [*_FLAGS, "--no-sandbox"] if os.geteuid() == 0 else list(_FLAGS)
    if microphone is not None:
        flags += ["--use-fake-ui-for-media-stream", "--use-fake-device-for-media-stream"]
        flags += [f"--use-file-for-fake-audio-capture={microphone}%noloop"]
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        command = [PROGRAM, *flags, f"--user-data-dir={profile}", "about:blank"]
        with running(command) as process:
            yield Browser(*_wait_for(process, Path(profile) / "DevToolsActivePort"), microphone)


def _wait_for(process: subprocess.Popen, file: Path) -> tuple[int, str]:
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(FileNotFoundError, ValueError):
            port, path = file.read_text().splitlines()
            return int(port), path
        time.sleep(0.05)
    raise RuntimeError(f"{PROGRAM} did not start (exit status {process.poll()})")


class PageError(AssertionError):
    """The page's script raised."""


class Page:
    """One tab. `errors`: what its script threw, or its policy stopped; `received`: text of websockets, once the domain
    Network is enabled."""

    def __init__(self, connection: ClientConnection) -> None:
        self._connection, self._numbers = connection, itertools.count(1)
        self._waiting: dict[int, asyncio.Future] = {}
        self.errors: list[str] = []
        self.received: list[str] = []

    async def call(self, method: str, **params: object) -> dict[str, Any]:
        """One command of the DevTools protocol."""
        number = next(self._numbers)
        self._waiting[number] = asyncio.get_running_loop().create_future()
        await self._connection.send(json.dumps({"id": number, "method": method, "params": params}))
        return await self._waiting[number]

    async def listen(self) -> None:
        """Take messages until the tab is closed."""
        with contextlib.suppress(ConnectionClosed):
            async for text in self._connection:
                self._take(json.loads(text))

    def _take(self, message: dict[str, Any]) -> None:
        if "id" in message:
            future = self._waiting.pop(message["id"])
            if "error" in message:
                future.set_exception(PageError(message["error"]["message"]))
            else:
                future.set_result(message["result"])
        elif message["method"] == "Runtime.exceptionThrown":
            details = message["params"]["exceptionDetails"]
            self.errors.append(details.get("exception", {}).get("description", details["text"]))
        elif message["method"] == "Network.webSocketFrameReceived":
            self.received.append(message["params"]["response"]["payloadData"])
        elif message["method"] == "Log.entryAdded" and message["params"]["entry"]["source"] == "security":
            self.errors.append(message["params"]["entry"]["text"])

    async def evaluate(self, script: str, gesture: bool = True) -> Any:
        """The value (JSON) of an expression in the page; promises are awaited."""
        found = await self.call(
            "Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True, userGesture=gesture
        )
        if "exceptionDetails" in found:
            raise PageError(found["exceptionDetails"].get("exception", {}).get("description", "script failed"))
        return found["result"].get("value")

    async def until(self, script: str, seconds: float = 30.0) -> Any:
        """Wait until an expression is true; its value. Fails after `seconds`."""
        deadline = time.monotonic() + seconds
        while not (value := await self.evaluate(script)):
            assert time.monotonic() < deadline, f"not within {seconds:g} s: {script}; errors: {self.errors}"
            await asyncio.sleep(0.02)
        return value

    async def give_file(self, selector: str, path: Path) -> None:
        """As if somebody had chosen a file in an <input>."""
        found = await self.call("Runtime.evaluate", expression=f"document.querySelector({selector!r})")
        await self.call("DOM.setFileInputFiles", files=[str(path)], objectId=found["result"]["objectId"])

    async def drop_file(self, path: Path, x: int, y: int) -> None:
        """As if somebody had dragged a file to a point of the window, and let go."""
        data = {"items": [], "files": [str(path)], "dragOperationsMask": 1}
        for kind in ("dragEnter", "dragOver", "drop"):
            await self.call("Input.dispatchDragEvent", type=kind, x=x, y=y, data=data)

    async def press(self, key: str) -> None:
        """Tab, Enter or Space."""
        code = {"Tab": 9, "Enter": 13, "Space": 32}[key]
        text = {"Enter": "\r", "Space": " "}.get(key, "")
        press = {"key": text.strip(" ") or key if key != "Space" else " ", "code": key, "windowsVirtualKeyCode": code}
        await self.call("Input.dispatchKeyEvent", type="keyDown" if text else "rawKeyDown", text=text, **press)
        await self.call("Input.dispatchKeyEvent", type="keyUp", **press)

    async def screenshot(self, path: Path) -> None:
        found = await self.call("Page.captureScreenshot", format="png")
        path.write_bytes(base64.b64decode(found["data"]))


@contextlib.asynccontextmanager
async def tab(browser: Browser, url: str) -> AsyncIterator[Page]:
    """A new tab that has loaded `url`; closed at the end."""
    address = f"ws://127.0.0.1:{browser.port}"
    async with connect(address + browser.path, max_size=None, proxy=None) as whole:
        await whole.send(json.dumps({"id": 1, "method": "Target.createTarget", "params": {"url": "about:blank"}}))
        while "result" not in (made := json.loads(await whole.recv())):
            pass
    async with connect(f"{address}/devtools/page/{made['result']['targetId']}", max_size=None, proxy=None) as own:
        page = Page(own)
        listener = asyncio.create_task(page.listen())
        try:
            for domain in ("Page", "Runtime", "Log", "DOM"):
                await page.call(f"{domain}.enable")
            await page.call("Page.navigate", url=url)
            await page.until(f"document.readyState === 'complete' && location.href.startsWith({url!r})")
            yield page
        finally:
            with contextlib.suppress(ConnectionClosed):
                await page.call("Page.close")
            await own.close()
            await listener
