"""A model that knows no more than what anybody could answer from the past is refused."""

from typing import Any

import numpy as np
import pandas as pd
import pytest

from nbs_lib.data.roles import Roles
from nbs_lib.data.split import training_set
from nbs_lib.evaluation.gate import decide_gate
from nbs_lib.evaluation.naive import NAIVE, NAIVE_ANSWERS, add_best_naive, naive_predictions
from nbs_lib.evaluation.scores import BASELINES, score_on_test, score_on_valid
from nbs_lib.models.candidates import CANDIDATES, Task
from nbs_lib.models.encoding import FeatureLayout
from nbs_lib.models.metrics import predictions_table
from nbs_lib.models.search import tune_candidate

HOURS, PLACES, START = 24 * 90, 3, pd.Timestamp("2024-01-01", tz="UTC")
NAMES = ["dummy", "linear", "hgb_small"]


def roles(task: str = "regression", classes: list[str] | None = None, **more: Any) -> Roles:
    columns = {"at": {"role": "timestamp"}, "place": {"role": "entity"}, "before": {"role": "numeric"}}
    return Roles("walk.csv", "level", task, classes or [], timestamp="at", entity=["place"], columns=columns, **more)


def hourly(value: np.ndarray) -> pd.DataFrame:
    """Values of each place and hour [hours, places], and beside each what it was an hour before."""
    before = np.vstack([np.full((1, PLACES), np.nan), value[:-1]])
    at = np.repeat(START + pd.to_timedelta(np.arange(HOURS), "h"), PLACES).astype("datetime64[us, UTC]")
    rows = {"at": at, "place": np.tile(list("abc"), HOURS), "before": before.ravel(), "level": value.ravel()}
    return pd.DataFrame(rows)


def judged(table: pd.DataFrame) -> tuple[str, dict[str, Any]]:
    """What the gate says of a model that learned from these rows; and the metrics."""
    about, parts = roles(), training_set(table, roles(), 0.2, 0.2)
    train, valid, unseen = (parts[parts["_split"] == name] for name in ("train", "valid", "test"))
    task = Task("regression", FeatureLayout.learn(train, about))
    fits = {name: tune_candidate(CANDIDATES[name], task, train, valid, 1) for name in NAMES}
    unseen = pd.concat([valid, unseen])
    told = predictions_table({name: fit.answers(unseen) for name, fit in fits.items()}, unseen)
    naive, both = add_best_naive(told, parts, about)
    best, on_valid = score_on_valid(both, NAMES, "regression", 0)
    test = both[both["_split"] == "test"]
    found = score_on_test(test, [*NAMES, NAIVE], "regression", 0, 200, rivals=[*BASELINES, NAIVE])
    candidates = {name: {"valid": on_valid[name], **found[name]} for name in NAMES}
    metrics = {"task": "regression", "primary": "rmse", "best": best, "candidates": candidates}
    metrics["naive"] = {"name": naive, "what": NAIVE_ANSWERS[naive], **found[NAIVE]}
    return naive, decide_gate(metrics, 1e-6, 1.0)


def test_a_random_walk_is_refused() -> None:
    """Its last value tells nearly all of it, so R² is near 1, and there is nothing more to be learned."""
    rng = np.random.default_rng(0)
    naive, decision = judged(hourly(rng.normal(size=(HOURS, PLACES)).cumsum(axis=0)))
    assert naive == "last_value"
    assert decision["decision"] == "REJECT"
    failed = [entry["check"] for entry in decision["ledger"] if entry["passed"] is False]
    assert "beats naive" in failed
    assert "R²" not in failed
    assert "beat the last known value in RMSE beyond noise" in decision["sentence"]


def test_what_the_last_value_alone_does_not_tell_is_promoted() -> None:
    """A value that stays near the last one, and that each hour moves its own way."""
    rng, moves = np.random.default_rng(0), 3 * np.sin(np.arange(HOURS) * 2 * np.pi / 6)[:, None]
    value = np.zeros((HOURS, PLACES))
    for hour in range(1, HOURS):
        value[hour] = 0.9 * value[hour - 1] + moves[hour] + rng.normal(size=PLACES)
    naive, decision = judged(hourly(value))
    assert naive
    assert decision["decision"] == "PROMOTE", decision["sentence"]
    assert {"beats dummy", "beats naive", "R²"} < {entry["check"] for entry in decision["ledger"]}


@pytest.mark.parametrize(("horizon", "delay", "late"), [("0s", "0s", 1), ("2h", "0s", 3), ("1h", "5h", 7)])
def test_nothing_is_used_that_was_not_known_then(horizon: str, delay: str, late: int) -> None:
    """The hour as the value: what answers is as many hours old as horizon and delay ask for, and one more."""
    hours = np.repeat(np.arange(HOURS, dtype=float)[:, None], PLACES, axis=1)
    about = roles(horizon=horizon, label_delay=delay)
    found = naive_predictions(training_set(hourly(hours), about, 0.2, 0.2), about)
    told = found[found["_split"] == "test"]
    assert (told["_target"] - told["last_value"] == late).all()
    assert (told["_target"] - told["week_before"] == 7 * 24).all()
    assert (told["recent_mean"] < told["last_value"]).all()


@pytest.mark.parametrize("classes", [["no", "yes"], ["a", "b", "c"]])
def test_the_last_class_is_a_probability(classes: list[str]) -> None:
    rng = np.random.default_rng(0)
    stays = rng.random((HOURS, PLACES)) < 0.9
    value = rng.integers(0, len(classes), (HOURS, PLACES))
    for hour in range(1, HOURS):
        value[hour] = np.where(stays[hour], value[hour - 1], value[hour])
    table = hourly(value.astype(float)).assign(level=np.array(classes)[value].ravel())
    about = roles("binary" if len(classes) == 2 else "multiclass", classes)
    parts = training_set(table, about, 0.2, 0.2)
    best, both = add_best_naive(parts[parts["_split"] != "train"].drop(columns="_time"), parts, about)
    assert best == "last_value"
    shares = both[[name for name in both if str(name).startswith(NAIVE)]].to_numpy()
    assert shares.shape[1] == (1 if len(classes) == 2 else 3)
    assert (shares > 0).all()
    assert (shares < 1).all()
    if len(classes) > 2:
        assert np.allclose(shares.sum(axis=1), 1)
    right = (shares[:, 0] > 0.5) if len(classes) == 2 else shares.argmax(axis=1)
    assert (right == both["_target"]).mean() > 0.85


def test_a_table_without_time_has_none() -> None:
    parts = pd.DataFrame({"_row": range(4)})
    naive, same = add_best_naive(parts, parts, Roles("t.csv", "y", "regression", []))
    assert naive == ""
    assert list(same) == ["_row"]
