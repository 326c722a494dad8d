"""The end of a run is imported, and its database created, while a stage works; not where nothing is to be done."""

import subprocess
import sys
from pathlib import Path

import pytest

CODE = """
import sys, threading
from pathlib import Path
from nbs_lib.pipeline import run
works, *left = sys.argv[1:]
staging = Path(".nbs/staging")
for name in left:
    (staging / name).mkdir(parents=True)
before, ended = run._staged(), threading.Event()
if works:
    for name in {works} & {*left}:
        (staging / name).rmdir()  # as the stage does
    (staging / works).mkdir(parents=True)
else:
    ended.set()
run._prepare_end(ended, before)
print(*({"mlflow", "nbs_lib.data.roles"} & {*sys.modules}))
"""
CASES = {
    "nothing to do": ("", []),
    "a killed run has left it": ("", ["snapshot"]),
    "a stage works": ("snapshot", []),
    "a stage works that was killed before, beside another": ("snapshot", ["snapshot", "monitor"]),
}


@pytest.mark.parametrize("case", CASES)
def test_it_is_prepared_once_a_stage_works(tmp_path: Path, case: str) -> None:
    works, left = CASES[case]
    command = ["nice", "-n", "17", sys.executable, "-c", CODE, works, *left]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    assert {*done.stdout.split()} == ({"mlflow", "nbs_lib.data.roles"} if works else set())
    assert (tmp_path / "mlflow.db").exists() == bool(works)
