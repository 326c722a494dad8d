"""A small bundle made by hand, a small project around it, and a ready MLflow database to copy."""

import json
import os
import shutil
import sqlite3
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from onnx import TensorProto, helper

from nbs_lib.bundle.bundle import write_bundle
from nbs_lib.bundle.explanation_data import draw_explanation_data
from nbs_lib.core.settings import TrackingSettings
from nbs_lib.features.online.base import encode_values
from nbs_lib.features.online.lookup import open_store
from nbs_lib.registry.mlflow_client import connect
from nbs_lib.testing.example_project import toy_graph

INPUTS = [
    {"name": "width", "input": "numeric", "position": 0, "from": "request", "type": "number"},
    {"name": "new", "input": "numeric", "position": 1, "from": "request", "type": "bool"},
    {"name": "kind", "input": "categorical", "position": 0, "from": "request", "type": "text"},
    {"name": "made", "input": "time", "position": 0, "from": "request", "type": "time"},
]
SCHEMA: dict[str, Any] = {
    "task": "binary",
    "classes": ["no", "yes"],
    "threshold": 0.6,
    "target": "sold",
    "key": ["number"],
    "others": ["number", "sold"],
    "inputs": INPUTS,
}
LINEAGE = {"code": "c0de", "params": "9a7a", "lock": None, "inputs": {"data/x.parquet": "f00d"}}
ROWS = [
    {"number": "1", "width": 1, "new": True, "kind": "a", "made": "1970-01-02", "sold": "yes"},
    {"number": "2", "width": -2.5, "new": False, "kind": None, "made": "1970-01-01", "sold": "no"},
    {"number": "3", "width": 0, "new": True, "kind": "unseen", "made": "1970-01-01T12:00:00", "sold": "no"},
]
MARGINS = [4.0, -2.5, 1.5]


def graph() -> bytes:
    "Log-odds = width + new + (1 where kind is a or b) + days since 1970."
    levels = {"keys_strings": ["a", "b"], "values_floats": [1.0, 1.0], "default_float": 0.0}
    nodes = [
        helper.make_node("ReduceSum", ["numeric", "axes"], ["sum"], keepdims=1),
        helper.make_node("LabelEncoder", ["categorical"], ["known"], domain="ai.onnx.ml", **levels),
        helper.make_node("Cast", ["time"], ["seconds"], to=TensorProto.FLOAT),
        helper.make_node("Div", ["seconds", "day"], ["days"]),
        helper.make_node("Sum", ["sum", "known", "days"], ["margin"]),
    ]
    inputs = {"numeric": (TensorProto.FLOAT, 2), "categorical": (TensorProto.STRING, 1), "time": (TensorProto.INT64, 1)}
    return toy_graph(nodes, inputs, {"axes": np.array([1]), "day": np.array([86400], np.float32)})


def make_bundle(folder: Path, **changes: Any) -> str:
    "Write the small bundle, some of its contents changed; its id."
    rest = {"metrics": {}, "fallback": {"prior": {"output": 0.3, "margin": -0.85}}, "reference": {}}
    return write_bundle(folder, graph(), **{"schema": SCHEMA, "lineage": LINEAGE} | rest | changes)


# A bundle with views and a context graph


VERSION = "1a2b3c4d5e6f"
VIEWS: list[dict[str, Any]] = [
    {"name": "maker", "entity": ["maker"], "ttl": 3 * 86400, "columns": ["sold", "days", "best"], "history": "days"},
    {"name": "spot", "entity": ["place"], "ttl": None, "columns": ["rain"], "history": None, "age": True},
    {"name": "market", "entity": [], "ttl": None, "columns": ["share"], "history": None},
]
VIEWS = [{"version": VERSION, "age": False} | view for view in VIEWS]
NUMBERS = ["width", "maker_sold", "maker_days", "spot_age", "spot_rain", "market_share"]
WORDS = ["maker", "maker_best"]


def make_ladder_bundle(
    folder: Path, takes_over: bool = False, classes: list[str] | None = None, **changes: Any
) -> None:
    "A model that adds what it is given, missing as 0, and a context graph that takes the root of a time."
    levels = {"keys_strings": ["m1", "b"], "values_floats": [1.0, 0.5], "default_float": 0.0}
    nodes = [
        helper.make_node("IsNaN", ["numeric"], ["unknown"]),
        helper.make_node("Where", ["unknown", "zero", "numeric"], ["numbers"]),
        helper.make_node("ReduceSum", ["numbers", "axes"], ["of numbers"], keepdims=1),
        helper.make_node("LabelEncoder", ["categorical"], ["levels"], domain="ai.onnx.ml", **levels),
        helper.make_node("ReduceSum", ["levels", "axes"], ["of words"], keepdims=1),
        helper.make_node("Add", ["of numbers", "of words"], ["sum"]),
        helper.make_node("MatMul", ["sum", "turn"], ["margin"]),
    ]
    of_context = [
        helper.make_node("Cast", ["time"], ["seconds"], to=TensorProto.FLOAT),
        helper.make_node("Sqrt", ["seconds"], ["root"]),
        helper.make_node("MatMul", ["root", "turn"], ["margin"]),
    ]
    width = len(classes) if classes else 1
    turn = {"turn": np.array([[1.0 + k for k in range(width)]], np.float32)}
    constants = turn | {"axes": np.array([1]), "zero": np.zeros((1, 1), np.float32)}
    inputs = {"numeric": (TensorProto.FLOAT, len(NUMBERS)), "categorical": (TensorProto.STRING, len(WORDS))}
    model = toy_graph(nodes, inputs, constants, width)
    context = toy_graph(of_context, {"time": (TensorProto.INT64, 1)}, turn, width)
    columns = {f"{view['name']}_{column}" for view in VIEWS for column in ["age", *view["columns"]]}
    described = [
        {"name": name, "input": kind, "position": position, "type": "number" if kind == "numeric" else "text"}
        | {"from": f"{name.partition('_')[0]}@{VERSION}" if name in columns else "request"}
        for kind, names in {"numeric": NUMBERS, "categorical": WORDS}.items()
        for position, name in enumerate(names)
    ]
    made = {"name": "made", "input": "time", "position": 0, "from": "request", "type": "time"}
    schema = SCHEMA | {"inputs": described, "views": VIEWS, "entities": {"maker": "text", "place": "number"}}
    schema |= {"others": ["made", "note", "place"], "key": [], "context": {"inputs": [made], "takes_over": takes_over}}
    prior: dict[str, Any] = {"output": 0.3, "margin": -0.85}
    if classes:
        schema |= {"task": "multiclass", "classes": classes}
        prior = {"output": [0.2, 0.5, 0.3], "margin": [-1.6, -0.7, -1.2]}
    rest = {"metrics": {}, "fallback": {"prior": prior}, "reference": {}}
    write_bundle(folder, model, context, **{"schema": schema, "lineage": LINEAGE} | rest | changes)


def ladder_cases(rows: int = 300) -> bytes:
    "Cases of the bundle with views."
    rng = np.random.default_rng(0)
    table = pd.DataFrame(rng.normal(0, 0.5, (rows, len(NUMBERS))).astype(np.float32), columns=NUMBERS)
    table = table.assign(maker=rng.choice(["m1", "b"], rows), maker_best="b", made=rng.integers(1, 400, rows) * 86_400)
    table = table.assign(_target=(table["width"] > 0).astype(int), _split=["train", "test"] * (rows // 2))
    return draw_explanation_data(table, lambda each: each["width"].to_numpy(), [*NUMBERS, *WORDS, "made"])


def store_of(root: Path, version: str = VERSION) -> None:
    "A store that knows one maker, one of long ago, and one place."
    day = 86_400_000_000
    rows = {
        "maker": [("m1", encode_values([9 * day, 3.0, 20.0, "b"])), ("old", encode_values([day, 9.0, 40.0, "c"]))],
        "spot": [("7", encode_values([9 * day + day // 2, 0.25]))],
        "market": [("", encode_values([9 * day, 0.5]))],
    }
    open_store(root=root).write(10 * day, {f"{view}@{version}": each for view, each in rows.items()})


def decision(decision: str = "PROMOTE", **more: Any) -> dict[str, Any]:
    "A gate.json."
    return {"decision": decision, "champion": "net", "sentence": "", "ledger": [], **more}


@pytest.fixture
def blank_project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    "An empty project, and the working directory, in a folder with a space in its name."
    root = tmp_path / "a project"
    root.mkdir()
    (root / "params.yaml").write_text("train: {lr: 0.1}\n")
    (root / "dvc.yaml").write_text("stages:\n  train: {cmd: x, metrics: [models/metrics.json: {cache: false}]}\n")
    (root / "settings.ini").write_text("[tracking]\nuri =\n")
    monkeypatch.chdir(root)
    for name in [name for name in os.environ if name.startswith(("NBS_", "MLFLOW_"))]:
        monkeypatch.delenv(name)
    return root


@pytest.fixture(scope="session")
def mlflow_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    "An empty MLflow database: creating one takes two seconds, copying it none."
    root = tmp_path_factory.mktemp("template")
    connect(TrackingSettings(), root)
    return root / "mlflow.db"


@pytest.fixture
def mlflow_project(blank_project: Path, mlflow_template: Path) -> Path:
    "A project with its MLflow database."
    shutil.copy(mlflow_template, blank_project / "mlflow.db")
    with sqlite3.connect(blank_project / "mlflow.db") as connection:
        connection.execute("UPDATE experiments SET artifact_location = ?", ((blank_project / "mlruns").as_uri(),))
    connection.close()
    return blank_project


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    "Rows as a CSV file."
    names = list(rows[0])
    lines = [",".join("" if row[name] is None else str(row[name]) for name in names) for row in rows]
    path.write_text("\n".join([",".join(names), *lines]) + "\n")
    return path


def manifest(folder: Path) -> dict[str, Any]:
    "A bundle's manifest."
    return json.loads((folder / "manifest.json").read_text())


BLOCKED = (
    "sklearn",
    "skl2onnx",
    "onnx",
    "torch",
    "mlflow",
    "pandas",
    "scipy",
    "pyarrow",
    "yaml",
    "duckdb",
    "shap",
    "numba",
)
REFUSE = f"""
import sys, json, datetime

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {BLOCKED!r}:
            raise ImportError(f"production must not import {{name}}")

sys.meta_path.insert(0, Refuse())
"""


SENT = {"maker_sold": 2.0, "maker_days": 5, "maker_best": "b", "spot_age": None, "spot_rain": None, "market_share": 0.5}
