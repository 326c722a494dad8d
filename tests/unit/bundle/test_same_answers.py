"""Training, `nbs predict` and the service make the same of a value, to the bit, and refuse the same."""

import functools

import pytest
from skl2onnx.common import _container

from nbs_lib.testing.same_answers import check_same_answers

PARTS = 4  # which run beside each other


@pytest.fixture(autouse=True)
def _each_table_lists_the_operators_once_only(monkeypatch: pytest.MonkeyPatch) -> None:
    listed = functools.cache(_container.get_all_schemas_with_history)
    monkeypatch.setattr(_container, "get_all_schemas_with_history", listed)


@pytest.mark.parametrize("part", range(PARTS))
def test_generated_tables_are_answered_alike(part: int) -> None:
    """500 tables in all; `nbs bench same --tables 5000` takes more."""
    check_same_answers(500 // PARTS, seed=part)
