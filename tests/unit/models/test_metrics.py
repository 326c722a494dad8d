"""The metrics are scikit-learn's, with ties and weights; intervals draw whole blocks, the same for all candidates."""

import re
from typing import Any

import numpy as np
import pytest
from conftest import ROOT
from fastcore.test import test_close as close
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from sklearn import metrics as peer

from nbs_lib.models import metrics
from nbs_lib.models.metrics import (
    METRICS,
    bootstrap,
    bootstrap_interval,
    bootstrap_weights,
    metric_gain,
    metric_statistics,
    primary_metric,
)

rows = st.lists(st.tuples(st.integers(0, 1), st.integers(1, 9), st.integers(0, 3)), min_size=2, max_size=60)


@given(rows)
def test_binary_metrics_are_scikit_learns(rows: list[tuple[int, int, int]]) -> None:
    target, tenths, weight = (np.array(column) for column in zip(*rows, strict=True))
    assume(weight[target == 0].sum() > 0)
    assume(weight[target == 1].sum() > 0)
    found = {name: value(weight) for name, value in metric_statistics("binary", target, tenths / 10).items()}
    assert list(found) == [metric.name for metric in METRICS["binary"]]
    assert found["auc"] == pytest.approx(peer.roc_auc_score(target, tenths, sample_weight=weight))
    assert found["log_loss"] == pytest.approx(peer.log_loss(target, tenths / 10, sample_weight=weight))
    assert found["brier"] == pytest.approx(peer.brier_score_loss(target, tenths / 10, sample_weight=weight))


@given(st.lists(st.tuples(st.floats(-1e3, 1e3), st.floats(-1e3, 1e3), st.integers(0, 3)), min_size=2, max_size=60))
def test_regression_metrics_are_scikit_learns(rows: list[tuple[float, float, int]]) -> None:
    target, output, weight = (np.array(column) for column in zip(*rows, strict=True))
    assume((weight > 0).sum() > 1)
    assume(np.ptp(target[weight > 0]) > 1e-3)
    found = {name: value(weight) for name, value in metric_statistics("regression", target, output).items()}
    assert found["rmse"] == pytest.approx(peer.root_mean_squared_error(target, output, sample_weight=weight))
    assert found["mae"] == pytest.approx(peer.mean_absolute_error(target, output, sample_weight=weight))
    assert found["r2"] == pytest.approx(peer.r2_score(target, output, sample_weight=weight), rel=1e-6, abs=1e-6)


@given(st.integers(0, 2**31), st.integers(3, 5))
@settings(max_examples=20)
def test_multiclass_metrics_are_scikit_learns(seed: int, classes: int) -> None:
    rng = np.random.default_rng(seed)
    target = np.r_[np.arange(classes), rng.integers(0, classes, 60)]
    output = rng.dirichlet(np.ones(classes), len(target))
    found = {
        name: value(np.ones(len(target))) for name, value in metric_statistics("multiclass", target, output).items()
    }
    assert found["log_loss"] == pytest.approx(peer.log_loss(target, output))
    assert found["accuracy"] == pytest.approx(peer.accuracy_score(target, output.argmax(axis=1)))
    assert found["auc_ovr"] == pytest.approx(peer.roc_auc_score(target, output, multi_class="ovr"))


@given(st.lists(st.integers(-5, 5), min_size=1, max_size=80), st.integers(0, 100))
def test_blocks_are_drawn_whole_and_the_same_for_the_same_seed(block: list[int], seed: int) -> None:
    blocks = np.array(block)
    first, again = list(bootstrap_weights(blocks, 5, seed)), list(bootstrap_weights(blocks, 5, seed))
    assert np.array_equal(first, again)
    for weights in first:
        for one in np.unique(blocks):
            assert len(set(weights[blocks == one])) == 1


def test_differences_are_paired() -> None:
    rng = np.random.default_rng(0)
    block, target = np.repeat(np.arange(30), 40), rng.integers(0, 2, 1200)
    hard = np.repeat(rng.uniform(0, 0.6, 30), 40)  # days differ in how hard they are
    weak = np.where(rng.random(1200) < hard, 1 - target, target) * 0.5 + 0.25 + rng.normal(0, 0.02, 1200)
    strong = np.where(rng.random(1200) < 0.05, target, weak)
    asked: dict[Any, Any] = {
        name: metric_statistics("binary", target, output)["brier"]
        for name, output in {"weak": weak, "strong": strong}.items()
    }
    drawn = bootstrap(asked, block, 300)
    alone = bootstrap_interval(drawn["weak"])
    lead = bootstrap_interval(metric_gain("brier", drawn["strong"], drawn["weak"]))
    assert None not in (alone.lo, alone.hi, lead.lo, lead.hi)
    assert lead.lo > 0  # type: ignore[operator]
    assert lead.hi - lead.lo < (alone.hi - alone.lo) / 3  # type: ignore[operator]


def test_too_few_blocks_have_no_interval() -> None:
    found = bootstrap_interval(bootstrap({"one": lambda weights: float(weights.sum())}, np.arange(40) % 4, 100)["one"])
    assert (found.value, found.lo, found.hi) == (40, None, None)


def test_an_interval_covers_what_it_promises() -> None:
    rng = np.random.default_rng(1)
    covered = 0
    for seed in range(60):
        mood = rng.normal(size=40)
        value = np.repeat(mood, 10) + rng.normal(size=400)
        mean = {"mean": lambda weights, value=value: float(weights @ value / weights.sum())}
        found = bootstrap_interval(bootstrap(mean, np.repeat(np.arange(40), 10), 200, seed)["mean"])
        covered += found.lo < 0 < found.hi  # type: ignore[operator]
    assert covered >= 50  # about 57 of 60; one by rows covers about 30


def test_every_task_has_a_primary_metric() -> None:
    assert [primary_metric(task) for task in METRICS] == ["auc", "log_loss", "rmse"]


def test_the_metrics_of_the_guide_are_what_they_say() -> None:
    page = (ROOT / "notebooks/guide/05_your_metric.md").read_text(encoding="utf-8")
    notebook = (ROOT / "notebooks/lib/models/05_metrics.ipynb").read_text(encoding="utf-8")
    function, balanced, check, near, check_near = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    names = vars(metrics) | {"peer": peer, "test_close": close}
    exec(function, names)
    rng = np.random.default_rng(0)
    target, weights, output = rng.integers(0, 2, 500), rng.integers(0, 4, 500), rng.random(500)
    for record, line, truth in ((balanced, check, target), (near, check_near, target * 3.0)):
        metric = eval(record, names)
        found = {metric.name: metric.statistic(truth, output)(weights)}
        exec(line, names | {"found": found, "target": target, "weights": weights, "output": output})
    assert "tests/" not in page  # a project of `nbs new` has no tests of the library
    for beside in ("brier", "rmse"):  # below whose checks the new ones go
        assert f'test_close(found[\\"{beside}\\"]' in notebook
