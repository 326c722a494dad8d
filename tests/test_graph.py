"""A graph answers like the pipeline that it was made from, in every process with the same bytes, and without pickle."""

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

from nbs_lib.bundle.bundle import run, session
from nbs_lib.bundle.parity import LIMIT, parity
from nbs_lib.models.candidates import CANDIDATES, Task
from nbs_lib.models.encoding import MISSING_TIME, Layout
from nbs_lib.models.onnx_export import exact_trees, feeds, graph
from nbs_lib.models.search import Fitted, search


def toy(rows: int = 600, seed: int = 0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    table = pd.DataFrame(
        {
            "year": rng.integers(1990, 2020, rows).astype("float32"),
            "gap": np.where(rng.random(rows) < 0.2, np.nan, rng.normal(size=rows)).astype("float32"),
            "colour": rng.choice(["red", "blue", "", "grün"], rows),
            "rare": [f"only {i}" for i in range(rows)],
            "born": np.where(rng.random(rows) < 0.1, MISSING_TIME, rng.integers(-(2**30), 2**30, rows)),
        }
    )
    odds = (table.colour == "red") + np.nan_to_num(table.gap) + rng.normal(size=rows)
    table["_target"] = (odds > 0.5).astype("int64")
    return table


LAYOUT = Layout(("year", "gap"), ("colour", "rare"), ("born",), (("blue", "red", "grün"), ()))


def answer(model: onnx.ModelProto, rows: pd.DataFrame, layout: Layout = LAYOUT) -> dict[str, Any]:
    """What production's session answers."""
    return dict(zip(("output", "margin"), run(session(model.SerializeToString()), feeds(rows, layout)), strict=True))


@pytest.fixture(scope="module", params=list(CANDIDATES))
def fitted(request: pytest.FixtureRequest) -> Fitted:
    table = toy()
    return search(CANDIDATES[request.param], Task("binary", LAYOUT, epochs=1), table[:400], table[400:], trials=2)


def test_it_answers_like_the_library_on_rows_never_seen(fitted: Fitted) -> None:
    new = toy(seed=1).assign(rare="never seen")
    new.loc[:99, "colour"] = "never seen"
    answers = answer(graph(fitted, new), new)
    assert parity("binary", fitted.answers(new), answers) <= LIMIT
    assert parity("binary", fitted.answers(new), answers | {"output": answers["output"] + 2 * LIMIT}) > LIMIT


def test_a_row_is_answered_alone_as_among_others(fitted: Fitted) -> None:
    table, model = toy(50), graph(fitted, toy(1))
    together = answer(model, table)["output"]
    alone = np.concatenate([answer(model, table[i : i + 1])["output"] for i in range(len(table))])
    np.testing.assert_allclose(alone, together, rtol=1e-5)
    assert answer(model, table[:0])["output"].shape == (0, 1)


def test_unknown_and_missing_levels_get_the_same_answer(fitted: Fitted) -> None:
    model, table = graph(fitted, toy(1)), toy(20)
    answers = [answer(model, table.assign(colour=level))["output"] for level in ("", "never seen")]
    assert np.array_equal(*answers)


def test_the_model_says_nothing_of_when_and_where_it_was_made(fitted: Fitted) -> None:
    model = graph(fitted, toy(1))
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
    layout = Layout(("x",), (), (), ())
    train = pd.DataFrame({"x": x[:, 0], "_target": (np.sin(9 * x[:, 0]) > 0).astype(int)})
    found = search(CANDIDATES["hgb_small"], Task("binary", layout), train, train, trials=1)
    assert parity("binary", found.answers(table), answer(graph(found, train), table, layout)) <= LIMIT


def test_the_converter_still_needs_its_corrections() -> None:
    """When this fails, `exact_trees` can go."""
    trees = HistGradientBoostingClassifier(max_iter=2).fit(np.arange(100.0)[:, None], np.arange(100) % 2)
    before = tree_ensemble.add_node
    with pytest.raises((TypeError, ValueError)):
        to_onnx(trees, np.zeros((1, 1), "float32"))
    with exact_trees():
        to_onnx(trees, np.zeros((1, 1), "float32"))
    with pytest.raises(RuntimeError), exact_trees():
        raise RuntimeError
    assert tree_ensemble.add_node is before


PRINT_DIGESTS = """
import hashlib, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from test_graph import CANDIDATES, LAYOUT, Task, graph, search, toy
table = toy()
for one in CANDIDATES.values():
    found = search(one, Task("binary", LAYOUT, epochs=1), table[:400], table[400:], trials=2)
    print(one.name, hashlib.sha256(graph(found, table).SerializeToString()).hexdigest(), found.trials)
"""


def test_two_processes_write_the_same_bytes() -> None:
    def digests(seed: str) -> str:
        env = os.environ | {"PYTHONHASHSEED": seed, "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-c", PRINT_DIGESTS, os.path.dirname(__file__)]
        return subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout

    first, second = digests("0"), digests("1")
    assert len(first.splitlines()) == len(CANDIDATES)
    assert first == second
