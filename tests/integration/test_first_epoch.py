"""A run that is split by its own first epoch: its files, its reports, and that it survives SIGKILL."""

import importlib
import os
import random
import signal
import time

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from sftmix.analysis.scored_examples import read_scored_examples
from sftmix.artifacts.tables import read_table
from sftmix.errors import InputError
from sftmix.reports.data_map.page import write_map_of
from sftmix.reports.figures.confidence import confidence_by_group
from sftmix.reports.figures.scores import read_scored_run
from sftmix.reports.figures.stability import stability
from sftmix.reports.run_page.figures import draw_map
from sftmix.stages.pipeline import run_pipeline
from torture import fork_run

OVERRIDES = ("confidence.from=first_epoch", "data.epochs=2", "confidence.window=20", "trainer.save_every_n_steps=1")


@pytest.fixture(scope="module")
def whole(compose, small_overrides, tmp_path_factory):
    """A run and its root."""
    root = tmp_path_factory.mktemp("whole")
    return run_pipeline(compose(*small_overrides, *OVERRIDES, f"root={root}")).target.folder, root


def test_one_run_trains_scores_and_splits(whole):
    folder, root = whole
    assert not [*root.glob("ntp-*"), *root.glob("confidence-*")]
    split, scores = read_table(folder / "split.parquet"), read_table(folder / "confidence.parquet")
    examples = read_table(folder / "examples.parquet")
    assert set(scores["example_id"]) == set(split["example_id"]) == set(examples["example_id"])
    confidence = dict(zip(split["example_id"], split["confidence"], strict=True))
    assert examples["confidence"] == [confidence[i] for i in examples["example_id"]]
    train = [k for k, part in enumerate(split["part"]) if part == "train"]
    confident = [k for k in train if split["subset"][k] == "confident"]
    assert len(confident) == len(train) // 2
    assert min(split["confidence"][k] for k in confident) >= max(
        split["confidence"][k] for k in train if split["subset"][k] == "unconfident"
    )


def test_reports_read_the_run_as_a_folder_of_scores_and_name_its_ranks(whole, tmp_path):
    folder, root = whole
    examples = read_scored_examples(folder, root)
    assert examples.has_ranks
    assert 0 < examples.confidence.min() < 0.1
    assert examples.perplexity.shape == (120, 1)
    assert "rank" in draw_map(examples).axes[0].get_ylabel()
    write_map_of(examples, folder, tmp_path / "map.html")
    page, _ = stability([str(folder), "random"], root)
    assert page.blocks[0].rows[0][0].text == "split.by=random split.seed=0"
    run = read_scored_run(str(folder), root, "run")
    assert np.isfinite(run.examples.confidence).all()
    with pytest.raises(InputError, match="its confidences are ranks within windows of its first epoch"):
        confidence_by_group(run, None, root)


@pytest.mark.slow
def test_a_run_that_is_killed_at_ten_moments_ends_with_the_same_bits(small_overrides, tmp_path):
    """Forks compute with one thread each, so the whole run is a fork too."""
    importlib.import_module("sftmix.stages.target")  # once, not in each fork
    overrides, draw = (*small_overrides, *OVERRIDES), random.Random(0)
    assert os.waitpid(fork_run(overrides, tmp_path / "whole"), 0)[1] == 0
    (expected,) = (tmp_path / "whole").glob("sftmix-*")
    for kill, step in enumerate(draw.sample(range(1, 14), 10)):  # of 14 steps
        root = tmp_path / f"{kill}"
        pid, deadline = fork_run(overrides, root), time.monotonic() + 120
        while not list(root.glob(f"{expected.name}.partial/states/step-{step:08d}*")):
            assert time.monotonic() < deadline
            assert os.waitpid(pid, os.WNOHANG) == (0, 0), (root / "output.txt").read_text()
            time.sleep(0.001)
        time.sleep(0.05 * draw.random())
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        assert not (root / expected.name).exists()
        assert os.waitpid(fork_run(overrides, root), 0)[1] == 0, (root / "output.txt").read_text()
        got = root / expected.name
        for file in ("split.parquet", "confidence.parquet", "val.parquet"):
            assert read_table(got / file) == read_table(expected / file), (step, file)
        weights, whole = (load_file(folder / "model/model.safetensors") for folder in (got, expected))
        assert all(torch.equal(weights[name], whole[name]) for name in whole), step
