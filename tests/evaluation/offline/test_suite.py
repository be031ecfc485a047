"""`suite=offline` on small runs: against the metrics that the run itself measured, and what it refuses."""

import io
import json
import re
import shutil
from contextlib import redirect_stdout
from types import SimpleNamespace

import pytest

from builders import random_examples
from resealed import write_json, write_table
from sftmix.artifacts.tables import read_table
from sftmix.data.shards import EncodedExamples
from sftmix.errors import InputError
from sftmix.evaluation.generators.answering import Answer
from sftmix.evaluation.model_pool import ModelPool, ModelSource
from sftmix.evaluation.offline import suite as offline
from sftmix.evaluation.offline.run_data import find_confidence, read_run_data
from sftmix.evaluation.offline.schema import OfflineConfig
from sftmix.evaluation.target import find_target
from sftmix.provenance.runs import read_held_out

SUITE = OfflineConfig(
    name="offline", sets=None, num_train=1000, num_answers=4, max_new_tokens=8, num_bins=15, lams=[0.25, 0.75]
)


class Parrot:
    """Answers with the last turn, twice, cut by length where the turn is long."""

    def __init__(self):
        self.settings, self.asked = {"model": "parrot"}, []

    def generate(self, prompts, tell=None):
        for place, prompt in enumerate(prompts):
            self.asked.append(prompt)
            text = f"{prompt.turns[-1].content} {prompt.turns[-1].content}"
            yield place, Answer(text, "stop" if place else "length", len(text.split()), "0" * 64)


class Session:
    """The members of a session that the suite uses. A parrot gives the answers."""

    def __init__(self, target, **config):
        self.target, self.device, self.dtype = target, "cpu", "float32"
        defaults = {"seed": 0, "limit": None, "dry_run": False, "progress_bar": False}
        defaults["generate"] = SimpleNamespace(template=None)
        self.config = SimpleNamespace(**{**defaults, **config})
        self.parrot, self.prepared = Parrot(), {}
        self.pool = ModelPool(ModelSource(target.model, None, self.dtype, self.device), 1)

    @property
    def tokenizer(self):
        return self.pool.tokenizer

    @property
    def generator(self):
        return self.parrot

    def folder(self, suite):
        folder = self.target.folder / "evaluation" / suite
        folder.mkdir(parents=True, exist_ok=True)
        return folder


def subject_of(folder):
    return find_target(str(folder), None, folder.parent)


def evaluated(folder, suite=SUITE, **config):
    session = Session(subject_of(folder), **config)
    offline.check(session, suite)
    (found,) = offline.evaluate(session, suite)
    return found


@pytest.fixture(scope="module")
def target(small_run):
    return small_run[1].target.folder


@pytest.fixture(scope="module")
def printed(target):
    """The evaluation of a run, and what was printed."""
    out = io.StringIO()
    with redirect_stdout(out):
        found = evaluated(target)
    return found, out.getvalue()


@pytest.fixture(scope="module")
def found(printed):
    return printed[0]


def block_of(out, title):
    """The cells of a printed table by its first label, with the header under the empty one."""
    lines = out.split(f"\n{title}", 1)[1].split("\n\n", 1)[0].splitlines()[1:]
    cells = [re.split(r" {2,}", line.strip()) for line in lines]
    return {"": cells[0], **{row[0]: row for row in cells[1:]}}


def row_of(out, title, label):
    block = block_of(out, title)
    return dict(zip(block[""], block[label], strict=True))


def test_the_held_out_loss_is_the_one_that_the_run_measured(target, found):
    val = read_table(target / "val.parquet")
    assert found.scores["held-out loss"] == pytest.approx(sum(val["nll"]) / sum(val["num_tokens"]), abs=1e-5)
    assert found.record["held_out_loss_of_run"] == pytest.approx(found.scores["held-out loss"], abs=1e-5)
    assert found.counts["questions"] == len(val["nll"])


def test_the_losses_of_the_subsets_are_those_of_the_runs_own_split(target, found):
    val, split = read_table(target / "val.parquet"), read_table(target / "split.parquet")
    subset_of = dict(zip(split["example_id"], split["subset"], strict=True))
    for subset in ("confident", "unconfident"):
        rows = [k for k, i in enumerate(val["example_id"]) if subset_of[i] == subset]
        expected = sum(val["nll"][k] for k in rows) / sum(val["num_tokens"][k] for k in rows)
        assert found.scores[f"held-out loss, {subset}"] == pytest.approx(expected, abs=1e-5)
    thirds = [name for name in found.scores if name.startswith("held-out loss,") and name.endswith("third")]
    assert len(thirds) == 3


def test_a_mean_over_tokens_has_questions_with_the_tokens_as_weights(target, found):
    val, split = read_table(target / "val.parquet"), read_table(target / "split.parquet")
    tokens = dict(zip(val["example_id"], val["num_tokens"], strict=True))
    subset_of = dict(zip(split["example_id"], split["subset"], strict=True))
    losses = {name for name in found.scores if name.startswith("held-out loss")}
    assert len(losses) == 1 + 2 + 3
    per_token = losses | {"accuracy", "top probability", "Brier", "entropy"}
    assert set(found.weights) == per_token | {"linearity gap"}
    for column in found.weights:
        values, weights = found.questions[column], found.weights[column]
        mean = sum(value * weights[i] for i, value in values.items()) / sum(weights.values())
        assert found.scores[column] == pytest.approx(mean, abs=1e-6), column
    for column in per_token:
        assert found.weights[column] == {i: tokens[i] for i in found.questions[column]}
    assert set(found.questions["accuracy"]) == set(found.questions["held-out loss"]) == set(tokens)
    confident = {i for i in tokens if subset_of[i] == "confident"}
    assert set(found.questions["held-out loss, confident"]) == confident
    for i, nll in zip(val["example_id"], val["nll"], strict=True):
        assert found.questions["held-out loss"][i] == pytest.approx(nll / tokens[i], abs=1e-5)


def test_the_linearity_gap_is_by_pair_with_its_positions(found):
    weights = found.weights["linearity gap"]
    assert len(weights) == found.counts["pairs"]
    assert sum(weights.values()) == found.record["linearity"]["positions"]
    assert all(re.fullmatch(r".+ with .+ at 0\.25, 0\.75", name) for name in weights)


def test_a_score_that_is_not_a_mean_over_examples_has_no_questions(found):
    answers = {"answer tokens", "cut by length", "4-gram repetition"}
    assert set(found.questions) == set(found.weights) | answers
    for column in answers:
        values = found.questions[column]
        assert found.scores[column] == pytest.approx(sum(values.values()) / len(values))
    assert found.scores["cut by length"] == 1 / 4
    assert found.counts["cut_by_length"] == 1
    assert found.scores["4-gram repetition"] > 0.2


def test_calibration_is_printed_with_the_accuracy_first_and_with_its_counts(target, printed):
    found, out = printed
    val = read_table(target / "val.parquet")
    row = row_of(out, "Calibration", "all")
    names = ("accuracy", "top probability", "ECE", "Brier", "entropy")
    assert tuple(row) == ("held-out examples", "examples", "tokens", *names)
    assert (row["examples"], row["tokens"]) == (f"{len(val['nll']):,}", f"{sum(val['num_tokens']):,}")
    assert {name: row[name] for name in names} == {name: f"{found.scores[name]:.4f}" for name in names}


def test_answers_are_printed_with_their_number(printed):
    found, out = printed
    row = row_of(out, "Answers", "held-out instructions")
    names = ("answer tokens", "cut by length", "4-gram repetition", "distinct-1", "distinct-2")
    assert (row["answers"], row["cut by length"]) == ("4", "0.2500")
    assert {name: row[name] for name in names} == {name: f"{found.scores[name]:.4f}" for name in names}


def test_answers_too_short_to_repeat_themselves_are_counted(target, tmp_path, monkeypatch, capsys):
    def generate(_, prompts, tell=None):
        return ((k, Answer("a b a b a b" if k else "no", "stop", 1, "0" * 64)) for k in range(len(prompts)))

    monkeypatch.setattr(Parrot, "generate", generate)
    shutil.copytree(target, tmp_path / "run", ignore=shutil.ignore_patterns("evaluation"))
    evaluated(tmp_path / "run")
    out = capsys.readouterr().out
    assert row_of(out, "Answers", "held-out instructions")["4-gram repetition"] == "0.3333 [1]"
    assert "[1] over the 3 of 4 answers that have four words" in out


def test_linearity_and_losses_are_printed_with_their_counts(target, printed):
    found, out = printed
    for lam, gap in zip(SUITE.lams, found.record["linearity"]["gap"], strict=True):
        row = row_of(out, "Between two hidden states", f"{lam:g}")
        assert row["linearity gap"] == f"{gap:.4f}"
        assert row["pairs"] == str(found.counts["pairs"])
        assert row["mixed tokens"] == f"{found.record['linearity']['positions']:,}"
    trained = read_run_data(subject_of(target), False).trained
    row = row_of(out, "Losses", "all")
    assert row["training examples"] == f"{len(trained):,}"
    assert row["training tokens"] == f"{sum(example.num_response_tokens for example in trained):,}"
    assert row["gap"] == f"{found.scores['gap']:+.4f}"


def test_scores_have_their_ranges(found):
    for name in ("accuracy", "top probability", "ECE", "distinct-1", "distinct-2", "4-gram repetition"):
        assert 0 <= found.scores[name] <= 1, name
    assert 0 < found.scores["Brier"] < 2
    assert found.scores["gap"] != 0
    assert len(found.record["linearity"]["gap"]) == 2
    json.dumps(found.record)


def test_the_same_call_gives_the_same_metrics_and_asks_nothing_again(target, found):
    session = Session(subject_of(target))
    (again,) = offline.evaluate(session, SUITE)
    assert again.scores == pytest.approx(found.scores, rel=1e-6)
    assert again.questions == found.questions
    assert session.parrot.asked == []


def test_a_limit_takes_the_first_and_names_the_result_so(target, capsys):
    limited = evaluated(target, suite_without_answers(), limit=3)
    total = len(read_table(target / "val.parquet")["nll"])
    assert limited.benchmark == f"held-out, first 3 of {total}"
    assert limited.counts["questions"] == limited.counts["trained_on"] == 3
    assert "answer tokens" not in limited.scores
    assert "read it beside the accuracy" in capsys.readouterr().out


def suite_without_answers():
    return OfflineConfig(**{**vars(SUITE), "num_answers": 0})


def test_an_ntp_run_has_the_confidence_of_which_it_is_the_reference(small_run):
    folder = small_run[1].reference.folder
    ntp = evaluated(folder, suite_without_answers())
    assert ntp.record["confidence"] == small_run[1].confidence.folder.name
    assert "gap, unconfident" in ntp.scores


def test_without_any_confidence_its_metrics_are_left_out_with_a_note(small_run, tmp_path, capsys):
    shutil.copytree(small_run[1].reference.folder, tmp_path / "unscored")
    unscored = evaluated(tmp_path / "unscored", suite_without_answers())
    out = capsys.readouterr().out
    assert unscored.record["confidence"] is None
    assert unscored.counts["without_confidence"] == unscored.counts["questions"]
    assert "linearity gap" not in unscored.scores
    assert not any("third" in name or "confident" in name for name in unscored.scores)
    assert "subsets, thirds and the linearity gap are left out" in out


def test_confidence_of_other_examples_is_not_used(small_run):
    assert find_confidence(small_run[1].reference.folder, ["unknown"]) is None


def test_confidence_of_the_training_examples_is_preferred_to_newer_scores_of_held_out_ones(small_run, tmp_path):
    """Every seed of a study has its own training examples and its own reference, and all hold out the same."""
    plan = small_run[1]
    shutil.copytree(plan.target.folder, tmp_path / "run")
    (tmp_path / "run" / "split.parquet").unlink()
    val = list(read_held_out(plan.target.folder).nll)
    scores = read_table(plan.confidence.folder / "confidence.parquet")
    train = [i for i in dict.fromkeys(scores["example_id"]) if i not in val]
    for name, kept, completed in (("own", {*val, *train}, "2026-01-01"), ("other", {*val}, "2026-01-02")):
        shutil.copytree(plan.confidence.folder, tmp_path / f"confidence-{name}")
        rows = [k for k, i in enumerate(scores["example_id"]) if i in kept]
        table = {column: [values[k] for k in rows] for column, values in scores.items()}
        write_table(tmp_path / f"confidence-{name}" / "confidence.parquet", table)
        manifest = json.loads((tmp_path / f"confidence-{name}" / "manifest.json").read_text())
        manifest |= {"completed": completed, "fields": {**manifest["fields"], "checkpoints": name}}
        write_json(tmp_path / f"confidence-{name}" / "manifest.json", manifest)
    assert find_confidence(tmp_path / "run", val).source == "confidence-other"
    assert find_confidence(tmp_path / "run", val, train).source == "confidence-own"


def test_a_run_on_one_subset_has_its_gap_over_that_subset(target, tmp_path, capsys):
    folder = tmp_path / "run"
    shutil.copytree(target, folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["fields"]["recipe"] |= {"mixup": None, "ntp": {"weight": 1.0, "on": "confident"}}
    write_json(folder / "manifest.json", manifest)
    one, split = evaluated(folder, suite_without_answers()), read_table(target / "split.parquet")
    rows = zip(split["part"], split["subset"], strict=True)
    assert one.counts["trained_on"] == sum(row == ("train", "confident") for row in rows)
    assert one.record["trained_subset"] == "confident"
    assert one.scores["gap"] == one.scores["gap, confident"]
    assert "gap, unconfident" not in one.scores
    assert "trained on the confident subset only" in capsys.readouterr().out


def test_a_model_without_a_run_needs_sets(target, tmp_path):
    shutil.copytree(target / "model", tmp_path / "mine")
    with pytest.raises(InputError, match=r"mine is a model without a run, expected a run of train\.py .*suite\.sets="):
        offline.check(Session(subject_of(tmp_path / "mine")), SUITE)


def test_a_run_that_holds_nothing_out_is_refused(target, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(target, folder)
    write_table(folder / "val.parquet", {"example_id": [], "num_tokens": [], "nll": []})
    with pytest.raises(InputError, match="holds nothing out"):
        offline.check(Session(subject_of(folder)), SUITE)


def changed(target, tmp_path, **data):
    """A copy of a run whose metadata name other data."""
    folder = tmp_path / "run"
    shutil.copytree(target, folder)
    record = json.loads((folder / "run.json").read_text())
    record["config"]["data"] |= data
    write_json(folder / "run.json", record)
    return Session(subject_of(folder))


def test_a_missing_data_file_is_refused_before_anything_is_loaded(target, tmp_path):
    session = changed(target, tmp_path, path="no/such/file.jsonl", demo=None)
    with pytest.raises(InputError, match=r"no/such/file\.jsonl"):
        offline.check(session, SUITE)


def test_data_that_have_changed_since_are_refused(target, tmp_path):
    session = changed(target, tmp_path, val_fraction=0.3)
    offline.check(session, SUITE)
    with pytest.raises(InputError, match="has changed since the run run: "):
        list(offline.evaluate(session, SUITE))


def test_a_configuration_of_another_version_is_refused(target, tmp_path):
    session = changed(target, tmp_path, colour="green")
    with pytest.raises(InputError, match="not the configuration of this version"):
        offline.check(session, SUITE)


def test_a_dry_run_asks_nothing(target, capsys):
    assert list(offline.evaluate(Session(subject_of(target), dry_run=True), SUITE)) == []
    assert "asks no judge" in capsys.readouterr().out


def test_examples_are_drawn_by_their_ids_in_any_order_of_the_file():
    examples = random_examples(20, vocab=300, seed=0)
    drawn = [set(offline._drawn(EncodedExamples.of(order), 5, seed=1).ids) for order in (examples, examples[::-1])]
    assert len(drawn[0]) == 5
    assert drawn[0] == drawn[1]
