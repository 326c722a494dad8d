"""Training, `nbs predict` and the service make the same of a value, to the bit, and refuse the same."""

import functools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from skl2onnx.common import _container

from nbs_lib.bundle.request import RequestError, RequestParser
from nbs_lib.core.errors import DataError
from nbs_lib.data.reading.tables import read_inferred
from nbs_lib.score.answers import Scorer, column_values
from nbs_lib.score.reading import read_batches
from nbs_lib.testing.same_answers import LearnedTable, check_same_answers, differences, learn_table

PARTS = 4  # which run beside each other


@pytest.fixture(autouse=True)
def _the_operators_are_listed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    listed = functools.cache(_container.get_all_schemas_with_history)
    monkeypatch.setattr(_container, "get_all_schemas_with_history", listed)


@pytest.mark.parametrize("part", range(PARTS))
def test_generated_tables_are_answered_alike(part: int) -> None:
    """500 tables in all; `nbs bench same --tables 5000` takes more."""
    check_same_answers(500 // PARTS, seed=part)


def learned(folder: Path, values: list[str], **read: Any) -> LearnedTable:
    """What was learned from a column of text."""
    texts = {"x": (values * 40)[:40], "n": [str(k * k % 97) for k in range(40)], "y": ["u", "v"] * 20}
    pd.DataFrame(texts).to_csv(folder / "t.csv", index=False)
    found = learn_table(folder / "t.csv", read=read)
    assert list(differences(found, texts)) == []
    return found


def sent(found: LearnedTable, value: Any) -> Any:
    """What the service makes of a value."""
    parser = RequestParser(found.bundle)
    (row,) = parser.read(json.dumps({"x": value, "n": 1}).encode())
    return row[parser.names.index("x")]


def refusal(found: LearnedTable, value: Any) -> str:
    with pytest.raises(RequestError) as error:
        sent(found, value)
    assert (error.value.status, error.value.field) == (422, "x")
    return str(error.value)


def scored(found: LearnedTable, folder: Path, values: list[Any]) -> None:
    """Score a Parquet file, in which values have types."""
    pd.DataFrame({"x": values, "n": 1}).to_parquet(folder / "t.parquet")
    for batch in read_batches(found.bundle, folder / "t.parquet"):
        Scorer(found.bundle).answer(column_values(found.bundle, batch), 1)


def test_times_are_sent_in_the_form_that_training_learned(tmp_path: Path) -> None:
    found = learned(tmp_path, ["13/02/2020 07:30", "01/02/2020 00:00", ""])
    ways = ["01/02/2020 00:00", "2020-02-01T00:00:00Z", 1580515200, 1580515200.5]
    assert [sent(found, way) for way in ways] == [1580515200] * 4
    assert "%d/%m/%Y %H:%M" in refusal(found, "13.02.2020")


def test_a_text_as_long_as_those_of_training_is_taken(tmp_path: Path) -> None:
    found = learned(tmp_path, ["a" * 1600, "b", "c" * 1200])
    assert sent(found, "d" * 1600) == "d" * 1600
    assert "at most 1,600 characters" in refusal(found, "a" * 1601)
    with pytest.raises(DataError, match=r"column 'x', row 1: a text has 1,600 characters at most, not 1,601\."):
        scored(found, tmp_path, ["a" * 1601])


def test_a_code_may_be_sent_as_a_number(tmp_path: Path) -> None:
    found = learned(tmp_path, ["007", "7", "12"])
    assert [sent(found, way) for way in ("007", 7, 7.0, 2**60, "NA", None)] == ["007", "7", "7", str(2**60), None, None]
    for way in (7.5, 2.0**60, True):
        assert "text of at most" in refusal(found, way)


def test_a_number_may_be_sent_with_its_marks(tmp_path: Path) -> None:
    found = learned(tmp_path, ["$1,234.50", "$-7.00", "?"])
    assert [sent(found, way) for way in ("$1,234.50", 1234.5, "1234.5", "?", "NA", "")] == [1234.5] * 3 + [None] * 3
    for way in ("€5", "1.234,50", "five", "inf", True):
        assert "a finite number" in refusal(found, way)


def test_a_mark_that_is_a_number_is_missing_as_a_number_too(tmp_path: Path) -> None:
    found = learned(tmp_path, ["1.5", "-999", "3"], missing={"x": ["-999"]})
    assert [sent(found, way) for way in ("-999", -999, -999.0, -998)] == [None, None, None, -998.0]


def test_a_mark_with_a_fraction_hides_no_whole_number(tmp_path: Path) -> None:
    found = learned(tmp_path, ["0", "1", "2", "3"], missing={"x": ["0.5"]})
    assert found.rows["x"].notna().all()


def test_truth_may_be_sent_as_it_is_written(tmp_path: Path) -> None:
    found = learned(tmp_path, ["true", "FALSE", "1"])
    assert [sent(found, way) for way in (True, "TRUE", 1, "0", 0.0)] == [True, True, True, False, False]
    assert "true or false" in refusal(found, 5)
    with pytest.raises(DataError, match="column 'x', row 2: 5 is not a bool"):
        scored(found, tmp_path, [1, 5])


@pytest.mark.parametrize(
    ("values", "wanted"),
    [
        (["- 5", "7", "8"], [-5.0, 7.0, 8.0]),
        (["\N{MINUS SIGN}5", "7", "8"], [-5.0, 7.0, 8.0]),
        (["\N{ARABIC-INDIC DIGIT ONE}", "\N{ARABIC-INDIC DIGIT TWO}", "7"], None),
    ],
)
def test_a_column_that_looks_like_numbers_is_read(
    tmp_path: Path, values: list[str], wanted: list[float] | None
) -> None:
    """Each was inferred to be of numbers, and then refused as none."""
    pd.DataFrame({"x": values, "y": "a"}).to_csv(tmp_path / "t.csv", index=False)
    assert read_inferred(tmp_path / "t.csv").table["x"].to_pylist() == (wanted or values)


def test_a_row_at_the_end_of_a_batch_is_rounded_as_others(tmp_path: Path) -> None:
    """Processors compute several sines at once, and what is left over otherwise."""
    rng = np.random.default_rng(0)
    days = [f"{day:02}/{month:02}/1850 07:{day:02}" for day, month in rng.integers(1, 13, (40, 2))]
    found = learned(tmp_path, [*days[:38], "31/12/1850 00:59", "30/11/2134 23:01"])
    arrays = {kind: array for kind, array in found.arrays.items() if array.shape[1]}
    whole = found.bundle.ask(arrays)[1]
    for rows in (1, 2, 3, 5, 39):
        parts = [found.bundle.ask({kind: array[k : k + rows] for kind, array in arrays.items()})[1] for k in range(40)]
        assert all(np.array_equal(part, whole[k : k + rows]) for k, part in enumerate(parts))
