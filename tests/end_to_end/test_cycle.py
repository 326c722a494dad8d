"""The cycle, whole: a service is fed, a turn is taken, and what is served changes only when it should."""

import contextlib
import fcntl
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import Project, shared_project
from helpers.services import Running, service
from helpers.shops import build_begun, git
from helpers.waiting import until

from nbs_lib.core.server_process import free_port
from nbs_lib.pipeline.fork_server import fork_command
from nbs_lib.registry.pointers import champion_path

pytestmark = pytest.mark.xdist_group("cycle")  # one process: a second would wait for what the first builds


@pytest.fixture(scope="session")
def begun() -> Project:
    """A project whose champion knows the first four months: copy it, don't change it."""
    return shared_project("begun", build_begun)


@pytest.fixture
def project(begun: Project, tmp_path: Path) -> Project:
    return begun.copy(tmp_path / "project")


def model(running: Running) -> str:
    "Who answers."
    return str(json.loads(running.get("/model")[1])["id"])


def simulate(project: Project, url: str, start: str, end: str, *more: str) -> None:
    sent = project.nbs("simulate", "--from", start, "--to", end, "--speed", "0", "--url", url, *more)
    assert sent.returncode == 0, sent.stderr


def turns(project: Project) -> list[dict[str, Any]]:
    return json.loads((project.root / "reports/cycle.json").read_text())


def held(project: Project) -> str:
    return champion_path(project.root).name


def build_fed(place: Path) -> None:
    project = shared_project("begun", build_begun).copy(place)
    with service(project.root, SERVE_LOG="served/log") as running:
        simulate(project, running.url, "2020-05-02", "2020-06-10")


@pytest.fixture(scope="session")
def fed() -> Project:
    """The same project after its service has answered five weeks and was told what became of them: copy it."""
    return shared_project("fed", build_fed, build_begun)


@pytest.fixture
def waiting(fed: Project, tmp_path: Path) -> Project:
    """A project in which there is something to learn."""
    return fed.copy(tmp_path / "project")


def test_a_year_in_short(waiting: Project) -> None:
    """Fed, learned again, approved and served without restart; then broken data, and then labels of other rows."""
    before, asked = held(waiting), {"NBS_GATE_APPROVAL": "person"}
    with service(waiting.root, SERVE_LOG="served/log") as running:
        url = running.url
        assert model(running) == before
        done = waiting.nbs("cycle", **asked)
        assert done.returncode == 20, done.stdout + done.stderr[-3000:]
        last = turns(waiting)[-1]
        id = last["challenger"]
        command = f"{id[:12]} waits for `nbs approve {id[:12]} --by NAME`."
        assert (last["outcome"], last["gate"]["decision"]) == ("awaits approval", "PROMOTE"), last["sentence"]
        assert last["champion"] == held(waiting) == before != id
        assert done.stdout.splitlines()[-1].endswith(command)
        page = (waiting.root / "reports/cycle.html").read_text()
        assert "AWAITS APPROVAL" in page
        assert f"nbs approve {id[:12]}" in page
        changed = git(waiting.root, "diff", "--name-only").split()
        assert {"params.yaml", "dvc.lock"} <= set(changed)
        assert '+  as_of: "2020-06-' in git(waiting.root, "diff", "params.yaml")

        again = waiting.nbs("cycle", **asked)
        assert again.returncode in (0, 10), again.stdout + again.stderr[-3000:]
        assert turns(waiting)[-1]["outcome"] == "wait", "nothing was retrained"
        assert again.stdout.splitlines()[-1].endswith(command)
        assert held(waiting) == model(running) == before
        approved = waiting.nbs("approve", id[:10], "--by", "Ann Lee")
        assert approved.returncode == 0, approved.stderr[-3000:]
        assert held(waiting) == id
        until(lambda: model(running) == id, 10)
        assert f"Ann Lee approved {id[:12]}" in (waiting.root / "reports/cycle.html").read_text()
        git(waiting.root, "commit", "-qam", "promoted by the cycle, and approved")

        after, judged = held(waiting), (waiting.root / "models/cycle/challenge.json").read_bytes()
        simulate(waiting, url, "2020-06-12", "2020-07-10", "--poison")
        broken = waiting.nbs("cycle")
        assert broken.returncode == 30, broken.stdout + broken.stderr[-3000:]
        assert turns(waiting)[-1]["outcome"] == "contract failure"
        assert (waiting.root / "models/cycle/challenge.json").read_bytes() == judged, "nothing was retrained"
        assert held(waiting) == after

        simulate(waiting, url, "2020-07-12", "2020-08-15", "--permute")
        refused = waiting.nbs("cycle")
        assert refused.returncode == 20, refused.stdout + refused.stderr[-3000:]
        last = turns(waiting)[-1]
        assert last["outcome"] == "REJECT", last["gate"]["ledger"]
        assert held(waiting) == after
        assert model(running) == after
    page = (waiting.root / "reports/cycle.html").read_text()
    assert all(word in page for word in ("awaits approval", "contract failure", "REJECT"))


def at_step(project: Project) -> str:
    path = project.root / "models/cycle/turn.json"
    with contextlib.suppress(OSError, ValueError):
        return str(json.loads(path.read_text()).get("step"))
    return ""


def test_killed_at_any_step(waiting: Project) -> None:
    """kill -9 at one step after another, then without a registry: the champion stays until one turn ends, and that turn
    promotes, and leaves the edits of a person alone.
    """
    before, path = held(waiting), waiting.root / "params.yaml"
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(sys, "path", [str(waiting.root), *sys.path])
        command = fork_command("nbs_lib.cli:main", "cycle") or waiting.command("cycle")
    for step in ("monitor", "retrain", "challenge", "publish"):
        with open(waiting.root / "said.txt", "a") as said:
            env = waiting.environment()
            process = subprocess.Popen(command, cwd=waiting.root, env=env, stdout=said, stderr=said)
            until(lambda p=process, step=step: at_step(waiting) == step or p.poll() is not None, 240)
            assert process.poll() is None, f"it ended before {step}: {(waiting.root / 'said.txt').read_text()[-2000:]}"
            process.kill()
            process.wait()
        assert held(waiting) == before
    down = waiting.nbs("cycle", NBS_TRACKING_URI=f"http://127.0.0.1:{free_port()}")
    assert down.returncode == 1
    assert "the registry does not answer" in down.stderr
    assert held(waiting) == before

    git(waiting.root, "checkout", "-q", "--", ".")
    path.write_text(path.read_text() + "# mine\n")
    done = waiting.nbs("cycle")
    assert done.returncode == 20, done.stdout + done.stderr[-3000:]
    outcomes = [turn["outcome"] for turn in turns(waiting)]
    assert outcomes == ["interrupted"] * 4 + ["failed", "PROMOTE"]
    last = turns(waiting)[-1]
    assert held(waiting) == last["challenger"] != before
    assert not list((waiting.root / ".nbs/clones").glob("*"))
    assert "params.yaml has changes of yours" in last["change"]
    assert path.read_text().endswith("# mine\n")
    assert "2020-06-" not in path.read_text()
    git(waiting.root, "apply", "--check", "--exclude", "params.yaml", "reports/cycle.patch")

    again = waiting.nbs("cycle")
    assert again.returncode == 0, again.stdout + again.stderr[-3000:]
    assert "nothing new to learn" in again.stdout


def test_two_at_once(waiting: Project) -> None:
    """The second refuses at once, and says who is at work."""
    lock = waiting.root / ".nbs/cycle.lock"
    lock.parent.mkdir(exist_ok=True)
    with open(lock, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.write("4711")
        file.flush()
        done = waiting.nbs("cycle")
    assert done.returncode == 1
    assert "another run is at work here (process 4711)" in done.stderr
    assert not (waiting.root / "reports/cycle.json").exists()


def test_a_retrain_that_crashes(waiting: Project) -> None:
    """It fails alone: the champion stays, the ledger says why, and the person's files are as they were."""
    path = waiting.root / "notebooks/pipeline/30_train.ipynb"
    notebook = json.loads(path.read_text())
    notebook["cells"][-1]["source"] = ["raise RuntimeError('the oven is cold')"]
    path.write_text(json.dumps(notebook))
    git(waiting.root, "commit", "-qam", "broken")
    before, lock = held(waiting), (waiting.root / "dvc.lock").read_bytes()
    done = waiting.nbs("cycle")
    assert done.returncode == 1
    assert "the oven is cold" in done.stderr
    assert turns(waiting)[-1]["outcome"] == "failed"
    assert (held(waiting), (waiting.root / "dvc.lock").read_bytes()) == (before, lock)
    assert "FAILED" in (waiting.root / "reports/cycle.html").read_text()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--as-of", "soon"], "'soon' is no time such as 2020-02-13"),
        (["--as-of", "2020-06-10", "--current", "nowhere.parquet"], "nowhere.parquet"),
        ([], "nothing was answered yet"),
    ],
)
def test_what_a_turn_can_not_begin_with(project: Project, arguments: list[str], sentence: str) -> None:
    before = held(project)
    done = project.nbs("cycle", *arguments)
    assert done.returncode == 1, done.stdout + done.stderr
    assert sentence in done.stderr
    assert held(project) == before


def test_a_table_without_times_has_no_cycle(finished: Project, tmp_path: Path) -> None:
    done = finished.copy(tmp_path / "project").nbs("cycle", "--as-of", "2020-01-01")
    assert done.returncode == 1
    assert "the cycle needs data.timestamp" in done.stderr
