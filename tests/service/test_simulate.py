"""Past rows as traffic: the rows that training did not see, in their order, and labels as late as they were known."""

import asyncio
import contextlib
import itertools
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from helpers.bundles import make_bundle, make_ladder_bundle, store_of
from helpers.services import service as serve
from helpers.waiting import until

from nbs_lib.bundle.bundle import Bundle
from nbs_lib.core.errors import DataError, UserError
from nbs_lib.core.files import write_table
from nbs_lib.core.server_process import ServerProcess, free_port, http_get
from nbs_lib.data.roles import Roles
from nbs_lib.registry.pointers import champion_path
from nbs_lib.serve.clients.load_client import LoadClient, ScheduledRequest
from nbs_lib.serve.clients.simulate import load_unseen_rows, schedule_requests, select_days, simulate_traffic
from nbs_lib.serve.log.reader import logged_days, read_day

START = pd.Timestamp("2020-02-01", tz="UTC")
COLUMNS = {"made": {"role": "timestamp", "why": ""}, "sold": {"role": "target", "why": ""}}


def rows() -> pd.DataFrame:
    "One row an hour for ten days, in no order; every tenth has no label, and some values are missing."
    n = pd.Series(range(240))
    table = pd.DataFrame({"number": n.astype(str), "width": (n / 8).where(n % 7 > 0), "maker": "m1", "place": 7.0})
    table["maker"] = table["maker"].where(n % 5 > 0)
    table["made"] = START + pd.to_timedelta(n, unit="h")
    table["note"] = "later"
    table["sold"] = pd.Series(["yes", "no"] * 120).where(n % 10 > 0)
    return table.sample(frac=1, random_state=0)


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    "A project with a champion and a source that goes on after data.as_of."
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("NBS_TOKEN", raising=False)
    rows().to_csv("rows.csv", index=False)
    Path("params.yaml").write_text("data: {source: rows.csv, target: sold, timestamp: made}\n")
    Path("dvc.yaml").write_text("stages: {}\n")
    Path("settings.ini").write_text("[serve]\npoll_s = 1\n")
    Path("data/contract").mkdir(parents=True)
    roles = Roles("rows.csv", "sold", "binary", ["no", "yes"], "made", horizon="2h", label_delay="1d", columns=COLUMNS)
    roles.as_of = "2020-02-06"
    roles.save("data/contract/roles.yaml")
    make_ladder_bundle(Path("served/new"))
    id = Bundle.open("served/new").id
    Path("served/new").rename(f"served/{id}")
    Path("served/CURRENT").write_text(id)
    store_of(tmp_path)
    return tmp_path


class Listener:
    "A service that answers everything and writes down what it was asked, and when."

    def __init__(self, hang_up: int = 0, status: int = 200) -> None:
        self.asked: list[tuple[float, str, dict[str, Any]]] = []
        self.hang_up, self.status, self.heads = hang_up, status, set()
        self.loop = asyncio.new_event_loop()
        self.server = self.loop.run_until_complete(asyncio.start_server(self.serve, "127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.server.sockets[0].getsockname()[1]}"
        self.thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self.thread.start()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            for count in itertools.count(1):
                await self.answer(reader, writer)
                if count == self.hang_up:
                    break
        writer.close()

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        lines = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        self.heads |= set(lines[1:])
        length = next(int(line.split(": ")[1]) for line in lines if line.startswith("Content-Length"))
        body, path = json.loads(await reader.readexactly(length)), lines[0].split()[1]
        self.asked.append((time.perf_counter(), path, body))
        answer = {"/predict": {"id": f"id-{len(self.asked)}", "rung": "model"}, "/feedback": {"result": "new"}}
        content = json.dumps(answer[path]).encode()
        writer.write(b"HTTP/1.1 %d X\r\ncontent-length: %d\r\n\r\n%s" % (self.status, len(content), content))

    def __enter__(self) -> "Listener":
        return self

    def __exit__(self, *_: object) -> None:
        async def end() -> None:
            self.server.close()
            await asyncio.sleep(0.05)  # what its clients closed ends

        asyncio.run_coroutine_threadsafe(end(), self.loop).result()
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join()
        self.loop.close()

    def of(self, path: str) -> list[tuple[float, dict[str, Any]]]:
        return [(at, body) for at, asked, body in self.asked if asked == path]


@pytest.fixture
def listener() -> Iterator[Listener]:
    with Listener() as made:
        yield made


def call(at: float, label: Any = None, told: float = 0.0) -> ScheduledRequest:
    return ScheduledRequest(at, lambda: json.dumps({"at": at}).encode(), told, label)


# Traffic


def test_rows_go_in_order_at_the_pace_of_the_data(listener: Listener) -> None:
    outcome = LoadClient([call(10.0 * k) for k in range(11)], listener.url, speed=100, connections=1).run()
    times, bodies = zip(*listener.of("/predict"), strict=True)
    assert [body["at"] for body in bodies] == [10.0 * k for k in range(11)]
    assert 0.9 < times[-1] - times[0] < 1.5
    assert (outcome.status, outcome.rung) == ({"200": 11}, {"model": 11})


def test_a_label_follows_when_it_is_known_and_not_before_its_row_is_written(listener: Listener) -> None:
    made = [call(0, "yes", told=300), call(1, "no", told=301), call(2, None), call(400)]
    outcome = LoadClient(made, listener.url, speed=100, connections=4).run()
    labels, asked = listener.of("/feedback"), listener.of("/predict")
    assert {body["label"] for _, body in labels} == {"yes", "no"}
    assert {body["id"] for _, body in labels} == {"id-1", "id-2"}
    assert min(at for at, _ in labels) - asked[0][0] >= 2.9
    assert outcome.feedback == {"new": 2}
    start = time.perf_counter()
    LoadClient([call(0, "yes", told=0)], listener.url).run()
    assert time.perf_counter() - start >= 2


def test_a_connection_that_is_closed_is_opened_again() -> None:
    with Listener(hang_up=3) as listener:
        outcome = LoadClient([call(k) for k in range(50)], listener.url, connections=2).run()
    assert outcome.status == {"200": 50}
    assert len(listener.of("/predict")) == 50


def test_what_is_refused_is_counted_and_has_no_label() -> None:
    with Listener(status=429) as listener:
        outcome = LoadClient([call(k, "yes", k) for k in range(5)], listener.url).run()
    assert (outcome.status, outcome.feedback, outcome.latencies_s) == ({"429": 5}, {}, [])


def test_a_thousand_requests_a_second_and_a_token(listener: Listener) -> None:
    outcome = LoadClient([call(k) for k in range(2000)], listener.url, token="hush").run()
    assert outcome.status == {"200": 2000}
    assert 2000 / outcome.duration_s > 500  # on a busy machine; 2,600 on a free one
    assert "Authorization: Bearer hush" in listener.heads


def test_no_service_is_one_sentence() -> None:
    with pytest.raises(UserError, match=r"no service answers at http://127\.0\.0\.1:"):
        LoadClient([call(0)], f"http://127.0.0.1:{free_port()}").run()


# Rows


def test_only_rows_after_as_of_in_the_order_of_their_time(shop: Path) -> None:
    roles, bundle = Roles.load("data/contract/roles.yaml"), Bundle.open(next(shop.glob("served/*/model.onnx")).parent)
    found = load_unseen_rows(rows(), roles)
    assert found["number"].tolist() == [str(n) for n in range(121, 240)]
    made = schedule_requests(select_days(found, "made", "2020-02-07", "2020-02-08"), bundle, roles)
    assert len(made) == 48
    first = json.loads(made[3].body())
    assert first == {"width": None, "maker": "m1", "made": "2020-02-07T03:00:00Z", "place": 7}
    asked = (START + pd.Timedelta("6d1h")).timestamp()
    assert (made[3].at, made[3].label_at, made[3].label) == (asked, asked + 26 * 3600, "no")
    assert [each.label for each in made[3:8]] == ["no", "yes", "no", None, "no"]
    assert {json.loads(each.body())["maker"] for each in made} == {"m1", None}
    assert all(each.label is None for each in schedule_requests(found, bundle, roles, tell=False))


def test_test_rows_where_the_source_ends(shop: Path) -> None:
    roles = Roles.load("data/contract/roles.yaml")
    roles.as_of = "2020-03-01"
    snapshot = rows().sort_values("made").reset_index(drop=True)
    write_table(snapshot, "data/snapshot.parquet")
    parts = pd.DataFrame({"_split": ["train"] * 200 + ["test"] * 40, "_row": range(240)})
    write_table(parts, "data/training_set.parquet")
    assert load_unseen_rows(rows(), roles)["number"].tolist() == [str(n) for n in range(200, 240)]
    roles.timestamp = None
    assert len(load_unseen_rows(rows(), roles)) == 40


def test_a_source_without_a_column_that_the_champion_needs(shop: Path) -> None:
    roles, bundle = Roles.load("data/contract/roles.yaml"), Bundle.open(next(shop.glob("served/*/model.onnx")).parent)
    with pytest.raises(DataError, match=r"has no column 'maker'.*is data\.source still its training source"):
        schedule_requests(load_unseen_rows(rows().drop(columns="maker"), roles), bundle, roles)


def test_a_table_without_times(tmp_path: Path) -> None:
    make_bundle(tmp_path / "bundle")
    bundle = Bundle.open(tmp_path / "bundle")
    table = pd.DataFrame({"width": [1.0, 2.0], "new": [True, None], "kind": ["a", None], "made": [START, pd.NaT]})
    made = schedule_requests(
        table.assign(sold=["yes", "never seen"]), bundle, Roles("x", "sold", "binary", ["no", "yes"])
    )
    assert [json.loads(each.body())["new"] for each in made] == [True, None]
    assert [(each.at, each.label) for each in made] == [(0.0, "yes"), (1.0, None)]


# All of it


@pytest.fixture
def service(shop: Path) -> Iterator[ServerProcess]:
    with serve(shop) as running:
        yield running.server


def test_a_log_that_can_t_be_written_costs_no_answer(shop: Path, service: ServerProcess) -> None:
    log = shop / "served/log"
    log.write_text("a file where the folder would be")

    def counted() -> dict[str, float]:
        lines = http_get(f"{service.url}/metrics")[1].decode().splitlines()
        found = [line.split('result="')[1].split('"} ') for line in lines if line.startswith("nbs_log_rows_total{")]
        return {result: float(count) for result, count in found if float(count)}

    assert simulate_traffic(rows=30, speed=0, url=service.url, tell=False).status == {"200": 30}
    until(lambda: counted() == {"queued": 30, "lost": 30})
    log.unlink()
    assert simulate_traffic(rows=30, speed=0, url=service.url).feedback == {"new": 27}
    assert counted() == {"queued": 60, "lost": 30, "written": 30}


def test_past_rows_reach_the_service_its_log_and_its_feedback(
    shop: Path, service: ServerProcess, capsys: pytest.CaptureFixture[str]
) -> None:
    outcome = simulate_traffic(rows=60, speed=0, url=service.url)
    service.stop()
    assert outcome.status == {"200": 60}
    assert outcome.feedback == {"new": 54}
    assert "60 answered" in capsys.readouterr().out
    table = pd.concat([read_day("served/log", day).to_pandas() for day in logged_days("served/log")])
    sent = rows().sort_values("made").iloc[121:181]
    assert sorted(table["made"]) == sent["made"].tolist()
    merged = table.set_index("made").loc[sent["made"]]
    assert merged["_label"].fillna("-").tolist() == sent["sold"].fillna("-").tolist()
    assert merged["width"].fillna(-1).tolist() == sent["width"].fillna(-1).tolist()
    assert set(merged["_rung"]) == {*outcome.rung}
    bundle = Bundle.open(champion_path())
    asked = merged[merged["_rung"].isin(["model", "partial"])].reset_index()
    again = bundle.predict(asked[[name for names in bundle.names.values() for name in names]])
    assert again["output"].tobytes() == asked["_probability"].to_numpy("float32").tobytes()
