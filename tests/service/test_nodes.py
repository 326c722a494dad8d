"""Nodes that are killed, and champions that change, under twice the load of one: what callers see."""

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest
from conftest import Project
from helpers.services import program

from nbs_lib.bench.faults.nodes import copy_with_two_champions, run_nodes
from nbs_lib.core.errors import UserError


def bodies(project: Project, size: int = 60) -> list[str]:
    table = pd.read_csv(project.root / "penguins.csv").drop(columns="species")
    rows = json.loads(table.to_json(orient="records"))
    return [json.dumps(rows[start : start + size]) for start in range(0, len(rows) - size, size)]


@pytest.mark.filterwarnings("error::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.xdist_group("deploy")
def test_through_kills_and_new_champions_nobody_gets_a_wrong_answer_or_none(finished: Project) -> None:
    program("nginx", "nginx")
    found = run_nodes(finished.root, bodies(finished), kills=2, swaps=6, calm_s=2)
    assert len(found.kills) == 2
    assert set(found.disturbed.outcomes) <= {"200", "fallback", "429"}, "nothing wrong, and nothing lost"
    assert found.disturbed.outcomes["200"] > 100
    assert len(found.disturbed.champions) == 2, "both have answered"


def test_without_a_second_candidate_there_is_nothing_to_change(finished: Project, tmp_path: Path) -> None:
    project = finished.copy(tmp_path / "project")
    shutil.rmtree(project.root / "models/candidates")
    with pytest.raises(UserError, match="has no graph beside the champion's"):
        copy_with_two_champions(project.root, tmp_path)
