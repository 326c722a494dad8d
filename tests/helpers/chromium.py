"""Drives a headless Chromium over a pipe (the DevTools protocol): types, clicks, looks, notes its complaints."""

import base64
import json
import os
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars"]
FLAGS += ["--disable-background-networking", "--disable-component-update", "--disable-sync", "--remote-debugging-pipe"]

_CUT = """(() => {
const style = getComputedStyle
const is_code = box => box.matches('pre') && style(box).overflowX === 'auto' && style(box).backgroundImage !== 'none'
const boxes = [...document.querySelectorAll('main *')].filter(box => style(box).overflowX !== 'visible')
return [document.documentElement, ...boxes].filter(box => box.scrollWidth > box.clientWidth + 1 && !is_code(box))
    .map(box => `${box.tagName} ${box.scrollWidth} > ${box.clientWidth}: ${box.innerText.slice(0, 60)}`)
})()"""


class Chromium:
    """One page of one browser."""

    def __init__(self, profile: Path) -> None:
        (theirs, self._out), (self._in, answers) = os.pipe(), os.pipe()
        # the protocol is spoken on 3 and 4; a shell puts the two ends there
        command = f'exec 3<&{theirs} 4>&{answers}; exec "$@"'
        arguments = [str(CHROMIUM), *FLAGS, f"--user-data-dir={profile}", "about:blank"]
        self._process = subprocess.Popen(
            ["bash", "-c", command, "chromium", *arguments],
            pass_fds=(theirs, answers),
            stderr=subprocess.DEVNULL,
        )
        os.close(theirs)
        os.close(answers)
        self._left, self._number, self._session = b"", 0, ""
        self.complaints: list[str] = []  # exceptions, refused scripts and styles, failed requests
        self.asked: list[str] = []  # every address
        target = next(each for each in self.call("Target.getTargets")["targetInfos"] if each["type"] == "page")
        attached = self.call("Target.attachToTarget", targetId=target["targetId"], flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def close(self) -> None:
        self._process.terminate()
        self._process.wait(10)
        os.close(self._in)
        os.close(self._out)

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        message |= {"sessionId": self._session} if self._session else {}
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while (said := self._next()).get("id") != self._number:
            self._note(said)
        assert "error" not in said, said
        return said["result"]

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._left:
            chunk = os.read(self._in, 1 << 20)
            assert chunk, "the browser has ended"
            self._left += chunk
        message, _, self._left = self._left.partition(b"\0")
        return json.loads(message)

    def _note(self, said: dict[str, Any]) -> None:
        method, told = said.get("method"), said.get("params", {})
        if method == "Runtime.exceptionThrown":
            self.complaints.append(told["exceptionDetails"].get("exception", {}).get("description", str(told)))
        elif method == "Log.entryAdded":
            self.complaints.append(told["entry"]["text"])
        elif method == "Network.requestWillBeSent":
            self.asked.append(told["request"]["url"])

    def see(self, expression: str) -> Any:
        """What an expression is worth in the page."""
        found = self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def wait(self, expression: str, seconds: float = 20) -> None:
        """Until an expression is true."""
        end = time.monotonic() + seconds
        while not self.see(f"Boolean({expression})"):
            assert time.monotonic() < end, f"{expression}: {self.see('document.body.innerText')}\n{self.complaints}"
            time.sleep(0.05)

    def open(self, url: str, width: int = 1280, height: int = 900, dark: bool = False) -> None:
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self.complaints.clear()
        self.asked.clear()
        self.call("Page.navigate", url=url)
        self.wait(f"location.href.startsWith({json.dumps(url)}) && document.readyState === 'complete'")

    def type(self, selector: str, text: str) -> None:
        """Type into a field as a person does, over what is there."""
        found = f"document.querySelector({json.dumps(selector)})"
        self.see(f"if ({found}.closest('details')) {found}.closest('details').open = true")
        self.see(f"{found}.focus(), {found}.select()")
        self.call("Input.insertText", text=text)

    def click(self, selector: str) -> None:
        self.see(f"document.querySelector({json.dumps(selector)}).click()")

    def cut(self) -> list[str]:
        """Boxes of the open page that cut what is in them; code may scroll, with a shadow that says so."""
        return self.see(_CUT)

    def picture(self, path: Path) -> Path:
        """The whole page."""
        size = self.call("Page.getLayoutMetrics")["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}
        shot = self.call("Page.captureScreenshot", clip=clip, captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(shot["data"]))
        return path
