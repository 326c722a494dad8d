"""Ours beside the defaults of other libraries: the same rows for all, measured once, kept, and printed whole."""

import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from nbs_lib.bench.quality import compare, measure
from nbs_lib.bench.quality.boosters import AUTOGLUON, BOOSTERS
from nbs_lib.bench.quality.compare import bench_quality, is_beyond_noise, verdict
from nbs_lib.bench.quality.measure import (
    OURS,
    QualityResult,
    best_lead,
    lead_over,
    measure_booster,
    read_results,
    write_forms,
)
from nbs_lib.core.errors import DataError, StageError, UserError
from nbs_lib.core.paths import CONTRACT_FILE
from nbs_lib.data.resolve import resolve_roles
from nbs_lib.data.split import training_set
from nbs_lib.data.table import Source
from nbs_lib.models.metrics import Interval
from nbs_lib.testing.installed_tables import hourly_table


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The rows of sixty days in each form, as our run leaves them; one place is new among the test rows."""
    rows = hourly_table(60)
    rows.loc[rows.index[-30:], "who"] = "new"
    given = {"source": "made", "target": "value", "timestamp": "at", "entity": "who"}
    snapshot, roles = resolve_roles(Source(rows), given)
    root, place = tmp_path / "project", tmp_path / "hourly"
    (root / "data").mkdir(parents=True)
    place.mkdir()
    roles.save(root / CONTRACT_FILE)
    training_set(snapshot, roles, 0.15, 0.15).to_parquet(root / "data/training_set.parquet")
    write_forms(root, place)
    asked = pd.read_parquet(place / "asked.parquet")
    np.save(place / "ours.npy", np.full(len(asked), asked["_target"].mean()))
    return place


def result(model: str, form: str, score: float, lo: float | None, hi: float | None) -> QualityResult:
    return QualityResult(model, form, "auc", 99, score, Interval(score - 0.7, lo, hi), 9.0, 1.0, 0.1, None, "1a2b3c4")


OUR_LINE = result(OURS, "lgbm", 0.7, 0, 0)


def kept(place: Path, *results: QualityResult) -> None:
    place.mkdir(parents=True)
    for each in results:
        measure.keep_result(place, each)


def test_each_form_holds_the_same_rows_and_levels_of_test_rows_alone_are_unknown(folder: Path) -> None:
    native, joined, codes = (pd.read_parquet(folder / f"{form}.parquet") for form in ("native", "joined", "codes"))
    asked = pd.read_parquet(folder / "asked.parquet")
    for form in (native, joined, codes):
        assert np.array_equal(form["_target"], native["_target"])
        assert np.array_equal(form.loc[~form["_learn"], "_target"], asked["_target"])
    [text] = native.select_dtypes("category")
    assert native[text].isna().sum() == 30
    assert native.loc[native["_learn"], text].notna().all()
    assert (codes.drop(columns=["_target", "_learn"]) == -1).any(axis=1).sum() == 30


def test_libraries_learn_by_their_defaults_and_are_kept(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "_python", lambda environment: Path(sys.executable))
    for model, form in (("LightGBM", "native"), ("scikit-learn HGB", "codes")):
        found = measure_booster(folder, model, form)
        assert (found.model, found.form, found.metric) == (model, form, "rmse")
        assert found.lead.lo is not None
        assert found.lead.lo > 0, "the value before tells more than the mean"
        assert min(found.alone_us, found.many_us, found.mb) > 0
    assert [each.model for each in read_results(folder)] == ["LightGBM", "scikit-learn HGB"]


def test_what_is_measured_is_printed_and_not_measured_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    forms = [(model, form) for model, (_, forms) in BOOSTERS.items() for form in forms]
    lines = [result(model, form, 0.69 + 0.01 * (form == "codes"), -0.1, 0.1) for model, form in forms]
    kept(tmp_path / "Carseats", OUR_LINE, *lines)
    kept(tmp_path / "Exam", OUR_LINE)
    monkeypatch.setattr(compare, "QUALITY_FOLDER", tmp_path)
    for name in ("measure_ours", "measure_booster", "measure_autogluon"):
        monkeypatch.setattr(compare, name, lambda *_: pytest.fail("measured again"))
    bench_quality("Carseats")
    said = capsys.readouterr().out
    assert "Carseats: auc of 99 test rows" in said
    assert "Exam: auc of 99 test rows" in said, "the whole table is printed"
    assert "LightGBM, our ordinal codes" in said, "the better of both forms"
    assert "LightGBM, native categories" not in said
    assert "on 1 of 1 tables." in said


def test_one_that_fails_is_named_and_the_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    kept(tmp_path / "Exam", OUR_LINE)
    monkeypatch.setattr(compare, "QUALITY_FOLDER", tmp_path)

    def measured(folder: Path, model: str, form: str) -> None:
        if model == "XGBoost":
            raise StageError("_boosted failed: no memory")
        measure.keep_result(folder, result(model, form, 0.6, -0.2, -0.1))

    monkeypatch.setattr(compare, "measure_booster", measured)
    bench_quality("Exam")
    assert "Exam: XGBoost is not measured: _boosted failed: no memory" in capsys.readouterr().out
    assert {each.model for each in read_results(tmp_path / "Exam")} == {OURS, *BOOSTERS} - {"XGBoost"}


def test_the_verdict_counts_what_is_beyond_noise() -> None:
    level, ahead = result("LightGBM", "codes", 0.71, -0.01, 0.03), result("CatBoost", "native", 0.72, 0.01, 0.03)
    gluon = result(AUTOGLUON, "5 min", 0.6, -0.2, -0.1)
    assert "on 1 of 2 tables; behind it on b (CatBoost)." in verdict({"a": [OUR_LINE, level], "b": [OUR_LINE, ahead]})
    assert "ahead on 1, level on 0, behind on 0" in verdict({"a": [OUR_LINE, level, gluon]})
    assert "on 0 of 0 tables." in verdict({"a": [OUR_LINE], "b": []})


def test_the_best_of_many_alike_is_ahead_by_itself_and_not_at_once() -> None:
    """Eight models are as good as ours: the best of them seems better too often, unless its being picked counts."""
    alone, at_once = 0, 0
    for seed in range(30):
        rng = np.random.default_rng(seed)
        asked = pd.DataFrame({"_target": rng.normal(size=200), "_block": np.arange(200) // 4})
        *others, ours = (asked["_target"].to_numpy() + rng.normal(size=200) for _ in range(9))
        outputs = {str(k): each for k, each in enumerate(others)}
        _, lead = best_lead("regression", asked, outputs, ours)
        alone_leads = [lead_over("regression", asked, each, ours)[1] for each in others]
        assert np.isclose(lead.value or 0, max(each.value or 0 for each in alone_leads))
        alone += any(map(is_beyond_noise, alone_leads))
        at_once += is_beyond_noise(lead)
        assert (lead.lo or 0) < max(each.lo or 0 for each in alone_leads)
    assert alone > 2 * at_once
    better = {**outputs, "better": asked["_target"].to_numpy() + 0.5 * rng.normal(size=200)}
    surest, lead = best_lead("regression", asked, better, ours)
    assert (surest, is_beyond_noise(lead)) == ("better", True)


def test_a_default_that_is_surely_ahead_is_not_hidden_by_one_that_seems_further() -> None:
    """The noisy one has the larger lead, and an interval around 0; the precise one is ahead for certain."""
    rng = np.random.default_rng(0)
    asked = pd.DataFrame({"_target": rng.normal(size=400), "_block": np.arange(400) // 4})
    off = rng.normal(size=400)
    ours = asked["_target"].to_numpy() + off
    errors = {"precise": 0.97 * off, "noisy": 0.97 * rng.normal(size=400)}
    outputs = {name: asked["_target"].to_numpy() + each for name, each in errors.items()}
    leads = {name: lead_over("regression", asked, each, ours)[1] for name, each in outputs.items()}
    surest, lead = best_lead("regression", asked, outputs, ours)
    assert (leads["noisy"].value or 0) > (leads["precise"].value or 0)
    assert (surest, is_beyond_noise(lead)) == ("precise", True)


def test_the_verdict_says_where_the_best_default_is_ahead_by_itself_alone() -> None:
    ahead = result("CatBoost", "codes", 0.75, 0.02, 0.08)
    said = verdict({"b": [OUR_LINE, ahead]}, lambda _: ("CatBoost", Interval(0.05, -0.01, 0.11)))
    assert "on 1 of 1 tables. On b CatBoost is ahead" in said
    assert "(-0.0100 to +0.1100)" in said
    assert "on 0 of 1 tables; behind it on b" in verdict(
        {"b": [OUR_LINE, ahead]}, lambda _: ("CatBoost", Interval(0.05, 0.01, 0.09))
    )


def test_lines_that_are_damaged_are_named_and_left(tmp_path: Path) -> None:
    kept(tmp_path / "Exam", OUR_LINE)
    path = tmp_path / "Exam/results.jsonl"
    path.write_text(damaged := path.read_text() + '{"model": "Light')
    with pytest.raises(DataError, match=r"results\.jsonl is damaged .* delete .*Exam, and it is measured anew"):
        read_results(tmp_path / "Exam")
    assert path.read_text() == damaged


def test_a_table_that_there_is_not_is_named() -> None:
    with pytest.raises(UserError, match=r"there is no table 'Carseat' to measure.*Carseats"):
        bench_quality("Carseat")
