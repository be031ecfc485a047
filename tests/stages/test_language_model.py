"""A model as the trainer's settings want it."""

import pytest
import torch
from transformers import AutoModelForCausalLM, BloomConfig, LlamaConfig

from sftmix.distributed.device import Device
from sftmix.distributed.ranks import SINGLE
from sftmix.distributed.stopping import StopRequest
from sftmix.errors import InputError
from sftmix.stages.context import RankContext
from sftmix.stages.language_model import prepare_language_model

PACKED = RankContext(Device("cpu", "32-true", "packed"), SINGLE, StopRequest())
SMALL = LlamaConfig(vocab_size=64, hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2)


def bloom():
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(BloomConfig(vocab_size=64, hidden_size=32, n_layer=2, n_head=4))


def test_a_family_that_cannot_be_packed_is_grouped_where_nobody_chose(compose):
    _, layout = prepare_language_model(lambda _: bloom(), compose().trainer, PACKED)
    assert layout == "grouped"


def test_a_family_that_cannot_be_packed_is_refused_where_it_was_asked_for(compose):
    with pytest.raises(InputError, match=r"trainer\.layout=packed: in model family bloom"):
        prepare_language_model(lambda _: bloom(), compose("trainer.layout=packed").trainer, PACKED)


@pytest.mark.filterwarnings("ignore:.*script_method.*:DeprecationWarning")  # torch's own, on its way to compile
def test_settings_reach_the_model(compose):
    trainer = compose("trainer.attention=eager", "trainer.compile=true").trainer
    lm, layout = prepare_language_model(lambda _: AutoModelForCausalLM.from_config(SMALL), trainer, PACKED)
    assert layout == "packed"
    assert lm.causal_lm.config._attn_implementation == "eager"
    assert all(block._compiled_call_impl is not None for block in lm.causal_lm.model.layers)
