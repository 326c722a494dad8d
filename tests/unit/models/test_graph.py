"""A graph answers like the pipeline that it was made from, in every process with the same bytes, and without pickle."""

import hashlib
import os
import subprocess
import sys
from typing import Any

import numpy as np
import onnx
import pandas as pd
import pytest
from skl2onnx import to_onnx
from skl2onnx.common import tree_ensemble
from sklearn.ensemble import HistGradientBoostingClassifier

from nbs_lib.bundle.bundle import inference_session, run_graph
from nbs_lib.bundle.parity import PARITY_TOLERANCE, parity_difference
from nbs_lib.models.candidates import CANDIDATES, Task
from nbs_lib.models.encoding import MISSING_TIME, FeatureLayout
from nbs_lib.models.onnx_export import exact_tree_conversion, export_graph, graph_feeds
from nbs_lib.models.search import FittedCandidate, tune_candidate

pytestmark = pytest.mark.xdist_group("graphs")  # each candidate is fitted once


def toy(rows: int = 600, seed: int = 0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    table = pd.DataFrame(
        {
            "year": rng.integers(1990, 2020, rows).astype("float32"),
            "gap": np.where(rng.random(rows) < 0.2, np.nan, rng.normal(size=rows)).astype("float32"),
            "color": rng.choice(["red", "blue", "", "grün"], rows),
            "rare": [f"only {i}" for i in range(rows)],
            "born": np.where(rng.random(rows) < 0.1, MISSING_TIME, rng.integers(-(2**30), 2**30, rows)),
        }
    )
    odds = (table.color == "red") + np.nan_to_num(table.gap) + rng.normal(size=rows)
    table["_target"] = (odds > 0.5).astype("int64")
    return table


LAYOUT = FeatureLayout(("year", "gap"), ("color", "rare"), ("born",), (("blue", "red", "grün"), ()))


def answer(model: onnx.ModelProto, rows: pd.DataFrame, layout: FeatureLayout = LAYOUT) -> dict[str, Any]:
    """What production's session answers."""
    return dict(
        zip(
            ("output", "margin"),
            run_graph(inference_session(model.SerializeToString()), graph_feeds(rows, layout)),
            strict=True,
        )
    )


def tuned(name: str) -> FittedCandidate:
    table = toy()
    return tune_candidate(CANDIDATES[name], Task("binary", LAYOUT, epochs=1), table[:400], table[400:], trials=2)


@pytest.fixture(scope="module", params=list(CANDIDATES))
def fitted(request: pytest.FixtureRequest) -> FittedCandidate:
    return tuned(request.param)


def test_it_answers_like_the_library_on_rows_never_seen(fitted: FittedCandidate) -> None:
    new = toy(seed=1).assign(rare="never seen")
    new.loc[:99, "color"] = "never seen"
    answers = answer(export_graph(fitted, new), new)
    assert parity_difference("binary", fitted.answers(new), answers) <= PARITY_TOLERANCE
    assert (
        parity_difference("binary", fitted.answers(new), answers | {"output": answers["output"] + 2 * PARITY_TOLERANCE})
        > PARITY_TOLERANCE
    )


def test_a_row_is_answered_alone_as_among_others(fitted: FittedCandidate) -> None:
    table, model = toy(50), export_graph(fitted, toy(1))
    together = answer(model, table)["output"]
    alone = np.concatenate([answer(model, table[i : i + 1])["output"] for i in range(len(table))])
    np.testing.assert_allclose(alone, together, rtol=1e-5)
    assert answer(model, table[:0])["output"].shape == (0, 1)


def test_unknown_and_missing_levels_get_the_same_answer(fitted: FittedCandidate) -> None:
    model, table = export_graph(fitted, toy(1)), toy(20)
    answers = [answer(model, table.assign(color=level))["output"] for level in ("", "never seen")]
    assert np.array_equal(*answers)


def test_the_model_says_nothing_of_when_and_where_it_was_made(fitted: FittedCandidate) -> None:
    model = export_graph(fitted, toy(1))
    assert (model.producer_name, model.producer_version, model.doc_string) == ("nbs", "", "")
    assert not model.metadata_props
    assert os.getcwd().encode() not in model.SerializeToString()
    assert [put.name for put in model.graph.output] == ["margin", "output"]


def test_values_at_the_very_threshold_stay_on_their_side() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(4000, 1)).astype("float32")
    trees = HistGradientBoostingClassifier(max_iter=20).fit(x, (np.sin(9 * x[:, 0]) > 0).astype(int))
    cuts = np.concatenate([p[0].nodes["num_threshold"] for p in trees._predictors])
    near = np.concatenate([np.nextafter(cuts.astype("float32"), np.float32(s)) for s in (-np.inf, np.inf)] + [cuts])
    table = pd.DataFrame({"x": near.astype("float32")})
    layout = FeatureLayout(("x",), (), (), ())
    train = pd.DataFrame({"x": x[:, 0], "_target": (np.sin(9 * x[:, 0]) > 0).astype(int)})
    found = tune_candidate(CANDIDATES["hgb_small"], Task("binary", layout), train, train, trials=1)
    assert (
        parity_difference("binary", found.answers(table), answer(export_graph(found, train), table, layout))
        <= PARITY_TOLERANCE
    )


def test_the_converter_still_needs_its_corrections() -> None:
    """When this fails, `exact_tree_conversion` can go."""
    trees = HistGradientBoostingClassifier(max_iter=2).fit(np.arange(100.0)[:, None], np.arange(100) % 2)
    before = tree_ensemble.add_node
    with pytest.raises((TypeError, ValueError)):
        to_onnx(trees, np.zeros((1, 1), "float32"))
    with exact_tree_conversion():
        to_onnx(trees, np.zeros((1, 1), "float32"))
    with pytest.raises(RuntimeError), exact_tree_conversion():
        raise RuntimeError
    assert tree_ensemble.add_node is before


def digest(model: onnx.ModelProto) -> str:
    return hashlib.sha256(model.SerializeToString()).hexdigest()


PRINT_DIGESTS = """
import sys
sys.path.insert(0, sys.argv[1])
from test_graph import CANDIDATES, digest, export_graph, tuned, toy
for name in CANDIDATES:
    found = tuned(name)
    print(name, digest(export_graph(found, toy())), found.trials)
"""


@pytest.fixture(scope="module")
def another_process() -> dict[str, str]:
    """What a process with another seed prints of each candidate."""
    seed = str(1 + int(os.environ.get("PYTHONHASHSEED", "0")))
    command = [sys.executable, "-c", PRINT_DIGESTS, os.path.dirname(__file__)]
    env = os.environ | {"PYTHONHASHSEED": seed, "OMP_NUM_THREADS": "1"}
    lines = subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout.splitlines()
    return {line.split()[0]: line for line in lines}


def test_two_processes_write_the_same_bytes(fitted: FittedCandidate, another_process: dict[str, str]) -> None:
    assert set(another_process) == set(CANDIDATES)
    name = fitted.candidate.name
    assert another_process[name] == f"{name} {digest(export_graph(fitted, toy()))} {fitted.trials}"
