"""Who is champion, and what becomes of it: each rule once, and none can be talked round."""

import json
from typing import Any

import pytest
from helpers.gate_results import LINEAR, NET, NO_BETTER, candidate, interval, metrics
from hypothesis import given
from hypothesis import strategies as st

from nbs_lib.core.errors import ParamsError
from nbs_lib.evaluation.gate import beats, choose_champion, decide_gate
from nbs_lib.evaluation.run_results import why_passed_over


def gate(found: dict[str, Any], parity: float = 1e-6, sample: float = 1.0, **more: Any) -> tuple[str, str]:
    decision = decide_gate(found, parity, sample, **more)
    json.dumps(decision, allow_nan=False)
    for entry in decision["ledger"]:
        assert list(entry) == ["check", "passed", "observed", "needed", "sentence"]
        assert all(entry[key] for key in ("check", "observed", "needed", "sentence"))
    return decision["decision"], decision["champion"]


def test_the_best_that_beats_both_is_promoted() -> None:
    assert gate(metrics(linear=LINEAR, net=NET)) == ("PROMOTE", "net")


def test_one_that_does_not_beat_linear_loses_to_it() -> None:
    decision = decide_gate(metrics(linear=LINEAR, net=NO_BETTER), 1e-6, 1.0)
    assert (decision["decision"], decision["champion"]) == ("PROMOTE", "linear")
    assert "The champion is linear. net does not beat linear in AUC beyond noise." in decision["sentence"]
    assert "linear beats dummy" in decision["sentence"]
    versus = next(entry for entry in decision["ledger"] if entry["check"] == "beats linear")
    assert versus["passed"] is False


@pytest.mark.parametrize(
    ("behind", "lead", "champion"),
    [
        ((0.01, 0.03), (-0.01, 0.02), "net"),
        ((-0.01, 0.03), (-0.01, 0.02), "linear"),
        ((0.01, 0.03), (-0.02, 0.01), "linear"),
    ],
    ids=["confirmed", "not told apart over the folds", "behind on the test rows"],
)
def test_folds_tell_what_few_test_rows_can_not(behind: Any, lead: Any, champion: str) -> None:
    found = metrics(
        linear=LINEAR | {"folds": {"behind_taken": interval(*behind)}}, net=candidate(0.66, (0.12, 0.19), lead)
    )
    decision = decide_gate(found, 1e-6, 1.0)
    assert (decision["decision"], decision["champion"]) == ("PROMOTE", champion)
    told = next(entry for entry in decision["ledger"] if entry["check"] == "beats linear")
    assert told["passed"] is (champion == "net")
    assert ("over the folds" in decision["sentence"]) == (champion == "net")
    if champion == "net":
        assert gate(found, confidence=0.99999)[1] == "linear"


def test_linear_as_the_best_is_promoted() -> None:
    assert gate(metrics(linear=LINEAR)) == ("PROMOTE", "linear")


def test_one_that_loses_to_a_useless_linear_is_not_promoted() -> None:
    found = metrics(linear=candidate(0.52, (-0.01, 0.04), (0, 0)), net=candidate(0.6, (0.01, 0.1), (-0.01, 0.09)))
    decision = decide_gate(found, 1e-6, 1.0)
    assert (decision["decision"], decision["champion"]) == ("REJECT", "linear")
    assert "net does not beat linear" in decision["sentence"]
    assert "linear does not beat dummy" in decision["sentence"]


def test_what_was_not_measured_is_held_and_not_blamed() -> None:
    blind = candidate(0.6, (None, None), (0, 0), loss=(None, None))
    found = metrics(linear=blind, net=candidate(0.7, (None, None), (None, None), loss=(None, None)))
    decision = decide_gate(found, 1e-6, 1.0)
    assert (decision["decision"], decision["champion"]) == ("HOLD", "linear")
    assert "there is no interval to tell whether linear beats dummy" in decision["sentence"].lower()
    assert "evaluate.resamples" in decision["sentence"]
    assert {entry["check"]: entry["passed"] for entry in decision["ledger"]} == {
        "beats dummy": None,
        "beats linear": None,
        "log loss": None,
        "parity": True,
        "all rows": True,
    }
    for blame in (
        "worse than always answering the usual share, beyond",
        "does not beat",
        "linear beats dummy in AUC b",
    ):
        assert blame not in decision["sentence"]
    assert gate(found, parity=1.0)[0] == "REJECT"


@pytest.mark.parametrize("dummy", [(-0.02, 0.03), (0.0, 0.03), (-0.2, -0.1)])
def test_one_that_does_not_beat_the_dummy_is_rejected(dummy: Any) -> None:
    decision = decide_gate(metrics(linear=candidate(0.6, dummy, (0, 0))), 1e-6, 1.0)
    assert decision["decision"] == "REJECT"
    assert "does not beat dummy" in decision["sentence"]


def test_the_dummy_is_never_promoted() -> None:
    decision = decide_gate(metrics(), 1e-6, 1.0)
    assert decision["decision"] == "REJECT"
    assert decision["sentence"].startswith(
        "The champion is dummy. dummy was chosen before the test: nothing was learned"
    )
    assert "dummy does not beat dummy" not in decision["sentence"].lower()
    assert not beats(metrics(), "dummy", "dummy", "auc")


def test_probabilities_worse_than_the_prior_are_rejected() -> None:
    worse = NET | {"vs_dummy": {"auc": interval(0.1, 0.2), "log_loss": interval(-0.2, -0.1)}}
    assert gate(metrics(linear=LINEAR, net=worse))[0] == "REJECT"
    unsure = NET | {"vs_dummy": {"auc": interval(0.1, 0.2), "log_loss": interval(-0.2, 0.1)}}
    assert gate(metrics(linear=LINEAR, net=unsure))[0] == "PROMOTE"


@pytest.mark.parametrize("parity", [1.01e-5, 1e-4, 0.5, float("inf")])
def test_a_graph_that_answers_otherwise_is_rejected(parity: float) -> None:
    decision = decide_gate(metrics(linear=LINEAR, net=NET), parity, 1.0)
    assert decision["decision"] == "REJECT"
    assert [entry["check"] for entry in decision["ledger"] if not entry["passed"]] == ["parity"]
    assert gate(metrics(linear=LINEAR, net=NET), 9.9e-6)[0] == "PROMOTE"


@pytest.mark.parametrize("sample", [0.05, 0.999])
def test_a_sampled_run_is_held(sample: float) -> None:
    decision = decide_gate(metrics(linear=LINEAR, net=NET), 1e-6, sample)
    assert decision["decision"] == "HOLD"
    assert "a sampled run is never promoted" in decision["sentence"]


def test_a_sampled_run_that_is_no_good_is_rejected() -> None:
    assert gate(metrics(linear=candidate(0.6, (-0.1, 0.1), (0, 0))), sample=0.1)[0] == "REJECT"


def test_a_regression_has_no_log_loss() -> None:
    found = metrics("regression", "rmse", linear=candidate(0.7, (1, 2), (0, 0), metric="rmse"))
    for name in found["candidates"]:
        for side in ("valid", "test", "vs_dummy", "vs_linear"):
            del found["candidates"][name][side]["log_loss"]
    found["best"] = "linear"
    assert gate(found) == ("PROMOTE", "linear")


def test_more_certainty_asks_for_more() -> None:
    found = metrics(linear=LINEAR, net=candidate(0.7, (0.1, 0.2), (0.005, 0.045)))
    assert gate(found) == ("PROMOTE", "net")
    assert gate(found, confidence=0.99) == ("PROMOTE", "linear")
    with pytest.raises(ParamsError, match=r"gate\.confidence must lie between 0 and 1, but is 95"):
        decide_gate(found, 1e-6, 1.0, confidence=95)


def test_another_metric_can_decide() -> None:
    found = metrics(linear=LINEAR, net=NET)
    found["candidates"]["linear"]["valid"]["log_loss"] = 0.1
    assert gate(found, metric="log_loss") == ("PROMOTE", "linear")
    with pytest.raises(ParamsError, match=r"'log_los' is no metric of a binary task \(did you mean 'log_loss'"):
        decide_gate(found, 1e-6, 1.0, "log_los")


@given(
    st.tuples(*[st.floats(-1, 1)] * 4).map(lambda v: (*sorted(v[:2]), *sorted(v[2:]))),
    st.sampled_from([0.5, 1.0]),
    st.sampled_from([(-0.1, 0.1), (0.01, 0.1)]),
)
def test_only_what_beats_the_dummy_is_ever_promoted(bounds: tuple[float, ...], sample: float, lead: Any) -> None:
    found = metrics(linear=candidate(0.6, bounds[:2], (0, 0)), net=candidate(0.7, bounds[2:], lead))
    decision = decide_gate(found, 1e-6, sample)
    for entry in decision["ledger"]:  # no sentence praises what failed
        if entry["check"].startswith("beats") and not entry["passed"]:
            other, name = entry["check"].removeprefix("beats "), entry["sentence"].split()[0]
            assert f"{name} beats {other}" not in decision["sentence"].lower()
    if decision["decision"] == "PROMOTE":
        assert decision["champion"] == "linear" or found["candidates"]["net"]["vs_linear"]["auc"]["lo"] > 0
        assert found["candidates"][decision["champion"]]["vs_dummy"]["auc"]["lo"] > 0
        assert sample == 1
    assert decision["champion"] == choose_champion(found, "auc")


def test_a_value_told_worse_than_by_its_mean_is_never_promoted() -> None:
    """On the test rows themselves: a dummy that is worse still does not help."""
    found = metrics("regression", "rmse", linear=candidate(0.7, (1, 2), (0, 0), metric="rmse"))
    found["best"] = "linear"
    for value, decided in ((0.01, "PROMOTE"), (0.0, "PROMOTE"), (-0.01, "REJECT")):
        found["candidates"]["linear"]["test"]["r2"] = {"value": value}
        decision = decide_gate(found, 1e-6, 1.0)
        assert decision["decision"] == decided
        assert ("explains nothing" in decision["sentence"]) == (decided == "REJECT")


def test_one_that_does_not_beat_the_best_naive_answer_is_rejected() -> None:
    for lead, decided in (((0.01, 0.02), "PROMOTE"), ((-0.01, 0.02), "REJECT"), ((None, None), "HOLD")):
        found = metrics(linear=LINEAR, net=NET | {"vs_naive": {"auc": interval(*lead)}})
        found["naive"] = {"what": "the last known value"}
        decision = decide_gate(found, 1e-6, 1.0)
        assert (decision["decision"], decision["champion"]) == (decided, "net")
        assert "the last known value in AUC" in decision["sentence"]


USELESS = candidate(0.45, (-0.1, -0.01), (-0.2, -0.1))
NAIVE_TOO = {"vs_naive": {"auc": interval(0.01, 0.02)}}


def in_time(best: str, **candidates: dict[str, Any]) -> dict[str, Any]:
    """What a split by time leaves: the best naive answer is a rival too."""
    known = {name: each | NAIVE_TOO for name, each in candidates.items()}
    return metrics(**known) | {"best": best, "naive": {"what": "the last known value"}}


def test_what_does_not_hold_on_later_rows_is_passed_over() -> None:
    decision = decide_gate(in_time("linear", linear=USELESS, net=NET), 1e-6, 1.0)
    assert (decision["decision"], decision["champion"]) == ("PROMOTE", "net")
    said = "linear was chosen before the test, but tells the validation rows no better than the dummy."
    assert said in decision["sentence"]
    assert choose_champion(in_time("net", linear=USELESS, net=NO_BETTER), "auc") == "net", "linear is no way back"
    assert choose_champion(in_time("dummy", linear=USELESS, net=NET), "auc") == "net", "nor is the dummy"


def test_nothing_is_passed_over_where_nothing_is_better_or_no_row_is_later() -> None:
    nothing = in_time("net", linear=USELESS, net=USELESS)
    assert choose_champion(nothing, "auc") == "linear"
    assert "no better than the dummy" not in decide_gate(nothing, 1e-6, 1.0)["sentence"]
    drawn = metrics(linear=USELESS, net=NET) | {"best": "linear"}
    assert choose_champion(drawn, "auc") == "linear"


def test_the_budget_comes_before_what_holds_later() -> None:
    cost = {
        name: {"within": name != "net", "seen": "2 MB", "sentence": f"{name}: 2 MB."}
        for name in ("dummy", "linear", "net")
    }
    frontier: Any = {"needed": "at most 1 MB", "smallest": "linear", "candidates": cost}
    found = in_time("net", linear=USELESS, net=NET)
    assert choose_champion(found, "auc", frontier=frontier) == "linear"
    assert why_passed_over(found, frontier, "linear") == "is above the budget"
    assert why_passed_over(in_time("linear", linear=USELESS, net=NET), None, "net").startswith("tells the validation")
    assert why_passed_over(metrics(linear=LINEAR, net=NO_BETTER), None, "linear") == "is not shown to beat it here"
