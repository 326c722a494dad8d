"""`nbs` ends at once, and as any program does: its exit code, its sentence, what libraries do in the end."""

import subprocess
import sys

import pytest

CODE = """
import atexit, sys, threading, time
from nbs_lib import cli
def main():
    atexit.register(print, "tidied up")
    threading.Thread(target=lambda: (time.sleep(0.2), print("late"))).start()
    {}
cli.main = main
cli.start()
"""
ENDS = {
    "print('out')": (0, "out\nlate\ntidied up\n", ""),
    "sys.exit()": (0, "late\ntidied up\n", ""),
    "sys.exit(7)": (7, "late\ntidied up\n", ""),
    "sys.exit('one sentence')": (1, "late\ntidied up\n", "one sentence\n"),
    "raise ValueError('broken')": (1, "late\ntidied up\n", "ValueError: broken\n"),
}


@pytest.mark.parametrize("body", ENDS)
def test_it_ends_as_any_program_does(body: str) -> None:
    code, out, err = ENDS[body]
    done = subprocess.run([sys.executable, "-c", CODE.format(body)], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr[-len(err) or None :]) == (code, out, err)


STREAMS = {
    "deps --help > /dev/full": 1,
    "deps --help >&-": 0,
    "deps --help 2>&-": 0,
    "deps --help >&- 2>&-": 0,
    "dips 2>&-": 2,
    "dips > /dev/full": 2,
    "predict nothing.csv 2>&-": 1,
}


@pytest.mark.parametrize("typed", STREAMS)
def test_a_stream_that_is_closed_or_full(typed: str) -> None:
    command = ["sh", "-c", f"{sys.executable} -m nbs_lib.cli {typed}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == STREAMS[typed], done.stderr
    assert "Traceback" not in done.stderr + done.stdout
