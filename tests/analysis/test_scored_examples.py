"""Scored examples of runs and confidence folders, against the code that splits, and with files that are gone."""

import json
import shutil

import numpy as np
import pytest

from scored import Row, write_first_epoch_run, write_scored_run
from sftmix.analysis.scored_examples import read_scored_examples
from sftmix.artifacts.manifest import read_json
from sftmix.artifacts.tables import read_confidence
from sftmix.errors import InputError
from sftmix.stages.scores import confidence_of

LONG = "word " * 100
ROWS = [
    Row("Name a color.", "Blue.", (2.0, 4.0), "open", subset="confident"),
    Row("Say it.\n\nit", LONG, (8.0, 4.0), "noise", subset="unconfident"),
    Row("Add 1 and 2.", "3", (1.5, 0.0), "rule"),  # not scored by the second checkpoint
    Row("Held out?", "Yes.", (3.0, 3.0), subset=None, part="val"),
]


def test_a_run_has_the_values_that_it_was_split_by(tmp_path):
    written = write_scored_run(tmp_path, ROWS)
    examples = read_scored_examples(written.run, tmp_path)
    assert examples.ids == [ROWS[k].id for k in (0, 1, 3)]
    np.testing.assert_allclose(examples.perplexity, [[2, 4], [8, 4], [3, 3]])
    np.testing.assert_allclose(examples.confidence, [-3, -6, -3])
    np.testing.assert_allclose(examples.variability, [1, 2, 0], atol=1e-12)
    assert examples.subset == ["confident", "unconfident", "none"]
    assert examples.part == ["train", "train", "val"]
    assert examples.group == ["open", "noise", ""]
    assert examples.source == ["rows.json"] * 3
    assert examples.row.tolist() == [1, 2, 4]
    assert examples.turn.tolist() == [1, 1, 1]
    assert examples.instruction == ["Name a color.", "Say it.\n\nit", "Held out?"]
    assert examples.response == ["Blue.", LONG, "Yes."]
    assert not examples.is_cut.any()
    ids, confidence, variability = confidence_of(read_confidence(written.confidence / "confidence.parquet"), None)
    assert ids == examples.ids
    np.testing.assert_allclose(confidence.numpy(), examples.confidence, rtol=1e-12)
    np.testing.assert_allclose(variability.numpy(), examples.variability, atol=1e-12)


@pytest.mark.parametrize(("use", "columns"), [(1, (1,)), ([1], (0,)), (2, (0, 1)), (None, (0, 1))])
def test_only_the_checkpoints_that_the_run_has_used_count(tmp_path, use, columns):
    written = write_scored_run(tmp_path, ROWS, more={"use": use})
    examples = read_scored_examples(written.run, tmp_path)
    assert examples.used == columns
    assert examples.perplexity.shape == (3, 2)
    np.testing.assert_allclose(examples.confidence, -examples.perplexity[:, columns].mean(axis=1))


def test_examples_may_all_be_in_neither_subset(tmp_path):
    written = write_scored_run(tmp_path, [row._replace(subset=None) for row in ROWS])
    assert read_scored_examples(written.run, tmp_path).subset == ["none"] * 3


def test_a_run_that_was_split_by_its_first_epoch_has_ranks(tmp_path):
    rows = [row._replace(perplexity=(float(2 + k),)) for k, row in enumerate(ROWS)]
    examples = read_scored_examples(write_first_epoch_run(tmp_path, rows, (0.25, 0.75, 0.5, 0.5)), tmp_path)
    assert examples.has_ranks
    assert examples.confidence.tolist() == [0.25, 0.75, 0.5, 0.5]
    np.testing.assert_allclose(examples.perplexity[:, 0], [2, 3, 4, 5])
    assert examples.select(np.array([1])).has_ranks
    assert not read_scored_examples(write_scored_run(tmp_path, ROWS).run, tmp_path).has_ranks


def test_a_confidence_folder_has_no_subsets(tmp_path):
    written = write_scored_run(tmp_path, ROWS)
    examples = read_scored_examples(written.confidence, tmp_path)
    assert examples.subset is None
    assert examples.part == ["train", "train", "val"]
    assert examples.response[1] == LONG


def test_without_the_prepared_data_long_texts_are_cut(tmp_path):
    written = write_scored_run(tmp_path, ROWS, prepared=False)
    examples = read_scored_examples(written.run, tmp_path)
    assert examples.response == ["Blue.", LONG[:300], "Yes."]
    assert examples.is_cut.tolist() == [False, True, False]


def test_prepared_data_of_another_source_is_not_read(tmp_path):
    written = write_scored_run(tmp_path, ROWS)
    manifest = read_json(written.prepared / "manifest.json")
    from resealed import write_json

    manifest["fields"]["limit"] = 7
    write_json(written.prepared / "manifest.json", manifest)
    assert read_scored_examples(written.run, tmp_path).is_cut.any()


def test_a_moved_run_finds_its_scores_under_the_root(tmp_path):
    written = write_scored_run(tmp_path / "runs", ROWS)
    moved = shutil.move(written.run, tmp_path / written.run.name)
    assert read_scored_examples(tmp_path / written.run.name, tmp_path / "runs").ids
    assert moved


def test_an_overflowing_perplexity_is_infinite(tmp_path):
    rows = [Row("a", "b", (2.0, float("inf"))), Row("c", "d", (2.0, 3.0))]
    examples = read_scored_examples(write_scored_run(tmp_path, rows).run, tmp_path)
    assert examples.confidence[0] == -np.inf
    assert np.isnan(examples.variability[0])
    assert examples.confidence[1] == pytest.approx(-2.5)


def test_scores_that_were_given_are_read_as_long_as_they_are_the_same(tmp_path):
    import hashlib

    from resealed import write_json
    from scored import confidence_columns
    from sftmix.artifacts.tables import write_table

    file = tmp_path / "mine.parquet"
    write_table(file, confidence_columns(ROWS))
    sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
    written = write_scored_run(tmp_path, ROWS, more={"confidence": {"sha256": sha256}})
    write_json(written.run / "run.json", {"config": {"confidence": {"path": str(file)}}})
    shutil.rmtree(written.confidence)
    examples = read_scored_examples(written.run, tmp_path)
    assert examples.response == ["Blue.", LONG, "Yes."]
    shutil.rmtree(written.prepared)
    examples = read_scored_examples(written.run, tmp_path)
    assert examples.response == [None] * 3
    assert examples.subset == ["confident", "unconfident", "none"]
    write_table(file, confidence_columns(ROWS[:2]))
    with pytest.raises(InputError, match=r"confidence.path=.*mine.parquet, which is gone or has changed since"):
        read_scored_examples(written.run, tmp_path)


def test_folders_without_scores_are_refused(tmp_path):
    written = write_scored_run(tmp_path, ROWS)
    (tmp_path / "none").mkdir()
    with pytest.raises(InputError, match=r"none: is neither a finished run nor a folder of scores"):
        read_scored_examples(tmp_path / "none", tmp_path)
    (tmp_path / "x.partial").mkdir()
    with pytest.raises(InputError, match=r"x.partial: is not finished; the command that started it continues it"):
        read_scored_examples(tmp_path / "x.partial", tmp_path)
    with pytest.raises(InputError, match=r"examples-x-\w+: is neither a run nor a folder of scores"):
        read_scored_examples(written.prepared, tmp_path)
    plain = write_scored_run(tmp_path, ROWS, more={"confidence": None}, name="ntp-x").run
    with pytest.raises(InputError, match=r"ntp-x-\w+: has no confidence: .*confidence-x-\w+ has scores of the same"):
        read_scored_examples(plain, tmp_path)
    manifest = written.confidence / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"kind": "confidence"', '"kind": "confidents"'))
    with pytest.raises(InputError, match=r"manifest.json: is damaged: its content does not match its checksum"):
        read_scored_examples(written.run, tmp_path)
    shutil.rmtree(written.confidence)
    with pytest.raises(InputError, match=r"sftmix-x-\w+: no folder confidence-\*-\w+ with its scores, beside it or"):
        read_scored_examples(written.run, tmp_path)


def test_the_reference_of_a_confidence_shows_it_without_a_split(tmp_path):
    written = write_scored_run(tmp_path, ROWS)
    from resealed import write_json

    plain = write_scored_run(tmp_path, ROWS, more={"confidence": None}, name="ntp-x").run
    manifest = json.loads((written.confidence / "manifest.json").read_text())
    manifest["fields"]["checkpoints"] = plain.name[-8:]
    write_json(written.confidence / "manifest.json", manifest)
    (plain / "split.parquet").unlink()
    examples = read_scored_examples(plain, tmp_path)
    assert len(examples) == 3
    assert examples.subset is None
