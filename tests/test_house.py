"""The house rules: clean notebooks, a library that is what they export, true dependencies, ruff, types."""

import ast
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from nbs_lib.pipeline import all_deps, load_stages, parameters

ROOT = Path(__file__).resolve().parents[1]
BIN = Path(sys.executable).parent
NOTEBOOKS = sorted(p for p in (ROOT / "notebooks").rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts)


def run(*command: str | Path, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(c) for c in command], cwd=cwd, capture_output=True, text=True)


def test_notebooks_are_clean_and_the_library_is_what_they_export(tmp_path: Path) -> None:
    for name in ("notebooks", "nbs_lib"):
        shutil.copytree(
            ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints", "llms.txt")
        )
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    for module in (tmp_path / "nbs_lib").rglob("*.py"):
        if module.name not in ("__init__.py", "_modidx.py"):
            module.unlink()
    for command in ("nbdev-clean", "nbdev-export"):
        done = run(BIN / command, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    differences = run(
        "diff",
        "-r",
        "-q",
        "-x",
        "__pycache__",
        "-x",
        ".ipynb_checkpoints",
        "-x",
        "llms.txt",
        "-x",
        ".last_checked",
        ROOT / "notebooks",
        tmp_path / "notebooks",
    )
    assert not differences.stdout, f"run `make lib`:\n{differences.stdout}"
    differences = run("diff", "-r", "-q", "-x", "__pycache__", ROOT / "nbs_lib", tmp_path / "nbs_lib")
    assert not differences.stdout, f"run `make lib`, and remove modules without a notebook:\n{differences.stdout}"


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_a_notebook_reads_like_an_article(notebook: Path) -> None:
    cells = json.loads(notebook.read_text())["cells"]
    first = "".join(cells[0]["source"])
    assert cells[0]["cell_type"] == "markdown"
    assert re.match(r"# .+\n(#?\n)*> .+", first), "begins with `# Title` and `> one-line summary`"
    assert all("id" in cell for cell in cells)
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in cells), "no outputs"


def test_stage_notebooks_stay_short() -> None:
    for stage in load_stages(ROOT).values():
        cells = json.loads((ROOT / stage.notebook).read_text())["cells"]
        lines = [
            line
            for c in cells
            if c["cell_type"] == "code"
            for line in "".join(c["source"]).splitlines()
            if line.strip()
        ]
        assert len(lines) <= 90, f"{stage.notebook} has {len(lines)} lines of code: move logic into notebooks/lib"


@pytest.mark.parametrize("name", list(load_stages(ROOT)))
def test_dependencies_are_those_that_the_code_imports(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    stage = load_stages(ROOT)[name]
    assert list(stage.deps) == all_deps(stage, ROOT), "run `make lib`"
    assert parameters(stage) is not None


def test_every_public_function_is_documented() -> None:
    missing = []
    for path in sorted((ROOT / "nbs_lib").rglob("*.py")):
        for node in ast.parse(path.read_text()).body:
            if (
                isinstance(node, ast.FunctionDef | ast.ClassDef)
                and not node.name.startswith("_")
                and not ast.get_docstring(node)
            ):
                missing.append(f"{path.name}:{node.name}")
    assert not missing


def test_nothing_but_its_folder_knows_the_demo() -> None:
    from nbs_lib.flights.source import read

    demo = read()
    columns = {c for c in demo.table.columns if len(c) > 4 and ("_" in c or c in ("carrier", "tailnum", "origin"))}
    places = [
        *(ROOT / "nbs_lib").glob("*.py"),
        *(ROOT / "notebooks/lib").glob("*.ipynb"),
        *(ROOT / "notebooks/pipeline").glob("*.ipynb"),
        *(ROOT / "notebooks/studies").glob("*.ipynb"),
    ]
    found = [
        f"{p.name}: {c}" for p in places for c in sorted(columns) if re.search(rf"\b{re.escape(c)}\b", p.read_text())
    ]
    assert not found


def test_ruff() -> None:
    done = run(BIN / "ruff", "check", "nbs_lib", "tests", "notebooks")
    assert done.returncode == 0, done.stdout


def test_types() -> None:
    done = run(BIN / "mypy")
    assert done.returncode == 0, done.stdout


def test_nbdev_test() -> None:
    """nbdev's own runner takes the notebooks too; the examples of all of them run in test_notebooks.py."""
    done = run(BIN / "nbdev-test", "notebooks/lib", "--file-re", "^[0-3]", "--n-workers", "0")
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_lock_names_no_host_and_no_build() -> None:
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    assert "torch==2.13.0" in lines
    assert all(re.fullmatch(r"[\w.\-\[\]]+==[\w.]+", line) for line in lines if line and not line.startswith("#"))


def test_the_root_is_small() -> None:
    tracked = run("git", "ls-files", "--cached", "--others", "--exclude-standard").stdout.splitlines()
    roots = {name.split("/")[0] for name in tracked if not name.startswith(".")}
    assert len(roots) <= 14, sorted(roots)
