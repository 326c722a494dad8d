"""The feature views as a Feast repository: real Feast takes it, and agrees with us about every row."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT, lacking, wait_for_environment

from nbs_lib.data.roles import Roles
from nbs_lib.features.join import build_views, point_in_time_join
from nbs_lib.features.views import View

FEAST = ROOT / ".nbs/envs/feast/bin"
NOW = pd.Timestamp("2024-03-01", tz="UTC")
COLUMNS = {"spent": {"description": "what was spent last"}, "paid": {"description": "how", "type": "text"}}

# Feast's own process: its command takes the repository; training rows through DuckDB; then what its online store says.
ASK = """
import contextlib, json, sys
import pandas as pd
from feast import FeatureStore
from feast.cli.cli import cli

with contextlib.chdir(sys.argv[1]):
    cli(["apply"], standalone_mode=False)

store, rows, asked = FeatureStore(sys.argv[1]), pd.read_parquet("rows.parquet"), json.loads(sys.argv[2])
features = [f"{view}:{column}" for view, (keys, columns) in asked.items() for column in columns]
history = store.get_historical_features(rows, features, full_feature_names=True).to_df()
history.sort_values("i", ignore_index=True).to_parquet("history.parquet")
store.materialize(pd.Timestamp("1970-01-01", tz="UTC"), pd.Timestamp(sys.argv[3]))
found = {}
for view, (keys, columns) in asked.items():
    names, entities = [f"{view}:{column}" for column in columns], rows[keys].to_dict("records")
    found |= store.get_online_features(names, entities, full_feature_names=True).to_dict()
pd.DataFrame(found).to_parquet("online.parquet")
"""


def orders() -> pd.DataFrame:
    draw = np.random.default_rng(0)
    n = 60
    return pd.DataFrame(
        {
            "sold": NOW - pd.to_timedelta(np.sort(draw.integers(0, 60 * 24 * 3600, n))[::-1] // 600 * 600, unit="s"),
            "shop": draw.choice(["a", "b", "c's", 'd "x"'], n),
            "till": draw.integers(1, 4, n),
            "amount": np.where(draw.random(n) < 0.1, np.nan, draw.integers(1, 99, n) / 4),
            "how": draw.choice(["cash", "card", None], n),
            "back": draw.choice(["no", "yes"], n),
        }
    ).astype({"sold": "datetime64[us, UTC]"})


def views() -> list[View]:
    last = "any_value(amount ORDER BY how) AS spent, min(how) AS paid FROM snapshot GROUP BY"
    made = [
        View(
            "shop",
            ("shop",),
            f"SELECT shop, sold, {last} shop, sold",
            "sold",
            COLUMNS,
            ttl="5d",
            delay="1h",
            owner="us",
        ),
        View("till", ("shop", "till"), f"SELECT shop, till, sold, {last} shop, till, sold", "sold", COLUMNS, ttl="2d"),
        View("any_shop", (), f"SELECT sold, {last} sold", "sold", COLUMNS, description='the "last" order'),
    ]
    return [*made, View("number", ("till",), f"SELECT till, sold, {last} till, sold", "sold", COLUMNS)]


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with the views of a made-up table, and its Feast repository as the command writes it."""
    root = tmp_path_factory.mktemp("orders")
    columns = {"sold": {"role": "timestamp"}, "back": {"role": "target"}} | {
        name: {"role": "categorical"} for name in ("shop", "till")
    }
    roles = Roles("t.csv", "back", "binary", ["no", "yes"], "sold", ["shop"], as_of="2024-03-02", columns=columns)
    joined, _ = build_views(orders(), roles, views(), root / "data/features", root / "none")
    joined.save(root / "data/contract/features.yaml")
    for name in ("params.yaml", "dvc.yaml"):
        (root / name).touch()
    command = [sys.executable, "-m", "nbs_lib.cli", "feast", "feast_repo"]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "feast apply" in done.stdout
    return root / "feast_repo"


def test_the_repository_is_plain_python(repository: Path) -> None:
    text = (repository / "definitions.py").read_text()
    compile(text, "definitions.py", "exec")
    assert "type: duckdb" in (repository / "feature_store.yaml").read_text()
    assert len(list((repository / "data").glob("*@*.parquet"))) == 4


def test_feast_takes_it_and_gives_the_same_values(repository: Path, tmp_path: Path) -> None:
    wait_for_environment("feast")
    if not (FEAST / "feast").exists():
        lacking("Feast is not here: `.ci/env feast` gets it")
    known = Roles.load(repository.parent / "data/contract/features.yaml").views
    rows = orders()[["shop", "till"]].assign(_at=orders()["sold"] + pd.Timedelta("90min"), all_rows="all").iloc[::4]
    rows = pd.concat([rows, rows.head(5).assign(_at=NOW), rows.head(1).assign(shop="new", _at=NOW)], ignore_index=True)
    asked = {v["name"]: (v["entity"] or ["all_rows"], v["columns"]) for v in known}
    rows.rename(columns={"_at": "event_timestamp"}).assign(i=range(len(rows))).to_parquet(tmp_path / "rows.parquet")
    command = [FEAST / "python", "-c", ASK, repository, json.dumps(asked), str(NOW)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    assert (repository / "registry.db").exists(), "it was applied"
    history, online = (pd.read_parquet(tmp_path / f"{name}.parquet") for name in ("history", "online"))

    folder = repository.parent / "data/features"
    ours = {
        "history": point_in_time_join(rows, known, folder, status=True),
        "online": point_in_time_join(rows.assign(_at=NOW), known, folder, True),
    }
    seen = set()
    for which, theirs in {"history": history, "online": online}.items():
        for view in known:
            status = ours[which][f"{view['name']}_status"]
            # Online, Feast goes on serving what has expired; there we are compared where a row is present.
            rest = status == "present" if which == "online" else pd.Series(True, index=rows.index)
            seen |= {(which, one) for one in status}
            for column in view["columns"]:
                mine, its = ours[which][f"{view['name']}_{column}"], theirs[f"{view['name']}__{column}"]
                same = (mine == its.to_numpy()) | (mine.isna() & its.isna().to_numpy())
                assert same[rest].all(), f"{which} {view['name']} {column}: {mine[~same].head()} {its[~same].head()}"
    assert seen == {(which, status) for which in ours for status in ("present", "expired", "missing")}
