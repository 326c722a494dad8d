"""The cheapest model within the budget is chosen, and says why; answers do not depend on the rest of the batch."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT, Project, small
from helpers.gate_results import LINEAR, NET, candidate, metrics
from hypothesis import given
from hypothesis import strategies as st

from nbs_lib.bench.frontier import max_batch_difference
from nbs_lib.bench.net_runtimes import rebuild_net
from nbs_lib.bundle.bundle import inference_session, run_graph
from nbs_lib.core.errors import DataError
from nbs_lib.evaluation.budget import (
    BATCH_SIZES,
    GraphTiming,
    LatencyMeasurements,
    budget_report,
    check_candidate_budget,
    format_size,
    load_latency_measurements,
)
from nbs_lib.evaluation.frontier import pareto_front
from nbs_lib.evaluation.gate import choose_champion, decide_gate
from nbs_lib.models.candidates import CANDIDATES, Task
from nbs_lib.models.compression import make_variants, quantize_int8
from nbs_lib.models.encoding import FeatureLayout
from nbs_lib.models.onnx_export import export_graph, graph_feeds
from nbs_lib.models.search import FittedCandidate, learn_from_all, tune_candidate

SIZES = {"dummy": 40_000, "linear": 10_000, "net": 1_600_000, "net_int8": 400_000}
INT8 = candidate(0.69, (0.14, 0.21), (0.02, 0.05))
FOUND = metrics(linear=LINEAR, net=NET, net_int8=INT8)


def facts(sizes: dict[str, int] = SIZES) -> dict[str, dict[str, Any]]:
    kinds = {"dummy": "baseline", "linear": "linear"}
    return {name: {"kind": kinds.get(name, "net"), "n_inputs": 8, "bytes": size} for name, size in sizes.items()}


def timed(name: str, p99: float, size: int = 0, inputs: int = 8) -> GraphTiming:
    return GraphTiming(
        name, inputs, size or SIZES[name], dict.fromkeys(BATCH_SIZES, p99 / 2), dict.fromkeys(BATCH_SIZES, p99)
    )


def against(p99_ms: float = 5, size_mb: float = 20, *measured: GraphTiming) -> dict[str, Any]:
    return budget_report(
        facts(), LatencyMeasurements("a machine", list(measured)), {"p99_ms": p99_ms, "size_mb": size_mb}
    )


# The budget


@pytest.mark.parametrize(
    ("limits", "champion", "decision"),
    [((5, 20), "net", "PROMOTE"), ((5, 1), "net_int8", "PROMOTE"), ((5, 0.02), "linear", "PROMOTE")],
)
def test_the_best_within_the_budget_is_champion(limits: tuple[float, float], champion: str, decision: str) -> None:
    found = decide_gate(FOUND, 1e-6, 1.0, frontier=against(*limits))
    assert (found["champion"], found["decision"]) == (champion, decision)
    check = next(entry for entry in found["ledger"] if entry["check"] == "budget")
    assert check["passed"] is True
    assert format_size(SIZES[champion]) in check["observed"]
    assert f"{limits[1]:g} MB" in check["needed"]
    assert ("net is above the budget" in found["sentence"]) == (champion != "net")


def test_time_counts_where_it_was_measured() -> None:
    slow = against(0.1, 20, timed("net", 0.2), timed("net_int8", 0.08))
    assert choose_champion(FOUND, "auc", frontier=slow) == "net_int8"
    assert "p99 0.2 ms for one row where 0.1 ms are allowed" in slow["candidates"]["net"]["sentence"]
    assert "by its size alone" in slow["candidates"]["linear"]["sentence"]


@pytest.mark.parametrize("size", [1_000_000, 1_260_000, 4_000_000])
def test_growing_does_not_help_against_a_limit_of_time(size: int) -> None:
    budget = {"p99_ms": 5.0, "size_mb": 20.0}
    measured = [timed("net", 9.0, 1_000_000), timed("net", 4.0, 4_000_000), timed("linear", 9.0, 5_000)]
    found = budget_report(facts({"net": size}), LatencyMeasurements("a machine", measured), budget)["candidates"]["net"]
    assert not found["within"]
    assert "p99 9 ms for one row where 5 ms are allowed" in found["sentence"]
    assert "p99 9 ms" in found["seen"]
    assert found["p99_ms"] == (9 if size == 1_000_000 else None)
    other = [timed("net", 9.0, 1_000_000, inputs=9), timed("net_int8", 9.0, 1_000_000), timed("net", 9.0, 6_000_000)]
    assert budget_report(facts({"net": size}), LatencyMeasurements("a machine", other), budget)["candidates"]["net"][
        "within"
    ]


def test_no_candidates_are_one_sentence() -> None:
    with pytest.raises(DataError, match=r"names no candidate: `make run` writes it anew"):
        budget_report({}, LatencyMeasurements(), {"p99_ms": 5.0, "size_mb": 20.0})


def test_nothing_within_the_budget_is_rejected_in_one_sentence() -> None:
    found = decide_gate(FOUND, 1e-6, 1.0, frontier=against(5, 0.001))
    assert (found["decision"], found["champion"]) == ("REJECT", "net")
    assert "net is above the budget: 1.6 MB where 0.001 MB are allowed." in found["sentence"]
    assert (
        "Nothing that was learned is within it: the smallest is linear (10 KB, time not measured)." in found["sentence"]
    )


def test_the_dummy_alone_is_no_choice() -> None:
    sizes = {"dummy": 1_000, "linear": 50_000, "net": 60_000}
    tight = budget_report(facts(sizes), LatencyMeasurements(), {"p99_ms": 5.0, "size_mb": 0.01})
    assert decide_gate(metrics(linear=LINEAR, net=NET), 1e-6, 1.0, frontier=tight)["decision"] == "REJECT"


def test_linear_takes_over_only_within_the_budget() -> None:
    weak = metrics(linear=LINEAR, net=NET, net_int8=candidate(0.66, (0.12, 0.19), (-0.01, 0.02)))
    assert choose_champion(weak, "auc", frontier=against(5, 1)) == "linear"
    large = budget_report(facts(SIZES | {"linear": 2_000_000}), LatencyMeasurements(), {"p99_ms": 5.0, "size_mb": 1.0})
    assert choose_champion(weak, "auc", frontier=large) == "net_int8"


@given(size=st.integers(1, 10**9), limit=st.floats(1e-6, 1e3), p99=st.none() | st.floats(1e-3, 1e3))
def test_a_limit_is_a_limit(size: int, limit: float, p99: float | None) -> None:
    found = check_candidate_budget(
        "x", size, timed("x", p99, size) if p99 is not None else None, {"p99_ms": 5.0, "size_mb": limit}
    )
    assert found["within"] == (size <= 1e6 * limit and (p99 is None or p99 <= 5.0))


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=8))
def test_nothing_on_the_frontier_is_beaten(points: list[tuple[int, int]]) -> None:
    named = {str(k): (float(x), float(y)) for k, (x, y) in enumerate(points)}
    line = [named[name] for name in pareto_front(named)]
    for x, y in named.values():
        assert any(a <= x and b >= y for a, b in line)
    assert not any(a <= x and b >= y and (a, b) != (x, y) for a, b in line for x, y in line)


# The measurement file


@pytest.mark.parametrize(
    ("one", "counts"),
    [
        (timed("net", 1, 1_500_000), True),
        (timed("net", 1, 1_200_000), False),
        (timed("net", 1, 2_200_000), False),
        (timed("net", 1, inputs=9), False),
        (timed("net_int8", 1, 1_600_000), False),
    ],
)
def test_a_measurement_is_of_a_shape(one: GraphTiming, counts: bool) -> None:
    assert (against(5, 20, one)["candidates"]["net"]["p99_ms"] is not None) == counts


def test_the_committed_file_is_whole() -> None:
    found = load_latency_measurements(ROOT / "data/contract/latency.json")
    assert found.timed
    assert found.machine.startswith("one thread of")
    for each in [*found.timed, *found.beside]:
        for rows in BATCH_SIZES:
            assert 0 < each.p50_ms[rows] <= each.p99_ms[rows]


@pytest.mark.parametrize("text", ["", "[]", '{"timed": [{"name": "net"}]}', "\x00", '{"timed": [1'])
def test_a_damaged_file_says_what_to_do(text: str, tmp_path: Path) -> None:
    (tmp_path / "latency.json").write_text(text)
    with pytest.raises(DataError, match=r"is damaged .*`make bench WHAT=frontier` writes it anew"):
        load_latency_measurements(tmp_path / "latency.json")
    assert load_latency_measurements(tmp_path / "none.json") == LatencyMeasurements()


# The variants


def rows(task: str, size: int = 1600) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    table = pd.DataFrame({name: rng.normal(size=size).astype(np.float32) for name in ("width", "height")})
    table["kind"] = rng.choice(["a", "b", "c"], size).astype(object)
    score = table["width"] * 2 + (table["kind"] == "a") + rng.normal(size=size)
    cuts = {"binary": [0.3], "multiclass": [-0.5, 1.0]}
    table["_target"] = score.astype(float) if task == "regression" else np.digitize(score, cuts[task])
    return table


def learned(task: str, *names: str) -> tuple[list[FittedCandidate], pd.DataFrame, pd.DataFrame]:
    table = rows(task)
    known, held = table[:1000], table[1000:]
    what = Task(task, FeatureLayout(("width", "height"), ("kind",), (), (("a", "b", "c"),)), epochs=1)
    return [tune_candidate(CANDIDATES[name], what, known, held, 1) for name in names], known, held


@pytest.mark.parametrize("again", [False, True])
@pytest.mark.parametrize("task", ["binary", "multiclass", "regression"])
def test_a_variant_answers_as_it_learned(task: str, again: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nbs_lib.models.compression.VARIANT_ROUNDS", {"hgb_small": 5, "lgbm": 9})
    fits, known, held = learned(task, "linear", "hgb_small", "lgbm", "net")
    fits = [learn_from_all(fit, known, held) for fit in fits] if again else fits
    made = make_variants(fits, held)
    assert [(one.name, one.base) for one in made] == [
        ("hgb_small_5", "hgb_small"),
        ("lgbm_9", "lgbm"),
        ("net_int8", "net"),
    ]
    for one in made:
        model = one.graph(known)
        assert model.SerializeToString() == one.graph(known).SerializeToString(), "the same bytes each time"
        of = next(fit for fit in fits if fit.candidate.name == one.base)
        assert model.ByteSize() < export_graph(of, known).ByteSize()
        assert one.describe(model.ByteSize())["variant_of"] == one.base
        opened, arrays = inference_session(model.SerializeToString()), graph_feeds(held, of.task.layout)
        output, margin = run_graph(opened, arrays)
        learned_answers = one.fitted.served().answers(held)
        assert np.array_equal(learned_answers["output"], one.fitted.answers(held)["output"]) is not again
        assert np.abs(output - learned_answers["output"]).max() < 1e-5
        assert np.abs(margin - learned_answers["margin"]).max() < 1e-4
        assert max_batch_difference(lambda each, opened=opened: run_graph(opened, each)[1], arrays) < 1e-5, (
            "whoever is beside it"
        )


def test_the_net_itself_is_left_as_it_was() -> None:
    fits, known, held = learned("binary", "net")
    before = export_graph(fits[0], known).SerializeToString()
    make_variants(fits, held)
    assert export_graph(fits[0], known).SerializeToString() == before


def test_variants_follow_the_candidates() -> None:
    fits, _, held = learned("binary", "dummy", "linear")
    assert make_variants(fits, held) == []
    short, _, held = learned("multiclass", "hgb_small")
    assert [one.base for one in make_variants(short, held)] in ([], ["hgb_small"]), "as many trees as there are"


@given(st.integers(1, 5), st.integers(1, 9), st.integers(0, 99), st.sampled_from([0.0, 1e-20, 1e-3, 1e9]))
def test_bytes_are_half_a_step_away_at_most(height: int, width: int, seed: int, scale: float) -> None:
    weight = (np.random.default_rng(seed).normal(size=(height, width)) * scale).astype(np.float32)
    whole, step = quantize_int8(weight)
    assert whole.dtype == np.int8
    assert np.all(np.abs(whole * step - weight) <= step * 0.501)


def test_the_bench_builds_the_net_again() -> None:
    import torch

    fits, known, held = learned("multiclass", "net")
    encoded = fits[0].pipeline[:-1].transform(held[fits[0].task.layout.features])
    with torch.inference_mode():
        again = rebuild_net(export_graph(fits[0], known))(torch.from_numpy(np.asarray(encoded, np.float32))).numpy()
    assert np.abs(again - fits[0].pipeline[-1].decision_function(encoded)).max() < 1e-5


# A project


def test_a_small_table_needs_no_measurement(project: Project) -> None:
    found = json.loads((project.root / "models/frontier.json").read_text())
    assert all(each["p99_ms"] is None and each["within"] for each in found["candidates"].values())
    assert "Their size alone decides" in (project.root / "reports/frontier.html").read_text()
    assert json.loads((project.root / "models/bundle/metrics.json").read_text())["budget"] == {
        "p99_ms": 5,
        "size_mb": 20,
    }


def test_a_budget_for_nothing(project: Project) -> None:
    small(project, "penguins.csv", "species", candidates="[dummy, linear]", size_mb="0.0001")
    done = project.nbs("run")
    assert done.returncode == 0, done.stderr[-2000:]
    assert "gate: REJECT" in done.stdout
    assert "the smallest is linear" in done.stdout
    assert set(json.loads((project.root / "models/metrics.json").read_text())["candidates"]) == {"dummy", "linear"}


def test_a_new_measurement_reruns_no_training(project: Project) -> None:
    done = project.call([*project.command("bench", "frontier")])
    assert done.returncode == 0, done.stderr[-2000:]
    assert "hgb_small" in done.stdout
    dry = project.call(["python", "-m", "dvc", "repro", "--dry"]).stdout
    assert "Running stage 'frontier'" in dry
    assert "Running stage 'evaluate'" not in dry
    assert project.nbs("run").returncode == 0
    found = json.loads((project.root / "models/frontier.json").read_text())
    assert all(each["p99_ms"] > 0 for each in found["candidates"].values())
