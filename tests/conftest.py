"""A small project on a small table, run once, and copied for each test that breaks it."""

import contextlib
import fcntl
import gc
import hashlib
import inspect
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

import pytest
from filelock import FileLock
from helpers.chromium import CHROMIUM, Chromium
from helpers.temporary import keep_temporary_in_memory

from nbs_lib.pipeline.clone import clone_project
from nbs_lib.pipeline.fork_server import fork_command, fork_server
from nbs_lib.pipeline.runner import PINNED_ENVIRONMENT, stage_environment

os.environ.update(
    PINNED_ENVIRONMENT
)  # before numpy is imported: two test processes with two threads each get in each other's way
ROOT = Path(__file__).resolve().parents[1]


LONG = (
    "test_new",
    "test_cycle",
    "test_pipeline",
    "test_faults",
    "test_own",
    "test_tables",
    "test_reruns",
    "test_update",
    "test_bench_serve",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files that take longest, so that no process waits for another in the end."""
    items.sort(key=lambda item: LONG.index(item.path.stem) if item.path.stem in LONG else len(LONG))


gc.disable()  # what test modules import is kept: looking for garbage in it takes a sixth of the time


def pytest_collection_finish() -> None:
    gc.freeze()
    gc.enable()
    gc.set_threshold(50_000, 20, 50)  # every 700 objects, as is usual, looking takes a twentieth of the time


FAILED = pytest.StashKey[bool]()


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    session.config.stash[FAILED] = bool(exitstatus)  # then its folders stay until the next session, to be looked at
    gc.unfreeze()  # else libraries complain in the end of what is left


def pytest_configure(config: pytest.Config) -> None:
    """Let all test processes write to memory, and their runs fork from one server: what these need is imported once."""
    stack = contextlib.ExitStack()
    if config.getoption("dist", "no") != "no":
        gc.enable()  # it imports no test module
    if temporary := keep_temporary_in_memory():
        folder, lock = temporary
        config.option.basetemp = config.option.basetemp or str(folder / "t")
        stack.enter_context(lock)
        stack.callback(lambda: config.stash.get(FAILED, True) or shutil.rmtree(folder, ignore_errors=True))
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("nbs_lib.pipeline.fork_server.__file__", str(ROOT / "tests/helpers/warm_server.py"))
        stack.enter_context(fork_server(stage_environment()))
    config.add_cleanup(stack.close)


def lacking(what: str) -> NoReturn:
    """Skip a test that can't run here; in CI, where everything is to be there, it fails instead."""
    if os.environ.get("CI"):
        pytest.fail(what)
    pytest.skip(what)


def wait_for_environment(name: str) -> None:
    """Wait while `.ci/env` sets an environment up: `make test` begins with both at once."""
    lock = ROOT / f".nbs/envs/{name}.lock"
    if lock.exists():
        with lock.open() as file:
            fcntl.flock(file, fcntl.LOCK_EX)


def copy_or_link(file: str, to: str) -> object:
    """Copy a file; git never writes into an object, so those are shared where they lie on one disk."""
    if "/.git/objects/" in file:
        with contextlib.suppress(OSError):
            return os.link(file, to)
    return shutil.copy2(file, to)


class Project:
    """A clone of the repository that a test may do anything to."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "nbs_lib.cli", *arguments]

    def environment(self, **more: str) -> dict[str, str]:
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("NBS_", "COV_", "MLFLOW_"))}
        return kept | {"PATH": path, "PYTHONPATH": str(self.root)} | more

    def nbs(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """What `command` does, in a fork that need not import the large libraries."""
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(sys, "path", [str(self.root), *sys.path])
            command = fork_command("nbs_lib.cli:main", *arguments)
        return self.call(command or self.command(*arguments), **environment)

    def call(self, command: list[str], **environment: str) -> subprocess.CompletedProcess[str]:
        env = self.environment(**environment)
        return subprocess.run(command, cwd=self.root, env=env, capture_output=True, text=True, timeout=600)

    def set(self, **values: str) -> None:
        """Edit lines of params.yaml as a user does: `set(source="x.csv", trials="1")`."""
        path = self.root / "params.yaml"
        text = path.read_text()
        for key, value in values.items():
            text, count = re.subn(rf"(?m)^(  {key}: )[^#\n]*", rf"\g<1>{value} ", text)
            assert count == 1, f"params.yaml has {count} lines for {key}"
        path.write_text(text)

    def outputs(self) -> dict[str, bytes]:
        """Everything that the pipeline has made; `source.json` only says what was brought."""
        folders = ("data", "models", "reports")
        return {
            file.relative_to(self.root).as_posix(): file.read_bytes()
            for folder in folders
            for file in sorted((self.root / folder).rglob("*"))
            if file.is_file() and file.name != "source.json"
        }

    def copy(self, to: Path) -> "Project":
        shutil.copytree(self.root, to, symlinks=True, copy_function=copy_or_link)
        return Project(to)


CANDIDATES = "[dummy, linear, hgb_small]"  # that are quick


def small(project: Project, source: Path | str, target: str, **more: str) -> Project:
    """Point a project at a small table, with quick candidates."""
    quick = {"candidates": CANDIDATES, "trials": "1", "epochs": "1", "resamples": "50"}
    project.set(source=str(source), target=target, **(quick | more))
    return project


def made_of(*builders: Callable[[Path], object]) -> str:
    """A digest of all that a project's run depends on, and of the files of who builds it."""
    files = {Path(str(inspect.getsourcefile(each))) for each in builders} | {
        ROOT / "tests/helpers/services.py",
        Path(__file__),
    }
    parts = ["nbs_lib", "notebooks/pipeline", "notebooks/cycle", "data/contract", "dvc.yaml", "requirements.lock"]
    listed = ["git", "ls-files", "-co", "--exclude-standard", "--", *parts, "params.yaml", "settings.ini"]
    names = subprocess.run(listed, cwd=ROOT, check=True, capture_output=True, text=True).stdout.splitlines()
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in sorted(files)))
    for name in sorted(names):
        path = ROOT / name
        digest.update(f"{name} {hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else ''}\n".encode())
    return digest.hexdigest()[:16]


def shared_project(name: str, build: Callable[[Path], object], *builders: Callable[[Path], object]) -> Project:
    """A project for all test processes, kept until what it is made of changes: copy it, don't change it."""
    folder = ROOT / ".nbs/tests"
    folder.mkdir(parents=True, exist_ok=True)
    place, ready = folder / name, folder / f"{name}.ready"
    with FileLock(folder / f"{name}.lock"):
        of = made_of(build, *builders)
        if not ready.exists() or ready.read_text() != of:
            ready.unlink(missing_ok=True)
            shutil.rmtree(place, ignore_errors=True)
            build(place)
            ready.write_text(of)
    return Project(place)


def build_finished(place: Path) -> None:
    """Three species of penguins, with missing values and text categories."""
    import palmerpenguins

    project = Project(clone_project(place, ROOT))
    palmerpenguins.load_penguins().to_csv(project.root / "penguins.csv", index=False)
    small(project, "penguins.csv", "species")
    done = project.nbs("run")
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chromium]:
    """A browser with one page."""
    if CHROMIUM is None:
        lacking("needs a browser: apt-get install chromium")
    opened = Chromium(tmp_path_factory.mktemp("profile"))
    yield opened
    opened.close()


@pytest.fixture(scope="session")
def finished() -> Project:
    """A project whose first run has ended: copy it, don't change it."""
    return shared_project("finished", build_finished)


@pytest.fixture
def project(finished: Project, tmp_path: Path) -> Project:
    """A finished project of this test's own."""
    return finished.copy(tmp_path / "project")
