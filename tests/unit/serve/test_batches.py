"""What waits together is answered alike, whatever went wrong a moment ago, and what is kept still holds."""

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from nbs_lib.bundle.served_model import ServedModel, load_served_model
from nbs_lib.core.settings import ServeSettings
from nbs_lib.serve.batching import SLOW_SHARE, RequestBatcher
from nbs_lib.serve.log.audit import AnswerRecorder
from nbs_lib.serve.metrics import METRICS_DIR_ENV, WorkerMetrics
from nbs_lib.testing.example_project import WHO_VIEW, write_example_project

ANN, BAD = b'{"width": 1, "person": "ann"}', b'{"width": "wide"}'


class Worker:
    "A worker without a server."

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv(METRICS_DIR_ENV, str(folder))
        self.root = folder
        self.served = self.load()
        self.worker_metrics = WorkerMetrics()
        self.records = AnswerRecorder(self.worker_metrics, "9f3c2a17")
        self.batcher = RequestBatcher(ServeSettings(), self.worker_metrics, self.records, lambda: self.served)

    def load(self, **schema: Any) -> ServedModel:
        return load_served_model(self.root / "served" / write_example_project(self.root, **schema), self.root)

    async def ask(self, *bodies: bytes) -> list[dict[str, Any]]:
        answers = await asyncio.gather(*(self.batcher.ask(body, time.perf_counter()) for body in bodies))
        return [json.loads(body) | {"status": status} for status, body in answers]

    def delay(self, seconds: float) -> None:
        "Let the model take so long from now on."
        served, answer = self.served, type(self.served.predictor).answer
        served.predictor.answer = lambda *about: (time.sleep(seconds), answer(served.predictor, *about))[1]  # type: ignore[method-assign]


@pytest.fixture
def worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Worker:
    return Worker(tmp_path, monkeypatch)


def run(test: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(test())  # type: ignore[arg-type]


@pytest.mark.parametrize("body", [ANN, BAD], ids=["answered before", "unreadable"])
def test_a_slow_model_is_asked_again_after_a_turn_without_rows(worker: Worker, body: bytes) -> None:
    async def test() -> None:
        for _ in range(3):
            await worker.ask(ANN)
        worker.delay(2 * SLOW_SHARE * worker.batcher.deadline)
        await worker.ask(b'{"width": 2}')
        assert worker.batcher.thread.slow_model is worker.served
        worker.delay(0)
        await worker.ask(body)
        (answer,) = await worker.ask(b'{"width": 3, "person": "ann"}')
        assert (answer["status"], answer["rung"]) == (200, "model")

    run(test)


def test_who_waits_for_a_thread_is_asked_for_as_soon_as_it_is_free(worker: Worker) -> None:
    async def test() -> None:
        worker.batcher.thread.slow_model, worker.batcher.deadline = (
            worker.served,
            60.0,
        )  # who is late is looked for every 3 s
        started = time.perf_counter()
        await worker.ask(*(b'{"width": %d}' % k for k in range(40)), *(b'{"width": %d.5}' % k for k in range(40)))
        assert time.perf_counter() - started < 2

    run(test)


def test_who_waited_to_the_deadline_is_sent_away_unread(worker: Worker) -> None:
    async def test() -> None:
        came = time.perf_counter() - 2 * worker.batcher.deadline
        status, body = await worker.batcher.ask(b"it is not read", came)
        assert status == 429
        assert b"it waited 500 ms and was not read: come again in a second." in body
        assert worker.batcher.worker_metrics._counted["nbs_failures", "late"] == 1

    run(test)


def test_who_comes_again_does_not_make_the_others_wait(worker: Worker) -> None:
    async def test() -> None:
        worker.delay(0.005)  # for the one in fifty that is new: the others leave the queue with it
        for k in range(50):
            await worker.ask(*[ANN] * 49, b'{"width": %d}' % k)
        assert worker.batcher.pace.seconds_per_byte * len(ANN) < 0.005 / 5

    run(test)


def test_a_late_answer_of_the_old_champion_is_not_kept_for_the_new_one(worker: Worker) -> None:
    async def test() -> None:
        for _ in range(2):
            await worker.ask(ANN)
        old, new = worker.served, worker.load(threshold=0.4)
        worker.batcher.cache.set_key("", None)
        worker.batcher.thread.slow_model = old
        worker.delay(0.1)
        asked = asyncio.create_task(worker.ask(ANN))
        await asyncio.sleep(0.05)
        worker.served = new
        await worker.ask(b'{"width": 9}')
        (late,) = await asked
        assert late["model"] == old.short_id
        assert [(await worker.ask(ANN))[0]["model"] for _ in range(2)] == [new.short_id] * 2

    run(test)


def test_what_is_kept_is_counted_under_its_own_views(worker: Worker) -> None:
    async def test() -> None:
        (kept,) = [worker.served.predictor.answer(worker.served.request_parser.read(ANN))]
        other = worker.load(views=[WHO_VIEW, WHO_VIEW | {"name": "also", "columns": []}])
        answers = other.predictor.answer(other.request_parser.read(ANN))
        worker.records.count(other, answers, 1)
        worker.records.count_cached(worker.served, kept)
        worker.records.flush()
        counted = {key: by for key, by in worker.worker_metrics._counted.items() if key[0] == "nbs_view_rows"}
        assert counted["nbs_view_rows", "who", "present"] == 2

    run(test)
