"""Planted leaks of ten kinds are named, each with its code and column; what is honest is not."""

from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT

from nbs_lib.core.errors import DataError, ParamsError
from nbs_lib.core.findings import CATALOG, FINDINGS_PAGE, GRAVE, Finding, findings_page, parse_acknowledged
from nbs_lib.data.resolve import resolve_roles
from nbs_lib.data.split import training_set
from nbs_lib.data.table import Source
from nbs_lib.doctor.baseline import baseline
from nbs_lib.doctor.examine import examine, require_acknowledged

N = 1200


def honest(seed: int = 0) -> pd.DataFrame:
    """Sales: what is told of the target is told honestly."""
    rng = np.random.default_rng(seed)
    table = pd.DataFrame({"at": pd.Timestamp("2020-01-01", tz="UTC") + pd.to_timedelta(np.arange(N) * 3, unit="h")})
    table["shop"], table["city"] = rng.choice(list("abcdefgh"), N), rng.choice(["Rome", "Bonn", "Oslo"], N)
    table["size"], table["price"] = rng.normal(size=N), rng.gamma(2, 10, N)
    table["rebate"] = np.where(rng.random(N) < 0.3, rng.random(N), np.nan)
    table["y"] = np.where(table["size"] + rng.normal(size=N) > 0.5, "churned", "stayed")
    return table


def findings(table: pd.DataFrame, **keys: str) -> list[Finding]:
    rows, roles = resolve_roles(Source(table), {"source": "made", "target": "y"} | keys)
    return examine(training_set(rows, roles, 0.15, 0.25), rows, roles, 0.99)[0]


def grave(table: pd.DataFrame, **keys: str) -> list[tuple[str, tuple[str, ...]]]:
    return [(each.code, each.columns) for each in findings(table, **keys) if each.kind.level == GRAVE]


def yes(table: pd.DataFrame) -> np.ndarray:
    return (table["y"] == "churned").to_numpy()


def other_name(table: pd.DataFrame) -> pd.DataFrame:
    return table.assign(status=np.where(yes(table), "gone", "here"))


def noisy_copy(table: pd.DataFrame) -> pd.DataFrame:
    return table.assign(score=yes(table) + np.random.default_rng(1).normal(0, 0.1, N))


def rounded_copy(table: pd.DataFrame) -> pd.DataFrame:
    return table.assign(y=table["price"], billed=(table["price"] * 1.19).round(0))


def words(table: pd.DataFrame) -> pd.DataFrame:
    return table.assign(note=[f"agent {k % 90}: customer {name}" for k, name in enumerate(table["y"])])


def gaps(table: pd.DataFrame) -> pd.DataFrame:
    return table.assign(refund=np.where(yes(table), np.random.default_rng(1).random(N), np.nan))


def one_class(table: pd.DataFrame) -> pd.DataFrame:
    some = yes(table) & (np.random.default_rng(1).random(N) < 0.3)
    return table.assign(reason=np.where(some, np.random.default_rng(2).choice(["price", "service"], N), None))


def identifier(table: pd.DataFrame) -> pd.DataFrame:
    return table.assign(case_no=np.argsort(np.argsort(~yes(table), kind="stable")) * 7 + 100)


def encoding(table: pd.DataFrame) -> pd.DataFrame:
    return table.assign(shop_rate=pd.Series(yes(table) * 1.0).groupby(table["shop"]).transform("mean"))


def other_rows(table: pd.DataFrame) -> pd.DataFrame:
    of_shop = pd.Series(yes(table) * 1.0).groupby(table["shop"])
    return table.assign(others=(of_shop.transform("sum") - yes(table)) / (of_shop.transform("size") - 1))


def next_row(table: pd.DataFrame) -> pd.DataFrame:
    return table.assign(following=table["y"].shift(-1))


def next_of_shop(table: pd.DataFrame) -> pd.DataFrame:
    return table.assign(following=table.groupby("shop")["y"].shift(-1))


def later_time(table: pd.DataFrame) -> pd.DataFrame:
    return table.assign(y=table["price"], closed=table["at"] + pd.to_timedelta(table["price"] * 60, unit="s"))


def difference(table: pd.DataFrame) -> pd.DataFrame:
    before = np.random.default_rng(1).normal(100, 30, N)
    return table.assign(stock=before, left=before - np.where(yes(table), 1, -1) * table["price"])


def equality(table: pd.DataFrame) -> pd.DataFrame:
    other = table["city"].map({"Rome": "Bonn", "Bonn": "Oslo", "Oslo": "Rome"})
    return table.assign(ended_in=np.where(yes(table), table["city"], other))


def copies(table: pd.DataFrame) -> pd.DataFrame:
    return pd.concat([table, table[:300]], ignore_index=True)


TIME = {"timestamp": "at"}
PLANTED = [
    (other_name, {}, "NBS010", ("status",)),
    (noisy_copy, TIME, "NBS010", ("score",)),
    (rounded_copy, TIME, "NBS010", ("billed",)),
    (words, {}, "NBS013", ("note",)),
    (gaps, TIME, "NBS012", ("refund",)),
    (one_class, TIME, "NBS012", ("reason",)),
    (identifier, {}, "NBS014", ("case_no",)),
    (encoding, TIME, "NBS016", ("shop_rate", "shop")),
    (other_rows, {}, "NBS016", ("others", "shop")),
    (next_row, TIME, "NBS015", ("following",)),
    (next_of_shop, TIME | {"entity": "shop"}, "NBS015", ("following",)),
    (later_time, TIME, "NBS011", ("at", "closed")),
    (difference, {}, "NBS011", ("stock", "left")),
    (equality, {}, "NBS011", ("city", "ended_in")),
    (copies, {}, "NBS020", ()),
]


@pytest.mark.parametrize(("plant", "keys", "code", "columns"), PLANTED, ids=[each[0].__name__ for each in PLANTED])
def test_a_planted_leak_is_named_and_nothing_else(
    plant: Callable[[pd.DataFrame], pd.DataFrame], keys: dict[str, str], code: str, columns: tuple[str, ...]
) -> None:
    assert grave(plant(honest()), **keys) == [(code, columns)]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("keys", [{}, TIME, TIME | {"entity": "shop"}], ids=["random", "time", "entity"])
def test_an_honest_table_has_no_grave_finding(keys: dict[str, str], seed: int) -> None:
    table = honest(seed)
    past = table.assign(before=table["y"].shift(1), of_shop=table.groupby("shop")["y"].shift(1))
    assert grave(past, **keys) == []


def test_an_average_of_the_past_is_honest() -> None:
    table = honest()
    past = pd.Series(yes(table) * 1.0).groupby(table["shop"]).transform(lambda each: each.shift(1).expanding().mean())
    assert grave(table.assign(past=past), **TIME) == []


def test_rows_of_coarse_columns_are_alike_by_chance() -> None:
    rng = np.random.default_rng(0)
    table = pd.DataFrame({"a": rng.integers(0, 4, N), "b": rng.choice(["x", "z"], N), "y": rng.random(N) < 0.5})
    assert grave(table) == []


@pytest.mark.parametrize("seed", range(5))
def test_groups_that_two_columns_tell_apart_are_honest(seed: int) -> None:
    """As species by their bills: long or short, deep or flat, and no one relation of the two says which it is."""
    rng = np.random.default_rng(seed)
    kind = rng.integers(0, 4, 400)
    length, depth = (100 + 9 * each + rng.normal(size=400) for each in (kind % 2, kind // 2))
    assert grave(pd.DataFrame({"length": length, "depth": depth, "y": np.array(list("abcd"))[kind]})) == []


def test_a_grave_finding_stops_until_it_is_acknowledged() -> None:
    found = findings(other_name(honest()))
    with pytest.raises(DataError, match=r"NBS010.*'status'.*data\.later: \[status\].*\[NBS010: status\]"):
        require_acknowledged(found, {})
    with pytest.raises(DataError):
        require_acknowledged(found, parse_acknowledged([{"NBS010": "size"}, "NBS011"]))
    for accepted in (["NBS010"], [{"NBS010": "status"}]):
        require_acknowledged(found, parse_acknowledged(accepted))


def test_an_unknown_code_is_refused_with_the_nearest() -> None:
    with pytest.raises(ParamsError, match=r"no code 'NBS10' \(did you mean 'NBS010'\?\)"):
        parse_acknowledged(["NBS10"])


def test_all_that_is_found_is_in_the_catalog() -> None:
    found = findings(copies(other_name(honest())))
    assert {each.code for each in found} <= set(CATALOG)
    assert found[0].kind.level == GRAVE


def test_the_guide_lists_the_catalog() -> None:
    page = (ROOT / FINDINGS_PAGE).read_text(encoding="utf-8")
    assert page == findings_page(), "make lib"
    assert all(f"| {code} |" in page for code in CATALOG)


def test_a_column_without_a_value_in_training_rows_stops_no_baseline() -> None:
    table = honest()
    late = table.assign(late=np.where(np.arange(N) >= 0.9 * N, table["size"], np.nan))
    for columns in (["at", "late", "size", "y"], ["at", "late", "y"]):
        rows, roles = resolve_roles(Source(late[columns]), {"source": "made", "target": "y", "timestamp": "at"})
        said = baseline(training_set(rows, roles, 0.15, 0.25), roles)
        assert said.startswith("Baseline: AUC 0.")
    rows, roles = resolve_roles(Source(late), {"source": "made", "target": "y"})
    ready = training_set(rows, roles, 0.15, 0.25)
    roles.columns = {name: about for name, about in roles.columns.items() if name in ("late", "y")}
    found = baseline(ready.assign(late=np.nan), roles)
    assert found == "Baseline: none, as no input has a value in a training row."


@pytest.mark.parametrize(
    ("target", "metric"),
    [("y", "AUC 0."), ("city", "log loss 1."), ("price", "RMSE 1")],
    ids=["two", "three", "number"],
)
def test_the_baseline_is_scored_by_the_metric_that_chooses(target: str, metric: str) -> None:
    rows, roles = resolve_roles(Source(honest()), {"source": "made", "target": target, "timestamp": "at"})
    assert baseline(training_set(rows, roles, 0.15, 0.25), roles).startswith(f"Baseline: {metric}")
