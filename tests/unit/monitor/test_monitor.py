"""What came is set against what was learned from: ordinary and drifted weeks, broken tables, the log, the pages."""

import json
import re
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from conftest import Project
from helpers.bundles import NUMBERS, SCHEMA, WORDS, make_bundle
from helpers.chromium import CHROMIUM, Chromium
from helpers.services import ROW, make_project
from helpers.services import service as serve
from scipy.special import expit

from nbs_lib.bundle.bundle import Bundle
from nbs_lib.core.errors import DataError, UserError
from nbs_lib.data.roles import Roles
from nbs_lib.monitor.from_log import load_from_log
from nbs_lib.monitor.from_tables import load_from_tables
from nbs_lib.monitor.monitor import CONTRACT_FAILURE, DRIFT, INSUFFICIENT, NO_DATA, OK, QUALITY_LOSS, WATCH, run_monitor

DAY, HOURS, LEARNED, CAME = 86400, 24, 120, 21
KNOWN = Roles("a.csv", "sold", "binary", ["no", "yes"], timestamp="when", key=["number"], label_delay="1d")
SCRIPT = "</script><script>document.documentElement.setAttribute('pwned','1')</script>"
Table = pd.DataFrame


def made(first: int, days: int, seed: int = 0) -> Table:
    """Hours of some days, each day with a mood of its own; the log-odds are width + new + kind, less 2."""
    rng, n = np.random.default_rng([seed, first]), days * HOURS
    day = np.repeat(np.arange(first, first + days), HOURS)
    table = pd.DataFrame(
        {"number": [f"{first}-{k}" for k in range(n)], "_time": day * DAY + np.tile(np.arange(HOURS), days) * 3600}
    )
    table["width"] = rng.normal(size=n) + rng.normal(0, 0.3, days)[day - first]
    table["new"] = rng.integers(0, 2, n) * 1.0
    table["kind"] = rng.choice(["a", "b", "c"], n)
    table["made"] = 0
    odds = table["width"] + table["new"] + table["kind"].isin(["a", "b"])
    return table.assign(sold=np.where(rng.random(n) < expit(odds), "yes", "no"))


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("served") / "bundle"
    make_bundle(folder)
    return Bundle.open(folder)


def compared(folder: Path, came: Table, learned: Table | None = None, **more: Any) -> Any:
    """Both tables, as files."""
    learned = made(0, LEARNED) if learned is None else learned
    learned.to_parquet(folder / "learned.parquet")
    came.to_parquet(folder / "came.parquet")
    return load_from_tables(folder / "learned.parquet", folder / "came.parquet", **({"roles": KNOWN} | more))


def found(
    folder: Path, came: Table, learned: Table | None = None, bundle: Bundle | None = None, **more: Any
) -> dict[str, Any]:
    watched = compared(folder, came, learned, bundle=bundle, **more)
    finding = asdict(run_monitor(watched, bundle, more.get("roles", KNOWN)))
    json.dumps(finding, allow_nan=False)
    assert finding["sentence"].endswith((".", "?"))
    return finding


def failed(finding: dict[str, Any]) -> dict[tuple[str, str | None], str]:
    return {(e["check"], e["column"]): e["sentence"] for e in finding["contract"] if not e["passed"]}


def since(**changes: Callable[[Table], Any]) -> Table:
    """Three weeks that came since, some columns changed."""
    return made(LEARNED, CAME).assign(**changes)


def test_ordinary_weeks_are_ok(tmp_path: Path, bundle: Bundle) -> None:
    finding = found(tmp_path, since(), bundle=bundle)
    assert (finding["status"], finding["code"]) == (OK, 0), finding["sentence"]
    assert not failed(finding)
    assert finding["windows"][-1] == ["1970-05-15", "1970-05-21"]
    assert (finding["rows"]["window"], finding["labels"]["new"]) == (7 * HOURS, (CAME - 1) * HOURS + 1)
    told = finding["performance"]
    assert told["calibration"]["lo"] < 0 < told["calibration"]["hi"]
    for metric in ("auc", "log_loss"):
        assert told["realised"][metric]["lo"] < told["estimate"][metric]["value"] < told["realised"][metric]["hi"]
    assert finding == found(tmp_path, since(), bundle=bundle), "the same rows, the same finding"


def test_drift_is_told_with_what_it_does(tmp_path: Path, bundle: Bundle) -> None:
    """Two windows running are drift, a single one is watched; the columns that drifted come with effect and rows."""
    shifted = since(width=lambda t: t["width"] + 2.5 * (t["_time"] >= (LEARNED + 7) * DAY))
    finding = found(tmp_path, shifted, bundle=bundle)
    assert (finding["status"], finding["code"]) == (DRIFT, 20)
    first = finding["drift"]["columns"][0]
    assert (first["column"], first["over"]) == ("width", True)
    effect = finding["effects"]["width"]
    assert effect["output"] > 0.1
    assert len(effect["rows"]) == 10
    assert next(iter(finding["importance"])) == "width"
    once = since(width=lambda t: t["width"] + 1.5 * (t["_time"] >= (LEARNED + 14) * DAY))
    assert found(tmp_path, once, bundle=bundle)["status"] == WATCH


@pytest.mark.parametrize("shift", [3, -3])
def test_a_jump_beyond_the_range_is_a_fault_in_both_directions(shift: float, tmp_path: Path, bundle: Bundle) -> None:
    once = since(width=lambda t: t["width"] + shift * (t["_time"] >= (LEARNED + 14) * DAY))
    finding = found(tmp_path, once, bundle=bundle)
    assert finding["status"] == CONTRACT_FAILURE
    assert "since the window before" in failed(finding)[("jump", "width")]


def test_drift_that_moves_no_answer_is_no_alarm(tmp_path: Path, bundle: Bundle) -> None:
    """An input whose whole range hardly matters may go where it wants: it is told, no more."""
    learned, came = (t.assign(width=t["width"] / 100) for t in (made(0, LEARNED), since()))
    finding = found(tmp_path, came.assign(width=came["width"] + 0.025), learned, bundle)
    assert finding["drift"]["lasting"] == ["width"]
    assert 0 < finding["drift"]["shift"] < 0.05
    assert (finding["status"], finding["code"], finding["drift"]["status"]) == (OK, 0, OK)
    assert "running: width. That moved the answers by 0.0" in finding["sentence"]
    finding = found(tmp_path, came.assign(width=came["width"] + 0.025, kind="a"), learned, bundle)
    assert finding["drift"]["status"] == DRIFT, "what moves the answers is not excused by what does not"
    assert finding["drift"]["shift"] > 0.1


def test_a_store_that_is_not_followed_is_its_own_finding(tmp_path: Path) -> None:
    view = {"name": "shop", "version": "1", "entity": ["kind"], "ttl": None, "columns": ["sold"], "age": True}
    make_bundle(tmp_path / "bundle", schema=SCHEMA | {"views": [view], "entities": {"kind": "text"}})
    bundle, rng = Bundle.open(tmp_path / "bundle"), np.random.default_rng(0)
    learned, came = (t.assign(shop_age=rng.exponential(30, len(t))) for t in (made(0, LEARNED), since()))
    assert ("store", "shop_age") not in failed(found(tmp_path, came, learned, bundle))
    finding = found(tmp_path, came.assign(shop_age=came["shop_age"] + 180), learned, bundle)
    assert (finding["status"], finding["code"]) == (OK, 0), "the model does not read the age"
    assert "older than 3." in failed(finding)["store", "shop_age"]
    assert "nbs materialize" in failed(finding)["store", "shop_age"]


def test_labels_tell_what_drift_does_not(tmp_path: Path, bundle: Bundle) -> None:
    """The inputs are ordinary and what happens is not: no drift, but the answers are off, beyond noise: an alarm."""
    turned = since(sold=lambda t: np.where(t["sold"] == "yes", "no", "yes"))
    finding = found(tmp_path, turned, made(0, LEARNED).assign(_split="test"), bundle)
    assert (finding["status"], finding["code"], finding["drift"]["status"]) == (QUALITY_LOSS, 20, OK)
    assert finding["sentence"].startswith("The answers are worse than on the test rows: AUC by 0.")
    assert finding["performance"]["worse"]["lo"] > 0.2
    assert finding["performance"]["calibration"]["hi"] < -0.2


BROKEN_TABLES: dict[str, tuple[Callable[[], Table], tuple[str, str | None], str]] = {
    "a column vanished": (
        lambda: since().drop(columns="width"),
        ("schema", "width"),
        "width is gone: bring it back, or learn without it (NBS002)",
    ),
    "a column was renamed": (
        lambda: since().rename(columns={"width": "breadth"}),
        ("schema", "width"),
        "width is gone",
    ),
    "numbers as text": (
        lambda: since(width=lambda t: t["width"].astype(str)),
        ("schema", "width"),
        "was number and is text",
    ),
    "a column is empty": (lambda: since(width=np.nan), ("missing", "width"), "missing in 100.0%"),
    "texts are empty": (lambda: since(kind=""), ("missing", "kind"), "missing in 100.0%"),
    "a column is stuck": (lambda: since(width=0.5), ("stuck", "width"), "the same in 100%"),
    "another unit": (lambda: since(width=lambda t: t["width"] * 1000), ("range", "width"), "unit"),
    "other words": (lambda: since(kind=lambda t: t["kind"] + "!"), ("levels", "kind"), "the reference does not know"),
    "infinite numbers": (
        lambda: since(width=lambda t: t["width"].where(t.index % 5 > 0, np.inf)),
        ("finite", "width"),
        "infinite",
    ),
    "half the rows": (lambda: since()[lambda t: t.index % 3 == 0], ("volume", None), "rows are lost"),
    "a single row": (lambda: since()[-1:], ("rows", None), "a single row"),
}


@pytest.mark.parametrize("name", list(BROKEN_TABLES))
def test_a_broken_table_is_a_sentence(name: str, tmp_path: Path, bundle: Bundle) -> None:
    change, check, sentence = BROKEN_TABLES[name]
    came = change()
    more = {"as_of": "1970-05-22"} if len(came) > 1 else {}
    finding = found(tmp_path, came, bundle=bundle, **more) if len(came) > 1 else alone(tmp_path, came, bundle)
    assert (finding["status"], finding["code"]) == (CONTRACT_FAILURE, 30)
    assert sentence in failed(finding)[check]
    assert finding["sentence"].startswith("The data break their contract: ")


def alone(folder: Path, came: Table, bundle: Bundle) -> dict[str, Any]:
    """With windows of a day."""
    return asdict(run_monitor(compared(folder, came, bundle=bundle), bundle, KNOWN, days=1))


def test_what_jumps_from_one_week_to_the_next_is_seen(tmp_path: Path, bundle: Bundle) -> None:
    """The week before is the last one that came, not one of the reference, which may have ended long ago."""
    jumped = since(width=lambda t: t["width"] + np.select([t["_time"] < (LEARNED + 14) * DAY], [-1.0], 1.5))
    finding = found(tmp_path, jumped, bundle=bundle)
    assert "width has moved by" in failed(finding)["jump", "width"]


def test_times_that_are_none_are_counted(tmp_path: Path, bundle: Bundle) -> None:
    """Never 1970: rows without a time break the contract, and in the reference they are an error."""
    odd = since(_time=lambda t: t["_time"].astype(float).where(t.index % 50 > 0, [np.nan, np.inf] * (len(t) // 2)))
    finding = found(tmp_path, odd, bundle=bundle)
    assert finding["rows"]["untimed"] == 11
    assert re.match("11 of [0-9]+ rows have no time", failed(finding)["times", None])
    assert finding["status"] == CONTRACT_FAILURE
    assert finding["windows"][0][0] == "1970-05-01"
    with pytest.raises(DataError, match="11 of 504 rows have no time in column '_time'"):
        compared(tmp_path, since(), odd)


def test_many_rows_of_the_future_are_told(tmp_path: Path, bundle: Bundle) -> None:
    """They are left out; so many that a clock must be wrong are a warning."""
    ahead = since(_time=lambda t: t["_time"] + np.where(t.index % 50 == 0, 50 * 365 + t.index, 0) * DAY)
    finding = found(tmp_path, ahead, bundle=bundle)
    assert finding["rows"]["later"] == 11
    assert "11 of 504 rows are later than 1970-05-22" in failed(finding)["future", None]
    assert ("future", None) not in failed(found(tmp_path, since(), bundle=bundle))


def test_the_columns_of_times_may_have_two_names(tmp_path: Path) -> None:
    learned = made(0, LEARNED).assign(when=lambda t: pd.to_datetime(t["_time"], unit="s", utc=True))
    watched = compared(tmp_path, since(), learned.drop(columns="_time"))
    assert watched.reference["_block"].tolist() == (made(0, LEARNED)["_time"] // DAY).tolist()
    assert watched.current["_block"].tolist() == (since()["_time"] // DAY).tolist()


def test_a_figure_has_no_unit(tmp_path: Path) -> None:
    """The same sales in two currencies: drop and gap are shares and deviations, so both are judged alike."""
    folder = tmp_path / "bundle"
    make_bundle(folder, schema=SCHEMA | {"task": "regression", "classes": []})
    bundle, roles, told = Bundle.open(folder), replace(KNOWN, task="regression", classes=[]), []
    for unit in (1, 100):
        tables = [
            table.assign(sold=unit * (table["width"] + shift), _output=unit * table["width"] * 0.5, _model=bundle.id)
            for table, shift in ((made(0, LEARNED).assign(_split="test"), 0), (since(), 0.5))
        ]
        performance = found(tmp_path, tables[1], tables[0], bundle, roles=roles)["performance"]
        told.append([performance[part][key] for part in ("worse", "calibration") for key in ("lo", "hi")])
        told[-1] += [performance["worse"]["diff"], performance["calibration"]["value"]]
    assert told[0] == pytest.approx(told[1], abs=1e-5)
    assert 0.1 < told[0][0] < told[0][1] < 1
    assert 0.3 < told[0][2] < told[0][3] < 0.7


def test_nothing_and_too_little(tmp_path: Path, bundle: Bundle) -> None:
    for came, sentence in [(since()[:0], "No row has come"), (since()[: 3 * HOURS], "less than a window of 7 days")]:
        finding = found(tmp_path, came, bundle=bundle)
        assert (finding["status"], finding["code"]) == (NO_DATA, 0)
        assert sentence in finding["sentence"]
    short = found(tmp_path, since(), made(LEARNED - 30, 30), bundle)
    assert (short["status"], short["code"]) == (INSUFFICIENT, 0)


def test_without_labels_there_is_an_estimate(tmp_path: Path, bundle: Bundle) -> None:
    finding = found(tmp_path, since(sold=None), bundle=bundle)
    told = finding["performance"]
    assert finding["labels"]["new"] == 0
    assert (told["realised"], told["worse"], told["calibration"]) == ({}, None, None)
    assert told["estimate"]["auc"]["value"] > 0.6
    assert told["coverage"]["labelled"] == 0
    assert told["coverage"]["late"] > 0


def test_rows_that_came_twice_and_rows_of_tomorrow(tmp_path: Path, bundle: Bundle) -> None:
    """Duplicates count once, the first of two labels counts, and what is not known yet is left out, and said."""
    plain = found(tmp_path, since(), bundle=bundle)
    twice = pd.concat([since(), since()[-100:].assign(sold=lambda t: np.where(t["sold"] == "yes", "no", "yes"))])
    tomorrow = since()[:2].assign(_time=40 * 365 * DAY, number=["x", "y"])
    finding = found(tmp_path, pd.concat([twice, tomorrow], ignore_index=True), bundle=bundle)
    assert finding["rows"]["duplicates"] == 100
    assert finding["rows"]["conflicts"] == 100
    assert finding["rows"]["later"] == 2
    assert finding["performance"]["realised"] == plain["performance"]["realised"]
    assert finding["drift"] == plain["drift"]


def test_files_that_are_none(tmp_path: Path) -> None:
    compared(tmp_path, since())
    good, bad = tmp_path / "learned.parquet", tmp_path / "bad.parquet"
    for content in (good.read_bytes()[:5000], good.read_bytes()[:-20], b"", b"x,y\n1,2\n"):
        bad.write_bytes(content)
        with pytest.raises(DataError, match=r"bad\.parquet is damaged or no Parquet file"):
            load_from_tables(good, bad, KNOWN)
    for name, sentence in [("none.csv", "there is no file"), ("learned.txt", "there is no file")]:
        with pytest.raises(DataError, match=sentence):
            load_from_tables(good, tmp_path / name, KNOWN)
    since().rename(columns={"_time": "_at"}).to_parquet(bad)
    with pytest.raises(DataError, match="no column '_time' of times"):
        load_from_tables(good, bad, KNOWN)
    with pytest.raises(UserError, match="write a day such as"):
        load_from_tables(good, good, KNOWN, as_of="tomorrow")


def test_the_clock_changes(tmp_path: Path) -> None:
    """Days are local ones, 23 and 25 hours long at times."""
    hours = pd.date_range("2021-03-01", "2021-11-15", freq="h", tz="Europe/Berlin")
    table = pd.DataFrame({"when": hours, "size": np.random.default_rng(0).normal(size=len(hours))})
    table.to_parquet(tmp_path / "a.parquet")
    roles = Roles("a", "none", "regression", [], timestamp="when", timezone="Europe/Berlin")
    watched = load_from_tables(tmp_path / "a.parquet", tmp_path / "a.parquet", roles)
    rows = watched.current["_block"].value_counts()
    assert sorted(set(rows)) == [23, 24, 25]
    assert watched.counts["later"] == 1  # the first hour of a day that was not over


def test_the_log_is_read_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A real service: what it answered, labels that came twice, otherwise, or for nobody."""
    root = make_project(tmp_path / "a project")
    start, ids = pd.Timestamp("1970-06-01", tz="UTC"), []
    with serve(root, SERVE_LOG="log") as running:
        for day in range(14):
            rows = [ROW | {"width": k % 3, "made": str(start + pd.Timedelta(day * 24 + k, "h"))} for k in range(20)]
            status, answers = running.ask(rows)
            assert status == 200
            ids += [each["id"] for each in answers]
        said = [running.ask({"id": id, "label": "yes" if k % 2 else "no"}, "/feedback")[0] for k, id in enumerate(ids)]
        assert set(said) == {200}
        assert running.ask({"id": ids[0], "label": "no"}, "/feedback")[0] == 200  # once more
        running.ask({"id": ids[1], "label": "no"}, "/feedback")  # another one
        assert running.ask({"id": ids[0][:-1] + "fffff", "label": "no"}, "/feedback")[0] == 404
    bundle = Bundle.open(next(path for path in (root / "served").iterdir() if path.is_dir() and len(path.name) == 64))
    learned = pd.DataFrame({name: np.linspace(0, 3, 2400) for name in NUMBERS} | dict.fromkeys(WORDS, "m1"))
    learned["_time"] = np.repeat(np.arange(120), 20) * DAY
    learned.to_parquet(tmp_path / "learned.parquet")
    roles = Roles("a", "sold", "binary", ["no", "yes"], timestamp="made", as_of="1970-05-31", label_delay="1d")
    watched = load_from_log(root / "log", roles, bundle, None, tmp_path / "learned.parquet", root / "served")
    assert len(watched.current) == 280
    assert watched.counts == {"duplicates": 0, "conflicts": 1, "later": 0}
    (root / "data").mkdir()
    learned.drop(columns="width").to_parquet(root / "data/training_set.parquet")
    monkeypatch.chdir(root)
    with pytest.raises(DataError, match="no column 'width', which the champion takes"):
        load_from_log("log", roles, bundle, None, "data/training_set.parquet", "served")
    with pytest.raises(DataError, match=r"is not what champion \w+ learned from: bring back"):
        load_from_log("log", roles, bundle, None, None, "served")
    finding = asdict(run_monitor(watched, bundle, roles))
    assert finding["windows"] == [["1970-06-01", "1970-06-07"], ["1970-06-08", "1970-06-14"]]
    assert sum(finding["service"]["rungs"].values()) == 280
    assert finding["labels"]["new"] == 260 + 1  # of the last day one is due
    assert finding["performance"]["coverage"]["pending"] == 19
    earlier = load_from_log(root / "log", roles, bundle, "1970-06-08", tmp_path / "learned.parquet", root / "served")
    assert (len(earlier.current), earlier.counts["later"]) == (140, 140)


# The command and its pages


def test_the_command_says_what_to_do(project: Project, tmp_path: Path) -> None:
    """Exit codes that a scheduler can branch by; pages that open offline and run nothing of the tables."""
    evil = f"width {SCRIPT}"
    learned = made(0, LEARNED).drop(columns=["sold", "made", "number"])
    learned["kind"] = learned["kind"].replace("a", SCRIPT)
    learned = learned.rename(columns={"width": evil})
    came = made(LEARNED, CAME).drop(columns=["sold", "made", "number"]).rename(columns={"width": evil})
    came["kind"] = came["kind"].replace("a", SCRIPT)
    came.loc[came["new"] > 0, "kind"] = f"new {SCRIPT}"
    paths = {name: str(tmp_path / f"{name}.parquet") for name in ("learned", "drifted", "broken", "half")}
    learned.to_parquet(paths["learned"])
    came.assign(**{"kind": came["kind"].replace(f"new {SCRIPT}", "b"), evil: came[evil] + 1.2}).to_parquet(
        paths["drifted"]
    )
    came.to_parquet(paths["broken"])
    Path(paths["half"]).write_bytes(Path(paths["learned"]).read_bytes()[:900])

    drifted = project.nbs("monitor", "--reference", paths["learned"], "--current", paths["drifted"])
    assert drifted.returncode == 20, drifted.stdout + drifted.stderr
    assert drifted.stdout.startswith("drift. ")
    broken = project.nbs("monitor", "--reference", paths["learned"], "--current", paths["broken"])
    assert broken.returncode == 30, broken.stdout + broken.stderr
    look(project.root / "reports", tmp_path)
    half = project.nbs("monitor", "--reference", paths["learned"], "--current", paths["half"])
    assert half.returncode == 1
    assert "half.parquet is damaged" in half.stderr
    assert "Traceback" not in half.stderr
    assert not (project.root / "reports/cycle.json").exists(), "watching alone is no turn"


def look(reports: Path, folder: Path) -> None:
    """Nothing of the tables runs, and nothing is fetched."""
    if CHROMIUM is None:
        pytest.skip("needs a browser: apt-get install chromium")
    browser = Chromium(folder / "profile")
    try:
        for page, text in [("monitor.html", "CONTRACT FAILURE"), ("drift.html", "Data Drift Summary")]:
            browser.open(f"file://{reports / page}")
            browser.wait(f"document.body.innerText.includes({json.dumps(text)})")
            assert browser.see("document.documentElement.getAttribute('pwned')") is None
            assert "script" in browser.see("document.body.innerText"), "the hostile names are shown, as text"
            assert not browser.complaints
            assert all(url.startswith(("file:", "data:", "blob:")) for url in browser.asked)
    finally:
        browser.close()
