"""A project that is watched and learns again: what its shops sell, and its first champion."""

import subprocess
from pathlib import Path

import numpy as np
import pandas as pd
from conftest import ROOT, Project, small

from nbs_lib.pipeline.clone import clone_project

DAYS, HOURLY = 240, 20
START = pd.Timestamp("2020-01-01", tz="UTC")


def shop(days: int = DAYS, seed: int = 0) -> pd.DataFrame:
    """What shops sell, hour by hour: days have a mood, and from the twelfth week on the amount matters too."""
    rng, n = np.random.default_rng(seed), days * HOURLY
    day = np.repeat(np.arange(days), HOURLY)
    x, z, mood = rng.normal(size=n), rng.normal(size=n), rng.normal(size=days)[day] * 0.3
    odds = 2.0 * x + np.where(day >= 84, 2.0 * z, 0.0) + mood
    table = pd.DataFrame({"sold_at": START + pd.to_timedelta(day * 24 + np.tile(np.arange(HOURLY), days), unit="h")})
    table["number"] = [f"n{k}" for k in range(n)]
    table["size"], table["amount"] = x.round(4) + 10, z.round(4) + 10
    table["shop"] = rng.choice(["north", "south", "east"], n)
    table["sold"] = np.where(rng.random(n) < 1 / (1 + np.exp(-odds)), "yes", "no")
    table["returned"] = (rng.random(n) < 0.2).astype(int)
    return table


def git(root: Path, *arguments: str) -> str:
    command = ["git", "-C", str(root), "-c", "user.name=a", "-c", "user.email=a@b.c", *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def build_begun(place: Path) -> None:
    """The champion knows the first four months."""
    project = Project(clone_project(place, ROOT))
    shop().to_csv(project.root / "shop.csv", index=False)
    more = {"timestamp": "sold_at", "key": "[number]", "later": "[returned]", "label_delay": "1d"}
    small(project, "shop.csv", "sold", **more, as_of="'2020-05-01'", labels="200")
    git(project.root, "checkout", "-q", "-B", "main")
    git(project.root, "add", "-A", "--", ".", ":!shop.csv")
    git(project.root, "commit", "-qm", "a table of my own")
    done = project.nbs("run")
    assert done.returncode == 0, done.stderr[-3000:]
    assert "PROMOTE" in done.stdout, done.stdout
    git(project.root, "commit", "-qam", "the first champion")
