"""The prediction log: nothing that goes wrong reaches a request, and nothing that was written is lost."""

import contextlib
import json
import os
import resource
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
import tracemalloc
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import ROOT
from helpers.bundles import NUMBERS, SCHEMA, WORDS, make_bundle, make_ladder_bundle
from helpers.log_entries import DAY, THEN, entry, filled, id_of, logging, serve_two_bundles
from helpers.waiting import until

from nbs_lib.bundle.bundle import Bundle
from nbs_lib.core.errors import BundleError, DataError, StoreError
from nbs_lib.serve.log import compaction
from nbs_lib.serve.log.compaction import compact_days
from nbs_lib.serve.log.feedback import logged_models, read_labels, store_feedback
from nbs_lib.serve.log.reader import find_prediction, read_day
from nbs_lib.serve.log.writer import encode_entry, estimate_entry_bytes, utc_day

STARTED = """import resource, sys, time
sys.path.insert(0, "tests")
from helpers.log_entries import *
from helpers.waiting import until
"""  # how a process of these tests begins
TODAY = time.time_ns() // 1000


@pytest.fixture
def served(tmp_path: Path) -> tuple[Path, str, str]:
    return serve_two_bundles(tmp_path / "served")


# Writing


def test_production_imports_no_more_than_numpy_and_msgspec() -> None:
    heavy = "pandas,pyarrow,duckdb,onnxruntime,sklearn,mlflow,pydantic"
    code = f"import sys, nbs_lib.serve.log.feedback; print([m for m in '{heavy}'.split(',') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"


def test_what_was_put_is_written_within_the_flush(tmp_path: Path) -> None:
    with logging(tmp_path, flush_s=0.05) as (log, told):
        assert log.put(entry("a", 0, 3))
        until(lambda: told["written"] == 3)
        assert log.waiting == 0
        assert store_feedback(tmp_path, id_of(2), "yes") == "new"


def test_the_queue_is_bounded_by_rows(tmp_path: Path) -> None:
    with logging(tmp_path, most_rows=10, flush_s=60) as (log, told):
        assert [log.put(entry("a", first, 4)) for first in (0, 4, 8)] == [True, True, False]
        assert log.put(entry("a", 8, 2))
    assert told == {"written": 10}


def test_the_queue_is_bounded_by_bytes(tmp_path: Path) -> None:
    body = b"{" + b" " * 100_000 + b"}"
    with logging(tmp_path, most_mb=2, flush_s=60) as (log, told):
        taken = [log.put(entry("a", n)._replace(bodies=[bytes(bytearray(body))])) for n in range(100)]
        assert 5 < sum(taken) < 20
        assert not log.put(entry("a", 200)._replace(bodies=[b" " * 3_000_000]))
        assert log.put(entry("a", 200))
    assert told == {"written": sum(taken) + 1}


def test_what_is_written_makes_room(tmp_path: Path) -> None:
    with logging(tmp_path, most_mb=0.01, flush_s=0.01) as (log, told):
        for n in range(30):
            until(lambda n=n: log.put(entry("a", n)))  # type: ignore[misc]
    assert told == {"written": 30}


@pytest.mark.parametrize("rows", [1, 1000])
def test_no_more_memory_than_is_counted(rows: int) -> None:
    tracemalloc.start()
    try:
        entries = [encode_entry(entry("a", k, rows)) for k in range(0, 10_000, rows)]
        taken, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert taken < sum(map(estimate_entry_bytes, entries)) < 3 * taken


def test_workers_share_a_file(tmp_path: Path) -> None:
    code = STARTED + "from pathlib import Path\n"
    code += "with logging(Path(sys.argv[1]), sys.argv[2], flush_s=0.01) as (log, told):\n"
    code += "    for n in range(300): log.put(entry('a', n)); time.sleep(0.001)\nprint(dict(told))"
    command = [sys.executable, "-c", code, str(tmp_path)]
    workers = [subprocess.Popen([*command, f"{k:08x}"], stdout=subprocess.PIPE, text=True, cwd=ROOT) for k in range(3)]
    assert [worker.communicate(timeout=60)[0] for worker in workers] == ["{'written': 300}\n"] * 3
    with contextlib.closing(sqlite3.connect(tmp_path / f"{utc_day(THEN)}.sqlite")) as db:
        assert db.execute("SELECT sum(count) FROM batches").fetchone() == (900,)


def test_a_day_ends_at_midnight_in_utc(tmp_path: Path) -> None:
    late = (THEN // DAY + 1) * DAY
    filled(tmp_path, entry("a", 0, time_us=late - 1), entry("a", 1, time_us=late))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["20110126.sqlite", "20110127.sqlite"]
    assert [store_feedback(tmp_path, id_of(n, late - 1 + n), "x") for n in range(2)] == ["new", "new"]
    assert store_feedback(tmp_path, id_of(0, late), "x") == "unknown"


# What goes wrong


def test_a_killed_process_loses_no_more_than_the_unflushed_second(tmp_path: Path) -> None:
    code = STARTED + "from pathlib import Path\n"
    code += "seen = 0\ndef told(result, rows):\n    print(result, rows, flush=True)\n"
    code += "log = PredictionLog(sys.argv[1], 'aaaaaaaa', flush_s=0.2, told=told)\nn = 0\n"
    code += "while True: log.put(entry('a', n)); n += 1; time.sleep(0.001)"
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert process.stdout
    lines = [process.stdout.readline() for _ in range(3)]
    process.send_signal(signal.SIGKILL)
    lines += process.stdout.readlines()
    process.wait()
    written = sum(int(line.split()[1]) for line in lines)
    with contextlib.closing(sqlite3.connect(tmp_path / f"{utc_day(THEN)}.sqlite")) as db:
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        assert db.execute("SELECT sum(count) FROM batches").fetchone()[0] >= written > 0
    filled(tmp_path, entry("a", 0), worker="bbbbbbbb")  # the next process goes on


def test_a_disk_that_is_full_loses_and_counts_and_recovers(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(disk)], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting a small disk needs root; the test below needs none")
    try:
        with logging(disk, flush_s=0.02) as (log, told):
            for n in range(0, 30_000, 1000):
                assert log.put(entry("a", n, 1000))
            until(lambda: log.waiting == 0)
            assert told["lost"] > 0
            assert "full" in log.reason or "I/O" in log.reason
            before = Counter(told)
            for path in disk.iterdir():
                path.unlink()
            assert log.put(entry("a", 30_000))
            until(lambda: told["written"] == before["written"] + 1)
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


def test_a_limit_on_the_size_of_files(tmp_path: Path) -> None:
    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, resource.RLIM_INFINITY))

    code = STARTED
    code += "with logging(Path(sys.argv[1]), flush_s=0.02) as (log, told):\n"
    code += "    for n in range(0, 30000, 1000): assert log.put(entry('a', n, 1000)); time.sleep(0.01)\n"
    code += "    until(lambda: log.waiting == 0); assert told['lost'] and told['written'], told\n"
    code += "    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2); was = told['written']\n"
    code += "    log.put(entry('a', 30000)); until(lambda: told['written'] == was + 1)\n"
    command = [sys.executable, "-c", code, str(tmp_path)]
    done = subprocess.run(command, preexec_fn=limited, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_lock_is_waited_for_and_then_given_up(tmp_path: Path) -> None:
    filled(tmp_path, entry("a", 0))
    path = tmp_path / f"{utc_day(THEN)}.sqlite"
    with (
        logging(tmp_path, "bbbbbbbb", flush_s=0.02, patience_s=0.3) as (log, told),
        contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other,
    ):
        other.execute("BEGIN IMMEDIATE")
        log.put(entry("a", 0))
        start = time.monotonic()
        until(lambda: told["lost"] == 1)
        assert time.monotonic() - start < 3
        other.execute("ROLLBACK")
        other.execute("BEGIN IMMEDIATE")
        log.put(entry("a", 1))
        time.sleep(0.1)
        other.execute("ROLLBACK")
        until(lambda: told["written"] == 1)


def test_a_folder_that_is_deleted_or_none(tmp_path: Path) -> None:
    folder = tmp_path / "log"
    with logging(folder, flush_s=0.02) as (log, told):
        log.put(entry("a", 0))
        until(lambda: told["written"] == 1)
        shutil.rmtree(folder)
        log.put(entry("a", 1))
        until(lambda: told["written"] == 2)
        assert store_feedback(folder, id_of(1), 1) == "new"
        shutil.rmtree(folder)
        folder.write_text("a file where the folder was")
        log.put(entry("a", 2))
        until(lambda: told["lost"] == 1)
        folder.unlink()
        log.put(entry("a", 3))
        until(lambda: told["written"] == 3)


def test_an_entry_that_can_t_be_written_does_not_end_the_log(tmp_path: Path) -> None:
    with logging(tmp_path, flush_s=0.02) as (log, told):
        assert not log.put(entry("a", 0)._replace(rungs=[object()]))  # type: ignore[list-item]
        assert "object" in log.reason
        assert log.put(entry("a", 1))
        until(lambda: told["written"] == 1)


# Reading


def expected(n: int) -> dict[str, float]:
    return {name: float(np.float32(n) * np.float32(0.1) + np.float32(k)) for k, name in enumerate(NUMBERS)}


@pytest.mark.parametrize("compacted", [False, True])
def test_a_row_is_found_whole(tmp_path: Path, served: tuple[Path, str, str], compacted: bool) -> None:
    folder, ladder, _ = served
    filled(tmp_path / "log", entry(ladder, 0), entry(ladder, 1, 70), entry(ladder, 90))
    store_feedback(tmp_path / "log", id_of(5), "yes")
    if compacted:
        assert [day.problem for day in compact_days(tmp_path / "log", served=folder)] == [""]
    for n in (0, 1, 5, 70, 90):
        row = find_prediction(tmp_path / "log", id_of(n), folder)
        assert row
        numbers = {name: row.inputs[name] for name in NUMBERS}
        assert np.isnan(numbers.pop(NUMBERS[1]))
        assert numbers == {name: value for name, value in expected(n).items() if name != NUMBERS[1]}
        assert [row.inputs[name] for name in WORDS] == ["m1", None]
        assert row.inputs["made"].timestamp() == 1000 + (1 if 1 <= n <= 70 else n)
        assert (row.id, row.model, row.rung, row.history) == (id_of(n), ladder, "model", 12)
        assert row.time.timestamp() * 1e6 == THEN
        assert row.answer == {"class": "no", "probability": float(np.float32(n) / np.float32(1000)), "margin": n}
        assert json.loads(row.request or "") == {"width": n}
        assert row.flags == ("unknown maker" if 1 <= n <= 70 else None)
        assert row.label == ("yes" if n == 5 else None)
    for unknown in (id_of(71), id_of(91), id_of(0, worker="bbbbbbbb"), id_of(0, THEN + DAY), "nonsense"):
        assert find_prediction(tmp_path / "log", unknown, folder) is None


def test_two_models_of_one_day(tmp_path: Path, served: tuple[Path, str, str]) -> None:
    folder, ladder, plain = served
    one = np.array([1.5], "<f4").tobytes()
    row = entry(plain, 1)._replace(numeric=one * 2, categorical=[["a"]], output=one, margin=one)
    filled(tmp_path / "log", entry(ladder, 0), row, entry(ladder, 2))
    assert logged_models(tmp_path / "log") == {ladder, plain}
    before = read_day(tmp_path / "log", utc_day(THEN), folder)
    assert [day.rows for day in compact_days(tmp_path / "log", served=folder)] == [3]
    table = read_day(tmp_path / "log", utc_day(THEN), folder).to_pandas().set_index("_id")
    assert set(before.column_names) >= {"_rung", "_probability", "width", "new", "kind", *NUMBERS, *WORDS}
    assert table.loc[id_of(1), ["width", "new", "kind", "_class"]].tolist() == [1.5, 1.5, "a", "yes"]
    assert table.loc[id_of(1), list(WORDS)].isna().all()
    assert table.loc[id_of(2), "_model"] == ladder
    assert logged_models(tmp_path / "log") == {ladder, plain}


def test_inputs_that_are_called_as_the_log_s_own_columns(tmp_path: Path) -> None:
    names = dict(zip([each["name"] for each in SCHEMA["inputs"]], ["_id", "__id", "_label", "_time"], strict=True))
    inputs = [each | {"name": names[each["name"]]} for each in SCHEMA["inputs"]]
    make_bundle(tmp_path / "new", schema=SCHEMA | {"inputs": inputs})
    id = Bundle.open(tmp_path / "new").id
    (tmp_path / "new").rename(tmp_path / id)
    numbers, one = np.array([1.5, 2.5], "<f4").tobytes(), np.array([1.5], "<f4").tobytes()
    filled(tmp_path / "log", entry(id, 0)._replace(numeric=numbers, categorical=[["a"]], output=one, margin=one))
    store_feedback(tmp_path / "log", id_of(0), "yes")
    for _ in range(2):  # as it was written, and compacted
        row = read_day(tmp_path / "log", utc_day(THEN), tmp_path).to_pylist()[0]
        assert (row["_id"], row["_label"], row["_time"].timestamp() * 1e6) == (id_of(0), "yes", THEN)
        assert [row[f"_{name}"] for name in ("_id", "__id", "_label")] == [1.5, 2.5, "a"]
        found = find_prediction(tmp_path / "log", id_of(0), tmp_path)
        assert found is not None
        assert [found.inputs[name] for name in ("_id", "__id", "_label")] == [1.5, 2.5, "a"]
        assert found.label == "yes"
        assert [day.problem for day in compact_days(tmp_path / "log", served=tmp_path)] in ([""], [])


@pytest.mark.parametrize("task", ["multiclass", "regression"])
def test_other_tasks(tmp_path: Path, task: str) -> None:
    classes = ["a", "b", "c"] if task == "multiclass" else []
    if task == "multiclass":
        make_ladder_bundle(tmp_path / "new", classes=classes)
    else:
        make_bundle(tmp_path / "new", schema=SCHEMA | {"task": "regression", "classes": []})
    id = Bundle.open(tmp_path / "new").id
    (tmp_path / "new").rename(tmp_path / id)
    wide = len(classes) or 1
    output = np.linspace(0, 1, wide).astype("<f4").tobytes()
    row = entry(id, 0)._replace(output=output, margin=output)
    if task == "regression":
        row = row._replace(numeric=b"\0" * 8, categorical=[["a"]])
    filled(tmp_path / "log", row)
    store_feedback(tmp_path / "log", id_of(0), "b" if classes else "2.5")
    assert compact_days(tmp_path / "log", served=tmp_path)[0].problem == ""
    table = read_day(tmp_path / "log", utc_day(THEN), tmp_path).to_pylist()[0]
    answer = {"_class": "c", "_probability:b": 0.5, "_label": "b"} if classes else {"_value": 0.0, "_label": 2.5}
    assert {name: table[name] for name in answer} == answer


# Labels


def test_labels_come_once_and_late(tmp_path: Path, served: tuple[Path, str, str]) -> None:
    folder, ladder, _ = served
    log = tmp_path / "log"
    filled(log, *(entry(ladder, n) for n in (0, 1, 3)))
    assert [store_feedback(log, id_of(0), label) for label in ("yes", "yes", "no")] == ["new", "known", "conflict"]
    assert [store_feedback(log, id_of(n), "no") for n in (2, 4)] == ["unknown"] * 2
    compact_days(log, served=folder)
    assert [store_feedback(log, id_of(n), "no") for n in (1, 2, 3, 4)] == ["new", "unknown", "new", "unknown"]
    assert store_feedback(log, id_of(0), "yes") == "known"
    assert read_labels(log, utc_day(THEN)) == {id_of(0): "yes", id_of(1): "no", id_of(3): "no"}
    table = read_day(log, utc_day(THEN), folder)
    assert table["_label"].to_pylist() == ["yes", "no", "no"]


def test_a_label_of_what_is_not_written_yet(tmp_path: Path) -> None:
    with logging(tmp_path, flush_s=60) as (log, _):
        log.put(entry("a", 0, 3))
        assert [log.is_pending(id_of(n)) for n in (0, 2, 3)] == [True, True, False]
        assert not log.is_pending(id_of(0, worker="bbbbbbbb"))
        assert store_feedback(tmp_path, id_of(2), "yes", logged=log.is_pending(id_of(2))) == "new"
    assert not log.is_pending(id_of(0))
    assert store_feedback(tmp_path, id_of(2), "yes") == "known"


def test_only_what_is_queued_waits(tmp_path: Path) -> None:
    late = (THEN // DAY + 1) * DAY
    with logging(tmp_path, most_rows=4, flush_s=60) as (log, _):
        put = [log.put(entry("a", first, rows)) for first, rows in ((0, 2), (2, 3), (5, 1))]
        assert put == [True, False, True]
        assert log.put(entry("a", 6, time_us=late))
        assert [n for n in range(9) if log.is_pending(id_of(n))] == [0, 1, 5]
        assert [n for n in range(9) if log.is_pending(id_of(n, late))] == [6]
        other = id_of(0, THEN - DAY)
        assert store_feedback(tmp_path, other, "yes", logged=log.is_pending(other)) == "unknown"
    assert read_labels(tmp_path, utc_day(THEN - DAY)) == {}


def test_what_was_written_or_lost_waits_no_more(tmp_path: Path) -> None:
    with logging(tmp_path, flush_s=0.02) as (log, told):
        for n in range(0, 40, 2):  # a range each
            assert log.put(entry("a", n))
        until(lambda: told["written"] == 20)
        for path in tmp_path.iterdir():
            path.unlink()
        (tmp_path / f"{utc_day(THEN)}.sqlite").mkdir()  # nothing can be written there
        assert log.put(entry("a", 40))
        until(lambda: told["lost"] == 1)
        assert not any(log.is_pending(id_of(n)) for n in range(42))
        assert len(log._ranges) == 1


@pytest.mark.parametrize("turn", range(3))
def test_many_threads_bring_the_first_labels(tmp_path: Path, turn: int) -> None:
    ids = [id_of(n) for n in range(40)]
    with logging(tmp_path, flush_s=0.001) as (log, _), ThreadPoolExecutor(8) as threads:
        for n in range(40):
            log.put(entry("a", n))
        results = threads.map(lambda id: store_feedback(tmp_path, id, "yes", logged=log.is_pending(id)), ids)
        assert list(results) == ["new"] * 40
        assert list(threads.map(lambda id: store_feedback(tmp_path, id, "no"), ids)) == ["conflict"] * 40


def test_labels_that_can_t_be_stored_say_so(tmp_path: Path) -> None:
    filled(tmp_path, entry("a", 0))
    (tmp_path / "feedback.sqlite").mkdir()
    with pytest.raises(StoreError, match="try again"):
        store_feedback(tmp_path, id_of(0), "yes")


# Compaction


def test_only_whole_days_are_compacted_and_only_once(tmp_path: Path, served: tuple[Path, str, str]) -> None:
    folder, ladder, _ = served
    filled(tmp_path / "log", entry(ladder, 0), entry(ladder, 1, time_us=THEN + DAY), entry(ladder, 2, time_us=TODAY))
    assert [day.day for day in compact_days(tmp_path / "log", "2011-01-27", folder)] == [utc_day(THEN)]
    assert [day.day for day in compact_days(tmp_path / "log", "2999-01-01", folder)] == [utc_day(THEN + DAY)]
    assert compact_days(tmp_path / "log", served=folder) == []
    names = {path.name for path in (tmp_path / "log").iterdir() if not path.name.startswith("feedback")}
    assert names == {"20110126.parquet", "20110127.parquet", f"{utc_day(TODAY)}.sqlite"}


def test_rows_that_come_after_compaction_are_added(tmp_path: Path, served: tuple[Path, str, str]) -> None:
    folder, ladder, _ = served
    filled(tmp_path / "log", entry(ladder, 0))
    compact_days(tmp_path / "log", served=folder)
    filled(tmp_path / "log", entry(ladder, 1))
    assert read_day(tmp_path / "log", utc_day(THEN), folder).num_rows == 2
    assert [day.rows for day in compact_days(tmp_path / "log", served=folder)] == [2]
    assert read_day(tmp_path / "log", utc_day(THEN), folder)["_id"].to_pylist() == [id_of(0), id_of(1)]


def test_a_day_that_is_open_is_left_alone(tmp_path: Path, served: tuple[Path, str, str]) -> None:
    folder, ladder, _ = served
    filled(tmp_path / "log", entry(ladder, 0))
    with contextlib.closing(sqlite3.connect(tmp_path / "log" / f"{utc_day(THEN)}.sqlite")) as other:
        other.execute("SELECT count(*) FROM batches").fetchone()
        other.execute("PRAGMA journal_mode = WAL")
        assert "is open in another process" in compact_days(tmp_path / "log", served=folder)[0].problem
    assert find_prediction(tmp_path / "log", id_of(0), folder)
    assert compact_days(tmp_path / "log", served=folder)[0].problem == ""


def test_a_day_whose_bundle_is_gone_stays(tmp_path: Path, served: tuple[Path, str, str]) -> None:
    folder, ladder, _ = served
    filled(tmp_path / "log", entry(ladder, 0))
    (folder / ladder).rename(tmp_path / "away")
    assert "restore its bundle" in compact_days(tmp_path / "log", served=folder)[0].problem
    with pytest.raises(BundleError):
        find_prediction(tmp_path / "log", id_of(0), folder)
    (tmp_path / "away").rename(folder / ladder)
    assert compact_days(tmp_path / "log", served=folder)[0].problem == ""


def test_a_file_that_was_written_wrong_leaves_the_day(
    tmp_path: Path, served: tuple[Path, str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, ladder, _ = served
    filled(tmp_path / "log", entry(ladder, 0, 3))
    write = compaction._write

    def wrong(path: Path, parts: compaction.TableSource) -> int:
        rows = write(path, parts)
        table = pq.read_table(path)
        place = table.column_names.index("_margin")
        pq.write_table(table.set_column(place, "_margin", pa.array([1, 2, 3], pa.float32())), path)
        return rows

    monkeypatch.setattr(compaction, "_write", wrong)
    assert "written rows differ from the log" in compact_days(tmp_path / "log", served=folder)[0].problem
    assert [path.suffix for path in (tmp_path / "log").iterdir()] == [".sqlite"]


def test_a_damaged_parquet_file_is_named(tmp_path: Path, served: tuple[Path, str, str]) -> None:
    folder, ladder, _ = served
    filled(tmp_path / "log", entry(ladder, 0, 300))
    compact_days(tmp_path / "log", served=folder)
    path = tmp_path / "log" / f"{utc_day(THEN)}.parquet"
    content = bytearray(path.read_bytes())
    content[200] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"20110126.parquet is damaged"):
        read_day(tmp_path / "log", utc_day(THEN), folder)


KILLED = """
import os, signal, sys
import nbs_lib.serve.log.compaction as compaction
def killing(function, after):
    def call(*a, **k):
        if after: function(*a, **k)
        os.kill(os.getpid(), signal.SIGKILL)
    return call
place, after = sys.argv[3], sys.argv[4] == "after"
if place == "unlink":
    from pathlib import Path
    unlink = Path.unlink
    def call(self, **k):
        if self.suffix != ".sqlite": return unlink(self, **k)
        if after: unlink(self, **k)
        os.kill(os.getpid(), signal.SIGKILL)
    Path.unlink = call
else:
    setattr(compaction, place, killing(getattr(compaction, place), after))
print(compaction.compact_days(sys.argv[1], served=sys.argv[2]))
"""


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("place", ["_parts", "_write", "_check", "_keep", "unlink"])
def test_a_kill_at_any_point_loses_nothing(
    tmp_path: Path, served: tuple[Path, str, str], place: str, when: str
) -> None:
    folder, ladder, _ = served
    filled(tmp_path / "log", entry(ladder, 0), entry(ladder, 1, 20))
    store_feedback(tmp_path / "log", id_of(7), "yes")
    whole = read_day(tmp_path / "log", utc_day(THEN), folder)
    command = [sys.executable, "-c", KILLED, str(tmp_path / "log"), str(folder), place, when]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ)
    assert done.returncode == -signal.SIGKILL, done.stderr + done.stdout
    for _ in range(2):
        table = read_day(tmp_path / "log", utc_day(THEN), folder)
        assert compaction._bits(table.select(whole.column_names)).equals(compaction._bits(whole))
        assert all(day.problem == "" for day in compact_days(tmp_path / "log", served=folder))
        assert logged_models(tmp_path / "log") == {ladder}
        assert store_feedback(tmp_path / "log", id_of(20), "yes") != "unknown"
        whole = read_day(tmp_path / "log", utc_day(THEN), folder)
    assert [path.name for path in (tmp_path / "log").iterdir() if path.name[:8] != "feedback"] == ["20110126.parquet"]
