"""Configs of Hugging Face models: what decides their memory."""

from typing import Any

from sftmix.estimate.shape import PUBLISHED

SHAPES: dict[str, dict[str, Any]] = {
    "tiny": {
        "model_type": "llama",
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 128,
        "vocab_size": 512,
    },
    "llama1b": {
        "model_type": "llama",
        "hidden_size": 2048,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 64,
        "intermediate_size": 8192,
        "vocab_size": 128256,
        "tie_word_embeddings": True,
    },
    "llama8b": PUBLISHED["meta-llama/Llama-3.1-8B"],
    "mistral7b": {**PUBLISHED["mistralai/Mistral-7B-v0.1"], "sliding_window": None},
    "gemma2b": PUBLISHED["google/gemma-2b"],
    "qwen14b": PUBLISHED["Qwen/Qwen2.5-14B"],
}
