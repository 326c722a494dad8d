"""The counts of a batch job add up exactly, however its rows were cut into parts, in whatever order these are added."""

from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from conftest import Project

from nbs_lib.bundle.bundle import Bundle
from nbs_lib.bundle.layout import InputLayout
from nbs_lib.core.files import sha256
from nbs_lib.core.paths import CONTRACT_FILE
from nbs_lib.data.roles import Roles
from nbs_lib.monitor import from_tables
from nbs_lib.monitor.counts.binning import fit_bins
from nbs_lib.monitor.counts.histogram import CATEGORICAL, NUMERIC, Profile, add_profiles
from nbs_lib.monitor.counts.profile import profile_table
from nbs_lib.registry.pointers import champion_path
from nbs_lib.score import drift_counts
from nbs_lib.score.drift_counts import DriftCounter, drift_of
from nbs_lib.testing.example_project import write_example_project


def counted(profile: Profile) -> dict[str, Any]:
    """All that a profile holds but its bins."""
    found = {field.name: getattr(profile, field.name) for field in fields(profile)}
    arrays = {name: value.tolist() for name, value in found.items() if isinstance(value, np.ndarray)}
    counts = {name: value.tolist() for name, value in profile.counts.items()}
    new = {name: levels for name, levels in profile.new.items() if levels}
    return arrays | {"counts": counts, "new": new, "types": profile.types, "untimed": profile.untimed}


def cut(rows: int, parts: int, rng: np.random.Generator) -> list[tuple[int, int]]:
    """Where parts begin and how long they are, none of them empty, in a random order."""
    ends = np.sort(rng.choice(np.arange(1, rows), parts - 1, replace=False))
    begins = [0, *ends.tolist()]
    found = [(begin, end - begin) for begin, end in zip(begins, [*ends.tolist(), rows], strict=True)]
    return [found[k] for k in rng.permutation(len(found))]


@pytest.mark.parametrize("seed", range(3))
def test_counts_of_parts_add_up_to_those_of_the_whole(seed: int) -> None:
    rng, rows = np.random.default_rng(seed), 3000
    numbers = (rng.normal(size=rows) * 10.0 ** rng.integers(-3, 4)).astype(np.float32)
    numbers[rng.random(rows) < 0.05] = np.nan
    numbers[:4] = np.inf, -np.inf, 1e20, -0.0
    words = rng.choice([*"abcdefgh", "", "a level that only the rows have"], rows)
    table = pa.table({"number": rng.permutation(numbers), "word": words})
    known = table.filter(pa.array(words != "a level that only the rows have"))[:1500]
    bins = fit_bins(known, {"number": NUMERIC, "word": CATEGORICAL})
    whole = profile_table(table, bins)
    parts = [profile_table(table.slice(*part), bins) for part in cut(rows, int(rng.integers(2, 40)), rng)]
    once = add_profiles(parts)
    half = len(parts) // 2
    twice = add_profiles([add_profiles(parts[half:]), add_profiles(parts[:half])]) if half else once
    assert counted(once) == counted(whole) == counted(twice)
    assert counted(whole)["new"]
    reference = profile_table(known, bins)
    assert drift_of(reference, parts) == drift_of(reference, [whole])


def test_a_worker_counts_batches_of_any_size_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_example_project(tmp_path)
    bundle, rng, rows = Bundle.open(champion_path(tmp_path)), np.random.default_rng(0), 1000
    names = InputLayout(bundle).names["numeric"]
    values = rng.normal(size=(rows, len(names))).astype(np.float32)
    bins = fit_bins(pa.table(dict(zip(names, values.T, strict=True))), dict.fromkeys(names, NUMERIC))
    totals = []
    for at_a_time, parts in ((2**16, 1), (100, 7), (1, 30)):
        monkeypatch.setattr(drift_counts, "_COUNTED_ROWS", at_a_time)
        counter = DriftCounter(bundle, bins)
        for begin, length in cut(rows, parts, rng):
            counter.add({"numeric": values[begin : begin + length]})
        totals.append(counted(counter.total()))
    assert totals[0] == totals[1] == totals[2]


def test_the_training_set_is_counted_alike_as_a_file_and_as_rows(
    finished: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle, roles = Bundle.open(champion_path(finished.root)), Roles.load(finished.root / CONTRACT_FILE)
    training_set = finished.root / drift_counts.TRAINING_SET
    assert from_tables.training_set_hash(bundle) == sha256(training_set)
    drift_counts.reference_profile(bundle, roles, training_set).save(tmp_path / "file.npz")
    monkeypatch.setattr(from_tables, "training_set_hash", lambda _: None)
    drift_counts.reference_profile(bundle, roles, training_set).save(tmp_path / "rows.npz")
    assert (tmp_path / "file.npz").read_bytes() == (tmp_path / "rows.npz").read_bytes()
