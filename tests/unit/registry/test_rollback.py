"""The previous champion serves again, under load and without MLflow, and what was rolled back stays out."""

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from conftest import ROOT
from helpers.at_once import run_at_once
from helpers.bundles import VERSION, blank_project, decision, make_bundle, mlflow_project, mlflow_template  # noqa: F401
from helpers.registry import aliases, client, register_alone
from helpers.services import PATIENT, Load, make_project, promote, service

from nbs_lib.bundle.bundle import Bundle
from nbs_lib.core.errors import BundleError, StoreError, UserError
from nbs_lib.features.online.lookup import open_store
from nbs_lib.registry import pointers as history_module
from nbs_lib.registry.model_registry import register
from nbs_lib.registry.pointers import champion_path, read_history, rollback_chain
from nbs_lib.registry.rollback import rollback

BUNDLE = Path("models/bundle")


def command(
    root: Path, *arguments: str, before: Sequence[str] = (), **settings: str
) -> subprocess.CompletedProcess[str]:
    env = {k: v for k, v in os.environ.items() if not k.startswith(("NBS_", "COV_"))}
    env |= {"PYTHONPATH": str(ROOT)} | settings
    asked = [*before, sys.executable, "-m", "nbs_lib.cli", "rollback", *arguments]
    return subprocess.run(asked, cwd=root, env=env, capture_output=True, text=True, timeout=60)


# The service


def test_under_load_the_old_one_answers_within_10_s_and_nothing_fails(tmp_path: Path) -> None:
    root = make_project(tmp_path / "p")
    good = champion_path(root).name
    bad = promote(root, takes_over=True)
    with service(root, **PATIENT) as running, Load(running.port, 8) as load:
        load.wait(500)
        start, asked = time.monotonic(), len(load.answers)
        done = command(root, "--why", "complaints", NBS_TRACKING_URI="http://127.0.0.1:9")
        while load.answers[-1][1]["model"] != good[:12]:
            assert time.monotonic() < start + 10
            time.sleep(0.005)
        seconds, switched = time.monotonic() - start, len(load.answers)
        load.wait(500)
        answered = len(load.answers) - asked
    print(f"rollback: the old one answered {seconds:.2f} s after the command, {answered} requests since it")
    assert done.returncode == 0, done.stderr
    assert f"the champion is {good[:12]} again, instead of {bad[:12]}" in done.stdout
    assert not load.lost
    assert not load.refused
    assert {status for status, _ in load.answers} == {200}
    assert {answer["model"] for _, answer in load.answers[:asked]} == {bad[:12]}
    late = [answer["model"] for _, answer in load.answers[switched:]]
    assert late[:200].count(bad[:12]) < 8, "at most one that was on its way to each of the other clients"
    assert set(late[200:]) == {good[:12]}
    (move,) = [move for move in read_history(root) if move.what == "rollback"]
    assert (move.bundle, move.before, move.why) == (good, bad, "complaints")


# The registry


@pytest.fixture
def here(mlflow_project: Path) -> Path:  # noqa: F811
    "A project with two champions, one after the other; `rollback` is not kept by their views, for they have none."
    for number in (1, 2):
        make_made(number)
        assert register(BUNDLE, decision(sentence=f"it is number {number}.")) == "champion"
    return mlflow_project


def make_made(number: int) -> str:
    return make_bundle(BUNDLE, metrics={"number": number})


def tags(version: str) -> dict[str, str]:
    return client().get_model_version("nbs", version).tags


def test_the_registry_follows_and_a_run_does_not_promote_it_again(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = rollback_chain()
    assert aliases() == {"champion": "2", "previous": "1"}
    rollback(why="it was\ntoo slow")
    assert aliases() == {"champion": "1"}
    assert tags("2")["rolled_back"].endswith("it was too slow")
    assert "rolled_back" not in tags("1")
    capsys.readouterr()
    done = register_alone()
    assert (done.returncode, done.stdout) == (0, "withdrawn\n"), done.stderr
    assert done.stderr.startswith(f"warning: the bundle {second[:12]} was rolled back at ")
    assert done.stderr.count("\n") == 1
    assert champion_path().name == first
    (Path(".nbs/registered.json")).unlink()  # and not where all is registered anew either
    assert register(BUNDLE, decision()) == "withdrawn"
    assert (champion_path().name, aliases()) == (first, {"champion": "1"})


def test_it_is_served_again_by_its_name_alone(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = rollback_chain()
    rollback()
    rollback(second[:12])
    assert rollback_chain() == [first, second]
    assert aliases() == {"champion": "2", "previous": "1"}
    capsys.readouterr()
    assert register(BUNDLE, decision()) == "unchanged"
    assert not capsys.readouterr().err


def test_another_machine_does_not_promote_it_again_either(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = rollback_chain()
    rollback(why="too slow")
    shutil.move("served", "served elsewhere")  # as if this were another clone, with the same registry
    Path(".nbs/registered.json").unlink()
    assert register(BUNDLE, decision()) == "withdrawn"
    assert f"the bundle {second[:12]} was rolled back elsewhere (" in capsys.readouterr().err
    assert aliases() == {"champion": "1"}
    assert not Path("served/CURRENT").exists()
    shutil.rmtree("served", ignore_errors=True)
    shutil.move("served elsewhere", "served")
    rollback(second)
    assert "rolled_back" not in tags("2")
    assert rollback_chain() == [first, second]


def test_the_next_rollback_goes_further_back_and_not_to_what_was_rolled_back(here: Path) -> None:
    first, second = rollback_chain()
    rollback()
    third = make_made(3)
    assert register(BUNDLE, decision()) == "champion"
    assert rollback_chain() == [first, third]
    assert aliases() == {"champion": "3", "previous": "1"}
    assert rollback().bundle == first
    with pytest.raises(
        UserError, match="knows of no champion before this one: `nbs rollback --to ID` serves another"
    ) as no:
        rollback()
    assert second[:12] in str(no.value)
    assert third[:12] in str(no.value)
    assert [(move.what, move.bundle) for move in read_history()] == [
        ("promotion", first),
        ("promotion", second),
        ("rollback", first),
        ("promotion", third),
        ("rollback", first),
    ]
    assert read_history()[0].why == "it is number 1."


def test_where_mlflow_is_down_the_aliases_follow_with_the_next_run(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    first, _ = rollback_chain()
    monkeypatch.setenv("NBS_TRACKING_URI", "http://127.0.0.1:9")
    start = time.monotonic()
    rollback()
    assert time.monotonic() - start < 5
    said = capsys.readouterr().err
    assert said == "warning: MLflow at http://127.0.0.1:9 does not answer; its aliases follow with the next run.\n"
    assert champion_path().name == first
    assert aliases() == {"champion": "2", "previous": "1"}
    assert register(BUNDLE, decision()) == "withdrawn"
    assert aliases() == {"champion": "1"}


def test_a_challenger_that_is_held_leaves_the_way_back_alone(here: Path) -> None:
    first, second = rollback_chain()
    make_made(3)
    assert register(BUNDLE, decision("HOLD")) == "challenger"
    assert aliases() == {"champion": "2", "previous": "1", "challenger": "3"}
    assert rollback().before == second
    assert champion_path().name == first
    assert aliases() == {"champion": "1", "challenger": "3"}


# What goes wrong


@pytest.mark.parametrize("at", [0, 1])
def test_killed_in_the_middle_it_can_be_done_again(here: Path, at: int, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = rollback_chain()
    whole, written = history_module.write_text, []

    def killed(text: str, path: Path) -> None:
        written.append(path)
        if len(written) > at:  # the line, then the pointer
            raise SystemExit
        whole(text, path)

    with monkeypatch.context() as broken:
        broken.setattr(history_module, "write_text", killed)
        with pytest.raises(SystemExit):
            rollback()
    assert champion_path().name == second
    assert rollback_chain() == [first, second]
    assert rollback().bundle == first
    assert rollback_chain() == [first]


TWICE = "from nbs_lib.registry.rollback import rollback; rollback()"


def test_two_at_once_go_back_two_steps(here: Path) -> None:
    first = rollback_chain()[0]
    make_made(3)
    register(BUNDLE, decision())
    (*_, codes), _ = run_at_once(2, TWICE)
    assert codes == "[0, 0]"
    assert rollback_chain() == [first]
    assert Bundle.open(champion_path()).id == first
    assert aliases() == {"champion": "1"}


def untouched(root: Path) -> dict[str, bytes]:
    return {name: (root / "served" / name).read_bytes() for name in ("CURRENT", "HISTORY")}


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        ("byte", r"model\.onnx was changed.*Nothing was changed; `nbs rollback --to ID` serves another one"),
        ("folder", r"the previous champion [0-9a-f]{12} is not in .*served: there is no other bundle"),
        ("line", r"HISTORY, line 2 is damaged: delete that line"),
        ("to", r"has no bundle 'b0b'"),
        ("same", r"is the champion already: nothing was changed"),
        ("digits", r"2 bundles begin with '': give more digits"),
    ],
)
def test_what_can_not_serve_changes_nothing(tmp_path: Path, damage: str, problem: str) -> None:
    root = make_project(tmp_path / "p")
    first, second = champion_path(root).name, promote(root, takes_over=True)
    arguments = []
    if damage == "byte":
        (root / "served" / first / "model.onnx").write_bytes(b"other")
    elif damage == "folder":
        shutil.rmtree(root / "served" / first)
    elif damage == "line":
        lines = (root / "served/HISTORY").read_text().splitlines()
        (root / "served/HISTORY").write_text(f"{lines[0]}\n{lines[1][:40]}\n")
    else:
        arguments = ["--to", {"to": "b0b", "same": second[:12], "digits": ""}[damage]]
    before = untouched(root)
    done = command(root, *arguments)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith("nbs: ")
    assert done.stderr.count("\n") == 1
    assert re.search(problem, done.stderr), done.stderr
    assert untouched(root) == before


def test_views_that_the_store_has_no_more_keep_it_from_serving(tmp_path: Path) -> None:
    root = make_project(tmp_path / "p")
    first, _ = champion_path(root).name, promote(root, takes_over=True)
    store, before = open_store(root=root), untouched(root)
    store.drop([f"spot@{VERSION}"])
    with pytest.raises(StoreError, match="view spot is not in the online store"):
        rollback(root=root)
    assert untouched(root) == before
    assert rollback(degraded=True, root=root).bundle == first


def test_views_that_were_left_behind_keep_it_from_serving(tmp_path: Path) -> None:
    root = make_project(tmp_path / "p")
    promote(root, takes_over=True)
    before = untouched(root)
    open_store(root=root).write(11 * 86_400_000_000, {"other@000000000000": []})
    with pytest.raises(StoreError, match=r"is as of 1970-01-11.*and the store as of 1970-01-12"):
        rollback(root=root)
    assert untouched(root) == before


def test_a_store_that_is_down_keeps_nobody_from_going_back(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    root = make_project(tmp_path / "p")
    first, _ = champion_path(root).name, promote(root, takes_over=True)
    monkeypatch.setenv("NBS_STORE_URL", "redis://127.0.0.1:9/0")
    assert rollback(root=root).bundle == first
    assert "warning: whether the store has its feature views is not known" in capsys.readouterr().err


def test_without_a_champion_there_is_nothing_to_go_back_to(blank_project: Path) -> None:  # noqa: F811
    with pytest.raises(UserError, match="knows of no champion before this one: there is no other bundle"):
        rollback()
    assert not Path("served").exists()


def test_a_damaged_history_keeps_a_bundle_from_being_delivered_half(here: Path) -> None:
    second = champion_path().name
    Path("served/HISTORY").write_text("{}\n")
    make_made(3)
    with pytest.raises(BundleError, match="HISTORY, line 1 is damaged"):
        register(BUNDLE, decision())
    assert champion_path().name == second


def test_a_disk_that_is_full_changes_nothing(tmp_path: Path) -> None:
    root = make_project(tmp_path / "p")
    promote(root, takes_over=True)
    before = untouched(root)
    done = command(root, before=["bash", "-c", 'ulimit -f 0; exec "$@"', "-"])
    assert done.returncode != 0
    assert "again, instead of" not in done.stdout
    assert untouched(root) == before
