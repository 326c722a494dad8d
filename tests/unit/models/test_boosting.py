"""LightGBM's trees as one node of a graph: the same branch for every row, however near to a threshold."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ClassVar, Self

import numpy as np
import onnxruntime as ort
import pytest
from conftest import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper
from sklearn.base import clone
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor

from nbs_lib.models.boosting import (
    BlendedClassifier,
    BlendedRegressor,
    BoostedClassifier,
    BoostedRegressor,
    fit_once,
    round_down,
    share_fits,
)
from nbs_lib.models.onnx_export import _estimator_graph

FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False)


def scores(learned: Any, x: Any) -> Any:
    """What the graph answers."""
    session = ort.InferenceSession(learned.to_onnx().SerializeToString())
    return session.run(["scores"], {"encoded": x})[0]


def table(rows: int = 1200, columns: int = 4, seed: int = 0) -> tuple[Any, Any]:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(rows, columns)).astype(np.float32)
    x[:, 1] = rng.integers(-1, 5, rows)
    x[rng.random(rows) < 0.1, 2] = np.nan
    return x, x[:, 0] + (x[:, 1] == 2) + np.nan_to_num(x[:, 2]) + rng.normal(size=rows) * 0.3


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1), FLOATS)
def test_a_number_of_32_bits_lies_on_the_same_side_of_both(thresholds: list[float], value: float) -> None:
    down = round_down(thresholds).astype(np.float64)
    assert [value <= each for each in down] == [value <= each for each in np.clip(thresholds, -3.4028235e38, None)]


def classes_of(y: Any, classes: int) -> Any:
    """As many classes of a number; of 0, the number."""
    return np.digitize(y, np.quantile(y, np.arange(1, classes) / classes)) if classes else y


def rows_at(x: Any, places: Any, at: Any) -> Any:
    """Rows that hold the numbers of 32 bits before, at and after each threshold of a column."""
    hard = x[np.arange(3 * len(at)) % len(x)].copy()
    near = at.astype(np.float32)
    for n, shift in enumerate((-np.inf, 0, np.inf)):
        hard[n * len(at) + np.arange(len(at)), places] = np.nextafter(near, np.float32(shift)) if shift else near
    hard[::7, 0] = np.nan  # never missing in training
    return hard


@pytest.mark.parametrize("classes", [0, 2, 3])
def test_rows_at_and_beside_each_threshold_take_the_same_branch(classes: int) -> None:
    x, y = table()
    kind = BoostedClassifier if classes else BoostedRegressor
    learned = kind(rounds=40, learning_rate=0.1, columns=1.0, min_rows=5).fit(x, classes_of(y, classes))
    nodes = learned.booster_.trees_to_dataframe().dropna(subset=["threshold"])
    places = nodes["split_feature"].str.removeprefix("Column_").astype(int).to_numpy()
    hard = rows_at(x, places, nodes["threshold"].to_numpy())
    expected = learned.decision_function(hard) if classes else learned.predict(hard)
    found = scores(learned, hard)
    assert found.shape == (len(hard), classes if classes > 2 else 1)
    np.testing.assert_allclose(found.reshape(expected.shape), expected, atol=1e-5)


@pytest.mark.parametrize("classes", [0, 2, 3])
def test_the_trees_of_a_blend_are_one_node_that_says_the_mean_of_its_members(classes: int) -> None:
    """Also for rows at and beside each threshold of each member."""
    x, y = table(rows=600)
    target = classes_of(y, classes)
    histogram = HistGradientBoostingClassifier if classes else HistGradientBoostingRegressor
    boosted, blend = (BoostedClassifier, BlendedClassifier) if classes else (BoostedRegressor, BlendedRegressor)
    members = [histogram(max_iter=20), boosted(rounds=30, columns=1.0, min_rows=5), histogram(max_iter=5)]
    learned = blend(members).fit(x, target)
    graph = _estimator_graph(learned, x, "regression" if not classes else "binary" if classes == 2 else "multiclass")
    (node,) = graph.graph.node
    told = {each.name: helper.get_attribute_value(each) for each in node.attribute}
    inner = np.array([mode == b"BRANCH_LEQ" for mode in told["nodes_modes"]])
    hard = rows_at(x, np.array(told["nodes_featureids"])[inner], np.array(told["nodes_values"])[inner])
    found = ort.InferenceSession(graph.SerializeToString()).run(["scores"], {"encoded": hard})[0]
    said = [one.decision_function(hard) if classes else one.predict(hard) for one in learned.members_]
    np.testing.assert_allclose(found.reshape(said[0].shape), np.mean(said, axis=0), atol=1e-5)
    assert found.shape == (len(hard), classes if classes > 2 else 1)


def test_the_members_of_a_blend_stop_by_the_same_rows_and_learn_as_long_again() -> None:
    x, y = table(rows=900)
    members = [HistGradientBoostingRegressor(early_stopping=True, n_iter_no_change=3), BoostedRegressor(columns=1.0)]
    learned = BlendedRegressor(members).fit(x[:600], y[:600], x[600:], y[600:])
    histogram, boosted = learned.settings_of_length(1.5)["members"]
    assert 1 < learned.members_[0].n_iter_ < 100, "it was not stopped"
    assert (histogram.early_stopping, histogram.max_iter) == (False, round(1.5 * learned.members_[0].n_iter_))
    assert boosted.rounds == round(1.5 * learned.members_[1].rounds_)
    assert members[0].max_iter == 100, "what it was made of stays as it is"


class Counting(HistGradientBoostingRegressor):
    """Counts how often it learns."""

    fits: ClassVar[list[int]] = []

    def fit(self, X: Any, y: Any, X_val: Any = None, y_val: Any = None) -> Self:
        self.fits.append(len(X))
        return super().fit(X, y, X_val=X_val, y_val=y_val)


def test_who_has_learned_the_same_rows_is_not_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = table(rows=300)
    monkeypatch.setattr(Counting, "fits", [])
    with share_fits({}), ThreadPoolExecutor(4) as pool:
        alike = list(pool.map(lambda _: fit_once(Counting(max_iter=3), x.copy(), y.copy()), range(4)))
        assert Counting.fits == [300]
        assert BlendedRegressor([Counting(max_iter=3)]).fit(x, y).members_ == alike[:1]
        for setting, rows in ((4, 300), (3, 299)):  # another setting, other rows
            fit_once(Counting(max_iter=setting), x[:rows], y[:rows])
        assert Counting.fits == [300, 300, 299]
        stopped = Counting(max_iter=3, early_stopping=True)
        for held in (y[200:], -y[200:], y[200:]):  # the same rows, stopped by others
            fit_once(clone(stopped), x[:200], y[:200], x[200:], held)
        assert Counting.fits == [300, 300, 299, 200, 200]
    fit_once(Counting(max_iter=3), x, y)
    assert Counting.fits[5:] == [300], "shared for as long as it lasts"


def test_an_estimator_that_can_not_be_hashed_learns_all_the_same() -> None:
    x, y = table(rows=60)

    class Local(HistGradientBoostingRegressor):
        """Of a function, where pickle does not find it."""

    with share_fits({}):
        first, second = (fit_once(Local(max_iter=1), x, y) for _ in range(2))
    assert first is not second
    assert np.array_equal(first.predict(x), second.predict(x))


def test_a_tiny_table_and_a_column_of_nothing() -> None:
    x, y = table(rows=12)
    x[:, 3] = np.nan
    learned = BoostedClassifier(rounds=5).fit(x, y > np.median(y))
    np.testing.assert_allclose(scores(learned, x)[:, 0], learned.decision_function(x), atol=1e-6)


@settings(max_examples=20, deadline=None)
@given(st.floats(-1e9, 1e9), st.floats(1e-3, 1e6))
def test_a_target_far_from_zero_keeps_its_differences(mean: float, scale: float) -> None:
    x, y = table(rows=400)
    learned = BoostedRegressor(rounds=60, learning_rate=0.1, columns=1.0).fit(x, mean + scale * y)
    error = (learned.predict(x) - mean) / scale - y
    assert (error**2).mean() < 0.5 * y.var()


def test_validation_rows_end_the_training_before_it_learns_noise() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(400, 5)).astype(np.float32), rng.integers(0, 2, 400)
    learned = BoostedClassifier(patience=10).fit(x[200:], y[200:], x[:200], y[:200])
    assert 1 <= learned.rounds_ < 100
    assert len(learned.to_onnx().graph.node) == 1


def test_without_the_package_it_takes_no_part_and_says_so() -> None:
    """In a process in which LightGBM can't be found."""
    code = """
import importlib.util, sys
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, package=None: None if name == "lightgbm" else find(name, package)
sys.modules["lightgbm"] = None
from nbs_lib.models.candidates import select_candidates
print(*[one.name for one in select_candidates("auto")])
select_candidates(["lgbm"])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.split() == ["dummy", "linear", "hgb_small", "net"]
    said = [f"{name} takes no part: the package lightgbm is not installed" for name in ("lgbm", "blend")]
    assert done.stderr.splitlines()[:2] == said
    assert "train.candidates names 'lgbm', whose package is not installed: `.venv/bin/python -m pip" in done.stderr
