"""`nbs score`: each row is answered once, whatever is killed or changed on the way, or one sentence says why not."""

import contextlib
import csv
import gzip
import json
import os
import resource
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nbs_lib.bench.score import kill_and_resume
from nbs_lib.bundle.bundle import Bundle
from nbs_lib.bundle.predictor import Predictor
from nbs_lib.bundle.request import RequestParser
from nbs_lib.core.errors import DataError, StoreError, UserError
from nbs_lib.core.files import sha256
from nbs_lib.core.paths import CONTRACT_FILE
from nbs_lib.data.reading.delimited import read_delimited
from nbs_lib.data.roles import Roles
from nbs_lib.features.join import view_file
from nbs_lib.features.online.base import encode_values
from nbs_lib.features.online.lookup import open_lookup, open_store
from nbs_lib.registry.pointers import champion_path
from nbs_lib.score import plan
from nbs_lib.score.check import check_job, text_rows
from nbs_lib.score.job import entry_path
from nbs_lib.score.plan import PART_ROWS
from nbs_lib.score.score import score_files
from nbs_lib.score.worker import Options, Worker
from nbs_lib.testing.example_project import DAY_US, EXAMPLE_SCHEMA, WHO_VIEW, write_example_project

PEOPLE = ("ann", "old", "eve", None)
ROWS = 1000


def table(rows: int = ROWS, start: int = 0) -> pa.Table:
    numbers = np.arange(start, start + rows)
    people = [PEOPLE[k % 4] for k in numbers]
    made = ["1970-01-11"] * rows
    return pa.table({"id": [f"r{k}" for k in numbers], "width": numbers / 7, "person": people, "made": made})


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with a champion that knows a view, and a folder of two files."""
    write_example_project(tmp_path, key=["id"], others=["id", "sold"])
    (tmp_path / "in").mkdir()
    pq.write_table(table(), tmp_path / "in/a.parquet", row_group_size=300)
    pq.write_table(table(500, ROWS), tmp_path / "in/b.parquet")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def score(*names: str, out: str = "out", part_rows: int = 250, **how: Any) -> dict[str, Any]:
    return score_files(names or ("in",), out, Options(part_rows=part_rows), **how)


def contents(out: str | Path) -> dict[str, str]:
    """The digest of each file of a job; the lock says who ran last."""
    return {
        path.relative_to(out).as_posix(): sha256(path)
        for path in sorted(Path(out).rglob("*"))
        if path.is_file() and path.name != ".lock"
    }


def answers(out: str | Path) -> pd.DataFrame:
    return pq.read_table(out).to_pandas().sort_values("id").reset_index(drop=True)


def test_each_row_is_answered_once(here: Path) -> None:
    manifest = score()
    assert [(entry["part"]["first"], entry["rows"]) for entry in manifest["parts"]] == [
        (1, 250), (251, 250), (501, 250), (751, 250), (1, 250), (251, 250)
    ]  # fmt: skip
    found = answers("out")
    assert sorted(found["id"]) == sorted(f"r{k}" for k in range(1500))
    assert check_job("out").startswith("out: 1,500 rows of 2 files in 6 parts: none is lost, none doubled")


def test_rows_are_answered_as_the_service_answers_them(here: Path) -> None:
    """Margin, output, rung and history, to the bit."""
    score()
    found = answers("out").set_index("id")
    bundle = Bundle.open(champion_path())
    parser = RequestParser(bundle, max_rows=1500)
    predictor = Predictor(bundle, parser, open_lookup(bundle.views))
    rows = table(1500).select(["width", "person", "made"]).to_pylist()
    said = predictor.answer(parser.read(json.dumps(rows).encode()))
    found = found.loc[[f"r{k}" for k in range(1500)]]
    np.testing.assert_array_equal(found["margin"].to_numpy(), said.margin[:, 0])
    np.testing.assert_array_equal(found["probability"].to_numpy(), said.output[:, 0])
    assert found["rung"].tolist() == said.rungs
    np.testing.assert_array_equal(found["history"].to_numpy(), np.array(said.history, dtype=np.float32))
    assert {"model", "partial", "context"} >= set(said.rungs) > {"model"}


def test_any_number_of_workers_makes_the_same_bytes(here: Path) -> None:
    score(out="one")
    score(out="two", workers=2)
    one, two = contents("one"), contents("two")
    assert one == two
    assert len(one) == 6 + 6 + 2


def test_a_second_run_answers_what_is_left(here: Path) -> None:
    score()
    before = contents("out")
    (here / "out/_parts/000002.json").unlink()
    (here / "out/part-000004.parquet").write_bytes(b"half")
    (here / "out/.part-000004.parquet.0123").touch()
    times = {path: path.stat().st_mtime_ns for path in (here / "out").glob("part-*")}
    score()
    assert contents("out") == before
    changed = {path.name for path, at in times.items() if path.stat().st_mtime_ns != at}
    assert changed == {"part-000002.parquet", "part-000004.parquet"}


def test_kills_at_random_points_lose_and_double_nothing(here: Path) -> None:
    """`nbs bench score --kills 200` takes more."""
    found = kill_and_resume(["in"], here / "killed", kills=6, part_rows=50, seed=1)
    assert found.kills == 6
    assert found.jobs >= 1
    assert found.identical == found.jobs


def test_a_worker_that_is_killed_is_one_sentence(here: Path) -> None:
    Path("killed.py").write_text(
        "import os, signal\n"
        "from nbs_lib.core.errors import UserError\n"
        "from nbs_lib.score import score\n"
        "def end():\n    os.kill(os.getpid(), signal.SIGKILL)\n"
        "if __name__ == '__main__':\n"
        "    score._start_worker = end\n"
        "    try:\n        score.score_files(['in'], 'out', workers=2)\n"
        "    except UserError as error:\n        print(error)\n"
    )
    done = subprocess.run([sys.executable, "killed.py"], capture_output=True, text=True, timeout=120)
    assert "a worker was killed, with 2 parts of" in done.stdout
    assert "what is done stays, so run this again" in done.stdout
    score(workers=2, part_rows=PART_ROWS)
    assert check_job("out")


# What is refused, in one sentence


@contextlib.contextmanager
def refused(match: str, kind: type[UserError] = UserError) -> Iterator[None]:
    with pytest.raises(kind, match=match) as caught:
        yield
    assert "\n" not in str(caught.value)


def test_another_champion(here: Path) -> None:
    score()
    before, old = contents("out"), champion_path().name
    shutil.rmtree("out/_parts")
    write_example_project(here, key=["id"], others=["id", "sold"], threshold=0.9)
    with refused(rf"out was begun by champion {old[:12]}, and the champion is now .*nbs rollback --to {old[:12]}"):
        score()
    assert {name: digest for name, digest in before.items() if "_parts" not in name} == contents("out")


def test_another_champion_in_the_middle(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was committed before stays, and the part that was under way is not."""
    old = Path("served/CURRENT").read_text()
    with refused("and the champion is now"):
        score(run=in_the_middle(lambda: write_example_project(here, key=["id"], threshold=0.9), after=2))
    assert len(list(Path("out").glob("part-*"))) == 2
    Path("served/CURRENT").write_text(old)
    score()
    score(out="undisturbed")
    assert contents("out") == contents("undisturbed")


def in_the_middle(change: Callable[[], object], after: int) -> Any:
    """Answer parts in this process, and change something after some of them."""

    def run(task: Any, jobs: Any, answered: Any) -> Iterator[dict[str, Any]]:
        worker = Worker(task)
        for k, (part, file) in enumerate(jobs):
            if k == after:
                change()
            yield worker.answer_part(part, file, answered)

    return run


def test_a_changed_input(here: Path) -> None:
    content = Path("in/b.parquet").read_bytes()
    with refused("b.parquet has changed since this run began: bring it back"):
        score(run=in_the_middle(lambda: pq.write_table(table(500, 5000), "in/b.parquet"), after=5))
    assert len(list(Path("out").glob("part-*"))) == 5
    with refused("b.parquet has changed since out was begun: bring it back"):
        score()
    Path("in/b.parquet").write_bytes(content)
    score()
    assert check_job("out")


def test_a_store_that_was_filled_in_the_middle(here: Path) -> None:
    def fill() -> None:
        ann = ("ann", encode_values([9 * DAY_US, 4.0, 20.0]))
        open_store().write(11 * DAY_US, {"who@1a2b3c4d5e6f": [ann]})

    with refused("the values of the feature views have changed since .*out was begun"):
        score(run=in_the_middle(fill, after=2))
    with refused("the values of the feature views have changed since out was begun"):
        score()


def test_views_of_the_past_that_were_made_anew_in_the_middle(here: Path) -> None:
    roles = Roles(
        "t", "buys", "binary", ["no", "yes"], timestamp="made", horizon="1h", columns={"made": {"role": "timestamp"}}
    )
    CONTRACT_FILE.parent.mkdir(parents=True)
    roles.save(CONTRACT_FILE)
    file = view_file("data/features", Bundle.open(champion_path()).views[0])
    file.parent.mkdir(parents=True)

    def write(sold: float) -> None:
        known = pa.array([9 * DAY_US], pa.timestamp("us", "UTC"))
        pq.write_table(pa.table({"person": ["ann"], "_known_at": known, "sold": [sold], "days": [20.0]}), file)

    write(3.0)
    options = Options(past=True, part_rows=250)
    with refused("the values of the feature views have changed since .*out was begun"):
        score_files(["in"], "out", options, run=in_the_middle(lambda: write(4.0), after=2))
    assert len(list(Path("out").glob("part-*"))) == 2
    begun = in_the_middle(lambda: None, after=9)

    def changed_before_a_worker_begins(task: Any, jobs: Any, answered: Any) -> Iterator[dict[str, Any]]:
        write(5.0)
        return begun(task, jobs, answered)

    with refused("the values of the feature views have changed since .*new was begun"):
        score_files(["in"], "new", options, run=changed_before_a_worker_begins)
    assert not list(Path("new").glob("part-*"))


def test_a_store_that_can_not_be_read(here: Path) -> None:
    Path("served/features.sqlite").unlink()
    with refused("the online store is empty: `nbs materialize` fills it", StoreError):
        score()


def test_other_options_and_another_job(here: Path) -> None:
    score()
    before = contents("out")
    with refused("out was begun with part_rows = 250"):
        score(part_rows=100)
    with refused("out belongs to another job, of 2 files from in/a.parquet on: name another folder"):
        score("in/a.parquet")
    assert contents("out") == before
    Path("mine").mkdir()
    Path("mine/notes.txt").write_text("mine")
    with refused("mine holds notes.txt, which is not of such a job: name an empty folder"):
        score(out="mine")
    assert Path("mine/notes.txt").read_text() == "mine"


def test_two_runs_at_once(here: Path) -> None:
    from nbs_lib.pipeline.run import project_lock

    with project_lock("out/.lock"), refused("another run is at work here"):
        score()


BROKEN: dict[str, tuple[Callable[[], object], str]] = {
    "an empty file": (lambda: Path("in/c.parquet").touch(), "in/c.parquet is empty: it has no rows"),
    "no rows": (lambda: pq.write_table(table(0), "in/c.parquet"), "in/c.parquet has no rows: leave it out"),
    "a corrupt file": (
        lambda: Path("in/c.parquet").write_bytes(b"PAR1 no PAR1"),
        "in/c.parquet is damaged or no Parquet",
    ),
    "a missing column": (
        lambda: pq.write_table(table().drop_columns(["width"]), "in/c.parquet"),
        "in/c.parquet: the table has no column 'width'",
    ),
    "another schema": (
        lambda: pq.write_table(table().drop_columns(["made"]), "in/c.parquet"),
        "in/c.parquet lacks a column 'made', unlike in/a.parquet",
    ),
    "a key of another type": (
        lambda: pq.write_table(table().set_column(0, "id", pa.array(range(ROWS))), "in/c.parquet"),
        "in/c.parquet: column 'id' is int64, and string in in/a.parquet: write it alike",
    ),
    "a copy": (
        lambda: (Path("in/deep").mkdir(), shutil.copy("in/a.parquet", "in/deep/a.parquet")),
        "a.parquet is a copy of .*a.parquet: its rows would be answered twice, so leave one out",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_file_that_can_not_be_answered_is_named_before_anything_is_done(here: Path, case: str) -> None:
    change, sentence = BROKEN[case]
    change()
    with refused(sentence, DataError):
        score("in", *(["in/deep"] if case == "a copy" else []))
    assert not list(Path("out").glob("part-*"))
    shutil.rmtree("in/deep", ignore_errors=True)
    Path("in/c.parquet").unlink(missing_ok=True)
    score()
    assert check_job("out")


def test_a_file_that_is_named_twice(here: Path) -> None:
    with refused("in/a.parquet is named twice: its rows would be answered twice", DataError):
        score("in", "in/a.parquet")


def test_two_files_of_one_name_are_two_files(here: Path) -> None:
    Path("more").mkdir()
    pq.write_table(table(100, 9000), "more/a.parquet")
    assert score("in", "more/a.parquet")["rows"] == 1600
    assert check_job("out").startswith("out: 1,600 rows of 3 files")


def test_a_damaged_page_stops_the_run_and_what_is_done_stays(here: Path) -> None:
    pq.write_table(table(), "in/b.parquet", write_page_checksum=True, row_group_size=250)
    content = bytearray(Path("in/b.parquet").read_bytes())
    at = pq.ParquetFile("in/b.parquet").metadata.row_group(2).column(1).data_page_offset + 300
    content[at] ^= 1
    Path("in/b.parquet").write_bytes(content)
    with refused("in/b.parquet can't be read: .*", DataError):
        score()
    assert len(list(Path("out").glob("part-*"))) == 4 + 2


def test_a_wrong_value_names_file_and_row(here: Path) -> None:
    wrong = table(400).set_column(1, "width", pa.array([1.0] * 399 + [float("inf")]))
    pq.write_table(wrong, "in/b.parquet")
    with refused("in/b.parquet: column 'width', row 400: inf is not a finite number", DataError):
        score()
    assert len(list(Path("out").glob("part-*"))) == 5


def test_no_space_left(here: Path) -> None:
    """A limit on the size of files ends a write as a full disk does."""
    code = "from nbs_lib.score.score import score_files\nscore_files(['in'], 'out')"

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2500, 2500))
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, preexec_fn=limited)
    said = done.stderr.splitlines()[-1]
    assert "part-000000.parquet can't be written (" in said
    assert "what is done stays, so run this again" in said
    score(part_rows=PART_ROWS)
    score(out="undisturbed", part_rows=PART_ROWS)
    assert contents("out") == contents("undisturbed")


# The check


TAMPERED: dict[str, tuple[Callable[[], object], str]] = {
    "a file is gone": (lambda: Path("out/part-000001.parquet").unlink(), "part-000001.parquet is missing"),
    "a file was changed": (lambda: _rewrite(lambda t: t[1:]), "part-000001.parquet was changed"),
    "a file too many": (lambda: shutil.copy("out/part-000001.parquet", "out/x.parquet"), "out/x.parquet is of no part"),
    "a lost row": (lambda: _rewrite(lambda t: t[1:], forged=True), "in/a.parquet: row 500 is lost or doubled"),
    "a doubled row": (
        lambda: _rewrite(lambda t: pa.concat_tables([t[1:], t[-1:]]), forged=True),
        "in/a.parquet: the answers do not have its values of id",
    ),
    "an input that changed": (lambda: pq.write_table(table(9), "in/a.parquet"), "in/a.parquet has changed since"),
}


def _rewrite(change: Callable[[pa.Table], pa.Table], forged: bool = False) -> None:
    """Change answers; forged: entry and manifest say that they are right."""
    path = Path("out/part-000001.parquet")
    pq.write_table(change(pq.read_table(path)), path)
    if forged:
        manifest = json.loads(Path("out/_manifest.json").read_text())
        entry = manifest["parts"][1]
        entry |= {"rows": pq.read_metadata(path).num_rows, "sha256": sha256(path)}
        Path("out/_manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize("case", TAMPERED)
def test_the_check_finds(here: Path, case: str) -> None:
    score()
    change, sentence = TAMPERED[case]
    change()
    with refused(sentence):
        check_job("out")


def test_a_job_of_another_release(here: Path) -> None:
    score()
    for name in ("_job.json", "_manifest.json"):
        told = json.loads(Path("out", name).read_text())
        (told if name == "_job.json" else told["job"])["format"] = 1
        Path("out", name).write_text(json.dumps(told))
    with refused("out was made by another release: name another folder"):
        check_job("out")
    with refused("out was begun by another release: name another folder"):
        score()


def test_the_check_of_a_job_that_is_not_done(here: Path) -> None:
    score()
    Path("out/_manifest.json").unlink()
    with refused(r"out has no _manifest.json: its job is not done \(6 parts are\), so run it again"):
        check_job("out")


# Text, SQLite, and what is told besides


def test_text_that_is_cut_is_answered_as_whole_text(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = table(3000).to_pandas()
    rows["note"] = ["a, b", 'say "no"', "two\nlines", "", 'mid "quote', None] * 500
    lines = here / "lines.jsonl"
    rows.to_csv("t.csv", index=False, quoting=csv.QUOTE_MINIMAL)
    rows.to_json(lines, orient="records", lines=True)
    score("t.csv", out="whole")
    monkeypatch.setattr(plan, "MAX_TEXT_BYTES", 10_000)
    manifest = score("t.csv", out="cut")
    assert len(manifest["parts"]) > 8
    score(str(lines), out="lines")
    whole = answers("whole")
    assert len(whole) == 3000
    pd.testing.assert_frame_equal(answers("cut"), whole)
    pd.testing.assert_frame_equal(answers("lines"), whole)
    for out in ("whole", "cut", "lines"):
        assert check_job(out)


def test_a_wrong_value_of_a_text_that_is_cut(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = table(3000).to_pandas().astype({"width": object})
    rows.loc[2900, "width"] = "wide"
    rows.to_csv("t.csv", index=False)
    monkeypatch.setattr(plan, "MAX_TEXT_BYTES", 10_000)
    with refused(r"t.csv.*column 'width', row 2901: 'wide' is not a number", DataError):
        score("t.csv")


def test_a_compressed_text_that_is_too_large(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table().to_pandas().to_csv("t.csv.gz", index=False)
    monkeypatch.setattr(plan, "MAX_TEXT_BYTES", 100)
    with refused("t.csv.gz is too large to be read in parts while it is compressed: unpack it", DataError):
        score("t.csv.gz")


def test_a_table_of_sqlite(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with contextlib.closing(sqlite3.connect("t.db")) as db:
        table().to_pandas().to_sql("orders", db, index=False)
    monkeypatch.setattr(plan, "_SQLITE_ROWS", 300)
    name = f"sqlite:///{here}/t.db?table=orders"
    assert len(score(name)["parts"]) == 4
    score("in/a.parquet", out="parquet")
    pd.testing.assert_frame_equal(answers("out"), answers("parquet"))
    assert check_job("out")


def test_rows_that_only_the_log_of_a_database_holds(here: Path) -> None:
    """A row that is written into its write-ahead log leaves the file's own bytes as they are."""
    with contextlib.closing(sqlite3.connect("t.db")) as db:
        db.execute("PRAGMA journal_mode = WAL")
        table(300).to_pandas().to_sql("orders", db, index=False)
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        name = f"sqlite:///{here}/t.db"

        def insert() -> None:
            db.execute("INSERT INTO orders SELECT 'new', width, person, made FROM orders LIMIT 1")
            db.commit()

        insert()
        before = Path("t.db").read_bytes()
        with refused("t.db has changed since this run began"):
            score(name, run=in_the_middle(insert, after=0))
        assert Path("t.db").read_bytes() == before
        assert score(name, out="again")["rows"] == 302
        assert check_job("again")
        insert()
        with refused("t.db has changed since it was answered"):
            check_job("again")


def _texts() -> dict[str, tuple[dict[str, Any], bytes, str]]:
    """By case: `data.read`, the bytes of a file, and its name."""
    rows = table(40).to_pandas()
    rows["note"] = ["two\nlines", 'say "no"', "a; b", "\r lone"] * 10
    plain = {"index": False, "lineterminator": "\n"}
    text = rows.to_csv(**plain)
    bare = rows.drop(columns="note")
    return {
        "without a header": ({"header": False}, bare.to_csv(header=False, **plain).encode(), "t.csv"),
        "lines above the header": ({"skip": 2}, f'one\n"two\n{text}'.encode(), "t.csv"),
        "comments above the header": ({}, f"# one\n# two, three, four\n{text}".encode(), "t.csv"),
        "semicolons in cp1252": ({}, rows.assign(city="Orléans").to_csv(sep=";", **plain).encode("cp1252"), "t.csv"),
        "utf-16": ({}, rows.to_csv(sep="\t", **plain).encode("utf-16"), "t.tsv"),
        "compressed": ({}, gzip.compress(text.encode()), "t.csv.gz"),
        "blank lines": ({}, bare.to_csv(**plain).replace("\n", "\n\n").encode(), "t.csv"),
        "a blank behind each separator": (
            {},
            b"id, width, person, made\n" + b'"r1", 1, "two\nlines", "1970-01-11"\nr2, 2, ann, 1970-01-11\n' * 20,
            "t.csv",
        ),
        "as old Macs end lines": ({}, bare.to_csv(index=False, lineterminator="\r").encode(), "t.csv"),
        "a first row with #": (
            {"header": False},
            bare.assign(id=bare["id"].str.replace("r", "#")).to_csv(header=False, **plain).encode(),
            "t.csv",
        ),
    }


@pytest.mark.parametrize("case", _texts())
def test_the_check_reads_as_the_job_did(here: Path, case: str) -> None:
    told, content, name = _texts()[case]
    if told.get("header", True):
        read = {"given": told, "found": {"encoding": "cp1252"}}
        write_example_project(here, key=["id"], others=["id", "sold"], read=read)
    else:  # the columns have no names, so the model asks for those that they are given
        inputs = [EXAMPLE_SCHEMA["inputs"][0] | {"name": "column 2"}, *EXAMPLE_SCHEMA["inputs"][1:]]
        of_time = [EXAMPLE_SCHEMA["context"]["inputs"][0] | {"name": "column 4"}]
        view = WHO_VIEW | {"entity": ["column 3"]}
        context = {"inputs": of_time, "takes_over": False}
        read = {"given": told, "found": {}}
        changes = {"inputs": inputs, "context": context, "views": [view], "entities": {"column 3": "text"}}
        write_example_project(here, key=["column 1"], read=read, **changes)
    Path(name).write_bytes(content)
    assert score(name)["rows"] == 40
    assert check_job("out").startswith("out: 40 rows of 1 files")


COUNTED = (
    "a\n1\n\n3\n",
    "a\n\n1\n\n\n",
    "a\r\n1\r\n\r\n3\r\n",
    'a\n""\n1\n',
    "a,b\n1,2\n\n3,4\n\n",
    "a,b\n1,2\n,\n",
    'a, b\n1, "x"\n2, "q\nr"\n3, "s"\n',
    'a;b\n1;"x; y"\n2;"say ""no"""\n\n3;z',
)


@pytest.mark.parametrize("text", COUNTED)
def test_rows_of_a_text_are_counted_as_they_are_read(
    tmp_path: Path, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the check, and where a text is cut: a blank line is a row of a table of one column, and of no other."""
    path = tmp_path / "t.csv"
    path.write_text(text, newline="")
    rows = read_delimited(path, {})[0].num_rows
    read: dict[str, dict[str, Any]] = {"given": {}, "found": {}}
    assert text_rows(path, read) == rows
    monkeypatch.setattr(plan, "MAX_TEXT_BYTES", 5)
    reader: Any = SimpleNamespace(**read)
    parts = plan.plan_parts([str(path)], reader)
    assert sum(part.rows or 0 for part in parts) == rows


@pytest.mark.parametrize(
    "given",
    [{"query": "SELECT * FROM orders WHERE width < 3 -- the small ones;\n; -- and no others"}, {"table": "orders"}],
)
def test_the_check_counts_what_data_read_names(here: Path, given: dict[str, str]) -> None:
    write_example_project(here, key=["id"], others=["id", "sold"], read={"given": given, "found": {}})
    with contextlib.closing(sqlite3.connect("t.db")) as db:
        table(7).to_pandas().to_sql("a", db, index=False)
        table(50).to_pandas().to_sql("orders", db, index=False)
    rows = score(f"sqlite:///{here}/t.db")["rows"]
    assert rows == (21 if "query" in given else 50)
    assert check_job("out").startswith(f"out: {rows} rows")


def test_a_part_that_holds_fewer_rows_than_planned(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table(3000).to_pandas().to_csv("t.csv", index=False)
    monkeypatch.setattr(plan, "MAX_TEXT_BYTES", 10_000)
    plan_parts = plan.plan_parts

    def one_row_more(*given: Any) -> list[Any]:
        first, *others = plan_parts(*given)
        return [replace(first, rows=first.rows + 1), *others]

    monkeypatch.setattr("nbs_lib.score.score.plan_parts", one_row_more)
    with refused(r"t.csv: [\d,]+ rows were read of the [\d,]+ from 1 on", DataError):
        score("t.csv")


def test_entries_hold_no_time_of_day(here: Path) -> None:
    score()
    time.sleep(0.01)
    score(out="later")
    assert contents("out") == contents("later")
    assert entry_path(Path("out"), plan.Part(0, "")).exists()
    assert os.listdir("out/_parts")
