"""A real TorchServe answers like the bundle, refuses what the bundle refuses, and leaves nothing behind."""

import http.client
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import ROOT, lacking, wait_for_environment
from helpers.bundles import graph, make_bundle

from nbs_lib.bundle.bundle import Bundle
from nbs_lib.core.server_process import ServerProcess
from nbs_lib.serve.clients.torchserve import ENVIRONMENT_FOLDER, MODEL_NAME, authorization_header, torchserve_process

WORDS = ["a", "b", "unseen", None]


def rows(count: int = 100) -> list[dict[str, Any]]:
    draw = np.random.default_rng(0)
    return [
        {"width": round(draw.normal(), 3), "new": bool(n % 2), "kind": WORDS[n % 4], "made": f"1970-01-0{n % 9 + 1}"}
        for n in range(count)
    ]


def ask(server: ServerProcess, body: str, key: dict[str, str]) -> tuple[int, Any]:
    connection = http.client.HTTPConnection("127.0.0.1", int(server.url.rpartition(":")[2]), timeout=60)
    connection.request("POST", f"/predictions/{MODEL_NAME}", body, {"Content-Type": "application/json"} | key)
    answer = connection.getresponse()
    told = json.loads(answer.read())
    connection.close()
    return answer.status, told


@pytest.mark.xdist_group("torchserve")
def test_torchserve_answers_like_the_bundle(tmp_path: Path) -> None:
    if not shutil.which("java"):
        lacking("apt-get install openjdk-17-jre-headless (or `.ci/apt openjdk-17-jre-headless`)")
    wait_for_environment("torchserve")
    if not (ROOT / ENVIRONMENT_FOLDER / ".ready").exists():
        lacking("`.ci/env torchserve`")
    root = tmp_path / "project"
    make_bundle(root / "models/bundle")
    (root / "models/candidates").mkdir()
    (root / f"models/candidates/{MODEL_NAME}.onnx").write_bytes(graph())
    (root / ENVIRONMENT_FOLDER.parent).mkdir(parents=True)
    (root / ENVIRONMENT_FOLDER).symlink_to(ROOT / ENVIRONMENT_FOLDER)
    expected = Bundle.open(root / "models/bundle").predict(rows())
    with torchserve_process(tmp_path / "serving", root) as server:
        key = authorization_header(tmp_path / "serving")
        status, many = ask(server, json.dumps(rows()), key)
        one = ask(server, json.dumps(rows(1)[0]), key)
        refused = ask(server, json.dumps({"width": "wide", "kind": "a", "new": True, "made": None}), key)
        broken = ask(server, "[]", key)
        forbidden = ask(server, json.dumps(rows(1)[0]), {})
        listening = {c.laddr.ip for p in server.tree() for c in p.net_connections("inet") if c.status == "LISTEN"}
        processes = server.alive_pids()
    assert status == 200
    assert np.abs([each["probability"] for each in many] - expected["output"]).max() <= 1e-6
    assert [each["class"] for each in many] == list(expected["class"])
    assert one == (200, many[0])
    assert refused[0] == 400
    assert "width" in str(refused[1])
    assert broken[0] == 400
    assert forbidden[0] == 400  # TorchServe's word for a wrong token
    assert listening <= {"127.0.0.1", "::ffff:127.0.0.1"}
    assert len(processes) >= 2
    assert server.alive_pids() == []
