"""Whatever fails or is unknown, a row that can be read gets an answer, and the answer says which rung it is from."""

import datetime
import socket
import sqlite3
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from helpers.bundles import SENT, VERSION, VIEWS, make_ladder_bundle, store_of

from nbs_lib.bundle.bundle import Bundle
from nbs_lib.bundle.fallback import FallbackLadder
from nbs_lib.core.errors import BundleError, DataError
from nbs_lib.core.settings import StoreSettings
from nbs_lib.features.online.base import encode_values
from nbs_lib.features.online.lookup import Lookup, LookupResult, open_store

ROW: dict[str, Any] = {"width": 1, "maker": "m1", "place": 7, "made": "1971-01-01", "note": "n"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("ladder")
    make_ladder_bundle(place / "bundle")
    make_ladder_bundle(place / "yielding", takes_over=True)
    store_of(place)
    return place


@pytest.fixture(scope="module")
def bundle(folder: Path) -> Bundle:
    return Bundle.open(folder / "bundle")


@pytest.fixture(scope="module")
def lookup(folder: Path) -> Lookup:
    return Lookup(VIEWS, open_store(root=folder))


@pytest.fixture
def ladder(bundle: Bundle, lookup: Lookup) -> FallbackLadder:
    return FallbackLadder(bundle, lookup)


def rungs(ladder: FallbackLadder, *rows: dict[str, Any]) -> list[str]:
    return ladder.answer(list(rows))["rung"].tolist()


# What was never seen


def test_every_view_present_is_the_model(ladder: FallbackLadder, bundle: Bundle) -> None:
    answer = ladder.answer(ROW)
    assert answer["rung"].tolist() == ["model"]
    assert answer["history"].tolist() == [20]
    known = {"maker_sold": 3.0, "maker_days": 20, "maker_best": "b", "spot_age": 720, "spot_rain": 0.25}
    known |= {"market_share": 0.5}
    expected = bundle.predict({"width": 1, "maker": "m1", **known})
    for part, values in expected.items():
        assert answer[part].tolist() == values.tolist()


@pytest.mark.parametrize("name", ["maker", "place"])
@pytest.mark.parametrize("takes_over", [False, True])
def test_an_unseen_entity_answers_as_a_missing_one_does(
    folder: Path, lookup: Lookup, name: str, takes_over: bool
) -> None:
    ladder = FallbackLadder(Bundle.open(folder / ("yielding" if takes_over else "bundle")), lookup)
    unseen = "never seen" if name == "maker" else 123456789
    forms = [ROW | {name: unseen}, ROW | {name: None}, {key: value for key, value in ROW.items() if key != name}]
    for ask in ([[form] for form in forms], [forms]):
        answers = [ladder.answer(rows) for rows in ask]
        for part in answers[0]:
            found = [value for answer in answers for value in answer[part].tolist()]
            assert found == [found[0]] * 3, part
        assert answers[0]["rung"][0] == "partial"


def test_who_answers_where_no_entity_is_known(folder: Path, lookup: Lookup) -> None:
    new = ROW | {"maker": "never seen", "place": 0}
    assert rungs(FallbackLadder(Bundle.open(folder / "bundle"), lookup), new) == ["partial"]
    yielding = FallbackLadder(Bundle.open(folder / "yielding"), lookup)
    assert rungs(yielding, new, ROW, new) == ["context", "model", "context"]
    assert rungs(yielding, new) == ["context"]


def test_nothing_but_a_time_is_answered_by_the_context(ladder: FallbackLadder, bundle: Bundle) -> None:
    answer = ladder.answer({"made": "1971-01-01"})
    assert answer["rung"].tolist() == ["context"]
    assert answer["history"].tolist() == [0]
    assert answer["output"].tolist() == bundle.context({"made": "1971-01-01"})["output"].tolist()
    assert rungs(ladder, {"made": None}, {"made": 0}, ROW) == ["prior", "context", "model"]  # its graph needs a time


def test_a_view_that_is_too_old_is_not_used(ladder: FallbackLadder) -> None:
    answer = ladder.answer(ROW | {"maker": "old"})
    assert answer["rung"].tolist() == ["partial"]
    assert answer["history"].tolist() == [0]


def test_one_row_and_many_are_answered_alike(ladder: FallbackLadder) -> None:
    makers, places = ["m1", "old", "none", "", None], [7, 8, None, 7.0]
    rows = [ROW | {"maker": maker, "place": place} for maker in makers for place in places]
    rows += [{"made": 1}, {"width": None, "made": datetime.datetime(1980, 1, 1)}, {"place": 7}]
    together = ladder.answer(rows)
    table = pd.DataFrame(rows).astype({"place": "Int64", "made": object})
    as_table = ladder.answer(table)
    for k, row in enumerate(rows):
        alone = ladder.answer(row)
        for part in together:
            np.testing.assert_equal(alone[part][0], together[part][k], part)
            np.testing.assert_equal(as_table[part][k], together[part][k], part)


# What a caller sends


def test_values_that_a_caller_sends_are_used(ladder: FallbackLadder, bundle: Bundle) -> None:
    answer = ladder.answer(ROW | SENT)
    expected = bundle.predict({"width": 1, "maker": "m1", **SENT})
    assert answer["output"].tolist() == expected["output"].tolist()
    assert answer["history"].tolist() == [5]
    assert answer["rung"].tolist() == ["partial"]  # the rain is sent as missing
    mixed = ladder.answer([ROW, ROW | SENT | {"spot_rain": 1}])
    assert mixed["rung"].tolist() == ["model", "model"]
    assert mixed["history"].tolist() == [20, 5]


def test_a_table_with_all_values_asks_no_store(bundle: Bundle) -> None:
    ladder = FallbackLadder(bundle, None)
    table = pd.DataFrame([{"width": 1, "maker": "m1", **SENT, "spot_rain": 1.0}] * 2)
    assert ladder.answer(table)["rung"].tolist() == ["model", "model"]
    assert not ladder.failures


def test_a_part_of_a_view_is_refused(ladder: FallbackLadder) -> None:
    with pytest.raises(DataError, match="row 2 brings values of the view 'maker', but no 'maker_best'"):
        ladder.answer([ROW, ROW | {"maker_sold": 1, "maker_days": 2}])
    with pytest.raises(DataError, match="the table brings values of the view 'maker'"):
        ladder.answer(pd.DataFrame([ROW | {"maker_sold": 1, "maker_days": 2}]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"width": "1"}, "column 'width', row 5: '1' is not a number"),
        ({"width": 1e39}, "'width', row 5: 1e\\+39 is not a finite number"),
        ({"width": float("inf")}, "not a finite number"),
        ({"maker": 7}, "column 'maker', row 5: 7 is not text"),
        ({"maker": "\ud800"}, "not valid Unicode"),
        ({"place": "7"}, "column 'place', row 5: '7' is not a whole number"),
        ({"place": 7.5}, "column 'place', row 5: 7.5 is not a whole number"),
        ({"place": [7]}, "is not a whole number"),
        ({"made": "soon"}, "column 'made', row 5: 'soon' is not a time"),
        ({"widht": 1}, r"row 5: there is no input 'widht' \(did you mean 'width'\?\)"),
        ({"maker_sold": "x"} | {k: v for k, v in SENT.items() if k != "maker_sold"}, "'maker_sold', row 5: 'x' is not"),
    ],
)
def test_what_cannot_be_read_is_refused(ladder: FallbackLadder, change: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        ladder.answer([ROW | change], 5)
    with pytest.raises(DataError, match=message.replace("row 5", "row 6")):
        ladder.answer([ROW, ROW | change], 5)


@pytest.mark.parametrize("rows", [None, 5, 2.5, object()])
def test_what_is_no_row_is_refused(ladder: FallbackLadder, rows: Any) -> None:
    with pytest.raises(DataError, match=r"what is asked is of type \w+: give a row, a list of rows or a table\."):
        ladder.answer(rows)


def test_no_row_and_nothing(ladder: FallbackLadder) -> None:
    assert {len(values) for values in ladder.answer([]).values()} == {0}
    with pytest.raises(DataError, match="row 1 holds none of the inputs"):
        ladder.answer({})
    with pytest.raises(DataError, match="row 1 holds none of the inputs"):
        ladder.answer({"note": "x"})


# What fails


def test_a_store_that_is_not_there(bundle: Bundle, tmp_path: Path) -> None:
    for lookup in (Lookup(VIEWS, open_store(root=tmp_path)), None):
        ladder = FallbackLadder(bundle, lookup)
        for rows in (ROW, [ROW, ROW]):
            assert set(ladder.answer(rows)["rung"]) == {"partial"}
        assert rungs(ladder, {"made": 0}) == ["context"]
        assert set(ladder.failures) == {"maker", "spot", "market"}


def test_a_store_that_does_not_answer_keeps_the_deadline(bundle: Bundle) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:  # accepts, and says nothing
        port = server.getsockname()[1]
        ladder = FallbackLadder(bundle, Lookup(VIEWS, open_store(StoreSettings(f"redis://127.0.0.1:{port}/0"))))
        for rows in (ROW, [ROW, ROW]):
            started = time.perf_counter()
            assert set(ladder.answer(rows)["rung"]) == {"partial"}
            assert time.perf_counter() - started < 1
    assert "maker" in ladder.reasons


def test_a_store_of_another_version(bundle: Bundle, tmp_path: Path) -> None:
    store_of(tmp_path, version="ffffffffffff")
    ladder = FallbackLadder(bundle, Lookup(VIEWS, open_store(root=tmp_path)))
    assert rungs(ladder, ROW) == ["partial"]
    assert "maker" in ladder.reasons["maker"]
    assert VIEWS[0]["version"] in ladder.reasons["maker"]
    assert "ffffffffffff" in ladder.reasons["maker"]


def test_a_damaged_store(bundle: Bundle, tmp_path: Path) -> None:
    store_of(tmp_path)
    file = next(path for path in tmp_path.rglob("*.sqlite"))
    file.write_bytes(b"no database" * 1000)
    ladder = FallbackLadder(bundle, Lookup(VIEWS, open_store(root=tmp_path)))
    assert rungs(ladder, ROW) == ["partial"]


DAMAGED = [
    [3.0, "20", "b"],
    [3.0, "x", "b"],
    [[1, 2], 20.0, "b"],
    [3.0, 20.0, 7.0],
    [3.0, 20.0, ["b"]],
    [1e300, 20.0, "b"],
    [float("inf"), 20.0, "b"],
    [float("nan"), 20.0, "b"],
    [2**63, {}, "b"],
]


@pytest.mark.parametrize("values", DAMAGED, ids=repr)
def test_a_value_that_no_graph_takes_fails_its_view_for_its_row(
    bundle: Bundle, tmp_path: Path, values: list[Any]
) -> None:
    store, day = open_store(root=tmp_path), 86_400_000_000
    store_of(tmp_path)
    makers = [("m1", encode_values([9 * day, 3.0, 20.0, "b"])), ("bad", encode_values([9 * day, *values]))]
    others = {"spot": [("7", encode_values([9 * day, 0.25]))], "market": [("", encode_values([9 * day, 0.5]))]}
    store.write(10 * day, {f"{view}@{VERSION}": rows for view, rows in ({"maker": makers} | others).items()})
    lookup = Lookup(VIEWS, store)
    ladder = FallbackLadder(bundle, lookup)
    damaged = ROW | {"maker": "bad"}
    alone, together = ladder.answer(damaged), ladder.answer([ROW, damaged, ROW])
    assert together["rung"].tolist() == ["model", "partial", "model"]
    assert together["history"].tolist() == [20, 0, 20]
    for part, found in alone.items():
        np.testing.assert_equal(found[0], together[part][1], part)
    unseen = ladder.answer(ROW | {"maker": "bad but unseen"})
    np.testing.assert_equal(alone["output"].shape, unseen["output"].shape)
    assert alone["rung"].tolist() == ["partial"]
    assert ladder.failures == {"maker": 2}
    assert ladder.reasons["maker"].startswith("view maker: a row of the online store is damaged (maker_")
    assert ladder.reasons["maker"].endswith("): `nbs materialize` fills it again.")
    sent = ladder.answer([damaged | SENT, ROW])  # what a caller sends counts all the same
    assert sent["history"].tolist() == [5, 20]


class Wrong:
    """A store's reader that breaks its promises."""

    def __init__(self, found: Any) -> None:
        self.found = found

    def lookup(self, rows: Any) -> Any:
        if isinstance(self.found, Exception):
            raise self.found
        return self.found


HELD = {view["name"]: ["present"] for view in VIEWS}
SHAPELESS: list[Any] = [
    LookupResult(columns, HELD, dict.fromkeys(HELD, "")) for columns in ({}, {name: [] for name in SENT})
]
SHAPELESS += [LookupResult(), LookupResult(dict.fromkeys(SENT, 7), HELD, dict.fromkeys(HELD, ""))]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "found", [sqlite3.OperationalError("disk I/O error"), None, RuntimeError("bug"), *SHAPELESS], ids=repr
)
def test_whatever_a_store_does_nothing_raises(bundle: Bundle, found: Any) -> None:
    ladder = FallbackLadder(bundle, Wrong(found))
    for rows in (ROW, [ROW, ROW]):
        assert set(ladder.answer(rows)["rung"]) == {"partial"}


class Failing(Bundle):
    """A bundle whose graphs fail, or give NaN for some rows."""

    fails: tuple[str, ...] = ()
    nan = False

    def ask(self, arrays: Any, context: bool = False) -> Any:
        if ("context" if context else "model") in self.fails:
            if not self.nan:
                raise RuntimeError("out of memory\nat 0x0")
            output, margin = super().ask(arrays, context)
            output[0] = np.nan
            return output, margin
        return super().ask(arrays, context)


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("views", [True, False])
def test_a_model_that_fails(folder: Path, lookup: Lookup, rows: int, views: bool) -> None:
    broken = Failing.open(folder / "bundle")
    ladder = FallbackLadder(broken, lookup if views else None)
    usual = "model" if views else "partial"
    asked = [ROW] * rows
    broken.fails = ("model",)
    answer = ladder.answer(asked)
    assert answer["rung"].tolist() == ["context"] * rows
    assert answer["output"].tolist() == broken.context(asked)["output"].tolist()
    assert "out of memory" in ladder.reasons["model"]
    assert "0x0" not in ladder.reasons["model"]
    broken.fails = ("model", "context")
    answer = ladder.answer(asked)
    assert answer["rung"].tolist() == ["prior"] * rows
    np.testing.assert_allclose(answer["output"], 0.3, rtol=1e-6)
    broken.nan = True
    assert rungs(ladder, *asked) == ["prior", *([usual] * (rows - 1))]
    broken.fails = ("model",)
    assert rungs(ladder, *asked) == ["context", *([usual] * (rows - 1))]
    assert ladder.failures["model"] == 2 * rows + 2


def test_without_views_and_context(tmp_path: Path) -> None:
    from helpers.bundles import MARGINS, ROWS, make_bundle

    make_bundle(tmp_path / "bundle")
    broken = Failing.open(tmp_path / "bundle")
    ladder = FallbackLadder(broken)
    answer = ladder.answer(ROWS)
    np.testing.assert_allclose(answer["margin"], MARGINS, atol=1e-6)
    assert answer["rung"].tolist() == ["model"] * 3
    assert np.isnan(answer["history"]).all()
    assert rungs(ladder, {"made": 0}, {"width": 0, "new": 0, "made": 0}) == ["prior", "model"]  # NaN goes down
    broken.fails = ("model",)
    assert rungs(ladder, ROWS[0]) == ["prior"]


def test_more_classes_fall_to_their_shares(tmp_path: Path) -> None:
    make_ladder_bundle(tmp_path / "bundle", classes=["x", "y", "z"])
    broken = Failing.open(tmp_path / "bundle")
    broken.fails = ("model", "context")
    answer = FallbackLadder(broken).answer([ROW, ROW])
    np.testing.assert_allclose(answer["output"], [[0.2, 0.5, 0.3]] * 2, rtol=1e-6)
    assert answer["class"].tolist() == ["y", "y"]


def test_a_bundle_without_a_prior_is_refused(tmp_path: Path) -> None:
    make_ladder_bundle(tmp_path / "bundle", fallback={})
    with pytest.raises(BundleError, match=r"fallback\.json holds no prior"):
        FallbackLadder(Bundle.open(tmp_path / "bundle"))


# A service


def test_many_threads_ask_one_ladder(ladder: FallbackLadder) -> None:
    expected, wrong = ladder.answer(ROW)["output"].tolist(), []

    def ask() -> None:
        for _ in range(200):
            if ladder.answer(ROW)["output"].tolist() != expected or rungs(ladder, {"made": 0}) != ["context"]:
                wrong.append(1)

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_many_threads_lose_no_failure(bundle: Bundle) -> None:
    ladder = FallbackLadder(bundle, None)
    switch = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=lambda: ladder.answer([ROW] * 50)) for _ in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(switch)
    assert ladder.failures == dict.fromkeys(["maker", "spot", "market"], 800)
