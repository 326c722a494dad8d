"""What `deploy/` holds works: nginx before two real instances, a real Prometheus whose alert fires, each scheduler."""

import json
import os
import re
import shutil
import signal
import subprocess
import time
import tomllib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from apscheduler.triggers.cron import CronTrigger
from conftest import ROOT
from helpers.services import PATIENT, ROW, Load, Running, make_project, point_to, program, promote, service
from helpers.waiting import until
from typer.testing import CliRunner

from nbs_lib.bench.faults.nodes import nginx_in_front_of
from nbs_lib.cli import app
from nbs_lib.core.server_process import free_port, http_get, running_server
from nbs_lib.core.settings import ScheduleSettings, ServeSettings
from nbs_lib.retrain.schedule import EXIT_CODE_TEXTS
from nbs_lib.serve.metrics import COUNTERS, GAUGES, HISTOGRAMS

DEPLOY = ROOT / "deploy"
HTML_FAILS = pytest.mark.filterwarnings("error::pytest.PytestUnhandledThreadExceptionWarning")  # nginx's own pages
ELSEWHERE = {"nbs_worker_restarts_total", "nbs_drifted_columns"}  # counted by the parent; set by the cycle


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
    with running_server([server, *options], port, "/-/ready", folder) as found:
        yield found.url


def asked(url: str, path: str) -> Any:
    return json.loads(http_get(f"{url}/api/v1/{path}")[1])["data"]


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
    program("nginx", "nginx")
    with nginx_in_front_of(ports, folder, DEPLOY / "nginx.conf") as server:
        yield int(server.url.rpartition(":")[2])


def test_nginx_takes_its_configuration_and_the_limit_is_that_of_the_service(tmp_path: Path) -> None:
    server = program("nginx", "nginx")
    config = DEPLOY / "nginx.conf"
    done = subprocess.run([server, "-t", "-p", tmp_path, "-c", config], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert f"client_max_body_size {ServeSettings().max_kb}k;" in config.read_text()


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
        instances = [stack.enter_context(service(project, SERVE_DRAIN_S="1", **PATIENT)) for _ in range(2)]
        port = stack.enter_context(nginx(tmp_path / "nginx", *(each.port for each in instances)))
        with Load(port) as load:
            load.wait(200)
            for each in instances:
                stopped(each)
                load.wait(100)
                stack.enter_context(service(project, each.port, SERVE_DRAIN_S="1", **PATIENT))
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
        assert http_get(f"http://127.0.0.1:{port}/metrics")[0] == 404
        assert Running(one.server, port).ask([ROW] * 3)[0] == 200
        with pytest.raises(json.JSONDecodeError):  # nginx's own page
            Running(one.server, port).ask(b" " * (ServeSettings().max_kb * 1024 + 1))


# Schedulers of the cycle


PLANS = DEPLOY / "schedule"
CODES = [*EXIT_CODE_TEXTS, 2, 137]  # what `nbs cycle` can end with; 2 and 137 stand for all that is not expected
WORDS = {10: "watch", 20: "a retrain took place", 30: "the data broke its contract"}


def plan(name: str) -> Any:
    return yaml.safe_load((PLANS / name).read_text())


def container() -> dict[str, Any]:
    (found,) = plan("kubernetes.yaml")["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"]
    return found


def cron_line() -> str:
    (line,) = [line for line in (PLANS / "crontab").read_text().splitlines() if line and not line.startswith("#")]
    return line


def steps() -> list[dict[str, Any]]:
    return plan("github-actions.yml")["jobs"]["cycle"]["steps"]


def unit(text: str, key: str) -> str:
    """A value in a unit of systemd, as systemd reads it."""
    (found,) = re.findall(rf"(?m)^{key}=((?:.*\\\n)*.*)$", text)
    return found.replace("\\\n", " ").replace("$$", "$")


@pytest.fixture
def ends_with(tmp_path: Path) -> Any:
    """A folder for /srv/nbs where `nbs cycle` ends with a code; what a shell says then."""
    folder = tmp_path / "srv"
    (folder / ".venv/bin").mkdir(parents=True)
    nbs = folder / ".venv/bin/nbs"

    def run(code: int, script: str, shell: tuple[str, ...] = ("sh", "-c"), **more: str) -> tuple[int, str]:
        nbs.write_text(f'#!/bin/sh\necho it says so\ntest "$*" = cycle && exit {code}\n')
        nbs.chmod(0o755)
        path = f"{folder / '.venv/bin'}:{os.environ['PATH']}"
        done = subprocess.run(
            [*shell, script.replace("/srv/nbs", str(folder))],
            cwd=folder,
            env={"PATH": path} | more,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        return done.returncode, done.stdout

    return run


def test_schedulers_run_verbs_that_exist() -> None:
    verbs = {verb for path in PLANS.iterdir() for verb in re.findall(r"(?m)bin/nbs (\w+)", path.read_text())}
    assert verbs == {"cycle"}
    for verb in verbs:
        assert CliRunner().invoke(app, [verb, "--help"]).exit_code == 0, verb
    made = {verb for path in PLANS.iterdir() for verb in re.findall(r"\bmake (\w+)$", path.read_text(), re.M)}
    assert made == {"run"}
    assert all(re.search(rf"(?m)^{verb}:", (ROOT / "Makefile").read_text()) for verb in made)


def test_schedulers_mean_the_moments_that_they_write() -> None:
    (github,) = plan("github-actions.yml")[True]["schedule"]  # `on` is a truth value to YAML 1.1
    minute = github["cron"].split()[0]
    assert int(minute) % 5, "off the minutes when everybody's begin"
    kubernetes = plan("kubernetes.yaml")["spec"]
    assert kubernetes["timeZone"] == "Etc/UTC"
    timer = unit((PLANS / "nbs-cycle.timer").read_text(), "OnCalendar")
    day, hour, second, zone = re.fullmatch(r"(\S+) (\d\d:\d\d):(\d\d) (\S+)", timer).groups()  # type: ignore[union-attr]
    assert (day, second, zone) == ("*-*-*", "00", "UTC")
    hour, minute = map(int, hour.split(":"))
    crons = [github["cron"], kubernetes["schedule"], " ".join(cron_line().split()[:5]), f"{minute} {hour} * * *"]
    for cron in crons:
        CronTrigger.from_crontab(cron, "UTC")
    assert crons[1:] == [ScheduleSettings().cron] * 3


@pytest.mark.parametrize("code", CODES)
def test_cron_mails_what_is_to_be_done(code: int, ends_with: Any) -> None:
    line = cron_line()
    assert "%" not in line  # a new line to cron
    said = ends_with(code, line.split(maxsplit=5)[5])[1]
    assert (said == "") == (code == 0)
    if code in WORDS:
        assert said.startswith(WORDS[code])
    elif code:
        assert said == "the cycle failed:\nit says so\n"


@pytest.mark.parametrize("code", CODES)
def test_systemd_logs_what_is_to_be_done(code: int, ends_with: Any, tmp_path: Path) -> None:
    text = (PLANS / "nbs-cycle.service").read_text()
    fine = {0, *map(int, unit(text, "SuccessExitStatus").split())}
    assert fine == {0, 10, 20}
    logger = tmp_path / "srv/.venv/bin/logger"
    logger.write_text('#!/bin/sh\necho "$@"\n')
    logger.chmod(0o755)
    script = re.fullmatch(r"/bin/sh -c '([^']*)'", unit(text, "ExecStopPost"))
    assert script is not None
    said = ends_with(code, script[1], EXIT_STATUS=str(code))[1]
    assert (said == "") == (code == 0)
    assert WORDS.get(code, "the cycle failed" if code else "") in said
    assert ("user.err" in said) == (code not in fine)


def test_systemd_takes_its_units(tmp_path: Path) -> None:
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        pytest.skip("systemd is not here")
    for path in PLANS.glob("nbs-cycle.*"):
        text = path.read_text().replace("/srv/nbs/.venv/bin/nbs", "/bin/true").replace("/srv/nbs", "/tmp")
        (tmp_path / path.name).write_text(text)
    units = [str(path) for path in tmp_path.iterdir()]
    done = subprocess.run([analyze, "verify", *units], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("code", CODES)
def test_github_branches_on_each_code(code: int, ends_with: Any, tmp_path: Path) -> None:
    by_id = next(step for step in steps() if step.get("id") == "cycle")
    output = tmp_path / "output"
    assert ends_with(code, by_id["run"], ("bash", "-e", "-c"), GITHUB_OUTPUT=str(output))[0] == 0
    assert output.read_text() == f"code={code}\n"
    after = [step for step in steps() if "steps.cycle.outputs.code" in str(step.get("if"))]
    exact = {int(found[1]): step for step in after if (found := re.search(r"code == '(\d+)'", step["if"]))}
    (rest,) = [step for step in after if step not in exact.values()]
    named = re.fullmatch(r"!contains\(fromJSON\('(.*)'\), steps\.cycle\.outputs\.code\)", rest["if"])
    assert named is not None
    chosen = exact.get(code) if str(code) in json.loads(named[1]) else rest
    assert (chosen is None) == (code == 0)
    if chosen and code != 20:
        status, said = ends_with(code, chosen["run"], ("bash", "-e", "-c"))
        assert status == {10: 0, 30: 30}.get(code, 1)
        assert WORDS.get(code, "") in said


def test_github_begins_with_what_a_runner_lacks_and_one_at_a_time(ends_with: Any) -> None:
    found = plan("github-actions.yml")
    assert "workflow_dispatch" in found[True]
    assert found["concurrency"] == {"group": "nbs-cycle", "cancel-in-progress": False}
    check = next(step for step in steps() if "NBS_DVC_REMOTE" in step.get("run", ""))
    both = {"NBS_DVC_REMOTE": "s3://x", "NBS_TRACKING_URI": "https://x"}
    for name in both:
        status, said = ends_with(0, check["run"], ("bash", "-e", "-c"), **both | {name: ""})
        assert (status, "::error::set NBS_DVC_REMOTE" in said) == (1, True)
    assert ends_with(0, check["run"], ("bash", "-e", "-c"), **both) == (0, "")


def test_github_commits_what_was_promoted_and_nothing_else(tmp_path: Path) -> None:
    there, here = tmp_path / "there.git", tmp_path / "here"
    step = next(step for step in steps() if "'20'" in str(step.get("if")))

    def git(*arguments: str, cwd: Path = here) -> str:
        who = ["-c", "user.name=x", "-c", "user.email=x@example.org", "-c", "init.defaultBranch=main"]
        return subprocess.run(["git", *who, *arguments], cwd=cwd, capture_output=True, text=True, check=True).stdout

    def run() -> str:
        done = subprocess.run(["bash", "-e", "-c", step["run"]], cwd=here, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    git("init", "--bare", str(there), cwd=tmp_path)
    git("clone", str(there), str(here), cwd=tmp_path)
    (here / ".venv/bin").mkdir(parents=True)
    (here / ".gitignore").write_text(".venv\npushed\n")
    (here / ".venv/bin/dvc").write_text('#!/bin/sh\necho "$@" > pushed\n')
    (here / ".venv/bin/dvc").chmod(0o755)
    (here / "data/contract").mkdir(parents=True)
    for name in ("params.yaml", "dvc.lock", "data/contract/roles.yaml"):
        (here / name).write_text("old\n")
    git("add", "--all")
    git("commit", "-m", "old")
    git("push", "origin", "HEAD")
    assert "the champion stays" in run()
    assert not (here / "pushed").exists()
    (here / "params.yaml").write_text("new\n")
    (here / "other").write_text("not to be kept\n")
    run()
    assert (here / "pushed").read_text() == "push --run-cache\n"
    assert git("show", "--format=%s", "--name-only", "HEAD", cwd=there).split("\n\n") == [
        "A new champion by the cycle",
        "params.yaml\n",
    ]


@pytest.mark.parametrize("code", CODES)
def test_kubernetes_calls_a_failure_what_is_one(code: int, ends_with: Any) -> None:
    assert container()["command"] == ["/bin/sh", "-c"]
    status, said = ends_with(code, container()["args"][0])
    assert status == (0 if code in (10, 20) else code)
    assert WORDS.get(code, "it says so") in said


def test_kubernetes_runs_one_at_a_time_and_does_not_try_again_what_is_hopeless() -> None:
    job = plan("kubernetes.yaml")
    assert (job["apiVersion"], job["kind"]) == ("batch/v1", "CronJob")
    assert job["spec"]["concurrencyPolicy"] == "Forbid"
    assert job["spec"]["startingDeadlineSeconds"] > 100  # else the controller may never see a tick
    spec = job["spec"]["jobTemplate"]["spec"]
    pod = spec["template"]["spec"]
    assert pod["restartPolicy"] == "Never"  # what podFailurePolicy asks for
    (contract,) = [rule["onExitCodes"] for rule in spec["podFailurePolicy"]["rules"] if rule["action"] == "FailJob"]
    assert contract == {"containerName": container()["name"], "operator": "In", "values": [30]}
    mounts = {each["name"]: each["mountPath"] for each in container()["volumeMounts"]}
    assert mounts == {each["name"]: container()["workingDir"] for each in pod["volumes"]}


@pytest.mark.parametrize("uv", ["", "test $1 = --version"])
def test_make_names_the_python_that_is_here_and_the_one_that_is_needed(uv: str, tmp_path: Path) -> None:
    """Python is too old, and uv is not to be had, or brings none: it is offline."""
    for name in ("Makefile", "pyproject.toml", "requirements.lock"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / "bin").mkdir()
    for name in ("sh", "make", "sed", "grep", "rm"):
        (tmp_path / "bin" / name).symlink_to(str(shutil.which(name)))
    for name, script in {"python3": "test $1 = --version && echo Python 3.9.2", "uv": uv}.items():
        if script:
            (tmp_path / "bin" / name).write_text(f"#!/bin/sh\n{script}\n")
            (tmp_path / "bin" / name).chmod(0o755)
    path = str(tmp_path / "bin")
    done = subprocess.run(["make", "run"], cwd=tmp_path, env={"PATH": path}, capture_output=True, text=True)
    needed = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"]
    assert done.returncode == 2
    said, *rest = done.stderr.splitlines()
    assert said.startswith(f"make: Python {needed} with its venv module is needed, and Python 3.9.2 is here: apt-get ")
    assert [line.startswith("make: *** [") for line in rest] == [True]


def test_each_python_that_is_promised_is_tested() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    promised = [each.rpartition(" ")[2] for each in project["classifiers"] if "Python :: 3." in each]
    tested = yaml.safe_load((ROOT / ".github/workflows/test.yml").read_text())["jobs"]["test"]["strategy"]["matrix"]
    assert promised == tested["python"]
    minors = [int(each.split(".")[1]) for each in promised]
    assert project["requires-python"] == f">=3.{minors[0]},<3.{minors[-1] + 1}"
    assert minors == list(range(minors[0], minors[-1] + 1))
