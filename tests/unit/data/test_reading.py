"""What people bring is read as what it is, and refused in one sentence where nobody can tell."""

import bz2
import datetime
import gzip
import os
import re
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import ROOT

from nbs_lib.bundle.layout import column_readings
from nbs_lib.bundle.metadata import build_schema
from nbs_lib.core.errors import DataError, ParamsError, UserError
from nbs_lib.data.arrays import epoch_seconds
from nbs_lib.data.reading import delimited
from nbs_lib.data.reading.delimited import read_delimited
from nbs_lib.data.reading.files import read_raw
from nbs_lib.data.reading.tables import read_known
from nbs_lib.data.reading.times import parse_times
from nbs_lib.data.resolve import resolve_roles
from nbs_lib.data.roles import Roles, read_yaml
from nbs_lib.data.schema import infer_schema
from nbs_lib.data.source import file_digests, read_source
from nbs_lib.data.table import Source
from nbs_lib.data.values import settle_value
from nbs_lib.monitor.from_tables import read_table


def csv(path: Path, columns: dict[str, list[Any]], **options: Any) -> str:
    """Write a table; 60 rows at least, so that its roles can be inferred."""
    longest = max(map(len, columns.values()))
    table = {name: (values * 60)[: max(60, longest)] for name, values in columns.items()}
    pd.DataFrame(table, dtype=object).to_csv(path, index=False, **options)
    return str(path)


def learned(name: str, **given: Any) -> tuple[Source, Roles]:
    """Read a table and decide what is learned from it."""
    keys = {"source": "t", "target": "y"} | given
    source = read_source(name, keys)
    return source, resolve_roles(source, keys)[1]


def refused(call: Callable[[], object], error: type[UserError] = DataError) -> str:
    with pytest.raises(error) as caught:
        call()
    sentence = str(caught.value)
    assert "\n" not in sentence
    return sentence


def noted(source: Source, name: str) -> str:
    """What is said of one column."""
    return next(note for note in source.notes if note.startswith(f"Column {name!r}"))


def test_files_read_at_once_keep_to_themselves(tmp_path: Path) -> None:
    """All are read in one database: what does not fit in one of them is said of that one, and of no later one."""
    rows = [f"{k},{k}" for k in range(50)]
    for number in range(40):
        broken = [*rows[:number], "1,2,3", *rows[number:]] if number % 2 else rows
        (tmp_path / f"{number:02}.csv").write_text("\n".join(["a,b", *broken]))

    def read(path: Path) -> str:
        try:
            return str(read_delimited(path, {})[0].num_rows)
        except DataError as error:
            return str(error)

    with ThreadPoolExecutor(8) as pool:
        said = list(pool.map(read, sorted(tmp_path.iterdir())))
    assert said[::2] == ["50"] * 20
    for number, sentence in zip(range(1, 40, 2), said[1::2], strict=True):
        assert sentence.startswith(f"{tmp_path}/{number:02}.csv: ")
        assert re.search(rf"row {number + 1}\b", sentence), sentence


def test_a_process_that_has_read_may_fork(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("a,b\n1,2\n")
    code = """
import os, sys
from pathlib import Path
from nbs_lib.data.reading.delimited import read_delimited
for reads in (False, True):
    print(read_delimited(Path("t.csv"), {})[0].num_rows)
    child = os.fork()
    if not child:
        sys.exit(read_delimited(Path("t.csv"), {})[0].num_rows if reads else 0)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == ["1", "0", "1", "1"], done.stderr


def test_a_file_that_breaks_the_database_costs_no_later_one(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("a,b\n1,2\n")
    for _ in range(2):
        assert read_delimited(tmp_path / "t.csv", {})[0].num_rows == 1
        delimited._database().close()


YES = ["yes", "no", "no"]
ZONES = ["2021-01-01T00:00:00", "2021-01-01T04:00:00+02:00", "2021-01-01T08:00:00Z"]


@pytest.mark.parametrize(
    "lines", [("full name", "John  Smith", "Ann  Lee"), ("age bmi", " 1  2.5", "10  3.5", "12 14.5")]
)
def test_blanks_in_the_text_of_a_single_column_part_nothing(tmp_path: Path, lines: tuple[str, ...]) -> None:
    (tmp_path / "t.csv").write_text("\n".join([*lines, ""]))
    table, _ = read_delimited(tmp_path / "t.csv", {})
    assert (table.column_names, table.num_rows) == ([lines[0]], len(lines) - 1)


@pytest.mark.parametrize("role", ["timestamp", "feature"])
def test_times_with_and_without_a_zone_are_refused(tmp_path: Path, role: str) -> None:
    path = csv(tmp_path / "t.csv", {"at": ["2021-01-01T00:00Z", *ZONES], "x": [1, 2], "y": YES})
    told = refused(lambda: learned(path, **({"timestamp": "at"} if role == "timestamp" else {})))
    assert "t.csv: column 'at': row 2 ('2021-01-01T00:00:00') names no time zone and row 1 " in told
    pq.write_table(pa.table({"at": ZONES * 20, "y": YES * 20}), tmp_path / "t.parquet")
    assert "names no time zone" in refused(lambda: learned(str(tmp_path / "t.parquet")))


def test_times_with_and_without_a_zone_are_refused_where_rows_are_scored_and_watched(tmp_path: Path) -> None:
    path = csv(tmp_path / "t.csv", {"at": ZONES, "y": YES})
    known = {"at": {"type": "time", "format": "ISO8601"}}
    assert "row 1 ('2021-01-01T00:00:00') names no time zone" in refused(lambda: read_known(path, known))
    roles = Roles("t", "y", "binary", ["no", "yes"], timestamp="at", columns={"at": {"role": "timestamp"}})
    assert "names no time zone" in refused(lambda: read_table(path, roles))
    assert "names no time zone" in refused(lambda: read_table(path))


def test_one_row_at_a_time_means_what_the_service_took_it_for() -> None:
    """Rows of the log come from callers who don't know each other."""
    times, _ = parse_times(pd.Series(ZONES), "ISO8601", apart=True)
    assert [int(time.timestamp()) for time in times] == [epoch_seconds(text, "at") for text in ZONES]
    assert times.dt.hour.tolist() == [0, 2, 8]


@pytest.mark.parametrize(
    ("values", "kept", "why"),
    [
        (["007", "7", "0042", "42"], ["007", "7", "0042", "42"], "row 1 holds '007', which begins with a zero"),
        (["7", "", "007", "?"], ["7", None, "007", "?"], "row 3 holds '007'"),
        (["9007199254740993", "9007199254740992", ""], None, "has more digits than a number keeps"),
        (["9223372036854775809", "9223372036854775808"], None, "has more digits than a number keeps"),
        (["100000001", "100000002"], None, "100000001 and 100000002 are one number to a model"),
        (["100000001", "100000002", ""], None, "100000001 and 100000002 are one number to a model"),
    ],
)
def test_codes_are_kept_apart(tmp_path: Path, values: list[str], kept: list[Any] | None, why: str) -> None:
    path = csv(tmp_path / "t.csv", {"code": values, "x": [1, 2], "y": YES})
    source, roles = learned(path)
    kept = kept or [value or None for value in values]
    assert source.table["code"].tolist()[: len(values)] == kept
    assert why in noted(source, "code")
    assert "data.read: {columns: {code: number}}" in noted(source, "code")
    assert roles.categorical == ["code"]
    (tmp_path / "later.csv").write_text("code,x\n15,1\n")
    assert read_known(tmp_path / "later.csv", roles.readings)["code"].to_pylist() == ["15"], "with no zero to be seen"
    pq.write_table(pa.table({"code": [15.0, None]}), tmp_path / "later.parquet")
    assert read_known(tmp_path / "later.parquet", roles.readings)["code"].to_pylist() == ["15", None], (
        "as pandas has it"
    )
    source, _ = learned(path, read={"columns": {"code": "number"}, "missing": ["?"]})
    assert source.table["code"].dtype.kind in "if"


@pytest.mark.parametrize(
    "values",
    [
        pa.array([2**63 + 1, 2**63 + 3], pa.uint64()),
        pa.array([2**53 + 1, 2**53 + 2, None], pa.int64()),
        pa.array([100_000_001, 100_000_002], pa.int64()),
        pa.array([100_000_001.0, 100_000_002.0, None], pa.float64()),
    ],
    ids=str,
)
def test_codes_of_parquet_are_kept_apart(tmp_path: Path, values: pa.Array) -> None:
    many = pa.chunked_array([values] * 20)
    pq.write_table(pa.table({"code": many, "y": (YES * 20)[: len(many)]}), tmp_path / "t.parquet")
    source, roles = learned(str(tmp_path / "t.parquet"))
    wanted = [None if value is None else str(int(value)) for value in values.to_pylist()]
    assert source.table["code"].tolist()[: len(values)] == wanted
    assert read_known(tmp_path / "t.parquet", roles.readings)["code"].to_pylist()[: len(values)] == wanted


def test_numbers_that_a_model_cant_tell_apart_are_said(tmp_path: Path) -> None:
    numbers = [str(1_700_000_000 + k) for k in range(90)]
    source, _ = learned(csv(tmp_path / "t.csv", {"at": numbers, "x": [1, 2], "y": YES}))
    assert "90 different numbers are only 2 to a model" in noted(source, "at")
    source, _ = learned(csv(tmp_path / "t.csv", {"size": [str(k) for k in range(90)], "x": [1, 2], "y": YES}))
    assert not [note for note in source.notes if "32 bits" in note]


@pytest.mark.parametrize("fraction", [0, 500_000])
def test_a_time_of_day_is_the_same_in_any_unit(tmp_path: Path, fraction: int) -> None:
    found = []
    for kind in (pa.time32("s"), pa.time32("ms"), pa.time64("us"), pa.time64("ns")):
        if fraction and kind == pa.time32("s"):
            continue
        times = pa.array([datetime.time(8, 0, 0, fraction), datetime.time(10, 30), None], pa.time64("us")).cast(kind)
        pq.write_table(pa.table({"t": times, "y": YES}), tmp_path / "t.parquet")
        found.append(read_source(str(tmp_path / "t.parquet")).table["t"].tolist())
    assert found == [["08:00:00.5" if fraction else "08:00:00", "10:30:00", None]] * len(found)


def test_spellings_of_a_class_are_refused_until_they_are_acknowledged(tmp_path: Path) -> None:
    path = csv(tmp_path / "t.csv", {"x": [1, 2, 3], "k": ["red", "Red"], "y": ["yes", "no", "Yes "]})
    told = refused(lambda: learned(path))
    assert "classes 'Yes ' and 'yes', which differ only by case or blanks" in told
    assert "data.read: {columns: {y: text}}" in told
    source, roles = learned(path, read={"columns": {"y": "text"}})
    assert roles.classes == ["Yes ", "no", "yes"]
    assert "'Red' and 'red' differ only by case or blanks, and are learned as two" in noted(source, "k")


def test_na_as_a_class_is_refused_until_someone_says_what_it_is(tmp_path: Path) -> None:
    path = csv(tmp_path / "t.csv", {"x": [1, 2, 3], "y": ["AS", "NA", "EU"]})
    assert "holds 'NA' (first in row 2) among short codes" in refused(lambda: learned(path))
    assert learned(path, read={"missing": {"y": []}})[1].classes == ["AS", "EU", "NA"]
    assert learned(path, read={"missing": {"y": ["NA"]}})[1].classes == ["AS", "EU"]
    path = csv(tmp_path / "t.csv", {"x": [1, 2, 3], "y": ["male", "NA", "female"]})
    _, roles = learned(path)
    assert roles.classes == ["female", "male"]
    assert "Without a target: 20 of 60 known rows" in " ".join(roles.notes)


FORMS: dict[str, tuple[list[str], list[float | None], dict[str, Any]]] = {
    "thousands": (["69,320.00", "5.5", "1,000"], [69320, 5.5, 1000], {"group": ","}),
    "currency": (["$1,234.50", "-$7", "$0.5"], [1234.5, -7, 0.5], {"group": ",", "symbol": "$"}),
    "percent": (["62.9%", "5 %", ""], [62.9, 5, None], {"symbol": "%"}),
    "accounting": (["(1,234)", "17", "0"], [-1234, 17, 0], {"group": ","}),
    "marks": (["14.35", "?", "9"], [14.35, None, 9], {"missing": ["NA", "N/A", "NaN", "nan", "null", "NULL", "?"]}),
    "spaces": (["1 234.5", "7", "12 000 000"], [1234.5, 7, 12e6], {"group": " "}),
}


@pytest.mark.parametrize(("texts", "numbers", "form"), FORMS.values(), ids=FORMS.keys())
def test_numbers_with_marks_are_numbers(
    tmp_path: Path, texts: list[str], numbers: list[float | None], form: dict[str, Any]
) -> None:
    path = csv(tmp_path / "t.csv", {"n": texts, "x": ["0.25", "0.5"], "y": YES})
    source, roles = learned(path)
    wanted = np.array(numbers, dtype=float)
    np.testing.assert_array_equal(source.table["n"][:3].to_numpy(float), wanted)
    assert roles.columns["n"]["read"] == form
    assert "data.read: {columns: {n: text}}" in noted(source, "n")
    again = read_known(path, roles.readings)["n"].to_pandas()[:3].to_numpy(float)
    np.testing.assert_array_equal(again, wanted)
    np.testing.assert_array_equal(read_table(path, roles)["n"][:3].to_numpy(float), wanted)


def test_a_decimal_comma_is_found_in_the_columns_that_leave_no_choice(tmp_path: Path) -> None:
    german = {"price": ["14,35", "9,8"], "people": ["1.234", "45.678"], "y": YES}
    source, roles = learned(csv(tmp_path / "t.csv", german, sep=";"))
    assert source.table.loc[:1, ["price", "people"]].to_numpy().tolist() == [[14.35, 1234], [9.8, 45678]]
    assert source.read["found"]["separator"] == ";"
    assert source.read["found"]["decimal"] == ","
    (tmp_path / "later.csv").write_text("price;people\n14.35;1.234\n")
    told = refused(lambda: read_known(tmp_path / "later.csv", roles.readings))
    assert told == "column 'price', row 1: '14.35' is not a number."
    source, _ = learned(csv(tmp_path / "t.csv", {"amount": ["47,519", "1,470"], "x": ["0.1"], "y": YES}))
    assert source.table["amount"][:2].tolist() == [47519, 1470]
    source, _ = learned(
        csv(tmp_path / "t.csv", {"amount": ["47,519", "1,470"], "x": ["0.1"], "y": YES}), read={"decimal": ","}
    )
    assert source.table["amount"][:2].tolist() == [47.519, 1.47]


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (["5%", "0.05"], "have no one form"),
        ([*["7"] * 59, "V45"], "row 60 holds 'V45', and nearly all others numbers (if it marks a missing value, write"),
        (["01/02/2018", "02/03/2018"], "may have day or month first, as in '01/02/2018'"),
        (["01/02/2018 12:00 AM", "02/03/2018 7:30 PM"], "may have day or month first, as in '01/02/2018 12:00 AM'"),
        (["20.03.18", "01.04.18"], "row 1 holds '20.03.18' (their form, such as data.read: {columns: {n: '%d.%m.%y'}}"),
        ([*["2018-02-03"] * 59, "soon"], "it looks like times, and row 60 holds 'soon' (if it marks a missing value"),
        (["20.03.2018", *["21.03.2018"] * 8, "2018-03-22"], "{columns: {n: '%d.%m.%Y'}}"),
    ],
)
def test_what_only_looks_like_numbers_or_times_is_said(tmp_path: Path, values: list[str], said: str) -> None:
    source, _ = learned(csv(tmp_path / "t.csv", {"n": values, "x": [1, 2], "y": YES}))
    assert source.table["n"].tolist()[: len(values)] == values
    assert said in noted(source, "n").replace("Column 'n' may", "column 'n' may")
    assert "data.read" in noted(source, "n")


@pytest.mark.parametrize(
    ("values", "days", "form"),
    [
        (["20/03/2018", "01/04/2018"], ["2018-03-20", "2018-04-01"], "%d/%m/%Y"),
        (["03/20/2018", "04/01/2018"], ["2018-03-20", "2018-04-01"], "%m/%d/%Y"),
        (["20.03.2018", "-"], ["2018-03-20", None], "%d.%m.%Y"),
        (["01/04/2018 12:00 AM", "3/20/2018 7:30 PM"], ["2018-01-04", "2018-03-20"], "%m/%d/%Y %I:%M %p"),
        (["3/20/2018 7:30 PM", "01/04/2018 12:00 AM"], ["2018-03-20", "2018-01-04"], "%m/%d/%Y %I:%M %p"),
        (["20 Mar 2018 1:00 PM", "1 Apr 2018 11:00 AM"], ["2018-03-20", "2018-04-01"], "%d %b %Y %I:%M %p"),
        (["3/20/2018, 1:05:00 PM", ""], ["2018-03-20", None], "%m/%d/%Y, %I:%M:%S %p"),
        (["20.03.2018 07:30:05 pm", ""], ["2018-03-20", None], "%d.%m.%Y %I:%M:%S %p"),
        (["2018-03-20 08:00:00+00:00", "2018-04-01 09:00:00+02:00"], ["2018-03-20", "2018-04-01"], "ISO8601"),
    ],
)
@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_dates_as_text_are_times(tmp_path: Path, values: list[str], days: list[Any], form: str, ending: str) -> None:
    path = csv(tmp_path / "t.csv", {"bought": values, "x": [1, 2], "y": YES})
    if ending == "parquet":
        path = str(tmp_path / "t.parquet")
        pd.read_csv(tmp_path / "t.csv", dtype={"bought": str}).to_parquet(path)
    source, roles = learned(path)
    found = [None if pd.isna(time) else time.date().isoformat() for time in source.table["bought"][:2]]
    assert found == days
    assert roles.time == ["bought"]
    assert roles.columns["bought"]["format"] == form
    again = read_known(path, roles.readings)["bought"].to_pandas()
    pd.testing.assert_series_equal(again, source.table["bought"], check_names=False, check_dtype=False)


def test_a_form_that_data_read_names_is_taken(tmp_path: Path) -> None:
    path = csv(tmp_path / "t.csv", {"day": ["01/02/2018", "02/03/2018"], "n": [20200101], "y": YES})
    source, _ = learned(path, read={"columns": {"day": "%d/%m/%Y", "n": "%Y%m%d"}})
    assert source.table["day"].dt.month[:2].tolist() == [2, 3]
    assert source.table["n"].dt.year[0] == 2020
    told = refused(lambda: learned(path, timestamp="n"))
    assert "holds numbers" in told
    assert "data.read: {columns: {n: '%Y%m%d'}}" in told
    told = refused(lambda: learned(path, read={"columns": {"day": "%d.%m.%Y"}}))
    assert "column 'day', row 1: '01/02/2018' is not a time" in told


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("seperator", ";", "did you mean 'separator'?"),
        ("separator", ";;", "one character each"),
        ("decimal", "x", "data.read.decimal"),
        ("columns", {"x": "numbr"}, "did you mean 'number'?"),
        ("columns", {"yy": "text"}, "the table has no column 'yy' (did you mean 'y'?)"),
        ("missing", {"why": ["?"]}, "data.read.missing: the table has no column 'why'"),
        ("header", "no", "data.read.header can't be 'no'"),
    ],
)
def test_what_data_read_cant_hold_is_refused(tmp_path: Path, key: str, value: Any, said: str) -> None:
    path = csv(tmp_path / "t.csv", {"x": [1], "y": YES})
    assert said in refused(lambda: learned(path, read={key: value}), ParamsError)


FAR = {
    "9999-12-31": ("t", ["2020-01-01", "9999-12-31"]),
    "0001-01-01": ("t", ["2020-01-01", "0001-01-01"]),
    "1.7976931348623157e+308": ("n", ["1.5", "1.7976931348623157e308"]),
    "-1.7976931348623157e+308": ("n", ["1.5", "-1.7976931348623157e308"]),
}


@pytest.mark.parametrize(("mark", "column"), FAR.items(), ids=FAR.keys())
@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_what_nothing_can_compute_with_is_refused_at_once(
    tmp_path: Path, mark: str, column: tuple[str, list[str]], ending: str
) -> None:
    name, values = column
    path = csv(tmp_path / "t.csv", {name: values, "x": [1, 2], "y": YES})
    if ending == "parquet":
        table = read_source(path).table
        path = str(tmp_path / "t.parquet")
        pq.write_table(pa.Table.from_pandas(table), path)
    told = refused(lambda: learned(path))
    assert f"row 2 of column {name!r} is {mark}" in told
    write = {"missing": {name: [mark]}}
    assert f"write data.read: {{missing: {{{name}: ['{mark}']}}}}" in told
    source, roles = learned(path, read=write)
    assert source.table[name].isna().tolist()[:2] == [False, True]
    assert read_known(path, roles.readings)[name].null_count == 30
    source, roles = learned(path, drop=[name])
    assert roles.columns[name]["role"] == "dropped"
    assert infer_schema(source.table, roles, {})["columns"][name]["max_missing"] < 1


def test_a_column_that_nobody_wants_may_be_of_any_type(tmp_path: Path) -> None:
    kinds = {
        "list": pa.array([[1.0]] * 60),
        "nested": pa.array([{"a": 1}] * 60),
        "binary": pa.array([b"x"] * 60),
        "length": pa.array([1] * 60, pa.duration("s")),
        "infinite": pa.array([np.inf, 1.0] * 30),
    }
    for name, values in kinds.items():
        pq.write_table(pa.table({name: values, "x": [0.5, 1] * 30, "y": YES * 20}), tmp_path / "t.parquet")
        assert ("is infinite" if name == "infinite" else "or list it in data.drop") in refused(
            lambda: learned(str(tmp_path / "t.parquet"))
        )
        _, roles = learned(str(tmp_path / "t.parquet"), drop=name)
        assert roles.columns[name]["role"] == "dropped"


ROWS = pd.DataFrame({"code": ["007", "7"] * 30, "n": np.arange(60) / 4, "y": YES * 20})


def write_sqlite(path: Path) -> str:
    with sqlite3.connect(path) as db:
        ROWS.to_sql("sales", db, index=False)
        ROWS.head(3).to_sql("other", db, index=False)
    db.close()
    return f"sqlite:///{path}"


def write_zst(path: Path) -> str:
    with pa.CompressedOutputStream(str(path), "zstd") as file:
        file.write(ROWS.to_csv(index=False).encode())
    return str(path)


WRITTEN: dict[str, Callable[[Path], str]] = {
    "semicolon": lambda folder: csv(folder / "t.CSV", ROWS.to_dict("list"), sep=";"),
    "tab": lambda folder: csv(folder / "t.tsv", ROWS.to_dict("list"), sep="\t"),
    "caret": lambda folder: csv(folder / "t.txt", ROWS.to_dict("list"), sep="^"),
    "single quotes": lambda folder: csv(folder / "t.csv", ROWS.to_dict("list"), quotechar="'", quoting=1),
    "UTF-16": lambda folder: csv(folder / "t.csv", ROWS.to_dict("list"), encoding="utf-16"),
    "mark of order": lambda folder: csv(folder / "t.csv", ROWS.to_dict("list"), encoding="utf-8-sig"),
    "CRLF": lambda folder: csv(folder / "t.csv", ROWS.to_dict("list"), lineterminator="\r\n"),
    "CR": lambda folder: csv(folder / "t.csv", ROWS.to_dict("list"), lineterminator="\r"),
    "gz": lambda folder: csv(folder / "t.csv.gz", ROWS.to_dict("list"), compression="gzip"),
    "zst": lambda folder: write_zst(folder / "t.csv.ZST"),
    "bz2": lambda folder: csv(folder / "t.csv.bz2", ROWS.to_dict("list"), compression="bz2"),
    "jsonl": lambda folder: ROWS.to_json(folder / "t.jsonl", orient="records", lines=True) or f"{folder}/t.jsonl",
    "ndjson.gz": lambda folder: (
        ROWS.to_json(folder / "t.ndjson.gz", orient="records", lines=True) or f"{folder}/t.ndjson.gz"
    ),
    "sqlite": lambda folder: f"{write_sqlite(folder / 't.db')}?table=sales",
    "parquet": lambda folder: ROWS.to_parquet(folder / "t.PARQUET") or f"{folder}/t.PARQUET",
}


@pytest.mark.parametrize("write", WRITTEN.values(), ids=WRITTEN.keys())
def test_the_same_table_from_any_kind_of_file(tmp_path: Path, write: Callable[[Path], str]) -> None:
    name = write(tmp_path)
    source, roles = learned(name)
    pd.testing.assert_frame_equal(source.table, ROWS)
    assert len(file_digests(name)) == 1
    kept = read_known(name, roles.readings)
    assert kept["code"].to_pylist() == ROWS["code"].tolist()
    assert kept["n"].to_pylist() == ROWS["n"].tolist()
    pd.testing.assert_frame_equal(read_table(name, roles)[list(ROWS)], ROWS)


def test_a_folder_or_a_pattern_is_one_table(tmp_path: Path) -> None:
    for month in (2, 1):
        ROWS.assign(n=float(month)).to_csv(tmp_path / f"2020-{month:02}.csv", index=False)
    source, _ = learned(str(tmp_path))
    assert len(source.table) == 120
    assert source.table["n"].iloc[[0, -1]].tolist() == [1, 2], "by the files' names"
    assert source.notes[0].startswith("The 2 files of ")
    pattern = f"{tmp_path}/2020-*.csv"
    pd.testing.assert_frame_equal(learned(pattern)[0].table, source.table)
    before = file_digests(pattern)
    assert list(before) == ["2020-01.csv", "2020-02.csv"]
    (tmp_path / "2020-02.csv").write_text("code,n\n1,2\n")
    assert file_digests(pattern) != before
    assert "2020-02.csv lacks a column 'y', unlike" in refused(lambda: learned(pattern))
    (tmp_path / "2020-02.csv").unlink()
    ROWS.to_parquet(tmp_path / "x.parquet")
    assert "files of several kinds" in refused(lambda: learned(str(tmp_path)))


def test_a_type_is_found_in_all_files_together(tmp_path: Path) -> None:
    for name, codes in {"a": ["15", "7"], "b": ["007", "7"]}.items():
        csv(tmp_path / f"{name}.csv", {"code": codes, "y": YES})
    assert learned(str(tmp_path))[0].table["code"].tolist()[:2] == ["15", "7"]
    pq.write_table(pa.table({"x": [1], "y": ["a"]}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"x": ["1"], "y": ["a"]}), tmp_path / "b.parquet")
    assert "differ in the type of a column" in refused(lambda: read_raw(f"{tmp_path}/*.parquet"))


def test_a_database_of_several_tables_asks_which(tmp_path: Path) -> None:
    name = write_sqlite(tmp_path / "t.db")
    assert "name the table as data.read: {table: …} (known: other, sales)" in refused(lambda: learned(name))
    assert len(learned(name, read={"table": "sales"})[0].table) == 60
    assert len(learned(name, read={"query": "SELECT * FROM sales WHERE n < 10"})[0].table) == 40
    assert "no such column" in refused(lambda: learned(name, read={"query": "SELECT m FROM sales"}))
    with sqlite3.connect(tmp_path / "t.db") as db:
        db.execute("CREATE TABLE odd AS SELECT 1 AS x, 'yes' AS y")
        db.executemany("INSERT INTO odd VALUES (?, ?)", [("?", "no"), (2.5, "yes")])
    db.close()
    table = read_source(name, {"read": {"table": "odd"}}).table
    assert table["x"].tolist()[::2] == [1, 2.5], "a table that has numbers and text in one column"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"a,b\n1,2\n\n\n3\n", "row 2 (line 5) has 1 value where the header has 2"),
        (b"\n\na,b\n1,2\n3,4,5\n", "row 2 (line 5) has 3 values"),
        (b'a,b\n"x\ny",2\n3,4,5\n', "row 2 (line 4) has 3 values"),
        (b'a,b\n1,2\n3,"5" pipe\n5,6\n', "row 2 (line 3), '3,\"5\" pipe': a quotation mark is opened and never closed"),
        (b"made by hand\na,b\n1,2\n", "write the lines above it as data.read: {skip: 1}"),
        (b"a;b\n1;2\n3\n", "row 2 (line 3) has 1 value where the header has 2"),
    ],
)
def test_the_row_and_the_line_that_are_wrong_are_named(tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / "t.csv").write_bytes(content)
    told = refused(lambda: read_source(str(tmp_path / "t.csv")))
    assert said in told
    assert "t.csv" in told
    (tmp_path / "t.csv.gz").write_bytes(gzip.compress(content))
    assert said in refused(lambda: read_source(str(tmp_path / "t.csv.gz")))


@pytest.mark.parametrize(
    ("content", "columns"),
    [
        (b'a,b\n1,5" pipe\n2,x\n', {"a": [1, 2], "b": ['5" pipe', "x"]}),
        (b"# made by hand\na,b\n1,x\n", {"a": [1], "b": ["x"]}),
        (b"# made, by hand\n\n#a,b\n1,x\n", {"#a": [1], "b": ["x"]}),
        (b"a,b\r\n1,x\n2,y\r\n", {"a": [1, 2], "b": ["x", "y"]}),
        (b'a,b\n1,"say \\"x\\""\n', {"a": [1], "b": ['say "x"']}),
        ("a,b\n1,Müller\n".encode("cp1252"), {"a": [1], "b": ["Müller"]}),
        (b'a,b\n1,"x, y"\n', {"a": [1], "b": ["x, y"]}),
    ],
)
def test_what_looks_odd_and_is_right(tmp_path: Path, content: bytes, columns: dict[str, list[Any]]) -> None:
    (tmp_path / "t.csv").write_bytes(content)
    assert read_source(str(tmp_path / "t.csv")).table.to_dict("list") == columns


def test_data_read_wins_over_what_was_sniffed(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes("made by hand\n1;ЖЖЖ\n2;x\n".encode("cp1251"))
    told = {"encoding": "cp1251", "separator": ";", "skip": 1, "header": False}
    source = read_source(str(tmp_path / "t.csv"), {"read": told})
    assert source.table.to_dict("list") == {"column 1": [1, 2], "column 2": ["ЖЖЖ", "x"]}
    assert source.read["given"] == told
    assert {key: source.read["found"][key] for key in told} == told


SAID = {
    "versions": (["1.1", "1.10"], "read as numbers: '1.1' and '1.10' are one"),
    "exponents": (["1E5", "100000"], "read as numbers: '1E5' and '100000' are one"),
    "units": (["12 kg", "7.5 kg"], "it looks like numbers of one unit, such as '12 kg'"),
}


@pytest.mark.parametrize(("values", "said"), SAID.values(), ids=SAID.keys())
def test_what_may_be_meant_otherwise_is_said(tmp_path: Path, values: list[str], said: str) -> None:
    assert said in noted(learned(csv(tmp_path / "t.csv", {"n": values, "x": [0.5, 2], "y": YES}))[0], "n")


@pytest.mark.parametrize("text", ["10.0.{}.1", "+49 30 {}", "Q{}", "2{:03}-01"])
def test_what_is_no_number_is_not_said_to_be_one(tmp_path: Path, text: str) -> None:
    values = [text.format(k) for k in range(60)]
    source, _ = learned(csv(tmp_path / "t.csv", {"n": values, "x": [0.5, 2], "y": YES}))
    assert source.table["n"].tolist() == values
    assert source.notes[1:] == []


def test_columns_without_a_name_that_only_count_or_are_empty(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    pd.DataFrame({"x": [0.5, 2] * 30, "y": YES * 20}).to_csv(path)
    source, _ = learned(str(path))
    assert source.table.columns.tolist() == ["x", "y"]
    assert "The first column has no name, counts the rows, and is left out." in source.notes
    path.write_text("x,y,\n" + "0.5,yes,\n2,no,\n" * 30)
    assert learned(str(path))[0].table.columns.tolist() == ["x", "y"]
    path.write_text("0.25,yes\n0.5,yes\n2,no\n")
    assert "'0.25' in it, is read as names (data.read: {header: false}" in read_source(str(path)).notes[1]


def test_json_lines_keep_what_is_written(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    lines = [
        f'{{"n": {2**64 + k % 2}, "x": {k / 2}, "odd": {["1", chr(34) + "?" + chr(34)][k % 2]}}}' for k in range(60)
    ]
    path.write_text("\n".join(lines))
    table = read_source(str(path)).table
    assert table["n"].tolist()[:2] == [str(2**64), str(2**64 + 1)]
    assert table["x"].tolist() == [k / 2 for k in range(60)]
    assert table["odd"].isna().tolist()[:2] == [False, True]
    path.write_text('{"a": 1, "A": 2}\n')
    assert "columns 'A' and 'a' differ only by case" in refused(lambda: read_source(str(path)))


def test_a_value_may_be_long(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(f"a,b\n{'z' * 3_000_000},1\n")
    assert len(read_source(str(tmp_path / "t.csv")).table["a"][0]) == 3_000_000


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    for name, content in {
        "t.csv.gz": gzip.compress(b"a,b\n1,2\n" * 999)[:-9],
        "t.csv.bz2": bz2.compress(b"a,b\n1,2\n" * 999)[:-9],
        "t.jsonl": b'{"a": 1, "b": 2}\n{"a": \n',
        "t.db": b"no database",
    }.items():
        (tmp_path / name).write_bytes(content)
        path = f"sqlite:///{tmp_path}/t.db" if name == "t.db" else str(tmp_path / name)
        assert name in refused(lambda: read_source(path))  # noqa: B023


def test_names_that_differ_by_case_are_read_as_two_and_refused(tmp_path: Path) -> None:
    columns = {"at": [f"2021-01-{day:02}" for day in range(1, 29)], "shop": ["a", "b"], "Shop": ["c"], "y": YES}
    path = csv(tmp_path / "t.csv", columns)
    assert read_source(path).table[["shop", "Shop"]].iloc[0].tolist() == ["a", "c"]
    assert "'Shop' and 'shop', differ only by case" in refused(lambda: learned(path, timestamp="at", entity="shop"))
    assert "'Shop' and 'shop', differ only by case" in refused(lambda: learned(path))  # a database takes them for one


def test_a_level_a_part_a_bracket_and_a_day_are_said(tmp_path: Path) -> None:
    days = [f"202401{day}" for day in range(10, 30)]
    columns = {"land": ["NA", "DE", "US"], "day": days, "part": ["12E4", "11E2"], "note": ["(1)", "7"], "y": YES}
    source, _ = learned(csv(tmp_path / "t.csv", columns))
    assert "'NA' (first in row 1) among short codes such as 'DE', which is read as missing" in noted(source, "land")
    assert "'12E4' is 120000" in noted(source, "part")
    assert "'(1)' is -1" in noted(source, "note")
    assert "look like days, such as 20240110" in noted(source, "day")
    read = {"columns": {"day": "%Y%m%d"}, "missing": {"land": []}}
    source, roles = learned(csv(tmp_path / "t.csv", columns), read=read)
    assert roles.time == ["day"]
    assert source.table["land"][:2].tolist() == ["NA", "DE"]
    assert all("looks like" not in note for note in source.notes)


def test_a_line_break_that_nobody_sees_survives_the_contract(tmp_path: Path) -> None:
    path = csv(tmp_path / "t.csv", {"price\x85": ["0.5", "1.5"], "y": ["more\x85", "less"]})
    _, roles = learned(path)
    roles.save(tmp_path / "roles.yaml")
    assert Roles.load(tmp_path / "roles.yaml") == roles
    assert read_yaml(tmp_path / "roles.yaml")["classes"] == ["less", "more\x85"]


def test_the_bundle_holds_what_training_read(tmp_path: Path) -> None:
    path = csv(
        tmp_path / "t.csv", {"n": ["$1,234.50", "$7"], "day": ["20/03/2018"], "x": ["0.5", "?"], "y": YES}, sep="|"
    )
    keys = {"source": "t", "target": "y", "read": {"missing": {"x": ["?"]}}}
    source = read_source(path, keys)
    rows, roles = resolve_roles(source, keys)
    statistics: dict[str, Any] = {"inputs": {name: {"nulls": 0.0} for name in ("n", "x")}}
    schema = build_schema(roles, rows, statistics, None)
    assert schema["read"]["given"] == keys["read"]
    assert schema["read"]["found"]["separator"] == "|"
    assert column_readings(schema) == {
        "n": {"type": "number", "group": ",", "symbol": "$"},
        "x": {"type": "number", "missing": ["?"]},
    }


def test_a_return_within_a_line_is_a_character(tmp_path: Path) -> None:
    """Where lines end by a line feed, quoted or not; where they end by it, it ends them."""
    lines = ["name,y", *(f"row {k},{k % 3}" for k in range(60)), "a\rb,1", '"c\rd",2', '"e\nf",0']
    (tmp_path / "a.csv").write_bytes("\n".join(lines).encode())
    assert read_source(str(tmp_path / "a.csv")).table["name"].tolist()[-3:] == ["a\rb", "c\rd", "e\nf"]
    (tmp_path / "b.csv").write_bytes("\r".join(lines[:61]).encode())
    assert read_source(str(tmp_path / "b.csv")).table["name"].tolist() == [f"row {k}" for k in range(60)]


def test_one_long_code_among_long_numbers_is_seen_wherever_it_stands(tmp_path: Path) -> None:
    cards = ["4111111111111111", "90071992547409931234", "90071992547409931235"]
    for name, order in (("first", cards), ("last", cards[::-1])):
        table = read_source(csv(tmp_path / f"{name}.csv", {"card": order, "y": YES}), {"target": "y"}).table
        assert sorted(table["card"].unique()) == cards


def test_the_monitor_reads_by_what_training_wrote_down(tmp_path: Path) -> None:
    """Labels too; what counts the rows is left out, and what is dropped refuses nothing."""
    given = {"read": {"separator": ";", "decimal": ",", "missing": {"y": ["-999"]}}, "drop": ["at"]}
    times = ["2020-01-01T00:00Z", "2020-01-01T00:00", "2020-01-02T00:00Z"]
    values = {"x": ["1,5", "2,5", "3,5"], "y": ["1,234", "-999", "2,5"], "at": times}
    name = csv(tmp_path / "a.csv", values, sep=";")
    _, roles = learned(name, **given)
    seen = read_table(name, roles)
    assert seen["y"].dropna().unique().tolist() == [1.234, 2.5]
    counted = pd.DataFrame({"x": range(60), "y": YES * 20})
    counted.to_csv(tmp_path / "b.csv")
    assert list(read_table(tmp_path / "b.csv")) == ["x", "y"]


def test_an_address_names_its_own_table(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "e.db") as db:
        for name in ("sales", "new_sales"):
            pd.DataFrame({"x": range(60), "y": [name] * 60}).to_sql(name, db, index=False)
    address = f"sqlite:///{tmp_path}/e.db?table=new_sales"
    for told in ({"table": "sales"}, {"query": "SELECT * FROM sales"}):
        assert set(read_raw(address, told).table["y"].to_pylist()) == {"new_sales"}


def test_a_database_with_numbers_of_two_kinds(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "e.db") as db:
        db.execute("CREATE TABLE t (x, y)")
        db.executemany("INSERT INTO t VALUES (?, ?)", [(2**60 + k, k % 2) for k in range(60)] + [(0.5, 1)])
    table = read_source(f"sqlite:///{tmp_path}/e.db", {"target": "y"}).table
    assert (len(table), table["x"].iloc[-1]) == (61, 0.5)
    with sqlite3.connect(tmp_path / "e.db") as db:
        db.execute("INSERT INTO t VALUES (x'00', 1)")
    assert "column 'x' holds bytes" in refused(lambda: read_source(f"sqlite:///{tmp_path}/e.db", {"target": "y"}))


@pytest.mark.parametrize("value", ["v\rw", "v"])
def test_a_private_character_is_a_character(tmp_path: Path, value: str) -> None:
    """Such as one that stood for a return within a line, in names too."""
    names = ["a\ue00d", "b" if value == "v\rw" else "b\rc", "d\x85", "e\u2028", "y"]
    lines = [",".join(names), *(f"u\ue00d,{value},x\x85,{k},{k % 3}" for k in range(60))]
    (tmp_path / "t.csv").write_bytes("\n".join(lines).encode())
    table = read_source(str(tmp_path / "t.csv")).table
    assert table.columns.tolist() == names
    assert table.iloc[0].tolist() == ["u\ue00d", value, "x\x85", 0, 0]


TYPED = {
    "whole as text": ("n", "text", [f"{20200101 + k % 3}" for k in range(60)]),
    "whole as times": ("n", "%Y%m%d", pd.to_datetime([f"2020-01-0{1 + k % 3}" for k in range(60)], utc=True)),
    "leading zeros": ("short", "%d%m%Y", pd.to_datetime([f"2020-01-0{1 + k % 3}" for k in range(60)], utc=True)),
    "truth": ("flag", "bool", [k % 2 == 1 for k in range(60)]),
    "text as numbers": ("text", "number", [k % 3 for k in range(60)]),
}


@pytest.mark.parametrize("ending", ["parquet", "jsonl", "db"])
@pytest.mark.parametrize(("name", "told", "wanted"), TYPED.values(), ids=TYPED.keys())
def test_a_column_with_a_type_is_read_as_data_read_says(
    tmp_path: Path, name: str, told: str, wanted: Any, ending: str
) -> None:
    rows = range(60)
    table = pd.DataFrame({"n": [20200101 + k % 3 for k in rows], "short": [1012020 + k % 3 * 10**6 for k in rows]})
    table["flag"], table["text"], table["y"] = [k % 2 for k in rows], [str(k % 3) for k in rows], YES * 20
    path = f"{tmp_path}/t.{ending}"
    if ending == "db":
        with sqlite3.connect(path) as db:
            table.to_sql("t", db, index=False)
        db.close()
        path = f"sqlite:///{path}"
    elif ending == "jsonl":
        table.to_json(path, orient="records", lines=True)
    else:
        table.to_parquet(path)
    source, roles = learned(path, read={"columns": {name: told}})
    assert source.table[name].tolist() == list(wanted)
    read = {name: roles.readings[name]}
    kept = read_known(path, read, source.read["given"], source.read["found"])[name].to_pandas()
    assert kept.tolist() == list(wanted)
    for value, found in zip(table[name].head(9).tolist(), wanted, strict=False):
        served = settle_value(value, roles.readings[name])
        assert served == (int(found.timestamp()) if "%" in told else found), "as the service takes it"


@pytest.mark.parametrize(
    ("name", "told", "said"),
    [
        ("x", "text", "is of type double in the file, not text, as data.read.columns says: only whole numbers can be"),
        ("n", "time", "whole numbers have such a form as '%Y%m%d'"),
        ("n", "bool", "column 'n', row 1: 20200101 is not a bool"),
        ("at", "number", "column 'at' is of type timestamp"),
        ("n", "%Y%m", "column 'n', row 1: '20200101' is not a time"),
    ],
)
def test_a_type_that_a_column_cant_have_is_refused(tmp_path: Path, name: str, told: str, said: str) -> None:
    table = pd.DataFrame({"n": [20200101] * 60, "x": np.arange(60) / 4, "k": [1, 2] * 30, "y": YES * 20})
    table.assign(at=pd.Timestamp("2020-01-01")).to_parquet(tmp_path / "t.parquet")
    told_all = {"columns": {name: told}}
    assert said in refused(lambda: learned(str(tmp_path / "t.parquet"), read=told_all))
    assert len(learned(str(tmp_path / "t.parquet"), read=told_all, drop=[name])[0].table) == 60, "nobody reads it"
    told_all = {"columns": {name: "numbr"}}
    assert "did you mean 'number'?" in refused(lambda: learned(str(tmp_path / "t.parquet"), read=told_all), ParamsError)


def test_digits_that_are_times_need_their_form(tmp_path: Path) -> None:
    path = csv(tmp_path / "t.csv", {"n": ["20200101", "20200102"], "short": ["1022020", "11022020"], "y": YES})
    told = refused(lambda: learned(path, read={"columns": {"n": "time"}}), ParamsError)
    assert told == "data.read.columns.n: write the form of its digits, such as '%Y%m%d', not time."
    source, roles = learned(path, read={"columns": {"n": "%Y%m%d", "short": "%d%m%Y"}})
    assert source.table["short"].dt.strftime("%d.%m.").tolist()[:2] == ["01.02.", "11.02."], "a zero in front is lost"
    for value in (20200102, 20200102.0, "20200102"):
        assert settle_value(value, roles.readings["n"]) == epoch_seconds("2020-01-02", "n")
    assert settle_value(1022020, roles.readings["short"]) == epoch_seconds("2020-02-01", "short")


@pytest.mark.parametrize(
    ("content", "columns", "said"),
    [
        ("#a,b\n1,x\n", ["#a", "b"], "The line with '#a' is read as names (data.read: {skip: 1}"),
        ('#a,b\n1,"x, y"\n', ["#a", "b"], "The line with '#a' is read as names"),
        ("# a,b\n1.5,2\n", ["# a", "b"], "The line with '# a' is read as names"),
        ("# by me, 2020\na,b\n1,x\n", ["a", "b"], "1 lines above the header left out"),
        ("#a^b\n1^x\n", ["#a", "b"], "The line with '#a' is read as names"),
        ("# by me, 2020\n1,2\n3,4\n", ["# by me", "2020"], "The line with '# by me' is read as names"),
    ],
)
def test_a_header_may_begin_with_the_mark_of_comments(
    tmp_path: Path, content: str, columns: list[str], said: str
) -> None:
    (tmp_path / "t.csv").write_text(content)
    told = {"separator": "^"} if "^" in content else {}
    source = read_source(str(tmp_path / "t.csv"), {"read": told})
    assert source.table.columns.tolist() == columns
    assert said in " ".join(source.notes)
    if content.startswith("# by"):
        assert read_source(str(tmp_path / "t.csv"), {"read": {"skip": 0}}).table.columns[0] == "# by me"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("1,2,0\n3,4,1\n5,6,0\n", True),
        ("5,red\n6,blue\n", True),
        ("country,2019,2020\nDE,1,2\n", False),
        ("id,1,2\n7,1,2\n", False),
        ("name,q1\nx,1\n", False),
    ],
)
def test_a_first_row_that_is_taken_as_names_is_said(tmp_path: Path, content: str, said: bool) -> None:
    (tmp_path / "t.csv").write_text(content)
    notes = read_source(str(tmp_path / "t.csv")).notes
    assert ("is read as names (data.read: {header: false} where it is a row)" in " ".join(notes)) is said
    (tmp_path / "t.csv").write_text("1,0,1\n2,3,4\n")
    assert "two columns are named '1': rename one, or write data.read: {header: false}" in refused(
        lambda: read_source(str(tmp_path / "t.csv"))
    )


def test_what_comes_later_is_read_by_what_was_found(tmp_path: Path) -> None:
    """The encoding and the separator: a small file gives less to guess by than that of training."""
    path = csv(
        tmp_path / "t.csv", {"name": ["Müller", "a,b"], "n": ["0,5", "1,5"], "y": YES}, sep=";", encoding="cp1252"
    )
    source, roles = learned(path)
    found = source.read["found"]
    assert (found["encoding"], found["separator"]) == ("cp1252", ";")
    later = tmp_path / "later.csv"
    later.write_bytes("name;n\nÄÖÜ,x,y;1,5\n".encode("cp1252"))
    assert "line 2 is not UTF-8" in refused(lambda: read_raw(later)), "three such letters side by side may be Cyrillic"
    wanted = {"name": ["ÄÖÜ,x,y"], "n": [1.5]}
    readings = {"name": {"type": "text"}, **{name: roles.readings[name] for name in roles.readings}}
    assert read_known(later, readings, {}, found).to_pydict() == wanted
    assert read_table(later, roles).to_dict("list") == wanted
    later.write_text("name;n\nÄÖÜ,x,y;1,5\n")
    assert read_known(later, readings, {}, found).to_pydict() == wanted, "UTF-8 is never mistaken"
    later.write_text("name|n\nx;y|1,5\n")
    assert read_known(later, readings, {}, found).to_pydict() == {"name": ["x;y"], "n": [1.5]}
    plain = csv(tmp_path / "u.csv", {"name": ["a", "b"], "n": ["0.5", "1.5"], "y": YES})
    later.write_bytes("name,n\nMüller,1\n".encode("cp1252"))
    found = read_source(plain).read["found"]
    assert "line 2 is not UTF-8" in refused(lambda: read_raw(later, {}, found)), (
        "what training did not guess nobody does"
    )


ROWS_OF_TEXT = "".join(f"{k},{'abc'[k % 3]},{'uv'[k % 2]}\n" for k in range(60))
KEPT = {"x": 59, "k": "c", "y": "v"}


@pytest.mark.parametrize(
    "content",
    [
        f"sep=;\nx;k;y\n{ROWS_OF_TEXT.replace(',', ';')}",
        f"sep=;\r\nx;k;y\r\n{ROWS_OF_TEXT.replace(',', ';')}",
        f"x, k, y\n{ROWS_OF_TEXT.replace(',', ', ')}",
        "x, k, y\n" + "".join(f'{k}, "{"abc"[k % 3]}", {"uv"[k % 2]}\n' for k in range(60)),
    ],
)
def test_what_spreadsheets_and_people_add_is_no_part_of_the_table(tmp_path: Path, content: str) -> None:
    (tmp_path / "t.csv").write_text(content)
    source, roles = learned(str(tmp_path / "t.csv"))
    assert source.table.iloc[-1].to_dict() == KEPT
    assert read_known(tmp_path / "t.csv", roles.readings, {}, source.read["found"])["k"].to_pylist()[-1] == "c"


def test_files_put_one_below_the_other_are_refused(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(f"x,k,y\n{ROWS_OF_TEXT}x,k,y\n{ROWS_OF_TEXT}")
    told = refused(lambda: learned(str(tmp_path / "t.csv")))
    assert told.endswith("t.csv: row 61 repeats the names of the columns: remove that line.")
    (tmp_path / "t.csv").write_text(f"x,k,y\nx,b,u\n{ROWS_OF_TEXT}")
    assert learned(str(tmp_path / "t.csv"))[0].table["x"][0] == "x", "a row that holds some of them"


@pytest.mark.parametrize("twin", ["ye\u200bs", "yés", "yes\u00a0"])
def test_spellings_that_nobody_sees_are_twins(tmp_path: Path, twin: str) -> None:
    one = "ye\u0301s" if twin == "yés" else "yes"
    path = csv(tmp_path / "t.csv", {"x": [1, 2, 3], "y": [one, "no", twin]})
    assert "differ only by case or blanks" in refused(lambda: learned(path))


@pytest.mark.parametrize(
    ("texts", "said"),
    [
        (
            ["2020-01-02 03:04:05 CET", "2020-01-03 03:04:05 CET"],
            "write the offset of CET, such as 2020-02-13T08:00+01:00",
        ),
        (["$5", "€7"], "its numbers have several signs, '$' and '€' (bring them in one)"),
        (["1,23,456.50", "12,34,567"], "'1,23,456.50' is 123456.5"),
    ],
)
def test_zones_by_letters_several_currencies_and_lakhs(tmp_path: Path, texts: list[str], said: str) -> None:
    source, _ = learned(csv(tmp_path / "t.csv", {"n": texts, "x": [0.5, 2], "y": YES}))
    assert said in noted(source, "n")
    assert pd.api.types.is_numeric_dtype(source.table["n"]) is ("123456" in said)


def test_what_is_no_table_of_records_or_times_is_said(tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text('[{"x": 1, "y": "a"}, {"x": 2, "y": "b"}]')
    told = refused(lambda: read_source(str(tmp_path / "t.jsonl")))
    assert told.endswith("t.jsonl holds a list, not a record a line: write each record on a line of its own.")
    path = csv(tmp_path / "t.csv", {"at": [1577836800 + k for k in range(60)], "x": [1, 2], "y": YES})
    told = refused(lambda: learned(path, timestamp="at"))
    assert "holds numbers such as 1577836800: if they count seconds, write times such as 2020-02-13T08:00Z" in told
