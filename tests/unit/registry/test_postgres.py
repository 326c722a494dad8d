"""The registry of a team: an MLflow server whose records lie in PostgreSQL."""

import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import mlflow
import numpy as np
import pandas as pd
import pytest
import sqlalchemy as sa
from helpers.bundles import MARGINS, ROWS, blank_project, decision, make_bundle  # noqa: F401
from helpers.postgres import PASSWORD, postgres_server

from nbs_lib.core.server_process import free_port, running_server
from nbs_lib.core.settings import load_settings
from nbs_lib.core.stages import Stage
from nbs_lib.registry.mlflow_client import connect
from nbs_lib.registry.model_registry import register
from nbs_lib.registry.pointers import champion_path
from nbs_lib.registry.rollback import rollback
from nbs_lib.registry.tracking import end_pipeline, find_runs, log_stage
from nbs_lib.retrain.approval import approve

BUNDLE = Path("models/bundle")


@pytest.fixture
def database(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with postgres_server(tmp_path_factory.mktemp("postgres")) as address:
        yield address.replace("${PG_WORD}", quote(PASSWORD))


@pytest.fixture
def uri(database: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of `mlflow server`, begun as `deploy/compose.yaml` does, but for where the records are."""
    files, port = tmp_path_factory.mktemp("artifacts"), free_port()
    command = [sys.executable, "-m", "mlflow", "server", "--port", str(port), "--backend-store-uri", database]
    command += ["--artifacts-destination", str(files), "--workers", "1"]
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("MLFLOW_", "NBS_"))}
    environment |= {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with running_server(command, port, "/health", files, environment, wait_s=120) as server:
        yield server.url
        server.stop(everyone=True)  # its own workers do not end with it


def test_a_team_logs_registers_promotes_and_reads_back(
    blank_project: Path,  # noqa: F811
    database: str,
    uri: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")  # a machine that tests share may be slow
    Path("settings.ini").write_text(f"[tracking]\nuri = {uri}\nexperiment = team\nmodel = sales\n")
    tracking = load_settings().tracking
    monkeypatch.setenv("NBS_PIPELINE", "abc")
    stage = Stage("train", Path("30_train.ipynb"), (), ("train",), ("models/metrics.json",))
    Path("models").mkdir()
    Path("models/metrics.json").write_text('{"auc": 0.7}')
    log_stage(stage, {"train.lr": 0.1}, "FINISHED", time.time() - 5)
    end_pipeline("FINISHED")
    client, experiment = connect(tracking)
    runs = find_runs(client, experiment, "abc")
    assert [(run.data.params, run.data.metrics) for run in runs] == [({"train.lr": "0.1"}, {"auc": 0.7})] * 2

    where = (uri, tracking.model, tracking.experiment)
    first = make_bundle(BUNDLE)
    assert register(BUNDLE, decision(), *where) == "champion"
    mlflow.set_tracking_uri(uri)
    mlflow.set_registry_uri(uri)
    answer = mlflow.pyfunc.load_model("models:/sales@champion").predict(pd.DataFrame(ROWS))
    np.testing.assert_allclose(answer["margin"], MARGINS, atol=1e-6)

    second = make_bundle(BUNDLE, fallback={"prior": {"output": 0.31, "margin": -0.85}})
    assert register(BUNDLE, decision(), *where, approval="person") == "awaits approval"
    approve(second[:8], "Ann")
    version = client.get_model_version_by_alias("sales", "champion")
    assert (version.tags["bundle"], version.tags["approved_by"]) == (second, "Ann")
    assert client.get_model_version_by_alias("sales", "previous").tags["bundle"] == first
    rollback()
    assert champion_path().name == first
    assert client.get_model_version_by_alias("sales", "champion").tags["bundle"] == first
    assert "rolled_back" in client.get_model_version("sales", version.version).tags
    assert not Path("mlflow.db").exists()

    engine = sa.create_engine(database)
    with engine.connect() as connection:
        found = connection.execute(sa.text("SELECT alias, version FROM registered_model_aliases WHERE name = 'sales'"))
        assert dict(map(tuple, found)) == {"champion": 1}
    engine.dispose()
