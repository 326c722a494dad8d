"""The notebooks' own examples and tests, run against the exported module, and what they show beside what is stored."""

from pathlib import Path

import pytest
from conftest import ROOT

from nbs_lib.testing.notebook_outputs import differing_cells, index_text, library_notebooks


@pytest.mark.parametrize(
    "notebook",
    library_notebooks(ROOT),
    ids=lambda path: path.relative_to(ROOT / "notebooks").with_suffix("").as_posix(),
)
def test_examples(notebook: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    assert differing_cells(notebook.relative_to(ROOT)) == []


def test_the_index_lists_all_notebooks() -> None:
    assert (ROOT / "notebooks/README.md").read_text() == index_text(ROOT), "run `make lib`"
