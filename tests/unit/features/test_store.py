"""The online store: whole or not at all, one round trip, and nothing that goes wrong in it reaches a request."""

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import lacking
from hypothesis import given
from hypothesis import strategies as st

from nbs_lib.bench.store import NO_REDIS, bench_store, redis_server
from nbs_lib.core.errors import SettingsError, StoreError
from nbs_lib.core.settings import StoreSettings, load_settings
from nbs_lib.features.online.base import decode_values, encode_values, entity_key
from nbs_lib.features.online.lookup import FAILURE_THRESHOLD, RETRY_AFTER_S, Lookup, open_lookup, open_store
from nbs_lib.features.online.redis import RedisStore
from nbs_lib.features.online.sqlite import SqliteStore

SHOP = {"name": "shop", "version": "1", "entity": ["town", "shop"], "ttl": 60, "columns": ["sold", "kind"], "age": True}
DAY = {"name": "day", "version": "1", "entity": [], "ttl": None, "columns": ["rain"], "age": False}
NOW = 1_000_000_000
ROW = {"town": ["Köln"], "shop": [7]}
STATUSES = ("present", "expired", "missing")


@pytest.fixture(scope="module")
def redis_url() -> Iterator[str]:
    if shutil.which("redis-server") is None:
        lacking(NO_REDIS)
    with redis_server() as (url, _):
        yield url


@pytest.fixture(params=["sqlite", "redis"])
def again(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[[], Any]]:
    """Opens the same store again, as another process does."""
    if request.param == "sqlite":
        yield lambda: SqliteStore(tmp_path / "a store?" / "features.sqlite")
    else:
        url = request.getfixturevalue("redis_url")
        yield lambda: RedisStore(url, 5000, prefix=tmp_path.name)
        RedisStore(url, prefix=tmp_path.name).clear()


@pytest.fixture
def store(again: Callable[[], Any]) -> Any:
    return again()


def key(town: str, shop: Any) -> str:
    found = entity_key([town, shop])
    assert found is not None
    return found


def filled(store: Any) -> Any:
    rows = [
        (key("Köln", 7), encode_values([NOW - 30_000_000, 0.1, "ü"])),
        (key("Köln", 8), encode_values([NOW - 60_000_001, 1.0, None])),
    ]
    store.write(NOW, {"shop@1": rows, "day@1": [("", encode_values([5, 3.5]))]})
    return store


def test_present_expired_and_missing_are_three_things(store: Any) -> None:
    rows = {"town": ["Köln", "Köln", "Köln", None, "Köln"], "shop": [7.0, 8, 9, 7, float("nan")]}
    found = Lookup([SHOP, DAY], filled(store)).lookup(rows)
    assert found.status == {"shop": ["present", "expired", "missing", "missing", "missing"], "day": ["present"] * 5}
    assert found.columns == {
        "shop_age": [0.5, None, None, None, None],
        "shop_sold": [0.1, None, None, None, None],
        "shop_kind": ["ü", None, None, None, None],
        "day_rain": [3.5] * 5,
    }
    assert found.reason == {"shop": "", "day": ""}


def test_the_edges_of_time(store: Any) -> None:
    known = [("old", NOW - 60_000_000), ("older", NOW - 60_000_001), ("now", NOW), ("later", NOW + 1)]
    store.write(NOW, {"shop@1": [(name, encode_values([at, 1.0, "x"])) for name, at in known]})
    found = Lookup([SHOP | {"entity": ["shop"]}], store).lookup({"shop": [name for name, _ in known]})
    assert found.status["shop"] == ["present", "expired", "missing", "missing"], (
        "what becomes known just now is not known before"
    )
    assert found.columns["shop_age"] == [1.0, None, None, None]


def test_the_clock_on_the_wall(store: Any) -> None:
    assert Lookup([SHOP, DAY], filled(store), "wall").lookup(ROW).status == {"shop": ["expired"], "day": ["present"]}
    with pytest.raises(SettingsError, match="materialized or wall, but is 'sundial'"):
        Lookup([], store, "sundial")


def test_a_request_that_names_no_entity(store: Any) -> None:
    assert Lookup([SHOP, DAY], filled(store)).lookup({"hour": [1, 2]}).status["shop"] == ["missing"] * 2
    assert Lookup([SHOP, DAY], store).lookup({"town": [], "shop": []}).columns["shop_sold"] == []


def test_an_empty_store(store: Any) -> None:
    if isinstance(store, SqliteStore):
        store.path.parent.mkdir()
        store.path.touch()
    found = Lookup([SHOP, DAY], store).lookup(ROW)
    assert found.status == {"shop": ["failed"], "day": ["failed"]}
    assert found.reason["day"] == "the online store is empty: `nbs materialize` fills it."
    assert (store.tables(), found.columns["shop_sold"]) == ({}, [None])


def test_a_model_is_never_fed_with_another_version(store: Any) -> None:
    lookup = Lookup([SHOP | {"version": "2"}, DAY, DAY | {"name": "week"}], filled(store))
    found = lookup.lookup(ROW)
    assert found.status == {"shop": ["failed"], "day": ["present"], "week": ["failed"]}
    assert found.reason["shop"] == "view shop changed: the model was trained on 2, and the online store holds 1."
    assert found.reason["week"] == "view week is not in the online store: `nbs materialize` fills it."
    assert lookup.failures == {"shop": 1, "week": 1}


@pytest.mark.parametrize("clock", ["materialized", "wall"])
def test_a_version_that_was_left_behind_is_not_used(store: Any, clock: str) -> None:
    filled(store).write(NOW + 3_600_000_000, {"shop@2": [], "day@1": [("", encode_values([5, 4.0]))]})
    found = Lookup([SHOP, DAY], store, clock).lookup(ROW)
    assert (found.status, found.columns["shop_sold"]) == ({"shop": ["failed"], "day": ["present"]}, [None])
    then, now = "1970-01-01T00:16:40+00:00", "1970-01-01T01:16:40+00:00"
    assert found.reason["shop"].startswith(
        f"view shop@1 in the online store is as of {then}, and the store as of {now}: `nbs materialize` fills"
    )


def test_two_versions_at_once(again: Callable[[], Any]) -> None:
    filled(again()).write(NOW, {"shop@2": [(key("Köln", 7), encode_values([NOW - 1, 2.0, "new"]))]})
    old, new = (Lookup([SHOP | {"version": version}], again()).lookup(ROW) for version in ("1", "2"))
    assert (old.columns["shop_sold"], new.columns["shop_sold"]) == ([0.1], [2.0])
    again().drop(["shop@1", "not there"])
    assert set(again().tables()) == {"day@1", "shop@2"}
    assert Lookup([SHOP], again()).lookup(ROW).status["shop"] == ["failed"]


HOSTILE = [
    "a",
    "b",
    "",
    "\x1f",
    "\\",
    "\\u",
    "a\x1fb",
    "a\\",
    "Köln",
    "Ko\u0308ln",
    "'; DROP",
    '"',
    "%",
    "*",
    "a:b",
    "\0",
    "😀",
]


def test_hostile_keys_do_not_meet(again: Callable[[], Any]) -> None:
    pairs = [(town, shop) for town in HOSTILE for shop in HOSTILE]
    entries = [(key(*pair), encode_values([NOW - 1, float(i), None])) for i, pair in enumerate(pairs)]
    again().write(NOW, {"shop@1": entries})
    assert again().tables()["shop@1"]["rows"] == len(pairs)
    lookup = Lookup([SHOP], again())
    found = lookup.lookup({"town": [town for town, _ in pairs], "shop": [shop for _, shop in pairs]})
    assert found.columns["shop_sold"] == list(range(len(pairs)))
    assert lookup.lookup({"town": ["Köln\x1f"], "shop": ["\ud800"]}).status == {"shop": ["missing"]}


@given(st.lists(st.text(alphabet="a\x1f\\u", max_size=4), min_size=2, max_size=3), st.data())
def test_keys_are_as_different_as_entities(one: list[str], data: st.DataObject) -> None:
    other = data.draw(st.lists(st.text(alphabet="a\x1f\\u", max_size=4), min_size=len(one), max_size=len(one)))
    assert (entity_key(one) == entity_key(other)) == (one == other)


@given(st.lists(st.none() | st.text() | st.floats(allow_nan=False)))
def test_values_survive_to_the_bit(values: list[Any]) -> None:
    assert [(type(v), v) for v in decode_values(encode_values(values))] == [(type(v), v) for v in values]


def test_readers_see_old_or_new_never_half(again: Callable[[], Any]) -> None:
    def rows(value: float) -> list[tuple[str, bytes]]:
        return [(str(i), encode_values([NOW, value])) for i in range(300)]

    def write(value: float, writer: Any = None) -> None:
        (writer or again()).write(int(value), {"a@1": rows(value), "b@1": rows(value)})

    write(0)
    seen, problems, done = set(), [], threading.Event()

    def read() -> None:
        reader = again()
        while not done.is_set():
            reading = reader.read([("a@1", "1"), ("b@1", "299"), ("a@1", "298"), ("b@1", "0")])
            values = {decode_values(value)[1] if value else None for value in reading.values} | {reading.now_us}
            seen.update(values)
            if len(values) > 1:
                problems.append(values)

    threads = [threading.Thread(target=read) for _ in range(2)]
    for thread in threads:
        thread.start()
    for value in range(1, 26):
        write(value)
    done.set()
    for thread in threads:
        thread.join()
    assert not problems
    assert len(seen) > 2


KILLED = """
import sys, time
from nbs_lib.features.online.base import encode_values
{opened}
def rows():
    for i in range(5000):
        yield str(i), encode_values([1, 2.0])
    print("half", flush=True)
    time.sleep(60)
store.write(2, {{"shop@1": rows()}})
"""


@pytest.mark.parametrize("kind", ["sqlite", "redis"])
def test_a_killed_writer_leaves_the_old_content(kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    if kind == "sqlite":
        store: Any = SqliteStore(tmp_path / "features.sqlite")
        opened = f"from nbs_lib.features.online.sqlite import SqliteStore; store = SqliteStore({str(store.path)!r})"
    else:
        url = request.getfixturevalue("redis_url")
        store = RedisStore(url, 5000, "killed")
        opened = f"from nbs_lib.features.online.redis import RedisStore; store = RedisStore({url!r}, 5000, 'killed')"
    filled(store)
    writer = subprocess.Popen([sys.executable, "-c", KILLED.format(opened=opened)], stdout=subprocess.PIPE)
    assert writer.stdout is not None
    assert writer.stdout.readline() == b"half\n"
    writer.send_signal(signal.SIGKILL)
    writer.wait()
    assert Lookup([SHOP], store).lookup(ROW).columns["shop_sold"] == [0.1]
    store.write(NOW, {"day@1": []})  # the next writer is not in its way
    assert Lookup([SHOP], store).lookup(ROW).columns["shop_sold"] == [0.1]
    if kind == "sqlite":
        assert [path.name for path in tmp_path.iterdir()] == ["features.sqlite"]


def test_a_failed_write_leaves_the_old_content(store: Any) -> None:
    def rows() -> Iterator[tuple[str, bytes]]:
        yield "a", b"x"
        raise StoreError("no more")

    filled(store)
    with pytest.raises(StoreError, match="no more"):
        store.write(NOW + 1, {"day@1": [("", encode_values([5, 9.0]))], "shop@1": rows()})
    found = Lookup([SHOP, DAY], store).lookup(ROW)
    assert (found.now_us, found.columns["day_rain"], found.columns["shop_sold"]) == (NOW, [3.5], [0.1])


def test_a_damaged_row_fails_its_view_alone(store: Any) -> None:
    filled(store).write(NOW, {"shop@1": [(key("Köln", 7), b"\xc1"), (key("Köln", 8), encode_values([NOW, 1.0]))]})
    for shop, why in [(7, "damaged"), (8, "2 values instead of 3")]:
        found = Lookup([SHOP, DAY], store).lookup({"town": ["Köln"], "shop": [shop]})
        assert found.status == {"shop": ["failed"], "day": ["present"]}
        assert why in found.reason["shop"]


def test_many_threads_read_one_store(store: Any) -> None:
    lookup, wrong = Lookup([SHOP, DAY], filled(store)), []

    def read() -> None:
        for _ in range(100):
            if lookup.lookup(ROW).columns["shop_sold"] != [0.1]:
                wrong.append(1)

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


# The file.


def test_a_lock_on_the_file_holds_up_nobody(tmp_path: Path) -> None:
    store = filled(SqliteStore(tmp_path / "features.sqlite"))
    with sqlite3.connect(store.path, isolation_level=None) as other:
        other.execute("PRAGMA locking_mode = EXCLUSIVE")
        other.execute("BEGIN EXCLUSIVE")
        start = time.perf_counter()
        assert Lookup([SHOP], SqliteStore(store.path)).lookup(ROW).status["shop"] == ["present"]
        assert time.perf_counter() - start < 1
    other.close()


def test_a_disk_that_is_read_only(tmp_path: Path) -> None:
    store = filled(SqliteStore(tmp_path / "features.sqlite"))
    store.path.chmod(0o444)
    tmp_path.chmod(0o555)
    try:
        assert Lookup([SHOP], SqliteStore(store.path)).lookup(ROW).status["shop"] == ["present"]
    finally:
        tmp_path.chmod(0o755)


@pytest.mark.parametrize("content", [b"", b"not a database at all", None])
def test_a_file_that_goes_bad_and_comes_back(tmp_path: Path, content: bytes | None) -> None:
    store = filled(SqliteStore(tmp_path / "features.sqlite"))
    lookup, good = Lookup([SHOP], store), store.path.read_bytes()
    assert lookup.lookup(ROW).status["shop"] == ["present"]
    store.path.unlink()
    if content is not None:
        store.path.write_bytes(content)
    assert lookup.lookup(ROW).status["shop"] == ["failed"]
    store.path.write_bytes(good)
    assert lookup.lookup(ROW).status["shop"] == ["present"]


@pytest.mark.parametrize("cut", [1000, 4096, 5000, 8192])
def test_a_file_cut_short_never_crashes(tmp_path: Path, cut: int) -> None:
    store = filled(SqliteStore(tmp_path / "features.sqlite"))
    lookup = Lookup([SHOP], store)
    lookup.lookup(ROW)
    with store.path.open("rb+") as file:
        file.truncate(cut)
    assert lookup.lookup(ROW).status["shop"] == ["failed"]


def test_two_rows_with_one_key_are_refused(tmp_path: Path) -> None:
    store = filled(SqliteStore(tmp_path / "features.sqlite"))
    with pytest.raises(StoreError, match="is left as it was: two rows have one key"):
        store.write(NOW, {"shop@1": [("a", b""), ("a", b"")]})


# The server.


def test_a_server_that_is_down() -> None:
    if shutil.which("redis-server") is None:
        lacking(NO_REDIS)
    with redis_server() as (url, pid):
        lookup = Lookup([SHOP, DAY], filled(RedisStore(url)))
        assert lookup.lookup(ROW).status["shop"] == ["present"]
        os.kill(pid, signal.SIGKILL)
        start = time.perf_counter()
        found = lookup.lookup(ROW)
        assert time.perf_counter() - start < 0.5
        assert found.status == {"shop": ["failed"], "day": ["failed"]}
        assert "can't be used" in found.reason["day"]
        assert lookup.failures == {"shop": 1, "day": 1}


def test_a_server_that_hangs_for_two_seconds() -> None:
    if shutil.which("redis-server") is None:
        lacking(NO_REDIS)
    with redis_server() as (url, pid):
        lookup = Lookup([SHOP, DAY], filled(RedisStore(url, timeout_ms=50)))
        assert lookup.lookup(ROW).status["shop"] == ["present"]
        os.kill(pid, signal.SIGSTOP)
        end, spans = time.perf_counter() + 2, []
        while (start := time.perf_counter()) < end:
            found = lookup.lookup(ROW)
            spans.append(time.perf_counter() - start)
            assert found.status["shop"] == ["failed"]
            assert "gave no answer within 50 ms" in found.reason["shop"] or "it is asked again" in found.reason["shop"]
        os.kill(pid, signal.SIGCONT)
        assert max(spans) < 0.5
        assert sum(span > 0.04 for span in spans) <= FAILURE_THRESHOLD + 3  # then it is asked once a second
        time.sleep(RETRY_AFTER_S + 0.1)
        for shop, sold in [(7, 0.1), (9, None), (7, 0.1)]:  # no answer of a question asked before
            assert lookup.lookup({"town": ["Köln"], "shop": [shop]}).columns["shop_sold"] == [sold]


def test_a_connection_that_was_closed_is_opened_again(redis_url: str) -> None:
    store = RedisStore(redis_url, 5000, prefix="closed")
    lookup = Lookup([SHOP], filled(store))
    assert lookup.lookup(ROW).status["shop"] == ["present"]
    store._writer.client_kill_filter(_type="normal", skipme=True)
    assert lookup.lookup(ROW).status["shop"] == ["present"]
    store.clear()


def test_a_server_that_throws_rows_away_is_refused() -> None:
    if shutil.which("redis-server") is None:
        lacking(NO_REDIS)
    with (
        redis_server("--maxmemory", "100mb", "--maxmemory-policy", "allkeys-lru") as (url, _),
        pytest.raises(StoreError, match="set maxmemory-policy noeviction"),
    ):
        filled(RedisStore(url))


def test_rows_of_a_replaced_table_are_swept_up(redis_url: str) -> None:
    store = RedisStore(redis_url, 5000, prefix="swept")
    for now in range(3):
        store.write(now, {"shop@1": [(str(i), b"x") for i in range(2500)]})
    assert sum(1 for _ in store._writer.scan_iter(match="swept*")) == 2501
    store._writer.set("swept:of another program", "x")
    store.clear()
    assert list(store._writer.scan_iter(match="swept*")) == [b"swept:of another program"]


def test_a_large_read_is_of_one_moment_too(redis_url: str) -> None:
    store = RedisStore(redis_url, 5000, prefix="large")
    store.write(1, {"shop@1": [(str(i), str(i).encode()) for i in range(3500)]})
    values = store.read([("shop@1", str(i)) for i in range(3501)]).values
    assert list(values) == [*(str(i).encode() for i in range(3500)), None]
    store.clear()


def test_a_damaged_catalog(redis_url: str) -> None:
    store = RedisStore(redis_url, 5000, prefix="damaged")
    store._writer.set("damaged", '{"now_us": 1}')
    found = Lookup([SHOP], store).lookup(ROW)
    assert found.reason["shop"].startswith("the catalog of the online store is damaged")


def test_no_message_holds_the_password() -> None:
    store = RedisStore("redis://:hush@127.0.0.1:1/0")
    with pytest.raises(StoreError) as told:
        store.read([])
    assert "127.0.0.1:1" in str(told.value)
    assert "hush" not in str(told.value)


# Settings.


def test_the_settings_say_which_store(tmp_path: Path) -> None:
    (tmp_path / "settings.ini").write_text("[store]\nurl =\nclock = wall\n")
    lookup = open_lookup([SHOP], tmp_path)
    assert (lookup.store.path, lookup.clock) == (tmp_path / "served/features.sqlite", "wall")  # type: ignore[attr-defined]
    assert lookup.lookup(ROW).reason["shop"].endswith("features.sqlite is missing: `nbs materialize` fills it.")
    for url in ("memcached://x", "redis.example"):
        with pytest.raises(StoreError, match="must be empty or begin with redis://"):
            open_store(StoreSettings(url))


def test_two_projects_share_a_server(redis_url: str, tmp_path: Path) -> None:
    """Each has its own *now*, its own rows of the same view, and drops nothing of the other."""
    roots = [tmp_path / name for name in ("oak", "oak_2")]
    for root, later in zip(roots, (0, 10_000_000), strict=True):
        root.mkdir()
        (root / "settings.ini").write_text(f"[store]\nurl = {redis_url}\nprefix = {root.name}\ntimeout_ms = 5000\n")
        rows = [(key("Köln", 7), encode_values([NOW - 30_000_000, float(later), root.name]))]
        open_store(load_settings(root / "settings.ini").store).write(NOW + later, {"shop@1": rows})
    found = [open_lookup([SHOP], root).lookup(ROW) for root in roots]
    assert [each.now_us for each in found] == [NOW, NOW + 10_000_000]
    assert [each.columns["shop_kind"] for each in found] == [["oak"], ["oak_2"]]
    assert [each.columns["shop_age"] for each in found] == [[0.5], [40 / 60]]
    RedisStore(redis_url, 5000, "oak").clear()
    assert open_lookup([SHOP], roots[0]).lookup(ROW).status == {"shop": ["failed"]}
    assert open_lookup([SHOP], roots[1]).lookup(ROW).columns == found[1].columns


def test_without_a_prefix_the_keys_are_as_they_were(redis_url: str, tmp_path: Path) -> None:
    (tmp_path / "settings.ini").write_text(f"[store]\nurl = {redis_url}\ntimeout_ms = 5000\n")
    filled(RedisStore(redis_url, 5000, "nbs"))
    assert open_lookup([SHOP], tmp_path).lookup(ROW).status == {"shop": ["present"]}
    open_store(load_settings(tmp_path / "settings.ini").store).clear()  # type: ignore[attr-defined]
    assert RedisStore(redis_url, 5000, "nbs").tables() == {}


@pytest.mark.parametrize("prefix", ["", "a:b", "oak*", "two words"])
def test_a_prefix_that_reaches_into_other_projects_is_refused(tmp_path: Path, prefix: str) -> None:
    (tmp_path / "settings.ini").write_text(f"[store]\nprefix = {prefix}\n")
    with pytest.raises(SettingsError, match=r"settings.ini: prefix in \[store\] must be letters, digits"):
        load_settings(tmp_path / "settings.ini")


def test_production_needs_no_more_than_msgspec() -> None:
    heavy = "pandas,pyarrow,duckdb,redis,sklearn,onnxruntime,numpy"
    code = "import sys, nbs_lib.features.online.lookup as _\n"
    code += f"print([m for m in '{heavy}'.split(',') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"


def test_the_benchmark_measures_both_stores(capsys: pytest.CaptureFixture[str]) -> None:
    bench_store(requests=20, entities=50)
    printed = capsys.readouterr().out
    assert printed.count("SQLite") == 3
    assert printed.count("Redis") in (1, 3)
