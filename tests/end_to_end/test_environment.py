"""Another user's shell, home and machine change nothing of what runs here, and nothing that runs here calls home."""

import json
import os
import shutil
import sqlite3
import subprocess
import sys
import time
import zipfile
from collections.abc import Mapping
from pathlib import Path

from conftest import ROOT, Project, lacking
from helpers.bundles import ladder_cases
from helpers.isolated import can_isolate, isolated
from helpers.services import make_project
from helpers.stage_notebooks import notebook_with

from nbs_lib.pipeline.fork_server import SERVER_ENV

FACTS = """
import json, os, sys, matplotlib
facts = {"python": sys.executable, "path": sys.path, "title": matplotlib.rcParams["axes.titlesize"]}
facts["variables"] = sorted(os.environ)
open(".nbs/facts.json", "w").write(json.dumps(facts))
"""
ASKS = """
import os
from pathlib import Path
from helpers.services import ROW, service
del os.environ["ORT_DISABLE_TELEMETRY"]  # which the tests set for themselves
with service(Path.cwd()) as running:
    for path in ("/predict", "/explain"):
        status, said = running.ask(ROW, path)
        assert status == 200, said
"""
OWN = ("USER", "LOGNAME", "HOME", SERVER_ENV)  # the tests' own server has a network


def write_home(home: Path, mark: Path) -> None:
    """A home whose files change what Python, IPython, Jupyter and Matplotlib do, or leave a mark."""
    touch = f"open({str(mark)!r}, 'a').close()"
    lines = f"c.InteractiveShellApp.exec_lines = [{touch!r}]\n"
    files = {
        "startup.py": touch,
        ".ipython/profile_default/startup/00.py": touch,
        ".ipython/profile_default/ipython_config.py": lines,
        ".ipython/profile_default/ipython_kernel_config.py": lines,
        ".local/share/jupyter/kernels/python3/kernel.json": json.dumps(
            {"argv": ["false"], "language": "python", "display_name": "another"}
        ),
        ".config/matplotlib/matplotlibrc": "axes.titlesize: 30\n",
        "modules/another.py": touch,
    }
    for name, text in files.items():
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        (home / name).write_text(text)


def another_repository(folder: Path) -> dict[str, str]:
    """Variables that name it."""
    git = ["git", "-c", "user.name=n", "-c", "user.email=e", "-C", str(folder)]
    subprocess.run(["git", "init", "--quiet", folder], check=True)
    subprocess.run([*git, "commit", "--quiet", "--allow-empty", "-m", "another"], check=True)
    return {"GIT_DIR": str(folder / ".git"), "GIT_WORK_TREE": str(folder), "GIT_INDEX_FILE": str(folder / ".git/index")}


def long_folder(folder: Path) -> str:
    """One whose path is too long for a socket in it."""
    place = folder / ("long" * 30)
    place.mkdir()
    return str(place)


def files(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if path.is_file()}


def run_isolated(
    command: list[str], cwd: Path, report: Path, environment: Mapping[str, str], **more: str
) -> subprocess.CompletedProcess[str]:
    """Run a command without a network, as a user with neither name nor home, and with `umask 077`."""
    if not can_isolate():
        lacking("needs namespaces of its own: unshare(2)")
    env = {key: value for key, value in environment.items() if key not in OWN} | more
    return subprocess.run(
        isolated(command, report), cwd=cwd, env=env, umask=0o077, capture_output=True, text=True, timeout=300
    )


def tries(report: Path) -> int:
    """How often something tried to leave the machine."""
    return int(report.read_text())


def test_what_tries_to_leave_the_machine_is_counted(tmp_path: Path) -> None:
    asks = "import contextlib, socket\nwith contextlib.suppress(OSError): socket.create_connection(('192.0.2.1', 80))"
    done = run_isolated([sys.executable, "-c", asks], tmp_path, tmp_path / "tries", os.environ)
    assert done.returncode == 0, done.stderr
    assert tries(tmp_path / "tries") == 1


def test_nothing_of_the_user_gets_into_a_run(project: Project, tmp_path: Path) -> None:
    home, mark = tmp_path / "home", tmp_path / "mark"
    write_home(home, mark)
    environment = another_repository(tmp_path / "another") | project.environment(
        IPYTHONDIR=str(home / ".ipython"),
        JUPYTER_PATH=str(home / ".local/share/jupyter"),
        LC_ALL="C",
        MPLBACKEND="TkAgg",
        PYTHONCOERCECLOCALE="0",
        PYTHONPATH=f"{project.root}:{home / 'modules'}",
        PYTHONSTARTUP=str(home / "startup.py"),
        PYTHONUTF8="0",
        SHELL="/bin/false",
        TMPDIR=long_folder(tmp_path),
    )
    before, brought = files(project.root), files(home)
    notebook_with(project, "report", FACTS)
    done = run_isolated(project.command("run"), project.root, tmp_path / "tries", environment, HOME=str(home))
    assert done.returncode == 0, done.stderr
    facts = json.loads((project.root / ".nbs/facts.json").read_text())
    assert (facts["python"], facts["title"]) == (sys.executable, "large")
    assert str(home / "modules") not in facts["path"]
    assert not {"PYTHONSTARTUP", "PYTHONPATH", "JUPYTER_PATH", "GIT_DIR", "GIT_INDEX_FILE"} & set(facts["variables"])
    assert not mark.exists()
    assert files(home) == brought
    assert tries(tmp_path / "tries") == 0
    made = {project.root / "reports/index.html"} | files(project.root) - before
    assert not [path for path in made if ".dvc" not in path.parts and path.stat().st_mode & 0o077]
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=project.root, capture_output=True, text=True).stdout.strip()
    with sqlite3.connect(project.root / "mlflow.db") as database:
        found = database.execute("SELECT DISTINCT value FROM tags WHERE key = 'mlflow.source.git.commit'").fetchall()
    assert found == [(head,)]


def test_a_stage_by_hand_and_no_home(project: Project, tmp_path: Path) -> None:
    """Without `nbs`, a fork server, DVC or a home; MLflow's record waits for the next run."""
    environment = project.environment(TMPDIR=long_folder(tmp_path), NBS_PIPELINE="by-hand")
    notebook_with(project, "report", FACTS)
    command = [sys.executable, "-m", "nbs_lib.pipeline.runner", "report"]
    done = run_isolated(command, project.root, tmp_path / "tries", environment)
    assert done.returncode == 0, done.stderr
    facts = json.loads((project.root / ".nbs/facts.json").read_text())
    assert facts["python"] == sys.executable
    assert not {"PYTHONPATH", "GIT_DIR"} & set(facts["variables"])
    assert not list(project.root.glob("~*"))


def test_the_service_and_the_explainer_call_nobody(tmp_path: Path) -> None:
    root, home = make_project(tmp_path / "project", cases=ladder_cases()), tmp_path / "home"
    home.mkdir()
    environment = os.environ | {"TMPDIR": long_folder(tmp_path), "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
    started = time.time()
    done = run_isolated([sys.executable, "-c", ASKS], root, tmp_path / "tries", environment, HOME=str(home))
    assert done.returncode == 0, done.stderr
    assert not files(home)
    assert tries(tmp_path / "tries") == 0
    made = [path for path in files(root) if path.stat().st_mtime >= started]
    assert made
    assert not [path for path in made if path.stat().st_mode & 0o077]


def test_the_set_up_heeds_no_settings_of_pip(tmp_path: Path) -> None:
    """What brings uv is installed into its own environment, from a wheel that holds nothing."""
    version = next(line for line in (ROOT / "requirements.lock").read_text().splitlines() if line.startswith("uv=="))
    wheel = f"uv-{version[4:]}"
    with zipfile.ZipFile(tmp_path / f"{wheel}-py3-none-any.whl", "w") as file:
        file.writestr(f"{wheel}.dist-info/METADATA", f"Metadata-Version: 2.1\nName: uv\nVersion: {version[4:]}\n")
        file.writestr(f"{wheel}.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        file.writestr(f"{wheel}.data/scripts/uv", "#!/bin/sh\n")
        file.writestr(f"{wheel}.dist-info/RECORD", "")
    for each in ("Makefile", "requirements.lock", "pyproject.toml"):
        shutil.copy(ROOT / each, tmp_path)
    environment = os.environ | {"PIP_USER": "1", "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(tmp_path)}
    target = ".nbs/uv/bin/uv"
    done = subprocess.run(["make", target], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert (tmp_path / target).exists(), done.stderr


def test_the_set_up_needs_nothing_of_the_environment_that_it_replaces(tmp_path: Path) -> None:
    """With `.venv` activated, its uv is found, and is gone once `.venv` has been set aside."""
    for each in ("Makefile", "pyproject.toml", "requirements.lock"):
        shutil.copy(ROOT / each, tmp_path)
    programs = tmp_path / ".venv/bin"
    programs.mkdir(parents=True)
    (programs / "uv").symlink_to(Path(sys.executable).with_name("uv"))
    path = os.pathsep.join([str(programs), "/usr/bin", "/bin"])
    make = ["make", "--dry-run", ".venv/.ready"]
    done = subprocess.run(make, cwd=tmp_path, env=os.environ | {"PATH": path}, capture_output=True, text=True)
    assert ".nbs/uv/bin/uv venv" in done.stdout, done.stdout + done.stderr


def test_an_environment_that_can_not_be_made_leaves_the_one_before(tmp_path: Path) -> None:
    """The lock file names what is not to be had: the reason is said, and `.venv` is as it was."""
    for each in ("Makefile", "pyproject.toml"):
        shutil.copy(ROOT / each, tmp_path)
    (tmp_path / "requirements.lock").write_text("nothing-of-this-name==1.0\n")
    (tmp_path / ".venv").mkdir()
    (tmp_path / ".venv/mine").write_text("as it was")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/uv").symlink_to(Path(sys.executable).with_name("uv"))
    environment = os.environ | {"PATH": f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}", "UV_OFFLINE": "1"}
    done = subprocess.run(["make", ".venv/.ready"], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 2
    assert "nothing-of-this-name" in done.stderr
    assert "make: .venv can't be set up, for the reason above" in done.stderr
    assert [path.name for path in (tmp_path / ".venv").iterdir()] == ["mine"]
    assert (tmp_path / ".venv/mine").read_text() == "as it was"
