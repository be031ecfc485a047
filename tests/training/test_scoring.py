"""The scoring loop: the loss that the model itself computes, and the same bits after an interruption."""

import pytest
import torch

from builders import encode_examples
from sftmix.data.census import Census
from sftmix.data.collate import BatchSettings
from sftmix.data.demo import demo_rows
from sftmix.data.encoding import Encoder
from sftmix.data.layout import LAYOUTS, cut_by_tokens
from sftmix.data.reader import examples_from_rows
from sftmix.data.rows import Row
from sftmix.data.shards import EncodedExamples
from sftmix.data.templates import set_template, template_source
from sftmix.models.language_model import SFTMixLM
from sftmix.models.tiny import tiny_llama
from sftmix.training import scoring
from sftmix.training.scoring import ScoringSettings, score


@pytest.fixture
def scored(tiny_tokenizer):
    set_template(tiny_tokenizer, template_source("chatml"))
    rows = (Row("", i, fields, "demo") for i, fields in enumerate(demo_rows(80, 0)))
    examples = examples_from_rows(rows, Census())
    encoded = EncodedExamples.of(encode_examples(Encoder(tiny_tokenizer, 256, "drop"), examples, Census()))
    model = tiny_llama(tiny_tokenizer, hidden_size=32, num_layers=1, num_heads=2, max_position_embeddings=256, seed=0)
    return SFTMixLM(model), encoded


def run(scored, folder, batch_tokens=300, layout="grouped"):
    lm, encoded = scored
    settings = ScoringSettings(folder, BatchSettings(layout, batch_tokens, pad_token_id=2), torch.device("cpu"))
    return score(lm, encoded, [[i] for i in range(len(encoded))], settings)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_each_score_is_the_loss_that_the_model_computes_of_the_response(scored, tmp_path, layout):
    lm, encoded = scored
    for e, nll in list(zip(encoded, run(scored, tmp_path, layout=layout), strict=True))[::7]:
        labels = torch.tensor([[-100] * e.num_prompt_tokens + list(e.input_ids[e.num_prompt_tokens :])])
        with torch.no_grad():
            own = lm.causal_lm(input_ids=torch.tensor([e.input_ids]), labels=labels).loss.item()
        assert nll == pytest.approx(own * e.num_response_tokens, rel=1e-5)


def test_a_killed_pass_continues_to_the_same_bits(scored, tmp_path, monkeypatch):
    monkeypatch.setattr(scoring, "BATCHES_PER_PART", 2)
    whole = run(scored, tmp_path / "whole")
    batches, scored_batches = scoring._score_batch, []

    def killed(*arguments):
        if len(scored_batches) == 5:
            raise KeyboardInterrupt
        scored_batches.append(arguments)
        return batches(*arguments)

    monkeypatch.setattr(scoring, "_score_batch", killed)
    with pytest.raises(KeyboardInterrupt):
        run(scored, tmp_path / "cut")
    assert len(list((tmp_path / "cut").glob("part-*.parquet"))) == 2
    again = []
    monkeypatch.setattr(scoring, "_score_batch", lambda *a: again.append(a) or batches(*a))
    assert run(scored, tmp_path / "cut") == whole
    total = len(cut_by_tokens([len(e.input_ids) for e in scored[1]], 300))
    assert len(again) == total - 4, "parts that were written are not computed again"


def test_parts_of_other_batches_are_not_read(scored, tmp_path):
    whole = run(scored, tmp_path / "whole", batch_tokens=500)
    run(scored, tmp_path / "cut", batch_tokens=300)
    assert run(scored, tmp_path / "cut", batch_tokens=500) == whole
