"""The paper's tables with ours beside them: every figure is one that was worked out by hand, or by numpy."""

import csv
import io
import re
import shlex
import sys

import numpy as np
import pytest
import yaml

from sftmix.artifacts.files import write_json
from sftmix.errors import ConfigError, InputError
from sftmix.provenance.runs import damage_of
from sftmix.reports.tables.groups import ntp_command
from sftmix.reports.tables.paper import read_paper
from sftmix.reports.tables.table import table
from sftmix.sweep.store import find_sweeps


def written(made, name, form="text", **options):
    sweeps, unreadable = find_sweeps(made.root)
    return table(name, sweeps, form, unreadable=unreadable, **options)


def cells(made, name, **options):
    """The cells of the CSV form by (table, row, column)."""
    rows = csv.DictReader(io.StringIO(written(made, name, "csv", **options)))
    return {(row["table"].split(",")[0], row["row"], row["column"]): row for row in rows}


def test_table_9_has_the_papers_values_and_ours(mu_sweep):
    found = cells(mu_sweep, "mu")
    paper = read_paper().tables["mu"]
    for row in paper.rows:
        for column, value in zip(paper.columns, row.values, strict=True):
            assert float(found["Scores", f"{row.label} / paper", column]["value"]) == value
    loss = found["Held-out loss", "mu 0.1", "all"]  # seeds: (10 + 40 + 60 + 80) / 100 and (12 + 40 + 60 + 100) / 100
    assert float(loss["value"]) == pytest.approx(2.01)
    assert float(loss["sd"]) == pytest.approx(0.22 / 2**0.5)
    assert (loss["n"], loss["text"]) == ("2", "2.0100 ± 0.1556")
    confident = found["Held-out loss", "mu 0.1", "confident subset"]  # (10 + 40) / 30 and (12 + 40) / 30
    assert float(confident["value"]) == pytest.approx(51 / 30)
    unconfident = found["Held-out loss", "mu 0.1", "unconfident subset"]  # (60 + 80) / 70 and (60 + 100) / 70
    assert float(unconfident["value"]) == pytest.approx(150 / 70)
    perplexity = found["Held-out perplexity", "mu 0.1", "all"]
    assert float(perplexity["value"]) == pytest.approx((2.718281828459045**1.9 + 2.718281828459045**2.12) / 2)
    difference = found["Held-out loss", "mu 0.1", "minus NTP [95%]"]  # 1.9 - 2.0 and 2.12 - 2.2
    assert float(difference["value"]) == pytest.approx(-0.09)
    assert float(difference["sd"]) == pytest.approx(0.02 / 2**0.5)
    assert float(difference["low"]) < -0.09 < float(difference["high"])
    assert found["Held-out loss", "mu 0.1", "examples"]["value"] == "4"


def test_the_best_are_marked_and_only_they(mu_sweep):
    found = cells(mu_sweep, "mu")
    best = {key for key, row in found.items() if row["best"]}
    assert best == {
        ("Scores", "mu 0.2 / paper", "ST"),
        ("Scores", "mu 0.1 / paper", "MT"),
        ("Scores", "mu 0.2 / paper", "overall"),
        ("Scores", "mu 0.2 / paper", "WR"),
        ("Scores", "mu 0.2 / paper", "LC WR"),
        ("Held-out loss", "mu 0.2", "all"),
        ("Held-out loss", "mu 0.1", "confident subset"),
        ("Held-out loss", "mu 0.2", "unconfident subset"),
        ("Held-out perplexity", "mu 0.2", "all"),
        ("Held-out perplexity", "mu 0.1", "confident subset"),
        ("Held-out perplexity", "mu 0.2", "unconfident subset"),
    }


def test_what_was_not_run_says_its_command_and_what_failed_its_cause(mu_sweep):
    text = written(mu_sweep, "mu")
    assert "seed=1 not run: python train.py model=tiny data=demo recipe.mixup.mu=0.2 seed=1" in text
    assert re.search(r"mu 0.5 +failed \[2\]", text)
    assert "[2] failed: out of memory (log: logs/3.txt); again: python train.py model=tiny" in text
    assert text.count("not evaluated") == 10, "two rows that ran, five columns"


def test_a_run_is_done_by_its_folder_not_by_what_was_written_of_its_job(mu_sweep):
    mu_sweep.run("mu0.5-0", 1.5)
    text = written(mu_sweep, "mu")
    assert "out of memory" not in text
    assert "1.5000*" in text
    (mu_sweep.root / "mu0.1-0" / "manifest.json").unlink()
    assert cells(mu_sweep, "mu")["Held-out loss", "mu 0.1", "all"]["text"] == "2.1200"


def test_a_toy_run_is_said_not_to_be_the_papers(mu_sweep):
    head = written(mu_sweep, "mu").split("\n\n")[0]
    assert "arXiv 2410.05248, the version before its ACL 2026 one" in head
    assert "paper: Llama-3.1-8B on Alpaca-52K; MT-Bench by GPT-4, means of 5 rounds" in head
    assert "ours: data=demo model=tiny" in head
    for said in ("model tiny (paper: Llama-3.1-8B)", "data demo (paper: Alpaca-52K)", "model.lr 0.001 (paper: 2e-06)"):
        assert said in head
    assert "NOT THE PAPER'S: " in head
    assert "recipe.mixup.mu" not in head, "the table varies it"


def test_the_papers_own_settings_are_not_said_to_differ(made):
    config = {
        "model": {"name": "llama", "lr": 2e-6},
        "data": {"name": "alpaca", "epochs": 3, "val_fraction": 0.0, "limit": None},
        "optimizer": {"weight_decay": 0.1},
        "scheduler": {"warmup_ratio": 0.1},
        "recipe": {
            "global_batch_size": 32,
            "mixup": {"mu": 0.1, "alpha": 0.5},
        },
    }
    made.run("one", 2.0, config=config)
    made.sweep("mu", [made.row(["recipe.mixup.mu=0.1"], "one")], common=())
    assert "ours: the paper's model, data and settings" in written(made, "mu")
    config["data"] = {**config["data"], "limit": 500, "epochs": 1}
    made.run("one", 2.0, config=config)
    assert "NOT THE PAPER'S: data.limit 500 (paper: all); data.epochs 1 on alpaca (paper: 3)" in written(made, "mu")


def test_without_a_sweep_the_paper_stands_alone_with_commands_that_compose(made, compose):
    for name, published in read_paper().tables.items():
        text = written(made, name)
        assert f"Table {published.number}, " in text
        assert "ours: not run" in text
        commands = re.findall(r"not run: (python train.py .*)", text)
        assert commands
        for command in commands:
            assert f"ablation={name}" in command
        if published.is_list:
            assert commands == [f"python train.py ablation={name}"]
    command = re.findall(r"\[1\] not run: (.*)", written(made, "mu", given=["model=tiny", "data=demo"]))[0]
    assert command == "python train.py ablation=mu model=tiny data=demo recipe.mixup.mu=0.1"
    config = compose(*shlex.split(command)[2:])
    assert (config.recipe.mixup.mu, config.model.name) == (0.1, "tiny")


def test_a_gap_in_the_papers_table_is_a_question_mark(made):
    found = cells(made, "main")
    assert found["Scores", "Alpaca-52K, Mistral / NTP / paper", "ST"]["text"] == "?"
    assert found["Scores", "Alpaca-52K, Mistral / NTP / paper", "ST"]["note"] == "unknown in our copy of the table"
    assert found["Scores", "Alpaca-52K, Mistral / NTP / paper", "overall"]["text"] == "4.6163"


def test_rows_that_are_none_of_the_papers_are_appended(made):
    made.run("ntp", 2.0, halves=None)
    made.run("sftmix", 1.9)
    rows = [made.row(["recipe=ntp"], "ntp"), made.row(["recipe=sftmix"], "sftmix")]
    made.sweep("main", rows)
    found = cells(made, "main")
    assert found["Held-out loss", "beside the paper's rows / recipe=sftmix", "all"]["text"] == "1.9000"
    assert found["Held-out loss", "beside the paper's rows / recipe=ntp", "minus NTP [95%]"]["text"] == "is NTP"
    row = "Alpaca-52K, Llama / SFTMix"
    command = "not run: python train.py ablation=main model=llama data=alpaca recipe=sftmix"
    assert found["Held-out loss", row, "all"]["note"] == command
    assert "the subsets of recipe=ntp are by the split of recipe=sftmix" in written(made, "main")


def test_a_row_that_was_set_on_the_command_line_is_found_by_what_is_common(made):
    made.run("ntp", 2.0, halves=None)
    made.run("one", 1.9)
    made.sweep("main", [made.row(["recipe=sftmix"], "one")], common=("model=llama", "data=alpaca"))
    found = cells(made, "main")
    assert found["Held-out loss", "Alpaca-52K, Llama / SFTMix", "all"]["text"] == "1.9000"
    assert not any("beside" in row for _, row, _ in found)


def test_values_written_otherwise_are_the_same_row(made):
    made.run("one", 1.9)
    made.sweep("mu", [made.row(["recipe.mixup.mu=0.10"], "one")])
    assert cells(made, "mu")["Held-out loss", "mu 0.1", "all"]["text"] == "1.9000"


def test_subsets_are_only_by_confidence(made):
    by_length = {"split": {"by": "length"}}
    made.run("ntp", 2.0, halves=None)
    made.run("one", 1.9, config=by_length)
    made.sweep("mu", [made.row(["recipe.mixup.mu=0.1"], "one")])
    found = cells(made, "mu")
    assert found["Held-out loss", "mu 0.1", "all"]["text"] == "1.9000"
    assert found["Held-out loss", "mu 0.1", "confident subset"]["text"] == ""


def test_losses_over_other_examples_have_no_best(made):
    """Table 4: its first row holds out examples of one group alone."""
    made.run("ntp", 2.0, halves=None)
    made.run("high", 1.0, val={"a": 10, "b": 20}, halves=None)
    rows = [
        made.row(["recipe=ntp", "data.groups=[high]"], "high", "high"),
        made.row(["recipe=ntp", "data.groups=null"], "ntp"),
    ]
    made.sweep("quality", rows)
    found = cells(made, "quality")
    assert found["Held-out loss", "High, no Mixup", "all"]["text"] == "1.0000"
    assert not any(row["best"] for (title, _, _), row in found.items() if title == "Held-out loss")
    assert "values over other examples than the rest of their group have no best" in written(made, "quality")


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


def test_figures_without_a_judge_are_means_over_seeds(mu_sweep):
    assert not any(title == "Without a judge" for title, _, _ in cells(mu_sweep, "mu"))
    settings = {"num_bins": 15, "lams": [0.5]}
    for run, shift in (("mu0.1-0", 0.0), ("mu0.1-1", 0.2)):
        scores = {name: value + shift for name, value in OFFLINE.items()}
        mu_sweep.evaluate(run, "offline", 1, scores, judge=None, questions={}, settings=settings)
    alone = {name: value for name, value in OFFLINE.items() if name != "linearity gap"}
    mu_sweep.evaluate("mu0.2-0", "offline", 1, alone, judge=None, questions={}, record={"trained_half": "confident"})
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


def test_figures_of_a_part_and_of_other_settings_are_no_mean(mu_sweep):
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


def test_other_settings_are_other_tables_and_a_filter_takes_one(made):
    for name in ("one", "two"):
        made.run(name, 1.9)
    made.run("ntp", 2.0, halves=None)
    made.sweep("mu", [made.row(["recipe.mixup.mu=0.1"], "one")])
    made.sweep("mu", [made.row(["recipe.mixup.mu=0.1"], "two")], common=("model=llama", "trainer=cpu"), tail="ffffffff")
    text = written(made, "mu")
    assert text.count("Table 9") == 2
    assert "ours: model=llama\n" in text
    assert written(made, "mu", given=["model=llama"]).count("Table 9") == 1
    none = written(made, "mu", given=["model=qwen"])
    assert "no sweep of mu has model=qwen; there are sweeps with data=demo model=tiny; model=llama" in none


def test_a_run_in_two_sweeps_counts_once(mu_sweep):
    rows = [mu_sweep.row(["recipe.mixup.mu=0.1", "seed=0"], "mu0.1-0", "ntp-0")]
    mu_sweep.sweep("mu", rows, common=("data=demo", "model=tiny"), tail="ffffffff")
    found = cells(mu_sweep, "mu")
    assert found["Held-out loss", "mu 0.1", "all"]["n"] == "2"


def test_beyond_the_paper_the_table_is_ours_alone(made):
    assert "not run: python train.py ablation=alpha" in written(made, "alpha", ablations=["alpha"])
    made.run("ntp", 2.0, halves=None)
    made.run("one", 1.9)
    made.sweep("alpha", [made.row(["recipe.mixup.alpha=0.1"], "one")])
    text = written(made, "alpha")
    assert text.startswith("Ablation alpha, beyond the paper")
    assert "Scores" not in text
    assert re.search(r"recipe.mixup.alpha=0.1 +1.9000", text)


def test_an_unknown_table_is_told_with_those_there_are(made):
    with pytest.raises(ConfigError, match=r"table=nosuch: no such table, expected one of main, healthcare, .*, alpha"):
        written(made, "nosuch", ablations=["alpha"])
    with pytest.raises(ConfigError, match="format=pdf: expected one of text, markdown, latex, csv"):
        written(made, "mu", "pdf")


def test_the_baseline_that_is_not_there_says_its_command(made, compose):
    made.run("one", 1.9)
    row = made.row(["model@reference.model=gemma"], "one", "nowhere")
    row["command"] = (
        "python train.py model=tiny data=demo recipe=sftmix optimizer.lr=0.01 recipe.mixup.mu=0.1 "
        "recipe.ntp.on=confident "
        "model@reference.model=tiny reference.model.lr=0.1 reference.num_checkpoints=2 confidence.use=1 seed=1"
    )
    made.sweep("weak_reference", [row])
    note = cells(made, "weak_reference")["Held-out loss", "weaker LLM (Gemma-2B)", "minus NTP [95%]"]["note"]
    command = "python train.py model=tiny data=demo optimizer.lr=0.01 reference.num_checkpoints=2 seed=1 recipe=ntp"
    assert note == f"NTP not run: {command}"
    assert compose(*shlex.split(command)[2:]).recipe.name == "ntp"
    assert ntp_command("python train.py 'data.path=a b.json'") == "python train.py 'data.path=a b.json' recipe=ntp"


def test_nothing_held_out_is_said(made):
    made.run("ntp", 2.0, val={}, halves=None)
    made.run("one", 1.9, val={}, halves=None)
    made.sweep("mu", [made.row(["recipe.mixup.mu=0.1"], "one")])
    assert re.search(r"mu 0.1 +nothing held out", written(made, "mu"))


def test_torn_and_foreign_files_are_one_line_each(made):
    made.run("ntp", 2.0, halves=None)
    made.run("one", 1.9)
    made.sweep("mu", [made.row(["recipe.mixup.mu=0.1"], "one")])
    torn = made.sweep("mu", [], tail="eeeeeeee")
    (torn / "manifest.json").write_text('{"name": "mu", "ro')
    foreign = made.sweep("mu", [], tail="dddddddd")
    write_json(foreign / "manifest.json", {"title": "sftmix-tiny", "fields": {}})
    outside = made.sweep("mu", [made.row(["a=1"], "../../etc")], tail="cccccccc")
    text = written(made, "mu")
    left_out = [line for line in text.splitlines() if line.startswith("left out: ")]
    assert len(left_out) == 3
    assert any(str(torn) in line and "cannot be read" in line for line in left_out)
    assert any(str(foreign) in line and "not the manifest of a sweep (no name" in line for line in left_out)
    assert any(str(outside) in line and "is not the name of a folder" in line for line in left_out)
    made.evaluate("one", "mt_bench", 1, {"ST": float("nan")})
    with pytest.raises(InputError, match=r"mt_bench.*\.json: no evaluation can be read from it"):
        written(made, "mu")


def test_text_from_files_is_text_in_every_form(made):
    evil = "\x1b[2J<b>|*x*_$\\input{x}%`#&~^{}\nnext"
    made.sweep("mu", [made.row(["recipe.mixup.mu=0.1"], "one", state="failed", cause=evil)])
    for form in ("text", "markdown", "latex", "csv"):
        assert "\x1b" not in written(made, "mu", form)
    text = written(made, "mu", "text")
    assert "[1] failed: \\x1b[2J<b>|*x*_$\\input{x}%`#&~^{}\\nnext (log" in text
    (line,) = [line for line in written(made, "mu", "markdown").splitlines() if "failed: " in line]
    assert r"\<b\>\|\*x\*\_\$" in line
    latex = written(made, "mu", "latex")
    (line,) = [line for line in latex.splitlines() if "failed: " in line]
    assert r"\textless{}b\textgreater{}\textbar{}*x*\_\$\textbackslash{}input\{x\}\%" in line


def balanced(tex: str) -> bool:
    """Whether braces close what they open, those that are escaped left out."""
    depth = 0
    for brace in re.findall(r"(?<!\\)[{}]", tex):
        depth += 1 if brace == "{" else -1
        if depth < 0:
            return False
    return depth == 0


def test_the_latex_has_no_bare_special_characters_and_rows_have_as_many_cells_as_columns(mu_sweep):
    for name in ("mu", "main", "healthcare", "selection"):
        latex = "\n".join(line for line in written(mu_sweep, name, "latex").splitlines() if not line.startswith("%"))
        assert balanced(latex)
        assert latex.isascii()
        assert not re.search(r"(?<!\\)[#_%^~]", latex)
        for spec, body in re.findall(r"\\begin{tabular}{(\w+)}(.*?)\\end{tabular}", latex, re.DOTALL):
            rows = [line for line in body.splitlines() if line.endswith(r"\\")]
            assert rows
            assert all(len(re.findall(r"(?<!\\)&", row)) == len(spec) - 1 for row in rows)
        assert latex.count(r"\begin{") == latex.count(r"\end{")


def test_the_markdown_tables_are_whole(mu_sweep):
    text = written(mu_sweep, "mu", "markdown")
    tables = [part for part in text.split("\n\n") if part.startswith("|")]
    assert len(tables) == 3
    for part, bars in zip(tables, (8, 8, 5), strict=True):
        assert {len(re.findall(r"(?<!\\)\|", line)) for line in part.splitlines()} == {bars}
    assert "**1.8000**" in text


def test_bold_is_the_terminals_own_where_it_can_be(mu_sweep):
    styled, plain = written(mu_sweep, "mu", styled=True), written(mu_sweep, "mu")
    assert "\x1b[1m" in styled
    assert "*" not in styled.split("\n\n", 1)[1].split("means ±")[0]
    assert "\x1b" not in plain


def test_the_rows_of_the_paper_are_rows_of_the_ablation(conf):
    """Each row that is run here names values that the ablation's file sweeps over."""
    for name, published in read_paper().tables.items():
        file = conf / "ablation" / f"{name}.yaml"
        if not file.is_file():
            continue
        sweeper = yaml.safe_load(file.read_text())["hydra"]["sweeper"]
        listed = {o.replace(" ", "") for row in sweeper.get("runs", []) for o in row}
        grid = {f"{key}={v}" for key, values in (sweeper.get("params") or {}).items() for v in str(values).split(",")}
        for row in published.rows:
            assert set(row.when or ()) <= listed | grid, (name, row.label)


@pytest.mark.parametrize("name", ["metrics.json", "run.json", "split.parquet", "val.parquet"])
def test_damage_of_each_file_that_a_table_reads_is_found_before_the_table_is_made(made, name):
    run = made.run("sftmix", 1.0)
    assert damage_of(run) is None
    (run / name).write_bytes(b"x")
    assert name in str(damage_of(run))
