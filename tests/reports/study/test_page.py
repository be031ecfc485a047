"""The verdicts of a study from folders of runs: planted effects are found, and conditions of a claim are kept."""

import csv

import numpy as np
import pytest

from sftmix.errors import InputError
from sftmix.reports.study.figure import draw_study
from sftmix.reports.study.measures import ArmRun, Study
from sftmix.reports.study.page import judged, make_page, per_seed
from sftmix.reports.study.protocol import Claim, Contrast, Measure, Protocol

IDS = [f"e{k:02}" for k in range(60)]
SUBSET_OF = {i: "confident" if k % 2 else "unconfident" for k, i in enumerate(IDS)}
HELD_OUT, MARGIN = Measure("held-out loss"), 0.1


@pytest.fixture
def study(made):
    """Four seeds: `better` is 0.2 below `control`, `same` is as good. Training losses are those of `control` + 0.05."""
    rng = np.random.default_rng(0)
    num_tokens = {i: int(n) for i, n in zip(IDS, rng.integers(5, 40, len(IDS)), strict=True)}
    losses = rng.gamma(4.0, 0.5, len(IDS))
    arms = {}
    for arm, effect, training in (("better", -0.2, 0.05), ("same", 0.0, 0.0), ("control", 0.0, 0.0)):
        arms[arm] = {}
        for seed in range(4):
            each = losses + effect + rng.normal(0, 0.002) + rng.normal(0, 0.01, len(IDS))
            per_token = dict(zip(IDS, each.tolist(), strict=True))
            folder = made.run(f"{arm}-{seed}", per_token, val=num_tokens, halves=None, seed=seed)
            scores = {}
            for subset, shift in (("", 0.0), (", confident", 0.0), (", unconfident", 0.0)):
                scores |= {f"held-out loss{subset}": 3.0, f"gap{subset}": 3.0 - (1.5 + training + shift)}
            made.evaluate(folder.name, "offline", 1, {**scores, "ECE": 0.1 + effect / 10}, questions={}, judge=None)
            of_set = {"held-out loss": {i: x + 1 for i, x in per_token.items()}}
            weights = {"held-out loss": {i: float(n) for i, n in num_tokens.items()}}
            score = {"held-out loss": 1.0, "ECE": 0.2}
            made.evaluate(
                folder.name, "offline", 1, score, questions=of_set, weights=weights, judge=None, benchmark="lima"
            )
            arms[arm][seed] = ArmRun(folder)
    return Study(arms, SUBSET_OF)


def claim(name="effect", a="better", measure=HELD_OUT, *, void_below=None, only_if_lower=None, others=()):
    void = None if void_below is None else "control"
    return Claim(name, Contrast(a, "control", measure), tuple(others), void, void_below or 0.0, only_if_lower)


SEEDS = (0, 1, 2, 3)


def protocol(*claims):
    return Protocol("A study", {}, {"tiny": MARGIN}, {"tiny": SEEDS}, claims, {0.0: "control", 0.2: "better"})


def verdicts(study, *claims):
    return [result.verdict.words for result in judged(protocol(*claims), study, MARGIN, SEEDS)]


def test_planted_effects_have_their_verdicts(study):
    lima = Measure("held-out loss", set="lima")
    assert verdicts(study, claim(), claim(a="same"), claim(measure=lima)) == ["supported", "negligible", "supported"]


def test_the_difference_of_a_subset_is_over_the_examples_of_that_subset(study):
    found = study.difference(Contrast("better", "control", Measure("held-out loss", "confident")))
    assert found.num_examples == 30
    runs = [study.arms[arm][seed].losses.over([i for i in IDS if SUBSET_OF[i] == "confident"]) for arm, seed in
            ((arm, seed) for seed in range(4) for arm in ("better", "control"))]  # fmt: skip
    assert found.mean == pytest.approx(np.mean(np.subtract(runs[::2], runs[1::2])))


def test_the_gap_is_the_held_out_loss_minus_the_training_loss(study):
    """The held-out loss is 0.2 lower and the training loss 0.05 higher."""
    contrast = Contrast("better", "control", Measure("gap"))
    held_out = study.difference(Contrast("better", "control", HELD_OUT))
    found = study.difference(contrast)
    assert found.mean == pytest.approx(held_out.mean - 0.05)
    assert found.of_seeds == pytest.approx([x - 0.05 for x in held_out.of_seeds])
    by_run = [
        study.value("better", s, contrast.measure) - study.value("control", s, contrast.measure) for s in range(4)
    ]
    assert found.mean == pytest.approx(np.mean(by_run))
    assert study.difference(Contrast("better", "control", Measure("training loss"))).mean == pytest.approx(0.05)


def test_a_claim_on_a_gap_that_is_too_small_is_void(study):
    gap = study.value("control", 0, Measure("gap"))
    assert verdicts(study, claim(measure=Measure("gap"), void_below=gap - 0.1)) == ["supported"]
    (result,) = judged(protocol(claim(measure=Measure("gap"), void_below=gap + 0.1)), study, MARGIN, SEEDS)
    assert result.verdict.words == "void"
    assert f"expected at least {gap + 0.1:g}" in result.verdict.reason


def test_a_gap_that_closes_by_a_higher_training_loss_is_undecided(study):
    """The gap of `better` is smaller; the held-out loss of the contrast that must be lower is not."""
    lower, equal = Contrast("better", "control", HELD_OUT), Contrast("same", "control", HELD_OUT)
    assert verdicts(study, claim(measure=Measure("gap"), only_if_lower=lower)) == ["supported"]
    (result,) = judged(protocol(claim(measure=Measure("gap"), only_if_lower=equal)), study, MARGIN, SEEDS)
    assert (result.verdict.words, result.verdict.reason[:26]) == ("undecided", "held-out loss is not lower")


def test_no_verdict_is_given_before_all_seeds_are_there(study):
    fewer = Study({**study.arms, "better": {s: run for s, run in study.arms["better"].items() if s < 3}}, SUBSET_OF)
    assert verdicts(fewer, claim(), claim(a="same")) == ["pending", "negligible"]
    assert verdicts(study, claim(measure=Measure("gap"), void_below=0.1)) == ["supported"]
    for run in study.arms["control"].values():  # the gap of the control is not known
        (run.folder / "evaluation" / "offline-None-None-1.json").unlink()
    unknown = Study(
        {arm: {s: ArmRun(run.folder) for s, run in runs.items()} for arm, runs in study.arms.items()}, SUBSET_OF
    )
    (result,) = judged(protocol(claim(void_below=0.1)), unknown, MARGIN, SEEDS)
    assert (result.verdict.words, result.verdict.reason) == ("pending", "the gap of control is known for 0 of 4 seeds")


def test_an_arm_without_runs_is_named_and_does_not_count(study):
    contrast = Contrast("other", "control", HELD_OUT)
    missing, effect = judged(protocol(Claim("x", contrast, (), None, 0.0, None), claim()), study, MARGIN, SEEDS)
    assert (missing.verdict, missing.primary.why) == (None, "arm other has no complete run")
    assert effect.verdict.words == "supported"


def test_the_page_and_the_figure_have_every_contrast(study):
    others = [
        Contrast("better", "control", Measure("ECE", set="held-out")),
        Contrast("same", "control", Measure("gap")),
    ]
    written = protocol(claim(others=others))
    results = judged(written, study, MARGIN, SEEDS)
    page = make_page(written, study, results, "tiny", MARGIN)
    assert not any("PRELIMINARY" in line for line in page.head)
    assert [row[-1].text for row in page.blocks[0].rows] == ["supported"]
    assert [row[4].text[:7] for row in page.blocks[1].rows] == [
        "-0.0200",
        f"{results[0].others[1].difference.mean:+.4f}",
    ]
    assert len(draw_study(written, study, results, MARGIN).axes) == 4


def test_the_values_of_each_seed_are_those_of_the_runs(study):
    rows = list(csv.DictReader(per_seed(study).splitlines()))
    found = [float(row["value"]) for row in rows if (row["arm"], row["measure"]) == ("better", "held-out loss")]
    assert found == pytest.approx([study.arms["better"][seed].losses.over(IDS) for seed in range(4)], abs=1e-6)


def test_runs_of_other_held_out_examples_and_unknown_subsets_are_refused(study, made):
    fewer = {i: s for i, s in SUBSET_OF.items() if i != "e00"}
    with pytest.raises(InputError, match="has no confidence in 1 of the 60 held-out examples"):
        Study(study.arms, fewer).difference(Contrast("better", "control", HELD_OUT))
    other = ArmRun(made.run("other", 2.0, val={"x": 3}, halves=None))
    with pytest.raises(InputError, match="holds out other examples than"):
        Study({**study.arms, "same": {0: other}}, SUBSET_OF).difference(Contrast("better", "control", HELD_OUT))


def test_a_measure_without_an_evaluation_names_the_command(study, made):
    bare = {
        seed: ArmRun(
            made.run(f"bare-{seed}", dict.fromkeys(IDS, 1.0), val=dict.fromkeys(IDS, 3), halves=None, seed=seed)
        )
        for seed in range(2)
    }
    contrast = Contrast("bare", "bare", Measure("gap"))
    with pytest.raises(
        InputError, match=r"bare-0: was not evaluated on held-out: python eval.py run=.*bare-0 suite=offline"
    ):
        Study({"bare": bare}, SUBSET_OF).difference(contrast)
