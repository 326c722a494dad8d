"""`nbs predict TABLE`: the champion answers a file whole, or says in one sentence why not."""

import datetime
import functools
import io
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.bundles import MARGINS, ROWS, SCHEMA, VERSION, VIEWS, make_bundle, make_ladder_bundle, store_of, write_rows
from helpers.bundles import blank_project as blank_project

from nbs_lib.bundle import metadata as contents
from nbs_lib.bundle.bundle import Bundle
from nbs_lib.bundle.fallback import FallbackLadder
from nbs_lib.bundle.layout import RowReader
from nbs_lib.core.errors import BundleError, DataError, UserError
from nbs_lib.data import source
from nbs_lib.data.resolve import resolve_roles
from nbs_lib.data.roles import Roles, column_kind
from nbs_lib.data.split import feature_table
from nbs_lib.features.online.base import encode_values
from nbs_lib.features.online.lookup import Lookup, open_store
from nbs_lib.registry.model_registry import deploy_bundle
from nbs_lib.registry.pointers import champion_path
from nbs_lib.score import answers, one_file, reading
from nbs_lib.score.one_file import predict_table

OUT = Path("scored.csv")
PROBABILITIES = 1 / (1 + np.exp(-np.array(MARGINS)))


@pytest.fixture
def here(blank_project: Path) -> Path:
    make_bundle(Path("models/bundle"))
    deploy_bundle("models/bundle")
    return blank_project


def test_a_csv_file(here: Path) -> None:
    assert predict_table(write_rows(here / "t.csv", ROWS), OUT) == 3
    scored = pd.read_csv(OUT, dtype={"number": str})
    assert list(scored) == ["number", "class", "probability", "margin"]
    assert scored["number"].tolist() == ["1", "2", "3"]
    assert scored["class"].tolist() == ["yes", "no", "yes"]
    np.testing.assert_allclose(scored["probability"], PROBABILITIES, atol=1e-6)


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
@pytest.mark.parametrize(
    ("key", "task"), [(["class", "margin"], "binary"), (["value"], "regression"), (["rung"], "ladder")]
)
def test_a_key_named_as_a_column_of_the_answers(
    blank_project: Path,
    capsys: pytest.CaptureFixture[str],
    key: list[str],
    task: str,
    suffix: str,
) -> None:
    """The key keeps its name and its values: they are what answers are joined by."""
    if task == "ladder":
        make_ladder_bundle(Path("models/bundle"))
        schema = json.loads(Path("models/bundle/schema.json").read_text())
        make_ladder_bundle(Path("models/bundle"), schema=schema | {"key": key})
        store_of(blank_project)
        row = {"width": 1, "maker": "m1", "place": 7, "made": "1971-01-01"}
        rows = [row | dict.fromkeys(key, f"k{n}") for n in range(3)]
    else:
        make_bundle(Path("models/bundle"), schema=SCHEMA | {"task": task, "key": key})
        rows = [row | dict.fromkeys(key, f"k{n}") for n, row in enumerate(ROWS)]
    deploy_bundle("models/bundle")
    out = OUT.with_suffix(suffix)
    predict_table(write_rows(blank_project / "t.csv", rows), out)
    scored = pd.read_csv(out) if suffix == ".csv" else pd.read_parquet(out)
    for name in key:
        assert scored[name].tolist() == ["k0", "k1", "k2"]
        assert f"predicted_{name}" in scored
    said = capsys.readouterr().err
    assert said.count("so that of the answers is named") == len(key)


@pytest.mark.parametrize("form", ["plain", "zones", "category", "decimal"])
def test_a_parquet_file(here: Path, form: str) -> None:
    table = pd.DataFrame(ROWS)
    if form == "zones":
        table["made"] = pd.to_datetime(table["made"], format="ISO8601", utc=True).dt.tz_convert("Asia/Tokyo")
    if form == "category":
        table["kind"] = table["kind"].astype("category")
    if form == "decimal":
        import decimal

        table["width"] = table["width"].map(lambda value: decimal.Decimal(str(value)))
    table.to_parquet("t.parquet")
    predict_table("t.parquet", "scored.parquet")
    np.testing.assert_allclose(pd.read_parquet("scored.parquet")["probability"], PROBABILITIES, atol=1e-6)


SPELLINGS = {
    "time of day": ["08:00", "09:30", ""],
    "time of day with seconds": ["08:00:00", "09:30:15", "NA"],
    "date": ["2024-01-01", "2024-02-29", ""],
    "moment": ["2024-01-01 08:00", "2024-01-01T09:00:00", ""],
    "moment with zones": ["2024-01-01T08:00Z", "2024-01-01T09:00+02:00", "null"],
    "mixed moments": ["2024-01-01T08:00Z", "2024-01-01", ""],
    "fraction of a second": ["2024-01-01T08:00:00.123456789Z", "2024-01-01T08:00:00.5Z", ""],
    "leading zeros": ["007", "08", "N/A"],
    "trailing zeros": ["1.50", "2.00", "3.0"],
    "trailing zeros and text": ["1.50", "A", "1.5"],
    "exponents": ["1e5", "+2", ".5"],
    "hexadecimal": ["0x1F", "0x2", "7"],
    "large numbers": ["9223372036854775808", "1", "NaN"],
    "exact numbers": ["9007199254740993", "16777217", ""],
    "spaces": [" 5", "6 ", "7"],
    "spaces around text": [" a", "a ", "a"],
    "booleans": ["true", "False", ""],
    "booleans of many forms": ["TRUE", "1", "0"],
    "yes and no": ["yes", "no", "true"],
    "missing": ["NULL", "nan", "x"],
    "nearly missing": ["None", "-", "na"],
    "quoted": ['"NA"', '"a,b"', '""'],
}


@pytest.mark.parametrize("values", SPELLINGS.values(), ids=SPELLINGS.keys())
def test_training_and_production_read_the_same(tmp_path: Path, values: list[str]) -> None:
    path = tmp_path / "t.csv"
    path.write_text("x,y\n" + "".join(f"{value},{i}\n" for i, value in enumerate(values)))
    agree(path, source.read_source(str(path)).table)


def agree(path: Path, table: pd.DataFrame, form: str | None = None) -> None:
    """What training encodes of column `x` of a file is what production encodes."""
    role = {"text": "categorical", "time": "time"}.get(column_kind(table["x"]), "numeric")
    roles = Roles("t", "y", "regression", [], columns={"x": {"role": role}, "y": {"role": "target"}})
    learned = feature_table(table, roles)["x"].to_numpy()
    entry = {"name": "x", "input": role, "type": column_kind(table["x"]), "format": form}
    names = {kind: ["x"] if kind == role else [] for kind in ("numeric", "categorical", "time")}
    schema = {"inputs": [entry], "key": []}
    bundle = SimpleNamespace(schema=schema, names=names, context_names={}, views=[])
    batches = reading.read_batches(bundle, path)  # type: ignore[arg-type]
    asked = [RowReader(bundle).columns(answers.column_values(bundle, batch), 1) for batch in batches]  # type: ignore[arg-type]
    np.testing.assert_array_equal(np.concatenate([each.arrays[role][:, 0] for each in asked]), learned)


@pytest.mark.parametrize(
    ("values", "form"),
    [
        (["31/12/2024 08:00", "01/02/2024 23:59"], "%d/%m/%Y %H:%M"),
        (["12/31/2024", "02/01/2024"], "%m/%d/%Y"),
        (["2024-01-01T08:00Z", "2024-01-01"], "ISO8601"),
        (["2024-01", "2024-02"], "ISO8601"),
    ],
)
def test_production_reads_times_in_the_form_that_training_read(tmp_path: Path, values: list[str], form: str) -> None:
    path = tmp_path / "t.csv"
    path.write_text("x,y\n" + "".join(f"{value},{i}\n" for i, value in enumerate(values * 20)))
    found = source.read_source(str(path))
    rows, roles = resolve_roles(found, {"source": "t.csv", "target": "y", "timestamp": "x"})
    assert roles.columns["x"]["format"] == form
    promised = contents.build_schema(roles, rows, {"inputs": {"x": {"nulls": 0.0}}}, None)
    assert promised["inputs"][0]["format"] == form
    agree(path, rows.sort_index(), form)


def test_parquet_with_times_of_day(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    times = pa.array([datetime.time(8), None, datetime.time(9, 30)], pa.time32("s"))
    pq.write_table(pa.table({"x": times, "y": [1, 2, 3]}), path)
    agree(path, source.read_source(str(path)).table)


def test_standard_output(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    predict_table(write_rows(here / "t.csv", ROWS))
    scored = pd.read_csv(io.StringIO(capsys.readouterr().out))
    assert len(scored) == 3


def test_without_a_key_rows_are_numbered(here: Path) -> None:
    rows = [{name: value for name, value in row.items() if name != "number"} for row in ROWS]
    predict_table(write_rows(here / "t.csv", rows), OUT)
    assert pd.read_csv(OUT)["row"].tolist() == [1, 2, 3]


def test_many_batches_are_one_answer(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(one_file, "read_batches", functools.partial(reading.read_batches, size=1000))
    table = pd.concat([pd.DataFrame(ROWS)] * 2000, ignore_index=True)
    table["width"] = np.arange(len(table)) / 1000
    table.to_csv("t.csv", index=False)
    table.to_parquet("t.parquet")
    for name in ("t.csv", "t.parquet"):
        assert predict_table(name, OUT) == 6000
        whole = Bundle.open(champion_path()).predict(table)["margin"]
        np.testing.assert_allclose(pd.read_csv(OUT)["margin"], whole, rtol=1e-6)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{**ROWS[0], "width": "wide"}], r"t\.csv: column 'width', row 1: 'wide' is not a number"),
        ([ROWS[0], {**ROWS[0], "made": "soon"}], r"t\.csv: column 'made', row 2: 'soon' is not a time"),
        ([{**ROWS[0], "new": "perhaps"}], r"column 'new', row 1: 'perhaps' is not a bool"),
        ([{**ROWS[0], "width": "inf"}], "column 'width', row 1: inf is not a finite number"),
        ([{"widht": 1, "kind": "a"}], r"no column 'width' \(did you mean 'widht'\?\), 'new', 'made'"),
    ],
)
def test_a_wrong_value_is_one_sentence_and_no_file(here: Path, rows: list[dict[str, Any]], message: str) -> None:
    OUT.write_text("old")
    with pytest.raises(DataError, match=message) as caught:
        predict_table(write_rows(here / "t.csv", rows), OUT)
    assert "\n" not in str(caught.value)
    assert OUT.read_text() == "old"
    assert not list(here.glob(".scored*"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"width,new,kind,made\n", "has no rows"),
        (b"width,new,kind,made\n1,true,a\n", r"row 1 \(line 2\) has 3 values where the header has 4"),
        (b"width,new,kind,made\n1,true,\xff,0\n", "not UTF-8"),
        (b"width,width,new,kind,made\n1,1,true,a,\n", "two columns are named 'width'"),
        (b'width,new,kind,made\n1,true,"a,\n', "never closed"),
        (b"\xef\xbb\xbfwidht\n1\n", "no column 'width'"),
    ],
)
def test_a_broken_csv_file_is_refused(here: Path, content: bytes, message: str) -> None:
    Path("t.csv").write_bytes(content)
    with pytest.raises(DataError, match=message):
        predict_table("t.csv", OUT)
    assert not OUT.exists()


def test_a_late_error_leaves_nothing_on_standard_output(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [ROWS[0]] * 50 + [{**ROWS[0], "made": "soon"}]
    with pytest.raises(DataError, match="row 51"):
        predict_table(write_rows(here / "t.csv", rows))
    assert capsys.readouterr().out == ""


def test_a_damaged_parquet_file_is_refused(here: Path) -> None:
    pd.DataFrame(ROWS * 500).to_parquet("t.parquet")
    whole = pq.read_table("t.parquet")
    pq.write_table(whole, "t.parquet", write_page_checksum=True)
    content = bytearray(Path("t.parquet").read_bytes())
    content[200] ^= 1
    Path("t.parquet").write_bytes(content)
    with pytest.raises(DataError, match=r"t\.parquet can't be read"):
        predict_table("t.parquet", OUT)
    Path("t.parquet").write_bytes(b"PAR1")
    with pytest.raises(DataError, match=r"t\.parquet can't be read"):
        predict_table("t.parquet", OUT)


def test_formulas_and_tags_stay_text(here: Path) -> None:
    rows = [{**ROWS[0], "number": "=cmd()", "kind": "<script>"}]
    predict_table(write_rows(here / "t.csv", rows), OUT)
    assert pd.read_csv(OUT)["number"].tolist() == ["=cmd()"]


def test_no_champion(blank_project: Path) -> None:
    with pytest.raises(UserError, match="there is no champion yet: `make run`"):
        predict_table("t.csv")


def test_no_such_file_or_form(here: Path) -> None:
    with pytest.raises(UserError, match=r"there is no file none\.csv"):
        predict_table("none.csv")
    Path("t.xlsx").write_text("x")
    with pytest.raises(UserError, match=r"t\.xlsx ends in none of \.csv, "):
        predict_table("t.xlsx")
    with pytest.raises(UserError, match=r"out\.txt ends in neither"):
        predict_table("t.csv", "out.txt")


def test_a_champion_with_another_content_is_refused(here: Path) -> None:
    (champion_path() / "model.onnx").write_bytes(b"other")
    write_rows(here / "t.csv", ROWS)
    with pytest.raises(BundleError, match="was changed"):
        predict_table("t.csv")
    folder = champion_path()
    make_bundle(folder, schema=SCHEMA | {"threshold": 0.1})
    with pytest.raises(BundleError, match="restores the champion"):
        predict_table("t.csv")


# Views and rungs

ASKED: list[dict[str, Any]] = [
    {"width": 1, "maker": "m1", "place": 7, "made": "1971-01-01"},
    {"width": 1, "maker": "never seen", "place": None, "made": "1971-01-01"},
    {"width": None, "maker": None, "place": None, "made": "1971-01-01"},
]


@pytest.fixture
def viewed(blank_project: Path) -> Path:
    make_ladder_bundle(Path("models/bundle"))
    deploy_bundle("models/bundle")
    return blank_project


@pytest.mark.parametrize("name", ["t.csv", "t.parquet"])
def test_views_are_read_from_the_store(viewed: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    store_of(viewed)
    write_rows(viewed / "t.csv", ASKED)
    pd.DataFrame(ASKED).to_parquet("t.parquet")
    assert predict_table(name, OUT) == 3
    scored = pd.read_csv(OUT)
    assert list(scored) == ["row", "class", "probability", "margin", "rung", "history"]
    assert scored["rung"].tolist() == ["model", "partial", "context"]
    assert scored["history"].tolist() == [20, 0, 0]
    alone = [FallbackLadder(Bundle.open(champion_path()), Lookup(VIEWS, open_store())).answer(row) for row in ASKED]
    np.testing.assert_allclose(scored["margin"], [answer["margin"][0] for answer in alone], rtol=1e-6)
    assert "rung" not in capsys.readouterr().err


LONG = 123456789012345679  # as a number with a point it ends in 0


@pytest.mark.parametrize("name", ["t.csv", "t.parquet"])
@pytest.mark.parametrize("places", [[LONG, LONG + 1], [LONG, None], [7.0, None]])
def test_long_ids_keep_their_digits(viewed: Path, name: str, places: list[Any]) -> None:
    day = 86_400_000_000
    rows = [(str(int(place)), encode_values([9 * day, 0.25])) for place in places[:1]]
    others = {
        "maker": [("m1", encode_values([9 * day, 3.0, 20.0, "b"]))],
        "market": [("", encode_values([9 * day, 0.5]))],
    }
    open_store().write(10 * day, {f"{view}@{VERSION}": each for view, each in ({"spot": rows} | others).items()})
    asked = [ASKED[0] | {"place": place} for place in places]
    write_rows(viewed / "t.csv", asked)
    table = pd.DataFrame(asked).astype({"place": object})
    table["place"] = pd.array(places, dtype="Float64" if isinstance(places[0], float) else "Int64")
    table.to_parquet("t.parquet")
    predict_table(name, OUT)
    assert pd.read_csv(OUT)["rung"].tolist() == ["model", "partial"]


def test_a_store_that_fails_is_said_once(viewed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pd.concat([pd.DataFrame(ASKED)] * 1000).to_parquet("t.parquet")
    predict_table("t.parquet", OUT)
    assert set(pd.read_csv(OUT)["rung"]) == {"partial", "context"}
    said = capsys.readouterr().err
    assert said.count("nbs materialize") == 1
    assert said.count("on a lower rung") == 1
    store_of(viewed, version="ffffffffffff")
    predict_table("t.parquet", OUT)
    said = capsys.readouterr().err
    for view in ("maker", "spot", "market"):
        assert said.count(f"view {view} changed") == 1


def test_views_may_be_in_the_file(viewed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    known = {"maker_sold": 3.0, "maker_days": 2, "maker_best": "b", "spot_age": 5, "spot_rain": 1, "market_share": 1}
    rows = [{name: value for name, value in row.items() if name != "place"} | known for row in ASKED]
    predict_table(write_rows(viewed / "t.csv", rows), OUT)
    scored = pd.read_csv(OUT)
    assert scored["rung"].tolist() == ["model"] * 3
    assert scored["history"].tolist() == [2] * 3
    assert "rung" not in capsys.readouterr().err


def test_what_a_view_needs_has_to_be_there(viewed: Path) -> None:
    rows = [{name: value for name, value in row.items() if name != "place"} for row in ASKED]
    with pytest.raises(DataError, match=r"t\.csv: the table has no column 'place'"):
        predict_table(write_rows(viewed / "t.csv", rows), OUT)
    with pytest.raises(DataError, match="brings values of the view 'maker', but no 'maker_days'"):
        predict_table(write_rows(viewed / "t.csv", [ASKED[0] | {"maker_sold": 1}]), OUT)
    with pytest.raises(DataError, match="'place', row 1: '7 a' is not a number"):
        predict_table(write_rows(viewed / "t.csv", [ASKED[0] | {"place": "7 a"}]), OUT)
    assert not OUT.exists()
