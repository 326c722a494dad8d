"""The folder in memory that holds what tests write: one for each session, and none that is left for good."""

import tempfile
from pathlib import Path

import pytest
from helpers import temporary


@pytest.fixture(autouse=True)
def _as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", tempfile.gettempdir())
    monkeypatch.setenv("TMPDIR", "")
    monkeypatch.delenv("TMPDIR")


def test_each_session_has_its_own_until_it_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(temporary, "FREE_BYTES", 1)
    begun = temporary.keep_temporary_in_memory(tmp_path)
    assert begun
    folder, lock = begun
    assert Path(tempfile.gettempdir()) == folder
    assert temporary.keep_temporary_in_memory(tmp_path) is None, "TMPDIR says where"
    assert folder.is_dir(), "it is at work"
    foreign = tmp_path / f"{temporary.PREFIX}notes"
    foreign.mkdir()
    lock.close()
    temporary.remove_left(tmp_path)
    assert list(tmp_path.iterdir()) == [foreign]


def test_what_is_left_goes_though_there_is_no_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    left = tmp_path / f"{temporary.PREFIX}killed"
    left.mkdir()
    (left / temporary.LOCK).touch()
    monkeypatch.setattr(temporary, "FREE_BYTES", 1 << 60)
    assert temporary.keep_temporary_in_memory(tmp_path) is None
    assert not left.exists()
    assert temporary.keep_temporary_in_memory(tmp_path / "nowhere") is None
