"""The fork server: whoever is killed, no process is left; where there is no server, a kernel is an ordinary one."""

import contextlib
import functools
import json
import os
import signal
import socket
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


Server = subprocess.Popen[bytes]


@contextlib.contextmanager
def started(path: Path) -> Iterator[Server]:
    with subprocess.Popen([sys.executable, fork_server.__file__, str(path)], stdin=subprocess.PIPE) as process:
        until(path.exists)
        yield process
        process.kill()


@pytest.fixture(scope="module")
def lasting_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One for the tests that do not end it: it imports the libraries once, which takes seconds."""
    with started(tmp_path_factory.mktemp("lasting") / "s") as process:
        yield process


@pytest.fixture
def lasting(lasting_server: Server, monkeypatch: pytest.MonkeyPatch) -> Server:
    monkeypatch.setenv(SERVER_ENV, lasting_server.args[-1])
    return lasting_server


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """One of a test's own."""
    monkeypatch.setenv(SERVER_ENV, str(tmp_path / "s"))
    with started(tmp_path / "s") as process:
        yield process


def client(tmp_path: Path) -> subprocess.Popen[bytes]:
    "A process that stands for a kernel, as Papermill starts it."
    file, _ = write_connection_file(str(tmp_path / "kernel.json"), transport="ipc", ip=str(tmp_path / "k"))
    command = fork_command("ipykernel.kernelapp:launch_new_instance", "-f", file) or []
    return subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)


def kernels(server: Server) -> list[psutil.Process]:
    return [each for each in psutil.Process(server.pid).children() if not gone(each)]


def gone(process: psutil.Process) -> bool:
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


@contextlib.contextmanager
def running(server: Server, tmp_path: Path) -> Iterator[tuple[subprocess.Popen[bytes], psutil.Process]]:
    """A client, and its kernel."""
    asking = client(tmp_path)
    until(lambda: list(tmp_path.glob("k-*")) and len(kernels(server)) == 1)  # it listens
    kernel = min(kernels(server), key=psutil.Process.create_time)  # a library may have a child of its own for a moment
    yield asking, kernel
    asking.kill()
    asking.wait()
    until(lambda: gone(kernel))


def test_a_client_is_killed_while_libraries_are_imported(lasting: Server, tmp_path: Path) -> None:
    busy = psutil.Process(lasting.pid)
    busy.suspend()  # as while it imports: it answers nobody
    asking = client(tmp_path)
    time.sleep(0.3)
    asking.kill()
    asking.wait()
    assert not kernels(lasting)
    busy.resume()
    second = client(tmp_path)
    until(lambda: len(kernels(lasting)) == 1)
    assert lasting.poll() is None
    os.kill(second.pid, signal.SIGTERM)  # is handed on to the kernel
    assert second.wait(20) != 0
    until(lambda: not kernels(lasting))


def test_a_library_that_can_not_be_imported_ends_no_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tried = tmp_path / "tried"
    code = f"open({str(tried)!r}, 'x').close()\nraise OSError('libgomp.so.1 is not there')\n"
    (tmp_path / f"{fork_server._OF_LATER_STAGES[0]}.py").write_text(code)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv(SERVER_ENV, str(tmp_path / "s"))
    with started(tmp_path / "s") as process:
        for _ in range(2):
            assert subprocess.run(fork_command("platform:machine") or []).returncode == 0
            until(tried.exists)  # the second is answered after the import
        assert process.poll() is None


def test_a_kernel_waits_for_no_import(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tried = tmp_path / "tried"
    code = f"import time\ntime.sleep(2)\nopen({str(tried)!r}, 'x').close()\n"
    (tmp_path / f"{fork_server._OF_LATER_STAGES[0]}.py").write_text(code)
    (tmp_path / "looking.py").write_text(f"import os\ndef run(): print(os.path.exists({str(tried)!r}))\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv(SERVER_ENV, str(tmp_path / "s"))
    monkeypatch.syspath_prepend(tmp_path)
    with started(tmp_path / "s"):
        command = fork_command("looking:run") or []
        asked = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]  # stage and kernel
        assert [each.communicate(timeout=60)[0] for each in asked] == ["False\n", "False\n"]
        until(tried.exists)


def test_a_client_is_killed(lasting: Server, tmp_path: Path) -> None:
    with running(lasting, tmp_path) as (asking, kernel):
        asking.kill()
        until(lambda: gone(kernel))
        assert lasting.poll() is None


def test_the_server_is_killed(server: Server, tmp_path: Path) -> None:
    with running(server, tmp_path) as (asking, kernel):
        server.kill()
        until(lambda: gone(kernel))
        assert asking.wait(10) != 0


@pytest.mark.parametrize("how", ["its parent ends", "SIGTERM"])
def test_the_server_ends_with_its_kernels(server: Server, tmp_path: Path, how: str) -> None:
    with running(server, tmp_path) as (_, kernel):
        assert server.stdin
        server.stdin.close() if how == "its parent ends" else server.terminate()
        assert server.wait(10) == 0
        until(lambda: gone(kernel))


ENDS = {
    "print('out'); sys.exit()": (0, "out\n"),
    "sys.exit(7)": (7, ""),
    "sys.exit('one sentence')": (1, "one sentence\n"),
    "raise ValueError('broken')": (1, "ValueError: broken\n"),
    "os.kill(os.getpid(), 9)": (-9, ""),
    "threading.Thread(target=lambda: (time.sleep(0.5), print('late'))).start()": (0, "late\n"),
    "os.kill(os.getpid(), 15)": (-15, ""),
    "print(gc.isenabled())": (0, "True\n"),
    "weakref.finalize(sys, print, 'tidied up')": (0, "tidied up\n"),
    "print(sum(each.atexit for each in weakref.finalize._registry))": (0, "0\n"),
}


@pytest.mark.usefixtures("lasting")
def test_a_fork_ends_as_its_command_would(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    for k, (body, (code, said)) in enumerate(ENDS.items()):
        (tmp_path / f"mine_{k}.py").write_text(f"import gc, os, sys, threading, time, weakref\ndef run(): {body}\n")
        done = subprocess.run(fork_command(f"mine_{k}:run") or [], capture_output=True, text=True, timeout=60)
        assert (done.returncode, (done.stdout + done.stderr)[-len(said) or None :]) == (code, said), done.stderr


def test_a_client_ends_with_who_started_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also while it waits for a server that does not answer yet: nobody is left for whom it would stand."""
    monkeypatch.setenv(SERVER_ENV, str(tmp_path / "s"))
    code = f"import subprocess; p = subprocess.Popen({fork_command('os:getpid')}); print(p.pid, flush=True); p.wait()"
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as silent:
        silent.bind(str(tmp_path / "s"))
        silent.listen()
        with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as parent:
            assert parent.stdout
            started = psutil.Process(int(parent.stdout.readline()))
            asked, _ = silent.accept()
            assert asked.recv(1), "it has asked, and waits"
            parent.kill()
        until(lambda: gone(started))
        asked.close()


def test_a_fork_that_can_not_begin_harms_no_other(lasting: Server, tmp_path: Path) -> None:
    (tmp_path / "gone").mkdir()
    command = ["sh", "-c", 'rmdir ../gone; exec "$@"', "sh", *(fork_command("os:getpid") or [])]
    with running(lasting, tmp_path) as (_, kernel):
        done = subprocess.run(command, cwd=tmp_path / "gone", capture_output=True, text=True, timeout=60)
        assert done.returncode != 0
        assert not gone(kernel)
        assert lasting.poll() is None


def test_without_a_server_it_is_an_ordinary_kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "s").write_text(json.dumps("no socket"))
    monkeypatch.setenv(SERVER_ENV, str(tmp_path / "s"))
    asking = client(tmp_path)
    until(lambda: "ipykernel.kernelapp" in " ".join(psutil.Process(asking.pid).cmdline()))
    asking.kill()
    asking.wait()
