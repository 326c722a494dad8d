"""A challenger in shadow answers a share of what the champion was asked, is stopped where it does not do, and never
reaches a request."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from conftest import ROOT
from helpers.bundles import INPUTS, LINEAGE, SCHEMA, make_bundle, make_ladder_bundle
from helpers.log_entries import DAY, THEN, entry, filled, id_of, serve_two_bundles
from helpers.services import PATIENT, ROW, Load, Running, make_project, point_to, promote, service
from helpers.waiting import until
from onnx import TensorProto, helper
from test_serve import damaged, graph_of

from nbs_lib.bundle.bundle import Bundle, write_bundle
from nbs_lib.bundle.fallback import FallbackLadder
from nbs_lib.bundle.served_model import load_served_model
from nbs_lib.core.errors import BundleError
from nbs_lib.core.settings import ServeSettings
from nbs_lib.data.roles import Roles
from nbs_lib.features.online.lookup import open_lookup
from nbs_lib.registry.model_registry import deploy_bundle, start_shadow
from nbs_lib.registry.pointers import (
    abort_shadow,
    challenger_path,
    champion_path,
    read_shadow_abort,
    shadow_status,
    stop_shadow,
)
from nbs_lib.serve.log.audit import AnswerRecorder
from nbs_lib.serve.log.compaction import compact_log
from nbs_lib.serve.log.feedback import logged_models, store_feedback
from nbs_lib.serve.log.shadow_pairs import load_shadow_pairs, side_predictions
from nbs_lib.serve.log.writer import PredictionLog, shadow_folder, utc_day
from nbs_lib.serve.metrics import METRICS_DIR_ENV, WorkerMetrics
from nbs_lib.serve.shadow import ShadowScorer, is_sampled


@pytest.fixture
def served(tmp_path: Path) -> tuple[Path, str, str]:
    return serve_two_bundles(tmp_path / "served")


WIDTH = [INPUTS[0]]
NARROW: dict[str, Any] = {"schema": SCHEMA | {"inputs": WIDTH, "others": ["maker", "place", "made"], "key": []}}
REST: dict[str, Any] = {"fallback": {"prior": {"output": 0.3, "margin": -0.85}}, "reference": {}, "lineage": LINEAGE}


def challenge(root: Path, graph: bytes = b"", **bundle: Any) -> str:
    """Put another bundle in shadow, where it is told with a graph of one number; its id."""
    made = root / "made"
    if graph:
        write_bundle(made, graph, **NARROW | REST | {"metrics": {}} | bundle)
    else:
        make_ladder_bundle(made, **{"metrics": {"another": 1}} | bundle)
    id = start_shadow(made, root)
    shutil.rmtree(made)
    return id


def count(running: Running, result: str = "scored") -> float:
    return running.metric("nbs_shadow_rows_total", result=result)


def process(running: Running) -> list[psutil.Process]:
    """The challenger's process, where there is one."""
    there = []
    for each in running.workers():
        with contextlib.suppress(psutil.Error):  # it has ended
            there += [each] if "nbs_lib.serve.shadow" in each.cmdline() else []
    return there


def started(running: Running) -> None:
    """Until the challenger has answered something."""
    until(lambda: running.ask(ROW)[0] == 200 and count(running) > 0, 30)


def log_of(root: Path, **more: Any) -> Any:
    return load_shadow_pairs(root / "served/log", served=root / "served", **more)


# What it answers


@pytest.mark.parametrize("workers", ["1", "2"])
def test_it_is_asked_what_the_champion_was_asked_and_a_label_is_that_of_both(tmp_path: Path, workers: str) -> None:
    root = make_project(tmp_path / "p")
    rows = [ROW | {"width": k / 4} | ({"maker": "new", "place": 8} if k % 3 == 0 else {}) for k in range(40)]
    with service(root, SERVE_SHADOW="1", SERVE_WORKERS=workers) as running:
        id = challenge(root, takes_over=True)
        started(running)
        answered = [running.ask(row)[1] for row in rows[:20]] + running.ask(rows[20:])[1]
        until(lambda: {each["id"] for each in answered} <= {*log_of(root)["id"]})
        assert count(running, "dropped") == count(running, "failed") == count(running, "lost") == 0
        assert running.metric("nbs_shadow_seconds_count") > 20
        for each in answered[::2]:
            assert running.ask({"id": each["id"], "label": "yes"}, "/feedback")[0] == 200
    assert {each["model"] for each in answered} == {champion_path(root).name[:12]}
    roles = Roles("shop", target="late", task="binary", classes=["no", "yes"], timestamp="made")
    found = log_of(root, roles=roles).set_index("id").loc[[each["id"] for each in answered]]
    for side, name in (("champion", champion_path(root).name), ("challenger", id)):
        bundle = Bundle.open(root / "served" / name)
        expected = FallbackLadder(bundle, open_lookup(bundle.views, root)).answer(rows)
        np.testing.assert_array_equal(side_predictions(found, side), expected["output"])
        assert found[f"{side}_rung"].tolist() == expected["rung"].tolist()
        assert set(found[f"{side}_model"]) == {name}
    assert set(found["challenger_rung"]) > {"context"}, "the challenger answers newcomers otherwise"
    assert found["label"].tolist() == ["yes", None] * 20
    assert {*found["block"]} == {365}, "the day that the rows are about"
    assert logged_models(root / "served/log") == {champion_path(root).name, id}


def test_a_share_is_drawn_by_the_request_and_without_a_challenger_there_is_nothing(tmp_path: Path) -> None:
    root, other = make_project(tmp_path / "p"), make_project(tmp_path / "other")
    challenge(other)
    with (
        service(root, SERVE_SHADOW="0.25") as running,
        service(other, SERVE_SHADOW="0") as none_wanted,
        service(other, SERVE_LOG="") as nothing_logged,
    ):
        assert running.ask(ROW)[0] == 200
        time.sleep(2.5)
        assert not process(running)
        assert not shadow_folder(root / "served/log").exists()
        assert running.metric("nbs_shadow_seconds_count") == count(running) == 0
        challenge(root)
        started(running)
        answered = [running.ask(ROW)[1]["id"] for _ in range(400)]
        drawn_ = {id for id in answered if is_sampled(id.split("-")[1], int(id.split("-")[2], 16), 0.25)}
        assert 60 < len(drawn_) < 140
        until(lambda: drawn_ <= {*log_of(root)["id"]})
        assert {*log_of(root)["id"]} & {*answered} == drawn_
        (one,) = process(running)
        assert one.nice() == 19
        stop_shadow(root)
        until(lambda: not process(running))
        assert not process(none_wanted)
        assert not process(nothing_logged)


def test_two_services_on_one_log_ask_once(tmp_path: Path) -> None:
    root = make_project(tmp_path / "p")
    with service(root, SERVE_SHADOW="1") as one, service(root, SERVE_SHADOW="1") as other:
        challenge(root)
        until(lambda: one.ask(ROW)[0] == other.ask(ROW)[0] == 200 and count(one) + count(other) > 0, 30)
        assert len(process(one) + process(other)) == 1
        answered = [each.ask(ROW)[1]["id"] for each in (one, other) for _ in range(10)]
        until(lambda: {*answered} <= {*log_of(root)["id"]})
        assert log_of(root)["id"].is_unique
        (first,) = [each for each in (one, other) if process(each)]
        second = other if first is one else one
        first.server.process.send_signal(signal.SIGTERM)
        until(lambda: process(second))  # what is left goes on


@pytest.mark.parametrize("how", ["promoted", "another champion", "rolled back"])
def test_it_is_over_when_another_champion_is_served(tmp_path: Path, how: str) -> None:
    root = make_project(tmp_path / "p")
    first = champion_path(root).name
    with service(root, SERVE_SHADOW="1") as running:
        id = challenge(root)
        started(running)
        if how == "promoted":
            deploy_bundle(root / "served" / id, root)
        elif how == "another champion":
            promote(root, metrics={"third": 1})
        else:
            promote(root, metrics={"third": 1})
            challenge(root)
            point_to(root, first)
        until(lambda: not process(running))
        assert challenger_path(root) is None
        assert read_shadow_abort(root) is None
        assert running.ask(ROW)[0] == 200
        assert running.metric("nbs_shadow_aborted") == 0


def test_what_can_not_be_compared_is_refused(tmp_path: Path) -> None:
    root = make_project(tmp_path / "p")
    with pytest.raises(BundleError, match="another task than the champion"):
        challenge(root, classes=["a", "b", "c"])
    with pytest.raises(BundleError, match="is the champion already"):
        start_shadow(champion_path(root), root)
    make_bundle(root / "broken")
    damaged(root / "broken", "flipped")
    with pytest.raises(BundleError, match=r"model\.onnx was changed"):
        start_shadow(root / "broken", root)
    assert challenger_path(root) is None
    assert shadow_status(root).startswith("no challenger is in shadow")


def test_the_verb_says_how_it_is(tmp_path: Path) -> None:
    root = make_project(tmp_path / "p")
    make_ladder_bundle(root / "other", metrics={"another": 1})

    def nbs(*arguments: str) -> tuple[int, str]:
        command = [sys.executable, "-m", "nbs_lib.cli", "shadow", *arguments]
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True)
        return done.returncode, done.stdout + done.stderr

    id = Bundle.open(root / "other").id
    told = f"the challenger {id[:12]} answers in the shadow of the champion {champion_path(root).name[:12]}.\n"
    assert nbs("other") == nbs() == (0, told)
    abort_shadow(id, "it gave no finite number.", root)
    assert nbs()[1].endswith("it gave no finite number.\n")
    assert nbs("--stop") == (0, "no challenger is in shadow: `nbs shadow FOLDER` puts a bundle there.\n")
    code, said_ = nbs("nowhere")
    assert code == 1
    assert "nowhere is not a bundle" in said_
    assert len(said_.splitlines()) == 1


def test_what_runs_in_production_imports_little() -> None:
    code = "import sys, nbs_lib.serve.{}; print([m for m in {} if m in sys.modules])"
    heavy = ["pandas", "pyarrow", "duckdb", "sklearn", "mlflow", "torch", "evidently", "uvicorn", "fastapi"]
    for module, more in (("shadow", []), ("supervisor", ["numpy", "onnxruntime", "prometheus_client"])):
        command = [sys.executable, "-c", code.format(module, heavy + more)]
        assert subprocess.run(command, capture_output=True, text=True).stdout == "[]\n"


# What ends it


def limited(most: float, fails: bool = False) -> bytes:
    """A graph that gives no number for a width above a limit, or fails there."""
    numeric = helper.make_tensor_value_info("numeric", TensorProto.FLOAT, [None, 1])
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [None, 1]) for name in ("margin", "output")]
    nodes = [helper.make_node("Sub", ["most", "numeric"], ["left"]), helper.make_node("Sqrt", ["left"], ["margin"])]
    if fails:  # it looks into a table that is as long
        nodes = [
            helper.make_node("Cast", ["numeric"], ["place"], to=TensorProto.INT64),
            helper.make_node("Gather", ["table", "place"], ["margin"], axis=0),
        ]
    nodes += [helper.make_node("Sigmoid", ["margin"], ["output"])]
    constants = [
        helper.make_tensor("most", TensorProto.FLOAT, [1], [most]),
        helper.make_tensor("table", TensorProto.FLOAT, [int(most)], [1.0] * int(most)),
    ]
    made = helper.make_graph(nodes, "limited", [numeric], ends, constants)
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=9).SerializeToString()


@pytest.mark.parametrize("how", ["nan", "raises", "slow"])
def test_a_challenger_that_fails_or_is_slow_is_stopped_and_no_request_notices(tmp_path: Path, how: str) -> None:
    root = make_project(tmp_path / "p")
    write_bundle(tmp_path / "narrow", limited(100), **NARROW | REST | {"metrics": {}})
    deploy_bundle(tmp_path / "narrow", root)
    graph = {"slow": graph_of(0.04), "nan": limited(50), "raises": limited(50, fails=True)}[how]
    with service(root, SERVE_SHADOW="1", SERVE_SHADOW_P99_MS="10") as running:
        with Load(running.port, 2, {"width": 90}, pause_s=0.02) as load:
            load.wait(50)
            id = challenge(root, graph)
            why = until(lambda: read_shadow_abort(root), 30)
            load.wait(50)
        until(lambda: not process(running))
        until(lambda: running.metric("nbs_shadow_aborted") == 1)
        assert running.get("/readyz")[0] == 200
        assert (count(running, "failed") if how != "slow" else running.metric("nbs_shadow_seconds_count")) > 5
        told = {
            "nan": "gave no finite number",
            "raises": "the model failed",
            "slow": "shadow_p99_ms in settings.ini is",
        }
        assert why.bundle == id
        assert told[how] in why.reason
        assert told[how] in shadow_status(root)
        assert f"the challenger {id[:12]} is stopped" in running.said()
        time.sleep(2.5)
        assert not process(running), "it stays so"
    assert not load.lost
    assert {(status, answer["model"]) for status, answer in load.answers} == {(200, champion_path(root).name[:12])}


@pytest.mark.parametrize("how", ["truncated", "manifest", "gone", "pickle"])
def test_a_corrupt_challenger_is_stopped_and_can_be_put_right(tmp_path: Path, how: str) -> None:
    root = make_project(tmp_path / "p")
    id = challenge(root)
    shutil.copytree(root / "served" / id, tmp_path / "whole")
    damaged(root / "served" / id, how)
    with service(root, SERVE_SHADOW="1") as running:
        why = until(lambda: read_shadow_abort(root), 20)
        assert why.bundle == id
        assert running.ask(ROW)[0] == 200
        assert count(running) == 0
        assert start_shadow(tmp_path / "whole", root) == id
        started(running)
        assert read_shadow_abort(root) is None
    assert not (root / "payload").exists()


def test_a_challenger_that_takes_its_process_along_ends_nothing_else(tmp_path: Path) -> None:
    root = make_project(tmp_path / "p")
    with service(root, SERVE_SHADOW="1", **PATIENT) as running:
        challenge(root)
        started(running)
        (one,) = process(running)
        with Load(running.port, 2, pause_s=0.01) as load:
            load.wait(20)
            os.kill(one.pid, signal.SIGSEGV)
            why = until(lambda: read_shadow_abort(root))
            load.wait(100)
        assert why.reason == "its process ended with SIGSEGV."
        assert running.metric("nbs_worker_restarts_total") == 0
        until(lambda: running.metric("nbs_shadow_aborted") == 1)
    assert not load.lost
    assert {status for status, _ in load.answers} == {200}


def test_a_graph_that_never_ends_is_ended_by_the_system(tmp_path: Path) -> None:
    root = make_project(tmp_path / "p")
    challenge(root, graph_of(3600.0))
    code = "import nbs_lib.serve.shadow as s; s._MAX_LOAD_CPU_S = 1; s._run_shadow()"
    done = subprocess.run([sys.executable, "-c", code], cwd=root, env=os.environ | {"PYTHONPATH": os.getcwd()})
    assert done.returncode == -signal.SIGPROF


def test_a_disk_that_takes_nothing_costs_answers_but_not_the_challenger(tmp_path: Path) -> None:
    root = make_project(tmp_path / "p")
    with service(root, SERVE_SHADOW="1") as running:
        challenge(root)
        started(running)
        folder = shadow_folder(root / "served/log")
        shutil.rmtree(folder)
        folder.write_text("a file where the folder was")
        until(lambda: running.ask(ROW)[0] == 200 and count(running, "lost") > 0)
        folder.unlink()
        id = running.ask(ROW)[1]["id"]
        until(lambda: id in {*log_of(root)["id"]})
        assert "can't be written" in running.said()
        assert read_shadow_abort(root) is None


# Turns


@pytest.fixture
def logged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[ShadowScorer, Callable[[int], None]]]:
    """A challenger without a service, and what logs so many requests of two rows each."""
    monkeypatch.setenv(METRICS_DIR_ENV, str(tmp_path))
    root = make_project(tmp_path / "p")
    bundle = load_served_model(champion_path(root), root)
    shadow = ShadowScorer(bundle, ServeSettings(shadow=1.0), WorkerMetrics(), root)
    for result in ("scored", "dropped"):  # the library keeps counts by process where it was imported for several
        shadow.worker_metrics._child("nbs_shadow_rows", (result,))._value.set(0)
    records = AnswerRecorder(
        shadow.worker_metrics, "9f3c2a17", PredictionLog(root / "served/log", "9f3c2a17", flush_s=60)
    )
    body = json.dumps([ROW, ROW]).encode()

    def ask(requests: int) -> None:
        answers, now_us = bundle.predictor.answer(bundle.request_parser.read(body) * requests), time.time_ns() // 1000
        records.ids(now_us, 2 * requests)
        records.write(bundle, answers, now_us, records.next - 2 * requests, [body] * requests, [2] * requests)
        assert records.log
        records.log._flush()

    yield shadow, ask
    assert records.log
    records.log.close()


def counted(shadow: ShadowScorer, result: str) -> float:
    return shadow.worker_metrics._child("nbs_shadow_rows", (result,))._value.get()


def test_what_there_is_no_time_for_is_dropped_and_counted(
    logged: tuple[ShadowScorer, Callable[[int], None]], monkeypatch: pytest.MonkeyPatch
) -> None:
    shadow, ask = logged
    ask(3)
    shadow.run_once()
    assert (counted(shadow, "scored"), counted(shadow, "dropped")) == (6, 0)
    monkeypatch.setattr("nbs_lib.serve.shadow.MAX_TURN_S", 0.0)
    ask(4)
    shadow.run_once()
    assert (counted(shadow, "scored"), counted(shadow, "dropped")) == (6, 8)
    monkeypatch.setattr("nbs_lib.serve.shadow.MAX_TURN_S", 0.25)
    monkeypatch.setattr(shadow, "_ask", lambda body, rows: time.sleep(0.1))
    ask(20)  # one entry: what is left of it is dropped too
    shadow.run_once()
    assert 40 - 2 * 4 <= counted(shadow, "dropped") - 8 <= 40 - 2 * 2


def test_the_system_s_patience_is_for_a_request_and_not_for_a_life(
    logged: tuple[ShadowScorer, Callable[[int], None]],
) -> None:
    shadow, ask = logged
    ask(1)
    shadow.run_once()
    assert counted(shadow, "scored") == 2
    assert signal.getitimer(signal.ITIMER_PROF) == (0.0, 0.0)


def test_a_log_that_was_put_away_begins_anew(logged: tuple[ShadowScorer, Callable[[int], None]]) -> None:
    shadow, ask = logged
    ask(1)
    ask(1)
    shadow.run_once()
    shutil.rmtree(shadow.log_tail.folder)
    ask(1)  # its first row has a number that was seen before
    shadow.run_once()
    ask(1)
    shadow.run_once()
    assert counted(shadow, "scored") == 6


# Days that are over


def test_days_that_are_compacted_are_still_pairs(
    tmp_path: Path,
    served: tuple[Path, str, str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder, ladder, _ = served
    make_ladder_bundle(folder / "other", takes_over=True)
    other = Bundle.open(folder / "other").id
    (folder / "other").rename(folder / other)
    log = folder / "log"
    filled(log, entry(ladder, 0, 10), entry(ladder, 10), entry(ladder, 11, time_us=THEN + DAY))
    mine = [each._replace(bodies=[], sizes=[], flags=None) for each in (entry(other, 5, 3), entry(other, 10))]
    filled(shadow_folder(log), *(each._replace(output=each.margin) for each in mine))
    store_feedback(log, id_of(6), "yes")
    before = load_shadow_pairs(log, served=folder)
    assert before["id"].tolist() == [id_of(n) for n in (5, 6, 7, 10)]
    assert before["label"].tolist() == [None, "yes", None, None]
    np.testing.assert_array_equal(side_predictions(before, "challenger"), np.array([5, 6, 7, 10], "<f4"))
    np.testing.assert_array_equal(
        side_predictions(before, "champion"), np.array([5, 6, 7, 10], "<f4") / np.float32(1000)
    )
    monkeypatch.chdir(tmp_path)
    compact_log("served/log")
    assert f"4 predictions in served/log/shadow/{utc_day(THEN)}.parquet" in capsys.readouterr().out
    assert not list(log.rglob("2*.sqlite"))
    store_feedback(log, id_of(10), "no")
    after = load_shadow_pairs(log, served=folder)
    assert after["label"].tolist() == [None, "yes", None, "no"]
    assert after.drop(columns="label").equals(before.drop(columns="label"))
    assert logged_models(log) == {ladder, other}
    assert json.loads(before.to_json())["block"]["0"] == THEN // DAY


def test_more_than_two_classes(tmp_path: Path) -> None:
    root = make_project(tmp_path / "p", classes=["a", "b", "c"])
    with service(root, SERVE_SHADOW="1") as running:
        challenge(root, classes=["a", "b", "c"])
        started(running)
        said = running.ask(ROW)[1]
        until(lambda: said["id"] in {*log_of(root)["id"]})
    found = log_of(root)
    assert side_predictions(found, "challenger").shape == (len(found), 3)
    row = found[found["id"] == said["id"]]
    assert side_predictions(row, "champion")[0].tolist() == pytest.approx(list(said["probabilities"].values()))
