"""The time machine: nothing is learned from the future, learning again pays, and the gate keeps accidents out."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import Project

from nbs_lib.core.errors import DataError
from nbs_lib.core.files import write_table
from nbs_lib.data.resolve import resolve_roles
from nbs_lib.data.roles import Roles
from nbs_lib.data.source import read_source
from nbs_lib.data.split import training_set
from nbs_lib.evaluation.paired_test import ChallengeRules
from nbs_lib.features.default_views import build_default_views
from nbs_lib.features.join import attach_views, build_views
from nbs_lib.models.encoding import DAY_S
from nbs_lib.retrain.decision import RetrainPolicy
from nbs_lib.studies.backtest import BacktestData, BacktestModel, policies, replay, run_policy
from nbs_lib.studies.backtest_fits import (
    Recipe,
    WeeklyFits,
    champion_recipe,
    full_training_set,
    make_calendar,
    open_fits,
)
from nbs_lib.studies.backtest_monitor import BacktestMonitor
from nbs_lib.studies.backtest_page import (
    choose_policy,
    compare_policies,
    difference_table,
    policy_summary,
    policy_table,
    retraining_table,
    weekly_metrics,
)

LINEAR = Recipe("linear", "linear", {}, 0.2)
BASE = RetrainPolicy(labels=100)


def roles_of(task: str = "binary", delay: str = "1d") -> Roles:
    classes = {"binary": ["no", "yes"], "multiclass": ["a", "b", "c"], "regression": []}[task]
    about = {"x": {"role": "numeric"}, "z": {"role": "numeric"}, "y": {"role": "target"}}
    return Roles("t.csv", "y", task, classes, "at", label_delay=delay, columns=about)


def made(task: str = "binary", days: int = 182, rows: int = 9000) -> pd.DataFrame:
    """A training set whose target begins to follow a second column half-way."""
    rng = np.random.default_rng(0)
    second = np.sort(rng.integers(0, days * DAY_S, rows)) + 15_000 * DAY_S
    x, z = rng.normal(size=(2, rows)).astype("float32")
    score = x + 3 * z * (second >= (15_000 + days // 2) * DAY_S)
    target = {
        "binary": (rng.random(rows) < 1 / (1 + np.exp(-score))).astype(int),
        "multiclass": np.digitize(score + rng.normal(size=rows), [-0.5, 0.5]),
        "regression": score + rng.normal(size=rows),
    }[task]
    return pd.DataFrame({"x": x, "z": z, "_time": second, "_target": target, "_block": second // DAY_S})


def fits_of(folder: Path, table: pd.DataFrame, roles: Roles, say: Callable[[str], None] = lambda _: None) -> WeeklyFits:
    return WeeklyFits(table, roles, make_calendar(table, roles, LINEAR.valid), LINEAR, folder, say=say)


@pytest.mark.parametrize("task", ["binary", "multiclass", "regression"])
def test_learning_again_pays_where_the_world_changes(task: str, tmp_path: Path) -> None:
    past = BacktestData(fits_of(tmp_path, made(task), roles_of(task)), ChallengeRules(resamples=50), held=2)
    courses = replay(past, BASE)
    found = weekly_metrics(courses, past)
    told = compare_policies(courses, found, task, 200)
    by = {each["policy"]: each for each in told}
    assert by["weekly"]["gain"]["lo"] > 0
    assert by["weekly, gate"]["gain"]["lo"] > 0
    assert by["never"]["fits"] == 1
    assert ("recalibrate only" in by) == (task != "regression"), "a value has no calibration"
    if task == "regression":
        last = len(past.calendar) - 1
        one, two = (past.performance(BacktestModel(0), last, promised)["diff"] for promised in (1.0, 2.0))
        assert (two + 1) * 2 == pytest.approx(one + 1), "shares of what was promised"
    before = found[(found["week"] < 8) & found["policy"].isin(["never", "weekly"])].groupby("policy")["loss"].sum()
    assert before["weekly"] == pytest.approx(before["never"], rel=0.05), "nothing is gained before the change"
    chosen = choose_policy(told)
    assert chosen is not None
    assert policy_summary(told, task).startswith(f"Choose {chosen['policy'].removesuffix(', gate')}, with the gate")
    assert len(policy_table(told, task)) == len(difference_table(told)) == len(courses)
    assert len(retraining_table(courses, past, chosen))


def test_nothing_is_learned_from_a_label_that_was_not_known(tmp_path: Path) -> None:
    table, roles = made(), roles_of(delay="14d")
    calendar = make_calendar(table, roles, LINEAR.valid)
    last = table["_time"][calendar.known[5] - 1]
    assert last + 14 * DAY_S <= calendar.days[5] * DAY_S < table["_time"][calendar.known[5]] + 14 * DAY_S
    later = table.index >= calendar.known[5]
    other = table.assign(_target=np.where(later, 1 - table["_target"], table["_target"]))
    answers = [
        fits_of(tmp_path / name, each, roles).output(5, calendar.of(8)) for name, each in (("a", table), ("b", other))
    ]
    assert (answers[0] == answers[1]).all()
    fits = fits_of(tmp_path / "a", table, roles)
    with pytest.raises(ValueError, match="has learned from row"):
        fits.output(5, slice(int(calendar.known[5]) - 1, int(calendar.rows[6])))


@pytest.mark.parametrize("held", [0.15, 2])
def test_the_gate_judges_by_rows_that_neither_has_seen(held: float, tmp_path: Path) -> None:
    past = BacktestData(fits_of(tmp_path, made(), roles_of()), ChallengeRules(resamples=50), held)
    found = run_policy("weekly", policies(BASE)["weekly"], past, gated=True)
    contested = [turn for turn in found.turns if turn.gate]
    assert len(contested) > 5
    known = past.calendar.known
    for champion, challenger, week, _ in past._contests:
        rows = past.since(challenger.until, week)
        assert rows.start >= known[max(champion.until, challenger.until)]
        assert rows.stop == known[week]
        least = known[week] * held if held < 1 else known[week] - known[week - held]
        assert rows.stop - rows.start >= least
    for turn in found.turns[1:]:
        assert turn.model == BacktestModel(0) or turn.model.fit <= past.newest_gated_fit(turn.week) < turn.week


def test_the_gate_keeps_an_accident_out(tmp_path: Path) -> None:
    table = made(rows=12000)
    table["_target"] = (np.random.default_rng(1).random(len(table)) < 1 / (1 + np.exp(-2 * table["x"]))).astype(int)
    calendar = make_calendar(table, roles_of(), LINEAR.valid)

    class Spoilt(WeeklyFits):
        def _learn(self, week, path):  # type: ignore[no-untyped-def]
            fit = super()._learn(week, path)
            return replace(fit, margin=-fit.margin) if week == 6 else fit

    past = BacktestData(Spoilt(table, roles_of(), calendar, LINEAR, tmp_path), ChallengeRules(resamples=100), held=2)
    courses = {each.name: each for each in replay(past, BASE)}
    assert BacktestModel(6) in [turn.model for turn in courses["weekly"].turns]
    guarded = courses["weekly, gate"].turns
    assert BacktestModel(6) not in [turn.model for turn in guarded]
    assert guarded[8].gate == "REJECT"
    assert guarded[-1].model.fit > 6, "and the next good one is let in"


def test_nothing_is_learned_while_the_contract_is_broken(tmp_path: Path) -> None:
    table, roles = made(days=224), roles_of()
    calendar = make_calendar(table, roles, LINEAR.valid)
    other_unit = table["_block"].between(calendar.days[10], calendar.days[12] - 1)
    table["x"] = np.where(other_unit, table["x"] * 1000, table["x"]).astype("float32")
    fits = WeeklyFits(table, roles, calendar, LINEAR, tmp_path)
    past = BacktestData(fits, ChallengeRules(resamples=50), 0.15, BacktestMonitor(table, roles, calendar))
    found = run_policy("weekly", policies(BASE)["weekly"], past, gated=False)
    stopped = {turn.week for turn in found.turns if turn.verdict == "contract failure"}
    assert {11, 12} <= stopped, "the two weeks in another unit are seen when they are over"
    assert not stopped & set(range(11))
    assert found.stopped == len(stopped)
    assert not found.fits & stopped
    assert found.turns[12].model == BacktestModel(10)


def test_a_replay_that_was_killed_goes_on(tmp_path: Path) -> None:
    table, said = made(), []

    def until_the_fourth(line: str) -> None:
        said.append(line)
        if len(said) == 4:
            raise KeyboardInterrupt

    fits = fits_of(tmp_path, table, roles_of(), until_the_fourth)
    with pytest.raises(KeyboardInterrupt):
        run_policy("weekly", policies(BASE)["weekly"], BacktestData(fits, ChallengeRules(), 0.15), gated=False)
    again: list[str] = []
    resumed = fits_of(tmp_path, table, roles_of(), again.append)
    found = run_policy("weekly", policies(BASE)["weekly"], BacktestData(resumed, ChallengeRules(), 0.15), gated=False)
    assert len(said) - 1 + len(again) == len(found.fits), "the fourth was told before it was kept"
    assert len(list(tmp_path.iterdir())) == 1
    other = table.assign(x=table["x"] * 2)
    fits_of(tmp_path, other, roles_of())
    assert len(list(tmp_path.iterdir())) == 1, "fits of other rows are dropped"
    assert not list(fits_of(tmp_path, other, roles_of()).folder.iterdir())


def test_where_there_is_nothing_to_replay_it_says_so(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="takes 16 weeks, and the table spans 14"):
        make_calendar(made(days=100), roles_of(), 0.2)
    with pytest.raises(DataError, match="do not hold every class"):
        make_calendar(made().assign(_target=0), roles_of(), 0.2)
    fits, why = open_fits("t.csv", replace(roles_of(), timestamp=None), LINEAR)
    assert fits is None
    assert "without data.timestamp" in why
    with pytest.raises(DataError, match="no longer exists"):
        champion_recipe("gone", {"gone": {"params": {}}}, 0.2)


def test_a_week_without_rows_and_a_late_class_are_passed_over(tmp_path: Path) -> None:
    table, roles = made("multiclass"), roles_of("multiclass")
    early = table["_block"] < 15_070
    table = table[~(early & (table["_target"] == 2))].reset_index(drop=True)
    table = table[~table["_block"].between(15_126, 15_132)].reset_index(drop=True)
    calendar = make_calendar(table, roles, LINEAR.valid)
    assert calendar.days[0] > 15_070, "the first week is one whose past holds every class"
    past = BacktestData(WeeklyFits(table, roles, calendar, LINEAR, tmp_path), ChallengeRules(resamples=50), held=0.15)
    courses = replay(past, BASE)
    found = weekly_metrics(courses, past)
    gap = int(np.searchsorted(calendar.days, 15_126))
    assert gap in range(len(calendar))
    assert set(found["week"]) == set(range(len(calendar))) - {gap}
    assert compare_policies(courses, found, "multiclass", 20)[0]["policy"] == "never"


def test_the_whole_table_is_the_pipelines_where_that_ends(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    at = pd.to_datetime(np.sort(rng.integers(0, 150 * DAY_S, 3000)) + 15_000 * DAY_S, unit="s", utc=True)
    shop = rng.choice(["a", "b", "c"], 3000)
    visits = pd.DataFrame({"at": at, "shop": shop, "x": rng.normal(size=3000), "note": "same"})
    visits["late"] = np.where(rng.random(3000) < 0.3, "yes", "no")
    source = tmp_path / "visits.parquet"
    write_table(visits, source)
    given = {"source": str(source), "target": "late", "timestamp": "at", "entity": ["shop"], "label_delay": "1d"}
    rows, plain = resolve_roles(read_source(str(source)), given | {"as_of": "2011-04-01"})
    rows = rows.reset_index(drop=True)
    roles, _ = build_views(rows, plain, build_default_views(plain), tmp_path / "views", tmp_path / "none")
    then = training_set(attach_views(rows, roles, tmp_path / "views"), roles, 0.2, 0.2)
    table, joined = full_training_set(str(source), roles)
    assert len(table) == 3000 > len(then)
    assert joined.views == roles.views
    features = [*roles.numeric, *roles.categorical, *roles.time, "_target", "_time", "_block"]
    pd.testing.assert_frame_equal(table[: len(then)][features], then[features].reset_index(drop=True))


def test_the_study_says_when_a_table_has_no_weeks(project: Project) -> None:
    done = project.nbs("study", "replay")
    assert done.returncode == 0, done.stderr[-2000:]
    assert "a table without data.timestamp has no weeks" in (project.root / "reports/replay.html").read_text()
