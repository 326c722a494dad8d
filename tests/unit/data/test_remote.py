"""A table at an address is fetched once, whole, within limits; what is secret stands in no file."""

import gzip
import os
import shutil
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pandas as pd
import pytest
from conftest import ROOT
from helpers.postgres import PASSWORD, postgres_server

from nbs_lib.core.errors import DataError, ParamsError, UserError
from nbs_lib.core.files import sha256
from nbs_lib.data.reading.files import read_raw
from nbs_lib.data.resolve import resolve_roles
from nbs_lib.data.source import file_digests, main, read_source
from nbs_lib.pipeline.clone import link_source

ROWS = pd.DataFrame({"code": ["007", "7"] * 30, "n": range(60), "y": ["yes", "no", "no"] * 20})
BODY = ROWS.to_csv(index=False).encode()


class Shop(BaseHTTPRequestHandler):
    """Answers by path, and remembers what was asked and by whom."""

    asked: list[tuple[str, str | None]]
    base: str

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        self.asked.append((self.path, self.headers["Authorization"]))
        answer: dict[str, Callable[[], None]] = {
            "/t.csv": lambda: self.send(BODY),
            "/packed.csv": lambda: self.send(gzip.compress(BODY), **{"Content-Encoding": "gzip"}),
            "/download": lambda: self.send(BODY, **{"Content-Disposition": 'attachment; filename="sales.CSV"'}),
            "/export.php": lambda: self.send(BODY, **{"Content-Type": "text/csv"}),
            "/typed": lambda: self.send(BODY, **{"Content-Type": "text/csv; charset=utf-8"}),
            "/moved": lambda: self.redirect(f"{self.base}/t.csv"),
            "/loop": lambda: self.redirect(f"{self.base}/loop"),
            "/elsewhere": lambda: self.redirect("ftp://127.0.0.1/t.csv"),
            "/login.csv": lambda: self.send(b"<html>", **{"Content-Type": "text/html"}),
            "/empty.csv": lambda: self.send(b""),
            "/cut.csv": lambda: self.send(BODY[:100], length=len(BODY)),
            "/cut_chunk.csv": self.cut_chunk,
            "/large.csv": lambda: self.send(b"a,b\n" + b"1,2\n" * 500_000),
            "/endless.csv": self.drip,
        }
        answer.get(path, lambda: self.send_error(404))()

    def send(self, body: bytes, length: int | None = None, **headers: str) -> None:
        self.send_response(200)
        for name, value in {"Content-Length": str(length or len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def redirect(self, to: str) -> None:
        self.send_response(302)
        self.send_header("Location", to)
        self.end_headers()

    def cut_chunk(self) -> None:
        self.protocol_version = "HTTP/1.1"
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        self.wfile.write(b"64\r\n" + BODY[:40])
        self.close_connection = True

    def drip(self) -> None:
        self.send_response(200)
        self.end_headers()
        while True:
            self.wfile.write(b"a,b\n")
            time.sleep(0.05)

    def handle(self) -> None:
        try:
            super().handle()
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def web(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Shop]]:
    """A server on this machine; the working directory is an empty project."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("no_proxy", "*")
    shutil.copy(ROOT / "settings.ini", tmp_path)
    with ThreadingHTTPServer(("127.0.0.1", 0), Shop) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        Shop.asked, Shop.base = [], f"http://127.0.0.1:{server.server_port}"
        yield Shop
        server.shutdown()


def fetched() -> list[str]:
    """What lies in the folder of copies, temporary files included."""
    return sorted(os.listdir("data/fetched")) if Path("data/fetched").is_dir() else []


def refused(name: str, error: type[UserError] = DataError) -> str:
    with pytest.raises(error) as caught:
        read_source(name, {"target": "y"})
    sentence = str(caught.value)
    assert "\n" not in sentence
    assert fetched() == [], "nothing is left of it"
    return sentence


@pytest.mark.parametrize("path", ["t.csv", "packed.csv", "download?id=3", "typed", "export.php", "moved"])
def test_a_table_is_fetched_once(web: type[Shop], path: str, capsys: pytest.CaptureFixture[str]) -> None:
    name = f"{web.base}/{path}"
    before = file_digests(name)
    source = read_source(name, {"target": "y"})
    pd.testing.assert_frame_equal(source.table, ROWS)
    assert len(web.asked) == (2 if path == "moved" else 1)
    (copy,) = Path("data/fetched").iterdir()
    assert before == {name: sha256(copy)}
    assert f"{name} was fetched before, and is read from {copy}" in capsys.readouterr().err
    _, roles = resolve_roles(source, {"source": name, "target": "y"})
    assert roles.read["found"] | {"copy": str(copy), "sha256": sha256(copy)} == roles.read["found"]
    assert f"{name} was fetched to {copy} (delete it, to have it fetched anew)" in source.notes[0]
    copy.unlink()
    read_source(f"{name}{'&' if '?' in name else '?'}other=1", {"target": "y"})
    assert len(web.asked) == (4 if path == "moved" else 2), "another address, another file"


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("gone.csv", "the server answers 404 Not Found"),
        ("loop", "the server answers 302"),
        ("elsewhere", "it redirects from http to ftp"),
        ("login.csv", "the answer is a web page, not a table"),
        ("empty.csv", "the answer is empty"),
        ("cut.csv", f"it broke off after 100 of {len(BODY):,} bytes: try again"),
        ("cut_chunk.csv", "it broke off: try again"),
        ("large.csv", "it is larger than 1 MB: raise max_mb in [fetch] of settings.ini"),
        ("endless.csv", "it took more than 1 s: raise timeout_s in [fetch] of settings.ini"),
    ],
)
def test_what_cant_be_fetched_whole_is_refused(
    web: type[Shop], path: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NBS_FETCH_MAX_MB", "1")
    monkeypatch.setenv("NBS_FETCH_TIMEOUT_S", "1")
    told = refused(f"{web.base}/{path}")
    assert f"{web.base}/{path} can't be fetched: {said}" in told


def test_nobody_there_and_no_such_address(web: type[Shop]) -> None:
    assert "can't be fetched: " in refused("http://127.0.0.1:1/t.csv")
    assert "nothing here reads s3: write http, https, sqlite, or what SQLAlchemy knows" in refused("s3://there/t.csv")
    assert "data.source: " in refused("http://127.0.0.1:port/t.csv")


HELD = (
    "https://me:pa55word@host/t.csv",
    "postgresql+psycopg://me:pa55word@host/db",
    "postgresql+psycopg://me:pa/55?w#ord@host/db",
    "postgresql+psycopg://me@host/db?password=pa55word",
    "https://host/t.csv?access_token=pa55word&n=1",
    "https://host/t.csv?X-Amz-Signature=pa55word",
    "https://pa55word@host/t.csv",
    "mssql+pyodbc://me@host/db?PWD=pa55word",
    "mssql+pyodbc:///?odbc_connect=DRIVER%3D%7Bx%7D%3BUID%3Dme%3BPWD%3Dpa55word",
    "mssql+pyodbc:///?odbc_connect=DRIVER=x;UID=me;Password=pa55word",
)


@pytest.mark.parametrize("name", HELD)
def test_a_password_in_an_address_is_refused(web: type[Shop], name: str) -> None:
    told = refused(name, ParamsError)
    assert "holds a password: write ${NAME} in its place, and set NAME in the environment." in told
    assert "55" not in told


def test_a_password_comes_from_the_environment_and_stays_there(
    web: type[Shop], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    host = web.base.removeprefix("http://")
    name = "http://me:${SHOP_PASSWORD}@" + host + "/moved?token=${SHOP_TOKEN}"
    Path("params.yaml").write_text(f"data: {{source: '{name}', target: y, read: {{}}}}\n")
    assert "needs SHOP_PASSWORD, which is not set: `export SHOP_PASSWORD=…`" in refused(name, ParamsError)
    monkeypatch.setenv("SHOP_PASSWORD", "s3cret/@word")
    monkeypatch.setenv("SHOP_TOKEN", "t0ken&more")
    monkeypatch.setattr("nbs_lib.data.source.chdir_root", lambda: None)
    monkeypatch.setattr("nbs_lib.data.source.load_params", lambda: {"data.source": name, "data.read": {}})
    main()
    source = read_source(name, {"target": "y"})
    _, roles = resolve_roles(source, {"source": name, "target": "y"})
    roles.save("roles.yaml")
    (asked, login), (_, sent_on) = web.asked
    assert asked == "/moved?token=t0ken%26more"
    assert login == "Basic bWU6czNjcmV0L0B3b3Jk"
    assert sent_on is None, "where it redirects to, the password is not sent"
    told = capfd.readouterr()
    kept = [path.read_bytes() for path in Path().rglob("*") if path.is_file()]
    for secret in ("s3cret", "t0ken", "bWU6"):
        assert not [content for content in kept if secret.encode() in content]
        assert secret not in " ".join([*source.notes, told.out, told.err, *map(str, Path("data/fetched").iterdir())])


def test_a_clone_fetches_anew(tmp_path: Path) -> None:
    """A turn of the cycle learns from the table as it is now."""
    (tmp_path / "params.yaml").write_text("data: {source: 'https://host/**t.csv'}\n")
    link_source(tmp_path, tmp_path)
    assert sorted(tmp_path.iterdir()) == [tmp_path / "params.yaml"]


def make_database(path: Path) -> str:
    with sqlite3.connect(path) as db:
        ROWS.to_sql("sales", db, index=False)
        ROWS.head(3).to_sql("old sales", db, index=False)
    db.close()
    return f"sqlite+pysqlite:///{path}"


def test_a_database_is_asked_once_by_table_or_query(web: type[Shop], tmp_path: Path) -> None:
    name = make_database(tmp_path / "shop.db")
    assert "name what is meant as data.read: {table: …}, or {query: SELECT …}" in refused(name)
    queried = {"read": {"query": "SELECT * FROM sales WHERE n < 40 AND y LIKE '%e%'"}, "target": "y"}
    source = read_source(name, queried)
    assert source.table["n"].tolist() == [n for n in range(40) if n % 3 == 0]
    assert source.table["code"].tolist()[:2] == ["007", "7"]
    with sqlite3.connect(tmp_path / "shop.db") as db:
        db.execute("DELETE FROM sales")
    db.close()
    pd.testing.assert_frame_equal(read_source(name, queried).table, source.table)
    assert len(read_source(name, {"read": {"table": "old sales"}, "target": "y"}).table) == 3
    assert len(read_source(f"{name}?table=old sales", queried).table) == 3, "the address comes first"
    assert file_digests(name, queried["read"]) != file_digests(name, {"table": "old sales"})
    assert len(fetched()) == 3


def test_a_database_that_gives_too_much_is_stopped_on_the_way(
    web: type[Shop], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The query gives rows for as long as it is asked for more."""
    monkeypatch.setenv("NBS_FETCH_MAX_MB", "1")
    name = make_database(tmp_path / "shop.db")
    query = "WITH RECURSIVE more(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM more) SELECT n, 'yes' AS y FROM more"
    with pytest.raises(DataError, match="it is larger than 1 MB: raise max_mb"):
        read_raw(name, {"query": query})
    assert fetched() == []


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ("SELECT m FROM sales", "no such column: m"),
        ("SELECT * FROM sales WHERE n < 0", "it gives no rows"),
        ("DELETE FROM sales", "it gives no rows: write a SELECT"),
    ],
)
def test_a_query_that_gives_no_table_is_refused_and_changes_nothing(
    web: type[Shop], tmp_path: Path, query: str, said: str
) -> None:
    name = make_database(tmp_path / "shop.db")
    with pytest.raises(DataError) as caught:
        read_raw(name, {"query": query})
    assert said in str(caught.value)
    assert fetched() == []
    assert len(read_raw(name, {"query": "SELECT * FROM sales"}).table) == 60


def test_a_driver_that_is_not_there_is_named(web: type[Shop]) -> None:
    assert "it needs the package oracledb: `uv pip install oracledb`" in refused("oracle+oracledb://me@host/db?table=t")


@pytest.fixture
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with postgres_server(tmp_path_factory.mktemp("postgres")) as address:
        yield address


def test_postgresql(web: type[Shop], postgres: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import sqlalchemy as sa

    monkeypatch.setenv("PG_WORD", "wrong")
    assert "password authentication failed for user" in refused(f"{postgres}&table=t")
    monkeypatch.setenv("PG_WORD", PASSWORD)
    query = """
        SELECT n, to_char(n, 'FM000') AS code, n * 1.25 AS price,
          CASE WHEN n = 3 THEN 'NaN' ELSE 0.5 END::numeric AS gap,
          n > 2 AS large, '2020-02-13 08:00+02'::timestamptz + n * interval '1 day' AS at, gen_random_uuid() AS id,
          CASE WHEN n % 2 = 0 THEN 'yes' ELSE 'no' END AS y, '100%' AS share
        FROM generate_series(1, 60) AS n"""
    source = read_source(postgres, {"read": {"query": query}, "target": "y"})
    first = source.table.drop(columns="id").iloc[0].to_dict()
    at = first.pop("at")
    assert first == {"n": 1, "code": "001", "price": 1.25, "gap": 0.5, "large": False, "y": "no", "share": 100.0}
    assert at == pd.Timestamp("2020-02-14T06:00Z")
    assert source.table["gap"].isna().sum() == 1
    assert source.table["id"].str.len().unique() == [36]
    engine = sa.create_engine(postgres.replace("${PG_WORD}", PASSWORD))
    with engine.begin() as connection:
        connection.execute(sa.text("CREATE SCHEMA shop; CREATE TABLE shop.sales AS SELECT 1 AS n, 'a' AS y"))
    engine.dispose()
    assert read_raw(f"{postgres}&table=shop.sales").table.to_pylist() == [{"n": 1, "y": "a"}]
    with pytest.raises(DataError, match="can't be fetched"):
        read_raw(postgres, {"query": "DELETE FROM shop.sales"})
    with pytest.raises(DataError, match="can't be fetched"):
        read_raw(postgres, {"query": "WITH gone AS (DELETE FROM shop.sales RETURNING n) SELECT * FROM gone"})
    assert read_raw(postgres, {"query": "SELECT count(*) AS n, 1 AS x FROM shop.sales"}).table["n"].to_pylist() == [1]
    monkeypatch.setenv("NBS_FETCH_TIMEOUT_S", "1")
    with pytest.raises(DataError, match=r"it took more than 1 s: raise timeout_s in \[fetch\]"):
        read_raw(postgres, {"query": "SELECT pg_sleep(30), 1 AS y"})
