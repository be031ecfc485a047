"""A model is set up as the trainer's settings say."""

import pytest
import torch
from transformers import AutoModelForCausalLM, BloomConfig, LlamaConfig

from sftmix.distributed.device import Device
from sftmix.distributed.ranks import SINGLE
from sftmix.distributed.stopping import StopRequest
from sftmix.errors import InputError
from sftmix.models.attention import VARLEN
from sftmix.models.language_model import SFTMixLM
from sftmix.stages import language_model
from sftmix.stages.context import RankContext
from sftmix.stages.language_model import prepare_language_model, use_fastest_attention

PACKED = RankContext(Device("cpu", "32-true", "packed"), SINGLE, StopRequest())
SIZES = {"vocab_size": 64, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}


def llama():
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(LlamaConfig(**SIZES))


def bloom():
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(BloomConfig(vocab_size=64, hidden_size=32, n_layer=2, n_head=4))


def test_a_family_that_cannot_be_packed_is_grouped_where_nobody_chose(compose):
    _, device = prepare_language_model(lambda _: bloom(), compose().trainer, PACKED)
    assert device.layout == "grouped"


def test_a_family_that_cannot_be_packed_is_refused_where_it_was_asked_for(compose):
    with pytest.raises(InputError, match=r"trainer\.layout=packed: in model family bloom"):
        prepare_language_model(lambda _: bloom(), compose("trainer.layout=packed").trainer, PACKED)


@pytest.mark.filterwarnings("ignore:.*script_method.*:DeprecationWarning")  # torch's own, on its way to compile
def test_settings_reach_the_model(compose):
    trainer = compose("trainer.attention=eager", "trainer.compile=true").trainer
    lm, device = prepare_language_model(lambda _: llama(), trainer, PACKED)
    assert (device.layout, device.attention) == ("packed", "eager")
    assert lm.causal_lm.config._attn_implementation == "eager"
    assert all(block._compiled_call_impl is not None for block in lm.causal_lm.model.layers)


def test_the_fastest_attention_that_works_is_used_and_each_other_one_is_reported(monkeypatch, capsys):
    lm = SFTMixLM(llama())
    monkeypatch.setattr(language_model, "flash_candidates", lambda: ["flash_attention_2", VARLEN])
    use_fastest_attention(lm, torch.device("cpu"), is_packed=True)
    assert lm.attention == VARLEN
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("attention   flash_attention_2 is not used: trainer.attention=flash_attention_2: model fam")


def test_attention_of_the_model_stays_if_no_faster_one_works(monkeypatch, capsys):
    lm = SFTMixLM(llama())
    monkeypatch.setattr(language_model, "flash_candidates", lambda: [VARLEN])
    monkeypatch.setattr(language_model, "why_unusable", lambda config, gpu: "no kernel image is available")
    use_fastest_attention(lm, torch.device("cpu"), is_packed=True)
    assert lm.attention == "sdpa"
    assert capsys.readouterr().out == "attention   torch_varlen is not used: no kernel image is available\n"


def test_a_family_without_flash_attention_keeps_its_own(monkeypatch, capsys):
    lm = SFTMixLM(bloom())
    own = lm.attention
    monkeypatch.setattr(language_model, "flash_candidates", lambda: [VARLEN])
    use_fastest_attention(lm, torch.device("cpu"), is_packed=False)
    assert lm.attention == own
    assert capsys.readouterr().out == ""


def test_torch_varlen_trains_a_packed_model_on_a_cpu(compose):
    trainer = compose("trainer.attention=torch_varlen", "trainer.layout=packed").trainer
    lm, device = prepare_language_model(lambda _: llama(), trainer, PACKED)
    assert (device.layout, device.attention, lm.reads_boundaries) == ("packed", VARLEN, True)
