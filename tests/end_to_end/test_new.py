"""From a table to one's own project, its report, its tests, a later release and its checks, as somebody types it."""

import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ROOT
from helpers.templates import borrow_environment, make_template, release, replace

from nbs_lib.project.library import project_environment
from nbs_lib.project.template import git

pytestmark = pytest.mark.xdist_group("new")  # one process, one project


def call(root: Path, *command: str) -> str:
    """What a command prints that must succeed."""
    environment = project_environment(root)
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    return done.stdout


def share_types(root: Path, to: Path) -> None:
    """Let a type checker know what it has found out about the same files elsewhere; it looks which have changed."""
    if (root / ".mypy_cache").is_dir() and not (to / ".mypy_cache").exists():
        shutil.copytree(root / ".mypy_cache", to / ".mypy_cache")


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_template(tmp_path_factory.mktemp("new") / "template")


@pytest.fixture(scope="module")
def birds(template: Path) -> Path:
    """A project whose table was named when it was made."""
    import palmerpenguins

    table, place = template.parent / "penguins.csv", template.parent / "birds"
    palmerpenguins.load_penguins().to_csv(table, index=False)
    begun = time.perf_counter()
    options = ["--table", str(table), "--target", "species"]
    call(template, sys.executable, "-m", "nbs_lib.cli", "new", str(place), *options)
    print(f"from nothing to the first page: {time.perf_counter() - begun:.0f} s")
    borrow_environment(place)
    return place


def test_a_project_of_ones_own(birds: Path) -> None:
    assert (birds / "reports/index.html").exists()
    assert "Predicts `species` (one of 3 classes)" in (birds / "README.md").read_text()
    assert git("status", "--porcelain", cwd=birds) == ""
    assert len(git("log", "--oneline", cwd=birds).splitlines()) == 2
    tracked = git("ls-files", cwd=birds).splitlines()
    demo = ("nbs_lib/demos/flights", "nbs_lib/bench/serve", "tests/unit", ".ci/envs", "copier.yml", "reports/preview")
    assert [name for name in tracked if name.startswith(demo)] == []
    assert "data/raw/penguins.csv" not in tracked
    settings = (birds / "settings.ini").read_text()
    assert "model = birds" in settings
    assert "prefix = birds" in settings


def test_its_runs_its_tests_and_a_later_release(template: Path, birds: Path) -> None:
    call(birds, "make", "run")
    assert ".ci/env" in call(template, "make", "--dry-run", "test")
    needs = call(birds, "make", "--dry-run", "test")
    assert ".ci/apt" not in needs, "what only the template's tests need"
    assert ".ci/env" not in needs
    assert "5 passed" in call(birds, "make", "test", "COVER=tests/project -n0")
    replace(birds / "params.yaml", "  trials: 3 ", "  trials: 1 ")
    replace(birds / "params.yaml", "  candidates: auto ", "  candidates: [dummy, linear, hgb_small] ")
    own = birds / "notebooks/own/03_functions.ipynb"
    replace(own, "# Your functions", "# Our functions")
    call(birds, ".venv/bin/nbs", "notebooks", "--index")
    git("commit", "--all", "--quiet", "--message", "What is tried", cwd=birds)

    replace(template / "CHANGELOG.md", "### Changed\n", "### Changed\n- An interval that is not there is called so.\n")
    replace(template / "params.yaml", "  epochs: 8 ", "  epochs: 7 ")
    replace(template / "notebooks/lib/core/10_format.ipynb", "> Numbers and intervals", "> All numbers and intervals")
    release(template, "v1.1.0")
    said = call(birds, ".venv/bin/nbs", "update")
    assert "- An interval that is not there is called so." in said
    assert "both changed" not in said
    params = (birds / "params.yaml").read_text()
    assert "  trials: 1 " in params
    assert "  candidates: [dummy, linear, hgb_small] " in params
    assert "  epochs: 7 " in params
    assert "# Our functions" in own.read_text()
    assert '"""All numbers and intervals' in (birds / "nbs_lib/core/format.py").read_text()
    borrow_environment(birds)
    share_types(ROOT, birds)
    call(birds, "make", "check")
    share_types(birds, ROOT)
    call(birds, "make", "run")
