"""Dimensions of a language model from its Hugging Face config, and its number of parameters."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

FAMILIES = ("llama", "mistral", "qwen2", "gemma")  # Families whose memory was simulated at full depth


@dataclass(frozen=True)
class ModelShape:
    """Dimensions of a decoder whose blocks have attention, a gated feed-forward layer, and two norms."""

    family: str  # Model type of transformers
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    feed_forward: int
    vocab: int
    is_tied: bool  # Whether the head is the embeddings
    has_bias: bool = False  # Whether query, key and value have biases

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> "ModelShape | None":
        """Return the shape of a model, or None if its family was not simulated.

        Args:
            config: The content of `config.json`.
        """
        family = config.get("model_type")
        if family not in FAMILIES:
            return None
        heads = int(config["num_attention_heads"])
        return cls(
            family=family,
            hidden=config["hidden_size"],
            layers=config["num_hidden_layers"],
            heads=heads,
            kv_heads=config.get("num_key_value_heads") or heads,
            head_dim=config.get("head_dim") or config["hidden_size"] // heads,
            feed_forward=config["intermediate_size"],
            vocab=config["vocab_size"],
            is_tied=config.get("tie_word_embeddings", family == "gemma"),
            has_bias=family == "qwen2",
        )

    @property
    def query(self) -> int:
        """Width of all queries of a token."""
        return self.heads * self.head_dim

    @property
    def key(self) -> int:
        """Width of all keys, or of all values, of a token."""
        return self.kv_heads * self.head_dim

    @property
    def block_parameters(self) -> int:
        """Parameters of one block."""
        attention = 2 * self.hidden * self.query + 2 * self.hidden * self.key
        biases = self.query + 2 * self.key if self.has_bias else 0
        return attention + biases + 3 * self.hidden * self.feed_forward + 2 * self.hidden

    @property
    def linear_parameters(self) -> int:
        """Parameters of the linear layers of one block."""
        return self.block_parameters - 2 * self.hidden

    @property
    def linear_weights(self) -> tuple[int, ...]:
        """Numbers of values of the weights of the linear layers of one block, without biases."""
        d, q, kv, ff = self.hidden, self.query, self.key, self.feed_forward
        return d * q, d * kv, d * kv, q * d, d * ff, d * ff, ff * d

    @property
    def embedding_parameters(self) -> int:
        """Parameters of the embeddings, or of the head."""
        return self.vocab * self.hidden

    @property
    def root_parameters(self) -> int:
        """Parameters outside the blocks: embeddings, head, and the last norm."""
        return self.embedding_parameters * (1 if self.is_tied else 2) + self.hidden

    @property
    def num_parameters(self) -> int:
        """Parameters of the model."""
        return self.layers * self.block_parameters + self.root_parameters

    def lora_parameters(self, rank: int) -> int:
        """Return the parameters of adapters of a rank on all linear layers of the blocks."""
        d, q, kv, ff = self.hidden, self.query, self.key, self.feed_forward
        return self.layers * rank * ((d + q) + 2 * (d + kv) + (q + d) + 2 * (d + ff) + (ff + d))


# What `config.json` says at the pinned commit of each model in conf/model, for plans without the hub. The numbers are
# also in the papers: Llama 3 (arXiv 2407.21783, table 3), Mistral 7B (arXiv 2310.06825, table 1), Gemma (arXiv
# 2403.08295, table 1), Qwen2.5 (arXiv 2412.15115, table 1, and for the vocabulary with padding its config.json).
PUBLISHED: dict[str, dict[str, Any]] = {
    "meta-llama/Llama-3.1-8B": {
        "model_type": "llama",
        "hidden_size": 4096,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "intermediate_size": 14336,
        "vocab_size": 128256,
        "tie_word_embeddings": False,
    },
    "mistralai/Mistral-7B-v0.1": {
        "model_type": "mistral",
        "hidden_size": 4096,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "intermediate_size": 14336,
        "vocab_size": 32000,
        "tie_word_embeddings": False,
    },
    "google/gemma-2b": {
        "model_type": "gemma",
        "hidden_size": 2048,
        "num_hidden_layers": 18,
        "num_attention_heads": 8,
        "num_key_value_heads": 1,
        "head_dim": 256,
        "intermediate_size": 16384,
        "vocab_size": 256000,
        "tie_word_embeddings": True,
    },
    "google/gemma-2-2b": {"model_type": "gemma2"},  # not simulated, so its dimensions are not needed
    "Qwen/Qwen2.5-14B": {
        "model_type": "qwen2",
        "hidden_size": 5120,
        "num_hidden_layers": 48,
        "num_attention_heads": 40,
        "num_key_value_heads": 8,
        "intermediate_size": 13824,
        "vocab_size": 152064,
        "tie_word_embeddings": False,
    },
}
