"""What the schema infers holds for the table itself, and every planted violation is found where it was planted."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nbs_lib.core.errors import SchemaError
from nbs_lib.data import schema
from nbs_lib.data.resolve import resolve_roles
from nbs_lib.data.roles import Roles
from nbs_lib.data.table import Source

numbers = st.one_of(st.integers(-(10**9), 10**9), st.floats(-1e9, 1e9), st.none())
texts = st.one_of(st.sampled_from(["a", "b", "<script>", "no", "1e3", "2024-01-01", "ünï"]), st.none())


def roles_of(table: pd.DataFrame) -> Roles:
    columns = {c: {"role": "numeric" if c == "number" else "categorical"} for c in table.columns}
    return Roles("t.csv", "text", "regression", [], columns=columns)


@st.composite
def tables(draw: st.DrawFn) -> pd.DataFrame:
    rows = draw(st.lists(st.tuples(numbers, texts), min_size=2, max_size=30))
    number, text = zip(*rows, strict=True)
    return pd.DataFrame({"number": np.array(number, dtype="float64"), "text": np.array(text, dtype=object)})


@given(tables())
@settings(max_examples=60, deadline=None)
def test_a_table_keeps_its_own_promises(table: pd.DataFrame) -> None:
    roles = roles_of(table)
    inferred = schema.infer_schema(table, roles, {})
    schema.validate_table(table, inferred, roles, {})


@given(tables(), st.data())
@settings(max_examples=60, deadline=None)
def test_a_planted_violation_is_found(table: pd.DataFrame, data: st.DataObject) -> None:
    roles = roles_of(table)
    inferred = schema.infer_schema(table, roles, {})
    row = data.draw(st.integers(0, len(table) - 1))
    planted = table.copy()
    if data.draw(st.booleans()) and inferred["columns"]["number"]["type"] == "number":
        over = data.draw(st.booleans())
        bound = inferred["columns"]["number"]["max" if over else "min"]
        planted.loc[row, "number"] = bound + (1 if over else -1) * max(1.0, abs(bound))
        words = ["column 'number'", "above max" if over else "below min"]
    elif inferred["columns"]["text"]["type"] == "text":
        planted.loc[row, "text"] = "never seen"
        words = ["column 'text'", "'never seen' is none of the levels"]
    else:
        return
    with pytest.raises(SchemaError) as error:
        schema.validate_table(planted, inferred, roles, {})
    for word in [f"row {row + 1},", schema.SCHEMA_PATH, *words]:
        assert word in str(error.value)


@given(tables())
@settings(max_examples=30, deadline=None)
def test_the_file_says_the_same(tmp_path_factory: pytest.TempPathFactory, table: pd.DataFrame) -> None:
    roles = roles_of(table)
    path = tmp_path_factory.mktemp("contract") / "schema.yaml"
    first = schema.enforce_schema(table, roles, {}, {}, path)
    path.write_text(first)
    assert schema.enforce_schema(table, roles, {}, {}, path) == first


def resolved(table: pd.DataFrame, **data: object) -> tuple[pd.DataFrame, Roles]:
    return resolve_roles(Source(table), {"source": "t.csv", **data})


def test_rows_are_counted_as_in_the_source() -> None:
    table = pd.DataFrame(
        {"at": pd.date_range("2024-01-31", periods=30, freq="-1D", tz="UTC"), "x": range(30), "y": ["a", "b"] * 15}
    )
    rows, roles = resolved(table, target="y", timestamp="at")
    inferred = schema.infer_schema(rows, roles, {})
    bad, roles = resolved(table.assign(x=[*range(29), 999]), target="y", timestamp="at")
    assert bad.index[0] == 29
    with pytest.raises(SchemaError, match="row 30, column 'x': 999 is above max"):
        schema.validate_table(bad, inferred, roles, {})


def test_duplicate_keys() -> None:
    table = pd.DataFrame({"a": [1, 1, 2, 2] * 10, "b": range(40), "y": ["a", "b"] * 20})
    rows, roles = resolved(table, target="y", key=["a", "b"])
    inferred = schema.infer_schema(rows, roles, {})
    schema.validate_table(rows, inferred, roles, {})
    again = rows.assign(b=[0, 1, 2, 3, 0, *range(5, 40)])
    with pytest.raises(SchemaError, match=r"row 5 has the key of an earlier row \(a='1', b='0'\)"):
        schema.validate_table(again, inferred, roles, {})


def days(*months: int) -> pd.DataFrame:
    at = [f"2020-{month:02}-{day:02}" for month in months for day in range(1, 29)]
    return pd.DataFrame({"at": at, "x": np.arange(len(at)) % 7, "y": ["a", "b"] * (len(at) // 2)})


def test_an_empty_month() -> None:
    rows, roles = resolved(days(1, 2, 4, 5), target="y", timestamp="at")
    with pytest.raises(SchemaError, match="2020-03 has no row"):
        schema.enforce_schema(rows, roles, {}, {}, "none.yaml")
    schema.enforce_schema(rows, roles, {}, {"at": {"every_month": False}}, "none.yaml")


def test_the_month_that_has_not_come_yet() -> None:
    rows, roles = resolved(days(1, 2, 3), target="y", timestamp="at", as_of="2020-05-02")
    with pytest.raises(SchemaError, match="2020-04 has no row"):
        schema.enforce_schema(rows, roles, {}, {}, "none.yaml")


def test_a_sparse_table_may_have_empty_months() -> None:
    table = days(1, 2, 3).assign(
        at=lambda t: t["at"].str[5:7].map({"01": "1970", "02": "1980", "03": "1990"}) + "-01-01"
    )
    rows, roles = resolved(table, target="y", timestamp="at")
    schema.enforce_schema(rows, roles, {}, {}, "none.yaml")


def test_what_is_dropped_is_not_checked(tmp_path: Path) -> None:
    table = pd.DataFrame({"x": np.arange(40) / 2, "z": [0.5] * 39 + [1.0], "y": ["a", "b"] * 20})
    rows, roles = resolved(table, target="y")
    path = tmp_path / "schema.yaml"
    path.write_text(schema.enforce_schema(rows, roles, {}, {}, path))
    rows, roles = resolved(table.assign(z=["text"] * 40, new=1), target="y", drop=["z", "new"])
    schema.enforce_schema(rows, roles, {}, {}, path)
    rows, roles = resolved(table, target="x")
    assert "target: x" in schema.enforce_schema(rows, roles, {}, {}, path)
