"""Folds: none knows its own future, each task and split has some, and masks that hurt are found out."""

import pickle
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import wraps
from typing import Any, Self

import cloudpickle
import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.pipeline import Pipeline

from nbs_lib.data.roles import Roles
from nbs_lib.models.candidates import CANDIDATES, Candidate, Task, register_candidate
from nbs_lib.models.choice import (
    SearchPlan,
    candidate_cost,
    choice_table,
    choose_over_folds,
    compared_answers,
    decide_masks,
    decide_refit,
    mask_answers,
    masks_cost,
    not_compared,
    refit_sentence,
    search_all,
    search_candidate,
)
from nbs_lib.models.encoding import FeatureLayout, ordinal_encoder
from nbs_lib.models.folds import fold_parts, forward_folds, make_folds
from nbs_lib.models.metrics import evaluate
from nbs_lib.models.net import NetRegressor
from nbs_lib.models.onnx_export import export_graph
from nbs_lib.models.search import fit_setting, learn_from_all, unseen_answers
from nbs_lib.testing.installed_tables import hourly_table

COLUMNS = {"x": {"role": "numeric"}, "who": {"role": "entity", "feature": True}}


def roles(task: str = "binary", **more: Any) -> Roles:
    return Roles("t.csv", "y", task, {"binary": ["no", "yes"], "multiclass": ["a", "b", "c"]}.get(task, []), **more)


@pytest.mark.parametrize("days", [3, 4, 5, 6, 7, 40, 400])
def test_a_fold_in_time_knows_nothing_of_what_comes_later(days: int) -> None:
    rng = np.random.default_rng(days)
    block = np.sort(np.concatenate([np.arange(days), rng.integers(0, days, 20 * days)])) + 19_000
    folds = forward_folds(block)
    assert len(folds) == min(4, days - 2)
    scored = [set(block[score].tolist()) for _, _, score in folds]
    assert len(set().union(*scored)) == sum(map(len, scored)), "a day is scored once"
    for learn, stop, score in folds:
        assert block[learn].max() < block[stop].min()
        assert block[stop].max() < block[score].min()
    assert block[folds[0][2]].max() == block.max(), "the latest days are scored"


@pytest.mark.parametrize("days", [1, 2])
def test_of_too_few_days_there_is_no_fold(days: int) -> None:
    assert forward_folds(np.repeat(np.arange(days), 50)) == []


@pytest.mark.parametrize(("groups", "folds"), [(2, 0), (3, 3), (4, 4), (5, 5), (60, 5)])
def test_the_rows_of_an_entity_stay_together(groups: int, folds: int) -> None:
    table = pd.DataFrame({"_block": np.arange(600) % groups, "_target": np.arange(600) % 2})
    parts = fold_parts(table, roles(entity=["who"]))
    assert len(parts) == folds
    for each in parts:
        groups_of = [set(table["_block"].iloc[rows]) for rows in each]
        assert all(groups_of)
        assert len(set().union(*groups_of)) == sum(map(len, groups_of))
    if parts:
        assert sorted(np.concatenate([score for _, _, score in parts]).tolist()) == list(range(600))


def test_drawn_parts_keep_the_shares_of_the_classes() -> None:
    target = np.repeat([0, 1, 2], [500, 90, 10])
    table = pd.DataFrame({"_block": np.arange(600), "_target": target})
    for _, stop, score in fold_parts(table, roles("multiclass")):
        for rows in (stop, score):
            assert np.bincount(target[rows]).tolist() == [100, 18, 2]


def learned(table: pd.DataFrame, about: Roles, **more: Any) -> Task:
    return Task(about.task, FeatureLayout.learn(table, about), **more)


def test_a_fold_without_a_class_is_left_out_and_without_any_the_validation_rows_choose() -> None:
    rng = np.random.default_rng(0)
    days = np.repeat(np.arange(20), 30)
    late = np.where(days < 11, rng.integers(0, 2, 600), rng.integers(0, 3, 600))  # the third class comes late
    table = pd.DataFrame({"x": rng.normal(size=600).astype("float32"), "_target": late, "_block": days})
    about = roles("multiclass", timestamp="at", columns={"x": {"role": "numeric"}})
    folds = make_folds(table, learned(table, about), about)
    assert 0 < len(folds) < 4
    assert all(fold.learn["_target"].nunique() == 3 for fold in folds)
    never = table.assign(_target=np.where(days < 17, late % 2, late))
    train, valid = never[:540], never[540:]
    task = learned(train, about)
    assert make_folds(train, task, about) == []
    found = search_candidate(SearchPlan(task, 3, [], train, valid, trials=2), CANDIDATES["linear"])
    assert (found.outputs, [trial.folds for trial in found.fitted.trials]) == ([], [1, 1])


def test_the_one_that_is_taken_is_compared_with_the_others_itself() -> None:
    """The net leads linear for certain; the trees, taken because they can't be told from the net, do not."""
    block, zeros = np.arange(200) // 20, np.zeros(200)
    outputs = {"net": zeros + 0.1, "hgb_small": np.where(block % 2, 0.05, 0.16), "linear": zeros + 0.13}
    answers = pd.DataFrame({"_fold": 0, "_target": zeros, "_block": block, **outputs})
    best, told = choose_over_folds(
        answers, {name: candidate_cost(CANDIDATES[name], 1) for name in outputs}, "regression", 0
    )
    assert best == "hgb_small"
    assert told["linear"]["behind"]["lo"] > 0
    assert told["linear"]["behind_taken"]["lo"] < 0


def test_the_choice_names_what_left_the_search() -> None:
    about = {"value": 0.7, "lo": 0.6, "hi": 0.8}
    shown = choice_table(
        {"lgbm": about | {"behind": about}}, "lgbm", "auc", 4, {"net": "left the search", "other": "took no part"}
    )
    assert [*shown["candidate"]] == ["lgbm", "net", "other"]
    assert [*shown.iloc[1]] == ["net", "left the search", "", ""]


@pytest.mark.parametrize("task", ["binary", "multiclass", "regression"])
def test_the_better_candidate_and_setting_win_over_folds(task: str) -> None:
    rng = np.random.default_rng(0)
    x, who = rng.normal(size=1500), rng.choice(list("abc"), 1500)
    score = np.abs(x) + (who == "a") + 0.3 * rng.normal(size=1500)
    target = {"regression": score, "binary": (score > 1).astype(int), "multiclass": np.digitize(score, [0.8, 1.4])}[
        task
    ]
    table = pd.DataFrame({"x": x.astype("float32"), "who": who, "_target": target, "_block": np.arange(1500) // 20})
    about = roles(task, timestamp="at", columns=COLUMNS)
    work = learned(table, about)
    folds = make_folds(table, work, about)
    names = ["dummy", "linear", "hgb_small"]
    costs = {name: candidate_cost(CANDIDATES[name], 1) for name in names}
    plan = SearchPlan(work, len(about.classes), folds, table[:1200], table[1200:], 3)
    found = {name: search_candidate(plan, CANDIDATES[name]) for name in names}
    answers = compared_answers(plan, found)
    assert len(answers) == sum(len(fold.score) for fold in folds)
    best, told = choose_over_folds(answers, costs, task, len(about.classes))
    assert best == "hgb_small", "the target turns round at 0, which no weighted sum tells"
    assert told["linear"]["behind"]["lo"] > 0
    fitted, outputs = found["hgb_small"].fitted, found["hgb_small"].outputs
    taken = fitted.trials[fitted.best]
    assert taken.folds == len(folds) == 4
    assert fitted.trials[0].folds == 4, "the estimator's own setting goes on to the end"
    assert sorted(trial.folds for trial in fitted.trials)[0] == 1
    metric = {"binary": "auc", "multiclass": "log_loss", "regression": "rmse"}[task]
    scored = [
        evaluate(task, fold.score["_target"].to_numpy(), out)[metric] for fold, out in zip(folds, outputs, strict=True)
    ]
    assert np.isclose(np.mean(scored), taken.score)
    again = search_candidate(plan, CANDIDATES["hgb_small"])
    assert again.fitted.trials == fitted.trials
    assert all(np.array_equal(one, other) for one, other in zip(outputs, again.outputs, strict=True))


class Leaning(RegressorMixin, BaseEstimator):
    """Answers by its first number, and by some of its second."""

    def __init__(self, share: float = 0.0) -> None:
        self.share = share

    def fit(self, X: Any, y: Any) -> Self:
        self.fitted_ = True
        return self

    def predict(self, X: Any) -> Any:
        return np.asarray(X)[:, 0] + self.share * np.asarray(X)[:, 1]


@pytest.mark.parametrize(("effect", "taken"), [(-0.1, 0.0), (0.06, 0.0), (0.3, 0.1)])
def test_a_drawn_setting_is_taken_where_it_is_better_beyond_noise(effect: float, taken: float) -> None:
    """The second number matters not at all, by less than can be told, and clearly."""
    rng = np.random.default_rng(5)
    table = pd.DataFrame({each: rng.normal(size=2000).astype("float32") for each in ("x", "late")})
    table["_target"] = table["x"] + effect * table["late"] + rng.normal(size=2000)
    table["_block"] = np.arange(2000) // 25
    about = roles("regression", timestamp="at", columns=dict.fromkeys(("x", "late"), COLUMNS["x"]))
    work = learned(table, about)

    def build(task: Task) -> Pipeline:
        return Pipeline([("encode", ordinal_encoder(task.layout)), ("estimator", Leaning())])

    one = Candidate("leaning", "trees", "", {"share": [0.0, 0.1]}, build)
    folds = make_folds(table, work, about)
    fitted = search_candidate(SearchPlan(work, 0, folds, table[:1600], table[1600:], 2, again=True), one).fitted
    own, drawn = fitted.trials
    assert (drawn.folds == 4 and drawn.score < own.score) == (effect > 0), "the middle case would show nothing"
    assert fitted.trials[fitted.best].params == {"share": taken}
    assert [each[-1].share for each in (fitted.pipeline, fitted.served().pipeline)] == [taken, taken]
    assert fitted.final is not None
    assert fitted.candidate == one


def autoregressive() -> tuple[pd.DataFrame, Roles]:
    """Three places by the hour over a year: near the value before, in a season that no row has seen twice."""
    made, hour = hourly_table(), np.arange(24 * 360)
    table = pd.DataFrame({"before": made["before"], "month": np.repeat(hour // (24 * 30), 3), "who": made["who"]})
    table = table.astype({"before": "float32", "month": "float32"})
    columns = {"before": {"role": "numeric"}, "month": {"role": "numeric"}, "who": COLUMNS["who"]}
    about = roles("regression", timestamp="at", entity=["who"], columns=columns)
    return table.assign(_target=made["value"], _block=np.repeat(hour // 24, 3)), about


def test_masks_never_cost_the_whole_rows_more_than_noise() -> None:
    """Where the value before is hidden, trees explain by the month, and carry that into months they do not know."""
    table, about = autoregressive()
    first, second = int(0.7 * len(table)), int(0.85 * len(table))
    train, valid, test = table[:first], table[first:second], table[second:]
    task = learned(train, about, masks=(("before",), ("who",)), mask=0.2)
    decided, cost = decide_masks(SearchPlan(task, 0, make_folds(train, task, about), train, valid))
    assert cost["hurts"], cost
    assert cost["lost"]["lo"] > 0

    def rmse(task: Task) -> float:
        fitted = fit_setting(CANDIDATES["hgb_small"], {}, task, train, valid)
        return evaluate("regression", test["_target"].to_numpy(), fitted.answers(test)["output"][:, 0])["rmse"]

    masked, unmasked = rmse(task), rmse(replace(task, mask=0.0))
    assert masked > 1.05 * unmasked, "the table would show nothing"
    assert all(fold.task.mask == 0 for fold in decided.folds)
    assert rmse(decided.task) <= 1.02 * min(masked, unmasked)


def test_masks_that_cost_nothing_stay() -> None:
    rng = np.random.default_rng(1)
    x, who = rng.normal(size=3000), rng.choice(list("abcdef"), 3000)
    table = pd.DataFrame({"x": x.astype("float32"), "who": who, "_block": np.arange(3000) // 50})
    table["_target"] = (x + (who < "c") + rng.normal(size=3000) > 0.5).astype(int)
    about = roles(timestamp="at", entity=["who"], columns=COLUMNS)
    folds = make_folds(table, learned(table, about, masks=(("who",),), mask=0.1), about)
    assert not masks_cost(mask_answers(folds), "binary", 2)["hurts"]
    task = learned(table, about, masks=(("who",),), mask=0.1)
    kept, _ = decide_masks(SearchPlan(task, 2, folds, table, table))
    assert (kept.task.mask, [fold.task.mask for fold in kept.folds]) == (0.1, [0.1] * len(folds))


def told_by_x() -> tuple[pd.DataFrame, SearchPlan]:
    """Rows in time whose class one number tells, and how to search for what tells it."""
    rng = np.random.default_rng(0)
    table = pd.DataFrame({"x": rng.normal(size=1200).astype("float32"), "who": rng.choice(list("abc"), 1200)})
    table = table.assign(_target=(table["x"] + rng.normal(size=1200) > 0).astype(int), _block=np.arange(1200) // 20)
    about = roles("binary", timestamp="at", columns=COLUMNS)
    work = learned(table, about)
    return table, SearchPlan(work, 2, make_folds(table, work, about), table[:900], table[900:], 2, again=True)


def backward_as_bytes(work: Callable[[Any], Any], jobs: Sequence[Any]) -> Iterator[tuple[int, Any]]:
    """Do as a cluster does: all travels as bytes, and the last is done first."""
    sent = cloudpickle.dumps(work)
    for place in reversed(range(len(jobs))):
        job = cloudpickle.dumps(jobs[place])
        yield place, pickle.loads(cloudpickle.dumps(pickle.loads(sent)(pickle.loads(job))))


def test_two_at_a_time_find_what_one_after_the_other_finds() -> None:
    table, plan = told_by_x()
    some = [CANDIDATES[name] for name in ("dummy", "linear", "hgb_small", "lgbm", "blend", "net")]
    alone, beside = (search_all(replace(plan, fits={}), some, workers) for workers in (1, 2))
    elsewhere = search_all(plan, some, run=backward_as_bytes)
    assert list(alone) == list(beside) == list(elsewhere) == [one.name for one in some]
    for one, other in [(one, there[name]) for name, one in alone.items() for there in (beside, elsewhere)]:
        assert one.fitted.pipeline[-1] is not other.fitted.pipeline[-1]
        assert one.fitted.trials == other.fitted.trials
        assert all(np.array_equal(*both) for both in zip(one.outputs, other.outputs, strict=True))
        graphs = [export_graph(each.fitted, table).SerializeToString() for each in (one, other)]
        assert graphs[0] == graphs[1]
        assert bool(one.fitted.final) != bool(one.left_because), "each one of the template can learn from all rows"


@pytest.mark.parametrize(
    ("slow", "quick", "answered"), [("dummy", "linear", 2), ("linear", "dummy", 4), ("linear", "linear", 4)]
)
def test_what_is_costly_leaves_the_search_where_another_is_ahead(slow: str, quick: str, answered: int) -> None:
    table, plan = told_by_x()
    said: list[str] = []
    costly = replace(CANDIDATES[slow], name="slow", kind="of its own")
    found = search_all(replace(plan, progress=said.append), [costly, CANDIDATES[quick]])
    fitted = found["slow"].fitted
    assert list(found) == ["slow", quick]
    assert len(found["slow"].outputs) == fitted.trials[0].folds == answered
    assert len(found[quick].outputs) == len(plan.folds) == 4
    assert ("slow: leaves the search, behind a cheaper one after 2 folds" in said) == (answered == 2)
    assert len(not_compared([costly], found)) == (answered == 2)
    assert list(compared_answers(plan, found))[3:] == (["slow", quick] if answered == 4 else [quick])
    alone = fit_setting(costly, {}, plan.task, plan.train, plan.valid)
    alone = learn_from_all(alone, plan.train, plan.valid) if answered == 4 else alone
    assert np.array_equal(fitted.served().answers(table)["output"], alone.served().answers(table)["output"])


def over_after(questions: int) -> Callable[[SearchPlan], bool]:
    """Say that the time of a search is over after so many questions."""
    left = iter(range(questions))
    return lambda _: next(left, None) is None


def test_without_time_the_simplest_are_compared_on_two_folds_and_all_others_take_no_part() -> None:
    table, plan = told_by_x()
    names, said = ["dummy", "linear", "hgb_small", "net"], list[str]()
    some = [CANDIDATES[name] for name in names]
    found = search_all(replace(plan, minutes=1e-9, trials=3, progress=said.append), some)
    assert list(found) == ["dummy", "linear"]
    assert [(len(each.fitted.trials), len(each.outputs)) for each in found.values()] == [(1, 2)] * 2
    late = "took no part, out of time (train.minutes)"
    assert not_compared(some, found) == {"hgb_small": late, "net": late}
    answers = compared_answers(plan, found)
    assert len(answers) == sum(len(fold.score) for fold in plan.folds[:2])
    assert choose_over_folds(answers, dict.fromkeys(found, (0, 0)), "binary", 2)[0] == "linear"
    assert "hgb_small: takes no part, out of time (train.minutes)" in said
    served = found["linear"].fitted.served().answers(table)["output"]
    once = fit_setting(CANDIDATES["linear"], {}, plan.task, plan.train, plan.valid)
    alone = learn_from_all(once, plan.train, plan.valid)
    assert np.array_equal(served, alone.served().answers(table)["output"]), "all rows are learned from all the same"


def test_what_runs_out_of_time_is_compared_where_it_answered_two_folds(monkeypatch: pytest.MonkeyPatch) -> None:
    _, plan = told_by_x()
    costly = replace(CANDIDATES["linear"], name="slow", kind="of its own")
    counts = set()
    for questions in (0, 1, 2, 3, 9, 40):
        with monkeypatch.context() as patch:
            patch.setattr(SearchPlan, "is_over", over_after(questions))
            found = [search_candidate(plan, CANDIDATES["hgb_small"])]
            patch.setattr(SearchPlan, "is_over", over_after(questions))
            found.append(search_candidate(plan, costly))
        for one in found:
            count, name = len(one.outputs), one.fitted.candidate.name
            late = "out of time (train.minutes) after 1 fold"
            assert one.left_because == (late if count == 1 else "")
            taken = one.fitted.trials[one.fitted.best]
            assert taken.folds == count == max(trial.folds for trial in one.fitted.trials)
            assert (one.fitted.final is None) == bool(one.left_because and name == "slow")
            counts.add((name, count))
    assert {count for name, count in counts if name == "slow"} == {1, 2, 3, 4}
    assert len(counts) >= 7


def test_time_that_ends_among_trees_leaves_the_simplest_their_folds(monkeypatch: pytest.MonkeyPatch) -> None:
    """The dummy and the linear model come first: else they had one fold, and all others were cut down to it."""
    _, plan = told_by_x()
    some = [CANDIDATES[name] for name in ("hgb_small", "lgbm", "linear", "dummy")]
    monkeypatch.setattr(SearchPlan, "is_over", over_after(15))
    found = search_all(plan, some, workers=1)
    assert list(found) == ["hgb_small", "linear", "dummy"]
    assert [len(found[name].outputs) for name in ("linear", "dummy")] == [4, 4]
    assert not_compared(some, found)["lgbm"] == "took no part, out of time (train.minutes)"
    counted = compared_answers(plan, found)["_fold"].nunique()
    assert counted == (4 if found["hgb_small"].left_because else len(found["hgb_small"].outputs))


def test_without_folds_and_time_only_the_own_setting_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    _, plan = told_by_x()
    found = search_all(replace(plan, folds=[], trials=3, minutes=1e-9), [CANDIDATES["linear"], CANDIDATES["hgb_small"]])
    assert list(found) == ["linear"]
    assert len(found["linear"].fitted.trials) == 1
    some, said = [CANDIDATES["hgb_small"], CANDIDATES["linear"]], list[str]()
    found = search_all(replace(plan, minutes=1e-9, progress=said.append), some, run=backward_as_bytes)
    assert [(name, len(one.outputs)) for name, one in found.items()] == [("linear", 2)], "the end is sent along"
    assert "hgb_small: takes no part, out of time (train.minutes)" in said
    monkeypatch.setattr(SearchPlan, "is_over", over_after(1))
    one = search_candidate(replace(plan, folds=[], trials=3), CANDIDATES["linear"])
    assert len(one.fitted.trials) == 2


def test_a_search_that_runs_again_begins_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """A cell of a notebook runs twice: neither its time nor what it learned is that of the first time."""
    _, plan = told_by_x()
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    limited = replace(plan, minutes=1)
    first = search_all(limited, [CANDIDATES["linear"]], workers=1)["linear"]
    now[0] = 61.0
    second = search_all(limited, [CANDIDATES["linear"]], workers=1)["linear"]
    assert len(first.outputs) == len(second.outputs) == 4
    assert first.fitted.pipeline[-1] is not second.fitted.pipeline[-1]
    assert plan.fits == {}


def test_what_was_learned_for_a_decision_is_not_learned_again(monkeypatch: pytest.MonkeyPatch) -> None:
    _, plan = told_by_x()
    task = replace(plan.task, masks=(("who",),), mask=0.2)
    folds = [replace(fold, task=replace(fold.task, masks=(("who",),), mask=0.2)) for fold in plan.folds]
    learned: list[int] = []
    fit = HistGradientBoostingClassifier.fit

    @wraps(fit)
    def counted(self: Any, X: Any, *rest: Any, **more: Any) -> Any:
        learned.append(len(X))
        return fit(self, X, *rest, **more)

    monkeypatch.setattr(HistGradientBoostingClassifier, "fit", counted)
    begun, _ = decide_masks(replace(plan, task=task, folds=folds))
    assert len(learned) == 8, "four folds with masks, and without"
    decided, _ = decide_refit(begun)
    assert len(learned) == 12, "once more, from the rows that stop too"
    search_all(replace(decided, trials=1, again=True), [CANDIDATES["hgb_small"]])
    assert len(learned) == 14, "from all training rows, and once more"


@pytest.mark.parametrize("name", ["dummy", "linear", "hgb_small", "lgbm", "blend", "net"])
@pytest.mark.parametrize("task", ["binary", "multiclass", "regression"])
def test_what_learns_once_more_learns_from_the_latest_rows(task: str, name: str) -> None:
    """One column matters in the validation rows alone: only what has learned from them follows it."""
    rng = np.random.default_rng(0)
    table = pd.DataFrame({each: rng.normal(size=2400).astype("float32") for each in ("x", "late")})
    truth = table["x"] + (np.arange(2400) >= 1200) * table["late"] + rng.normal(size=2400) / 9
    target = {"binary": truth > 0, "multiclass": np.digitize(truth, [-0.5, 0.5]), "regression": truth}[task]
    table["_target"] = np.asarray(target, float if task == "regression" else int)
    work = Task(task, FeatureLayout(("x", "late"), (), (), ()), epochs=3)
    train, valid = table[:1200], table[1200:]
    once = fit_setting(CANDIDATES[name], {}, work, train, valid)
    again = learn_from_all(once, train, valid)
    unseen = valid.assign(_split=np.where(np.arange(1200) < 600, "valid", "test"))
    answers, first, served = unseen_answers(again, unseen), once.answers(unseen), again.served().answers(unseen)
    for part, values in answers.items():
        assert np.array_equal(values[:600], first[part][:600]), "judged on validation rows: what has not seen them"
        assert np.array_equal(values[600:], served[part][600:])
    assert again.calibration == once.calibration
    if name != "dummy":
        follows = [np.corrcoef(each["margin"][:, -1], valid["late"])[0, 1] for each in (first, served)]
        assert follows[1] > follows[0] + 0.1, follows


def test_the_rounds_follow_the_rows_up_to_what_the_setting_allows() -> None:
    rng = np.random.default_rng(0)
    table = pd.DataFrame({"x": rng.normal(size=900).astype("float32")})
    table["_target"] = (table["x"] + rng.normal(size=900) > 0).astype(int)
    work = Task("binary", FeatureLayout(("x",), (), (), ()))
    for name, most in {"hgb_small": "max_iter", "lgbm": "rounds"}.items():
        for allowed in (1000, 12):
            setting = {most: allowed, "learning_rate": 0.04}
            once = fit_setting(CANDIDATES[name], setting, work, table[:600], table[600:])
            again = learn_from_all(once, table[:600], table[600:]).served().pipeline[-1]
            counts = [getattr(each, "n_iter_", None) or each.rounds_ for each in (once.pipeline[-1], again)]
            assert counts[1] == min(round(counts[0] * 1.5), allowed), (name, counts)
            assert 12 < counts[0] < 1000 or allowed == 12, "it has stopped by itself"


def test_no_candidate_takes_the_name_of_the_context_model() -> None:
    with pytest.raises(ValueError, match="the context model"):
        register_candidate("context", "linear", "what answers for newcomers")


class Drawing(RegressorMixin, BaseEstimator):
    """Learns what it draws from the numbers that all threads share; `twice` tells of a second one meanwhile."""

    learning, twice = 0, False

    def fit(self, X: Any, y: Any) -> Self:
        Drawing.learning += 1
        time.sleep(0.5 if len(X) == 740 else 0.02)  # all training rows take long enough for a fold to begin
        Drawing.twice |= Drawing.learning > 1
        Drawing.learning -= 1
        self.fitted_ = True
        return self

    def predict(self, X: Any) -> Any:
        return np.asarray(X)[:, 0]


@pytest.mark.parametrize("draws_alone", [False, True])
def test_what_draws_from_the_numbers_of_all_learns_alone(draws_alone: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Drawing, "draws_alone", draws_alone, raising=False)
    monkeypatch.setattr(Drawing, "twice", False)
    rng = np.random.default_rng(5)
    table = pd.DataFrame({"x": rng.normal(size=900).astype("float32"), "_block": np.arange(900) // 25})
    table["_target"] = table["x"] + rng.normal(size=900)
    about = roles("regression", timestamp="at", columns={"x": COLUMNS["x"]})
    work = learned(table, about)

    def build(task: Task) -> Pipeline:
        return Pipeline([("encode", ordinal_encoder(task.layout)), ("estimator", Drawing())])

    plan = SearchPlan(work, 0, make_folds(table, work, about), table[:740], table[740:], 1)
    search_all(plan, [Candidate(name, "net", "", {}, build) for name in ("one", "other")])
    assert Drawing.twice == draws_alone


def test_two_nets_at_once_are_what_each_is_alone() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(400, 3)).astype(np.float32)
    before = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled(), torch.get_rng_state()

    def weights(seed: int) -> list[Any]:
        net = NetRegressor(passes=2.0, width=16, random_state=seed).fit(x, x[:, 0])
        return [each.numpy() for each in net.net_.state_dict().values()]

    alone = [weights(seed) for seed in (1, 2)]
    with ThreadPoolExecutor(2) as pool:
        beside = list(pool.map(weights, (1, 2)))
    for one, other in zip(alone, beside, strict=True):
        assert all(np.array_equal(a, b, equal_nan=True) for a, b in zip(one, other, strict=True))
    assert not np.array_equal(alone[0][-1], alone[1][-1])
    assert before[:2] == (torch.get_num_threads(), torch.are_deterministic_algorithms_enabled())
    assert torch.equal(before[2], torch.get_rng_state())


def test_a_net_whose_loss_was_never_a_number_learned_for_no_time() -> None:
    net = CANDIDATES["net"].build(Task("regression", FeatureLayout(("x",), (), (), ()), epochs=1))[-1]
    x = np.random.default_rng(0).normal(size=(200, 1)).astype(np.float32)
    never = net.fit(x, x[:, 0], x, np.full(200, np.nan))
    assert never.settings_of_length() == {"passes": 0.0}


def test_the_folds_say_whether_to_learn_once_more() -> None:
    """Where the level drifts, the latest days help; where each window is the opposite of the last, they mislead."""
    rng = np.random.default_rng(0)
    day = np.arange(3000) // 30
    x = rng.normal(size=3000).astype("float32")
    about = roles("regression", timestamp="at", columns={"x": {"role": "numeric"}})
    drifts = pd.DataFrame({"x": x, "_target": x + day / 10, "_block": day})

    def decide(table: pd.DataFrame) -> tuple[SearchPlan, dict[str, Any]]:
        task = learned(table, about)
        return decide_refit(SearchPlan(task, 0, make_folds(table, task, about), table, table))

    plan, found = decide(drifts)
    assert plan.again
    assert found["taken"]
    assert found["gained"]["lo"] > 0
    flips = drifts.assign(_target=np.where(day // 10 % 2, -x, x))
    plan, said = decide(flips)
    assert not plan.again
    assert not said["taken"]
    assert said["gained"]["hi"] < 0
    assert refit_sentence(found, "rmse").endswith("the training and the validation rows.")
    assert refit_sentence(said, "rmse").endswith("the training rows alone.")
    assert decide_refit(replace(plan, folds=[]))[1] == {"taken": False}
