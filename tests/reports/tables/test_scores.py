"""Scores of evaluations in a table: means over rounds and seeds, differences, scores that are not averaged."""

import csv
import io
import sys

import numpy as np
import pytest

from table_cells import cells, written


def test_evaluations_fill_the_papers_columns_each_run_as_the_mean_of_its_rounds(mu_sweep):
    for run, base in (("mu0.1-0", 5.0), ("mu0.1-1", 6.0)):
        for k in (1, 2):
            mu_sweep.evaluate(run, "mt_bench", k, {"ST": base + k / 10, "MT": 4.0, "overall": 4.5})
    found = cells(mu_sweep, "mu")
    cell = found["Scores", "mu 0.1 / ours", "ST"]  # 5.15 and 6.15, of 5.1, 5.2 and 6.1, 6.2
    assert float(cell["value"]) == pytest.approx(5.65)
    assert float(cell["sd"]) == pytest.approx((2 * 0.5**2) ** 0.5)
    assert (cell["n"], cell["note"], cell["text"]) == ("2", "", "5.6500 ± 0.7071 (2 x 2)")
    assert found["Scores", "mu 0.1 / ours", "WR"]["text"] == "not evaluated"
    assert found["Scores", "mu 0.2 / ours", "ST"]["text"] == "not evaluated"


def test_five_rounds_of_a_seed_weigh_no_more_than_one_of_another(mu_sweep):
    for k in range(1, 6):
        mu_sweep.evaluate("mu0.1-0", "mt_bench", k, {"ST": 4.0 + k / 10})
    mu_sweep.evaluate("mu0.1-1", "mt_bench", 1, {"ST": 6.3})
    cell = cells(mu_sweep, "mu")["Scores", "mu 0.1 / ours", "ST"]
    assert float(cell["value"]) == pytest.approx((4.3 + 6.3) / 2)
    assert (cell["n"], cell["text"]) == ("2", "5.3000 ± 1.4142 (2 x 1 to 5)")


def test_of_one_seed_the_deviation_is_over_its_rounds_and_said_to_be(mu_sweep):
    for k in (1, 2, 3):
        mu_sweep.evaluate("mu0.2-0", "mt_bench", k, {"ST": 4.0 + k})
    cell = cells(mu_sweep, "mu")["Scores", "mu 0.2 / ours", "ST"]
    assert (float(cell["sd"]), cell["text"]) == (1.0, "6.0000 ± 1.0000 (1 x 3)")
    text = written(mu_sweep, "mu")
    assert "Scores, mean ± sd (seeds x rounds)" in text
    assert "of one seed (1 x n) ± is over its rounds only" in text


def test_scores_minus_ntp_are_paired_by_seed_and_question(mu_sweep, monkeypatch):
    """By hand: ours minus NTP is 1 and 3 under seed 0, 2 and 2 under seed 1; a second round is averaged first."""
    monkeypatch.setitem(sys.modules, "scipy", None)  # a table does without
    for run, one, two in (("mu0.1-0", 5.0, 6.0), ("mu0.1-1", 4.0, 5.0), ("ntp-0", 4.0, 3.0), ("ntp-1", 2.0, 3.0)):
        for k, shift in ((1, -0.5), (2, 0.5)):
            of = {"81": one + shift, "82": two + shift}
            mu_sweep.evaluate(run, "mt_bench", k, {"ST": sum(of.values()) / 2}, questions={"ST": of})
    mu_sweep.evaluate("mu0.2-0", "mt_bench", 1, {"ST": 9.0}, judge="other-judge")
    found = cells(mu_sweep, "mu")
    cell = found["Scores minus NTP", "mu 0.1", "ST"]
    assert float(cell["value"]) == pytest.approx(2.0)
    assert (float(cell["sd"]), cell["n"]) == (0.0, "2")
    assert float(cell["low"]) < 2.0 < float(cell["high"])
    assert cell["text"].startswith("+2.0000 [")
    assert cell["text"].endswith(" (2, 2): no clear difference"), "questions, seeds"
    assert cell["note"] == "judge gpt-4-0613; 2 examples, at least 20 are needed"
    assert ("Scores minus NTP", "mu 0.2", "ST") not in found, "NTP was not rated by that judge"
    assert "intervals are over seeds and examples" in written(mu_sweep, "mu")


def test_differences_of_scores_are_corrected_over_their_block(made):
    """Six of them: ST of mu 0.1 is planted, MT of mu 0.1 has an interval that leaves 0 out, the rest are noise."""
    rng = np.random.default_rng(0)
    effects = {"mu0.1": {"ST": 2.0, "MT": 0.33}, "mu0.2": {}, "ntp": {}}
    for name, effect in effects.items():
        for seed in range(4):
            made.run(f"{name}-{seed}", 2.0, seed=seed)
            each = {c: 5 + effect.get(c, 0.0) + rng.normal(0, 0.5, 40) for c in ("ST", "MT", "overall")}
            of = {c: {str(81 + k): float(value) for k, value in enumerate(values)} for c, values in each.items()}
            scores = {c: float(values.mean()) for c, values in each.items()}
            made.evaluate(f"{name}-{seed}", "mt_bench", 1, scores, questions=of, judge="GPT-4")
    rows = [(mu, seed) for mu in ("0.1", "0.2") for seed in range(4)]
    made.sweep("mu", [made.row([f"recipe.mixup.mu={m}", f"seed={s}"], f"mu{m}-{s}", f"ntp-{s}") for m, s in rows])
    found = {key[1:]: cell for key, cell in cells(made, "mu").items() if key[0] == "Scores minus NTP" and cell["value"]}
    assert len(found) == 6
    notes = {key: cell["note"] for key, cell in found.items() if cell["note"]}
    assert notes == {
        ("mu 0.1", "MT"): "but not after Holm's correction over 6 comparisons",
    }
    words = {key: cell["text"].rpartition(": ")[2] for key, cell in found.items()}
    assert words.pop(("mu 0.1", "ST")) == "better"
    assert words.pop(("mu 0.1", "MT")) == "better"
    assert set(words.values()) == {"no clear difference"}
    assert float(found["mu 0.1", "MT"]["low"]) > 0
    assert "a note says which differences do not remain after Holm's correction" in written(made, "mu")


def test_table_6_has_each_half_with_mixup_minus_the_same_half_without(made):
    made.run("ntp", 2.0, halves=None)
    made.run("without", 2.5)
    made.run("with", {"a": 2.0, "b": 2.2, "c": 2.4, "d": 2.1})
    rows = [
        made.row(["recipe.ntp.on=all", "recipe=ntp", "seed=0"], "ntp", "ntp"),
        made.row(["recipe.ntp.on=confident", "recipe=ntp", "seed=0"], "without", "ntp"),
        made.row(["recipe.ntp.on=confident", "recipe=sftmix", "seed=0"], "with", "ntp"),
    ]
    made.sweep("ntp_subset", rows)
    made.evaluate("without", "mt_bench", 1, {"overall": 4.0})
    made.evaluate("with", "mt_bench", 1, {"overall": 4.5})
    found = cells(made, "ntp_subset")
    title = "Minus no Mixup on the same examples"
    loss = found[title, "confident / Mixup", "held-out loss"]  # (20 + 44 + 72 + 84) / 100 - 2.5
    assert float(loss["value"]) == pytest.approx(-0.3)
    assert loss["text"].endswith(" (4, 1): no clear difference")
    assert float(found[title, "confident / Mixup", "overall"]["value"]) == pytest.approx(0.5)
    assert not any(t == title and "full" in row for t, row, _ in found), "all with Mixup was not run"
    assert not any(t == "Scores minus NTP" for t, _, _ in found), "NTP was not evaluated"


def test_two_judges_are_never_averaged_and_another_than_the_papers_is_said(mu_sweep):
    mu_sweep.evaluate("mu0.1-0", "mt_bench", 1, {"ST": 5.0})
    mu_sweep.evaluate("mu0.1-0", "mt_bench", 1, {"ST": 9.0}, judge="other-judge")
    mu_sweep.evaluate("mu0.1-0", "mt_bench", 1, {"ST": 7.0}, judge="other-judge", benchmark="MT-Bench-101")
    text = written(mu_sweep, "mu")
    assert [
        line.split()[1] for line in text.splitlines() if line.strip().startswith("ours") and "000 (1 x 1)" in line
    ] == [
        "5.0000",
        "9.0000",
        "7.0000",
    ]
    assert "judge other-judge, the paper's is GPT-4" in text
    assert "benchmark MT-Bench-101, the paper's is MT-Bench" in text
    rows = csv.DictReader(io.StringIO(written(mu_sweep, "mu", "csv")))
    assert not any(row["best"] for row in rows if row["row"] == "mu 0.1 / ours" and row["column"] == "ST")


def test_a_judge_that_became_another_model_has_no_mean_and_no_difference(mu_sweep):
    for run, served in (("mu0.1-0", "m-1"), ("mu0.1-1", "m-2"), ("ntp-0", "m-1"), ("ntp-1", "m-1")):
        mu_sweep.evaluate(run, "mt_bench", 1, {"ST": 5.0}, served=[served])
    found = cells(mu_sweep, "mu")
    assert found["Scores", "mu 0.1 / ours", "ST"]["text"] == "no mean"
    assert found["Scores", "mu 0.1 / ours", "ST"]["note"] == "one judge's name stood for m-1 and m-2"
    assert found["Scores minus NTP", "mu 0.1", "ST"]["text"] == "not compared"


@pytest.fixture
def medical(made):
    """Two seeds of NTP and of SFTMix on MedQA; a function that evaluates one with so many shots."""
    rows = []
    for seed in (0, 1):
        for name, recipe in (("ntp", "ntp"), ("mix", "sftmix")):
            made.run(f"{name}-{seed}", 2.0, halves=None, seed=seed)
            overrides = ["model=llama", f"recipe={recipe}", f"seed={seed}"]
            rows.append(made.row(overrides, f"{name}-{seed}", f"ntp-{seed}", common=()))
    made.sweep("healthcare", rows, common=())

    def evaluate(run, score, num_shots, *, benchmark="MedQA", **more):
        settings = {"model": f"weights of {run}", "num_shots": num_shots, "dtype": "float32", **more}
        made.evaluate(run, "medical", 1, {benchmark: score}, judge=None, benchmark=benchmark, settings=settings)

    return made, evaluate


def test_seeds_with_3_shots_and_with_none_have_no_mean_and_no_difference(medical):
    made, evaluate = medical
    for run, shots in (("mix-0", 3), ("mix-1", 0), ("ntp-0", 3), ("ntp-1", 3)):
        evaluate(run, 50.0, shots)
    found = cells(made, "healthcare")
    ours = found["Scores", "Llama / SFTMix / ours", "MedQA"]
    assert (ours["text"], ours["value"]) == ("no mean", "")
    assert ours["note"] == "evaluated under other settings: num_shots (0, 3)"
    assert found["Scores", "Llama / NTP / ours", "MedQA"]["text"].startswith("50.00"), "other weights, alike else"
    minus = found["Scores minus NTP", "Llama / SFTMix", "MedQA"]
    assert (minus["text"], minus["note"]) == ("not compared", ours["note"])


def test_recipes_with_3_shots_and_with_none_are_not_compared(medical):
    made, evaluate = medical
    for run, shots in (("mix-0", 0), ("mix-1", 0), ("ntp-0", 3), ("ntp-1", 3)):
        evaluate(run, 50.0, shots)
    found = cells(made, "healthcare")
    assert found["Scores", "Llama / SFTMix / ours", "MedQA"]["text"].startswith("50.00")
    assert found["Scores minus NTP", "Llama / SFTMix", "MedQA"]["text"] == "not compared"


def test_rows_under_other_settings_have_no_best_and_it_is_said(medical):
    made, evaluate = medical
    for shots, is_marked in ((3, True), (0, False)):
        for benchmark in ("MedQA", "PubMedQA"):
            evaluate("ntp-0", 50.0, 3, benchmark=benchmark)
            evaluate("mix-0", 60.0, shots, benchmark=benchmark)
        found = cells(made, "healthcare")
        assert (found["Scores", "Llama / SFTMix / ours", "MedQA"]["best"] == "yes") == is_marked
        assert any(row["best"] for (_, label, _), row in found.items() if label.endswith("paper"))
        said = "Llama, MedQA, PubMedQA: no best, evaluated under other settings: num_shots (0, 3)"
        assert (said in written(made, "healthcare")) != is_marked


def test_a_mean_of_benchmarks_is_over_one_number_of_shots_but_over_pools_of_their_own(medical):
    made, evaluate = medical
    names = ("MedQA", "MedQA-5", "PubMedQA", "MedMCQA")
    for k, name in enumerate(names):
        evaluate("ntp-0", 50.0, 3, benchmark=name, pool=200 + k)
        evaluate("mix-0", 50.0, 0 if name == "PubMedQA" else 3, benchmark=name)
    found = cells(made, "healthcare")
    assert found["Scores", "Llama / NTP / ours", "mean"]["text"].startswith("50.00")
    mean = found["Scores", "Llama / SFTMix / ours", "mean"]
    assert (mean["text"], mean["note"]) == ("no mean", "evaluated under other settings: num_shots (0, 3)")
    assert found["Scores", "Llama / SFTMix / ours", "PubMedQA"]["text"].startswith("50.00")


def test_the_medical_mean_is_of_its_four_columns(made):
    made.run("ntp", 2.0, halves=None)
    made.sweep("healthcare", [made.row(["model=llama", "recipe=ntp"], "ntp")], common=())
    for k, column in enumerate(("MedQA", "MedQA-5", "PubMedQA", "MedMCQA")):
        made.evaluate("ntp", "medical", 1, {column: 50.0 + k}, judge=None, benchmark=column)
    found = cells(made, "healthcare")
    assert found["Scores", "Llama / NTP / ours", "mean"]["text"] == "51.50 (1 x 1)"
    assert found["Scores", "Llama / NTP / ours", "mean"]["note"] == ""


OFFLINE = {"accuracy": 0.5, "ECE": 0.1, "Brier": 0.6, "entropy": 1.5, "gap": 0.04, "linearity gap": 0.3}


def test_metrics_without_a_judge_are_means_over_seeds(mu_sweep):
    assert not any(title == "Without a judge" for title, _, _ in cells(mu_sweep, "mu"))
    settings = {"num_bins": 15, "lams": [0.5]}
    for run, shift in (("mu0.1-0", 0.0), ("mu0.1-1", 0.2)):
        scores = {name: value + shift for name, value in OFFLINE.items()}
        mu_sweep.evaluate(run, "offline", 1, scores, judge=None, questions={}, settings=settings)
    without = {name: value for name, value in OFFLINE.items() if name != "linearity gap"}
    mu_sweep.evaluate("mu0.2-0", "offline", 1, without, judge=None, questions={}, record={"trained_half": "confident"})
    found = cells(mu_sweep, "mu")
    names = [column for title, row, column in found if (title, row) == ("Without a judge", "mu 0.1")]
    assert names == list(OFFLINE), "accuracy first"
    for name, value in OFFLINE.items():
        cell = found["Without a judge", "mu 0.1", name]
        assert float(cell["value"]) == pytest.approx(value + 0.1)
        assert float(cell["sd"]) == pytest.approx(0.1 * 2**0.5)
        assert (cell["n"], cell["note"]) == ("2", "")
    assert found["Without a judge", "mu 0.1", "accuracy"]["text"] == "0.6000 ± 0.1414 (2)"
    assert found["Without a judge", "mu 0.2", "gap"]["note"] == "over the confident subset"
    assert found["Without a judge", "mu 0.2", "linearity gap"]["text"] == ""
    assert "Without a judge, over held-out examples" in written(mu_sweep, "mu", "latex")


def test_metrics_of_a_part_and_of_other_settings_have_no_mean(mu_sweep):
    for run, bins, part in (("mu0.1-0", 15, "held-out"), ("mu0.1-1", 10, "held-out"), ("mu0.2-0", 15, "held-out, x")):
        changed = {"num_bins": bins, "lams": [0.5]}
        mu_sweep.evaluate(run, "offline", 1, OFFLINE, judge=None, benchmark=part, questions={}, settings=changed)
    mu_sweep.evaluate("mu0.1-0", "offline", 1, OFFLINE, judge=None, benchmark="held-out, x", questions={})
    found = list(csv.DictReader(io.StringIO(written(mu_sweep, "mu", "csv"))))
    rows = [row for row in found if row["table"].startswith("Without a judge") and row["row"] == "mu 0.1"]
    assert [row["text"] for row in rows if row["column"] == "ECE"] == ["no mean", "0.1000 (1)"]
    assert next(row["note"] for row in rows if row["column"] == "ECE") == "suite.num_bins was 10 and 15"
    assert [row["text"] for row in rows if row["column"] == "accuracy"] == ["0.5000 ± 0.0000 (2)", "0.5000 (1)"]
    assert "over held-out, x" in written(mu_sweep, "mu")


def test_a_held_out_set_has_a_row_unless_its_examples_differ(mu_sweep):
    scores = {"held-out loss": 2.0, "accuracy": 0.5, "linearity gap, random pairs": 0.3}
    for run, sha256 in (("mu0.1-0", "a"), ("mu0.1-1", "b")):
        for name, settings in (("same", {"examples_sha256": "a"}), ("changed", {"examples_sha256": sha256})):
            mu_sweep.evaluate(run, "offline", 1, scores, judge=None, benchmark=name, questions={}, settings=settings)
    found = list(csv.DictReader(io.StringIO(written(mu_sweep, "mu", "csv"))))
    rows = [row for row in found if row["table"].startswith("Without a judge") and row["row"] == "mu 0.1"]
    assert [row["column"] for row in rows] == [*scores, *scores]
    assert [row["text"] for row in rows if row["column"] == "held-out loss"] == ["no mean", "2.0000 ± 0.0000 (2)"]
    assert "the files of the set had other examples" in written(mu_sweep, "mu")
