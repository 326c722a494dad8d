"""The demo, the whole way, on a small part of its rows in a fresh clone."""

import json
import subprocess
from pathlib import Path

import pytest
from conftest import ROOT, Project

from nbs_lib.proof import clone


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Project:
    project = Project(clone(tmp_path_factory.mktemp("demo") / "project", ROOT))
    project.set(epochs="1", trials="1", resamples="50")
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


def test_a_forced_run_changes_no_byte(demo: Project) -> None:
    demo.set(sample="0.02")
    assert demo.nbs("run").returncode == 0
    before, lock = demo.outputs(), (demo.root / "dvc.lock").read_text()
    done = demo.nbs("run", "--force")
    assert done.returncode == 0, done.stderr
    assert demo.outputs() == before
    assert (demo.root / "dvc.lock").read_text() == lock


def test_dvc_lock_is_of_this_code(tmp_path: Path) -> None:
    """The committed dvc.lock matches the committed code and parameters, without any data."""
    project = Project(clone(tmp_path / "project", ROOT))
    done = project.call(["python", "-m", "dvc", "repro", "--dry", "--allow-missing"])
    assert done.returncode == 0, done.stderr
    running = [line for line in done.stdout.splitlines() if line.startswith("Running stage") and "'source'" not in line]
    assert not running, f"run `make run` and commit dvc.lock: {running}"


def test_the_newcomer_types_nothing_else() -> None:
    text = (ROOT / "README.md").read_text().splitlines()
    head = "\n".join(text[:25])
    assert "make run" in head
    assert "make test" in head
    assert subprocess.run(["make", "-n", "help"], cwd=ROOT, capture_output=True).returncode == 0
