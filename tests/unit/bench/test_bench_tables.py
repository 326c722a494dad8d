"""Tables that nobody has tuned to: a small one is compared over several splits, in which a row counts once."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import Project

from nbs_lib.bench.tables import beside_defaults, compare_outputs, splits_needed
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


def test_a_row_that_two_splits_test_counts_once() -> None:
    rng, rows = np.random.default_rng(0), 60
    asked = pd.DataFrame({"_target": rng.integers(0, 2, rows), "_block": np.arange(rows)})
    ours, theirs = rng.random(rows) + 0.3 * asked["_target"].to_numpy(), rng.random(rows)
    once, twice = (
        compare_outputs(
            "binary", pd.concat([asked] * n), np.tile(ours, n), np.tile(theirs, n), np.repeat(np.arange(n), rows)
        )
        for n in (1, 2)
    )
    lead = once[-1]
    assert lead.lo is not None
    assert lead.hi is not None
    assert lead.hi - lead.lo > 0.1
    assert twice == pytest.approx(once), "with each answer drawn by itself the interval would be narrower"


def test_each_split_is_scored_by_itself() -> None:
    """Scores of two models don't share a scale."""
    asked = pd.DataFrame({"_target": [0, 1, 0, 1], "_block": range(4)})
    ours = np.array([0.1, 0.2, 0.8, 0.9])
    score, _, _ = compare_outputs("binary", asked, ours, ours, np.array([0, 0, 1, 1]))
    assert score == 1.0


def test_champions_of_two_splits_are_compared(finished: Project) -> None:
    assert beside_defaults([finished.root, finished.root]) == pytest.approx(beside_defaults([finished.root]))
