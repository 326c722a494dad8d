"""The demo, the whole way, on a small part of its rows in a fresh clone."""

import hashlib
import json
import re
import subprocess
from pathlib import Path

import pytest
from conftest import ROOT, Project, shared_project
from helpers.shops import build_begun

from nbs_lib.core.params import load_params, read_config
from nbs_lib.pipeline.clone import clone_project

pytestmark = pytest.mark.xdist_group("demo")  # one process, one run of the demo


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Project:
    project = Project(clone_project(tmp_path_factory.mktemp("demo") / "project", ROOT))
    project.set(candidates="[dummy, linear, hgb_small, net]", epochs="1", trials="1", resamples="50")
    done = project.nbs("run", "--sample", "0.02")
    assert done.returncode == 0, done.stderr[-3000:]
    (project.root / "said.txt").write_text(done.stdout)
    return project


def test_a_run_ends_with_three_figures_and_the_report(demo: Project) -> None:
    lines = (demo.root / "said.txt").read_text().splitlines()
    assert len(lines) == 4
    assert lines[-1] == f"report: {demo.root / 'reports/index.html'}"


def test_a_sampled_run_is_never_promoted(demo: Project) -> None:
    gate = json.loads((demo.root / "models/gate.json").read_text())
    assert gate["decision"] == "HOLD"
    assert not (demo.root / "served/CURRENT").exists()


def test_the_override_is_taken_back(demo: Project) -> None:
    assert "sample: 1.0" in (demo.root / "params.yaml").read_text()


def test_the_committed_contract_stays(demo: Project) -> None:
    for name in ("roles.yaml", "schema.yaml"):
        assert (demo.root / "data/contract" / name).read_bytes() == (ROOT / "data/contract" / name).read_bytes()


def test_a_forced_run_changes_no_byte(tmp_path: Path) -> None:
    """Of a small table with times and views; of the demo, all candidates and all rows, `make prove` shows it."""
    shops = shared_project("begun", build_begun).copy(tmp_path / "project")
    before, lock = shops.outputs(), (shops.root / "dvc.lock").read_text()
    done = shops.nbs("run", "--force")
    assert done.returncode == 0, done.stderr
    assert shops.outputs() == before
    assert (shops.root / "dvc.lock").read_text() == lock


def test_dvc_lock_is_of_this_code() -> None:
    """The committed dvc.lock belongs to the committed code, parameters and contract, as a run would find them."""
    lock, params = read_config(ROOT / "dvc.lock")["stages"], load_params(ROOT / "params.yaml").tree
    stale = []
    for name, stage in lock.items():
        hashes = {dep["path"]: dep["md5"] for dep in [*stage.get("deps", []), *stage["outs"]]}
        committed = {
            path: md5 for path, md5 in hashes.items() if path.startswith(("nbs_lib", "notebooks", "data/contract"))
        }
        stale += [
            f"{name}: {p}" for p, md5 in committed.items() if hashlib.md5((ROOT / p).read_bytes()).hexdigest() != md5
        ]
        for key, value in stage.get("params", {}).get("params.yaml", {}).items():
            now = params[key] if key in params else params[key.split(".")[0]][key.split(".")[1]]
            stale += [f"{name}: {key}"] if now != value else []
    assert not stale, "run `make run` and commit dvc.lock"


def test_the_readme_is_whole() -> None:
    """No figure is left to be filled in, and what it shows is committed."""
    text = (ROOT / "README.md").read_text()
    assert "@@" not in text
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True).stdout.splitlines()
    for link in re.findall(r"\]\(([^)#:]+)\)", text):
        assert link in tracked, link


def test_the_newcomer_types_nothing_else() -> None:
    text = (ROOT / "README.md").read_text().splitlines()
    head = "\n".join(text[:25])
    assert "make run" in head
    assert "make test" in head
    assert subprocess.run(["make", "-n", "help"], cwd=ROOT, capture_output=True).returncode == 0
