"""Faults: a full disk, a kill in any stage, a server that is down. Nothing is lost, and the next run ends the same."""

import os
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest
from conftest import Project
from helpers.stage_notebooks import notebook_with
from helpers.waiting import until

from nbs_lib.pipeline.fork_server import SERVER_ENV

STAGES = ["snapshot", "training_set", "train", "evaluate", "bundle", "report"]


def mounted(folder: Path, size: str) -> bool:
    folder.mkdir()
    return (
        os.geteuid() == 0
        and not subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], capture_output=True
        ).returncode
    )


def test_a_full_disk(project: Project) -> None:
    """The staging folder lies on a disk that is too small for what the stage writes."""
    before = project.outputs()
    disk = project.root / ".nbs/staging"
    subprocess.run(["rm", "-rf", disk], check=True)
    if not mounted(disk, "16k"):
        pytest.skip("needs root and mount, to make a small disk")
    notebook_with(project, "evaluate", "pass")  # what it finds is the same: no other stage has to run
    try:
        done = project.nbs("run")
    finally:
        subprocess.run(["umount", disk], check=True)
    assert done.returncode == 1
    assert "No space left on device" in done.stderr
    assert "Traceback" not in done.stderr
    after = project.outputs()
    assert {k: after[k] for k in before} == before
    assert project.nbs("run").returncode == 0


def kill_when(project: Project, stage: str) -> None:
    """Start a run that begins with a stage, and kill -9 its whole ancestry's head while the stage's notebook runs."""
    path = next((project.root / "notebooks/pipeline").glob(f"*_{stage}.ipynb"))
    notebook, by_force = path.read_bytes(), ["--force"] if stage == "snapshot" else []
    if not by_force:
        notebook_with(project, stage, "pass")
    environment = project.environment()
    if stage == "train":  # with a fork server of its own, as a person's run has it
        del environment[SERVER_ENV]
    process = subprocess.Popen(
        project.command("run", *by_force),
        cwd=project.root,
        env=environment,
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    )
    assert process.stderr
    assert any(line.strip().startswith(f"{stage} ") for line in process.stderr)
    time.sleep(0.3)
    process.send_signal(signal.SIGKILL)
    process.wait()
    path.write_bytes(notebook)


def at_work(root: Path) -> list[psutil.Process]:
    """The processes in a folder: what was forked has the command line of its server."""
    found = psutil.process_iter(["cwd", "status"])
    return [p for p in found if (p.info["cwd"] or "").startswith(str(root)) and p.info["status"] != "zombie"]


@pytest.mark.parametrize("stage", STAGES)
def test_kill_in_any_stage(project: Project, stage: str) -> None:
    before = project.outputs()
    lock = (project.root / "dvc.lock").read_text()
    kill_when(project, stage)
    until(lambda: not at_work(project.root))
    done = project.nbs("run")
    assert done.returncode == 0, done.stderr
    assert project.outputs() == before
    assert (project.root / "dvc.lock").read_text() == lock


def test_a_tracking_server_that_is_down(project: Project) -> None:
    notebook_with(project, "report", "print('changed')")
    started = time.monotonic()
    done = project.nbs("run", NBS_TRACKING_URI="http://127.0.0.1:9")
    assert done.returncode == 0, done.stderr
    assert "warning" in done.stderr
    assert time.monotonic() - started < 60


def test_a_damaged_output_is_noticed(project: Project) -> None:
    path = project.root / "models/bundle/model.onnx"
    damaged = bytearray(path.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    path.chmod(0o644)
    path.write_bytes(damaged)
    done = project.nbs("run")
    assert done.returncode == 0, done.stderr
    assert path.read_bytes() != bytes(damaged)
