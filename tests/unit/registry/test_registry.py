"""A bundle is registered once, the champion is served whole, and both survive whatever happens in between."""

import shutil
import sqlite3
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import mlflow
import numpy as np
import pandas as pd
import pytest
from helpers.at_once import run_at_once
from helpers.bundles import (  # noqa: F401
    MARGINS,
    ROWS,
    SCHEMA,
    blank_project,
    decision,
    make_bundle,
    mlflow_project,
    mlflow_template,
)
from helpers.registry import aliases, register_alone, versions
from mlflow.store.db import utils as db_utils
from mlflow.store.tracking.dbmodels.initial_models import Base as InitialBase
from mlflow.utils import environment

from nbs_lib.bundle.bundle import Bundle
from nbs_lib.core.errors import BundleError, UserError
from nbs_lib.core.settings import TrackingSettings
from nbs_lib.registry import model_registry as registry
from nbs_lib.registry.mlflow_client import REGISTERED_FILE, connect, create_ahead, tracking_uri
from nbs_lib.registry.model_registry import register
from nbs_lib.registry.pointers import champion_path

BUNDLE = Path("models/bundle")


@pytest.fixture
def here(mlflow_project: Path) -> Path:  # noqa: F811
    make_bundle(BUNDLE)
    return mlflow_project


def test_a_promoted_bundle_is_champion_and_served(here: Path) -> None:
    assert register(BUNDLE, decision()) == "champion"
    assert aliases() == {"champion": "1"}
    (version,) = versions()
    id = Bundle.open(BUNDLE).id
    assert version.tags["bundle"] == id
    assert version.tags["gate"] == "PROMOTE"
    assert version.tags["lineage.code"] == "c0de"
    assert version.tags["lineage.inputs/data/x.parquet"] == "f00d"
    assert champion_path() == Path("served") / id
    assert Bundle.open(champion_path()).id == id
    assert sorted(path.name for path in Path("served").iterdir()) == sorted(["CURRENT", "HISTORY", id])


def test_the_champion_loads_from_the_registry_and_answers_raw_rows(here: Path) -> None:
    register(BUNDLE, decision())
    mlflow.set_tracking_uri(tracking_uri())
    mlflow.set_registry_uri(tracking_uri())
    model = mlflow.pyfunc.load_model("models:/nbs@champion")
    assert model.metadata.signature is not None
    assert [each.name for each in model.metadata.signature.inputs] == ["width", "new", "kind", "made"]
    table = pd.DataFrame(ROWS)
    made = pd.to_datetime(table["made"], format="ISO8601", utc=True)
    for rows in (table, table.assign(made=made), table.drop(columns=["sold"]).astype({"width": "float32"})):
        answer = model.predict(rows)
        np.testing.assert_allclose(answer["margin"], MARGINS, atol=1e-6)
        assert answer["class"].tolist() == ["yes", "no", "yes"]
    with pytest.raises(Exception, match="is not a number"):
        model.predict(table.assign(width="x"))


def test_there_is_no_pickle_in_it(here: Path) -> None:
    register(BUNDLE, decision())
    names = {path.name for path in Path("mlruns").rglob("*") if path.is_file()}
    assert "model.onnx" in names
    assert not [name for name in names if name.endswith((".pkl", ".pickle", ".joblib", ".skops"))]
    (described,) = Path("mlruns").rglob("MLmodel")
    assert "loader_module: nbs_lib.bundle\n" in described.read_text()
    assert "cloudpickle" not in described.read_text()
    (needed,) = Path("mlruns").rglob("requirements.txt")
    packages = [line.partition("=")[0] for line in needed.read_text().split()]
    assert packages == ["mlflow", "numpy", "onnxruntime", "pandas"]


@pytest.mark.parametrize(("verdict", "expected"), [("HOLD", "challenger"), ("REJECT", "rejected")])
def test_what_is_not_promoted_is_not_served(here: Path, verdict: str, expected: str) -> None:
    assert register(BUNDLE, decision(verdict)) == expected
    with pytest.raises(UserError, match="there is no champion yet: `make run`"):
        champion_path()
    if verdict == "HOLD":
        assert aliases() == {"challenger": "1"}


def test_a_challenger_leaves_the_champion_alone(here: Path) -> None:
    register(BUNDLE, decision())
    served = champion_path()
    make_bundle(BUNDLE, fallback={"prior": {"output": 0.5}})
    assert register(BUNDLE, decision("HOLD")) == "challenger"
    assert aliases() == {"champion": "1", "challenger": "2"}
    assert champion_path() == served
    assert register(BUNDLE, decision()) == "champion"
    assert aliases() == {"champion": "2", "previous": "1"}
    assert Path("served", served.name).is_dir()  # answers that name it are still explained


def test_registering_again_changes_nothing_and_imports_no_mlflow(here: Path) -> None:
    register(BUNDLE, decision())
    result = register_alone()
    assert (result.returncode, result.stdout) == (0, "unchanged\n"), result.stderr
    assert len(versions()) == 1


def test_an_earlier_bundle_comes_back_without_a_new_version(here: Path) -> None:
    register(BUNDLE, decision())
    first = champion_path()
    make_bundle(BUNDLE, fallback={"prior": {"output": 0.5}})
    register(BUNDLE, decision())
    make_bundle(BUNDLE)
    assert register(BUNDLE, decision()) == "champion"
    assert len(versions()) == 2
    assert aliases() == {"champion": "1", "previous": "2"}
    assert champion_path() == first


@pytest.mark.parametrize("damage", ["pointer", "folder", "marker", "byte"])
def test_what_was_lost_is_put_back(here: Path, damage: str) -> None:
    register(BUNDLE, decision())
    served = champion_path()
    if damage == "pointer":
        Path("served/CURRENT").unlink()
    elif damage == "folder":
        shutil.rmtree(served)
    else:
        REGISTERED_FILE.unlink()
    if damage == "byte":
        (served / "model.onnx").write_bytes(b"other")
    assert register(BUNDLE, decision()) == "champion"
    assert Bundle.open(champion_path()).id == served.name
    assert len(versions()) == 1


@pytest.mark.parametrize("step", ["_add", "deploy_bundle", "write_json"])
def test_killed_in_the_middle_the_next_run_goes_on(here: Path, step: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(*_: Any) -> None:
        raise SystemExit

    with monkeypatch.context() as broken:
        broken.setattr(registry, step, killed)
        with pytest.raises(SystemExit):
            register(BUNDLE, decision())
    assert register(BUNDLE, decision()) == "champion"
    assert len(versions()) == 1
    assert Bundle.open(champion_path()).id == Bundle.open(BUNDLE).id


def test_a_changed_byte_is_neither_registered_nor_served(here: Path) -> None:
    (BUNDLE / "model.onnx").write_bytes(b"other")
    with pytest.raises(BundleError, match=r"model\.onnx was changed"):
        register(BUNDLE, decision())
    assert not Path("served").exists()


def test_a_gate_that_decided_on_another_bundle_is_refused(here: Path) -> None:
    with pytest.raises(BundleError, match="not the bundle that the gate decided on"):
        register(BUNDLE, decision(bundle="0" * 64))


def test_a_server_that_is_down_is_tried_again(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    started = time.monotonic()
    assert register(BUNDLE, decision(), "http://127.0.0.1:9") == "retry later"
    assert time.monotonic() - started < 5
    said = capsys.readouterr().err
    assert said.startswith("warning: MLflow at http://127.0.0.1:9 does not answer")
    assert said.count("\n") == 1
    assert register(BUNDLE, decision()) == "champion"


TWICE = """
from nbs_lib.registry.model_registry import register
print(register("models/bundle", {"decision": "PROMOTE", "champion": "net"}))
"""


def test_two_at_once(here: Path) -> None:
    (*said, codes), _ = run_at_once(2, TWICE)
    assert codes == "[0, 0]"
    assert said == ["champion", "unchanged"]
    assert len(versions()) == 1
    assert Bundle.open(champion_path()).id == Bundle.open(BUNDLE).id


def test_a_project_at_two_paths_in_turn_loses_nothing(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a host and a container see it, also where one path begins as the other does."""
    register(BUNDLE, decision())
    first = versions()
    for place in (here.parent / f"{here.name}_moved", here):
        Path.cwd().rename(place)
        monkeypatch.chdir(place)
        client, _ = connect(TrackingSettings())  # a run is logged
        assert register(BUNDLE, decision()) == "unchanged"
        assert [each.version for each in versions()] == [each.version for each in first]
        assert client.get_model_version_by_alias("nbs", "champion").version == first[0].version
        with sqlite3.connect("mlflow.db") as database:
            ((location,),) = database.execute("SELECT storage_location FROM model_versions").fetchall()
        (manifest,) = Path(unquote(urlsplit(location).path)).rglob("manifest.json")
        assert manifest.is_relative_to(place / "mlruns")


def test_what_is_required_is_what_is_installed_and_not_looked_for(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[str] = []
    look = "mlflow.utils.requirements_utils._init_packages_to_modules_map"  # through all installed packages
    monkeypatch.setattr(look, lambda: looked.append("once more"))
    checks = environment.warn_dependency_requirement_mismatches
    register(BUNDLE, decision())
    assert looked == []
    (written,) = Path("mlruns").rglob("requirements.txt")
    assert {f"{name}=={version(name)}" for name in ("mlflow", "numpy", "pandas")} <= {*written.read_text().split()}
    with pytest.raises(OSError, match="no space"), registry._no_requirements_check():
        raise OSError("no space")
    assert environment.warn_dependency_requirement_mismatches is checks


def test_a_database_that_could_not_be_created_is_created_at_the_next_attempt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the same process, in which MLflow keeps what it has opened."""
    made = InitialBase.metadata.create_all

    def fail(engine: Any) -> None:
        made(engine)
        raise OSError("no space")

    with monkeypatch.context() as broken:
        broken.setattr(db_utils, "_initialize_tables", fail)
        with pytest.raises(OSError, match="no space"):
            create_ahead(tmp_path)
    assert not (tmp_path / "mlflow.db").exists()
    create_ahead(tmp_path)
    client, experiment = connect(TrackingSettings(), tmp_path)
    assert client.create_run(experiment).info.experiment_id == experiment
    assert [path.name for path in tmp_path.glob("mlflow.db*")] == ["mlflow.db"]


def test_a_database_that_was_deleted_is_filled_again(here: Path) -> None:
    register(BUNDLE, decision())
    Path("mlflow.db").unlink()
    assert register(BUNDLE, decision()) == "champion"


@pytest.mark.parametrize("content", ["", "../models/bundle", "0" * 64, "\n"])
def test_a_pointer_to_nothing_is_refused(blank_project: Path, content: str) -> None:  # noqa: F811
    make_bundle(BUNDLE)
    Path("served").mkdir()
    Path("served/CURRENT").write_text(content)
    with pytest.raises(BundleError, match="names"):
        champion_path()


@pytest.mark.parametrize("task", ["regression", "multiclass"])
def test_every_task_has_a_signature(task: str) -> None:
    signature = registry._signature(SCHEMA | {"task": task, "classes": [] if task == "regression" else ["x", "y", "z"]})
    assert [each.name for each in signature.outputs][-1] == ("value" if task == "regression" else "probability:z")
