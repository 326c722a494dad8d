"""A template of this test's own, with releases that it makes, and an environment for what comes from it."""

import os
import sys
from pathlib import Path

from conftest import ROOT

from nbs_lib.pipeline.clone import clone_project
from nbs_lib.project.create import commit_all
from nbs_lib.project.template import git


def make_template(place: Path, tag: str = "v1.0.0") -> Path:
    """This repository as it is now, as a release."""
    root = clone_project(place, ROOT)
    git("remote", "remove", "origin", cwd=root)
    for name in git("tag", cwd=root).split():
        git("tag", "--delete", name, cwd=root)
    if git("status", "--porcelain", cwd=root):
        commit_all(root, "What is not committed yet")
    git("tag", tag, cwd=root)
    return root


def release(template: Path, tag: str) -> None:
    """Make what was edited there a release."""
    commit_all(template, tag)
    git("tag", tag, cwd=template)


def replace(path: Path, before: str, after: str) -> None:
    """Edit a text that occurs."""
    text = path.read_text(encoding="utf-8")
    assert before in text, f"{path} has no {before}"
    path.write_text(text.replace(before, after, 1), encoding="utf-8")


def borrow_environment(project: Path) -> None:
    """Give a project the programs of this environment, with its own library: what `make` sets up in a minute."""
    folder = project / ".venv/bin"
    folder.mkdir(parents=True, exist_ok=True)
    for program in Path(sys.executable).parent.iterdir():
        if program.is_file() and os.access(program, os.X_OK):
            command = f"{program}" if program.name != "nbs" else f"{sys.executable} -m nbs_lib.cli"
            script = folder / program.name
            script.write_text(f'#!/bin/sh\nPYTHONPATH="{project}" exec {command} "$@"\n')
            script.chmod(0o755)
    (project / ".venv/.ready").touch()
