"""A person has the last word where settings.ini says so: nothing is served before, and who said so is known."""

import contextlib
import fcntl
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from conftest import ROOT, Project
from helpers.bundles import (  # noqa: F401
    VIEWS,
    blank_project,
    decision,
    make_bundle,
    make_ladder_bundle,
    mlflow_project,
    mlflow_template,
    store_of,
)
from helpers.registry import aliases, register_alone, versions
from helpers.webhook import Receiver, receiving

from nbs_lib.core.errors import BundleError, SettingsError, UserError
from nbs_lib.core.paths import CONTRACT_FILE
from nbs_lib.core.settings import load_settings
from nbs_lib.data.roles import Roles
from nbs_lib.features.join import view_file
from nbs_lib.features.materialize import FEATURES_FOLDER, parse_time_us
from nbs_lib.features.online.lookup import open_store
from nbs_lib.registry.model_registry import register, start_shadow
from nbs_lib.registry.pointers import AWAITS_APPROVAL, champion_path, read_candidates, read_history, waiting
from nbs_lib.registry.rollback import rollback
from nbs_lib.retrain import approval, cycle
from nbs_lib.retrain.approval import approve
from nbs_lib.retrain.decision import RetrainPolicy, RetrainState, decide_retrain
from nbs_lib.retrain.ledger import DONE_STEP, JUDGED, WAIT, begin_turn, last_retrain, read_turns
from nbs_lib.retrain.page import cycle_tiles, turns_table

BUNDLE = Path("models/bundle")


@pytest.fixture
def here(mlflow_project: Path) -> Path:  # noqa: F811
    """A project with a champion, in which a person has the last word from now on."""
    put_up(0, approval="none")
    Path("settings.ini").write_text("[gate]\napproval = person\n")
    return mlflow_project


@pytest.fixture
def receiver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Receiver]:
    with receiving(monkeypatch) as server:
        yield server


def put_up(number: int, verdict: str = "PROMOTE", approval: str = "person") -> str:
    """What a run does with the bundle it has made; its id."""
    shutil.rmtree(BUNDLE, ignore_errors=True)
    id = make_bundle(BUNDLE, fallback={"prior": {"output": 0.3 + number / 100, "margin": -0.85}})
    done = register(BUNDLE, decision(verdict, sentence=f"it is number {number}."), approval=approval)
    promoted = AWAITS_APPROVAL if approval == "person" else "champion"
    assert done == {"PROMOTE": promoted, "HOLD": "challenger"}[verdict]
    return id


def tags() -> dict[str, dict[str, str]]:
    """The tags of each version, by the id of its bundle."""
    return {each.tags["bundle"]: each.tags for each in versions()}


def served() -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in Path("served").rglob("*") if path.is_file()}


def test_what_the_gate_promotes_waits_and_is_served_once_a_person_says_so(here: Path) -> None:
    first = champion_path().name
    second = put_up(1)
    assert champion_path().name == first
    assert aliases() == {"champion": "1"}
    assert (tags()[second]["gate"], tags()[second]["approval"]) == ("PROMOTE", "awaits approval")

    command = [sys.executable, "-m", "nbs_lib.cli", "approve", second[:8], "--by", "Ann  Lee"]
    done = subprocess.run(command, cwd=here, capture_output=True, text=True, env=Project(ROOT).environment())
    assert done.returncode == 0, done.stderr
    assert f"the champion is {second[:12]}" in done.stdout
    assert champion_path().name == second
    assert aliases() == {"champion": "2", "previous": "1"}
    move = read_history()[-1]
    assert (move.what, move.before, move.why) == ("promotion", first, "approved by Ann Lee. it is number 1.")
    told = {key: tags()[second][key] for key in ("approval", "approved_by", "approved_at")}
    assert told == {"approval": "approved", "approved_by": "Ann Lee", "approved_at": move.time}
    assert "approved_by" not in tags()[first]
    (line,) = read_turns()
    assert (line["outcome"], line["challenger"], line["champion"]) == ("approved", second, first)
    assert line["approved_by"] == "Ann Lee"
    assert f"Ann Lee approved {second[:12]}. it is number 1." in turns_table(read_turns()).code
    assert register(BUNDLE, decision(), approval="person") == "unchanged"


def test_a_run_that_changes_nothing_says_that_one_waits_and_imports_no_mlflow(here: Path) -> None:
    put_up(1)
    before = served()
    result = register_alone(approval="person")
    assert (result.returncode, result.stdout) == (0, "awaits approval\n"), result.stderr
    assert served() == before


def test_once_nobody_has_to_approve_the_next_run_promotes(here: Path) -> None:
    second = put_up(1)
    assert register(BUNDLE, decision(), approval="none") == "champion"
    assert (champion_path().name, waiting()) == (second, [])


def test_the_first_champion_waits_too(mlflow_project: Path) -> None:  # noqa: F811
    first = put_up(0)
    with pytest.raises(UserError, match=f"there is no champion yet: .* {first[:12]} waits for `nbs approve"):
        champion_path()
    approve(first, "Ann")
    assert champion_path().name == first


def refused(id: str, said: str, by: str = "Ann") -> None:
    before, turns = served(), read_turns()
    with pytest.raises(UserError, match=said) as caught:
        approve(id, by)
    assert "\n" not in str(caught.value)
    assert (served(), read_turns()) == (before, turns), "nothing was changed"


def test_what_may_not_be_approved(here: Path) -> None:
    champion, held = champion_path().name, put_up(1, "HOLD")
    start_shadow(BUNDLE)
    waits = put_up(2)
    refused("ffff", "served has no bundle 'ffff'")
    refused(champion, "is the champion already: nothing was changed")
    refused(held, "was not promoted by the gate: there is nothing to approve")
    refused(waits, "--by is empty", by=" ")
    Path("served", waits[:63] + ("0" if waits[63] != "0" else "1")).mkdir()
    refused(waits[:9], "2 bundles begin with .*: give more digits")
    (Path("served") / waits / "model.onnx").write_bytes(b"other")
    again = f"The champion is as it was; delete served/{waits}, and `make run` puts it there again"
    refused(waits, rf"model\.onnx was changed: .* {again}")
    shutil.rmtree(Path("served") / waits)
    assert put_up(2) == waits
    approve(waits, "Ann")
    assert champion_path().name == waits


def test_what_would_answer_without_its_views_is_not_approved(here: Path) -> None:
    shutil.rmtree(BUNDLE)
    make_ladder_bundle(BUNDLE)
    assert register(BUNDLE, decision(), approval="person") == AWAITS_APPROVAL
    id = waiting()[-1].bundle
    refused(id, "would answer without some of its feature views: .* `nbs materialize` fills the store")
    store_of(here)
    approve(id, "Ann")
    assert champion_path().name == id


def test_what_is_older_than_the_champion_is_not_approved(here: Path) -> None:
    """Nor what was put up beside another champion, though it is newer."""
    before, older, newer = champion_path().name, put_up(1), put_up(2)
    approve(older, "Ann")
    refused(newer, rf"was put up beside the champion {before[:12]}, and {older[:12]} is served now: `make run` or the")
    third = put_up(3)
    approve(third, "Ben")
    refused(older, f"was approved by Ann at .*, and {third[:12]} is served now: `nbs rollback --to {older[:12]}`")
    rollback(older[:12])
    assert champion_path().name == older
    refused(third, f"was rolled back at .*: `nbs rollback --to {third[:12]}`")


def test_a_rollback_while_an_approval_is_prepared_stands(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = champion_path().name, put_up(1)
    approve(second, "Ann")
    third, turns = put_up(2), read_turns()
    monkeypatch.setattr(approval, "check_views", lambda *_: rollback(why="complaints"))
    with pytest.raises(UserError, match=f"was put up beside the champion {second[:12]}, and {first[:12]} is served"):
        approve(third, "Ben")
    assert (champion_path().name, read_turns()) == (first, turns)


def write_features(as_of: str) -> None:
    """What a run leaves behind where the views of the ladder's bundle are declared."""
    FEATURES_FOLDER.mkdir(parents=True, exist_ok=True)
    for view in VIEWS:
        row = {name: "b" if name in ("maker", "best") else 1.0 for name in [*view["entity"], *view["columns"]]}
        known = pd.to_datetime(["1970-01-10"], utc=True).as_unit("us")
        pd.DataFrame([row], index=known).rename_axis("_known_at").reset_index().to_parquet(
            view_file(FEATURES_FOLDER, view)
        )
    Path(FEATURES_FOLDER, "views.json").write_text(json.dumps(VIEWS))
    Roles("t.csv", "y", "binary", ["no", "yes"], timestamp="at", as_of=as_of, views=VIEWS).save(CONTRACT_FILE)


@pytest.mark.parametrize("who", ["none", "person"])
def test_the_store_is_filled_once_the_pointer_moves(here: Path, monkeypatch: pytest.MonkeyPatch, who: str) -> None:
    """Not by a turn whose challenger waits for a person: the champion may read other versions of the views."""
    settings = Path("settings.ini")
    settings.write_text(settings.read_text().replace("approval = person", f"approval = {who}"))
    shutil.rmtree(BUNDLE)
    make_ladder_bundle(BUNDLE)
    id = json.loads((BUNDLE / "manifest.json").read_text())["id"]
    shutil.copytree(BUNDLE, cycle.CHALLENGER_FOLDER / "bundle")
    judged = {"decision": "PROMOTE", "sentence": "It is better.", "bundle": id}
    for name in ("models/gate.json", "models/cycle/challenge.json"):
        Path(name).write_text(json.dumps(judged | {"champion": "net"}))
    write_features("1970-01-12")
    store_of(here)  # as of January 11: newer than data/features, and less far

    def now() -> int | None:
        return open_store().read(()).now_us

    parts = {"trained_until": 0, "load_params": {"monitor.window": 7}, "publish_challenger": "", "run_stage": None}
    parts |= {"prepare_training_set": None, "find_broken_window": None, "train_challenger": None}
    for part, result in parts.items():  # the challenger was trained and judged
        monkeypatch.setattr(cycle, part, lambda *_, result=result: result)
    monkeypatch.setattr(cycle, "clone_as_of", lambda *_, **__: contextlib.nullcontext(Path()))
    roles, turn = Roles.load(CONTRACT_FILE), begin_turn("turn-a", "1970-01-12")
    outcome, _ = cycle._retrain(turn, cycle.open_champion(), roles, load_settings())
    filled = parse_time_us("1970-01-12")
    if who == "none":
        assert (outcome, champion_path().name, now()) == ("PROMOTE", id, filled)
        return
    assert (outcome, now()) == (AWAITS_APPROVAL, parse_time_us("1970-01-11"))
    approve(id, "Ann")
    assert (champion_path().name, now()) == (id, filled)


def test_views_of_another_version_do_not_fill_the_store(here: Path) -> None:
    shutil.rmtree(BUNDLE)
    make_ladder_bundle(BUNDLE)
    assert register(BUNDLE, decision(), approval="person") == AWAITS_APPROVAL
    write_features("1970-01-12")
    views = Path(FEATURES_FOLDER, "views.json")
    views.write_text(views.read_text().replace(VIEWS[0]["version"], "f" * 12))
    refused(waiting()[-1].bundle, "feature views: .* The champion is as it was; `nbs materialize` fills the store")


def test_a_rollback_is_no_way_around_an_approval(here: Path) -> None:
    first, second = champion_path().name, put_up(1)
    with pytest.raises(UserError, match="was never the champion: `nbs approve` serves what the gate has promoted"):
        rollback(second[:12])
    approve(second, "Ann")
    rollback(why="complaints")
    assert champion_path().name == first, "the way back needs nobody's word"
    rollback(second[:12])
    assert champion_path().name == second


def test_not_while_a_turn_compares_with_the_champion(here: Path) -> None:
    second = put_up(1)
    Path(".nbs").mkdir(exist_ok=True)
    with open(".nbs/cycle.lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        refused(second, "another run is at work here")


def test_the_registry_is_told_later_where_it_is_down(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    second = put_up(1)
    monkeypatch.setenv("NBS_TRACKING_URI", "http://127.0.0.1:9")
    approve(second, "Ann")
    assert champion_path().name == second
    monkeypatch.delenv("NBS_TRACKING_URI")
    assert aliases() == {"champion": "1"}
    assert register(BUNDLE, decision(), approval="person") == "champion"
    assert (aliases()["champion"], tags()[second]["approved_by"]) == ("2", "Ann")


def test_every_turn_says_that_one_waits_and_none_learns_again_for_that(here: Path) -> None:
    second = put_up(1)
    for day, outcome in (("2020-03-01", AWAITS_APPROVAL), ("2020-03-02", WAIT)):
        code = cycle._end_turn(begin_turn(f"turn-{day}", day), outcome, "It is so.")
        assert code == (20 if outcome in JUDGED else 0)
        said = f"It is so. {second[:12]} waits for `nbs approve {second[:12]} --by NAME`."
        assert (read_turns()[-1]["outcome"], read_turns()[-1]["sentence"]) == (outcome, said)
    assert last_retrain(read_turns()) == "2020-03-01"
    decided = decide_retrain(RetrainState(age=90, tried=1, labels=5000), RetrainPolicy())
    assert decided["verdict"] == WAIT


def test_the_webhook_is_told_of_both(here: Path, receiver: Receiver) -> None:
    second = put_up(1)
    cycle._end_turn(begin_turn("turn-a", "2020-03-01", challenger=second), AWAITS_APPROVAL, "It is better.")
    approve(second, "Ann")
    told = [message for message, _ in receiver.taken]
    assert [(each["event"], each["bundle"]) for each in told] == [("awaits approval", second), ("promotion", second)]
    assert f"nbs approve {second[:12]}" in told[0]["sentence"]
    assert told[1]["approved_by"] == "Ann"


def test_the_tags_follow_what_became_of_a_candidate(here: Path) -> None:
    def told(id: str) -> dict[str, str]:
        return {key: value for key, value in tags()[id].items() if key.startswith("approv")}

    second = put_up(1)
    assert register(BUNDLE, decision(), approval="none") == "champion"
    assert (aliases(), told(second)) == ({"champion": "2", "previous": "1"}, {}), "nobody had to approve it"
    third, fourth = put_up(2), put_up(3)
    assert told(third) == told(fourth) == {"approval": "awaits approval"}
    approve(fourth, "Ann")
    assert (aliases(), told(third)) == ({"champion": "4", "previous": "2"}, {}), "it waits no more"
    assert (told(fourth)["approval"], told(fourth)["approved_by"]) == ("approved", "Ann")
    fifth = put_up(4)
    approve(fifth, "Ben")
    assert told(fourth)["approved_by"] == "Ann", "as it was"
    put_up(3)
    assert told(fourth) == {"approval": "awaits approval"}, "put up again"
    assert (told(fifth)["approved_by"], aliases()) == ("Ben", {"champion": "5", "previous": "4"})


@pytest.mark.parametrize("at", ["record_approval", "finish_turn"])
def test_an_approval_that_is_killed_is_told_as_it_was(here: Path, monkeypatch: pytest.MonkeyPatch, at: str) -> None:
    first, second = champion_path().name, put_up(1)
    cycle._end_turn(begin_turn("turn-a", "2020-03-01", challenger=second), AWAITS_APPROVAL, "It is better.")

    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(approval, at, killed)
        with pytest.raises(KeyboardInterrupt):
            approve(second, "Ann")
    begin_turn("b", None, step=DONE_STEP)  # as `nbs monitor` does
    last = read_turns()[-1]
    if at == "finish_turn":
        assert (champion_path().name, last["outcome"]) == (second, "approved")
        assert last["sentence"].startswith(f"Ann approved {second[:12]}.")
    else:
        assert (champion_path().name, last["outcome"]) == (first, "interrupted")
        assert last["sentence"] == f"Killed while Ann approved {second[:12]}: it is not served."
        approve(second, "Ann")
    assert last_retrain(read_turns()) == "2020-03-01", "an approval is no retrain"


def test_a_project_without_times_shows_no_none(here: Path) -> None:
    second = put_up(1)
    approve(second, "Ann")
    turns = read_turns()
    tiles, table = cycle_tiles(turns, None, second).code, turns_table(turns).code
    assert turns[-1]["as_of"] is None
    assert "None" not in tiles + table
    assert "approved" in tiles


@pytest.mark.parametrize("held", [b'[{"time":1,"bundle":1,"champion":"a","why":2}]', b"[1]", b"{", b'["\xff"]'])
def test_a_damaged_list_of_what_waits_is_named(here: Path, held: bytes) -> None:
    second = put_up(1)
    Path("served/WAITING").write_bytes(held)
    with pytest.raises(BundleError, match="served/WAITING is damaged: delete it; `make run` puts up anew what waits"):
        read_candidates()
    Path("served/WAITING").unlink()
    put_up(1)
    assert [each.bundle for each in waiting()] == [second]


@pytest.mark.parametrize("by", ["file", "variable"])
def test_another_word_for_approval_is_refused(tmp_path: Path, by: str) -> None:
    written: dict[str, Any] = {"NBS_GATE_APPROVAL": "two"} if by == "variable" else {}
    (tmp_path / "settings.ini").write_text("" if written else "[gate]\napproval = two\n")
    where = "NBS_GATE_APPROVAL" if written else "settings.ini"
    with pytest.raises(SettingsError, match=rf"{where}: approval in \[gate\] must be none or person"):
        load_settings(tmp_path / "settings.ini", written)
