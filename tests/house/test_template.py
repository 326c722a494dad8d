"""What holds for the template alone: it does not know its demo, its root is small, each rule can fail."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import ROOT
from test_house import (
    MAX_MODULES,
    MAX_ROOTS,
    MAX_STAGE_LINES,
    Rule,
    copy,
    crowded,
    long_stages,
    misplaced,
    modules,
    not_an_article,
    not_exported,
    notebooks,
    out_of_order,
    run,
    undocumented,
    unlinted,
    unlocked,
    untrue_dependencies,
    untyped,
)


def knowing_the_demo(root: Path) -> list[str]:
    """Places outside `demos` that name a column of the demo's table."""
    from nbs_lib.demos.flights.source import read_source

    names = {
        c for c in read_source().table.columns if len(c) > 4 and ("_" in c or c in ("carrier", "tailnum", "origin"))
    }
    places = [p for p in [*modules(root), *notebooks(root)] if not {"demos", "explore"} & set(p.parts)]
    pattern = re.compile(rf"\b({'|'.join(map(re.escape, sorted(names)))})\b")
    return sorted({f"{p.relative_to(root)}: {name}" for p in places for name in pattern.findall(p.read_text())})


def test_the_library_does_not_know_the_demo() -> None:
    assert knowing_the_demo(ROOT) == []


def append(path: str, line: str) -> Callable[[Path], object]:
    def plant(root: Path) -> object:
        return (root / path).write_text((root / path).read_text() + line)

    return plant


def edit(path: str, before: str, after: str) -> Callable[[Path], object]:
    def plant(root: Path) -> object:
        text = (root / path).read_text()
        assert before in text
        return (root / path).write_text(text.replace(before, after, 1))

    return plant


def crowd(root: Path) -> None:
    for number in range(MAX_MODULES):
        (root / f"nbs_lib/models/extra{number}.py").touch()


def mistype(root: Path) -> None:
    for folder in (root / "nbs_lib").iterdir():
        if folder.is_dir():
            shutil.rmtree(folder)
    (root / "nbs_lib/cli.py").write_text("def stray(x): return x\n")


def in_core(plant: Callable[[Path], object]) -> Callable[[Path], object]:
    """Plant a fault where nothing but the lowest package is left: to export all takes long."""

    def plant_it(root: Path) -> object:
        for room in (root / "nbs_lib", root / "notebooks", root / "notebooks/lib"):
            for folder in room.iterdir():
                if folder.is_dir() and folder.name not in ("core", "lib"):
                    shutil.rmtree(folder)
        return plant(root)

    return plant_it


def lengthen(root: Path) -> None:
    path = root / "notebooks/pipeline/60_report.ipynb"
    book = json.loads(path.read_text())
    book["cells"][-1]["source"] = "x = 1\n" * MAX_STAGE_LINES
    path.write_text(json.dumps(book))


def keep_output(root: Path) -> None:
    path = root / "notebooks/pipeline/60_report.ipynb"
    book = json.loads(path.read_text())
    book["cells"][-1]["outputs"] = [{"name": "stdout", "output_type": "stream", "text": ["1"]}]
    path.write_text(json.dumps(book))


FILES_NB = "notebooks/lib/core/03_files.ipynb"
FAULTS: list[tuple[Rule, Callable[[Path], object], str]] = [
    (not_exported, in_core(append("nbs_lib/core/files.py", "\nX = 1\n")), "nbs_lib/core/files.py"),
    (not_exported, in_core(edit(FILES_NB, "#| export", "#| exporti")), "nbs_lib/core/files.py"),
    (not_an_article, edit("notebooks/own/01_views.ipynb", '"# ', '"'), "01_views.ipynb"),
    (not_an_article, keep_output, "60_report.ipynb: keeps outputs"),
    (misplaced, edit(FILES_NB, "default_exp core.files", "default_exp data.files"), "exports data.files"),
    (long_stages, lengthen, "60_report.ipynb has"),
    (untrue_dependencies, edit("dvc.yaml", "      - nbs_lib/core/params.py\n", ""), "snapshot"),
    (untrue_dependencies, append("nbs_lib/data/split.py", "\nfrom ..data.sauce import X\n"), "no such module"),
    (undocumented, append("nbs_lib/features/online/base.py", "\ndef stray() -> None: ...\n"), "online/base.py"),
    (knowing_the_demo, append("nbs_lib/serve/log/reader.py", '\nX = "tailnum"\n'), "log/reader.py: tailnum"),
    (
        out_of_order,
        append("nbs_lib/core/files.py", "\nfrom ..registry import tracking\n"),
        "core.files -> nbs_lib.registry",
    ),
    (out_of_order, append("nbs_lib/data/table.py", "\nfrom .source import read\n"), ".table -> .source"),
    (crowded, crowd, "nbs_lib/models: "),
    (crowded, lambda root: (root / "nbs_lib/stray.py").touch(), "nbs_lib/stray.py"),
    (unlinted, append("nbs_lib/core/files.py", "\nimport json\n"), "core/files.py"),
    (unlinted, append("nbs_lib/core/files.py", "\n\ndef stray() -> int:\n    return number\n"), "F821"),
    (untyped, mistype, "nbs_lib/cli.py:1: error"),
    (unlocked, append("requirements.lock", "six @ https://example.org/six.whl\n"), "six @"),
]


@pytest.mark.parametrize(
    ("rule", "plant", "names"), FAULTS, ids=[f"{rule.__name__}-{n}" for n, (rule, *_) in enumerate(FAULTS)]
)
def test_a_planted_fault_is_found(rule: Rule, plant: Callable[[Path], object], names: str, tmp_path: Path) -> None:
    root = copy(ROOT, tmp_path)
    plant(root)
    assert names in "\n".join(rule(root))


def test_the_root_is_small() -> None:
    tracked = run("git", "ls-files", "--cached", "--others", "--exclude-standard").stdout.splitlines()
    roots = {name.split("/")[0] for name in tracked if not name.startswith(".")}
    assert len(roots) <= MAX_ROOTS, sorted(roots)
