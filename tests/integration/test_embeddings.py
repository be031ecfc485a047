"""Tokens without an embedding end a run in one line, before anything is tuned or scored."""

import pytest

from sftmix.errors import InputError
from sftmix.models.export import export
from sftmix.models.tiny import tiny_llama
from sftmix.stages.pipeline import run_pipeline

SHAPE = {"hidden_size": 32, "num_layers": 1, "num_heads": 2, "max_position_embeddings": 512, "seed": 0}
MISSING = (
    r"402 tokens and the model 400 embeddings; {holds} tokens without an embedding: "
    r"'<\|im_start\|>' \(400\), '<\|im_end\|>' \(401\)\."
)


@pytest.fixture
def folders(tiny_tokenizer, tmp_path):
    """A model whose tokenizer was extended without resizing the model, and one that was resized; both by `chatml`."""
    small = tiny_llama(tiny_tokenizer, **SHAPE)
    tiny_tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    export(small, tiny_tokenizer, tmp_path / "small", "float32", 1)
    export(tiny_llama(tiny_tokenizer, **SHAPE), tiny_tokenizer, tmp_path / "resized", "float32", 1)
    return tmp_path / "small", tmp_path / "resized"


@pytest.fixture
def config_of(compose, tmp_path):
    def composed(model, *overrides):
        return compose(
            "data.demo.num_examples=40",
            "data.epochs=1",
            "data.num_checkpoints=2",
            "data.template=chatml",
            "recipe.global_batch_size=16",
            "model=local",
            f"model.path={model}",
            "model.lr=1e-3",
            "trainer=cpu",
            "trainer.progress_bar=false",
            f"root={tmp_path / 'runs'}",
            *overrides,
        )

    return composed


def test_a_model_that_was_not_resized_is_refused_as_target_and_as_reference(folders, config_of, tmp_path):
    small, resized = folders
    every = MISSING.format(holds="every example holds")
    with pytest.raises(InputError, match=rf"^model {small}: the tokenizer has {every}"):
        run_pipeline(config_of(small))
    reference = ("model@reference.model=local", f"reference.model.path={small}", "reference.model.lr=1e-3")
    with pytest.raises(InputError, match=rf"^model {small}: the tokenizer has {every}"):
        run_pipeline(config_of(resized, *reference))
    assert not list((tmp_path / "runs").glob("ntp-*"))


def test_a_checkpoint_that_was_not_resized_is_refused_before_any_checkpoint_scores(folders, config_of, tmp_path):
    small, resized = folders
    of_all = MISSING.format(holds=r"(\d+) of \1 examples hold")
    with pytest.raises(InputError, match=rf"^checkpoint {small}: the tokenizer has {of_all}"):
        run_pipeline(config_of(resized, f"confidence.checkpoints=[{resized},{small}]"))
    assert not list((tmp_path / "runs").glob("confidence-*/parts-*"))
