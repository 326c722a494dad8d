"""What holds for a project after `make run`, whatever its table: contract, views, candidates, pages, service."""

import json
import math
import os
import re
import sys
import urllib.request

import pandas as pd
import pytest
from conftest import ROOT

from nbs_lib.core.files import read_json, read_table
from nbs_lib.core.params import load_params
from nbs_lib.core.paths import CONTRACT_FILE
from nbs_lib.core.server_process import free_port, running_server
from nbs_lib.core.stages import load_stages
from nbs_lib.data.roles import Roles
from nbs_lib.data.schema import SCHEMA_PATH, read_yaml, validate_table
from nbs_lib.features.join import declared_views
from nbs_lib.models.candidates import select_candidates

pytestmark = [
    pytest.mark.skipif(not (ROOT / "reports/index.html").exists(), reason="`make run` comes first"),
    pytest.mark.xdist_group("project"),
]


@pytest.fixture(scope="module")
def roles() -> Roles:
    return Roles.load(ROOT / CONTRACT_FILE)


@pytest.fixture(scope="module")
def snapshot() -> pd.DataFrame:
    return read_table(ROOT / "data/snapshot.parquet")


def test_the_data_keeps_its_contract(roles: Roles, snapshot: pd.DataFrame) -> None:
    own = {name for name, about in roles.columns.items() if about["role"] != "dropped" and "from" not in about}
    assert roles.target in own
    assert own <= set(snapshot)
    corrections = load_params(ROOT / "params.yaml")["data.schema"]
    schema = read_yaml(ROOT / SCHEMA_PATH)
    assert set(schema["columns"]) <= set(roles.columns)
    validate_table(snapshot, schema, roles, {} if corrections == "auto" else corrections)


def test_the_views_are_those_that_were_learned_from(
    roles: Roles, snapshot: pd.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    declared = {view.name for view in declared_views(roles, snapshot)}
    assert declared == {view["name"] for view in roles.views}


def test_each_candidate_was_scored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    scored = read_json("models/metrics.json")["candidates"]
    assert {candidate.name for candidate in select_candidates(load_params()["train.candidates"])} <= set(scored)
    assert all(math.isfinite(value) for each in scored.values() for value in numbers(each))


def numbers(value: object) -> list[float]:
    """All numbers within."""
    if isinstance(value, dict | list):
        return [found for each in (value.values() if isinstance(value, dict) else value) for found in numbers(each)]
    return [value] if isinstance(value, float) else []


def test_each_stage_has_its_page_that_fetches_nothing() -> None:
    for stage in load_stages(ROOT).values():
        text = (ROOT / stage.page).read_text(encoding="utf-8")
        assert "<h1" in text, stage.page
        assert not re.search(r'(?:src|<link[^>]*href)="(?:https?:)?//', text), stage.page


def test_the_service_answers_rows_of_the_table(roles: Roles, snapshot: pd.DataFrame) -> None:
    unknown = [name for name in snapshot if roles.columns.get(name, {}).get("role") in ("target", "later")]
    rows = snapshot.drop(columns=unknown).head(5)
    body = rows.to_json(orient="records", date_format="iso", date_unit="us").encode()
    port = free_port()
    environment = {key: value for key, value in os.environ.items() if not key.startswith("NBS_")}
    environment |= {"PYTHONPATH": str(ROOT), "NBS_SERVE_PORT": str(port), "NBS_SERVE_LOG": ""}
    environment |= {"NBS_SERVE_WITHOUT_CHAMPION": "prior"}  # where the gate held it back
    command = [sys.executable, "-m", "nbs_lib.cli", "serve"]
    with running_server(command, port, cwd=ROOT, environment=environment):
        headers = {"content-type": "application/json"}
        request = urllib.request.Request(f"http://127.0.0.1:{port}/predict", body, headers)
        with urllib.request.urlopen(request, timeout=30) as answered:
            answers = json.load(answered)
    assert len(answers) == len(rows)
    assert all(each["id"] for each in answers)
