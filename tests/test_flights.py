"""The demo: whole, pinned, and blind to the future."""

from functools import cache
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nbs_lib import schema
from nbs_lib.errors import DataError
from nbs_lib.flights import source as flights
from nbs_lib.inference import resolve
from nbs_lib.table import Source

FEATURES = [name for name in flights.COLUMNS if name not in flights.LATER]
AFTERWARDS = ["dep_time", "dep_delay", "arr_time", "arr_delay", "air_time"]
MONTH = pd.date_range("2013-01-02", "2013-01-20", freq="17min", tz="UTC").tolist()


@cache
def whole() -> Source:
    return flights.read()


@cache
def tables() -> dict[str, pa.Table]:
    """Some twenty flights of every hundred of January."""
    read = {name.split(".")[0]: flights.read_file(name) for name in flights.PINNED}
    some = pa.array([i % 5 == 0 for i in range(20_000)])
    return read | {"flights": read["flights"].slice(0, 20_000).filter(some)}


def tampered(moment: pd.Timestamp, by: float) -> dict[str, pa.Table]:
    """The same tables with another future: all that became known after a moment is changed, the newest records gone."""
    weather = tables()["weather"].to_pandas()
    over = weather["time_hour"] + pd.Timedelta("1h")
    weather = weather[over < moment + pd.Timedelta("30h")]
    later = over > moment
    measured = weather.columns.difference(["origin", "time_hour"])
    weather.loc[later, measured] = weather.loc[later, measured].fillna(0) + by
    changed = tables()["flights"].to_pandas()
    changed[AFTERWARDS] = changed[AFTERWARDS].fillna(0) + by
    frames = {"weather": weather, "flights": changed}
    return tables() | {name: pa.Table.from_pandas(frame, preserve_index=False) for name, frame in frames.items()}


@given(st.sampled_from(MONTH), st.sampled_from([1, 2, 3, 6]), st.sampled_from([-50.0, 1.0, 1000.0]))
@settings(max_examples=12, deadline=None)
def test_no_feature_sees_the_future(moment: pd.Timestamp, hours: int, by: float) -> None:
    before = flights.join(tables(), hours * 3600).to_pandas()
    after = flights.join(tampered(moment, by), hours * 3600).to_pandas()
    known = before["scheduled"] - pd.Timedelta(hours=hours) <= moment.tz_localize(None)
    assert known.any()
    pd.testing.assert_frame_equal(before.loc[known, FEATURES], after.loc[known, FEATURES], check_dtype=False)
    assert (before["temp"] - after["temp"])[~known].abs().max() > 0, "a change would be noticed"


def test_the_hour_in_progress_is_not_known() -> None:
    table = flights.join(tables(), 7200).to_pandas().dropna(subset="weather_age")
    over = table["scheduled"] - pd.Timedelta("2h") - pd.to_timedelta(table["weather_age"], unit="min")
    hour = (over - pd.Timedelta("1h")).dt.tz_localize("UTC")
    records = tables()["weather"].to_pandas().set_index(["origin", "time_hour"])["temp"]
    taken = records.loc[list(zip(table["origin"], hour, strict=True))].to_numpy()
    assert (table["weather_age"] >= 0).all()
    assert pd.Series(taken).equals(table["temp"].reset_index(drop=True)), "the record of the hour that was over"


def test_an_evening_is_one_block() -> None:
    _, roles = resolve(whole(), {"source": "flights"})
    assert roles.timezone == "America/New_York"
    _, other = resolve(whole(), {"source": "flights", "timezone": "UTC"})
    assert other.timezone == "UTC"


def test_that_planes_may_be_hindsight_is_said() -> None:
    assert any("tail number" in note and "hindsight" in note for note in whole().notes)


def test_later_columns_are_no_features() -> None:
    _, roles = resolve(whole(), {"source": "flights"})
    learnt = roles.numeric + roles.categorical + roles.time
    assert not set(learnt) & {"scheduled", *flights.LATER}
    assert set(learnt) == set(FEATURES) - {"scheduled"}
    _, other = resolve(whole(), {"source": "flights", "target": "arr_delay"})
    assert other.task == "regression"
    assert other.columns["late"]["role"] == "later"


def test_every_flight_is_there_once_and_the_cancelled_are_counted() -> None:
    table = whole().table
    assert len(table) == 336_776
    assert not table.duplicated(flights.DEFAULTS["key"]).any()
    assert table["dep_time"].isna().sum() == 8_255
    assert table["late"].isna().sum() == 8_255 + 1_175
    assert "8,255 cancelled and 1,175 diverted" in whole().notes[0]
    late = table["arr_delay"].dropna() > 15
    assert (table["late"].dropna() == late.map({True: "yes", False: "no"})).all()


def test_the_months_left_for_production_keep_the_promises() -> None:
    rows, roles = resolve(whole(), {"source": "flights"})
    inferred = schema.infer(rows, roles, flights.COLUMNS)
    assert rows["scheduled"].max() <= pd.Timestamp("2013-08-31", tz="UTC")
    year, roles = resolve(whole(), {"source": "flights", "as_of": "2014-01-03"})
    assert len(year) == 336_776
    schema.validate(year, inferred, roles, {})


def test_a_damaged_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from nbs_lib.source import files

    real = flights.files()
    copy = tmp_path / "planes.csv"
    copy.write_bytes(real["planes.csv"][0].read_bytes() + b"\n")
    monkeypatch.setattr(flights, "files", lambda: real | {"planes.csv": (copy, real["planes.csv"][1])})
    for check in (flights.read, lambda: files("flights")):
        with pytest.raises(DataError, match=r"planes\.csv is damaged: its SHA-256 begins with"):
            check()
