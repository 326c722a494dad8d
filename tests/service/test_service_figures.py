"""How the service does, from the service itself and from a real Prometheus."""

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from helpers.services import ROW, TOLD, Running, make_project, service
from helpers.waiting import until
from test_deploy import program, prometheus

from nbs_lib.core.settings import ServeSettings
from nbs_lib.monitor.service_metrics import query_prometheus, read_service_metrics, service_url

NOWHERE = "http://127.0.0.1:9"


def asked(running: Running) -> None:
    """Sixty rows in 13 requests that are answered, and four that are refused."""
    for _ in range(10):
        assert running.ask(ROW)[0] == 200
    for _ in range(2):
        assert running.ask([ROW | {"maker": "nobody"}] * 20)[0] == 200
    assert running.ask([ROW | {"width": 99}] * 10)[0] == 200
    for wrong in (ROW | {"width": "wide"}, {"color": 1}, b"nothing"):
        assert running.ask(wrong)[0] in (400, 422)
    assert running.ask([ROW] * 1001)[0] == 413


def test_a_service_is_asked_itself(tmp_path: Path) -> None:
    root = make_project(tmp_path / "p", TOLD)
    with service(root, SERVE_WORKERS="2", TOKEN="secret") as running:
        empty = read_service_metrics(running.url, token="secret")
        assert empty["sentence"] == "Since it was started nobody asked the service for a prediction."
        refused = read_service_metrics(running.url)
        assert refused["source"] == "none"
        assert "401" in refused["sentence"]
    with service(root, SERVE_WORKERS="2") as running:
        asked(running)
        assert service_url(ServeSettings(port=running.port)) == running.url
        until(
            lambda: read_service_metrics(running.url)["requests"] == 17
        )  # a worker hands over what it counted now and then
        found = read_service_metrics(running.url, NOWHERE)
    assert found["source"] == "service"
    assert "Connection refused" in found["sentence"]
    assert "answered 60 rows, 0.0% of them without the model" in found["sentence"]
    assert (found["requests"], found["schema_violations"], found["rows"]) == (17, 4, 60)
    assert found["sheds"] == found["errors"] == found["not_logged"] == 0
    assert found["rungs"] == {"model": 20, "partial": 40}
    assert found["unknown_categories"] == {"maker": 40}
    assert found["out_of_range"] == {"width": 10}
    assert found["views"]["maker"] == {"missing": 40, "present": 20}
    assert 0 < found["p50_ms"] <= found["p99_ms"] < 2500
    json.dumps(found, allow_nan=False)


@pytest.mark.xdist_group("deploy")
def test_prometheus_still_knows_it_when_the_service_has_ended(tmp_path: Path) -> None:
    program("prometheus", "prometheus")
    root = make_project(tmp_path / "p", TOLD)
    with service(root) as running:
        port = running.port
        with prometheus(tmp_path / "prometheus", port) as url:
            until(lambda: query_prometheus(url, 1))
            asked(running)
            until(lambda: read_service_metrics(NOWHERE, url, 1).get("requests", 0) >= 17)
            time.sleep(4)  # Prometheus extends what it saw by up to a look on each side: twenty looks make that little
            running.server.process.terminate()
            running.server.process.wait(20)
            found = read_service_metrics(running.url, url, 1)
            assert found["source"] == "prometheus"
            assert found["sentence"].startswith("In the last day the service answered")
            assert found["rows"] == pytest.approx(60, rel=0.2)
            assert found["schema_violations"] == pytest.approx(4, abs=1)
            assert set(found["rungs"]) == {"model", "partial"}
            assert 0 < found["p99_ms"] < 2500
    assert read_service_metrics(running.url, url, 1)["source"] == "none"


@contextmanager
def answering(body: bytes) -> Iterator[str]:
    """A server that says one thing whatever it is asked; its URL."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("body", [b"<html>", b"[]", b"null", b'{"data": null}', b'{"data": {"result": [{}]}}', b"\xff"])
def test_who_is_no_prometheus_is_said_so(body: bytes) -> None:
    with answering(body) as url:
        found = read_service_metrics(url, url)
    assert found["source"] in ("none", "service")
    assert f"Prometheus at {url} can't be asked" in found["sentence"]
