"""Processes that begin at the same moment."""

import os
import subprocess
import sys

FORKS = """
import multiprocessing, sys
from nbs_lib.registry.mlflow_client import _import_mlflow
_import_mlflow()  # once, for all
start = multiprocessing.get_context("fork").Process
forks = [start(target=exec, args=[sys.argv[2], {}]) for _ in range(int(sys.argv[1]))]
for fork in forks: fork.start()
for fork in forks: fork.join()
print([fork.exitcode for fork in forks])
"""


def run_at_once(count: int, code: str) -> tuple[list[str], str]:
    """Run code in so many processes: the lines that they print, sorted, and their exit codes; their complaints."""
    command = [sys.executable, "-c", FORKS, str(count), code]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONUNBUFFERED"}  # a line is one write
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)
    *lines, codes = done.stdout.splitlines() or [""]
    return [*sorted(lines), codes], done.stderr
