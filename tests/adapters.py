"""Small models of several families, with LoRA adapters."""

import torch
from transformers import AutoModelForCausalLM, Gemma2Config, GPT2Config, LlamaConfig, Qwen2Config

from builders import SMALL_CONFIG
from sftmix.models.lora import Base, add_lora

SMALL = SMALL_CONFIG | {"vocab_size": 400}
FAMILIES = {
    "llama, tied": LlamaConfig(**SMALL, tie_word_embeddings=True),
    "llama, untied": LlamaConfig(**SMALL),
    "qwen-2, with biases": Qwen2Config(**SMALL),
    "gemma-2, soft cap": Gemma2Config(**SMALL, head_dim=8, final_logit_softcapping=1.5, attn_implementation="eager"),
    "gpt-2, transposed weights": GPT2Config(vocab_size=400, n_embd=32, n_layer=2, n_head=4),
}
LORA = {"r": 4, "alpha": 8, "dropout": 0.0, "target_modules": "all-linear", "seed": 3, "base": Base("/base", None)}
IDS = torch.tensor([[5, 9, 2, 7, 7, 1, 30, 300]])


def model(family="llama, tied"):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(FAMILIES[family], dtype=torch.float32).eval()


def adapted(family="llama, tied", **changes):
    return add_lora(model(family), **{**LORA, **changes})


def move(causal_lm):
    """Set the second factor of the adapters, which is zero at first, to random values."""
    generator = torch.Generator().manual_seed(1)
    for name, weight in causal_lm.named_parameters():
        if "lora_B" in name:
            weight.data = torch.randn(weight.shape, generator=generator, dtype=weight.dtype) * 0.1
    return causal_lm


def logits(causal_lm):
    with torch.no_grad():
        return causal_lm.eval()(input_ids=IDS).logits
