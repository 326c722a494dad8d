"""An update is one commit or nothing: what both sides changed stays yours; a refusal is one sentence."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ROOT

from nbs_lib.bench.project.update import bench_update, find_broken
from nbs_lib.core.errors import UserError
from nbs_lib.core.stages import STAGE_FOLDERS
from nbs_lib.project import update as module
from nbs_lib.project.keyed_merge import merge_ini, merge_params, rename_ini_key
from nbs_lib.project.template import ANSWERS_FILE, git
from nbs_lib.project.tree_merge import merge_trees
from nbs_lib.project.update import update_project

BY = ("-c", "user.name=nobody", "-c", "user.email=nobody@localhost")
NOTEBOOK = "notebooks/lib/core/10_format.ipynb"


def commit(root: Path, tag: str = "") -> None:
    git("add", "--all", cwd=root)
    git(*BY, "commit", "--quiet", "--no-verify", "--message", tag or "edit", cwd=root)
    if tag:
        git("tag", tag, cwd=root)


def sub(path: Path, before: str, after: str) -> None:
    text = path.read_text()
    assert before in text
    path.write_text(text.replace(before, after, 1))


@pytest.fixture
def template(tmp_path: Path) -> Path:
    """A template with the files that matter, in three releases, the last of another major version."""
    root = tmp_path / "template"
    root.mkdir()
    git("init", "--quiet", cwd=root)
    for name in (
        "params.yaml",
        "settings.ini",
        "dvc.yaml",
        ".gitignore",
        "Makefile",
        NOTEBOOK,
        f"{ANSWERS_FILE}.jinja",
    ):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, root / name)
    (root / "copier.yml").write_text("name: {type: str, default: shop}\n_exclude: [copier.yml, .git, CHANGELOG.md]\n")
    (root / "CHANGELOG.md").write_text("# Changelog\n")
    commit(root, "v1.0.0")
    sub(root / "params.yaml", "trials: 3 #", "trials: 4 #")
    sub(root / "params.yaml", "  epochs: 8 # of the net\n", "  patience: 2 # rounds\n  epochs: 8 # of the net\n")
    sub(root / NOTEBOOK, "no interval", "without interval")
    (root / "nbs_lib/project").mkdir(parents=True)
    renamed = "v1.1.0: {params.yaml: {evaluate.resamples: evaluate.draws}}\n"
    (root / "nbs_lib/project/migrations.yaml").write_text(renamed)
    sub(root / "params.yaml", "  resamples: 500", "  draws: 500")
    (root / "CHANGELOG.md").write_text("# Changelog\n\n- Four settings are tried.\n")
    commit(root, "v1.1.0")
    for tag in ("v2.0.0", "v3.0.0"):
        (root / "Makefile").write_text(f"# {tag}\n")
        commit(root, tag)
    return root


@pytest.fixture
def project(template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project of the first release, whose library is exported by nobody: that takes seconds."""
    root = tmp_path / "project"
    git("clone", "--quiet", "--branch", "v1.0.0", str(template), str(root), cwd=tmp_path)
    for name in ("copier.yml", "CHANGELOG.md", f"{ANSWERS_FILE}.jinja"):
        (root / name).unlink()
    (root / ANSWERS_FILE).write_text(f"_commit: v1.0.0\n_src_path: {template}\nname: shop\n")
    git("config", "user.email", "nobody@localhost", cwd=root)
    git("config", "user.name", "nobody", cwd=root)
    commit(root)
    monkeypatch.setattr(module, "export_library", lambda root: None)
    return root


def state(root: Path) -> tuple[str, str, dict[str, bytes]]:
    """All of a project that git knows, and what is not committed."""
    files = {name: (root / name).read_bytes() for name in git("ls-files", cwd=root).splitlines()}
    return git("rev-parse", "HEAD", cwd=root), git("status", "--porcelain", cwd=root), files


def test_an_update_is_one_commit(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sub(project / "params.yaml", "resamples: 500", "resamples: 90")
    sub(project / "params.yaml", "epochs: 8", "epochs: 5")
    sub(project / NOTEBOOK, "as people read them", "as we read them")
    commit(project)
    before = git("rev-parse", "HEAD", cwd=project)
    update_project("v1.1.0", root=project)
    said = capsys.readouterr().out
    assert "- Four settings are tried." in said
    assert f"merged   {NOTEBOOK}" in said
    assert git("rev-parse", "HEAD~1", cwd=project) == before
    params = (project / "params.yaml").read_text()
    assert "  trials: 4 # settings" in params
    assert "  patience: 2 # rounds\n  epochs: 5 # of the net\n" in params
    assert "  draws: 90 # of the bootstrap" in params
    assert "resamples" not in params
    notebook = (project / NOTEBOOK).read_text()
    assert "as we read them" in notebook
    assert "without interval" in notebook
    assert "_commit: v1.1.0" in (project / ANSWERS_FILE).read_text()
    assert git("status", "--porcelain", cwd=project) == ""


def test_what_both_changed_stays_yours_and_theirs_is_shown(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sub(project / NOTEBOOK, "no interval", "nothing")
    commit(project)
    update_project("v1.1.0", root=project)
    assert "both changed, and yours was kept; please look:" in capsys.readouterr().out
    cells = json.loads((project / NOTEBOOK).read_text())["cells"]
    tagged = {tag: "".join(cell["source"]) for cell in cells for tag in cell["metadata"].get("tags", [])}
    assert "nothing" in tagged["yours"]
    assert "without interval" in tagged["theirs"]
    assert "<<<<" not in (project / NOTEBOOK).read_text()


def test_a_comment_at_the_end_of_settings_loses_no_header() -> None:
    base = "[one]\na = 1\n\n[two]\nb = 2\n"
    yours = base.replace("b = 2", "b = 3") + "# mine\n"
    theirs = "[one]\na = 1\nnew = 5\n\n[two]\n# what b is\nb = 2\n"
    assert merge_ini(base, yours, theirs).text == "[one]\na = 1\nnew = 5\n\n[two]\nb = 3\n# mine\n"
    assert rename_ini_key(yours, "two.b", "one.c") == "[one]\nc = 3\na = 1\n\n[two]\n# mine\n"


def test_a_list_that_you_chose_stays_as_a_whole() -> None:
    """Quantiles or candidates of both sides together would be a choice that nobody made."""
    base, yours, theirs = (f"train:\n  candidates: {names}\n" for names in ("[a, b]", "[a, c]", "[a, b, d]"))
    assert merge_params(base, yours, theirs).text == yours
    assert merge_params(base, base, theirs).text == theirs


def test_a_dry_run_changes_nothing(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = state(project)
    update_project("v1.1.0", dry_run=True, root=project)
    assert "merged   params.yaml" not in capsys.readouterr().out  # nobody changed it: it is changed
    assert state(project) == before


def refuses(project: Path, sentence: str, to: str | None = None) -> None:
    before = state(project)
    with pytest.raises(UserError) as error:
        update_project(to, root=project)
    assert sentence in str(error.value)
    assert "\n" not in str(error.value)
    assert state(project) == before


def test_changes_that_are_not_committed_are_refused(project: Path) -> None:
    (project / "own.py").write_text("")
    refuses(project, "own.py is not committed")


def test_two_major_versions_are_refused(project: Path) -> None:
    refuses(project, "`nbs update --to v2.0.0` first")


def test_a_version_without_a_tag_is_refused(project: Path) -> None:
    sub(project / ANSWERS_FILE, "v1.0.0", "3f2a1c0")
    commit(project)
    refuses(project, "made from 3f2a1c0, which is no release")


def test_no_network_is_one_sentence(project: Path, template: Path) -> None:
    template.rename(template.with_name("gone"))
    refuses(project, "can't be reached; nothing was changed")


def test_a_clone_is_told_to_pull(project: Path) -> None:
    (project / ANSWERS_FILE).unlink()
    commit(project)
    refuses(project, "`git pull`")


def test_a_failure_in_the_end_leaves_the_project(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(root: Path) -> None:
        raise UserError("nbdev-export fails")

    monkeypatch.setattr(module, "export_library", fail)
    refuses(project, "nbdev-export fails", "v1.1.0")


KILLED = """
import sys, time
from pathlib import Path
from nbs_lib.project import update
def wait(*_):
    Path(sys.argv[2]).touch()
    time.sleep(60)
update.export_library = lambda root: None
setattr(update, sys.argv[3], wait)
update.update_project("v1.1.0", root=sys.argv[1])
"""


@pytest.mark.parametrize("where", ["merge_release", "export_library", "_take_over"])
def test_killed_in_the_middle_the_project_is_as_before(project: Path, tmp_path: Path, where: str) -> None:
    before, there = state(project), tmp_path / "there"
    command = [sys.executable, "-c", KILLED, str(project), str(there), where]
    with subprocess.Popen(command, env=os.environ | {"PYTHONPATH": str(ROOT)}, stdout=subprocess.DEVNULL) as process:
        while not there.exists():
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    assert state(project) == before
    update_project("v1.1.0", root=project)
    assert "_commit: v1.1.0" in (project / ANSWERS_FILE).read_text()


def test_a_notebook_that_is_damaged_stays_as_it_is(tmp_path: Path) -> None:
    trees = [tmp_path / name for name in ("base", "yours", "theirs")]
    for tree, text in zip(trees, ('{"cells": []}', "{not JSON", '{"cells": [ ]}'), strict=True):
        tree.mkdir()
        (tree / "a.ipynb").write_text(text)
    (change,) = merge_trees(*trees)
    assert "can't be merged" in change.conflicts[0]
    assert (trees[1] / "a.ipynb").read_text() == "{not JSON"


def test_random_edits_and_releases_break_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    outcomes = bench_update(rounds=1, releases=4, root=ROOT)
    assert len(outcomes) == 4
    assert [each.broken for each in outcomes] == [[]] * 4
    assert "ran: 1 of 1 projects tried" in capsys.readouterr().out


def test_what_is_broken_is_found(tmp_path: Path) -> None:
    for name in ("settings.ini", "params.yaml", "dvc.yaml"):
        shutil.copy(ROOT / name, tmp_path)
    sub(tmp_path / "params.yaml", "  trials: 3", "<<<<<<< yours\n  trials: 3")
    assert "params.yaml can't be read" in find_broken(tmp_path, [])[0]


def test_a_parameter_that_no_stage_reads_is_found(tmp_path: Path) -> None:
    for name in ("settings.ini", "params.yaml", "dvc.yaml"):
        shutil.copy(ROOT / name, tmp_path)
    for folder in STAGE_FOLDERS:
        shutil.copytree(ROOT / folder, tmp_path / folder)
    assert find_broken(tmp_path, []) == []
    sub(tmp_path / "params.yaml", "  epochs: 8", "  passes: 8")
    assert "there is no key train.passes" in find_broken(tmp_path, [])[0]
