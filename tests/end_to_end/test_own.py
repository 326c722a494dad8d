"""The user's room: the examples of `notebooks/own`, uncommented, go the whole way without any other edit."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import CANDIDATES, ROOT, Project, shared_project
from helpers.services import service
from helpers.shops import build_begun

from nbs_lib.bundle.bundle import Bundle
from nbs_lib.registry.pointers import champion_path

pytestmark = pytest.mark.xdist_group("own")  # one process, one run


def edit_export_cell(path: Path, change: Callable[[str], str]) -> None:
    """Change the last exported cell of a notebook."""
    book = json.loads(path.read_text())
    cell = [c for c in book["cells"] if "#| export" in "".join(c["source"])][-1]
    cell["source"] = change("".join(cell["source"])).splitlines(keepends=True)
    path.write_text(json.dumps(book, indent=1, ensure_ascii=False) + "\n")


def uncomment(source: str) -> str:
    """Remove the comment signs from the example, as a person would."""
    first, *lines = source.splitlines()
    code = [line[2:] if line.startswith("# ") else line.removeprefix("#") for line in lines]
    start = next(n for n, line in enumerate(code) if re.match(r"VIEWS.append|@register|def ", line))
    return "\n".join([first, *lines[:start], *code[start:]])


def make_lib(project: Project) -> None:
    assert project.call([sys.executable, ".ci/export"]).returncode == 0
    done = project.nbs("deps")
    assert done.returncode == 0, done.stderr


def export_notebook(project: Project, name: str) -> None:
    """Write the module of one notebook alone: the rest is as it was."""
    code = f"from nbdev.export import nb_export; nb_export({name!r})"
    done = project.call([sys.executable, "-c", code])
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def shops(tmp_path_factory: pytest.TempPathFactory) -> Project:
    return shared_project("begun", build_begun).copy(tmp_path_factory.mktemp("own") / "project")


def test_a_view_and_a_candidate_of_ones_own(shops: Project) -> None:
    before = shops.outputs()
    notebooks = {path: path.read_bytes() for path in (shops.root / "notebooks/own").glob("*.ipynb")}
    assert len(notebooks) == 3

    shops.set(candidates="[extra_trees]")
    for path in notebooks:
        edit_export_cell(path, uncomment)
    make_lib(shops)
    done = shops.nbs("run")
    assert done.returncode == 0, done.stderr[-3000:]
    metrics = json.loads((shops.root / "models/metrics.json").read_text())
    assert set(metrics["candidates"]) == {"dummy", "linear", "extra_trees"}
    pages = {name: (shops.root / f"reports/{name}.html").read_text() for name in ("train", "evaluate", "features")}
    assert "extra_trees" in pages["train"]
    assert "extra_trees" in pages["evaluate"]
    assert "shop_week" in pages["features"]
    assert "shop_week_amount_7d" in (shops.root / "data/contract/features.yaml").read_text()
    bundle = Bundle.open(shops.root / "models/bundle")
    assert [view["name"] for view in bundle.views] == ["shop_week"]

    if champion_path(shops.root).name != bundle.id:  # held by the gate: a person decides
        shutil.copytree(shops.root / "models/bundle", shops.root / "served" / bundle.id, dirs_exist_ok=True)
        (shops.root / "served/CURRENT").write_text(f"{bundle.id}\n")
    assert shops.nbs("materialize").returncode == 0
    parity = shops.nbs("parity", "--instants", "3", "--entities", "50")
    assert parity.returncode == 0, parity.stderr
    assert "0 mismatches" in parity.stdout + parity.stderr
    assert Bundle.open(champion_path(shops.root)).id == bundle.id
    with service(shops.root) as running:
        status, answer = running.ask({"sold_at": "2020-02-20T08:00:00Z", "shop": "north", "amount": 12.5, "size": 9})
    assert (status, answer["rung"]) == (200, "model")

    for path, content in notebooks.items():
        path.write_bytes(content)
    make_lib(shops)
    shops.set(candidates=CANDIDATES)
    done = shops.nbs("run")
    assert done.returncode == 0, done.stderr[-3000:]
    after = shops.outputs()
    assert {name for name in before if before[name] != after.get(name)} == set()
    assert set(after) == set(before)


@pytest.mark.parametrize(
    ("notebook", "change", "told"),
    [
        ("01_views", lambda s: s + "\n\nVIEWS = None", "notebooks/own/01_views.ipynb: VIEWS has to be a list of views"),
        (
            "01_views",
            lambda s: s + "\n\nVIEWS.append(None)",
            "notebooks/own/01_views.ipynb: VIEWS has to be a list of views",
        ),
        (
            "01_views",
            lambda s: s + "\n\nVIEWS.append(Vew())",
            "notebooks/own: the notebook of views fails with NameError",
        ),
        ("01_views", lambda s: uncomment(s) + "\nVIEWS.append(VIEWS[0])", "shop_week"),
        (
            "02_candidates",
            lambda s: uncomment(s).replace('"extra_trees"', '"linear"'),
            "there is a candidate 'linear' in",
        ),
        (
            "02_candidates",
            lambda s: s + "\n\n1 / 0",
            "notebooks/own: the notebook of candidates fails with ZeroDivision",
        ),
    ],
)
def test_a_mistake_is_one_sentence(
    shops: Project, tmp_path: Path, notebook: str, change: Callable[[str], str], told: str
) -> None:
    project = shops.copy(tmp_path / "project")
    edit_export_cell(project.root / f"notebooks/own/{notebook}.ipynb", change)
    export_notebook(project, f"notebooks/own/{notebook}.ipynb")
    stage = "features" if "views" in notebook else "train"
    done = project.call([sys.executable, "-m", "nbs_lib.pipeline.runner", stage])
    assert done.returncode == 1
    assert told in done.stderr, done.stderr[-2000:]
    assert "Traceback" not in done.stderr


EITHER_FIRST = """
import importlib, sys
for first in ("nbs_lib.own.candidates", "nbs_lib.models.candidates"):
    importlib.import_module(first)
    print(first, *importlib.import_module("nbs_lib.models.candidates").CANDIDATES)
    for name in [name for name in sys.modules if name.startswith("nbs_lib")]:
        del sys.modules[name]
"""


def test_either_may_be_imported_first() -> None:
    done = subprocess.run([sys.executable, "-c", EITHER_FIRST], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    own, library = done.stdout.splitlines()
    names = ["dummy", "linear", "hgb_small", "lgbm", "blend", "net"]
    assert own.split() == ["nbs_lib.own.candidates", *names]
    assert library.split() == ["nbs_lib.models.candidates", *names]
