"""The notebooks' own examples and tests, run against the exported module, and what they show beside what is stored."""

from pathlib import Path

import pytest

from nbs_lib.testing.notebook_outputs import differing_cells, library_notebooks

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize(
    "notebook",
    library_notebooks(ROOT),
    ids=lambda path: path.relative_to(ROOT / "notebooks").with_suffix("").as_posix(),
)
def test_examples(notebook: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    assert differing_cells(notebook.relative_to(ROOT)) == []
