"""LightGBM's trees as one node of a graph: the same branch for every row, however near to a threshold."""

import subprocess
import sys
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from conftest import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st

from nbs_lib.models.boosting import BoostedClassifier, BoostedRegressor, round_down

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


@pytest.mark.parametrize("classes", [0, 2, 3])
def test_rows_at_and_beside_each_threshold_take_the_same_branch(classes: int) -> None:
    x, y = table()
    kind = BoostedClassifier if classes else BoostedRegressor
    target = np.digitize(y, np.quantile(y, np.arange(1, classes) / classes)) if classes else y
    learned = kind(rounds=40, learning_rate=0.1, columns=1.0, min_rows=5).fit(x, target)
    nodes = learned.booster_.trees_to_dataframe().dropna(subset=["threshold"])
    places = nodes["split_feature"].str.removeprefix("Column_").astype(int).to_numpy()
    at = nodes["threshold"].to_numpy()
    hard = x[np.arange(3 * len(at)) % len(x)].copy()
    for n, shift in enumerate((-np.inf, 0, np.inf)):  # the number of 32 bits before, at and after the threshold
        near = at.astype(np.float32)
        hard[n * len(at) + np.arange(len(at)), places] = np.nextafter(near, np.float32(shift)) if shift else near
    hard[::7, 0] = np.nan  # never missing in training
    expected = learned.decision_function(hard) if classes else learned.predict(hard)
    found = scores(learned, hard)
    assert found.shape == (len(hard), classes if classes > 2 else 1)
    np.testing.assert_allclose(found.reshape(expected.shape), expected, atol=1e-5)


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
    assert done.stdout.split() == ["dummy", "linear", "hgb_small", "hgb_large", "net"]
    assert done.stderr.startswith("lgbm takes no part: the package lightgbm is not installed\n")
    assert "train.candidates names 'lgbm', whose package is not installed: `.venv/bin/python -m pip" in done.stderr
