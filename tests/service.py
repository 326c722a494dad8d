"""A project that serves the small bundle with views, and the service itself on a port of its own."""

import contextlib
import http.client
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ship_fixtures import make_ladder_bundle, manifest, store_of

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = "</script><script>document.title='pwned'</script>"
TOLD: dict[str, dict[str, Any]] = {
    "width": {"nulls": 0.0, "min": 0.5, "max": 12.0, "unit": "m", "description": f"across {SCRIPT}"},
    "maker": {"nulls": 0.0, "levels": ["m1", "b", SCRIPT], "n_levels": 3},
    "made": {"nulls": 0.0, "min": 0, "max": 86_400 * 10},
}
ROW = {"width": 2.5, "maker": "m1", "made": "1970-01-10T00:00:00Z", "place": 7}


def deliver(root: Path, told: dict[str, dict[str, Any]] = TOLD, **changes: Any) -> str:
    """Make a bundle the champion of a project; its id."""
    folder = root / "served/new"
    make_ladder_bundle(folder, **changes)
    schema = json.loads((folder / "schema.json").read_text())
    for each in [*schema["inputs"], *schema["context"]["inputs"]]:
        each.update(told.get(each["name"], {}))
    make_ladder_bundle(folder, **{k: v for k, v in changes.items() if k != "schema"}, schema=schema)
    id = manifest(folder)["id"]
    shutil.rmtree(root / "served" / id, ignore_errors=True)
    folder.rename(root / "served" / id)
    (root / "served/CURRENT").write_text(id)
    return str(id)


class Running:
    """`nbs serve` in a project, on a port of its own."""

    def __init__(self, root: Path, **environment: str) -> None:
        for name in ("params.yaml", "dvc.yaml", "settings.ini"):
            (root / name).touch()
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("NBS_", "COV_"))}
        settings = {"NBS_SERVE_PORT": str(self.port), "PYTHONPATH": str(ROOT)} | environment
        command = [sys.executable, "-m", "nbs_lib.cli", "serve"]
        self.complaints = tempfile.TemporaryFile()  # noqa: SIM115 (`stop` closes it)
        self._process = subprocess.Popen(
            command, cwd=root, env=kept | settings, stdout=subprocess.DEVNULL, stderr=self.complaints
        )
        self.url, self.token = f"http://127.0.0.1:{self.port}", environment.get("NBS_TOKEN", "")
        self.wait(lambda: self._alive() == 200)
        if (root / "served/CURRENT").exists():
            self.wait(lambda: self.call("/readyz")[0] == 200)

    def wait(self, holds: Callable[[], bool], seconds: float = 60) -> None:
        """Until something holds."""
        end = time.monotonic() + seconds
        while not holds():
            assert self._process.poll() is None, self.said()
            assert time.monotonic() < end, self.said()
            time.sleep(0.05)

    def _alive(self) -> int:
        try:
            return self.call("/livez")[0]
        except OSError:
            return 0

    def said(self) -> str:
        """What it complained about."""
        self.complaints.seek(0)
        return self.complaints.read().decode()

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait(30)
        self.complaints.close()

    def rows(self) -> int:
        """How many rows a model was asked for."""
        text = self.call("/metrics")[1].decode()
        return sum(int(float(line.split()[-1])) for line in text.splitlines() if line.startswith("nbs_rows_total"))

    def call(self, path: str, body: Any = None, method: str = "", **headers: str) -> tuple[int, Any, dict[str, str]]:
        """Status, body (JSON where it is) and headers; a body that is not bytes goes as JSON."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        sent = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        kind = {"content-type": "application/json"} if sent is not None else {}
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        if self.token:
            names = {"authorization": f"Bearer {self.token}"} | names
        connection.connect()
        with contextlib.suppress(ConnectionError):  # what is too large may be refused before it is sent
            connection.request(method or ("GET" if sent is None else "POST"), path, sent, kind | names)
        answer = connection.getresponse()
        text, told = answer.read(), {name.lower(): value for name, value in answer.getheaders()}
        connection.close()
        is_json = told.get("content-type", "").startswith("application/json") and text
        return answer.status, json.loads(text) if is_json else text, told


def project(root: Path, **changes: Any) -> Path:
    """A project with a champion and a filled store."""
    deliver(root, **changes)
    store_of(root)
    return root
