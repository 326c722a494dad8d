"""Who is told of what, by a receiver that answers as receivers do."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.bundles import blank_project, decision, make_ladder_bundle, manifest, mlflow_project, mlflow_template  # noqa: F401
from helpers.webhook import SECRET, Receiver, receiving

from nbs_lib.core.errors import SettingsError
from nbs_lib.core.settings import load_settings
from nbs_lib.pipeline.run import _register
from nbs_lib.registry import notify as module
from nbs_lib.registry.notify import notify


@pytest.fixture
def here(mlflow_project: Path) -> Path:  # noqa: F811
    return mlflow_project


@pytest.fixture
def receiver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Receiver]:
    with receiving(monkeypatch) as server:
        yield server


def outbox(root: Path) -> list[Path]:
    return sorted((root / ".nbs/outbox").glob("*.json"))


def test_messages_are_signed_where_there_is_a_secret(
    here: Path, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    notify("drift", "What comes moves answers.")
    monkeypatch.setenv("NBS_NOTIFY_SECRET", SECRET)
    notify("hold", "The champion stays.", bundle="abc")
    assert [signature is not None for _, signature in receiver.taken] == [False, True]
    message = receiver.taken[1][0]
    assert (message["event"], message["sentence"], message["bundle"]) == ("hold", "The champion stays.", "abc")
    assert message["model"] == load_settings().tracking.model
    assert SECRET not in "".join(path.read_text() for path in here.rglob(".nbs/*.json"))


def test_what_was_not_taken_waits_and_goes_first(
    here: Path, receiver: Receiver, capsys: pytest.CaptureFixture[str]
) -> None:
    receiver.status = 503
    notify("drift", "one")
    notify("hold", "two")
    assert "it answers 503" in capsys.readouterr().err
    assert len(outbox(here)) == 2
    receiver.status = 200
    notify("promotion", "three")
    assert receiver.events == ["drift", "hold", "promotion"]
    assert outbox(here) == []


def test_nobody_there_fails_nothing(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("NBS_NOTIFY_URL", "http://127.0.0.1:9/hook")
    monkeypatch.setattr(module, "_PAUSE_S", 0.0)
    notify("drift", "one")
    assert "was not told" in capsys.readouterr().err
    monkeypatch.setattr(module, "_MAX_WAITING", 3)
    for number in range(5):
        notify("drift", str(number))
    assert len(outbox(here)) <= 4, "the oldest are given up"


def test_what_is_as_it_was_is_said_once(here: Path, receiver: Receiver) -> None:
    for _ in range(3):
        notify("drift", "the same")
    notify("drift", "another")
    assert receiver.events == ["drift"] * 2


def test_nothing_is_sent_without_an_address(here: Path) -> None:
    notify("drift", "one")
    assert outbox(here) == []


@pytest.mark.parametrize(("gate", "event"), [("PROMOTE", "promotion"), ("HOLD", "hold"), ("REJECT", "rejection")])
def test_a_run_tells_what_became_of_its_bundle(here: Path, receiver: Receiver, gate: str, event: str) -> None:
    make_ladder_bundle(here / "models/bundle")
    told = decision(gate, bundle=manifest(here / "models/bundle")["id"])
    for _ in range(2):
        _register(told, load_settings())
    assert receiver.events == [event]
    assert receiver.taken[0][0]["bundle"] == told["bundle"]


def test_a_run_tells_that_its_bundle_waits_for_a_person(
    here: Path, receiver: Receiver, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("NBS_GATE_APPROVAL", "person")
    make_ladder_bundle(here / "models/bundle")
    id = manifest(here / "models/bundle")["id"]
    for _ in range(2):
        _register(decision(bundle=id, sentence="It is better."), load_settings())
        assert capsys.readouterr().out == f"{id[:12]} waits for `nbs approve {id[:12]} --by NAME`.\n"
    ((message, _),) = receiver.taken
    said = f"It is better. {id[:12]} waits for `nbs approve {id[:12]} --by NAME`."
    assert (message["event"], message["bundle"], message["sentence"]) == ("awaits approval", id, said)


def test_what_can_not_be_told_fails_nothing(here: Path, receiver: Receiver, capsys: pytest.CaptureFixture[str]) -> None:
    (here / ".nbs").mkdir(exist_ok=True)
    (here / ".nbs/notified.json").write_text("{")
    notify("promotion", "The challenger takes over.")
    assert "nobody was told of the event 'promotion'" in capsys.readouterr().err


def test_an_address_that_is_none_is_refused_before_anything_is_learned(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NBS_NOTIFY_URL", "example.org/secret-hook")
    with pytest.raises(SettingsError, match=r"NBS_NOTIFY_URL: url in .notify. must begin with http") as told:
        load_settings()
    assert "secret-hook" not in str(told.value)
