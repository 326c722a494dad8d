"""The notebooks' own examples and tests, each run from top to bottom, and what they show beside what is stored."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import ROOT

from nbs_lib.core.errors import UserError
from nbs_lib.testing.notebook_outputs import differing_cells, index_text, library_notebooks

pytestmark = pytest.mark.filterwarnings("error:::__main__")  # as pyproject.toml has it for nbs_lib
Cells = dict[str, dict]  # by their ids


@pytest.mark.parametrize(
    "notebook",
    library_notebooks(ROOT),
    ids=lambda path: path.relative_to(ROOT / "notebooks").with_suffix("").as_posix(),
)
def test_a_notebook_runs_from_top_to_bottom(notebook: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in JupyterLab: nothing is used before it is defined, and what is shown is what is stored."""
    monkeypatch.chdir(ROOT)
    assert differing_cells(notebook.relative_to(ROOT)) == []


FORMAT_NB = ROOT / "notebooks/lib/core/10_format.ipynb"
DEFINES, EXAMPLE, LATER, LATER_EXAMPLE = "f988b4c0", "4bb2e9d6", "24d8bb05", "d1b7db0f"


def move_up(cells: Cells) -> None:
    cells[LATER], cells[LATER_EXAMPLE] = cells[LATER_EXAMPLE], cells[LATER]


def replace(id: str, before: str, after: str) -> Callable[[Cells], None]:
    def plant(cells: Cells) -> None:
        text = json.dumps(cells[id])
        assert before in text
        cells[id] = json.loads(text.replace(before, after))

    return plant


FAULTS: dict[str, tuple[Callable[[Cells], object], str]] = {
    "an example before what it uses": (move_up, f"{LATER_EXAMPLE}: NameError: name 'format_count'"),
    "what only the module has": (lambda cells: cells.pop(LATER), f"{LATER_EXAMPLE}: NameError: name 'format_count'"),
    "a function that needs a later cell": (
        replace(DEFINES, r"\"no interval\"", r"format_count(0, \"row\")"),
        f"{EXAMPLE}: NameError: name 'format_count'",
    ),
    "a failing example": (replace(LATER_EXAMPLE, "1 row", "1 rows"), f"{LATER_EXAMPLE}: AssertionError"),
    "a failing function": (replace(DEFINES, "no interval", "no end"), f"{EXAMPLE}: AssertionError"),
    "another folder": (replace(EXAMPLE, "test_eq(", "open('settings.ini')#"), f"{EXAMPLE}: FileNotFoundError"),
    "a warning": (
        replace(DEFINES, "if value is None", r"__import__('warnings').warn('old')\n    if value is None"),
        f"{EXAMPLE}: UserWarning: old",
    ),
    "another output": (replace(EXAMPLE, "+0.200'", "+0.201'"), "it shows \"'+0.100 to +0.200'\", and"),
    "an output that is not stored": (lambda cells: cells[EXAMPLE].update(outputs=[]), "and nothing is stored"),
    "an output that is not shown": (replace(EXAMPLE, "sign=True)", "sign=True);"), "it shows nothing, and"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_found(fault: str, tmp_path: Path) -> None:
    content = json.loads(FORMAT_NB.read_text())
    cells = {cell["id"]: cell | {"source": "".join(cell["source"])} for cell in content["cells"]}
    plant, names = FAULTS[fault]
    plant(cells)
    (tmp_path / "10_format.ipynb").write_text(json.dumps(content | {"cells": list(cells.values())}))
    try:
        found = differing_cells(tmp_path / "10_format.ipynb")
    except UserError as error:
        found = [str(error)]
    assert names in "\n".join(found)


SAID = {
    "assert 1 == 2": "AssertionError, at `assert 1 == 2`",
    "x = 1\nhalf(\n    0,\n)": "ZeroDivisionError: division by zero, at `half(`",
    "#| export\nwhole = half(0)": "ZeroDivisionError: division by zero, at `whole = half(0)`",
    "#| export\nx = half(": "SyntaxError: '(' was never closed",
    "raise ValueError('a\\nb' + 'c' * 400)": f"ValueError: a b{'c' * 297}, at `raise",
}


@pytest.mark.parametrize("source", SAID)
def test_a_failing_cell_is_told_with_its_line(source: str, tmp_path: Path) -> None:
    sources = ["#| default_exp core.format", "#| export\ndef half(x):\n    return 1 / x", source]
    cell = {"cell_type": "code", "metadata": {}, "execution_count": None, "outputs": []}
    cells = [cell | {"id": f"c{k}", "source": text} for k, text in enumerate(sources)]
    (tmp_path / "01_a.ipynb").write_text(json.dumps({"cells": cells}))
    with pytest.raises(UserError) as raised:
        differing_cells(tmp_path / "01_a.ipynb")
    assert f"cell c2: {SAID[source]}" in str(raised.value)


def test_the_index_lists_all_notebooks() -> None:
    assert (ROOT / "notebooks/README.md").read_text() == index_text(ROOT), "run `make lib`"
