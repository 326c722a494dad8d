"""The house rules: clean notebooks, a library that is what they export, one order of packages, true dependencies.

Each rule is a function of a root that lists what breaks it. They hold for every project;
what holds for the template alone stands in `test_template.py`.
"""

import ast
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import ROOT

from nbs_lib.core.errors import StageError
from nbs_lib.core.stages import expected_deps, load_all_stages, load_stages, stage_parameters

BIN = Path(sys.executable).parent
GENERATED = shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints", "llms.txt", ".last_checked")
MAX_MODULES = 12  # of a package
MAX_STAGE_LINES = 90  # of code in a stage notebook
MAX_ROOTS = 18  # visible entries at the root
Rule = Callable[[Path], list[str]]


def run(*command: str | Path, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(c) for c in command], cwd=cwd, capture_output=True, text=True)


def printed(*command: str | Path, cwd: Path) -> list[str]:
    """What a checker prints where it fails; nothing where it passes."""
    done = run(*command, cwd=cwd)
    return [] if done.returncode == 0 else [done.stdout + done.stderr]


def modules(root: Path) -> list[Path]:
    return sorted((root / "nbs_lib").rglob("*.py"))


def notebooks(root: Path) -> list[Path]:
    return sorted(p for p in (root / "notebooks").rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts)


def cells(notebook: Path) -> list[dict]:
    return json.loads(notebook.read_text())["cells"]


def copy(root: Path, to: Path) -> Path:
    for name in ("notebooks", "nbs_lib", "tests"):
        shutil.copytree(root / name, to / name, ignore=GENERATED)
    for name in ("pyproject.toml", "dvc.yaml", "params.yaml", "requirements.lock"):
        shutil.copy(root / name, to)
    return to


def not_exported(root: Path) -> list[str]:
    """Notebooks that are not tidy, and modules that are not what their notebook exports."""
    fresh = root / ".exported"
    copy(root, fresh)
    for module in modules(fresh):
        if module.name not in ("__init__.py", "_modidx.py"):
            module.unlink()
    failed = [*printed(BIN / "nbdev-clean", cwd=fresh), *printed(sys.executable, ROOT / ".ci/export", cwd=fresh)]
    ignored = [f"--exclude={name}" for name in ("__pycache__", ".ipynb_checkpoints", "llms.txt", ".last_checked")]
    differences = [run("diff", "-r", "-q", *ignored, root / name, fresh / name) for name in ("notebooks", "nbs_lib")]
    shutil.rmtree(fresh)
    return failed + [line for done in differences for line in done.stdout.splitlines()]


def not_an_article(root: Path) -> list[str]:
    """Notebooks that do not begin with a title and a summary; stage notebooks that keep outputs."""
    found = []
    for notebook in notebooks(root):
        first = cells(notebook)[0]
        if first["cell_type"] != "markdown" or not re.match(r"# .+\n(#?\n)*> .+", "".join(first["source"])):
            found.append(f"{notebook.name}: does not begin with `# Title` and `> one-line summary`")
        if not all("id" in cell for cell in cells(notebook)):
            found.append(f"{notebook.name}: has a cell without an id")
        stage = notebook.relative_to(root).parts[1] not in ("lib", "own")
        if any(cell.get("execution_count") or (stage and cell.get("outputs")) for cell in cells(notebook)):
            found.append(f"{notebook.name}: keeps {'outputs' if stage else 'numbers of execution'}")
    return found


def misplaced(root: Path) -> list[str]:
    """Library notebooks that do not lie where their module does, and numbers that stand twice in a folder."""
    found, numbers = [], set()
    for notebook in notebooks(root):
        source = "\n".join("".join(cell["source"]) for cell in cells(notebook))
        exported = re.search(r"(?m)^#\| default_exp (\S+)$", source)
        place = notebook.relative_to(root / "notebooks")
        if not exported or place.parts[0] not in ("lib", "own"):
            continue
        module = [*(["own"] if place.parts[0] == "own" else []), *place.parts[1:-1], re.sub(r"^\d+_", "", place.stem)]
        if ".".join(module) != exported[1]:
            found.append(f"{place}: exports {exported[1]}")
    for notebook in notebooks(root):
        number = (notebook.parent, notebook.name.split("_")[0])
        if number in numbers:
            found.append(f"{notebook.relative_to(root)}: its number stands twice")
        numbers.add(number)
    return found


def long_stages(root: Path) -> list[str]:
    """Stage notebooks with logic that belongs into the library."""
    found = []
    for stage in load_stages(root).values():
        code = ["".join(cell["source"]) for cell in cells(root / stage.notebook) if cell["cell_type"] == "code"]
        lines = [line for source in code for line in source.splitlines() if line.strip()]
        if len(lines) > MAX_STAGE_LINES:
            found.append(f"{stage.notebook} has {len(lines)} lines of code: move logic into notebooks/lib")
    return found


def untrue_dependencies(root: Path) -> list[str]:
    """Stages whose `deps` are not what their code imports."""
    try:
        return [name for name, stage in load_all_stages(root).items() if list(stage.deps) != expected_deps(stage, root)]
    except StageError as error:
        return [str(error)]


def undocumented(root: Path) -> list[str]:
    """Public functions and classes without a docstring."""
    return [
        f"{path.relative_to(root)}:{node.lineno}: {node.name}"
        for path in modules(root)
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
        and not node.name.startswith("_")
        and not ast.get_docstring(node)
    ]


def out_of_order(root: Path) -> list[str]:
    """Imports against the order of packages in `pyproject.toml`, and circles."""
    return printed(BIN / "lint-imports", "--no-cache", cwd=root)


def crowded(root: Path) -> list[str]:
    """Packages of too many modules, and modules that stand in none."""
    library = root / "nbs_lib"
    folders = {folder for folder in library.rglob("*") if folder.is_dir() and folder.name != "__pycache__"}
    found = [f"nbs_lib/{p.name}" for p in library.glob("*.py") if p.name not in ("__init__.py", "_modidx.py", "cli.py")]
    for folder in sorted(folders):
        count = sum(path.name != "__init__.py" for path in folder.glob("*.py"))
        found += [f"{folder.relative_to(root)}: {count} modules"] if count > MAX_MODULES else []
    return found


def unlinted(root: Path) -> list[str]:
    return printed(BIN / "ruff", "check", "--no-cache", "nbs_lib", "tests", "notebooks", cwd=root)


def untyped(root: Path) -> list[str]:
    return printed(BIN / "mypy", cwd=root)


def unlocked(root: Path) -> list[str]:
    """Lines of the lock file that name a host or a build, or torch in another form."""
    lines = (root / "requirements.lock").read_text().splitlines()
    wrong = [line for line in lines if line and not re.fullmatch(r"[\w.\-\[\]]+==[\w.]+|#.*", line)]
    return wrong + ([] if "torch==2.13.0" in lines else ["torch==2.13.0 is missing"])


RULES: list[Rule] = [
    not_exported,
    not_an_article,
    misplaced,
    long_stages,
    untrue_dependencies,
    undocumented,
    out_of_order,
    crowded,
    unlinted,
    untyped,
    unlocked,
]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_the_house_keeps(rule: Rule, tmp_path: Path) -> None:
    root = copy(ROOT, tmp_path / "copy") if rule is not_exported else ROOT  # where a rule writes files
    found = rule(root)
    assert not found, "\n".join(["run `make lib`, or mend:", *found])


@pytest.mark.parametrize("name", list(load_stages(ROOT)))
def test_a_stage_lists_the_parameters_that_it_reads(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    assert stage_parameters(load_stages(ROOT)[name]) is not None
