"""What waits together is answered alike, whatever went wrong a moment ago, and what is kept still holds."""

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from nbs_lib.bundle.loaded import Served, load
from nbs_lib.core.settings import Serve
from nbs_lib.serve.batching import SLOW, Batches
from nbs_lib.serve.log.audit import Records
from nbs_lib.serve.metrics import FOLDER, Meters
from nbs_lib.testing.example_project import WHO, example_project

ANN, BAD = b'{"width": 1, "person": "ann"}', b'{"width": "wide"}'


class Worker:
    "A worker without a server."

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv(FOLDER, str(folder))
        self.root = folder
        self.served = self.load()
        self.meters = Meters()
        self.records = Records(self.meters, "9f3c2a17")
        self.batches = Batches(Serve(), self.meters, self.records, lambda: self.served)

    def load(self, **schema: Any) -> Served:
        return load(self.root / "served" / example_project(self.root, **schema), self.root)

    async def ask(self, *bodies: bytes) -> list[dict[str, Any]]:
        answers = await asyncio.gather(*(self.batches.ask(body, time.perf_counter()) for body in bodies))
        return [json.loads(body) | {"status": status} for status, body in answers]

    def delay(self, seconds: float) -> None:
        "Let the model take so long from now on."
        served, answer = self.served, type(self.served.answering).answer
        served.answering.answer = lambda *about: (time.sleep(seconds), answer(served.answering, *about))[1]  # type: ignore[method-assign]


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
        worker.delay(2 * SLOW * worker.batches.deadline)
        await worker.ask(b'{"width": 2}')
        assert worker.batches._slow is worker.served
        worker.delay(0)
        await worker.ask(body)
        (answer,) = await worker.ask(b'{"width": 3, "person": "ann"}')
        assert (answer["status"], answer["rung"]) == (200, "model")

    run(test)


def test_who_waits_for_a_thread_is_asked_for_as_soon_as_it_is_free(worker: Worker) -> None:
    async def test() -> None:
        worker.batches._slow, worker.batches.deadline = worker.served, 60.0  # who is late is looked for every 3 s
        started = time.perf_counter()
        await worker.ask(*(b'{"width": %d}' % k for k in range(40)), *(b'{"width": %d.5}' % k for k in range(40)))
        assert time.perf_counter() - started < 2

    run(test)


def test_who_comes_again_does_not_make_the_others_wait(worker: Worker) -> None:
    async def test() -> None:
        for k in range(200):
            await worker.ask(*[ANN] * 49, b'{"width": %d}' % k)
        assert worker.batches._pace * len(ANN) * 300 < 0.02  # seconds that three hundred would wait

    run(test)


def test_a_late_answer_of_the_old_champion_is_not_kept_for_the_new_one(worker: Worker) -> None:
    async def test() -> None:
        for _ in range(2):
            await worker.ask(ANN)
        old, new = worker.served, worker.load(threshold=0.4)
        worker.batches.cache.hold("", None)
        worker.batches._slow = old
        worker.delay(0.1)
        asked = asyncio.create_task(worker.ask(ANN))
        await asyncio.sleep(0.05)
        worker.served = new
        await worker.ask(b'{"width": 9}')
        (late,) = await asked
        assert late["model"] == old.short
        assert [(await worker.ask(ANN))[0]["model"] for _ in range(2)] == [new.short] * 2

    run(test)


def test_what_is_kept_is_counted_under_its_own_views(worker: Worker) -> None:
    async def test() -> None:
        (kept,) = [worker.served.answering.answer(worker.served.payload.read(ANN))]
        other = worker.load(views=[WHO, WHO | {"name": "also", "columns": []}])
        answers = other.answering.answer(other.payload.read(ANN))
        worker.records.count(other, answers, 1)
        worker.records.count_again(worker.served, kept)
        worker.records.flush()
        counted = {key: by for key, by in worker.meters._counted.items() if key[0] == "nbs_view_rows"}
        assert counted["nbs_view_rows", "who", "present"] == 2

    run(test)
