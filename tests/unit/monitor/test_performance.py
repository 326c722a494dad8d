"""Estimates are compared with what came, and what each input matters with what is known by construction."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from helpers.bundles import make_bundle, make_ladder_bundle
from scipy.special import expit, logit, softmax

from nbs_lib.bundle.bundle import Bundle
from nbs_lib.core.errors import DataError
from nbs_lib.explain.report.importance import drift_effect, feature_importance
from nbs_lib.models.metrics import evaluate
from nbs_lib.monitor import performance

N = 20_000


def binary(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities that hold, and what happened."""
    rng = np.random.default_rng(seed)
    share = expit(rng.normal(rng.normal(-0.5, 1), rng.uniform(0.3, 2), N))
    return (rng.random(N) < share).astype(int), share


@pytest.mark.parametrize("metric", ["auc", "log_loss", "brier"])
def test_an_estimate_is_right_where_probabilities_hold(metric: str) -> None:
    """Over many models the estimate is off by what chance does to the realized figure, and by no more on average."""
    off = []
    for seed in range(40):
        target, share = binary(seed)
        off.append(performance.estimate_metrics("binary", share)[metric] - evaluate("binary", target, share)[metric])
    assert abs(np.mean(off)) < 3 * np.std(off) / len(off) ** 0.5
    assert np.std(off) < 0.02


@pytest.mark.parametrize(("slope", "shift"), [(2.5, 0), (0.4, 0), (1, 1.2), (2, -1)])
def test_earlier_labels_correct_probabilities_that_do_not_hold(slope: float, shift: float) -> None:
    target, share = binary(3)
    said = expit(logit(share) * slope + shift)
    known = (target[: N // 2], said[: N // 2])
    came = evaluate("binary", target[N // 2 :], said[N // 2 :])
    plain = performance.estimate_metrics("binary", said[N // 2 :])
    corrected = performance.estimate_metrics("binary", said[N // 2 :], known)
    assert abs(corrected["log_loss"] - came["log_loss"]) < 0.03
    assert abs(corrected["log_loss"] - came["log_loss"]) < abs(plain["log_loss"] - came["log_loss"]) / 2
    assert abs(corrected["auc"] - came["auc"]) < 0.03


def test_several_classes_and_numbers_have_estimates_too() -> None:
    rng = np.random.default_rng(0)
    margin = rng.normal(size=(N, 3))
    share = softmax(margin, axis=1)
    target = (rng.random((N, 1)) > share.cumsum(axis=1)).sum(axis=1)
    came = evaluate("multiclass", target, share)
    for name, value in performance.estimate_metrics("multiclass", share).items():
        assert abs(value - came[name]) < 0.03, name
    too_sure = softmax(3 * margin, axis=1)
    known = (target[: N // 2], too_sure[: N // 2])
    corrected = performance.estimate_metrics("multiclass", too_sure[N // 2 :], known)["log_loss"]
    assert abs(corrected - evaluate("multiclass", target[N // 2 :], too_sure[N // 2 :])["log_loss"]) < 0.06

    said = rng.uniform(0, 100, N)
    truth = said + rng.normal(size=N) * said / 10
    assert performance.estimate_metrics("regression", said) == {}
    small = said < 30
    found = performance.estimate_metrics("regression", said[small], (truth, said))
    came = evaluate("regression", truth[small], said[small])
    assert found["rmse"] == pytest.approx(came["rmse"], rel=0.15)
    assert found["mae"] == pytest.approx(came["mae"], rel=0.15)


def test_what_has_no_figure_is_none_and_not_an_error() -> None:
    one = np.ones(50, dtype=int)
    share, day = np.full(50, 0.9), np.repeat(np.arange(10), 5)
    assert performance.realized_metrics("binary", one, share, day)["auc"] == {"value": None, "lo": None, "hi": None}
    assert performance.realized_metrics("binary", one[:0], share[:0], day[:0]) == {}
    assert performance.calibration_summary("binary", one[:0], share[:0], day[:0])["offset"]["value"] is None
    assert (
        performance.estimate_metrics("binary", share, (one, share))["log_loss"] > 0
    )  # a single class rescales nothing
    assert performance.estimate_metrics("binary", np.array([0.0, 1.0]), None)["log_loss"] == 0
    assert performance.backtest_estimates("binary", []).empty


def test_an_interval_is_one_over_days() -> None:
    """Days with a mood: the interval is far wider than one over rows, and holds the truth about as often as it says."""
    rng, held, width = np.random.default_rng(1), 0, []
    day = np.repeat(np.arange(40), 50)
    for seed in range(60):
        share = expit(-0.5 + rng.normal(0, 0.7, 40)[day])
        target = (rng.random(len(day)) < share).astype(int)
        offset = performance.calibration_summary("binary", target, np.full(len(day), 0.39), day, 200, seed)["offset"]
        truth = expit(rng.normal(-0.5, 0.7, 200_000)).mean() - 0.39
        held += offset["lo"] <= truth <= offset["hi"]
        width.append(offset["hi"] - offset["lo"])
    assert held >= 51  # of 60 at a nominal 95 %: below that in 0.4 % of runs
    assert np.mean(width) > 1.5 * 2 * 1.96 * (0.39 * 0.61 / len(day)) ** 0.5


def test_rows_count_once_and_the_first_label_counts() -> None:
    table = pd.DataFrame(
        {"a": [1, 1, 2, 2, 3], "b": ["x"] * 5, "label": [np.nan, 1.0, 0.0, 1.0, np.nan], "more": range(5)}
    )
    kept, counts = performance.drop_duplicate_rows(table, ["a", "b"], "label")
    assert counts == {"duplicates": 2, "conflicts": 1}
    assert kept["label"].fillna(-1).tolist() == [1, 0, -1]
    assert list(kept.columns) == list(table.columns)
    again, none = performance.drop_duplicate_rows(kept, ["a", "b"], "label")
    assert none == {"duplicates": 0, "conflicts": 0}
    assert again.equals(kept)


# What an input matters


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    """Log-odds = width + new + (1 where kind is a or b) + days since 1970."""
    make_bundle(tmp_path / "bundle")
    return Bundle.open(tmp_path / "bundle")


def rows(n: int = 60) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    table = pd.DataFrame({"width": rng.normal(0, 2, n), "new": rng.integers(0, 2, n) * 1.0})
    table["kind"] = rng.choice(["a", "b", "c", "<script>", ""], n)
    return table.assign(made=rng.integers(0, 86400, n), _id=[f"id {k}" for k in range(n)])


def test_importance_is_that_of_the_graph(bundle: Bundle) -> None:
    """The margin is a sum, so a SHAP value is how far an input's part lies from the background's mean."""
    table = rows()
    found = feature_importance(bundle, table, table)
    background = table.iloc[np.sort(np.random.default_rng(0).choice(60, 50, replace=False))]
    for name, part in {
        "width": lambda t: t["width"],
        "new": lambda t: t["new"],
        "kind": lambda t: t["kind"].isin(["a", "b"]) * 1.0,
        "made": lambda t: t["made"] / 86400,
    }.items():
        expected = (part(table) - part(background).mean()).abs().mean()
        assert found[name] == pytest.approx(expected, abs=1e-4), name
    assert list(found.values()) == sorted(found.values(), reverse=True)
    assert found == feature_importance(bundle, table, table)


def test_an_effect_is_told_of_texts_and_of_several_classes(bundle: Bundle, tmp_path: Path) -> None:
    table = rows(300)
    gone = table.assign(kind="z")
    told = drift_effect(bundle, gone, table, "kind", "_id")
    assert told["output"] < -0.02
    assert {row["value"] for row in told["rows"]} == {"z"}
    make_ladder_bundle(tmp_path / "ladder", classes=["a", "b", "c"])
    ladder = Bundle.open(tmp_path / "ladder")
    columns = {name: np.linspace(-1, 0, 50) for name in ladder.names["numeric"]}
    many = pd.DataFrame(columns | dict.fromkeys(ladder.names["categorical"], "m1"))
    found = drift_effect(ladder, many.assign(width=2.0), many, "width")
    assert (found["class"], found["output"] > 0.05) == ("c", True)
    assert list(feature_importance(ladder, many, many))[-2:] == [
        "maker",
        "maker_best",
    ]  # always the same, so they matter nothing


def test_a_column_that_is_not_there_is_named(bundle: Bundle) -> None:
    with pytest.raises(DataError, match="no column 'width'"):
        feature_importance(bundle, rows().drop(columns="width"), rows())
    with pytest.raises(DataError, match="no rows to explain"):
        feature_importance(bundle, rows()[:0], rows())
