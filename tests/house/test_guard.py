"""`.ci/guard`: what weakens a gate, a test or a limit needs a word in CHANGELOG.md; honest changes do not."""

import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import ROOT

GUARDED = (
    "tests/unit/evaluation/test_gate.py",
    "tests/unit/serve/test_prediction_log.py",
    "tests/house/test_house.py",
    "tests/service/test_serve.py",
    "tests/conftest.py",
    "params.yaml",
)
FILES = (
    *GUARDED,
    "settings.ini",
    "pyproject.toml",
    "CHANGELOG.md",
    "README.md",
    ".ci/run",
    "notebooks/lib/core/03_files.ipynb",
)
Change = Callable[[Path], object]


def git(root: Path, *arguments: str) -> None:
    command = ["git", "-C", str(root), "-c", "user.name=a", "-c", "user.email=a@b.c", *arguments]
    subprocess.run(command, check=True, capture_output=True)


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("guarded") / "project"
    for name in FILES:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, root / name)
    edit("settings.ini", r"^approval = none", "approval = person")(root)
    git(root.parent, "init", "-q", str(root))
    git(root, "add", "-A")
    git(root, "commit", "-qm", "as it is")
    return root


def edit(path: str, before: str, after: str, count: int = 1) -> Change:
    def change(root: Path) -> None:
        text = (root / path).read_text()
        new, found = re.subn(before, after, text, count=count, flags=re.M | re.S)
        assert found, f"{path} has no {before}"
        (root / path).write_text(new)

    return change


def append(path: str, text: str) -> Change:
    return lambda root: (root / path).write_text((root / path).read_text() + text)


def first_test(path: str, change: Callable[[str], str]) -> Change:
    "Change the first test of a file as a whole."

    def apply(root: Path) -> None:
        text = (root / path).read_text()
        found = re.search(r"^def test_\w+\(.*?(?=^\S)", text, re.M | re.S)
        assert found
        (root / path).write_text(text.replace(found[0], change(found[0])))

    return apply


def both(*changes: Change) -> Change:
    return lambda root: [change(root) for change in changes]


SKIP = "\n\n@pytest.mark.skip\ndef test_more() -> None:\n    assert 1\n"
WEAKER = [
    first_test("tests/unit/evaluation/test_gate.py", lambda text: ""),
    first_test("tests/service/test_serve.py", lambda text: ""),
    first_test("tests/unit/evaluation/test_gate.py", lambda text: text.replace("def test_", "def was_test_", 1)),
    first_test("tests/unit/evaluation/test_gate.py", lambda text: re.sub(r"(?m)^    assert [^\n]*$", "    pass", text)),
    lambda root: (root / "tests/unit/evaluation/test_gate.py").unlink(),
    append("tests/unit/evaluation/test_gate.py", SKIP),
    both(  # a namesake elsewhere
        first_test(
            "tests/unit/evaluation/test_gate.py", lambda text: re.sub(r"(?m)^    assert [^\n]*$", "    pass", text)
        ),
        lambda root: (root / "tests/test_other.py").write_text(
            "def test_the_best_that_beats_both_is_promoted() -> None:\n    assert 1\n    assert 2\n"
        ),
    ),
    both(  # a skip less elsewhere
        edit("tests/unit/serve/test_prediction_log.py", r"pytest\.skip\(", "print("),
        append("tests/unit/evaluation/test_gate.py", SKIP),
    ),
    both(
        first_test("tests/unit/evaluation/test_gate.py", lambda text: ""),
        lambda root: (root / "tests/test_moved.py").write_text(
            "def test_the_best_that_beats_both_is_promoted() -> None:\n    pass\n"
        ),
    ),
    append("tests/service/test_serve.py", '\n\ndef test_more() -> None:\n    pytest.skip("later")\n'),
    append("tests/service/test_serve.py", "\n\n@pytest.mark.xfail\ndef test_more() -> None:\n    assert 0\n"),
    edit("tests/house/test_house.py", r"^MAX_MODULES = \d+", "MAX_MODULES = 40"),
    edit("tests/house/test_house.py", r"^MAX_STAGE_LINES = \d+", "MAX_STAGE_LINES = 900"),
    edit("tests/house/test_house.py", r"^MAX_ROOTS = \d+", "MAX_ROOTS = 99"),
    edit("params.yaml", r"^  leak: [\d.]+", "  leak: 1.0"),
    edit("params.yaml", r"^    margin: [\d.]+", "    margin: 0.5"),
    edit("params.yaml", r"^  confidence: [\d.]+", "  confidence: 0.5"),
    edit("settings.ini", r"^max_rows = \d+", "max_rows = 100000000"),
    edit("settings.ini", r"^max_kb = \d+", "max_kb = 1048576"),
    edit("settings.ini", r"^approval = person", "approval = none"),
    edit("settings.ini", r"^max_waiting = \d+", "max_waiting = 1048576"),
    edit("pyproject.toml", r'"D401",? ?', ""),
    edit("pyproject.toml", r"^strict = true", "strict = false"),
    edit(".ci/run", "CI=1 make test", "true"),
    edit("notebooks/lib/core/03_files.ipynb", r'"sha256', '"#| eval: false\\\\n",\n    "sha256'),
]
HONEST = [
    lambda root: None,
    append("README.md", "\nA line more.\n"),
    append("tests/unit/evaluation/test_gate.py", "\n\ndef test_more() -> None:\n    assert 1\n"),
    first_test(
        "tests/unit/evaluation/test_gate.py",
        lambda text: text + "\n\n" + text.replace("def test_", "def test_again_", 1),
    ),
    first_test("tests/unit/evaluation/test_gate.py", lambda text: text.rstrip() + "\n    assert True\n\n\n"),
    lambda root: (root / "tests/test_new.py").write_text("def test_new() -> None:\n    assert 1\n"),
    both(
        lambda root: shutil.copy(root / "tests/unit/evaluation/test_gate.py", root / "tests/test_the_gate.py"),
        lambda root: (root / "tests/unit/evaluation/test_gate.py").unlink(),
    ),
    edit("tests/house/test_house.py", r"^MAX_MODULES = \d+", "MAX_MODULES = 11"),
    append("tests/house/test_house.py", "\n\nMAX_OTHERS = 3\n"),
    edit("params.yaml", r"^  leak: ([\d.]+) #[^\n]*", r"  leak: \1 # said in other words"),
    edit("params.yaml", r"^(  trials: )\d+", r"\g<1>9"),
    edit("params.yaml", r"^(  target: )\w+", r"\g<1>sold"),
    edit("settings.ini", r"^max_rows = \d+", "max_rows = 10"),
    edit("settings.ini", r"^workers = \d+", "workers = 4"),
    edit("settings.ini", r"^port = \d+", "port = 9000"),
    append("pyproject.toml", "\n[tool.other]\nx = 1\n"),
    edit("pyproject.toml", r"^description = [^\n]*", 'description = "another"'),
    edit("notebooks/lib/core/03_files.ipynb", "Written whole", "Written as a whole"),
    both(edit("params.yaml", r"^  leak: [\d.]+", "  leak: 1.0"), append("CHANGELOG.md", "\n- leak is 1: why.\n")),
    both(
        first_test("tests/unit/evaluation/test_gate.py", lambda text: ""),
        append("CHANGELOG.md", "\n- a test is gone: why.\n"),
    ),
]


def guard(root: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([ROOT / ".ci/guard"], cwd=root, capture_output=True, text=True)


@pytest.mark.parametrize("number", range(len(WEAKER)))
def test_a_weakening_is_refused(kept: Path, tmp_path: Path, number: int) -> None:
    root = shutil.copytree(kept, tmp_path / "project")
    WEAKER[number](root)
    done = guard(root)
    assert done.returncode == 1, done.stderr
    assert "say in CHANGELOG.md why" in done.stderr
    git(root, "checkout", "-q", ".")


@pytest.mark.parametrize("number", range(len(HONEST)))
def test_an_honest_change_is_not(kept: Path, tmp_path: Path, number: int) -> None:
    root = shutil.copytree(kept, tmp_path / "project")
    HONEST[number](root)
    done = guard(root)
    assert (done.returncode, done.stderr) == (0, "")
