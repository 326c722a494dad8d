"""Feature views: what was not known at its own prediction time is in no row, and a view with a slip is refused."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT

from nbs_lib.core.errors import ViewError
from nbs_lib.core.files import write_table
from nbs_lib.data.roles import Roles
from nbs_lib.features import catalog as catalog
from nbs_lib.features import join as features
from nbs_lib.features.default_views import build_default_views
from nbs_lib.features.join import attach_views, build_views, declared_views
from nbs_lib.features.views import Measure, View, order_views, rolling_features, view_versions

HOUR = pd.Timedelta("1h")
START = pd.Timestamp("2024-03-01", tz="UTC")


def jobs(rows: int = 3000, seed: int = 0) -> pd.DataFrame:
    """Jobs of a dozen workers over two months; how a job went is known when it has ended."""
    rng = np.random.default_rng(seed)
    began = START + pd.to_timedelta(np.sort(rng.integers(0, 60 * 86400, rows)), unit="s")
    table = pd.DataFrame(
        {"began": began.astype("datetime64[us, UTC]"), "worker": rng.choice(list("abcdefghijkl"), rows)}
    )
    table["ended"] = table["began"] + pd.to_timedelta(rng.integers(600, 86400, rows), unit="s")
    table["failed"] = rng.choice(["no", "yes"], rows, p=[0.8, 0.2])
    return table


def roles_of(table: pd.DataFrame) -> Roles:
    columns = {
        "began": {"role": "timestamp"},
        "worker": {"role": "entity", "feature": True},
        "ended": {"role": "later"},
        "failed": {"role": "target"},
    }
    as_of = str(table["ended"].max() + HOUR)
    return Roles(
        "jobs.csv",
        "failed",
        "binary",
        ["no", "yes"],
        "began",
        ["worker"],
        horizon="2h",
        label_delay="1d",
        as_of=as_of,
        columns=columns,
    )


def week(timestamp: str = "ended", delay: str = "30min") -> View:
    windows = {"1d": "1 day", "7d": "7 days"}
    measures = {"failed": Measure("avg(_target)", "share of failed jobs"), "jobs": Measure("count(*)", "jobs")}
    return View(
        "week",
        **rolling_features("snapshot", ["worker"], timestamp, windows, measures, days="7d"),
        delay=delay,
        ttl="7d",
    )


Joined = Callable[[pd.DataFrame], pd.DataFrame]


def moved(join: Joined, before: pd.DataFrame, after: pd.DataFrame, moment: pd.Timestamp) -> list[str]:
    """The features that another future changes in rows predicted by a moment; fails where it changes nothing at all."""
    first, second = join(before), join(after)
    known = (before["began"] - 2 * HOUR <= moment).to_numpy()
    names = [name for name in first if name.startswith(("week", "worker_"))]
    assert not first.loc[~known, names].equals(second.loc[~known, names]), "a change would be noticed"
    return [
        n
        for n in names
        if not first.loc[known, n].reset_index(drop=True).equals(second.loc[known, n].reset_index(drop=True))
    ]


def joined_by(view: View, place: Path) -> Joined:
    def join(table: pd.DataFrame) -> pd.DataFrame:
        given = replace(roles_of(table), as_of="2030-01-01", label_delay="0s")  # else such a view is refused
        roles, _ = build_views(table, given, [view], place, place / "none")
        return attach_views(table, roles, place)

    return join


@pytest.mark.parametrize("hours", [200, 500, 900])
def test_a_planted_future_is_seen_by_no_row_and_is_seen_without_known_at(hours: int, tmp_path: Path) -> None:
    table, moment = jobs(), START + hours * HOUR
    unknown = table["ended"] + pd.Timedelta("30min") > moment
    planted = table.assign(failed=table["failed"].where(~unknown, "yes"))
    assert moved(joined_by(week(), tmp_path), table, planted, moment) == []
    without_known_at = joined_by(week(timestamp="began", delay="0s"), tmp_path)
    assert "week_failed_1d" in moved(without_known_at, table, planted, moment)


def test_an_outcome_that_is_known_too_soon_is_refused(tmp_path: Path) -> None:
    table = jobs(400)

    def build(*views: View) -> None:
        build_views(table, roles_of(table), views, tmp_path, tmp_path / "none")

    def told(name: str, sql: str, **more: str) -> View:
        return View(name, sql=sql, entity=["worker"], timestamp="began", columns={"last": {"type": "text"}}, **more)

    every = "SELECT DISTINCT ON (worker, began) worker, began, failed AS last FROM snapshot"
    build(week(), told("own", every, delay="1d"))
    for sql in (every, every.replace("snapshot", "(SELECT * FROM snapshot)"), every.replace("failed", "_target::TEXT")):
        with pytest.raises(ViewError, match=r"view own: it reads the target 'failed', .* its delay is 0s: write"):
            build(told("own", sql))
    through = told("through", "SELECT worker, began, last FROM own")
    with pytest.raises(ViewError, match="view through: it reads the target"):
        build(told("own", every, delay="1d"), through)
    build(told("own", "SELECT DISTINCT ON (worker, began) worker, began, 'x' AS last FROM snapshot"))


def test_the_delay_alone_keeps_what_has_just_happened_out(tmp_path: Path) -> None:
    table = jobs()
    moment = table["ended"].sort_values().iloc[1500] + pd.Timedelta("1min")
    unknown = table["ended"] + pd.Timedelta("30min") > moment
    planted = table.assign(failed=table["failed"].where(~unknown, "yes"))
    assert moved(joined_by(week(), tmp_path), table, planted, moment) == []
    table.loc[len(table)] = [moment + 2 * HOUR, table.loc[unknown.idxmax(), "worker"], moment + 9 * HOUR, "no"]
    joins = [
        joined_by(week(delay=delay), tmp_path)(table.sort_values("began").reset_index(drop=True))
        for delay in ("30min", "0s")
    ]
    assert not joins[0].equals(joins[1])


def test_default_views_are_honest_about_labels(tmp_path: Path) -> None:
    table = jobs()
    moment = START + 500 * HOUR
    unknown = table["began"] + pd.Timedelta("1d") > moment
    planted = table.assign(failed=table["failed"].where(~unknown, "yes"))
    past, beat = build_default_views(roles_of(table))
    assert moved(joined_by(past, tmp_path), table, planted, moment) == []
    assert moved(joined_by(replace(past, delay="0s"), tmp_path), table, planted, moment)
    fewer = table[~((table["began"] > moment) & (table.index % 2 == 0))]
    same = joined_by(beat, tmp_path)(table), joined_by(beat, tmp_path)(fewer)
    shared = fewer.index[fewer["began"] - 2 * HOUR <= moment]
    pd.testing.assert_frame_equal(same[0].loc[shared], same[1].loc[shared])


@pytest.mark.parametrize("when", ["began", "day"])
def test_without_any_delay_no_row_learns_its_own_label(when: str, tmp_path: Path) -> None:
    table = jobs()
    table["day"] = table["began"].dt.floor("D")
    roles = replace(roles_of(table), timestamp=when, horizon="0s", label_delay="0s", as_of="2030-01-01")
    roles.columns["day"] = {"role": "time"}
    built, _ = build_views(table, roles, build_default_views(roles), tmp_path, tmp_path / "none")
    found = attach_views(table, built, tmp_path)
    shown = found["worker_history_share_1"].notna()
    assert shown.mean() > 0.9
    failed = (table["failed"] == "yes")[shown]
    assert abs(np.corrcoef(found.loc[shown, "worker_history_share_1"], failed)[0, 1]) < 0.1
    first = table.groupby("worker")[when].transform("min") == table[when]
    assert found.loc[first, "worker_rhythm_rows"].isna().all(), "a row does not count itself"


def test_the_join_is_what_a_loop_would_find(tmp_path: Path) -> None:
    table = jobs(400)
    found = joined_by(week(), tmp_path)(table)
    for row in range(0, 400, 7):
        at = table["began"][row] - 2 * HOUR
        own = table[table["worker"] == table["worker"][row]]
        known = own[own["ended"] + pd.Timedelta("30min") < at]
        if known.empty or at - known["ended"].max() - pd.Timedelta("30min") > pd.Timedelta("7d"):
            assert found.loc[row, [c for c in found if c.startswith("week_")]].isna().all()
            continue
        last = known["ended"].max()
        recent = known[known["ended"] >= last - pd.Timedelta("7d")]
        assert found["week_days"][row] >= recent["ended"].dt.date.nunique() - 1
        if found["week_days"][row] < 2:
            assert found.loc[row, ["week_jobs_1d", "week_failed_1d"]].isna().all(), "one day is not believed"
            continue
        in_window = known[known["ended"] >= last - pd.Timedelta("1d")]
        assert found["week_jobs_1d"][row] == len(in_window)
        assert found["week_failed_1d"][row] == pytest.approx((in_window["failed"] == "yes").mean(), abs=1e-12)
        assert found["week_age"][row] == pytest.approx((at - last).total_seconds() / 60 - 30, abs=1e-6)


def test_rows_come_back_in_their_order_and_each_once(tmp_path: Path) -> None:
    table = jobs(500).sample(frac=1, random_state=1)
    roles, _ = build_views(table, roles_of(table), [week()], tmp_path, tmp_path / "none")
    found = attach_views(table, roles, tmp_path, status=True)
    assert found.index.equals(table.index)
    assert len(found) == len(table)
    assert set(found["week_status"]) <= set(features.VIEW_STATUSES)
    pd.testing.assert_frame_equal(found[table.columns.tolist()], table)


def test_the_flights_see_no_future(tmp_path: Path) -> None:
    from nbs_lib.data.resolve import resolve_roles
    from nbs_lib.demos.flights import source, views

    found = source.read_source()
    rows, roles = resolve_roles(found, {"source": "flights", "as_of": "2013-01-12"})
    rows = rows.reset_index(drop=True)
    moment = pd.Timestamp("2013-01-08T17:20", tz="UTC")
    times = {view.name: view for view in views.VIEWS if view.delay != "0s"}
    outcomes = {"late": True, "dep_delay": 999.0, "arr_delay": 999.0, "cancelled": True, "temp": -7.0, "visib": 0.0}

    def joined(tables: dict[str, pd.DataFrame], chosen: list[View], place: Path) -> pd.DataFrame:
        for name, table in tables.items():
            write_table(table, place / "tables" / f"{name}.parquet")
        built, _ = build_views(rows, replace(roles, as_of="2014-01-02"), chosen, place, place / "tables")
        return attach_views(rows, built, place)

    def tables(planted: bool, delays: dict[str, str]) -> dict[str, pd.DataFrame]:
        changed = {}
        for name, companion in found.companions.items():
            table = companion.table
            if companion.time:
                table = table[table[companion.time] <= pd.Timestamp("2013-01-13", tz="UTC")].reset_index(drop=True)
                unknown = table[companion.time] + pd.Timedelta(delays[name]) > moment
                for column in outcomes.keys() & set(table.columns) if planted else ():
                    table[column] = table[column].where(~unknown, outcomes[column])
            changed[name] = table
        return changed

    delays = {"departures": "5min", "arrivals": "15min", "observations": "1h"}
    honest = [joined(tables(planted, delays), list(times.values()), tmp_path) for planted in (False, True)]
    known = rows["scheduled"] - 2 * HOUR <= moment
    assert known.any()
    assert not honest[0][~known].equals(honest[1][~known])
    pd.testing.assert_frame_equal(honest[0][known], honest[1][known])
    hasty = [replace(view, delay="0s") for view in times.values()]
    leaky = [joined(tables(planted, delays), hasty, tmp_path) for planted in (False, True)]
    seen = [c for c in leaky[0] if not leaky[0].loc[known, c].equals(leaky[1].loc[known, c])]
    assert {name.partition("_")[0] for name in seen} >= {"carrier", "weather"}, "without its delay, a view leaks"


def test_one_more_view_is_one_more_declaration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = jobs()
    counted = "SELECT began, count(*) OVER (ORDER BY began) AS n FROM snapshot"
    sql = f"SELECT began, max(n) AS jobs FROM ({counted}) GROUP BY ALL"
    own = View("site", (), sql, "began", {"jobs": {"description": "jobs so far"}})
    monkeypatch.setattr("nbs_lib.own.views.VIEWS", [own])
    views = declared_views(roles_of(table))
    assert [view.name for view in views] == ["worker_history", "worker_rhythm", "site"]
    roles, found = build_views(table, roles_of(table), views, tmp_path, tmp_path / "none")
    assert roles.columns["site_jobs"] == {
        "role": "numeric",
        "why": "feature view site",
        "description": "jobs so far",
        "from": f"site@{roles.views[-1]['version']}",
    }
    joined = attach_views(table, roles, tmp_path)
    assert joined["site_jobs"].iloc[-1] > 2900, "a view without entity is the same for all"
    assert "site" in catalog.views_table(roles, found)["view"].tolist()


def test_a_table_without_timestamp_has_no_views(tmp_path: Path) -> None:
    plain = Roles("t.csv", "y", "regression", [], columns={"y": {"role": "target"}, "x": {"role": "numeric"}})
    table = pd.DataFrame({"x": [1.0, 2.0], "y": [3.0, 4.0]})
    assert declared_views(plain) == []
    roles, found = build_views(table, plain, [], tmp_path, tmp_path / "none")
    assert (roles, found) == (plain, {})
    assert attach_views(table, roles, tmp_path) is table


def refused(table: pd.DataFrame, place: Path, *views: View) -> str:
    with pytest.raises(ViewError) as error:
        build_views(table, roles_of(table), views, place, place / "none")
    assert "\n" not in str(error.value)
    return str(error.value)


def test_bad_views_are_refused_in_one_sentence(tmp_path: Path) -> None:
    table, good = jobs(200), week()
    small = {"columns": {"n": {"description": "jobs"}}, "history": None}

    def said(**changes: object) -> str:
        return refused(table, tmp_path, replace(good, **changes))

    assert "gives no column 'n'" in said(sql="SELECT worker, ended, 1 AS m FROM snapshot", **small)
    assert "are named 'week'" in refused(table, tmp_path, good, good)
    one, two = (
        replace(good, name=a, sql=f"SELECT worker, ended, n FROM {b}", **small)
        for a, b in (("one", "two"), ("two", "one"))
    )
    assert "one, two read each other in a circle" in refused(table, tmp_path, one, two)
    assert "after data.as_of" in said(
        sql="SELECT worker, ended + INTERVAL 9 YEAR AS ended, 1 AS n FROM snapshot", **small
    )
    assert "has no time zone" in said(sql="SELECT worker, ended::TIMESTAMP AS ended, 1 AS n FROM snapshot", **small)
    assert "a ttl of 0s would let every row expire" in said(ttl="0s")
    assert "so a join could take either" in said(sql="SELECT worker, ended, 1 AS n FROM snapshot, range(2)", **small)
    assert "reads 'snapshots', which is no table or view (did you mean 'snapshot'?)" in said(
        sql="SELECT * FROM snapshots", **small
    )
    assert "gives 'm', which it doesn't declare" in said(
        sql="SELECT worker, ended, 1 AS n, 2 AS m FROM snapshot", **small
    )
    assert "Binder Error" in said(sql="SELECT worker, ended, nothing AS n FROM snapshot", **small)
    assert "its SQL must be one SELECT" in said(sql="SELECT 1; DROP TABLE snapshot")
    clash = replace(good, name="failed", sql="SELECT worker, ended, 1 AS n FROM snapshot", **small)
    named = table.assign(failed_n=1)
    roles = roles_of(table)
    roles.columns["failed_n"] = {"role": "numeric"}
    with pytest.raises(ViewError, match="'failed_n' is also a column of the table"):
        build_views(named, roles, [clash], tmp_path, tmp_path / "none")


def test_versions_follow_meaning_through_views_that_are_read() -> None:
    first = replace(week(), name="first")
    second = View(
        "second",
        ("worker",),
        "SELECT worker, ended, failed_1d FROM first",
        "ended",
        {"failed_1d": {"description": "."}},
    )

    def both(one: View) -> list[str]:
        return list(view_versions(order_views([second, one], ["snapshot"])).values())

    before = both(first)
    assert (
        both(replace(first, owner="me", description="else", use="none", sql="\n".join(first.sql.split()) + " -- note"))
        == before
    )
    for change in (
        {"ttl": "8d"},
        {"delay": "31min"},
        {"sql": first.sql.replace("1 DAY", "2 DAY").replace("1 day", "2 day")},
    ):
        after = both(replace(first, **change))
        assert after[0] != before[0]
        assert after[1] != before[1], "what reads a view changes with it"


def test_another_target_or_order_of_columns_is_another_version() -> None:
    columns = {"low": {"description": "."}, "high": {"description": "."}}
    view = View("range", ("worker",), "SELECT worker, ended, low, high FROM snapshot", "ended", columns)
    turned = replace(view, columns=dict(reversed(columns.items())))
    assert view_versions([view]) != view_versions([turned]), "the store keeps values in this order"
    assert view_versions([view], ["failed"]) == view_versions([view], ["late"]), "it does not see the target"
    assert view_versions([week()], ["failed"]) != view_versions([week()], ["late"])


def test_an_integer_entity_with_gaps_has_views_too(tmp_path: Path) -> None:
    table = jobs(500).assign(worker=lambda t: t["worker"].map(ord).astype(float).where(t.index % 9 > 0))
    roles = roles_of(table)
    roles.columns["worker"] = {"role": "entity", "feature": False}
    built, _ = build_views(table, roles, declared_views(roles, table), tmp_path, tmp_path / "none")
    found = attach_views(table, built, tmp_path, status=True)
    assert (found["worker_history_status"] == "present").mean() > 0.5
    assert (found.loc[table["worker"].isna(), "worker_history_status"] == "missing").all()
    assert declared_views(roles, table.assign(worker=0.5)) == [], "fractions name nobody"


@pytest.mark.parametrize("what", ["random()", "epoch(now())", "epoch(current_timestamp)"])
def test_a_view_that_changes_by_itself_is_refused(what: str, tmp_path: Path) -> None:
    view = View(
        "luck", ("worker",), f"SELECT worker, ended, {what} AS n FROM snapshot", "ended", {"n": {"description": "."}}
    )
    assert "gives another result each time" in refused(jobs(50), tmp_path, view)


def test_a_view_reads_nothing_past_the_snapshot(tmp_path: Path) -> None:
    sql = "SELECT 'a' AS worker, now_at AS ended, 1 AS n FROM read_csv('/etc/hostname')"
    assert "reads a file past the snapshot" in refused(
        jobs(50), tmp_path, View("spy", ("worker",), sql, "ended", {"n": {"description": "."}})
    )


def test_any_column_name_can_be_rolled(tmp_path: Path) -> None:
    table = jobs(300).rename(columns={"worker": "the worker", "ended": "at"})
    roles = roles_of(jobs(300))
    roles.columns |= {"the worker": {"role": "entity", "feature": True}, "at": {"role": "later"}}
    roles = replace(roles, entity=["the worker"], as_of="2030-01-01")
    measures = {"failed": Measure("avg(_target)", "share of failed jobs")}
    view = View(
        "week", **rolling_features("snapshot", ["the worker"], "at", {"7d": "7 days"}, measures, days="7d"), ttl="7d"
    )
    built, _ = build_views(table, roles, [view, *build_default_views(roles)], tmp_path, tmp_path / "none")
    assert attach_views(table, built, tmp_path)["week_failed_7d"].notna().mean() > 0.5


def test_the_committed_contract_is_that_of_the_code() -> None:
    roles = Roles.load(ROOT / "data/contract/features.yaml")
    if roles.source != "flights":
        pytest.skip("the table is not the demo")
    from nbs_lib.demos.flights.source import read_source

    views = order_views(declared_views(roles), ["snapshot", *read_source().companions])
    told = [roles.target, roles.task, roles.classes]
    assert {view["name"]: view["version"] for view in roles.views} == view_versions(views, told)
