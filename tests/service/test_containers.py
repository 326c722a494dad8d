"""The files for containers: checked by the tools of the field, and the steps of the service's image run for real."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from conftest import ROOT
from helpers.services import ROW, Running, make_project

from nbs_lib.core.server_process import free_port, running_server

DEPLOY = ROOT / "deploy"
IMAGES = sorted((DEPLOY / "containers").glob("*.Containerfile"))
SERVE = (DEPLOY / "containers/serve.Containerfile").read_text()
RESEARCH = {"torch", "sklearn", "pandas", "mlflow", "evidently", "duckdb", "onnx", "typer"}


@pytest.mark.parametrize("path", IMAGES, ids=lambda path: path.name)
def test_images_are_written_as_they_should_be(path: Path) -> None:
    hadolint = Path(sys.executable).parent / "hadolint"
    done = subprocess.run([hadolint, "--format", "json", path], capture_output=True, text=True)
    assert json.loads(done.stdout) == []
    assert path.read_text().count("USER 10001:10001") == 1, "nothing runs as root"
    assert (path.parent / f"{path.name}.dockerignore").is_file()


def documents(path: Path) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(path.read_text()))


@pytest.mark.parametrize("name", ["kubernetes/serve.yaml", "schedule/kubernetes.yaml"])
def test_manifests_are_what_kubernetes_takes(name: str) -> None:
    for document in documents(DEPLOY / name):
        kubernetes_validate.validate(document, "1.31", strict=True)


def test_a_manifest_with_a_mistake_is_refused() -> None:
    deployment = documents(DEPLOY / "kubernetes/serve.yaml")[0]
    deployment["spec"]["replica"] = deployment["spec"].pop("replicas")
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(deployment, "1.31", strict=True)


def test_the_parts_of_the_deployment_mean_the_same_pods() -> None:
    deployment, service, disruption, autoscaler, policy = documents(DEPLOY / "kubernetes/serve.yaml")
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    selectors = [deployment["spec"]["selector"]["matchLabels"], service["spec"]["selector"]]
    selectors += [disruption["spec"]["selector"]["matchLabels"], policy["spec"]["podSelector"]["matchLabels"]]
    assert selectors == [labels] * 4
    target = autoscaler["spec"]["scaleTargetRef"]
    assert (target["kind"], target["name"]) == ("Deployment", deployment["metadata"]["name"])
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    mounted = {mount["name"] for mount in container["volumeMounts"]}
    assert mounted == {volume["name"] for volume in deployment["spec"]["template"]["spec"]["volumes"]}


def test_compose_uses_files_that_are_there_with_its_own_addresses(tmp_path: Path) -> None:
    (compose,) = documents(DEPLOY / "compose.yaml")
    for name, service in compose["services"].items():
        for volume in service.get("volumes", ()):
            source = volume.split(":")[0]
            assert (
                source in compose["volumes"]
                or (DEPLOY / source).resolve() == ROOT / "served"
                or (DEPLOY / source).exists()
            ), name
        assert "image" in service
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", ())), "nothing is open to others"
    for name, file, left in (
        ("nginx", "nginx.conf", "127.0.0.1:"),
        ("prometheus", "prometheus/prometheus.yml", '"127.0.0.1:8000"'),
    ):
        edits = re.findall(r"-e '([^']*)'", compose["services"][name]["command"][-1])
        edited = subprocess.run(
            ["sed", *(part for edit in edits for part in ("-e", edit)), DEPLOY / file],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        used = "\n".join(line for line in edited.splitlines() if not line.lstrip().startswith("#"))
        assert left not in used
        assert used.count("serve-1:8000") == used.count("serve-2:8000") == 1
    assert yaml.safe_load(edited)["scrape_configs"][0]["authorization"] == {"credentials_file": "/tmp/nbs/token"}


def without_privileges(command: list[str]) -> list[str]:
    """A command to which what can't be written can't be written, not even as root."""
    return (
        ["setpriv", "--bounding-set=-all", "--inh-caps=-all", "--no-new-privs", *command]
        if os.getuid() == 0
        else command
    )


def install(folder: Path) -> Path:
    """What the image's RUN step installs."""
    (step,) = re.findall(r"(?m)^RUN pip (.*)$", SERVE)
    sources, installed = folder / "build", folder / "opt"
    shutil.copytree(ROOT / "nbs_lib", sources / "nbs_lib", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "requirements.lock"):
        shutil.copy(ROOT / name, sources)
    arguments = shlex.split(step.replace("/opt/nbs", str(installed)).replace("--no-cache-dir ", ""))
    done = subprocess.run([sys.executable, "-m", "pip", "-q", *arguments], cwd=sources, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return installed


def test_the_service_runs_from_its_image(tmp_path: Path) -> None:
    """The steps of the image, in a folder; then its command, with nothing writable but what is mounted."""
    installed, project, port = install(tmp_path), make_project(tmp_path / "srv"), free_port()
    assert {path.name for path in installed.iterdir()}.isdisjoint(RESEARCH)
    size = sum(path.stat().st_size for path in installed.rglob("*") if path.is_file())
    assert size < 250e6, "the image stays small"
    for path in (project, *project.rglob("*")):
        mounted = project / "served" in (path, *path.parents)
        path.chmod((0o755 if path.is_dir() else 0o444) | (0o222 if mounted else 0))
    (command,) = re.findall(r'(?m)^CMD (\["python", "-c", "from.*\])$', SERVE)
    environment = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(installed),
        "HOME": "/tmp",
        "NBS_SERVE_PORT": str(port),
    }
    started = time.monotonic()
    words = without_privileges([sys.executable, "-S", "-B", *json.loads(command)[1:]])
    with running_server(words, port, "/readyz", cwd=project, environment=environment) as server:
        print(f"ready after {time.monotonic() - started:.1f} s, {size / 1e6:.0f} MB installed")
        assert "probability" in Running(server, port).call("/predict", ROW)[1]
