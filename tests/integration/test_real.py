"""A real pretrained model on real data: the loss it starts from is the published one, and a few steps lower it."""

import pytest
import torch

from builders import encode_examples
from sftmix.artifacts.manifest import read_json
from sftmix.artifacts.tables import read_table
from sftmix.data.census import Census
from sftmix.data.collate import collate_dialogues
from sftmix.data.encoding import Encoder
from sftmix.data.reader import examples_from_rows
from sftmix.data.sources import read_file
from sftmix.data.templates import set_template
from sftmix.functional.equations import token_nll
from sftmix.models.language_model import SFTMixLM
from sftmix.models.loading import load_causal_lm
from sftmix.models.tokenizer import load_tokenizer
from sftmix.stages.pipeline import run_pipeline

PLAIN = "{% for m in messages %}{{ m.content + ('\\n' if m.role == 'user' else eos_token) }}{% endfor %}"


def test_the_untuned_loss_of_a_real_model_is_the_published_one(shared):
    """About 3.74 nats a token of Alpaca's responses: after the plain instruction, and without the end token.

    This model never learnt its end token: it costs 24 nats, and Alpaca's prompt, which it never saw, another 0.3.
    """
    folder = str(shared / "models/stories260K")
    tokenizer = load_tokenizer(folder, None, None)
    set_template(tokenizer, PLAIN)
    rows = read_file(shared / "data/alpaca/alpaca_data.json")
    examples = examples_from_rows(rows, Census(), 400)
    encoded = encode_examples(Encoder(tokenizer, 512, "drop"), examples, Census())
    lm = SFTMixLM(load_causal_lm(folder, None)).eval()
    nll, ends = [], []
    for start in range(0, len(encoded), 16):
        batch = collate_dialogues([[e] for e in encoded[start : start + 16]], "grouped", tokenizer.pad_token_id)
        with torch.no_grad():
            values = token_nll(lm.hidden(batch.inputs, batch.positions), lm.head, batch.labels)
        is_end = batch.labels == tokenizer.eos_token_id
        nll += values[~is_end].tolist()
        ends += values[is_end].tolist()
    assert len(ends) == len(encoded)
    assert sum(nll) / len(nll) == pytest.approx(3.74, abs=0.1)
    assert sum(ends) / len(ends) > 20


def test_a_real_model_learns_from_real_data(compose, shared, tmp_path):
    plan = run_pipeline(
        compose(
            "model=local",
            f"model.path={shared / 'models/stories260K'}",
            "model.lr=1e-3",
            "data=alpaca",
            f"data.path={shared / 'data/alpaca/alpaca_data.json'}",
            "data.limit=100",
            "data.val_fraction=0.4",
            "recipe.global_batch_size=8",
            "data.epochs=1",
            "reference.num_checkpoints=2",
            "scheduler.warmup_ratio=0.3",
            "trainer=cpu",
            "trainer.progress_bar=false",
            f"root={tmp_path}",
        )
    )
    metrics = read_json(plan.target.folder / "metrics.json")
    assert metrics["val_loss"] < metrics["val_loss_before"] - 0.1
    split = read_table(plan.target.folder / "split.parquet")["subset"]
    assert abs(split.count("confident") - split.count("unconfident")) <= 1
    assert metrics["steps"] == -(-metrics["examples"] // 8)
