"""`nbs bench quality` on a project that has run, on a machine without the other libraries."""

import json

import pytest
from conftest import Project


def test_what_is_not_installed_is_named_and_ours_is_kept(project: Project) -> None:
    for _ in range(2):
        done = project.nbs("bench", "quality", "--only", "project")
        assert done.returncode == 1
        assert done.stderr.strip() == ("nbs: what ours is set beside is not installed: `.ci/env quality` installs it.")
    [line] = (project.root / ".nbs/quality/project/results.jsonl").read_text().splitlines()
    ours, metrics = json.loads(line), json.loads((project.root / "models/metrics.json").read_text())
    assert (ours["model"], ours["form"]) == ("ours", metrics["best"])
    told = metrics["candidates"][metrics["best"]]["test"][metrics["primary"]]
    assert ours["score"] == pytest.approx(told["value"], rel=1e-4)


def test_a_project_that_has_not_run_is_told_so(project: Project) -> None:
    (project.root / "models/gate.json").unlink()
    done = project.nbs("bench", "quality", "--only", "project")
    assert done.returncode == 1
    assert done.stderr.strip() == "nbs: the project itself has not run: `make run` first, or `--only` another table."
