"""What a table holds is counted right whatever it holds, adds up, and is judged by the reference's own windows."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy import stats
from scipy.spatial.distance import jensenshannon

from nbs_lib.core.errors import DataError
from nbs_lib.data.split import local_days
from nbs_lib.monitor.counts.binning import CATEGORICAL, NUMERIC, fit_bins
from nbs_lib.monitor.counts.histogram import Profile, add_profiles
from nbs_lib.monitor.counts.profile import profile_files, profile_table
from nbs_lib.monitor.counts.scan import open_scan
from nbs_lib.monitor.data_quality import SEVERITY_FAIL, SEVERITY_WARN, blocking_checks, check_data_quality
from nbs_lib.monitor.drift import MIN_REFERENCE_WINDOWS, column_distances, drift_limits, drift_verdict
from nbs_lib.studies.alarm_rates import apply_shifts, check_enough_days, draw_trials, false_alarm_rates

DAY = 86400
KINDS = {"x": "numeric", "n": "numeric", "k": "categorical"}
TESTS = Path(__file__).parent


def days(count: int, first: int = 0, seed: int = 0, rows: int = 60) -> pd.DataFrame:
    rng = np.random.default_rng([seed, first])
    size = count * rows
    common = np.repeat(rng.normal(size=count), rows)
    table = {
        "x": common + rng.normal(size=size),
        "n": rng.integers(0, 9, size),
        "k": rng.choice(["a", "b", "c", ""], size, p=[0.5, 0.3, 0.15, 0.05]),
        "at": np.repeat(np.arange(first, first + count), rows) * DAY + rng.integers(0, DAY, size),
        "id": np.arange(size) + first * rows,
    }
    return pd.DataFrame(table)


USUAL = days(84)
COLUMNS = fit_bins(USUAL, KINDS)
REFERENCE = profile_table(USUAL, COLUMNS, "at", id="id")
WEEK = days(7, first=84)


def week(table: pd.DataFrame, **more: Any) -> Profile:
    return profile_table(table, COLUMNS, "at", id="id", **more)


def failures(table: pd.DataFrame, **more: Any) -> set[tuple[str, str | None]]:
    ledger = check_data_quality(REFERENCE, week(table), **more)
    json.dumps(ledger, allow_nan=False)
    return {(entry["check"], entry["column"]) for entry in blocking_checks(ledger)}


# What is counted


@given(st.lists(st.one_of(st.floats(width=32), st.none()), max_size=40), st.integers(1, 9))
@example([0.0, 1.1754943508222875e-38], 1)  # a range whose inverse is no float32
@settings(max_examples=30, deadline=None)
def test_each_row_is_counted_once_whatever_it_holds(values: list[float | None], parts: int) -> None:
    table = pa.table(
        {"x": pa.array(values, pa.float32()), "at": pa.array([k * 7000 for k in range(len(values))], pa.int64())}
    )
    columns = fit_bins(table, {"x": "numeric"})
    whole = profile_table(table, columns, "at")
    assert len(whole) == whole.total("x").sum() == len(values)
    missing = sum(value is None or value != value for value in values)
    infinite = sum(value is not None and value in (float("inf"), -float("inf")) for value in values)
    assert whole.total("x")[-2:].tolist() == [missing, infinite]
    pieces = [profile_table(table.slice(k, parts), columns, "at") for k in range(0, max(len(values), 1), parts)]
    together = add_profiles(pieces)
    assert together.days.tolist() == whole.days.tolist()
    assert (together.counts["x"] == whole.counts["x"]).all()
    assert together.first.tolist() == whole.first.tolist()


@pytest.mark.parametrize("name", ["x", "n"])
def test_distances_are_the_exact_ones(name: str) -> None:
    other = days(30, first=84, seed=5).assign(x=lambda t: t["x"] * 1.3 + 0.4, n=lambda t: t["n"] + (t["at"] % 2))
    found = column_distances(REFERENCE, week(other))[name]["distance"]
    a, b = USUAL[name].astype(float), other[name].astype(float)
    winsorized = b.clip(a.min() - 0.02 if name == "x" else a.min(), a.max() + (0.02 if name == "x" else 1))
    assert found == pytest.approx(stats.wasserstein_distance(a, winsorized) / a.std(ddof=0), abs=2e-3)


def test_levels_are_compared_exactly() -> None:
    other = days(30, first=84, seed=5).assign(k=lambda t: t["k"].replace("b", "c"))
    p, q = (table.loc[table["k"] != "", "k"].value_counts(normalize=True) for table in (USUAL, other))
    p, q = p.align(q, fill_value=0)
    assert column_distances(REFERENCE, week(other))["k"]["distance"] == pytest.approx(jensenshannon(p, q, base=2))


def test_one_slip_does_not_blind_the_bins() -> None:
    table = USUAL.assign(x=USUAL["x"].where(USUAL.index != 3, 1e9))
    columns = fit_bins(table, {"x": "numeric"})
    assert columns["x"].high < 100
    reference = profile_table(table, columns)
    assert reference.total("x")[columns["x"].bins + 3] == 1  # the slip, far above
    assert column_distances(reference, profile_table(WEEK.assign(x=WEEK["x"] + 0.5), columns))["x"]["distance"] > 0.2


@pytest.mark.parametrize("zone", ["UTC", "America/New_York", "Australia/Lord_Howe"])
def test_days_are_local_where_clocks_change(zone: str) -> None:
    at = np.arange(1_362_700_000, 1_384_000_000, 5_000)
    expected = pd.Series(pd.to_datetime(at, unit="s", utc=True)).dt.tz_convert(zone).dt.strftime("%Y-%m-%d")
    number = (pd.to_datetime(expected) - pd.Timestamp(0)).dt.days
    assert local_days(pd.Series(pd.to_datetime(at, unit="s", utc=True)), zone).tolist() == number.tolist()
    found = profile_table(pd.DataFrame({"at": at}), {}, "at", zone)
    assert found.rows.tolist() == number.value_counts().sort_index().tolist()


@pytest.mark.parametrize("form", ["seconds", "timestamp", "text"])
def test_times_may_be_written_in_three_ways(form: str) -> None:
    times = pd.Series(pd.to_datetime(WEEK["at"], unit="s", utc=True))
    at = {"seconds": WEEK["at"], "timestamp": times, "text": times.dt.strftime("%Y-%m-%dT%H:%M:%S+00:00")}[form]
    assert week(WEEK.assign(at=at)).days.tolist() == list(range(84, 91))


def test_a_time_centuries_away_belongs_to_no_day() -> None:
    found = week(WEEK.assign(at=WEEK["at"].where(WEEK.index > 1, WEEK["at"] * 10**9)))
    assert (found.untimed, len(found)) == (2, len(WEEK) - 2)


@pytest.mark.parametrize(
    "table", [WEEK.iloc[:0], WEEK.iloc[:1], WEEK.assign(x=np.nan, k=""), WEEK.assign(x=np.inf, n=1)]
)
def test_poor_tables_are_counted_and_learned_from(table: pd.DataFrame) -> None:
    assert len(week(table)) == len(table)
    own = fit_bins(table, KINDS)
    assert len(profile_table(table, own, "at")) == len(table)
    told = drift_verdict(REFERENCE, [week(table)], drift_limits(REFERENCE, 7))
    json.dumps(told, allow_nan=False)


def test_new_levels_by_the_thousand_are_counted_and_few_are_named() -> None:
    found = week(WEEK.assign(k=[f"</script>{n}" for n in range(len(WEEK))]))
    assert found.total("k")[COLUMNS["k"].new] == len(WEEK)
    assert len(found.new["k"]) == 7 * 20
    assert len(drift_verdict(REFERENCE, [found], drift_limits(REFERENCE, 7))["columns"][0]["new_levels"]) <= 20


def test_a_column_with_too_many_levels_has_no_new_ones() -> None:
    ids = pd.DataFrame({"k": [f"id {n}" for n in range(30_000)]})
    columns = fit_bins(ids, {"k": "categorical"})
    assert columns["k"].open
    other = profile_table(pd.DataFrame({"k": ["never seen"] * 5}), columns)
    assert other.total("k")[columns["k"].new] == 0


# Files


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for day, rows in days(10).groupby(lambda k: k // 60):
        rows.to_parquet(tmp_path / f"2020-01-{day + 1:02}.parquet")
    return tmp_path


def test_a_folder_a_pattern_and_a_csv_file_are_the_same_table(folder: Path) -> None:
    days(10).to_csv(folder / "all.csv", index=False)
    found = [profile_table(where, COLUMNS, "at") for where in (folder, f"{folder}/2020-*.parquet", folder / "all.csv")]
    assert all((each.counts["k"] == found[0].counts["k"]).all() for each in found)
    assert [len(each) for each in found] == [600] * 3


def test_only_new_and_changed_files_are_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import nbs_lib.monitor.counts.profile as module

    read: list[str] = []
    real = module.profile_table
    monkeypatch.setattr(module, "profile_table", lambda path, *rest: (read.append(path.name), real(path, *rest))[1])
    once = profile_files(folder, COLUMNS, folder / "kept", "at")
    assert len(read) == 10
    days(2).to_parquet(folder / "2020-01-04.parquet")
    days(1, first=20).to_parquet(folder / "2020-01-21.parquet")
    damaged = next((folder / "kept").glob("2020-01-07*"))
    damaged.write_bytes(damaged.read_bytes()[:99])
    read.clear()
    twice = profile_files(folder, COLUMNS, folder / "kept", "at")
    assert read == ["2020-01-04.parquet", "2020-01-07.parquet", "2020-01-21.parquet"]
    assert (twice.counts["x"] == profile_table(folder, COLUMNS, "at").counts["x"]).all()
    assert len(once) == 600


@pytest.mark.parametrize("harm", ["cut", "empty", "text"])
def test_a_half_written_file_is_named(folder: Path, harm: str) -> None:
    path = folder / "2020-01-05.parquet"
    whole = path.read_bytes()
    path.write_bytes({"cut": whole[: len(whole) // 2], "empty": b"", "text": b"a,b\n1,2\n" * 9}[harm])
    with pytest.raises(DataError, match=r"2020-01-05\.parquet"):
        profile_table(folder, COLUMNS, "at")


def test_a_profile_is_kept_whole(tmp_path: Path) -> None:
    REFERENCE.save(tmp_path / "a.npz")
    REFERENCE.save(tmp_path / "b.npz")
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    again = Profile.load(tmp_path / "a.npz")
    assert again.columns == REFERENCE.columns
    assert all((again.counts[name] == REFERENCE.counts[name]).all() for name in COLUMNS)
    data = (tmp_path / "a.npz").read_bytes()
    for size in (0, 10, len(data) // 2, len(data) - 1):
        (tmp_path / "a.npz").write_bytes(data[:size])
        with pytest.raises(DataError, match=r"a\.npz is damaged"):
            Profile.load(tmp_path / "a.npz")


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: profile_table("nowhere.parquet", COLUMNS), "there is no file nowhere.parquet"),
        (lambda: profile_table(WEEK, COLUMNS, "when"), "the table has no column 'when'"),
        (lambda: profile_table(WEEK, COLUMNS, "at", "Mars/Olympus"), "there is no time zone 'Mars/Olympus'"),
        (lambda: fit_bins(WEEK, {"xx": "numeric"}), "the reference has no column 'xx'"),
        (lambda: profile_table(pd.DataFrame({"x": [1, "a"]}), COLUMNS), "give each column one type"),
    ],
)
def test_bad_input_is_one_sentence(call: Any, said: str) -> None:
    with pytest.raises(DataError) as error:
        call()
    assert said in str(error.value)


# Limits and verdicts


def test_a_short_reference_never_alarms() -> None:
    short = REFERENCE.between(0, 7 * MIN_REFERENCE_WINDOWS - 2)
    assert drift_limits(short, 7) == {}
    told = drift_verdict(short, [week(WEEK.assign(x=1e6))] * 3, drift_limits(short, 7))
    assert (told["status"], [row["over"] for row in told["columns"]]) == ("insufficient reference", [False] * 3)


def test_drift_is_a_column_over_its_limit_in_windows_running() -> None:
    allowed, moved = drift_limits(REFERENCE, 7), week(WEEK.assign(x=WEEK["x"] + 4))
    other = week(WEEK.assign(k="a"))
    weeks = {"usual": week(WEEK), "moved": moved, "other": other}
    for names, expected in [
        ("usual moved", "watch"),
        ("moved usual", "ok"),
        ("moved moved", "drift"),
        ("moved other", "watch"),
        ("moved", "watch"),
    ]:
        told = drift_verdict(REFERENCE, [weeks[name] for name in names.split()], allowed)
        assert told["status"] == expected, names
    assert drift_verdict(REFERENCE, [moved] * 2, allowed, patience=3)["status"] == "watch"


def test_missing_values_have_a_limit_of_their_own() -> None:
    told = drift_verdict(
        REFERENCE, [week(WEEK.assign(x=WEEK["x"].where(WEEK.index % 4 > 0)))], drift_limits(REFERENCE, 7)
    )
    row = told["columns"][0]
    assert (row["column"], row["by"], row["over"]) == ("x", "nulls", True)


def test_weights_order_and_silence_nothing() -> None:
    changed, allowed = week(WEEK.assign(x=WEEK["x"] + 9, n=WEEK["n"] + 9)), drift_limits(REFERENCE, 7)
    plain = drift_verdict(REFERENCE, [changed], allowed)
    weighed = drift_verdict(REFERENCE, [changed], allowed, weights={"x": 1e-9, "n": 1.0, "k": 0.0})
    assert {row["column"] for row in weighed["columns"] if row["over"]} == {"x", "n"}
    assert weighed["columns"][0]["column"] == "n"
    assert plain["status"] == weighed["status"]


def test_fewer_rows_get_wider_limits() -> None:
    sizes = [drift_limits(REFERENCE, 7, rows=rows)["n"].distance for rows in (20, 100, None)]
    assert sizes[0] > sizes[1] > sizes[2]


def test_false_alarms_are_as_rare_as_promised() -> None:
    rng = np.random.default_rng(1)
    day = np.repeat(np.arange(120), 40)
    weather = np.repeat(rng.normal(size=(120, 6)), 40, axis=0)  # of each day, as strong as the rows' own
    table = pd.DataFrame(weather + rng.normal(size=weather.shape), columns=list("abcdef")).assign(at=day * DAY)
    columns = fit_bins(table, dict.fromkeys("abcdef", "numeric"))
    assert check_enough_days(120, 7) is None
    assert "need" in str(check_enough_days(20, 7))
    made = list(draw_trials(profile_table(table, columns, "at"), 7, 200))
    alarmed = list(false_alarm_rates(made).values())
    assert alarmed[0].value <= 0.1
    assert alarmed[2].value > 0.9  # the fixed limit
    found = [each for each in apply_shifts(made[:40], table, day) if each.shift == "all values 2 sd up"]
    assert np.mean([each.drift for each in found]) > 0.8


# The contract


def test_an_ordinary_window_keeps_the_contract() -> None:
    assert failures(WEEK, now=91 * DAY) == set()


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda t: t.assign(x=t["x"] * 1000), ("range", "x")),
        (lambda t: t.assign(n=t["n"] * 1.609 + 3), ("jump", "n")),
        (lambda t: t.assign(k=t["k"].replace("b", "B")), ("levels", "k")),
        (lambda t: t.assign(n=4), ("stuck", "n")),
        (lambda t: t.assign(k="a"), ("stuck", "k")),
        (lambda t: t.assign(x=np.nan), ("missing", "x")),
        (lambda t: t.assign(k=""), ("missing", "k")),
        (lambda t: t.assign(x=t["x"].where(t.index > 3, np.inf)), ("finite", "x")),
        (lambda t: t.drop(columns="n"), ("schema", "n")),
        (lambda t: t.rename(columns={"x": "X"}), ("schema", "x")),
        (lambda t: t.assign(x=t["x"].astype(str)), ("schema", "x")),
        (lambda t: t.iloc[::2], ("volume", None)),
        (lambda t: pd.concat([t, t]), ("duplicates", None)),
        (lambda t: t.assign(at=t["at"].where(t.index > 30, np.nan)), ("times", None)),
        (lambda t: t.assign(at=t["at"].where(t.index > 30, t["at"] + 30 * DAY)), ("future", None)),
        (lambda t: t.assign(at=t["at"] - 5 * DAY), ("freshness", None)),
        (lambda t: t.iloc[:1], ("rows", None)),
        (lambda t: t.iloc[:0], ("rows", None)),
    ],
)
def test_the_contract_catches(change: Any, expected: tuple[str, str | None]) -> None:
    assert expected in failures(change(WEEK), now=91 * DAY, window=7)


def test_a_column_that_is_stuck_because_the_store_is_stale_is_a_warning() -> None:
    stuck = week(WEEK.assign(n=4))
    ledger = check_data_quality(REFERENCE, stuck, views=["n"])
    assert {entry["severity"] for entry in ledger if not entry["passed"]} == {SEVERITY_WARN}
    assert any("store" in entry["sentence"] for entry in ledger)
    assert {entry["severity"] for entry in check_data_quality(REFERENCE, stuck) if not entry["passed"]} == {
        SEVERITY_FAIL
    }


def test_a_new_column_is_a_warning() -> None:
    ledger = check_data_quality(REFERENCE, week(WEEK.assign(extra=1)))
    assert [entry["check"] for entry in ledger if not entry["passed"]] == ["new columns"]
    assert blocking_checks(ledger) == []


def test_an_empty_text_column_has_no_other_type() -> None:
    assert ("schema", "k") not in failures(WEEK.assign(k=None))


@pytest.mark.parametrize("order", [(CATEGORICAL, NUMERIC), (NUMERIC, CATEGORICAL)])
def test_columns_may_have_the_names_that_the_queries_use(order: tuple[str, str]) -> None:
    """As the table of an airport's weather, with a column `day`."""
    names = ["day", "level", "n", "cell", "source", "value", "rows", "levels_1", "c0", "count", "select", "low"]
    rng, kinds = np.random.default_rng(0), {name: order[k % 2] for k, name in enumerate(names)}
    drawn = {NUMERIC: lambda: rng.normal(size=300), CATEGORICAL: lambda: rng.choice(["a", "b", None], 300)}
    table = pd.DataFrame({name: drawn[kind]() for name, kind in kinds.items()}).assign(at=np.arange(300) * 3600)
    new = next(name for name, kind in kinds.items() if kind == CATEGORICAL)
    later = table.assign(**{new: "never seen"})
    plain = {name: f"x{k}" for k, name in enumerate(names)}
    found = profile_table(later, fit_bins(table, kinds), "at")
    bins = fit_bins(table.rename(columns=plain), {plain[name]: kind for name, kind in kinds.items()})
    other = profile_table(later.rename(columns=plain), bins, "at")
    for name in names:
        np.testing.assert_array_equal(found.counts[name], other.counts[plain[name]])
    assert found.new == {new: other.new[plain[new]]}


def test_a_name_is_no_pattern(tmp_path: Path) -> None:
    """`p[1]` as a pattern is `p1`, which lies beside it."""
    for folder, value in (("p[1]", 1.0), ("p1", 9.0)):
        (tmp_path / folder).mkdir()
        pd.DataFrame({"x": [value] * 5}).to_parquet(tmp_path / folder / "t.parquet")
    with open_scan(tmp_path / "p[1]/t.parquet") as (db, _):
        assert db.execute("SELECT avg(x) FROM source").fetchall() == [(1.0,)]
