"""A proof finds what was forged, and says how sure it is."""

import json
from pathlib import Path

import pytest
from conftest import Project

from nbs_lib.bench.project.forgeries import bench_forgeries, forge, forgeries
from nbs_lib.core.files import read_json
from nbs_lib.core.stages import load_stages
from nbs_lib.models.candidates import CANDIDATES
from nbs_lib.review.refit import _refit
from nbs_lib.review.verify import draw, plan_draw, unseen_chances

NAMES = ["dummy", "linear", "hgb_small"]


@pytest.mark.parametrize("share", [0.02, 0.1, 0.5])
@pytest.mark.parametrize("refit", [0.02, 0.2, 1.0])  # what learning all candidates again costs beside the search
def test_the_draw_costs_its_share_on_average(share: float, refit: float) -> None:
    seconds = {"data": 5.0, "train": 100.0, "report": 1.0} | {f"train/{name}": 100 * refit / 3 for name in NAMES}
    chances = plan_draw(["data", "train", "report"], "train", NAMES, share, seconds)
    assert sum(chances[name] * seconds[name] for name in chances) <= share * 106 + 1e-9
    assert all(0 < chance <= 1 for chance in chances.values())
    unseen = unseen_chances(chances, "train")
    assert unseen["a stage"] == 1 - share
    assert unseen["one candidate of train"] <= 1 - share / 2
    counts = [len(draw(chances, seed)) for seed in range(4000)]
    assert sum(counts) / 4000 == pytest.approx(sum(chances.values()), rel=0.2)


def test_a_draw_is_that_of_its_seed() -> None:
    chances = dict.fromkeys(map(str, range(50)), 0.5)
    assert draw(chances, 7) == draw(chances, 7) != draw(chances, 8)


def test_the_full_form_proves_a_run_and_measures_it(project: Project) -> None:
    done = project.nbs("verify", "--share", "1")
    assert done.returncode == 0, done.stderr
    assert "every stage was run again: no forged stage would have gone unseen" in done.stdout
    assert {f"{name}: identical" for name in load_stages(project.root)} <= set(done.stderr.splitlines())
    measured = read_json(project.root / "data/contract/durations.json")
    assert measured["source"] == "penguins.csv"
    assert {"train", "train/hgb_small", "report"} <= measured["seconds"].keys()
    done = project.nbs("verify", "--share", "0")
    assert done.returncode == 0, done.stderr
    assert "of all stages" in done.stdout


def only(stage: str, share: float) -> int:
    """A seed whose draw is that stage alone."""
    stages = list(load_stages())
    return next(seed for seed in range(10**5) if draw(plan_draw(stages, "train", NAMES, share), seed) == [stage])


@pytest.mark.parametrize(("careful", "says"), [(False, "wrong   report"), (True, "forged  report")])
def test_a_page_edited_by_hand(project: Project, careful: bool, says: str) -> None:
    [forgery] = [each for each in forgeries(120, Path()) if each.kind == "page edited" and each.variant == 8][careful:][
        :1
    ]
    assert forgery.careful == careful
    assert forge(forgery, project.root) == "report"
    others = only("frontier", 0.3)
    unseen = project.nbs("verify", "--share", "0.3", "--seed", str(others))
    assert unseen.returncode == (0 if careful else 1), "another stage was drawn"
    done = project.nbs("verify", "--share", "0.3", "--seed", str(only("report", 0.3)))
    assert done.returncode == 1
    assert says in done.stdout
    assert "dvc.lock is not what the code makes, in 1 stage: `make run`, and look at what changed." in done.stderr


def test_forgeries_of_each_kind_are_found(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    tallies = bench_forgeries(12, project.root)
    honest = tallies.pop("(none)")
    assert (honest.by_hashes, honest.by_runs) == (0, 0)
    assert len(tallies) == 6
    for kind, tally in tallies.items():
        assert (tally.forged, tally.by_hashes, tally.by_runs) == (2, 1, 1), kind
        assert tally.seen[0] == pytest.approx(tally.said[0], abs=0.04)
    assert "metric edited" in capsys.readouterr().out


@pytest.mark.parametrize("refit", [False, True])
def test_only_one_that_left_may_have_learned_once_alone(
    refit: bool, finished: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(finished.root)
    facts, search = (read_json(f"models/candidates/{name}.json") for name in ("candidates", "search"))
    assert search["refit"]["taken"]
    forged = facts["linear"] | {"refit": refit}
    assert _refit(CANDIDATES["linear"], forged, search).final is not None, "one that stayed has learned once more"
    left = search | {"over_folds": {}}
    assert (_refit(CANDIDATES["linear"], forged, left).final is not None) == refit


def test_a_search_that_was_limited_is_not_proven_and_its_candidates_are(project: Project) -> None:
    project.set(minutes="10")
    assert project.nbs("run").returncode == 0
    measured = {"source": "penguins.csv", "seconds": {"train": 99.0}}
    (project.root / "data/contract/durations.json").write_text(json.dumps(measured))
    done = project.nbs("verify", "--share", "1")
    assert done.returncode == 0, done.stderr
    assert "train: only its candidates may be run again, for train.minutes makes the search depend" in done.stdout
    assert "the choice of train, and what else it writes 1.000" in done.stdout
    ran = done.stderr.splitlines()
    assert "train/linear: identical" in ran
    assert "train: identical" not in ran
    measured = read_json(project.root / "data/contract/durations.json")["seconds"]
    assert measured["train"] == 99.0
    assert {"train/linear", "report"} <= measured.keys()
    done = project.nbs("verify", "--share", "0")
    assert "one candidate of train 1.000" in done.stdout
