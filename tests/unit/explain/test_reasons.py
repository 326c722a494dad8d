"""Reasons in words: they fit the answer, stay short, and read for a table that says nothing of its columns."""

import shutil
from pathlib import Path

import numpy as np
import onnx
import pandas as pd
import pytest
from conftest import Project

from nbs_lib.bundle.bundle import Bundle, write_bundle
from nbs_lib.bundle.explanation_data import draw_explanation_data
from nbs_lib.explain.explainer import Explainer
from nbs_lib.explain.explainer import base_output as usual_of
from nbs_lib.explain.reasons import MAX_REASONS, ReasonWriter
from nbs_lib.testing.example_project import EXAMPLE_SCHEMA, example_graphs


@pytest.fixture(scope="module")
def species(finished: Project, tmp_path_factory: pytest.TempPathFactory) -> ReasonWriter:
    folder = tmp_path_factory.mktemp("reasons") / "bundle"
    shutil.copytree(finished.root / "models/bundle", folder)
    return ReasonWriter(Explainer(Bundle.open(folder)))


def test_reasons_of_a_table_without_a_description_read_and_fit_the_answer(species: ReasonWriter) -> None:
    explainer = species.explainer
    rows = {kind: part[:20] for kind, part in explainer.cases.past.items()}
    explained = explainer.explain(rows)
    for row in range(20):
        told = int(explained.output[row].argmax())
        found = species.reasons(rows, explained, row, told)
        assert 1 <= len(found) <= MAX_REASONS
        sizes = [abs(each.points) for each in found]
        assert sizes == sorted(sizes, reverse=True)
        assert all(each.direction == ("raises" if each.points > 0 else "lowers") for each in found)
        left = explained.output[row, told] - usual_of("multiclass", explained.base)[told]
        few = len(explainer.groups) <= MAX_REASONS
        assert not few or abs(100 * left - sum(each.points for each in found)) < 0.5 * MAX_REASONS
        assert not any("_" in each.text for each in found)
        similar = species.similar(rows, row, found, told)
        assert similar["cases"] > 0
        assert 0 <= similar["ended"] <= 1


def test_what_is_missing_or_new_is_said_and_hostile_values_stay_on_their_line(species: ReasonWriter) -> None:
    rows = {kind: part[:8].copy() for kind, part in species.explainer.cases.past.items()}
    rows["numeric"][:] = np.nan
    rows["categorical"][:] = "<script>alert(1)</script>\n\u202e" + "x" * 1000
    explained = species.explainer.explain(rows)
    texts = [each.text for told in range(3) for each in species.reasons(rows, explained, 0, told)]
    assert any(" is not known, which " in text for text in texts)
    new = [text for text in texts if "which training never saw" in text]
    assert new
    assert all("\n" not in text and "\u202e" not in text and len(text) < 200 for text in texts)


def test_a_regression_is_told_in_units_of_its_target(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    table = pd.DataFrame({"width": rng.normal(9, 2, 900), "who_sold": rng.normal(4, 1, 900), "who_days": 2.0})
    table["_target"] = table.sum(axis=1) + rng.normal(0, 1, 900)
    table = table.astype("float32").assign(_split=["train", "test", "valid"] * 300)
    model = onnx.load_model_from_string(example_graphs()[0])
    next(node for node in model.graph.node if node.op_type == "Sigmoid").op_type = "Identity"
    schema = {key: value for key, value in EXAMPLE_SCHEMA.items() if key != "context"}
    schema |= {"task": "regression", "classes": [], "target": "paid", "target_about": {"unit": "EUR"}}
    cases = draw_explanation_data(table, lambda rows: rows[["width"]].to_numpy(), ["width", "who_sold", "who_days"])
    rest = {"metrics": {}, "lineage": {}, "fallback": {"prior": {"output": 15.0, "margin": 15.0}}, "reference": {}}
    write_bundle(tmp_path / "bundle", model.SerializeToString(), cases=cases, schema=schema, **rest)
    teller = ReasonWriter(Explainer(Bundle.open(tmp_path / "bundle")))
    row = {"numeric": np.array([[14, 4, 2]], np.float32), "categorical": np.empty((1, 0), object)}
    row["time"] = np.empty((1, 0), np.int64)
    explained = teller.explainer.explain(row)
    first = teller.reasons(row, explained, 0)[0]
    assert first.code == "width"
    assert first.text.startswith("Width (14 cm, usually 8.97 cm) adds 5.")
    assert first.text.endswith(" EUR.")
    assert teller.usual() + first.points == pytest.approx(float(explained.output[0, 0]), abs=0.3)
    confidence = teller.confidence(explained.output[0], "model", 2.0)
    assert "half were off by less than 0." in confidence
    similar = teller.similar(row, 0, [first])
    assert similar["text"].startswith(f"Of {similar['cases']} past cases alike in width, half ended between 1")
    assert similar["ended"] == pytest.approx(18, abs=1.5)
    assert "nearest" in teller.confidence(np.array([500.0]), "model")
