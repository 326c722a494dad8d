"""Whatever is sent to the service: a refusal that names the field, never a failure, and the model is not asked."""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.bundles import ladder_cases
from helpers.services import ROW, TOLD, Running, make_project
from helpers.services import service as serve

EXAMPLES = 30  # that schemathesis makes for each operation, beside the edges of what is described


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    root = make_project(tmp_path_factory.mktemp("a project"), TOLD, cases=ladder_cases())
    with serve(root, SERVE_MAX_ROWS="100") as running:
        yield running


def raw(**values: str) -> bytes:
    """A row with some values written as they are."""
    parts = {name: json.dumps(value) for name, value in ROW.items()} | values
    return b"{" + ",".join(f'"{name}":{value}' for name, value in parts.items()).encode() + b"}"


REFUSED: dict[str, tuple[bytes, int, str | None]] = {  # body, status, field
    "NaN": (raw(width="NaN"), 422, "width"),
    "Infinity": (raw(width="Infinity"), 422, "width"),
    "minus Infinity": (raw(width="-Infinity"), 422, "width"),
    "1e400": (raw(width="1e400"), 422, "width"),
    "1e39": (raw(width="1e39"), 422, "width"),
    "10^39": (raw(width="1" + "0" * 39), 422, "width"),
    "beyond the calendar": (raw(made='"9999-12-31T23:59:59-12:00"'), 422, "made"),
    "text nan": (raw(width='"nan"'), 422, "width"),
    "text 1.5": (raw(width='"1.5"'), 422, "width"),
    "true for a number": (raw(width="true"), 422, "width"),
    "an object for a number": (raw(width='{"a":1}'), 422, "width"),
    "a list for a number": (raw(width="[1]"), 422, "width"),
    "a number for text": (raw(maker="1"), 422, "maker"),
    "true for text": (raw(maker="true"), 422, "maker"),
    "long text": (raw(maker=json.dumps("n" * 1001)), 422, "maker"),
    "text of 500 kB": (raw(maker=json.dumps("n" * 500_000)), 422, "maker"),
    "half a character": (raw(maker='"\\ud800"'), 422, "maker"),
    "half a character, later": (raw(maker='"a\\udc00b"'), 422, "maker"),
    "half a character as a name": (raw(**{"\\ud800": "1"}), 400, None),
    "text for a whole number": (raw(place='"7"'), 422, "place"),
    "a fraction for a whole number": (raw(place="7.5"), 422, "place"),
    "10^30 for a whole number": (raw(place="1" + "0" * 30), 422, "place"),
    "no time": (raw(made='"soon"'), 422, "made"),
    "month 13": (raw(made='"1970-13-01"'), 422, "made"),
    "true for a time": (raw(made="true"), 422, "made"),
    "a time beyond all years": (raw(made="1e30"), 422, "made"),
    "an unknown field": (raw(widht="1"), 422, "widht"),
    "a field from elsewhere": (raw(__proto__='{"a":1}'), 422, "__proto__"),
    "a missing field": (json.dumps({"maker": "m1", "made": 0}).encode(), 422, "width"),
    "a part of a view": (raw(maker_sold="1"), 422, "maker_best"),
    "a list of values": (b"[1, 2]", 422, None),
    "a list of lists": (b"[[]]", 422, None),
    "text": (b'"x"', 422, None),
    "a number": (b"1", 422, None),
    "null": (b"null", 422, None),
    "0 rows": (b"[]", 422, None),
    "an empty row": (b"{}", 422, "width"),
    "101 rows": (b"[" + b",".join([raw()] * 101) + b"]", 413, None),
    "an empty body": (b"", 400, None),
    "blanks": (b" \n", 400, None),
    "not JSON": (b"width=1&maker=m1", 400, None),
    "half of it": (raw()[:-5], 400, None),
    "more than it": (raw() + b"x", 400, None),
    "two rows in a row": (raw() + raw(), 400, None),
    "invalid UTF-8": (raw(maker='"ä"').replace("ä".encode(), b"\xff\xfe"), 400, None),
    "UTF-16": (raw().decode().encode("utf-16"), 400, None),
    "a byte order mark": (b"\xef\xbb\xbf" + raw(), 400, None),
    "an integer of 5000 digits": (raw(width="9" * 5000), 422, "width"),
    "nesting 100,000 deep": (b"[" * 100_000 + b"]" * 100_000, 422, None),
    "nesting in a field": (raw(width="[" * 100_000 + "]" * 100_000), 422, "width"),
    "objects in objects": (b'{"a":' * 50_000 + b"1" + b"}" * 50_000, 422, "a"),
    "10 MB": (raw(maker=json.dumps("n" * 10_000_000)), 413, None),
}


@pytest.mark.parametrize("name", list(REFUSED))
def test_it_is_refused_and_the_field_is_named(name: str, service: Running) -> None:
    body, wanted, field = REFUSED[name]
    before = service.metric("nbs_rows_total")
    status, said, headers = service.call("/predict", body)
    assert (status, said["field"]) == (wanted, field), said
    assert set(said) == {"error", "field", "row"}
    assert said["error"].endswith(".")
    assert len(said["error"]) < 500
    assert headers["content-type"].startswith("application/json")
    assert service.metric("nbs_rows_total") == before  # the model was not asked


def test_the_row_is_named_too(service: Running) -> None:
    before = service.metric("nbs_rows_total")
    status, said, _ = service.call("/predict", [ROW, ROW | {"width": "x"}])
    assert (status, said["field"], said["row"]) == (422, "width", 2)
    assert service.metric("nbs_rows_total") == before


def test_100_001_rows_are_too_many(service: Running) -> None:
    before = service.metric("nbs_rows_total")
    assert service.call("/predict", b"[" + b"{}," * 100_000 + b"{}]")[0] in (413, 422)
    assert service.metric("nbs_rows_total") == before


@pytest.mark.parametrize(
    "kind", ["text/plain", "application/x-www-form-urlencoded", "application/jsonp", "multipart/form-data"]
)
def test_only_json_by_its_own_account(kind: str, service: Running) -> None:
    for path in ("/predict", "/explain", "/feedback"):
        assert service.call(path, raw(), content_type=kind)[0] == 415


ANSWERED: dict[str, tuple[bytes, str]] = {  # body, what is flagged
    "an unknown level": (raw(maker='"nobody"'), "no such maker"),
    "NUL": (raw(maker='"\\u0000"'), "no such maker"),
    "right to left, and a picture": (raw(maker='"שלום \\u202e \\ud83d\\ude80"'), "no such maker"),
    "a quotation": (raw(maker='"\'; DROP TABLE maker; --"'), "no such maker"),
    "out of range": (raw(width="1000"), "width is outside"),
    "10^30": (raw(width="1" + "0" * 30), "width is outside"),
    "nothing known": (raw(width="null"), "width"),
}


@pytest.mark.parametrize("name", list(ANSWERED))
def test_what_is_only_odd_is_answered_and_flagged(name: str, service: Running) -> None:
    body, flag = ANSWERED[name]
    status, said, _ = service.call("/predict", body)
    assert status == 200, said
    assert any(flag in each for each in said["flags"]), said


def test_of_two_equal_names_the_last_counts(service: Running) -> None:
    twice = raw()[:-1] + b',"width":1000}'
    assert any("width" in each for each in service.call("/predict", twice)[1]["flags"])


def test_thousand_unknown_levels_are_one_counter(service: Running) -> None:
    for k in range(0, 1000, 100):
        assert service.call("/predict", [ROW | {"maker": f"nobody {n}"} for n in range(k, k + 100)])[0] == 200
    text = service.call("/metrics")[1]
    assert "nobody" not in text
    assert sum(line.startswith("nbs_unknown_category_total") for line in text.splitlines()) <= len(ROW)


def refuses(service: Running, path: str, case: tuple[bytes, int, str | None]) -> None:
    body, wanted, field = case
    status, said, _ = service.call(path, body)
    assert (status, said["field"]) == (wanted, field), said
    assert set(said) == {"error", "field", "row"}


@pytest.mark.parametrize("name", list(REFUSED))
def test_what_is_refused_is_not_explained_either(name: str, service: Running) -> None:
    refuses(service, "/explain", REFUSED[name])


@pytest.mark.parametrize("name", list(ANSWERED))
def test_what_is_only_odd_is_explained(name: str, service: Running) -> None:
    status, said, _ = service.call("/explain?change=1", ANSWERED[name][0])
    assert status == 200, said
    assert said["answer"]["flags"]
    assert said["gap"] < 1e-5


IDS: dict[str, tuple[bytes, int, str | None]] = {
    "a path": (b'{"id":"../../etc/passwd"}', 422, "id"),
    "no text": (b'{"id":7}', 422, "id"),
    "more than an id": (b'{"id":"20260101-00000000-1","x":1}', 422, "id"),
    "a day that is none": (b'{"id":"99999999-00000000-1"}', 404, "id"),
    "an unknown answer": (b'{"id":"20260101-00000000-1"}', 404, "id"),
}


@pytest.mark.parametrize("name", list(IDS))
def test_an_id_that_is_none_is_refused(name: str, service: Running) -> None:
    refuses(service, "/explain", IDS[name])


LABELS: dict[str, tuple[bytes, int, str | None]] = {
    "not JSON": (b"{", 400, None),
    "an empty body": (b"", 400, None),
    "a list": (b"[]", 422, None),
    "no id": (b'{"label":"yes"}', 422, "id"),
    "no label": (b'{"id":"20260101-00000000-1"}', 422, "label"),
    "another field": (b'{"id":"20260101-00000000-1","label":"yes","x":1}', 422, "x"),
    "no such class": (b'{"id":"20260101-00000000-1","label":"maybe"}', 422, "label"),
    "NaN": (b'{"id":"20260101-00000000-1","label":NaN}', 422, "label"),
    "true": (b'{"id":"20260101-00000000-1","label":true}', 422, "label"),
    "a path": (b'{"id":"../../etc/passwd","label":"yes"}', 422, "id"),
    "half a character": (b'{"id":"\\ud800","label":"yes"}', 400, None),
    "invalid UTF-8": (b'{"id":"\xff","label":"yes"}', 400, None),
    "a day that is none": (b'{"id":"99999999-00000000-1","label":"yes"}', 404, "id"),
    "an unknown answer": (b'{"id":"20260101-00000000-1","label":"yes"}', 404, "id"),
    "nesting": (b"[" * 8000, 400, None),
    "10 MB": (b'{"id":"' + b"n" * 10_000_000 + b'"}', 413, None),
}


@pytest.mark.parametrize("name", list(LABELS))
def test_a_label_that_is_none_is_refused(name: str, service: Running) -> None:
    refuses(service, "/feedback", LABELS[name])


@pytest.mark.parametrize(
    "path", ["/../../etc/passwd", "/static/..%2f..%2fsettings.ini", "/%00", "/model/", "/" + "n" * 5000, "/a?b=%ff"]
)
def test_there_is_nothing_elsewhere(path: str, service: Running) -> None:
    status, said, _ = service.call(path)
    assert status == 404
    assert said["field"] is None


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"])
def test_a_method_that_is_not_taken(method: str, service: Running) -> None:
    status, _, headers = service.call("/predict", method=method)
    assert status == 405
    assert headers["allow"] == "POST"
    assert not any(name.startswith("access-control") for name in headers)


def test_schemathesis_finds_nothing(service: Running, tmp_path: Path) -> None:
    """The description is true: what it allows is taken, what it forbids is refused, and what comes is as described."""
    command = [Path(sys.executable).with_name("schemathesis"), "run", f"{service.url}/openapi.json", "--no-color"]
    command += ["--max-examples", EXAMPLES, "--seed", "1", "--continue-on-failure"]
    done = subprocess.run(list(map(str, command)), cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-5000:]
    cases = re.search(r"(\d+) generated", done.stdout)
    assert cases is not None, done.stdout
    assert int(cases[1]) > 200


def test_it_still_answers_after_all_that(service: Running) -> None:
    status, said, _ = service.call("/predict", ROW)
    assert (status, said["rung"]) == (200, "model")
    assert "Traceback" not in service.said()
