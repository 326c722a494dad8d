"""Every candidate learns every task, from the oddest of tables; adding one is one cell."""

import re
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.pipeline import Pipeline
from sklearn.tree import DecisionTreeClassifier

from nbs_lib.bundle.bundle import inference_session, run_graph
from nbs_lib.bundle.parity import parity_difference
from nbs_lib.core.errors import DataError, ParamsError, UserError
from nbs_lib.models import candidates as models
from nbs_lib.models.candidates import CANDIDATES, Candidate, Task, register_candidate, select_candidates
from nbs_lib.models.choice import SearchPlan, search_all
from nbs_lib.models.encoding import MISSING_TIME, FeatureLayout, ordinal_encoder
from nbs_lib.models.metrics import evaluate, select_split, squeeze_output
from nbs_lib.models.onnx_export import export_graph, graph_feeds
from nbs_lib.models.search import FittedCandidate, tune_candidate

RNG = np.random.default_rng(0)
N = 400
SIGNAL = RNG.normal(size=N)
COLUMNS: dict[str, dict[str, Any]] = {
    "numbers alone": {"numeric": {"x": SIGNAL.astype("float32")}},
    "text alone": {"categorical": {"c": np.where(SIGNAL > 0, "up", "down").astype(object)}},
    "times alone": {"time": {"t": (86_400 * (10_000 + 40 * SIGNAL)).astype("int64")}},
    "the timestamp as a feature": {"numeric": {"x": SIGNAL.astype("float32")}, "time": {"at": np.arange(N) * 3600}},
    "a number missing in all training rows": {
        "numeric": {"x": SIGNAL.astype("float32"), "late": np.repeat([np.nan, 1], [300, 100]).astype("float32")},
    },
    "a number missing only after training": {
        "numeric": {"x": np.where(np.arange(N) < 300, SIGNAL, np.nan).astype("float32")},
    },
    "a constant": {"numeric": {"x": SIGNAL.astype("float32"), "one": np.ones(N, "float32")}},
    "huge and tiny numbers": {
        "numeric": {"x": (SIGNAL * 1e30).astype("float32"), "y": (SIGNAL * 1e-30).astype("float32")},
    },
    "text that is always rare": {
        "numeric": {"x": SIGNAL.astype("float32")},
        "categorical": {"c": np.array([f"id {i}" for i in range(N)], dtype=object)},
    },
    "text in many scripts": {
        "categorical": {"c": RNG.choice(["é", "日本", "<b>", '"', "a\nb", "🙂", ""], N).astype(object)},
    },
    "times that are missing": {"time": {"t": np.where(SIGNAL > 0, MISSING_TIME, 10**9)}},
}
TARGETS = {
    "binary": (SIGNAL + RNG.normal(0, 0.5, N) > 0).astype("int64"),
    "multiclass": np.digitize(SIGNAL + RNG.normal(0, 0.3, N), [-0.6, 0.6]),
    "regression": 1e5 + 100 * SIGNAL,
}


def parts(about: dict[str, Any], kind: str) -> tuple[FeatureLayout, pd.DataFrame, pd.DataFrame]:
    columns = {name: values for group in about.values() for name, values in group.items()}
    table = pd.DataFrame(columns).assign(_target=TARGETS[kind])
    names = {group: list(about.get(group, {})) for group in ("numeric", "categorical", "time")}
    roles: Any = SimpleNamespace(**names, timestamp="at", source="toy")
    return FeatureLayout.learn(table[:300], roles), table[:300], table[300:]


def apart(fitted: FittedCandidate, train: pd.DataFrame, rows: pd.DataFrame) -> float:
    """How far the graph, asked as production asks it, is from the library."""
    asked = run_graph(
        inference_session(export_graph(fitted, train).SerializeToString()), graph_feeds(rows, fitted.task.layout)
    )
    return parity_difference(
        fitted.task.kind, fitted.answers(rows), dict(zip(("output", "margin"), asked, strict=True))
    )


@pytest.mark.parametrize("name", list(CANDIDATES))
@pytest.mark.parametrize("what", list(COLUMNS))
def test_odd_tables_are_learned_and_converted(what: str, name: str) -> None:
    layout, train, valid = parts(COLUMNS[what], "binary")
    fitted = tune_candidate(CANDIDATES[name], Task("binary", layout, epochs=1), train, valid, trials=1)
    answers = fitted.answers(valid)
    assert np.isfinite(answers["margin"]).all()
    assert apart(fitted, train, valid) < 1e-4


@pytest.mark.parametrize("name", list(CANDIDATES))
@pytest.mark.parametrize("kind", list(TARGETS))
def test_all_tasks_are_learned_better_than_by_the_dummy(kind: str, name: str) -> None:
    layout, train, valid = parts(COLUMNS["a constant"], kind)
    outputs = {}
    for one in ("dummy", name):
        trials = 5 if one == "linear" else 1  # its own C is for many rows, and 300 need another of its space
        fitted = tune_candidate(CANDIDATES[one], Task(kind, layout), train, valid, trials)
        outputs[one] = squeeze_output(fitted.answers(valid)["output"])
    loss = "rmse" if kind == "regression" else "log_loss"
    found = {one: evaluate(kind, valid["_target"].to_numpy(), output)[loss] for one, output in outputs.items()}
    assert found[name] < 0.8 * found["dummy"] or name == "dummy"


def test_adding_one_is_one_cell_and_removing_it_is_deleting_that_cell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "CANDIDATES", dict(CANDIDATES))

    @register_candidate("tree", "trees", "one small tree", max_depth=[2, 3])
    def _tree(task: Task) -> Pipeline:
        return Pipeline(
            [("encode", ordinal_encoder(task.layout)), ("tree", DecisionTreeClassifier(random_state=task.seed))]
        )

    assert [one.name for one in select_candidates(["tree"])] == ["dummy", "linear", "tree"]
    for kind in ("binary", "multiclass"):
        layout, train, valid = parts(COLUMNS["numbers alone"], kind)
        fitted = tune_candidate(select_candidates("tree")[-1], Task(kind, layout), train, valid, trials=3)
        assert {trial.params["max_depth"] for trial in fitted.trials} == {None, 2, 3}
        assert apart(fitted, train, valid) < 1e-5


@pytest.mark.parametrize("name", ["hgb_small", "lgbm", "blend", "net"])
def test_the_module_does_without_the_cell_of_a_candidate(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    cells = Path(str(models.__file__)).read_text().split("# %% ")
    left = [cell for cell in cells if not re.search(rf'register_candidate\(\s*"{name}"', cell)]
    assert len(left) == len(cells) - 1
    module = ModuleType("nbs_lib.models.fewer")
    module.__dict__["__package__"] = "nbs_lib.models"
    monkeypatch.setitem(sys.modules, module.__name__, module)
    exec("# ".join(left), module.__dict__)
    kept = [one.name for one in module.__dict__["select_candidates"]("auto")]
    assert kept == [one for one in ("dummy", "linear", "hgb_small", "lgbm", "blend", "net") if one != name]
    modules = Path(str(models.__file__)).parents[1].rglob("*.py")
    assert not [path for path in modules if f'CANDIDATES["{name}"]' in path.read_text()]


def test_unknown_candidates_are_refused_with_the_nearest_name() -> None:
    with pytest.raises(ParamsError, match="did you mean 'linear'"):
        select_candidates(["linaer"])


def test_a_misspelled_setting_is_refused_before_the_search() -> None:
    def build(task: Task) -> Pipeline:
        if task.kind != "binary":
            raise ValueError("it tells two classes apart, no more")
        return Pipeline([("encode", ordinal_encoder(task.layout)), ("estimator", DecisionTreeClassifier())])

    task = Task("binary", FeatureLayout(("x",), (), (), ()))
    Candidate("mine", "trees", "one tree", {"max_depth": [2]}, build).check_settings(task)
    slip = Candidate("mine", "trees", "one tree", {"max_dept": [2]}, build)
    with pytest.raises(UserError, match=r"'mine': its estimator has no setting 'max_dept' \(did you mean 'max_depth'"):
        search_all(SearchPlan(task, 2, [], pd.DataFrame(), pd.DataFrame(), 1), [slip])
    for each in CANDIDATES.values():
        each.check_settings(task)

    def nothing_else(task: Task) -> Pipeline:
        kind: Any = DecisionTreeClassifier() if task.kind == "binary" else "passthrough"
        return Pipeline([("encode", ordinal_encoder(task.layout)), ("estimator", kind)])

    Candidate("mine", "trees", "one tree", {"max_depth": [2]}, nothing_else).check_settings(task)


def test_a_part_with_a_single_class_is_refused() -> None:
    table = pd.DataFrame({"_split": ["train"] * 4 + ["test"] * 4, "_target": [0, 1, 0, 1, 1, 1, 1, 1]})
    with pytest.raises(DataError, match="The test part holds a single class"):
        select_split(table, "test", "binary")
    with pytest.raises(DataError, match="The valid part is empty"):
        select_split(table, "valid", "binary")


def test_the_search_is_the_same_again() -> None:
    layout, train, valid = parts(COLUMNS["a constant"], "binary")
    for name in ("lgbm", "net"):
        task = Task("binary", layout, seed=3, epochs=2)
        first = tune_candidate(CANDIDATES[name], task, train, valid, trials=2)
        again = tune_candidate(CANDIDATES[name], task, train, valid, trials=2)
        assert first.pipeline[-1] is not again.pipeline[-1]
        assert first.trials == again.trials
        assert len(first.trials) == 2
