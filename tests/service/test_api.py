"""What the service answers beside predictions: its model, labels, health, metrics, and its own description."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers.bundles import LINEAGE, SCHEMA, make_bundle, manifest
from helpers.services import ROW, SCRIPT, TOLD, Running, make_empty, make_project, promote
from helpers.services import service as serve
from helpers.waiting import until


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with serve(make_project(tmp_path_factory.mktemp("a project"), TOLD)) as running:
        yield running


def test_health_and_the_model(service: Running) -> None:
    assert service.call("/livez")[:2] == (200, {"alive": True})
    assert service.call("/readyz")[:2] == (200, {"ready": True})
    status, told, _ = service.call("/model")
    assert status == 200
    assert service.call("/predict", ROW)[1]["model"] == told["id"][:12]


def test_metrics_are_as_prometheus_reads_them(service: Running) -> None:
    status, text, headers = service.call("/metrics")
    assert status == 200
    assert headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert "# TYPE nbs_requests_total counter" in text


def test_a_label_comes_late_and_twice(service: Running) -> None:
    id = service.call("/predict", ROW)[1]["id"]
    told = {"id": id, "label": "yes"}
    assert service.call("/feedback", told)[:2] == (200, {"result": "new"})
    assert service.call("/feedback", told)[:2] == (200, {"result": "known"})
    status, said, _ = service.call("/feedback", told | {"label": "no"})
    assert (status, said["field"]) == (409, "label")
    status, said, _ = service.call("/feedback", told | {"id": id[:-1] + "ffff"})
    assert (status, said["field"]) == (404, "id")


@pytest.mark.parametrize("path", ["/", "/form", "/docs", "/openapi.json", "/model", "/livez", "/metrics", "/nowhere"])
def test_every_answer_is_taken_as_what_it_is(path: str, service: Running) -> None:
    status, _, headers = service.call(path)
    assert status == (404 if path == "/nowhere" else 200)
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"
    assert "frame-ancestors 'none'" in headers["content-security-policy"]
    assert not any(name.startswith("access-control") for name in headers)
    assert headers["content-type"].partition(";")[0] in ("application/json", "text/html", "text/plain")


def test_another_site_gets_no_leave(service: Running) -> None:
    asked = {"origin": "https://elsewhere.example", "access_control_request_method": "POST"}
    status, _, headers = service.call("/predict", method="OPTIONS", **asked)
    assert status == 405
    assert not any(name.startswith("access-control") for name in headers)


def test_head_is_get_without_the_body(service: Running) -> None:
    for path in ("/", "/livez", "/model"):
        status, body, headers = service.call(path, method="HEAD")
        assert (status, body) == (200, "")
        assert int(headers["content-length"]) > 10


def test_what_is_not_taken_is_said(service: Running) -> None:
    status, said, headers = service.call("/model", {})
    assert (status, headers["allow"]) == (405, "GET")
    assert set(said) == {"error", "field", "row"}


def test_the_example_can_be_sent(service: Running) -> None:
    body = service.call("/openapi.json")[1]["paths"]["/predict"]["post"]["requestBody"]["content"]["application/json"]
    assert set(body["examples"]) == {"one row", "a list of rows"}
    for each in body["examples"].values():
        status, said, _ = service.call("/predict", each["value"])
        assert status == 200, said
        assert "flags" not in (said if isinstance(said, dict) else said[0])


def test_fields_are_described_from_the_schema(service: Running) -> None:
    row = service.call("/openapi.json")[1]["components"]["schemas"]["Row"]
    assert row["required"] == ["width", "maker", "made"]
    assert row["properties"]["width"]["description"].endswith("; in m; 0.5 to 12 in training; null: unknown")
    assert "known: m1, b" in row["properties"]["maker"]["description"]
    assert "read from the view maker" in row["properties"]["maker_days"]["description"]
    assert row["additionalProperties"] is False


def test_docs_come_from_here(service: Running) -> None:
    page = service.call("/docs")[1]
    assert "http" not in page
    for name in ("swagger-ui.css", "swagger-ui-bundle.js"):
        assert f'"./static/{name}"' in page
        assert service.call(f"/static/{name}")[0] == 200


def test_a_new_champion_is_described_as_soon_as_it_answers(tmp_path: Path) -> None:
    with serve(make_project(tmp_path, TOLD), SERVE_POLL_S="1") as running:
        before = running.call("/openapi.json")[1]["components"]["schemas"]
        assert "probability" in before["Answer"]["properties"]
        id = promote(tmp_path, TOLD, classes=["a", "b", SCRIPT])
        until(lambda: running.call("/model")[1]["id"] == id)
        after = running.call("/openapi.json")[1]["components"]["schemas"]
        assert after["Answer"]["properties"]["class"]["enum"] == ["a", "b", SCRIPT]
        assert after["Feedback"]["properties"]["label"]["enum"] == ["a", "b", SCRIPT]
        said = running.call("/predict", ROW)[1]
        assert sum(said["probabilities"].values()) == pytest.approx(1)


def test_a_class_that_is_called_as_a_number_may_come_back_as_one(tmp_path: Path) -> None:
    with serve(make_project(tmp_path, TOLD)) as running:
        id = promote(tmp_path, TOLD, classes=["0", "1", "true"])
        until(lambda: running.call("/model")[1]["id"] == id)
        label = running.call("/openapi.json")[1]["components"]["schemas"]["Feedback"]["properties"]["label"]
        assert label["enum"] == ["0", "1", "true", 0, 1, True]
        answer = {"id": running.call("/predict", ROW)[1]["id"]}
        assert running.call("/feedback", answer | {"label": 1})[1] == {"result": "new"}
        for same in (1.0, "1"):
            assert running.call("/feedback", answer | {"label": same})[1] == {"result": "known"}
        assert running.call("/feedback", answer | {"label": True})[0] == 409, "another class"
        for other in (2, 0.5, False, "1.0", None):
            assert running.call("/feedback", answer | {"label": other})[0] == 422


def test_numbers_are_predicted_and_told(tmp_path: Path) -> None:
    schema: dict[str, Any] = SCHEMA | {"task": "regression", "classes": [], "threshold": None}
    schema["interval"] = {"coverage": 0.9, "edges": [], "low": [-1.5], "high": [2.0]}
    folder = tmp_path / "served/new"
    make_bundle(folder, schema=schema, lineage=LINEAGE)
    id = manifest(folder)["id"]
    folder.rename(tmp_path / "served" / id)
    (tmp_path / "served/CURRENT").write_text(id)
    with serve(make_empty(tmp_path)) as running:
        described = running.call("/openapi.json")[1]["components"]["schemas"]
        row = described["Row"]["example"]
        assert described["Row"]["properties"]["new"]["type"] == ["boolean", "null"]
        said = running.call("/predict", row)[1]
        assert isinstance(said["value"], float)
        assert said["interval"] == pytest.approx([said["value"] - 1.5, said["value"] + 2])
        assert described["Answer"]["properties"]["interval"]["minItems"] == 2
        assert running.call("/feedback", {"id": said["id"], "label": 2})[1] == {"result": "new"}
        assert running.call("/feedback", {"id": said["id"], "label": 2.0})[1] == {"result": "known"}
        assert running.call("/feedback", {"id": said["id"], "label": "2"})[0] == 422


def test_nothing_is_served(tmp_path: Path) -> None:
    with serve(make_empty(tmp_path), ready="/livez") as running:
        assert running.call("/livez")[0] == 200
        status, said, _ = running.call("/readyz")
        assert status == 503
        assert "make run" in said["error"]
        for path, body in (("/model", None), ("/predict", ROW), ("/feedback", {"id": "x", "label": "y"})):
            assert running.call(path, body)[0] == 503
        assert running.call("/form")[1] == {"ready": said["error"], "fields": None}
        assert "/predict" in running.call("/openapi.json")[1]["paths"]
        assert running.call("/")[0] == 200


def test_a_token_is_asked_for(tmp_path: Path) -> None:
    with serve(make_project(tmp_path, TOLD), TOKEN="secret") as running:
        assert running.call("/predict", ROW)[0] == 200
        described = json.dumps(running.call("/openapi.json")[1])
        assert '"scheme": "bearer"' in described
        running.token = ""
        assert running.call("/livez")[0] == running.call("/readyz")[0] == 200
        for path in ("/", "/form", "/model", "/metrics", "/docs", "/openapi.json", "/static/swagger-ui.css"):
            assert running.call(path)[0] == 401, path
        assert running.call("/predict", ROW)[0] == running.call("/feedback", ROW)[0] == 401
        page = running.call("/")[1]
        assert "Token" in page  # the page asks for it


def test_a_log_that_can_not_be_written_is_said_once(tmp_path: Path) -> None:
    """On standard error, by `/readyz` and to the page, until rows are written again; answers come all the same."""
    root = make_project(tmp_path / "a project", TOLD)
    log = root / "served/log"
    log.write_text("a file stands where the folder should")
    with serve(root) as running:
        assert "log" not in running.call("/readyz")[1]
        for lost in (1, 2, 3):
            assert running.call("/predict", ROW)[0] == 200
            until(lambda lost=lost: running.metric("nbs_log_rows_total", result="lost") == lost)
        said = running.call("/readyz")[1]["log"]
        assert said.startswith("answers are not logged: served/log can't be written (FileExistsError")
        assert running.call("/form")[1]["log"] == said
        assert running.said().count("answers are not logged") == 1
        log.unlink()
        assert running.call("/predict", ROW)[0] == 200
        until(lambda: running.call("/readyz")[1] == {"ready": True})
