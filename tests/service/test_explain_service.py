"""Why something was answered: by the service, in a process of its own, and on the command line."""

import asyncio
import contextlib
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import psutil
import pytest
from conftest import ROOT
from helpers.bundles import ladder_cases
from helpers.services import ROW, Running, make_project, service
from helpers.waiting import until

from nbs_lib.bundle.request import RequestError
from nbs_lib.explain import response as explanation
from nbs_lib.explain.response import CAVEAT, ExplainService
from nbs_lib.serve import child_processes as aside
from nbs_lib.serve import explain_client as asking
from nbs_lib.serve.log.reader import find_prediction
from nbs_lib.serve.log.writer import unpack_entries

RUNGS: dict[str, Any] = {
    "model": ROW,
    "partial": ROW | {"maker": "b"},
    "context": {"width": None, "maker": None, "made": "1971-01-01"},
}
LOG = Path("served/log")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_project(tmp_path_factory.mktemp("a project"), cases=ladder_cases())


@pytest.fixture(scope="module")
def running(root: Path) -> Iterator[Running]:
    with service(root) as started:
        yield started


@pytest.fixture(scope="module")
def answers(running: Running, root: Path) -> dict[str, dict[str, Any]]:
    """An answer of each rung, in the log."""
    found = {rung: running.ask(row)[1] for rung, row in RUNGS.items()}
    assert {rung: said["rung"] for rung, said in found.items()} == {rung: rung for rung in RUNGS}
    until(lambda: all(find_prediction(root / LOG, said["id"], root / "served") for said in found.values()))
    return found


def process(running: Running) -> psutil.Process | None:
    """The one that explains."""
    for each in running.workers():
        with contextlib.suppress(psutil.Error):
            if "nbs_lib.explain.worker" in each.cmdline():
                return each
    return None


def test_it_is_started_when_it_is_first_asked(tmp_path: Path) -> None:
    with service(make_project(tmp_path, cases=ladder_cases()), SERVE_WORKERS="2") as started:
        assert started.ask(ROW)[0] == 200
        assert process(started) is None
        with ThreadPoolExecutor(4) as pool:  # of both workers
            statuses = [each[0] for each in pool.map(lambda _: started.ask(ROW, "/explain"), range(8))]
        assert set(statuses) == {200}
        assert sum("nbs_lib.explain.worker" in each.cmdline() for each in started.workers()) == 1
        until(lambda: started.metric("nbs_requests_total", route="/explain", status="200") == 8)
        explains = process(started)
        assert explains is not None
        assert explains.nice() == 19
    assert not explains.is_running()


@pytest.mark.parametrize("rung", list(RUNGS))
def test_a_logged_answer_is_reproduced_to_the_last_bit_and_explained(
    rung: str, running: Running, answers: dict[str, dict[str, Any]], root: Path
) -> None:
    given = answers[rung]
    status, said = running.ask({"id": given["id"]}, "/explain")
    assert status == 200, said
    assert said["reproduced"] is True
    assert {"id": said["id"], **said["answer"]} == given
    assert said["gap"] < 1e-5
    total = said["base"] + sum(each["margin"] for each in said["contributions"])
    assert total == pytest.approx(said["margin"], abs=1e-5)
    points = sum(each["points"] for each in said["contributions"])
    assert 100 * said["usual"] + points == pytest.approx(100 * given["probability"], abs=1e-3)
    sizes = [abs(each["points"]) for each in said["contributions"]]
    assert sizes == sorted(sizes, reverse=True)
    assert 1 <= len(said["reasons"]) <= 4
    assert said["caveat"] == CAVEAT
    assert set(said["feature_versions"]) == {"maker", "spot", "market"}


def test_what_was_fed_is_explained_and_not_what_the_store_says_now(answers: dict[str, Any], root: Path) -> None:
    given, n = answers["model"], int(answers["model"]["id"].rpartition("-")[2], 16)
    (path,) = (root / LOG).glob("2*.sqlite")
    with contextlib.closing(sqlite3.connect(path)) as db:
        entries = [each for (data,) in db.execute("SELECT data FROM batches") for each in unpack_entries(data)]
    fed = next(each for each in entries if each.first == n)
    store = root / "served/features.sqlite"
    shutil.move(store, store.with_suffix(".away"))
    try:
        status, body = ExplainService(root).answer(json.dumps({"id": given["id"]}).encode())
    finally:
        shutil.move(store.with_suffix(".away"), store)
    assert status == 200, body
    said = json.loads(body)
    assert np.float32(said["margin"]).tobytes() == fed.margin
    shown = {name: each["value"] for part in said["contributions"] for name, each in part["inputs"].items()}
    assert shown["maker_sold"] == np.frombuffer(fed.numeric, "<f4")[1]


def test_a_prior_that_was_answered_is_explained_as_one(root: Path, answers: dict[str, Any]) -> None:
    explaining = ExplainService(root)
    opened = explaining.opened(next(path for path in (root / "served").iterdir() if len(path.name) == 64))
    given = opened.served.predictor.prior(opened.served.request_parser.read(json.dumps(ROW).encode()))
    (said,), output, margin = opened.explain(given)
    assert output.tobytes() == given.output.tobytes()
    assert margin.tobytes() == given.margin.tobytes()
    assert not any(each["points"] for each in said["contributions"])


def test_an_answer_that_is_not_the_logged_one_is_not_explained(
    answers: dict[str, Any], root: Path, tmp_path: Path
) -> None:
    copied = shutil.copytree(root, tmp_path / "copy")
    (path,) = (copied / LOG).glob("2*.sqlite")
    with contextlib.closing(sqlite3.connect(path)) as db, db:
        for rowid, data in db.execute("SELECT rowid, data FROM batches").fetchall():
            last = [each._replace(margin=_nudged(each.margin)) for each in unpack_entries(data)]
            db.execute("UPDATE batches SET data = ? WHERE rowid = ?", (_packed(last), rowid))
    id = answers["model"]["id"]
    status, body = ExplainService(copied).answer(json.dumps({"id": id}).encode())
    assert status == 409
    assert f"the answer {id} can't be explained: of margin, " in json.loads(body)["error"]


def _nudged(margin: bytes) -> bytes:
    return np.nextafter(np.frombuffer(margin, "<f4"), np.float32(np.inf)).tobytes()


def _packed(entries: list[Any]) -> bytes:
    return msgspec.msgpack.encode(entries)


def test_an_answer_of_a_model_that_is_gone(answers: dict[str, Any], root: Path, tmp_path: Path) -> None:
    copied = shutil.copytree(root, tmp_path / "copy")
    for path in (copied / "served").iterdir():
        if len(path.name) == 64:
            shutil.rmtree(path)
    status, body = ExplainService(copied).answer(json.dumps({"id": answers["model"]["id"]}).encode())
    assert (status, json.loads(body)["field"]) == (404, "id")
    assert "restore its bundle" in json.loads(body)["error"]


def test_many_rows_are_bounded(running: Running) -> None:
    status, said = running.ask([ROW] * 100, "/explain")
    assert (status, len(said)) == (200, 100)
    assert running.ask([ROW] * 101, "/explain")[0] == 413
    status, said = running.ask([ROW] * (explanation.MAX_COUNTERFACTUAL_ROWS + 1), "/explain?change=1")
    assert (status, "at most" in said["error"]) == (413, True)
    assert running.ask(ROW, "/explain?chnage=1")[0] == 422
    status, said = running.ask([ROW, ROW | {"maker": "b"}], "/explain?change=1")
    assert [each["answer"]["rung"] for each in said] == ["model", "partial"]
    assert all(each["what_would_change_it"]["text"] for each in said)


def test_ten_thousand_rows_do_not_disturb_predictions(running: Running) -> None:
    with ThreadPoolExecutor(40) as pool:
        asked = [pool.submit(running.ask, [ROW] * 100, "/explain") for _ in range(100)]
        predicted = [running.ask(ROW)[0] for _ in range(50)]
        statuses = {each.result()[0] for each in asked}
    assert predicted == [200] * 50
    assert statuses <= {200, 429}
    assert 429 in statuses
    assert running.ask(ROW, "/explain")[0] == 200


def test_a_crash_is_told_and_the_next_is_explained(running: Running) -> None:
    assert running.ask(ROW, "/explain")[0] == 200
    before = process(running)
    assert before is not None
    before.suspend()
    with ThreadPoolExecutor(1) as pool:
        waits = pool.submit(running.ask, ROW, "/explain")
        time.sleep(0.3)
        assert running.ask(ROW)[0] == 200  # predictions go on
        before.send_signal(signal.SIGKILL)
        status, _ = waits.result()
    assert status in (200, 503)  # it waited where another may take it up, or was taken already
    assert until(lambda: running.ask(ROW, "/explain")[0] == 200, 20)
    after = process(running)
    assert after is not None
    assert after.pid != before.pid
    assert "the process that explains ended with SIGKILL" in running.said()


def test_one_that_can_not_start_is_told_in_a_sentence(tmp_path: Path) -> None:
    made = aside.ExplainProcess(
        tmp_path, ROOT, {"PATH": "/nowhere"}
    )  # without the library's path, and so without the library
    try:
        asker = asking.ExplainClient(str(tmp_path))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(aside.sys, "executable", "/bin/false")

            async def ask() -> list[tuple[int, bytes]]:
                found = []
                for _ in range(2):
                    waits = asyncio.create_task(asker.ask(b"{}"))
                    while not waits.done():
                        made.poll()
                        await asyncio.sleep(0.02)
                    error = waits.exception()
                    assert isinstance(error, RequestError) or error is None
                    found.append(error.reply if error else waits.result())
                return found

            found = asyncio.run(ask())
    finally:
        made.end()
    assert [status for status, _ in found] == [503, 503]
    assert b"ended with code 1: it is started again in 5 s." in found[0][1]


def test_a_token_is_asked_for_and_a_bundle_without_cases_says_so(tmp_path: Path) -> None:
    with service(make_project(tmp_path), TOKEN="secret") as started:
        assert started.ask(ROW, "/explain")[0] == 401
        assert process(started) is None
        status, said, headers = started.call("/explain", ROW)
    assert (status, headers["retry-after"]) == (503, "5")
    assert "can't be explained: it holds no cases.parquet" in said["error"]


def test_the_command_line_says_why(answers: dict[str, Any], root: Path) -> None:
    def said(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "nbs_lib.cli", "explain", *arguments]
        return subprocess.run(command, cwd=root, capture_output=True, text=True, env=_environment())

    done = said(answers["model"]["id"], "--change")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith("sold: ")
    assert "it says the same today." in lines[1]
    assert lines[-1] == CAVEAT
    unknown = said("20260101-00000000-1")
    assert (unknown.returncode, unknown.stderr.count("\n")) == (1, 1)
    assert "no answer 20260101-00000000-1 is known" in unknown.stderr


def _environment() -> dict[str, str]:
    return {k: v for k, v in os.environ.items() if not k.startswith(("NBS_", "COV_"))} | {"PYTHONPATH": str(ROOT)}
