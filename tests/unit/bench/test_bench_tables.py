"""Tables that nobody has tuned to: a small one is compared over several splits, in which a row counts once."""

from pathlib import Path

import pandas as pd
import pytest
from conftest import Project

from nbs_lib.bench.tables import beside_defaults, splits_needed
from nbs_lib.core.paths import CONTRACT_FILE
from nbs_lib.data.resolve import resolve_roles
from nbs_lib.data.split import training_set
from nbs_lib.data.table import Source


@pytest.mark.parametrize(
    ("rows", "timestamp", "splits"),
    [(100, None, 10), (100, "at", 1), (1000, None, 1)],
    ids=["few rows", "few rows in time", "enough rows"],
)
def test_few_test_rows_are_split_again_where_a_seed_splits(
    tmp_path: Path, rows: int, timestamp: str | None, splits: int
) -> None:
    days = pd.date_range("2026-01-01", periods=rows, tz="UTC")
    table = pd.DataFrame({"at": days, "width": [n % 7 for n in range(rows)], "late": ["yes", "no"] * (rows // 2)})
    if not timestamp:
        del table["at"]
    given = {"source": "made", "target": "late", "timestamp": timestamp}
    snapshot, roles = resolve_roles(Source(table), given)
    (tmp_path / "data").mkdir()
    roles.save(tmp_path / CONTRACT_FILE)
    training_set(snapshot, roles, 0.15, 0.15).to_parquet(tmp_path / "data/training_set.parquet")
    assert splits_needed(tmp_path) == splits


def test_a_row_that_two_splits_test_counts_once(finished: Project) -> None:
    once, twice = beside_defaults([finished.root]), beside_defaults([finished.root, finished.root])
    assert twice == pytest.approx(once)
