"""Notebooks opened by hand run top to bottom from their own folder; a stage gives the same as in the pipeline."""

import os
from pathlib import Path

import pytest
from conftest import Project


def by_hand(project: Project, notebook: Path) -> None:
    """What JupyterLab's *Run all cells* does: a kernel in the notebook's folder, nothing injected."""
    command = ["jupyter", "execute", notebook.name]
    environment = {"PATH": project.environment()["PATH"]}
    done = project.call(["sh", "-c", f"cd {notebook.parent} && {' '.join(command)}"], **environment)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.parametrize("stage", ["snapshot", "training_set", "evaluate", "report"])
def test_a_stage(project: Project, stage: str) -> None:
    before = project.outputs()
    by_hand(project, next((project.root / "notebooks/pipeline").glob(f"*_{stage}.ipynb")))
    after = project.outputs()
    changed = [name for name in before if before[name] != after.get(name)]
    assert not changed


def test_the_worked_notebook(project: Project) -> None:
    by_hand(project, next((project.root / "notebooks/explore").glob("*.ipynb")))
    assert os.path.exists(project.root / "data/snapshot.parquet")


def test_a_study(project: Project) -> None:
    done = project.nbs("study", "learning_curve")
    assert done.returncode == 0, done.stderr[-2000:]
    assert (project.root / "reports/learning_curve.html").exists()
    done = project.nbs("study", "learning_curv")
    assert done.returncode == 1
    assert "did you mean 'learning_curve'?" in done.stderr
