"""`nbs score --ray ADDRESS`: a cluster of two nodes makes the same bytes; what goes wrong is one sentence."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import ROOT, lacking, wait_for_environment

from nbs_lib.core.errors import UserError
from nbs_lib.score.on_ray import by_ray
from nbs_lib.score.score import score_files
from nbs_lib.score.worker import Options
from nbs_lib.testing.example_project import write_example_project

PYTHON = ROOT / ".nbs/envs/ray/bin/python"

SCRIPT = """
import json, shutil, sys
from pathlib import Path
import pyarrow as pa, pyarrow.parquet as pq
from ray.cluster_utils import Cluster
from nbs_lib.core.errors import UserError
from nbs_lib.score.on_ray import by_ray
from nbs_lib.score.score import score_files
from nbs_lib.score.worker import Options

cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
cluster.add_node(num_cpus=1)
score_files(["in.parquet"], "by_ray", Options(part_rows=100), run=by_ray(cluster.address))
pq.write_table(pa.table({"width": [float("inf")], "person": ["ann"]}), "wrong.parquet")
try:
    score_files(["wrong.parquet"], "refused", run=by_ray(cluster.address))
except UserError as error:
    print(json.dumps(str(error)))
cluster.shutdown()
"""


def test_two_nodes_make_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wait_for_environment("ray")
    if not PYTHON.exists():
        lacking("Ray is not installed in .nbs/envs/ray: `.ci/env ray` installs it")
    monkeypatch.chdir(tmp_path)
    write_example_project(tmp_path)
    numbers = np.arange(1000)
    pq.write_table(pa.table({"width": numbers / 7, "person": np.where(numbers % 3, "ann", "eve")}), "in.parquet")
    score_files(["in.parquet"], "here", Options(part_rows=100))
    environment = os.environ | {"PYTHONPATH": str(ROOT), "RAY_USAGE_STATS_ENABLED": "0"}
    done = subprocess.run([PYTHON, "-c", SCRIPT], capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    said = json.loads(done.stdout.splitlines()[-1])
    assert said == "wrong.parquet: column 'width', row 1: inf is not a finite number of 32 bits."
    for part in Path("here").glob("part-*"):
        assert part.read_bytes() == Path("by_ray", part.name).read_bytes()
    assert len(list(Path("by_ray/_parts").iterdir())) == 10


def test_without_ray_it_is_said_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match="Ray is not installed: install the extra `ray` of this project here and on"):
        by_ray("127.0.0.1:6379")
