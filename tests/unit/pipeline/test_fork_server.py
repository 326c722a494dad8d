"""The fork server: whoever is killed, no process is left; where there is no server, a kernel is an ordinary one."""

import functools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from helpers import waiting
from jupyter_client.connect import write_connection_file

from nbs_lib.pipeline import fork_server
from nbs_lib.pipeline.fork_server import SERVER_ENV, fork_command

pytestmark = [
    pytest.mark.xdist_group("forks"),
    pytest.mark.skipif(sys.platform != "linux", reason="kernels are forked on Linux only"),
]


until = functools.partial(waiting.until, seconds=60)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    path = tmp_path / "s"
    command = [sys.executable, fork_server.__file__, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as process:
        until(path.exists)
        yield process
        process.kill()


def client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> subprocess.Popen[bytes]:
    "A process that stands for a kernel, as Papermill starts it."
    monkeypatch.setenv(SERVER_ENV, str(tmp_path / "s"))
    file, _ = write_connection_file(str(tmp_path / "kernel.json"), transport="ipc", ip=str(tmp_path / "k"))
    command = fork_command("ipykernel.kernelapp:launch_new_instance", "-f", file) or []
    return subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)


def kernels(server: subprocess.Popen[bytes]) -> list[psutil.Process]:
    return psutil.Process(server.pid).children()


def gone(process: psutil.Process) -> bool:
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


@pytest.fixture
def running(
    server: subprocess.Popen[bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[subprocess.Popen[bytes], psutil.Process]]:
    asking = client(tmp_path, monkeypatch)
    until(lambda: list(tmp_path.glob("k-*")))  # it listens; before, a library may have a child of its own for a moment
    yield asking, kernels(server)[0]
    asking.kill()
    asking.wait()


def test_a_client_is_killed(
    server: subprocess.Popen[bytes], running: tuple[subprocess.Popen[bytes], psutil.Process]
) -> None:
    asking, kernel = running
    asking.kill()
    until(lambda: gone(kernel))
    assert server.poll() is None


def test_the_server_is_killed(
    server: subprocess.Popen[bytes], running: tuple[subprocess.Popen[bytes], psutil.Process]
) -> None:
    asking, kernel = running
    server.kill()
    until(lambda: gone(kernel))
    assert asking.wait(10) != 0


@pytest.mark.parametrize("how", ["its parent ends", "SIGTERM"])
def test_the_server_ends_with_its_kernels(
    server: subprocess.Popen[bytes], running: tuple[subprocess.Popen[bytes], psutil.Process], how: str
) -> None:
    assert server.stdin
    server.stdin.close() if how == "its parent ends" else server.terminate()
    assert server.wait(10) == 0
    until(lambda: gone(running[1]))


def test_a_client_is_killed_while_libraries_are_imported(
    server: subprocess.Popen[bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asking = client(tmp_path, monkeypatch)
    time.sleep(0.3)  # the server imports for seconds
    asking.kill()
    asking.wait()
    second = client(tmp_path, monkeypatch)
    until(lambda: len([kernel for kernel in kernels(server) if not gone(kernel)]) == 1)
    assert server.poll() is None
    os.kill(second.pid, signal.SIGTERM)  # is handed on to the kernel
    assert second.wait(20) != 0
    until(lambda: not kernels(server))


ENDS = {
    "print('out'); sys.exit()": (0, "out\n"),
    "sys.exit(7)": (7, ""),
    "sys.exit('one sentence')": (1, "one sentence\n"),
    "raise ValueError('broken')": (1, "ValueError: broken\n"),
    "os.kill(os.getpid(), 9)": (-9, ""),
    "threading.Thread(target=lambda: (time.sleep(0.5), print('late'))).start()": (0, "late\n"),
    "os.kill(os.getpid(), 15)": (-15, ""),
}


def test_a_fork_ends_as_its_command_would(
    server: subprocess.Popen[bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(SERVER_ENV, str(tmp_path / "s"))
    monkeypatch.syspath_prepend(tmp_path)
    for k, (body, (code, said)) in enumerate(ENDS.items()):
        (tmp_path / f"mine_{k}.py").write_text(f"import os, sys, threading, time\ndef run(): {body}\n")
        done = subprocess.run(fork_command(f"mine_{k}:run") or [], capture_output=True, text=True, timeout=60)
        assert (done.returncode, (done.stdout + done.stderr)[-len(said) or None :]) == (code, said), done.stderr


def test_a_fork_that_can_not_begin_harms_no_other(
    server: subprocess.Popen[bytes],
    running: tuple[subprocess.Popen[bytes], psutil.Process],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.setenv(SERVER_ENV, str(tmp_path / "s"))
    command = ["sh", "-c", 'rmdir ../gone; exec "$@"', "sh", *(fork_command("os:getpid") or [])]
    done = subprocess.run(command, cwd=tmp_path / "gone", capture_output=True, text=True, timeout=60)
    assert done.returncode != 0
    assert not gone(running[1])
    assert server.poll() is None


def test_without_a_server_it_is_an_ordinary_kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "s").write_text(json.dumps("no socket"))
    asking = client(tmp_path, monkeypatch)
    until(lambda: "ipykernel.kernelapp" in " ".join(psutil.Process(asking.pid).cmdline()))
    asking.kill()
    asking.wait()
