"""Whatever the table: the graph encodes like scikit-learn, and what was never seen is answered like what is missing."""

import datetime as dt
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime as ort
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from skl2onnx import to_onnx

from nbs_lib.models.encoding import (
    MISSING_TIME,
    FeatureLayout,
    Standardizer,
    TimeParts,
    one_hot_encoder,
    ordinal_encoder,
)
from nbs_lib.models.onnx_export import INPUT_TYPES, OPSETS, graph_feeds

texts = st.sampled_from(["", "red", "blue", "grün", "a b", "0", "nan"]) | st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=5
)
numbers = st.floats(width=32, allow_infinity=False, min_value=-1e6, max_value=1e6)
times = st.integers(-(2**33), 2**33) | st.just(MISSING_TIME)
tables = st.lists(st.tuples(numbers, texts, times, times), min_size=4, max_size=40)
ROLES: Any = SimpleNamespace(numeric=["x"], categorical=["c"], time=["t", "s"], timestamp="s", source="drawn")


def frame(rows: list[tuple[Any, ...]]) -> pd.DataFrame:
    table = pd.DataFrame(rows, columns=["x", "c", "t", "s"])
    return table.astype({"x": "float32", "c": object, "t": "int64", "s": "int64"})


def converted(encoder: Any, table: pd.DataFrame, layout: FeatureLayout) -> Any:
    inputs = [(name, INPUT_TYPES[name]([None, x.shape[1]])) for name, x in graph_feeds(table, layout).items()]
    model = to_onnx(encoder, initial_types=inputs, target_opset=OPSETS)
    return ort.InferenceSession(model.SerializeToString()).run(None, graph_feeds(table, layout))[0]


@given(tables, tables)
@settings(deadline=None, max_examples=25)
def test_the_graph_encodes_like_the_library(rows: list[Any], others: list[Any]) -> None:
    train, new = frame(rows), frame(others)
    layout = FeatureLayout.learn(train, ROLES)
    for encoder in (ordinal_encoder(layout), one_hot_encoder(layout)):
        expected = encoder.fit(train).transform(new)
        expected = expected.toarray() if hasattr(expected, "toarray") else expected
        np.testing.assert_allclose(converted(encoder, new, layout), expected, rtol=2e-6, atol=2e-6)


@given(tables, texts)
@settings(deadline=None, max_examples=50)
def test_rare_and_new_levels_are_answered_like_missing_ones(rows: list[Any], text: str) -> None:
    train = frame(rows)
    layout = FeatureLayout.learn(train, ROLES)
    (known,) = layout.levels
    assert "" not in known
    counts = train["c"].value_counts()
    assert all(counts[level] >= 2 for level in known)
    row = train[:1]
    for encoder in (ordinal_encoder(layout), one_hot_encoder(layout)):
        encoder.fit(train)
        written, missing = (np.asarray(encoder.transform(row.assign(c=value))) for value in (text, ""))
        assert (text in known) != np.array_equal(written, missing, equal_nan=True)


@given(st.integers(-(2**33), 2**33))
def test_parts_of_a_time_are_the_calendars(seconds: int) -> None:
    moment = dt.datetime(1970, 1, 1, tzinfo=dt.UTC) + dt.timedelta(seconds=seconds)
    hour, weekday, year, since = TimeParts(dates=True).fit([[0]]).transform(np.array([[seconds]]))[0]
    assert hour == pytest.approx(moment.hour + moment.minute / 60 + moment.second / 3600, abs=1e-5)
    assert weekday == moment.weekday()
    began = dt.datetime(moment.year, 1, 1, tzinfo=dt.UTC)
    apart = abs((moment - began).total_seconds() / 31_556_952 - year)
    assert min(apart, 1 - apart) < 3 / 365
    assert since == pytest.approx(moment.year - 1970 + year, abs=1.01)


def test_levels_are_the_same_in_any_order_of_rows() -> None:
    train = frame([(0, c, 0, 0) for c in "abcabcab" * 40])
    assert FeatureLayout.learn(train, ROLES) == FeatureLayout.learn(train.sample(frac=1, random_state=1), ROLES)


def test_a_number_that_is_always_missing_does_no_harm() -> None:
    empty = np.full((5, 1), np.nan)
    assert Standardizer().fit(empty).transform(empty).tolist() == [[0.0, 1.0]] * 5


@pytest.mark.parametrize("most", [2**20, 0])
def test_columns_that_share_levels_are_told_apart(most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nbs_lib.models.encoding.MAX_LOOKUP_CODES", most)
    rows = [("b", "c", ""), ("a", "b", "z"), ("b", "c", "z"), ("a", "b", "")] * 3
    table = pd.DataFrame(rows, columns=["here", "there", "empty"])
    layout = FeatureLayout((), ("here", "there", "empty"), (), (("b", "a"), ("c", "b"), ("z",)))
    new = pd.DataFrame([("a", "a", "z"), ("b", "b", "b"), ("c", "c", "")], columns=table.columns)
    assert converted(ordinal_encoder(layout).fit(table), new, layout).tolist() == [[0, -1, 0], [1, 0, -1], [-1, 1, -1]]
