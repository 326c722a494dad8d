"""The demo: whole, pinned, and blind to the future."""

from functools import cache
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pytest

from nbs_lib.core.errors import DataError
from nbs_lib.data import schema
from nbs_lib.data.resolve import companion_as_of, resolve_roles
from nbs_lib.data.table import Source
from nbs_lib.demos.flights import source as flights

AFTERWARDS = ["dep_time", "dep_delay", "arr_time", "arr_delay", "air_time"]
FEATURES = [name for name in flights.COLUMN_PROPERTIES if name not in flights.LATER_COLUMNS]


@cache
def whole() -> Source:
    return flights.read_source()


def test_the_schedule_does_not_know_what_happened() -> None:
    """Another outcome of every flight changes no feature of any."""
    files = {name.split(".")[0]: flights.read_file(name) for name in flights.FILE_SHA256}
    files["flights"] = files["flights"].slice(0, 20_000)
    frame = files["flights"].to_pandas()
    frame[AFTERWARDS] = frame[AFTERWARDS].fillna(0) + 17
    other = files | {"flights": pa.Table.from_pandas(frame, preserve_index=False)}
    before, after = (flights.build_tables(each)[0] for each in (files, other))
    pd.testing.assert_frame_equal(before[FEATURES], after[FEATURES])
    assert not before["arr_delay"].equals(after["arr_delay"])


def test_events_have_their_own_times() -> None:
    companions = whole().companions
    left, landed = companions["departures"].table, companions["arrivals"].table
    assert len(left) == 336_776
    assert left["cancelled"].sum() == 8_255
    assert len(landed) == 336_776 - 8_255 - 1_175
    flown = whole().table.dropna(subset="arr_delay").reset_index(drop=True)
    gone = flown["scheduled"] + pd.to_timedelta(flown["dep_delay"], unit="min")
    assert (landed["arrived_at"] - gone >= pd.to_timedelta(flown["air_time"].fillna(0), unit="min")).all()


def test_what_happens_after_as_of_is_in_no_table() -> None:
    rows, roles = resolve_roles(whole(), {"source": "flights"})
    moment = pd.Timestamp(str(roles.as_of), tz="UTC")
    assert rows["scheduled"].max() <= moment
    waiting = rows["scheduled"] > moment - pd.Timedelta("1d")
    assert waiting.any()
    assert rows.loc[waiting, flights.LATER_COLUMNS].isna().all(axis=None)
    for companion in whole().companions.values():
        if companion.time:
            assert companion_as_of(companion, roles.as_of)[companion.time].max() <= moment


def test_an_evening_is_one_block() -> None:
    _, roles = resolve_roles(whole(), {"source": "flights"})
    assert roles.timezone == "America/New_York"
    _, other = resolve_roles(whole(), {"source": "flights", "timezone": "UTC"})
    assert other.timezone == "UTC"


def test_that_planes_may_be_hindsight_is_said() -> None:
    assert any("tail number" in note and "hindsight" in note for note in whole().notes)


def test_later_columns_are_no_features() -> None:
    _, roles = resolve_roles(whole(), {"source": "flights"})
    learned = roles.numeric + roles.categorical + roles.time
    assert not set(learned) & {"scheduled", *flights.LATER_COLUMNS}
    assert set(learned) == set(FEATURES) - {"scheduled"}
    _, other = resolve_roles(whole(), {"source": "flights", "target": "arr_delay"})
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
    rows, roles = resolve_roles(whole(), {"source": "flights"})
    inferred = schema.infer_schema(rows, roles, flights.COLUMN_PROPERTIES)
    assert rows["scheduled"].max() <= pd.Timestamp("2013-09-01", tz="UTC")
    year, roles = resolve_roles(whole(), {"source": "flights", "as_of": "2014-01-03"})
    assert len(year) == 336_776
    schema.validate_table(year, inferred, roles, {})


def test_a_damaged_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from nbs_lib.data.source import file_digests

    real = flights.pinned_files()
    copy = tmp_path / "planes.csv"
    copy.write_bytes(real["planes.csv"][0].read_bytes() + b"\n")
    monkeypatch.setattr(flights, "pinned_files", lambda: real | {"planes.csv": (copy, real["planes.csv"][1])})
    for check in (flights.read_source, lambda: file_digests("flights")):
        with pytest.raises(DataError, match=r"planes\.csv is damaged: its SHA-256 begins with"):
            check()
