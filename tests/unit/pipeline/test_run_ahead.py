"""The end of a run is imported, and its database created, while a stage works; not where nothing is to be done."""

import subprocess
import sys
from pathlib import Path

import pytest

CODE = """
import sys, threading
from pathlib import Path
from nbs_lib.pipeline import run
ended = threading.Event()
ended.set()
run._prepare_end(ended, {Path(left) for left in sys.argv[1:]})
print(*({"mlflow", "nbs_lib.data.roles"} & {*sys.modules}))
"""
CASES = {
    "nothing to do": (None, [], False),
    "a stage works": ("snapshot", [], True),
    "a stage works beside what a killed run has left": ("snapshot", ["monitor"], True),
    "a killed run has left it": ("snapshot", ["snapshot"], False),
}


@pytest.mark.parametrize("case", CASES)
def test_it_is_prepared_once_a_stage_works(tmp_path: Path, case: str) -> None:
    works, left, expected = CASES[case]
    for name in {*left, works} - {None}:
        (tmp_path / ".nbs/staging" / str(name)).mkdir(parents=True)
    command = [sys.executable, "-c", CODE, *(f".nbs/staging/{name}" for name in left)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert {*done.stdout.split()} == ({"mlflow", "nbs_lib.data.roles"} if expected else set())
    assert (tmp_path / "mlflow.db").exists() == expected
