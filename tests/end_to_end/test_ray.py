"""A Ray cluster of two nodes scores, counts drift and searches to the same bytes; what goes wrong is one sentence."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
from conftest import ROOT, Project, lacking, wait_for_environment
from helpers.services import client

from nbs_lib.bench.serve import holdout_rows, peer_server, write_models
from nbs_lib.bench.servers.peers import FOLDER, PEERS, Graph
from nbs_lib.bundle.bundle import Bundle
from nbs_lib.bundle.layout import InputLayout
from nbs_lib.core.errors import UserError
from nbs_lib.pipeline.cluster import RayCluster
from nbs_lib.pipeline.runner import PINNED_ENVIRONMENT
from nbs_lib.registry.pointers import champion_path
from nbs_lib.score.on_ray import by_ray

PYTHON = ROOT / ".nbs/envs/ray/bin/python"

SCRIPT = """
import sys
from ray.cluster_utils import Cluster

cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
cluster.add_node(num_cpus=1)
print(cluster.address, flush=True)
sys.stdin.read()
cluster.shutdown()
"""

IN_PARTS = """
from pathlib import Path
from nbs_lib.score.on_ray import by_ray
from nbs_lib.score.score import score_files
from nbs_lib.score.worker import Options

score_files([str(Path("whole.parquet").absolute())], Path("{out}").absolute(), Options(part_rows=100), run={where})
"""


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """Where a cluster of two nodes answers, a core each."""
    wait_for_environment("ray")
    if not PYTHON.exists():
        lacking("Ray is not installed in .nbs/envs/ray: `.ci/env ray` installs it")
    environment = {name: value for name, value in os.environ.items() if name not in PINNED_ENVIRONMENT}
    environment |= {"RAY_USAGE_STATS_ENABLED": "0", "OMP_NUM_THREADS": "2", "NPY_DISABLE_CPU_FEATURES": "X86_V3"}
    pipe = subprocess.PIPE
    with subprocess.Popen([PYTHON, "-c", SCRIPT], stdin=pipe, stdout=pipe, text=True, env=environment) as process:
        assert process.stdin
        assert process.stdout
        address = process.stdout.readline().strip()
        assert ":" in address, "the cluster has not begun"
        yield address
        process.stdin.close()


def on_ray(project: Project, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run Python in the project where Ray is installed."""
    return project.call([str(PYTHON), *arguments], **environment)


def files(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.name != ".lock" and path.is_file()
    }


@pytest.mark.xdist_group("ray")
def test_two_nodes_score_and_count_drift_to_the_same_bytes(address: str, project: Project) -> None:
    table = pd.read_csv(project.root / "penguins.csv").drop(columns="species")
    (project.root / "rows").mkdir()
    for n in range(4):
        table[n::4].to_csv(project.root / f"rows/{n}.csv", index=False)
    done = project.nbs("score", "rows", "--out", "here", "--drift")
    assert done.returncode == 0, done.stderr
    done = on_ray(project, "-m", "nbs_lib.cli", "score", "rows", "--out", "there", "--drift", "--ray", address)
    assert done.returncode == 0, done.stderr
    here, there = (files(project.root / name) for name in ("here", "there"))
    assert len([name for name in here if name.startswith("part-")]) == 4
    assert "_drift.json" in here
    assert here == there
    table.to_parquet(project.root / "whole.parquet")
    for out, where in (("one", "None"), ("many", f"by_ray({address!r})")):
        done = on_ray(project, "-c", IN_PARTS.format(out=out, where=where))
        assert done.returncode == 0, done.stderr
    one, many = (files(project.root / name) for name in ("one", "many"))
    assert len([name for name in many if name.startswith("_parts/")]) == 4
    assert one == many
    table.assign(bill_length_mm=float("inf"))[:1].to_parquet(project.root / "wrong.parquet")
    done = on_ray(project, "-m", "nbs_lib.cli", "score", "wrong.parquet", "--out", "refused", "--ray", address)
    assert done.returncode == 1
    assert "wrong.parquet: column 'bill_length_mm', row 1: inf is not a finite number of 32 bits." in done.stderr


@pytest.mark.xdist_group("ray")
def test_two_nodes_search_candidates_to_the_same_bytes(address: str, project: Project) -> None:
    before = {name: made for name, made in project.outputs().items() if name.startswith("models/candidates")}
    assert before
    for name in before:
        (project.root / name).unlink()
    done = on_ray(project, "-m", "nbs_lib.pipeline.runner", "train", NBS_RUN_RAY=address)
    assert done.returncode == 0, done.stderr
    assert "linear: fold 1" in done.stderr, "what a node says is told here"
    after = {name: made for name, made in project.outputs().items() if name.startswith("models/candidates")}
    assert after == before
    done = on_ray(project, "-m", "nbs_lib.pipeline.runner", "train", NBS_RUN_RAY="127.0.0.1:1")
    assert done.returncode == 1
    assert "no Ray cluster answers at 127.0.0.1:1: start a cluster there by `ray start --head`." in done.stderr


@pytest.mark.xdist_group("ray")
def test_ray_serve_answers_what_the_graph_says(address: str, project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """The peer of `nbs bench serve`: what a team that has Ray Serve would write."""
    monkeypatch.chdir(project.root)
    (project.root / ".nbs/envs").symlink_to(ROOT / ".nbs/envs")
    bundle = Bundle.open(champion_path())
    _, rows = holdout_rows(InputLayout(bundle))
    served = project.root / "peer"
    served.mkdir()
    write_models(bundle, rows, served)
    (peer,) = [each for each in PEERS if each.title.startswith("Ray Serve")]
    with peer_server(peer, served) as server, client(int(server.url.rpartition(":")[2])) as kept:
        answers = [kept.ask(row) for row in rows[:20]]
    monkeypatch.setenv(FOLDER, str(served))
    graph = Graph()
    assert answers == [(200, {"output": graph.row(row)}) for row in rows[:20]]


def test_without_ray_it_is_said_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    for first_use in (by_ray, RayCluster):
        with pytest.raises(UserError, match="Ray is not installed: install the extra `ray` of this project here and"):
            first_use("127.0.0.1:6379")
