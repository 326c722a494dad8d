"""One test for each trap of nbdev, Papermill, DVC and MLflow that concerns us: that it stays shut."""

import json
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from conftest import ROOT, Project

from nbs_lib.core.stages import load_stages

BIN = Path(sys.executable).parent


def test_packages_are_compiled_to_byte_code() -> None:
    """A kernel start without byte-code costs twice as much."""
    import pandas

    assert any((Path(pandas.__file__).parent / "__pycache__").glob("*.pyc"))


def test_the_slow_iri_parser_is_not_installed() -> None:
    """python-jsonschema/jsonschema#1428: importing it costs 1.4 CPU seconds a kernel."""
    done = subprocess.run([sys.executable, "-c", "import rfc3987_syntax"], capture_output=True)
    assert done.returncode != 0


def test_cleaning_keeps_the_parameters_tag(tmp_path: Path) -> None:
    """nbdev-clean deletes tags by default, and Papermill then lets the notebook's own values win."""
    source = next((ROOT / "notebooks/pipeline").glob("*_train.ipynb"))
    (tmp_path / "pyproject.toml").write_text((ROOT / "pyproject.toml").read_text())
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "notebooks/train.ipynb").write_text(source.read_text())
    assert subprocess.run([BIN / "nbdev-clean"], cwd=tmp_path).returncode == 0
    assert '"parameters"' in (tmp_path / "notebooks/train.ipynb").read_text()


def test_nbdev_leaves_pyproject_alone() -> None:
    """nbdev-export rewrites `requires-python` unless told not to."""
    assert tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["nbdev"]["update_pyproject"] is False


def test_values_arrive_with_their_types(project: Project) -> None:
    """`papermill -p flag false` hands over a truthy string; our runner hands over what params.yaml holds."""
    path = next((project.root / "notebooks/pipeline").glob("*_evaluate.ipynb"))
    nb = json.loads(path.read_text())
    source = "assert type(resamples) is int and resamples == 50, resamples"
    nb["cells"].append(
        {"cell_type": "code", "id": "typed", "metadata": {}, "execution_count": None, "outputs": [], "source": source}
    )
    path.write_text(json.dumps(nb))
    done = project.nbs("run")
    assert done.returncode == 0, done.stderr


def test_dvc_writes_no_gitignore_of_its_own(project: Project) -> None:
    """A failing `dvc repro` rolls such entries back (treeverse/dvc#11091), and raw data gets committed."""
    ignored = subprocess.run(
        ["git", "ls-files", "--others", "--exclude-standard"], cwd=project.root, capture_output=True, text=True
    ).stdout
    assert not [
        name
        for name in ignored.splitlines()
        if name.startswith(("data/", "models/", "reports/")) and "contract" not in name
    ]
    assert not list((project.root / "data").rglob(".gitignore")) + list((project.root / "models").rglob(".gitignore"))


def test_tracking_is_one_place_whatever_the_working_directory(project: Project) -> None:
    """MLflow's default is a database in the working directory."""
    assert (project.root / "mlflow.db").exists()
    subprocess.run(
        project.command("run"),
        cwd=project.root / "notebooks",
        env=project.environment(),
        check=True,
        capture_output=True,
    )
    assert not (project.root / "notebooks/mlflow.db").exists()
    assert list(project.root.rglob("mlflow.db")) == [project.root / "mlflow.db"]


def test_no_pickle_anywhere(project: Project) -> None:
    """skops and cloudpickle both run code at load time; bundles and registry hold neither."""
    for folder in ("models", "served", "mlruns"):
        for path in (project.root / folder).rglob("*"):
            assert path.suffix not in (".pkl", ".pickle", ".joblib", ".skops", ".pt", ".pth"), path
            assert path.is_dir() or path.read_bytes()[:2] != b"\x80\x04", path


def test_one_parent_run_and_a_child_a_stage(project: Project) -> None:
    import mlflow

    client = mlflow.MlflowClient(f"sqlite:///{project.root}/mlflow.db")
    experiment = client.get_experiment_by_name("nbs")
    runs = client.search_runs([experiment.experiment_id])
    children = [run for run in runs if "mlflow.parentRunId" in run.data.tags]
    parents = {run.data.tags["mlflow.parentRunId"] for run in children}
    assert len(parents) == 1
    assert len(children) == len(load_stages(project.root))
    assert all(run.info.status == "FINISHED" for run in runs)
    assert all(run.data.tags.get("mlflow.source.git.commit") for run in children)


def test_neither_times_nor_places_are_in_a_page(project: Project) -> None:
    """Papermill writes start, end, duration and paths into the notebook that becomes the page."""
    pages = list((project.root / "reports").glob("*.html"))
    assert len(pages) == len(load_stages(project.root)) + 1  # the model card is written by the stage `explain`
    for page in pages:
        text = page.read_text()
        for mark in ("papermill", "start_time", "execution_count", str(project.root), "/tmp/", str(Path.home())):
            assert mark not in text, f"{page.name}: {mark}"


@pytest.mark.parametrize("variable", ["OMP_NUM_THREADS", "PYTHONHASHSEED", "OPENBLAS_CORETYPE", "ATEN_CPU_CAPABILITY"])
def test_threads_seed_and_instructions_are_pinned(variable: str) -> None:
    from nbs_lib.pipeline.runner import PINNED_ENVIRONMENT

    assert variable in PINNED_ENVIRONMENT
