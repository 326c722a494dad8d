"""A kernel that takes its time is waited for, and nothing of its first cell is lost."""

import sys
from pathlib import Path

import nbformat
import pytest

from nbs_lib.pipeline import runner


def test_the_first_cell_of_a_slow_kernel_shows_what_it_shows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slow = tmp_path / "python"
    slow.write_text(f'#!/bin/sh\nsleep 2.5\nexec {sys.executable} "$@"\n')  # it is asked three times
    slow.chmod(0o755)
    monkeypatch.setattr(runner, "fork_command", lambda *_: None)
    monkeypatch.setattr(sys, "executable", str(slow))
    cells = [nbformat.v4.new_code_cell(source) for source in ("print('first')", "print('second'); 1 + 1")]
    metadata = {"kernelspec": {"name": "python3", "language": "python", "display_name": "Python 3"}}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=metadata), tmp_path / "one.ipynb")
    done = runner._execute_notebook(tmp_path / "one.ipynb", {}, tmp_path / "failed/one.ipynb", 60, print)
    shown = [[output.get("text", output.get("data")) for output in cell.outputs] for cell in done.cells]
    assert shown == [["first\n"], ["second\n", {"text/plain": "2"}]]
    assert done.metadata.language_info.version == sys.version.partition(" ")[0]
