"""The bench of the service, in small: a soak in which nothing grows, too much load, and the echo beside a peer."""

import json
import re
import shutil
from pathlib import Path

import pytest
from conftest import lacking
from helpers.services import ROW, make_project
from test_serve import lone_worker

from nbs_lib.bench.load import ResourceUsage, describe_growth, heavy_bodies, run_overload, soak
from nbs_lib.bench.serve import (
    ServerMetrics,
    compare_with_echo,
    echo_server,
    our_server,
    server_environment,
    write_bodies,
)
from nbs_lib.bench.servers.peers import PEERS, Peer, write_peer_files
from nbs_lib.bench.servers.wrk import run_wrk

pytestmark = pytest.mark.xdist_group("deploy")


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not shutil.which("wrk"):
        lacking("apt-get install wrk (or `.ci/apt wrk`)")
    return make_project(tmp_path_factory.mktemp("bench") / "project")


@pytest.fixture
def bodies(tmp_path: Path) -> Path:
    return write_bodies(tmp_path / "bodies", [ROW | {"width": n / 100} for n in range(5000)])


def test_a_soak_leaves_memory_files_and_threads_as_they_were(project: Path, bodies: Path) -> None:
    with our_server(root=project) as server:
        run_wrk(f"{server.url}/predict", bodies, 8, 2)  # warm
        assert soak(server, bodies, parts=4, seconds=2, rate=4000) == ""


LEAKING = """
import os, threading, time
from nbs_lib.serve.asgi import Service
held, predict = [], Service.predict
def leak(*arguments):
    held.append(b"x" * 300_000)
    if len(held) % 50 == 0:
        os.dup(0)
        threading.Thread(target=time.sleep, args=[60], daemon=True).start()
    predict(*arguments)
Service.predict = leak
"""


def test_a_soak_finds_what_grows(tmp_path: Path, bodies: Path) -> None:
    assert describe_growth([ResourceUsage(50, 9, 9), ResourceUsage(151, 9, 9)], 0).startswith("memory grew by 101 MB")
    assert "threads grew from 9 to 30" in describe_growth([ResourceUsage(50, 9, 9), ResourceUsage(50, 9, 30)], 0)
    with lone_worker(tmp_path, LEAKING) as running:
        found = soak(running.server, bodies, parts=2, seconds=2)
    assert re.fullmatch(r"memory grew by \d+ MB, .*; fds grew from \d+ to \d+; threads grew from \d+ to \d+", found)


def test_too_much_is_refused_at_once_and_the_rest_is_answered_in_time(project: Path, tmp_path: Path) -> None:
    rows = [ROW | {"width": n / 100} for n in range(5000)]
    bodies = write_bodies(tmp_path / "heavy", heavy_bodies(rows, size=64, count=70))
    with our_server(root=project, cache=0, max_waiting=8) as server:
        found = run_overload(server, bodies, seconds=3, connections=100)
    during, seen = found.during, found.seen
    assert during.ok > 0
    assert during.shed > 0
    assert during.hinted == during.shed, "each 429 says when to come again"
    assert during.failed == during.lost == 0
    assert {kind for kind in seen.taken if kind.startswith("livez")} == {"livez 200"}
    assert seen.quantile("predict 200", 0.95) < 1000
    assert found.after.refused == found.after.lost == 0


def test_the_table_shows_echo_and_server(project: Path, bodies: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with echo_server() as echo, our_server(root=project) as server:
        compare_with_echo("ours", echo, server, (bodies, bodies), rounds=1, seconds=1, cores=())
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["echo", "ours"]
    assert len(lines[1].split()) == 1 + len(ServerMetrics.__dataclass_fields__) + 2


@pytest.mark.parametrize("peer", PEERS, ids=lambda peer: peer.title)
def test_every_peer_has_what_it_is_started_with(peer: Peer, tmp_path: Path) -> None:
    variables = write_peer_files(peer, tmp_path, (1, 2, 3))
    assert (tmp_path / "service.py").exists() == (peer.service is not None)
    assert json.loads((tmp_path / "settings.json").read_text())["metrics_port"] == 3
    assert set(variables) <= set(server_environment(**variables))
