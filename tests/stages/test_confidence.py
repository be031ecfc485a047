"""Stage 2 by an untuned model instead of the checkpoints of a reference."""

import pytest
import torch

from sftmix.artifacts.tables import read_table
from sftmix.stages.context import RunContext
from sftmix.stages.models import load_model


def test_an_untuned_model_scores_as_transformers_does_and_nothing_is_tuned(
    run, compose, small_overrides, tmp_path, capsys
):
    overrides = ("confidence.from=base", "mode=confidence")
    plan = run(*overrides)
    assert "scoring under tiny, untuned, whose embedded weights are random" in capsys.readouterr().out
    assert not list(tmp_path.glob("ntp-*"))
    scores = read_table(plan.confidence.folder / "confidence.parquet")
    assert set(scores["checkpoint"]) == {1}
    assert len(set(scores["example_id"])) == len(scores["example_id"]) == 120
    config = compose(*small_overrides, f"root={tmp_path}", *overrides)
    train, causal_lm = RunContext(config).encoded(config.model).train, load_model(config.model).eval()
    for example in train[:3]:
        ids = torch.tensor([example.input_ids])
        labels = ids.clone()
        labels[:, : example.num_prompt_tokens] = -100
        with torch.no_grad():
            mean = causal_lm(input_ids=ids, labels=labels).loss.item()
        row = scores["example_id"].index(example.example_id)
        assert scores["nll"][row] / scores["num_tokens"][row] == pytest.approx(mean, rel=1e-5)
