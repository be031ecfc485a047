"""The summary prints what the files say, whichever recipe wins."""

import random

import pytest

from resealed import write_json, write_table
from sftmix.artifacts.manifest import read_json
from sftmix.artifacts.tables import read_table
from sftmix.reports.summary import auc, summarize


def brute_force_auc(positive, negative):
    wins = sum((p > n) + (p == n) / 2 for p in positive for n in negative)
    return wins / (len(positive) * len(negative))


def test_the_auc_counts_pairs():
    assert auc([3.0, 2.0], [1.0, 0.0]) == 1.0
    assert auc([0.0], [1.0, 2.0]) == 0.0
    assert auc([1.0, 1.0], [1.0]) == 0.5
    r = random.Random(0)
    positive, negative = ([r.randrange(8) for _ in range(n)] for n in (30, 41))
    assert auc(positive, negative) == pytest.approx(brute_force_auc(positive, negative))


@pytest.fixture
def runs(small_run, tmp_path):
    import shutil

    config, _ = small_run
    shutil.copytree(config.root, tmp_path / "runs")
    (target,), (confidence,), (baseline,) = (
        list((tmp_path / "runs").glob(f"{kind}-tiny-*")) for kind in ("sftmix", "confidence", "ntp")
    )
    return target, confidence, baseline


def test_the_summary_says_what_the_files_say(runs):
    target, confidence, baseline = runs
    text = summarize(target, confidence, baseline)
    for run in (target, baseline):
        assert f"{read_json(run / 'metrics.json')['val_loss']:.3f}" in text
    examples = read_table(confidence / "examples.parquet")
    split = read_table(target / "split.parquet")
    assert len(split["example_id"]) == len(examples["example_id"])
    rule = [c for c, g in zip(examples["confidence"], examples["group"], strict=True) if g.startswith("rule/")]
    other = [c for c, g in zip(examples["confidence"], examples["group"], strict=True) if not g.startswith("rule/")]
    assert f"AUC {brute_force_auc(rule, other):.3f}" in text
    assert all(group in text for group in set(examples["group"]))
    assert str(target / "model") in text
    assert "python train.py" in text.splitlines()[-1]


def test_an_ntp_run_is_called_ntp_whichever_command_made_it(runs):
    text = summarize(runs[2], None, None)
    assert "         NTP\n" in text
    assert "SFTMix" not in text
    assert "split.parquet" not in text


def test_a_recipe_that_loses_is_said_to_lose(runs):
    target, confidence, baseline = runs
    table = read_table(baseline / "val.parquet")
    write_table(
        target / "val.parquet",
        {**table, "nll": [nll + n for nll, n in zip(table["nll"], table["num_tokens"], strict=True)]},
    )
    text = summarize(target, confidence, baseline)
    assert "  +1.0000 [+1.0000, +1.0000]" in text
    assert "SFTMix against NTP: no clear difference (14 examples, at least 20 are needed)." in text


ONE_SEED = "one seed: better on these examples; at least 2 seeds are needed to compare recipes"


def seeds_of(run, number, effect=0.0, num_examples=60):
    """Make a run and copies of it under other seeds, each with its own noise; return the folders."""
    import shutil

    rng = random.Random(run.name)
    folders = []
    for seed in range(number):
        folder = run if seed == 0 else run.with_name(f"{run.name}-copy{seed}")
        if seed:
            shutil.copytree(run, folder)
        manifest = read_json(folder / "manifest.json")
        manifest["fields"]["seed"] = seed
        write_json(folder / "manifest.json", manifest)
        shift = effect + rng.gauss(0, 0.005)
        nll = [10 * (2 + 0.1 * k + shift + rng.gauss(0, 0.02)) for k in range(num_examples)]
        ids = [f"e{k}" for k in range(num_examples)]
        write_table(folder / "val.parquet", {"example_id": ids, "num_tokens": [10] * num_examples, "nll": nll})
        folders.append(folder)
    return folders


@pytest.mark.parametrize(
    ("number", "effect", "words"),
    [
        (1, -0.2, f"no clear difference ({ONE_SEED})"),
        (3, -0.2, "better"),
        (3, 0.2, "worse"),
        (3, 0.0, "no clear difference"),
    ],
)
def test_every_report_gives_the_same_verdict_on_the_same_runs(runs, tmp_path, number, effect, words):
    """The summary said "2.6 standard errors" where `compare=` said that nothing can be told."""
    import csv
    import io

    from sftmix.provenance.records import record_run
    from sftmix.reports.page import write_pages
    from sftmix.reports.tables.compare import compare
    from sftmix.reports.tables.leaderboard import leaderboard
    from sftmix.reports.tables.table import table
    from sftmix.sweep.store import read_sweep

    target, confidence, baseline = runs
    (target / "split.parquet").unlink()  # of other examples
    ours, theirs = seeds_of(target, number, effect), seeds_of(baseline, number)
    (line,) = [line for line in summarize(target, confidence, baseline).splitlines() if " against NTP: " in line]
    assert line.endswith(f": {words}.")

    def cells(text):
        return [row for row in csv.DictReader(io.StringIO(text)) if row["text"]]

    def said(cell, separator=": "):
        text = cell["text"].rpartition(separator)[2]
        return text + (f" ({cell['note']})" if cell["note"] else "")

    (verdict,) = [c for c in cells(write_pages([compare(target, baseline)], "csv")) if c["column"] == "verdict"]
    assert said(verdict) == words
    row = {"baseline": baseline.name, "confidence": None, "command": "c", "state": "done", "log": None, "seconds": 1.0}
    row["cause"] = None
    rows = [
        {**row, "overrides": [f"seed={k}"], "target": a.name, "baseline": b.name}
        for k, (a, b) in enumerate(zip(ours, theirs, strict=True))
    ]
    folder = target.parent / "sweeps" / "mu-0a1b2c3d"
    head = {"name": "mu", "command": "c", "common": [], "composed_by": []}
    folder.mkdir(parents=True)
    write_json(folder / "manifest.json", {**head, "runs": rows, "shared": []})
    (cell,) = [
        c for c in cells(write_pages([leaderboard(read_sweep(folder))], "csv")) if c["column"] == "minus NTP [95%]"
    ]
    assert said(cell) == words
    (cell,) = [
        c
        for c in cells(write_pages(table("mu", [read_sweep(folder)]), "csv"))
        if c["column"] == "minus NTP [95%]" and c["value"]
    ]
    assert said(cell) == words
    readme = (record_run(target, tmp_path / "to") / "README.md").read_text()
    short = words.partition(" (")[0]
    assert f": {short}, n={number} seed" in next(x for x in readme.splitlines() if x.startswith("Outcome: "))


def test_one_held_out_example_has_no_interval(runs):
    target, confidence, baseline = runs
    for run in (target, baseline):
        table = read_table(run / "val.parquet")
        write_table(run / "val.parquet", {name: values[:1] for name, values in table.items()})
    text = summarize(target, confidence, baseline)
    assert "Held-out loss over 1 example, nats" in text
    assert "nan" not in text
    assert "SFTMix against NTP: no clear difference (1 example, at least 20 are needed)." in text


def test_a_loss_that_hardly_fell_is_said(runs):
    target, confidence, _ = runs
    metrics = read_json(target / "metrics.json")
    write_json(target / "metrics.json", {**metrics, "val_loss": metrics["val_loss_before"] * 0.999})
    assert "The loss hardly fell" in summarize(target, confidence, None)


def test_of_other_data_the_most_and_the_least_confident_are_shown(runs):
    target, confidence, _ = runs
    passport = read_json(target / "run.json")
    passport["config"]["data"]["demo"] = None
    write_json(target / "run.json", passport)
    text = summarize(target, confidence, None)
    examples = read_table(confidence / "examples.parquet")
    best = max(range(len(examples["confidence"])), key=lambda i: examples["confidence"][i])
    assert " ".join(examples["instruction"][best].split())[:80] in text
    assert "the same command with recipe=ntp and without settings of confidence, reference" in text


def test_answers_of_an_earlier_version_lack_those_before_tuning(runs):
    target, confidence, _ = runs
    answers = read_json(target / "answers.json")
    write_json(target / "answers.json", [{**shown, "before": "as it was"} for shown in answers])
    assert summarize(target, confidence, None).count("    before    as it was\n") == len(answers)
    earlier = [{key: text for key, text in shown.items() if key != "before"} for shown in answers]
    write_json(target / "answers.json", earlier)
    text = summarize(target, confidence, None)
    assert "\n    before    " not in text
    assert text.count("    in data   ") == len(answers)


def test_text_from_data_cannot_move_the_cursor(runs):
    target, confidence, _ = runs
    answers = read_json(target / "answers.json")
    answers[0]["answer"] = "\x1b[2Jgone\r\nnext"
    write_json(target / "answers.json", answers)
    text = summarize(target, confidence, None)
    assert "\x1b" not in text
    assert "\r" not in text
    assert "[2Jgone next" in text


def test_two_planted_qualities_are_told_apart_by_confidence(runs):
    target, confidence, _ = runs
    examples = read_table(confidence / "examples.parquet")
    groups = ["high" if k % 3 else "low" for k in range(len(examples["group"]))]
    write_table(confidence / "examples.parquet", {**examples, "group": groups})
    text = summarize(target, confidence, None)
    high, low = (
        [c for c, g in zip(examples["confidence"], groups, strict=True) if g == name] for name in ("high", "low")
    )
    assert "Does confidence recover the planted quality?" in text
    assert f"AUC {brute_force_auc(high, low):.3f}: how often an example of high quality" in text


@pytest.mark.parametrize(
    ("split", "names"),
    [
        (None, ("confident subset", "unconfident subset")),
        ({"by": "random", "seed": 0}, ("first subset", "second subset")),
        ({"by": "length"}, ("shorter responses", "longer responses")),
        ({"by": "group", "confident": "a\x1b[2J"}, ("group a [2J", "other groups")),
    ],
)
def test_a_part_is_called_what_it_is(runs, split, names):
    target, _, baseline = runs
    manifest = read_json(target / "manifest.json")
    if split is not None:
        manifest["fields"]["split"] = split
    write_json(target / "manifest.json", manifest)
    text = summarize(target, None, baseline)
    rows = [line.strip() for line in text.splitlines()]
    assert [sum(row.startswith(f"{name}  ") for row in rows) for name in names] == [1, 1]
    assert "\x1b" not in text
    assert ("confident subset" in text) == (split is None)
