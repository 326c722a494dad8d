"""A small project on a small table, run once, and copied for each test that breaks it."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NoReturn

import pytest

from nbs_lib.pipeline.clone import clone_project
from nbs_lib.pipeline.runner import PINNED_ENVIRONMENT

os.environ.update(
    PINNED_ENVIRONMENT
)  # before numpy is imported: two test processes with two threads each get in each other's way
ROOT = Path(__file__).resolve().parents[1]


def lacking(what: str) -> NoReturn:
    """Skip a test that can't run here; in CI, where everything is to be there, it fails instead."""
    if os.environ.get("CI"):
        pytest.fail(what)
    pytest.skip(what)


class Project:
    """A clone of the repository that a test may do anything to."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "nbs_lib.cli", *arguments]

    def environment(self, **more: str) -> dict[str, str]:
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("NBS_", "COV_", "MLFLOW_"))}
        return kept | {"PATH": path, "PYTHONPATH": str(self.root), "PYTHONDONTWRITEBYTECODE": "1"} | more

    def nbs(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return self.call(self.command(*arguments), **environment)

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
        shutil.copytree(self.root, to, symlinks=True)
        return Project(to)


def small(project: Project, source: Path | str, target: str, **more: str) -> Project:
    """Point a project at a small table, with quick candidates."""
    quick = {"candidates": "[dummy, linear, hgb_small]", "trials": "1", "epochs": "1", "resamples": "50"}
    project.set(source=str(source), target=target, **(quick | more))
    return project


@pytest.fixture(scope="session")
def penguins(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three species of penguins, with missing values and text categories."""
    import palmerpenguins

    path = tmp_path_factory.mktemp("tables") / "penguins.csv"
    palmerpenguins.load_penguins().to_csv(path, index=False)
    return path


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, penguins: Path) -> Project:
    """A project whose first run has ended: copy it, don't change it."""
    project = Project(clone_project(tmp_path_factory.mktemp("finished") / "project", ROOT))
    shutil.copy(penguins, project.root / "penguins.csv")
    small(project, "penguins.csv", "species")
    done = project.nbs("run")
    assert done.returncode == 0, done.stderr[-3000:]
    return project


@pytest.fixture
def project(finished: Project, tmp_path: Path) -> Project:
    """A finished project of this test's own."""
    return finished.copy(tmp_path / "project")
