"""Entries of the prediction log, and a log that takes them."""

import contextlib
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from helpers.bundles import NUMBERS, WORDS, make_bundle, make_ladder_bundle

from nbs_lib.bundle.bundle import Bundle
from nbs_lib.serve.log.writer import LogEntry, PredictionLog, prediction_id

DAY = 86_400_000_000
THEN = 15_000 * DAY + 3_600_000_000  # 2011-01-26


def serve_two_bundles(folder: Path) -> tuple[Path, str, str]:
    "Write two bundles: where they lie, and their ids."
    make_ladder_bundle(folder / "ladder")
    make_bundle(folder / "plain")
    ids = [Bundle.open(folder / name).id for name in ("ladder", "plain")]
    for name, id in zip(("ladder", "plain"), ids, strict=True):
        (folder / name).rename(folder / id)
    return folder, *ids


def entry(model: str, first: int, rows: int = 1, time_us: int = THEN, words: int = len(WORDS)) -> LogEntry:
    "Rows of the bundle with views; what is in them follows from their number."
    n = np.arange(first, first + rows, dtype="<f4")
    numbers = np.stack([n * np.float32(0.1) + k for k in range(len(NUMBERS))], axis=1).astype("<f4")
    numbers[:, 1] = np.nan
    body = json.dumps([{"width": float(n_)} for n_ in n] if rows > 1 else {"width": float(first)}).encode()
    return LogEntry(
        time_us=time_us,
        model=model,
        first=first,
        rungs=["model"] * rows,
        history=np.full(rows, 12, "<f4").tobytes(),
        output=(n / 1000).astype("<f4").tobytes(),
        margin=n.tobytes(),
        numeric=numbers.tobytes(),
        categorical=[["m1", ""] for _ in range(rows)],
        time=np.array([1000 + first] * rows, dtype="<i8").tobytes(),
        bodies=[body],
        sizes=[rows],
        flags=["unknown maker"] * rows if rows > 1 else None,
    )


@contextlib.contextmanager
def logging(folder: Path, worker: str = "aaaaaaaa", **settings: object) -> Iterator[tuple[PredictionLog, Counter[str]]]:
    told: Counter[str] = Counter()
    log = PredictionLog(folder, worker, told=lambda result, rows: told.update({result: rows}), **settings)  # type: ignore[arg-type]
    try:
        yield log, told
    finally:
        log.close()


def filled(folder: Path, *entries: LogEntry, worker: str = "aaaaaaaa") -> None:
    with logging(folder, worker) as (log, _):
        assert all(log.put(each) for each in entries)


def id_of(n: int, time_us: int = THEN, worker: str = "aaaaaaaa") -> str:
    return prediction_id(time_us, worker, n)
