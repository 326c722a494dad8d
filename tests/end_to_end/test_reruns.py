"""What re-runs and what does not."""

import json
import re
import subprocess
import sys
import urllib.request
import venv
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import ROOT, Project, lacking, wait_for_environment

from nbs_lib.core.server_process import free_port, running_server
from nbs_lib.core.stages import load_stages, stage_modules
from nbs_lib.pipeline.clone import clone_project


def would_run(project: Project) -> list[str]:
    """The stages that `dvc repro` would run, the source aside."""
    done = project.call(["python", "-m", "dvc", "repro", "--dry"])
    assert done.returncode == 0, done.stderr
    return [name for name in re.findall(r"Running stage '(\w+)'", done.stdout) if name != "source"]


def test_nothing_changed(project: Project) -> None:
    assert would_run(project) == []
    before = project.outputs()
    done = project.nbs("run")
    assert done.returncode == 0
    assert done.stderr == "", "no stage ran"  # make bench states what it costs
    assert "report:" in done.stdout
    assert project.outputs() == before


def test_settings_rerun_nothing(project: Project) -> None:
    path = project.root / "settings.ini"
    path.write_text(path.read_text().replace("experiment = nbs", "experiment = other"))
    assert would_run(project) == []


@pytest.mark.parametrize(
    ("key", "value", "first"),
    [
        ("resamples", "60", "evaluate"),
        ("trials", "2", "train"),
        ("confidence", "0.9", "bundle"),
        ("size_mb", "9", "frontier"),
    ],
)
def test_a_parameter_reruns_the_stages_that_read_it(project: Project, key: str, value: str, first: str) -> None:
    project.set(**{key: value})
    assert would_run(project)[0] == first


def test_prose_and_tests_of_a_library_notebook_rerun_nothing(project: Project) -> None:
    path = next((project.root / "notebooks/lib").rglob("*_split.ipynb"))
    nb = json.loads(path.read_text())
    markdown = {"cell_type": "markdown", "id": "prose", "metadata": {}, "source": "More prose."}
    test = {
        "cell_type": "code",
        "id": "test",
        "metadata": {},
        "execution_count": 1,
        "outputs": [],
        "source": "assert True",
    }
    nb["cells"][2:2] = [markdown, test]
    path.write_text(json.dumps(nb))
    assert project.call([sys.executable, ".ci/export"]).returncode == 0
    assert would_run(project) == []


def test_code_of_a_library_notebook_reruns_the_stages_that_import_it(project: Project) -> None:
    path = project.root / "nbs_lib/evaluation/gate.py"
    path.write_text(path.read_text() + "\nADDED = 1\n")
    importing = [
        s.name
        for s in load_stages(project.root).values()
        if "nbs_lib/evaluation/gate.py" in stage_modules(s.notebook, project.root)
    ]
    assert importing
    assert would_run(project)[0] == importing[0]


def test_outputs_of_a_stage_notebook_rerun_nothing(project: Project) -> None:
    path = next((project.root / "notebooks/pipeline").glob("*_evaluate.ipynb"))
    nb = json.loads(path.read_text())
    cell = next(c for c in nb["cells"] if c["cell_type"] == "code")
    cell["outputs"] = [{"output_type": "stream", "name": "stdout", "text": "saved by hand"}]
    path.write_text(json.dumps(nb, indent=1, sort_keys=True, ensure_ascii=False) + "\n")
    done = project.nbs("run")
    assert done.returncode == 0
    assert "evaluate" not in done.stderr
    assert "saved by hand" not in path.read_text()


def test_prose_of_a_stage_notebook_reruns_that_stage(project: Project) -> None:
    path = next((project.root / "notebooks/pipeline").glob("*_evaluate.ipynb"))
    nb = json.loads(path.read_text())
    nb["cells"][0]["source"] = "# Another title\n\n> Another summary."
    path.write_text(json.dumps(nb))
    done = project.nbs("run")
    assert done.returncode == 0
    assert "  evaluate  " in f"  {done.stderr}"
    assert "train  " not in done.stderr


def test_what_dvc_users_expect(project: Project) -> None:
    for command in (["metrics", "show"], ["params", "diff"], ["plots", "show", "--json"], ["status"]):
        done = project.call(["python", "-m", "dvc", *command])
        assert done.returncode == 0, done.stderr


def test_an_experiment_of_dvc(project: Project) -> None:
    """`dvc exp run -S` runs the stages that read the key, on the values given."""
    environment = {
        "GIT_AUTHOR_NAME": "t",
        "GIT_AUTHOR_EMAIL": "t@t",
        "GIT_COMMITTER_NAME": "t",
        "GIT_COMMITTER_EMAIL": "t@t",
    }
    done = project.call(
        ["python", "-m", "dvc", "exp", "run", "-S", "evaluate.resamples=60", "-n", "sixty"], **environment
    )
    assert done.returncode == 0, done.stderr
    assert json.loads((project.root / "models/metrics.json").read_text())["resamples"] == 60
    shown = project.call(["python", "-m", "dvc", "exp", "show", "--json"])
    assert "sixty" in shown.stdout
    difference = project.call(["python", "-m", "dvc", "params", "diff", "--json"])
    assert json.loads(difference.stdout)["params.yaml"]["evaluate.resamples"]["new"] == 60


S3 = ROOT / ".nbs/envs/s3"


@pytest.fixture
def object_store() -> Iterator[dict[str, str]]:
    """An empty bucket `team` on a stand-in for S3, and the environment of who may use it."""
    wait_for_environment("s3")
    if not (S3 / ".ready").exists():
        lacking("dvc-s3 and moto are not here: `.ci/env s3` gets them")
    port = free_port()
    with running_server([str(S3 / "bin/python"), "-m", "moto.server", "-p", str(port)], port, "/moto-api/") as server:
        urllib.request.urlopen(urllib.request.Request(f"{server.url}/team", method="PUT")).close()
        keys = {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "AWS_DEFAULT_REGION": "us-east-1"}
        yield keys | {"AWS_ENDPOINT_URL": server.url}


@pytest.fixture
def python_with_s3(object_store: dict[str, str], tmp_path: Path) -> str:
    """This Python, as if dvc-s3 were installed for it too."""
    venv.create(tmp_path / "venv", symlinks=True)
    folders = [*S3.glob("lib/python*/site-packages"), Path(pytest.__file__).parents[1]]
    (packages,) = tmp_path.glob("venv/lib/python*/site-packages")
    (packages / "both.pth").write_text("".join(f"{folder}\n" for folder in folders))
    return str(tmp_path / "venv/bin/python")


def test_another_clone_takes_from_s3_what_one_has_pushed(
    project: Project, object_store: dict[str, str], python_with_s3: str, tmp_path: Path
) -> None:
    other = Project(clone_project(tmp_path / "other", project.root))
    settings = other.root / "settings.ini"
    settings.write_text(settings.read_text().replace("\nremote =\n", "\nremote = s3://team/nbs\n"))
    for command in (["remote", "add", "-d", "team", "s3://team/nbs"], ["push", "--run-cache"]):
        done = project.call([python_with_s3, "-m", "dvc", *command], **object_store)
        assert done.returncode == 0, done.stderr
    done = other.call([python_with_s3, "-m", "nbs_lib.cli", "run"], **object_store)
    assert done.returncode == 0, done.stderr
    assert "can't be reached" not in done.stderr
    assert "train  " not in done.stderr, "nothing was recomputed"
    assert other.outputs() == project.outputs()


def test_an_object_store_without_its_package_is_refused(project: Project) -> None:
    before = project.outputs()
    done = project.nbs("run", NBS_DVC_REMOTE="oss://team/nbs")
    assert done.returncode == 1
    assert done.stderr == "nbs: NBS_DVC_REMOTE: remote in [dvc] needs the package dvc-oss: `uv pip install dvc-oss`.\n"
    done = project.nbs("run", NBS_DVC_REMOTE="nope://team/nbs")
    assert "NBS_DVC_REMOTE: DVC knows no nope://" in done.stderr
    assert project.outputs() == before


def test_a_remote_is_pulled_before_anything_is_computed(project: Project, tmp_path: Path) -> None:
    remote = tmp_path / "remote"
    for command in (["remote", "add", "-d", "team", str(remote)], ["push", "--run-cache"]):
        assert project.call(["python", "-m", "dvc", *command]).returncode == 0
    for folder in (".dvc/cache", "models", ".nbs"):
        subprocess.run(["rm", "-rf", project.root / folder], check=True)
    for name in ("snapshot.parquet", "training_set.parquet"):
        (project.root / "data" / name).unlink()
    done = project.nbs("run", NBS_DVC_REMOTE=str(remote))
    assert done.returncode == 0, done.stderr
    assert "train  " not in done.stderr, "nothing was recomputed"
    assert (project.root / "models/bundle/model.onnx").exists()
