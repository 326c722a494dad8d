"""What would change an answer is found by reading again what depends on it; keeping it, or forgetting it, misleads."""

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from onnx import TensorProto, helper

from nbs_lib.bundle.bundle import write_bundle
from nbs_lib.bundle.served_model import ServedModel, load_served_model
from nbs_lib.core.files import write_text
from nbs_lib.explain.counterfactual import (
    NO_CHANGE_FOUND,
    NO_MODEL_ANSWERED,
    NOTHING_ACTIONABLE,
    VIEWS_NOT_READABLE,
    find_counterfactuals,
)
from nbs_lib.features.online.base import encode_values
from nbs_lib.features.online.lookup import open_store

DAY_US = 86_400_000_000
BUSY = {"name": "shop", "version": "1", "entity": ["shop"], "columns": ["busy"], "ttl": 3 * 86400, "age": False}
BUSY |= {"history": None, "description": "how busy a shop is"}
HOURS = {"std": 4.0, "quantiles": {"0.0": 0, "0.01": 6, "0.25": 9, "0.5": 12, "0.75": 15, "0.99": 22, "1.0": 23}}
TASKS = {"binary": ["no", "yes"], "multiclass": ["no", "yes", "never"], "regression": []}


def graph(weights: list[list[float]], task: str) -> bytes:
    """Margins are 1, the hour, whether the view knows the shop, that times the hour, and how busy it is, by weights."""
    node, shown = helper.make_node, {"binary": "Sigmoid", "multiclass": "Softmax", "regression": "Identity"}
    numbers = {"first": [0], "second": [1], "axes": [1]}
    constants = [helper.make_tensor(name, TensorProto.INT64, [1], value) for name, value in numbers.items()]
    shape = [5, len(weights[0])]
    constants.append(helper.make_tensor("weights", TensorProto.FLOAT, shape, np.ravel(weights)))
    constants += [helper.make_tensor(name, TensorProto.FLOAT, [1, 1], [v]) for name, v in (("one", 1.0), ("zero", 0.0))]
    nodes = [
        node("Gather", ["numeric", "first"], ["hour"], axis=1),
        node("Gather", ["numeric", "second"], ["busy"], axis=1),
        node("IsNaN", ["busy"], ["unknown"]),
        node("Where", ["unknown", "zero", "one"], ["known"]),
        node("Where", ["unknown", "zero", "busy"], ["heard"]),
        node("Mul", ["known", "hour"], ["then"]),
        node("Add", ["known", "one"], ["more"]),
        node("Sub", ["more", "known"], ["always"]),
        node("Concat", ["always", "hour", "known", "then", "heard"], ["all"], axis=1),
        node("MatMul", ["all", "weights"], ["margin"]),
        node(shown[task], ["margin"], ["output"]),
    ]
    takes = [("numeric", TensorProto.FLOAT, 2), ("categorical", TensorProto.STRING, 1), ("time", TensorProto.INT64, 1)]
    inputs = [helper.make_tensor_value_info(name, kind, [None, wide]) for name, kind, wide in takes]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [None, shape[1]]) for name in ("margin", "output")]
    made = helper.make_graph(nodes, "made", inputs, ends, constants)
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    return bytes(model.SerializeToString())


def served(root: Path, weights: list[Any], marked: dict[str, list[str]], task: str = "binary") -> ServedModel:
    """A champion and its store: the north is busy, the south is quiet, and of the west nothing is known."""
    told = [("hour", "numeric", "number", 0), ("shop_busy", "numeric", "number", 1), ("shop", "categorical", "text", 0)]
    inputs: list[dict[str, Any]] = [
        {"name": name, "input": kind, "type": of, "position": place, "nulls": 0.0, "from": "request"}
        for name, kind, of, place in [*told, ("opens", "time", "time", 0)]
    ]
    inputs[0] |= {"unit": "h", "description": "hour of the visit, local", "min": 0.0, "max": 23.0}
    inputs[1]["from"] = "shop@1"
    schema = {"task": task, "target": "late", "classes": TASKS[task], "threshold": 0.5 if task == "binary" else None}
    schema |= {"key": [], "others": [], "views": [BUSY], "entities": {"shop": "text"}, "inputs": inputs}
    schema |= {"actionable": marked, "timestamp": "opens"}
    shops = {"n_levels": 3, "levels": {"north": 0.5, "south": 0.3, "west": 0.2}}
    prior: Any = [1 / 3] * 3 if task == "multiclass" else 0.5
    write_text("", root / "settings.ini")
    made = root / "served/made"
    columns = np.array(weights, float).reshape(5, -1).tolist()
    id = write_bundle(
        made,
        graph(columns, task),
        schema=schema,
        metrics={},
        lineage={},
        fallback={"prior": {"output": prior, "margin": prior}},
        reference={"inputs": {"hour": HOURS, "shop": shops}},
    )
    made.rename(made.with_name(id))
    known = [("north", encode_values([9 * DAY_US, 5.0])), ("south", encode_values([9 * DAY_US, 0.0]))]
    open_store(root=root).write(10 * DAY_US, {"shop@1": known})
    return load_served_model(made.with_name(id), root)


def asked(champion: ServedModel, hour: float | None = 18, shop: str = "north", **more: Any) -> dict[str, Any]:
    row = {"hour": hour, "shop": shop, "opens": "1970-01-11T18:00:00Z"} | more
    return find_counterfactuals(champion, champion.request_parser.read(msgspec.json.encode(row))[0])


def test_what_a_view_knows_is_read_again_for_another_entity(tmp_path: Path) -> None:
    champion = served(tmp_path, [-2, 0, 0, 0, 1], {"shop": []})
    row = champion.request_parser.read(b'{"hour": 18, "shop": "north", "opens": 0}')[0]
    naive = [(*row[:1], shop, *row[2:], 5.0) for shop in ("north", "south", "west")]  # all as busy as the north
    assert (champion.predictor.answer(naive).output > 0.5).all(), "keeping what was known finds nothing"
    change = asked(champion)["changes"][0]
    assert change["values"] == ["south", "west"]
    assert change["text"] == "Shop south or west would: 12 % instead of 95 %."
    assert asked(champion, shop="south")["changes"][0]["values"] == ["north"]
    assert "can't be told of shop" in asked(champion, shop=None)["text"], "to learn what is not known is no change"


@pytest.mark.parametrize(
    ("weights", "what"),
    [([1, 0, -13, 1, 0], "keeping what was known"), ([-1, 0, 5, 0, 0], "forgetting what was known")],
)
def test_another_moment_is_offered_only_where_it_would_do_whatever_is_known_then(
    tmp_path: Path, weights: list[float], what: str
) -> None:
    champion = served(tmp_path, weights, {"hour": ["opens"]})
    row = champion.request_parser.read(b'{"hour": 18, "shop": "north", "opens": 0}')[0]
    known = 5.0 if "keeping" in what else None
    naive = champion.predictor.answer([row, (8.0, *row[1:], known)])
    assert (naive.output[:, 0] > 0.5).tolist() == [True, False], f"{what} finds a change"
    assert asked(champion) == {"text": NO_CHANGE_FOUND, "changes": []}


def test_another_moment_that_would_do_is_a_range_of_what_training_saw(tmp_path: Path) -> None:
    champion = served(tmp_path, [-13, 1, 2, 0, 0], {"hour": ["opens"]})
    found = asked(champion)
    change = found["changes"][0]
    assert (change["low"], change["high"]) == (6, 10), "kept, it has to be below 11"
    assert change["output_high"] == pytest.approx(1 / (1 + np.e))
    told = "Hour of the visit between 6 h and 10 h (opens moving along) would: under 1 % to 27 % instead of over 99 %"
    assert found["text"] == f"{told}, with what is known now and without it."
    assert change["along"] == ["opens"]
    assert asked(champion, hour=7)["changes"][0]["low"] == 13, "from there on where nothing is known"
    assert asked(champion, hour=None)["text"] == NO_MODEL_ANSWERED


def test_what_only_forgetting_brings_about_is_no_change(tmp_path: Path) -> None:
    champion = served(tmp_path, [3, -0.25, 8, -0.5, 0], {"hour": ["opens"]})
    row = champion.request_parser.read(b'{"hour": 14, "shop": "north", "opens": 0}')[0]
    naive = champion.predictor.answer([row, (16.0, *row[1:], 5.0), (16.0, *row[1:], None), (14.0, *row[1:], None)])
    assert (naive.output[:, 0] > 0.5).tolist() == [True, False, False, False], "then it is decided otherwise here too"
    assert asked(champion, hour=14)["changes"], "but another hour speaks more for it"
    champion = served(tmp_path / "other", [-3, 0.05, 12, -0.9, 0], {"hour": ["opens"]})
    assert asked(champion, hour=9)["text"] == NO_CHANGE_FOUND, (
        "and here less: a later hour is worse when nothing is known"
    )


@pytest.mark.parametrize(
    ("task", "weights", "text"),
    [
        ("multiclass", [[0, 0, 12], [0, 1, 0], [0, 0, 0], [0, 0, 0], [0, 0, 0]], "11 h would make it never (73 % to"),
        ("regression", [-12, 1, 0, 0, 0], "12 h would bring it below the usual 0.5: -6 to 0 instead of 6"),
    ],
)
def test_of_classes_another_one_and_of_numbers_the_usual_one(
    tmp_path: Path, task: str, weights: list[Any], text: str
) -> None:
    found = asked(served(tmp_path, weights, {"hour": []}, task))
    assert f"between 6 h and {text}" in found["text"]


def test_where_nothing_is_marked_or_nothing_can_be_read_it_says_so(tmp_path: Path) -> None:
    assert asked(served(tmp_path, [-2, 0, 0, 0, 1], {}))["text"] == NOTHING_ACTIONABLE
    champion = served(tmp_path / "other", [-2, 0, 0, 0, 1], {"shop": []})
    champion.predictor.views.lookup = champion.predictor.ladder.view_inputs.lookup = None
    assert asked(champion, shop_busy=5.0)["text"] == VIEWS_NOT_READABLE, (
        "a view that can't be read makes nobody less busy"
    )
