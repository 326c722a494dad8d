"""The cycle, whole: a service is fed, a turn is taken, and what is served changes only when it should."""

import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT, Project, small
from services import Running, service, until

from nbs_lib.champion import champion
from nbs_lib.clone import clone

DAYS, HOURLY = 240, 20
START = pd.Timestamp("2020-01-01", tz="UTC")


def shop(days: int = DAYS, seed: int = 0) -> pd.DataFrame:
    """What a shop sells, hour by hour: days have a mood, and in the fifth month the world turns."""
    rng, n = np.random.default_rng(seed), days * HOURLY
    day = np.repeat(np.arange(days), HOURLY)
    x, z, mood = rng.normal(size=n), rng.normal(size=n), rng.normal(size=days)[day] * 0.3
    turned = day >= 120
    odds = np.where(turned, 2.0 * z - 0.5 * x, 2.0 * x) + mood
    table = pd.DataFrame({"at": START + pd.to_timedelta(day * 24 + np.tile(np.arange(HOURLY), days), unit="h")})
    table["number"] = [f"n{k}" for k in range(n)]
    table["size"], table["price"] = x.round(4) + 10, z.round(4) + 10
    table["branch"] = rng.choice(["north", "south", "east"], n)
    table["sold"] = np.where(rng.random(n) < 1 / (1 + np.exp(-odds)), "yes", "no")
    return table


def git(root: Path, *arguments: str) -> str:
    command = ["git", "-C", str(root), "-c", "user.name=a", "-c", "user.email=a@b.c", *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


@pytest.fixture(scope="session")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project whose champion knows the first four months: copy it, don't change it."""
    project = Project(clone(tmp_path_factory.mktemp("cycle") / "project", ROOT))
    shop().to_csv(project.root / "shop.csv", index=False)
    more = {"timestamp": "at", "key": "[number]", "label_delay": "1d", "as_of": "'2020-05-01'", "labels": "200"}
    small(project, "shop.csv", "sold", **more)
    git(project.root, "checkout", "-q", "-B", "main")
    git(project.root, "add", "-A", "--", ".", ":!shop.csv")
    git(project.root, "commit", "-qm", "a table of my own")
    done = project.nbs("run")
    assert done.returncode == 0, done.stderr[-3000:]
    assert "PROMOTE" in done.stdout, done.stdout
    git(project.root, "commit", "-qam", "the first champion")
    return project


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
    return champion(project.root).name


def test_a_year_in_short(project: Project) -> None:
    """Fed, learnt again and served without restart; then broken data, and then labels of other rows."""
    before = held(project)
    with service(project.root, SERVE_LOG="served/log") as running:
        url = running.url
        assert model(running) == before
        simulate(project, url, "2020-05-02", "2020-06-10")
        done = project.nbs("cycle")
        assert done.returncode == 20, done.stdout + done.stderr[-3000:]
        last = turns(project)[-1]
        assert (last["outcome"], last["champion"]) == ("PROMOTE", before), last["sentence"]
        assert held(project) == last["challenger"] != before
        until(lambda: model(running) == last["challenger"], 10)
        changed = git(project.root, "diff", "--name-only").split()
        assert {"params.yaml", "dvc.lock"} <= set(changed)
        assert '+  as_of: "2020-06-' in git(project.root, "diff", "params.yaml")
        git(project.root, "commit", "-qam", "promoted by the cycle")

        after, judged = held(project), (project.root / "models/cycle/challenge.json").read_bytes()
        simulate(project, url, "2020-06-12", "2020-07-10", "--poison")
        broken = project.nbs("cycle")
        assert broken.returncode == 30, broken.stdout + broken.stderr[-3000:]
        assert turns(project)[-1]["outcome"] == "contract failure"
        assert (project.root / "models/cycle/challenge.json").read_bytes() == judged, "nothing was retrained"
        assert held(project) == after

        simulate(project, url, "2020-07-12", "2020-08-15", "--permute")
        refused = project.nbs("cycle")
        assert refused.returncode == 20, refused.stdout + refused.stderr[-3000:]
        last = turns(project)[-1]
        assert last["outcome"] == "REJECT", last["gate"]["ledger"]
        assert held(project) == after
        assert model(running) == after
    page = (project.root / "reports/cycle.html").read_text()
    assert all(word in page for word in ("PROMOTE", "contract failure", "REJECT"))
