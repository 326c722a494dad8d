"""Other tables: with two lines of params.yaml changed, the same pipeline runs to the report. One table of each task."""

import json
import secrets
import shutil
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pandas as pd
import pytest
from bs4 import BeautifulSoup
from conftest import ROOT, Project, small
from helpers.hostile_notebook import HOSTILE, live
from ruamel.yaml import YAML

from nbs_lib.core.files import sha256
from nbs_lib.pipeline.clone import clone_project


@pytest.fixture
def fresh(tmp_path: Path) -> Project:
    return Project(clone_project(tmp_path / "project", ROOT))


def results(project: Project) -> tuple[dict, dict, dict]:
    done = project.nbs("run")
    assert done.returncode == 0, done.stderr[-3000:]
    assert "report:" in done.stdout
    assert (project.root / "reports/index.html").exists()
    read = YAML(typ="safe").load
    contract = project.root / "data/contract"
    roles = read((contract / "roles.yaml").read_text())
    return (
        roles,
        json.loads((project.root / "models/metrics.json").read_text()),
        json.loads((project.root / "models/gate.json").read_text()),
    )


def explained(project: Project) -> tuple[dict, str, str]:
    """What a manager is told, and the two pages."""
    found = json.loads((project.root / "models/explain.json").read_text())
    assert [each["check"] for each in found["checks"]] == ["additivity", "noise", "planted leak", "leaks"]
    assert found["checks"][0]["passed"]
    assert found["drivers"][0]["points"] > 0
    pages = [(project.root / f"reports/{name}.html").read_text() for name in ("explain", "model_card")]
    assert pages[0].count("not causes") == 1
    assert "real rows of the table" in pages[1]
    return found, *pages


def served(project: Project, table: str, column: str) -> int:
    done = project.nbs("predict", table, "--out", "scores.csv")
    assert done.returncode == 0, done.stderr
    lines = (project.root / "scores.csv").read_text().splitlines()
    assert column in lines[0]
    return len(lines) - 1


def test_multiclass_with_missing_values_and_text(finished: Project, tmp_path: Path) -> None:
    project = finished.copy(tmp_path / "project")
    roles, metrics, gate = results(project)
    assert roles["task"] == metrics["task"] == "multiclass"
    assert roles["classes"] == ["Adelie", "Chinstrap", "Gentoo"]
    assert gate["decision"] == "PROMOTE"
    found, page, _ = explained(project)
    assert {"rows", "loss", "without", "wrong", "often"} == set(found["mistakes"])
    assert "get the wrong class" in page
    rows = len((finished.root / "penguins.csv").read_text().splitlines()) - 1
    assert served(project, "penguins.csv", "probability:Gentoo") == rows


def test_binary(fresh: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From an address, whose token comes from the environment and is written nowhere."""
    from sklearn.datasets import load_breast_cancer

    frame = load_breast_cancer(as_frame=True).frame
    frame["target"] = frame["target"].map({0: "malignant", 1: "benign"})
    frame.to_csv(tmp_path / "cancer.csv", index=False)
    token = secrets.token_hex(12)
    monkeypatch.setenv("SHOP_TOKEN", token)
    monkeypatch.setenv("no_proxy", "*")
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(SimpleHTTPRequestHandler, directory=tmp_path)) as server:
        Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}/cancer.csv?token=${{SHOP_TOKEN}}"
        small(fresh, f'"{address}"', "target", candidates="auto", epochs="4")
        roles, metrics, gate = results(fresh)
        server.shutdown()
    assert roles["source"] == address
    (copy,) = (fresh.root / "data/fetched").iterdir()
    assert roles["read"]["found"]["sha256"] == sha256(copy) == sha256(tmp_path / "cancer.csv")
    for path in fresh.root.rglob("*"):
        assert not path.is_file() or token.encode() not in path.read_bytes(), path
    assert roles["task"] == "binary"
    assert set(metrics["candidates"]) >= {
        "dummy",
        "linear",
        "hgb_small",
        "lgbm",
        "blend",
        "net",
        "net_int8",
    }
    assert metrics["candidates"][gate["champion"]]["test"]["auc"]["value"] > 0.9
    assert gate["decision"] == "PROMOTE"
    assert served(fresh, str(tmp_path / "cancer.csv"), "class") == len(frame)


def test_regression_with_missing_values_and_text(fresh: Project) -> None:
    from vega_datasets import data

    frame = data.cars()
    assert frame.isna().any().any()
    frame.to_parquet(fresh.root / "cars.parquet")
    small(fresh, "cars.parquet", "Miles_per_Gallon", candidates="auto", epochs="4")
    roles, metrics, gate = results(fresh)
    assert roles["task"] == "regression"
    assert metrics["candidates"]["linear"]["vs_dummy"]["rmse"]["lo"] > 0
    assert gate["decision"] in ("PROMOTE", "REJECT")
    found, page, card = explained(fresh)
    assert found["mistakes"]["half_within"] < found["mistakes"]["nine_of_ten_within"]
    assert "Half of its answers are off by" in page
    assert "RMSE" in card
    shutil.rmtree(fresh.root)


YES, PAID = HOSTILE[1], f"paid {HOSTILE[0]}"


@pytest.fixture(scope="session")
def leaky(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A run on people who come again and again, with hostile words and a column that was written down afterwards."""
    project = Project(clone_project(tmp_path_factory.mktemp("leaky") / "project", ROOT))
    rows = range(2000)
    frame = pd.DataFrame({"who": [f"person {i % 40}" for i in rows], "x": [i % 7 for i in rows]})
    frame["kind"] = [HOSTILE[i % len(HOSTILE)] for i in rows]
    frame["bought"] = [YES if (i * 7) % 10 + i % 7 > 8 else "no" for i in rows]
    frame[PAID] = (frame["bought"] == YES) * 9.5 + frame["x"] / 10
    frame.to_parquet(project.root / "people.parquet")
    small(project, "people.parquet", "bought", entity="who", candidates="[dummy, linear]")
    stopped = project.nbs("run")
    assert stopped.returncode != 0
    assert f"NBS010 a column tells the target alone: {PAID!r}" in stopped.stderr
    assert "data.acknowledge: [NBS010: " in stopped.stderr
    assert not (project.root / "data/training_set.parquet").exists()
    project.set(acknowledge="[NBS010]")
    done = project.nbs("run")
    assert done.returncode == 0, done.stderr[-3000:]
    return project


@pytest.mark.xdist_group("leaky")
def test_an_input_that_tells_the_answer_is_held_and_named(leaky: Project) -> None:
    gate = json.loads((leaky.root / "models/gate.json").read_text())
    assert gate["decision"] == "HOLD"
    assert f"The input {PAID} tells the answer by itself: is it known before the prediction?" in gate["sentence"]
    assert not (leaky.root / "served/CURRENT").exists()
    found, page, _ = explained(leaky)
    assert found["drivers"][0]["code"] == PAID
    assert "DO NOT RELY ON IT" in page
    assert f"The input {PAID} tells the answer" in BeautifulSoup(page, "html.parser").get_text()


@pytest.mark.xdist_group("leaky")
def test_no_page_of_a_hostile_table_is_live(leaky: Project) -> None:
    pages = sorted((leaky.root / "reports").glob("*.html"))
    shown = {"explain.html", "model_card.html", "index.html", "bundle.html", "evaluate.html"}
    assert shown <= {page.name for page in pages}
    for page in pages:
        assert live(page.read_text()) == [], page.name
        if page.name in shown:
            assert "pwned" in BeautifulSoup(page.read_text(), "html.parser").get_text(), "it is shown, as text"


@pytest.mark.xdist_group("leaky")
def test_groups_stay_on_one_side(leaky: Project) -> None:
    assert YAML(typ="safe").load((leaky.root / "data/contract/roles.yaml").read_text())["entity"] == ["who"]
    frame = pd.read_parquet(leaky.root / "data/training_set.parquet")
    assert frame.groupby("_block")["_split"].nunique().max() == 1
