"""A run changes dvc.lock to the bytes that DVC itself writes, whatever stands in it."""

import inspect
import subprocess
import sys
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT
from dvc.utils.serialize import dumps_yaml, modify_yaml

from nbs_lib.pipeline import dvc_command
from nbs_lib.pipeline.dvc_command import modify_lock

STAGE: dict[str, Any] = {"cmd": "echo 'a: b' # c", "deps": [{"path": "ü b.py", "md5": "0" * 32, "size": 17}]}
STAGE["params"] = {"params.yaml": {"rate": 0.05, "tiny": 1e-07, "none": None, "some": [], "of": {"a": [1, True, "no"]}}}
STAGE["params"]["params.yaml"] |= {"long": "word " * 40, "lines": "one\n  two\n\nthree\n", "on": "on", "text": "0123"}


OUTS = {"outs": [{"path": "models", "hash": "md5", "md5": "2" * 32, "size": 3, "nfiles": 2}]}
LOCK = dumps_yaml(
    {"schema": "2.0", "stages": {name: deepcopy(STAGE | OUTS) for name in ("snapshot", "train", "report")}}
)


def without(stages: dict[str, Any], name: str) -> None:
    del stages[name]


def with_dataset(data: dict[str, Any]) -> None:
    data["datasets"] = [{"name": "sales", "url": "s3://bucket"}]


def learned_anew(stages: dict[str, Any]) -> None:
    stages["train"]["outs"][0]["md5"] = "1" * 32
    stages["train"] = dict(stages["train"])


CHANGES: dict[str, Callable[[dict[str, Any]], object]] = {
    "nothing": lambda stages: None,
    "a stage that ran": lambda stages: stages.update(train=deepcopy(STAGE)),
    "one that ran and is as it was": lambda stages: stages.update(train=dict(stages["train"])),
    "another output": learned_anew,
    "a new stage": lambda stages: stages.update(other=deepcopy(STAGE)),
    "a name that needs quotation marks": lambda stages: stages.update({"b: c": deepcopy(STAGE), "no": deepcopy(STAGE)}),
    "one stage less": lambda stages: without(stages, "report"),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize(
    "text",
    [
        LOCK,
        LOCK.replace("  report:\n", "  'on':\n    cmd: a\n  report:\n"),
        LOCK.replace("  report:\n", "  # mine\n  report:\n"),
        f"{LOCK}datasets: []\n",
        LOCK.rstrip(),
        f"{LOCK}...\n",
        "schema: '2.0'\nstages:\n  train: {cmd: a, outs: [{md5: b}]}\n  report:\n    cmd: b\n",
    ],
    ids=[
        "plain",
        "a name in quotation marks",
        "a comment",
        "more than stages",
        "no line break at the end",
        "dots",
        "by hand",
    ],
)
def test_a_lock_is_changed_to_the_bytes_of_dvc(tmp_path: Path, text: str, change: str) -> None:
    written = []
    for modify in (modify_yaml, modify_lock):
        place = tmp_path / "dvc.lock"
        place.write_text(text)
        for stages in (CHANGES[change], CHANGES["a stage that ran"]):  # the second finds what the first has left
            with modify(str(place)) as data:
                stages(data["stages"])
        written.append(place.read_text())
    assert written[1] == written[0]


def test_a_dataset_is_kept(tmp_path: Path) -> None:
    """What DVC writes beside the stages."""
    for modify, name in ((modify_yaml, "a.lock"), (modify_lock, "b.lock")):
        (tmp_path / name).write_text(LOCK)
        with modify(str(tmp_path / name)) as data:
            with_dataset(data)
    assert (tmp_path / "b.lock").read_text() == (tmp_path / "a.lock").read_text()


def test_a_lock_that_is_not_there_yet(tmp_path: Path) -> None:
    for modify, name in ((modify_yaml, "a.lock"), (modify_lock, "b.lock")):
        with modify(str(tmp_path / name)) as data:
            data.update({"schema": "2.0", "stages": {"one": STAGE}})
    assert (tmp_path / "b.lock").read_text() == (tmp_path / "a.lock").read_text()


def test_a_lock_as_committed_is_changed_without_dvc_reading_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dvc.utils.serialize.modify_yaml", None)
    place = tmp_path / "dvc.lock"
    for text in (LOCK, (ROOT / "dvc.lock").read_text()):
        place.write_text(text)
        with modify_lock(str(place)) as data:
            data["stages"]["train"] = dict(data["stages"]["train"])
        assert place.read_text() == text


def test_a_damaged_lock_is_refused_by_dvc(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "dvc", "init", "--no-scm", "--quiet"], cwd=tmp_path, check=True)
    (tmp_path / "dvc.yaml").write_text("stages:\n  one:\n    cmd: echo 1\n")
    (tmp_path / "dvc.lock").write_text("schema: '2.0'\nstages:\n  one: [\n")
    command = [sys.executable, "-m", dvc_command.__name__, "repro"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode != 0
    assert "dvc.lock" in done.stderr
    assert "Traceback" not in done.stderr


def test_dvc_makes_a_command_where_it_is_made_here() -> None:
    """Else each stage would start a shell and a second Python, and only be slower."""
    import dvc.stage.run

    assert "_make_cmd(executable, cmd)" in inspect.getsource(dvc.stage.run._run)


def test_a_change_that_fails_is_not_remembered(tmp_path: Path) -> None:
    path = tmp_path / "dvc.lock"
    path.write_text(LOCK)
    with modify_lock(str(path)) as data:
        data["stages"]["train"] = deepcopy(STAGE)
    written = path.read_text()

    def fail() -> None:
        with modify_lock(str(path)) as data:
            data["stages"]["report"] = {"cmd": "lost"}
            raise OSError("no space")

    with pytest.raises(OSError, match="no space"):
        fail()
    with modify_lock(str(path)) as data:
        assert data["stages"]["report"] == STAGE | OUTS
    assert path.read_text() == written
