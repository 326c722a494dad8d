"""What is materialized, and the proof that it answers as the training set was made."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from conftest import lacking
from helpers.bundles import blank_project  # noqa: F401

from nbs_lib import cli
from nbs_lib.bench.store import NO_REDIS, redis_server
from nbs_lib.core.errors import DataError, ParamsError, StoreError
from nbs_lib.core.findings import FINDINGS_PATH, Finding, findings_json
from nbs_lib.core.paths import CONTRACT_FILE
from nbs_lib.core.settings import load_settings
from nbs_lib.data.roles import Roles
from nbs_lib.features import materialize as online
from nbs_lib.features.materialize import (
    FEATURES_FOLDER,
    check_online_parity,
    fill_store,
    materialize_views,
    parse_time_us,
)
from nbs_lib.features.online.lookup import Lookup
from nbs_lib.features.online.sqlite import SqliteStore
from nbs_lib.pipeline import run

ROWS, AS_OF = 600, "2020-03-01"
COMMON = {"version": "0123456789ab", "history": None, "age": False, "ttl": None}
VIEWS: list[dict[str, Any]] = [
    COMMON | {"name": "shop", "entity": ["shop"], "columns": ["sold", "kind"], "age": True, "ttl": 3 * 86_400.0},
    COMMON | {"name": "shelf", "entity": ["shop", "shelf"], "columns": ["height"], "age": True, "ttl": 0.5},
    COMMON | {"name": "country", "entity": [], "columns": ["rain", "mood"]},
]


@pytest.fixture
def here(blank_project: Path) -> Path:  # noqa: F811
    """A project with a snapshot, and three views with missing values, ties in time and text that looks odd."""
    draw = np.random.default_rng(0)
    names = np.array([f"s{i}" for i in range(20)] + ["a\x1fb", "Köln", "\\", " "])
    seconds = draw.integers(0, 59 * 86_400, ROWS)
    table = pd.DataFrame({"shop": draw.choice(names, ROWS), "shelf": draw.integers(-3, 3, ROWS)})
    table["at"] = (pd.Timestamp("2020-01-01", tz="UTC") + pd.to_timedelta(seconds, unit="s")).astype(
        "datetime64[us, UTC]"
    )
    FEATURES_FOLDER.mkdir(parents=True)
    CONTRACT_FILE.parent.mkdir(parents=True)
    table.to_parquet("data/snapshot.parquet")
    for view in VIEWS:
        columns = {c: draw.normal(size=ROWS) / 3 for c in view["columns"]}
        columns |= {c: draw.choice(["x", "é", ""], ROWS) for c in columns if c in ("kind", "mood")}
        rows = table.rename(columns={"at": "_known_at"})[[*view["entity"], "_known_at"]].assign(**columns)
        rows[view["columns"]] = rows[view["columns"]].mask(draw.random((ROWS, len(columns))) < 0.2)
        keys = [*view["entity"], "_known_at"]
        path = FEATURES_FOLDER / f"{view['name']}@{view['version']}.parquet"
        rows.drop_duplicates(keys).sort_values(keys).to_parquet(path)
    Roles("t.csv", "y", "binary", ["no", "yes"], timestamp="at", as_of=AS_OF, views=VIEWS).save(CONTRACT_FILE)
    return blank_project


@pytest.mark.parametrize("kind", ["SQLite", "Redis"])
def test_offline_and_online_are_equal_in_every_cell(here: Path, kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    if kind == "Redis":
        if shutil.which("redis-server") is None:
            lacking(NO_REDIS)
        with redis_server() as (url, _):
            assert check_online_parity(entities=720, url=url) == 50_400
    else:
        assert check_online_parity(entities=720, url="") == 50_400
    printed = capsys.readouterr().out
    assert f"50,400 cells, 0 mismatches (7,200 rows at 10 moments, {kind})" in printed
    counts = {line.split()[0]: [int(n) for n in line.split()[1:]] for line in printed.splitlines()[1:4]}
    assert all(n > 0 for n in [*counts["shop"], *counts["shelf"]]), counts
    assert counts["country"][0] > 0


def test_a_store_that_knows_more_than_it_should_is_caught(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(online, "fill_store", lambda views, now, store: fill_store(views, now + 3_600_000_000, store))
    with pytest.raises(StoreError, match=r"view \w+@0123456789ab, column \w+, .* at 2020-.*: offline .*, online "):
        check_online_parity(entities=100, url="")


def test_a_ttl_that_is_a_microsecond_too_long_is_caught(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    longer = [view | {"ttl": view["ttl"] and view["ttl"] + 1e-6} for view in VIEWS]
    monkeypatch.setattr(online, "Lookup", lambda views, store: Lookup(longer, store))
    monkeypatch.setattr(sys, "argv", ["nbs", "parity", "--entities", "100"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert "nbs: view s" in str(ended.value.code)
    assert "offline None, online" in str(ended.value.code) or "offline nan, online" in str(ended.value.code)


def test_a_store_that_fails_is_no_parity(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = [view | {"version": "f" * 12} for view in VIEWS]
    monkeypatch.setattr(online, "Lookup", lambda views, store: Lookup(other, store))
    with pytest.raises(StoreError, match="view shop changed"):
        check_online_parity(entities=20, url="")


def test_materialize_fills_the_store_of_the_settings(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    materialize_views()
    printed = capsys.readouterr().out
    assert "shop@0123456789ab: 24 rows" in printed
    assert "as of 2020-03-01 00:00:00+00:00" in printed
    store = SqliteStore("served/features.sqlite")
    assert store.tables()["country@0123456789ab"] == {"rows": 1, "materialised": "2020-03-01T00:00:00+00:00"}
    materialize_views("2020-01-20T12:00+01:00")
    assert store.read(()).now_us == parse_time_us("2020-01-20T11:00Z")
    materialize_views("2019-01-01")  # before anything was known
    found = Lookup(VIEWS, store).lookup({"shop": ["s1"], "shelf": [1]})
    assert found.status == {"shop": ["missing"], "shelf": ["missing"], "country": ["missing"]}


def test_nothing_is_known_after_the_data_ends(here: Path) -> None:
    materialize_views()
    before = Path("served/features.sqlite").read_bytes()
    with pytest.raises(ParamsError, match=r"--as-of 2020-03-01T00:01 is later than data\.as_of 2020-03-01,"):
        materialize_views("2020-03-01T00:01")
    assert Path("served/features.sqlite").read_bytes() == before
    materialize_views("2020-03-01")


@pytest.mark.parametrize(("decision", "approval"), [("PROMOTE", "none"), ("HOLD", "none"), ("PROMOTE", "person")])
def test_a_run_fills_the_store_before_it_promotes(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], decision: str, approval: str
) -> None:
    """And not where its bundle waits for a person: the champion may read other versions of the views."""
    monkeypatch.setenv("NBS_GATE_APPROVAL", approval)
    Path("models").mkdir()
    Path("models/gate.json").write_text(json.dumps({"decision": decision, "bundle": "a" * 64}))
    Path("models/metrics.json").write_text("{}")
    found = [
        Finding("NBS021", (), "9 rows repeat an earlier one.", ""),
        Finding("NBS022", ("at",), "'at' holds times.", ""),
    ]
    Path(FINDINGS_PATH).write_text(json.dumps(findings_json(found, {"NBS021": []})))
    FEATURES_FOLDER.joinpath("views.json").write_text('[{"name": "shop"}]')  # there are views
    held = []
    for part in ("clean_stage_notebooks", "reproduce", "_end_pipeline"):  # the stages have run
        monkeypatch.setattr(run, part, lambda *_, **__: None)
    monkeypatch.setattr(run, "check_configuration", load_settings)
    monkeypatch.setattr(run, "_summary_lines", lambda *_: [])
    monkeypatch.setattr(run, "_register", lambda *_: held.append(len(SqliteStore("served/features.sqlite").tables())))
    run.run_pipeline()
    assert held == [3 if (decision, approval) == ("PROMOTE", "none") else 0]
    report, *notes = capsys.readouterr().out.splitlines()[-2:]  # what was acknowledged is not said again
    assert report.startswith("report: ")
    assert notes == ["note: NBS022 times, but no split by time: 'at' holds times. "]


def test_prune_drops_what_nothing_reads(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = SqliteStore("served/features.sqlite")
    store.write(1, {"shop@old": [], "shop@served": [], "gone@1": []})
    Path("served/abc").mkdir()
    views = [{"name": "shop", "version": "served"}]
    Path("served/abc/schema.json").write_text(json.dumps({"views": views}))
    materialize_views()
    assert {"shop@old", "gone@1"} <= set(store.tables())
    materialize_views(prune=True)
    assert "dropped, read by nothing: gone@1, shop@old" in capsys.readouterr().out
    assert set(store.tables()) == {"shop@served", *(f"{view['name']}@0123456789ab" for view in VIEWS)}
    Path("served/abc/schema.json").write_text("{")
    with pytest.raises(DataError, match=r"schema\.json is damaged"):
        materialize_views(prune=True)


def test_what_is_missing_is_one_sentence_and_leaves_the_store(here: Path) -> None:
    materialize_views()
    before = Path("served/features.sqlite").read_bytes()
    broken = FEATURES_FOLDER / "shelf@0123456789ab.parquet"
    broken.write_bytes(broken.read_bytes()[:-100])
    with pytest.raises(DataError, match=r"shelf@0123456789ab\.parquet is damaged"):
        materialize_views()
    broken.unlink()
    with pytest.raises(DataError, match=r"shelf@0123456789ab\.parquet is missing: `make run` writes it"):
        materialize_views()
    with pytest.raises(ParamsError, match="'soon' is no time"):
        materialize_views("soon")
    assert Path("served/features.sqlite").read_bytes() == before


@pytest.mark.parametrize("verb", ["materialize", "parity"])
def test_without_views_there_is_nothing_to_do(
    blank_project: Path,  # noqa: F811
    verb: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "argv", ["nbs", verb])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == f"nbs: {CONTRACT_FILE} is missing: `make run` writes it."
    Roles("t.csv", "y", "binary", ["no", "yes"]).save(CONTRACT_FILE)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 0
    assert capsys.readouterr().out.startswith("there are no feature views: ")
