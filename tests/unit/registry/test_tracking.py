"""Runs reach MLflow whole, or later, and MLflow's troubles are never the run's."""

import http.server
import json
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.at_once import run_at_once
from helpers.bundles import blank_project, mlflow_project, mlflow_template  # noqa: F401

from nbs_lib.core.files import write_json
from nbs_lib.core.settings import TrackingSettings
from nbs_lib.core.stages import Stage
from nbs_lib.registry import tracking
from nbs_lib.registry.mlflow_client import connect, tracking_uri
from nbs_lib.registry.tracking import PENDING_RUNS, end_pipeline, find_runs, log_stage

PAGE = "reports/train.html"
NOTEBOOKS = Path("notebooks/pipeline")
TRAIN = Stage("train", NOTEBOOKS / "30_train.ipynb", ("params.yaml",), ("train",), ("models/metrics.json", PAGE))
EVALUATE = Stage("evaluate", NOTEBOOKS / "40_evaluate.ipynb", (), (), ())


@pytest.fixture
def here(mlflow_project: Path) -> Path:  # noqa: F811
    found = {"auc": 0.7, "by": {"net": {"loss": 0.5}}, "slices": [{"auc": 1}]}
    write_json(found, mlflow_project / "models/metrics.json")
    (mlflow_project / "reports").mkdir()
    (mlflow_project / PAGE).write_text("<p>page")
    return mlflow_project


def runs(name: str) -> list:
    return find_runs(*connect(TrackingSettings()), name)


def test_a_pipeline_is_a_parent_with_a_child_per_stage(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commit = ["-c", "user.name=x", "-c", "user.email=x", "commit", "-qm", "x"]
    for command in (["init", "-q"], ["add", "params.yaml"], commit):
        subprocess.run(["git", *command], check=True)
    (here / "params.yaml").write_text("train: {lr: 0.2}\n")
    monkeypatch.setenv("NBS_PIPELINE", "p1")
    start = time.time() - 60
    log_stage(TRAIN, {"train.lr": 0.2, "train.names": ["a"]}, "FINISHED", start)
    log_stage(EVALUATE, {}, "FAILED", start + 30)
    end_pipeline("FAILED")
    parent, *children = runs("p1")
    assert parent.info.status == "FAILED"
    assert parent.info.start_time == int(start * 1000)
    assert parent.data.metrics["auc"] == 0.7
    train, evaluate = sorted(children, key=lambda run: run.info.start_time)
    assert (train.info.status, evaluate.info.status) == ("FINISHED", "FAILED")
    assert train.data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert train.data.params == {"train.lr": "0.2", "train.names": '["a"]'}
    assert train.data.metrics == {"auc": 0.7, "by.net.loss": 0.5}
    assert len(train.data.tags["mlflow.source.git.commit"]) == 40
    assert train.data.tags["git.dirty"] == "true"
    assert len(train.data.tags["dvc.md5/params.yaml"]) == 32
    assert (here / "mlruns").is_dir()
    assert evaluate.data.metrics == {}
    assert not list(PENDING_RUNS.iterdir())


def test_a_bare_stage_is_a_run_of_its_own(here: Path) -> None:
    log_stage(TRAIN, {"train.lr": 0.1}, "FINISHED", time.time() - 1)
    client, experiment = connect(TrackingSettings())
    (run,) = client.search_runs([experiment])
    assert "mlflow.parentRunId" not in run.data.tags
    assert [each.path for each in client.list_artifacts(run.info.run_id)] == ["train.html"]
    assert Path(client.download_artifacts(run.info.run_id, "train.html")).read_text() == "<p>page"


def test_the_page_is_the_one_of_its_own_run(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NBS_PIPELINE", "p1")
    log_stage(TRAIN, {}, "FINISHED", time.time())
    (here / PAGE).write_text("<p>later")
    end_pipeline("FINISHED")
    client, _ = connect(TrackingSettings())
    assert Path(client.download_artifacts(runs("p1")[1].info.run_id, "train.html")).read_text() == "<p>page"


def test_nothing_that_ran_is_nothing_logged(blank_project: Path) -> None:  # noqa: F811
    code = "import sys, nbs_lib.registry.tracking as t; t.end_pipeline('FINISHED'); assert 'mlflow' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, env={"NBS_PIPELINE": "p1", "PATH": ""})
    assert not (blank_project / "mlflow.db").exists()


def test_a_killed_pipeline_is_logged_by_the_next(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NBS_PIPELINE", "killed")
    log_stage(TRAIN, {}, "FINISHED", time.time())
    monkeypatch.setenv("NBS_PIPELINE", "next")
    end_pipeline("FINISHED")
    assert [run.info.status for run in runs("killed")] == ["KILLED", "FINISHED"]
    assert runs("next") == []


def test_a_kill_while_logging_leaves_no_run_open(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NBS_PIPELINE", "p1")
    log_stage(TRAIN, {}, "FINISHED", time.time())
    with monkeypatch.context() as broken:
        broken.setattr(tracking, "_log_values", lambda *_: (_ for _ in ()).throw(SystemExit))
        with pytest.raises(SystemExit):
            end_pipeline("FINISHED")
    assert {run.info.status for run in runs("p1")} == {"RUNNING"}
    end_pipeline("FINISHED")
    assert [run.info.status for run in runs("p1")] == ["FINISHED", "FINISHED"]


def test_many_parameters_and_odd_names(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NBS_PIPELINE", "p1")
    odd = {f"<b>{k}</b>'\"é": float(k) for k in range(2300)}
    write_json({"slices": odd, "none": None, "yes": True}, here / "models/metrics.json")
    log_stage(TRAIN, {f"train.p{k}": "x" * 7000 for k in range(150)}, "FINISHED", time.time())
    end_pipeline("FINISHED")
    _, child = runs("p1")
    assert (len(child.data.metrics), len(child.data.params)) == (2300, 150)


# Created once

FIRST_START = """
from nbs_lib.registry.mlflow_client import connect
from nbs_lib.core.settings import TrackingSettings
client, experiment = connect(TrackingSettings(), "{}")
run = client.create_run(experiment).info.run_id
client.set_terminated(run)
"""


def test_three_processes_at_the_first_start(blank_project: Path) -> None:  # noqa: F811
    assert run_at_once(3, FIRST_START.format(blank_project)) == (["[0, 0, 0]"], "")
    client, experiment = connect(TrackingSettings())
    assert len(client.search_runs([experiment])) == 3
    assert [each.name for each in client.search_experiments()].count("nbs") == 1


def test_one_place_whatever_the_working_directory(blank_project: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    expected = f"sqlite:///{blank_project}/mlflow.db"
    assert tracking_uri() == expected
    (blank_project / "notebooks").mkdir()
    monkeypatch.chdir(blank_project / "notebooks")
    assert tracking_uri("", "..") == expected


def test_a_copied_project_does_not_write_into_the_original(here: Path, tmp_path: Path) -> None:
    """And it keeps what was recorded there."""
    log_stage(TRAIN, {}, "FINISHED", time.time())
    copy = shutil.copytree(here, tmp_path / "copy")
    client, experiment = connect(TrackingSettings(), copy)
    assert client.get_experiment(experiment).artifact_location == (copy / "mlruns").as_uri()
    (run,) = client.search_runs([experiment])
    assert run.info.artifact_uri.startswith((copy / "mlruns").as_uri() + "/")
    client, experiment = connect(TrackingSettings(), here)
    assert client.search_runs([experiment])[0].info.artifact_uri.startswith((here / "mlruns").as_uri() + "/")


def test_a_deleted_experiment_comes_back(here: Path) -> None:
    client, experiment = connect(TrackingSettings())
    client.delete_experiment(experiment)
    log_stage(TRAIN, {}, "FINISHED", time.time())
    assert len(client.search_runs([experiment])) == 1


# Down


@pytest.fixture
def hanging() -> Iterator[str]:
    "A server that takes a connection and never answers."
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(50)
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


@pytest.fixture
def failing() -> Iterator[str]:
    "A server that answers 500."

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(500)
            self.end_headers()

        do_POST = do_GET

        def log_message(self, format: str, *args: object) -> None: ...

    server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


DOWN = """
import os, sys, time
from pathlib import Path
from nbs_lib.core.stages import Stage
from nbs_lib.registry.tracking import end_pipeline, log_stage
log_stage(Stage("train", Path("x.ipynb"), (), (), ()), {}, "FINISHED", time.time())
end_pipeline("FINISHED")
"""


def spent(environment: dict[str, str]) -> tuple[float, str]:
    started = time.monotonic()
    command = [sys.executable, "-c", DOWN]
    result = subprocess.run(command, capture_output=True, text=True, env=environment, check=True, timeout=60)
    return time.monotonic() - started, result.stderr


@pytest.mark.parametrize("state", ["refused", "hanging", "failing"])
def test_a_server_that_is_down_costs_seconds_and_a_sentence(
    state: str, here: Path, hanging: str, failing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = {"refused": "http://127.0.0.1:9", "hanging": hanging, "failing": failing}[state]
    seconds, said = spent({"NBS_PIPELINE": "p1", "NBS_TRACKING_URI": uri, "PATH": ""})
    assert seconds < 5
    assert said.startswith("warning: MLflow")
    assert said.count("\n") == 1
    assert [folder.name for folder in PENDING_RUNS.iterdir()] == ["p1"]
    monkeypatch.setenv("NBS_PIPELINE", "p2")
    end_pipeline("FINISHED", TrackingSettings())  # it is up again
    assert [run.info.status for run in runs("p1")] == ["FINISHED", "FINISHED"]


def test_a_damaged_database_is_a_warning(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "mlflow.db").write_bytes(b"no database")
    log_stage(TRAIN, {}, "FINISHED", time.time())
    assert "warning: MLflow failed" in capsys.readouterr().err


def test_the_record_is_plain(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NBS_PIPELINE", "p1")
    log_stage(TRAIN, {"train.lr": 0.1}, "FINISHED", time.time())
    record = json.loads((PENDING_RUNS / "p1/train.json").read_text())
    assert record["params"] == {"train.lr": 0.1}
    assert record["notebook"] == "notebooks/pipeline/30_train.ipynb"
