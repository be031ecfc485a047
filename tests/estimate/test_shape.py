"""Dimensions and numbers of parameters from a config, against the models of transformers."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from sftmix.estimate.shape import FAMILIES, ModelShape
from sftmix.models.lora import Base, add_lora

SMALL = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4, "vocab_size": 60}


def model_of(config):
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("changes", [{}, {"num_key_value_heads": 2, "head_dim": 12}, {"tie_word_embeddings": True}])
def test_parameters_are_counted_as_by_transformers(family, changes):
    config = AutoConfig.for_model(family, **SMALL, **changes)
    causal_lm = model_of(config)
    shape = ModelShape.of(config.to_dict())
    assert shape.num_parameters == causal_lm.num_parameters()
    adapted = add_lora(causal_lm, r=3, alpha=6, dropout=0.0, target_modules="all-linear", seed=0, base=Base("", None))
    trained = sum(p.numel() for p in adapted.parameters() if p.requires_grad)
    assert shape.lora_parameters(3) == trained


def test_a_family_that_was_not_simulated_has_no_shape():
    assert ModelShape.of({"model_type": "mixtral"}) is None
