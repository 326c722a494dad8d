"""Ten pull requests: five that a reviewer need not look at, and five that say why."""

import json
import shutil
import subprocess
import time
from pathlib import Path

import pytest
from conftest import Project

from nbs_lib.core.files import read_json, write_json

NOTHING, LOOK = "**Nothing to look at:**", "**Look at:**"
MAX_SECONDS = 60  # of a comment


def git(project: Project, *arguments: str) -> str:
    who = ["-c", "user.name=somebody", "-c", "user.email=somebody@example.org"]
    done = subprocess.run(["git", *who, *arguments], cwd=project.root, check=True, capture_output=True, text=True)
    return done.stdout.strip()


@pytest.fixture
def change(project: Project) -> Project:
    """A project whose results are committed, on a branch of its own."""
    git(project, "checkout", "--quiet", "-B", "main")
    git(project, "add", "--all")
    git(project, "commit", "--quiet", "--message", "The penguins")
    git(project, "checkout", "--quiet", "-b", "change")
    return project


def comment(project: Project) -> str:
    """The comment on what is committed and not."""
    before, started = git(project, "status", "--porcelain"), time.monotonic()
    done = project.nbs("review")
    assert done.returncode == 0, done.stderr
    assert time.monotonic() - started < MAX_SECONDS
    assert git(project, "status", "--porcelain") == before, "a review changes nothing"
    return done.stdout


def run(project: Project) -> None:
    done = project.nbs("run")
    assert done.returncode == 0, done.stderr


def edit_cells(path: Path, kind: str, old: str, new: str) -> None:
    """Replace a text in the cells of one kind."""
    book = json.loads(path.read_text())
    sources = ["".join(cell["source"]) for cell in book["cells"]]
    assert any(old in source for source in sources)
    for cell, source in zip(book["cells"], sources, strict=True):
        if cell["cell_type"] == kind:
            cell["source"] = source.replace(old, new).splitlines(keepends=True)
    path.write_text(json.dumps(book, indent=1, ensure_ascii=False) + "\n")


def prose_of_a_stage(project: Project) -> None:
    edit_cells(project.root / "notebooks/pipeline/60_report.ipynb", "markdown", "# Overview", "# Overview again")
    run(project)


def outputs(project: Project) -> None:
    path = project.root / "notebooks/lib/core/10_format.ipynb"
    book = json.loads(path.read_text())
    [*_, cell] = [cell for cell in book["cells"] if cell["cell_type"] == "code" and cell["outputs"]]
    cell["outputs"] = []
    path.write_text(json.dumps(book, indent=1, ensure_ascii=False) + "\n")


def order_of_keys(project: Project) -> None:
    path = project.root / "notebooks/lib/core/10_format.ipynb"
    path.write_text(json.dumps(json.loads(path.read_text()), sort_keys=True, indent=4))


def order_of_params(project: Project) -> None:
    path = project.root / "params.yaml"
    sections = path.read_text().split("\n\n")
    assert len(sections) > 3
    path.write_text("\n\n".join([*sections[:1], *reversed(sections[1:])]).rstrip() + "\n# a comment\n")


def manual(project: Project) -> None:
    path = project.root / "README.md"
    path.write_text(path.read_text().replace("Two commands", "Only two commands"))


@pytest.mark.parametrize(
    ("edit", "says"),
    [
        (prose_of_a_stage, "prose in 1 file"),
        (outputs, "outputs, comments or order of keys in 1 file"),
        (order_of_keys, "outputs, comments or order of keys in 1 file"),
        (order_of_params, "outputs, comments or order of keys in 1 file"),
        (manual, "prose in 1 file"),
    ],
)
def test_a_harmless_pull_request(change: Project, edit, says: str) -> None:
    edit(change)
    git(change, "commit", "--quiet", "--all", "--message", "Harmless")
    said = comment(change)
    assert said.splitlines()[0] == f"{NOTHING} {says}, and no result."
    assert "```diff" not in said
    assert "| before | after |" not in said
    assert "Inputs, parameters, outputs and cache fit." in said
    assert ("`reports/index.html`" in said) == (edit is prose_of_a_stage)


def test_code_without_a_run(change: Project) -> None:
    old, new = "if value is None:\n        return", "if value is None:  # as in a table\n        return"
    edit_cells(change.root / "notebooks/lib/core/10_format.ipynb", "code", old, new)
    module = change.root / "nbs_lib/core/format.py"
    assert old in module.read_text()
    module.write_text(module.read_text().replace(old, new, 1))
    said = comment(change)
    assert said.startswith(
        f"{LOOK} `dvc.lock` is not what the code makes: 10 stages would run again; code in 1 notebook."
    )
    assert "-    if value is None:\n+    if value is None:  # as in a table" in said
    assert "- `nbs_lib/core/format.py` has changed since the run (snapshot, features, training_set, train," in said


def test_a_parameter_without_a_run(change: Project) -> None:
    change.set(resamples="60")
    said = comment(change)
    assert said.startswith(f"{LOOK} `dvc.lock` is not what the code makes: 6 stages would run again; 1 parameter.")
    assert "| `evaluate.resamples` | `50` | `60` |" in said
    assert "All metrics are as before." in said


def push(project: Project, remote: Path) -> None:
    """Bring what the cache holds to a remote that the project's settings do not name yet."""
    dvc = ["python", "-m", "dvc"]
    assert project.call([*dvc, "remote", "add", "--local", "--default", "there", str(remote)]).returncode == 0
    assert project.call([*dvc, "push", "--quiet"]).returncode == 0
    (project.root / ".dvc/config.local").unlink()


def test_a_worse_champion_beside_one_that_only_the_remote_has(change: Project, tmp_path: Path) -> None:
    push(change, tmp_path / "remote")
    change.set(candidates="[dummy, linear]")
    run(change)
    shutil.rmtree(change.root / ".dvc/cache")
    base = git(change, "rev-parse", "--short=12", "main")
    said = comment(change)
    assert f"Not at hand of {base}, so not compared: `models/metrics.json`, `models/gate.json`" in said
    assert f"`git switch --detach {base}`, then `dvc fetch`" in said
    settings = change.root / "settings.ini"
    settings.write_text(settings.read_text().replace("remote =", f"remote = {tmp_path / 'remote'}"))
    said = comment(change)
    assert "another champion (`linear` after `hgb_small`)" in said.splitlines()[0]
    assert "log loss is worse beyond noise" in said.splitlines()[0]
    assert "would run again" not in said
    [row] = [line for line in said.splitlines() if line.startswith("| log loss |")]
    gate, metrics = (read_json(change.root / f"models/{name}.json") for name in ("gate", "metrics"))
    assert f"{metrics['candidates'][gate['champion']]['test']['log_loss']['value']:.4f}" in row
    assert " to −" in row, "both ends of the interval of the difference are below 0"  # noqa: RUF001
    assert "`reports/train.html`" in said


def test_a_metric_edited_by_hand(change: Project) -> None:
    place = change.root / "models/metrics.json"
    metrics = read_json(place)
    metrics["candidates"]["hgb_small"]["test"]["log_loss"]["value"] /= 2
    write_json(metrics, place)
    said = comment(change)
    assert said.startswith(f"{LOOK} `models/metrics.json` changed by something other than a run;")
    assert "- `models/metrics.json` is not what the run wrote (evaluate)" in said


def test_a_page_edited_by_hand(change: Project) -> None:
    place = change.root / "reports/index.html"
    place.write_text(place.read_text().replace("log loss", "log gain"))
    said = comment(change)
    assert said.startswith(f"{LOOK} `reports/index.html` changed by something other than a run;")
