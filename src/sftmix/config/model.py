"""The model of the config, and its adapters."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from sftmix.config.fields import check_pinned, checked, number, one_of, path_field
from sftmix.errors import ConfigError
from sftmix.hub import looks_local

# Names that model families give their head. The loss reads the weight of the head, so an adapter on it has no effect.
HEADS = ("lm_head", "embed_out", "output_embeddings", "output_layer")
TARGETS = "all-linear or a list of names of layers: [q_proj, v_proj]"


@dataclass(kw_only=True)
class TinyInit:
    """Size of the embedded model (model=tiny)."""

    seed: int = number(least=0)  # Seed of the random weights
    vocab_size: int = number(least=300)  # Entries of the vocabulary; 259 are bytes and special tokens
    hidden_size: int = number(least=8)  # Width of the hidden states
    num_layers: int = number(least=1)  # Layers
    num_heads: int = number(least=1)  # Attention heads; half of hidden_size must be a multiple
    max_position_embeddings: int = number(least=8)  # Longest sequence, in tokens

    def check(self, key: str) -> None:
        if self.hidden_size % (2 * self.num_heads):
            half = f"half of a divisor of hidden_size={self.hidden_size}"
            raise ConfigError(f"{key}.num_heads={self.num_heads}: expected {half}")


@dataclass(kw_only=True)
class Lora:
    """Adapters on linear layers instead of full tuning (Table 8); choose model/lora=default."""

    r: int = number(least=1)  # Rank of the adapters
    alpha: int = number(least=1)  # The output of the adapters is scaled by alpha / r
    dropout: float = number(least=0, below=1)  # Dropout probability of the adapters' inputs
    target_modules: Any = checked(
        lambda t: t == "all-linear" or (isinstance(t, list) and t != [] and all(isinstance(n, str) and n for n in t)),
        TARGETS,
    )  # Layers that carry adapters
    lr_factor: float = number(above=0)  # Factor on model.lr when adapters are tuned

    def check(self, key: str) -> None:
        if self.target_modules is None:
            raise ConfigError(f"{key}.target_modules has no value: expected {TARGETS}")
        names = [] if isinstance(self.target_modules, str) else self.target_modules
        head = next((name for name in names if name.split(".")[-1] in HEADS), None)
        if head is not None:
            raise ConfigError(
                f"{key}.target_modules=[{', '.join(names)}]: {head} is the head, which takes no adapter; expected "
                f"other linear layers"
            )


@dataclass(kw_only=True)
class Model:
    """The model: model=local model.path=FOLDER, or a hub id with its commit."""

    name: str | None  # (internal) Name in folders and messages; null: that of the folder
    path: str | None = path_field()  # Folder, or hub id; null for the embedded model
    revision: str | None  # Commit of the hub id
    dtype: str = one_of("float32", "bfloat16", "float16")  # Type of the saved weights
    pad_token: str | None  # null: the tokenizer's own, or one of its vocabulary
    lr: float = number(above=0)  # Peak learning rate when all weights are tuned
    init: TinyInit | None
    lora: Lora | None
    quantization: str | None = one_of("nf4")  # Of the frozen weights under the adapters (QLoRA); null: none

    @property
    def title(self) -> str:
        """Name in folders and messages: `name`, or that of the folder or hub id."""
        return Path(str(self.path)).resolve().name if self.name is None else self.name

    @property
    def peak_lr(self) -> float:
        """Peak learning rate of what is tuned: all weights, or adapters."""
        return self.lr if self.lora is None else _times(self.lr, self.lora.lr_factor)

    def check(self, key: str) -> None:
        if self.path is not None and self.init is not None:
            raise ConfigError(
                f"{key}.path={self.path}: model {self.name} is built here and reads no folder, choose model=local"
            )
        if self.path is None and self.init is None:
            raise ConfigError(f"{key}.path={self.path}: expected a folder or hub id")
        if self.name is None and self.path is None:
            raise ConfigError(f"{key}.name has no value: only a folder or a hub id can name the model")
        if self.quantization is not None and self.lora is None:
            group = "model/lora" if key == "model" else f"model/lora@{key}"
            raise ConfigError(
                f"{key}.quantization={self.quantization}: quantized weights are not tuned, only adapters beside them; "
                f"choose {group}=default"
            )
        if self.path is not None and looks_local(self.path):
            if self.revision is not None:
                raise ConfigError(f"{key}.revision={self.revision}: a folder has none, it counts by its files")
        elif self.path is not None:
            check_pinned(key, self.path, self.revision)


def _times(lr: float, factor: float) -> float:
    return float(f"{lr * factor:.12g}")  # ten times 2e-6 is 2e-5, also in run.json


def _peak_lr(lr: Any, lora: Any) -> Any:
    """Return the peak learning rate, for `${peak_lr:${model.lr},${model.lora}}` in a YAML.

    Types are checked later, so a value that is not a number is returned unchanged.
    """
    factor = lora.get("lr_factor") if isinstance(lora, DictConfig) else None
    return _times(lr, factor) if isinstance(lr, int | float) and isinstance(factor, int | float) else lr


OmegaConf.register_new_resolver("peak_lr", _peak_lr, replace=True)
