"""What the end of a run needs is imported while a stage works, and not where there is nothing to do."""

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
run._import_for_the_end(ended, Path(sys.argv[1]))
print(*({"mlflow", "nbs_lib.data.roles"} & {*sys.modules}))
"""


@pytest.mark.parametrize("works", [True, False])
def test_it_is_imported_once_a_stage_works(tmp_path: Path, works: bool) -> None:
    if works:
        (tmp_path / "snapshot").mkdir()
    done = subprocess.run([sys.executable, "-c", CODE, str(tmp_path)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert {*done.stdout.split()} == ({"mlflow", "nbs_lib.data.roles"} if works else set())
