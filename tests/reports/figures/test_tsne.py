"""Figure 1: the hidden states of the most and least confident examples, their cache, and what cannot be drawn."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from scored import Row, write_scored_run
from sftmix.analysis.proportions import Estimate
from sftmix.analysis.separation import Separation
from sftmix.errors import InputError
from sftmix.models.loading import load_causal_lm
from sftmix.reports.figures import hidden_states as module
from sftmix.reports.figures.hidden_states import hidden_states
from sftmix.reports.figures.scores import read_scored_run
from sftmix.reports.figures.tsne import in_words, tsne
from sftmix.stages.context import RunContext


@pytest.fixture
def scored(copy_of_run):
    """The target of a small run, and the root."""
    plan, root = copy_of_run
    return read_scored_run(plan.target.folder.name, root, "run"), root


@pytest.mark.parametrize("at", ["response", "prompt"])
def test_states_are_those_of_transformers_one_example_at_a_time(scored, small_run, at):
    run, root = scored
    ids = run.examples.ids[:5]
    found = hidden_states(run.folder, ids, at, None, root, show_progress=False)
    causal_lm = load_causal_lm(str(run.folder / "model"), None).eval()
    config, _ = small_run
    train = RunContext(config).encoded(config.model).train
    examples = {e.example_id: e for e in train}
    for example_id, state in zip(ids, found.states, strict=True):
        example = examples[example_id]
        tokens = example.input_ids if at == "response" else example.input_ids[: example.num_prompt_tokens]
        with torch.no_grad():
            out = causal_lm(torch.tensor([tokens]), output_hidden_states=True).hidden_states[-1][0, -1]
        assert state == pytest.approx(out.numpy(), abs=1e-4)


def test_figure_1_is_drawn_and_its_states_are_computed_once(scored, monkeypatch):
    run, root = scored
    page, folder = tsne(run, 20, "prompt", None, root, show_progress=False)
    numbers = json.loads((folder / "numbers.json").read_text())
    assert (numbers["confident"], numbers["unconfident"]) == (20, 20)
    assert 0 <= numbers["probe"]["probe"]["low"] <= numbers["probe"]["probe"]["value"] <= 1
    assert set(numbers["silhouette"]) == {"own", "shuffled", "length"}
    assert (folder / "figure.png").is_file()
    assert not any("has seen the response" in note for note in page.notes)

    def fail(*_, **__):
        raise AssertionError("computed again")

    monkeypatch.setattr(module, "_compute", fail)
    assert tsne(run, 20, "prompt", None, root, show_progress=False)[1] == folder
    with pytest.raises(AssertionError, match="computed again"):
        tsne(run, 20, "response", None, root, show_progress=False)


def test_a_folder_of_scores_has_the_states_of_the_reference_before_tuning(copy_of_run):
    plan, root = copy_of_run
    run = read_scored_run(plan.confidence.folder.name, root, "run")
    found = hidden_states(run.folder, run.examples.ids[:3], "prompt", None, root, show_progress=False)
    assert found.model == "tiny"
    assert found.states.shape[0] == 3


def test_examples_that_the_model_cannot_read_are_left_out(scored):
    run, root = scored
    found = hidden_states(run.folder, ["nosuch", run.examples.ids[0]], "prompt", None, root, show_progress=False)
    assert found.known.tolist() == [1]
    with pytest.raises(InputError, match="none of its examples is among the data"):
        hidden_states(run.folder, ["nosuch"], "prompt", None, root, show_progress=False)


def test_too_few_examples_are_one_line(scored):
    run, root = scored
    few = run._replace(examples=run.examples.select(np.arange(8)))
    with pytest.raises(InputError, match="k=2500 gives the 4 most and as many least confident examples, expected"):
        tsne(few, 2500, "prompt", None, root, show_progress=False)
    with pytest.raises(
        InputError, match="k=3 gives the 3 most and as many least confident examples, expected at least 10"
    ):
        tsne(run, 3, "prompt", None, root, show_progress=False)


def test_a_config_that_lacks_a_group_is_one_line(tmp_path):
    run = write_scored_run(tmp_path, [Row("Say a", "x", [2.0])]).run  # its config holds only the seed
    with pytest.raises(InputError, match=r"run\.json: not the config of this version"):
        hidden_states(run, [], "prompt", None, tmp_path, show_progress=False)


def test_a_model_folder_that_is_gone_is_one_line(scored, small_run):
    run, root = scored
    config, _ = small_run
    gone = replace(config.model, path=str(root / "gone"), init=None, name=None)
    with pytest.raises(InputError, match=r"model.path=.*gone: no such folder"):
        hidden_states(run.folder, run.examples.ids[:3], "prompt", gone, root, show_progress=False)


def test_data_that_is_gone_is_one_line(compose, small_overrides, tmp_path):
    from sftmix.stages.pipeline import run_pipeline

    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps({"instruction": f"Say {k}", "output": f"{k % 7}"}) + "\n" for k in range(60)))
    overrides = [o for o in small_overrides if not o.startswith("data")]
    config = compose(
        *overrides,
        "data=own",
        f"data.path={file}",
        "data.epochs=1",
        "data.num_checkpoints=1",
        "mode=confidence",
        f"root={tmp_path / 'runs'}",
    )
    plan = run_pipeline(config)
    shutil.rmtree(tmp_path / "runs" / "data")
    file.unlink()
    run = read_scored_run(str(plan.confidence.folder), tmp_path / "runs", "run")
    with pytest.raises(InputError, match=r"rows\.jsonl"):
        hidden_states(run.folder, run.examples.ids[:3], "prompt", None, tmp_path / "runs", show_progress=False)


def estimate(low):
    return Estimate(low + 0.1, low, low + 0.2, 100)


@pytest.mark.parametrize(
    ("probe", "matched", "says"),
    [
        (0.45, None, "of held-out examples (chance: 50%): not better than chance"),
        (0.52, 0.6, "of held-out examples (chance: 50%): not better than chance"),
        (0.7, None, "whether by more than length is open: only 4 pairs of equal length"),
        (0.7, 0.45, "no separation beyond length is shown"),
        (0.7, 0.6, "the two lie apart by more than length"),
    ],
)
def test_the_words_say_what_the_intervals_carry(probe, matched, says):
    pairs = 4 if matched is None else 100
    low = None if matched is None else estimate(matched)
    found = Separation(200, pairs, estimate(probe), low, estimate(0.5), (0.45, 0.53), estimate(0.5))
    assert says in in_words(found)
