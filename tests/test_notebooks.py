"""The notebooks' own examples and tests, run against the exported module, so that coverage counts them."""

import importlib
import json
import os
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted(p for folder in ("lib", "own") for p in (ROOT / "notebooks" / folder).rglob("[0-9]*.ipynb"))


def code_cells(notebook: Path) -> list[str]:
    cells = json.loads(notebook.read_text())["cells"]
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]


@pytest.mark.parametrize(
    "notebook", NOTEBOOKS, ids=lambda path: path.relative_to(ROOT / "notebooks").with_suffix("").as_posix()
)
def test_examples(notebook: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cells = code_cells(notebook)
    name = next(m[1] for cell in cells if (m := re.search(r"#\| default_exp (\S+)", cell)))
    names = vars(importlib.import_module(f"nbs_lib.{name}")) | {"display": lambda *_: None}
    monkeypatch.chdir(ROOT)
    before = dict(os.environ)
    try:
        for number, cell in enumerate(cells):
            if not re.search(r"#\| *(export|default_exp|eval: *false|notest)", cell) and "nbdev_export" not in cell:
                exec(compile(cell, f"{notebook.name}, code cell {number}", "exec"), names)
    finally:
        os.environ.clear()
        os.environ.update(before)
