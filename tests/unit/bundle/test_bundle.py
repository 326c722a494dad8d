"""A bundle is refused when a byte is not as it was written, opens without research libraries, and answers raw rows."""

import datetime
import decimal
import json
import pickle
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from helpers.bundles import BLOCKED, MARGINS, REFUSE, ROWS, SCHEMA, graph, make_bundle, make_ladder_bundle, manifest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper

from nbs_lib.bundle.bundle import CONTEXT_FILE, REQUIRED_FILES, Bundle, bundle_id, write_bundle
from nbs_lib.core.errors import BundleError, DataError
from nbs_lib.data.arrays import MISSING_TIME, number_array, text_array, time_array


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("bundle") / "bundle"
    make_bundle(place)
    return place


@pytest.fixture(scope="module")
def bundle(folder: Path) -> Bundle:
    return Bundle.open(folder)


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    make_bundle(tmp_path / "bundle")
    return tmp_path / "bundle"


# What is refused


@pytest.mark.parametrize("name", REQUIRED_FILES)
def test_a_flipped_byte_is_refused(copy: Path, name: str) -> None:
    content = bytearray((copy / name).read_bytes())
    content[len(content) // 2] ^= 1
    (copy / name).write_bytes(content)
    with pytest.raises(BundleError, match=f"{name} was changed"):
        Bundle.open(copy)


@pytest.mark.parametrize("name", REQUIRED_FILES)
def test_a_missing_file_is_refused(copy: Path, name: str) -> None:
    (copy / name).unlink()
    with pytest.raises(BundleError, match=f"{name} is missing"):
        Bundle.open(copy)


def test_an_extra_file_is_refused(copy: Path) -> None:
    (copy / "model.pkl").write_bytes(pickle.dumps("payload"))
    with pytest.raises(BundleError, match=r"model\.pkl does not belong"):
        Bundle.open(copy)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 2}, "format 2, and this library reads format 1"),
        ({"format": "1"}, "of format '1'"),
        ({"id": "0" * 64}, "its id is not the hash"),
        ({"files": {}}, "does not list model.onnx"),
        ({"files": 7}, "is damaged"),
    ],
)
def test_a_manifest_that_says_otherwise_is_refused(copy: Path, change: dict[str, Any], message: str) -> None:
    (copy / "manifest.json").write_text(json.dumps(manifest(copy) | change))
    with pytest.raises(BundleError, match=message):
        Bundle.open(copy)


@pytest.mark.parametrize("content", [b"", b"[", b"[]", b"null", b"\xff\xfe"])
def test_a_damaged_manifest_is_refused(copy: Path, content: bytes) -> None:
    (copy / "manifest.json").write_bytes(content)
    with pytest.raises(BundleError, match="is damaged"):
        Bundle.open(copy)


def test_any_flipped_bit_of_the_manifest_is_refused(copy: Path) -> None:
    content = (copy / "manifest.json").read_bytes()
    for position in range(0, len(content), 7):
        changed = bytearray(content)
        changed[position] ^= 4
        if json.dumps(json.loads(content)) == _dumped(changed):
            continue  # white space
        (copy / "manifest.json").write_bytes(changed)
        with pytest.raises(BundleError):
            Bundle.open(copy)


def _dumped(content: bytearray) -> str:
    try:
        return json.dumps(json.loads(content))
    except ValueError:
        return ""


def test_a_path_out_of_the_bundle_is_refused(copy: Path) -> None:
    files = manifest(copy)["files"] | {"../secret": "0" * 64}
    (copy / "manifest.json").write_text(json.dumps({"format": 1, "id": bundle_id(files), "files": files}))
    (copy.parent / "secret").write_text("secret")
    with pytest.raises(BundleError, match="outside of the bundle"):
        Bundle.open(copy)


def test_a_graph_that_is_none_is_refused(tmp_path: Path) -> None:
    contents: dict[str, Any] = {"schema": SCHEMA, "metrics": {}, "lineage": {}, "fallback": {}, "reference": {}}
    write_bundle(tmp_path / "bundle", pickle.dumps(print), **contents)
    with pytest.raises(BundleError, match="can't be opened"):
        Bundle.open(tmp_path / "bundle")


def test_a_schema_that_does_not_fit_the_graph_is_refused(tmp_path: Path) -> None:
    make_bundle(tmp_path / "bundle", schema=SCHEMA | {"inputs": SCHEMA["inputs"][1:]})
    with pytest.raises(BundleError, match=r"not what schema\.json lists"):
        Bundle.open(tmp_path / "bundle")


def test_no_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="is not a bundle"):
        Bundle.open(tmp_path / "none")


def test_a_context_graph_and_its_inputs_belong_together(tmp_path: Path) -> None:
    make_ladder_bundle(tmp_path / "bundle")
    whole = Bundle.open(tmp_path / "bundle")
    assert whole.context([{"made": 4}, {"made": 9, "width": 1}])["margin"].tolist() == [2, 3]
    files = manifest(tmp_path / "bundle")["files"]
    assert CONTEXT_FILE in files
    del files[CONTEXT_FILE]
    (tmp_path / "bundle" / CONTEXT_FILE).unlink()
    (tmp_path / "bundle" / "manifest.json").write_text(
        json.dumps({"format": 1, "id": bundle_id(files), "files": files})
    )
    with pytest.raises(BundleError, match=r"of context\.onnx and its inputs in schema\.json one is missing"):
        Bundle.open(tmp_path / "bundle")


def test_a_changed_context_graph_is_refused(tmp_path: Path) -> None:
    make_ladder_bundle(tmp_path / "bundle")
    content = bytearray((tmp_path / "bundle" / CONTEXT_FILE).read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / "bundle" / CONTEXT_FILE).write_bytes(content)
    with pytest.raises(BundleError, match=r"context\.onnx was changed"):
        Bundle.open(tmp_path / "bundle")


def test_an_input_of_a_view_that_is_not_listed_is_refused(tmp_path: Path) -> None:
    other = SCHEMA["inputs"][0] | {"from": "shop@1a2b3c4d5e6f"}
    make_bundle(tmp_path / "bundle", schema=SCHEMA | {"inputs": [other, *SCHEMA["inputs"][1:]]})
    with pytest.raises(BundleError, match="input 'width' is from shop@1a2b3c4d5e6f, which it does not list"):
        Bundle.open(tmp_path / "bundle")


# The same bytes


def test_the_same_content_is_the_same_bytes(tmp_path: Path) -> None:
    ids = [make_bundle(tmp_path / name) for name in ("a", "b")]
    assert ids[0] == ids[1]
    for name in [*REQUIRED_FILES, "manifest.json"]:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert make_bundle(tmp_path / "c", fallback={"prior": 0.31}) != ids[0]


def test_a_failed_write_keeps_the_old_bundle(copy: Path) -> None:
    before = manifest(copy)
    with pytest.raises(ValueError, match="not JSON compliant"):
        make_bundle(copy, metrics={"auc": float("nan")})
    assert manifest(copy) == before
    assert [path.name for path in copy.parent.iterdir()] == ["bundle"]


# Raw rows


def test_rows_in_every_shape_get_the_same_answer(bundle: Bundle) -> None:
    table = pd.DataFrame(ROWS)
    shapes: list[Any] = [
        ROWS,
        table,
        table.assign(made=pd.to_datetime(table["made"], format="ISO8601", utc=True)),
        table.assign(made=pd.to_datetime(table["made"], format="ISO8601", utc=True).dt.tz_convert("America/New_York")),
        table.convert_dtypes(),
        table.assign(kind=table["kind"].astype("category")),
        table.to_dict("list"),
        {name: table[name].to_numpy() for name in table},
    ]
    for shape in shapes:
        np.testing.assert_allclose(bundle.predict(shape)["margin"], MARGINS, atol=1e-6)


def test_one_row_is_a_table_of_one(bundle: Bundle) -> None:
    answer = bundle.predict(ROWS[0])
    assert {name: values.shape for name, values in answer.items()} == {"output": (1,), "margin": (1,), "class": (1,)}
    assert answer["class"].tolist() == ["yes"]


def test_no_row_gets_no_answer(bundle: Bundle) -> None:
    assert {len(values) for values in bundle.predict([]).values()} == {0}


def test_missing_values_in_every_form(bundle: Bundle) -> None:
    full = {"width": 1.0, "new": 0, "kind": "a", "made": 0}
    for name in ("kind", "made"):
        rows = [full | {name: value} for value in (None, "", float("nan"), np.nan, pd.NA, pd.NaT)]
        rows.append({key: value for key, value in full.items() if key != name})
        assert len(set(bundle.predict(rows)["output"].tolist())) == 1
    assert np.isnan(number_array([None, "", float("nan"), pd.NA, np.float32("nan"), decimal.Decimal("nan")], "x")).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"width": "1.5"}, "column 'width', row 2: '1.5' is not a number"),
        ({"width": "nan"}, "'nan' is not a number"),
        ({"width": [1]}, "is not a number"),
        ({"width": 1e39}, "not a finite number"),
        ({"width": 10**400}, "not a finite number"),
        ({"width": float("-inf")}, "not a finite number"),
        ({"width": datetime.datetime(2020, 1, 1)}, "is not a number"),
        ({"kind": 7}, "column 'kind', row 2: 7 is not text"),
        ({"kind": True}, "is not text"),
        ({"kind": "\ud800"}, "not valid Unicode"),
        ({"kind": b"a"}, "is not text"),
        ({"made": "1.2.2013"}, "column 'made', row 2: '1.2.2013' is not a time"),
        ({"made": True}, "is not a time"),
        ({"made": 1e300}, "is not a time"),
        ({"made": 1_600_000_000_000}, "is not a time"),
        ({"knid": "a"}, r"row 2: there is no input 'knid' \(did you mean 'kind'\?\)"),
        ({7: "a"}, "there is no input '7'"),
    ],
)
def test_a_wrong_value_is_named_with_column_and_row(bundle: Bundle, change: dict[Any, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        bundle.predict([ROWS[0], ROWS[1] | change])


def test_a_long_value_is_cut_in_the_message(bundle: Bundle) -> None:
    with pytest.raises(DataError) as caught:
        bundle.predict([{"width": "9" * 10_000}])
    assert len(str(caught.value)) < 200


def test_a_table_without_an_input_is_refused_at_once(bundle: Bundle) -> None:
    table = pd.DataFrame(ROWS).rename(columns={"width": "widht"}).drop(columns=["made"])
    with pytest.raises(DataError, match=r"no column 'width' \(did you mean 'widht'\?\), 'made'"):
        bundle.predict(table)


def test_a_table_may_have_more_columns(bundle: Bundle) -> None:
    table = pd.DataFrame(ROWS).assign(anything="<script>")
    np.testing.assert_allclose(bundle.predict(table)["margin"], MARGINS, atol=1e-6)


def _fits(value: Any) -> bool:
    return value is None or value != value or abs(value) < 3e38


ANY_NUMBER = st.one_of(st.none(), st.floats(width=32, allow_infinity=False), st.integers(), st.booleans())


@given(st.lists(ANY_NUMBER.filter(_fits)))
def test_numbers_of_any_kind_become_float32(values: list[Any]) -> None:
    expected = [np.nan if value is None else value for value in values]
    np.testing.assert_array_equal(number_array(values, "x"), np.array(expected, dtype=np.float64).astype(np.float32))
    np.testing.assert_array_equal(number_array(np.array(values, dtype=object), "x"), number_array(values, "x"))


@given(st.lists(st.datetimes(timezones=st.just(datetime.UTC)), max_size=5))
def test_times_in_every_form_are_the_same_second(values: list[datetime.datetime]) -> None:
    whole = [value.replace(microsecond=0) for value in values]
    epoch = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
    seconds = [(value - epoch) // datetime.timedelta(seconds=1) for value in whole]
    assert time_array(values, "at").tolist() == seconds
    assert time_array([value.isoformat() for value in values], "at").tolist() == seconds
    assert time_array(seconds, "at").tolist() == seconds
    naive = np.array([value.replace(tzinfo=None) for value in values], dtype="datetime64[us]")
    assert time_array(naive, "at").tolist() == seconds
    assert time_array(np.array(["NaT"], dtype="datetime64[us]"), "at").tolist() == [MISSING_TIME]


@given(st.lists(st.one_of(st.none(), st.text())))
def test_text_stays_as_it_is(values: list[str | None]) -> None:
    assert text_array(values, "x").tolist() == [value or "" for value in values]


# Other tasks


def test_more_classes_and_amounts(tmp_path: Path) -> None:
    make_bundle(tmp_path / "amount", schema=SCHEMA | {"task": "regression", "classes": [], "threshold": None})
    amount = Bundle.open(tmp_path / "amount")
    answer = amount.predict(ROWS)
    assert list(answer) == ["output", "margin"]
    assert list(amount.to_columns(answer)) == ["value"]
    assert amount.intervals(answer["output"]) is None


def test_an_interval_is_that_of_similar_answers(tmp_path: Path) -> None:
    told = {"coverage": 0.9, "edges": [0.0, 5.0], "low": [-1.0, -2.0, -3.0], "high": [1.0, 2.0, 4.0]}
    schema = SCHEMA | {"task": "regression", "classes": [], "threshold": None, "interval": told}
    make_bundle(tmp_path / "amount", schema=schema)
    low, high = Bundle.open(tmp_path / "amount").intervals(np.array([-9.0, 0.0, 4.0, 5.0, np.nan], np.float32)) or (
        (),
        (),
    )
    assert low[:4].tolist() == [-10, -2, 2, 2]
    assert high[:4].tolist() == [-8, 2, 6, 9]
    assert np.isnan(low[4])
    assert np.isnan(high[4])


def test_classes_of_three(tmp_path: Path) -> None:
    infos = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [None, 3]) for n in ("numeric", "margin", "output")]
    nodes = [helper.make_node("Identity", ["numeric"], ["margin"]), helper.make_node("Softmax", ["margin"], ["output"])]
    opsets = [helper.make_opsetid("", 17)]
    whole = helper.make_graph(nodes, "g", infos[:1], infos[1:])
    made = helper.make_model(whole, opset_imports=opsets, ir_version=9)
    inputs = [SCHEMA["inputs"][0] | {"name": name, "position": k} for k, name in enumerate("abc")]
    schema: dict[str, Any] = {"task": "multiclass", "classes": ["x", "y", "<z>"], "threshold": None, "key": []}
    schema |= {"inputs": inputs, "others": []}
    contents: dict[str, Any] = {"metrics": {}, "lineage": {}, "fallback": {}, "reference": {}}
    write_bundle(tmp_path / "bundle", made.SerializeToString(), schema=schema, **contents)
    bundle = Bundle.open(tmp_path / "bundle")
    answer = bundle.predict([{"a": 0, "b": 1, "c": 5}, {"a": 9, "b": 1, "c": 5}])
    assert answer["class"].tolist() == ["<z>", "x"]
    assert answer["output"].shape == (2, 3)
    assert list(bundle.to_columns(answer)) == ["class", "probability:x", "probability:y", "probability:<z>"]


# Production

PRODUCTION = f"""{REFUSE}from nbs_lib.bundle.bundle import Bundle
answer = Bundle.open(sys.argv[1]).predict(json.loads(sys.argv[2]))
print(json.dumps({{name: values.tolist() for name, values in answer.items()}}))
assert not any(name.partition(".")[0] in {BLOCKED!r} for name in sys.modules)
"""


def test_numpy_and_onnxruntime_are_enough(folder: Path) -> None:
    command = [sys.executable, "-W", "error", "-c", PRODUCTION, str(folder), json.dumps(ROWS)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    np.testing.assert_allclose(json.loads(result.stdout)["margin"], MARGINS, atol=1e-6)


def test_importing_the_module_imports_no_onnxruntime() -> None:
    command = [sys.executable, "-c", "import sys, nbs_lib.bundle.bundle; assert 'onnxruntime' not in sys.modules"]
    subprocess.run(command, check=True)


def test_it_opens_in_a_tenth_of_a_second(folder: Path) -> None:
    Bundle.open(folder)
    spans = []
    for _ in range(5):
        started = time.perf_counter()
        Bundle.open(folder)
        spans.append(time.perf_counter() - started)
    assert min(spans) < 0.1


def test_the_graph_is_the_same_bytes_each_time() -> None:
    assert graph() == graph()


def test_a_large_table_is_answered_in_parts(bundle: Bundle) -> None:
    table = {name: [row.get(name) for row in ROWS] * 5000 for name in ("width", "new", "kind", "made")}
    answer = bundle.predict(table)
    assert answer["class"].shape == (15000,)
    np.testing.assert_allclose(answer["margin"], MARGINS * 5000, atol=1e-6)
