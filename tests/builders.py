"""Tiny tokenizers, models, examples and trainers that several test files build."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from sftmix.data.census import Census
from sftmix.data.demo import demo_texts
from sftmix.data.encoding import EncodedExample, Encoder
from sftmix.data.example import Example
from sftmix.models.export import export
from sftmix.models.tiny import tiny_llama, tiny_tokenizer

SMALL_CONFIG: dict[str, Any] = {  # fields that the configs of most model families share
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
TINY_LLAMA = {"hidden_size": 16, "num_layers": 1, "num_heads": 2, "max_position_embeddings": 64, "seed": 0}
ODD_VOCAB = 41  # does not divide by the number of ranks, so that the shards of the ranks differ in size


def new_tiny_tokenizer(vocab_size: int = 400) -> Any:
    """Return a tokenizer that is trained on the embedded data set."""
    return tiny_tokenizer(demo_texts(300, 0), vocab_size)


def encode_examples(encoder: Encoder, examples: Sequence[Example], census: Census) -> list[EncodedExample]:
    """Return the token ids of the examples that the encoder does not drop."""
    return [fitted.encoded for fitted in encoder.fit(examples, census)]


def save_tiny_llama(tokenizer: Any, folder: Path) -> Path:
    """Export a Llama with random weights and a trivial chat template; return the folder."""
    tokenizer.chat_template = "{{ messages }}{{ eos_token }}"
    export(tiny_llama(tokenizer, **TINY_LLAMA), tokenizer, folder, "float32", 1)
    return folder


def odd_llama(*, tied: bool = True, weights: bool = True, dropout: float = 0.0) -> LlamaForCausalLM:
    """Return a Llama with `ODD_VOCAB` tokens and seeded random weights, or without weights on the meta device."""
    config = LlamaConfig(
        vocab_size=ODD_VOCAB,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        tie_word_embeddings=tied,
        pad_token_id=0,
        attention_dropout=dropout,
    )
    torch.manual_seed(0)
    with torch.device("cpu" if weights else "meta"):
        return LlamaForCausalLM(config)


def random_examples(
    count: int,
    *,
    vocab: int = ODD_VOCAB,
    first_token: int = 1,
    prompt: tuple[int, int] = (1, 6),
    response: tuple[int, int] = (1, 9),
    seed: int = 1,
) -> list[EncodedExample]:
    """Return examples of random tokens.

    Args:
        count: Number of examples.
        vocab: Token ids are below this number.
        first_token: Lowest token id.
        prompt: Smallest number of prompt tokens, and the largest plus one.
        response: Smallest number of response tokens, and the largest plus one.
        seed: Seed of lengths and tokens.
    """
    generator = torch.Generator().manual_seed(seed)
    examples = []
    for i in range(count):
        num_prompt, num_response = (
            int(torch.randint(*bounds, (), generator=generator)) for bounds in (prompt, response)
        )
        ids = torch.randint(first_token, vocab, (num_prompt + num_response,), generator=generator)
        examples.append(EncodedExample(f"{i:016x}", tuple(ids.tolist()), num_prompt))
    return examples


def cpu_trainer(*callbacks: Any, **arguments: Any) -> Any:
    """Return a Lightning Trainer on the CPU that writes and prints nothing unless its arguments say so."""
    from lightning import Trainer  # takes seconds, and few tests need it
    from lightning.pytorch.callbacks import Checkpoint

    from sftmix.training.fit import quiet_lightning

    quiet = {
        "accelerator": "cpu",
        "logger": False,
        "enable_checkpointing": any(isinstance(callback, Checkpoint) for callback in callbacks),
        "enable_model_summary": False,
        "enable_progress_bar": False,
    }
    with quiet_lightning():
        return Trainer(callbacks=list(callbacks), **{**quiet, **arguments})


def fit(module: Any, data: Any, *callbacks: Any, ckpt_path: Any = None, **arguments: Any) -> Any:
    """Train with `cpu_trainer`, and return the trainer."""
    from sftmix.training.fit import quiet_lightning

    trainer = cpu_trainer(*callbacks, **arguments)
    with quiet_lightning():
        trainer.fit(module, data, ckpt_path=ckpt_path)
    return trainer


SCORED_IDS = [f"{k:016x}" for k in range(10)]


def scores_of(changes=(), *, checkpoints=2, drop=(), repeat=(), **columns):
    """A confidence table of ten examples, all checkpoints of one example after the other, with some cells changed."""
    table = {
        "example_id": [i for i in SCORED_IDS for _ in range(checkpoints)],
        "checkpoint": [c for _ in SCORED_IDS for c in range(1, checkpoints + 1)],
        "num_tokens": [4] * len(SCORED_IDS) * checkpoints,
        "nll": [1.0 + k for k in range(len(SCORED_IDS)) for _ in range(checkpoints)],
        **columns,
    }
    for row, name, value in changes:
        table[name][row - 1] = value
    kept = [k for k in range(len(table["nll"])) if k + 1 not in drop] + [row - 1 for row in repeat]
    return {name: [values[k] for k in kept] for name, values in table.items()}
