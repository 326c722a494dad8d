"""A real service in a small project of its own, and clients that ask it."""

import contextlib
import http.client
import json
import os
import shutil
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
from conftest import ROOT, lacking
from helpers.bundles import make_ladder_bundle, store_of

from nbs_lib.core.files import write_text
from nbs_lib.core.paths import CURRENT_FILE
from nbs_lib.core.server_process import ServerProcess, free_port, running_server
from nbs_lib.registry.model_registry import deploy_bundle

ROW: dict[str, Any] = {"width": 1, "maker": "m1", "place": 7, "made": "1971-01-01"}
SCRIPT = "</script><script>document.title='pwned'</script>"
TOLD: dict[str, dict[str, Any]] = {  # what the schema says of inputs, for a page to show
    "width": {"nulls": 0.0, "min": 0.5, "max": 12.0, "unit": "m", "description": f"across {SCRIPT}"},
    "maker": {"nulls": 0.0, "levels": ["m1", "b", SCRIPT], "n_levels": 3},
    "made": {"nulls": 0.0, "min": 0, "max": 86_400 * 400},
}
Told = dict[str, dict[str, Any]]


def program(name: str, package: str) -> str:
    """Where a program is that a package of the system brings."""
    found = shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin")
    return found or lacking(f"apt-get install {package} (or `.ci/apt {package}`)")


def make_empty(root: Path) -> Path:
    """A project that has no champion."""
    root.mkdir(parents=True, exist_ok=True)
    shutil.copy(ROOT / "settings.ini", root)
    (root / "dvc.yaml").write_text("stages: {}\n")
    (root / "params.yaml").write_text("{}\n")
    return root


def make_project(root: Path, told: Told | None = None, **bundle: Any) -> Path:
    """A project that has nothing but a champion and a store."""
    make_empty(root)
    store_of(root)
    promote(root, told, **bundle)
    return root


def promote(root: Path, told: Told | None = None, **bundle: Any) -> str:
    """Make another champion; its id."""
    made = root / "made"
    make_ladder_bundle(made, **bundle)
    if told:
        schema = json.loads((made / "schema.json").read_text())
        for each in [*schema["inputs"], *schema["context"]["inputs"]]:
            each.update(told.get(each["name"], {}))
        make_ladder_bundle(made, **bundle, schema=schema)
    deploy_bundle(made, root)
    shutil.rmtree(made)
    return (root / CURRENT_FILE).read_text().strip()


def point_to(root: Path, id: str) -> None:
    write_text(f"{id}\n", root / CURRENT_FILE)


@contextmanager
def service(
    root: Path, port: int = 0, wait_s: float = 30.0, ready: str = "/readyz", **more: str
) -> Iterator["Running"]:
    """`nbs serve` in a project; `SERVE_WORKERS="2"` and the like change its settings."""
    port = port or free_port()
    env = {k: v for k, v in os.environ.items() if not k.startswith(("NBS_", "COV_", "PROMETHEUS_"))}
    env |= {"PYTHONPATH": str(ROOT), "NBS_SERVE_PORT": str(port)} | {f"NBS_{key}": value for key, value in more.items()}
    command = [sys.executable, "-m", "nbs_lib.cli", "serve"]
    with running_server(command, port, ready, cwd=root, environment=env, wait_s=wait_s) as server:
        yield Running(server, port, more.get("TOKEN", ""))


class Running:
    """A service that runs."""

    def __init__(self, server: ServerProcess, port: int, token: str = "") -> None:
        self.server, self.port, self.url, self.token = server, port, server.url, token

    def workers(self) -> list[psutil.Process]:
        return self.server.process.children()

    def ask(self, rows: Any, path: str = "/predict", **headers: str) -> tuple[int, Any]:
        """One request on a connection of its own."""
        with client(self.port) as connection:
            return connection.ask(rows, path, **headers)

    def get(self, path: str) -> tuple[int, str]:
        with client(self.port) as connection:
            return connection.get(path)

    def call(self, path: str, body: Any = None, method: str = "", **headers: str) -> tuple[int, Any, dict[str, str]]:
        """Status, body (JSON where it is) and headers; what is not bytes goes as JSON, and the token with all."""
        sent = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        named = {"content-type": "application/json"} if sent is not None else {}
        named |= {"authorization": f"Bearer {self.token}"} if self.token else {}
        named |= {name.replace("_", "-"): value for name, value in headers.items()}
        with client(self.port, 20) as made:
            made.connection.connect()
            with contextlib.suppress(ConnectionError):  # what is too large may be refused before it is sent
                made.connection.request(method or ("GET" if sent is None else "POST"), path, sent, named)
            status, text = made.said()
        is_json = made.headers.get("content-type", "").startswith("application/json") and text
        return status, json.loads(text) if is_json else text, made.headers

    def said(self) -> str:
        """What it printed."""
        return self.server.log.read_text()

    def metric(self, name: str, **labels: str) -> float:
        """The sum of the series of a name that have some labels."""
        total = 0.0
        for line in self.get("/metrics")[1].splitlines():
            series, _, value = line.rpartition(" ")
            if series.partition("{")[0] == name and all(f'{k}="{v}"' in series for k, v in labels.items()):
                total += float(value)
        return total


class Client:
    """A connection that is kept."""

    def __init__(self, port: int, timeout: float = 10.0) -> None:
        self.connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout)
        self.closed = False  # the server said that it would close it
        self.headers: dict[str, str] = {}

    def ask(self, rows: Any, path: str = "/predict", **headers: str) -> tuple[int, Any]:
        body = rows if isinstance(rows, bytes) else json.dumps(rows).encode()
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        self.connection.request("POST", path, body, {"content-type": "application/json"} | named)
        status, text = self.said()
        return status, json.loads(text)

    def get(self, path: str, **headers: str) -> tuple[int, str]:
        self.connection.request("GET", path, headers={name.replace("_", "-"): value for name, value in headers.items()})
        return self.said()

    def said(self) -> tuple[int, str]:
        answer = self.connection.getresponse()
        self.headers = {name.lower(): value for name, value in answer.getheaders()}
        self.closed = self.headers.get("connection") == "close"
        return answer.status, answer.read().decode()


@contextmanager
def client(port: int, timeout: float = 10.0) -> Iterator[Client]:
    """A connection, closed in the end."""
    made = Client(port, timeout)
    try:
        yield made
    finally:
        made.connection.close()


class Load:
    """Clients that ask without a pause, each on a connection that it keeps for as long as the server lets it."""

    def __init__(self, port: int, clients: int = 8, rows: Any = None, pause_s: float = 0.0) -> None:
        self.port, self.rows, self.pause_s = port, ROW if rows is None else rows, pause_s
        self.answers: list[tuple[int, Any]] = []
        self.lost: list[str] = []  # requests that were sent and got no answer
        self.late = 0  # connections that were made as the port was closed, and never answered
        self.refused = 0  # connections that could not be made
        self._end = threading.Event()
        self._threads = [threading.Thread(target=self._run, daemon=True) for _ in range(clients)]

    def __enter__(self) -> "Load":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        for thread in self._threads:
            thread.join(30)

    def _run(self) -> None:
        while not self._end.is_set():
            with client(self.port) as made:
                try:
                    made.connection.connect()
                except OSError:
                    self.refused += 1
                    time.sleep(0.01)
                    continue
                self._keep_asking(made)

    def _keep_asking(self, made: Client) -> None:
        answered = False
        while not self._end.is_set() and not made.closed:
            try:
                self.answers.append(made.ask(self.rows))
                answered = True
            except (OSError, http.client.HTTPException) as error:
                if answered:
                    self.lost.append(repr(error))
                self.late += not answered
                return
            time.sleep(self.pause_s)

    def wait(self, answers: int, seconds: float = 20.0) -> None:
        """Until so many more answers came."""
        wanted, end = len(self.answers) + answers, time.monotonic() + seconds
        while len(self.answers) < wanted:
            assert time.monotonic() < end, f"{len(self.answers)} of {wanted} answers, {self.lost[:3]}"
            time.sleep(0.01)


PATIENT = {"SERVE_DEADLINE_MS": "3000"}  # where losses are counted: a machine that stops for a moment loses nothing
