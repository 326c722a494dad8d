"""Explanations add up to the answers, noise comes last, a planted leak first: each model, each task, and bad input."""

import re

import numpy as np
import pandas as pd
import pytest

from nbs_lib.core.errors import BundleError
from nbs_lib.data.arrays import MISSING_TIME
from nbs_lib.data.roles import Roles
from nbs_lib.explain.explainer import (
    MAX_ADDITIVITY_GAP,
    PERMUTATION_SHAP,
    TREE_SHAP,
    Explainer,
    base_output,
    output_contributions,
)
from nbs_lib.explain.report.drivers import find_drivers, left_out_note
from nbs_lib.explain.report.sanity_checks import (
    PLANTED_LEAK,
    PLANTED_NOISE,
    candidate_and_params,
    check_additivity,
    check_planted_columns,
    fit_explainer,
    group_importance,
)
from nbs_lib.explain.tree_ensemble import _encoded_input_positions, extract_tree_ensemble

TASKS = {"binary": ["no", "yes"], "multiclass": ["a", "b", "c"], "regression": []}
MODELS = {
    "hgb_small": {"max_iter": 40, "max_leaf_nodes": 7},
    "linear": {},
    "net": {"width": 128, "depth": 2},
}
KINDS = {"x": "numeric", "z": "numeric", "word": "categorical", "at": "time"}
ROWS = 2400


def roles(task: str, kinds: dict[str, str] | None = None) -> Roles:
    columns = {name: {"role": kind} for name, kind in (kinds or KINDS).items()}
    return Roles("made up", "y", task, TASKS[task], columns=columns)


def made_up(task: str, seed: int = 0) -> pd.DataFrame:
    """A table in which all inputs matter, a tenth of the numbers missing."""
    rng = np.random.default_rng(seed)
    x, z, hour = rng.normal(size=ROWS), rng.normal(size=ROWS), rng.integers(0, 24, ROWS)
    word = rng.choice(["red", "blue", ""], ROWS)
    score = 2 * x - 1.5 * z + 1.5 * (word == "red") + (hour - 12) / 8 + rng.normal(0, 0.3, ROWS)
    target = {
        "binary": (score > 0).astype(int),
        "multiclass": np.digitize(score, np.quantile(score, [1 / 3, 2 / 3])),
        "regression": score,
    }[task]
    table = pd.DataFrame({"x": x, "z": z, "word": word, "at": 3600 * hour + 86400 * rng.integers(0, 700, ROWS)})
    table["x"] = table["x"].where(rng.random(ROWS) > 0.1)
    split = np.where(np.arange(ROWS) < 0.8 * ROWS, "train", "valid")
    return table.astype({"x": np.float32, "z": np.float32}).assign(_target=target, _split=split)


def candidate(name: str) -> tuple:
    return candidate_and_params(name, {name: {"params": MODELS[name]}})


@pytest.fixture(scope="module", params=[(model, task) for model in MODELS for task in TASKS], ids="-".join)
def case(request: pytest.FixtureRequest) -> tuple[str, str, Explainer]:
    model, task = request.param
    return model, task, fit_explainer(*candidate(model), roles(task), made_up(task))


def test_explanations_add_up_to_the_answers(case: tuple[str, str, Explainer]) -> None:
    model, task, explainer = case
    assert check_additivity(explainer)["passed"]
    arrays = explainer.cases.past
    found = explainer.explain(arrays)
    assert found.method == (TREE_SHAP if model == "hgb_small" else PERMUTATION_SHAP)
    served, margin = explainer.bundle.ask(arrays)
    assert np.array_equal(found.margin, margin)
    apart = np.abs(found.base + found.values.sum(axis=1) - margin) / np.maximum(np.abs(margin), 1)
    assert apart.max() <= MAX_ADDITIVITY_GAP
    assert found.tolerance == MAX_ADDITIVITY_GAP
    told = output_contributions(task, found.base, explainer.grouped(found.values))
    assert np.abs(base_output(task, found.base) + told.sum(axis=1) - served).max() < 2e-4
    assert np.abs(found.values).max() > 0.3, "an explanation of nothing adds up too"


@pytest.mark.parametrize("task", TASKS)
def test_all_trees_of_a_blend_are_explained_exactly_together(task: str) -> None:
    chosen, _ = candidate_and_params("blend", {"blend": {"params": {}}})
    explainer = fit_explainer(chosen, {}, roles(task), made_up(task))
    assert check_additivity(explainer)["passed"]
    assert explainer.explain(explainer.cases.past).method == TREE_SHAP


def test_strange_rows_are_explained_exactly(case: tuple[str, str, Explainer]) -> None:
    """All missing, a category that nobody has seen, numbers far outside."""
    _, _, explainer = case
    rows = {kind: part[:3].copy() for kind, part in explainer.cases.past.items()}
    rows["numeric"][0], rows["categorical"][0], rows["time"][0] = np.nan, "", MISSING_TIME
    rows["categorical"][1] = "<script>alert(1)</script>"
    rows["numeric"][2] = 1e6
    found = explainer.explain(rows)
    assert found.gap.max() <= MAX_ADDITIVITY_GAP
    assert np.isfinite(found.values).all()


MANY_TREES = {"max_iter": 600, "n_iter_no_change": 600}


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3, 1e9])
@pytest.mark.parametrize(("model", "more"), [("hgb_small", MANY_TREES), ("linear", {}), ("net", {})])
def test_a_target_of_any_scale_is_explained_to_what_float32_keeps(model: str, more: dict, scale: float) -> None:
    """600 trees that are added up in float32 lose more than few do, and as much of each scale."""
    table = made_up("regression")
    table["_target"] = scale * (table["_target"] + 20)
    chosen, _ = candidate_and_params(model, {model: {"params": {}}})
    explainer = fit_explainer(chosen, MODELS[model] | more, roles("regression"), table)
    said = check_additivity(explainer)
    assert said["passed"], said
    found = explainer.explain(explainer.cases.past)
    assert found.tolerance == pytest.approx(603 * 2**-24 if more else MAX_ADDITIVITY_GAP)
    assert f"at most {found.tolerance:.1e}" in said["needed"]
    moved = np.abs(found.values).sum(axis=1)
    assert moved.max() > scale, "an explanation of nothing adds up too"
    assert np.abs(found.base + found.values.sum(axis=1) - found.margin).max() <= found.tolerance * 40 * scale


def test_an_answer_that_is_missed_is_said_on_the_page_and_refused_by_the_service() -> None:
    explainer = fit_explainer(*candidate("hgb_small"), roles("regression"), made_up("regression"))
    graph, past = explainer._graphs[False], explainer.cases.past
    engine = graph.engine
    graph.engine = lambda arrays: (engine(arrays)[0] + 0.01, engine(arrays)[1])
    said = check_additivity(explainer)
    assert not said["passed"]
    assert "do not add up" in said["sentence"]
    assert len(find_drivers(explainer, roles("regression"))) == len(KINDS)
    with pytest.raises(BundleError, match="an answer is missed by"):
        explainer.explain(past, strict=True)


def test_noise_comes_last_and_a_leak_is_named(case: tuple[str, str, Explainer]) -> None:
    model, task, _ = case
    noise, leak = check_planted_columns(*candidate(model), roles(task), made_up(task))
    assert (noise["passed"], noise["below"]) == (True, []), noise
    assert leak["passed"], leak
    assert leak["observed"] == f"{PLANTED_LEAK} is first"


def test_noise_that_moves_answers_is_reported() -> None:
    """Where nothing else is to be learned, noise is as good as any input, and the check says so."""
    table = made_up("binary")
    table["_target"] = np.random.default_rng(1).integers(0, 2, ROWS)
    noise, leak = check_planted_columns(*candidate("hgb_small"), roles("binary"), table)
    assert not noise["passed"]
    assert leak["passed"]
    assert PLANTED_NOISE not in noise["below"]


@pytest.mark.parametrize("model", MODELS)
def test_one_feature_a_constant_one_and_many(model: str) -> None:
    table = made_up("binary")
    one = fit_explainer(*candidate(model), roles("binary", {"x": "numeric"}), table)
    assert list(group_importance(one)) == ["x"]
    still = table.assign(still=np.float32(7))
    kinds = {"x": "numeric", "still": "numeric"}
    found = group_importance(fit_explainer(*candidate(model), roles("binary", kinds), still))
    assert found["still"] < 1e-6 < found["x"]
    width = 60 if model == "net" else 500  # a net of 500 is explained at 2 s a row
    rng = np.random.default_rng(5)
    more = {f"c{k}": rng.normal(size=ROWS).astype(np.float32) for k in range(width - 1)}
    wide = pd.concat([table, pd.DataFrame(more)], axis=1)
    many = fit_explainer(*candidate(model), roles("binary", dict.fromkeys(["x", *more], "numeric")), wide)
    found = group_importance(many, rows=5)
    assert len(found) == width
    assert next(iter(found)) == "x"


def test_drivers_say_which_way() -> None:
    told = {
        each.code: each
        for each in find_drivers(
            fit_explainer(*candidate("hgb_small"), roles("binary"), made_up("binary")), roles("binary")
        )
    }
    assert [told["x"].way, told["z"].way] == ["the higher, the more probable", "the higher, the less probable"]
    assert told["word"].way.startswith("more probable: red")
    assert re.fullmatch(
        r"more probable: in the (evening|afternoon).*; less probable: (at night|in the morning).*", told["at"].way
    )


def many_classes(classes: int) -> tuple[Roles, pd.DataFrame]:
    """The made-up table, with its score cut into so many classes."""
    table = made_up("regression")
    table["_target"] = np.digitize(table["_target"], np.quantile(table["_target"], np.arange(1, classes) / classes))
    told = Roles("made up", "y", "multiclass", [f"c{k}" for k in range(classes)], columns=roles("binary").columns)
    return told, table


def test_of_many_classes_each_tree_is_walked_once_and_the_checks_try_a_few() -> None:
    import shap

    told, table = many_classes(12)
    explainer = fit_explainer(*candidate("hgb_small"), told, table)
    arrays = {kind: part[:5] for kind, part in explainer.cases.past.items()}
    trees = extract_tree_ensemble(explainer.bundle.content("model.onnx") or b"", arrays, explainer.bundle.names)
    assert trees
    assert sum(len(own) for own in trees.by_output()) == len(trees.trees)
    background = trees.encoded(explainer.cases.background)
    whole = shap.TreeExplainer({"trees": trees.trees}, data=background).shap_values(
        trees.encoded(arrays), check_additivity=False
    )
    parts = [
        shap.TreeExplainer({"trees": own}, data=background).shap_values(trees.encoded(arrays), check_additivity=False)
        for own in trees.by_output()
    ]
    assert np.array_equal(np.stack(parts, axis=2), whole)
    assert explainer.explain(arrays).gap.max() <= MAX_ADDITIVITY_GAP
    noise, leak = check_planted_columns(*candidate("hgb_small"), told, table)
    assert leak["passed"]
    assert noise["sentence"].endswith(" Tried on the 8 most frequent of 12 classes.")


def test_what_is_explained_is_bounded_by_what_it_costs() -> None:
    """By counts, not by a clock: the same rows on each machine; and the page says how many."""
    told = roles("binary")
    explainer = fit_explainer(*candidate("hgb_small"), told, made_up("binary"))
    assert left_out_note(explainer) == ""
    graph = explainer._graphs[False]
    graph.row_s = 0.5
    assert explainer.affordable_rows(10) == 20
    assert explainer.affordable_rows(1) == 8
    assert left_out_note(explainer) == "Told from 20 rows, not from 100: a model of this size takes long to explain."
    assert len(find_drivers(explainer, told)) == len(KINDS)
    assert "on 8 rows" in check_additivity(explainer)["sentence"]


@pytest.mark.parametrize(("columns", "rows"), [(200, 20), (2000, 10)])
def test_of_a_wide_table_fewer_rows_of_the_background_count(columns: int, rows: int) -> None:
    kinds = dict.fromkeys([f"c{k}" for k in range(columns)], "numeric")
    rng = np.random.default_rng(0)
    table = pd.DataFrame(rng.normal(size=(120, columns)).astype(np.float32), columns=list(kinds))
    table = table.assign(_target=(table["c0"] > 0).astype(int), _split=np.where(np.arange(120) < 90, "train", "valid"))
    explainer = fit_explainer(*candidate("linear"), roles("binary", kinds), table)
    asked: list[int] = []
    ask = explainer.bundle.ask
    graph = explainer._graphs[False]
    graph.ask = lambda given, *more: asked.append(len(given["numeric"])) or ask(given, *more)
    explainer.explain({kind: part[:1] for kind, part in explainer.cases.past.items()})
    assert sum(asked) - 1 == 2 * (columns + 1) * rows
    assert max(asked) * columns <= 2**24 + 2 * columns * rows


def test_a_column_of_several_inputs_has_no_place() -> None:
    rows = {"numeric": np.random.default_rng(0).normal(size=(9, 3)).astype(np.float32)}
    found = _encoded_input_positions(
        lambda given: np.stack([*given["numeric"].T, given["numeric"].sum(axis=1), np.ones(9)], axis=1),
        rows,
        {"numeric": ["a", "b", "c"], "categorical": []},
    )
    assert found.tolist() == [0, 1, 2, -1, -1]
