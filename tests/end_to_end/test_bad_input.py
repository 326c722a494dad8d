"""Bad input: one sentence, a non-zero exit, and the outputs of earlier runs as they were."""

import json
import subprocess
from pathlib import Path

import pytest
from conftest import Project
from helpers.stage_notebooks import notebook_with
from helpers.waiting import until


def refused(project: Project, *sentences: str, **environment: str) -> str:
    """Run, expect a refusal with these words and unchanged outputs, and return what was said."""
    before = project.outputs()
    done = project.nbs("run", **environment)
    assert done.returncode == 1, done.stdout + done.stderr
    for sentence in sentences:
        assert sentence in done.stderr, done.stderr
    assert "Traceback" not in done.stderr, done.stderr
    after = project.outputs()
    assert {k: after.get(k) for k in before} == before, [k for k in before if before[k] != after.get(k)]
    return done.stderr


def append(project: Project, name: str, text: str) -> None:
    path = project.root / name
    path.write_text(path.read_text() + text)


def edit(project: Project, name: str, old: str, new: str) -> None:
    path = project.root / name
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ("  trials:", "  trails:", "there is no key train.trails (did you mean 'train.trials'?)"),
        ("\ntrain:", "\ntrian:", "there is no section trian (did you mean 'train'?)"),
        ("  seed: 0", "  seed: zero", "run.seed must be a whole number from 0, but is 'zero'"),
        ("  sample: 1.0", "  sample: [1]", "run.sample must be a number above 0, at most 1"),
        ("  seed: 0", "  seed: 0\n  seed: 1", "params.yaml can't be read in line"),
        ("  seed: 0", "  seed: -1", "run.seed must be a whole number from 0, but is -1"),
        ("  trials: 1", "  trials: 0", "train.trials must be a whole number from 1, but is 0"),
        ("  resamples: 50", "  resamples: 0", "evaluate.resamples must be a whole number from 1, but is 0"),
        ("  valid: 0.15", "  valid: 2", "split.valid must be a number between 0 and 1, but is 2"),
        ("  confidence: 0.95", "  confidence: 5", "gate.confidence must be a number between 0 and 1, but is 5"),
        ("  p99_ms: 5", "  p99_ms: fast", "budget.p99_ms must be a number above 0, below a billion, but is 'fast'"),
        ("  p99_ms: 5", "  p99: 5", "there is no key budget.p99 (did you mean 'budget.p99_ms'?)"),
        ("  size_mb: 20", "  size_mb: 0", "budget.size_mb must be a number above 0, below a billion, but is 0"),
        ("  as_of: auto", "  as_of: 2020-01-01", "write the date in quotes"),
    ],
)
def test_params(project: Project, old: str, new: str, sentence: str) -> None:
    edit(project, "params.yaml", old, new)
    refused(project, sentence)


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ("experiment =", "experimnet =", "[tracking] has no key experimnet (did you mean 'experiment'?)"),
        ("[run]", "[rum]", "there is no section [rum] (did you mean 'run'?)"),
        ("time_limit = 1800", "time_limit = long", "time_limit in [run] must be a whole number above 0, but is 'long'"),
    ],
)
def test_settings(project: Project, old: str, new: str, sentence: str) -> None:
    edit(project, "settings.ini", old, new)
    refused(project, sentence)


def test_settings_of_the_environment(project: Project) -> None:
    refused(project, "NBS_RUN_TIME_LIMITS: [run] has no key time_limits (did", NBS_RUN_TIME_LIMITS="9")
    refused(project, "NBS_RUN_TIME_LIMIT: time_limit in [run] must be", NBS_RUN_TIME_LIMIT="long")


def test_a_file_that_is_not_there(project: Project) -> None:
    project.set(source="pengiuns.csv")
    refused(project, "pengiuns.csv", "did you mean", "penguins.csv")


def test_a_ragged_row(project: Project) -> None:
    append(project, "penguins.csv", "Adelie,Torgersen\n")
    refused(project, "penguins.csv", "row")


def test_a_truncated_parquet_file(project: Project) -> None:
    import pandas as pd

    pd.read_csv(project.root / "penguins.csv").to_parquet(project.root / "penguins.parquet")
    whole = (project.root / "penguins.parquet").read_bytes()
    (project.root / "penguins.parquet").write_bytes(whole[: len(whole) // 2])
    project.set(source="penguins.parquet")
    refused(project, "penguins.parquet")


def test_an_empty_file(project: Project) -> None:
    (project.root / "penguins.csv").write_text("")
    refused(project, "penguins.csv")


def test_a_target_that_is_not_there(project: Project) -> None:
    project.set(target="speces")
    refused(project, "speces", "did you mean 'species'?")


def test_a_schema_violation_names_row_and_column(project: Project) -> None:
    lines = (project.root / "penguins.csv").read_text().splitlines()
    cells = lines[5].split(",")
    lines[5] = ",".join([*cells[:2], "9999.0", *cells[3:]])
    (project.root / "penguins.csv").write_text("\n".join(lines) + "\n")
    refused(project, "row 5", "bill_length_mm", "9999", "schema.yaml")


def test_an_empty_month(project: Project) -> None:
    rows = [
        f"2020-{month:02d}-{day:02d},{day * month},{'ab'[(day + month) % 2]}"
        for month in (1, 2, 4, 5)
        for day in range(1, 29)
    ]
    (project.root / "months.csv").write_text("\n".join(["day,x,y", *rows]) + "\n")
    project.set(source="months.csv", target="y", timestamp="day")
    refused(project, "2020-03")


def test_one_class(project: Project) -> None:
    rows = [f"{i},only" for i in range(50)]
    (project.root / "one.csv").write_text("\n".join(["x,y", *rows]) + "\n")
    project.set(source="one.csv", target="y")
    refused(project, "y", "only")


def test_a_notebook_that_raises(project: Project) -> None:
    notebook_with(project, "evaluate", "1 / 0")
    said = refused(project, "stage evaluate failed: cell", "ZeroDivisionError: division by zero")
    assert ".failed/evaluate.ipynb" in said
    failed = json.loads((project.root / ".failed/evaluate.ipynb").read_text())
    assert any(out.get("ename") == "ZeroDivisionError" for cell in failed["cells"] for out in cell.get("outputs", []))


def test_a_stage_that_takes_too_long(project: Project) -> None:
    notebook_with(project, "evaluate", "import time\ntime.sleep(120)")
    refused(project, "stage evaluate failed", "`time_limit` in settings.ini", NBS_RUN_TIME_LIMIT="2")


def test_a_parameters_cell_that_lost_its_tag(project: Project) -> None:
    path = next((project.root / "notebooks/pipeline").glob("*_train.ipynb"))
    path.write_text(path.read_text().replace('"parameters"', '"other"'))
    refused(project, "train.ipynb has 0 cells tagged `parameters`")


def test_a_parameter_that_dvc_does_not_know(project: Project) -> None:
    path = next((project.root / "notebooks/pipeline").glob("*_train.ipynb"))
    path.write_text(path.read_text().replace('params[\\"train.trials\\"]', 'params[\\"gate.confidence\\"]'))
    refused(project, "gate.confidence", "dvc.yaml does not list")


def test_two_runs_at_once(project: Project) -> None:
    notebook_with(project, "evaluate", "import os, time\nwhile not os.path.exists('go'):\n    time.sleep(0.1)")
    first = subprocess.Popen(
        project.command("run"),
        cwd=project.root,
        env=project.environment(),
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    lock = project.root / ".nbs/lock"
    until(lambda: lock.read_text() == str(first.pid), 30)
    second = project.nbs("run")
    assert second.returncode == 1
    assert f"another run is at work here (process {first.pid})" in second.stderr
    (project.root / "go").touch()
    assert first.wait(timeout=300) == 0
    assert project.nbs("run").returncode == 0


def test_predict_without_a_champion(project: Project) -> None:
    import shutil

    shutil.rmtree(project.root / "served", ignore_errors=True)
    done = project.nbs("predict", "penguins.csv")
    assert done.returncode == 1
    assert "make run" in done.stderr
    assert Path(project.root / "models").exists()
