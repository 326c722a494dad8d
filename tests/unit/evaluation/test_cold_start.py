"""Somebody new, a view that failed, a time and nothing else: each gets a sensible answer."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.model_selection import KFold
from sklearn.preprocessing import OrdinalEncoder, TargetEncoder

from nbs_lib.bundle.bundle import inference_session, run_graph
from nbs_lib.data.arrays import MISSING_TIME
from nbs_lib.data.roles import Roles
from nbs_lib.data.split import training_set
from nbs_lib.evaluation.cold_start import (
    CASE_ALL_NEW,
    CASE_UNKNOWN_IDENTITIES,
    add_identities,
    calendar_periods,
    check_encoding_leak,
    entity_columns,
    missing_data_cases,
    newcomer_mask,
    newcomer_shares,
)
from nbs_lib.features.default_views import build_default_views
from nbs_lib.features.join import attach_views, build_views
from nbs_lib.models import context_model as context
from nbs_lib.models.candidates import CANDIDATES, REQUIRED_CANDIDATES, Task
from nbs_lib.models.encoding import FeatureLayout
from nbs_lib.models.metrics import evaluate, squeeze_output
from nbs_lib.models.onnx_export import export_graph, graph_feeds
from nbs_lib.models.search import FittedCandidate, hide_features, mask_groups, mask_rows, tune_candidate
from nbs_lib.studies import cold_start_simulation as markets

DAY = 86_400
MARGIN = 0.02  # of a log loss: what chance does on so few rows
LEARNERS = [name for name in CANDIDATES if name not in REQUIRED_CANDIDATES or name == "linear"]


def visits(rows: int = 24_000, seed: int = 0) -> pd.DataFrame:
    """Visits to a few shops over four months: some shops are always late, all of them are in the evening."""
    rng = np.random.default_rng(seed)
    at = np.sort(rng.integers(0, 120 * DAY, rows)) + 15_000 * DAY
    shop = rng.choice([f"shop {k}" for k in range(8)], rows)
    odds = np.where(shop >= "shop 4", 0.6, 0.15) + np.where(at % DAY > 64_000, 0.25, 0)
    when = pd.to_datetime(at, unit="s", utc=True).as_unit("us")
    late = np.where(rng.random(rows) < odds, "yes", "no")
    return pd.DataFrame({"at": when, "shop": shop, "size": rng.normal(size=rows), "late": late})


class World:
    """A table with views, its training set, and a model that was masked."""

    def __init__(self, folder: Path) -> None:
        columns = {"at": {"role": "timestamp", "feature": False}, "late": {"role": "target"}}
        columns |= {"shop": {"role": "entity", "feature": True}, "size": {"role": "numeric"}}
        self.snapshot, self.folder = visits(), folder
        told = {"timestamp": "at", "entity": ["shop"], "label_delay": "1d", "columns": columns}
        plain = Roles("visits.csv", "late", "binary", ["no", "yes"], **told)
        self.views = build_default_views(plain)
        self.roles, _ = build_views(self.snapshot, plain, self.views, folder / "views", folder)
        self.table = training_set(attach_views(self.snapshot, self.roles, folder / "views"), self.roles, 0.2, 0.2)
        self.train, self.valid, self.test = (self.table[self.table._split == s] for s in ("train", "valid", "test"))

    def learn(self, name: str = "hgb_small", mask: float = 0.2) -> FittedCandidate:
        task = Task("binary", FeatureLayout.learn(self.train, self.roles), 0, 2, mask_groups(self.roles), mask)
        return tune_candidate(CANDIDATES[name], task, self.train, self.valid, trials=1)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def simulated(world: World) -> pd.DataFrame:
    chosen = markets.find_newcomer_groups(world.table, world.roles)
    return markets.simulate_cold_start(chosen, world.table, world.snapshot, world.roles, 0.2, companions=world.folder)


def loss(table: pd.DataFrame, output: np.ndarray) -> float:
    return evaluate("binary", table["_target"].to_numpy(), squeeze_output(output))["log_loss"]


@pytest.mark.parametrize("name", LEARNERS)
def test_an_unseen_value_answers_as_a_missing_one(world: World, name: str) -> None:
    fitted = world.learn(name)
    rows = world.test[:200]
    layout = fitted.task.layout
    ask = inference_session(export_graph(fitted, world.train).SerializeToString())
    strangers = {value: rows.assign(shop=value) for value in ("", "never seen", "é\n<b>", "7")}
    answers = {value: run_graph(ask, graph_feeds(table, layout))[0] for value, table in strangers.items()}
    for value, answer in answers.items():
        assert np.array_equal(answer, answers[""]), value
        assert np.isfinite(answer).all()


@pytest.mark.parametrize("name", LEARNERS)
def test_every_case_gets_an_answer(world: World, name: str) -> None:
    fitted = world.learn(name)
    for case, names in missing_data_cases(world.roles).items():
        output = fitted.answers(hide_features(world.test, names))["output"]
        assert np.isfinite(output).all(), case
        assert 0 < output.min() < output.max() < 1 or set(names) >= set(fitted.task.layout.features), case


def test_a_time_alone_gets_a_sensible_answer(world: World) -> None:
    known = context.fit_context_model(world.table, world.roles)
    assert known is not None
    assert context.context_inputs(world.roles) == {"numeric": ["size"], "categorical": [], "time": ["at"]}
    ask = inference_session(known.model.SerializeToString())
    hours = np.array([[8 * 3600], [20 * 3600], [MISSING_TIME]]) + np.array([[18_000 * DAY], [18_000 * DAY], [0]])
    morning, evening, never = run_graph(ask, {"numeric": np.full((3, 1), np.nan, np.float32), "time": hours})[0][:, 0]
    assert 0.2 < morning < evening - 0.1 < 0.7
    assert 0 < never < 1
    assert set(known.predictions._split) == {"valid", "test"}


def test_no_context_model_where_nobody_can_be_new() -> None:
    table = pd.DataFrame({"size": np.zeros(9, "float32"), "_split": "train", "_target": 0})
    roles = Roles("t.csv", "y", "binary", ["no", "yes"], columns={"size": {"role": "numeric"}})
    assert context.fit_context_model(table, roles) is None
    assert mask_groups(roles) == ()
    assert mask_rows(table, mask_groups(roles), 0.5) is table
    assert markets.simulation_summary([]).startswith("There is nothing to simulate")


def test_masking_is_drawn_once_for_each_seed(world: World) -> None:
    groups = mask_groups(world.roles)
    assert groups[-1] == tuple(world.roles.identities) == ("shop",)
    assert {name for group in groups[:-1] for name in group} == set(world.roles.numeric) - {"size"}
    first, again, other = (mask_rows(world.train, groups, 0.2, seed) for seed in (0, 0, 1))
    pd.testing.assert_frame_equal(first, again)
    assert not first.equals(other)
    whole = (first[world.roles.identities] != "").all(axis=1)
    assert 0.08 < 1 - whole.mean() < 0.12
    assert world.train["shop"].ne("").all(), "the rows themselves stay"
    assert first.dtypes.equals(world.train.dtypes)


def test_masking_pays_where_something_is_missing(world: World) -> None:
    bare, ready = world.learn(mask=0.0), world.learn(mask=0.2)
    gone = hide_features(world.test, missing_data_cases(world.roles)["everybody new"])
    assert loss(gone, ready.answers(gone)["output"]) < loss(gone, bare.answers(gone)["output"])
    assert loss(world.test, ready.answers(world.test)["output"]) < (
        loss(world.test, bare.answers(world.test)["output"]) + MARGIN
    )


def test_a_withheld_newcomer_costs_no_more_than_a_model_without_identities(simulated: pd.DataFrame) -> None:
    first = simulated[simulated["day"] < 3]
    assert len(first) > 100
    assert first[markets.MODEL_FILLING_VIEWS].mean() <= first[markets.CONTEXT_MODEL].mean() + MARGIN


def test_the_curve_never_falls_behind_its_first_day(simulated: pd.DataFrame) -> None:
    for age, rows in markets.rows_by_age(simulated["day"].to_numpy()).items():
        some = simulated[rows]
        assert some[markets.MODEL_FILLING_VIEWS].mean() <= some[markets.MODEL_EMPTY_VIEWS].mean() + MARGIN, age
    late = simulated[simulated["day"] >= 14]
    assert late[markets.MODEL_FILLING_VIEWS].mean() < late[markets.MODEL_EMPTY_VIEWS].mean(), (
        "history is worth something"
    )


def test_nothing_before_the_start_is_known_of_a_newcomer(world: World) -> None:
    market = markets.find_newcomer_groups(world.table, world.roles)[0]
    rows = markets.newcomer_rows(market, world.table, world.snapshot, world.roles, world.folder, views=world.views)
    history, before = (t["shop_history_rows"] for t in (rows, world.table.loc[rows.index]))
    fresh = (rows["_time"] < market.start + DAY).to_numpy()
    assert history[fresh].isna().all(), "no label is known on the first day"
    assert before[fresh].notna().all()
    early = (rows["_time"] < market.start + 3 * DAY).to_numpy()
    assert (history.fillna(0) <= before).all()
    assert (history.fillna(0) < before)[early].mean() > 0.5


@pytest.mark.parametrize("target", ["binary", "regression"])
def test_a_target_mean_that_is_not_cross_fitted_is_caught(target: str) -> None:
    rng = np.random.default_rng(0)
    levels = pd.DataFrame({"who": rng.integers(0, 400, 2000).astype(str), "where": rng.choice(["a", "b"], 2000)})
    y = rng.integers(0, 2, 2000) if target == "binary" else rng.normal(size=2000)
    leaks, sentence = check_encoding_leak(markets.LeakyTargetEncoder, levels, y)
    assert leaks, sentence
    assert "tells the model their targets" in sentence
    unknown = {"handle_unknown": "use_encoded_value", "unknown_value": -1}
    for honest in (lambda: OrdinalEncoder(**unknown), lambda: TargetEncoder(cv=KFold(5, shuffle=True, random_state=0))):
        leaks, sentence = check_encoding_leak(honest, levels, y)
        assert not leaks, sentence


def test_newcomers_are_counted_against_all_before_them() -> None:
    when = pd.Series(pd.to_datetime([f"2024-0{month}-15" for month in (1, 1, 2, 3, 4, 4)], utc=True))
    rows = pd.DataFrame({"who": ["a", "b", "c", "a", "c", None]})
    period, word = calendar_periods(when)
    assert word == "month"
    assert newcomer_shares(rows, {"who": ["who"]}, period)["who"].tolist() == [1.0, 0.0, 0.0]
    assert newcomer_mask(rows[:2], rows[2:], ["who"]).tolist() == [True, False, True, False]


def test_a_number_that_only_says_whose_row_it_is_can_be_new(world: World, tmp_path: Path) -> None:
    snapshot = world.snapshot.assign(shop=world.snapshot["shop"].str[5:].astype("int64"))
    last = snapshot.index[-300:]
    snapshot.loc[last, "shop"] = 99
    about = world.roles.without_views().columns | {"shop": {"role": "entity", "feature": False}}
    plain = Roles("t.csv", "late", "binary", ["no", "yes"], "at", ["shop"], label_delay="1d", columns=about)
    roles, _ = build_views(snapshot, plain, build_default_views(plain), tmp_path / "views", tmp_path)
    table = training_set(attach_views(snapshot, roles, tmp_path / "views"), roles, 0.2, 0.2)
    assert roles.identities == []
    assert "shop" not in table
    assert entity_columns(roles) == {"shop": ("shop",)}
    assert (
        set(missing_data_cases(roles)["new shop"])
        == set(missing_data_cases(roles)[CASE_ALL_NEW])
        == set(roles.numeric) - {"size"}
    )
    assert CASE_UNKNOWN_IDENTITIES not in missing_data_cases(roles)
    whole = add_identities(table, snapshot, roles)
    train, test = (whole[whole["_split"] == part] for part in ("train", "test"))
    assert set(test.loc[newcomer_mask(train, test, ["shop"]), "_row"]) == set(last) & set(test["_row"]) != set()
    shares = newcomer_shares(snapshot, entity_columns(roles), calendar_periods(snapshot["at"])[0])["shop"]
    assert shares.iloc[-1] > 0
    assert (shares.iloc[:-1] == 0).all()
