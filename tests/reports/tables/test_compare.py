"""Two recipes beside each other, from folders: a planted difference is found, and seeds are put against seeds."""

import csv
import io

import numpy as np
import pytest

from sftmix.artifacts.files import write_json
from sftmix.artifacts.manifest import read_json
from sftmix.artifacts.tables import read_table
from sftmix.errors import ConfigError, InputError
from sftmix.reports.page import write_pages
from sftmix.reports.tables import compare as comparison

NUM_EXAMPLES, NUM_QUESTIONS = 60, 40
NTP = {"recipe": {"lr": 0.1, "mixup": None}}
SFTMIX = {"recipe": {"lr": 0.1, "mixup": {"mu": 0.2}}}
IDS = [f"e{k:02}" for k in range(NUM_EXAMPLES)]
HALVES = {i: "confident" if k % 2 else "unconfident" for k, i in enumerate(IDS)}


@pytest.fixture
def recipes(made):
    """Three seeds of NTP and of SFTMix, whose loss is 0.2 lower and whose answers are as good; each with its noise."""
    rng = np.random.default_rng(0)
    val = {i: int(n) for i, n in zip(IDS, rng.integers(5, 40, NUM_EXAMPLES), strict=True)}
    loss, quality = rng.gamma(4.0, 0.5, NUM_EXAMPLES), rng.normal(5.0, 2.0, NUM_QUESTIONS)
    for name, fields, effect, halves in (("ntp", NTP, 0.0, None), ("sftmix", SFTMIX, -0.2, HALVES)):
        for seed in range(3):
            each = loss + effect + rng.normal(0, 0.005) + rng.normal(0, 0.02, NUM_EXAMPLES)
            run = f"{name}-{seed}"
            made.run(run, dict(zip(IDS, each.tolist(), strict=True)), val=val, halves=halves, seed=seed, fields=fields)
            for round_ in (1, 2):
                answers = quality + rng.normal(0, 0.3) + rng.normal(0, 1.0, NUM_QUESTIONS)
                judge(made, run, answers.tolist(), round_=round_)
    return made


def judge(made, run, answers, *, round_=1, judge="gpt-4-0613", served=None, settings=None):
    of = {str(k): value for k, value in enumerate(answers)}
    score = {"overall": sum(answers) / len(answers)}
    made.evaluate(
        run, "mt_bench", round_, score, questions={"overall": of}, judge=judge, served=served, settings=settings
    )


def compare(one, other, form="text"):
    return write_pages([comparison.compare(one, other)], form)


def rows(made, a, b):
    """The cells of the CSV form by (column of the table, column)."""
    read = csv.DictReader(io.StringIO(compare(made.root / a, made.root / b, "csv")))
    return {(row["row"], row["column"]): row for row in read}


LOSS, MT = "held-out loss, nats per token / all", "MT-Bench, by gpt-4-0613 / overall"


def test_a_planted_difference_is_found_and_no_other(recipes):
    found = rows(recipes, "sftmix-0", "ntp-0")
    assert found[LOSS, "verdict"]["text"] == "better"
    difference = found[LOSS, "a minus b [95%]"]
    assert float(difference["value"]) == pytest.approx(-0.2, abs=0.02)
    assert float(difference["low"]) < -0.2 < float(difference["high"]) < -0.1
    assert found[MT, "verdict"]["text"] == "no clear difference"
    for part in ("confident", "unconfident"):
        half = f"held-out loss, nats per token / {part} subset"
        assert found[half, "verdict"]["text"] == "better"
        assert found[half, "examples"]["text"] == str(NUM_EXAMPLES // 2)
    assert (found[LOSS, "examples"]["text"], found[LOSS, "seeds"]["text"]) == ("60", "3")
    assert (found[MT, "examples"]["text"], found[MT, "seeds"]["text"]) == ("40", "3")


def test_the_figures_are_those_of_the_files(recipes):
    """The held-out losses of metrics.json; the scores of the rounds."""
    from sftmix.artifacts.manifest import read_json
    from sftmix.evaluation.results import read_evaluations

    found = rows(recipes, "sftmix-1", "ntp-0")
    for side, name in (("a", "sftmix"), ("b", "ntp")):
        runs = [recipes.root / f"{name}-{seed}" for seed in range(3)]
        losses = [read_json(run / "metrics.json")["val_loss"] for run in runs]
        assert float(found[LOSS, side]["value"]) == pytest.approx(np.mean(losses))
        assert float(found[LOSS, side]["sd"]) == pytest.approx(np.std(losses, ddof=1))
        scores = [e.scores["overall"] for run in runs for e in read_evaluations(run)]
        assert len(scores) == 6
        assert float(found[MT, side]["value"]) == pytest.approx(np.mean(scores)), "rounds are averaged by question"
    assert float(found[LOSS, "p seeds"]["value"]) == 0.25
    assert found[LOSS, "p seeds"]["note"] == "3 seeds give at least 0.25, 6 are needed for 0.05"
    assert float(found[LOSS, "p examples"]["value"]) < 1e-9
    assert 0 < float(found[LOSS, "p"]["value"]) < 0.01


def test_the_ps_are_holms_over_the_table(recipes):
    from sftmix.analysis.verdict import holm

    found = rows(recipes, "sftmix-0", "ntp-0")
    plain = [float(row["value"]) for (_, column), row in found.items() if column == "p"]
    adjusted = [float(row["value"]) for (_, column), row in found.items() if column == "Holm p"]
    assert len(plain) == 4
    assert adjusted == holm(plain)


def rated(made, means, noise=0.3):
    """Runs of NTP whose answers have these means; a pair of them differs over examples however near the means are."""
    rng, base = np.random.default_rng(1), np.random.default_rng(2).normal(0, 0.5, NUM_QUESTIONS)
    for seed, mean in enumerate(means):
        made.run(f"ntp-{seed}", 2.0, seed=seed, fields=NTP, val=dict.fromkeys(IDS, 5), halves=None)
        judge(made, f"ntp-{seed}", (mean + base + rng.normal(0, noise, NUM_QUESTIONS)).tolist())


def test_two_seeds_of_one_recipe_are_no_further_apart_than_its_seeds(made):
    """Over examples alone, as without the other runs, these two differ: p is below 0.01."""
    rated(made, [5.0, 5.5, 5.1, 4.9, 5.6, 5.3])
    found = rows(made, "ntp-0", "ntp-1")
    assert float(found[MT, "p examples"]["value"]) < 0.01
    assert float(found[MT, "p"]["value"]) > 0.1
    difference = found[MT, "a minus b [95%]"]
    assert float(difference["low"]) < 0 < float(difference["high"])
    assert found[MT, "verdict"]["text"] == "no clear difference"
    assert found[MT, "verdict"]["note"] == "by the scatter of 4 other runs of the recipe"
    lines = compare(made.root / "ntp-0", made.root / "ntp-1").splitlines()
    assert lines[1:4] == [
        "a  ntp-0: one run, seed 0",
        "b  ntp-1: one run, seed 1",
        "two runs of one recipe, against the scatter of its others: seeds 2, 3, 4, 5",
    ]
    assert any("intervals are over pairs of seeds" in line for line in lines)


def test_a_run_that_is_far_from_the_other_seeds_of_its_recipe_is_told(made):
    rated(made, [5.0, 9.0, 5.1, 4.9, 5.2, 5.05])
    verdict = rows(made, "ntp-0", "ntp-1")[MT, "verdict"]
    assert verdict["text"] == "worse"
    assert verdict["note"] == "by the scatter of 4 other runs of the recipe"


@pytest.mark.parametrize("others", [[], [5.1]])
def test_two_seeds_alone_or_beside_one_cannot_be_told(made, others):
    rated(made, [5.0, 9.0, *others])
    found = rows(made, "ntp-0", "ntp-1")
    assert float(found[MT, "p"]["value"]) < 0.01, "over examples"
    assert found[MT, "verdict"]["text"] == "no clear difference"
    assert found[MT, "verdict"]["note"] == "two runs of one recipe; at least 2 other seeds are needed to compare with"
    text = compare(made.root / "ntp-0", made.root / "ntp-1")
    assert "two runs of one recipe: how far its seeds scatter is not known without two others" in text


def test_the_scatter_is_of_runs_with_the_same_examples_and_judge(made):
    rated(made, [5.0, 5.5, 5.1, 4.9, 5.6, 5.3])
    judge(made, "ntp-2", [5.0] * (NUM_QUESTIONS - 1))
    judge(made, "ntp-3", [5.0] * NUM_QUESTIONS, served=["another"])
    made.run("ntp-4", 2.0, seed=4, fields=NTP, val=dict.fromkeys(IDS, 6), halves=None)
    made.run("ntp-5", 2.5, seed=5, fields=NTP, val=dict.fromkeys(IDS, 5), halves=None)
    found = rows(made, "ntp-0", "ntp-1")
    assert found[MT, "verdict"]["note"] == "by the scatter of 2 other runs of the recipe"
    assert found[LOSS, "verdict"]["note"] == "by the scatter of 3 other runs of the recipe"


def test_one_seed_of_each_recipe_cannot_tell(recipes):
    for run in ("ntp-1", "ntp-2", "sftmix-0"):
        (recipes.root / run / "manifest.json").unlink()
    with pytest.raises(
        InputError, match=r"no seed in common, the one has seeds 1, 2, the other seed 0; runs are paired"
    ):
        compare(recipes.root / "sftmix-1", recipes.root / "ntp-0")
    recipes.run("ntp-again", 2.0, seed=2, fields=NTP, val=dict.fromkeys(IDS, 5), halves=None)
    recipes.run("sftmix-2", 1.9, seed=2, fields=SFTMIX, val=dict.fromkeys(IDS, 5), halves=HALVES)
    text = compare(recipes.root / "sftmix-2", recipes.root / "ntp-again")
    assert "left out, without a partner of their seed: sftmix-1, ntp-0" in text
    found = rows(recipes, "sftmix-2", "ntp-again")
    assert found[LOSS, "verdict"]["text"] == "no clear difference"
    assert (
        found[LOSS, "verdict"]["note"]
        == "one seed: better on these examples; at least 2 seeds are needed to compare recipes"
    )
    assert found[LOSS, "p seeds"]["text"] == ""


def test_two_judges_are_two_rows_and_what_one_side_has_is_said(recipes):
    for run in ("ntp-0", "ntp-1", "sftmix-0", "sftmix-1"):
        judge(recipes, run, [3.0] * NUM_QUESTIONS, judge="local")
    judge(recipes, "ntp-0", [1.0] * NUM_QUESTIONS, judge="third")
    found = rows(recipes, "sftmix-0", "ntp-0")
    local = "MT-Bench, by local / overall"
    assert (found[local, "a"]["text"], found[local, "seeds"]["text"]) == ("3.0000 ± 0.0000", "2")
    assert found[local, "verdict"]["text"] == "no clear difference"
    assert found[MT, "seeds"]["text"] == "3"
    text = compare(recipes.root / "sftmix-0", recipes.root / "ntp-0")
    assert "MT-Bench, by third, overall: a has no such result" in text


def test_a_judge_that_became_another_model_is_not_compared(recipes):
    for run, served in (("ntp-0", "m-1"), ("sftmix-0", "m-2"), ("ntp-1", "m-1"), ("sftmix-1", "m-1")):
        judge(recipes, run, [3.0] * NUM_QUESTIONS, judge="local", served=[served])
    text = compare(recipes.root / "sftmix-0", recipes.root / "ntp-0")
    assert "MT-Bench, by local, overall: not compared, one judge's name stood for m-1 and m-2" in text
    assert "\n  MT-Bench, by local" not in text


def test_answers_under_other_settings_are_not_compared_and_told_by_their_keys(recipes):
    drawn = {"backend": "hf", "seed": 0, "template_sha256": "0" * 64}
    for run, seed in (("ntp-0", 0), ("sftmix-0", 7)):
        settings = {"identity": run, "generation": {**drawn, "seed": seed, "model": run}, "rounds_of": "generation"}
        judge(recipes, run, [3.0] * NUM_QUESTIONS, judge="local", settings=settings)
    text = compare(recipes.root / "sftmix-0", recipes.root / "ntp-0")
    said = "MT-Bench, by local, overall: not compared, evaluated under other settings: generation.seed (0, 7)"
    assert said in text.splitlines(), "the weights that they name may differ"
    assert "\n  MT-Bench, by local" not in text


def test_answers_under_the_same_settings_are_compared_whatever_their_weights_are_called(recipes):
    for run in ("ntp-0", "sftmix-0"):
        answers = {"backend": "openai", "model": run, "identity": f"weights of {run}", "outputs": run, "sha256": run}
        settings = {"model": f"folder/{run}", "identity": run, "answers": answers, "scoring": "logprob"}
        judge(recipes, run, [3.0] * NUM_QUESTIONS, judge="local", settings=settings)
    assert "\n  MT-Bench, by local" in compare(recipes.root / "sftmix-0", recipes.root / "ntp-0")


def test_questions_that_not_all_runs_have_are_left_out_and_counted(recipes):
    for round_ in (1, 2):
        judge(recipes, "ntp-2", [5.0] * (NUM_QUESTIONS - 3), round_=round_)
    assert rows(recipes, "sftmix-0", "ntp-0")[MT, "examples"]["text"] == str(NUM_QUESTIONS - 3)
    text = compare(recipes.root / "sftmix-0", recipes.root / "ntp-0")
    assert "MT-Bench, by gpt-4-0613, overall: 3 questions that not all runs have alike are left out" in text


def offline(made, run, columns, tokens):
    """An evaluation by suite=offline whose columns are per token."""
    scores = {name: sum(of[i] * tokens[i] for i in of) / sum(tokens[i] for i in of) for name, of in columns.items()}
    weights = {name: {i: tokens[i] for i in of} for name, of in columns.items()}
    made.evaluate(run, "offline", 1, scores, judge=None, questions=columns, weights=weights)


def test_scores_per_token_are_compared_as_the_held_out_loss_is_and_no_loss_twice(recipes):
    """The losses of val.parquet under the name of a third give its row to the last digit."""
    for name in ("ntp", "sftmix"):
        for seed in range(3):
            run = recipes.root / f"{name}-{seed}"
            val = read_table(run / "val.parquet")
            tokens = dict(zip(val["example_id"], val["num_tokens"], strict=True))
            losses = {i: nll / tokens[i] for i, nll in zip(val["example_id"], val["nll"], strict=True)}
            half = {i: loss for i, loss in losses.items() if HALVES[i] == "confident"}
            names = {"held-out loss": losses, "held-out loss, confident": half, "held-out loss, middle third": losses}
            offline(recipes, run.name, names, tokens)
    found = rows(recipes, "sftmix-0", "ntp-0")
    third = "offline, held-out / held-out loss, middle third"
    for column in ("a", "b", "a minus b [95%]", "p", "p examples", "p seeds", "verdict"):
        for cell in ("text", "value", "sd", "low", "high"):
            assert found[third, column][cell] == found[LOSS, column][cell], column
    assert [row for row, column in found if row.startswith("offline") and column == "a"] == [third]
    for run in recipes.root.glob("*-?"):
        (run / "val.parquet").unlink()
    found = rows(recipes, "sftmix-0", "ntp-0")
    assert found["offline, held-out / held-out loss", "verdict"]["text"] == "better"


def test_an_example_of_another_weight_is_another_one(recipes):
    for run in ("ntp-0", "sftmix-0", "ntp-1", "sftmix-1"):
        tokens = dict.fromkeys(IDS, 10) | ({"e00": 7} if run == "ntp-1" else {})
        value = 0.5 if run.startswith("ntp") else 0.6
        offline(recipes, run, {"accuracy": dict.fromkeys(IDS, value) | {"e00": 0.0}}, tokens)
    cells = rows(recipes, "sftmix-0", "ntp-0")
    row = "offline, held-out / accuracy"
    assert cells[row, "examples"]["text"] == "59"
    assert float(cells[row, "a minus b [95%]"]["value"]) == pytest.approx(0.1)
    assert "offline, held-out, accuracy: 1 question that not all runs have alike are left out" in compare(
        recipes.root / "sftmix-0", recipes.root / "ntp-0"
    )


def test_results_name_the_columns_whose_lower_values_are_better(recipes):
    rng = np.random.default_rng(0)
    for name, value in (("ntp", 2.0), ("sftmix", 1.0)):
        for seed in range(3):
            drawn = (value + rng.normal(0, 0.1, NUM_QUESTIONS)).tolist()
            columns = {column: {str(k): x for k, x in enumerate(drawn)} for column in ("acc", "edits")}
            scores = {column: sum(of.values()) / len(of) for column, of in columns.items()}
            recipes.evaluate(f"{name}-{seed}", "own_suite", 1, scores, judge=None, benchmark="own", questions=columns)
            file = recipes.root / f"{name}-{seed}" / "evaluation" / "own_suite-None-own-1.json"
            write_json(file, read_json(file) | {"lower_is_better": ["edits"]})
    found = rows(recipes, "sftmix-0", "ntp-0")
    verdicts = [found[f"own_suite, own / {column}", "verdict"]["text"] for column in ("acc", "edits")]
    assert verdicts == ["worse", "better"]


def test_the_recipes_are_told_with_what_differs(recipes):
    lines = compare(recipes.root / "sftmix-0", recipes.root / "ntp-2").splitlines()
    assert lines[:4] == [
        "sftmix-0 against ntp-2",
        "a  sftmix-0: 3 runs of its recipe, seeds 0, 1, 2",
        "b  ntp-2: 3 runs of its recipe, seeds 0, 1, 2",
        "they differ in recipe.mixup.mu, recipe.mixup",
    ]
    for form in ("markdown", "latex"):
        assert "better" in compare(recipes.root / "sftmix-0", recipes.root / "ntp-0", form)
    with pytest.raises(ConfigError, match="format=pdf: expected one of"):
        compare(recipes.root / "sftmix-0", recipes.root / "ntp-0", "pdf")


def test_other_subsets_are_not_compared(recipes):
    swapped = {i: "confident" if half == "unconfident" else "unconfident" for i, half in HALVES.items()}
    recipes.run("other", 2.0, seed=0, fields={"recipe": 3}, val=dict.fromkeys(IDS, 5), halves=swapped)
    recipes.run("one", 1.9, seed=0, fields={"recipe": 2}, val=dict.fromkeys(IDS, 5), halves=HALVES)
    text = compare(recipes.root / "one", recipes.root / "other")
    assert "the runs have other subsets: losses by subset are not compared" in text
    assert "confident subset" not in text


def test_runs_of_other_held_out_examples_have_no_common_loss(recipes):
    recipes.run("elsewhere", 2.0, seed=0, fields={"recipe": 3}, halves=None)
    with pytest.raises(
        InputError, match=r"compare=\[sftmix-0,elsewhere\]: the runs hold out other examples, .*: b has no such result"
    ):
        compare(recipes.root / "sftmix-0", recipes.root / "elsewhere")
    judge(recipes, "elsewhere", [5.0] * NUM_QUESTIONS)
    text = compare(recipes.root / "sftmix-0", recipes.root / "elsewhere")
    assert "the runs hold out other examples, or other tokens of them: their losses are not compared" in text
    assert "MT-Bench" in text


def test_what_is_no_pair_of_runs_is_one_line(recipes):
    root = recipes.root
    with pytest.raises(InputError, match=r"compare=.*ntp-0: the same run twice, expected two"):
        compare(root / "ntp-0", root / "ntp-0")
    (root / "empty").mkdir()
    with pytest.raises(
        InputError, match=r"empty: not a complete run, expected manifest\.json or the folder evaluation in it"
    ):
        compare(root / "ntp-0", root / "empty")
    (root / "scored").mkdir()
    write_json(root / "scored" / "manifest.json", {"fields": {"kind": "confidence"}})
    with pytest.raises(InputError, match=r"scored: the artifact is of kind confidence, expected a run"):
        compare(root / "ntp-0", root / "scored")
    for torn in ("{", '{"fields": {"kind": "run"}}', "[]"):
        (root / "scored" / "manifest.json").write_text(torn)
        with pytest.raises(InputError, match=r"manifest\.json: "):
            compare(root / "ntp-0", root / "scored")
        assert "better" in compare(root / "sftmix-0", root / "ntp-0"), "a torn one beside is none of them"


def test_a_model_that_is_no_run_is_one_model(recipes):
    (recipes.root / "SmolLM2").mkdir()
    judge(recipes, "SmolLM2", [1.0] * NUM_QUESTIONS)
    text = compare(recipes.root / "ntp-0", recipes.root / "SmolLM2")
    assert "b  SmolLM2: one model" in text
    found = rows(recipes, "ntp-0", "SmolLM2")
    assert found[MT, "verdict"]["text"] == "no clear difference"
    assert (LOSS, "a") not in found


def test_a_damaged_run_of_another_seed_is_left_out_and_named(recipes):
    """It ended the comparison, and with it the summary of a finished run."""
    broken = recipes.root / "sftmix-2" / "val.parquet"
    broken.write_bytes(b"PAR1")
    found = rows(recipes, "sftmix-0", "ntp-0")
    assert found[LOSS, "seeds"]["text"] == "2"
    text = compare(recipes.root / "sftmix-0", recipes.root / "ntp-0")
    assert f"left out, damaged: {broken}: cannot be read, expected a parquet file" in text


def test_runs_whose_examples_and_reference_follow_the_seed_are_one_recipe(made):
    """A run with another kind of reference is not, although each fingerprint of a confidence differs anyway."""
    val = dict.fromkeys(IDS, 10)
    for name, mu, source in (("a", 0.2, "reference"), ("b", 0.0, "reference"), ("base", 0.2, "base")):
        for seed in range(3):
            fields = {"recipe": {"mu": mu}, "confidence": f"{name}{seed}"}
            select = {"by": "random", "k": 9, **({"block": seed} if seed else {})}
            config = {"reference": {"seed": 1000}, "confidence": {"from": source}, "split": {"by": "confidence"}}
            fields["data"] = {"select": select}
            loss = {i: k % 7 - mu for k, i in enumerate(IDS)}
            made.run(f"{name}{seed}", loss, val=val, halves=HALVES, seed=seed, fields=fields, config=config)
    text = compare(made.root / "a0", made.root / "b1")
    assert "a  a0: 3 runs of its recipe, seeds 0, 1, 2" in text
    assert "b  b1: 3 runs of its recipe, seeds 0, 1, 2" in text
    assert rows(made, "a0", "b0")[LOSS, "seeds"]["text"] == "3"
    assert "they differ in confidence" in compare(made.root / "a0", made.root / "base1")


def test_the_verdict_on_a_loss_is_by_the_margin(recipes):
    """SFTMix is better by 0.2: by more than 0.1, by less than 0.5. Scores of suites keep their verdict."""
    for margin, words in ((0.1, "supported"), (0.5, "negligible")):
        page = comparison.compare(recipes.root / "sftmix-0", recipes.root / "ntp-0", margin=margin)
        found = {row[1].text: row[-1].text for row in page.blocks[0].rows}
        assert (found["all"], found["overall"]) == (words, "no clear difference")
        assert any(f"by the margin of {margin} nats per token" in note for note in page.notes)
    with pytest.raises(InputError, match=r"margin=0\.1: sftmix-0 and sftmix-1 are runs of one recipe"):
        comparison.compare(recipes.root / "sftmix-0", recipes.root / "sftmix-1", margin=0.1)


def test_given_subsets_replace_the_splits_of_the_runs(recipes):
    of_all = {i: "confident" if k < 15 else "unconfident" for k, i in enumerate(IDS)}
    page = comparison.compare(recipes.root / "sftmix-0", recipes.root / "ntp-0", subset_of=of_all)
    found = {row[1].text: row[9].text for row in page.blocks[0].rows}
    assert (found["confident subset"], found["unconfident subset"]) == ("15", "45")
    with pytest.raises(InputError, match="subsets: has no confidence in 2 of the 60 held-out examples"):
        lacking = {i: of_all[i] for i in IDS[2:]}
        comparison.compare(recipes.root / "sftmix-0", recipes.root / "ntp-0", subset_of=lacking)
