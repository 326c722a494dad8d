"""What is wrong in `params.yaml` is said before anything is read or run, by the doctor and by a run alike."""

import shutil
import sys
from pathlib import Path

import pytest
from conftest import ROOT

from nbs_lib.core.errors import ParamsError
from nbs_lib.core.stages import STAGE_FOLDERS
from nbs_lib.doctor.doctor import doctor
from nbs_lib.pipeline import run

SLIPS = {
    "  trials: ": ("  trails: ", r"there is no key train\.trails \(did you mean 'train\.trials'\?\)"),
    "\ntrain:": ("\ntraining:", r"there is no section training \(did you mean 'train'\?\)"),
    "  timestamp: auto": ("  timestmp: visited_on", r"no key data\.timestmp \(did you mean 'data\.timestamp'\?\)"),
    "  seed: 0": ("  seed: zero", r"run\.seed must be a whole number from 0, but is 'zero'"),
    "  candidates: auto": ("  candidates: [dummy, linear, sv]", r"train\.candidates names 'sv', which is no candidate"),
}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The project's parameters and stages, and no table."""
    for name in ("params.yaml", "settings.ini", "dvc.yaml"):
        shutil.copy(ROOT / name, tmp_path / name)
    for folder in STAGE_FOLDERS:
        shutil.copytree(ROOT / folder, tmp_path / folder)
    monkeypatch.chdir(tmp_path)
    edit(tmp_path, "  source: flights", "  source: gone.csv")
    return tmp_path


def edit(root: Path, old: str, new: str) -> None:
    path = root / "params.yaml"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


@pytest.mark.parametrize("slip", SLIPS)
def test_the_doctor_and_a_run_refuse_the_same(here: Path, slip: str) -> None:
    written, sentence = SLIPS[slip]
    edit(here, slip, written)
    for ask in (doctor, lambda: doctor("another.csv", "y"), run.check_configuration):
        with pytest.raises(ParamsError, match=sentence):
            ask()


def test_candidates_of_the_last_run_are_not_looked_up(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever knows their names imports torch: a run with nothing changed stays quick."""
    monkeypatch.setitem(sys.modules, "nbs_lib.models.candidates", None)  # importing it fails
    run.check_configuration()
    edit(here, "  candidates: auto", "  candidates: [dummy, linear]")
    with pytest.raises(ImportError):
        run.check_configuration()
    learned = "train:\n    params:\n      params.yaml:\n        train:\n          candidates: [dummy, linear]\n"
    Path("dvc.lock").write_text(f"schema: '2.0'\nstages:\n  {learned}")
    run.check_configuration()
    for odd in ("", "stages:\n", "stages:\n  train:\n", "stages: [1]\n", "stages:\n  train:\n    params: 1\n"):
        Path("dvc.lock").write_text(odd)
        with pytest.raises(ImportError):
            run.check_configuration()


def test_names_are_read_where_they_are_registered(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also before a first run: nobody waits for torch to hear that a name is right."""
    for module in ("models", "own"):
        (here / "nbs_lib" / module).mkdir(parents=True)
        shutil.copy(ROOT / "nbs_lib" / module / "candidates.py", here / "nbs_lib" / module)
    from nbs_lib.models.candidates import CANDIDATES

    assert run._library_candidates() == {*CANDIDATES} - {"lgbm", "blend"}, "which may not be installed"
    monkeypatch.setitem(sys.modules, "nbs_lib.models.candidates", None)  # importing it fails
    edit(here, "  candidates: auto", "  candidates: [dummy, linear]")
    run.check_configuration()
    edit(here, "  candidates: [dummy, linear]", "  candidates: [dummy, linnear]")
    with pytest.raises(ImportError):
        run.check_configuration()
    edit(here, "  candidates: [dummy, linnear]", "  candidates: [dummy, linear]")
    own = here / "nbs_lib/own/candidates.py"
    for code in ('\n@register_candidate("mine", "trees", "")\ndef _mine(task): ...\n', "\nif True: raise\n", "\n)\n"):
        written = own.read_text()
        own.write_text(written + code)  # what a project adds may be wrong: it is imported, and the sentence is exact
        with pytest.raises(ImportError):
            run.check_configuration()
        own.write_text(written)
    run.check_configuration()
