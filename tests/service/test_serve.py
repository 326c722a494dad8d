"""The service answers as the ladder does, whatever fails, and never loses a request that it took."""

import contextlib
import json
import os
import pickle
import resource
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
import timeit
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import ROOT
from helpers.bundles import INPUTS, MARGINS, REFUSE, ROWS, SCHEMA, SENT, make_bundle, manifest, store_of
from helpers.services import PATIENT, ROW, Load, Running, client, make_project, point_to, promote, service
from helpers.waiting import until

from nbs_lib.bundle.bundle import Bundle, inference_session, run_graph, write_bundle
from nbs_lib.bundle.fallback import FallbackLadder
from nbs_lib.bundle.predictor import Predictor
from nbs_lib.bundle.request import RequestParser
from nbs_lib.core.errors import StoreError
from nbs_lib.core.server_process import free_port, running_server
from nbs_lib.features.online.base import StoreReadResult
from nbs_lib.features.online.lookup import FAILURE_THRESHOLD, RETRY_AFTER_S, Lookup, open_lookup
from nbs_lib.registry.model_registry import deploy_bundle
from nbs_lib.registry.pointers import champion_path
from nbs_lib.serve.protocol import _HeaderMeter

MAKERS, PLACES = ["m1", "old", "none", "", None], [7, 8, None]
MANY = [ROW | {"maker": maker, "place": place} for maker in MAKERS for place in PLACES]
MANY += [ROW | SENT, ROW | {"width": None}, {"width": None, "maker": None, "made": 31_536_000}]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_project(tmp_path_factory.mktemp("service"))


@pytest.fixture(scope="module")
def running(root: Path) -> Iterator[Running]:
    with service(root) as found:
        yield found


def ladder_of(root: Path) -> FallbackLadder:
    bundle = Bundle.open(champion_path(root))
    return FallbackLadder(bundle, open_lookup(bundle.views, root))


# What is answered


def test_it_answers_as_the_ladder_does(root: Path, running: Running) -> None:
    expected = ladder_of(root).answer(MANY)
    status, together = running.ask(MANY)
    alone = [running.ask(row)[1] for row in MANY]
    assert status == 200
    for k, (row, single) in enumerate(zip(together, alone, strict=True)):
        assert np.float32(row["probability"]) == expected["output"][k]
        assert (row["class"], row["rung"]) == (expected["class"][k], expected["rung"][k])
        assert row["history"] == expected["history"][k]
        assert row["degraded"] == (row["rung"] != "model")
        assert {**row, "id": ""} == {**single, "id": ""}
    assert len({row["id"] for row in [*together, *alone]}) == 2 * len(MANY)


@pytest.mark.parametrize("size", [1, 3, 16])
def test_the_fast_way_reads_as_the_ladder_does(root: Path, size: int) -> None:
    bundle = Bundle.open(champion_path(root))
    payload, lookup = RequestParser(bundle), open_lookup(bundle.views, root)
    answering, rows = Predictor(bundle, payload, lookup), payload.read(json.dumps(MANY).encode())
    expected = FallbackLadder(bundle, lookup).answer(MANY)
    for _ in range(2):  # from the store, then from what was kept
        found = [answering.answer(rows[start : start + size]) for start in range(0, len(rows), size)]
        np.testing.assert_equal(np.concatenate([each.margin for each in found])[:, 0], expected["margin"])
        assert [rung for each in found for rung in each.rungs] == expected["rung"].tolist()
        np.testing.assert_equal([days for each in found for days in each.history], expected["history"])


def test_requests_at_once_are_answered_like_single_ones(running: Running) -> None:
    alone = [{**running.ask(row)[1], "id": ""} for row in MANY]
    wrong = ROW | {"width": "wide"}

    def ask(k: int) -> Any:
        with client(running.port) as kept:
            return [kept.ask(wrong if k % 5 == 0 else MANY[(k + n) % len(MANY)]) for n in range(40)]

    with ThreadPoolExecutor(16) as pool:
        for k, said in enumerate(pool.map(ask, range(16))):
            for n, (status, answer) in enumerate(said):
                if k % 5 == 0:
                    assert (status, answer["field"]) == (422, "width")
                else:
                    assert {**answer, "id": ""} == alone[(k + n) % len(MANY)]
    body = json.dumps(ROW).encode()
    request = b"POST /predict HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b"
    sockets = [socket.create_connection(("127.0.0.1", running.port)) for _ in range(64)]
    for each in sockets:
        each.sendall(request % (len(body), body))
    for each in sockets:
        assert each.recv(4096).startswith(b"HTTP/1.1 200")
        each.close()
    rows = json.dumps([ROW | {"width": k} for k in range(3)]).encode()  # nobody asked this before
    assert running.ask(rows)[0] == 200
    assert running.metric("nbs_batch_rows_sum") > running.metric("nbs_batch_rows_count")


def test_what_training_did_not_see_is_flagged_and_counted(tmp_path: Path) -> None:
    inputs = [each | {"nulls": 0.0} for each in INPUTS]
    inputs[0] |= {"min": -5.0, "max": 5.0}
    inputs[2] |= {"n_levels": 3}  # too many for the schema: the rare ones stand in the reference alone
    seen = {"inputs": {"kind": {"levels": {"a": 0.9, "b": 0.1}, "others": ["rare"]}}}
    root = make_project(tmp_path / "p")
    made = tmp_path / "bundle"
    make_bundle(made, schema=SCHEMA | {"inputs": inputs}, reference=seen)
    deploy_bundle(made, root)
    row = {"width": 1, "new": True, "kind": "a", "made": "1970-01-02"}
    with service(root) as running:
        assert all("flags" not in running.ask(row | {"kind": kind})[1] for kind in ("a", "rare"))
        odd = running.ask(row | {"width": 9, "kind": "z"})[1]
        assert odd["flags"] == ["width is outside of what training saw (-5 to 5)", "training saw no such kind"]
        assert "kind is unknown" in running.ask(row | {"kind": None})[1]["flags"][0]
        before = len(running.get("/metrics")[1].splitlines())
        for k in range(1000):
            running.ask([row | {"kind": f"new {k}"}] * 2)
        assert running.metric("nbs_unknown_category_total", column="kind") == 2001
        assert running.metric("nbs_missing_total", column="kind") == 1
        assert running.metric("nbs_out_of_range_total", column="width") == 1
        assert len(running.get("/metrics")[1].splitlines()) <= before + 2  # no label comes from a request
        alone = [running.ask({k: v for k, v in r.items() if k in row})[1]["probability"] for r in ROWS]
        np.testing.assert_allclose(alone, 1 / (1 + np.exp(-np.array(MARGINS))), rtol=1e-6)


def test_more_than_two_classes(tmp_path: Path) -> None:
    root = make_project(tmp_path / "p", classes=["a", "b", "c"])
    with service(root) as running:
        status, answer = running.ask(ROW)
        assert status == 200
        assert sum(answer["probabilities"].values()) == pytest.approx(1)
        assert answer["class"] == max(answer["probabilities"], key=answer["probabilities"].get)


# What is kept


def test_an_answer_is_kept_until_the_store_is_filled_anew(tmp_path: Path) -> None:
    root = make_project(tmp_path / "p")
    with service(root) as running:
        first, *again = (running.ask(ROW)[1] for _ in range(3))  # the second is kept, the third given again
        assert all({**first, "id": ""} == {**each, "id": ""} for each in again)
        assert len({first["id"], *(each["id"] for each in again)}) == 3
        assert running.metric("nbs_cache_total", result="hit") == 1
        assert running.metric("nbs_cache_total", result="miss") == 2
        store_of(root, "0" * 12)  # another version: the views of this bundle are as of before
        (root / "served/features.sqlite").unlink()
        assert running.ask(ROW)[1]["rung"] == "partial"
        store_of(root)
        assert {**running.ask(ROW)[1], "id": ""} == {**first, "id": ""}
    with service(root, SERVE_CACHE="0") as running:
        assert {**running.ask(ROW)[1], "id": ""} == {**running.ask(ROW)[1], "id": ""}
        assert running.metric("nbs_cache_total") == 0


def test_an_answer_given_while_something_failed_is_not_given_again(tmp_path: Path) -> None:
    root = make_project(tmp_path / "p")
    store = root / "served/features.sqlite"
    with service(root) as running:
        full = store.read_bytes()
        store.write_bytes(b"no database")
        os.utime(store, ns=(1, 1))
        assert [running.ask(ROW)[1]["rung"] for _ in range(3)] == ["partial"] * 3
        assert running.metric("nbs_cache_total", result="hit") == 0
        time.sleep(RETRY_AFTER_S)
        store.write_bytes(full)
        until(lambda: running.ask(ROW)[1]["rung"] == "model")


def test_large_bodies_are_not_kept(tmp_path: Path) -> None:
    root = make_project(tmp_path / "p")
    with service(root, SERVE_LOG="") as running, client(running.port) as kept:
        (worker,) = running.workers()
        before = worker.memory_info().rss
        for k in range(100):
            for _ in range(2):
                assert kept.ask(json.dumps(ROW | {"width": k}).encode() + b" " * 1_000_000)[0] == 200
        grown = (worker.memory_info().rss - before) / 1e6
    print(f"100 bodies of 1 MB: {grown:.0f} MB more")
    assert grown < 50


# What fails


def test_a_name_that_is_half_a_character_leaves_nobody_waiting(running: Running) -> None:
    with client(running.port, 5) as kept:
        assert kept.ask(b'{"\\ud800": NaN}')[0] == 422
        assert kept.ask(ROW)[0] == 200


def test_requests_sent_at_once_on_one_connection_are_answered_in_turn(running: Running) -> None:
    def told(path: str, body: bytes = b"") -> bytes:
        head = f"{'POST' if body else 'GET'} {path} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
        return f"{head}content-length: {len(body)}\r\n\r\n".encode() + body

    rows = [json.dumps(ROW | {"width": k}).encode() for k in range(20)]
    parts = [told("/predict", row) + (told("/livez") if k % 3 == 0 else b"") for k, row in enumerate(rows)]
    expected = [running.ask(row)[1]["probability"] for row in rows]
    with socket.create_connection(("127.0.0.1", running.port)) as kept:
        kept.sendall(b"".join(parts)[:1000])
        time.sleep(0.05)
        kept.sendall(b"".join(parts)[1000:])
        kept.settimeout(5)
        got = b""
        while got.count(b"HTTP/1.1 200") < 27 or not got.endswith(b"}"):
            got += kept.recv(65_536)
    said = [json.loads(b"{" + each.split(b"{", 1)[1]) for each in got.split(b"HTTP/1.1 200 OK")[1:]]
    assert [each["probability"] for each in said if "probability" in each] == expected
    assert [k for k, each in enumerate(said) if "alive" in each] == [k + k // 3 + 1 for k in range(0, 20, 3)]


def test_a_body_that_breaks_off_is_not_answered(running: Running) -> None:
    before = running.metric("nbs_rows_total")
    body = json.dumps(ROW | {"width": 1234}).encode()
    with socket.create_connection(("127.0.0.1", running.port)) as half:
        half.sendall(b"POST /predict HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n")
        half.sendall(b"transfer-encoding: chunked\r\n\r\n%x\r\n%b\r\n" % (len(body), body))
        time.sleep(0.1)
    time.sleep(0.2)
    assert running.metric("nbs_rows_total") == before


def test_a_store_that_hangs_costs_little_and_is_left_alone(tmp_path: Path) -> None:
    root = make_project(tmp_path / "p")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"redis://127.0.0.1:{silent.getsockname()[1]}/0"
        with service(root, STORE_URL=url) as running, client(running.port) as kept:
            took = []
            for _ in range(60):
                start = time.perf_counter()
                status, answer = kept.ask(ROW)
                took.append(time.perf_counter() - start)
                assert (status, answer["rung"], answer["degraded"]) == (200, "partial", True)
            assert sum(each > 0.04 for each in took) <= FAILURE_THRESHOLD + 3  # then it is asked once a second
            assert running.metric("nbs_failures_total", what="maker") >= 60
    print(f"store silent: worst {max(took) * 1e3:.0f} ms, median {np.median(took) * 1e3:.1f} ms")


def test_a_store_that_recovers_is_asked_again(root: Path) -> None:
    class Failing:
        calls, well = 0, False

        def read(self, keys: Any) -> StoreReadResult:
            self.calls += 1
            if not self.well:
                raise StoreError("it is down.")
            return StoreReadResult(1, {}, [None] * len(keys))

    bundle, store = Bundle.open(champion_path(root)), Failing()
    lookup = Lookup(bundle.views, store)  # type: ignore[arg-type]
    for _ in range(20):
        assert "failed" in lookup.lookup({"maker": ["m1"]}).status["maker"]
    assert store.calls == FAILURE_THRESHOLD
    store.well = True
    time.sleep(RETRY_AFTER_S + 0.05)
    lookup.lookup({"maker": ["m1"]})
    assert lookup.lookup({"maker": ["m1"]}).now_us == 1


def damaged(folder: Path, how: str) -> None:
    "Damage a bundle."
    model = folder / "model.onnx"
    data = model.read_bytes()
    if how == "truncated":
        model.write_bytes(data[: len(data) // 2])
    elif how == "flipped":
        model.write_bytes(data[:100] + bytes([data[100] ^ 1]) + data[101:])
    elif how == "empty":
        model.write_bytes(b"")
    elif how == "manifest":
        (folder / "manifest.json").write_text(json.dumps(manifest(folder) | {"id": "0" * 64}))
    elif how == "pickle":

        class Payloaded:
            def __reduce__(self) -> Any:
                return (os.system, (f"touch {folder.parent.parent}/payload",))

        model.write_bytes(pickle.dumps(Payloaded()))
    else:
        shutil.rmtree(folder)


HOW = ["truncated", "flipped", "empty", "manifest", "pickle", "gone"]


def test_a_bad_champion_is_refused_and_the_old_one_goes_on(tmp_path: Path) -> None:
    root = make_project(tmp_path / "p")
    good = champion_path(root).name
    with service(root) as running, Load(running.port, 2, pause_s=0.005) as load:
        for number, how in enumerate(HOW, 1):
            made = make_project(tmp_path / how, takes_over=True, metrics={"number": number})
            bad = champion_path(made).name
            shutil.copytree(champion_path(made), root / "served" / bad)
            damaged(root / "served" / bad, how)
            point_to(root, bad)
            until(lambda n=number: running.metric("nbs_model_load_failures_total") == n)
            until(lambda: json.loads(running.get("/model")[1])["failure"])
            assert running.get("/readyz")[0] == 200
            point_to(root, good)
            until(lambda: not json.loads(running.get("/model")[1])["failure"])
        load.wait(10)
    assert not (root / "payload").exists()
    assert {(status, answer["model"]) for status, answer in load.answers} == {(200, good[:12])}
    assert not load.lost


@pytest.mark.parametrize("how", ["truncated", "gone"])
def test_without_a_good_champion_it_is_alive_but_not_ready(tmp_path: Path, how: str) -> None:
    root = make_project(tmp_path / "p")
    damaged(champion_path(root), how)
    with service(root, ready="/livez") as running:
        status, why = running.get("/readyz")
        assert status == 503
        assert "model.onnx was changed" in why or "not beside it" in why
        assert running.ask(ROW)[0] == 503
        assert running.get("/metrics")[0] == 200
        promote(root, takes_over=True)
        until(lambda: running.get("/readyz")[0] == 200)
        assert running.ask(ROW)[0] == 200


def test_without_a_champion_it_may_answer_from_the_prior(tmp_path: Path) -> None:
    root = make_project(tmp_path / "p")
    shutil.rmtree(root / "served")
    (root / "data/contract").mkdir(parents=True)
    prior = {"task": "binary", "classes": ["no", "yes"], "threshold": 0.5, "prior": {"output": 0.3, "margin": -0.85}}
    (root / "data/contract/prior.json").write_text(json.dumps(prior))
    with service(root, ready="/livez", SERVE_WITHOUT_CHAMPION="prior") as running:
        assert running.get("/readyz")[0] == 503
        status, answer = running.ask(ROW)
        assert (status, answer["rung"], answer["degraded"], answer["model"]) == (200, "prior", True, None)
        assert (answer["class"], answer["probability"]) == ("no", 0.3)
        assert len(running.ask([ROW, {}])[1]) == 2
        assert running.ask(b"nothing")[0] == 400
        store_of(root)
        promote(root)
        until(lambda: running.ask(ROW)[1]["rung"] == "model")


def test_twenty_champions_under_load_lose_nothing_and_mix_nothing(tmp_path: Path) -> None:
    root = make_project(tmp_path / "p")
    ids = [champion_path(root).name, promote(root, takes_over=True)]
    rows = [ROW] * 7
    with service(root, **PATIENT) as running, Load(running.port, 6, rows) as load:
        for turn in range(20):
            point_to(root, ids[turn % 2])
            until(lambda t=turn: running.metric("nbs_model_info", model=ids[t % 2][:12]) == 1)
            load.wait(20)
    assert not load.lost
    assert {status for status, _ in load.answers} == {200}
    versions = [{row["model"] for row in answer} for _, answer in load.answers]
    assert all(len(each) == 1 for each in versions)
    assert set().union(*versions) == {id[:12] for id in ids}
    print(f"20 reloads: {len(load.answers)} requests, 0 lost")


def slow_graph(turns: int) -> bytes:
    "A model that adds nothing so often."
    from onnx import TensorProto, helper

    one = helper.make_tensor_value_info("sum", TensorProto.FLOAT, [None, 1])
    flags = [helper.make_tensor_value_info(name, TensorProto.BOOL, []) for name in ("on", "still_on")]
    number = helper.make_tensor_value_info("number", TensorProto.INT64, [])
    more = helper.make_tensor_value_info("more", TensorProto.FLOAT, [None, 1])
    steps = [helper.make_node("Identity", ["on"], ["still_on"]), helper.make_node("Add", ["sum", "zero"], ["more"])]
    body = helper.make_graph(steps, "turn", [number, flags[0], one], [flags[1], more])
    nodes = [
        helper.make_node("Loop", ["turns", "", "numeric"], ["margin"], body=body),
        helper.make_node("Sigmoid", ["margin"], ["output"]),
    ]
    numeric = helper.make_tensor_value_info("numeric", TensorProto.FLOAT, [None, 1])
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [None, 1]) for name in ("margin", "output")]
    constants = [
        helper.make_tensor("turns", TensorProto.INT64, [], [turns]),
        helper.make_tensor("zero", TensorProto.FLOAT, [1], [0.0]),
    ]
    made = helper.make_graph(nodes, "slow", [numeric], ends, constants)
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=9).SerializeToString()


def graph_of(seconds: float) -> bytes:
    "A model that takes about so long on this machine, as busy as it is."
    row, few = {"numeric": np.ones((1, 1), np.float32)}, 5000
    trial = inference_session(slow_graph(few))
    took = min(timeit.repeat(lambda: run_graph(trial, row), number=1, repeat=5))
    return slow_graph(int(few * seconds / took))


def test_a_slow_model_gets_a_thread_and_the_deadline_is_kept(tmp_path: Path) -> None:
    root = make_project(tmp_path / "p")
    schema = SCHEMA | {"inputs": [INPUTS[0]], "others": []}
    rest = {"metrics": {}, "fallback": {"prior": {"output": 0.3, "margin": -0.85}}, "reference": {}, "lineage": {}}
    write_bundle(tmp_path / "slow", graph_of(0.08), schema=schema, **rest)
    deploy_bundle(tmp_path / "slow", root)
    with service(root, SERVE_DEADLINE_MS="50", SERVE_CACHE="0") as running:
        running.ask({"width": 1})  # it turns out to be slow
        with Load(running.port, 6, {"width": 2}) as load:
            load.wait(12)
            worst = 0.0
            for _ in range(20):
                start = time.perf_counter()
                assert running.get("/livez")[0] == 200
                worst = max(worst, time.perf_counter() - start)
            load.wait(12)
        assert running.metric("nbs_failures_total", what="deadline") > 0
    told = Counter((status, answer.get("rung")) for status, answer in load.answers)
    print(f"slow model: {dict(told)}, /livez at worst {worst * 1e3:.0f} ms")
    assert not load.lost
    assert (200, "prior") in told
    assert {status for status, _ in told} <= {200, 429}
    assert worst < 0.05 * 5  # a loaded machine is several times slower


# Workers


def test_a_killed_worker_is_replaced_and_loses_only_what_it_had(tmp_path: Path) -> None:
    root, clients = make_project(tmp_path / "p"), 8
    with service(root, SERVE_WORKERS="2", **PATIENT) as running:
        until(lambda: running.metric("nbs_workers") == 2)
        with Load(running.port, clients) as load:
            load.wait(100)
            victim = running.workers()[0]
            counted = running.metric("nbs_rows_total")
            start = time.monotonic()
            victim.kill()
            until(lambda: len([w for w in running.workers() if w.pid != victim.pid and w.is_running()]) == 2)
            until(lambda: running.metric("nbs_workers") == 2)
            took = time.monotonic() - start
            load.wait(100)
        assert len(load.lost) + load.late <= clients
        assert took < 5
        assert {status for status, _ in load.answers} == {200}
        assert running.metric("nbs_worker_restarts_total") == 1
        assert running.metric("nbs_rows_total") >= counted  # what the dead one counted stays counted
        print(f"kill -9: {len(load.lost)} of {len(load.answers)} requests lost, replaced after {took:.2f} s")


def test_sigterm_loses_nothing_of_kept_connections(tmp_path: Path) -> None:
    root = make_project(tmp_path / "p")
    with service(root, **PATIENT) as running, Load(running.port, 8) as load:
        load.wait(200)
        running.server.process.terminate()
        assert running.server.process.wait(15) == 0
        assert not running.server.alive_pids()
    assert not load.lost
    assert load.late <= 1  # which came between the last look at the port and its end
    assert {status for status, _ in load.answers} == {200}
    print(f"SIGTERM: {len(load.answers)} requests answered, 0 lost, {load.late} too late")


def test_a_port_that_is_taken_is_one_sentence(root: Path, running: Running) -> None:
    env = os.environ | {"NBS_SERVE_PORT": str(running.port), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "nbs_lib.cli", "serve"]
    done = subprocess.run(command, cwd=root, env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert f"127.0.0.1:{running.port} can't be opened (Address already in use)" in done.stderr


@pytest.mark.parametrize(
    ("setting", "value", "message"),
    [
        ("PORT", "99999", "99999 can't be opened"),
        ("WITHOUT_CHAMPION", "maybe", "must be refuse or prior, but is 'maybe'"),
        ("WITHOUT_CHAMPION", "prior", "prior.json is missing: `make run` writes it"),
    ],
)
def test_a_setting_that_would_end_every_worker_is_one_sentence(
    root: Path, setting: str, value: str, message: str
) -> None:
    env = os.environ | {f"NBS_SERVE_{setting}": value, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "nbs_lib.cli", "serve"]
    done = subprocess.run(command, cwd=root, env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_workers_do_not_outlive_their_parent(tmp_path: Path) -> None:
    root = make_project(tmp_path / "p")
    with service(root, SERVE_WORKERS="2") as running:
        until(lambda: running.metric("nbs_workers") == 2)
        workers = running.workers()
        running.server.process.kill()
        until(lambda: not any(worker.is_running() for worker in workers))


def test_all_workers_killed_at_once_are_replaced(tmp_path: Path) -> None:
    root = make_project(tmp_path / "p")
    with service(root, SERVE_WORKERS="5") as running:
        until(lambda: running.metric("nbs_workers") == 5, 30)
        for worker in running.workers():
            worker.kill()
        until(lambda: running.metric("nbs_workers") == 5 and running.metric("nbs_worker_restarts_total") == 5, 30)
        assert running.ask(ROW)[0] == 200


def test_workers_that_all_end_end_the_service(tmp_path: Path) -> None:
    root = make_project(tmp_path / "p")
    env = os.environ | {"NBS_SERVE_PORT": str(free_port()), "PYTHONPATH": str(ROOT)}
    program = "import sys, nbs_lib.serve.supervisor as w; sys.executable = '/bin/false'; w.run_service('.')"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=root, env=env, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 1
    assert "5 workers ended within 10 s" in done.stderr


def test_connections_are_shared_evenly(tmp_path: Path) -> None:
    root, clients = make_project(tmp_path / "p"), 16
    with service(root, SERVE_WORKERS="2") as running:
        until(lambda: running.metric("nbs_workers") == 2)
        least = []
        for _ in range(15):  # the kernel wakes both, and whoever is first could take all
            with contextlib.ExitStack() as stack:
                made = [stack.enter_context(client(running.port)) for _ in range(clients)]
                for each in made:
                    each.connection.connect()
                assert all(each.ask(ROW)[0] == 200 for each in made)
                counts = [
                    sum(c.status == "ESTABLISHED" for c in each.net_connections("tcp")) for each in running.workers()
                ]
            assert sum(counts) == clients
            least.append(min(counts))
        assert sorted(least)[7] >= 3, least  # on a busy system one of the two runs late


# Clients


@contextlib.contextmanager
def lone_worker(folder: Path, change: str) -> Iterator[Running]:
    "A worker without a parent, some of whose limits are others."
    program = f"import socket, sys; import nbs_lib.serve.supervisor as w, nbs_lib.serve.protocol as p; {change}\n"
    program += "w._run_worker(socket.create_server(('127.0.0.1', int(sys.argv[1]))))"
    root, port = make_project(folder / "p"), free_port()
    env = os.environ | {"PYTHONPATH": str(ROOT), "PROMETHEUS_MULTIPROC_DIR": str(folder)}
    with running_server([sys.executable, "-c", program, str(port)], port, cwd=root, environment=env) as server:
        yield Running(server, port)


def test_only_who_is_idle_for_long_is_closed(tmp_path: Path) -> None:
    with (
        lone_worker(tmp_path, "w._KEEP_ALIVE_S = 1") as running,
        client(running.port) as busy,
        client(running.port) as idle,
    ):
        assert idle.ask(ROW)[0] == 200
        began = time.monotonic()
        idle.connection.sock.settimeout(0.01)
        while time.monotonic() < began + 2.5:
            assert busy.ask(ROW)[0] == busy.get("/livez")[0] == 200
            time.sleep(0.2)
        assert busy.connection.sock is not None
        assert idle.connection.sock.recv(10) == b""


def refusal(port: int, *parts: bytes) -> tuple[bytes, bytes]:
    """Send a request in parts, as far as the service takes them: the status line and the body of its answer."""
    with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            for part in parts:
                connection.sendall(part)
        answer = b""
        with contextlib.suppress(ConnectionResetError):
            while more := connection.recv(65_536):
                answer += more
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"connection: close" in head
    return head.partition(b"\r\n")[0], body


@pytest.mark.parametrize("path", [b"/predict", b"/livez"])
def test_headers_are_limited_in_number_and_size(tmp_path: Path, path: bytes) -> None:
    start, end = b"POST " + path + b" HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n", b"\r\n"
    many = b"".join(b"x-%d: y\r\n" % n for n in range(20_000))
    large = b"x: " + b"y" * 70_000 + b"\r\n"
    medium = b"x: " + b"y" * 30_000 + b"\r\n"
    chunked = (
        b"POST "
        + path
        + b" HTTP/1.1\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n1\r\n{\r\n0\r\n"
    )
    url = b"POST " + path + b"?" + b"z" * 70_000 + b" HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n"
    with lone_worker(tmp_path, "") as running:
        before = running.server.rss()
        for parts in (
            (start, many, end),
            (start + large + end,),
            (start, medium, medium, medium, end),
            (url + end,),
            (start, *[many] * 100, end),  # two million headers
            (start, b"x: ", *[b"y" * 2**20] * 80, b"\r\n", end),  # one of 80 MB
            (chunked, *[many] * 10, end),  # trailers
            (chunked, b"x: ", *[b"y" * 2**20] * 20),
        ):
            line, body = refusal(running.port, *parts)
            assert line == b"HTTP/1.1 431 Request Header Fields Too Large", parts[0][:40]
            assert json.loads(body) == {
                "error": "the request brings more than 100 headers or 64 kB of them.",
                "field": None,
                "row": None,
            }
        assert running.server.rss() - before < 20, "MB"
        fine = b"".join(b"x-%d: %b\r\n" % (n, b"y" * 500) for n in range(90))
        with socket.create_connection(("127.0.0.1", running.port), timeout=10) as connection:
            connection.sendall(b"\r\n")  # which a server ignores before a request (RFC 9112, 2.2)
            time.sleep(0.1)
            for _ in range(2):  # on one connection: what one brought does not count for the next
                connection.sendall(b"GET /livez HTTP/1.1\r\nhost: x\r\n" + fine + end)
                answer = b""
                while b"alive" not in answer:
                    answer += connection.recv(65_536)
                assert answer.startswith(b"HTTP/1.1 200")
        assert running.ask(ROW)[0] == 200


def test_requests_that_come_in_like_pieces_are_not_taken_for_one_header() -> None:
    """Two requests on a connection whose first reads bring the same: the second has begun anew."""
    meter = _HeaderMeter()
    for _ in range(3):
        meter.begin_request()
        meter.read_bytes, meter.body_bytes = 65_636, 65_500
        meter.count_unfinished(headers=3)
        assert not meter.is_exceeded(b"/predict", [])
        meter.count_whole()


def test_three_hundred_connections_never_finish_their_headers(tmp_path: Path) -> None:
    with lone_worker(tmp_path, "p._REQUEST_TIMEOUT_S = 4.0") as running:
        before, began = running.server.rss(), time.monotonic()
        slow = [socket.create_connection(("127.0.0.1", running.port)) for _ in range(300)]
        for connection in slow:
            connection.sendall(b"POST /predict HTTP/1.1\r\nhost: x\r\n")
        answered = 0
        while time.monotonic() < began + 2:
            for connection in slow:
                connection.sendall(b"x-%d: y\r\n" % answered)
            assert running.ask(ROW)[0] == 200
            answered += 1
            time.sleep(0.1)
        assert answered > 2
        assert running.server.rss() - before < 30, "MB"
        for connection in slow:
            connection.settimeout(10)
            with contextlib.suppress(ConnectionResetError):
                assert connection.recv(10) == b""
            connection.close()
        assert time.monotonic() < began + 12
        assert running.ask(ROW)[0] == 200


def test_half_a_request_is_not_waited_for(tmp_path: Path) -> None:
    with lone_worker(tmp_path, "p._REQUEST_TIMEOUT_S = 2.0") as running:
        port = running.port
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 20_000), hard))
        idle = [socket.create_connection(("127.0.0.1", port)) for _ in range(min(10_000, hard - 1000))]
        later = client(port)
        second = later.__enter__()
        assert second.ask(ROW)[0] == 200
        second.connection.sock.sendall(b"POST /predict HTTP/1.1\r\nhost: x\r\nconte")
        half = socket.create_connection(("127.0.0.1", port))
        half.sendall(b"POST /predict HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-le")
        body = socket.create_connection(("127.0.0.1", port))
        body.sendall(
            b"POST /predict HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 99\r\n\r\n{"
        )
        assert running.ask(ROW)[0] == 200
        body.settimeout(5)
        assert b" 408 " in body.recv(1000).partition(b"\r\n")[0] + b" "
        for waiting in (half, second.connection.sock, *idle):
            waiting.settimeout(10)
            assert waiting.recv(10) == b""
            waiting.close()
        assert running.ask(ROW)[0] == 200
        print(f"{len(idle)} idle connections closed, others answered")
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_too_many_at_once_are_sent_away_and_health_is_not(tmp_path: Path) -> None:
    root = make_project(tmp_path / "p")
    rows, worst = [ROW | {"width": k} for k in range(900)], 0.0
    with service(root, SERVE_MAX_WAITING="2", SERVE_CACHE="0") as running, Load(running.port, 24, rows) as load:
        load.wait(60)
        for _ in range(30):
            start = time.perf_counter()
            assert running.get("/livez")[0] == 200
            worst = max(worst, time.perf_counter() - start)
        assert running.get("/metrics")[0] == 200
        with client(running.port) as kept:

            def sent_away() -> bool:
                return kept.ask(rows)[0] == 429

            until(sent_away)
            assert kept.headers["retry-after"] == "1"
    told = Counter(status for status, _ in load.answers)
    print(f"overload: {dict(told)}, /livez at worst {worst * 1e3:.0f} ms")
    assert set(told) == {200, 429}
    assert not load.lost


def test_the_secret_is_asked_for_everything_but_health(tmp_path: Path) -> None:
    root = make_project(tmp_path / "p")
    with service(root, TOKEN="s3cret") as running, client(running.port) as kept:
        for path in ("/", "/model", "/metrics", "/docs", "/openapi.json", "/nowhere"):
            assert kept.get(path)[0] == 401, path
            assert kept.get(path, authorization="Bearer s3cre")[0] == 401
            assert kept.get(path, authorization="Bearer s3cret")[0] in (200, 404)
        assert kept.ask(ROW)[0] == 401
        assert kept.headers["www-authenticate"] == "Bearer"
        assert kept.ask(ROW, authorization="Bearer s3cret")[0] == 200
        assert kept.get("/livez")[0] == kept.get("/readyz")[0] == 200


# What is written down


def test_every_answer_is_in_the_log_and_takes_its_label(tmp_path: Path) -> None:
    root = make_project(tmp_path / "p")
    with service(root) as running:
        answers = running.ask(MANY)[1]
        id = answers[3]["id"]
        assert running.ask({"id": id, "label": "yes"}, "/feedback") == (200, {"result": "new"})
        assert running.ask({"id": id, "label": "yes"}, "/feedback") == (200, {"result": "known"})
        assert running.ask({"id": id, "label": "no"}, "/feedback")[0] == 409
        assert running.ask({"id": f"{id}ff", "label": "no"}, "/feedback")[0] == 404
        assert running.ask({"id": id, "label": "perhaps"}, "/feedback")[0] == 422
        until(lambda: running.metric("nbs_log_rows_total", result="written") == len(MANY))
        assert running.metric("nbs_log_rows_total", result="queued") == len(MANY)


def test_sigterm_writes_the_log_to_its_end_and_a_kill_says_what_is_lost(tmp_path: Path) -> None:
    root = make_project(tmp_path / "p")
    with service(root) as running:
        running.ask(MANY)
        running.server.process.send_signal(signal.SIGTERM)
        running.server.process.wait(15)
    (day,) = (root / "served/log").glob("*.sqlite")
    with sqlite3.connect(day) as db:
        assert db.execute("SELECT sum(count) FROM batches").fetchone()[0] == len(MANY)
    with service(root) as running:
        until(lambda: running.metric("nbs_log_rows_total", result="written") == 0)
        running.ask(MANY)
        time.sleep(0.1)
        running.workers()[0].kill()
        until(lambda: running.workers() and running.get("/readyz")[0] == 200)
        queued, written = (running.metric("nbs_log_rows_total", result=each) for each in ("queued", "written"))
        assert queued - written in (0, len(MANY))


# What it is made of


def test_it_imports_little() -> None:
    program = f"{REFUSE}import nbs_lib.serve.asgi, nbs_lib.serve.api, nbs_lib.serve.supervisor, uvicorn"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr


def test_memory_stays_below_its_bound(running: Running) -> None:
    threads = [threading.Thread(target=running.ask, args=([ROW | {"width": k} for k in range(500)],)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (worker,) = running.workers()
    used = worker.memory_info().rss / 1e6
    print(f"{used:.0f} MB a worker")
    assert used < 150
