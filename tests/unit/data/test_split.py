"""Whatever the table: every row is on one side, and no day, group or future is on both."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nbs_lib.core.errors import DataError
from nbs_lib.data.roles import Roles
from nbs_lib.data.split import (
    MISSING_TIME,
    feature_table,
    split_at_random,
    split_by_group,
    split_by_time,
    split_ordered,
    training_set,
)

shares = st.tuples(st.floats(0.05, 0.4), st.floats(0.05, 0.4))


@given(st.lists(st.integers(1, 50), min_size=3, max_size=40), shares)
def test_a_cut_is_whole_ordered_and_near(rows: list[int], share: tuple[float, float]) -> None:
    part = split_ordered(np.array(rows), *share)
    assert len(part) == len(rows)
    assert set(part) == {0, 1, 2}
    assert (np.diff(part) >= 0).all()
    test = np.array(rows)[part == 2].sum() / np.sum(rows)
    assert abs(test - share[1]) <= 2 * max(rows) / sum(rows) + 1e-9


@given(st.lists(st.integers(0, 10**8), min_size=3, max_size=60), shares)
@settings(deadline=None)
def test_time_order_is_respected(seconds: list[int], share: tuple[float, float]) -> None:
    times = pd.Series(pd.to_datetime(seconds, unit="s", utc=True), name="at")
    if times.dt.date.nunique() < 3:
        with pytest.raises(DataError, match="three days"):
            split_by_time(times, *share)
        return
    part, day = split_by_time(times, *share)
    assert pd.Series(part).groupby(day).nunique().max() == 1
    for earlier, later in ((0, 1), (1, 2)):
        assert times[part == earlier].max() < times[part == later].min()


def test_days_are_local_across_a_change_of_the_clock() -> None:
    local = pd.Series(pd.date_range("2024-03-08", "2024-03-13", freq="30min", tz="America/New_York", inclusive="left"))
    part, day = split_by_time(local.dt.tz_convert("UTC").rename("at"), 0.2, 0.2, "America/New_York")
    assert np.bincount(day - day[0]).tolist() == [48, 48, 46, 48, 48], "the day on which clocks go forward has 23 hours"
    assert pd.to_datetime(day[0], unit="D") == pd.Timestamp("2024-03-08")
    assert pd.Series(part).groupby(day).nunique().max() == 1


def test_the_zone_of_the_roles_decides_the_blocks() -> None:
    table, roles = example(400, timestamp="at", timezone="America/New_York")
    ready = training_set(table, roles, 0.2, 0.2)
    local = table["at"].dt.tz_convert("America/New_York").dt.strftime("%Y-%m-%d")
    assert (pd.to_datetime(ready["_block"], unit="D").dt.strftime("%Y-%m-%d") == local[ready["_row"]].to_numpy()).all()


@given(
    st.lists(st.tuples(st.sampled_from("abcdefgh"), st.sampled_from(["x", "y", None])), min_size=5, max_size=80),
    shares,
    st.integers(0, 99),
)
@settings(deadline=None)
def test_groups_are_never_on_both_sides(
    who: list[tuple[str, str | None]], share: tuple[float, float], seed: int
) -> None:
    entity = pd.DataFrame(who, columns=["name", "place"])
    if len(entity.drop_duplicates()) < 3:
        with pytest.raises(DataError, match="three of them"):
            split_by_group(entity, *share, seed)
        return
    part, group = split_by_group(entity, *share, seed)
    assert set(part) == {0, 1, 2}
    assert pd.Series(part).groupby(group).nunique().max() == 1
    assert len(set(group)) == len(entity.drop_duplicates())
    again, _ = split_by_group(entity, *share, seed)
    assert (part == again).all()


@given(st.lists(st.integers(0, 3), min_size=40, max_size=200), shares, st.integers(0, 99))
@settings(deadline=None)
def test_a_draw_keeps_the_shares_of_each_class(ids: list[int], share: tuple[float, float], seed: int) -> None:
    target = np.array(ids)
    part, row = split_at_random(target, *share, seed)
    assert (row == np.arange(len(ids))).all()
    for value in set(ids):
        here = part[target == value]
        assert abs((here == 2).sum() - share[1] * len(here)) <= 1
        assert abs((here == 1).sum() - share[0] * len(here)) <= 1


def example(rows: int, **roles: object) -> tuple[pd.DataFrame, Roles]:
    rng = np.random.default_rng(0)
    table = pd.DataFrame({"at": pd.date_range("2024-01-01", periods=rows, freq="6h", tz="UTC")})
    table["who"] = [f"w{i % 9}" for i in range(rows)]
    table["n"] = np.where(rng.random(rows) < 0.2, np.nan, rng.random(rows))
    table["s"] = rng.choice(np.array(["a", "b", None], dtype=object), rows)
    table["y"] = rng.choice(np.array(["no", "yes", None], dtype=object), rows)
    decided = Roles("t", "y", "binary", ["no", "yes"], **roles)  # type: ignore[arg-type]
    kinds = {"at": "time", "who": "dropped", "n": "numeric", "s": "categorical", "y": "target"}
    decided.columns = {name: {"role": role} for name, role in kinds.items()}
    return table, decided


@pytest.mark.parametrize("roles", [{"timestamp": "at"}, {"entity": ["who"]}, {}])
def test_the_training_set_is_complete(roles: dict[str, object]) -> None:
    table, decided = example(400, **roles)
    ready = training_set(table, decided, 0.2, 0.2)
    assert ready["_row"].tolist() == np.flatnonzero(table["y"].notna()).tolist()
    when = ["_time", "_entity"] if decided.timestamp else []
    assert ready.columns.tolist() == ["n", "s", "at", *when, "_target", "_split", "_block", "_row"]
    assert ready["n"].dtype == "float32"
    assert ready["at"].dtype == ready["_target"].dtype == ready["_block"].dtype == ready["_row"].dtype == "int64"
    assert ready["s"].isin(["a", "b", ""]).all()
    assert (ready["_target"] == (table["y"][ready["_row"]] == "yes").to_numpy()).all()
    assert set(ready["_split"]) == {"train", "valid", "test"}
    assert ready.groupby("_block")["_split"].nunique().max() == 1


def test_missing_times_and_truth_values() -> None:
    table = pd.DataFrame({"t": pd.to_datetime(["2024-01-01", None], utc=True), "b": [True, None]})
    roles = Roles("t", "y", "regression", [], columns={"t": {"role": "time"}, "b": {"role": "numeric"}})
    ready = feature_table(table, roles)
    assert ready["t"].tolist() == [1704067200, MISSING_TIME]
    assert ready["b"].iloc[0] == 1
    assert np.isnan(ready["b"].iloc[1])


def test_all_timestamps_equal() -> None:
    table, roles = example(100, timestamp="at")
    with pytest.raises(DataError, match="has only 2024-01-01"):
        training_set(table.assign(at=table["at"].iloc[0]), roles, 0.2, 0.2)


def test_a_class_that_comes_too_late() -> None:
    table, roles = example(100, timestamp="at")
    with pytest.raises(DataError, match="No row of the train part has 'y' = 'yes'"):
        training_set(table.assign(y=["no"] * 90 + ["yes"] * 10), roles, 0.2, 0.2)


def test_a_number_too_large_for_a_feature() -> None:
    table, roles = example(100)
    with pytest.raises(DataError, match="column 'n': 1e\\+39 is too large"):
        training_set(table.assign(y=["no", "yes"] * 50, n=1e39), roles, 0.2, 0.2)
