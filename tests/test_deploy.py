"""What `deploy/` holds works: a real nginx before two real instances, a real Prometheus that sees an alert fire."""

import json
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, lacking
from services import ROW, Load, Running, make_project, point_to, promote, service, until

from nbs_lib.meters import COUNTERS, GAUGES, HISTOGRAMS
from nbs_lib.server_process import free_port, get, serving
from nbs_lib.settings import Serve

DEPLOY = ROOT / "deploy"
HTML_FAILS = pytest.mark.filterwarnings("error::pytest.PytestUnhandledThreadExceptionWarning")  # nginx's own pages
ELSEWHERE = {"nbs_worker_restarts_total", "nbs_drifted_columns"}  # counted by the parent; set by the cycle


def program(name: str, package: str) -> str:
    found = shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin")
    return found or lacking(f"apt-get install {package} (or `.ci/apt {package}`)")


# Prometheus and Grafana


def test_rules_are_right_and_each_alert_fires_when_it_should() -> None:
    promtool = program("promtool", "prometheus")
    for arguments in (["check", "config", "prometheus.yml"], ["test", "rules", "rules_test.yml"]):
        done = subprocess.run([promtool, *arguments], cwd=DEPLOY / "prometheus", capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr


def test_what_is_watched_is_what_the_service_counts() -> None:
    counted = {f"{name}_total" for name in COUNTERS} | set(GAUGES) | ELSEWHERE
    counted |= {f"{name}_{part}" for name in HISTOGRAMS for part in ("bucket", "sum", "count")}
    rules = (DEPLOY / "prometheus/rules.yml").read_text()
    recorded = set(re.findall(r"record: (\S+)", rules))
    dashboard = json.loads((DEPLOY / "grafana/nbs.json").read_text())
    shown = " ".join(target["expr"] for panel in dashboard["panels"] for target in panel["targets"])
    for text in (rules, shown):
        assert set(re.findall(r"\bnbs_\w+", text)) <= counted
        assert set(re.findall(r"\bnbs:[\w:]+", text)) <= recorded
    assert counted - {"nbs_request_seconds_sum", "nbs_request_seconds_count", "nbs_batch_rows_bucket"} <= set(
        re.findall(r"\bnbs_\w+", rules + shown)
    ), "everything that is counted is watched or shown"


@contextmanager
def prometheus(folder: Path, target: int) -> Iterator[str]:
    """The configuration of `deploy/`, in a hurry; its URL."""
    server, port = program("prometheus", "prometheus"), free_port()
    shutil.copytree(DEPLOY / "prometheus", folder)
    config = (folder / "prometheus.yml").read_text().replace("15s", "200ms").replace(":8000", f":{target}")
    (folder / "prometheus.yml").write_text(config)
    options = ["--config.file=prometheus.yml", "--storage.tsdb.path=data", f"--web.listen-address=127.0.0.1:{port}"]
    with serving([server, *options], port, "/-/ready", folder) as found:
        yield found.url


def asked(url: str, path: str) -> Any:
    return json.loads(get(f"{url}/api/v1/{path}")[1])["data"]


@pytest.mark.xdist_group("deploy")
def test_prometheus_sees_a_champion_that_can_not_be_loaded(tmp_path: Path) -> None:
    program("prometheus", "prometheus")
    root = make_project(tmp_path / "project")
    with service(root) as running, prometheus(tmp_path / "prometheus", running.port) as url:
        until(lambda: asked(url, "query?query=nbs_model_load_failures_total")["result"])
        for _ in range(20):
            assert running.ask(ROW)[0] == 200
        until(lambda: asked(url, "query?query=nbs_rows_total")["result"])
        assert not asked(url, "alerts")["alerts"]
        served = running.ask(ROW)[1]["model"]
        id = promote(root, metrics={"other": 1})
        point_to(root, next(each.name for each in (root / "served").iterdir() if each.name.startswith(served)))
        shutil.copytree(root / "served" / id, root / "served" / ("0" * 64))  # its name is not what it holds
        point_to(root, "0" * 64)
        alerts = until(lambda: [a for a in asked(url, "alerts")["alerts"] if a["state"] == "firing"], 20)
        assert [each["labels"]["alertname"] for each in alerts] == ["NbsReloadFailed"]
        assert f"127.0.0.1:{running.port}" in alerts[0]["annotations"]["summary"]
        assert running.ask(ROW)[1]["model"] == served


# nginx


@contextmanager
def nginx(folder: Path, *ports: int) -> Iterator[int]:
    """The configuration of `deploy/` before some instances; the port that it listens on."""
    server, port = program("nginx", "nginx"), free_port()
    config = (DEPLOY / "nginx.conf").read_text().replace(":8080", f":{port}")
    for written, real in zip((":8001", ":8002"), ports, strict=True):
        config = config.replace(written, f":{real}")
    folder.mkdir()
    (folder / "nginx.conf").write_text(config)
    command = [server, "-p", str(folder), "-c", str(folder / "nginx.conf"), "-g", "daemon off;"]
    with serving(command, port, "/livez"):
        yield port


def test_nginx_takes_its_configuration_and_the_limit_is_that_of_the_service(tmp_path: Path) -> None:
    server = program("nginx", "nginx")
    config = DEPLOY / "nginx.conf"
    done = subprocess.run([server, "-t", "-p", tmp_path, "-c", config], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert f"client_max_body_size {Serve().max_kb}k;" in config.read_text()


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_project(tmp_path_factory.mktemp("two") / "project")


def stopped(instance: Running) -> None:
    """End an instance as an operator does."""
    instance.server.process.send_signal(signal.SIGTERM)
    instance.server.process.wait(20)


@HTML_FAILS
@pytest.mark.xdist_group("deploy")
def test_a_rolling_restart_behind_nginx_loses_nothing(project: Path, tmp_path: Path) -> None:
    with ExitStack() as stack:
        instances = [stack.enter_context(service(project, SERVE_DRAIN_S="1")) for _ in range(2)]
        port = stack.enter_context(nginx(tmp_path / "nginx", *(each.port for each in instances)))
        with Load(port) as load:
            load.wait(200)
            for each in instances:
                stopped(each)
                load.wait(100)
                stack.enter_context(service(project, each.port, SERVE_DRAIN_S="1"))
                time.sleep(2)
                load.wait(100)
    assert (load.lost, load.refused) == ([], 0)
    assert {status for status, _ in load.answers} == {200}
    workers = {answer["id"].split("-")[1] for _, answer in load.answers}
    assert len(workers) == 4, "both instances answered, before and after"


@HTML_FAILS
@pytest.mark.xdist_group("deploy")
def test_an_instance_that_is_killed_loses_what_it_had_in_flight_at_most(project: Path, tmp_path: Path) -> None:
    with ExitStack() as stack:
        one, other = (stack.enter_context(service(project, SERVE_DRAIN_S="1")) for _ in range(2))
        port = stack.enter_context(nginx(tmp_path / "nginx", one.port, other.port))
        load = stack.enter_context(Load(port, clients=8))
        load.wait(200)
        os.killpg(one.server.process.pid, signal.SIGKILL)
        before = len(load.answers)
        load.wait(400)
        failed = [answer for answer in load.answers if answer[0] != 200]
    assert len(load.lost) + len(failed) <= 8, (load.lost, failed)
    after = {answer["id"].split("-")[1] for status, answer in load.answers[before + 50 :] if status == 200}
    assert len(after) == 1


@pytest.mark.xdist_group("deploy")
def test_nginx_shows_no_counts_and_takes_no_giants(project: Path, tmp_path: Path) -> None:
    with service(project) as one, nginx(tmp_path / "nginx", one.port, free_port()) as port:
        assert get(f"http://127.0.0.1:{port}/metrics")[0] == 404
        assert Running(one.server, port).ask([ROW] * 3)[0] == 200
        with pytest.raises(json.JSONDecodeError):  # nginx's own page
            Running(one.server, port).ask(b" " * (Serve().max_kb * 1024 + 1))
